"""Suppressions and preferences in MongoDB. A recipient is stored as a keyed hash of (tenant, number), and as a masked number for people to see.

`suppressions`: `{_id: "<r><h>", r, t, masked, reason, sender, classes, source, at, updated, dc}`, `h` of reason and sender: one for each of them and recipient.
`preferences`: `{_id: r, r, t, masked, time_zone, quiet_hours, sender, blocked, source, at, updated, dc}`.
One that was removed leaves `{_id, r, t, gone: true, updated, dc}`, for good: so an older state from elsewhere cannot bring it back (`preference_news`).
`updated` and `dc` say when and where it was written last; each write of a record has a later `updated` than the one before, whatever the clocks say.
`preference_changes`: `{_id: version, rs: [r, …], ts: [tenant, …], when}`: which recipients each version of `meta.preferences` changed, so that nodes learn it
without looking at all of them. A version whose entry never comes (its writer died) makes them read everything anew.

`r` is 32 hex digits of BLAKE2b (RFC 7693) under a key of its own, derived from HELIOGRAPH_SECRET_KEY; both collections are sharded by it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument, UpdateOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, DuplicateKeyError

from controlplane.clock import Clock
from controlplane.domain.address import mask
from controlplane.domain.preferences import Preference, Reason, Suppression
from controlplane.domain.quiet import QuietHours, quiet_document, quiet_record
from controlplane.store.client import Database, Document, border

__all__ = ["Change", "NewSuppression", "PreferenceStore", "Wishes", "Written"]

SUPPRESSIONS = "suppressions"
PREFERENCES = "preferences"
CHANGES = "preference_changes"
_HEAD = "preferences"
_DIGITS = 32
_DAY = 86_400
_CHUNK = 1_000
_DUPLICATE_KEY = 11_000
_THERE: Document = {"gone": {"$exists": False}}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSuppression:
    """To be recorded."""

    to: str
    """E.164 with +."""
    reason: Reason
    classes: frozenset[str]
    sender: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a recipient's Preference is to say."""

    time_zone: str = ""
    quiet_hours: Mapping[str, QuietHours]
    sender: str = ""
    blocked: frozenset[str] = frozenset()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """What a write made of one record."""

    id: str
    created: bool


@dataclass(frozen=True, slots=True)
class Change:
    """Recipients that one version changed."""

    version: int
    recipients: tuple[str, ...]
    """Their `r`."""
    tenants: tuple[str, ...]


