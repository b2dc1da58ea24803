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

__all__ = ["fingerprint", "idempotent_mid", "is_mid", "new_mid", "random_bytes", "token"]

_POOL_BYTES = 8_192
_SHIFTS = range(120, -1, -10)
_MID = re.compile(r"[0-9a-v]{26}")


class _Pool:
    """The operating system's randomness, fetched in larger pieces: a system call a message is what a node spends much of its time in."""

    __slots__ = ("_at", "_data")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            self._data, end = os.urandom(_POOL_BYTES), size
        taken = self._data[end - size : end]
        self._at = end
        return taken


random_bytes = _Pool().take
"""`size` (at most 8,192) cryptographically random bytes, never given out twice. Not for use across fork()."""


_PAIRS = [a + b for a in "0123456789abcdefghijklmnopqrstuv" for b in "0123456789abcdefghijklmnopqrstuv"]


def _text(bits: bytes) -> str:
    """base32hex of 16 octets, in lower case and without padding: 13 pairs of characters (base64.b32hexencode takes three times as long)."""
    n = int.from_bytes(bits, "big") << 2
    return "".join([_PAIRS[n >> shift & 1023] for shift in _SHIFTS])


def new_mid(now_ms: int) -> str:
    """A fresh id for a message accepted at `now_ms`; ids of later milliseconds sort later."""
    return _text(now_ms.to_bytes(6, "big") + random_bytes(10))


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
