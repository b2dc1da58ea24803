"""Which message a receipt belongs to, and recording it there.

Search order: messages open on this node by carrier id; the store by carrier id (another bind, node or an earlier life submitted it); a message whose
submit to this connector had no response and whose recipient is the receipt's source. What is found nowhere becomes an orphan.
"""

from __future__ import annotations

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, PartState
from controlplane.domain.receipt import FormatLearner, Receipt, kind_of, reason_of, receipt_keys, submit_key
from controlplane.store.book import Book
from controlplane.store.events import EventReader
from controlplane.store.orphans import Orphan, OrphanStore

__all__ = ["Correlator"]


class Correlator:
    """One per node."""

    def __init__(self, book: Book, reader: EventReader, orphans: OrphanStore) -> None:
        self._book = book
        self._reader = reader
        self._orphans = orphans
        self._learners: dict[str, FormatLearner] = {}
        self._unknown: dict[tuple[str, str], dict[str, None]] = {}
        """(connector, recipient's digits) → messages open here with an unknown part there."""
        self._waiting: dict[str, str] = {}
        """Key → orphan id, of orphans that this node stored: joined at once when the response comes."""
        self._joinable: dict[str, None] = {}
        """Orphan ids whose message has just been stored."""

    def on_event(self, message: Message, event: Event, *, own: bool) -> None:
        """Book listener: keeps the index of unknown parts, and notices responses that explain an orphan."""
        del own
        digits = message.to.removeprefix("+")
        if any(part.state is PartState.UNKNOWN for part in message.parts) and not message.final:
            self._unknown.setdefault((message.connector, digits), {})[message.mid] = None
        elif (message.connector, digits) in self._unknown:
            mids = self._unknown[message.connector, digits]
            mids.pop(message.mid, None)
            if not mids:
                del self._unknown[message.connector, digits]
        for key in event.cids:
            if key in self._waiting:
                self._joinable[self._waiting.pop(key)] = None

    def take_joinable(self) -> list[str]:
        """Orphans that this node can join now."""
        taken, self._joinable = list(self._joinable), {}
        return taken

    async def receive(self, connector: str, fmt: str, recipient: str, receipt: Receipt) -> bool:
        """Record the receipt durably: in its message, or as an orphan (→ False). Raises StoreUnavailableError."""
        keys = self._keys(connector, fmt, receipt)
        if await self._join(connector, keys, recipient, receipt):
            return True
        orphan_id = await self._orphans.put(connector, keys, recipient, receipt)
        for key in keys:
            self._waiting[key] = orphan_id
            if self._book.part_of(key) is not None:  # its response came while the orphan was being stored
                self._joinable[orphan_id] = None
        while len(self._waiting) > 100_000:
            del self._waiting[next(iter(self._waiting))]
        return False

    async def retry(self, orphan: Orphan) -> bool:
        """Try to join an orphan; True when it is joined and removed."""
        if await self._join(orphan.connector, orphan.keys, orphan.recipient, orphan.receipt):
            await self._orphans.remove(orphan.id)
            return True
        return False

    def _keys(self, connector: str, fmt: str, receipt: Receipt) -> tuple[str, ...]:
        if not receipt.id:
            return ()
        learner = self._learners.setdefault(connector, FormatLearner())
        return receipt_keys(connector, receipt.id, fmt, learner.order)

    async def _join(self, connector: str, keys: tuple[str, ...], recipient: str, receipt: Receipt) -> bool:
        mid = self._open_here(keys, recipient)
        if mid is None and keys:
            mid = await self._in_store(keys, recipient)
        if mid is not None:
            return await self._record(mid, connector, keys, receipt)
        mid = self._of_unknown(connector, recipient, receipt)
        if mid is not None:
            return await self._record(mid, connector, keys, receipt)
        return False

    def _open_here(self, keys: tuple[str, ...], recipient: str) -> str | None:
        for key in keys:
            found = self._book.part_of(key)
            message = self._book.get(found[0]) if found else None
            if found and message is not None and _same_number(message.to, recipient):
                return found[0]
        return None

    async def _in_store(self, keys: tuple[str, ...], recipient: str) -> str | None:
        events = await self._reader.by_carrier_ids(keys)
        order = {key: rank for rank, key in enumerate(keys)}
        events.sort(key=lambda event: min(order.get(cid, len(order)) for cid in event.cids))
        for event in events:
            story = await self._book.load(event.mid)
            if story is not None and (story[0].erased or _same_number(story[0].to, recipient)):
                return event.mid
        return None

    def _of_unknown(self, connector: str, recipient: str, receipt: Receipt) -> str | None:
        """The one message to this number whose outcome at this connector is unknown; its text decides between several, or nobody."""
        mids = list(self._unknown.get((connector, recipient.removeprefix("+")), ()))
        if len(mids) > 1 and receipt.text:
            opening = receipt.text[:16]
            mids = [mid for mid in mids if (message := self._book.get(mid)) and message.body.startswith(opening)]
        return mids[0] if len(mids) == 1 else None

    async def _record(self, mid: str, connector: str, keys: tuple[str, ...], receipt: Receipt) -> bool:
        """Append the receipt's event to each part it speaks of. Repeated ones are dropped; so is what no state can be read from, after keeping."""
        kind = kind_of(receipt.state)
        if kind is None:
            kind = Kind.ENROUTE  # kept and shown; settles nothing
        story = self._book.get(mid)
        message = story if story is not None else (await self._book.load(mid) or (None,))[0]
        if message is None:
            return False
        self._learn(connector, message, keys, receipt)
        numbers = [
            number
            for number, part in enumerate(message.parts, 1)
            if part.cid and part.connector == connector and submit_key(connector, part.cid) in keys
        ] or [number for number, part in enumerate(message.parts, 1) if part.state is PartState.UNKNOWN][:1]
        for number in numbers:
            seen = f"{receipt.state} {receipt.error} {receipt.done_date}"
            await self._book.record(
                mid,
                kind,
                {"part": number, "connector": connector, "receipt": receipt.as_data()},
                route=message.route or None,
                reason=reason_of(kind, receipt),
                guard=lambda m, n=number, s=seen: m.parts[n - 1].receipt != s,  # type: ignore[misc]
            )
        return bool(numbers)

    def _learn(self, connector: str, message: Message, keys: tuple[str, ...], receipt: Receipt) -> None:
        known = {submit_key(connector, part.cid) for part in message.parts if part.cid}
        hit = next((key for key in keys if key in known), None)
        if hit is not None:
            self._learners.setdefault(connector, FormatLearner()).observe(connector, receipt.id, hit)


def _same_number(to: str, recipient: str) -> bool:
    """Whether a receipt's source address is the message's recipient. Carriers drop or add + and leading zeros; some send nothing."""
    ours, theirs = to.lstrip("+0"), recipient.lstrip("+0")
    return not theirs or not ours or ours.endswith(theirs[-8:])
