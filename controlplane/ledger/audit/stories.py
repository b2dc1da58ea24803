"""Leaves and documents: each leaf has its event, with the leaf's members, what it commits to, and its predecessor in the message; and no payload outlives its erasure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.domain.events import Event, Kind, leaf_hash
from controlplane.ledger.audit.case import Case
from controlplane.ledger.check import Fault, contradictions, opens
from controlplane.store.copies import local_id, local_mid

__all__ = ["Stories"]

_ERASING_MS = 60_000
"""An erasure may take this long."""


@dataclass(slots=True)
class _Batch:
    """Events at hand: by leaf, and as stored."""

    apart: Mapping[str, int]
    stored: Mapping[str, Event | None]
    hashes: Mapping[str, bytes]
    """`<mid>:<k>` → leaf hash, of this batch's leaves."""


@dataclass(slots=True)
class _Erasures:
    gone: list[tuple[int, Event, Event]] = field(default_factory=list)
    """(index, leaf, document) of payloads that are not there."""
    said: dict[str, tuple[int, int]] = field(default_factory=dict)
    """mid → (ordinal, time) of its `erased` leaf."""


class Stories:
    """Of one log: `check` for each stretch of it, then `close`."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._log = case.log
        self._erasures = _Erasures()
        self._bad: set[str] = set()
        """Altered ones."""

    async def check(self, events: Sequence[tuple[int, Event]]) -> None:
        """Each leaf's event, and the one before it in its message."""
        case, log = self._case, self._log
        mids = {event.mid for _, event in events}
        apart = {} if log.own else await case.copies.apart(log.dc, mids)  # own ones have no second name: store.copies
        wanted: set[tuple[str, int]] = set()
        for _, event in events:
            names = (event.mid, local_mid(event.mid, log.dc)) if event.mid in apart else (event.mid,)
            wanted.update((name, k) for name in names for k in (event.k, event.k - 1) if k >= 0)
        stored = await case.store.event_documents(wanted)
        batch = _Batch(apart, stored, {event.id: leaf_hash(event.leaf) for _, event in events})
        for index, event in events:
            if event.kind is Kind.ERASED:
                self._erasures.said[event.mid] = (event.k, event.at)
            name = local_id(event, apart)
            if name in stored:
                self._matches(index, event, stored[name])
            else:
                case.fault(Fault.EVENT_MISSING, index, index, event.id, "the log has it, the store has not")
            await self._predecessor(index, event, batch)

    def _matches(self, index: int, leaf: Event, stored: Event | None) -> None:
        if stored is None:
            self._altered(index, leaf, "the document is not one of an event")
        elif wrong := contradictions(leaf, stored):
            self._altered(index, leaf, f"not as the leaf says: {', '.join(wrong)}")
        elif stored.salt is None and stored.data is None and leaf.kind is not Kind.ERASED:
            self._erasures.gone.append((index, leaf, stored))
        elif not opens(stored):
            self._altered(index, leaf, "tenant, data, salt or carriers' ids are not what the leaf commits to")

    def _altered(self, index: int, leaf: Event, detail: str) -> None:
        self._bad.add(leaf.id)
        self._case.fault(Fault.EVENT_ALTERED, index, index, leaf.id, detail)

    # -- the chain -----------------------------------------------------------------------------------------------------

    async def _predecessor(self, index: int, event: Event, batch: _Batch) -> None:
        """`prev` is the hash of the message's event before, whoever wrote it."""
        case = self._case
        if event.k == 0:
            if event.prev is not None:
                detail = "it is the message's first event, and names one before it"
                case.fault(Fault.CHAIN, index, index, event.id, detail)
            return
        before_id = f"{event.mid}:{event.k - 1}"
        if event.prev is not None and batch.hashes.get(before_id) == event.prev:
            return
        names = [before_id]
        if event.mid in batch.apart:
            names.insert(0, f"{local_mid(event.mid, self._log.dc)}:{event.k - 1}")
        present = [batch.stored[name] for name in names if name in batch.stored]
        for before in present:
            if before is not None and await self._precedes(before, event):
                return
        if present:
            detail = f"it is not the event that {event.id} follows"
        elif case.behind or await self._elsewhere():
            return
        else:
            detail = f"{event.id} follows it, and it is nowhere here"
        case.fault(Fault.CHAIN, index, index, before_id, detail)

    async def _precedes(self, before: Event, event: Event) -> bool:
        """By its leaf as stored, or as a log has it: a damaged document is its own fault, not its successor's."""
        if before.kind is Kind.GAP or leaf_hash(before.leaf) == event.prev:
            return True
        for there in await self._case.find(before.dc, before.node, before.epoch, before.q):
            leaf = await self._case.entry(*there)
            if leaf is not None and leaf_hash(leaf) == event.prev:
                return True
        return False

    async def _elsewhere(self) -> bool:
        """Whether another datacenter's log, which may have it, is not all here."""
        for log in self._case.holdings.logs.values():
            seen = None if log.own else await self._case.copies.witnessed(log.origin)
            if seen is not None and seen.size > log.size:
                return True
        return False

    # -- erasure -------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """A payload is gone where, and only where, its message was erased."""
        await self._gone()
        await self._kept()

    async def _gone(self) -> None:
        case, said = self._case, self._erasures.said
        gone = self._erasures.gone
        shared = await case.copies.shared(leaf.mid for _, leaf, _ in gone) if gone else {}
        stories = [(stored.mid, leaf.mid, *shared.get(leaf.mid, ())) for _, leaf, stored in gone]
        known = await case.store.erased(sorted({name for names in stories for name in names})) if gone else {}
        for (index, leaf, stored), names in zip(gone, stories, strict=True):
            by = next((known[name] for name in names if name in known), None)
            if by is None:
                if leaf.mid not in said and not case.behind:
                    self._altered(index, leaf, "its payload is gone, and the message was not erased")
            elif opens(by) and stored.tenant != by.tenant and (stored.tenant or self._log.own):
                self._altered(
                    index, leaf, f"the tenant is {stored.tenant!r}; the message was erased as {by.tenant!r}'s"
                )

    async def _kept(self) -> None:
        """Of messages whose `erased` leaf was met."""
        case, log = self._case, self._log
        due = {mid: k for mid, (k, at) in self._erasures.said.items() if at < case.now - _ERASING_MS}
        apart = {} if log.own or not due else await case.copies.apart(log.dc, due)  # as in `check`
        wanted = []
        for mid, end in due.items():
            cut = apart.get(mid, end)
            wanted += [(mid, k) for k in range(min(cut, end) if cut else 0)]
            wanted += [(local_mid(mid, log.dc), k) for k in range(cut, end)]
        for name, stored in (await case.store.event_documents(wanted)).items():
            if stored is None or (stored.salt is None and stored.data is None) or stored.kind is Kind.ERASED:
                continue
            if f"{stored.mid.partition('@')[0]}:{stored.k}" in self._bad:
                continue
            where = await case.index_of((stored.node, stored.epoch), stored.q) if stored.dc == log.dc else None
            at = where if where is not None else -1
            case.fault(Fault.UNERASED, at, at, name, "its message was erased, and its payload is here")
