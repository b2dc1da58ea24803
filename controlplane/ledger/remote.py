"""Verifying a whole log from outside, over HTTP: every entry, every tile, the root, the signatures. Whoever serves it is not believed.

Entries are hashed anew, tiles are built from them (`merkle.grow`) and compared with those that are served, and all of it must lead to the root that is signed.
From a later entry on, what lies before enters by its hashes alone; the root binds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from controlplane.ledger.checkpoint import Checkpoint, CheckpointError
from controlplane.ledger.entries import event_of
from controlplane.ledger.merkle import Growth, grow
from controlplane.ledger.note import ED25519, NoteError, Verifier, parse_note, verify
from controlplane.ledger.tiles import ENTRIES, HASH_BYTES, TILE_BYTES, WIDTH, Tile, decode_bundle

__all__ = ["Fetch", "RemoteLogError", "Seen", "open_note", "verify_log"]

_AT_ONCE = 8

Fetch = Callable[[str], Awaitable[bytes]]
"""What is served under this path of the log, such as `checkpoint` or `tile/0/000`. RemoteLogError when nothing is."""
Progress = Callable[[int, int], None]
"""Told how many entries of how many are done."""


class RemoteLogError(Exception):
    """The log that is served is not one, or not the one that is signed; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A signed checkpoint, and who of the known keys signed it: (name, seconds since the epoch of a cosignature)."""

    checkpoint: Checkpoint
    signed_by: tuple[tuple[str, int | None], ...]


def open_note(text: str | bytes, origin: str, keys: Sequence[Verifier]) -> Seen:
    """Read and verify a log's checkpoint. Raises RemoteLogError unless a key of that log signed it."""
    try:
        note = parse_note(text)
        signed = verify(note, [key for key in keys if key.algorithm != ED25519 or key.name == origin])
        checkpoint = Checkpoint.parse(note.text)
    except (NoteError, CheckpointError) as error:
        raise RemoteLogError(f"{origin}: the checkpoint: {error}") from None
    if all(each.timestamp is not None for each in signed):
        raise RemoteLogError(f"{origin}: the checkpoint is not signed by the log's key")
    if checkpoint.origin != origin:
        raise RemoteLogError(f"{origin}: the checkpoint is that of {checkpoint.origin}")
    return Seen(checkpoint, tuple(signed))


async def verify_log(fetch: Fetch, seen: Seen, start: int, progress: Progress) -> int:
    """Verify entries from `start` (rounded down to a bundle's beginning) to the end of the checkpoint; how many. Raises RemoteLogError.

    Whatever `fetch` raises else comes through: what is verified by then was told to `progress`, and the next call may start there.
    """
    size = seen.checkpoint.size
    at = min(start, size) // WIDTH * WIDTH
    first, tails = at, await _tails(fetch, at, size)
    growth = grow(at, tails, ())
    progress(at, size)
    while at < size:
        count = min(_AT_ONCE * WIDTH, size - at)
        places = [
            Tile(ENTRIES, index, min(WIDTH, size - index * WIDTH))
            for index in range(at // WIDTH, -(-(at + count) // WIDTH))
        ]
        entries = [entry for bundle in await _gather(fetch, places) for entry in bundle]
        growth = grow(at, growth.tails, entries)
        at += count
        await _compare(fetch, growth, end=at == size)
        progress(at, size)
    if growth.root != seen.checkpoint.root:
        raise RemoteLogError(
            f"{seen.checkpoint.origin}: the {size} entries that are served have the root {growth.root.hex()}; signed is {seen.checkpoint.root.hex()}"
        )
    return size - first


async def _tails(fetch: Fetch, at: int, size: int) -> dict[int, bytes]:
    """The hashes before `at` in the partial tiles of each level, as they are served."""
    tails: dict[int, bytes] = {}
    for level in range(1, 8):
        index, width = divmod(at >> 8 * level, WIDTH)
        if width:
            tile = Tile(level, index, min(WIDTH, (size >> 8 * level) - index * WIDTH))
            data = await fetch(tile.path)
            if len(data) != tile.width * HASH_BYTES:
                raise RemoteLogError(f"{tile.path} has {len(data)} bytes")
            tails[level] = data[: width * HASH_BYTES]
    return tails


async def _gather(fetch: Fetch, places: Sequence[Tile]) -> list[list[bytes]]:
    bundles = await asyncio.gather(*(fetch(place.path) for place in places))
    return [_entries(place, data) for place, data in zip(places, bundles, strict=True)]


def _entries(place: Tile, data: bytes) -> list[bytes]:
    try:
        entries = decode_bundle(data)
    except ValueError as error:
        raise RemoteLogError(f"{place.path}: {error}") from None
    if len(entries) != place.width:
        raise RemoteLogError(f"{place.path} has {len(entries)} entries")
    for number, entry in enumerate(entries, place.index * WIDTH):
        try:
            event_of(entry, None, None)
        except ValueError as error:
            raise RemoteLogError(f"{place.path}, entry {number}: {error}") from None
    return entries


async def _compare(fetch: Fetch, growth: Growth, *, end: bool) -> None:
    """The tiles that are complete by now, and at the end all, with those that are served."""
    ours = {
        Tile(level, index, len(data) // HASH_BYTES): data
        for (level, index), data in growth.tiles.items()
        if end or len(data) == TILE_BYTES
    }
    theirs = await asyncio.gather(*(fetch(tile.path) for tile in ours))
    for (tile, data), served in zip(ours.items(), theirs, strict=True):
        if data != served:
            raise RemoteLogError(f"{tile.path} is not what the entries below it have as hashes")
