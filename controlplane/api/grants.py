"""Leave to call the API in-process for as long as one call takes: the console acts so for people, who have no key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from controlplane.ids import random_bytes

__all__ = ["SCHEME", "Grants"]

SCHEME = "grant"
"""Of the Authorization header, in lower case."""

Holder = TypeVar("Holder")


class Grants(Generic[Holder]):
    """One per node. What is granted never leaves the process and ends with the call."""

    def __init__(self) -> None:
        self._holders: dict[str, Holder] = {}

    @contextmanager
    def give(self, holder: Holder) -> Iterator[str]:
        """The value of an Authorization header that makes `holder` the caller."""
        word = random_bytes(32).hex()
        self._holders[word] = holder
        try:
            yield f"{SCHEME} {word}"
        finally:
            del self._holders[word]

    def holder(self, word: str) -> Holder | None:
        """Whose it is, while it lasts."""
        return self._holders.get(word)
