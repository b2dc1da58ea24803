"""Suppressions and preferences count in every datacenter: real MongoDB, real HTTP between ledgers, real nodes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from pydantic import SecretStr

from controlplane.clock import SystemClock
from controlplane.domain.preferences import Reason
from controlplane.domain.quiet import QuietHours, Window
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.peer_client import PeerError
from controlplane.ledger.preferences import PreferenceExchange
from controlplane.settings import Settings
from controlplane.store import preference_news
from controlplane.store.preference_news import Mark
from controlplane.store.preferences import CHANGES, PREFERENCES, SUPPRESSIONS, NewSuppression, PreferenceStore, Wishes
from controlplane.store.recipients import Recipients
from tests.simulators.datacenter import Datacenter, datacenters
from tests.simulators.ledgers import Site, site, two_sites

TO = "+4915112340001"
CLASSES = frozenset({"otp", "marketing"})
SECONDS = 5.0
"""Within which a change counts elsewhere; it takes about one."""


class Ahead(SystemClock):
    """So many ms before the others."""

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead

    def now_ms(self) -> int:
        return super().now_ms() + self._ahead


def opt_out(to: str = TO, **fields) -> NewSuppression:
    return NewSuppression(**{"to": to, "reason": Reason.OPT_OUT, "classes": CLASSES, **fields})


@pytest.fixture
async def sites(settings: Settings) -> AsyncIterator[tuple[Site, Site]]:
    async with two_sites(settings) as sites:
        yield sites


@asynccontextmanager
async def exchange(here: Site, there: Site) -> AsyncIterator[PreferenceExchange]:
    """`here` hears `there`."""
    async with here.client(there) as client:
        yield PreferenceExchange(here.news, client, here.clock)


async def everything(here: Site) -> list[dict]:
    documents = []
    for name in (SUPPRESSIONS, PREFERENCES):
        documents += await here.database[name].find().sort("_id").to_list()
    return documents


async def of(here: Site, to: str = TO) -> tuple[list, object]:
    r = here.preferences.digest("sample", to).hex()
    return (await here.preferences.of([r])).get(r, ([], None))


async def hear(*exchanges: PreferenceExchange) -> int:
    """Rounds until nobody has anything new; how many."""
    for rounds in range(1, 200):
        before = [await one._news.heard(one._client.name) for one in exchanges]
        more = [await one.step() for one in exchanges]
        if before == [await one._news.heard(one._client.name) for one in exchanges] and not any(more):
            return rounds
    raise AssertionError("they tell each other the same things for ever")


async def test_what_one_writes_the_other_has_and_what_one_lifts_the_other_lifts(sites):
    fra, iad = sites
    async with exchange(fra, iad) as from_iad, exchange(iad, fra) as from_fra:
        made = await fra.preferences.suppress("sample", [opt_out(source="$source"), opt_out(sender="Heliograph")])
        quiet = {"otp": QuietHours((Window(60, 120),), "reject")}
        wishes = Wishes(time_zone="Asia/Tokyo", quiet_hours=quiet, blocked=frozenset({"otp"}), source="profile")
        await iad.preferences.prefer("nobody here knows this tenant", [(TO, wishes)])
        await hear(from_iad, from_fra)
        suppressions, _ = await of(iad)
        assert {one.source for one in suppressions} == {"$source", ""}
        assert suppressions == (await of(fra))[0]
        assert await everything(fra) == await everything(iad)
        found = await fra.preferences.preferences("nobody here knows this tenant", to=TO, before=None, limit=5)
        assert (found[0].quiet_hours, found[0].time_zone, found[0].source) == (quiet, "Asia/Tokyo", "profile")
        assert await iad.preferences.lift("sample", made[0].id)
        await fra.preferences.forget("nobody here knows this tenant", found[0].id)
        await hear(from_iad, from_fra)
        assert [one.id for one in (await of(fra))[0]] == [made[1].id]
        assert await fra.preferences.suppression("sample", made[0].id) is None
        assert not await iad.preferences.preferences("nobody here knows this tenant", before=None, limit=5)
        again = await iad.preferences.suppress("sample", [opt_out(), opt_out()])
        assert [one.created for one in again] == [True, False]
        await hear(from_iad, from_fra)
        assert len((await of(fra))[0]) == 2
        assert await everything(fra) == await everything(iad)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_written_wherever_all_end_with_the_same(settings, monkeypatch, seed):
    """Three datacenters in a line: the ends hear each other through the middle. Clocks differ, pages are short, entries get lost."""
    dice = random.Random(seed)
    monkeypatch.setattr(preference_news, "_PAGE", 3)
    monkeypatch.setattr("controlplane.ledger.preferences._PATIENCE_SECONDS", -1.0)
    numbers = [f"+49151123400{n:02}" for n in range(5)]

    async def write(here: Site) -> None:
        to, sender = dice.choice(numbers), dice.choice(["", "A", "B"])
        match dice.randrange(6):
            case 0 | 1:
                await here.preferences.suppress("sample", [opt_out(to, sender=sender, source=str(dice.random()))])
            case 2:
                await here.preferences.lift_opt_outs("sample", to)
            case 3:
                wishes = Wishes(quiet_hours={}, source=str(dice.random()))
                await here.preferences.prefer("sample", [(to, wishes)])
            case 4:
                await here.preferences.forget("sample", here.preferences.digest("sample", to).hex())
            case 5:
                await here.database[CHANGES].delete_many({"_id": await here.preferences.version()})

    async with AsyncExitStack() as stack:
        names = ("fra", "iad", "sin")
        fra, iad, sin = line = [await stack.enter_async_context(site(settings, name)) for name in names]
        for here, ahead in zip(line, (0, 3_000, -3_000), strict=True):
            here.clock = Ahead(ahead)
            here.wire()
            await stack.enter_async_context(here.serving())
        pairs = [(fra, iad), (iad, fra), (iad, sin), (sin, iad)]
        exchanges = [await stack.enter_async_context(exchange(*pair)) for pair in pairs]
        for _ in range(60):
            await write(dice.choice(line))
            if dice.random() < 0.3:
                await dice.choice(exchanges).step()
        await hear(*exchanges)
        assert await everything(fra) == await everything(iad) == await everything(sin)
        to = numbers[0]
        await sin.preferences.suppress("sample", [opt_out(to)])
        await hear(*exchanges)
        assert (await of(fra, to))[0]
        await fra.preferences.lift_opt_outs("sample", to)
        await hear(*exchanges)
        assert not (await of(sin, to))[0]


async def test_a_start_that_overtakes_its_stop_counts(sites):
    fra, iad = sites
    async with exchange(iad, fra) as from_fra:
        await fra.preferences.suppress("sample", [opt_out()])
        await asyncio.sleep(0.002)
        assert await iad.preferences.lift_opt_outs("sample", TO) == 0
        await hear(from_fra)
        assert not (await of(iad))[0]


async def test_who_was_away_hears_the_rest_and_nothing_twice(sites, settings):
    fra, iad = sites
    async with exchange(fra, iad) as from_iad:
        await hear(from_iad)
        await iad.preferences.suppress("sample", [opt_out()])
        await hear(from_iad)
    url, iad.url = iad.url, "http://127.0.0.1:1"
    await iad.preferences.suppress("sample", [opt_out(sender="Later")])
    async with exchange(fra, iad) as from_iad:
        with pytest.raises(PeerError, match="iad"):
            await from_iad.step()
    assert len((await of(fra))[0]) == 1
    iad.url = url
    async with exchange(fra, iad) as from_iad:
        mark = await fra.news.heard("iad")
        news = await from_iad._client.preferences(fra.news.key_id, mark)
        assert (len(news.scanned), news.mark.version, news.mark.scan) == (0, mark.version + 1, None)
        await hear(from_iad)
        assert len((await of(fra))[0]) == 2
        version = await fra.preferences.version()
        assert await hear(from_iad) == 1
        assert await fra.preferences.version() == version


async def test_a_database_that_was_put_back_gets_its_own_back_and_is_heard_anew(sites):
    fra, iad = sites
    async with exchange(fra, iad) as from_iad, exchange(iad, fra) as from_fra:
        await iad.preferences.suppress("sample", [opt_out()])
        await hear(from_iad, from_fra)
        kept = {n: await iad.database[n].find().to_list() for n in await iad.database.list_collection_names()}
        await iad.preferences.suppress("sample", [opt_out(f"+49151123401{n:02}") for n in range(20)])
        await iad.preferences.lift_opt_outs("sample", TO)
        await hear(from_iad, from_fra)
        for name, documents in kept.items():
            await iad.database[name].delete_many({})
            if documents:
                await iad.database[name].insert_many(documents)
        for n in range(4):  # until its version is beyond the one that fra has heard
            await iad.preferences.suppress("sample", [opt_out(f"+4915112349{n:03}")])
        assert (await fra.news.heard("iad")).version <= await iad.preferences.version()
        await hear(from_iad, from_fra)
        assert await everything(fra) == await everything(iad)
        assert len(await everything(fra)) == 25
        assert not (await of(iad))[0]


async def test_who_stops_between_keeping_and_telling_tells_afterwards(sites, monkeypatch):
    fra, iad = sites
    nodes = Recipients(fra.preferences, fra.clock)
    async with exchange(fra, iad) as from_iad:
        await hear(from_iad)
        await nodes.refresh()
        await iad.preferences.suppress("sample", [opt_out()])

        async def away(self, recipients, tenants):
            raise StoreUnavailableError("away")

        with monkeypatch.context() as patch:
            patch.setattr(PreferenceStore, "changed", away)
            with pytest.raises(StoreUnavailableError):
                await from_iad.step()
        await nodes.refresh()
        assert not (await nodes.find("sample", TO)).suppressions
    async with exchange(fra, iad) as anew:
        await anew.step()
        await nodes.refresh()
        assert (await nodes.find("sample", TO)).suppressions


async def test_a_change_that_was_never_told_is_found_by_a_scan(sites, monkeypatch):
    fra, iad = sites
    async with exchange(fra, iad) as from_iad:
        await hear(from_iad)
        await iad.preferences.suppress("sample", [opt_out()])
        await iad.database[CHANGES].delete_many({})  # its writer died between the two
        assert not await from_iad.step()
        assert not (await of(fra))[0]
        monkeypatch.setattr("controlplane.ledger.preferences._PATIENCE_SECONDS", 0.0)
        await asyncio.sleep(0.01)
        await hear(from_iad)
        assert (await of(fra))[0]
        assert await hear(from_iad) == 1


async def test_entries_that_expire_in_a_quiet_time_cost_nothing(sites):
    fra, iad = sites
    async with exchange(fra, iad) as from_iad:
        await iad.preferences.suppress("sample", [opt_out()])
        await hear(from_iad)
        await iad.database[CHANGES].delete_many({})
        await hear(from_iad)
        await iad.preferences.suppress("sample", [opt_out(sender="Later")])
        news = await from_iad._client.preferences(fra.news.key_id, await fra.news.heard("iad"))
        assert (len(news.told), news.mark.scan) == (2, None)


async def test_recipients_of_another_key_are_refused_with_the_reason(settings):
    async with two_sites(settings) as (fra, iad):
        await iad.preferences.suppress("sample", [opt_out()])
        fra.settings = fra.settings.model_copy(update={"secret_key": SecretStr("x" * 32)})
        fra.wire()
        async with exchange(fra, iad) as from_iad:
            with pytest.raises(PeerError, match="HELIOGRAPH_SECRET_KEY must be the same in both"):
                await from_iad.step()
        assert await everything(fra) == []
        assert await fra.news.heard("iad") == Mark()


async def test_records_from_before_have_no_datacenter(sites):
    fra, iad = sites
    for here, source in ((fra, "fra"), (iad, "iad")):
        await here.preferences.suppress("sample", [opt_out(source=source)])
        await here.database[SUPPRESSIONS].update_many({}, {"$set": {"updated": 5}, "$unset": {"dc": ""}})
    async with exchange(fra, iad) as from_iad, exchange(iad, fra) as from_fra:
        await hear(from_iad, from_fra)
    assert [one.source for one in (await of(fra))[0]] == [one.source for one in (await of(iad))[0]] == ["iad"]


async def test_a_large_import_comes_in_pages(sites):
    fra, iad = sites
    async with exchange(fra, iad) as from_iad:
        await hear(from_iad)
        items = [opt_out(f"+49151{n:08}", sender=sender) for n in range(5_000) for sender in ("", "A")]
        await iad.preferences.suppress("sample", items)
        started = time.monotonic()
        await hear(from_iad)
        changes = time.monotonic() - started
        assert await fra.database[SUPPRESSIONS].count_documents({}) == 10_000
        await fra.database[SUPPRESSIONS].delete_many({})
        await fra.news.hear("iad", await fra.news.heard("iad"), Mark())
        started = time.monotonic()
        rounds = await hear(from_iad)
        assert rounds > 5
        print(f"\n10,000 records: as changes {changes:.2f} s, as a scan {time.monotonic() - started:.2f} s")
        assert await everything(fra) == await everything(iad)


class TestDatacenters:
    """Whole ones, a node and a ledger each: an opt-out counts at the other's node, memory included."""

    @staticmethod
    async def _until(here: Datacenter, status: int, to: str = TO) -> float:
        started = time.monotonic()
        while (await here.node.call("POST", "/v1/messages", json={"to": to, "body": "x"}))[0] != status:
            assert time.monotonic() - started < SECONDS
            await asyncio.sleep(0.05)
        return time.monotonic() - started

    @staticmethod
    async def _suppress(here: Datacenter, to: str = TO) -> None:
        body = {"recipient": to, "reason": "opt_out", "classes": ["otp", "transactional", "marketing"]}
        status, answer = await here.node.call("POST", "/v1/suppressions", json=body)
        assert status in (200, 201), answer

    async def test_both_ways_lifted_again_and_after_an_absence(self, settings, tmp_path, carriers):
        other, third = "+4915112340002", "+4915112340003"
        async with datacenters(settings, tmp_path, "fra", "iad") as found:
            fra, iad = found["fra"], found["iad"]
            for here in (fra, iad):
                await here.node.connect(await carriers(), tenant="sample")
            await iad.node.send(TO)
            await fra.node.send(other)
            await asyncio.gather(self._suppress(fra, TO), self._suppress(iad, other))
            took = await asyncio.gather(self._until(iad, 422, TO), self._until(fra, 422, other))
            _, page = await iad.node.call("GET", "/v1/suppressions?recipient=%2B4915112340001")
            assert (await iad.node.call("DELETE", f"/v1/suppressions/{page['data'][0]['id']}"))[0] == 204
            took.append(await self._until(fra, 202, TO))
            await self._suppress(iad, TO)
            took.append(await self._until(fra, 422, TO))
            assert fra.ledger.health()[1]["preferences"] == "ok"
            await iad.stop_ledger()
            await self._suppress(iad, third)
            await fra.node.until(lambda: "iad" in fra.ledger.health()[1]["preferences"])
            await fra.node.send(third)
            await iad.start_ledger()
            took.append(await self._until(fra, 422, third))
            print(f"\nknown to the other datacenter's node after {', '.join(f'{one:.2f}' for one in took)} s")
