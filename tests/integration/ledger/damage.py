"""A small real pair of ledgers to damage: fra with two logs and everything that happens to messages, iad with its own log; each mirrors and witnesses the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind
from controlplane.ledger.cures.case import Leader
from controlplane.ledger.note import Signer, derive
from controlplane.ledger.published import Published
from controlplane.ledger.publisher import Publisher
from controlplane.ledger.repair import Repair
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.sequencer import DamagedLogError, Sequencer
from controlplane.ledger.start import StartRule
from controlplane.ledger.trust import Trust
from controlplane.settings import Settings
from controlplane.store.ledger_scrub import ScrubStore
from controlplane.store.schema import TERMS
from tests.simulators.ledgers import Site, peer_of, site

QUARTER_MS = 92 * 86_400_000


class MovableClock(SystemClock):
    """The machine's clocks, some time ahead."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_ms / 1000


def prepare(site: Site) -> None:
    """Scrub, repair and a movable clock for a site."""
    site.clock = MovableClock()
    site.wire()
    site.store = ScrubStore(site.database)
    site.published = Published(site.store, site.clock)
    site.scrub = Scrub(site.store, site.copies, site.settings, site.clock)


async def lead(site: Site) -> Sequencer:
    """A new term, by the lease; the sequencer that has it, before its first round."""
    lease = await site.store.lease(site.dc)
    site.term = await site.store.take_lease(site.dc, lease, "test", "here", now_ms=0)
    await site.store.add_source("ledger", site.term)
    await site.append([], "ledger", site.term)
    return Sequencer(site.store, site.committers["ledger", site.term], site.settings, site.clock, term=site.term)


async def rounds(site: Site, sequencer: Sequencer) -> None:
    """Until nothing is new. The ledger's own events are written while it goes on."""
    committer = site.committers["ledger", site.term]
    site.clock.ahead_ms += 2_000  # sources are read once a second
    async with running(committer):
        await sequencer.open()
        while await sequencer.round():
            pass
    site.snapshots = [*getattr(site, "snapshots", []), await everything(site)]


async def everything(site: Site) -> dict[str, dict[Any, Any]]:
    """Collection → `_id` → document, of all that a ledger has."""
    return {
        name: {document["_id"]: document async for document in site.database[name].find()}
        for name in await site.database.list_collection_names()
    }


@asynccontextmanager
async def running(committer: Any) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(committer.run())
        try:
            yield
            await committer.drain()
        finally:
            task.cancel()


