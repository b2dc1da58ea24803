"""The rest of a log's document: whose it is, which logs stand beside it, how far each node's events are in it; of a copy, what mirror and witness remember."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.errors import ConfigError
from controlplane.ledger.audit.case import CUT, Case, Term, open_checkpoint
from controlplane.ledger.check import Fault
from controlplane.ledger.merkle import Frontier
from controlplane.ledger.proven import Proven
from controlplane.ledger.trust import cosigner

__all__ = ["Neighbours"]


_SEALS = frozenset({"", "quarter", "key", "name", "restored", *CUT})


class Neighbours:
    """After `Signed`."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._log = case.log

    async def check(self) -> None:
        """All of it."""
        self._fields()
        self._links()
        if self._log.own:
            await self._marks()
        else:
            await self._ahead()
            await self._witnessed()

    def _fault(self, field: str, detail: str) -> None:
        self._case.fault(Fault.LOG, -1, -1, field, detail)

    def _fields(self) -> None:
        log, here = self._log, self._case.settings.datacenter
        dc = self._case.trust.datacenter_of(log.origin)
        raw = self._case.holdings.raw[log.origin]
        if raw.dc != dc:
            self._fault("dc", f"the document says datacenter {raw.dc!r}; the origin says {dc!r}")
        if raw.own != (dc == here):
            self._fault("own", f"the document says own: {raw.own}; this is {here}")
        ends = {"open": not log.next or not log.own, "sealed": bool(log.next), "frozen": True}
        if not ends.get(log.state, False):
            self._fault("state", f"the state is {log.state!r}, and the next log {log.next!r}")
        if log.seal not in _SEALS or (log.state == "open" and log.seal):
            self._fault("seal", f"the log is {log.state}, and was sealed for {log.seal!r}")
        if log.own and log.term > self._case.holdings.term:
            self._fault("term", f"the term is {log.term}; nobody has led later than {self._case.holdings.term}")

    def _links(self) -> None:
        log, logs = self._log, self._case.holdings.logs
        after = logs.get(log.next)
        followers = [each.origin for each in logs.values() if each.previous == log.origin]
        if (log.next or log.own) and (after is None or after.previous != log.origin) and followers:
            self._fault("next", f"the next log is {followers[0]}, not {log.next!r}")
        before = logs.get(log.previous)
        if before is not None and before.opened_at >= log.opened_at:
            self._fault("opened_at", f"it was opened before {before.origin}, which it follows")

    # -- own logs ------------------------------------------------------------------------------------------------------

    async def _marks(self) -> None:
        """Each mark is the highest q of its term in this log or one before it. Where entries that were signed are not here, nothing can be said."""
        log, case = self._log, self._case
        if any(each.kind in (Fault.BEHIND, Fault.ROOT) for each in case.found):
            return
        until = {each.origin for each in case.holdings.chain(log.dc) if each.opened_at <= log.opened_at}
        sizes = {origin: size for origin, size in case.sizes().items() if origin in until}
        for term, mark in log.marks.items():
            if term in case.holdings.completed or mark == await self._highest(term, sizes):
                continue
            met = await case.met(log.dc, term)
            highest, name = met.highest(until), f"{term[0]}:{term[1]}"
            if not met.whole:
                continue  # what cannot be read may be just that
            if mark != highest:
                self._fault(f"marks {name}", f"the mark of {name} is {mark}; the logs have {highest}")
            elif met.tops.get(log.origin, (0, 0))[0] == highest and highest:
                at = met.tops[log.origin][1]
                case.fault(Fault.RUN, at, at, name, "the index does not lead to these entries")

    async def _highest(self, term: Term, sizes: Mapping[str, int]) -> int:
        """By the newest run that is true."""
        case = self._case
        async for run in case.store.newest_runs(case.log.dc, *term, None):
            inside = min(run.count, sizes.get(run.log, 0) - run.index)
            if inside <= 0:
                continue
            index, q = run.index + inside - 1, run.q + inside - 1
            place = await case.place(run.log, index)
            if place == (*term, q):
                return q
            if place is not None and run.log == case.log.origin:
                detail = (
                    f"the index is wrong: it says that entry {index} is q {q}; it is {place[0]}:{place[1]} q {place[2]}"
                )
                case.fault(Fault.RUN, max(0, run.index), max(0, run.index), run.id, detail)
        return 0

    # -- copies --------------------------------------------------------------------------------------------------------

    async def _ahead(self) -> None:
        """How far a copy is beyond its checkpoint."""
        case, log = self._case, self._log
        held = await case.copies.held(log.origin)
        if held is None or held.size <= case.tree.size or held.size == log.size:
            return
        case.behind = True
        try:
            note = open_checkpoint(held.note, log.origin, [*case.keys, *case.mirror_key()])
            sound = note.size >= held.size and Frontier(held.size, held.frontier).root() == held.root
        except ValueError:
            sound = False
        if not sound or not await Proven(log.origin, held.size, held.root, [case.store], held.frontier).open():
            self._fault("ahead", f"what is held beyond the checkpoint does not lead to the root of {held.size} entries")

    async def _witnessed(self) -> None:
        """What our witness remembers must be what it cosigned."""
        case, log = self._case, self._log
        seen = await case.copies.witnessed(log.origin)
        if seen is None:
            return
        try:
            note = open_checkpoint(seen.note, log.origin, [*case.keys, cosigner(case.settings, "witness").verifier])
            sound = (note.size, note.root) == (seen.size, seen.root)
        except ConfigError:
            return
        except ValueError:
            sound = not seen.note and not seen.size
        case.behind = case.behind or (sound and seen.size > case.tree.size)
        if not sound:
            detail = "what this datacenter's witness remembers of the log is not what it cosigned"
            case.fault(Fault.COSIGNATURE, -1, -1, "witnessed", detail)
