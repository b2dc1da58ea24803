"""A backlog: a million messages accepted while the carrier is down. What each costs the node in memory, and whether the drain stays as fast."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.gateways import BATCH, accepted
from bench.systems import Heliograph
from bench.tools import Load, Sink, cpu_seconds, resident_bytes

_SLICES = 10
_STEP_SECONDS = 5.0


def run(work: Path, messages: int) -> dict[str, Any]:
    """Bytes of resident memory a queued message, and the drain's rate in tenths of the backlog."""
    system, sink, load = Heliograph(max_open=2 * messages), Sink(work), Load(work)
    try:
        system.start(work / "backlog", sink)
        node = system.node_pids[0]
        request = system.batch(BATCH)
        taken = accepted(load.run(system.ports, request, connections=8, seconds=1.0)) * BATCH
        sink.wait_for(taken)
        sink.stop()
        time.sleep(2.0)
        base, queued, memory = resident_bytes(node), 0, []
        while queued < messages:
            queued += accepted(load.run(system.ports, request, connections=8, seconds=_STEP_SECONDS)) * BATCH
            memory.append((queued, resident_bytes(node)))
            print(f"backlog  {queued:9,} queued  {(memory[-1][1] - base) / queued:7,.0f} bytes a message", flush=True)
        time.sleep(5.0)
        full = resident_bytes(node)
        sink = Sink(work, port=sink.port)
        drained = _drain(sink, queued, system)
        checked = sink.check(queued)
    finally:
        system.stop()
        sink.stop()
    return {
        "queued": queued,
        "base_bytes": base,
        "bytes_per_message": (full - base) / queued,
        "memory": memory,
        **drained,
        **checked,
    }


def _drain(sink: Sink, queued: int, system: Heliograph) -> dict[str, Any]:
    """Rate of each tenth, by the sink's own clock and counter."""
    points: list[tuple[int, int]] = []
    before = cpu_seconds(system.pids())
    quiet = time.monotonic() + 60
    while (not points or points[-1][0] < queued) and time.monotonic() < quiet:
        stats = sink.stats()
        if not points or stats.submits > points[-1][0]:
            points.append((stats.submits, stats.last_ns))
            quiet = time.monotonic() + 60
        time.sleep(0.1)
    used = cpu_seconds(system.pids()) - before
    rates = []
    first = next(point for point in points if point[0])
    last = first
    for number in range(1, _SLICES + 1):
        goal = first[0] + (points[-1][0] - first[0]) * number // _SLICES
        reached = next(point for point in points if point[0] >= goal)
        rates.append((reached[0] - last[0]) / ((reached[1] - last[1]) / 1e9))
        print(f"backlog  drained {reached[0]:9,}  {rates[-1]:8,.0f}/s", flush=True)
        last = reached
    return {"drain_per_s": rates, "drain_cpu_us_per_message": used / queued * 1e6}
