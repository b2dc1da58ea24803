"""Whether every sequence number is accounted for: entries are leaves of this datacenter, numbers follow each other, the index is true, and the store has no more
events than the logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controlplane.domain.events import Event, Kind
from controlplane.ledger.audit.case import CUT, Case, Term
from controlplane.ledger.check import Fault, Ranges, stretches
from controlplane.ledger.entries import event_of
from controlplane.store.copies import local_mid
from controlplane.store.ledger_scrub import StoredRun

__all__ = ["Account"]

_PENDING = 16_384
"""A hole this near to the end of a copy may be explained by what is not mirrored yet."""


class Account:
    """Of one log: `leaves` for each stretch of it, then `close`."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._log = case.log
        self._met: dict[Term, Ranges] = {}

    async def leaves(self, entries: Sequence[tuple[int, bytes]]) -> list[tuple[int, Event]]:
        """(index, event without payload) of proven entries."""
        fault, dc = self._case.fault, self._log.dc
        events: list[tuple[int, Event]] = []
        for index, entry in entries:
            try:
                event = event_of(entry, None, None)
            except ValueError as error:
                fault(Fault.LEAF, index, index, "", f"signed, and {error}")
                continue
            if event.dc != dc or (event.kind is Kind.OPENED) != (index == 0):
                fault(
                    Fault.LEAF, index, index, event.id, f"signed, and `{event.kind}` of {event.dc} cannot stand there"
                )
                continue
            events.append((index, event))
            term = (event.node, event.epoch)
            if not self._met.setdefault(term, Ranges()).add(event.q):
                detail = f"{term[0]}:{term[1]} q {event.q} stands in the log before already"
                fault(Fault.SEQUENCE, index, index, event.id, detail)
        await self._runs(events)
        return events

    # -- the index -----------------------------------------------------------------------------------------------------

    async def _runs(self, events: Sequence[tuple[int, Event]]) -> None:
        """Each entry is found by (node, epoch, q), and what the index says of these entries is true."""
        here = {index: (event.node, event.epoch, event.q) for index, event in events}
        terms: dict[Term, list[tuple[int, int]]] = {}
        for index, event in events:
            terms.setdefault((event.node, event.epoch), []).append((event.q, index))
        for term, places in terms.items():
            low, high = min(places)[0], max(places)[0]
            true: set[tuple[int, int]] = set()
            for stored in await self._case.store.runs_of(self._log.dc, *term, low, high):
                run = stored.run
                if run.log != self._log.origin or run.index >= self._case.tree.size:
                    continue
                await self._run(stored, here)
                most = range(max(low, run.q), min(high + 1, run.q + run.count))
                true.update((q, run.index + q - run.q) for q in most)
            missed = sorted(index for q, index in places if (q, index) not in true)
            for first, last in stretches(missed):
                name = f"{term[0]}:{term[1]}"
                self._case.fault(Fault.RUN, first, last, name, "the index does not lead to these entries")

    async def _run(self, stored: StoredRun, here: Mapping[int, tuple[str, int, int]]) -> None:
        run, size = stored.run, self._case.tree.size
        problem = ""
        if stored.id != run.id:
            problem = f"its name is {stored.id}"
        elif run.count < 1 or run.index < 0 or (run.index + run.count > size and self._log.seal not in CUT):
            problem = f"it has {run.count} entries from {run.index} on"
        else:
            end = min(size, run.index + run.count)
            known = here.keys() & range(run.index, end)
            for index in sorted({run.index, end - 1} | known):
                found = here.get(index) or await self._case.place(run.log, index)
                wanted = (run.node, run.epoch, run.q + index - run.index)
                if found is not None and found != wanted:
                    problem = f"it says that entry {index} is q {wanted[2]}; it is {found[0]}:{found[1]} q {found[2]}"
                    break
        if problem:
            at = max(0, run.index)
            self._case.fault(Fault.RUN, at, at, stored.id, f"the index is wrong: {problem}")

    # -- the numbers ---------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """No hole in a term's numbers that nobody explains, and no document that is in no log."""
        for term, met in self._met.items():
            ranges = list(met)
            low, high = ranges[0][0], ranges[-1][1]
            for first, last in met.holes(await self._begin(term, low), high):
                await self._hole(term, first, last)
        claims = [(*term, first, last) for term, met in self._met.items() for first, last in met]
        counted = await self._case.store.counts(self._log.dc, claims)
        for term, met in self._met.items():
            if counted.get(term, 0) > met.count:
                for first, last in met:
                    await self._extra(term, first, last)

    async def _begin(self, term: Term, low: int) -> int:
        """Where the hole below the first number that was met begins, if there is one: else that number."""
        if low <= 1:
            return low
        sizes = self._case.sizes()
        async for run in self._case.store.newest_runs(self._log.dc, *term, low - 1):
            inside = min(run.count, sizes.get(run.log, 0) - run.index)
            if inside > 0:
                return min(low, run.q + inside)
        return 1

    async def _hole(self, term: Term, first: int, last: int) -> None:
        """Numbers that this log does not have: another may, or a `gap` event, or they are asked for."""
        case, dc = self._case, self._log.dc
        chain = case.holdings.chain(dc)
        late = {q for log in chain for node, epoch, q in log.late if (node, epoch) == term}
        accounted = Ranges()
        for q in late:
            accounted.cover(q, q)
        for owner, low, high in await self._explained():
            if owner == term:
                accounted.cover(low, high)
        for low, high in await self._absent(term, first, last, accounted):
            at = await case.index_of(term, high + 1)
            where = (at, at) if at is not None else (-1, -1)
            for q, name in await case.store.ids_between(dc, *term, low, high):
                if q not in late and not await self._stands(name):
                    accounted.cover(q, q)
                    if self._log.own:
                        detail = f"{name} is in the store and in no log"
                        case.fault(Fault.UNSEQUENCED, *where, f"{term[0]}:{term[1]} {q}", detail)
            if not self._log.own and chain[-1].origin == self._log.origin and where[0] > case.tree.size - _PENDING:
                continue
            for begin, end in accounted.holes(low, high):
                detail = "these numbers are in no log, and no event says why"
                case.fault(Fault.SEQUENCE, *where, f"{term[0]}:{term[1]} {begin}-{end}", detail)

    async def _absent(self, term: Term, first: int, last: int, accounted: Ranges) -> list[tuple[int, int]]:
        """What of it no log has: by the index; and before anything is said against it, by looking at every entry."""
        case, dc, sizes, known = self._case, self._log.dc, self._case.sizes(), Ranges()
        for stored in await case.store.runs_of(dc, *term, first, last):
            inside = min(stored.run.count, sizes.get(stored.run.log, 0) - stored.run.index)
            if inside > 0:
                known.cover(stored.run.q, stored.run.q + inside - 1)
        holes = known.holes(first, last)
        for low, high in holes:
            if accounted.holes(low, high) or await case.store.ids_between(dc, *term, low, high):
                break
        else:
            return holes
        met = await case.met(dc, term)
        for ranges in met.numbers.values():
            for low, high in ranges:
                known.cover(low, high)
        return known.holes(first, last) if met.whole else []  # what cannot be read may be just that

    async def _explained(self) -> list[tuple[Term, int, int]]:
        gaps, dc = self._case.holdings.gaps, self._log.dc
        if dc not in gaps:
            found = [_gap(event) for event in await self._case.store.gap_events(dc)]
            gaps[dc] = [gap for gap in found if gap is not None]
        return gaps[dc]

    async def _stands(self, name: str) -> bool:
        mid, _, k = name.rpartition(":")
        stored = (await self._case.store.event_documents([(mid, int(k))])).get(name) if k.isdecimal() else None
        return stored is not None and await self._case.stands(stored, name)

    # -- the store -----------------------------------------------------------------------------------------------------

    async def _extra(self, term: Term, first: int, last: int) -> None:
        """Documents that claim a number which another event has."""
        store, dc = self._case.store, self._log.dc
        places: dict[int, list[str]] = {}
        for q, name in await store.ids_between(dc, *term, first, last):
            places.setdefault(q, []).append(name)
        for q, names in places.items():
            index = await self._case.index_of(term, q) if len(names) > 1 else None
            leaf = await self._case.entry(self._log.origin, index) if index is not None else None
            if index is not None and leaf is not None:
                await self._strays(index, event_of(leaf, None, None), names)

    async def _strays(self, index: int, event: Event, names: Sequence[str]) -> None:
        right = {event.id, f"{local_mid(event.mid, event.dc)}:{event.k}"}
        for name in names:
            mid, _, k = name.rpartition(":")
            stored = (await self._case.store.event_documents([(mid, int(k))])).get(name) if k.isdecimal() else None
            if name in right and (stored is None or stored.leaf == event.leaf):
                continue
            if stored is not None and await self._case.stands(stored, name):
                continue  # an altered event: its own leaf says so
            detail = f"it claims q {event.q} of {event.node}:{event.epoch}, which is {event.id}"
            self._case.fault(Fault.STRAY, index, index, name, detail)


def _gap(event: Event) -> tuple[Term, int, int] | None:
    """What a ledger's `gap` event explains; None for another event."""
    try:
        name, numbers = (event.ref or "").split(" ")
        node, epoch = name.rsplit(":", 1)
        first, last = numbers.split("-")
        return (node, int(epoch)), int(first), int(last)
    except ValueError:
        return None
