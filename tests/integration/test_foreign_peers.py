"""Through other people's SMPP: the Rust server of `smpp34` and the node server of npm `smpp`. Real sockets, with receipts."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import smpp34

from controlplane.domain.text import decode_gsm7, parse_udh
from tests.simulators.network import free_port

SIMULATORS = Path(__file__).parent.parent / "simulators"


@dataclass
class Peer:
    port: int


class TestSmpp34:
    """The Rust implementation."""

    async def test_messages_and_receipts(self, node):
        port = free_port()
        server = smpp34.Server("127.0.0.1", port, system_id="rust")
        await server.start()
        texts: list[bytes] = []

        async def serve() -> None:
            esme, number = None, 0
            while True:
                event = await server.next()
                if isinstance(event, smpp34.Esme):
                    esme = event
                elif isinstance(event, smpp34.SubmitSmEvent):
                    number += 1
                    texts.append(bytes(event.short_message))
                    assert event.registered_delivery == 1
                    event.accept(f"R{number:05d}")
                    text = f"id:r{number:05d} sub:001 dlvrd:001 submit date:2611241200 done date:2611241201 stat:DELIVRD err:000 text:"
                    await esme.deliver_sm(
                        event.source_addr, text.encode(), source_addr=event.destination_addr, esm_class=4
                    )

        async with asyncio.TaskGroup() as group:
            task = group.create_task(serve())
            await node.connect(Peer(port))
            ids = [(await node.send(body=f"Grüße {n} €"))["id"] for n in range(20)]
            long = (await node.send(body="z" * 400))["id"]
            for mid in (*ids, long):
                await node.reaches(mid, "delivered")
            task.cancel()
        assert {decode_gsm7(text) for text in texts if not text.startswith(b"\x05\x00\x03")} == {
            f"Grüße {n} €" for n in range(20)
        }
        parts = sorted(
            (parse_udh(text) for text in texts if text.startswith(b"\x05\x00\x03")), key=lambda part: part[0].number
        )
        assert b"".join(text for _, text in parts) == b"z" * 400
        await server.stop()


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.fail("npm is not installed; .ci/run installs it: apt-get install npm nodejs")
    home = tmp_path_factory.mktemp("npm")
    shutil.copy(SIMULATORS / "package.json", home)
    shutil.copy(SIMULATORS / "package-lock.json", home)
    shutil.copy(SIMULATORS / "smsc.js", home)
    subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=home, check=True, timeout=120)
    return home


class TestNodeSmpp:
    """The JavaScript implementation."""

    async def test_messages_and_receipts(self, node, node_modules):
        process = await asyncio.create_subprocess_exec(
            "node", str(node_modules / "smsc.js"), stdout=asyncio.subprocess.PIPE, cwd=node_modules
        )
        try:
            port = int(await asyncio.wait_for(process.stdout.readline(), 15))
            await node.connect(Peer(port))
            ids = [(await node.send(body=f"message {n}"))["id"] for n in range(20)]
            for mid in ids:
                message = await node.reaches(mid, "delivered")
            assert message["part_states"][0]["carrier_id"]
        finally:
            process.kill()
            await process.wait()
