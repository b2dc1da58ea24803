"""Secrets at rest: connector passwords and callback secrets are sealed, API keys are only ever stored as a digest.

Both keys are derived (HKDF-SHA256) from HELIOGRAPH_SECRET_KEY. A sealed value is `v1:` + Fernet (AES-128-CBC + HMAC-SHA256); the prefix leaves room
for another key or cipher later.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import string
import zlib

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from controlplane.errors import ConfigError

__all__ = ["Seal", "checksum_ok", "new_key"]

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_LENGTH = 32
_CHECK_LENGTH = 6


class Seal:
    """Encrypts and digests under the deployment's secret key."""

    def __init__(self, secret: bytes) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(_derive(secret, b"heliograph/seal/v1")))
        self._pepper = _derive(secret, b"heliograph/api-keys/v1")

    def seal(self, value: str) -> str:
        """The value, encrypted and authenticated."""
        return "v1:" + self._fernet.encrypt(value.encode()).decode("ascii")

    def open(self, sealed: str) -> str:
        """The value again. ConfigError when it was sealed under another secret key."""
        try:
            return self._fernet.decrypt(sealed.removeprefix("v1:").encode("ascii")).decode()
        except InvalidToken:
            raise ConfigError(
                "A stored secret cannot be opened: HELIOGRAPH_SECRET_KEY is not the one it was sealed with. "
                "Set the key that this database was created with."
            ) from None

    def digest_key(self, api_key: str) -> str:
        """HMAC-SHA256 of an API key, hex: what is stored and looked up."""
        return hmac.digest(self._pepper, api_key.encode(), "sha256").hex()


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def _check(text: str) -> str:
    value = zlib.crc32(text.encode())
    digits = ""
    while value:
        value, digit = divmod(value, 62)
        digits = _ALPHABET[digit] + digits
    return digits.rjust(_CHECK_LENGTH, "0")


def new_key(*, test: bool = False) -> str:
    """A fresh API key: `hg_live_` or `hg_test_`, 32 random characters (190 bits), 6 of checksum."""
    prefix = "hg_test_" if test else "hg_live_"
    body = "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
    return prefix + body + _check(prefix + body)


def checksum_ok(api_key: str) -> bool:
    """Whether the key is well-formed: tells a mistyped key from a revoked one, without a look-up."""
    size = len("hg_live_") + _SECRET_LENGTH + _CHECK_LENGTH
    if len(api_key) != size or not api_key.isascii() or not api_key.startswith(("hg_live_", "hg_test_")):
        return False
    return _check(api_key[:-_CHECK_LENGTH]) == api_key[-_CHECK_LENGTH:]
