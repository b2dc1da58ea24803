"""What a datacenter keeps of the others' logs beside the logs themselves: how far a copy has come, what a witness has seen, events under a second name.

| collection | one document is |
|---|---|
| ledger_logs, field `ahead` | how far a copy has come beyond its checkpoint: verified against a later one, to which it does not reach yet |
| ledger_witnessed | the newest checkpoint of one log that this datacenter's witness has cosigned |
| ledger_conflicts | `<mid>@<dc>` and the ordinal from which this datacenter has that one's events of the message under that name |
| ledger_erasures | an erasure of which some event of the message had not come yet |

The last three are not sharded, on purpose: one document for each log, one for each message that two datacenters accepted under one key while they were apart, and
erasures that overtook their message. They stay small, are read whole or by `_id` in lists, and lie on the database's primary shard with the ledger's other
collections but bundles and tiles (`BY_ID` in infra/render.py).

**The conflict rule.** `<mid>:<k>` can be taken here by another datacenter's event: the same Idempotency-Key was used in both while neither knew of the other's
message, or both wrote to one message while they were apart. Events are the same when (dc, n, e, q) are. Where they are not, what came first stays, and the
mirrored event, with every later one that its datacenter wrote to the message, is kept under `<mid>@<dc>`. So each datacenter has its own story under the plain
id, and both are readable in both. Leaves, and so proofs, name the plain id always. `local_id` says where a leaf's event is.

At home the plain id is the own story's, without exception: nodes write to it. Where a restored database has mirrored the other's story there before it got its
own one back, the other's makes room. So no event of this datacenter ever has a second name here, and nobody looks for one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
from pymongo.errors import DuplicateKeyError

from controlplane.domain.events import Event, Kind
from controlplane.errors import StoreUnavailableError
from controlplane.store.client import Database, Document, border
from controlplane.store.events import from_document, of_message, to_document
from controlplane.store.leases import CLOSED, RELEASED
from controlplane.store.ledger import LEASE, LEDGER_NODE, LOGS, LedgerStore, Log
from controlplane.store.schema import EVENTS, TERMS

__all__ = ["Copies", "Erasure", "Held", "Witnessed", "local_id", "local_mid", "origin_hash"]

_log = structlog.get_logger()
WITNESSED = "ledger_witnessed"
CONFLICTS = "ledger_conflicts"
ERASURES = "ledger_erasures"
_CHUNK = 200


def local_mid(mid: str, dc: str) -> str:
    """The second name of a message: of `dc`'s events where the first is taken."""
    return f"{mid}@{dc}"


def local_id(event: Event, apart: Mapping[str, int]) -> str:
    """The `_id` here of a mirrored leaf's event; `apart` is what `Copies.apart` says of its datacenter's messages."""
    mid = local_mid(event.mid, event.dc) if event.k >= apart.get(event.mid, math.inf) else event.mid
    return f"{mid}:{event.k}"


@dataclass(frozen=True, slots=True)
class Held:
    """How much of a log is here: `size` entries, with every payload that there is."""

    size: int
    root: bytes
    frontier: tuple[bytes, ...]
    note: str
    """A signed checkpoint of this size or a larger one, against which all of it was verified; empty for nothing."""


@dataclass(frozen=True, slots=True)
class Witnessed:
    """The newest checkpoint of a log that our witness cosigned."""

    origin: str
    size: int
    root: bytes
    note: str
    forked: bool = False
    """The log has signed two histories: nothing of it is cosigned any more."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """An `erased` event: payloads of message `mid` with ordinals below `k` go, in `dc`'s story of it."""

    mid: str
    dc: str
    k: int
    tenant: str


