"""Statistics of real messages: counted once, kept over a restart, seen by the tenant whose they are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, fold
from controlplane.domain.statistics import WIDTH
from controlplane.ledger.exchange import Exchange, StatisticsExchange
from controlplane.store.node_states import NODE_STATES
from controlplane.store.routing_states import RoutingStates
from controlplane.store.statistics import HOUR, MINUTE, STATISTICS, Bunch, Statistics
from controlplane.telemetry.statistics import Recorder
from tests.simulators.ledgers import two_sites
from tests.simulators.node import running_node


async def _read(node, query="", **kwargs):
    status, answer = await node.call("GET", f"/v1/statistics{query}", **kwargs)
    assert status == 200, answer
    return answer


def _row(**counts):
    row = [0] * WIDTH
    row[0], row[7] = counts.get("accepted", 0), counts.get("delivered", 0)
    return row


class TestOfMessages:
    """What is counted is what happened."""

    async def test_the_funnel_by_route_and_class(self, node, carriers):
        await node.connect(await carriers(), "good", price=7, prefixes=("49",))
        await node.connect(await carriers(), "bad", prefixes=("44",))
        for cls in ("otp", "otp", "marketing"):
            await node.reaches((await node.send(**{"class": cls}))["id"], "delivered")
        await node.reaches((await node.send(to="+447700900004"))["id"], "failed")
        await node.node.watch.recorder.flush()
        found = await _read(node)
        total = found["total"]
        assert (total["accepted"], total["submitted"], total["delivered"], total["failed"], total["refused"]) == (
            4,
            3,
            3,
            1,
            1,
        )
        assert (total["price"], total["delivery_rate"], total["in_5s"]) == ({"EUR": 21}, 0.75, 3)
        by_route = {series["key"]: series["total"] for series in found["data"]}
        assert (by_route[None]["accepted"], by_route["good"]["delivered"], by_route["bad"]["failed"]) == (4, 3, 1)
        assert by_route["good"]["delivery_seconds"]["p95"] <= 5
        assert sum(point["delivered"] for point in found["points"]) == 3
        classes = {series["key"]: series["total"] for series in (await _read(node, "?by=class"))["data"]}
        assert (classes["otp"]["delivered"], classes["marketing"]["delivered"], classes["transactional"]["failed"]) == (
            2,
            1,
            1,
        )
        hours = await _read(
            node, "?step=hour&since=" + (datetime.now(UTC) - timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        assert hours["total"] == total
        assert (await _read(node, "?route=good"))["total"]["failed"] == 0

    async def test_a_tenant_sees_its_own(self, node, carriers):
        await node.connect(await carriers(), "good")
        await node.reaches((await node.send())["id"], "delivered")
        await node.node.watch.recorder.flush()
        assert (await _read(node, key=node.other_key))["total"]["accepted"] == 0
        assert (await _read(node, "?tenant=sample", key=node.other_key))["total"]["accepted"] == 0
        assert (await _read(node, key=node.admin_key))["total"]["accepted"] == 1
        assert (await _read(node, "?tenant=other", key=node.admin_key))["total"]["accepted"] == 0
        by_tenant = await _read(node, "?by=tenant", key=node.admin_key)
        assert [series["key"] for series in by_tenant["data"]] == ["sample"]

    async def test_a_restart_loses_nothing_and_late_receipts_count(self, settings, database, carriers):
        carrier = await carriers(receipt_ms="2500")
        async with running_node(settings) as first:
            await first.seed()
            await first.connect(carrier, "good")
            mid = (await first.send())["id"]
            await first.reaches(mid, "submitted")
        async with running_node(settings) as again:
            again.key = first.key
            await again.reaches(mid, "delivered")
            for _ in range(2):  # a second write of the same counts changes nothing
                await again.node.watch.recorder.flush()
                again.node.watch.recorder._dirty |= set(again.node.watch.recorder._minutes)
            total = (await _read(again))["total"]
            assert (total["accepted"], total["submitted"], total["delivered"]) == (1, 1, 1)

    async def test_what_is_wrong_with_a_query(self, node):
        status, problem = await node.call("GET", "/v1/statistics?since=2030-01-01T00:00:00Z&until=2029-01-01T00:00:00Z")
        assert (status, problem["errors"][0]["pointer"]) == (422, "since")
        status, problem = await node.call("GET", "/v1/statistics?since=2020-01-01T00:00:00Z")
        assert (status, problem["errors"][0]["pointer"]) == (422, "step")


class TestStore:
    """Documents of different terms add, those of one term replace each other, and a peer speaks for itself only."""

    @pytest.fixture
    async def statistics(self, database):
        found = Statistics(database, datacenter="a")
        await found.ensure_indexes()
        return found

    async def test_terms_add_and_repeats_do_not(self, statistics):
        key = ("r", "otp", "EUR")
        for term, delivered in (("n1:1", 2), ("n1:1", 3), ("n1:2", 4), ("n2:1", 5)):
            await statistics.save(term, [Bunch(MINUTE, 600, "t", {key: _row(delivered=delivered)})], 1)
        (one,) = await statistics.series(since=600, until=660, step=60, by="route", tenant="t")
        assert (one.key, one.at, one.counts["delivered"]) == ("r", 600, 12)

    async def test_steps_begin_at_since(self, statistics):
        bunches = [Bunch(MINUTE, at, "t", {("r", "otp", "EUR"): _row(accepted=1)}) for at in range(600, 1200, 60)]
        await statistics.save("n:1", bunches, 1)
        found = await statistics.series(since=600, until=1200, step=300, by="class", tenant=None)
        assert [(one.at, one.counts["accepted"]) for one in found] == [(600, 5), (900, 5)]

    async def test_all_tenants_are_the_sum_of_each(self, statistics):
        key = ("r", "otp", "EUR")
        for term in ("n1:1", "n2:1"):
            bunches = [Bunch(MINUTE, 600, tenant, {key: _row(delivered=n)}) for n, tenant in enumerate("abc", 1)]
            await statistics.save(term, bunches, 1)
        asked = {"since": 600, "until": 660, "step": 60, "tenant": None}
        (one,) = await statistics.series(**asked, by="route")
        each = await statistics.series(**asked, by="tenant")
        assert one.counts["delivered"] == 12
        assert {found.key: found.counts["delivered"] for found in each} == {"a": 2, "b": 4, "c": 6}

    async def test_copies_for_another_datacenter(self, statistics, database):
        await statistics.save("n:1", [Bunch(HOUR, 3_600, "t", {("r", "otp", "EUR"): _row(accepted=3)})], 500)
        told = await statistics.changed_since(500, 10)
        assert await statistics.changed_since(501, 10) == []
        other = Statistics(database, datacenter="b")
        assert await other.newest_of("a") == 500
        await other.copy("a", told)
        (one,) = await other.series(since=3_600, until=7_200, step=3_600, by="datacenter", tenant=None)
        assert (one.key, one.counts["accepted"]) == ("a", 3)
        with pytest.raises(ValueError, match="statistics of"):
            await other.copy("c", told)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"at": 2**63},
            {"at": 2**60},
            {"at": 253_402_300_799},
            {"at": -1},
            {"at": True},
            {"changed": 2**63},
            {"step": 61},
            {"t": None},
            {"_id": 7},
            {"rows": [{"route": "r", "class": "otp", "currency": "EUR", "accepted": 2**63}]},
            {"rows": [{"route": "r", "class": "otp", "currency": "EUR", "accepted": -1}]},
            {"rows": [{"route": "r", "class": "otp", "currency": "EUR", "accepted": "many"}]},
            {"rows": [{"route": "r", "class": "otp", "currency": "EUR", 7: 1}]},
            {"rows": [{"route": "r", "class": "otp"}]},
        ],
        ids=str,
    )
    async def test_a_peer_that_tells_nonsense(self, statistics, database, wrong):
        await statistics.save("n:1", [Bunch(HOUR, 3_600, "t", {("r", "otp", "EUR"): _row(accepted=3)})], 500)
        told = (await statistics.changed_since(0, 10))[0]
        other = Statistics(database, datacenter="b")
        await database[STATISTICS].delete_many({})
        with pytest.raises(ValueError, match="not a document of statistics"):
            await other.copy("a", [told | wrong])
        await other.copy("a", [told | {"more": 1}])
        (kept,) = await database[STATISTICS].find({}, {"expires": 0}).to_list()
        assert kept == told


class _Clock(SystemClock):
    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class _Slow(Statistics):
    """Something happens while it writes."""

    meanwhile = staticmethod(lambda: None)

    async def save(self, *args):
        await super().save(*args)
        self.meanwhile()


class TestRecorder:
    """The counts of a minute are whole, however its events and its writes fall."""

    async def test_events_that_come_after_their_minute_was_settled(self, node, carriers, settings):
        """They count in the oldest minute that is still open: what is written of a settled one never shrinks."""
        recorder = node.node.watch.recorder
        await node.connect(await carriers(), "good")
        mid = (await node.send())["id"]
        message = await node.node.book.load(mid)
        await node.reaches(mid, "delivered")
        await recorder.flush()
        event = replace(message[1][0], at=message[1][0].at - 600_000)
        recorder._floor = event.at // 60_000 + 5
        recorder.on_event(message[0], event, own=True)
        assert min(recorder._minutes) == recorder._floor
        await asyncio.sleep(0)

    @pytest.fixture
    async def counting(self, database):
        statistics, clock = _Slow(database, datacenter="a"), _Clock()
        await statistics.ensure_indexes()
        return Recorder(statistics, clock, term="n:1", routes=dict, deadlines_ms={}), statistics, clock

    def accept(self, at: int) -> tuple[Message, Event]:
        data = {"to": "+4915112340001", "from": "H", "body": "x", "class": "otp", "encoding": "gsm7", "parts": 1}
        event = Event("m1", 0, "t", Kind.ACCEPTED, at, data, dc="a", node="n", epoch=1)
        message = fold([event])
        assert message is not None
        return message, event

    async def total(self, statistics: Statistics, step: int, around: int) -> int:
        since = around // 1000 // HOUR * HOUR - HOUR
        found = await statistics.series(
            since=since + (MINUTE if step == MINUTE else 0), until=since + 3 * HOUR, step=step, by="class", tenant=None
        )
        return sum(one.counts["accepted"] for one in found)

    async def test_events_that_come_while_the_others_are_written(self, counting):
        """… and the write takes so long that their minute is settled by then."""
        recorder, statistics, clock = counting
        began = clock.now_ms()
        recorder.on_event(*self.accept(began), own=True)

        def meanwhile() -> None:
            statistics.meanwhile = lambda: None
            recorder.on_event(*self.accept(began), own=True)
            clock.ahead_ms += 600_000

        statistics.meanwhile = meanwhile
        await recorder.flush()
        recorder.on_event(*self.accept(clock.now_ms()), own=True)
        await recorder.flush()
        assert await self.total(statistics, MINUTE, began) == 3
        assert await self.total(statistics, HOUR, began) == 3

    async def test_hours_are_written_less_often_and_lose_nothing(self, counting, database):
        recorder, statistics, clock = counting
        began = clock.now_ms()
        recorder.on_event(*self.accept(began), own=True)
        await recorder.flush(hours=False)
        assert await database[STATISTICS].distinct("step") == [MINUTE]
        clock.ahead_ms += 2 * 3_600_000  # its minute is settled, and its hour over, before the hour is written
        await recorder.flush(hours=False)
        assert recorder._minutes == {}
        await recorder.flush()
        assert await self.total(statistics, HOUR, began) == 1
        await recorder.flush()
        assert recorder._hours == {}

    async def test_its_faults_end_no_node(self, node, database):
        """A node that stops gives its term back, whatever its counts do."""
        watch = node.node.watch
        watch.recorder._dirty.add(-7)
        await database[NODE_STATES].delete_many({})
        with capture_logs() as logs:
            await watch.stop()
        assert [line["event"] for line in logs if line["log_level"] == "error"] == ["watch_failed"]
        assert await database[NODE_STATES].count_documents({}) == 1


class TestBetweenDatacenters:
    """Each datacenter shows what all of them counted, over the connections of their ledgers."""

    @pytest.mark.parametrize("fault", [OverflowError("date value out of range"), KeyError("changed"), ValueError("no")])
    @pytest.mark.parametrize(
        "made",
        [
            lambda site, client: StatisticsExchange(Statistics(site.database, datacenter=site.dc), client),
            lambda site, client: Exchange(RoutingStates(site.database), client),
        ],
        ids=["statistics", "routing"],
    )
    async def test_no_fault_ends_the_ledger(self, settings, monkeypatch, fault, made):
        monkeypatch.setattr("controlplane.ledger.exchange._STATISTICS_SECONDS", 0.01)
        monkeypatch.setattr("controlplane.ledger.exchange._PAUSE_SECONDS", 0.01)
        async with two_sites(settings) as (fra, iad), iad.client(fra) as client:
            exchange = made(iad, client)
            fetch, faults, done = exchange.fetch, [fault] * 3, asyncio.Event()

            async def faulty() -> int:
                if faults:
                    raise faults.pop()
                done.set()
                return await fetch()

            monkeypatch.setattr(exchange, "fetch", faulty)
            with capture_logs() as logs:
                async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                    running = group.create_task(exchange.run())
                    await done.wait()
                    running.cancel()
        told = [line["exc_info"] for line in logs if line["event"].endswith("_not_fetched")]
        assert told == [not isinstance(fault, ValueError)]

    async def test_copied_from_the_peer(self, settings, monkeypatch):
        monkeypatch.setattr("controlplane.ledger.exchange.MAX_COUNTED", 3)
        monkeypatch.setattr("controlplane.ledger.peer_api.MAX_COUNTED", 3)
        monkeypatch.setattr("controlplane.store.statistics._BATCH", 2)
        async with two_sites(settings) as (fra, iad):
            stores = [Statistics(site.database, datacenter=site.settings.datacenter) for site in (fra, iad)]
            for store in stores:
                await store.ensure_indexes()
            bunches = [Bunch(MINUTE, 600 + 60 * n, "t", {("r", "otp", "EUR"): _row(delivered=1)}) for n in range(10)]
            now = fra.clock.now_ms()
            await stores[0].save("n:1", bunches, now)
            await stores[1].save("n:1", bunches[:1], now)
            async with iad.client(fra) as client:
                exchange = StatisticsExchange(stores[1], client)
                assert await exchange.fetch() >= 10
                await stores[0].save(
                    "n:1", [Bunch(MINUTE, 600, "t", {("r", "otp", "EUR"): _row(delivered=5)})], now + 9
                )
                await exchange.fetch()
            found = await stores[1].series(since=600, until=1_200, step=600, by="datacenter", tenant=None)
            assert {one.key: one.counts["delivered"] for one in found} == {
                fra.settings.datacenter: 14,
                iad.settings.datacenter: 1,
            }
