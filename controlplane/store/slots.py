"""Bind slots: where a carrier allows N sessions for the whole account, N slot documents say which node may hold one.

`{_id: "<connector>/<number>", by, beat, asked}`. As with terms, nobody compares wall clocks: a slot is free when its holder's beat has stood still for
the lease and the margin on the looker's own clock. A node that has messages for the account and no slot asks for one (`asked`); whoever has held a slot
for a while then gives it up, so that the nodes take turns and no message waits for ever behind another node's bind.
"""

from __future__ import annotations

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from controlplane.clock import Clock
from controlplane.store.client import Database, border
from controlplane.store.leases import Lease

__all__ = ["Slots"]

_RESERVED_SECONDS = 4.0
"""For so long a slot that was given up is left to who asked for it."""


class Slots:
    """One per node."""

    def __init__(self, database: Database, lease: Lease, clock: Clock) -> None:
        self._slots = database["bind_slots"]
        self._lease = lease
        self._clock = clock
        self._seen: dict[str, tuple[str, int, float]] = {}
        self._asked: dict[str, str] = {}
        """Slot → who asked for it last, as `keep` saw it."""

    @property
    def safe_seconds(self) -> float:
        """For how long after a heartbeat the slot is surely ours."""
        return self._lease.seconds - self._lease.margin

    async def take(self, connector: str, limit: int) -> str | None:
        """A free slot of this account, now ours; None when others hold them all."""
        now = self._clock.monotonic()
        silence = self._lease.seconds + self._lease.margin
        with border():
            for number in range(limit):
                slot = f"{connector}/{number}"
                document = await self._slots.find_one({"_id": slot})
                if document is None:
                    try:
                        await self._slots.insert_one({"_id": slot, "by": self._lease.id, "beat": 0})
                    except DuplicateKeyError:
                        continue
                    return slot
                by, beat = document["by"], document["beat"]
                seen = self._seen.get(slot)
                if seen is None or seen[:2] != (by, beat):
                    self._seen[slot] = (by, beat, now)
                    seen = self._seen[slot]
                waited = now - seen[2]
                others = document.get("asked", "") not in ("", self._lease.id)
                if (
                    by == self._lease.id
                    or (by and waited < silence)
                    or (not by and others and waited < _RESERVED_SECONDS)
                ):
                    continue
                result = await self._slots.update_one(
                    {"_id": slot, "by": by, "beat": beat},
                    {"$set": {"by": self._lease.id, "asked": ""}, "$inc": {"beat": 1}},
                )
                if result.matched_count:
                    return slot
        return None

    async def keep(self, slot: str) -> bool:
        """One heartbeat; False when the slot, or the lease over this node, is no longer ours."""
        with border():
            document = await self._slots.find_one_and_update(
                {"_id": slot, "by": self._lease.id}, {"$inc": {"beat": 1}}, return_document=ReturnDocument.AFTER
            )
        self._asked[slot] = document.get("asked", "") if document else ""
        return document is not None and not self._lease.fenced

    def asked(self, slot: str) -> bool:
        """Whether another node wants the slot, as of the last `keep`."""
        return self._asked.get(slot, "") not in ("", self._lease.id)

    async def ask(self, connector: str, limit: int) -> None:
        """Say that this node has messages for the account and no slot: for any one that nobody has asked for yet."""
        with border():
            for number in range(limit):
                wanted = {"_id": f"{connector}/{number}", "by": {"$nin": ["", self._lease.id]}}
                unasked = {"$or": [{"asked": {"$exists": False}}, {"asked": {"$in": ["", self._lease.id]}}]}
                result = await self._slots.update_one(wanted | unasked, {"$set": {"asked": self._lease.id}})
                if result.matched_count:
                    return

    async def release(self, slot: str) -> None:
        """Another node may have it."""
        with border():
            await self._slots.update_one({"_id": slot, "by": self._lease.id}, {"$set": {"by": ""}, "$inc": {"beat": 1}})
