"""The pure part of verification: which faults there are, what a signed root proves of a tile, which sequence numbers are accounted for.

Where two copies of a hash disagree, the signed root says which one is right: a tile is *proven* when the hash over it (or, of a tile at the right edge, the
roots of its complete subtrees) is the one that is proven above it, up to the root that the log signed. What is stored is one candidate; what can be computed
from the level below is another; where both have a flaw, their mixtures are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import product

from controlplane.domain.events import Event, commitment, committed_payload
from controlplane.ledger.merkle import Frontier
from controlplane.ledger.tiles import HASH_BYTES, WIDTH, tile_root

__all__ = [
    "Fault",
    "Ranges",
    "contradictions",
    "decode_some",
    "differing",
    "levels_of",
    "mixtures",
    "opens",
    "peaks_of",
    "split",
    "stretches",
]

_MOST_MIXTURES = 256


class Fault(StrEnum):
    """What can be wrong; repair says what helps against each."""

    LOG = "log"
    """A field of a log's document contradicts what was signed, or what its tiles and neighbours say."""
    CHECKPOINT = "checkpoint"
    """The checkpoint of a log is missing, unreadable, badly signed, or not the one of its size."""
    BEHIND = "behind"
    """A log is shorter than somebody has cosigned it: it was restored, or its document was."""
    FORK = "fork"
    """Two roots of one log, both signed, that do not belong to one history."""
    ROOT = "root"
    """Nothing here leads to the root that was signed."""
    TILE = "tile"
    """A tile is missing, or not what the signed root proves."""
    BUNDLE = "bundle"
    """A bundle is missing, or its entries are not those that the signed root proves."""
    WRITER = "writer"
    """A document is marked as written by a round that is yet to come: the next one would be refused."""
    LEAF = "leaf"
    """A proven entry is no leaf of this log: it was signed so, and nothing can change it."""
    SEQUENCE = "sequence"
    """Sequence numbers of a node are missing or twice in the logs, and no `gap` event says why."""
    RUN = "run"
    """The index from sequence numbers to entries is not as the entries are."""
    EVENT_MISSING = "event_missing"
    """A leaf is in the log, and its event is not in the store."""
    EVENT_ALTERED = "event_altered"
    """The event in the store is not what its leaf says and commits to."""
    UNERASED = "unerased"
    """A payload is there whose message was erased: the erasure was cut short, or a backup came back."""
    UNSEQUENCED = "unsequenced"
    """An event is in the store, below the mark of its node, and in no log."""
    STRAY = "stray"
    """A document in the store stands where another event has its place in the log."""
    CHAIN = "chain"
    """An event's predecessor in its message is nowhere, or is another than its leaf says."""
    COSIGNATURE = "cosignature"
    """A stored cosignature does not hold, or says something else than its document."""


def split(data: bytes) -> list[bytes]:
    """A tile's hashes."""
    return [data[at : at + HASH_BYTES] for at in range(0, len(data) - HASH_BYTES + 1, HASH_BYTES)]


def peaks_of(data: bytes) -> list[bytes]:
    """The roots of the complete subtrees of a tile, from left (the largest) to right: one of a complete tile."""
    if len(data) == HASH_BYTES * WIDTH:
        return [tile_root(data)]
    frontier = Frontier()
    frontier.extend(split(data))
    return frontier.hashes


def levels_of(size: int) -> list[tuple[int, int, int]]:
    """(level, index, width) of the partial tile of each level that has one, from the highest down: together their peaks are a log's frontier."""
    found = [(level, size >> 8 * level + 8, (size >> 8 * level) % WIDTH) for level in range(7, -1, -1)]
    return [item for item in found if item[2]]


