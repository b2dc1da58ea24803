"""What the ledger's benchmarks share: a mongod of their own, events of the product's own shape in it, and reading a log back to see that everything is in it once."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from pymongo import MongoClient
from pymongo.write_concern import WriteConcern

from bench.tools import BenchError, Process, cpu_seconds, free_port, until
from controlplane.domain.events import Event, Kind, commitment, committed_payload, leaf_bytes, leaf_hash
from controlplane.embedded.mongod import Mongod
from controlplane.ids import new_mid
from controlplane.ledger.checkpoint import Checkpoint
from controlplane.ledger.merkle import Frontier
from controlplane.ledger.note import Verifier, parse_note, verify
from controlplane.ledger.tiles import WIDTH, decode_bundle
from controlplane.settings import Settings
from controlplane.store.events import to_document
from controlplane.store.ledger import BUNDLES, LOGS, Log
from controlplane.store.schema import EVENTS, TERMS

DATABASE = "heliograph"
LEDGER_KEY = base64.b64encode(b"\x07" * 32).decode()
_FILLERS = 2
_CHUNK = 1_000
_QUIET_SECONDS = 3.0


class _Entry(msgspec.Struct):
    n: str
    e: int
    q: int
    at: int


_entry = msgspec.json.Decoder(_Entry).decode


def settings_of(uri: str, work: Path, **more: Any) -> Settings:
    """Of a ledger over this mongod."""
    return Settings(mongodb_uri=uri, secret_key="x" * 32, ledger_key=LEDGER_KEY, state_dir=work, node="bench", **more)


class Bed:
    """One mongod, and the programs of `worker` over it."""

    def __init__(self, work: Path, name: str, *, cache_gb: float = 1.0) -> None:
        self.work = work / name
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self._mongod = Mongod(self.work / "mongo", free_port(), cache_gb=cache_gb)
        self._mongod.start()
        self.client: MongoClient[dict[str, Any]] = MongoClient(self._mongod.uri)
        self.database = self.client[DATABASE]
        self._workers: list[Process] = []
        self._number = 0

    @property
    def uri(self) -> str:
        return self._mongod.uri

    @property
    def mongod_pid(self) -> int:
        if self._mongod.process is None:
            raise BenchError("mongod ended; see its log")
        return self._mongod.process.pid

    def mongod_cpu(self) -> float:
        return cpu_seconds([self.mongod_pid])

    def log(self) -> Log | None:
        """The newest log of this datacenter."""
        found = list(self.database[LOGS].find({"own": True}).sort("opened_at", -1).limit(1))
        return Log.of(found[0]) if found else None

    def size(self) -> int:
        found = list(self.database[LOGS].find({"own": True}, {"size": 1}).sort("opened_at", -1).limit(1))
        return int(found[0]["size"]) if found else 0

    def marked(self, node: str) -> int:
        """The highest q of a node that is in the log."""
        log = self.log()
        return log.marks.get((node, 1), 0) if log else 0

    def fill(self, node: str, count: int) -> None:
        """`count` events of a node that nobody has sequenced, then quiet: what mongod still has to write of them is not the ledger's cost."""
        share = count // _FILLERS
        context = multiprocessing.get_context("spawn")
        fillers = [
            context.Process(target=_fill, args=(self.uri, node, share * number, share)) for number in range(_FILLERS)
        ]
        for filler in fillers:
            filler.start()
        for filler in fillers:
            filler.join()
            if filler.exitcode:
                raise BenchError(f"a filler ended with code {filler.exitcode}")
        self.know(node)
        self.settle()

    def know(self, *nodes: str) -> None:
        """Let the ledger read these nodes' events."""
        for node in nodes:
            term = {"n": node, "e": 1, "state": "live", "beat": 0, "by": "", "host": "", "url": ""}
            self.database[TERMS].update_one({"_id": f"{node}:1"}, {"$setOnInsert": term}, upsert=True)

    def complete(self, *nodes: str) -> None:
        """Everything of these nodes is in the log: no later round asks for more."""
        for node in nodes:
            self.database[TERMS].update_one({"_id": f"{node}:1"}, {"$set": {"sequenced": self.marked(node)}})

    def settle(self) -> None:
        self.client.admin.command("fsync")
        time.sleep(_QUIET_SECONDS)

    def worker(self, role: str, **config: Any) -> Worker:
        """Start `python -m bench.ledger.worker`."""
        self._number += 1
        out = self.work / f"{role}-{self._number}.json"
        config |= {"uri": self.uri, "work": str(self.work), "out": str(out)}
        command = [sys.executable, "-m", "bench.ledger.worker", role, json.dumps(config)]
        process = Process(command, self.work / f"{role}-{self._number}.log")
        self._workers.append(process)
        return Worker(role, process, out)

    def stop(self) -> None:
        for process in self._workers:
            process.stop()
        self.client.close()
        self._mongod.stop()


