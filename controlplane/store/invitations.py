"""Set-up links: whoever holds one may set a password once. They let people in, and let them in again who forgot theirs.

`invitations`: `{_id: SHA-256 of the token, name ("" = whoever comes chooses it), role, tenant, by, at, until, used, forget}`.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from pymongo import ASCENDING, IndexModel

from controlplane.clock import Clock
from controlplane.domain.people import Invitation, Role
from controlplane.store.client import Database, Document, border
from controlplane.store.people import digest

__all__ = ["INVITATIONS", "Invitations"]

INVITATIONS = "invitations"
_LASTS_MS = 24 * 3_600_000
_REMEMBERED_MS = 30 * 24 * 3_600_000


class Invitations:
    """Everything raises StoreUnavailableError while MongoDB is away."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._invitations = database[INVITATIONS]
        self._clock = clock

    async def ensure_indexes(self) -> None:
        """Create what is missing."""
        with border():
            await self._invitations.create_indexes(
                [
                    IndexModel([("name", ASCENDING)], name="name"),
                    IndexModel([("forget", ASCENDING)], name="ttl", expireAfterSeconds=0),
                ]
            )

    async def make(self, name: str, role: Role, tenant: str, by: str) -> tuple[str, Invitation]:
        """(token, what it stands for). Former links for that name (or for nobody in particular) end with it."""
        token = secrets.token_urlsafe(32)
        now = self._clock.now_ms()
        document: Document = {
            "_id": digest(token),
            "name": name,
            "role": role.value,
            "tenant": tenant,
            "by": by,
            "at": now,
            "until": now + _LASTS_MS,
            "used": False,
            "forget": datetime.fromtimestamp((now + _REMEMBERED_MS) / 1000, UTC),
        }
        await self.withdraw(name)
        with border():
            await self._invitations.insert_one(document)
        return token, _invitation(document)

    async def find(self, token: str) -> Invitation | None:
        """What an unused link stands for; None for one that is used, over, or was never given."""
        with border():
            document = await self._invitations.find_one(self._unused(token))
        return _invitation(document) if document else None

    async def use(self, token: str) -> bool:
        """Whether it was unused until now."""
        with border():
            result = await self._invitations.update_one(self._unused(token), {"$set": {"used": True}})
        return result.modified_count == 1

    async def withdraw(self, name: str) -> None:
        """End the links of that name."""
        with border():
            await self._invitations.update_many({"name": name, "used": False}, {"$set": {"used": True}})

    async def withdraw_by(self, by: str) -> None:
        """End the links that this actor made (`domain.audit.person_actor`)."""
        with border():
            await self._invitations.update_many({"by": by, "used": False}, {"$set": {"used": True}})

    def _unused(self, token: str) -> Document:
        return {"_id": digest(token), "used": False, "until": {"$gt": self._clock.now_ms()}}


def _invitation(document: Document) -> Invitation:
    return Invitation(
        name=document["name"], role=Role(document["role"]), tenant=document["tenant"], until=document["until"]
    )
