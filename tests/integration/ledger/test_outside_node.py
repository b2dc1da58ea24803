"""A whole node and its ledger, read by unmodified programs of others: from a carrier's receipt to a stranger's Python."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane.ledger.checkpoint import Checkpoint, origin_of, quarter_of
from controlplane.ledger.note import Signer, derive, parse_note
from controlplane.ledger.service import Ledger
from controlplane.settings import Settings, Witness
from controlplane.store.ledger import BUNDLES
from tests.integration.ledger.outside import Outside, fsck, litewitness, open_note, require_outside, run_program
from tests.simulators.node import RunningNode, running_carrier, running_node
from tests.unit.ledger.sample import secret

DOMAIN, SEED = "sms.example", secret("node")


@pytest.fixture(scope="session")
def outside() -> Outside:
    return require_outside()


def with_ledger(settings: Settings, *witnesses: Witness) -> Settings:
    values = {
        "ledger_domain": DOMAIN,
        "ledger_key": type(settings.ledger_key)(base64.b64encode(SEED).decode()),
        "ledger_public": True,
        "ledger_witnesses": witnesses,
    }
    return settings.model_copy(update=values)


def log_of(settings: Settings) -> Signer:
    """The log that is written now."""
    quarter = quarter_of(int(time.time() * 1000))
    return Signer.log(origin_of(DOMAIN, settings.datacenter, quarter), derive(SEED, "log"))


def url_of(node: RunningNode, log: Signer) -> str:
    return f"{node.base_url}/ledger/{log.name.partition('/ledger/')[2]}/"


@asynccontextmanager
async def whole_node(settings: Settings) -> AsyncIterator[RunningNode]:
    """A node with a carrier, and a ledger beside it."""
    async with running_node(settings) as node, running_carrier() as carrier:
        await node.seed()
        ledger, stop = await Ledger.open(settings.model_copy(update={"node": "ledger-1"})), asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ledger.run(stop))
                try:
                    await node.connect(carrier)
                    yield node
                finally:
                    stop.set()
        finally:
            await ledger.close()


async def eventually(ask: Callable[[], Awaitable[Any]], seconds: float = 90) -> Any:
    """The first answer that is not nothing."""
    async with asyncio.timeout(seconds):
        while not (answer := await ask()):
            await asyncio.sleep(0.1)
    return answer


async def stranger(node: RunningNode, work: Path, proof: Any, key: str, witness: str) -> tuple[int, str]:
    """Take the verifier from the node and run it on the proof, with nothing but Python."""
    async with node.http.get(f"{node.base_url}/ledger/verifier.py") as answer:
        (work / "verifier.py").write_bytes(await answer.read())
    (work / "proof.json").write_text(json.dumps(proof))
    command = [sys.executable, "-I", "-S", work / "verifier.py", work / "proof.json"]
    return await run_program([*command, "--key", key, "--witness", witness])


class TestNode:
    """What a node serves is a log to those who know nothing of us, and a flipped bit in its database is seen."""

    async def test_from_message_to_proof(self, outside, settings, database, tmp_path):
        log = log_of(settings)
        async with litewitness(outside, tmp_path, "example.com/foreign-witness", {log.name: log.vkey}) as foreign:
            settings = with_ledger(settings, Witness(url=foreign.url, vkey=foreign.vkey))
            async with whole_node(settings) as node:
                sent = [await node.send() for _ in range(120)]
                for message in sent:
                    await node.reaches(message["id"], "delivered")

                async def cosigned() -> str:
                    """The checkpoint, once it holds three events of each message and the foreign witness has signed it."""
                    async with node.http.get(f"{url_of(node, log)}checkpoint") as answer:
                        note = await answer.text()
                    large = answer.status == 200 and Checkpoint.parse(parse_note(note).text).size > 360
                    return note if large and "foreign-witness" in note else ""

                note = await eventually(cosigned)
                code, said = await open_note(outside, note, log.vkey, [foreign.vkey])
                assert (code, said.split()) == (0, [log.name, "example.com/foreign-witness"])
                well, said = await fsck(outside, url_of(node, log), log.vkey, tmp_path)
                assert well, said

                for message in (sent[0], sent[-1]):

                    async def proven(mid: str = message["id"]) -> Any:
                        status, proof = await node.call("GET", f"/v1/messages/{mid}/proof", params={"payload": "true"})
                        assert status == 200, proof
                        return proof if proof["complete"] else None

                    code, said = await stranger(node, tmp_path, await eventually(proven), log.vkey, foreign.vkey)
                    assert (code, "delivered" in said, "VERIFIED: 3 events" in said) == (0, True, True), said

        bundle = await database[BUNDLES].find_one({"_id": f"{log.name}|0"})
        data = bytearray(bundle["data"])
        data[500] ^= 1
        await database[BUNDLES].update_one({"_id": bundle["_id"]}, {"$set": {"data": bytes(data)}})
        async with running_node(settings) as node:
            well, said = await fsck(outside, url_of(node, log), log.vkey, tmp_path)
        assert not well
        # The tile or the one above it, whichever it read first.
        assert re.search(r"fsck failed: failed: tile/(0/000|1/000\.p/1): log has", said), said
