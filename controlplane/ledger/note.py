"""Signed notes: a text and who signed it (c2sp.org/signed-note), and cosignatures over checkpoints (c2sp.org/tlog-cosignature).

Ed25519 alone. A log signs the text itself (type 0x01); a cosigner, which is a witness or a mirror, signs it with the time
(type 0x04). A key is told by its name and a 4-byte id that depends on name, type and public key; a `vkey` holds all of these.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = [
    "COSIGNATURE",
    "ED25519",
    "Note",
    "NoteError",
    "Role",
    "Signature",
    "Signer",
    "Verified",
    "Verifier",
    "check_name",
    "derive",
    "new_seed",
    "parse_note",
    "parse_signature",
    "verify",
]

ED25519, COSIGNATURE = 0x01, 0x04
"""Signature types."""
MAX_BYTES, MAX_SIGNATURES, MAX_NAME = 1_000_000, 100, 256
_PRIME = 2**255 - 19
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NOT_IN_NAME = re.compile(r"[\s+\x00-\x1f\ud800-\udfff]")

Role = Literal["log", "witness", "mirror"]


class NoteError(ValueError):
    """A note, a key or a signature is not well formed, or does not verify; the message says which and why."""


class Signature(NamedTuple):
    """Who signed and how: `blob` is the Ed25519 signature (64 bytes), of a cosignature behind its time (8 bytes)."""

    name: str
    key_id: bytes
    blob: bytes

    @property
    def line(self) -> str:
        """The line in a note, with its newline."""
        return f"— {self.name} {base64.b64encode(self.key_id + self.blob).decode()}\n"


class Note(NamedTuple):
    """A text that ends in a newline, and signatures over it that nobody has verified yet. `str()` is the wire form."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(signature.line for signature in self.signatures)


class Verified(NamedTuple):
    """A signature that holds: the key's name, and of a cosignature when it was made (seconds since the Unix epoch)."""

    name: str
    timestamp: int | None


class Verifier(NamedTuple):
    """A public key under its name."""

    name: str
    key_id: bytes
    algorithm: int
    public: bytes

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Read `<name>+<hex key id>+<base64 of type and public key>`. NoteError if the id is not that key's."""
        name, _, rest = vkey.partition("+")
        key_id, _, key = rest.partition("+")
        check_name(name)
        data = _base64(key)
        if len(data) != 33 or data[0] not in (ED25519, COSIGNATURE):
            raise NoteError(f"the key of {name} is not an Ed25519 key for signing or cosigning: {vkey[:200]!r}")
        verifier = cls.of(name, data[0], data[1:])
        if key_id != verifier.key_id.hex():
            raise NoteError(f"the key of {name} has another id than it says: {vkey[:200]!r}")
        return verifier

    @classmethod
    def of(cls, name: str, algorithm: int, public: bytes) -> Verifier:
        """A raw public key (32 bytes, RFC 8032) under a name."""
        check_name(name)
        if len(public) != 32 or int.from_bytes(public, "little") & (2**255 - 1) >= _PRIME:
            raise NoteError(f"the key of {name} is not the encoding of an Ed25519 key")
        return cls(name, _key_id(name, algorithm, public), algorithm, public)

    @property
    def vkey(self) -> str:
        """The text that `parse` reads."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(bytes([self.algorithm]) + self.public).decode()}"

    def verify(self, text: str, signature: Signature) -> Verified:
        """Check one signature with this key. NoteError if it does not hold."""
        blob, message, timestamp = signature.blob, text.encode(), None
        if self.algorithm == COSIGNATURE:
            timestamp, blob = int.from_bytes(blob[:8], "big"), blob[8:]
            if timestamp >= 2**63:
                raise NoteError(f"the cosignature of {self.name} has the time {timestamp}, which no clock shows")
            message = _cosigned(text, timestamp)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(blob, message)
        except InvalidSignature:
            raise NoteError(f"the signature of {self.name} does not hold") from None
        return Verified(self.name, timestamp)


class Signer:
    """A private key under its name, for one purpose: `log` signs texts, `cosigner` says when it saw them."""

    def __init__(self, name: str, algorithm: int, private: Ed25519PrivateKey) -> None:
        self.verifier = Verifier.of(name, algorithm, private.public_key().public_bytes_raw())
        self._private = private

    @classmethod
    def log(cls, name: str, private: Ed25519PrivateKey) -> Signer:
        """The key of a log; its name is the log's origin."""
        return cls(name, ED25519, private)

    @classmethod
    def cosigner(cls, name: str, private: Ed25519PrivateKey) -> Signer:
        """The key of a witness or of a mirror. It must be used under one name only: what is signed does not hold the name."""
        return cls(name, COSIGNATURE, private)

    @property
    def name(self) -> str:
        """The key's name."""
        return self.verifier.name

    @property
    def key_id(self) -> bytes:
        """4 bytes: the beginning of SHA-256(name, newline, type, public key)."""
        return self.verifier.key_id

    @property
    def vkey(self) -> str:
        """What others verify with; public."""
        return self.verifier.vkey

    def sign(self, text: str) -> Signature:
        """Sign a text, which ends in a newline. Only for `log`."""
        self._must_be(ED25519)
        _check_text(text)
        return Signature(self.name, self.key_id, self._private.sign(text.encode()))

    def cosign(self, text: str, timestamp_s: int) -> Signature:
        """Sign a checkpoint's text and the time, in seconds since the Unix epoch. Only for `cosigner`."""
        self._must_be(COSIGNATURE)
        _check_text(text)
        blob = timestamp_s.to_bytes(8, "big") + self._private.sign(_cosigned(text, timestamp_s))
        return Signature(self.name, self.key_id, blob)

    def _must_be(self, algorithm: int) -> None:
        if self.verifier.algorithm != algorithm:
            raise TypeError(f"{self.name} is a key of type {self.verifier.algorithm}, not {algorithm}")


