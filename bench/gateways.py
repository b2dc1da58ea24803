"""Gateways side by side: each scenario starts its gateway anew, warms it up, loads it, waits until everything arrived, and counts what arrived."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.systems import Heliograph, Jasmin, Kannel, System
from bench.tools import Load, Sink, SinkStats, cpu_seconds

BATCH = 1_000
WARM_SECONDS = 2.0


@dataclass(frozen=True)
class Scenario:
    """One way to load one gateway."""

    name: str
    make: Callable[[], System]
    request: Callable[[Any], bytes]
    """(the started system) → one whole HTTP request."""
    size: int = 1
    """Messages a request."""
    parts: int = 1
    """submit_sm a message."""
    connections: int = 64
    receipts: bool = False
    callbacks: bool = False
    half: bool = False
    """Then again at half the rate that was reached, for the latency there."""


def _one(system: System) -> bytes:
    return system.request()


def _batch(system: Heliograph) -> bytes:
    return system.batch(BATCH)


_LONG = "@@@@@@@@@@ long text " * 20
"""420 septets, three parts, each with numbers that no other message has."""


def scenarios(work: Path) -> list[Scenario]:
    """In the order in which a round runs them."""
    many = {"size": BATCH, "connections": 8}
    told = {"receipts": True, "callbacks": True}
    return [
        Scenario("kannel", Kannel, _one),
        Scenario("kannel, no store", lambda: Kannel(store=False), _one),
        Scenario("kannel, c=256", Kannel, _one, connections=256),
        Scenario("kannel, receipts and callbacks", lambda: Kannel(told=True), _one, **told),
        Scenario("jasmin", lambda: Jasmin(work / "jasmin-venv"), _one),
        Scenario("heliograph", Heliograph, _one, half=True),
        Scenario("heliograph, 2 nodes", lambda: Heliograph(nodes=2), _one, half=True),
        Scenario("heliograph, c=256", Heliograph, _one, connections=256),
        Scenario("heliograph, 2 nodes, c=256", lambda: Heliograph(nodes=2), _one, connections=256),
        Scenario("heliograph, batches", Heliograph, _batch, **many),
        Scenario("heliograph, batches, 2 nodes", lambda: Heliograph(nodes=2), _batch, **many),
        Scenario("heliograph, idempotency keys", Heliograph, lambda system: system.request(idempotent=True)),
        Scenario("heliograph, long messages", Heliograph, lambda system: system.request(text=_LONG), parts=3),
        Scenario("heliograph, receipts", Heliograph, _one, receipts=True),
        Scenario("heliograph, receipts and callbacks", lambda: Heliograph(told=True), _one, **told),
        Scenario("heliograph, 3 members", lambda: Heliograph(members=3), _one),
        Scenario("heliograph, batches, 3 members", lambda: Heliograph(members=3), _batch, **many),
    ]


def measure(scenario: Scenario, work: Path, seconds: float) -> dict[str, Any]:
    """One run of one scenario."""
    system, sink, load = scenario.make(), Sink(work, receipts=scenario.receipts), Load(work)
    try:
        system.start(work / system.name, sink)
        request = scenario.request(system)
        warm = load.run(system.ports, request, connections=scenario.connections, seconds=WARM_SECONDS)
        _settle(scenario, sink, accepted(warm))
        run = {"durability": system.durability, **_loaded(scenario, system, sink, load, request, seconds, 0.0)}
        if scenario.half:
            half = run["end_to_end_per_s"] / 2
            run["half_load"] = _loaded(scenario, system, sink, load, request, seconds, half)
    finally:
        system.stop()
        sink.stop()
    return run


def _settle(scenario: Scenario, sink: Sink, requests: int) -> SinkStats:
    messages = requests * scenario.size
    parts = messages * scenario.parts
    return sink.wait_for(
        parts,
        receipts=parts if scenario.receipts else 0,
        callbacks=messages if scenario.callbacks else 0,
    )


def _loaded(
    scenario: Scenario, system: System, sink: Sink, load: Load, request: bytes, seconds: float, rate: float
) -> dict[str, Any]:
    sink.reset()
    before = cpu_seconds(system.pids())
    result = load.run(
        system.ports, request, connections=scenario.connections, seconds=seconds, rate=rate / scenario.size
    )
    taken = accepted(result)
    stats = _settle(scenario, sink, taken)
    used = cpu_seconds(system.pids()) - before
    messages = taken * scenario.size
    ended = stats.last_callback_ns if scenario.callbacks else stats.last_ns
    return {
        "accepted": messages,
        "refused": (result["requests"] - taken) * scenario.size,
        "accepted_per_s": messages / result["seconds"],
        "end_to_end_per_s": messages / ((ended - result["begin_ns"]) / 1e9),
        "cpu_us_per_message": used / max(messages, 1) * 1e6,
        "latency_ms": {name: value / 1000 for name, value in result["latency_us"].items()},
        "receipts_acknowledged": stats.acked,
        "callbacks": stats.callbacks,
        **sink.check(messages * scenario.parts),
    }


def accepted(result: dict[str, Any]) -> int:
    """Requests that were answered 2xx."""
    return sum(count for status, count in result["statuses"].items() if status in {"200", "202"})


def run(work: Path, rounds: int, seconds: float, only: list[str] | None) -> dict[str, list[dict[str, Any]]]:
    """Every scenario in turn, several rounds: scenario → its runs."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(1, rounds + 1):
        for scenario in scenarios(work):
            if only and scenario.name not in only:
                continue
            one = measure(scenario, work, seconds)
            runs[scenario.name].append(one)
            print(f"round {number}  {scenario.name:36} {one['end_to_end_per_s']:8,.0f}/s", flush=True)
            time.sleep(1.0)
    return dict(runs)


def middle(runs: list[dict[str, Any]], *path: str) -> float:
    """The median over the runs of one figure."""

    def read(run: dict[str, Any]) -> float:
        value: Any = run
        for name in path:
            value = value[name]
        return float(value)

    return median(read(one) for one in runs)
