"""Is a search as fast among ten million messages as among a thousand? The product's own index over generated messages, each kind of query many times,
and what the index costs. Beside it, on the first level, what else was considered: one document a message with an array of tokens, indexed by MongoDB.

Stored are of each message its `accepted` event and an outcome, and a log of the former without tiles. Nothing is random beyond a seed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pymongo import ASCENDING, DESCENDING, MongoClient
from pymongo.collection import Collection
from pymongo.write_concern import WriteConcern

from bench.tools import BenchError, cpu_seconds, free_port
from controlplane.api.story import summary
from controlplane.clock import SystemClock
from controlplane.domain.events import Event, Kind, leaf_bytes
from controlplane.domain.message import fold
from controlplane.domain.query import parse, words
from controlplane.embedded.mongod import Mongod
from controlplane.ids import new_mid
from controlplane.ledger.index import Indexer
from controlplane.ledger.merkle import EMPTY
from controlplane.ledger.tiles import WIDTH, encode_bundle
from controlplane.settings import Settings
from controlplane.store.client import Database, connect
from controlplane.store.copies import Copies
from controlplane.store.events import EventReader, to_document
from controlplane.store.ledger import BUNDLES, LedgerStore, Log
from controlplane.store.schema import EVENTS, ensure_indexes
from controlplane.store.search import DATA, SEGMENTS, SearchStore
from controlplane.store.search_read import Search
from controlplane.store.search_tokens import Tokens

__all__ = ["run"]

_SECRET = "a-secret-key-for-benchmarks-of-32-characters"
_SPAN_MS = 30 * 86_400_000
_WRITERS = 2
_CHUNK = 1_024
_ROUNDS = 100
_ORIGIN = "bench.example/ledger/local/1"
_TENANTS = [f"tenant-{number}" for number in range(20)]
_SENDERS = [f"Sender{number}" for number in range(60)]
_ROUTES = [f"route-{number}" for number in range(12)]
_CLASSES = ["otp", "transactional", "marketing"]
_VOCABULARY = 30_000
_OUTCOMES = {"delivered": 0.97, "undelivered": 0.02, "failed": 0.0095, "cancelled": 0.0005}
_BYTES_A_MESSAGE = 1_500
"""On disk, with events and index, at most: what is asked for before it begins."""
_LIMIT = 50


def run(
    work: Path, up_to: int, *, before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Levels of a million, ten million … messages. `before` and `after` are called around each measurement."""
    place = work / "search"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if shutil.disk_usage(place).free < up_to * _BYTES_A_MESSAGE:
        raise BenchError(
            f"search: {up_to:,} messages take up to {up_to * _BYTES_A_MESSAGE / 1e9:.0f} GB in {place}; choose fewer with --messages"
        )
    mongod = Mongod(place, free_port(), cache_gb=2.0)
    mongod.start()
    levels: list[dict[str, Any]] = []
    others: dict[str, Any] = {}
    began = time.time_ns() // 1_000_000 - _SPAN_MS - 3_600_000
    try:
        stored, level = 0, min(1_000_000, up_to)
        while level <= up_to:
            _fill(mongod.uri, began, stored, level, up_to)
            stored = level
            levels.append(asyncio.run(_level(mongod, stored, began, up_to, before, after)))
            print(f"search {json.dumps(levels[-1])}", flush=True)
            if not others:
                before()
                others = _alternative(mongod, began, up_to)
                after()
                print(f"search {json.dumps(others)}", flush=True)
            level *= 10
    finally:
        mongod.stop()
        shutil.rmtree(place, ignore_errors=True)
    return {"levels": levels, "array_of_tokens": others}


# -- messages ----------------------------------------------------------------------------------------------------------


