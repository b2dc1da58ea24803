"""One bad bundle, tile, or both in a long log: how long it takes to find, and what has to come from the mirror to mend it.

The entries are 64 bytes each and no events, so that ten million of them fit; they go through the product's `grow` and staging, in large rounds, and the mirror
is a second database of the same mongod behind the product's own peer server.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.ledger.bed import Bed
from controlplane.ledger.checkpoint import Checkpoint, origin_of, quarter_of
from controlplane.ledger.cures.case import PeerCopy, Traffic
from controlplane.ledger.merkle import EMPTY, Frontier, grow
from controlplane.ledger.note import Note, Signer, derive
from controlplane.ledger.proven import locate
from controlplane.ledger.repair import Leader, Repair
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.tiles import HASH_BYTES, WIDTH, decode_bundle, encode_bundle, tile_hashes, tile_root
from controlplane.settings import Settings
from controlplane.store.ledger import BUNDLES, TILES, Log
from controlplane.store.ledger_scrub import ScrubStore
from tests.simulators.ledgers import Site, peer_of, site

_ROUND = 65_536


def run(bed: Bed, entries: int) -> dict[str, Any]:
    """In a process of its own; its report."""
    return bed.worker("damage", entries=entries).wait(120 + entries / 1_000)


async def damage(settings: Settings, entries: int) -> dict[str, Any]:
    """Build, copy, damage three times. Reports seconds and what was moved."""
    async with site(settings, "fra") as fra, site(settings, "iad") as iad:
        fra.knows(peer_of("iad"))
        iad.knows(peer_of("fra"))
        began = time.perf_counter()
        log = await _build(fra, entries)
        built = time.perf_counter() - began
        await _copy(fra, iad, log)
        middle = entries // 2 // WIDTH
        found: dict[str, Any] = {"entries": entries, "build_per_s": entries / built}
        async with iad.serving():
            for name, spoil in (
                ("bundle", lambda: _spoil_bundle(fra, log.origin, middle)),
                ("tile", lambda: _spoil_tile(fra, log.origin, middle)),
                ("bundle and tile", lambda: _spoil_both(fra, log.origin, middle)),
            ):
                found[name] = await _mend(fra, iad, log, spoil)
            found["a copy wrong up to its root"] = await _locate(fra, iad, log, middle)
    return found


async def _build(fra: Site, entries: int) -> Log:
    origin = origin_of(fra.settings.ledger_domain, "fra", quarter_of(fra.clock.now_ms()))
    signer = Signer.log(origin, derive(fra.settings.ledger_seed, "log"))
    size, tails, rest = 0, {}, []
    frontier, root = Frontier(), EMPTY
    while size < entries:
        new = [
            hashlib.sha256(b"%d" % number).hexdigest().encode() for number in range(size, min(entries, size + _ROUND))
        ]
        growth = grow(size, tails, new)
        every = [*rest, *new]
        bundles = {
            size // WIDTH + at // WIDTH: encode_bundle(every[at : at + WIDTH]) for at in range(0, len(every), WIDTH)
        }
        await fra.store.stage(origin, growth.size, bundles, growth.tiles, ())
        rest = every[len(every) - len(every) % WIDTH :]
        size, tails, frontier, root = growth.size, growth.tails, growth.frontier, growth.root
    text = Checkpoint(origin, size, root).text
    log = Log(
        origin=origin,
        dc="fra",
        own=True,
        vkey=signer.vkey,
        size=size,
        root=root,
        frontier=tuple(frontier.hashes),
        checkpoint=str(Note(text, (signer.sign(text),))),
        opened_at=fra.clock.now_ms(),
    )
    await fra.store.create_log(log)
    return log


async def _copy(fra: Site, iad: Site, log: Log) -> None:
    for name in (BUNDLES, TILES):
        await (await fra.database[name].aggregate([{"$out": {"db": iad.database.name, "coll": name}}])).to_list()
    await iad.store.create_log(Log.of(log.document() | {"own": False, "marks": []}))


async def _mend(fra: Site, iad: Site, log: Log, spoil: Callable[[], Awaitable[None]]) -> dict[str, Any]:
    await spoil()
    store = ScrubStore(fra.database)
    scrub = Scrub(store, fra.copies, fra.settings, fra.clock)
    began = time.perf_counter()
    found = await scrub.verify(log.origin, hashes_only=True)
    searched = time.perf_counter() - began

    async def nothing(*_values: Any) -> Any:
        return None

    async with fra.client(iad) as client:
        leader = Leader(nothing, nothing, nothing, nothing)
        report = await Repair(store, fra.copies, scrub, fra.settings, fra.clock, [client], leader).mend(
            found, dry_run=False
        )
    left = await scrub.verify(log.origin, found[0].first, found[0].last, hashes_only=True) if found else []
    return {
        "found": [f"{one.kind} {one.subject}" for one in found],
        "search_s": searched,
        "search_per_s": log.size / searched,
        "mended": [action.outcome for action in report.actions[: len(found)]],
        "mend_s": report.seconds,
        "tiles_moved": report.read.tiles,
        "bundles_moved": report.read.bundles,
        "entries_moved": report.read.rows,
        "bytes_moved": report.read.bytes,
        "left": len(left),
    }


async def _spoil_bundle(fra: Site, origin: str, index: int) -> None:
    data = bytearray(await fra.store.bundle(origin, index) or b"")
    for at in range(0, len(data), 66):  # every entry
        data[at + 40] ^= 1
    await _put(fra, BUNDLES, f"{origin}|{index}", bytes(data))


async def _spoil_tile(fra: Site, origin: str, index: int) -> None:
    data = bytearray(await fra.store.tile(origin, 0, index) or b"")
    data[len(data) // 2] ^= 1
    await _put(fra, TILES, f"{origin}|0|{index}", bytes(data))


async def _spoil_both(fra: Site, origin: str, index: int) -> None:
    await _spoil_bundle(fra, origin, index)
    await _spoil_tile(fra, origin, index)


async def _locate(fra: Site, iad: Site, log: Log, index: int) -> dict[str, Any]:
    """A copy whose tiles all agree with its bad bundle: only the root tells, and tiles are compared from the top."""
    await _spoil_bundle(fra, log.origin, index)
    entries = decode_bundle(await fra.store.bundle(log.origin, index) or b"")
    data, level, place = tile_hashes(entries), 0, index
    while True:
        await _put(fra, TILES, f"{log.origin}|{level}|{place}", data)
        if len(data) < WIDTH * HASH_BYTES:
            break
        value, at = tile_root(data), place % WIDTH * HASH_BYTES
        level, place = level + 1, place // WIDTH
        data = bytearray(await fra.store.tile(log.origin, level, place) or b"")
        data[at : at + HASH_BYTES] = value
    traffic = Traffic()
    began = time.perf_counter()
    async with fra.client(iad) as client:
        copy = PeerCopy(client, log.size, traffic)
        difference = await locate(log.origin, log.size, fra.store, copy, log.root)
        await copy.bundles(log.origin, difference.bundles)
    return {
        "bundles": difference.bundles == [index],
        "tiles_moved": difference.tiles_read,
        "bundles_moved": traffic.bundles,
        "bytes_moved": traffic.bytes,
        "seconds": time.perf_counter() - began,
    }


async def _put(fra: Site, collection: str, identity: str, data: bytes) -> None:
    await fra.database[collection].update_one({"_id": identity}, {"$set": {"data": bytes(data)}})
