"""Who is logged in where. The cookie holds 256 random bits; only their SHA-256 is stored.

`sessions`: `{_id: digest, handle (names it to its owner), person, stage, secret (sealed: of an authenticator that is being set up), at, seen, until,
address, agent, forget}`. A session ends after 30 minutes without a request, and 8 hours after its login, whatever happens.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime

from pymongo import ASCENDING, DESCENDING, IndexModel

from controlplane.clock import Clock
from controlplane.domain.people import Person, Session, Stage
from controlplane.ids import token
from controlplane.store.client import Database, Document, border
from controlplane.store.people import PEOPLE, digest, person_of
from controlplane.store.seal import Seal

__all__ = ["SESSIONS", "Sessions"]

SESSIONS = "sessions"
_IDLE_MS = 30 * 60_000
_ABSOLUTE_MS = 8 * 3_600_000
_HALF_MS = 10 * 60_000
"""How long somebody may take between the password and the second factor."""
_TOUCH_MS = 60_000


class Sessions:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, seal: Seal, clock: Clock) -> None:
        self._sessions = database[SESSIONS]
        self._people = database[PEOPLE]
        self._seal = seal
        self._clock = clock

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._sessions.create_indexes(
                [
                    IndexModel([("person", ASCENDING), ("seen", DESCENDING)], name="person"),
                    IndexModel([("forget", ASCENDING)], name="ttl", expireAfterSeconds=0),
                ]
            )

    async def begin(self, person: str, stage: Stage, *, address: str, agent: str, former: str = "") -> str:
        """A new session's cookie; the session of the `former` cookie is over with it."""
        cookie = secrets.token_urlsafe(32)
        now = self._clock.now_ms()
        until = now + (_ABSOLUTE_MS if stage is Stage.OPEN else _HALF_MS)
        await self.end(former)
        with border():
            await self._sessions.insert_one(
                {
                    "_id": digest(cookie),
                    "handle": token("ses", 8),
                    "person": person,
                    "stage": stage.value,
                    "secret": "",
                    "at": now,
                    "seen": now,
                    "until": until,
                    "address": address,
                    "agent": agent[:200],
                    "forget": datetime.fromtimestamp(until / 1000, UTC),
                }
            )
        return cookie

    async def visit(self, cookie: str, *, used: bool = True) -> tuple[Session, Person] | None:
        """Whose session it is, as they are now; None when it is over, or they are gone or disabled. `used`: somebody did something, it is not idle."""
        now = self._clock.now_ms()
        with border():
            document = await self._sessions.find_one({"_id": digest(cookie)})
            if document is None or document["until"] <= now or document["seen"] + _IDLE_MS <= now:
                return None
            person = await self._people.find_one({"_id": document["person"]})
            if person is None or not person["enabled"]:
                return None
            if used and document["seen"] + _TOUCH_MS <= now:
                await self._sessions.update_one({"_id": document["_id"]}, {"$max": {"seen": now}})
        return self._session(document), person_of(person)

    async def keep_secret(self, cookie: str, secret: str) -> None:
        """Remember the secret of an authenticator until its first code proves it; "" forgets it."""
        sealed = self._seal.seal(secret) if secret else ""
        with border():
            await self._sessions.update_one({"_id": digest(cookie)}, {"$set": {"secret": sealed}})

    async def of(self, person: str) -> list[Session]:
        """The open ones, newest first."""
        now = self._clock.now_ms()
        query = {"person": person, "stage": Stage.OPEN.value, "until": {"$gt": now}, "seen": {"$gt": now - _IDLE_MS}}
        with border():
            documents = await self._sessions.find(query).sort("seen", DESCENDING).limit(100).to_list()
        return [replace(self._session(document), secret="") for document in documents]

    async def end(self, cookie: str) -> None:
        """Log out."""
        if cookie:
            with border():
                await self._sessions.delete_one({"_id": digest(cookie)})

    async def end_one(self, person: str, handle: str) -> bool:
        """End a session of theirs by its handle; whether there was one."""
        with border():
            return (await self._sessions.delete_one({"person": person, "handle": handle})).deleted_count == 1

    async def end_all(self, person: str, *, but: str = "") -> int:
        """End all sessions of theirs, but the one with the handle `but`; how many."""
        with border():
            return (await self._sessions.delete_many({"person": person, "handle": {"$ne": but}})).deleted_count

    def _session(self, document: Document) -> Session:
        return Session(
            handle=document["handle"],
            person=document["person"],
            stage=Stage(document["stage"]),
            at=document["at"],
            seen=document["seen"],
            until=document["until"],
            address=document["address"],
            agent=document["agent"],
            secret=self._seal.open(document["secret"]) if document["secret"] else "",
        )