class _Source:
    """The messages by number: the same each time."""

    def __init__(self, began: int, of: int) -> None:
        self._began = began
        self._of = of
        chance = random.Random(1)
        letters = "etaoinshrdlucmfwygpbvk"
        self.vocabulary = ["".join(chance.choices(letters, k=chance.randrange(2, 11))) for _ in range(_VOCABULARY)]
        self._weights = list(accumulate(1 / (rank + 5) for rank in range(_VOCABULARY)))
        self._tenants = list(accumulate(1 / (rank + 1) for rank in range(len(_TENANTS))))

    def at(self, number: int) -> int:
        return self._began + _SPAN_MS * number // self._of

    def message(self, number: int) -> tuple[Event, Event]:
        chance = random.Random(number)
        at = self.at(number)
        text = " ".join(chance.choices(self.vocabulary, cum_weights=self._weights, k=chance.randrange(6, 19)))
        tenant = chance.choices(_TENANTS, cum_weights=self._tenants)[0]
        route = chance.choice(_ROUTES)
        mid = new_mid(at)
        data = {
            "to": f"+49151{chance.randrange(10**8):08d}",
            "from": chance.choice(_SENDERS),
            "body": text,
            "class": chance.choice(_CLASSES),
            "reference": f"order-{number:08d}",
            "encoding": "gsm7",
            "parts": 1,
            "planned_route": route,
            "expires_at": at + 172_800_000,
        }
        outcome = chance.choices(list(_OUTCOMES), list(_OUTCOMES.values()))[0]
        first = Event(
            mid, 0, tenant, Kind.ACCEPTED, at, data, dc="local", node="bench", epoch=1, q=number + 1, salt=b"s"
        )
        first.leaf = leaf_bytes(first, "0" * 64)
        receipt = {"route": route, "connector": f"c-{route}", **({"part": 1} if outcome[-9:] == "delivered" else {})}
        last = Event(
            mid,
            1,
            tenant,
            Kind(outcome),
            at + 3_000,
            receipt,
            route=route,
            dc="local",
            node="bench",
            epoch=2,
            q=number + 1,
            salt=b"s",
        )
        return first, last


def _fill(uri: str, began: int, stored: int, level: int, of: int) -> None:
    start = stored // WIDTH * WIDTH  # the bundle that was not full is written anew
    share = (level - start) // _WRITERS // WIDTH * WIDTH
    borders = [start, *(start + share * number for number in range(1, _WRITERS)), level]
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write, args=(uri, began, of, stored, first, last)) for first, last in pairwise(borders)
    ]
    with MongoClient[dict[str, Any]](uri) as client:
        client["heliograph"].drop_collection(BUNDLES)
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        if writer.exitcode:
            raise BenchError(f"search: a writer ended with code {writer.exitcode}")
    with MongoClient[dict[str, Any]](uri) as client:
        log = Log(origin=_ORIGIN, dc="local", own=True, vkey="", size=level, root=EMPTY, checkpoint="-")
        client["heliograph"]["ledger_logs"].replace_one({"_id": _ORIGIN}, log.document(), upsert=True)
        client.admin.command("fsync")


def _write(uri: str, began: int, of: int, stored: int, first: int, last: int) -> None:
    source = _Source(began, of)
    with MongoClient[dict[str, Any]](uri) as client:
        quick = WriteConcern(w=1, j=False)
        events = client["heliograph"].get_collection(EVENTS, write_concern=quick)
        bundles = client["heliograph"].get_collection(BUNDLES, write_concern=quick)
        for start in range(first, last, _CHUNK):
            messages = [source.message(number) for number in range(start, min(start + _CHUNK, last))]
            leaves = [accepted.leaf for accepted, _ in messages]
            for accepted, _ in messages:
                accepted.leaf = b""  # in the log is enough
            new = messages[max(stored - start, 0) :]
            events.insert_many([to_document(event) for pair in new for event in pair], ordered=False)
            bundles.insert_many(
                [
                    {"_id": f"{_ORIGIN}|{(start + at) // WIDTH}", "data": encode_bundle(leaves[at : at + WIDTH])}
                    for at in range(0, len(leaves), WIDTH)
                ],
                ordered=False,
            )


