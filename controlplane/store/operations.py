"""Operations on the region, as the API knows them: asked for here, run where the region's stack is, reported back.

| collection | one document is |
|---|---|
| operations | one operation. While it is unfinished it has a `slot`: of each slot there is at most one, which the index sees to |
| operation_events | `<operation>:<n>`: one task on one host that changed something, failed, or said something; n counts from 1 |
| operation_agents | somebody who runs operations where the stack is, and when they were heard of |

Whoever runs an operation holds it under a `fence` that each claim raises: what is reported under a lower one is refused, and an event that such a report left
behind is written over. Lines are known by the folder that they come from (`spool`) and their number in it, so that a report that is repeated changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, Self

from pymongo import ASCENDING, DESCENDING, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from controlplane.clock import Clock
from controlplane.domain.operations import KINDS
from controlplane.ids import new_mid
from controlplane.store.client import Database, Document, border
from controlplane.store.schema import OPERATION_AGENTS, OPERATION_EVENTS, OPERATIONS

__all__ = ["SILENT_MS", "Agent", "Claim", "Operation", "OperationState", "Operations", "Report"]

SILENT_MS = 60_000
"""Whoever was not heard of for so long does not run the operation any more."""
_KEPT = 200
_MOST_EVENTS = 20_000
"""Of one operation; what comes then is only in its own folder."""
_AGENT_FORGOTTEN = timedelta(days=1)
_DUPLICATE = 11_000
_CHANGE = "change"


class OperationState(StrEnum):
    """Where it stands."""

    REQUESTED = "requested"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """As stored. Times are ms since the epoch; 0 = not yet."""

    id: str
    dc: str
    kind: str
    variables: dict[str, str]
    state: OperationState
    slot: str = ""
    """While it is unfinished: `change`, or the kind of one that changes nothing."""
    verb: Literal["run", "abort"] = "run"
    """What its holder does, or is to do."""
    by: str
    """Who asked: a person, or a key's id."""
    by_hand: bool = False
    """Begun on the command line: nobody goes on with it unasked."""
    at: int
    begun: int = 0
    ended: int = 0
    holder: str = ""
    host: str = ""
    """The holder's machine."""
    fence: int = 0
    nonce: str = ""
    """Of the claim: one that is repeated, since its answer was lost, is answered the same."""
    beat: int = 0
    """When its holder was heard of."""
    revision: int = 0
    cancel: dict[str, Any] | None = None
    """{by, at}: asked for, and not yet ended."""
    resumed: int = 0
    changed: int = 0
    problem: str = ""
    task: str = ""
    """What is done at the moment."""
    journal: dict[str, Any] = field(default_factory=dict)
    """{done, open, owed: names; total, passed: steps looked at, null where that is not known}"""
    canaries: dict[str, int] = field(default_factory=dict)
    """{accepted, retried, final, proven, missing}, as far as they were counted."""
    events: int = 0
    spools: dict[str, int] = field(default_factory=dict)
    """Where lines came from → how many of them are events here."""

    def document(self) -> Document:
        """As stored."""
        found = asdict(self)
        found |= {"_id": found.pop("id"), "state": self.state.value}
        return {name: value for name, value in found.items() if value or name not in ("slot", "begun")}

    @classmethod
    def of(cls, document: Document) -> Self:
        """As read; what a newer version added is passed over."""
        names = {each.name for each in fields(cls)}
        known = {name: value for name, value in document.items() if name in names}
        return cls(id=document["_id"], **known | {"state": OperationState(document["state"])})

    def cut(self, now: int) -> bool:
        """It runs, and whoever runs it was not heard of for too long."""
        return self.state is OperationState.RUNNING and now - self.beat >= SILENT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who wants to run something."""

    agent: str
    host: str
    nonce: str
    restarted: bool = False
    """The agent has just started: what it held before runs no more."""
    busy: bool = False
    """It can take nothing at the moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What its holder tells of an operation."""

    agent: str
    fence: int
    revision: int
    """Grows with each report under a fence; an older one that comes late changes nothing."""
    spool: str
    first: int
    """Number of the first of `events` in its spool, from 1."""
    events: Sequence[Mapping[str, Any]]
    state: OperationState
    unfinished: bool
    """It may be gone on with, or owes something."""
    fields: Mapping[str, Any]
    """changed, resumed, problem, task, journal, canaries."""


@dataclass(frozen=True, slots=True)
class Agent:
    """Somebody who runs operations."""

    id: str
    host: str
    beat: int


class Operations:
    """One per node. Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, clock: Clock, datacenter: str) -> None:
        self._operations = database[OPERATIONS]
        self._events = database[OPERATION_EVENTS]
        self._agents = database[OPERATION_AGENTS]
        self._clock = clock
        self._dc = datacenter

    @staticmethod
    def slot(kind: str) -> str:
        """What an unfinished one of this kind takes."""
        return _CHANGE if KINDS[kind].changes else kind

    # -- asking --------------------------------------------------------------------------------------------------------

    async def request(self, kind: str, variables: Mapping[str, str], by: str) -> Operation | None:
        """A new one, for an agent to claim; None while the slot is taken (`unfinished` says by what)."""
        now = self._clock.now_ms()
        made = Operation(
            id=new_mid(now),
            dc=self._dc,
            kind=kind,
            variables=dict(variables),
            state=OperationState.REQUESTED,
            slot=self.slot(kind),
            by=by,
            at=now,
        )
        return made if await self._insert(made) else None

    async def _insert(self, made: Operation) -> bool:
        with border():
            try:
                await self._operations.insert_one(made.document())
            except DuplicateKeyError:
                return False
        await self._forget()
        return True

    async def _forget(self) -> None:
        """All but the newest, and what is unfinished. Events first: a cut leaves none behind without their operation."""
        query = {"dc": self._dc}
        with border():
            newest = self._operations.find(query, {"_id": 1}).sort("_id", DESCENDING).skip(_KEPT - 1).limit(1)
            last = await newest.to_list()
            if not last:
                return
            old = {**query, "_id": {"$lt": last[0]["_id"]}, "slot": {"$exists": False}}
            gone = [document["_id"] async for document in self._operations.find(old, {"_id": 1})]
            if gone:
                await self._events.delete_many({"op": {"$in": gone}})
                await self._operations.delete_many({"_id": {"$in": gone}})

    async def unfinished(self, kind: str) -> Operation | None:
        """What takes the slot of this kind."""
        with border():
            found = await self._operations.find_one({"dc": self._dc, "slot": self.slot(kind)})
        return Operation.of(found) if found else None

    async def cancel(self, identity: str, by: str) -> Operation | None:
        """At once where nobody runs it, else when its holder hears of it; None where it neither runs nor is to, or that was asked before."""
        now = self._clock.now_ms()
        ended: Document = {
            "$set": {"state": OperationState.CANCELED.value, "ended": now, "cancel": None},
            "$inc": {"fence": 1},
        }
        nobody = {
            "$or": [
                {"state": OperationState.REQUESTED.value},
                {"state": OperationState.RUNNING.value, "beat": {"$lte": now - SILENT_MS}},
            ]
        }
        owing = {"slot": _CHANGE, "begun": {"$exists": True}}
        running = {"state": OperationState.RUNNING.value, "cancel": None}
        return (
            await self._change({"_id": identity, **nobody, **owing}, ended)
            or await self._change({"_id": identity, **nobody}, {**ended, "$unset": {"slot": ""}})
            or await self._change({"_id": identity, **running}, {"$set": {"cancel": {"by": by, "at": now}}})
        )

    async def again(self, identity: str, verb: Literal["run", "abort"], by: str) -> Operation | None:
        """Ask to go on with one that failed, was canceled or was cut, or to take back what it owes; None where it is not so."""
        over = {"state": {"$in": [OperationState.FAILED.value, OperationState.CANCELED.value]}}
        cut = {"state": OperationState.RUNNING.value, "beat": {"$lte": self._clock.now_ms() - SILENT_MS}}
        asked = {"state": OperationState.REQUESTED.value, "verb": verb, "by": by, "by_hand": False, "cancel": None}
        return await self._change(
            {"_id": identity, "slot": {"$exists": True}, "$or": [over, cut]}, {"$set": asked, "$inc": {"fence": 1}}
        )

    async def _change(self, query: Document, update: Document) -> Operation | None:
        with border():
            found = await self._operations.find_one_and_update(
                {**query, "dc": self._dc}, update, return_document=ReturnDocument.AFTER
            )
        return Operation.of(found) if found else None

    # -- reading -------------------------------------------------------------------------------------------------------

    async def get(self, identity: str) -> Operation | None:
        """One of this region's."""
        with border():
            found = await self._operations.find_one({"_id": identity, "dc": self._dc})
        return Operation.of(found) if found else None

    async def page(self, before: str | None, limit: int, *, unfinished: bool = False) -> list[Operation]:
        """Newest first; `before` is the id of the last one seen; with `unfinished` only those."""
        query: Document = {"dc": self._dc}
        if before:
            query["_id"] = {"$lt": before}
        if unfinished:
            query["slot"] = {"$exists": True}
        with border():
            found = await self._operations.find(query).sort("_id", DESCENDING).limit(limit).to_list()
        return [Operation.of(document) for document in found]

    async def events_of(self, operation: Operation, after: int, limit: int) -> list[Document]:
        """Those with n > `after`, in order: {n, at, kind, host, task, message, diff}."""
        query = {"op": operation.id, "n": {"$gt": after, "$lte": operation.events}}
        with border():
            return (
                await self._events.find(query, {"_id": 0, "op": 0, "fence": 0})
                .sort("n", ASCENDING)
                .limit(limit)
                .to_list()
            )

    async def agent(self) -> Agent | None:
        """Who was heard of last."""
        with border():
            found = await self._agents.find_one({"dc": self._dc}, sort=[("beat", DESCENDING)])
        return Agent(found["_id"], found["host"], found["beat"]) if found else None

    # -- running -------------------------------------------------------------------------------------------------------

    async def claim(self, claim: Claim) -> Operation | None:
        """The oldest that is to be run and that nobody runs; None where there is nothing to do. The agent was heard of in either case."""
        now = self._clock.now_ms()
        seen = {"dc": self._dc, "host": claim.host, "beat": now, "expires": _in(now, _AGENT_FORGOTTEN)}
        own = [{"holder": claim.agent}] if claim.restarted else []
        free = {
            "state": OperationState.RUNNING.value,
            "by_hand": False,
            "$or": [{"beat": {"$lte": now - SILENT_MS}}, *own],
        }
        held = {"holder": claim.agent, "nonce": claim.nonce, "state": OperationState.RUNNING.value}
        taken = {
            "state": OperationState.RUNNING.value,
            "holder": claim.agent,
            "host": claim.host,
            "nonce": claim.nonce,
            "beat": now,
            "revision": 0,
        }
        with border():
            await self._agents.update_one({"_id": claim.agent}, {"$set": seen}, upsert=True)
            if claim.busy:
                return None
            again = await self._operations.find_one({"dc": self._dc, **held})
            if again is not None:
                return Operation.of(again)
            found = await self._operations.find_one_and_update(
                {"dc": self._dc, "$or": [{"state": OperationState.REQUESTED.value}, free]},
                {"$set": taken, "$inc": {"fence": 1}, "$min": {"begun": now}},
                sort=[("_id", ASCENDING)],
                return_document=ReturnDocument.AFTER,
            )
        return Operation.of(found) if found else None

    async def enter(self, made: Operation, *, over: bool) -> Operation | None:
        """Hold one that was begun by hand, or is known to its own machine alone so far (`made.slot` is "" where it is finished).

        `over`: only to tell how it ended. None while somebody else runs it, or did since, or its slot is taken by another.
        """
        now = self._clock.now_ms()
        held = {
            "state": OperationState.RUNNING.value,
            "holder": made.holder,
            "host": made.host,
            "beat": now,
            "revision": 0,
            "by_hand": True,
            "verb": made.verb,
            "cancel": None,
        }
        free: list[Document] = [{"holder": made.holder}]
        if not over:
            free += [
                {"state": {"$ne": OperationState.RUNNING.value}},
                {"beat": {"$lte": now - SILENT_MS}},
            ]
        update: Document = {"$set": held, "$inc": {"fence": 1}, "$min": {"begun": made.begun}}
        if made.slot:
            update["$set"] = held | {"slot": made.slot}
        query = {"_id": made.id, "dc": self._dc, "kind": made.kind, "$or": free}
        with border():
            try:
                found = await self._operations.find_one_and_update(query, update, return_document=ReturnDocument.AFTER)
            except DuplicateKeyError:
                return None
        if found is not None:
            return Operation.of(found)
        fresh = Operation.of(made.document() | held | {"fence": 1})
        return fresh if await self._insert(fresh) else None

    async def report(self, identity: str, told: Report) -> tuple[Operation, bool] | None:
        """(the operation as it is then, whether it ended by this); None where the agent does not hold it under this fence."""
        found = await self.get(identity)
        if found is None or (found.holder, found.fence) != (told.agent, told.fence):
            return None
        if found.state is not OperationState.RUNNING:  # it ended by a report that is repeated
            return found, False
        if not await self._keep_events(found, told):
            return None
        now = self._clock.now_ms()
        over = told.state is not OperationState.RUNNING
        said: Document = {**told.fields, "beat": now, "revision": told.revision, "state": told.state.value}
        if over:
            said |= {"ended": now, "cancel": None, "task": "", "verb": "run"}
        query = {**_held(told), "_id": identity, "revision": {"$lt": told.revision}}
        drop = {"$unset": {"slot": ""}} if over and not told.unfinished else {}
        changed = await self._change(query, {"$set": said, **drop})
        if not found.by_hand:
            with border():
                await self._agents.update_one({"_id": told.agent}, {"$set": {"beat": now}})
        current = changed or await self.get(identity)
        return (current, changed is not None and over) if current and current.fence == told.fence else None

    async def _keep_events(self, operation: Operation, told: Report) -> bool:
        """Write what is new of the events, then say that they are there. False: it is held under another fence by now."""
        found: Operation | None = operation
        while found is not None and (found.holder, found.fence) == (told.agent, told.fence):
            known = found.spools.get(told.spool, 0)
            last = told.first + len(told.events) - 1
            if last <= known or told.first > known + 1:
                return True
            fresh = told.events[known + 1 - told.first :][: max(0, _MOST_EVENTS - found.events)]
            if fresh:
                await self._write(found, fresh)
            said = {"events": found.events + len(fresh), f"spools.{told.spool}": last}
            if await self._change({**_held(told), "_id": found.id, "events": found.events}, {"$set": said}):
                return True
            found = await self.get(found.id)  # the same report, twice at once
        return False

    async def _write(self, operation: Operation, events: Sequence[Mapping[str, Any]]) -> None:
        """Each at its number: what a lower fence left there is written over, what is there already stays."""
        writes = []
        for n, event in enumerate(events, operation.events + 1):
            own = {"op": operation.id, "n": n, "fence": operation.fence, **event}
            query = {"_id": f"{operation.id}:{n}", "fence": {"$lt": operation.fence}}
            writes.append(UpdateOne(query, {"$set": own}, upsert=True))
        with border():
            try:
                await self._events.bulk_write(writes, ordered=False)
            except BulkWriteError as error:
                if any(each["code"] != _DUPLICATE for each in error.details["writeErrors"]):
                    raise


def _held(told: Report) -> Document:
    return {"holder": told.agent, "fence": told.fence, "state": OperationState.RUNNING.value}


def _in(now: int, span: timedelta) -> datetime:
    return datetime.fromtimestamp(now / 1000, UTC) + span
