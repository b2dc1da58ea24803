"""Reading a log by its signed root: what comes out of here is proven, whoever kept the bytes; and finding where two copies of a log differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple, Protocol

from controlplane.ledger.check import differing, levels_of, mixtures, peaks_of, split
from controlplane.ledger.merkle import EMPTY, Frontier, root_tiles, tree_root
from controlplane.ledger.tiles import HASH_BYTES, TILE_BYTES, WIDTH, TileHashes, decode_bundle, tile_hashes

__all__ = ["Copy", "Difference", "Place", "Proven", "locate", "width_of"]

Place = tuple[int, int]
"""(level, index) of a tile."""
_CACHED = 64


class Copy(Protocol):
    """Somebody's copy of logs. Nothing that it says is believed."""

    async def tiles(self, origin: str, places: Iterable[Place]) -> dict[Place, bytes]:
        """Tiles in wire form, of any width; what it has not is absent."""
        ...

    async def bundles(self, origin: str, indices: Sequence[int]) -> dict[int, bytes]:
        """Bundles in wire form, of any width; what it has not is absent."""
        ...


def width_of(size: int, level: int, index: int) -> int:
    """How many hashes the tile has in a log of `size`; 0 or less where it has none."""
    return min(WIDTH, (size >> 8 * level) - index * WIDTH)