# -- the index ---------------------------------------------------------------------------------------------------------


def _settings(mongod: Mongod) -> Settings:
    return Settings(
        mongodb_uri=mongod.uri, database="heliograph", secret_key=_SECRET, node="bench", state_dir=mongod.data
    )


async def _level(
    mongod: Mongod, stored: int, began: int, of: int, before: Callable[[], None], after: Callable[[], None]
) -> dict[str, Any]:
    settings = _settings(mongod)
    database = connect(settings)
    try:
        await ensure_indexes(database)
        indexing = await _index(mongod, database, settings, stored)
        before()
        queries = await _queries(database, settings, stored, began, of)
        after()
        return {"messages": stored, "indexing": indexing, "queries": queries}
    finally:
        await database.client.close()


async def _index(mongod: Mongod, database: Database, settings: Settings, stored: int) -> dict[str, float]:
    assert mongod.process is not None
    store = LedgerStore(database)
    reader = EventReader(database, settings.datacenter)
    search = SearchStore(database)
    held = (await search.state()).logs.get(_ORIGIN, 0)
    indexer = Indexer(
        store,
        Copies(database, store),
        search,
        reader,
        Tokens(settings.secret),
        SystemClock(),
        term=time.time_ns(),
        waiting=bool,
    )
    await indexer.open()
    started, own, server = time.perf_counter(), time.process_time(), cpu_seconds([mongod.process.pid])
    count = 0
    while entries := await indexer.turn():
        count += entries
    seconds = time.perf_counter() - started
    if count != stored - held:
        raise BenchError(f"search: {stored - held:,} messages were to be indexed, and {count:,} were")
    await search.drop_replaced()
    await database.client.admin.command("fsync")
    size = 0
    for name in (SEGMENTS, DATA):
        stats = await database.command("collStats", name)
        size += (
            stats["storageSize"]
            + stats["totalIndexSize"]
            - stats["wiredTiger"]["block-manager"]["file bytes available for reuse"]
        )
    return {
        "messages": count,
        "held_before": held,
        "messages_a_second": round(count / seconds),
        "indexer_us": round((time.process_time() - own) / count * 1e6, 1),
        "mongod_us": round((cpu_seconds([mongod.process.pid]) - server) / count * 1e6, 1),
        "bytes_a_message": round(size / indexer.messages, 1),
        "segments": indexer.segments,
    }


def _asked(source: _Source, stored: int) -> Iterator[tuple[str, Callable[[random.Random], tuple[str, str]]]]:
    """Kind of query → (tenant, text) of one of it."""

    def of(chance: random.Random) -> tuple[Event, dict[str, Any]]:
        first, _ = source.message(chance.randrange(stored))
        return first, first.data or {}

    def about(make: Callable[[Event, dict[str, Any]], str]) -> Callable[[random.Random], tuple[str, str]]:
        def ask(chance: random.Random) -> tuple[str, str]:
            first, data = of(chance)
            return first.tenant, make(first, data)

        return ask

    frequent, rare = source.vocabulary[3], source.vocabulary[-1]
    yield "list", about(lambda _first, _data: "")
    yield "list of a day", about(lambda first, _data: f"before:{_iso(first.at)}")
    yield "status failed (1 %)", about(lambda _first, _data: "status:failed")
    yield "status cancelled (0.05 %)", about(lambda _first, _data: "status:cancelled")
    yield "status unknown (none)", about(lambda _first, _data: "status:unknown")
    yield "route and class", about(lambda _first, data: f"route:{data['planned_route']} class:{data['class']}")
    yield "route and status failed", about(lambda _first, data: f"route:{data['planned_route']} status:failed")
    yield "sender", about(lambda _first, data: f"from:{data['from']}")
    yield "number", about(lambda _first, data: f"to:{data['to']}")
    yield "number's end, 8 digits", about(lambda _first, data: f"to:{data['to'][-8:]}")
    yield "number's end, 4 digits", about(lambda _first, data: f"to:{data['to'][-4:]}")
    yield "number's beginning, 9 digits", about(lambda _first, data: f"to:{data['to'][:10]}*")
    yield "reference", about(lambda _first, data: f"ref:{data['reference']}")
    yield "reference's beginning", about(lambda _first, data: f"ref:{data['reference'][:12]}*")
    yield "a frequent word", about(lambda _first, _data: frequent)
    yield "a rare word", about(lambda _first, _data: rare)
    yield "a word that is nowhere", about(lambda _first, _data: "zzzzzzzz")
    yield "three words of a text", about(lambda _first, data: " ".join(words(data["body"])[:3]))
    yield "a frequent and a rare word", about(lambda _first, _data: f"{frequent} {rare}")
    yield "word, sender and status failed", about(lambda _first, data: f"{frequent} from:{data['from']} status:failed")
    yield "number, all tenants", lambda chance: ("*", f"to:{of(chance)[1]['to']}")


