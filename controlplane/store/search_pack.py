"""A segment of the search index, in memory: up to 65,535 messages, packed into a few hundred arrays.

Rows stand in order of (accepted at, mid), and a row's place is its 16-bit ordinal. Three kinds of documents make a segment:

- postings, `p`: which rows have a token, `2^bits` buckets by the token's upper bits: m, m tokens, m counts, and the ordinals of each token in turn;
- rows, `r`: (accepted at, mid) of each `ROWS_A_CHUNK`;
- columns, `c`: of each row the code of its status, route, connector, tenant, class and direction. Codes are places in the segment's own dictionaries.

Postings and rows never change; columns do. Numbers are little-endian.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COLUMNS",
    "MAX_ROWS",
    "ROWS_A_CHUNK",
    "Chunk",
    "Codes",
    "Ordinals",
    "Packed",
    "Row",
    "common",
    "having",
    "joined",
    "lookup",
    "pack",
    "postings",
]

MAX_ROWS = 65_535
ROWS_A_CHUNK = 128
_ROWS_A_BUCKET = 64
_MOST_BITS = 10
COLUMNS = ("status", "route", "connector", "tenant", "class", "direction")
"""The first three of a row may change."""

Ordinals = NDArray[np.uint16]
Codes = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Row:
    """A message as the index has it."""

    at: int
    mid: str
    tokens: Sequence[int]
    values: tuple[str, ...]
    """In order of COLUMNS."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows' places in time."""

    ats: Sequence[int]
    mids: Sequence[str]

    def find(self, at: int, mid: str) -> int | None:
        """A row's place in the chunk."""
        start, end = bisect_left(self.ats, at), bisect_right(self.ats, at)
        for place in range(start, end):
            if self.mids[place] == mid:
                return place
        return None

    def encode(self) -> bytes:
        """As stored."""
        return np.asarray(self.ats, "<i8").tobytes() + "\n".join(self.mids).encode()

    @classmethod
    def decode(cls, data: bytes, rows: int) -> Chunk:
        """As read; `rows` is how many it has."""
        return cls(np.frombuffer(data, "<i8", rows).tolist(), data[8 * rows :].decode().split("\n"))


