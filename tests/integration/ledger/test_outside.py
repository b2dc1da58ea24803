"""Unmodified programs of others agree that our logs are logs, and see it when they are not."""

from __future__ import annotations

import gzip
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from controlplane.domain.events import leaf_hash
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.merkle import consistency_proof, root_of
from controlplane.ledger.note import Note, Signer, Verifier, derive, parse_note, parse_signature, verify
from controlplane.ledger.proof import EntryProof
from controlplane.ledger.tiles import ENTRIES, TileHashes, encode_bundle, parse_path
from tests.integration.ledger.outside import Outside, fsck, litewitness, open_note, require_outside
from tests.unit.ledger.sample import FRA, IAD, WITNESSES, Log, life, secret


@pytest.fixture(scope="session")
def outside() -> Outside:
    return require_outside()


def filled(*sizes: int) -> Log:
    """A log that grew by these numbers of entries."""
    log = Log(FRA)
    for size in sizes:
        log.fill(size)
    return log


@asynccontextmanager
async def served(log: Log, *, flip: str = "", at: int = 0, gzipped: bool = False) -> AsyncIterator[str]:
    """The log as plain tlog-tiles over HTTP; of the resource `flip`, the byte `at` has one bit wrong."""
    note = log.note(WITNESSES[0]).encode()

    def content(path: str) -> bytes:
        if path == "checkpoint":
            return note
        tile = parse_path(path)
        if tile.level == ENTRIES:
            return encode_bundle(log.entries[tile.index * 256 :][: tile.width])
        return log.tiles[tile.level, tile.index][: tile.width * 32]

    async def answer(request: web.Request) -> web.Response:
        try:
            body = bytearray(content(request.match_info["path"]))
        except (ValueError, KeyError):
            raise web.HTTPNotFound from None
        if request.match_info["path"] == flip:
            body[at] ^= 1
        if gzipped and "entries" in request.path:
            return web.Response(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})
        return web.Response(body=bytes(body))

    app = web.Application()
    app.router.add_get("/log/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/log/"
    finally:
        await runner.cleanup()


class TestFsck:
    """Tessera re-derives every tile and the root from the entries, and finds one bit that is wrong."""

    @pytest.mark.parametrize("sizes", [(1,), (256,), (257,), (3, 300, 700), (65_000, 536, 700)], ids=sum)
    async def test_a_good_log(self, outside, tmp_path, sizes):
        async with served(filled(*sizes)) as url:
            well, said = await fsck(outside, url, FRA.vkey, tmp_path)
        assert well, said

    async def test_bundles_may_be_compressed(self, outside, tmp_path):
        async with served(filled(300), gzipped=True) as url:
            well, said = await fsck(outside, url, FRA.vkey, tmp_path)
        assert well, said

    @pytest.mark.parametrize(
        ("flip", "at", "named"),
        [
            (
                "tile/entries/001",
                30,
                "failed: tile/",
            ),  # all tiles above it differ, and it tells of whichever it sees first
            ("tile/entries/003.p/232", 2, "failed: tile/"),
            ("tile/0/000", 8191, "failed: tile/0/000: log has"),
            ("tile/0/003.p/232", 0, "failed: tile/0/003.p/232: log has"),
            ("tile/1/000.p/3", 64, "failed: tile/1/000.p/3: log has"),
            ("checkpoint", len(FRA.name) + 10, "failed to verify signatures"),  # in the root
            ("checkpoint", 200, "failed to verify signatures"),  # in the signature
        ],
    )
    async def test_one_bit(self, outside, tmp_path, flip, at, named):
        async with served(filled(1000), flip=flip, at=at) as url:
            well, said = await fsck(outside, url, FRA.vkey, tmp_path)
        assert (well, named in said) == (False, True), said

    async def test_a_root_that_is_not_that_of_the_entries(self, outside, tmp_path):
        log = filled(1000)
        log.growth = log.growth._replace(root=bytes(32))  # signed, as after a flipped bit in memory
        async with served(log) as url:
            well, said = await fsck(outside, url, FRA.vkey, tmp_path)
        assert (well, "but checkpoint claims 0000" in said) == (False, True), said

    async def test_another_key(self, outside, tmp_path):
        other = Signer.log(FRA.name, derive(secret("other"), "log"))
        async with served(filled(300)) as url:
            well, said = await fsck(outside, url, other.vkey, tmp_path)
        assert not well, said


class TestNote:
    """golang.org/x/mod opens our checkpoints, and torchwood verifies our cosignatures and proofs."""

    async def test_checkpoint_cosignatures_and_proof(self, outside):
        log, entry = filled(300), life()[0].leaf
        index = log.append(entry)
        log.fill(1000)
        note, seen = log.note(*WITNESSES), [witness.vkey for witness in WITNESSES]
        for extra in (None, b"extra"):
            proof = str(EntryProof(index, tuple(log.prove(index)), parse_note(note), extra))
            code, said = await open_note(outside, note, FRA.vkey, seen, proof, entry)
            assert (code, said.split()) == (0, [FRA.name, *(witness.name for witness in WITNESSES)])
            code, said = await open_note(outside, note, FRA.vkey, seen, proof, entry + b" ")
            assert code == 1, said

    async def test_a_wrong_key_or_text(self, outside):
        note = filled(300).note(WITNESSES[0])
        other = Signer.log(FRA.name, derive(secret("other"), "log"))
        for text, key, seen in (
            (note, other.vkey, []),
            (note, IAD.vkey, []),
            (note, FRA.vkey, [WITNESSES[1].vkey]),
            (note.replace("\n300\n", "\n301\n"), FRA.vkey, []),
        ):
            code, said = await open_note(outside, text, key, seen)
            assert code == 1, said


class TestWitness:
    """Torchwood's litewitness cosigns what grows, and nothing else."""

    async def test_it_cosigns_growth_and_refuses_a_fork(self, outside, tmp_path):
        log, other = filled(5), Log(FRA)
        async with litewitness(outside, tmp_path, "example.com/foreign-witness", {FRA.name: FRA.vkey}) as witness:
            keys = [FRA.verifier, Verifier.parse(witness.vkey)]

            async def add(old: int, of: Log = log, proof: list[bytes] | None = None, note: str = ""):
                read = TileHashes(of.tiles).read
                made = consistency_proof(old, of.growth.size, read) if proof is None else proof
                return await witness.add_checkpoint(old, made, note or of.note())

            def verified(body: str) -> None:
                note = parse_note(log.note())
                lines = [parse_signature(line) for line in body.splitlines()]
                own, cosigned = verify(Note(note.text, (*note.signatures, *lines)), keys)
                assert (own.name, cosigned.name) == (FRA.name, "example.com/foreign-witness")
                assert cosigned.timestamp is not None
                assert abs(cosigned.timestamp - time.time()) < 60

            for more in (0, 700, 1, 66_000):
                old = log.growth.size if more else 0
                log.fill(more)
                status, _, body = await add(old)
                assert status == 200, body
                verified(body)
            verified((await add(log.growth.size)).body)  # the same again, with another time

            size = log.growth.size
            assert await add(5) == (409, "text/x.tlog.size", f"{size}\n")
            log.fill(100)
            read = TileHashes(log.tiles).read
            proof = consistency_proof(size, log.growth.size, read)
            for wrong in ([], proof[1:], [*proof, bytes(32)], [bytes(32), *proof[1:]]):
                assert (await add(size, proof=wrong)).status == 422

            other.append(b"another history")  # signed with the same key: this is what a fork is
            other.fill(log.growth.size - 1)
            assert (await add(size, other)).status == 422
            forked = Checkpoint(FRA.name, size, root_of([leaf_hash(entry) for entry in other.entries[:size]])).text
            status, _, _ = await add(size, proof=[], note=str(Note(forked, (FRA.sign(forked),))))
            assert status in (409, 422)

            stranger = Signer.log(FRA.name, derive(secret("other"), "log"))
            text = Checkpoint(FRA.name, log.growth.size, log.growth.root).text
            assert (await add(size, note=str(Note(text, (stranger.sign(text),))))).status == 403
            unknown = Log(IAD)
            unknown.fill(1)
            assert (await add(0, unknown)).status == 404

            assert (await add(size)).status == 200  # and the true history goes on