class Traffic:
    """Messages as they happen, from a seed."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.random = random.Random(seed)
        self.number = 0
        self.before_erasure: dict[str, Any] = {}

    def _accepted(self) -> Event:
        self.number += 1
        site, r = self.site, self.random
        data = {
            "to": f"+49151{r.randrange(10**8):08d}",
            "from": "Heliograph",
            "body": r.choice(["Ihr Code: 123456", 'Grüße, 世界 \u2028 "quoted"', "x" * r.randrange(300)]),
            "class": "otp",
            "encoding": "gsm7",
            "parts": r.choice([1, 1, 2]),
            "expires_at": 1_790_000_000_000 + self.number,
            "context": {"order": str(self.number)},
        }
        return Event(f"{'m' * 20}{self.number:06d}", 0, "sample", Kind.ACCEPTED, site.clock.now_ms(), data)

    def _next(self, before: Event) -> Event | None:
        site, r = self.site, self.random
        connector = r.choice(["sim-a", "sim-b"])
        if before.k == 0:
            if r.random() < 0.1:
                return site.then(before, Kind.CANCELLED, {}, reason="requested")
            parts = [[n + 1, f"c{self.number}.{before.mid[-4:]}.{n}"] for n in range(before.data["parts"])]
            data = {"route": "r1", "connector": connector, "attempt": 1, "part_ids": parts}
            cids = tuple(f"{connector}/{cid}" for _, cid in parts)
            return site.then(before, Kind.SUBMITTED, data, route="r1", cids=cids)
        if before.kind is Kind.SUBMITTED:
            if r.random() < 0.1:
                data = {"connector": connector, "attempt": 1, "parts": [1], "retry_at": 17}
                return site.then(before, Kind.DEFERRED, data, route="r1", reason="throttled")
            receipt = {"id": "a", "state": "DELIVRD", "error": "000", "done_date": "2611250312"}
            data = {"part": 1, "connector": connector, "receipt": receipt}
            return site.then(before, Kind.DELIVERED, data, reason="ü, \u20ac" if r.random() < 0.1 else None)
        return None

    async def run(self, count: int, node: str = "fra-1", epoch: int = 1, *, erase: int = 0) -> list[Event]:
        """So many messages, each with what follows; the last `erase` of them are erased."""
        site = self.site
        heads = await site.append([self._accepted() for _ in range(count)], node, epoch)
        stories = [[head] for head in heads if head]
        while drafts := [draft for story in stories if story and (draft := self._next(story[-1]))]:
            written = {event.mid: event for event in await site.append(drafts, node, epoch) if event}
            stories = [[*story, written[story[0].mid]] if story[0].mid in written else story for story in stories]
            drafts_mids = {draft.mid for draft in drafts}
            active = [story for story in stories if story[0].mid in drafts_mids]
            done = [story for story in stories if story[0].mid not in drafts_mids]
            stories = active
            self.finished = [*getattr(self, "finished", []), *done]
        self.finished = [*getattr(self, "finished", []), *stories]
        every = sorted((story for story in self.finished), key=lambda story: story[0].mid)
        self.finished = []
        for story in every[-erase:] if erase else []:
            data = {"status": "delivered", "class": "otp", "encoding": "gsm7", "parts": 1}
            await site.append([site.then(story[-1], Kind.ERASED, data)], node, epoch)
            async for document in site.database["events"].find({"mid": story[0].mid}):
                self.before_erasure[document["_id"]] = document
            await site.reader.erase(story[0].mid)
        return [story[0] for story in every]


async def build(fra: Site, iad: Site, *, first: int = 110, second: int = 120) -> None:
    """fra: two logs (a quarter ends between), two nodes, three terms, a skipped gap, a late event, erased messages. Both are mirrored and witnessed."""
    traffic = Traffic(fra, 7)
    fra.before_erasure = traffic.before_erasure
    fra.snapshots = []
    sequencer = await lead(fra)
    await traffic.run(first * 2 // 3, "fra-1", 1, erase=6)
    await rounds(fra, sequencer)
    await traffic.run(first // 3, "fra-2", 1)
    await rounds(fra, sequencer)
    # a term ends with a hole in its numbers, of which one event lands late
    late = await traffic.run(4, "fra-2", 1)
    hidden = await fra.database["events"].find_one(
        {"n": "fra-2", "q": (await fra.reader.last_sequence("fra-2", 1)) - 3}
    )
    assert late
    assert hidden
    await fra.database["events"].delete_one({"_id": hidden["_id"]})
    await fra.database[TERMS].update_one({"_id": "fra-2:1"}, {"$set": {"state": "closed"}})
    await rounds(fra, sequencer)
    fra.clock.ahead_ms += 100_000
    await rounds(fra, sequencer)
    await rounds(fra, sequencer)
    await fra.database["events"].insert_one(hidden)
    await fra.store.ask_late(sequencer.log.origin, [("fra-2", 1, hidden["q"])])
    await rounds(fra, sequencer)
    await exchange(fra, iad)
    sequencer = await lead(fra)
    fra.clock.ahead_ms += QUARTER_MS
    iad.clock.ahead_ms = fra.clock.ahead_ms
    await traffic.run(second // 2, "fra-1", 2, erase=4)
    await rounds(fra, sequencer)
    await exchange(fra, iad)
    await traffic.run(second // 2, "fra-1", 2)
    await rounds(fra, sequencer)
    other = Traffic(iad, 8)
    other.number = 500_000
    sequencer = await lead(iad)
    await other.run(12, "iad-1", 1, erase=1)
    await rounds(iad, sequencer)
    await exchange(fra, iad)
    for each in (fra, iad):
        each.clock.ahead_ms += 600_000  # erasures have long been carried out


async def exchange(fra: Site, iad: Site) -> None:
    """Everything that one has published is mirrored and cosigned by the other."""
    for here, there in ((fra, iad), (iad, fra)):
        if await there.store.logs(own=True, dc=there.dc):
            await here.catch_up(there)
        trust = Trust(here.settings)
        async with here.client(there) as client:
            witness = trust.cosigner_of(peer_of(there.dc), "witness")
            publisher = Publisher(here.store, here.published, client, witness, here.clock, here.forks)
            while await publisher.step():
                pass


def log_signer(site: Site, origin: str) -> Signer:
    return Signer.log(origin, derive(site.settings.ledger_seed, "log"))


@asynccontextmanager
async def repairing(site: Site, other: Site, *, online: bool = True) -> AsyncIterator[Repair]:
    """Repair as the leader's service wires it, with the other datacenter as its peer."""
    sequencer = Sequencer(site.store, site.committers["ledger", site.term], site.settings, site.clock, term=site.term)
    committer = site.committers["ledger", site.term]

    async def seal(reason: str, ended: Any) -> Any:
        with suppress(DamagedLogError):  # what is to be sealed is damaged
            await sequencer.open()
        return await sequencer.seal(reason, ended)

    urls = [] if online else ["http://127.0.0.1:9"]
    async with site.client(other, *urls) as client, running(committer):
        rule = StartRule(site.store, site.copies, site.settings, site.clock, site.forks, [client])
        leader = Leader(sequencer.record, committer.append, seal, lambda: rule.catch_up(site.term))
        made = Repair(site.store, site.copies, site.scrub, site.settings, site.clock, [client], leader, per_second=1e9)
        made.sequencer = sequencer
        yield made


@asynccontextmanager
async def damaged_pair(settings: Settings) -> AsyncIterator[tuple[Site, Site]]:
    async with site(settings, "fra") as fra, site(settings, "iad") as iad:
        fra.knows(peer_of("iad"))
        iad.knows(peer_of("fra"))
        prepare(fra)
        prepare(iad)
        async with fra.serving(), iad.serving():
            await build(fra, iad)
            yield fra, iad
