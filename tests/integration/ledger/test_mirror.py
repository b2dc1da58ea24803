"""The mirror: what it copies, what it refuses, and that it can be killed anywhere."""

from __future__ import annotations

import asyncio
import base64
import io
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from controlplane.domain.events import Kind
from controlplane.domain.message import fold
from controlplane.errors import StoreUnavailableError
from controlplane.ledger.chunk import DamagedCopyError, RefusedReplyError
from controlplane.ledger.entries import event_of
from controlplane.ledger.merkle import root_of
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.ledger.scrub import Scrub
from controlplane.ledger.tiles import decode_bundle, tile_hashes, tiles_of
from controlplane.ledger.wire import Ask
from controlplane.settings import Settings
from controlplane.store.copies import local_id, local_mid
from controlplane.store.ledger_scrub import ScrubStore
from tests.simulators.ledgers import Site, peer_of, site, stories, two_sites


@pytest.fixture
async def sites(settings: Settings) -> AsyncIterator[tuple[Site, Site]]:
    async with two_sites(settings) as both:
        yield both


async def identical(origin_site: Site, copy_site: Site, origin: str) -> None:
    """Entry for entry, tile for tile, event for event; and the root once more from the copy's own entries."""
    own, copy = await origin_site.store.log(origin), await copy_site.store.log(origin)
    assert own is not None
    assert copy is not None
    assert (own.size, own.root, own.frontier) == (copy.size, copy.root, copy.frontier)
    entries = []
    for index in range((own.size + 255) // 256):
        width = min(256, own.size - 256 * index)
        theirs = decode_bundle(await origin_site.store.bundle(origin, index))[:width]
        ours = decode_bundle(await copy_site.store.bundle(origin, index))[:width]
        assert ours == theirs
        entries += ours
    data = tile_hashes(entries)
    assert root_of([data[at : at + 32] for at in range(0, len(data), 32)]) == copy.root
    for tile in tiles_of(own.size):
        theirs = await origin_site.store.tile(origin, tile.level, tile.index)
        ours = await copy_site.store.tile(origin, tile.level, tile.index)
        assert ours[: 32 * tile.width] == theirs[: 32 * tile.width]
    before = {key: value for key, value in (await stories(origin_site)).items() if value[0] == origin_site.dc}
    after = {key: value for key, value in (await stories(copy_site)).items() if value[0] == origin_site.dc}
    assert before == after


class TestCopy:
    """A copy is the same log with the same payloads, and the log's owner knows how far it is."""

    async def test_everything_arrives(self, sites):
        fra, iad = sites
        await fra.messages(700)
        sequencer = await fra.sequence()
        origin = sequencer.log.origin
        mirror = await iad.catch_up(fra)
        await identical(fra, iad, origin)
        assert mirror.state.behind == 0
        assert mirror.state.held == sequencer.log.size == 1051
        (cosigned,) = await fra.store.cosignatures(origin)
        assert (cosigned.role, cosigned.size) == ("mirror", 1051)
        assert cosigned.cosigner == "sms.example/ledger/iad/mirror"
        await fra.messages(300)  # the last bundle and the last tiles grow
        await fra.sequence()
        await iad.catch_up(fra)
        await identical(fra, iad, origin)
        (cosigned,) = await fra.store.cosignatures(origin)
        assert cosigned.size == 1501

    async def test_runs_find_a_mirrored_event(self, sites):
        fra, iad = sites
        events = await fra.messages(20)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        for event in events:
            runs = await iad.store.find_runs("fra", event.node, event.epoch, event.q)
            index = runs[0].index + event.q - runs[0].q
            assert decode_bundle(await iad.store.bundle(log.origin, 0))[index] == event.leaf

    async def test_a_pull_waits_for_news(self, sites):
        fra, iad = sites
        await fra.messages(1)
        log = (await fra.sequence()).log
        async with iad.client(fra) as client, asyncio.TaskGroup() as group:
            pull = group.create_task(client.pull(Ask(log.origin, log.size, wait_ms=8_000)))
            await asyncio.sleep(0.3)
            assert not pull.done()
            await fra.messages(1)
            await fra.sequence()
            reply = await pull
            assert reply.size > log.size
            nothing = await client.pull(Ask(log.origin, reply.size, wait_ms=100))
            assert nothing.entries == []

    async def test_a_successor_is_followed_through_a_seal(self, sites):
        fra, iad = sites
        await fra.messages(10)
        first = (await fra.sequence()).log
        await iad.catch_up(fra)
        await fra.messages(3)
        second = (await fra.sequence(seal="key")).log
        await fra.messages(300)
        await fra.sequence()
        await iad.catch_up(fra)
        for origin in (first.origin, second.origin):
            await identical(fra, iad, origin)
        old, new = await iad.store.logs(own=False)
        assert (old.state, old.next, new.previous) == ("sealed", second.origin, first.origin)

    async def test_a_mirror_that_begins_late_takes_all_logs_in_order(self, sites):
        fra, iad = sites
        await fra.messages(10)
        await fra.sequence(seal="key")
        await fra.messages(10)
        await fra.sequence(seal="key")
        await iad.catch_up(fra)
        logs = await iad.store.logs(own=False)
        assert [log.state for log in logs] == ["sealed", "sealed", "open"]
        for log in logs:
            await identical(fra, iad, log.origin)

    async def test_both_directions_at_once(self, sites):
        fra, iad = sites
        await fra.messages(50)
        await iad.messages(60)
        logs = [(await each.sequence()).log for each in sites]
        await fra.catch_up(iad)
        await iad.catch_up(fra)
        await identical(fra, iad, logs[0].origin)
        await identical(iad, fra, logs[1].origin)
        assert await stories(fra) == await stories(iad)

    async def test_payloads_one_by_one(self, sites):
        fra, iad = sites
        await fra.messages(5)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        async with fra.client(iad) as client:
            rows = await client.payloads(log.origin, [0, 3, log.size - 1, log.size])
            assert rows[3] is None
            events = [event_of(*row) for row in rows[:3]]
            assert events[0].kind is Kind.OPENED
            assert events[1].data["from"] == "Heliograph"


class TestErasure:
    """What was erased in one datacenter is erased in all, whatever comes in which order."""

    async def erased(self, fra: Site) -> tuple[Any, Any]:
        (event,) = await fra.append([fra.accepted()])
        (later,) = await fra.append([fra.then(event, Kind.FAILED, {})])
        return event, later

    async def test_copies_are_erased(self, sites):
        fra, iad = sites
        event, later = await self.erased(fra)
        await fra.sequence()
        await iad.catch_up(fra)
        assert (await iad.reader.load(event.mid))[0].data is not None
        await fra.append([fra.then(later, Kind.ERASED, {"status": "failed"})])
        await fra.reader.erase(event.mid)
        await fra.sequence()
        await iad.catch_up(fra)
        story = await iad.reader.load(event.mid)
        assert [each.data for each in story] == [None, None, {"status": "failed"}]
        assert [each.salt is None for each in story] == [True, True, False]
        assert {each.tenant for each in story} == {"sample"}
        assert fold(story).erased

    async def test_what_was_erased_before_it_was_mirrored_has_its_tenant(self, sites):
        fra, iad = sites
        event, later = await self.erased(fra)
        await fra.append([fra.then(later, Kind.ERASED, {"status": "failed"})])
        await fra.reader.erase(event.mid)
        await fra.sequence()
        await iad.catch_up(fra)
        story = await iad.reader.load(event.mid)
        assert [each.data for each in story] == [None, None, {"status": "failed"}]
        assert {each.tenant for each in story} == {"sample"}

    async def test_an_event_that_comes_after_the_erasure(self, sites):
        """k 0 and 1 were written by a node whose events are sequenced later."""
        fra, iad = sites
        event, later = await self.erased(fra)
        await fra.append([fra.then(later, Kind.ERASED, {"status": "failed"})], node="node-2")
        await fra.database["terms"].update_one({"_id": "node-1:1"}, {"$set": {"sequenced": 0}})
        await fra.sequence()
        await iad.catch_up(fra)
        assert await iad.copies.erasures() != []
        await fra.database["terms"].update_one({"_id": "node-1:1"}, {"$unset": {"sequenced": ""}})
        await fra.sequence()
        await iad.catch_up(fra)  # fra has not come to erase its own yet: their payloads are on the wire
        assert [each.data for each in await iad.reader.load(event.mid)] == [None, None, {"status": "failed"}]
        assert await iad.copies.erasures() == []

    async def test_erased_elsewhere(self, sites):
        """iad erases a message of fra's: fra learns it from iad's log."""
        fra, iad = sites
        event, later = await self.erased(fra)
        await fra.sequence()
        await iad.catch_up(fra)
        await iad.append([iad.then(later, Kind.ERASED, {"status": "failed"})])
        await iad.sequence()
        await fra.catch_up(iad)
        assert [each.data for each in await fra.reader.load(event.mid)] == [None, None, {"status": "failed"}]


class TestConflict:
    """Two messages under one id, accepted in two datacenters that did not hear of each other: both are readable in both, each under the plain id at home."""

    async def test_the_same_key_in_both(self, sites):
        fra, iad = sites
        mid = "0" * 26
        ours = []
        for each, number in ((fra, "+4915100000001"), (iad, "+4915100000002")):
            (event,) = await each.append([each.accepted(mid, to=number)])
            more = await each.append([each.then(event, Kind.CANCELLED, {})])
            ours.append([event, *more])
            await each.sequence()
        for each, other, home, away in ((fra, iad, *ours), (iad, fra, *ours[::-1])):
            await each.catch_up(other)
            assert [e.leaf for e in await each.reader.load(mid)] == [e.leaf for e in home]
            second = await each.reader.load(local_mid(mid, other.dc))
            assert [e.leaf for e in second] == [e.leaf for e in away]
            assert fold(second).to == away[0].data["to"]
            apart = await each.copies.apart(other.dc, [mid])
            assert [local_id(event_of(e.leaf, None, None), apart) for e in second] == [e.id for e in second]
        # what comes later goes there as well, and erasing one leaves the other
        (erased,) = await fra.append([fra.then(ours[0][1], Kind.ERASED, {"status": "cancelled"})])
        await fra.reader.erase(mid)
        await fra.sequence()
        await iad.catch_up(fra)
        second = await iad.reader.load(local_mid(mid, "fra"))
        assert [e.data for e in second] == [None, None, {"status": "cancelled"}]
        assert second[2].leaf == erased.leaf
        assert (await iad.reader.load(mid))[0].data is not None
        for each, log in ((iad, fra), (fra, iad)):  # a peer gives back what it has under the second name
            (mirrored,) = await each.store.logs(own=False)
            async with log.client(each) as client:
                rows = await client.payloads(mirrored.origin, list(range(mirrored.size)))
                assert all(event_of(*row) for row in rows)
                assert sum(row[2] is not None for row in rows) >= 2

    async def test_an_earlier_event_that_comes_later(self, sites):
        """fra's k 1 is there under the plain id when its k 0 turns out to be another message than iad's."""
        fra, iad = sites
        mid = "1" * 26
        (event,) = await fra.append([fra.accepted(mid)])
        await fra.append([fra.then(event, Kind.CANCELLED, {})], node="node-2")
        await fra.database["terms"].update_one({"_id": "node-1:1"}, {"$set": {"sequenced": 0}})
        await fra.sequence()
        await iad.append([iad.accepted(mid)])
        await iad.catch_up(fra)
        assert [e.dc for e in await iad.reader.load(mid)] == ["iad", "fra"]
        await fra.database["terms"].update_one({"_id": "node-1:1"}, {"$unset": {"sequenced": ""}})
        await fra.sequence()
        await iad.catch_up(fra)
        assert [e.dc for e in await iad.reader.load(mid)] == ["iad"]
        assert [e.k for e in await iad.reader.load(local_mid(mid, "fra"))] == [0, 1]

    async def test_one_ordinal_thrice_in_one_log(self, sites):
        """No insert-only store writes that; a damaged one may. It is said, and stops nothing."""
        fra, iad = sites
        mid = "2" * 26
        for number in range(3):
            await fra.append([fra.accepted(mid)], node=f"node-{number}")
            await fra.sequence()
            await iad.catch_up(fra)
            await fra.database["events"].delete_one({"_id": f"{mid}:0"})
        assert len(await iad.reader.load(mid)) == 1
        assert len(await iad.reader.load(local_mid(mid, "fra"))) == 1


class Liar:
    """A peer that has the right certificate and changes what it answers."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.change: Callable[[dict[str, Any]], Any] = lambda reply: reply
        self.raw: bytes | None = None
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self.target + request.path_qs, data=body) as answer,
        ):
            data = await answer.read()
            if request.path == "/mirror" and answer.status == 200:
                data = (
                    self.raw
                    if self.raw is not None
                    else msgspec.msgpack.encode(self.change(msgspec.msgpack.decode(data)))
                )
            return web.Response(body=data, status=answer.status, content_type=answer.content_type)


@pytest.fixture
async def liar(sites) -> AsyncIterator[Liar]:
    made = Liar(sites[0].url)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    place = web.TCPSite(runner, "127.0.0.1", 0)
    await place.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


def entry(place: int, change: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(reply: dict[str, Any]) -> dict[str, Any]:
        if reply["entries"]:
            row = list(reply["entries"][place])
            change(row)
            reply["entries"][place] = row
        return reply

    return changed


def put(place: int, value: Any) -> Callable[[list[Any]], Any]:
    return lambda row: row.__setitem__(place, value)


def swap_payloads(reply: dict[str, Any]) -> dict[str, Any]:
    if len(reply["entries"]) > 9:
        one, other = list(reply["entries"][5]), list(reply["entries"][6])
        one[1:], other[1:] = other[1:], one[1:]
        reply["entries"][5:7] = [one, other]
    return reply


def other_tenant(row: list[Any]) -> None:
    row[2] = row[2].replace(b'"sample"', b'"thief"')


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "wrong proof": lambda reply: reply | {"proof": [b"\x00" * 32]},
    "an entry is missing at the end": lambda reply: reply | {"entries": reply["entries"][:-1], "to": reply["to"] - 1},
    "fewer entries than it says": lambda reply: reply | {"entries": reply["entries"][:-1]},
    "an entry is missing within": lambda reply: reply | {"entries": reply["entries"][:3] + reply["entries"][4:]},
    "entries in another order": lambda reply: reply | {"entries": reply["entries"][:4] + reply["entries"][:3:-1]},
    "an entry twice": lambda reply: (
        reply | {"entries": [*reply["entries"], *reply["entries"][-1:]], "to": reply["to"] + 1}
    ),
    "swapped payloads": swap_payloads,
    "another tenant": entry(4, other_tenant),
    "payload without salt": entry(4, put(1, None)),
    "salt of another length": entry(4, put(1, b"x" * 65)),
    "an altered leaf": entry(4, lambda row: row.__setitem__(0, row[0].replace(b'"at":1', b'"at":2'))),
    "a leaf with white space": entry(4, lambda row: row.__setitem__(0, row[0].replace(b",", b", ", 1))),
    "a leaf of another datacenter": entry(
        4, lambda row: row.__setitem__(0, row[0].replace(b'"dc":"fra"', b'"dc":"iad"'))
    ),
    "a leaf that is none": entry(4, put(0, b"{}")),
    "a leaf that is no JSON": entry(4, put(0, b"\xff\xfe")),
    "an entry that is too long": entry(4, put(0, b"x" * 65_536)),
    "another size": lambda reply: reply | {"size": reply["size"] + 1},
    "another beginning": lambda reply: reply | {"from": reply["from"] + 1},
    "an unsigned checkpoint": lambda reply: reply | {"checkpoint": reply["checkpoint"].replace("\n\n— ", "\n\n— x")},
    "a checkpoint of another root": lambda reply: (
        reply
        | {
            "checkpoint": reply["checkpoint"].replace(
                reply["checkpoint"].split("\n")[2], base64.b64encode(b"\x07" * 32).decode()
            )
        }
    ),
    "no note": lambda reply: reply | {"checkpoint": "hello"},
    "unknown members": lambda reply: reply | {"more": 1},
    "another type": lambda reply: reply | {"entries": 5},
    "a longer proof than any": lambda reply: reply | {"proof": [b"\x00" * 32] * 64},
}


class TestLies:
    """Every byte is verified before it is stored: of an answer with one wrong byte nothing is kept, and the truth is taken afterwards."""

    async def kept(self, iad: Site) -> tuple[Any, ...]:
        counts = [
            await iad.database[name].count_documents({})
            for name in ("events", "ledger_bundles", "ledger_tiles", "ledger_runs")
        ]
        return (*counts, [(log.size, log.checkpoint) for log in await iad.store.logs()])

    async def test_nothing_of_a_lie_is_stored(self, sites, liar):
        fra, iad = sites
        await fra.messages(30)
        await fra.sequence()
        for begun in (False, True):
            if begun:
                await iad.catch_up(fra)
                await fra.messages(30)
                await fra.sequence()
            before = await self.kept(iad)
            for name, change in LIES.items():
                liar.change = change
                async with iad.client(fra, liar.url) as client:
                    mirror = iad.mirror(fra, client)
                    with pytest.raises((RefusedReplyError, PeerError)):
                        await mirror.step()
                assert await self.kept(iad) == before, name
        assert await iad.store.findings() == []
        await iad.catch_up(fra)
        await identical(fra, iad, (await fra.store.logs())[0].origin)

    @pytest.mark.parametrize(
        "raw", [b"", b"\xc1", b"\x93\x01\x02", b"\x81\xa4from", b"\xdd\xff\xff\xff\xff", b"{}" * 1000]
    )
    async def test_garbage(self, sites, liar, raw):
        fra, iad = sites
        await fra.messages(1)
        await fra.sequence()
        liar.raw = raw
        async with iad.client(fra, liar.url) as client:
            with pytest.raises(PeerError):
                await iad.mirror(fra, client).step()
        assert await iad.store.logs() == []

    async def test_an_answer_without_end_is_not_read(self, sites, liar):
        fra, iad = sites
        await fra.messages(1)
        await fra.sequence()
        liar.raw = b"\x00" * (49 * 1024 * 1024)
        async with iad.client(fra, liar.url) as client:
            with pytest.raises(PeerError, match="more than"):
                await iad.mirror(fra, client).step()

    async def test_a_strangers_log_is_no_successor(self, sites, liar):
        """`next` is not signed: it may name what it likes."""
        fra, iad = sites
        await fra.messages(3)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        for name in ("sms.example/ledger/iad/2026q4", "other.example/ledger/fra/2027q1", log.origin + "-2", ""):
            liar.change = lambda reply, name=name: reply | {"next": name}
            async with iad.client(fra, liar.url) as client:
                mirror = iad.mirror(fra, client)
                try:
                    await mirror.step()
                except PeerError as error:
                    assert "404" in str(error)
        (copy,) = await iad.store.logs()
        assert (copy.state, copy.next) == ("open", "")

    async def test_a_successor_that_commits_to_something_else(self, sites):
        fra, iad = sites
        await fra.messages(3)
        first = (await fra.sequence()).log
        await iad.catch_up(fra)
        await fra.sequence(seal="key")
        await iad.database["ledger_logs"].update_one({"_id": first.origin}, {"$set": {"root": b"\x01" * 32}})
        async with iad.client(fra) as client:
            mirror = iad.mirror(fra, client)
            with pytest.raises(DamagedCopyError):  # our own copy is what is wrong, and it says so
                await mirror.step()

    async def test_bounds_of_requests(self, sites):
        fra, _ = sites
        await fra.messages(1)
        log = (await fra.sequence()).log
        async with aiohttp.ClientSession() as session:
            for body, status in (
                (io.BytesIO(b"x" * (1024 * 1024 + 1)), 413),
                (b"\xc1", 400),
                (msgspec.msgpack.encode({"origin": log.origin, "from": -1}), 400),
                (msgspec.msgpack.encode({"origin": log.origin, "from": 0, "limit": 9000}), 400),
                (msgspec.msgpack.encode({"origin": log.origin, "from": 0, "wait_ms": 10**6}), 400),
                (msgspec.msgpack.encode({"origin": "nowhere", "from": 0}), 404),
                (msgspec.msgpack.encode({"origin": log.origin, "from": 0, "have": "x"}), 403),
                (msgspec.msgpack.encode({"origin": log.origin, "from": 0, "have": log.checkpoint}), 403),
            ):
                async with session.post(fra.url + "/mirror", data=body) as answer:
                    assert answer.status == status
            async with session.post(
                fra.url + "/payloads", data=msgspec.msgpack.encode({"origin": log.origin, "indices": [0] * 1025})
            ) as answer:
                assert answer.status == 400


class TestFork:
    """Two histories, both signed: nothing more is taken, and both checkpoints are kept."""

    @pytest.mark.parametrize(("first", "second"), [(40, 40), (40, 90), (8, 300), (90, 40)])
    async def test_another_history(self, settings, sites, first, second):
        fra, iad = sites
        await fra.messages(first)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        async with site(settings, "fra") as twin:
            twin.knows(peer_of("iad"))
            async with twin.serving():
                await twin.messages(second)
                other = (await twin.sequence()).log
                assert other.origin == log.origin
                async with iad.client(twin) as client:
                    mirror = iad.mirror(twin, client)
                    with pytest.raises(RefusedReplyError):
                        await mirror.step()
        (finding,) = await iad.store.findings("open")
        assert finding.kind == "fork"
        assert log.checkpoint.strip() in finding.detail  # with iad's own cosignature behind it
        assert other.checkpoint.strip() in finding.detail
        (copy,) = await iad.store.logs()
        assert copy.state == "frozen"
        ((kind, ref),) = iad.recorded
        assert kind is Kind.FORK
        assert ref.split(" ")[:2] == [log.origin, str(other.size)]
        await fra.messages(2)
        await fra.sequence()
        async with iad.client(fra) as client:  # not even what continues the first history
            mirror = iad.mirror(fra, client)
            await mirror.step()
            assert "frozen" in mirror.state.problem
        assert (await iad.store.log(log.origin)).size == log.size

    async def test_an_old_checkpoint_is_no_fork(self, sites, liar):
        fra, iad = sites
        await fra.messages(10)
        old = (await fra.sequence()).log
        await fra.messages(10)
        await fra.sequence()
        await iad.catch_up(fra)
        liar.change = lambda reply: (
            reply | {"checkpoint": old.checkpoint, "size": old.size, "entries": [], "to": reply["from"], "proof": []}
        )
        async with iad.client(fra, liar.url) as client:
            mirror = iad.mirror(fra, client)
            await mirror.step()
            await mirror.step()
        assert await iad.store.findings() == []

    async def test_a_mirror_tells_a_restored_log(self, sites):
        """It holds more than there is, with our own signature."""
        fra, iad = sites
        await fra.messages(10)
        old = (await fra.sequence()).log
        await fra.messages(10)
        new = (await fra.sequence()).log
        async with iad.client(fra) as client:
            mirror = iad.mirror(fra, client)
            await mirror.step()
            await fra.database["ledger_logs"].replace_one({"_id": old.origin}, {"_id": old.origin, **old.document()})
            for _ in range(3):
                await mirror.step()
        (finding,) = await fra.store.findings("open")
        assert (finding.kind, finding.origin) == ("behind", new.origin)


class TestKill:
    """Killed after any step, it begins again, and the copy is the same."""

    class KilledError(Exception):
        pass

    @pytest.mark.parametrize("step", ["events", "staged", "advanced"])
    async def test_killed_at(self, sites, step):
        fra, iad = sites
        await fra.messages(400)
        (event,) = await fra.append([fra.accepted()])
        await fra.append([fra.then(event, Kind.ERASED, {"status": "failed"})])
        await fra.sequence()

        def at(where: str) -> None:
            if where == step:
                raise self.KilledError

        for _ in range(3):
            await fra.messages(60)
            await fra.reader.erase(event.mid)
            await fra.sequence()
            async with iad.client(fra) as client:
                mirror = iad.mirror(fra, client, at=at)
                with pytest.raises(self.KilledError):
                    await mirror.step()
        await iad.catch_up(fra)
        await identical(fra, iad, (await fra.store.logs())[0].origin)

    async def test_resumes_within_a_checkpoint(self, sites, monkeypatch):
        """What is stored of a long way to a checkpoint is not fetched again, and not shown before it is complete."""
        fra, iad = sites
        monkeypatch.setattr("controlplane.ledger.mirror._LIMIT", 300)
        await fra.messages(800)
        log = (await fra.sequence()).log
        async with iad.client(fra) as client:
            await iad.mirror(fra, client).step()
        held = await iad.copies.held(log.origin)
        copy = await iad.store.log(log.origin)
        assert (held.size, copy.size, copy.checkpoint) == (600, 0, "")
        await fra.messages(10)  # the next checkpoint is another one
        await fra.sequence()
        mirror = await iad.catch_up(fra)
        assert mirror._client.pulled_bytes < 700 * 800
        await identical(fra, iad, log.origin)

    @pytest.mark.parametrize("damaged", [False, True])
    async def test_its_document_alone_is_put_back(self, sites, monkeypatch, damaged):
        """What a longer copy has left behind the size is later than the next chunk, which is shorter: it is taken where it is right, and replaced where it is not."""
        fra, iad = sites
        monkeypatch.setattr("controlplane.ledger.mirror._LIMIT", 200)
        await fra.messages(40)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        kept = await iad.database["ledger_logs"].find_one({"_id": log.origin})
        monkeypatch.setattr("controlplane.ledger.mirror._LIMIT", 4096)
        await fra.messages(900)
        await fra.sequence()
        await iad.catch_up(fra)
        await iad.database["ledger_logs"].replace_one({"_id": log.origin}, kept)
        if damaged:
            for collection, identity in (("ledger_bundles", "2"), ("ledger_tiles", "0|3"), ("ledger_bundles", "5")):
                name = {"_id": f"{log.origin}|{identity}"}
                stored = await iad.database[collection].find_one(name)
                wrong = bytes([stored["data"][0] ^ 1]) + stored["data"][1:]
                await iad.database[collection].update_one(name, {"$set": {"data": wrong}})
            await iad.database["ledger_runs"].update_one({"index": {"$gt": 300}}, {"$set": {"count": 1}})
        monkeypatch.setattr("controlplane.ledger.mirror._LIMIT", 200)
        iad.wire()
        await iad.catch_up(fra)
        await fra.messages(400)
        await fra.sequence()
        await iad.catch_up(fra)
        await identical(fra, iad, log.origin)
        store = ScrubStore(iad.database)
        assert await Scrub(store, iad.copies, iad.settings, iad.clock).verify_all() == []

    async def test_two_at_once(self, sites, monkeypatch):
        """A ledger that does not know yet that another one leads."""
        fra, iad = sites
        monkeypatch.setattr("controlplane.ledger.mirror._LIMIT", 200)
        await fra.messages(900)
        await fra.sequence()
        async with iad.client(fra) as client:
            mirrors = [iad.mirror(fra, client) for _ in range(2)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(mirror.run()) for mirror in mirrors]
                async with asyncio.timeout(20):
                    while not (logs := await iad.store.logs()) or logs[0].size < 1351:
                        await asyncio.sleep(0.05)
                for task in tasks:
                    task.cancel()
        await identical(fra, iad, logs[0].origin)

    async def test_goes_on_after_the_store_was_away(self, sites, monkeypatch):
        fra, iad = sites
        monkeypatch.setattr("controlplane.ledger.mirror._LIMIT", 200)
        await fra.messages(400)
        await fra.sequence()
        put, calls = iad.copies.put, 0

        async def sometimes(dc, events):
            nonlocal calls
            calls += 1
            if calls % 2:
                raise StoreUnavailableError("away")
            await put(dc, events)

        monkeypatch.setattr(iad.copies, "put", sometimes)
        async with iad.client(fra) as client, asyncio.TaskGroup() as group:
            running = group.create_task(iad.mirror(fra, client).run())
            async with asyncio.timeout(30):
                while not (logs := await iad.store.logs()) or logs[0].size < 601:
                    await asyncio.sleep(0.05)
            running.cancel()
        await identical(fra, iad, logs[0].origin)

    async def test_damage_here_is_not_taken_for_a_fork(self, sites):
        fra, iad = sites
        await fra.messages(30)
        log = (await fra.sequence()).log
        await iad.catch_up(fra)
        await iad.database["ledger_tiles"].update_one(
            {"_id": f"{log.origin}|0|0"}, {"$set": {"data": b"\x00" * 32 * log.size}}
        )
        await fra.messages(30)
        await fra.sequence()
        async with iad.client(fra) as client:
            with pytest.raises(DamagedCopyError):
                await iad.mirror(fra, client).step()
        assert await iad.store.findings() == []

    async def test_a_damaged_event_does_not_stop_the_peers(self, sites):
        fra, iad = sites
        events = await fra.messages(5)
        log = (await fra.sequence()).log
        await fra.database["events"].update_one({"_id": events[1].id}, {"$set": {"data.body": "altered"}})
        await fra.database["events"].delete_one({"_id": events[3].id})
        await iad.catch_up(fra)
        assert (await iad.store.log(log.origin)).size == log.size
        assert [(await iad.reader.load(event.mid))[0].data is None for event in events] == [
            False,
            True,
            False,
            True,
            False,
        ]

    @pytest.mark.parametrize("restarted", [False, True])
    async def test_damaged_is_told_from_erased(self, sites, monkeypatch, restarted):
        """Both come without a payload. Damage is said to be that, and the payload is taken once the peer has mended its event."""
        fra, iad = sites
        monkeypatch.setattr("controlplane.ledger.bare._GRACE_SECONDS", 0.0)
        events = await fra.messages(5)
        (erased,) = await fra.append([fra.accepted()])
        await fra.reader.erase(erased.mid)  # its `erased` comes a round later
        log = (await fra.sequence()).log
        sound = await fra.database["events"].find_one({"_id": events[1].id})
        await fra.database["events"].update_one({"_id": events[1].id}, {"$set": {"data.body": "altered"}})
        monkeypatch.setattr("controlplane.ledger.mirror._LIMIT", 3)  # of several chunks the last one decides
        async with iad.client(fra) as client:
            mirror = iad.mirror(fra, client)
            while (await mirror.step()) or mirror.state.behind:
                if mirror.state.behind:
                    assert await iad.store.findings() == []
            found = {each.subject: each for each in await iad.store.findings("open")}
            assert found.keys() == {events[1].id, erased.id}
            assert (found[events[1].id].kind, found[events[1].id].origin) == ("event_altered", log.origin)
            assert "damaged before it was mirrored" in found[events[1].id].detail
            await fra.append([fra.then(erased, Kind.ERASED, {"status": "failed"})])
            await fra.sequence()
            while (await mirror.step()) or mirror.state.behind:
                pass
            (finding,) = await iad.store.findings("open")
            assert finding.subject == events[1].id
            store = ScrubStore(iad.database)
            (again,) = await Scrub(store, iad.copies, iad.settings, iad.clock).verify_all()
            assert again.id == finding.id  # scrubbing calls it the same
            await fra.database["events"].replace_one({"_id": events[1].id}, sound)
            if restarted:
                mirror = iad.mirror(fra, client)
            await mirror.step()
            assert await iad.store.findings("open") == []
        await identical(fra, iad, log.origin)
        assert await Scrub(store, iad.copies, iad.settings, iad.clock).verify_all() == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Two authorities; certificates for 127.0.0.1 of the first, one of the second."""
    home = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=home, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "other-ca"):
        openssl(*new, "-x509", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name, ca in (("fra", "ca"), ("iad", "ca"), ("stranger", "other-ca")):
        openssl(
            *new,
            "-x509",
            "-CA",
            f"{ca}.pem",
            "-CAkey",
            f"{ca}.key",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
            "-subj",
            f"/CN={name}",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        )
    return home


class TestWho:
    """Payloads go to peers alone."""

    def tls(self, authority: Any, name: str, ca: str = "ca") -> dict[str, Any]:
        return {
            "ledger_tls_certificate": authority / f"{name}.pem",
            "ledger_tls_key": authority / f"{name}.key",
            "ledger_tls_authorities": authority / f"{ca}.pem",
        }

    async def test_mutual_tls(self, settings, authority):
        async with (
            site(settings, "fra", **self.tls(authority, "fra")) as fra,
            site(settings, "iad", **self.tls(authority, "iad")) as iad,
        ):
            fra.knows(peer_of("iad"))
            iad.knows(peer_of("fra"))
            async with fra.serving(), iad.serving():
                await fra.messages(3)
                log = (await fra.sequence()).log
                await iad.catch_up(fra)
                await identical(fra, iad, log.origin)
                ask = Ask(log.origin, 0)
                stranger = iad.settings.model_copy(update=self.tls(authority, "stranger"))
                gullible = iad.settings.model_copy(update=self.tls(authority, "iad", "other-ca"))
                for who in (stranger, gullible):
                    async with LedgerClient.of_peer(peer_of("fra", fra.url), who) as client:
                        with pytest.raises(PeerError):
                            await client.pull(ask)
                async with LedgerClient("fra", [fra.url.replace("https", "http")], None) as client:
                    with pytest.raises(PeerError):
                        await client.pull(ask)
                async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
                    with pytest.raises(aiohttp.ClientError):  # no certificate at all
                        async with session.get(fra.url + "/livez") as answer:
                            await answer.read()

    async def test_without_certificates_only_this_machine(self, sites):
        fra, _ = sites
        async with aiohttp.ClientSession() as session:
            async with session.get(fra.url + "/livez") as answer:
                assert answer.status == 200
            async with session.get(fra.url + "/livez", headers={"x-forwarded-for": "10.0.0.1"}) as answer:
                assert answer.status == 200  # nobody's word but the connection's

    async def test_any_address_of_a_peer_answers(self, sites):
        fra, iad = sites
        await fra.messages(1)
        log = (await fra.sequence()).log
        async with iad.client(fra, "http://127.0.0.1:9", fra.url) as client:
            assert (await client.pull(Ask(log.origin, 0))).size == log.size
            assert (await client.pull(Ask(log.origin, 0))).size == log.size
