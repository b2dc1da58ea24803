"""What the logs held here have published, cut at the committed size: whatever lies behind it is somebody's draft, and nobody's business.

Nodes serve it to everybody and make proofs from it. Complete tiles and bundles never change: a few megabytes of them are kept in memory, for a minute, so
that what repair has put back is seen soon. The logs' own documents are kept for a quarter of a second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from controlplane.clock import Clock
from controlplane.ledger.entries import event_of, place_of
from controlplane.ledger.merkle import (
    Reader,
    consistency_proof,
    consistency_tiles,
    inclusion_proof,
    inclusion_tiles,
    root_tiles,
    tree_root,
)
from controlplane.ledger.note import Note, parse_note
from controlplane.ledger.tiles import ENTRIES, HASH_BYTES, WIDTH, Tile, TileHashes, decode_bundle
from controlplane.store.ledger import Cosigned, LedgerStore, Log

__all__ = ["Published", "UnreadableLogError", "combined"]

_FRESH_SECONDS = 0.25
_KEPT_SECONDS = 60.0
_KEPT_BYTES = 16 * 1024 * 1024


class UnreadableLogError(Exception):
    """Something that was published is not there, or is not what it was. Repair finds it, and mends it from a mirror."""


class Published:
    """One per node."""

    def __init__(self, store: LedgerStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._logs: tuple[float, dict[str, Log]] = (float("-inf"), {})
        self._cosigned: tuple[float, list[Cosigned]] = (float("-inf"), [])
        self._kept: OrderedDict[tuple[str, int, int], tuple[float, bytes]] = OrderedDict()
        self._kept_bytes = 0
        self._newest: dict[tuple[str, int], int] = {}

    async def logs(self) -> list[Log]:
        """All logs that have a checkpoint, own and mirrored, oldest first."""
        now = self._clock.monotonic()
        if now - self._logs[0] >= _FRESH_SECONDS:
            self._logs = (now, {log.origin: log for log in await self._store.logs() if log.checkpoint})
        return list(self._logs[1].values())

    async def log(self, origin: str, least: int = 0) -> Log | None:
        """One of them. `least`: the size that it is known to have by now; an older document is not good enough."""
        await self.logs()
        log = self._logs[1].get(origin)
        if least > (log.size if log is not None else 0):
            self._logs = (float("-inf"), {})
            await self.logs()
            log = self._logs[1].get(origin)
        return log

    async def cosigned(self, origin: str) -> list[Cosigned]:
        """The newest cosignature of each cosigner over that log."""
        now = self._clock.monotonic()
        if now - self._cosigned[0] >= _FRESH_SECONDS:
            self._cosigned = (now, await self._store.cosignatures())
        return [item for item in self._cosigned[1] if item.origin == origin]

    async def checkpoint(self, log: Log) -> str:
        """The log's newest checkpoint, with those cosignatures that are of exactly its size."""
        same = [item.note for item in await self.cosigned(log.origin) if item.size == log.size]
        return combined(log.checkpoint, same)

    async def read(self, log: Log, wanted: Iterable[Tile]) -> dict[Tile, bytes]:
        """Tiles and bundles in wire form, at the widths asked for. KeyError for one that the published size does not have.

        Raises UnreadableLogError, StoreUnavailableError.
        """
        now = self._clock.monotonic()
        found: dict[Tile, bytes] = {}
        missing: list[Tile] = []
        for tile in wanted:
            if tile.width > _width(log.size, tile):
                raise KeyError(tile.path)
            kept = self._kept.get((log.origin, tile.level, tile.index))
            if kept is None or kept[0] < now:
                missing.append(tile)
            else:
                self._kept.move_to_end((log.origin, tile.level, tile.index))
                found[tile] = _cut(kept[1], tile)
        if not missing:
            return found
        hashes = await self._store.tiles(log.origin, [(t.level, t.index) for t in missing if t.level != ENTRIES])
        entries = await self._store.bundles(log.origin, [t.index for t in missing if t.level == ENTRIES])
        for tile in missing:
            data = entries.get(tile.index) if tile.level == ENTRIES else hashes.get((tile.level, tile.index))
            try:
                found[tile] = _cut(data or b"", tile)
                if _width(log.size, tile) >= WIDTH:
                    self._keep((log.origin, tile.level, tile.index), _cut(data or b"", tile._replace(width=WIDTH)))
            except ValueError as error:
                raise UnreadableLogError(f"{log.origin}/{tile.path}: {error}") from None
        return found

    async def entry(self, log: Log, index: int) -> bytes:
        """One entry. KeyError beyond the published size; UnreadableLogError."""
        tile = Tile(ENTRIES, index // WIDTH, index % WIDTH + 1)
        bundle = (await self.read(log, [tile]))[tile]
        return decode_bundle(bundle)[-1]

    async def newest_at(self, log: Log) -> int | None:
        """When the last entry happened, ms since the epoch; None where it cannot be read."""
        known = self._newest.get((log.origin, log.size))
        if known is not None:
            return known
        try:
            at = event_of(await self.entry(log, log.size - 1), None, None).at
        except (UnreadableLogError, ValueError):
            return None
        self._newest = {key: value for key, value in self._newest.items() if key[0] != log.origin}
        self._newest[log.origin, log.size] = at
        return at

    async def proof(self, log: Log, index: int, size: int) -> list[bytes]:
        """The inclusion proof of an entry in the first `size` entries."""
        return inclusion_proof(index, size, await self._reader(log, inclusion_tiles(index, size)))

    async def consistency(self, log: Log, old: int) -> list[bytes]:
        """The proof that the first `old` entries are the beginning of what is published."""
        return consistency_proof(old, log.size, await self._reader(log, consistency_tiles(old, log.size)))

    async def root(self, log: Log, size: int) -> bytes:
        """The root of the first `size` entries."""
        return tree_root(size, await self._reader(log, root_tiles(size)))

    async def _reader(self, log: Log, wanted: Iterable[Tile]) -> Reader:
        tiles = await self.read(log, wanted)
        return TileHashes({(tile.level, tile.index): data for tile, data in tiles.items()}).read

    async def locate(
        self, dc: str, node: str, epoch: int, q: int, sizes: Mapping[str, int] | None = None
    ) -> tuple[Log, int, int] | None:
        """(log, index, how many more of that term follow) of an event, within the published sizes or the smaller `sizes` by origin; None if it is not there."""
        for run in await self._store.find_runs(dc, node, epoch, q):
            least = sizes.get(run.log, 0) if sizes is not None else 0
            log = await self.log(run.log, least)
            if log is None:
                continue
            size = log.size if sizes is None else min(log.size, least)
            index = run.index + q - run.q
            if index >= size:
                continue
            try:
                there = place_of(await self.entry(log, index))  # a run may be a draft of somebody who died
            except ValueError as error:
                raise UnreadableLogError(f"{log.origin}: entry {index} is {error}") from None
            if (there.n, there.e, there.q) == (node, epoch, q):
                return log, index, min(run.index + run.count, size) - index - 1
        return None

    def _keep(self, key: tuple[str, int, int], data: bytes) -> None:
        old = self._kept.pop(key, None)
        self._kept[key] = (self._clock.monotonic() + _KEPT_SECONDS, data)
        self._kept_bytes += len(data) - (len(old[1]) if old else 0)
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1][1])


def combined(checkpoint: str, others: Iterable[str]) -> str:
    """One note with all signatures over the same text; notes over another text are left out."""
    text, signatures = parse_note(checkpoint)
    together = dict.fromkeys(signatures)
    for note in map(parse_note, others):
        if note.text == text:
            together |= dict.fromkeys(note.signatures)
    return str(Note(text, tuple(together)))


def _width(size: int, tile: Tile) -> int:
    """How much of a tile is published; may be more than WIDTH, or less than nothing."""
    return (size >> 8 * max(tile.level, 0)) - tile.index * WIDTH


def _cut(data: bytes, tile: Tile) -> bytes:
    """The first `width` hashes or entries. ValueError where there are fewer."""
    if tile.level != ENTRIES:
        end = tile.width * HASH_BYTES
    else:
        end = 0
        for _ in range(tile.width):
            end += 2 + int.from_bytes(data[end : end + 2], "big")
    if end > len(data):
        raise ValueError(f"less than {tile.width} wide")
    return data[:end]
