"""The start rule: a database that was restored signs nothing, gets back what it signed, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controlplane.domain.events import Kind
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.start import RestoredError, StartRule
from controlplane.ledger.trust import Trust
from controlplane.settings import Settings
from controlplane.store.ledger import LEASE, LEDGER_NODE
from controlplane.store.ledger_scrub import ScrubStore
from tests.integration.ledger.test_mirror import identical
from tests.integration.ledger.test_witness import Foreign, foreign, publisher
from tests.simulators.ledgers import Site, peer_of, site, stories, two_sites

__all__ = ["foreign"]


@pytest.fixture
async def sites(settings: Settings) -> AsyncIterator[tuple[Site, Site]]:
    async with two_sites(settings) as both:
        yield both


Snapshot = dict[str, list[dict[str, Any]]]


async def snapshot(of: Site) -> Snapshot:
    names = await of.database.list_collection_names()
    return {name: await of.database[name].find({}).to_list() for name in names}


async def restore(of: Site, kept: Snapshot) -> None:
    for name in await of.database.list_collection_names():
        await of.database[name].delete_many({})
        if kept.get(name):
            await of.database[name].insert_many(kept[name])
    of.committers.clear()
    of.wire()


def rule(of: Site, *clients: LedgerClient, witnesses: tuple[LedgerClient, ...] = ()) -> StartRule:
    return StartRule(of.store, of.copies, of.settings, of.clock, of.forks, clients, witnesses)


class TestRule:
    """Nothing is signed by a ledger that has signed more than it knows; nothing else keeps one from signing."""

    async def test_nobody_to_ask(self, settings):
        async with site(settings, "fra") as fra:
            assert (await rule(fra).allow()).state == "allowed"

    async def test_all_is_well(self, sites):
        fra, iad = sites
        async with fra.client(iad) as client:
            assert (await rule(fra, client).allow()).answered == ("iad",)  # the very first start
            await fra.messages(3)
            await fra.sequence()
            await iad.catch_up(fra)
            assert (await rule(fra, client).allow()).answered == ("iad",)
            await fra.messages(3)  # ahead of what the peer has
            await fra.sequence()
            assert (await rule(fra, client).allow()).against == ()

    @pytest.mark.parametrize("knows", ["mirror", "witness"])
    async def test_a_restored_snapshot_is_refused(self, sites, knows):
        fra, iad = sites
        await fra.messages(3)
        await fra.sequence()
        kept = await snapshot(fra)
        await fra.messages(3)
        log = (await fra.sequence()).log
        async with fra.client(iad) as client:
            if knows == "mirror":
                await iad.catch_up(fra)
            else:
                await publisher(fra, client, Trust(fra.settings).cosigner_of(peer_of("iad"), "witness")).step()
            await restore(fra, kept)
            start = rule(fra, client)
            with pytest.raises(RestoredError, match=f"{log.size} entries"):
                await start.allow()
            assert start.state == "refusing"
        (finding,) = await fra.store.findings("open")
        assert (finding.kind, finding.origin, finding.subject) == ("behind", log.origin, "iad")
        assert log.checkpoint.strip() in finding.detail

    async def test_a_lost_successor_and_a_lost_database_are_refused(self, sites):
        fra, iad = sites
        await fra.messages(3)
        await fra.sequence()
        kept = await snapshot(fra)
        log = (await fra.sequence(seal="key")).log
        await iad.catch_up(fra)
        async with fra.client(iad) as client:
            for each in (kept, {}):
                await restore(fra, each)
                with pytest.raises(RestoredError) as raised:
                    await rule(fra, client).allow()
                assert log.origin in {heard.origin for heard in raised.value.against}

    async def test_another_history_is_refused(self, settings, sites):
        fra, iad = sites
        await fra.messages(30)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        async with site(settings, "fra") as twin:
            twin.knows(peer_of("iad"))
            for count in (30, 30):  # of the same size, then larger
                await twin.messages(count)
                await twin.sequence()
                async with twin.client(iad) as client:
                    with pytest.raises(RestoredError) as raised:
                        await rule(twin, client).allow()
                assert raised.value.against[0].forked
            kinds = {finding.kind for finding in await twin.store.findings("open")}
            assert kinds == {"fork"}
            assert log.checkpoint.strip() in (await twin.store.findings("open"))[0].detail

    async def test_what_we_did_not_sign_does_not_count(self, sites):
        """A peer cannot keep us from signing with a checkpoint of its own making."""
        fra, iad = sites
        await fra.messages(3)
        await fra.sequence()
        await iad.catch_up(fra)
        (copy,) = await iad.store.logs(own=False)
        forged = copy.checkpoint.replace(f"\n{copy.size}\n", "\n999\n")
        await iad.database["ledger_logs"].update_one(
            {"_id": copy.origin}, {"$set": {"checkpoint": forged, "size": 999}}
        )
        async with fra.client(iad) as client:
            assert (await rule(fra, client).allow()).state == "allowed"

    async def test_nobody_answers(self, sites):
        fra, _ = sites
        await fra.messages(1)
        await fra.sequence()
        async with LedgerClient("iad", ["http://127.0.0.1:9"], None) as client:
            start = rule(fra, client)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await start.allow()
            assert start.state == "alone"
            bold = fra.settings.model_copy(update={"ledger_start_without_peers": True})
            start = StartRule(fra.store, fra.copies, bold, fra.clock, fra.forks, [client])
            assert (await start.allow()).silent == ("iad",)

    async def test_our_own_store_is_away(self, sites, monkeypatch):
        fra, iad = sites
        await fra.messages(1)
        await fra.sequence()
        await iad.catch_up(fra)
        await fra.messages(1)
        await fra.sequence()

        async def away(*_arguments):
            raise StoreUnavailableError("away")

        monkeypatch.setattr(fra.store, "tiles", away)
        async with fra.client(iad) as client:
            with pytest.raises(StoreUnavailableError):
                await rule(fra, client).allow()
        task = asyncio.current_task()
        assert not task.cancelling()

    async def test_one_answer_is_enough_and_all_are_heard(self, sites):
        fra, iad = sites
        await fra.messages(1)
        await fra.sequence()
        kept = await snapshot(fra)
        async with fra.client(iad) as client, LedgerClient("gru", ["http://127.0.0.1:9"], None) as silent:
            assert (await rule(fra, silent, client).allow()).silent == ("gru",)
            await fra.messages(1)
            await fra.sequence()
            await iad.catch_up(fra)
            await restore(fra, kept)
            with pytest.raises(RestoredError):
                await rule(fra, silent, client).allow()

    async def test_a_foreign_witness_knows(self, settings, foreign: Foreign):
        async with site(settings, "fra") as fra, LedgerClient("w", [foreign.url], None) as client:
            start = rule(fra, witnesses=(client,))
            assert (await start.allow()).answered == ("w",)  # shown the empty log
            empty = await snapshot(fra)
            await fra.messages(3)
            await fra.sequence()
            await publisher(fra, client, foreign.signer.verifier).step()
            assert (await start.allow()).answered == ("w",)
            kept = await snapshot(fra)
            await fra.messages(3)
            await fra.sequence()
            assert (await start.allow()).answered == ("w",)
            await publisher(fra, client, foreign.signer.verifier).step()
            for each in (kept, empty):
                await restore(fra, each)
                with pytest.raises(RestoredError):
                    await start.allow()


class TestCatchUp:
    """After a restore everything that was signed is there again, and the log goes on as if nothing had been."""

    async def back(self, fra: Site, iad: Site) -> int:
        async with fra.client(iad) as client:
            start = rule(fra, client)
            with pytest.raises(RestoredError):
                await start.allow()
            restored = await start.catch_up(fra.term + 1)
            assert (await start.allow()).state == "allowed"
        assert await fra.store.findings("open") == []
        return restored

    async def test_from_a_snapshot(self, sites):
        fra, iad = sites
        await fra.messages(300)
        old = (await fra.sequence()).log
        kept = await snapshot(fra)
        events = await fra.messages(500)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        before = await stories(fra)
        await restore(fra, kept)
        assert await self.back(fra, iad) == log.size - old.size
        assert await stories(fra) == before
        again = await fra.store.log(log.origin)
        assert (again.size, again.root, again.frontier) == (log.size, log.root, log.frontier)
        assert {key: q for key, q in log.marks.items() if q} == {key: q for key, q in again.marks.items() if q}
        assert (await fra.reader.load(events[7].mid))[0].data == events[7].data
        await fra.messages(20)
        await fra.sequence()
        await iad.catch_up(fra)
        await identical(fra, iad, log.origin)
        assert await iad.store.findings() == []

    async def test_from_nothing(self, sites):
        fra, iad = sites
        await fra.messages(10)
        first = (await fra.sequence()).log
        await fra.messages(3)
        await fra.sequence(seal="key")
        await fra.messages(10)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        before = await stories(fra)
        await restore(fra, {})
        fra.term = 0  # as the lease says it, which is gone as well
        await self.back(fra, iad)
        assert await stories(fra) == before
        logs = await fra.store.logs(own=True)
        assert [(each.state, each.next, each.previous) for each in logs] == [
            ("sealed", log.origin, ""),
            ("open", "", first.origin),
        ]
        sequencer = await fra.sequence()
        assert sequencer.log.origin == log.origin
        await fra.append([fra.accepted()], epoch=2)
        await fra.sequence()
        await iad.catch_up(fra)
        for each in logs:
            await identical(fra, iad, each.origin)

    async def test_epochs_and_terms_are_not_used_again(self, sites):
        """And messages of terms that the snapshot does not know, or takes for settled, are adopted."""
        fra, iad = sites
        await fra.store.take_lease("fra", None, "ledger-1", "host", now_ms=0)
        await fra.messages(3)
        await fra.sequence()
        kept = await snapshot(fra)
        await fra.append([fra.accepted()])
        await fra.append([fra.accepted()], node="node-2", epoch=7)
        await fra.append([fra.accepted()], node=LEDGER_NODE, epoch=9)
        await fra.sequence()
        await iad.catch_up(fra)
        await restore(fra, kept)
        await self.back(fra, iad)
        assert (await fra.store.lease("fra"))["term"] == 9
        terms = {term["_id"]: term["state"] async for term in fra.database["terms"].find({})}
        assert terms["node-1:1"] == terms["node-2:7"] == "released"
        assert terms["ledger:9"] == "closed"

    async def test_killed_on_the_way(self, sites, monkeypatch):
        fra, iad = sites
        await fra.messages(3)
        await fra.sequence()
        kept = await snapshot(fra)
        await fra.messages(600)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        before = await stories(fra)
        await restore(fra, kept)
        monkeypatch.setattr("controlplane.ledger.start._LIMIT", 200)
        pull, count = LedgerClient.pull, 0

        async def some(self, ask):
            nonlocal count
            count += 1
            if count % 3 == 0:
                raise PeerError("cut")
            return await pull(self, ask)

        monkeypatch.setattr(LedgerClient, "pull", some)
        async with fra.client(iad) as client:
            for _ in range(10):
                try:
                    await rule(fra, client).catch_up(fra.term + 1)
                    break
                except PeerError:
                    fra.wire()
            assert (await rule(fra, client).allow()).state == "allowed"
        monkeypatch.undo()
        assert count > 4
        assert await stories(fra) == before
        again = await fra.store.log(log.origin)
        assert (again.size, again.root, again.checkpoint) == (log.size, log.root, log.checkpoint)
        await fra.append([fra.accepted()], epoch=3)
        await fra.sequence()
        await iad.catch_up(fra)
        await identical(fra, iad, log.origin)

    async def test_drafts_of_the_snapshot_are_overwritten(self, sites):
        """The snapshot was taken between stage and commit, and the round went another way afterwards."""
        fra, iad = sites
        await fra.messages(10)
        await fra.sequence()
        await fra.messages(4)
        stop = RuntimeError("killed")

        def at(step: str) -> None:
            if step == "checked":
                raise stop

        sequencer = await fra.sequencer(at=at)
        with pytest.raises(RuntimeError):
            await sequencer.round()
        kept = await snapshot(fra)
        await fra.append([fra.accepted()], node="node-0")
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        await restore(fra, kept)
        await self.back(fra, iad)
        await fra.append([fra.accepted()], epoch=3)
        await fra.sequence()
        await iad.catch_up(fra)
        await identical(fra, iad, log.origin)

    @pytest.mark.parametrize("shared", [0, 1])
    async def test_own_stories_keep_their_names(self, sites, shared):
        """The peer's story of a message is mirrored into the restored database first: it makes room when the own one comes back."""
        fra, iad = sites
        mid = "2" * 26
        kept = await snapshot(fra)
        if shared:  # accepted in fra alone; both wrote to it while they were apart
            (event,) = await fra.append([fra.accepted(mid)])
            await fra.sequence()
            kept = await snapshot(fra)
            await iad.catch_up(fra)
            heads = {fra: event, iad: event}
        else:
            heads = {
                each: (await each.append([each.accepted(mid, to=to)]))[0] for each, to in ((fra, "+491"), (iad, "+492"))
            }
        written = {}
        for each in sites:
            written[each] = await each.append([each.then(heads[each], Kind.CANCELLED, {"by": each.dc})])
            written[each] += await each.append([each.then(written[each][0], Kind.FEEDBACK, {"outcome": each.dc})])
            await each.sequence()
        await fra.catch_up(iad)
        await iad.catch_up(fra)
        before = await stories(fra)
        assert {f"{mid}:{shared}", f"{mid}@iad:{shared}"} <= before.keys()
        await restore(fra, kept)
        await fra.catch_up(iad)
        assert (await fra.database["events"].find_one({"_id": f"{mid}:{1}"}))["dc"] == "iad"
        await self.back(fra, iad)
        assert await stories(fra) == before
        assert [e.leaf for e in (await fra.reader.load(mid))[1:]] == [e.leaf for e in written[fra]]
        assert [e.leaf for e in (await fra.reader.load(f"{mid}@iad"))[1:]] == [e.leaf for e in written[iad]]
        store = ScrubStore(fra.database)
        await fra.database[LEASE].insert_one(
            {"_id": "fra", "term": fra.term + 1}
        )  # as the leader that caught up had it
        assert await Scrub(store, fra.copies, fra.settings, fra.clock).verify_all() == []
        (after,) = await iad.append([iad.then(written[iad][1], Kind.ERASED, {"status": "cancelled"})])
        await iad.reader.erase(mid)
        await iad.sequence()
        await fra.catch_up(iad)
        assert (await fra.reader.load(f"{mid}@iad"))[-1].leaf == after.leaf
        here = [e.data for e in await fra.reader.load(mid)]
        assert here == [None] * 3 if shared else here[-1] == {"outcome": "fra"}
        assert await Scrub(store, fra.copies, fra.settings, fra.clock).verify_all() == []

    async def test_erased_stays_erased(self, sites):
        fra, iad = sites
        (event,) = await fra.append([fra.accepted()])
        (later,) = await fra.append([fra.then(event, Kind.FAILED, {})])
        await fra.sequence()
        kept = await snapshot(fra)
        await fra.append([fra.then(later, Kind.ERASED, {"status": "failed"})])
        await fra.reader.erase(event.mid)
        await fra.sequence()
        await iad.catch_up(fra)
        await restore(fra, kept)
        assert (await fra.reader.load(event.mid))[0].data is not None
        await self.back(fra, iad)
        assert [each.data for each in await fra.reader.load(event.mid)] == [None, None, {"status": "failed"}]
