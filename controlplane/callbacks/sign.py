"""Standard Webhooks signatures: `v1,` + base64 HMAC-SHA256 over `id.timestamp.body` (https://www.standardwebhooks.com, specification 1.0)."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Sequence

__all__ = ["new_secret", "sign"]


def new_secret() -> str:
    """`whsec_` + 32 random bytes, base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode("ascii")


def sign(keys: Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature a secret, separated by spaces. `timestamp` is seconds since the epoch."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return " ".join(
        "v1,"
        + base64.b64encode(hmac.digest(base64.b64decode(key.removeprefix("whsec_")), signed, "sha256")).decode("ascii")
        for key in keys
    )
