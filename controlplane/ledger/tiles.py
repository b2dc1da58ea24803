"""Tiles and entry bundles: where a log's hashes and entries lie, and how they are written (c2sp.org/tlog-tiles).

A tile is up to 256 hashes of 32 bytes. Those of level 0 are leaf hashes; each hash of level l + 1 is the root of a complete
tile of level l. A bundle is the entries under a tile of level 0. The last tile of a level may be partial: it has a width
below 256 and grows by appending, so that a narrower tile is a prefix of a wider one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "ENTRIES",
    "HASH_BYTES",
    "MAX_ENTRY_BYTES",
    "MAX_SIZE",
    "TILE_BYTES",
    "WIDTH",
    "MissingTileError",
    "Tile",
    "TileHashes",
    "bundles",
    "decode_bundle",
    "encode_bundle",
    "grown",
    "parse_path",
    "row_above",
    "tile_at",
    "tile_hashes",
    "tile_root",
    "tiles_of",
]

WIDTH = 256
HASH_BYTES = 32
TILE_BYTES = WIDTH * HASH_BYTES
ENTRIES = -1
"""The level that stands for entry bundles."""
MAX_ENTRY_BYTES = 65_535
MAX_SIZE = 2**63 - 1
"""No tree is larger: Go programs hold sizes in an int64."""

_PATH = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/){0,5})([0-9]{3})(?:\.p/([0-9]{1,3}))?", re.ASCII)


class MissingTileError(LookupError):
    """A hash is asked for that no tile at hand has."""


class Tile(NamedTuple):
    """A tile's place: `level` 0 to 63 or ENTRIES, `index` from 0 within the level, `width` 1 to 256 hashes or entries."""

    level: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    width: int

    @property
    def path(self) -> str:
        """`tile/0/x001/234`, `tile/entries/000.p/12`."""
        text = f"{self.index % 1000:03d}"
        rest = self.index // 1000
        while rest:
            text = f"x{rest % 1000:03d}/{text}"
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        return f"tile/{level}/{text}" + (f".p/{self.width}" if self.width < WIDTH else "")


def parse_path(path: str) -> Tile:
    """The tile that `Tile.path` writes so. ValueError for any other spelling of it, and for what is no tile."""
    if not (found := _PATH.fullmatch(path)):
        raise ValueError(f"not the path of a tile or bundle: {path[:100]!r}")
    level, groups, last, width = found.groups()
    index = int((groups + last).replace("x", "").replace("/", ""))
    tile = Tile(ENTRIES if level == "entries" else int(level), index, int(width) if width else WIDTH)
    if tile.level > 63 or not 1 <= tile.width <= WIDTH or tile.path != path:
        raise ValueError(f"not the canonical path of a tile or bundle: {path[:100]!r}")
    return tile


def _between(level: int, old: int, new: int) -> Iterator[Tile]:
    """Tiles of one level (bundles are those of level 0) that differ between the two sizes in units of that level."""
    if new > old:
        for index in range(old // WIDTH, (new - 1) // WIDTH + 1):
            yield Tile(level, index, min(WIDTH, new - index * WIDTH))


def grown(old: int, new: int) -> list[Tile]:
    """Every tile whose content differs between trees of `old` and `new` entries, at its width in the latter; level by level."""
    _check_sizes(old, new)
    return [tile for level in range(8) for tile in _between(level, old >> 8 * level, new >> 8 * level)]


def bundles(old: int, new: int) -> list[Tile]:
    """Every entry bundle whose content differs between logs of `old` and `new` entries, at its width in the latter."""
    _check_sizes(old, new)
    return list(_between(ENTRIES, old, new))


def tiles_of(size: int) -> Iterator[Tile]:
    """All tiles of a tree of `size` entries, level by level, without the bundles."""
    _check_sizes(0, size)
    for level in range(8):
        yield from _between(level, 0, size >> 8 * level)


def tile_at(level: int, index: int, size: int) -> Tile:
    """The tile that holds the root of the complete subtree of 2^level leaves number `index`, at its width in a tree of `size`."""
    place = level // 8
    tile = (index << level % 8) // WIDTH
    return Tile(place, tile, min(WIDTH, (size >> 8 * place) - tile * WIDTH))


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """1 to 256 entries, each behind its length (16 bit, big-endian)."""
    if not 1 <= len(entries) <= WIDTH:
        raise ValueError(f"a bundle holds 1 to {WIDTH} entries, not {len(entries)}")
    parts: list[bytes] = []
    for place, entry in enumerate(entries):
        if len(entry) > MAX_ENTRY_BYTES:
            raise ValueError(f"entry {place} of the bundle has {len(entry)} bytes; the most is {MAX_ENTRY_BYTES}")
        parts += (len(entry).to_bytes(2, "big"), entry)
    return b"".join(parts)


def decode_bundle(data: bytes) -> list[bytes]:
    """The 1 to 256 entries of a bundle; how many there must be is the caller's to check. ValueError says at which entry it ends amiss."""
    entries: list[bytes] = []
    add = entries.append
    at, end = 0, len(data)
    while at < end - 1:
        start = at + 2
        at = start + (data[at] << 8 | data[at + 1])
        add(data[start:at])
        if len(entries) > WIDTH:
            raise ValueError(f"the bundle has more than {WIDTH} entries")
    if at != end:
        raise ValueError(f"the bundle's {end} bytes end within entry {len(entries) - (at > end)}")
    if not entries:
        raise ValueError("the bundle is empty")
    return entries


def tile_hashes(entries: Sequence[bytes]) -> bytes:
    """The leaf hashes of the entries, one after the other: what a tile of level 0 holds. About 0.7 µs an entry of 300 bytes."""
    sha256 = hashlib.sha256
    return b"".join([sha256(b"\x00" + entry).digest() for entry in entries])


def tile_root(data: bytes) -> bytes:
    """The root of a complete tile, which is a hash in the tile above. ValueError if it is not complete. About 0.15 ms."""
    if len(data) != TILE_BYTES:
        raise ValueError(f"a complete tile has {TILE_BYTES} bytes, not {len(data)}")
    while len(data) > HASH_BYTES:
        data = row_above(data)
    return data


def row_above(row: bytes) -> bytes:
    """The hashes of the nodes over each two hashes of `row`; their number must be even (RFC 6962 section 2.1)."""
    sha256 = hashlib.sha256
    return b"".join([sha256(b"\x01" + row[at : at + 64]).digest() for at in range(0, len(row), 64)])


class TileHashes:
    """Hashes of subtrees out of tiles: `TileHashes({(level, index): data}).read` is a `merkle.Reader`.

    A tile wider than the tree at hand does no harm: a reader asks for complete subtrees alone, and these never change.
    """

    def __init__(self, tiles: Mapping[tuple[int, int], bytes]) -> None:
        self._tiles = tiles

    def read(self, level: int, index: int) -> bytes:
        """The root of the complete subtree of 2^level leaves number `index`; up to 127 hashes. MissingTileError if not at hand."""
        tile = tile_at(level, index, MAX_SIZE)
        start = (index << level % 8) % WIDTH * HASH_BYTES
        end = start + (HASH_BYTES << level % 8)
        row = self._tiles.get((tile.level, tile.index), b"")[start:end]
        if len(row) != end - start:
            raise MissingTileError(f"{tile.path} is not at hand with {end // HASH_BYTES} hashes")
        while len(row) > HASH_BYTES:
            row = row_above(row)
        return row


def _check_sizes(old: int, new: int) -> None:
    if not 0 <= old <= new <= MAX_SIZE:
        raise ValueError(f"a log does not go from {old} to {new} entries")
