"""The message path with and without a ledger beside it, or with one router and another, in turn: what each takes from it; how far the ledger lags, and
whether every event is in the log once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pymongo import MongoClient

from bench.gateways import BATCH, accepted
from bench.ledger.bed import once
from bench.systems import Heliograph
from bench.tools import BenchError, Load, Sink, cpu_seconds, until
from controlplane.store.ledger import LOGS, Log
from controlplane.store.schema import EVENTS

_WARM_SECONDS = 2.0


@dataclass(frozen=True)
class Way:
    """One way to load the path."""

    name: str
    request: Callable[[Heliograph], bytes]
    size: int
    connections: int
    receipts: bool = False
    rate: float = 0.0
    """Messages a second; 0: as many as are taken."""


WAYS = (
    Way("single, c=64", lambda system: system.request(), 1, 64),
    Way("batches", lambda system: system.batch(BATCH), BATCH, 8),
    Way("single, receipts", lambda system: system.request(), 1, 64, receipts=True),
    Way("batches, receipts", lambda system: system.batch(BATCH), BATCH, 8, receipts=True),
    Way("2,000 a second", lambda system: system.request(), 1, 64, rate=2_000.0),
)


def measure(
    way: Way, work: Path, seconds: float, *, ledger: bool = False, routing: str = "static", routes: int = 1
) -> dict[str, Any]:
    """One run."""
    system = Heliograph(ledger=ledger, routing=routing, routes=routes)
    sink, load = Sink(work, receipts=way.receipts), Load(work)
    try:
        system.start(work / "path", sink)
        request = way.request(system)
        warm = accepted(load.run(system.ports, request, connections=way.connections, seconds=_WARM_SECONDS)) * way.size
        sink.wait_for(warm, receipts=warm if way.receipts else 0)
        sink.reset()
        parts = {"node_us": system.node_pids, "mongod_us": system.mongod_pids, "ledger_us": system.ledger_pids}
        before = {name: cpu_seconds(pids) for name, pids in parts.items()}
        result = load.run(system.ports, request, connections=way.connections, seconds=seconds, rate=way.rate / way.size)
        behind = _behind(system.uri) if ledger else 0
        messages = accepted(result) * way.size
        stats = sink.wait_for(messages, receipts=messages if way.receipts else 0)
        arrived = time.monotonic()
        found: dict[str, Any] = {
            "per_s": messages / ((stats.last_ns - result["begin_ns"]) / 1e9),
            "accept_ms": {name: value / 1000 for name, value in result["latency_us"].items()},
            **{name: (cpu_seconds(pids) - before[name]) / messages * 1e6 for name, pids in parts.items()},
            "refused": (result["requests"] - accepted(result)) * way.size,
            **sink.check(messages),
        }
        if ledger:
            found["behind_entries"] = behind
            found["caught_up_s"], found["log"] = _whole(system.uri, arrived)
    finally:
        system.stop()
        sink.stop()
    return found


def _behind(uri: str) -> int:
    """How many events are in no log yet."""
    with MongoClient(uri) as client:
        return _left(client["heliograph"])


def _whole(uri: str, arrived: float) -> tuple[float, dict[str, int]]:
    """How long after the last message had arrived the ledger had everything; and whether it has it once."""
    with MongoClient(uri) as client:
        database = client["heliograph"]
        until("the ledger", lambda: _left(database) == 0, 120)
        took = time.monotonic() - arrived
        log = _log(database)
        if log is None:
            raise BenchError("There is no log.")
        return took, once(database, log)


def _log(database: Any) -> Log | None:
    found = database[LOGS].find_one({"own": True})
    return Log.of(found) if found else None


def _left(database: Any) -> int:
    log = _log(database)
    return int(database[EVENTS].estimated_document_count()) - (log.size if log else 0)


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """With against without, by pairs of runs that followed each other."""
    ratios = [on["per_s"] / off["per_s"] for off, on in zip(runs["off"], runs["on"], strict=True)]
    return {"ratio": median(ratios), "ratios": ratios}
