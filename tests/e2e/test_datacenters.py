"""Two datacenters, real processes, 100 ms apart: each answers for the other's messages, goes on alone, and cannot be put back in time unseen.

Figures that these tests print come from whatever machine they run on; `bench` runs the same measurements at their full size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.simulators.datacenters import (
    FINAL,
    Datacenter,
    Load,
    events_of,
    figures,
    folds,
    load,
    measure_latency,
    measure_partition,
    quiet,
    two_datacenters,
    verify,
)

RATE = 150
SECONDS = 8.0
CUT_SECONDS = 8.0


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Datacenter, Datacenter]]:
    async with two_datacenters(tmp_path) as pair:
        yield pair


async def same_everywhere(fra: Datacenter, iad: Datacenter) -> int:
    """Every event and every message is the same in both, and every log's root follows from its entries in both; how many messages."""
    here, there = await events_of(fra.database), await events_of(iad.database)
    differing = [
        (here.get(each), there.get(each)) for each in here.keys() | there.keys() if here.get(each) != there.get(each)
    ]
    assert not differing, (len(here), len(there), len(differing), differing[:5])
    messages = folds(here)
    assert messages == folds(there)
    for each in (fra, iad):
        for dc in ("fra", "iad"):
            assert await verify(each, dc)
        assert await each.store.findings("open") == []
    assert {message.status.value for message in messages.values()} <= FINAL
    return len(messages)


class TestTwoDatacenters:
    """What is accepted in one is readable in the other, with everything that becomes of it."""

    async def test_readable_in_the_other(self, both):
        fra, iad = both
        found = await measure_latency(fra, iad, RATE, SECONDS, sample=30)
        await quiet(fra, iad)
        assert found["samples"] > 10
        assert found["max_s"] < 30
        assert await same_everywhere(fra, iad) == sum(found["accepted"])
        for each, other in ((fra, iad), (iad, fra)):
            log = await each.log()
            cosigned = {(item.role, item.cosigner): item.size for item in await each.store.cosignatures(log.origin)}
            name = f"sms.example/ledger/{other.name}"
            assert cosigned["mirror", f"{name}/mirror"] == log.size
            async with asyncio.timeout(15):
                while cosigned.get(("witness", f"{name}/witness")) != log.size:
                    await asyncio.sleep(0.2)
                    cosigned = {(i.role, i.cosigner): i.size for i in await each.store.cosignatures(log.origin)}

    async def test_a_partition_under_load(self, both):
        fra, iad = both
        found = await measure_partition(fra, iad, RATE, CUT_SECONDS)
        assert min(found["accepted_while_cut"]) > RATE * CUT_SECONDS / 3  # both went on
        assert found["moved_per_missing"] <= 1.05
        assert await same_everywhere(fra, iad) > 0


class TestRestored:
    """A datacenter's database is put back to an older state: its ledger signs nothing, fetches what it had signed from the other, and goes on."""

    async def test_refuses_then_repairs_then_goes_on(self, both):
        fra, iad = both
        first = Load(fra, iad, 50)
        async with load(first):
            await asyncio.sleep(2)
        await quiet(fra, iad)
        kept = await fra.snapshot()
        await fra.ready(fra.base)
        then = Load(fra, iad, 100)
        async with load(then):
            await asyncio.sleep(3)
        await quiet(fra, iad)
        signed = await iad.log(dc="fra")
        for role in ("ledger", "node"):
            await fra.end(role)
        await fra.restore(kept)
        restored = await fra.log()
        assert restored.size < signed.size
        await iad.line.sever()
        await fra.spawn("node")
        await fra.spawn("ledger")
        await fra.ready(fra.base)
        alone = Load(fra, iad, 20)
        async with load(alone):
            await asyncio.sleep(4)
        assert alone.accepted  # sending goes on
        async with asyncio.timeout(30):
            while not fra.said("ledger", "start_waits_for_peers"):
                await asyncio.sleep(0.2)
        assert (await fra.log()).checkpoint == restored.checkpoint
        iad.line.mend()
        await quiet(fra, iad)
        assert any(entry["state"] == "refusing" for entry in fra.said("ledger", "start_rule"))
        assert fra.said("ledger", "log_caught_up")
        log = await fra.log()
        assert log.size > signed.size
        figures("restored", lost=signed.size - restored.size, back=len(fra.said("ledger", "log_caught_up")))
        sent = first.accepted + then.accepted + alone.accepted
        assert await same_everywhere(fra, iad) == len(sent)
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {fra.made.api_key}"}) as http:
            for mid in sent[:: max(1, len(sent) // 50)]:
                async with http.get(f"{fra.base}/v1/messages/{mid}") as answer:
                    assert (await answer.json())["status"] in FINAL
