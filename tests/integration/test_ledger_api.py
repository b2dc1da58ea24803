"""The ledger over HTTP against real nodes: proofs that hold offline, logs as plain tlog-tiles, how it stands, repairs; and the commands."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import stat
import sys

import pytest
from typer.testing import CliRunner

from controlplane.cli import app
from controlplane.domain.catalog import Key, Scope
from controlplane.errors import ConfigError
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.note import Verifier, parse_note, verify
from controlplane.ledger.proof import verify_document
from controlplane.ledger.tiles import Tile, bundles, decode_bundle, tile_hashes, tiles_of
from controlplane.settings import child_environment
from controlplane.store.ledger import BUNDLES, TILES
from controlplane.store.seal import new_key
from tests.simulators.ledger import running_ledger, with_peer
from tests.simulators.node import running_node


def slug(problem: dict) -> str:
    return problem["type"].rsplit("/", 1)[1]


@pytest.fixture
def settings(settings):
    return with_peer(settings)


@pytest.fixture
async def ledger(settings, database):
    async with running_ledger(settings, database, loop=False) as running:
        yield running


@pytest.fixture
async def ready(node, carriers):
    await node.connect(await carriers())
    node.ledger_key = new_key()
    digest = node.node.seal.digest_key(node.ledger_key)
    await node.node.catalog.put(
        Key(id="ledger", tenant="other", name="l", scopes=frozenset({Scope.LEDGER_READ}), digest=digest, hint="")
    )
    return node


async def raw(node, path: str, **headers: str) -> tuple[int, dict, bytes]:
    headers = {"authorization": f"Bearer {node.ledger_key}", "accept-encoding": "identity"} | headers
    async with node.http.get(node.base_url + path, headers=headers, auto_decompress=False) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()


async def delivered(node, count: int = 1) -> list[str]:
    mids = [(await node.send(body=f"text {n}"))["id"] for n in range(count)]
    for mid in mids:
        await node.reaches(mid, "delivered")
    return mids


class TestProof:
    """Whoever has the keys can check offline what happened to a message, before and after its content is erased."""

    async def test_life_of_a_proof(self, ready, ledger, tmp_path):
        [mid] = await delivered(ready)
        status, early = await ready.call("GET", f"/v1/messages/{mid}/proof")
        assert (status, early["events"], early["pending"], early["complete"]) == (200, [], [0, 1, 2], False)
        ledger.cosigning |= {"mirror", "witness"}
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)  # the logs' documents are kept for a moment
        status, proof = await ready.call("GET", f"/v1/messages/{mid}/proof?payload=true")
        assert (status, proof["complete"]) == (200, True)
        report = verify_document(proof, ledger.vkeys, 2)
        assert [event.kind for event in report.events] == ["accepted", "submitted", "delivered"]
        assert report.events[0].payload[1]["body"] == "text 0"
        assert all(event.linked for event in report.events)
        assert len(report.logs[0].cosigners) == 2

        _, bare = await ready.call("GET", f"/v1/messages/{mid}/proof")
        assert "text 0" not in json.dumps(bare)
        assert (await ready.call("DELETE", f"/v1/messages/{mid}/content"))[0] == 200
        assert verify_document(proof, ledger.vkeys, 2).complete  # the one from before
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)
        _, after = await ready.call("GET", f"/v1/messages/{mid}/proof?payload=true")
        report = verify_document(after, ledger.vkeys, 2)
        assert [event.kind for event in report.events][-1] == "erased"
        assert [event["opening"] is None for event in after["events"]] == [True, True, True, False]
        stored = await ready.node.database["events"].find({"mid": mid}).to_list()
        assert all("cids" not in document for document in stored)

        file = tmp_path / "proof.json"
        file.write_text(json.dumps(proof))
        _, _, program = await raw(ready, "/ledger/verifier.py")
        (tmp_path / "verifier.py").write_bytes(program)
        code, text = await offline(tmp_path / "verifier.py", file, ledger)
        assert (code, "VERIFIED: 3 events" in text) == (0, True)
        proof["events"][1]["at"] += 1
        file.write_text(json.dumps(proof))
        code, text = await offline(tmp_path / "verifier.py", file, ledger)
        assert (code, "NOT VERIFIED" in text) == (1, True)

    async def test_the_best_checkpoint_that_covers_it(self, ready, ledger):
        [first] = await delivered(ready)
        ledger.cosigning |= {"mirror", "witness"}
        await ledger.settle(ready.node.database)
        ledger.cosigning.discard("mirror")
        [second] = await delivered(ready)
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)
        _, old = await ready.call("GET", f"/v1/messages/{first}/proof")
        _, new = await ready.call("GET", f"/v1/messages/{second}/proof")
        assert len(verify_document(new, ledger.vkeys, 1).logs[0].cosigners) == 1
        assert verify_document(old, ledger.vkeys, 1).logs[0].size <= verify_document(new, ledger.vkeys, 1).logs[0].size
        ledger.cosigning.clear()
        [third] = await delivered(ready)
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)
        _, newest = await ready.call("GET", f"/v1/messages/{third}/proof")
        assert verify_document(newest, ledger.vkeys, 0).complete

    async def test_only_ones_own(self, ready, ledger):
        [mid] = await delivered(ready)
        assert (await ready.call("GET", f"/v1/messages/{mid}/proof", key=ready.other_key))[0] == 404
        assert (await ready.call("GET", f"/v1/messages/{mid}/proof", key=ready.ledger_key))[0] == 403
        assert (await ready.call("GET", "/v1/messages/nothing/proof"))[0] == 404

    async def test_a_damaged_log_is_said_to_be_one(self, ready, ledger):
        [mid] = await delivered(ready)
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)
        await ready.node.database[TILES].update_one(
            {"_id": f"{ledger.sequencer.log.origin}|0|0"}, {"$set": {"data": b"x" * 4096}}
        )
        status, problem = await ready.call("GET", f"/v1/messages/{mid}/proof")
        assert (status, slug(problem)) == (500, "damaged-log")


async def offline(program, file, ledger) -> tuple[int, str]:
    log, *cosigners = ledger.vkeys
    arguments = ["--key", log.vkey, *(word for key in cosigners for word in ("--witness", key.vkey))]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(program), str(file), *arguments, stdout=asyncio.subprocess.PIPE
    )
    text, _ = await process.communicate()
    return process.returncode, text.decode()


class TestTiles:
    """Plain tlog-tiles, cut at the published size; nothing that is not canonical."""

    async def test_the_whole_log(self, ready, ledger):
        for n in range(4):
            await ready.call(
                "POST",
                "/v1/batches",
                json={"messages": [{"to": "+4915112340005", "body": f"{n} {m}"} for m in range(90)]},
            )
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)
        _, listed = await ready.call("GET", "/ledger/", key=ready.ledger_key)
        [log] = listed["data"]
        assert log["origin"] == ledger.sequencer.log.origin
        status, headers, note = await raw(ready, f"{log['url']}/checkpoint")
        assert (status, headers["content-type"], headers["cache-control"]) == (
            200,
            "text/plain; charset=utf-8",
            "max-age=1",
        )
        assert verify(parse_note(note), [Verifier.parse(log["vkey"])])
        checkpoint = Checkpoint.parse(parse_note(note).text)
        assert (checkpoint.origin, checkpoint.size) == (log["origin"], log["size"])
        assert (await raw(ready, "/ledger/local/checkpoint"))[2] == note
        entries = []
        for place in bundles(0, checkpoint.size):
            status, headers, data = await raw(ready, f"{log['url']}/{place.path}")
            assert (status, headers["content-type"]) == (200, "application/octet-stream")
            assert "immutable" in headers["cache-control"]
            entries += decode_bundle(data)
            packed = await raw(ready, f"{log['url']}/{place.path}", **{"accept-encoding": "br, gzip"})
            assert gzip.decompress(packed[2]) == data
        assert len(entries) == checkpoint.size > 256
        for place in tiles_of(checkpoint.size):
            status, _, data = await raw(ready, f"{log['url']}/{place.path}")
            assert (status, len(data)) == (200, 32 * place.width)
            if place.level == 0:
                assert data == tile_hashes(entries[place.index * 256 : place.index * 256 + place.width])
        _, _, narrow = await raw(ready, f"{log['url']}/{Tile(0, 0, 7).path}")
        assert narrow == tile_hashes(entries[:7])

    async def test_nothing_else(self, ready, ledger):
        await delivered(ready)
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)
        log = ledger.sequencer.log
        base = "/ledger/" + log.origin.split("/ledger/")[1]
        beyond = Tile(0, 0, log.size + 1).path
        await ready.node.database[BUNDLES].update_one({"_id": f"{log.origin}|0"}, [{"$set": {"extra": 1}}])
        for path in (
            beyond, "tile/0/000", "tile/0/0", "tile/00/000", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/x000/000", "tile/1/000.p/1",
            "tile/64/000", "tile/entries/000", "tile/entries/001.p/1", "tile/-1/000.p/1", "tile/data/000.p/1", "tile/0/001.p/1", "tile/",
        ):  # fmt: skip
            assert (await raw(ready, f"{base}/{path}"))[0] == 404, path
        for path in (
            "/ledger/nowhere",
            "/ledger/nowhere/checkpoint",
            "/ledger/local/2020q1/checkpoint",
            "/ledger/iad/2026q4/checkpoint",
        ):
            assert (await raw(ready, path))[0] == 404, path

    async def test_a_draft_is_never_served(self, ready, ledger):
        await delivered(ready)
        await ledger.settle(ready.node.database)
        log = ledger.sequencer.log
        document = await ready.node.database[BUNDLES].find_one({"_id": f"{log.origin}|0"})
        await ready.node.database[BUNDLES].update_one(
            {"_id": document["_id"]}, {"$set": {"data": document["data"] + b"\x00\x05draft"}}
        )
        await asyncio.sleep(0.3)
        base = "/ledger/" + log.origin.split("/ledger/")[1]
        status, _, data = await raw(ready, f"{base}/{Tile(-1, 0, log.size).path}")
        assert (status, b"draft" in data) == (200, False)
        assert (await raw(ready, f"{base}/{Tile(-1, 0, log.size + 1).path}"))[0] == 404

    async def test_who_may_read(self, ready, ledger, settings, tmp_path):
        for path in ("/ledger/", "/ledger/local", "/v1/ledger"):
            assert (await ready.call("GET", path))[0] == 403
            assert (await ready.call("GET", path, headers={"authorization": ""}))[0] == 401
        open_to_all = settings.model_copy(
            update={"node": "node-2", "state_dir": tmp_path / "two", "ledger_public": True}
        )
        async with running_node(open_to_all) as public:
            assert (await public.call("GET", "/ledger/", headers={"authorization": ""}))[0] == 200


class TestStanding:
    """Numbers and sentences: what waits, who is behind, what was found."""

    async def test_watermarks_and_alarms(self, ready, ledger):
        await delivered(ready, 3)
        status, found = await ready.call("GET", "/v1/ledger", key=ready.ledger_key)
        assert (status, found["unsequenced"]["events"], found["logs"]) == (200, 9, [])
        ledger.cosigning.add("mirror")
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)
        _, found = await ready.call("GET", "/v1/ledger", key=ready.admin_key)
        [log] = found["logs"]
        assert (found["unsequenced"], log["mirrored"], log["witnessed"]) == (
            {"events": 0, "seconds": 0.0},
            log["published"],
            0,
        )
        assert found["leader"]["holder"] == "ledger-1"
        assert log["cosigners"][0]["behind_entries"] == 0
        await ready.node.standing.read()
        async with ready.http.get(ready.base_url + "/metrics") as answer:
            text = await answer.text()
        assert f'heliograph_ledger_size{{log="{log["origin"]}"}} {float(log["published"])}' in text
        assert "heliograph_held_messages 0.0" in text

    async def test_repairs(self, ready, ledger):
        assert (await ready.call("POST", "/v1/ledger/repairs", json={}, key=ready.ledger_key))[0] == 403
        status, asked = await ready.call("POST", "/v1/ledger/repairs", json={}, key=ready.admin_key)
        assert (status, asked["state"], asked["dry_run"]) == (202, "asked", True)
        assert (await ledger.store.next_repair())["_id"] == asked["id"]
        await ledger.store.update_repair(asked["id"], {"state": "done", "report": {"clean": True, "root": b"\x01"}})
        status, found = await ready.call("GET", f"/v1/ledger/repairs/{asked['id']}", key=ready.admin_key)
        assert (status, found["state"], found["report"]) == (200, "done", {"clean": True, "root": "01"})
        assert (await ready.call("GET", "/v1/ledger/repairs/none", key=ready.admin_key))[0] == 404
        status, found = await ready.call("GET", "/v1/ledger/findings?state=open", key=ready.admin_key)
        assert (status, found["data"]) == (200, [])


class TestElsewhere:
    """A message of another datacenter can be read and proven here, and is changed only there."""

    async def test_read_only(self, ready, ledger):
        [mid] = await delivered(ready)
        await ready.node.database["events"].update_many({"mid": mid}, {"$set": {"dc": "iad"}})
        assert (await ready.get(mid))["status"] == "delivered"
        for method, path, body in (("DELETE", "content", None), ("POST", "feedback", {"outcome": "converted"})):
            status, problem = await ready.call(method, f"/v1/messages/{mid}/{path}", json=body)
            assert (status, slug(problem), problem["datacenter"]) == (409, "other-datacenter", "iad")
        assert (
            await ready.node.reader.by_carrier_ids([c for e in await ready.node.reader.load(mid) for c in e.cids]) == []
        )


class TestCommands:
    """`heliograph ledger …` as an operator runs it."""

    async def run(self, ready, *arguments: str, code: int | None = 0) -> str:
        """In a thread: the node that it talks to is in this process, and may log to the same output."""
        environment = {"HELIOGRAPH_URL": ready.base_url, "HELIOGRAPH_API_KEY": ready.admin_key}
        result = await asyncio.to_thread(CliRunner().invoke, app, ["ledger", *arguments], env=environment)
        found = 2 if isinstance(result.exception, ConfigError) else result.exit_code
        assert code is None or found == code, (found, result.output, result.exception)
        return result.stdout

    async def line(self, ready, *arguments: str, code: int | None = 0) -> str:
        """The line of JSON in its output."""
        text = await self.run(ready, *arguments, code=code)
        return next(line for line in text.splitlines() if line.startswith("{"))

    async def test_as_a_program(self, ready, ledger):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controlplane", "ledger", "status", "--json"),
            env=child_environment(url=ready.base_url, api_key=ready.admin_key),
            stdout=asyncio.subprocess.PIPE,
        )
        text, _ = await process.communicate()
        alarms = json.loads(text)["alarms"]
        assert (process.returncode, "unsequenced" in text.decode()) == (bool(alarms), True)

    async def test_verify_and_prove(self, ready, ledger, tmp_path):
        for n in range(4):
            await ready.call(
                "POST",
                "/v1/batches",
                json={"messages": [{"to": "+4915112340005", "body": f"{n} {m}"} for m in range(90)]},
            )
        [mid] = await delivered(ready)
        ledger.cosigning |= {"mirror", "witness"}
        await ledger.settle(ready.node.database)
        await asyncio.sleep(0.3)
        log, *cosigners = (key.vkey for key in ledger.vkeys)
        found = json.loads(await self.line(ready, "verify", "--json", "--key", log))
        size = ledger.sequencer.log.size
        assert [(r["state"], r["entries"], r["key"]) for r in found["logs"]] == [("verified", size, "given")]
        found = json.loads(await self.line(ready, "verify", "--json", "--from", "300"))
        assert [(r["state"], r["entries"], r["key"]) for r in found["logs"]] == [
            ("verified", size - 256, "from the server")
        ]
        file = tmp_path / "proof.json"
        await self.run(ready, "prove", mid, "--payload", "-o", str(file))
        witnesses = [word for key in cosigners for word in ("--witness", key)]
        text = await self.run(ready, "verify-proof", str(file), "--key", log, *witnesses)
        assert "VERIFIED" in text
        await self.run(
            ready, "verify-proof", str(file), "--key", log, "--witness", cosigners[0], "--require", "2", code=2
        )
        file.write_text(file.read_text().replace('"submitted"', '"delivered"', 1))
        await self.run(ready, "verify-proof", str(file), "--key", log, code=1)
        assert ledger.sequencer.log.checkpoint.splitlines()[2] in await self.run(ready, "checkpoint")
        found = json.loads(await self.line(ready, "checkpoint", "--json"))
        assert verify(parse_note(found["note"]), ledger.vkeys)
        await self.run(ready, "prove", "0" * 26, code=2)
        await ready.node.database[BUNDLES].update_one(
            {"_id": f"{ledger.sequencer.log.origin}|1"}, [{"$set": {"data": {"$literal": b""}}}]
        )
        await self.run(ready, "verify", code=None)

    async def test_a_changed_entry_is_found(self, ready, ledger):
        await delivered(ready, 2)
        await ledger.settle(ready.node.database)
        origin = ledger.sequencer.log.origin
        document = await ready.node.database[BUNDLES].find_one({"_id": f"{origin}|0"})
        data = bytes(document["data"]).replace(b'"kind":"submitted"', b'"kind":"cancelled"', 1)
        await ready.node.database[BUNDLES].update_one({"_id": f"{origin}|0"}, {"$set": {"data": data}})
        await asyncio.sleep(0.3)
        found = json.loads(await self.line(ready, "verify", "--json", code=1))
        assert "tile/0/000" in found["logs"][0]["error"]

    async def test_status_and_repair(self, ready, ledger):
        await delivered(ready)
        await ledger.settle(ready.node.database)
        found = json.loads(await self.line(ready, "status", "--json", code=None))
        assert found["datacenter"] == "local"
        text = await self.run(ready, "status", code=None)
        assert "led by ledger-1" in text
        await self.run(ready, "repair", "--wait", "0.2", code=3)

    async def test_keys(self, ready, ledger, tmp_path):
        file = tmp_path / "seed"
        options = ("--dc", "fra", "--domain", "example.com", "--ledger-url", "https://10.0.0.1:8444", "--json")
        found = json.loads(await self.line(ready, "keys", "--new", str(file), *options))
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
        assert len(base64.b64decode(file.read_text())) == 32
        assert (found["peer"]["dc"], found["peer"]["urls"]) == ("fra", ["https://10.0.0.1:8444"])
        assert Verifier.parse(found["vkeys"]["log"]).name.startswith("example.com/ledger/fra/20")
        assert json.loads(await self.line(ready, "keys", "--seed-file", str(file), *options)) == found
        await self.run(ready, "keys", "--new", str(file), *options, code=2)
        file.chmod(0o644)
        await self.run(ready, "keys", "--seed-file", str(file), *options, code=2)

    async def test_nobody_there(self, ready, ledger):
        for command in ("status", "verify", "checkpoint"):
            await self.run(ready, command, "--url", "http://127.0.0.1:1", code=3)
