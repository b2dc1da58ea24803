"""Events: documents out of leaves and payloads, numbers that were never sequenced, messages with a lost event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controlplane.domain.events import Event, Kind, leaf_hash
from controlplane.ledger.check import contradictions, decode_some, opens
from controlplane.ledger.cures.case import Opened, PeerCopy, RefusedError, Workbench, nowhere
from controlplane.ledger.entries import event_of, place_of
from controlplane.ledger.tiles import WIDTH
from controlplane.store.copies import local_id, local_mid
from controlplane.store.ledger import Finding, Log

__all__ = ["EventCures"]


class EventCures:
    """Each cure returns what it did, "" for nothing; or raises RefusedError."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._store = bench.store

    async def document(self, finding: Finding) -> str:
        """A leaf's event, missing or altered: from what is left of it, from a peer, or from the leaf alone where the message was erased."""
        opened = await self._bench.open(finding.origin)
        leaf = await opened.entry(finding.first)
        return await self._restore(opened.log, finding.first, leaf, opened.peers)

    async def bring_back(self, opened: Opened, index: int, leaf: bytes) -> None:
        """The same of an entry that is given up, if it can be. A sound document of that name stays: it may be of the better history."""
        place = place_of(leaf)
        there = await self._store.event_documents([(place.mid, place.k)])
        if there.get(f"{place.mid}:{place.k}") is not None:
            return
        try:
            await self._restore(opened.log, index, leaf, opened.peers)
        except RefusedError:
            return

    async def _restore(self, log: Log, index: int, leaf: bytes, peers: Sequence[PeerCopy]) -> str:
        try:
            event = event_of(leaf, None, None)
        except ValueError as error:
            raise RefusedError(f"The entry is {error}. It was signed so; nothing can be restored from it.") from None
        # own ones have no second name: store.copies
        apart = {} if log.own else await self._bench.copies.apart(log.dc, [event.mid])
        name = local_id(event, apart)
        mid, k = _split(name)
        stored = (await self._store.event_documents([(mid, k)])).get(name)
        if stored is not None and not contradictions(event, stored) and opens(stored):
            return ""
        right, source = await self._right(log, index, event, name, peers)
        if not self._bench.dry:
            await self._store.put_event(replace(right, mid=mid))
        return f"from {source}"

    async def _right(
        self, log: Log, index: int, event: Event, name: str, peers: Sequence[PeerCopy]
    ) -> tuple[Event, str]:
        """What the document must be, and where that is from."""
        mid, _ = _split(name)
        names = (mid, event.mid, *(await self._bench.copies.shared([event.mid])).get(event.mid, ()))
        erased = await self._store.erased(sorted(set(names)))
        by = next((erased[each] for each in names if each in erased), None)
        if by is not None and event.kind is not Kind.ERASED and event.k < by.k:
            left = [each for each in await self._store.remains(event, [name]) if each.id == name]
            return replace(
                event, tenant=by.tenant, cids=left[0].cids if left else ()
            ), "its leaf: the message was erased"
        for each in await self._store.remains(event, [name]):
            if (again := _again(event, each)) is not None:
                return again, "what is left of it"
        for peer in peers:
            [row] = await peer.rows(log.origin, [index])
            if row is not None and row[0] == event.leaf and row[1] is not None:
                try:
                    return event_of(*row), f"the leaf and payload that {peer.name} has"
                except ValueError:
                    continue
        raise RefusedError(
            f"{nowhere('payload', peers)} The message is {event.mid}, the document {name}: copy it from a scratch database that was restored from the backup."
        )

    async def unerased(self, finding: Finding) -> str:
        """The erasure is finished."""
        mid, k = _split(finding.subject)
        stored = (await self._store.event_documents([(mid, k)])).get(finding.subject)
        if stored is None or (stored.salt is None and stored.data is None):
            return ""
        if not self._bench.dry:
            await self._store.put_event(replace(stored, salt=None, data=None, cids=()))
        return "salt and payload are forgotten, as the message was erased"

    async def stray(self, finding: Finding) -> str:
        """A copy under a wrong name goes; anything else is for people to read."""
        opened = await self._bench.open(finding.origin)
        event = event_of(await opened.entry(finding.first), None, None)
        names = [(event.mid, event.k), (local_mid(event.mid, event.dc), event.k)]
        there = await self._store.event_documents(names)
        right = [each for each in there.values() if each is not None and each.leaf == event.leaf]
        document = await self._store.raw_event(finding.subject)
        number = (event.node, event.epoch, event.q, event.dc)
        if document is None or tuple(document.get(name) for name in ("n", "e", "q", "dc")) != number:
            return ""
        if not right or document.get("leaf") != event.leaf:
            raise RefusedError(
                f"{finding.subject} is another event with the same number as {event.id}: one of them was written by a node that should not have been running. Read it, see that what it says that is true gets a place, and remove it by hand."
            )
        if not self._bench.dry:
            await self._store.remove_event(finding.subject)
        return f"a copy of {event.id} under a wrong name, taken away"

    # -- numbers -------------------------------------------------------------------------------------------------------

    async def unsequenced(self, finding: Finding) -> str:
        """The next round is asked for it."""
        name, q = finding.subject.rsplit(" ", 1)
        node, _, epoch = name.rpartition(":")
        wanted = (node, int(epoch), int(q))
        dc = self._bench.settings.datacenter
        names = await self._store.ids_between(dc, node, int(epoch), int(q), int(q))
        if not names:
            return ""
        identity = names[0][1]
        stored = (await self._store.event_documents([_split(identity)])).get(identity)
        try:
            sound = stored is not None and not contradictions(event_of(stored.leaf, None, None), stored)
            sound = sound and stored is not None and (opens(stored) or (stored.salt is None and stored.data is None))
        except ValueError:
            sound = False
        if not sound:
            raise RefusedError(
                f"{identity} is damaged, and no log has its leaf. Restore the document from a backup, or remove it if no message needs it."
            )
        await self._bench.undoubted(dc)
        newest = (await self._bench.holdings()).chain(dc)[-1]
        opened = await self._bench.open(newest.origin)
        met = await opened.case.met(dc, (node, int(epoch)))
        if not met.whole:
            raise RefusedError("Entries of this datacenter's logs must be mended first: they may have it.")
        if wanted in newest.late or int(q) in met:
            return ""
        if not self._bench.dry:
            await self._store.ask_late(newest.origin, [wanted])
        return f"the next round of {newest.origin} takes it"

    async def sequence(self, finding: Finding) -> str:
        """Lost numbers are said to be lost."""
        opened = await self._bench.open(finding.origin)
        if not opened.log.own:
            raise RefusedError("The peer's log has this gap; the peer's repair says what it is, in its log.")
        if " " not in finding.subject:
            raise RefusedError("It was signed so, twice. Proofs of either entry hold; keep the finding.")
        await self._bench.undoubted(opened.log.dc)
        if not self._bench.dry:
            await self._bench.leader.record(Kind.GAP, finding.subject, "lost")
        return f"a `gap` event for {finding.subject}: no log and no store has them"

    # -- messages ------------------------------------------------------------------------------------------------------

    async def chain(self, finding: Finding) -> str:
        """The lost event out of a log that has it; else `gap` events at its ordinal, so that the message can be read on."""
        opened = await self._bench.open(finding.origin)
        event = event_of(await opened.entry(finding.first), None, None)
        if event.k == 0:
            raise RefusedError("It was signed so, and cannot be changed. Keep the finding.")
        before = (await self._store.event_documents([(event.mid, event.k - 1)])).get(finding.subject)
        if before is not None:
            if before.kind is Kind.GAP or leaf_hash(before.leaf) == event.prev:
                return ""
            raise RefusedError(
                f"{before.id} and {event.id} were written without knowledge of each other, and both are signed. Both stay; the message is read as far as it holds together."
            )
        for log in await self._store.logs():
            there = await self._search(log, event.mid, event.k - 1)
            if there is not None:
                return await self._restore(log, *there, opened.peers)
        if not opened.log.own:
            raise RefusedError(
                "The message is in the peer's log; the peer's repair finds the lost event, or says that it is lost."
            )
        for log in await self._store.logs(own=False):
            seen = await self._bench.copies.witnessed(log.origin)
            if seen is not None and seen.size > log.size:
                raise RefusedError(
                    f"{log.origin} is not all here yet, and may have it. Repair again when the mirror has caught up."
                )
        return await self._gaps(event)

    async def _search(self, log: Log, mid: str, k: int) -> tuple[int, bytes] | None:
        """(index, leaf) of an event in a log, by looking at every entry: there is no index by message."""
        needle = f'"mid":"{mid}"'.encode()
        for index in range(-(-log.size // WIDTH)):
            data = await self._store.bundle(log.origin, index) or b""
            entries = decode_some(data)[0] if needle in data else []
            for at, entry in enumerate(entries[: log.size - index * WIDTH], index * WIDTH):
                if needle in entry and (place := place_of(entry)).k == k and place.mid == mid:
                    return at, entry
        return None

    async def _gaps(self, event: Event) -> str:
        """From the first lost ordinal up, so that each names the one before it."""
        mid = event.mid
        stored = await self._store.event_documents([(mid, k) for k in range(event.k + 1)])
        lost = [k for k in range(event.k) if f"{mid}:{k}" not in stored]
        after = stored.get(event.id)
        if not lost or after is None:
            return ""
        for k in lost if not self._bench.dry else []:
            previous = (await self._store.event_documents([(mid, k - 1)])).get(f"{mid}:{k - 1}") if k else None
            prev = leaf_hash(previous.leaf) if previous is not None else None
            now = self._bench.clock.now_ms()
            await self._bench.leader.append(Event(mid, k, after.tenant, Kind.GAP, now, {}, prev=prev, reason="lost"))
        return f"a `gap` event at {', '.join(f'{mid}:{k}' for k in lost)}: nobody has what stood there"


def _split(name: str) -> tuple[str, int]:
    mid, _, k = name.rpartition(":")
    return mid, int(k) if k.isdecimal() else -1


def _again(event: Event, left: Event) -> Event | None:
    """The event out of a damaged document whose payload still is what the leaf commits to."""
    whole = replace(event, tenant=left.tenant, data=left.data, salt=left.salt, cids=left.cids)
    return whole if opens(whole) else None
