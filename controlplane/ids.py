"""Message ids: 128 bits as 26 characters of base32hex, so that sorting the text sorts the bits.

A fresh id starts with 48 bits of milliseconds (as UUIDv7 and ULID do). An id for an idempotent request is a keyed hash of
(tenant, key) instead: a repeat meets the same `_id` in the event store and needs no second collection to be recognised.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from base64 import b32hexencode

__all__ = ["fingerprint", "idempotent_mid", "is_mid", "new_mid", "token"]

_MID = re.compile(r"[0-9a-v]{26}")


def _text(bits: bytes) -> str:
    return b32hexencode(bits)[:26].decode("ascii").lower()


def new_mid(now_ms: int) -> str:
    """A fresh id for a message accepted at `now_ms`; ids of later milliseconds sort later."""
    return _text(now_ms.to_bytes(6, "big") + os.urandom(10))


def idempotent_mid(secret: bytes, tenant: str, key: str) -> str:
    """The one id that (tenant, Idempotency-Key) may ever have under `secret`."""
    return _text(hmac.digest(secret, f"{tenant}\x00{key}".encode(), "sha256")[:16])


def is_mid(value: str) -> bool:
    """Whether `value` has the form of a message id (it need not exist)."""
    return _MID.fullmatch(value) is not None


def token(prefix: str, size: int = 16) -> str:
    """A random, unguessable, URL-safe identifier such as `rt_…` (`size` bytes of entropy)."""
    return f"{prefix}_{b32hexencode(os.urandom(size)).decode('ascii').rstrip('=').lower()}"


def fingerprint(body: bytes) -> str:
    """A short digest that tells two request bodies apart (first 16 bytes of SHA-256, hex). Never stored beside a proof."""
    return hashlib.sha256(body).hexdigest()[:32]
