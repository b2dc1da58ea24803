"""`heliograph up` as a newcomer runs it: ready, a message delivered, stopped in order, everything there after a restart."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.simulators.network import free_port


class Up:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.api, mongo, ledger, first, second = (free_port() for _ in range(5))
        self.command = [
            *(sys.executable, "-m", "controlplane", "up", "--data", str(data), "--port", str(self.api)),
            *("--mongo-port", str(mongo), "--ledger-port", str(ledger), "--carrier-ports", str(first), str(second)),
        ]
        self.output = ""

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(60):
            while "Ctrl-C stops everything in order." not in self.output:
                line = await self.process.stdout.readline()
                assert line, self.output
                self.output += line.decode()

    async def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        rest = await asyncio.wait_for(self.process.stdout.read(), 60)
        assert await self.process.wait() == 0
        return rest.decode()


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


async def first_admin(http: aiohttp.ClientSession, up: Up) -> None:
    """Follow the printed link, as a browser does; on one's own machine a second factor may wait."""
    [link] = re.findall(r"Console +(http://127\.0\.0\.1:\d+/console/setup\?token=[\w-]+)\n", up.output)
    password = "a long walk on a short pier"
    form = {"token": link.partition("token=")[2], "name": "ada", "password": password, "again": password}
    own = {"sec-fetch-site": "same-origin"}
    async with http.post(link.partition("?")[0], data=form, headers=own, allow_redirects=False) as answer:
        assert answer.status == 303, await answer.text()
        cookie = answer.cookies["__Host-heliograph"].value
    async with http.get(
        f"http://127.0.0.1:{up.api}/console/people", headers={"cookie": f"__Host-heliograph={cookie}"}
    ) as answer:
        assert answer.status == 200
        assert "ada" in await answer.text()


class TestUp:
    """The first ten minutes of a newcomer."""

    async def test_first_message_and_restart(self, tmp_path, http):
        up = Up(tmp_path / "data")
        await up.start()
        made = json.loads((up.data / "credentials.json").read_text())
        assert made["api_key"] in up.output
        assert (up.data / "credentials.json").stat().st_mode & 0o077 == 0
        await first_admin(http, up)
        headers = {"authorization": f"Bearer {made['api_key']}"}
        base = f"http://127.0.0.1:{up.api}/v1/messages"
        async with http.post(base, json={"to": "+4915112340001", "body": "Hello"}, headers=headers) as answer:
            assert answer.status == 202
            mid = (await answer.json())["id"]
        async with asyncio.timeout(20):
            while True:
                async with http.get(f"{base}/{mid}", headers=headers) as answer:
                    message = await answer.json()
                if message["status"] == "delivered":
                    break
                await asyncio.sleep(0.2)
        second = await asyncio.create_subprocess_exec(
            *up.command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        _, error = await second.communicate()
        assert second.returncode == 2
        assert b"Another `heliograph up` uses" in error
        assert "Stopped; everything accepted" in await up.stop()
        up.output = ""
        await up.start()
        assert f"Console    http://127.0.0.1:{up.api}/console\n" in up.output
        async with http.get(f"{base}/{mid}", headers=headers) as answer:
            assert (await answer.json())["status"] == "delivered"
        shown = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controlplane", "messages", "get", mid, "--data", str(up.data), "--json"),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await shown.communicate()
        assert json.loads(out)["id"] == mid
        await up.stop()

    async def test_a_busy_port_is_named(self, tmp_path):
        up = Up(tmp_path / "data")
        with socket.create_server(("127.0.0.1", up.api)):
            process = await asyncio.create_subprocess_exec(
                *up.command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
            _, error = await process.communicate()
        assert process.returncode == 2
        assert f"Port {up.api} cannot be used" in error.decode()
        assert "--port" in error.decode()
