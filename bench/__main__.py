"""`python -m bench [gateways|engine|backlog|growth|stages|servers|ledger|routing|search|console]`; see docs/performance.md and docs/routing.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import backlog, console, engine, gateways, growth, ledger, report, search, servers, stages
from bench.ledger import tables
from bench.tools import BenchError, build, machine

WORK = Path(__file__).parent / ".work"
PARTS = ("gateways", "engine", "backlog", "growth", "stages", "servers", "ledger", "routing", "search", "console")
ROUTING = ("path", "simulation", "breaks", "hostile", "digits", "speed")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench", description="Heliograph measured, beside its peers where there are any."
    )
    parser.add_argument("parts", nargs="*", default=["gateways", "engine"], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load in each run")
    parser.add_argument(
        "--only", action="append", help="a scenario's name, or a part of the ledger's or the router's; may be repeated"
    )
    parser.add_argument(
        "--messages",
        type=int,
        help="backlog: how many; growth and search: up to how many stored; ledger: entries of the log that is damaged, and waiting events",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        help="ledger: seconds that a step may wait for a machine that others leave alone",
    )
    parser.add_argument("--out", type=Path, default=WORK / "results", help="folder for JSON and SVG")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    known = {scenario.name for scenario in gateways.scenarios(WORK)}
    known.update(ledger.PARTS, ROUTING)
    if unknown := set(options.only or ()) - known:
        parser.error(f"no such scenario: {', '.join(unknown)}; there are: {'; '.join(sorted(known))}")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        build(WORK)
        return max(_run(part, options) for part in options.parts)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1


def _run(part: str, options: argparse.Namespace) -> int:
    if part == "gateways":
        return _gateways(options)
    if part == "engine":
        found: Any = engine.run(WORK, options.rounds)
    elif part == "backlog":
        found = backlog.run(WORK, options.messages or 1_000_000)
    elif part == "growth":
        found = growth.run(WORK, options.messages or 10_000_000)
    elif part == "search":
        found = search.run(WORK, options.messages or 10_000_000)
    elif part == "stages":
        found = stages.run(WORK, options.seconds)
    elif part == "console":
        found = console.run(WORK, options.rounds, options.seconds)
    elif part == "ledger":
        return _ledger(options)
    elif part == "routing":
        return _routing(options)
    else:
        found = servers.run(WORK, options.rounds, options.seconds)
    _write(options.out / f"{part}.json", found)
    print(stages.table(found) if part == "stages" else json.dumps(found, indent=1))
    return 0


def _gateways(options: argparse.Namespace) -> int:
    runs = gateways.run(WORK, options.rounds, options.seconds, options.only)
    _write(options.out / "gateways.json", {"seconds": options.seconds, "runs": runs})
    report.plots(runs, options.out)
    print(f"\n{report.table(runs)}\n\nWritten to {options.out}")
    wrong = [name for name, of in runs.items() if any(run["missing"] or run["twice"] for run in of)]
    if wrong:
        print(f"NOT exactly once: {', '.join(wrong)}", file=sys.stderr)
    return int(any(name.startswith("heliograph") for name in wrong))


def _ledger(options: argparse.Namespace) -> int:
    """Parts that were measured before stay in the file: a disturbed one can be measured again alone."""
    entries = options.messages or 10_000_000
    plan = ledger.Plan(
        work=WORK,
        rounds=options.rounds,
        seconds=options.seconds,
        backlog=min(200_000, entries),
        entries=entries,
        cut_seconds=30 * options.seconds,
        patience=options.patience,
    )
    path = options.out / "ledger.json"
    found = json.loads(path.read_text(encoding="utf-8"))["found"] if path.exists() else {}
    for part in options.only or ledger.PARTS:
        found |= ledger.run(plan, [part])
        _write(path, found)
    print(tables.tables(found))
    return 0


def _routing(options: argparse.Namespace) -> int:
    from bench.routing import path, report  # noqa: PLC0415 - needs the peers' packages

    parts = options.only or ROUTING
    if "path" in parts:
        found = path.run(WORK, options.rounds, options.seconds)
        _write(options.out / "routing-path.json", found)
        print(json.dumps(found["medians"], indent=1))
    if rest := [part for part in parts if part in report.PARTS]:
        print(report.run(options.out / "routing", rest))
    return 0


def _write(path: Path, found: Any) -> None:
    path.write_text(json.dumps({"machine": machine(), "found": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