class Copies:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, store: LedgerStore) -> None:
        self._database = database
        self._store = store
        self._logs = database[LOGS]
        self._events = database[EVENTS]
        self._witnessed = database[WITNESSED]
        self._conflicts = database[CONFLICTS]
        self._erasures = database[ERASURES]

    # -- how far a copy is ---------------------------------------------------------------------------------------------

    async def held(self, origin: str) -> Held | None:
        """What is here of a log; None where it is not known."""
        with border():
            document = await self._logs.find_one({"_id": origin})
        if document is None:
            return None
        log, ahead = Log.of(document), document.get("ahead")
        if ahead is None or ahead["size"] <= log.size:
            return Held(log.size, log.root, log.frontier, log.checkpoint)
        return Held(ahead["size"], bytes(ahead["root"]), tuple(map(bytes, ahead["frontier"])), ahead["note"])

    async def advance(self, origin: str, before: Held, after: Held, checkpoint: str) -> bool:
        """Everything of `after` is stored durably. `checkpoint`: the note of exactly that size, or "". False: somebody else has moved the copy."""
        fields = {"size": after.size, "root": after.root, "frontier": list(after.frontier)}
        query = {
            "_id": origin,
            "state": "open",
            "$or": [
                {"ahead.size": before.size, "ahead.root": before.root},
                {
                    "size": before.size,
                    "root": before.root,
                    "$or": [{"ahead": {"$exists": False}}, {"$expr": {"$lte": ["$ahead.size", "$size"]}}],
                },
            ],
        }
        update: Document = {"ahead": {**fields, "note": after.note}}
        if checkpoint:
            update |= {**fields, "checkpoint": checkpoint}
        with border():
            result = await self._logs.update_one(query, {"$set": update})
        return result.matched_count == 1

    async def seal(self, origin: str, successor: str) -> None:
        """The copy is complete; the log goes on in `successor`."""
        with border():
            await self._logs.update_one({"_id": origin, "own": False}, {"$set": {"next": successor}})
            await self._logs.update_one({"_id": origin, "own": False, "state": "open"}, {"$set": {"state": "sealed"}})

    async def freeze(self, origin: str) -> bool:
        """The log has signed two histories. Whether this was not known before."""
        with border():
            await self._logs.update_one({"_id": origin, "own": False}, {"$set": {"state": "frozen"}})
            try:
                result = await self._witnessed.update_one(
                    {"_id": origin, "forked": {"$ne": True}},
                    {
                        "$set": {"forked": True},
                        "$setOnInsert": {"hash": origin_hash(origin), "size": 0, "root": b"", "note": ""},
                    },
                    upsert=True,
                )
            except DuplicateKeyError:
                return False
        return result.modified_count == 1 or result.upserted_id is not None

    # -- what the witness has seen -------------------------------------------------------------------------------------

    async def witnessed(self, origin: str) -> Witnessed | None:
        """The newest checkpoint that was cosigned; None for none."""
        with border():
            document = await self._witnessed.find_one({"_id": origin})
        return _witnessed(document) if document else None

    async def witnessed_by_hash(self, digest: str) -> Witnessed | None:
        """The same by hex(SHA-256(origin))."""
        with border():
            document = await self._witnessed.find_one({"hash": digest})
        return _witnessed(document) if document else None

    async def witness(self, old: Witnessed | None, new: Witnessed) -> bool:
        """Check and persist in one step (tlog-witness): False, and nothing is changed, when the newest is not `old` any more."""
        fields = {"size": new.size, "root": new.root, "note": new.note}
        with border():
            if old is None:
                document = {"_id": new.origin, "hash": origin_hash(new.origin), "forked": False, **fields}
                try:
                    await self._witnessed.insert_one(document)
                except DuplicateKeyError:
                    return False
                return True
            query = {"_id": old.origin, "size": old.size, "root": old.root, "forked": False}
            result = await self._witnessed.update_one(query, {"$set": fields})
        return result.matched_count == 1

    # -- events --------------------------------------------------------------------------------------------------------

    async def apart(self, dc: str, mids: Iterable[str]) -> dict[str, int]:
        """Those of these messages of which `dc`'s events have the second name → from which ordinal on."""
        wanted = [local_mid(mid, dc) for mid in set(mids)]
        with border():
            documents = await self._conflicts.find({"_id": {"$in": wanted}}).to_list()
        return {document["mid"]: document["k"] for document in documents}

    async def shared(self, mids: Iterable[str]) -> dict[str, list[str]]:
        """The second names of stories that begin with events of these messages: what erases such a story erases all that is here of the message."""
        with border():
            documents = await self._conflicts.find({"mid": {"$in": sorted(set(mids))}, "k": {"$gt": 0}}).to_list()
        found: dict[str, list[str]] = {}
        for document in documents:
            found.setdefault(document["mid"], []).append(document["_id"])
        return found

    async def explained(self, mids: Collection[str]) -> set[str]:
        """Those of these messages that are known to be erased, in whichever datacenter's story: by an `erased` event, or one that waits for the others."""
        found = {each.mid for each in await self.erasures()} & set(mids)
        wanted = sorted(set(mids) - found)
        with border():
            conflicts = await self._conflicts.find({"mid": {"$in": wanted}}, {"_id": 1}).to_list() if wanted else []
        names = [*wanted, *(document["_id"] for document in conflicts)]
        for start in range(0, len(names), _CHUNK // 5):
            ranges = [of_message(name) for name in names[start : start + _CHUNK // 5]]
            query = {"$or": ranges, "kind": Kind.ERASED.value}
            with border():
                async for document in self._events.find(query, {"mid": 1}):
                    found.add(document["mid"].partition("@")[0])
        return found

    async def complete(self, event: Event, identity: str) -> None:
        """The payload of a mirrored event that came without, verified; unless the message is erased by now."""
        mid = identity.rpartition(":")[0]
        document = to_document(replace(event, mid=mid))
        fields = {name: document[name] for name in ("t", "data", "salt", "cids") if name in document}
        query = {"_id": identity, "mid": mid, "leaf": event.leaf, "data": None}
        with border():
            await self._events.update_one(query, {"$set": fields})
        if await self.explained([event.mid]):
            with border():
                gone = {"$set": {"data": None, "salt": None}, "$unset": {"cids": ""}}
                await self._events.update_one({"_id": identity, "mid": mid}, gone)

    async def put(self, dc: str, events: Sequence[Event], *, own: bool = False) -> None:
        """Store verified events of `dc`'s log, by the conflict rule, and forget what those among them erase. Those that are there already stay as they are.

        `own`: they are this datacenter's, and come back.
        """
        apart = {} if own else await self.apart(dc, (event.mid for event in events))
        rounds: list[list[Event]] = []
        seen: dict[str, int] = {}
        for event in sorted(
            events, key=lambda event: event.k
        ):  # no later one before it is known where an earlier one is
            turn = seen.get(event.mid, 0)
            seen[event.mid] = turn + 1
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append(event)
        for each in rounds:
            batch = [_renamed(event) if event.k >= apart.get(event.mid, math.inf) else event for event in each]
            conflicts = await self._conflicting(batch, await self._store.put_events(batch))
            if own and conflicts:
                await self._make_room(dc, conflicts)
                conflicts = await self._conflicting(conflicts, await self._store.put_events(conflicts))
            for event in conflicts:
                if own or "@" in event.mid:
                    _log.error("event_twice_in_a_log", id=event.id, dc=dc)  # scrubbing names it
                    continue
                apart[event.mid] = event.k
                await self._set_apart(event)
        erasures = [each for each in await self.erasures() if each.mid in seen]
        erasures += [Erasure(e.mid, e.dc, e.k, e.tenant) for e in events if e.kind is Kind.ERASED]
        await self._erase(list(dict.fromkeys(erasures)))

    async def _conflicting(self, batch: Sequence[Event], taken: Sequence[str]) -> list[Event]:
        """The events whose `_id` another event has."""
        if not taken:
            return []
        suspects = {event.id: event for event in batch}
        found: dict[str, Document] = {}
        for start in range(0, len(taken), _CHUNK):
            part = list(taken[start : start + _CHUNK])
            query = {"mid": {"$in": sorted({suspects[one].mid for one in part})}, "_id": {"$in": part}}
            with border():
                async for document in self._events.find(query, {"dc": 1, "n": 1, "e": 1, "q": 1}):
                    found[document["_id"]] = document
        if len(found) < len(taken):
            raise StoreUnavailableError("MongoDB: an event that is there is not confirmed by a majority yet")
        return [
            event
            for event in (suspects[one] for one in taken)
            if (d := found[event.id])
            and (d["dc"], d["n"], d["e"], d["q"]) != (event.dc, event.node, event.epoch, event.q)
        ]

    async def _make_room(self, own: str, events: Sequence[Event]) -> None:
        """Other datacenters' events that have the plain ids of these own ones get their second names."""
        stored = await self._store.events([(event.mid, event.k) for event in events])
        for other in stored.values():
            if other.dc != own:
                await self._set_apart(other)
                with border():
                    await self._events.delete_one({"_id": other.id, "mid": other.mid, "dc": other.dc})

    async def _set_apart(self, event: Event) -> None:
        """From this event on, its datacenter's events of the message have the second name; later ones that came before it move there."""
        moved = local_mid(event.mid, event.dc)
        with border():
            await self._conflicts.update_one(
                {"_id": moved}, {"$set": {"mid": event.mid, "dc": event.dc}, "$min": {"k": event.k}}, upsert=True
            )
            later = {**of_message(event.mid), "dc": event.dc, "k": {"$gt": event.k}}
            documents = await self._events.find(later).to_list()
        await self._store.put_events([_renamed(event), *(_renamed(from_document(each)) for each in documents)])
        if documents:
            with border():
                ids = [each["_id"] for each in documents]
                await self._events.delete_many({"mid": event.mid, "dc": event.dc, "_id": {"$in": ids}})

    async def erasures(self) -> list[Erasure]:
        """Those of whose message an earlier event has not come yet; looked at again with each event of it."""
        with border():
            documents = await self._erasures.find({}).to_list()
        return [Erasure(d["mid"], d["dc"], d["k"], d["t"]) for d in documents]

    async def _erase(self, erasures: Sequence[Erasure]) -> None:
        """Forget salts and payloads."""
        rest: list[Erasure] = []
        for start in range(0, len(erasures), _CHUNK):
            part = erasures[start : start + _CHUNK]
            apart = {
                dc: await self.apart(dc, [each.mid for each in part if each.dc == dc])
                for dc in {each.dc for each in part}
            }
            stories = {each: _stories(each, apart[each.dc].get(each.mid)) for each in part}
            await self._forget(stories)
            rest += await self._incomplete(stories)
        done = [local_mid(each.mid, each.dc) for each in erasures if each not in rest]
        with border():
            if done:
                await self._erasures.delete_many({"_id": {"$in": done}})
            for each in rest:
                fields = {"mid": each.mid, "dc": each.dc, "k": each.k, "t": each.tenant}
                await self._erasures.update_one({"_id": local_mid(each.mid, each.dc)}, {"$set": fields}, upsert=True)

    async def _forget(self, stories: Mapping[Erasure, list[tuple[str, int, int]]]) -> None:
        updates: list[Document] = []
        for erasure, places in stories.items():
            for mid, _, _ in places:
                kept = {"kind": {"$ne": Kind.ERASED.value}, "data": {"$ne": None}}
                gone = {"$set": {"data": None, "salt": None}, "$unset": {"cids": ""}}
                updates.append({"q": {**of_message(mid), **kept}, "u": gone, "multi": True})
                if erasure.tenant:  # of events that came without their payload, this alone says whose they are
                    whose = {"$set": {"t": erasure.tenant}}
                    updates.append({"q": {**of_message(mid), "t": ""}, "u": whose, "multi": True})
        command = {"update": EVENTS, "writeConcern": self._database.write_concern.document, "updates": updates}
        with border():
            reply = await self._database.command(command)
        if "writeErrors" in reply or "writeConcernError" in reply:
            raise StoreUnavailableError(f"MongoDB: {reply.get('writeErrors') or reply['writeConcernError']}")

    async def _incomplete(self, stories: Mapping[Erasure, list[tuple[str, int, int]]]) -> list[Erasure]:
        wanted = {
            f"{mid}:{k}": erasure
            for erasure, places in stories.items()
            for mid, first, end in places
            for k in range(first, end)
        }
        ids, found = list(wanted), set()
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            query = {"mid": {"$in": sorted({one.rpartition(":")[0] for one in part})}, "_id": {"$in": part}}
            with border():
                found |= {document["_id"] async for document in self._events.find(query, {"_id": 1})}
        return list(dict.fromkeys(erasure for one, erasure in wanted.items() if one not in found))

    # -- after a database was restored ---------------------------------------------------------------------------------

    async def raise_terms(self, dc: str, seen: Iterable[tuple[str, int]]) -> None:
        """Terms (node, epoch) of which events came back: none is begun again, and what they left open is adopted, also where that was thought to be done."""
        ledger = 0
        terms = self._database[TERMS]
        with border():
            for node, epoch in seen:
                identity = f"{node}:{epoch}"
                term = {"n": node, "e": epoch, "beat": 0, "by": "", "host": "", "url": ""}
                if node == LEDGER_NODE:
                    ledger = max(ledger, epoch)
                    await terms.update_one({"_id": identity}, {"$setOnInsert": {**term, "state": CLOSED}}, upsert=True)
                    continue
                await terms.update_one({"_id": identity}, {"$setOnInsert": {**term, "state": RELEASED}}, upsert=True)
                await terms.update_one({"_id": identity, "state": CLOSED}, {"$set": {"state": RELEASED, "by": ""}})
            await self._database[LEASE].update_one({"_id": dc, "term": {"$lt": ledger}}, {"$set": {"term": ledger}})


def origin_hash(origin: str) -> str:
    """How a log stands in URLs: hex(SHA-256(origin))."""
    return hashlib.sha256(origin.encode()).hexdigest()


def _witnessed(document: Document) -> Witnessed:
    return Witnessed(
        document["_id"], document["size"], bytes(document["root"]), document["note"], bool(document["forked"])
    )


def _renamed(event: Event) -> Event:
    return replace(event, mid=local_mid(event.mid, event.dc))


def _stories(erasure: Erasure, apart: int | None) -> list[tuple[str, int, int]]:
    """(local mid, first ordinal, end): where the events that are to be forgotten are. One that is apart from its beginning is another message."""
    if apart is None or apart >= erasure.k:
        return [(erasure.mid, 0, erasure.k)]
    second = (local_mid(erasure.mid, erasure.dc), apart, erasure.k)
    return [(erasure.mid, 0, apart), second] if apart else [second]