def parse_note(data: str | bytes) -> Note:
    """Read a note, up to 1,000,000 bytes with 1 to 100 signatures. NoteError if anything in it is not as `str(note)` writes it."""
    try:
        raw = data.encode() if isinstance(data, str) else bytes(data)
        text = raw.decode()
    except UnicodeError:
        raise NoteError("the note is not UTF-8") from None
    if len(raw) > MAX_BYTES:
        raise NoteError(f"the note has {len(raw)} bytes; the most is {MAX_BYTES}")
    split = text.rfind("\n\n")
    if split < 0 or not text.endswith("\n"):
        raise NoteError("the note has no signatures: it does not end in an empty line and signature lines")
    lines = text[split + 2 : -1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"the note has {len(lines)} signatures; the most is {MAX_SIGNATURES}")
    _check_text(text[: split + 1])
    return Note(text[: split + 1], tuple([parse_signature(line) for line in lines]))


def parse_signature(line: str) -> Signature:
    """Read a signature line, without its newline. NoteError if it is none."""
    mark, _, rest = line.partition(" ")
    name, _, value = rest.partition(" ")
    if mark != "—":
        raise NoteError(f"not a signature line: {line[:200]!r}")
    check_name(name)
    data = _base64(value)
    if len(data) < 5:
        raise NoteError(f"the signature of {name} is too short")
    return Signature(name, data[:4], data[4:])


def verify(note: Note, verifiers: Iterable[Verifier]) -> list[Verified]:
    """The signatures by known keys, one for each key, in the note's order; those by other keys are passed over.

    NoteError if one by a known key does not hold, which rejects the whole note, or if there is none by a known key.
    """
    known: dict[tuple[str, bytes], Verifier] = {}
    for verifier in verifiers:
        if known.setdefault((verifier.name, verifier.key_id), verifier) != verifier:
            raise NoteError(f"two keys share the name {verifier.name} and the id {verifier.key_id.hex()}")
    found: dict[Verifier, Verified] = {}
    for signature in note.signatures:
        if (key := known.get((signature.name, signature.key_id))) is not None:
            found.setdefault(key, key.verify(note.text, signature))
    if not found:
        names = ", ".join(sorted({signature.name for signature in note.signatures}))
        raise NoteError(f"no signature by a known key; signed by {names}")
    return list(found.values())


def derive(seed: bytes, role: Role) -> Ed25519PrivateKey:
    """The key for a role out of a datacenter's secret (32 bytes): HKDF-SHA256, so that no role's key tells another's."""
    if len(seed) != 32:
        raise ValueError(f"the ledger's secret has {len(seed)} bytes, not 32")
    info = f"heliograph/ledger/{role}/v1".encode()
    return Ed25519PrivateKey.from_private_bytes(HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(seed))


def new_seed() -> str:
    """A fresh secret for `derive`, in base64: what HELIOGRAPH_LEDGER_KEY holds."""
    return base64.b64encode(os.urandom(32)).decode()


def check_name(name: str) -> None:
    """NoteError if a key cannot have this name: 1 to 256 characters, no white space, no plus, no control characters."""
    if not 1 <= len(name) <= MAX_NAME or _NOT_IN_NAME.search(name):
        raise NoteError(f"not a key's name: {name[:MAX_NAME]!r}")


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise NoteError("the text does not end in a newline")
    if found := _CONTROL.search(text):
        raise NoteError(f"the text has the control character {found[0]!r}")


def _cosigned(text: str, timestamp_s: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp_s}\n{text}".encode()


def _key_id(name: str, algorithm: int, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + bytes([0x0A, algorithm]) + public).digest()[:4]


def _base64(text: str) -> bytes:
    """Standard base64 in its one canonical form."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data or base64.b64encode(data).decode() != text:
        raise NoteError(f"not canonical base64: {text[:100]!r}")
    return data