class Proven:
    """One log's tiles, as the root of its `size` entries proves them; out of the first copy that has them so."""

    def __init__(self, origin: str, size: int, root: bytes, copies: Sequence[Copy], hint: Sequence[bytes] = ()) -> None:
        self.origin = origin
        self.size = size
        self.root = root
        self._copies = copies
        self._hint = tuple(hint)
        """Where the peaks may be had cheaply: the frontier of the log's document."""
        self._peaks: dict[int, list[bytes]] = {}
        self._known: dict[Place, bytes | None] = {}
        self.sound = False
        """Whether the root is reproduced. Where it is not, everything else is judged by what is stored at the right edge."""
        self.stored_root = b""
        """What the right edge leads to where the root is not reproduced."""

    async def open(self) -> bool:
        """Find the roots of complete subtrees that lead to the root; whether there are any."""
        levels = levels_of(self.size)
        if not levels:
            self.sound = self.root == EMPTY
            self.stored_root = EMPTY
            return self.sound
        hint = self._split_hint(levels)
        if hint and Frontier(self.size, self._hint).root() == self.root:
            self._peaks, self.sound = hint, True
            return True
        options: dict[int, list[tuple[bytes, ...]]] = {level: [] for level, _, _ in levels}
        for level, peaks in hint.items():
            options[level].append(tuple(peaks))
        for copy in self._copies:
            for level, index, width in levels:
                for data in await self._candidates(copy, level, index, width):
                    if (found := tuple(peaks_of(data))) not in options[level]:
                        options[level].append(found)
            if self._choose(levels, options):
                return True
        first = [
            options[level][-1] if options[level] else (b"\0" * HASH_BYTES,) * width.bit_count()
            for level, _, width in levels
        ]
        self._peaks = {level: list(peaks) for (level, _, _), peaks in zip(levels, first, strict=True)}
        self.stored_root = Frontier(self.size, [value for peaks in first for value in peaks]).root()
        return False

    def _split_hint(self, levels: Sequence[tuple[int, int, int]]) -> dict[int, list[bytes]]:
        if len(self._hint) != self.size.bit_count() or any(len(value) != HASH_BYTES for value in self._hint):
            return {}
        found, at = {}, 0
        for level, _, width in levels:
            found[level] = list(self._hint[at : at + width.bit_count()])
            at += width.bit_count()
        return found

    def _choose(self, levels: Sequence[tuple[int, int, int]], options: dict[int, list[tuple[bytes, ...]]]) -> bool:
        for choice in product(*(options[level][:8] for level, _, _ in levels)):
            if Frontier(self.size, [value for peaks in choice for value in peaks]).root() == self.root:
                self._peaks = {level: list(peaks) for (level, _, _), peaks in zip(levels, choice, strict=True)}
                self.sound = True
                return True
        return False

    async def _candidates(self, copy: Copy, level: int, index: int, width: int) -> list[bytes]:
        """What a tile may be by one copy: as stored, as computed from below, mixtures of both."""
        stored = (await copy.tiles(self.origin, [(level, index)])).get((level, index), b"")[: width * HASH_BYTES]
        found = [stored] if len(stored) == width * HASH_BYTES else []
        found += mixtures(await self._options(copy, level, index, width, split(stored)))
        return found

    async def _options(
        self, copy: Copy, level: int, index: int, width: int, stored: Sequence[bytes]
    ) -> list[list[bytes]]:
        """For each place of a tile the hashes that it may have: the stored one, and those that the level below gives."""
        options = [[value] for value in stored] + [[] for _ in range(width - len(stored))]
        if level == 0:
            for place, value in enumerate(await self._leaf_hashes(copy, index, width)):
                options[place].append(value)
            return options
        places = [(level - 1, index * WIDTH + place) for place in range(width)]
        below = await copy.tiles(self.origin, places)
        for place, child in enumerate(places):
            data = below.get(child, b"")[:TILE_BYTES]
            if len(data) == TILE_BYTES:
                options[place].append(peaks_of(data)[0])
            if len(set(options[place])) != 1 or len(options[place]) == 1:
                deeper = await self._options(copy, *child, WIDTH, split(data))
                for mixed in mixtures([values[-1:] for values in deeper]):
                    options[place].append(peaks_of(mixed)[0])
        return options

    async def _leaf_hashes(self, copy: Copy, index: int, width: int) -> list[bytes]:
        data = (await copy.bundles(self.origin, [index])).get(index, b"")
        try:
            return split(tile_hashes(decode_bundle(data)[:width]))
        except ValueError:
            return []

    async def expected(self, level: int, index: int) -> list[bytes] | None:
        """The roots of the complete subtrees of a tile, as proven; None where that cannot be told."""
        if width_of(self.size, level, index) < WIDTH:
            return self._peaks.get(level)
        above = await self.tile(level + 1, index // WIDTH)
        at = index % WIDTH * HASH_BYTES
        return [above[at : at + HASH_BYTES]] if above is not None else None

    async def proves(self, level: int, index: int, data: bytes) -> bool:
        """Whether a tile, at its width, is the right one."""
        return len(data) == width_of(self.size, level, index) * HASH_BYTES and await self.expected(
            level, index
        ) == peaks_of(data)

    async def tile(self, level: int, index: int) -> bytes | None:
        """The tile at its width; None where no copy leads to it."""
        place = (level, index)
        if place in self._known:
            return self._known[place]
        found = await self._find(level, index)
        if len(self._known) >= _CACHED:
            del self._known[next(iter(self._known))]
        self._known[place] = found
        return found

    async def _find(self, level: int, index: int) -> bytes | None:
        expected = await self.expected(level, index)
        width = width_of(self.size, level, index)
        if expected is None or width <= 0:
            return None
        for copy in self._copies:
            stored = (await copy.tiles(self.origin, [(level, index)])).get((level, index), b"")[: width * HASH_BYTES]
            if len(stored) == width * HASH_BYTES and peaks_of(stored) == expected:
                return stored
            for mixed in mixtures(await self._options(copy, level, index, width, split(stored))):
                if peaks_of(mixed) == expected:
                    return mixed
        return None

    async def root_at(self, size: int) -> bytes | None:
        """The root of the first `size` entries; None where that cannot be told."""
        tiles: dict[Place, bytes] = {}
        for tile in root_tiles(size):
            data = await self.tile(tile.level, tile.index)
            if data is None:
                return None
            tiles[tile.level, tile.index] = data
        return tree_root(size, TileHashes(tiles).read)

    async def frontier_at(self, size: int) -> tuple[bytes, ...] | None:
        """The roots of the complete subtrees that make up the first `size` entries."""
        found: list[bytes] = []
        for level, index, width in levels_of(size):
            data = await self.tile(level, index)
            if data is None:
                return None
            found += peaks_of(data[: width * HASH_BYTES])
        return tuple(found)

    async def leaf_hash(self, index: int) -> bytes | None:
        """Of one entry."""
        data = await self.tile(0, index // WIDTH)
        at = index % WIDTH * HASH_BYTES
        return data[at : at + HASH_BYTES] if data is not None else None

    async def bundle(self, index: int) -> tuple[bytes, list[bytes]] | None:
        """A bundle at its width out of the first copy that has it right, and its entries; None where none has."""
        expected = await self.tile(0, index)
        width = width_of(self.size, 0, index)
        for copy in self._copies if expected is not None else ():
            data = (await copy.bundles(self.origin, [index])).get(index, b"")
            try:
                entries = decode_bundle(data)[:width]
            except ValueError:
                continue
            if tile_hashes(entries) == expected:
                return data[: sum(map(len, entries)) + 2 * len(entries)], entries
        return None


class Difference(NamedTuple):
    """Where two copies of a log of one size differ, and what it cost to find out."""

    bundles: list[int]
    """Indices of bundles."""
    tiles_read: int
    """Tiles that were read from the other copy."""


async def locate(origin: str, size: int, own: Copy, other: Copy, root: bytes | None = None) -> Difference:
    """Compare tiles from the top down; only those under a difference are read from `other`.

    With the root that `other`'s copy leads to, the search ends as soon as the differences that were found explain it: one bad bundle in 10^7 entries costs
    three tiles.
    """
    found: list[int] = []
    read = 0
    peaks: dict[int, list[bytes]] = {}
    levels = levels_of(size)
    for level, index, width in levels:
        mine = (await own.tiles(origin, [(level, index)])).get((level, index), b"")[: width * HASH_BYTES]
        peaks[level] = peaks_of(mine) if len(mine) == width * HASH_BYTES else []
    for level, index, width in levels:
        every = [value for other_level, _, _ in levels for value in peaks[other_level]]
        if root is not None and len(every) == size.bit_count() and Frontier(size, every).root() == root:
            break
        wanted = [(level, index)]
        for below in range(level, -1, -1):
            ours = await own.tiles(origin, wanted)
            theirs = await other.tiles(origin, wanted)
            read += len(wanted)
            if below == level:
                cut = theirs.get((level, index), b"")[: width * HASH_BYTES]
                peaks[level] = peaks_of(cut) if len(cut) == width * HASH_BYTES else []
            next_wanted: list[Place] = []
            for place in wanted:
                many = width_of(size, *place) * HASH_BYTES
                different = differing(ours.get(place, b"")[:many], theirs.get(place, b"")[:many])
                if below == 0 and different:
                    found.append(place[1])
                next_wanted += [(below - 1, place[1] * WIDTH + at) for at in different]
            wanted = next_wanted
            if not wanted:
                break
    return Difference(sorted(found), read)
