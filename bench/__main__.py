"""`python -m bench`: each gateway in turn, several rounds, the same sink and load; medians and ratios to Kannel; what arrived is counted."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.systems import Heliograph, Jasmin, Kannel, System
from bench.tools import BenchError, Load, Sink, build, cpu_seconds, machine

HERE = Path(__file__).parent
WORK = HERE / ".work"
BATCH = 1_000
WARM_SECONDS = 2.0


def measure(
    system: System, request: bytes, *, size: int, connections: int, seconds: float, rate: float, receipts: bool
) -> dict[str, Any]:
    """Start, warm up, load, wait until everything arrived, count, stop. `size` is messages a request."""
    sink = Sink(WORK, receipts=receipts)
    load = Load(WORK)
    try:
        system.start(WORK / system.name, sink)
        warm = load.run(system.ports, _request(system, request), connections=connections, seconds=WARM_SECONDS)
        sink.wait_for(_accepted(warm, size))
        sink.reset()
        before = cpu_seconds(system.pids())
        result = load.run(
            system.ports, _request(system, request), connections=connections, seconds=seconds, rate=rate / size
        )
        accepted = _accepted(result, size)
        stats = sink.wait_for(accepted)
        used = cpu_seconds(system.pids()) - before
        checked = sink.check(accepted)
    finally:
        system.stop()
        sink.stop()
    return {
        "accepted": accepted,
        "refused": (result["requests"] - accepted // size) * size,
        "accepted_per_s": accepted / result["seconds"],
        "end_to_end_per_s": accepted / ((stats.last_ns - result["begin_ns"]) / 1e9),
        "cpu_us_per_message": used / max(accepted, 1) * 1e6,
        "latency_ms": {name: value / 1000 for name, value in result["latency_us"].items()},
        **checked,
    }


def _request(system: System, request: bytes) -> bytes:
    """Heliograph's key is made at its start: `request` names the kind for it."""
    if isinstance(system, Heliograph):
        kinds: dict[bytes, Callable[[], bytes]] = {
            b"batch": lambda: system.batch(BATCH),
            b"idempotent": lambda: system.request(idempotent=True),
            b"long": lambda: system.request(text="bench @@@@@@@@@@ " + "long text " * 40),
        }
        return kinds.get(request, system.request)()
    return system.request()


def _accepted(result: dict[str, Any], size: int) -> int:
    return sum(count for status, count in result["statuses"].items() if status in {"200", "202"}) * size


def scenarios(jasmin: Path) -> dict[str, tuple[Callable[[], System], bytes, dict[str, Any]]]:
    """Name → (system, kind of request, settings)."""
    base = {"size": 1, "connections": 64, "rate": 0.0, "receipts": False}
    return {
        "kannel": (Kannel, b"", base),
        "kannel, no store": (lambda: Kannel(store=False), b"", base),
        "jasmin": (lambda: Jasmin(jasmin), b"", base),
        "heliograph": (Heliograph, b"", base),
        "heliograph, batches of 1,000": (Heliograph, b"batch", {**base, "size": BATCH, "connections": 8}),
        "heliograph, c=256": (Heliograph, b"", {**base, "connections": 256}),
        "heliograph, idempotency keys": (Heliograph, b"idempotent", base),
        "heliograph, receipts": (Heliograph, b"", {**base, "receipts": True}),
        "heliograph, 3 members": (lambda: Heliograph(members=3), b"", base),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", action="append", help="a scenario's name; may be repeated")
    parser.add_argument("--out", type=Path, default=WORK / "results.json")
    options = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    chosen = scenarios(WORK / "jasmin-venv")
    if unknown := set(options.only or ()) - chosen.keys():
        print(f"No such scenario: {', '.join(unknown)}. There are: {', '.join(chosen)}.", file=sys.stderr)
        return 2
    try:
        build(WORK)
        for number in range(1, options.rounds + 1):
            for name, (make, request, settings) in chosen.items():
                if options.only and name not in options.only:
                    continue
                run = measure(make(), request, seconds=options.seconds, **settings)
                runs[name].append(run)
                print(f"round {number}  {name:30} {run['end_to_end_per_s']:8,.0f}/s", flush=True)
                time.sleep(1.0)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    options.out.write_text(json.dumps({"machine": machine(), "seconds": options.seconds, "runs": runs}, indent=1))
    table(runs)
    lost = [name for name, all_runs in runs.items() if any(run["missing"] or run["twice"] for run in all_runs)]
    if lost:
        print(f"NOT exactly once: {', '.join(lost)}; see {options.out}", file=sys.stderr)
    return 1 if any(name.startswith("heliograph") for name in lost) else 0


def table(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Medians as a Markdown table."""
    print("\n| | end to end /s | × kannel | accepted /s | accept p50 ms | p99 ms | CPU µs/message | missing | twice |")
    print("|---|---|---|---|---|---|---|---|---|")
    kannel = median(run["end_to_end_per_s"] for run in runs["kannel"]) if runs.get("kannel") else 0.0
    for name, all_runs in runs.items():

        def middle(read: Callable[[dict[str, Any]], float], all_runs: list[dict[str, Any]] = all_runs) -> float:
            return median(read(run) for run in all_runs)

        rate = middle(lambda run: run["end_to_end_per_s"])
        print(
            f"| {name} | {rate:,.0f} | {rate / kannel if kannel else 0:.2f} | {middle(lambda r: r['accepted_per_s']):,.0f}"
            f" | {middle(lambda r: r['latency_ms']['p50']):.1f} | {middle(lambda r: r['latency_ms']['p99']):.1f}"
            f" | {middle(lambda r: r['cpu_us_per_message']):.0f}"
            f" | {max(run['missing'] for run in all_runs)} | {max(run['twice'] for run in all_runs)} |"
        )


if __name__ == "__main__":
    sys.exit(main())
