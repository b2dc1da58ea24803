"""What cannot be mended in place: a signed root that nothing leads to, two signed histories. The log ends where it was last good; the rest is sequenced again."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace

from controlplane.domain.events import Kind, leaf_hash
from controlplane.ledger.check import Fault, levels_of, split
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.cures.case import Opened, PeerCopy, RefusedError, Workbench, nowhere
from controlplane.ledger.cures.events import EventCures
from controlplane.ledger.entries import event_of, place_of
from controlplane.ledger.merkle import EMPTY
from controlplane.ledger.note import Note, Signer, derive
from controlplane.ledger.proven import Proven, locate
from controlplane.ledger.tiles import WIDTH
from controlplane.store.ledger import OPENED_NODE, Finding, StaleWriterError

__all__ = ["HistoryCures"]

_ROWS = 256


class HistoryCures:
    """Each cure returns what it did, "" for nothing; or raises RefusedError."""

    def __init__(self, bench: Workbench, events: EventCures) -> None:
        self._bench = bench
        self._events = events

    async def root(self, finding: Finding) -> str:
        """From a peer whose copy leads to the root; else the log ends at the last size that was signed and is reproduced."""
        bench = self._bench
        opened = await bench.open(finding.origin)
        if not opened.has(Fault.ROOT):
            return ""
        size, root = finding.last + 1, base64.b64decode(finding.subject)
        tree = Proven(finding.origin, size, root, [bench.store, *opened.peers])
        if await tree.open():
            return await self._edge(opened, tree)
        if not opened.all_answer:
            raise RefusedError(nowhere("right edge", opened.peers))
        if not opened.log.own:
            ours = opened.case.tree.stored_root or opened.case.tree.root
            return await self._freeze(finding, opened, f"{size} {finding.subject}", ours)
        return await self.end(opened, opened.case.tree, await self._last_signed(opened), "root")

    async def _edge(self, opened: Opened, tree: Proven) -> str:
        """A peer's copy leads to the root: its right edge, and the document's size, root and frontier; the rest is proven by these."""
        done = []
        for level, index, _ in levels_of(tree.size):
            right = await tree.tile(level, index)
            done.append(await self._bench.put_tile(opened, (level, index), right) if right is not None else "")
        frontier = await tree.frontier_at(tree.size)
        log = opened.log
        if frontier is not None and (log.size, log.root, log.frontier) != (tree.size, tree.root, frontier):
            await self._bench.replace(log, replace(log, size=tree.size, root=tree.root, frontier=frontier))
            done.append("size, root and frontier")
        self._bench.forget()
        return f"from a peer's copy: {', '.join(filter(None, done))}"

    async def _last_signed(self, opened: Opened) -> int:
        """The largest size that was signed and is reproduced by what is here."""
        tree, sizes = opened.case.tree, [0]
        for checkpoint, _, _ in await self._bench.signed(opened.log.origin, self._bench.keys(opened.log)):
            if checkpoint.size <= tree.size and await tree.root_at(checkpoint.size) == checkpoint.root:
                sizes.append(checkpoint.size)
        return max(sizes)

    async def fork(self, finding: Finding) -> str:
        """The log ends where both histories part; what stands behind in either is sequenced again."""
        bench = self._bench
        opened = await bench.open(finding.origin)
        if not opened.has(Fault.FORK):
            return ""
        if not opened.log.own:
            return await self._freeze(finding, opened, finding.subject, opened.case.tree.root)
        if not opened.all_answer:
            raise RefusedError(nowhere("other history", opened.peers))
        size_text, root_text = finding.subject.split(" ")
        size, root = int(size_text), base64.b64decode(root_text)
        good = await self._common(opened, size, root)
        self._may_end(opened, good, "fork")
        if not bench.dry:
            ours = base64.b64encode(opened.case.tree.root).decode()
            await bench.leader.record(Kind.FORK, f"{finding.origin} {size} {ours} {root_text}", None)
        brought = await self._bring(opened, good, size, root)
        what = await self.end(opened, opened.tree, good, "fork")
        await self._evidence(finding, opened)
        return f"{what}; {brought} events of the other history brought here"

    async def _common(self, opened: Opened, size: int, root: bytes) -> int:
        """How many entries both histories share: by a peer's copy of the other one, else by what was signed before."""
        origin, shared = opened.log.origin, min(size, opened.tree.size)
        for client in self._bench.clients:
            theirs = Proven(origin, size, root, [PeerCopy(client, size, self._bench.traffic)])
            if not await theirs.open():
                continue
            copy = PeerCopy(client, shared, self._bench.traffic)
            different = await locate(origin, shared, self._bench.store, copy)
            if not different.bundles:
                return shared
            index = different.bundles[0]
            ours = split(await opened.tree.tile(0, index) or b"")
            others = split((await copy.tiles(origin, [(0, index)])).get((0, index), b""))
            parts = (at for at, (one, two) in enumerate(zip(ours, others, strict=False)) if one != two)
            return index * WIDTH + next(parts, min(len(ours), len(others)))
        return min(await self._last_signed(opened), size)

    async def _bring(self, opened: Opened, good: int, size: int, root: bytes) -> int:
        """Events of the other history that are not here, from the peer that has it."""
        origin, brought, bench = opened.log.origin, 0, self._bench
        for peer in bench.peers(size):
            theirs = Proven(origin, size, root, [peer])
            if not await theirs.open():
                continue
            for start in range(good, size, _ROWS):
                indices = list(range(start, min(size, start + _ROWS)))
                events = []
                for index, row in zip(indices, await peer.rows(origin, indices), strict=True):
                    if row is None or row[1] is None or leaf_hash(row[0]) != await theirs.leaf_hash(index):
                        continue
                    event = event_of(*row)
                    if event.kind is not Kind.OPENED:
                        events.append(event)
                if not bench.dry and events:
                    brought += len(events) - len(await bench.store.put_events(events))
            break
        return brought

    async def _freeze(self, finding: Finding, opened: Opened, other: str, ours: bytes) -> str:
        """A peer's log: nothing more is taken from it."""
        bench = self._bench
        if not bench.dry and await bench.copies.freeze(finding.origin):
            size, root = other.split(" ")
            ref = f"{finding.origin} {size} {base64.b64encode(ours).decode()} {root}"
            await bench.leader.record(Kind.FORK, ref, None)
            await self._evidence(finding, opened)
        bench.forget()
        return "the copy is frozen, and the fork recorded here. Speak to the operators of that datacenter: their repair ends the log and opens another"

    # -- ending a log --------------------------------------------------------------------------------------------------

    def _may_end(self, opened: Opened, size: int, reason: str) -> None:
        if opened.log.state != "open":
            raise RefusedError(
                f"This log is {opened.log.state} and cannot be ended again, at {size} entries. Keep the finding, and tell whoever relies on proofs of what stands behind."
            )
        if not opened.peers and reason == "root":
            raise RefusedError(
                f"No peer is in the settings that could have the right bytes. If there is a backup, restore ledger_tiles and ledger_bundles of {opened.log.origin} from it; else name a peer that mirrors this log."
            )

    async def end(self, opened: Opened, tree: Proven, size: int, reason: str) -> str:
        """End an own log at the last good size. What stood behind it is sequenced again, in the next log."""
        self._may_end(opened, size, reason)
        root = await tree.root_at(size) if size else EMPTY
        frontier = await tree.frontier_at(size) if size else ()
        if root is None or frontier is None:
            raise RefusedError(f"The first {size} entries cannot be proven. Bring a peer's ledger up and repair again.")
        if not self._bench.dry:
            await self._end(opened, size, root, frontier, reason)
        self._bench.forget()
        return f"{opened.log.origin} ends with {size} of {tree.size} entries; what stood behind is sequenced again in the next log, after `recovered`"

    async def _end(self, opened: Opened, size: int, root: bytes, frontier: tuple[bytes, ...], reason: str) -> None:
        bench, log, holdings = self._bench, opened.log, opened.case.holdings
        sizes = {each.origin: each.size for each in holdings.chain(log.dc)} | {log.origin: size}
        late = await self._late(opened, size, sizes)
        marks: dict[tuple[str, int], int] = {}
        for node, epoch in await bench.store.run_sources(log.dc):
            covered = await bench.store.covered(log.dc, node, epoch, sizes)
            done = holdings.completed.get((node, epoch))
            if node != OPENED_NODE and (done is None or done > covered):
                marks[node, epoch] = covered
                if done is not None:
                    await bench.store.reopen(node, epoch)
        key = Signer.log(log.origin, derive(bench.settings.ledger_seed, "log"))
        text = Checkpoint(log.origin, size, root).text
        note = str(Note(text, (key.sign(text),))) if size else ""
        ended = replace(log, size=size, root=root, frontier=frontier, marks=marks, late=late, checkpoint=note)
        await bench.leader.record(Kind.RECOVERED, f"{log.origin} {size}-{opened.tree.size - 1}", None)
        try:
            await bench.leader.seal(reason, ended)
        except StaleWriterError as error:
            raise RefusedError(f"The log was moved meanwhile ({error}); repair it again.") from None

    async def _late(self, opened: Opened, size: int, sizes: Mapping[str, int]) -> tuple[tuple[str, int, int], ...]:
        """Of the entries that are given up, those whose numbers lie below what remains (they came late): the next log is asked for them. All get their
        documents back as far as they can be had."""
        log, late = opened.log, list(opened.log.late)
        covered: dict[tuple[str, int], int] = {}
        for index in range(size, opened.tree.size):
            leaf = await opened.case.entry(log.origin, index)
            try:
                place = place_of(leaf or b"")
            except ValueError:
                continue
            term = (place.n, place.e)
            if place.n == OPENED_NODE:
                continue
            if term not in covered:
                covered[term] = await self._bench.store.covered(log.dc, *term, sizes)
            if place.q <= covered[term]:
                late.append((*term, place.q))
            await self._events.bring_back(opened, index, leaf or b"")
        return tuple(dict.fromkeys(late))

    async def _evidence(self, finding: Finding, opened: Opened) -> None:
        """Both checkpoints stay with the finding."""
        if self._bench.dry:
            return
        notes = [opened.log.checkpoint, *(item.note for item in opened.case.holdings.cosigned(finding.origin))]
        detail = "\n".join([finding.detail, *dict.fromkeys(notes)])
        await self._bench.store.report(replace(finding, detail=detail, state="sealed"))
