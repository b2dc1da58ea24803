"""Two datacenters as real processes on one machine: mongod, carrier, node and ledger each, and between the ledgers a line that is slow and can be cut.

Tests use it for seconds, benchmarks for minutes: rates and durations are parameters.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from controlplane.domain.events import Event, committed_payload
from controlplane.domain.message import Message, fold
from controlplane.embedded.mongod import Mongod
from controlplane.embedded.seed import Credentials, credentials, seed
from controlplane.ids import is_mid
from controlplane.ledger.merkle import root_of
from controlplane.ledger.tiles import decode_bundle, tile_hashes
from controlplane.settings import Settings, child_environment
from controlplane.store.client import Database, connect
from controlplane.store.events import from_document
from controlplane.store.ledger import LedgerStore, Log
from tests.simulators.ledgers import DOMAIN, peer_of, seed_of
from tests.simulators.network import Line, free_port, line

FINAL = {"delivered", "undelivered", "failed", "expired", "cancelled"}
_CARRIER = '[behaviour]\nsuffix_rules = false\nresponse_ms = "0-5"\nreceipt_ms = "20-200"\noutcomes = {DELIVRD = 0.95, UNDELIV = 0.05}\n'


class Datacenter:
    """One datacenter's processes, each of which can be stopped and killed."""

    def __init__(self, name: str, data: Path) -> None:
        self.name = name
        self.data = data
        data.mkdir(parents=True)
        self.api, self.mongo, self.smpp, self.ledger = (free_port() for _ in range(4))
        self.mongod = Mongod(data, self.mongo)
        self.made: Credentials = credentials(data / "credentials.json")
        self.base = f"http://127.0.0.1:{self.api}"
        self.url = f"http://127.0.0.1:{self.ledger}"
        self.line: Line
        """From the other's ledger to ours."""
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.database: Database
        self.store: LedgerStore
        self.peers = ""

    async def start(self) -> None:
        key = self.data / "ledger.key"
        key.touch(mode=0o600)
        key.write_text(base64.b64encode(seed_of(self.name)).decode())
        (self.data / "secret").write_text(self.made.secret_key)
        (self.data / "carrier.toml").write_text(_CARRIER)
        await asyncio.to_thread(self.mongod.start)
        settings = Settings(mongodb_uri=self.mongod.uri, secret_key=self.made.secret_key)
        await seed(settings, self.made, {"sim": self.smpp})
        self.database = connect(settings)
        self.store = LedgerStore(self.database)
        for role in ("carrier", "node", "ledger"):
            await self.spawn(role)
        await self.ready(self.base)

    async def spawn(self, role: str, **settings: Any) -> None:
        arguments = [role]
        if role == "carrier":
            arguments += ["--config", str(self.data / "carrier.toml"), "--port", str(self.smpp)]
        environment = child_environment(
            mongodb_uri=self.mongod.uri,
            secret_key_file=self.data / "secret",
            datacenter=self.name,
            node=f"{role}-1",
            state_dir=self.data,
            port={"node": self.api, "ledger": self.ledger}.get(role, 0),
            testing="true",
            ledger_domain=DOMAIN,
            ledger_peers=self.peers,
            lease_seconds=4,
            lease_renew_seconds=1,
            lease_margin_seconds=1,
            **({"ledger_key_file": self.data / "ledger.key"} if role == "ledger" else {}),
            **settings,
        )
        with (self.data / f"{role}.log").open("ab") as log:
            self.processes[role] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "controlplane", *arguments, env=environment, stdout=log, stderr=log
            )

    async def end(self, role: str, how: int = signal.SIGKILL) -> None:
        process = self.processes.pop(role)
        if process.returncode is None:
            process.send_signal(how)
        await process.wait()

    async def ready(self, url: str, seconds: float = 150) -> None:
        async with aiohttp.ClientSession() as http, asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(url + "/readyz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)

    def said(self, role: str, word: str) -> list[dict[str, Any]]:
        """What a role logged under this event name."""
        found = []
        for text in (self.data / f"{role}.log").read_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(text)
                if entry.get("event") == word:
                    found.append(entry)
        return found

    async def log(self, *, dc: str = "") -> Log | None:
        """The newest log of a datacenter that is held here, our own by default."""
        logs = await self.store.logs(dc=dc or self.name)
        return logs[-1] if logs else None

    async def snapshot(self) -> Path:
        """What a backup of MongoDB's files at this moment has."""
        kept = self.data / "snapshot"
        await asyncio.to_thread(self.mongod.stop)
        await asyncio.to_thread(shutil.copytree, self.data / "db", kept)
        await asyncio.to_thread(self.mongod.start)
        return kept

    async def restore(self, kept: Path) -> None:
        """MongoDB as it was."""
        await asyncio.to_thread(self.mongod.kill)
        await asyncio.to_thread(shutil.rmtree, self.data / "db")
        await asyncio.to_thread(shutil.move, kept, self.data / "db")
        await asyncio.to_thread(self.mongod.start)

    async def stop(self) -> None:
        for role in list(self.processes):
            await self.end(role)
        if hasattr(self, "database"):
            await self.database.client.close()
        await asyncio.to_thread(self.mongod.stop)


@asynccontextmanager
async def two_datacenters(home: Path, delay: float = 0.05) -> AsyncIterator[tuple[Datacenter, Datacenter]]:
    """fra and iad, `delay` seconds apart in each direction."""
    fra, iad = Datacenter("fra", home / "fra"), Datacenter("iad", home / "iad")
    async with AsyncExitStack() as stack:
        for each, other in ((fra, iad), (iad, fra)):
            other.line = await stack.enter_async_context(line(other.ledger, delay))
            peer = peer_of(other.name, f"http://127.0.0.1:{other.line.port}")
            each.peers = json.dumps([peer.model_dump(mode="json")])
            stack.push_async_callback(each.stop)
        await asyncio.gather(fra.start(), iad.start())
        yield fra, iad


@dataclass
class Load:
    """Messages at a steady rate into one datacenter, some of which are then looked for in the other."""

    into: Datacenter
    other: Datacenter
    rate: float
    batch: int = 10
    sample: int = 0
    """Every so manieth message is looked for; 0: none."""
    accepted: list[str] = field(default_factory=list)
    refused: int = 0
    latencies: list[float] = field(default_factory=list)
    """Seconds from 202 here to 200 there."""
    running: bool = True
    number: int = 0

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=64)
        headers = {"authorization": f"Bearer {self.into.made.api_key}"}
        there = {"authorization": f"Bearer {self.other.made.admin_key}"}
        async with (
            aiohttp.ClientSession(connector=connector, headers=headers) as http,
            aiohttp.ClientSession(headers=there) as far,
            asyncio.TaskGroup() as group,
        ):
            slots = asyncio.Semaphore(64)
            began = time.monotonic()
            while self.running:
                due = int((time.monotonic() - began) * self.rate)
                while self.number + self.batch <= due and self.running:
                    await slots.acquire()
                    first = self.number
                    self.number += self.batch
                    group.create_task(self._send(http, far, first, slots, group))
                await asyncio.sleep(0.005)

    async def _send(
        self,
        http: aiohttp.ClientSession,
        far: aiohttp.ClientSession,
        first: int,
        slots: asyncio.Semaphore,
        group: asyncio.TaskGroup,
    ) -> None:
        messages = [
            {
                "to": f"+4915{1 + (self.into.name == 'iad')}{number % 10**8:08d}",
                "body": f"message {number} of {self.into.name}",
            }
            for number in range(first, first + self.batch)
        ]
        try:
            async with http.post(self.into.base + "/v1/batches", json={"messages": messages}) as answer:
                document = await answer.json()
            results = document["results"] if answer.status == 202 else []
        except (aiohttp.ClientError, ValueError, KeyError):
            results = []
        finally:
            slots.release()
        at = time.monotonic()
        taken = [result["id"] for result in results if "id" in result]
        self.refused += self.batch - len(taken)
        self.accepted += taken
        if self.sample and taken and (first // self.batch) % max(1, self.sample // self.batch) == 0:
            group.create_task(self._look(far, taken[-1], at))

    async def _look(self, far: aiohttp.ClientSession, mid: str, at: float) -> None:
        while time.monotonic() - at < 60:
            async with far.get(f"{self.other.base}/v1/messages/{mid}") as answer:
                if answer.status == 200:
                    self.latencies.append(time.monotonic() - at)
                    return
            await asyncio.sleep(0.01)
        self.latencies.append(float("inf"))


@asynccontextmanager
async def load(*loads: Load) -> AsyncIterator[None]:
    """While this lasts, messages come."""
    async with asyncio.TaskGroup() as group:
        for each in loads:
            group.create_task(each.run())
        try:
            yield
        finally:
            for each in loads:
                each.running = False


def percentile(values: list[float], share: float) -> float:
    """Of sorted or unsorted values; nan of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


async def events_of(database: Database) -> dict[str, Event]:
    """All events, by `_id`."""
    return {
        document["_id"]: from_document(document) async for document in database["events"].find({}, batch_size=5_000)
    }


def folds(events: dict[str, Event]) -> dict[str, Message]:
    """All messages. ValueError for a story with a gap."""
    stories: dict[str, list[Event]] = defaultdict(list)
    for event in events.values():
        if is_mid(event.mid):
            stories[event.mid].append(event)
    found = {}
    for mid, story in stories.items():
        message = fold(sorted(story, key=lambda event: event.k))
        assert message is not None
        found[mid] = message
    return found


async def quiet(*datacenters: Datacenter, seconds: float = 180.0) -> float:
    """Wait until every message is final, everything is sequenced, and each has all of the other's log; how long it took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if all([await _settled(each) for each in datacenters]):
            tails = [await _tail(each, other) for each in datacenters for other in datacenters if each is not other]
            if all(tails):
                return time.monotonic() - began
        await asyncio.sleep(0.25)
    raise AssertionError("not quiet in time: " + str([await _counts(each) for each in datacenters]))


async def _settled(each: Datacenter) -> bool:
    """No open message of this datacenter, and no event beyond the log's marks."""
    log = await each.log()
    if log is None:
        return False
    for source in await each.store.sources():
        mark = log.marks.get((source.node, source.epoch), 0)
        if await each.store.sequence(each.name, source.node, source.epoch, mark, 1):
            return False
    async with aiohttp.ClientSession() as http, http.get(each.base + "/metrics") as answer:
        text = await answer.text()
    return "\nheliograph_open_messages 0.0" in text


async def _tail(each: Datacenter, other: Datacenter) -> bool:
    own, copy = await each.log(), await other.log(dc=each.name)
    return own is not None and copy is not None and (own.size, own.root) == (copy.size, copy.root)


async def _counts(each: Datacenter) -> dict[str, Any]:
    logs = {log.origin: log.size for log in await each.store.logs()}
    return {"dc": each.name, "logs": logs, "settled": await _settled(each)}


async def verify(each: Datacenter, dc: str) -> int:
    """Recompute the root of every log of `dc` that is here from its entries; how many entries."""
    total = 0
    for log in await each.store.logs(dc=dc):
        leaves = [leaf async for leaf in entries(each, log, 0, log.size)]
        hashes = tile_hashes(leaves)
        assert root_of([hashes[at : at + 32] for at in range(0, len(hashes), 32)]) == log.root
        total += len(leaves)
    return total


async def entries(each: Datacenter, log: Log, first: int, end: int) -> AsyncIterator[bytes]:
    """A log's entries as stored."""
    for start in range(first // 256, (end + 255) // 256, 64):
        indices = list(range(start, min(start + 64, (end + 255) // 256)))
        bundles = await each.store.bundles(log.origin, indices)
        for index in indices:
            for place, leaf in enumerate(decode_bundle(bundles[index])[: min(256, end - 256 * index)], 256 * index):
                if place >= first:
                    yield leaf


async def weight(each: Datacenter, log: Log, first: int, end: int) -> int:
    """Bytes of leaves, salts and payloads of these entries: what must move."""
    total = 0
    by_leaf = {event.leaf: event for event in (await events_of(each.database)).values() if event.dc == each.name}
    async for leaf in entries(each, log, first, end):
        event = by_leaf[leaf]
        total += len(leaf) + len(event.salt or b"") + (len(committed_payload(event)) if event.data is not None else 0)
    return total


def figures(name: str, **values: Any) -> None:
    """One line that a benchmark, or a reader of the test's output, finds."""
    print(json.dumps({"figures": name} | values))


def pairs(fra: Datacenter, iad: Datacenter) -> Iterator[tuple[Datacenter, Datacenter]]:
    yield fra, iad
    yield iad, fra


async def measure_latency(
    fra: Datacenter, iad: Datacenter, rate: float, seconds: float, sample: int = 50
) -> dict[str, Any]:
    """Load in both directions, and how soon what was accepted in one is readable in the other."""
    loads = [Load(each, other, rate, sample=sample) for each, other in pairs(fra, iad)]
    async with load(*loads):
        await asyncio.sleep(seconds)
    latencies = [value for each in loads for value in each.latencies]
    found = {
        "rate_each_way": rate,
        "seconds": seconds,
        "accepted": [len(each.accepted) for each in loads],
        "refused": [each.refused for each in loads],
        "samples": len(latencies),
        "p50_s": round(percentile(latencies, 0.5), 3),
        "p99_s": round(percentile(latencies, 0.99), 3),
        "max_s": round(max(latencies, default=float("nan")), 3),
    }
    figures("latency", **found)
    return found


async def measure_partition(fra: Datacenter, iad: Datacenter, rate: float, seconds: float) -> dict[str, Any]:
    """Cut the line under load, for so long; mend it; how soon both have everything, and what moved for that against what was missing."""
    loads = [Load(each, other, rate) for each, other in pairs(fra, iad)]
    async with load(*loads):
        await asyncio.sleep(2)
        await asyncio.gather(fra.line.sever(), iad.line.sever())
        before = [len(each.accepted) for each in loads]
        await asyncio.sleep(seconds)
        during = [len(each.accepted) - count for each, count in zip(loads, before, strict=True)]
    async with asyncio.timeout(
        120
    ):  # everything is sequenced at home before the line is mended, so that what is missing is known
        while not all([await _settled(fra), await _settled(iad)]):
            await asyncio.sleep(0.25)
    gaps = []
    for each, other in pairs(fra, iad):
        own, copy = await each.log(), await other.log(dc=each.name)
        assert own is not None
        assert copy is not None
        assert copy.size < own.size
        gaps.append((each, own, copy.size))
        each.line.back_bytes = 0
    for each in (fra, iad):
        each.line.mend()
    took = await quiet(fra, iad)
    moved = sum(each.line.back_bytes for each in (fra, iad))
    missing = sum([await weight(each, own, first, own.size) for each, own, first in gaps])
    found = {
        "rate_each_way": rate,
        "seconds_cut": seconds,
        "accepted_while_cut": during,
        "missing_entries": [own.size - first for _, own, first in gaps],
        "missing_bytes": missing,
        "moved_bytes": moved,
        "moved_per_missing": round(moved / missing, 4),
        "healed_s": round(took, 2),
    }
    figures("partition", **found)
    return found
