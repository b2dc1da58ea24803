"""The witness, as c2sp.org/tlog-witness has it, and the publisher that asks witnesses."""

from __future__ import annotations

import asyncio
import base64
import io
import random
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web

from controlplane.domain.events import Kind
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.merkle import EMPTY, consistency_proof, leaf_hash, root_of
from controlplane.ledger.note import Note, Signer, Verifier, derive, parse_note, parse_signature, verify
from controlplane.ledger.peer_client import LedgerClient, PeerError
from controlplane.ledger.publisher import Publisher, WitnessRefusedError, request_body
from controlplane.ledger.tiles import TileHashes
from controlplane.ledger.trust import Trust
from controlplane.settings import Settings
from controlplane.store.copies import origin_hash
from tests.simulators.ledgers import Site, peer_of, public_key, seed_of, site, two_sites

ORIGIN = "sms.example/ledger/fra/2026q4"


class Tree:
    """A log that is only a tree, signed by fra's key."""

    def __init__(self, size: int, first: int = 0, *, origin: str = ORIGIN, seed: bytes = seed_of("fra")) -> None:
        self.leaves = [leaf_hash(b"%d" % (first + index)) for index in range(size)]
        self.origin = origin
        self.signer = Signer.log(origin, derive(seed, "log"))

    def root(self, size: int) -> bytes:
        return root_of(self.leaves[:size])

    def checkpoint(self, size: int, *, root: bytes | None = None, signer: Signer | None = None) -> str:
        text = Checkpoint(self.origin, size, root or self.root(size)).text
        return str(Note(text, ((signer or self.signer).sign(text),)))

    def proof(self, old: int, new: int) -> list[bytes]:
        def read(level: int, index: int) -> bytes:
            return root_of(self.leaves[index << level : (index + 1) << level])

        return consistency_proof(old, new, read)

    def request(self, old: int, new: int) -> bytes:
        return request_body(self.checkpoint(new), old, self.proof(old, new))


@pytest.fixture
async def iad(settings: Settings) -> AsyncIterator[Site]:
    async with site(settings, "iad") as made:
        made.knows(peer_of("fra"))
        async with made.serving():
            yield made


@pytest.fixture
async def add(iad):
    async with aiohttp.ClientSession() as session:

        async def post(body: bytes) -> tuple[int, str, str]:
            async with session.post(iad.url + "/add-checkpoint", data=body) as answer:
                return answer.status, await answer.text(), answer.headers["content-type"]

        yield post


async def newest(site: Site, origin: str = ORIGIN) -> str | None:
    async with LedgerClient("x", [site.url], None) as client:
        return await client.cosigned(origin)