class PreferenceStore:
    """Shared by the nodes of a datacenter. Everything raises StoreUnavailableError."""

    def __init__(self, database: Database, secret: bytes, clock: Clock, datacenter: str) -> None:
        self._suppressions = database[SUPPRESSIONS]
        self._preferences = database[PREFERENCES]
        self._changes = database[CHANGES]
        self._meta = database["meta"]
        self._clock = clock
        self.datacenter = datacenter
        self._key = _derived(secret, b"heliograph/recipients/v1", 32)
        self.key_id = _derived(secret, b"heliograph/recipients/v1/id", 8).hex()
        """Says which key `r` is made with, and nothing else of it: records of another key mean nothing here."""
        self._begun: dict[str, hashlib.blake2b] = {}
        """By tenant, as far as all its recipients have in common."""

    def digest(self, tenant: str, to: str) -> bytes:
        """`r` of this tenant's recipient, 16 octets."""
        begun = self._begun.get(tenant)
        if begun is None:
            begun = self._begun[tenant] = hashlib.blake2b(f"{tenant}\x00".encode(), key=self._key, digest_size=16)
        hashed = begun.copy()
        hashed.update(to.encode())
        return hashed.digest()

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        newest = IndexModel([("t", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)], name="newest")
        recipient = IndexModel([("r", ASCENDING)], name="recipient")
        with border():
            await self._suppressions.create_indexes([newest, recipient])
            await self._preferences.create_indexes([newest, recipient])
            await self._changes.create_indexes(
                [IndexModel([("when", ASCENDING)], name="ttl", expireAfterSeconds=2 * _DAY)]
            )

    # -- reading -------------------------------------------------------------------------------------------------------

    async def of(self, recipients: Sequence[str]) -> dict[str, tuple[list[Suppression], Preference | None]]:
        """All that is recorded of these recipients (their `r`); those of whom nothing is are left out."""
        found: dict[str, tuple[list[Suppression], Preference | None]] = {}
        for start in range(0, len(recipients), _CHUNK):
            query = {"r": {"$in": list(recipients[start : start + _CHUNK])}} | _THERE
            with border():
                suppressions = await self._suppressions.find(query).sort("_id").to_list()
                preferences = await self._preferences.find(query).to_list()
            for document in suppressions:
                found.setdefault(document["r"], ([], None))[0].append(_suppression(document))
            for document in preferences:
                known = found.get(document["r"], ([], None))[0]
                found[document["r"]] = (known, _preference(document))
        return found

    async def suppressions(
        self, tenant: str, *, to: str = "", reason: str = "", before: tuple[int, str] | None, limit: int
    ) -> list[Suppression]:
        """A tenant's, newest first; `before` is (at, id) of the last one of the page before."""
        query = self._page(tenant, to, before) | ({"reason": reason} if reason else {})
        with border():
            documents = await self._suppressions.find(query).sort([("at", -1), ("_id", -1)]).limit(limit).to_list()
        return [_suppression(document) for document in documents]

    async def preferences(
        self, tenant: str, *, to: str = "", before: tuple[int, str] | None, limit: int
    ) -> list[Preference]:
        """A tenant's, newest first; `before` is (at, id) of the last one of the page before."""
        query = self._page(tenant, to, before)
        with border():
            documents = await self._preferences.find(query).sort([("at", -1), ("_id", -1)]).limit(limit).to_list()
        return [_preference(document) for document in documents]

    def _page(self, tenant: str, to: str, before: tuple[int, str] | None) -> Document:
        query: Document = {"t": tenant} | _THERE
        if to:
            query["r"] = self.digest(tenant, to).hex()
        if before is not None:
            at, identity = before
            query["$or"] = [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": identity}}]
        return query

    async def suppression(self, tenant: str, identity: str) -> Suppression | None:
        """One of this tenant's."""
        with border():
            document = await self._suppressions.find_one(_one(tenant, identity))
        return _suppression(document) if document else None

    async def preference(self, tenant: str, identity: str) -> Preference | None:
        """One of this tenant's."""
        with border():
            document = await self._preferences.find_one(_one(tenant, identity))
        return _preference(document) if document else None

    # -- writing -------------------------------------------------------------------------------------------------------

    async def suppress(self, tenant: str, items: Sequence[NewSuppression]) -> list[Written]:
        """Record them, durably; one that is there gets the new classes and source."""
        writes: list[tuple[str, UpdateOne]] = []
        for item in items:
            r = self.digest(tenant, item.to).hex()
            identity = r + _kind_of(item)
            fields = {"classes": sorted(item.classes), "source": item.source}
            first = {"t": tenant, "masked": mask(item.to), "reason": item.reason.value, "sender": item.sender}
            writes.append((identity, self._upsert(identity, r, fields, first)))
        return await self._write(self._suppressions, tenant, writes)

    async def prefer(self, tenant: str, items: Sequence[tuple[str, Wishes]]) -> list[Written]:
        """Record (recipient, wishes), durably, in the place of what was there."""
        writes: list[tuple[str, UpdateOne]] = []
        for to, wishes in items:
            r = self.digest(tenant, to).hex()
            writes.append((r, self._upsert(r, r, _fields(wishes), {"t": tenant, "masked": mask(to)})))
        return await self._write(self._preferences, tenant, writes)

    async def change(self, tenant: str, identity: str, wishes: Wishes) -> bool:
        """Replace one preference; whether there is one."""
        with border():
            result = await self._preferences.update_one(
                _one(tenant, identity), [{"$set": _literal(_fields(wishes)) | self._stamp()}]
            )
        if result.matched_count:
            await self.changed([identity], [tenant])
        return bool(result.matched_count)

    async def lift(self, tenant: str, identity: str) -> bool:
        """Remove one suppression; whether there was one."""
        return await self._remove(self._suppressions, tenant, identity)

    async def lift_opt_outs(self, tenant: str, to: str) -> int:
        """Remove a recipient's opt-outs, for every sender (not complaints, nor what was entered by hand); how many there were.

        Also the one of a keyword that has been heard elsewhere before, but not here yet.
        """
        r = self.digest(tenant, to).hex()
        query = {"r": r, "t": tenant, "reason": Reason.OPT_OUT.value} | _THERE
        keyword = NewSuppression(to=to, reason=Reason.OPT_OUT, classes=frozenset())
        with border():
            result = await self._suppressions.update_many(query, self._gone(tenant))
            with suppress(DuplicateKeyError):  # an opt-out of this moment: it came after this
                await self._suppressions.update_one(
                    {"_id": r + _kind_of(keyword), "r": r, "gone": True}, self._gone(tenant), upsert=True
                )
        await self.changed(
            [r], [tenant]
        )  # also where nothing is left: an earlier try may have got no further than this
        return result.modified_count

    async def forget(self, tenant: str, identity: str) -> bool:
        """Remove one preference; whether there was one."""
        return await self._remove(self._preferences, tenant, identity)

    async def _remove(self, collection: AsyncCollection[Document], tenant: str, identity: str) -> bool:
        with border():
            result = await collection.update_one(_one(tenant, identity), self._gone(tenant))
        if result.matched_count:
            await self.changed([identity[:_DIGITS]], [tenant])
        return bool(result.matched_count)

    def _upsert(self, identity: str, r: str, fields: Document, first: Document) -> UpdateOne:
        kept = _literal({**first, "at": self._clock.now_ms()})
        values = {name: {"$ifNull": [f"${name}", value]} for name, value in kept.items()}
        return UpdateOne(
            {"_id": identity, "r": r},
            [{"$set": {**values, **_literal(fields), **self._stamp(), "gone": "$$REMOVE"}}],
            upsert=True,
        )

    def _gone(self, tenant: str) -> list[Document]:
        left = {"_id": "$_id", "r": "$r", "t": {"$literal": tenant}, "gone": True}
        return [{"$replaceWith": {**left, **self._stamp()}}]

    def _stamp(self) -> Document:
        later = {"$max": [self._clock.now_ms(), {"$add": ["$updated", 1]}]}
        return {"updated": later, "dc": {"$literal": self.datacenter}}

    async def _write(
        self, collection: AsyncCollection[Document], tenant: str, writes: Sequence[tuple[str, UpdateOne]]
    ) -> list[Written]:
        operations = [write for _, write in writes]
        identities = [identity for identity, _ in writes]
        recipients = sorted({identity[:_DIGITS] for identity in identities})
        with border():
            gone = {
                document["_id"]
                async for document in collection.find(
                    {"r": {"$in": recipients}, "_id": {"$in": identities}, "gone": True}, {"_id": 1}
                )
            }
            try:
                result = await collection.bulk_write(operations, ordered=False)
            except BulkWriteError as error:
                if any(item["code"] != _DUPLICATE_KEY for item in error.details["writeErrors"]):
                    raise
                result = await collection.bulk_write(
                    operations, ordered=False
                )  # another one came first: now it is there
        await self.changed(recipients, [tenant])
        upserted = result.upserted_ids or {}
        written = []
        for index, identity in enumerate(identities):
            written.append(Written(identity, index in upserted or identity in gone))
            gone.discard(identity)
        return written

    # -- changes -------------------------------------------------------------------------------------------------------

    async def changed(self, recipients: Sequence[str], tenants: Sequence[str]) -> None:
        """Tell the nodes. What was written before is read by whoever hears of it."""
        with border():
            head = await self._meta.find_one_and_update(
                {"_id": _HEAD}, {"$inc": {"version": 1}}, upsert=True, return_document=ReturnDocument.AFTER
            )
            version = head["version"] if head else 0  # an upsert always returns one
            when = datetime.fromtimestamp(self._clock.now_ms() / 1000, UTC)
            entry = {"_id": version, "rs": list(recipients), "ts": list(tenants), "when": when}
            await self._changes.insert_one(entry)

    async def version(self) -> int:
        """The newest."""
        with border():
            head = await self._meta.find_one({"_id": _HEAD})
        return int(head["version"]) if head else 0

    async def changes(self, after: int) -> list[Change]:
        """Those that are told, oldest first. One that is missing is still being written, or never will be."""
        with border():
            documents = await self._changes.find({"_id": {"$gt": after}}).sort("_id").to_list()
        return [Change(d["_id"], tuple(d["rs"]), tuple(d["ts"])) for d in documents]

    async def everybody(self) -> tuple[array[int], set[str]]:
        """Of whom anything is recorded: the first 64 bits of each `r`, and the tenants that have such recipients."""
        digests = array("Q")
        tenants: set[str] = set()
        for collection in (self._suppressions, self._preferences):
            with border():
                async for document in collection.find(_THERE, {"_id": 0, "r": 1, "t": 1}, batch_size=2_000):
                    digests.append(int(document["r"][:16], 16))
                    tenants.add(document["t"])
        return digests, tenants


def _derived(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


def _one(tenant: str, identity: str) -> Document:
    return {"_id": identity, "r": identity[:_DIGITS], "t": tenant} | _THERE


def _literal(fields: Document) -> Document:
    """For an update by expressions, in which texts with a $ would be names."""
    return {name: {"$literal": value} for name, value in fields.items()}


def _kind_of(item: NewSuppression) -> str:
    """Eight hex digits by which a recipient's suppressions of other reasons and senders differ."""
    return hashlib.blake2b(f"{item.reason.value}\x00{item.sender.casefold()}".encode(), digest_size=4).hexdigest()


def _fields(wishes: Wishes) -> Document:
    return {
        "time_zone": wishes.time_zone,
        "quiet_hours": quiet_document(wishes.quiet_hours),
        "sender": wishes.sender,
        "blocked": sorted(wishes.blocked),
        "source": wishes.source,
    }


def _suppression(document: Document) -> Suppression:
    return Suppression(
        id=document["_id"],
        recipient=document["masked"],
        reason=Reason(document["reason"]),
        classes=frozenset(document["classes"]),
        sender=document["sender"],
        source=document["source"],
        at=document["at"],
    )


def _preference(document: Document) -> Preference:
    return Preference(
        id=document["_id"],
        recipient=document["masked"],
        time_zone=document["time_zone"],
        quiet_hours=quiet_record(document["quiet_hours"]),
        sender=document["sender"],
        blocked=frozenset(document["blocked"]),
        source=document["source"],
        at=document["at"],
    )