def mixtures(candidates: Sequence[Sequence[bytes]]) -> Iterator[bytes]:
    """Tiles with one of the candidate hashes at each place, the first of each first; at most 256, and none where a place has no candidate."""
    places = [list(dict.fromkeys(options)) for options in candidates]
    if not all(places):
        return
    first = [options[0] for options in places]
    yield b"".join(first)
    yield b"".join([options[-1] for options in places])
    open_places = [place for place, options in enumerate(places) if len(options) > 1]
    count = 1
    for place in open_places:
        count *= len(places[place])
        if count > _MOST_MIXTURES:
            return
    for choice in product(*(places[place] for place in open_places)):
        mixed = first.copy()
        for place, value in zip(open_places, choice, strict=True):
            mixed[place] = value
        yield b"".join(mixed)


def decode_some(data: bytes) -> tuple[list[bytes], str]:
    """The entries of a bundle as far as they can be read, and what is wrong with the rest; "" for nothing."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            return entries, f"the bundle's {len(data)} bytes end within entry {len(entries)}"
        entries.append(data[at + 2 : end])
        at = end
    return entries, "" if entries else "the bundle is empty"


def differing(one: bytes, other: bytes) -> list[int]:
    """At which places two tiles differ, the missing ones included."""
    if one == other:
        return []
    left, right = split(one), split(other)
    most = max(len(left), len(right))
    return [place for place in range(most) if place >= len(left) or place >= len(right) or left[place] != right[place]]


def stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of those that follow each other."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def contradictions(leaf: Event, stored: Event) -> list[str]:
    """The fields of a stored event that are not as its leaf says; the message's name may be the second one (store.copies)."""
    if stored.leaf != leaf.leaf:
        return ["leaf"]
    return [
        name
        for name in ("k", "kind", "at", "dc", "node", "epoch", "q", "route", "reason", "ref")
        if getattr(stored, name) != getattr(leaf, name)
    ]


def opens(stored: Event) -> bool:
    """Whether tenant, data and carriers' ids are what the leaf commits to."""
    if stored.salt is None or stored.data is None:
        return False
    try:
        commit = commitment(stored.salt, committed_payload(stored))
    except (TypeError, ValueError, OverflowError):
        return False
    return f'"commit":"{commit}"'.encode() in stored.leaf


class Ranges:
    """A set of numbers, kept as ranges: (node, epoch)'s sequence numbers that were met in a log."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, number: int) -> bool:
        place = bisect_left(self._lasts, number)
        return place < len(self._lasts) and self._firsts[place] <= number

    @property
    def count(self) -> int:
        """How many numbers."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def add(self, number: int) -> bool:
        """False: it was there already."""
        firsts, lasts = self._firsts, self._lasts
        if lasts and number == lasts[-1] + 1:
            lasts[-1] = number
            return True
        place = bisect_left(lasts, number)
        if place < len(lasts) and firsts[place] <= number:
            return False
        before = place > 0 and lasts[place - 1] == number - 1
        after = place < len(firsts) and firsts[place] == number + 1
        if before and after:
            lasts[place - 1] = lasts.pop(place)
            firsts.pop(place)
        elif before:
            lasts[place - 1] = number
        elif after:
            firsts[place] = number
        else:
            firsts.insert(place, number)
            lasts.insert(place, number)
        return True

    def cover(self, first: int, last: int) -> None:
        """Add all from `first` to `last`."""
        firsts, lasts = self._firsts, self._lasts
        low = bisect_left(lasts, first - 1)
        high = low
        while high < len(firsts) and firsts[high] <= last + 1:
            first, last = min(first, firsts[high]), max(last, lasts[high])
            high += 1
        firsts[low:high], lasts[low:high] = [first], [last]

    def holes(self, first: int, last: int) -> list[tuple[int, int]]:
        """What is not in it, from `first` to `last`."""
        found: list[tuple[int, int]] = []
        at = first
        for start, end in self:
            if end < at:
                continue
            if start > last:
                break
            if start > at:
                found.append((at, start - 1))
            at = end + 1
        if at <= last:
            found.append((at, last))
        return found