class TestProtocol:
    """Each status of the specification, in its order of checks."""

    async def test_cosigns_what_grows(self, iad, add):
        tree = Tree(300)
        verifier = Trust(iad.settings.model_copy(update={"datacenter": "fra", "ledger_peers": (peer_of("iad"),)}))
        key = verifier.cosigner_of(peer_of("iad"), "witness")
        assert key.name == "sms.example/ledger/iad/witness"
        old = 0
        for size in (1, 2, 2, 7, 256, 300):
            status, body, _ = await add(tree.request(old, size))
            assert status == 200
            line = parse_signature(body.removesuffix("\n"))
            (seen,) = verify(Note(Checkpoint(ORIGIN, size, tree.root(size)).text, (line,)), [key])
            assert abs(seen.timestamp - iad.clock.now_ms() // 1000) < 10
            note = parse_note(await newest(iad))
            assert {each.name for each in verify(note, [key, tree.signer.verifier])} == {key.name, ORIGIN}
            assert Checkpoint.parse(note.text).size == size
            old = size

    async def test_the_empty_tree(self, add):
        tree = Tree(3)
        assert (await add(request_body(tree.checkpoint(0, root=EMPTY), 0, [])))[0] == 200
        assert (await add(request_body(tree.checkpoint(0, root=b"\x01" * 32), 0, [])))[0] == 422
        assert (await add(tree.request(0, 3)))[0] == 200

    async def test_another_old_size(self, add):
        tree = Tree(20)
        assert await add(tree.request(5, 9)) == (409, "0\n", "text/x.tlog.size")
        await add(tree.request(0, 9))
        for old in (0, 5, 10):
            assert await add(tree.request(old, 12)) == (409, "9\n", "text/x.tlog.size")

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body.replace(b"old 3", b"old 03"),
            lambda body: body.replace(b"old 3", b"old -3"),
            lambda body: body.replace(b"old 3", b"old 3 "),
            lambda body: body.replace(b"old 3", b"new 3"),
            lambda body: body.replace(b"old 3", b"old 9223372036854775808"),
            lambda body: body.replace(b"old 3\n", b"old 3\r\n"),
            lambda body: body.replace(b"\n\n", b"\n", 1),
            lambda body: body.replace(b"=\n", b"\n", 1),
            lambda body: body.replace(b"old 3\n", b"old 3\n" + base64.b64encode(b"\x00" * 32) + b"\n") * 1 + b"x",
            lambda body: b"old 3\n" + (base64.b64encode(b"\x00" * 32) + b"\n") * 64 + body[body.index(b"\n\n") + 1 :],
            lambda body: b"",
            lambda body: b"old 3\n\n",
            lambda body: b"\xff" + body,
            lambda body: body.replace(b"old 3", b"old 10"),
        ],
    )
    async def test_malformed(self, add, change):
        tree = Tree(20)
        await add(tree.request(0, 3))
        assert (await add(change(tree.request(3, 9))))[0] == 400

    @pytest.mark.parametrize(
        "origin",
        [
            "sms.example/ledger/iad/2026q4",
            "sms.example/ledger/gru/2026q4",
            "other.example/ledger/fra/2026q4",
            "sms.example/ledger/fra/2026q5",
            "sms.example/ledger/fra/",
            "sms.example/ledger/fra/2026q4/x",
            "sms-example/ledger/fra/2026q4",
        ],
    )
    async def test_unknown_origin(self, add, origin):
        assert (await add(Tree(3, origin=origin).request(0, 3)))[0] == 404

    async def test_who_signed(self, iad, add):
        tree = Tree(3)
        stranger = Signer.log(ORIGIN, derive(b"\x05" * 32, "log"))
        assert (await add(request_body(tree.checkpoint(3, signer=stranger), 0, [])))[0] == 403
        text = Checkpoint(ORIGIN, 3, tree.root(3)).text
        wrong = tree.signer.sign(text)._replace(blob=b"\x00" * 64)
        for signatures in ((wrong,), (stranger.sign(text), wrong)):
            assert (await add(request_body(str(Note(text, signatures)), 0, [])))[0] == 403
        assert await newest(iad) is None
        both = Note(text, (stranger.sign(text), tree.signer.sign(text)))
        assert (await add(request_body(str(both), 0, [])))[0] == 200
        kept = parse_note(await newest(iad))  # without the stranger's
        assert [each.name for each in kept.signatures] == [ORIGIN, "sms.example/ledger/iad/witness"]
        assert kept.signatures[0] == tree.signer.sign(text)

    async def test_wrong_proofs(self, iad, add):
        tree = Tree(40)
        await add(tree.request(0, 13))
        good = tree.proof(13, 40)
        for proof in ([], good[:-1], [*good, good[0]], good[::-1], [b"\x00" * 32, *good[1:]]):
            assert (await add(request_body(tree.checkpoint(40), 13, proof)))[0] == 422
        assert (await add(request_body(tree.checkpoint(13), 13, good)))[0] == 422
        assert Checkpoint.parse(parse_note(await newest(iad)).text).size == 13
        assert await iad.store.findings() == []  # anybody can send a wrong proof of a right checkpoint
        assert (await add(request_body(tree.checkpoint(40), 13, good)))[0] == 200

    async def test_a_proof_from_nothing(self, add):
        assert (await add(request_body(Tree(5).checkpoint(5), 0, [b"\x00" * 32])))[0] == 422

    async def test_body_is_bounded(self, add):
        assert (await add(io.BytesIO(Tree(1).request(0, 1) + b"x" * 1_048_577)))[0] == 413

    async def test_nothing_cosigned(self, iad):
        assert await newest(iad) is None
        assert await newest(iad, "anything") is None


