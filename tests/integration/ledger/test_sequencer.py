"""The sequencer over a real MongoDB: what nodes wrote is in the log once, in order, under signed checkpoints."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace

import pytest

from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.entries import event_of, place_of
from controlplane.ledger.merkle import root_of
from controlplane.ledger.note import Verifier, parse_note, verify
from controlplane.ledger.sequencer import DamagedLogError, Sequencer
from controlplane.ledger.tiles import WIDTH, decode_bundle, tile_hashes
from controlplane.store.committer import Committer
from controlplane.store.ledger import BUNDLES, LOGS, TILES, LedgerStore, StaleWriterError
from controlplane.store.schema import EVENTS, TERMS, ensure_indexes

QUARTER_MS = 92 * 86_400_000


class MovableClock(SystemClock):
    """The machine's clocks, some time ahead."""

    ahead_ms = 0

    def now_ms(self):
        return super().now_ms() + self.ahead_ms

    def monotonic(self):
        return super().monotonic() + self.ahead_ms / 1000


class Bed:
    """A database with nodes' committers and sequencers of successive terms."""

    def __init__(self, database, settings):
        self.database, self.settings, self.clock = database, settings, MovableClock()
        self.store = LedgerStore(database)
        self.group: asyncio.TaskGroup
        self.tasks = []
        self.terms = 0

    async def node(self, name="node-1", epoch=1, state="live"):
        await self.database[TERMS].insert_one({"_id": f"{name}:{epoch}", "n": name, "e": epoch, "state": state})
        committer = Committer(self.database, datacenter="local", node=name, epoch=epoch, clock=self.clock)
        self.tasks.append(self.group.create_task(committer.run()))
        return committer

    async def write(self, committer, count, first=0):
        drafts = [
            Event(
                f"{committer.node}-{committer.epoch}-{n}",
                0,
                "t",
                Kind.ACCEPTED,
                n,
                {"to": str(n), "body": "x" * (n % 90)},
            )
            for n in range(first, first + count)
        ]
        await asyncio.gather(*map(committer.append, drafts))

    async def sequencer(self, **options):
        self.terms += 1
        await self.store.add_source("ledger", self.terms)
        committer = Committer(self.database, datacenter="local", node="ledger", epoch=self.terms, clock=self.clock)
        self.tasks.append(self.group.create_task(committer.run()))
        made = Sequencer(self.store, committer, self.settings, self.clock, term=self.terms, **options)
        await made.open()
        return made

    async def entries(self, origin=None):
        """All entries, read back and verified against the signed checkpoint."""
        log = await self.store.log(origin) if origin else (await self.store.logs(own=True))[-1]
        found = []
        for index in range(-(-log.size // WIDTH)):
            found += decode_bundle(await self.store.bundle(log.origin, index))
        found = found[: log.size]
        note = parse_note(log.checkpoint)
        assert [one.name for one in verify(note, [Verifier.parse(log.vkey)])] == [log.origin]
        checkpoint = Checkpoint.parse(note.text)
        hashes = tile_hashes(found)
        assert (checkpoint.origin, checkpoint.size) == (log.origin, len(found))
        assert checkpoint.root == root_of([hashes[at : at + 32] for at in range(0, len(hashes), 32)])
        return found


@pytest.fixture
async def bed(database, settings):
    await ensure_indexes(database)
    settings = settings.model_copy(
        update={"ledger_key": type(settings.secret_key)(base64.b64encode(bytes(32)).decode())}
    )
    made = Bed(database, settings)
    await made.store.ensure_indexes()
    async with asyncio.TaskGroup() as made.group:
        yield made
        for task in made.tasks:
            task.cancel()


async def test_rounds(bed):
    one, two = await bed.node(), await bed.node("node-2")
    sequencer = await bed.sequencer()
    total = 0
    for count in (1, 254, 3, 700):
        await asyncio.gather(bed.write(one, count, total), bed.write(two, count, total))
        total += count
        while await sequencer.round():
            pass
    entries = [json.loads(entry) for entry in await bed.entries()]
    assert entries[0]["kind"] == "opened"
    for name in ("node-1", "node-2"):
        assert [entry["q"] for entry in entries if entry["n"] == name] == list(range(1, total + 1))
    assert await sequencer.round() == 0
    event = next(iter((await bed.store.events([("node-1-1-5", 0)])).values()))
    [run] = await bed.store.find_runs("local", "node-1", 1, event.q)
    raw = (await bed.entries())[run.index + event.q - run.q]
    assert raw == event.leaf
    assert event_of(raw, None, None).mid == "node-1-1-5"


async def test_a_gap_waits_and_is_skipped_when_its_term_is_over(bed):
    node = await bed.node()
    sequencer = await bed.sequencer()
    await bed.write(node, 5)
    await bed.database[EVENTS].delete_one({"n": "node-1", "q": 3})
    assert await sequencer.round() == 3  # opened, 1, 2
    assert await sequencer.round() == 0
    assert sequencer.gaps[("node-1", 1)][0] == 3
    await bed.database[TERMS].update_one({"_id": "node-1:1"}, {"$set": {"state": "closed"}})
    for _ in range(2):
        bed.clock.ahead_ms += 100_000  # what the node had under way may still come when its term is seen closed
        while await sequencer.round():
            pass
    entries = [json.loads(entry) for entry in await bed.entries()]
    assert [entry["q"] for entry in entries if entry["n"] == "node-1"] == [1, 2, 4, 5]
    assert [(e["ref"], e["reason"]) for e in entries if e["kind"] == "gap"] == [("node-1:1 3-3", "never_committed")]
    assert not sequencer.gaps


async def test_a_term_that_is_over_may_have_several_gaps(bed):
    """A batch that reached one of two shards leaves a gap at every other number: what stands behind each is sequenced, and the term is not complete before."""
    node = await bed.node()
    await bed.write(node, 9)
    await bed.database[EVENTS].delete_many({"n": "node-1", "q": {"$in": [2, 4, 6, 8]}})
    await bed.database[TERMS].update_one({"_id": "node-1:1"}, {"$set": {"state": "closed"}})
    sequencer = await bed.sequencer()
    assert await sequencer.round() == 2  # opened, 1
    bed.clock.ahead_ms += 1_000
    assert await sequencer.round() == 0
    bed.clock.ahead_ms += 100_000
    assert await sequencer.round() == 2  # that 2 is lost, 3
    assert await bed.store.completed() == {}
    while await sequencer.round():
        pass
    assert await bed.store.completed() == {("node-1", 1): 9}
    entries = [json.loads(entry) for entry in await bed.entries()]
    assert [entry["q"] for entry in entries if entry["n"] == "node-1"] == [1, 3, 5, 7, 9]
    assert [entry["ref"] for entry in entries if entry["kind"] == "gap"] == [f"node-1:1 {q}-{q}" for q in (2, 4, 6, 8)]


async def test_a_term_that_is_over_is_not_read_again_and_late_events_are_asked_for(bed):
    node = await bed.node(state="closed")
    await bed.write(node, 3)
    sequencer = await bed.sequencer()
    await sequencer.round()
    for _ in range(2):
        bed.clock.ahead_ms += 100_000
        await sequencer.round()
    assert await bed.store.completed() == {("node-1", 1): 3}
    await bed.write(node, 2, 3)
    bed.clock.ahead_ms += 2_000
    assert await sequencer.round() == 0
    await bed.store.ask_late(sequencer.log.origin, [("node-1", 1, 5), ("node-1", 1, 4)])
    bed.clock.ahead_ms += 2_000
    assert await sequencer.round() == 2
    assert (await bed.store.log(sequencer.log.origin)).late == ()
    assert [place_of(entry).q for entry in (await bed.entries())[-2:]] == [5, 4]
    assert await sequencer.round() == 0


async def test_a_new_leader_fences_the_former(bed):
    node = await bed.node()
    await bed.write(node, 300)
    former = await bed.sequencer()
    await former.round()
    await bed.write(node, 300, 300)
    successor = await bed.sequencer()
    with pytest.raises(StaleWriterError):
        await former.round()
    assert await successor.round() == 300
    await bed.write(node, 10, 600)
    with pytest.raises(StaleWriterError):
        await former.round()
    await successor.round()
    assert len(await bed.entries()) == 611


async def test_quarters_and_keys_end_a_log(bed):
    node = await bed.node()
    sequencer = await bed.sequencer()
    await bed.write(node, 10)
    await sequencer.round()
    bed.clock.ahead_ms = QUARTER_MS
    await bed.write(node, 10, 10)
    assert await sequencer.round() == 11
    other = base64.b64encode(b"k" * 32).decode()
    bed.settings = bed.settings.model_copy(update={"ledger_key": type(bed.settings.secret_key)(other)})
    sequencer = await bed.sequencer()
    await bed.write(node, 10, 20)
    assert await sequencer.round() == 11
    first, second, third = await bed.store.logs(own=True)
    assert (first.state, first.seal, first.next) == ("sealed", "quarter", second.origin)
    assert (second.state, second.seal, second.next) == ("sealed", "key", third.origin)
    assert third.origin == f"{second.origin}-2"
    assert third.vkey.partition("+")[0] == third.origin
    for log, before in ((second, first), (third, second)):
        entries = await bed.entries(log.origin)
        assert (
            json.loads(entries[0])["ref"] == f"{before.origin} {before.size} {base64.b64encode(before.root).decode()}"
        )
        assert len(entries) == 11


@pytest.mark.parametrize("collection", [TILES, BUNDLES])
async def test_nothing_is_signed_over_damage(bed, collection):
    node = await bed.node()
    sequencer = await bed.sequencer()
    await bed.write(node, 300)
    await sequencer.round()
    damaged = await bed.database[collection].find_one(
        {"_id": {"$regex": r"\|1$"}} if collection == BUNDLES else {"_id": {"$regex": r"\|0\|1$"}}
    )
    data = bytearray(damaged["data"])
    data[40] ^= 1
    await bed.database[collection].update_one({"_id": damaged["_id"]}, {"$set": {"data": bytes(data)}})
    with pytest.raises(DamagedLogError):
        await bed.sequencer()


async def test_drafts_that_were_damaged_on_their_way_are_not_signed(bed):
    node = await bed.node()
    await bed.write(node, 300)

    sequencer = await bed.sequencer()
    store = bed.store

    class Flipping(LedgerStore):
        async def stage(self, origin, ver, bundles, tiles, runs):
            index = max(bundles)
            data = bytearray(bundles[index])
            data[30] ^= 1
            await store.stage(origin, ver, {**bundles, index: bytes(data)}, tiles, runs)

    sequencer._store = Flipping(bed.database)
    with pytest.raises(DamagedLogError):
        await sequencer.round()
    assert (await bed.database[LOGS].find_one())["size"] == 0
    healthy = await bed.sequencer()
    assert await healthy.round() == 301
    assert len(await bed.entries()) == 301


async def test_a_commit_whose_answer_is_lost(bed):
    """Rounds go on where the outcome turns out to be ours."""
    node = await bed.node()
    await bed.write(node, 20)
    sequencer = await bed.sequencer()
    await sequencer.round()
    log = await bed.store.log(sequencer.log.origin)
    assert not await bed.store.commit(replace(log, size=0, checkpoint=""), log)
    assert await bed.store.commit(log, log)
