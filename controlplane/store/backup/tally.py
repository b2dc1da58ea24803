"""How many, how large, and a digest of a set that does not depend on the order in which it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Tally"]

_MODULUS = 1 << 256


@dataclass(slots=True)
class Tally:
    """Count, bytes, and the sum modulo 2^256 of the members' SHA-256.

    The sum tells two multisets apart that differ by accident. Nobody can choose members here that cancel out: what is compared was authenticated before.
    """

    count: int = 0
    size: int = 0
    """Bytes of all members."""
    total: int = 0

    def add(self, members: Iterable[bytes]) -> None:
        """Take these."""
        total, sha256 = self.total, hashlib.sha256
        for member in members:
            self.count += 1
            self.size += len(member)
            total += int.from_bytes(sha256(member).digest(), "big")
        self.total = total % _MODULUS

    def join(self, other: Tally) -> None:
        """Take all that another has."""
        self.count += other.count
        self.size += other.size
        self.total = (self.total + other.total) % _MODULUS

    @property
    def digest(self) -> str:
        """64 hexadecimal digits."""
        return f"{self.total:064x}"
