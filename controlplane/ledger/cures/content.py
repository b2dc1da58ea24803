"""Tiles, bundles and the index: again from what is proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controlplane.domain.events import leaf_hash
from controlplane.ledger.check import decode_some, split
from controlplane.ledger.cures.case import Opened, RefusedError, Workbench, nowhere
from controlplane.ledger.cures.history import HistoryCures
from controlplane.ledger.entries import place_of
from controlplane.ledger.tiles import WIDTH, decode_bundle, encode_bundle, tile_hashes
from controlplane.store.ledger import Finding, Log, Run
from controlplane.store.ledger_scrub import StoredRun

__all__ = ["ContentCures"]

_FEW = 64
"""Entries that are asked for one by one rather than with their whole bundle."""
_MOST_COUNT = 65_536


class ContentCures:
    """Each cure returns what it did, "" for nothing; or raises RefusedError."""

    def __init__(self, bench: Workbench, history: HistoryCures) -> None:
        self._bench = bench
        self._history = history

    async def tile(self, finding: Finding) -> str:
        """From the level below, or from a peer."""
        level, index = (int(part) for part in finding.subject.split("/"))
        opened = await self._bench.open(finding.origin)
        opened.within(index << 8 * (level + 1))
        right = await opened.tree.tile(level, index)
        if right is None:
            raise RefusedError(nowhere("tile", opened.peers))
        return await self._bench.put_tile(opened, (level, index), right)

    async def bundle(self, finding: Finding) -> str:
        """Its entries out of the event store, or from a peer. An own log whose entries nobody has ends before them."""
        bench, index, origin = self._bench, int(finding.subject), finding.origin
        opened = await bench.open(origin)
        opened.within(index * WIDTH)
        right = await opened.tree.tile(0, index)
        if right is None:
            return await self._lost(opened, index * WIDTH)
        hashes = split(right)
        seen = (await bench.store.bundle_blobs(origin, [index])).get(index)
        stored, problem = decode_some(seen.data if seen else b"")
        drafts = stored[len(hashes) :] if len(hashes) < WIDTH else []
        cut = stored[: len(hashes)]
        entries = {at: entry for at, entry in enumerate(cut) if leaf_hash(entry) == hashes[at]}
        wanted = [at for at in range(len(hashes)) if at not in entries]
        if not wanted and not problem and len(stored) == len(cut) + len(drafts):
            return ""
        sources = await self._fill(opened, index, hashes, entries)
        missing = [at for at in wanted if at not in entries]
        if missing:
            return await self._lost(opened, index * WIDTH + missing[0])
        data = encode_bundle([*(entries[at] for at in range(len(hashes))), *drafts])
        if tile_hashes(decode_bundle(data)[: len(hashes)]) != right:
            raise RefusedError("The bundle could not be put together; this is a mistake in the program.")
        ver = opened.writer(seen.ver if seen is not None else None)
        if not bench.dry and not await bench.store.mend_bundle(origin, index, seen, data, ver):
            raise RefusedError("Somebody wrote there meanwhile; repair it again.")
        return f"{len(wanted)} entries from {', '.join(sorted(sources)) or 'itself'}, each by its proven hash"

    async def _lost(self, opened: Opened, size: int) -> str:
        if not opened.log.own or not opened.all_answer:
            raise RefusedError(nowhere("bundle", opened.peers))
        return await self._history.end(opened, opened.tree, size, "root")

    async def _fill(self, opened: Opened, index: int, hashes: Sequence[bytes], entries: dict[int, bytes]) -> set[str]:
        """Put in what is missing; where it came from."""
        sources: set[str] = set()
        store, origin, base = self._bench.store, opened.log.origin, index * WIDTH
        for run in await store.runs_near(origin, base, base + WIDTH - 1):
            places = {
                run.q + base + at - run.index: at
                for at in range(len(hashes))
                if at not in entries and run.index <= base + at < run.index + run.count
            }
            found = await store.leaves(run.dc, run.node, run.epoch, list(places)) if places else {}
            for q, leaf in found.items():
                if leaf_hash(leaf) == hashes[places[q]]:
                    entries[places[q]] = leaf
                    sources.add("the event store")
        for peer in opened.peers:
            rest = [at for at in range(len(hashes)) if at not in entries]
            if len(rest) > _FEW:
                theirs = dict(enumerate(decode_some((await peer.bundles(origin, [index])).get(index, b""))[0]))
            else:
                rows = await peer.rows(origin, [base + at for at in rest])
                theirs = {at: row[0] for at, row in zip(rest, rows, strict=True) if row is not None}
            for at in rest:
                if at in theirs and leaf_hash(theirs[at]) == hashes[at]:
                    entries[at] = theirs[at]
                    sources.add(peer.name)
        return sources

    async def writer(self, finding: Finding) -> str:
        """The mark goes back to somebody who has been."""
        store, dry = self._bench.store, self._bench.dry
        opened = await self._bench.open(finding.origin)
        origin, (what, where) = finding.origin, finding.subject.split(" ")
        if what == "bundle":
            index = int(where)
            seen = (await store.bundle_blobs(origin, [index])).get(index)
        else:
            level, index = (int(part) for part in where.split("/"))
            seen = (await store.tile_blobs(origin, [(level, index)])).get((level, index))
        if seen is None or opened.writer(seen.ver) == seen.ver:
            return ""
        ver = opened.writer(None)
        if what == "bundle":
            done = dry or await store.mend_bundle(origin, index, seen, seen.data, ver)
        else:
            done = dry or await store.mend_tile(origin, (level, index), seen, seen.data, ver)
        if not done:
            raise RefusedError("Somebody wrote there meanwhile; repair it again.")
        return f"marked as written by {ver}"

    # -- the index -----------------------------------------------------------------------------------------------------

    async def run(self, finding: Finding) -> str:
        """Runs again out of the leaves."""
        bench = self._bench
        opened = await bench.open(finding.origin)
        log, first, last = opened.log, finding.first, finding.last
        wrong: StoredRun | None = None
        if "|" in finding.subject:
            wrong = await bench.store.run_document(finding.subject)
            if wrong is not None:
                first = max(0, min(first, wrong.run.index))
                last = max(last, wrong.run.index + min(max(wrong.run.count, 1), _MOST_COUNT) - 1)
        last = min(last, opened.tree.size - 1)
        remove = {wrong.id} if wrong is not None else set()
        uncovered: list[tuple[int, tuple[str, int, int]]] = []
        for index in range(first, last + 1):
            place = place_of(await opened.entry(index))
            stored = await bench.store.runs_of(log.dc, place.n, place.e, place.q, place.q)
            mine = [each for each in stored if each.run.log == log.origin]
            remove |= {each.id for each in mine if each.id != each.run.id}
            if not any(each.id not in remove and each.run.index + place.q - each.run.q == index for each in mine):
                uncovered.append((index, (place.n, place.e, place.q)))
        put = _runs(log, uncovered)
        if not put and not remove:
            return ""
        if not bench.dry:
            kept = {run.id for run in put}
            await bench.store.replace_runs(put, [name for name in remove if name not in kept], opened.writer(None))
        return f"{len(put)} runs made again from the leaves, {len(remove)} taken away"


def _runs(log: Log, entries: Sequence[tuple[int, tuple[str, int, int]]]) -> list[Run]:
    runs: list[Run] = []
    for index, (node, epoch, q) in entries:
        last = runs[-1] if runs else None
        if (
            last is not None
            and (last.node, last.epoch, last.q + last.count) == (node, epoch, q)
            and last.index + last.count == index
        ):
            runs[-1] = replace(last, count=last.count + 1)
        else:
            runs.append(Run(log.origin, log.dc, node, epoch, q, 1, index))
    return runs