class Worker:
    """A program beside this one; what it measured is its report."""

    def __init__(self, role: str, process: Process, out: Path) -> None:
        self._role = role
        self._process = process
        self._out = out

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu(self) -> float:
        return cpu_seconds([self.pid])

    def ready(self) -> None:
        """Wait until it is at work."""
        path = self._out.with_suffix(".ready")
        until(f"the {self._role}", lambda: path.exists() or self._process.child.poll() is not None, 120)
        if not path.exists():
            self._report()

    def wait(self, seconds: float = 120.0) -> dict[str, Any]:
        """Its report, once it has ended by itself."""
        until(f"the {self._role}", lambda: self._process.child.poll() is not None, seconds)
        return self._report()

    def kill(self) -> None:
        """It has nothing to report."""
        self._process.stop(1.0)

    def end(self) -> dict[str, Any]:
        """Ask it to end; its report."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def _report(self) -> dict[str, Any]:
        if self._process.child.returncode or not self._out.exists():
            raise BenchError(f"The {self._role} failed: {self._process.log}\n{self._process.log.read_text()[-2000:]}")
        report: dict[str, Any] = json.loads(self._out.read_text())
        return report


def accepted(at: int, number: int) -> Event:
    """A draft of a message's first event."""
    text = {"to": f"+49151{number:08d}", "from": "12345", "body": f"bench {number:010d}", "class": "transactional"}
    rest = {"encoding": "gsm7", "sender_type": "short", "parts": 1, "price": 0, "currency": "EUR"}
    more = {"planned_route": "sink", "expires_at": at + 172_800_000, "unknown_policy": "resend"}
    return Event(new_mid(at), 0, "bench", Kind.ACCEPTED, at, text | rest | more)


def submitted(before: Event, at: int) -> Event:
    """A draft of its second event, once the first is sealed."""
    raw = f"{before.node}-{before.q}"
    sent = {"route": "sink", "connector": "sink", "attempt": 1, "part_ids": [[1, raw]]}
    prev, cids = leaf_hash(before.leaf), (f"sink/{raw}",)
    return Event(before.mid, 1, "bench", Kind.SUBMITTED, at, sent, prev, "sink", cids=cids)


def message_events(node: str, first: int, count: int, at: int) -> Iterator[Event]:
    """`count` events, accepted and submitted in turn, sealed as a node's committer seals them; q from `first` + 1."""
    before: Event | None = None
    for q in range(first + 1, first + count + 1):
        event = accepted(at, q) if before is None else submitted(before, at)
        event.dc, event.node, event.epoch, event.q, event.salt = "local", node, 1, q, os.urandom(16)
        event.leaf = leaf_bytes(event, commitment(event.salt, committed_payload(event)))
        yield event
        before = event if before is None else None


def _fill(uri: str, node: str, first: int, count: int) -> None:
    with MongoClient(uri) as client:
        events = client[DATABASE].get_collection(EVENTS, write_concern=WriteConcern(w=1, j=False))
        batch: list[dict[str, Any]] = []
        for event in message_events(node, first, count, time.time_ns() // 1_000_000):
            batch.append(to_document(event))
            if len(batch) >= _CHUNK:
                events.insert_many(batch, ordered=False)
                batch = []
        if batch:
            events.insert_many(batch, ordered=False)


def read_entries(database: Any, log: Log, first: int = 0) -> Iterator[bytes]:
    """The entries from bundle `first` on."""
    for index in range(first, -(-log.size // WIDTH)):
        document = database[BUNDLES].find_one({"_id": f"{log.origin}|{index}"}, {"data": 1})
        yield from decode_bundle(document["data"])[: log.size - index * WIDTH]


def read_log(database: Any, log: Log) -> Iterator[bytes]:
    """All entries, in order; BenchError where they do not lead to the signed checkpoint."""
    note = parse_note(log.checkpoint)
    if not verify(note, [Verifier.parse(log.vkey)]):
        raise BenchError(f"{log.origin}: its checkpoint is not signed by it")
    frontier, hashes = Frontier(), []
    for entry in read_entries(database, log):
        hashes.append(leaf_hash(entry))
        if len(hashes) == _CHUNK:
            frontier.extend(hashes)
            hashes = []
        yield entry
    frontier.extend(hashes)
    checkpoint = Checkpoint.parse(note.text)
    if (checkpoint.size, checkpoint.root) != (log.size, frontier.root()):
        raise BenchError(f"{log.origin}: its entries do not lead to what it signed")


def once(database: Any, log: Log) -> dict[str, int]:
    """Every event of the store exactly once in the log? The log is read whole, and verified against its checkpoint."""
    seen: dict[tuple[str, int], set[int]] = {}
    twice = 0
    for entry in read_log(database, log):
        place = _entry(entry)
        numbers = seen.setdefault((place.n, place.e), set())
        twice += place.q in numbers
        numbers.add(place.q)
    missing = 0
    stored = 0
    for document in database[EVENTS].find({}, {"_id": 0, "n": 1, "e": 1, "q": 1}).batch_size(10_000):
        stored += 1
        missing += document["q"] not in seen.get((document["n"], document["e"]), ())
    return {"events": stored, "entries": log.size, "missing": missing, "twice": twice}


def publish_ms(database: Any, log: Log, node: str, rounds: Sequence[dict[str, Any]]) -> list[float]:
    """Of each event of the nodes whose names begin so: from its `at` until the checkpoint that covers it was committed, in ms."""
    found = []
    ends = iter(rounds)
    current = next(ends)
    first = current["size"] - current["entries"]
    for index, entry in enumerate(read_entries(database, log, first // WIDTH), first // WIDTH * WIDTH):
        while current is not None and current["size"] <= index:
            current = next(ends, None)
        if current is None:
            break
        place = _entry(entry)
        if index >= first and place.n.startswith(node):
            found.append(current["at_ms"] - place.at)
    return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99, max."""
    ordered = sorted(values)
    if not ordered:
        return {}
    names = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) for name, share in names.items()}
    return found | {"max": float(ordered[-1])}


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of every figure, at any depth, the median over the runs that have it."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run[name] for run in runs if name in run]
        if isinstance(values[0], dict):
            found[name] = medians(values)
        elif isinstance(values[0], int | float):
            found[name] = median(values)
    return found