class TestFork:
    """Two roots of one size, both signed: both are kept, it is written down, and nothing of that log is cosigned any more."""

    async def test_equal_size_other_root(self, iad, add):
        tree, other = Tree(9), Tree(9, 100)
        await add(tree.request(0, 9))
        first = await newest(iad)
        assert (await add(request_body(other.checkpoint(9), 9, [])))[0] == 422
        (finding,) = await iad.store.findings("open")
        assert finding.kind == "fork"
        assert first in finding.detail
        assert other.checkpoint(9) in finding.detail
        ((kind, ref),) = iad.recorded
        roots = [base64.b64encode(each.root(9)).decode() for each in (tree, other)]
        assert (kind, ref) == (Kind.FORK, f"{ORIGIN} 9 {roots[0]} {roots[1]}")
        assert (await add(request_body(other.checkpoint(9), 9, [])))[0] == 422
        assert (await add(tree.request(9, 9)))[0] == 422
        assert len(iad.recorded) == 1
        assert await newest(iad) == first

    async def test_only_its_own_log(self, iad, add):
        tree = Tree(9)
        successor = Tree(9, origin=ORIGIN + "-2")
        await add(tree.request(0, 9))
        await add(request_body(Tree(9, 100).checkpoint(9), 9, []))
        assert (await add(successor.request(0, 9)))[0] == 200


class TestRace:
    """The specification's race: a request that was checked first and is stored last rolls nothing back."""

    async def test_checked_first_stored_last(self, iad, monkeypatch):
        tree = Tree(50)
        assert (await iad.witness.add(tree.request(0, 10))).status == 200
        checked, go = asyncio.Event(), asyncio.Event()
        persist = iad.witness._persist

        async def late(*arguments):
            checked.set()
            await go.wait()
            return await persist(*arguments)

        async with asyncio.TaskGroup() as group:
            monkeypatch.setattr(iad.witness, "_persist", late)
            slow = group.create_task(iad.witness.add(tree.request(10, 20)))
            await checked.wait()
            monkeypatch.setattr(iad.witness, "_persist", persist)
            assert (await iad.witness.add(tree.request(10, 50))).status == 200
            go.set()
        verdict = slow.result()
        assert (verdict.status, verdict.body) == (409, "50\n")
        assert Checkpoint.parse(parse_note(await newest(iad)).text).size == 50

    async def test_many_ledgers_one_witness(self, settings, iad):
        """Whatever they answer, the sizes that were cosigned only grow, and at most one of those that start from one size grows it."""
        tree = Tree(200)
        rng = random.Random(7)
        other = Site(iad.settings)
        won: list[tuple[int, int]] = []

        async def client(witness) -> None:
            known = 0
            for _ in range(25):
                new = min(200, known + rng.randint(1, 12))
                verdict = await witness.add(tree.request(known, new))
                if verdict.status == 200:
                    won.append((known, new))
                    known = new
                else:
                    assert verdict.status == 409
                    known = int(verdict.body)

        try:
            async with asyncio.TaskGroup() as group:
                for witness in (iad.witness, other.witness) * 3:
                    group.create_task(client(witness))
        finally:
            await other.database.client.close()
        grown = [pair for pair in won if pair[0] != pair[1]]
        assert len({old for old, _ in grown}) == len(grown)
        assert sorted(grown) == sorted(grown, key=lambda pair: pair[1])


