"""The search index: whatever is asked, the same messages as by looking at each of them; and what is erased leaves it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import fold
from controlplane.domain.query import Query, matches, parse
from controlplane.errors import StoreUnavailableError
from controlplane.ledger import index
from controlplane.ledger.index import Indexer
from controlplane.ledger.index_gauges import INDEX_GAUGES
from controlplane.ledger.service import Ledger
from controlplane.settings import Settings
from controlplane.store import search, search_read
from controlplane.store.copies import local_mid
from controlplane.store.ledger import BUNDLES, LEDGER_NODE, StaleWriterError
from controlplane.store.schema import EVENTS, ensure_indexes
from controlplane.store.search import DATA, SEGMENTS, STATE, DamagedIndexError, SearchStore
from controlplane.store.search_pack import lookup
from controlplane.store.search_read import Search
from controlplane.store.search_tokens import Tokens
from tests.simulators.ledgers import Site, two_sites

DAY = 86_400_000
TENANTS = ("acme", "umbrella")
WORDS = ("your", "code", "parcel", "today", "Größe", "4711", "invoice", "café", "世界")
ROUTES = ("gold", "silver", "bronze")


@pytest.fixture
async def sites(settings: Settings) -> AsyncIterator[tuple[Site, Site]]:
    async with two_sites(settings) as both:
        for each in both:
            await ensure_indexes(each.database)
        yield both


class Writer:
    """Messages with random stories, of two days ago, so that the index and not the look at what is new finds them."""

    def __init__(self, site: Site, chance: random.Random, prefix: str) -> None:
        self.site = site
        self.chance = chance
        self.prefix = prefix
        self.number = 0
        self.stories: list[list[Event]] = []

    def accepted(self, **data) -> Event:
        pick = self.chance
        self.number += 1
        at = self.site.clock.now_ms() - 2 * DAY + pick.randrange(20 * 60_000) // 1000 * 1000  # some at the same moment
        fields = {
            "to": f"+49151{pick.randrange(10**8):08d}",
            "from": pick.choice(("ACME", "Shop", "12345")),
            "body": " ".join(pick.sample(WORDS, pick.randrange(1, 6))),
            "class": pick.choice(("otp", "transactional", "marketing")),
            "reference": pick.choice(("", f"order-{pick.randrange(30)}")),
            "encoding": "gsm7",
            "parts": pick.choice((1, 1, 2)),
            "planned_route": pick.choice(ROUTES),
            "send_at": pick.choice((0, 0, 0, at + 60_000, self.site.clock.now_ms() + DAY)),
        }
        mid = f"{self.prefix}{self.number:025d}"
        return Event(mid, 0, pick.choice(TENANTS), Kind.ACCEPTED, at, fields | data)

    def received(self) -> Event:
        event = self.accepted()
        data = {"to": "12345", "from": event.data["to"][1:], "body": event.data["body"], "connector": "c1", "parts": 1}
        return Event(event.mid, 0, event.tenant, Kind.RECEIVED, event.at, data)

    async def begin(self, count: int) -> None:
        fresh = [self.received() if self.chance.random() < 0.1 else self.accepted() for _ in range(count)]
        await self.site.append(fresh)
        self.stories += [[event] for event in fresh]

    def next(self, story: list[Event]) -> Event | None:
        pick, before = self.chance, story[-1]
        message = fold(story)
        assert message is not None
        if story[0].kind is Kind.RECEIVED or message.erased:
            return None
        part = {"part": pick.randrange(1, len(message.parts) + 1), "receipt": {"id": "x", "state": "S"}}
        route = pick.choice(ROUTES)
        sent = {"route": route, "connector": f"c-{route}", "attempt": 1}
        every = list(range(1, len(message.parts) + 1))
        kind, data = pick.choice(
            (
                (Kind.SUBMITTED, {**sent, "part_ids": [[n, f"a{n}"] for n in every]}),
                (Kind.UNKNOWN, {**sent, "parts": every}),
                (Kind.REROUTED, {**sent, "parts": every, "tried": [route]}),
                (Kind.DELIVERED, {**part, "connector": "c1"}),
                (Kind.UNDELIVERED, {**part, "connector": "c1"}),
                (Kind.ENROUTE, {**part, "connector": "c1"}),
                (Kind.FAILED, {**sent}),
                (Kind.CANCELLED, {}),
                (Kind.EXPIRED, {}),
                (Kind.FEEDBACK, {"outcome": "converted"}),
                (Kind.ADOPTED, {"from_node": "node-1", "from_epoch": 1}),
            )
        )
        with_route = {"route": route} if "route" in data else {}
        return self.site.then(before, kind, data, **with_route)

    async def go_on(self, count: int, node: str = "node-1") -> None:
        chosen = self.chance.sample(self.stories, min(count, len(self.stories)))
        pairs = [(story, event) for story in chosen if (event := self.next(story)) is not None]
        await self.site.append([event for _, event in pairs], node=node)
        for story, event in pairs:
            story.append(event)

    async def erase(self, count: int) -> list[str]:
        """As a node does: the event, then the content."""
        final = [story for story in self.stories if (m := fold(story)) and m.final and not m.erased]
        chosen = self.chance.sample(final, min(count, len(final)))
        for story in chosen:
            message = fold(story)
            assert message is not None
            event = self.site.then(story[-1], Kind.ERASED, {"status": message.status.value, "class": message.cls})
            await self.site.append([event])
            await self.site.reader.erase(message.mid)
            story.append(event)
        return [story[0].mid for story in chosen]


def indexer_of(site: Site, *, waiting: bool = False) -> Indexer:
    site.term += 1
    return Indexer(
        site.store,
        site.copies,
        SearchStore(site.database),
        site.reader,
        Tokens(site.settings.secret),
        site.clock,
        term=site.term,
        waiting=lambda: waiting,
    )


async def opened(site: Site) -> Indexer:
    found = indexer_of(site)
    await found.open()
    return found


async def settle(indexer: Indexer) -> None:
    while await indexer.turn():
        pass


async def run(indexer: Indexer, turns: int) -> list[float]:
    """As the ledger does, for so many turns; how long it rested after each."""
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == turns:
            raise InterruptedError

    indexer._rest = rest
    with contextlib.suppress(InterruptedError):
        await indexer.run()
    return rests


async def check_segments(site: Site) -> None:
    """Each can be read whole, and its counts are those of its rows."""
    store = SearchStore(site.database)
    for segment in await store.segments():
        assert segment.counts == list((await store.load(segment)).counts(0).values())
        assert segment.first > 0


def search_of(site: Site) -> Search:
    return Search(site.database, site.reader, site.settings.secret, site.clock)


async def every_story(site: Site) -> list[list[Event]]:
    mids = await site.database[EVENTS].distinct("mid", {"k": 0, "kind": {"$in": ["accepted", "received"]}})
    return list((await site.reader.load_many(mids)).values())


def by_looking(stories: list[list[Event]], query: Query, tenants: set[str], now: int) -> list[str]:
    found = []
    for story in stories:
        message = fold(story)
        if message is not None and message.tenant in tenants and matches(query, message, story[0], now):
            found.append((message.accepted_at, message.mid))
    return [mid for _, mid in sorted(found, reverse=True)]


async def by_search(search: Search, query: Query, tenants: set[str], limit: int) -> list[str]:
    found: list[str] = []
    cursor = None
    for _ in range(1000):
        page = await search.page(query, tenants, cursor, limit)
        assert len(page.items) <= limit
        found += [message.mid for message, _ in page.items]
        cursor = page.next
        if cursor is None:
            return found
    raise AssertionError("no end")


def some_query(chance: random.Random, stories: list[list[Event]]) -> str:
    data = next((s[0].data for s in chance.sample(stories, len(stories)) if s[0].data), {})
    to, body = data.get("to", "+4915112345678").removeprefix("+"), data.get("body", "code").split()
    when = chance.choice(("47h", "48h", "2879m", "2870m"))
    terms = [
        f"to:+{to}" if len(to) > 8 else "to:+4915*",
        f"to:{to[-chance.randrange(4, 9) :]}" if len(to) > 8 else "to:4711",
        f"to:+{to[: chance.randrange(1, 9)]}*" if len(to) > 8 else "to:+4*",
        f"from:{chance.choice(('acme', 'Shop', '12345', '*2345', '+49*', '5678'))}",
        "status:" + ",".join(chance.sample(sorted({"failed", "delivered", "accepted", "queued", "scheduled", "unknown", "undelivered", "cancelled", "expired", "submitted", "received"}), chance.randrange(1, 4))),
        f"ref:order-{chance.randrange(30)}",
        f"ref:order-{chance.randrange(4)}*",
        f"route:{chance.choice((*ROUTES, 'none'))}",
        f"connector:{chance.choice(('c-gold', 'c1', 'none'))}",
        f"class:{chance.choice(('otp', 'marketing', 'none'))}",
        f"direction:{chance.choice(('in', 'out', 'any'))}",
        f"{chance.choice(('after', 'before'))}:{when}",
        " ".join(chance.sample(body, chance.randrange(1, min(3, len(body)) + 1))).upper(),
        chance.choice(WORDS),
    ]  # fmt: skip
    names: set[str] = set()
    chosen = []
    for term in chance.sample(terms, chance.randrange(1, 4)):
        name = term.partition(":")[0] if ":" in term else ""
        if not name or name not in names:
            chosen.append(term)
        names.add(name)
    return " ".join(chosen)


async def compare(site: Site, chance: random.Random, queries: int) -> int:
    """Random questions; how many messages the answers had in all."""
    search, stories, total = search_of(site), await every_story(site), 0
    for _ in range(queries):
        text = some_query(chance, stories)
        now = site.clock.now_ms()
        query = parse(text, now)
        tenants = set(chance.choice((TENANTS, TENANTS[:1], TENANTS[1:])))
        expected = by_looking(stories, query, tenants, now)
        limit = chance.choice((1, 7, 50)) if len(expected) < 15 else 40
        assert await by_search(search, query, tenants, limit) == expected, text
        total += len(expected)
    return total


@pytest.fixture
def small(monkeypatch):
    """Segments are joined early, and read in small steps, so that a few hundred messages meet every case."""
    monkeypatch.setattr(index, "_JOINED", 3)
    monkeypatch.setattr(index, "_FULL", 300)
    monkeypatch.setattr(index, "MAX_ROWS", 500)
    monkeypatch.setattr(index, "_ENTRIES", 256)
    monkeypatch.setattr(index, "_KEPT_PLACES", 100)
    monkeypatch.setattr(index, "_KEPT_CHUNKS", 3)
    monkeypatch.setattr(search_read, "_STEP", 5)
    monkeypatch.setattr(search_read, "_OPENED", 1)
    monkeypatch.setattr(search_read, "_SOME", 2)


class TestSameAsLooking:
    """The index finds what looking at every message would find."""

    @pytest.mark.parametrize("seed", [1, 2])
    async def test_random_stories_of_two_datacenters(self, sites, small, seed):
        fra, iad = sites
        chance = random.Random(seed)
        here, there = Writer(fra, chance, "f"), Writer(iad, chance, "i")
        indexer = await opened(fra)
        for step in range(5):
            await here.begin(60)
            await there.begin(40)
            await here.go_on(60)
            await here.go_on(30, node="node-2")  # as another node does after an adoption
            await there.go_on(40)
            await here.erase(4)
            await there.erase(3)
            await fra.sequence()
            await iad.sequence()
            await fra.catch_up(iad)
            await settle(indexer)
            if step == 3:
                indexer = await opened(fra)  # another ledger leads
        assert await compare(fra, chance, 80) > 500
        assert indexer.messages == 500
        assert 1 < indexer.segments < 20
        await indexer._store.drop_replaced()
        segments = {document["_id"] for document in await fra.database[SEGMENTS].find().to_list()}
        data = {name.partition("|")[0] for name in await fra.database[DATA].distinct("_id")}
        assert data == segments

    async def test_a_message_that_both_accepted(self, sites, small):
        fra, iad = sites
        chance = random.Random(5)
        here, there = Writer(fra, chance, "x"), Writer(iad, chance, "x")
        await here.begin(30)
        await there.begin(50)  # the first thirty ids are taken here
        for each in sites:
            await each.sequence()
        await fra.catch_up(iad)
        indexer = await opened(fra)
        await settle(indexer)
        assert indexer.messages == 80
        assert await compare(fra, chance, 60) > 100

    async def test_all_at_once_and_built_anew(self, sites):
        fra, _ = sites
        chance = random.Random(6)
        here = Writer(fra, chance, "f")
        await here.begin(700)
        await here.go_on(500)
        await fra.sequence()
        indexer = await opened(fra)
        await settle(indexer)
        assert await compare(fra, chance, 40) > 100
        for name in (STATE, SEGMENTS, DATA):
            await fra.database[name].drop()
        indexer = await opened(fra)
        await settle(indexer)
        assert indexer.messages == 700
        assert await compare(fra, chance, 40) > 100


class TestWhatIsNew:
    """A message is found from the moment it is accepted, whether or not there is an index."""

    async def test_before_any_index(self, sites):
        fra, _ = sites
        here = Writer(fra, random.Random(7), "f")
        await here.begin(200)
        await here.go_on(150)
        assert (await search_of(fra).page(Query(), set(TENANTS), None, 10)).indexed_until is None
        assert await compare(fra, random.Random(8), 40) > 50

    async def test_beyond_the_index(self, sites):
        fra, _ = sites
        await fra.sequence()
        indexer = await opened(fra)
        await indexer.turn()
        event = fra.accepted(tenant="acme")
        await fra.append([event])
        page = await search_of(fra).page(parse("to:0001 世界", fra.clock.now_ms()), {"acme"}, None, 10)
        assert [message.mid for message, _ in page.items] == [event.mid]
        assert page.indexed_until == indexer.until < event.at

    async def test_much_looked_at_in_vain_gives_a_short_page(self, sites, monkeypatch):
        fra, _ = sites
        here = Writer(fra, random.Random(9), "f")
        await here.begin(300)
        monkeypatch.setattr(search_read, "_LOOKED_AT", 100)
        monkeypatch.setattr(search_read, "_CHUNK", 50)
        page = await search_of(fra).page(parse("nothing", 0), set(TENANTS), None, 10)
        assert (page.items, page.next is not None) == ([], True)
        assert await compare(fra, random.Random(10), 20) > 50

    async def test_while_the_sequencer_waits_it_says_how_far_it_is(self, sites):
        fra, _ = sites
        here = Writer(fra, random.Random(11), "f")
        await here.begin(50)
        await fra.sequence()
        indexer = indexer_of(fra, waiting=True)
        await indexer.open()
        await indexer.turn()
        newest = max(story[0].at for story in here.stories)
        assert indexer.until == max(newest - index._SLACK_MS, indexer.until)
        assert indexer.until <= fra.clock.now_ms() - index._PATIENCE_MS + 1000


class TestErasure:
    """No search finds what is erased, and within an hour nothing of it is left in the index."""

    async def hits(self, site: Site, tokens: list[int]) -> int:
        store = SearchStore(site.database)
        found = 0
        for segment in await store.segments():
            for token in tokens:
                buckets = await store.buckets([(segment, segment.bucket_of(token))])
                found += sum(len(lookup(bucket, token)) for bucket in buckets.values())
        return found

    async def test_tokens_go(self, sites, monkeypatch):
        fra, _ = sites
        here = Writer(fra, random.Random(12), "f")
        event = here.accepted(to="+4917655443322", reference="unique-reference", body="onlyhere")
        await here.begin(400)
        await fra.append([event])
        here.stories.append([event])
        await fra.append([fra.then(event, Kind.CANCELLED, {})])
        tokens = Tokens(fra.settings.secret)
        query = parse("to:+4917655443322 onlyhere", fra.clock.now_ms())
        asked = [*tokens.of_query(query), *tokens.of_query(parse("ref:unique-reference", 0))]
        await fra.sequence()
        indexer = await opened(fra)
        await settle(indexer)
        assert await by_search(search_of(fra), query, set(TENANTS), 10) == [event.mid]
        assert await self.hits(fra, asked) == 3

        story = await fra.reader.load(event.mid)
        await fra.append([fra.then(story[-1], Kind.ERASED, {"status": "cancelled", "class": "otp"})])
        await fra.reader.erase(event.mid)
        assert await by_search(search_of(fra), query, set(TENANTS), 10) == []
        await fra.sequence()
        await settle(indexer)
        assert await self.hits(fra, asked) == 3
        monkeypatch.setattr(index, "_PURGE_MS", 0)
        await indexer.turn()
        assert await self.hits(fra, asked) == 0
        await indexer._store.drop_replaced()
        assert await self.hits(fra, asked) == 0
        assert indexer.messages == 401
        found = await by_search(search_of(fra), parse("status:cancelled", 0), set(TENANTS), 10)
        assert event.mid in found

    async def test_an_erased_second_story(self, sites, monkeypatch):
        fra, iad = sites
        here, there = Writer(fra, random.Random(13), "x"), Writer(iad, random.Random(14), "x")
        mine, theirs = here.accepted(body="mine"), there.accepted(body="theirs", to="+4917655443322")
        await fra.append([mine])
        await iad.append([theirs])
        for each in sites:
            await each.sequence()
        await fra.catch_up(iad)
        indexer = await opened(fra)
        await settle(indexer)
        second = local_mid(mine.mid, "iad")
        query = parse("to:+4917655443322", fra.clock.now_ms())
        assert await by_search(search_of(fra), query, set(TENANTS), 10) == [second]
        last = await fra.append([fra.then(mine, Kind.CANCELLED, {})])
        await fra.append([fra.then(last[0], Kind.ERASED, {"status": "cancelled"})])
        await fra.reader.erase(mine.mid, second)  # what a node does once iad was adopted
        await fra.sequence()
        monkeypatch.setattr(index, "_PURGE_MS", 0)
        await settle(indexer)
        await indexer.turn()
        assert await self.hits(fra, Tokens(fra.settings.secret).of_query(query)) == 0


class TestWriters:
    """Killed anywhere it goes on; whoever wrote before is fenced."""

    async def test_a_crash_between_writing_and_saying_so(self, sites, monkeypatch):
        fra, _ = sites
        here = Writer(fra, random.Random(15), "f")
        await here.begin(100)
        await fra.sequence()
        indexer = await opened(fra)

        async def killed(*_args, **_options):
            raise StoreUnavailableError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(SearchStore, "save", killed)
            with pytest.raises(StoreUnavailableError):
                await indexer.turn()
        indexer = await opened(fra)
        await settle(indexer)
        assert indexer.messages == 100
        assert await compare(fra, random.Random(16), 30) > 50

    async def test_a_crash_within_a_segment(self, sites, monkeypatch):
        fra, _ = sites
        here = Writer(fra, random.Random(17), "f")
        await here.begin(100)
        await fra.sequence()
        indexer = await opened(fra)
        change = SearchStore._change
        calls = 0

        async def dies_at_the_second(self, *args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == 2:
                raise StoreUnavailableError("killed")
            await change(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(SearchStore, "_change", dies_at_the_second)
            with pytest.raises(StoreUnavailableError):
                await indexer.turn()
        assert await fra.database[DATA].count_documents({}) > 0
        indexer = await opened(fra)
        assert await fra.database[DATA].count_documents({}) == 0
        await settle(indexer)
        assert await compare(fra, random.Random(18), 30) > 50

    async def test_the_former_one_is_fenced(self, sites):
        fra, _ = sites
        here = Writer(fra, random.Random(19), "f")
        old = await opened(fra)
        new = await opened(fra)
        await here.begin(20)
        await fra.sequence()
        with pytest.raises(StaleWriterError):
            await settle(old)
        await settle(new)
        assert new.messages == 20

    async def test_a_damaged_index_is_built_anew(self, sites):
        fra, _ = sites
        here = Writer(fra, random.Random(20), "f")
        await here.begin(100)
        await fra.sequence()
        await settle(await opened(fra))
        await fra.database[DATA].delete_many({"_id": {"$regex": r"\|c\|"}})
        await here.go_on(80)
        await fra.sequence()
        indexer = indexer_of(fra)
        await run(indexer, 7)
        assert indexer.messages == 100
        assert await compare(fra, random.Random(21), 30) > 50

    @pytest.mark.parametrize("nth", [1, 2, 3])
    async def test_killed_while_columns_are_written(self, sites, monkeypatch, nth):
        """Status, route and connector get values that the segment did not have; the writer dies before the nth of them."""
        fra, _ = sites
        here = Writer(fra, random.Random(22), "f")
        await here.begin(40)
        await fra.sequence()
        indexer = await opened(fra)
        await settle(indexer)
        first = [story[0] for story in here.stories if story[0].kind is Kind.ACCEPTED]
        data = {"connector": "c-new", "attempt": 1, "part_ids": [[1, "a1"], [2, "a2"]]}
        await fra.append([fra.then(event, Kind.SUBMITTED, data, route="new") for event in first])
        await fra.sequence()
        encoded, calls = search._encoded, 0

        def dies(*args):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise StoreUnavailableError("killed")
            return encoded(*args)

        with monkeypatch.context() as patch:
            patch.setattr(search, "_encoded", dies)
            with pytest.raises(StoreUnavailableError):
                await indexer.turn()
        store = SearchStore(fra.database)
        for segment in await store.segments():
            await store.load(segment)
        indexer = await opened(fra)
        await settle(indexer)
        await check_segments(fra)
        wanted = sorted((event.mid for event in first), reverse=True)
        for text in ("status:submitted", "route:new", "connector:c-new"):
            assert sorted(await by_search(search_of(fra), parse(text, 0), set(TENANTS), 50), reverse=True) == wanted

    async def test_an_index_whose_dictionary_lacks_a_value_is_built_anew(self, sites):
        fra, _ = sites
        here = Writer(fra, random.Random(23), "f")
        await here.begin(60)
        await here.go_on(60)
        await fra.sequence()
        await settle(await opened(fra))
        (segment,) = await SearchStore(fra.database).segments()
        lacking = {"dictionaries.0": segment.dictionaries[0][:1], "counts": segment.counts[:1]}
        await fra.database[SEGMENTS].update_one({"_id": segment.id}, {"$set": lacking})
        with pytest.raises(DamagedIndexError):
            await SearchStore(fra.database).load(segment.of(await fra.database[SEGMENTS].find_one({})))
        await here.go_on(60)
        await fra.sequence()
        await run(indexer_of(fra), 5)
        await check_segments(fra)
        assert await compare(fra, random.Random(24), 30) > 20

    async def test_who_led_before_cannot_overwrite_a_segment(self, sites):
        fra, _ = sites
        await Writer(fra, random.Random(25), "f").begin(20)
        await fra.sequence()
        await settle(await opened(fra))
        store = SearchStore(fra.database)
        (old,), (new,) = await store.segments(), await store.segments()
        await store.update(new, {})
        with pytest.raises(DamagedIndexError):
            await store.update(old, {})

    async def test_no_fault_ends_it(self, sites, monkeypatch):
        fra, _ = sites
        await Writer(fra, random.Random(26), "f").begin(60)
        await fra.sequence()
        indexer = indexer_of(fra)
        turn, faults = Indexer.turn, [IndexError("list index out of range"), OverflowError(), ValueError("not a leaf")]

        async def faulty(self) -> int:
            if faults:
                raise faults.pop()
            return await turn(self)

        monkeypatch.setattr(Indexer, "turn", faulty)
        with capture_logs() as logs:
            rests = await run(indexer, 6)
        assert rests[:3] == [index._DAMAGED_SECONDS] * 3
        assert [line["exc_info"] for line in logs if line["event"] == "index_damaged"] == [True] * 3
        assert indexer.messages == 60
        await opened(fra)
        with pytest.raises(StaleWriterError):
            await indexer.run()

    async def test_running_pages_keep_what_was_replaced(self, sites, small, monkeypatch):
        """For a minute, also from a ledger that has just begun; then it goes, however much is replaced meanwhile."""
        fra, _ = sites
        here = Writer(fra, random.Random(27), "f")
        indexer = await opened(fra)
        for _ in range(3):
            await here.begin(20)
            await fra.sequence()
            await settle(indexer)
        assert indexer.segments == 1
        assert await fra.database[SEGMENTS].count_documents({}) == 4
        indexer = await opened(fra)
        await indexer.turn()
        assert await fra.database[SEGMENTS].count_documents({}) == 4
        assert len(await search_of(fra).store.segments()) == 1
        indexer._drops = dict.fromkeys(indexer._drops, 0.0)
        newer = next(iter(indexer._segments.values()))
        await indexer._rewrite([newer])
        await indexer.turn()
        assert await fra.database[SEGMENTS].count_documents({}) == 2  # the replaced one, and what stands for it
        assert await compare(fra, random.Random(28), 20) > 10

    async def test_what_was_replaced_twice_never_comes_back(self, sites, monkeypatch):
        fra, _ = sites
        await Writer(fra, random.Random(29), "f").begin(20)
        await fra.sequence()
        indexer = await opened(fra)
        await settle(indexer)
        for _ in range(2):
            await indexer._rewrite(list(indexer._segments.values()))
        store, (last,) = indexer._store, indexer._segments
        delete, calls = SearchStore._delete, 0

        async def dies(self, segments) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise StoreUnavailableError("killed")
            await delete(self, segments)

        with monkeypatch.context() as patch:
            patch.setattr(SearchStore, "_delete", dies)
            with pytest.raises(StoreUnavailableError):
                await store.drop_replaced([last])
        assert [segment.id for segment in await store.segments()] == [last]
        await store.drop_replaced()
        assert await fra.database[SEGMENTS].distinct("_id") == [last]

    async def test_a_death_before_a_segment_is_told_of(self, sites, monkeypatch):
        fra, _ = sites
        here = Writer(fra, random.Random(30), "f")
        indexer = await opened(fra)
        search = search_of(fra)
        assert await by_search(search, parse("direction:out", 0), set(TENANTS), 50) == []
        before = await search.store.state()
        await here.begin(30)
        await fra.sequence()
        change = SearchStore._change

        async def dies(self, term, fields, *, changed=False) -> None:
            if changed:
                raise StoreUnavailableError("killed")
            await change(self, term, fields)

        with monkeypatch.context() as patch:
            patch.setattr(SearchStore, "_change", dies)
            with pytest.raises(StoreUnavailableError):
                await indexer.turn()
        assert len(await search.store.segments()) == 1
        assert (await search.store.state()).version == before.version
        await opened(fra)
        assert (await search.store.state()).version > before.version


class TestLogs:
    """What is wrong with one log is that log's alone; the ledger's own records are no messages."""

    async def test_a_missing_bundle_of_a_peer(self, sites):
        fra, iad = sites
        here, there = Writer(fra, random.Random(31), "f"), Writer(iad, random.Random(32), "i")
        await here.begin(30)
        await there.begin(20)
        for each in sites:
            await each.sequence()
        await fra.catch_up(iad)
        (theirs,) = await fra.store.logs(own=False)
        await self.lose(fra, theirs.origin)
        indexer = indexer_of(fra)
        with capture_logs() as logs:
            rests = await run(indexer, 4)
        assert [line["origin"] for line in logs if line["event"] == "log_not_indexed"] == [theirs.origin]
        assert rests == [index._PAUSE_SECONDS] * 4
        assert indexer.messages == 30
        assert indexer.behind == theirs.size
        assert indexer.until > fra.clock.now_ms() - 60_000
        await self.bring_back(fra)
        await settle(indexer)
        assert (indexer.messages, indexer.behind) == (50, 0)

    async def test_a_missing_bundle_of_our_own(self, sites):
        """Nothing that was accepted since is said to be in the index."""
        fra, _ = sites
        here = Writer(fra, random.Random(33), "f")
        await here.begin(30)
        await fra.sequence(seal="quarter")
        await here.begin(20)
        await fra.sequence()
        old, _ = await fra.store.logs(own=True)
        await self.lose(fra, old.origin)
        indexer = indexer_of(fra)
        await run(indexer, 3)
        assert indexer.messages == 20
        assert indexer.until <= 0
        assert await compare(fra, random.Random(34), 20) > 20
        await self.bring_back(fra)
        await run(indexer, 3)
        assert (indexer.messages, indexer.behind) == (50, 0)
        assert indexer.until > fra.clock.now_ms() - 60_000
        assert await compare(fra, random.Random(35), 20) > 20

    async def test_built_anew_over_two_quarters(self, sites, monkeypatch):
        """While an earlier log is being read, what the later one says does not move the border of the index."""
        fra, _ = sites
        monkeypatch.setattr(index, "_ENTRIES", 256)
        here = Writer(fra, random.Random(36), "f")
        await here.begin(600)
        await fra.sequence(seal="quarter")
        late = fra.accepted(tenant="acme")
        await fra.append([late])
        await fra.sequence()
        indexer = await opened(fra)
        await indexer.turn()
        assert indexer.behind > 0
        oldest = max(story[0].at for story in here.stories)
        assert indexer.until <= oldest
        await settle(indexer)
        assert indexer.messages == 601

    async def test_records_of_the_ledger_are_no_messages(self, sites):
        fra, _ = sites
        here = Writer(fra, random.Random(37), "f")
        await here.begin(20)
        gap = Event(f"{LEDGER_NODE}.fra.1.1", 0, "", Kind.GAP, fra.clock.now_ms(), {}, ref="node-9:1 3-4")
        await fra.append([gap], node=LEDGER_NODE)
        lost = Event("lost", 0, "", Kind.GAP, fra.clock.now_ms(), {}, reason="lost")  # repair's, for a first event
        await fra.append([lost])
        await fra.append([fra.then(lost, Kind.CANCELLED, {})])
        await fra.sequence()
        indexer = await opened(fra)
        await settle(indexer)
        assert indexer.messages == 20
        await check_segments(fra)

    async def test_a_message_that_makes_no_sense(self, sites):
        """A peer's, or of a program that wrote nonsense: the others are indexed."""
        fra, iad = sites
        here, there = Writer(fra, random.Random(38), "f"), Writer(iad, random.Random(39), "i")
        await here.begin(20)
        await there.begin(20)
        await iad.append([there.accepted(body=["no", "text"]), there.accepted(**{"class": 7}, planned_route=[1])])
        await iad.append([iad.accepted(mid="two\nlines", tenant="acme")])
        for each in sites:
            await each.sequence()
        await fra.catch_up(iad)
        with capture_logs() as logs:
            indexer = await opened(fra)
            await settle(indexer)
        assert [line["event"] for line in logs if line["log_level"] == "error"] == ["message_not_indexed"]
        assert indexer.messages == 41

    async def lose(self, site: Site, origin: str) -> None:
        self.lost = await site.database[BUNDLES].find_one_and_delete({"_id": f"{origin}|0"})
        assert self.lost is not None

    async def bring_back(self, site: Site) -> None:
        await site.database[BUNDLES].insert_one(self.lost)


class TestService:
    """The ledger that leads indexes, and says how far it is; a node finds with it."""

    async def test_a_message_is_indexed_behind_the_node(self, settings, node, carriers):
        await node.connect(await carriers())
        own = {"node": "ledger-1", "ledger_key": type(settings.secret_key)(base64.b64encode(bytes(32)).decode())}
        ledger = await Ledger.open(settings.model_copy(update=own))
        stop = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ledger.run(stop))
                mid = (await node.send(body="Indexed by the service"))["id"]
                await node.reaches(mid, "delivered")
                await node.until(lambda: ledger.indexer is not None and ledger.indexer.messages == 1, 30)
                await node.until(lambda: ledger.indexer is not None and ledger.indexer.behind == 0)
                gauges = generate_latest(ledger.registry).decode()
                assert "heliograph_search_messages 1.0" in gauges
                assert all(name in gauges for name in INDEX_GAUGES)
                status, page = await node.call("GET", "/v1/messages?q=indexed+service")
                assert (status, [item["id"] for item in page["data"]]) == (200, [mid])
                assert page["indexed_until"] is not None
                stop.set()
        finally:
            await ledger.close()
