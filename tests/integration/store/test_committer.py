"""Group commit over a real MongoDB: who wins an ordinal, and that the sequence has no hole for those who lose it."""

from __future__ import annotations

import asyncio

from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind
from controlplane.store.committer import Committer
from controlplane.store.schema import EVENTS


async def test_two_of_one_batch_with_one_id(database):
    """One Idempotency-Key twice at once: one is accepted, and only one, or nobody would dispatch the message."""
    committer = Committer(database, datacenter="local", node="n", epoch=1, clock=SystemClock())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(committer.run())
        drafts = [Event("m", 0, "t", Kind.ACCEPTED, at, {}) for at in range(3)]
        outcomes = await asyncio.gather(*map(committer.append, drafts))
        await committer.drain()
        running.cancel()
    assert [outcome is None for outcome in outcomes] == [False, True, True]
    stored = await database[EVENTS].find({"n": "n"}).sort("q", 1).to_list()
    assert [(document["q"], document["kind"]) for document in stored] == [(1, "accepted"), (2, "void"), (3, "void")]
