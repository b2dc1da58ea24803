"""Passwords as argon2id hashes (RFC 9106), made and checked beside the event loop, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from controlplane.errors import Problem

__all__ = ["Passwords"]

T = TypeVar("T")
_AT_ONCE = 2
_WAITING = 32


class Passwords:
    """One per node. 19 MiB, two passes, one lane, as OWASP's Password Storage Cheat Sheet asks; 25 ms of one core.

    The bound on how many wait keeps a flood of logins from taking memory and time from messages.
    """

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, type=Type.ID)
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._nobodys = self._hasher.hash("nobody's password, at the price of anybody's")

    async def hashed(self, password: str) -> str:
        """What is stored. Raises Problem 503 while too many wait."""
        return await self._beside(lambda: self._hasher.hash(password))

    async def check(self, password: str, stored: str) -> bool:
        """Whether it is the one. Where nothing is stored ("") it takes as long, and is never right. Raises Problem 503."""
        right = await self._beside(lambda: self._verified(stored or self._nobodys, password))
        return right and bool(stored)

    def outdated(self, stored: str) -> bool:
        """Whether it was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _verified(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _beside(self, work: Callable[[], T]) -> T:
        if self._waiting >= _WAITING:
            raise Problem(
                "overloaded",
                "Too many log in at once",
                503,
                f"{self._waiting} passwords wait to be checked on this node.",
                "Try again in a few seconds.",
                headers={"Retry-After": "5"},
            )
        self._waiting += 1
        try:
            async with self._free:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1