def _iso(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000))


async def _queries(
    database: Database, settings: Settings, stored: int, began: int, of: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of the first page, from the text of the query to the JSON of the answer."""
    source, clock = _Source(began, of), SystemClock()
    search = Search(database, EventReader(database, settings.datacenter), settings.secret, clock)
    found: dict[str, dict[str, float]] = {}
    for name, ask in _asked(source, stored):
        chance = random.Random(stored)
        times, hits, more = [], 0, 0
        for _ in range(_ROUNDS):
            tenant, text = ask(chance)
            tenants = set(_TENANTS) if tenant == "*" else {tenant}
            started = time.perf_counter()
            page = await search.page(parse(text, clock.now_ms()), tenants, None, _LIMIT)
            now = clock.now_ms()
            json.dumps([summary(message, events, now) for message, events in page.items])
            times.append((time.perf_counter() - started) * 1000)
            hits, more = hits + len(page.items), more + (page.next is not None and len(page.items) < _LIMIT)
        times.sort()
        found[name] = {
            **{f"p{share}": round(times[min(len(times) - 1, len(times) * share // 100)], 1) for share in (50, 95, 99)},
            "hits": round(hits / _ROUNDS, 1),
            "short": more,
        }
    return found


# -- what else was considered --------------------------------------------------------------------------------------------


def _alternative(mongod: Mongod, began: int, of: int, count: int = 200_000) -> dict[str, Any]:
    """A document a message with its tokens in an array, and a compound multikey index: written as fast as it goes."""
    assert mongod.process is not None
    source, tokens = _Source(began, of), Tokens(_SECRET.encode())
    with MongoClient[dict[str, Any]](mongod.uri) as client:
        collection: Collection[dict[str, Any]] = client["heliograph"].get_collection(
            "search_alternative", write_concern=WriteConcern(w="majority", j=True)
        )
        collection.create_index([("tokens", ASCENDING), ("at", DESCENDING)])
        documents = []
        for number in range(count):
            first, _ = source.message(number)
            message = fold([first])
            assert message is not None
            found = [token - 2**31 for token in tokens.of_message(message)]
            documents.append({"_id": first.mid, "at": first.at, "tokens": found})
        server, started = cpu_seconds([mongod.process.pid]), time.perf_counter()
        for start in range(0, count, _CHUNK):
            collection.insert_many(documents[start : start + _CHUNK], ordered=False)
        seconds = time.perf_counter() - started
        server = cpu_seconds([mongod.process.pid]) - server
        client.admin.command("fsync")
        stats = client["heliograph"].command("collStats", "search_alternative")
        collection.drop()
    return {
        "messages": count,
        "tokens_a_message": round(sum(len(each["tokens"]) for each in documents) / count, 1),
        "messages_a_second": round(count / seconds),
        "mongod_us": round(server / count * 1e6, 1),
        "bytes_a_message": round((stats["storageSize"] + stats["totalIndexSize"]) / count, 1),
    }