@dataclass(frozen=True, slots=True)
class Packed:
    """A whole segment."""

    ats: list[int]
    mids: list[str]
    tokens: NDArray[np.uint32]
    """Of each posting, ascending …"""
    ordinals: Ordinals
    """… and its row."""
    dictionaries: list[list[str]]
    """For each column, its values by code."""
    columns: list[Codes]

    def __len__(self) -> int:
        return len(self.ats)

    @property
    def bits(self) -> int:
        """How many of a token's upper bits say its bucket."""
        return min(_MOST_BITS, (len(self) // _ROWS_A_BUCKET).bit_length())

    def buckets(self) -> list[bytes]:
        """Postings as stored, bucket by bucket; one without any is empty."""
        bits = self.bits
        tokens, starts, counts = np.unique(self.tokens, return_index=True, return_counts=True)
        borders = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(32 - bits)
        cuts = [0, *np.searchsorted(tokens, borders.astype(np.uint32)).tolist(), len(tokens)]
        ends = np.append(starts, len(self.ordinals))
        ordinals, numbers = self.ordinals.astype("<u2"), counts.astype("<u2")
        found = []
        for first, last in pairwise(cuts):
            if first == last:
                found.append(b"")
                continue
            parts = (tokens[first:last].astype("<u4"), numbers[first:last], ordinals[ends[first] : ends[last]])
            found.append((last - first).to_bytes(4, "little") + b"".join(part.tobytes() for part in parts))
        return found

    def chunks(self) -> list[Chunk]:
        """Rows, as stored."""
        steps = range(0, len(self), ROWS_A_CHUNK)
        return [Chunk(self.ats[at : at + ROWS_A_CHUNK], self.mids[at : at + ROWS_A_CHUNK]) for at in steps]

    def counts(self, column: int) -> dict[str, int]:
        """How many rows have each value."""
        numbers = np.bincount(self.columns[column], minlength=len(self.dictionaries[column])).tolist()
        return dict(zip(self.dictionaries[column], numbers, strict=True))


def lookup(bucket: bytes, token: int) -> Ordinals:
    """The rows that have `token`, ascending."""
    size = int.from_bytes(bucket[:4], "little")
    tokens = np.frombuffer(bucket, "<u4", size, 4) if size else np.empty(0, np.uint32)
    place = int(np.searchsorted(tokens, token))
    if place == size or int(tokens[place]) != token:
        return np.empty(0, np.uint16)
    counts = np.frombuffer(bucket, "<u2", size, 4 + 4 * size)
    start = int(counts[:place].sum(dtype=np.int64))
    return np.frombuffer(bucket, "<u2", int(counts[place]), 4 + 6 * size + 2 * start)


def common(rows: Ordinals, others: Ordinals) -> Ordinals:
    """What is in both; each is ascending."""
    if len(rows) > len(others):
        rows, others = others, rows
    if not len(rows):
        return rows
    places = np.minimum(np.searchsorted(others, rows), len(others) - 1)
    found: Ordinals = rows[others[places] == rows]
    return found


def postings(buckets: Iterable[bytes]) -> tuple[NDArray[np.uint32], Ordinals]:
    """All tokens and ordinals of some buckets."""
    tokens, ordinals = [np.empty(0, np.uint32)], [np.empty(0, np.uint16)]
    for bucket in buckets:
        size = int.from_bytes(bucket[:4], "little")
        if size:
            counts = np.frombuffer(bucket, "<u2", size, 4 + 4 * size)
            tokens.append(np.repeat(np.frombuffer(bucket, "<u4", size, 4), counts))
            ordinals.append(np.frombuffer(bucket, "<u2", -1, 4 + 6 * size))
    return np.concatenate(tokens), np.concatenate(ordinals)


def pack(rows: Sequence[Row]) -> Packed:
    """At most MAX_ROWS rows, in any order."""
    rows = sorted(rows, key=lambda row: (row.at, row.mid))
    lengths = [len(row.tokens) for row in rows]
    tokens = np.fromiter((token for row in rows for token in row.tokens), np.uint32, sum(lengths))
    ordinals = np.repeat(np.arange(len(rows), dtype=np.uint16), lengths)
    order = np.argsort(tokens, kind="stable")
    dictionaries: list[list[str]] = []
    columns: list[Codes] = []
    for column in range(len(COLUMNS)):
        codes: dict[str, int] = {}
        columns.append(np.array([codes.setdefault(row.values[column], len(codes)) for row in rows], np.uint16))
        dictionaries.append(list(codes))
    return Packed(
        [row.at for row in rows], [row.mid for row in rows], tokens[order], ordinals[order], dictionaries, columns
    )


def joined(parts: Sequence[Packed], without: Collection[tuple[int, int]] = (), more: Sequence[Row] = ()) -> Packed:
    """One segment of several (together at most MAX_ROWS rows), but for rows (part, ordinal) `without`, and with `more`. Of a message that is in two, the later part's
    row stays: it was written later. About 1 µs a posting, most of it outside the interpreter's lock."""
    newest: dict[str, int] = {}
    for number, part in enumerate(parts):
        newest |= dict.fromkeys(part.mids, number)
    dropped = set(without)
    kept = [
        (at, mid, number, ordinal)
        for number, part in enumerate(parts)
        for ordinal, (at, mid) in enumerate(zip(part.ats, part.mids, strict=True))
        if newest[mid] == number and (number, ordinal) not in dropped
    ]
    rest = pack(more)
    kept += [(at, mid, len(parts), place) for place, (at, mid) in enumerate(zip(rest.ats, rest.mids, strict=True))]
    kept.sort()
    every = [*parts, rest]
    places = [np.full(len(part), MAX_ROWS, np.uint16) for part in every]
    order = [(number, ordinal) for _, _, number, ordinal in kept]
    for place, (number, ordinal) in enumerate(order):
        places[number][ordinal] = place
    tokens = np.concatenate([part.tokens for part in every])
    ordinals = np.concatenate([places[number][part.ordinals] for number, part in enumerate(every)])
    there = ordinals != MAX_ROWS
    tokens, ordinals = tokens[there], ordinals[there]
    sequence = np.argsort(tokens.astype(np.uint64) << np.uint64(16) | ordinals)
    dictionaries, columns = _columns(every, places, len(order))
    return Packed(
        [at for at, *_ in kept],
        [mid for _, mid, *_ in kept],
        tokens[sequence],
        ordinals[sequence],
        dictionaries,
        columns,
    )


def _columns(parts: Sequence[Packed], places: Sequence[Ordinals], size: int) -> tuple[list[list[str]], list[Codes]]:
    dictionaries: list[list[str]] = []
    columns: list[Codes] = []
    for column in range(len(COLUMNS)):
        codes: dict[str, int] = {}
        found = np.zeros(size, np.uint16)
        for part, place in zip(parts, places, strict=True):
            names = part.dictionaries[column]
            translated = np.array([codes.setdefault(name, len(codes)) for name in names], np.uint16)
            there = place != MAX_ROWS
            if len(names):
                found[place[there]] = translated[part.columns[column][there]]
        dictionaries.append(list(codes))
        columns.append(found)
    return dictionaries, columns


def having(columns: Callable[[int], Codes], wanted: Sequence[tuple[int, Collection[int]]], rows: Ordinals) -> Ordinals:
    """Those of `rows` whose codes in some columns are among those wanted."""
    for column, codes in wanted:
        if not len(rows):
            break
        rows = rows[np.isin(columns(column)[rows], np.array(sorted(codes), np.uint16))]
    return rows
