"""Putting the parts of a mobile-originated message together: any order, repeated, more than nine, incomplete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Assembled", "StoredPart", "assemble"]


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One received part; `number` counts from 1."""

    number: int
    total: int
    text: str


@dataclass(frozen=True, slots=True)
class Assembled:
    """The message as far as it is known; a missing part leaves a mark in the text."""

    body: str
    complete: bool
    parts: int


def assemble(parts: Iterable[StoredPart]) -> Assembled:
    """Join what there is. The first copy of a repeated part counts; `complete` when none of `total` is missing."""
    found: dict[int, StoredPart] = {}
    total = 0
    for part in parts:
        total = max(total, part.total)
        found.setdefault(part.number, part)
    missing = [number for number in range(1, total + 1) if number not in found]
    body = "".join(found[number].text if number in found else "\u2026" for number in range(1, total + 1))
    return Assembled(body, not missing, total)