class Foreign:
    """A witness of somebody else's make, of either version."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.signer = Signer.cosigner("witness.example/w1", derive(b"\x09" * 32, "witness"))
        self.size, self.root, self.note = 0, EMPTY, ""
        self.requests: list[tuple[int, int]] = []
        self.change: Callable[[str], str] = lambda body: body
        self.url = ""

    async def add(self, request: web.Request) -> web.Response:
        head, _, text = (await request.read()).decode().partition("\n\n")
        note = parse_note(text)
        checkpoint = Checkpoint.parse(note.text)
        old = int(head.split("\n")[0].removeprefix("old "))
        self.requests.append((old, checkpoint.size))
        if old != self.size:
            return web.Response(body=f"{self.size}\n".encode(), status=409, content_type="text/x.tlog.size")
        if old == checkpoint.size and checkpoint.root != self.root:
            return web.Response(status=409 if self.version == "v1.0.0" else 422)
        self.size, self.root = checkpoint.size, checkpoint.root
        line = self.signer.cosign(note.text, 1_790_000_000)
        self.note = str(Note(note.text, (*note.signatures, line)))
        return web.Response(text=self.change(line.line))

    async def newest(self, request: web.Request) -> web.Response:
        if self.version == "v1.0.0" or not self.note or request.match_info["hash"] != origin_hash(self.origin):
            return web.Response(status=404)
        return web.Response(text=self.note)

    @property
    def origin(self) -> str:
        return Checkpoint.parse(parse_note(self.note).text).origin


@pytest.fixture(params=["v1.0.0", "HEAD"])
async def foreign(request) -> AsyncIterator[Foreign]:
    made = Foreign(request.param)
    app = web.Application()
    app.router.add_post("/prefix/add-checkpoint", made.add)
    app.router.add_get("/prefix/{hash}/checkpoint", made.newest)
    runner = web.AppRunner(app)
    await runner.setup()
    place = web.TCPSite(runner, "127.0.0.1", 0)
    await place.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/prefix/"
    yield made
    await runner.cleanup()


def publisher(of: Site, client: LedgerClient, verifier: Verifier) -> Publisher:
    return Publisher(of.store, of.published, client, verifier, of.clock, of.forks)


class TestPublisher:
    """Each witness has our newest checkpoint soon, and sequencing waits for none of them."""

    async def test_a_peer_cosigns(self, settings):
        async with two_sites(settings) as (fra, iad):
            key = Trust(fra.settings).cosigner_of(peer_of("iad"), "witness")
            async with fra.client(iad) as client:
                shown = publisher(fra, client, key)
                assert not await shown.step()
                for count in (3, 300, 1):
                    await fra.messages(count)
                    log = (await fra.sequence()).log
                    assert await shown.step()
                    assert not await shown.step()
                    (cosigned,) = await fra.store.cosignatures(log.origin)
                    assert (cosigned.role, cosigned.size, cosigned.cosigner) == ("witness", log.size, key.name)
                    assert {
                        each.name for each in verify(parse_note(cosigned.note), [key, Verifier.parse(log.vkey)])
                    } == {
                        key.name,
                        log.origin,
                    }
                again = publisher(fra, client, key)  # a new process knows from the store
                await fra.messages(1)
                await fra.sequence()
                assert await again.step()

    async def test_sealed_logs_are_shown_too(self, settings):
        async with two_sites(settings) as (fra, iad):
            key = Trust(fra.settings).cosigner_of(peer_of("iad"), "witness")
            await fra.messages(3)
            await fra.sequence(seal="key")
            async with fra.client(iad) as client:
                assert await publisher(fra, client, key).step()
            assert {each.size for each in await fra.store.cosignatures()} == {6, 1}

    async def test_a_foreign_witness(self, settings, foreign):
        async with site(settings, "fra") as fra, LedgerClient("w", [foreign.url], None) as client:
            shown = publisher(fra, client, foreign.signer.verifier)
            for _ in range(3):
                await fra.messages(5)
                await fra.sequence()
                await shown.step()
            assert foreign.requests == [(0, 9), (9, 17), (17, 25)]
            forgetful = publisher(fra, client, foreign.signer.verifier)
            forgetful._known = {"x": 0}
            await forgetful.step()
            assert foreign.requests[3:] == [(0, 25), (25, 25)]

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: "",
            lambda body: "OK\n",
            lambda body: body.replace("w1", "w2"),
            lambda body: str(
                Signer.cosigner("witness.example/w1", derive(b"\x08" * 32, "witness")).cosign("x\n", 5).line
            ),
            lambda body: (
                f"— witness.example/w1 {base64.b64encode(parse_signature(body[:-1]).key_id + bytes(72)).decode()}\n"
            ),
        ],
    )
    async def test_a_wrong_cosignature_is_none(self, settings, foreign, change):
        foreign.change = change
        async with site(settings, "fra") as fra, LedgerClient("w", [foreign.url], None) as client:
            await fra.messages(1)
            await fra.sequence()
            with pytest.raises(WitnessRefusedError):
                await publisher(fra, client, foreign.signer.verifier).step()
            assert await fra.store.cosignatures() == []

    async def test_signatures_of_others_are_ignored(self, settings, foreign):
        other = Signer.cosigner("witness.example/w2", derive(b"\x08" * 32, "witness"))
        foreign.change = lambda body: other.cosign("x\n", 5).line + body
        async with site(settings, "fra") as fra, LedgerClient("w", [foreign.url], None) as client:
            await fra.messages(1)
            await fra.sequence()
            await publisher(fra, client, foreign.signer.verifier).step()
            (cosigned,) = await fra.store.cosignatures()
            assert len(parse_note(cosigned.note).signatures) == 2

    async def test_a_witness_that_has_seen_more(self, settings, foreign):
        async with site(settings, "fra") as fra, LedgerClient("w", [foreign.url], None) as client:
            await fra.messages(1)
            await fra.sequence()
            foreign.size = 1_000
            with pytest.raises(WitnessRefusedError, match="1000"):
                await publisher(fra, client, foreign.signer.verifier).step()
            assert [each.kind for each in await fra.store.findings("open")] == ["behind"]

    async def test_a_witness_that_has_seen_another_root(self, settings, foreign):
        """409 in v1.0.0, 422 at HEAD; either is evidence when the sizes are equal."""
        async with (
            site(settings, "fra") as fra,
            site(settings, "fra") as twin,
            LedgerClient("w", [foreign.url], None) as client,
        ):
            for each in (fra, twin):
                await each.messages(5)
                await each.sequence()
            await publisher(twin, client, foreign.signer.verifier).step()
            with pytest.raises(WitnessRefusedError):
                await publisher(fra, client, foreign.signer.verifier).step()
            (finding,) = await fra.store.findings("open")
            assert finding.kind == "fork"
            log, other = (await fra.store.logs())[0], (await twin.store.logs())[0]
            assert log.checkpoint in finding.detail
            if foreign.version == "HEAD":
                assert other.checkpoint in finding.detail

    async def test_a_fork_that_has_grown(self, settings, foreign):
        """The witness has a smaller tree of another history: no proof leads there."""
        if foreign.version == "v1.0.0":
            pytest.skip("a v1.0.0 witness serves no checkpoint to compare with")
        async with (
            site(settings, "fra") as fra,
            site(settings, "fra") as twin,
            LedgerClient("w", [foreign.url], None) as client,
        ):
            await twin.messages(3)
            await twin.sequence()
            await fra.messages(30)
            await fra.sequence()
            await publisher(twin, client, foreign.signer.verifier).step()

            async def refuse(_request):
                return web.Response(status=422)

            shown = publisher(fra, client, foreign.signer.verifier)
            log = (await fra.store.logs())[0]
            with pytest.raises(WitnessRefusedError):
                await shown._refused(log, 5, type("A", (), {"status": 422, "size": None, "body": b""}))
            (finding,) = await fra.store.findings("open")
            assert finding.kind == "fork"
            assert len(fra.recorded) == 1

    async def test_nobody_there(self, settings):
        async with site(settings, "fra") as fra, LedgerClient("w", ["http://127.0.0.1:9"], None) as client:
            await fra.messages(1)
            await fra.sequence()
            with pytest.raises(PeerError):
                await publisher(fra, client, Verifier.of("w", 4, base64.b64decode(public_key("iad", "witness")))).step()


def test_tile_hashes_agree():
    """The test's own tree is the product's."""
    tree = Tree(300)
    read = TileHashes({(0, 0): b"".join(tree.leaves[:256]), (0, 1): b"".join(tree.leaves[256:])}).read
    assert read(3, 5) == root_of(tree.leaves[40:48])
