"""Load, and kill -9 of the node, of mongod, of the carrier, at random moments. Judged from the client's own log and the carrier's journal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from controlplane.carrier.journal import digest, read_journal
from controlplane.embedded.mongod import Mongod
from controlplane.embedded.seed import Credentials, credentials, seed
from controlplane.settings import Settings, child_environment
from tests.simulators.network import free_port

ROUNDS = int(os.environ.get("HG_KILL_ROUNDS", "20"))
FAST_ROUNDS = max(3, ROUNDS // 3)
RATE = 600
FAST_RATE, FAST_BATCH = 2_000, 20
FINAL = {"delivered", "undelivered", "failed", "expired", "cancelled"}
SEED = int(os.environ.get("HG_KILL_SEED", "20261124"))


@dataclass
class Machine:
    """mongod, one node, one carrier: real processes that can be killed."""

    data: Path
    unsafe: bool = False
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in ("api", "mongo", "smpp")})
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mongod = Mongod(self.data, self.ports["mongo"])
        self.made: Credentials = credentials(self.data / "credentials.json")
        self.journal = self.data / "carrier.journal"
        self.base = f"http://127.0.0.1:{self.ports['api']}"

    async def start(self) -> None:
        (self.data / "secret").write_text(self.made.secret_key)
        (self.data / "carrier.toml").write_text(
            '[behaviour]\nsuffix_rules = false\nresponse_ms = "0-5"\nreceipt_ms = "20-400"\nredeliver_seconds = 2.0\n'
            "outcomes = {DELIVRD = 0.95, UNDELIV = 0.05}\n"
        )
        await asyncio.to_thread(self.mongod.start)
        await seed(
            Settings(mongodb_uri=self.mongod.uri, secret_key=self.made.secret_key),
            self.made,
            {"sim": self.ports["smpp"]},
        )
        await self.spawn("carrier")
        await self.spawn("node")
        await self.ready()

    async def spawn(self, name: str) -> None:
        arguments = {
            "node": ["node"],
            "carrier": [
                "carrier",
                *("--config", str(self.data / "carrier.toml")),
                *("--port", str(self.ports["smpp"])),
                *("--journal", str(self.journal)),
            ],
        }[name]
        environment = child_environment(
            mongodb_uri=self.mongod.uri,
            secret_key_file=self.data / "secret",
            node="node-1",
            state_dir=self.data,
            port=self.ports["api"],
            testing="true",
            commit_unsafe=str(self.unsafe).lower(),
            accept_timeout_seconds=3,
        )
        with (self.data / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "controlplane", *arguments, env=environment, stdout=log, stderr=log
            )

    async def kill(self, name: str) -> None:
        if name == "mongod":
            await asyncio.to_thread(self.mongod.kill)
            await asyncio.sleep(random.uniform(0, 0.5))
            await asyncio.to_thread(self.mongod.start)
            return
        process = self.processes[name]
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await self.spawn(name)

    async def ready(self, seconds: float = 30) -> None:
        async with aiohttp.ClientSession() as http, asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(self.base + "/readyz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
        await asyncio.to_thread(self.mongod.stop)


class Client:
    """Sends at a steady rate and writes down every 202, and nothing else: this is the log that the verdict rests on."""

    def __init__(self, machine: Machine, rate: int = RATE, batch: int = 1) -> None:
        self.machine = machine
        self.rate = rate
        self.batch = batch
        """Messages a request; with more than one, by POST /v1/batches."""
        self.accepted: dict[str, tuple[str, str]] = {}
        """id → (policy, text)"""
        self.unanswered: set[str] = set()
        """Texts whose request got no answer: they may or may not be accepted."""
        self.answers: Counter[str] = Counter()
        self.number = 0
        self.running = True

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=64)
        timeout = aiohttp.ClientTimeout(total=8)
        headers = {"authorization": f"Bearer {self.machine.made.api_key}"}
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http,
            asyncio.TaskGroup() as group,
        ):
            slots = asyncio.Semaphore(256)
            began = time.monotonic()
            while self.running:
                due = int((time.monotonic() - began) * self.rate)
                while self.number + self.batch <= due:
                    await slots.acquire()
                    numbers = range(self.number + 1, self.number + 1 + self.batch)
                    self.number += self.batch
                    group.create_task(self.send(http, numbers, slots))
                await asyncio.sleep(0.005)

    async def send(self, http: aiohttp.ClientSession, numbers: range, slots: asyncio.Semaphore) -> None:
        bodies = [
            {
                "to": f"+49151{number:08d}",
                "body": f"kill test message {number}",
                "unknown_policy": "resend" if number % 2 else "hold",
            }
            for number in numbers
        ]
        one = self.batch == 1
        path, body = ("/v1/messages", bodies[0]) if one else ("/v1/batches", {"messages": bodies})
        try:
            async with http.post(self.machine.base + path, json=body) as answer:
                document = await answer.json()
                self.answers[str(answer.status)] += 1
                if one or answer.status != 202:
                    results = [document] * len(bodies)
                else:
                    results = [result.get("error", result) for result in document["results"]]
            for sent, result in zip(bodies, results, strict=True):
                if "id" in result:
                    self.accepted[result["id"]] = (sent["unknown_policy"], sent["body"])
                elif result["type"].endswith("accept-unconfirmed"):
                    self.unanswered.add(sent["body"])
        except (aiohttp.ClientError, TimeoutError, ValueError):
            self.answers["none"] += 1
            self.unanswered.update(sent["body"] for sent in bodies)
        finally:
            slots.release()


async def read_all(machine: Machine) -> dict[str, dict]:
    found: dict[str, dict] = {}
    headers = {"authorization": f"Bearer {machine.made.api_key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        cursor = None
        while True:
            params = {"limit": "1000"} | ({"cursor": cursor} if cursor else {})
            async with http.get(machine.base + "/v1/messages", params=params) as answer:
                assert answer.status == 200, await answer.text()
                page = await answer.json()
            found.update((message["id"], message) for message in page["data"])
            cursor = page["next"]
            if cursor is None:
                return found


async def settled(machine: Machine, client: Client, seconds: float) -> dict[str, dict]:
    """All messages, once each is final or unknown (or the time is up)."""
    deadline = time.monotonic() + seconds
    while True:
        found = await read_all(machine)
        open_ones = [m for m in found.values() if m["status"] not in FINAL | {"unknown"}]
        if not open_ones or time.monotonic() > deadline:
            return found
        await asyncio.sleep(2)


async def kind_of_history(machine: Machine, ids: list[str]) -> dict[str, set[str]]:
    headers = {"authorization": f"Bearer {machine.made.api_key}"}
    kinds: dict[str, set[str]] = {}
    async with aiohttp.ClientSession(headers=headers) as http:
        for mid in ids:
            async with http.get(f"{machine.base}/v1/messages/{mid}") as answer:
                kinds[mid] = {event["kind"] for event in (await answer.json())["timeline"]}
    return kinds


class TestKill:
    """Every 202 is found and ends in one final status or in `unknown`; nothing is lost; duplicates only where they are declared."""

    @pytest.mark.parametrize(
        ("rate", "batch", "rounds"),
        [(RATE, 1, ROUNDS), (FAST_RATE, FAST_BATCH, FAST_ROUNDS)],
        ids=["single", "batches at a high rate"],
    )
    async def test_nothing_is_lost(self, tmp_path: Path, rate: int, batch: int, rounds: int) -> None:
        rng = random.Random(SEED)
        machine = Machine(tmp_path)
        await machine.start()
        client = Client(machine, rate, batch)
        kills: Counter[str] = Counter()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(client.run())
                for number in range(rounds):
                    await asyncio.sleep(rng.uniform(0.5, 2.0))
                    victim = ("node", "mongod", "carrier")[number % 3]
                    kills[victim] += 1
                    await machine.kill(victim)
                    await machine.ready()
                await asyncio.sleep(2)
                client.running = False
            found = await settled(machine, client, 120)
            await self.judge(machine, client, found, kills)
        finally:
            await machine.stop()

    async def judge(self, machine: Machine, client: Client, found: dict[str, dict], kills: Counter[str]) -> None:
        taken: dict[str, list[str]] = defaultdict(list)
        for line in read_journal(machine.journal):
            if line["e"] == "submit":
                taken[line["digest"]].append(line["id"])
        statuses = Counter(found[mid]["status"] for mid in client.accepted if mid in found)
        doubled = [mid for mid, (_, text) in client.accepted.items() if len(taken[digest(text.encode())]) > 1]
        report = {
            "rounds": dict(kills),
            "sent": client.number,
            "answers": dict(client.answers),
            "accepted": len(client.accepted),
            "statuses": dict(statuses),
            "taken_by_carrier": sum(map(len, taken.values())),
            "duplicates": len(doubled),
        }
        print(json.dumps(report))
        assert not set(client.accepted) - set(found), "accepted messages are missing"
        assert set(statuses) <= FINAL | {"unknown"}, statuses
        assert len(client.accepted) > sum(kills.values()) * client.rate // 2, "the load was too small to prove anything"
        never = [
            mid
            for mid, (_, text) in client.accepted.items()
            if found[mid]["status"] == "delivered" and not taken[digest(text.encode())]
        ]
        assert not never, "delivered without the carrier having taken it"
        ghosts = [m for mid, m in found.items() if mid not in client.accepted]
        assert len(ghosts) <= len(client.unanswered), "messages that nobody sent"
        histories = await kind_of_history(machine, doubled)
        for mid in doubled:
            assert client.accepted[mid][0] == "resend", f"{mid} is held, and was sent twice"
            assert "unknown" in histories[mid], f"{mid} was sent twice and never declared unknown"
        for text in (text for _, text in client.accepted.values()):
            assert len(taken[digest(text.encode())]) <= 5

    async def test_the_judge_catches_a_node_that_answers_too_early(self, tmp_path: Path) -> None:
        """Negative control: with durability switched off, the same test must see losses."""
        machine = Machine(tmp_path, unsafe=True)
        await machine.start()
        client = Client(machine)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(client.run())
                for _ in range(6):
                    await asyncio.sleep(1.0)
                    await machine.kill("mongod")
                client.running = False
            await machine.ready()
            found = await read_all(machine)
            assert client.accepted
            missing = set(client.accepted) - set(found)
            print(json.dumps({"accepted": len(client.accepted), "lost": len(missing)}))
            assert missing, "the control did not lose anything: the test proves nothing"
        finally:
            await machine.stop()
