"""Which message a receipt belongs to, and recording it there.

Search order: messages open on this node by carrier id; the store by carrier id (another bind, node or an earlier life submitted it); a message whose
submit to this connector had no response and whose recipient is the receipt's source. What is found nowhere becomes an orphan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, PartState
from controlplane.domain.receipt import FormatLearner, Receipt, kind_of, reason_of, receipt_keys, submit_key
from controlplane.store.book import Book, Fact
from controlplane.store.events import EventReader
from controlplane.store.orphans import Orphan, OrphanStore

__all__ = ["Correlator"]

_MAY_LEAVE_UNKNOWN = frozenset({Kind.UNKNOWN, Kind.ADOPTED})
_Found = tuple[str, tuple[int, ...], bool]
"""(mid, part numbers, whether the receipt is about an earlier submit of them)."""


class Correlator:
    """One per node."""

    def __init__(
        self,
        book: Book,
        reader: EventReader,
        orphans: OrphanStore,
        onward: Callable[[Message, int], tuple[str, ...]],
    ) -> None:
        self._book = book
        self._onward = onward
        """(message, part that is reported undelivered) → the routes tried, where the part shall go to the next one."""
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
        if self._unknown or event.kind in _MAY_LEAVE_UNKNOWN:
            self._index(message)
        if self._waiting:
            for key in event.cids:
                if key in self._waiting:
                    self._joinable[self._waiting.pop(key)] = None

    def _index(self, message: Message) -> None:
        place = (message.connector, message.to.removeprefix("+"))
        if any(part.state is PartState.UNKNOWN for part in message.parts) and not message.final:
            self._unknown.setdefault(place, {})[message.mid] = None
        elif place in self._unknown:
            mids = self._unknown[place]
            mids.pop(message.mid, None)
            if not mids:
                del self._unknown[place]

    def take_joinable(self) -> list[str]:
        """Orphans that this node can join now."""
        taken, self._joinable = list(self._joinable), {}
        return taken

    def record_open(
        self, connector: str, fmt: str, recipient: str, receipt: Receipt, done: Callable[[BaseException | None], None]
    ) -> bool:
        """The short way, for a receipt of a message that this node owns: True when it is taken; `done` is called once it is durable, or cannot be."""
        found = self._open_here(connector, self._keys(connector, fmt, receipt), recipient, receipt)
        if found is None:
            return False
        mid, numbers, former = found
        waiting = len(numbers)

        def written(_event: Event | None, error: BaseException | None) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting or error is not None:
                done(error)

        for number in numbers:
            fact = self._fact(mid, connector, number, receipt, former=former)
            fact.done = written
            self._book.post(mid, fact)
        return True

    async def receive(self, connector: str, fmt: str, recipient: str, receipt: Receipt) -> bool:
        """Record the receipt durably: in its message, or as an orphan (→ False). Raises StoreUnavailableError."""
        keys = tuple(dict.fromkeys(self._keys(connector, fmt, receipt)))
        if await self._join(connector, keys, recipient, receipt):
            return True
        orphan_id = await self._orphans.put(connector, keys, recipient, receipt)
        for key in keys:
            self._waiting[key] = orphan_id
            if self._book.parts_of(key) is not None:  # its response came while the orphan was being stored
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

    def _learner(self, connector: str) -> FormatLearner:
        learner = self._learners.get(connector)
        if learner is None:
            learner = self._learners[connector] = FormatLearner()
        return learner

    def _keys(self, connector: str, fmt: str, receipt: Receipt) -> Iterable[str]:
        return receipt_keys(connector, receipt.id, fmt, self._learner(connector).order) if receipt.id else ()

    async def _join(self, connector: str, keys: tuple[str, ...], recipient: str, receipt: Receipt) -> bool:
        found = self._open_here(connector, keys, recipient, receipt)
        if found is None and keys:
            found = await self._in_store(connector, keys, recipient, receipt)
        if found is None and (mid := self._of_unknown(connector, recipient, receipt)) is not None:
            message = self._book.open[mid]
            unknown = [number for number, part in enumerate(message.parts, 1) if part.state is PartState.UNKNOWN]
            found = mid, tuple(unknown[:1]), False
        if found is None:
            return False
        mid, numbers, former = found
        for number in numbers:
            await self._book.record(mid, self._fact(mid, connector, number, receipt, former=former))
        return bool(numbers)

    def _open_here(self, connector: str, keys: Iterable[str], recipient: str, receipt: Receipt) -> _Found | None:
        """The message that is open here and known by one of `keys`."""
        for key in keys:
            found = self._book.parts_of(key)
            message = self._book.get(found[0]) if found else None
            if found and message is not None and _same_number(message.to, recipient):
                self._learner(connector).observe(connector, receipt.id, key)
                mid, numbers = found
                return mid, numbers, _former(message, numbers, key)
        return None

    async def _in_store(self, connector: str, keys: tuple[str, ...], recipient: str, receipt: Receipt) -> _Found | None:
        """The stored message that one of `keys` belongs to, and the parts that were submitted under it."""
        events = await self._reader.by_carrier_ids(keys)
        order = {key: rank for rank, key in enumerate(keys)}
        events.sort(key=lambda event: min(order.get(cid, len(order)) for cid in event.cids))
        for event in events:
            story = await self._book.load(event.mid)
            if story is None or not (story[0].erased or _same_number(story[0].to, recipient)):
                continue
            key = next(cid for cid in event.cids if cid in order)
            self._learner(connector).observe(connector, receipt.id, key)
            numbers = tuple(number for number, _ in (event.data or {}).get("part_ids", ()))
            return event.mid, numbers, _former(story[0], numbers, key)
        return None

    def _of_unknown(self, connector: str, recipient: str, receipt: Receipt) -> str | None:
        """The one message to this number whose outcome at this connector is unknown; its text decides between several, or nobody.

        One that is just being adopted is known to be unknown before it is open here; its receipt waits.
        """
        known = self._unknown.get((connector, recipient.removeprefix("+")), ())
        mids = [mid for mid in known if self._book.get(mid) is not None]
        if len(mids) > 1 and receipt.text:
            opening = receipt.text[:16]
            mids = [mid for mid in mids if (message := self._book.get(mid)) and message.body.startswith(opening)]
        return mids[0] if len(mids) == 1 else None

    def _fact(self, mid: str, connector: str, number: int, receipt: Receipt, *, former: bool) -> Fact:
        """The receipt as an event of one part. A repeated one is declined, and one of an erased message, which would say again what was erased.

        One that no state can be read from is kept and shown, and settles nothing.
        """
        kind = kind_of(receipt.state) or Kind.ENROUTE
        seen = f"{receipt.state} {receipt.error} {receipt.done_date}"
        data: dict[str, Any] = {"part": number, "connector": connector, "receipt": receipt.as_data()}
        message = self._book.get(mid)
        if former:
            data["former"] = True
        elif kind is Kind.UNDELIVERED and message is not None and (tried := self._onward(message, number)):
            data["tried"] = list(tried)
        return Fact(
            kind,
            data,
            "",
            reason_of(kind, receipt),
            guard=lambda message: not message.erased and message.part(number).receipt != seen,
        )


def _former(message: Message, numbers: tuple[int, ...], key: str) -> bool:
    """Whether the carrier's id is that of an earlier submit: the part has gone out again since."""
    parts = [message.part(number) for number in numbers]
    return bool(parts) and all(part.cid and submit_key(part.connector, part.cid) != key for part in parts)


def _same_number(to: str, recipient: str) -> bool:
    """Whether a receipt's source address is the message's recipient. Carriers drop or add + and leading zeros; some send nothing."""
    ours, theirs = to.lstrip("+0"), recipient.lstrip("+0")
    return not theirs or not ours or ours.endswith(theirs[-8:])
