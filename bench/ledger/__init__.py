"""The ledger measured; see docs/performance.md. Each part runs side by side with what it is compared with, in turn, several rounds: read the ratios."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ledger import damage, datacenters, path, tessera
from bench.ledger.bed import Bed, medians, once, read_log
from bench.ledger.sequencing import RATE, catch_up, catch_up_beside, steady
from bench.tools import BenchError, others_cpu
from controlplane.store.ledger import BUNDLES, RUNS, TILES

PARTS = ("sequencing", "path", "damage", "datacenters")
ENTRY_BYTES = 250
"""As long as the leaves of our messages are on average."""
_PACE = 5_000
"""Entries a second at which the time to publish is compared: both have room there."""
_VERIFIED = 300_000

Runs = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    work: Path
    rounds: int
    seconds: float
    backlog: int
    """Events that wait when a catch-up begins."""
    entries: int
    """Of the log that is damaged."""
    cut_seconds: float


def run(plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    """Part → its figures: medians, and every run."""
    known: dict[str, Callable[[Plan], dict[str, Any]]] = {
        "sequencing": _sequencing,
        "path": _path,
        "damage": _damage,
        "datacenters": _datacenters,
    }
    return {part: known[part](plan) for part in PARTS if part in parts}


def _watched(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """With `others_cores`: how much of the machine others used meanwhile."""
    began, others = time.monotonic(), others_cpu()
    found = step()
    return found | {"others_cores": (others_cpu() - others) / (time.monotonic() - began)}


def _say(part: str, number: int, name: str, found: dict[str, Any]) -> None:
    print(f"{part}  round {number}  {name:40} {json.dumps(found)[:300]}", flush=True)


def _sequencing(plan: Plan) -> dict[str, Any]:
    programs = tessera.Programs(plan.work)
    programs.build()
    bed = Bed(plan.work, "ledger")
    work, seconds, size = plan.work, plan.seconds, ENTRY_BYTES
    runs: Runs = {}
    try:
        bed.fill("first", 10_000)  # a log that has begun
        for number in range(1, plan.rounds + 1):
            n = f"r{number}"
            steps: dict[str, Callable[[], dict[str, Any]]] = {
                "catching up": lambda n=n: catch_up(bed, f"{n}-a", plan.backlog),
                "Tessera": lambda: tessera.library(programs, work, seconds, size),
                "written and sequenced": lambda n=n: steady(bed, f"{n}-b", seconds),
                "Tessera, dedup": lambda: tessera.library(programs, work, seconds, size, dedup=True),
                "catching up beside writers": lambda n=n: catch_up_beside(bed, f"{n}-c", plan.backlog),
                f"at {RATE:,}/s": lambda n=n: steady(bed, f"{n}-d", seconds, rate=RATE),
                f"at {RATE:,}/s, no ledger": lambda n=n: steady(bed, f"{n}-e", seconds, rate=RATE, ledger=False),
                f"at {_PACE:,}/s": lambda n=n: steady(bed, f"{n}-f", seconds, rate=_PACE),
                f"Tessera at {_PACE:,}/s": lambda: tessera.library(programs, work, seconds, size, rate=_PACE),
                "hammer: Tessera": lambda: tessera.hammered_tessera(programs, work, seconds, size, dedup=False),
                "hammer: Heliograph": lambda n=n: tessera.hammered_heliograph(programs, bed, f"{n}-g", seconds, size),
                "hammer: Tessera, dedup": lambda: tessera.hammered_tessera(programs, work, seconds, size, dedup=True),
            }
            for name, step in steps.items():
                found = _watched(step)
                runs.setdefault(name, []).append(found)
                _say("sequencing", number, name, found)
        log = bed.log()
        if log is None:
            raise BenchError("There is no log.")
        verified: Runs = {}
        for _ in range(plan.rounds):
            for name, hashes_only in (("hashes", True), ("events too", False)):
                verifier = bed.worker("verify", hashes_only=hashes_only, most=_VERIFIED)
                found = _watched(lambda verifier=verifier: verifier.wait(1_200))
                verified.setdefault(name, []).append(found)
                _say("verification", 1, name, found)
        whole = once(bed.database, log)
        stored = _stored(bed)
    finally:
        bed.stop()
    return {
        "medians": {name: medians(of) for name, of in runs.items()},
        "verification": {name: medians(of) for name, of in verified.items()},
        "log": whole,
        "storage": stored,
        "runs": runs,
        "verification_runs": verified,
    }


def _stored(bed: Bed) -> dict[str, Any]:
    """Bytes an entry beyond the entry itself, as documents and as files."""
    bed.client.admin.command("fsync")
    log = bed.log()
    if log is None:
        raise BenchError("There is no log.")
    entry_bytes = sum(map(len, read_log(bed.database, log)))
    found: dict[str, Any] = {"entries": log.size, "entry_bytes": entry_bytes / log.size}
    over = -entry_bytes
    for name in (BUNDLES, TILES, RUNS):
        stats = bed.database.command("collStats", name)
        found[name] = {
            "documents": stats["count"],
            "bytes": stats["size"] / log.size,
            "file_bytes": stats["storageSize"] / log.size,
            "index_bytes": stats["totalIndexSize"] / log.size,
        }
        over += stats["size"] + stats["totalIndexSize"]
    runs = bed.database.command("collStats", RUNS)
    return found | {
        "beyond_entries": over / log.size,
        "run_bytes": runs["avgObjSize"] + runs["totalIndexSize"] / runs["count"],
        "entries_a_run": log.size / runs["count"],
    }


def _path(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    every: dict[str, Runs] = {}
    for number in range(1, plan.rounds + 1):
        for way in path.WAYS:
            for ledger in (False, True) if number % 2 else (True, False):
                one = _watched(lambda way=way, ledger=ledger: path.measure(way, plan.work, plan.seconds, ledger=ledger))
                every.setdefault(way.name, {}).setdefault("on" if ledger else "off", []).append(one)
                _say("path", number, f"{way.name}, ledger {'on' if ledger else 'off'}", one)
    for name, runs in every.items():
        found[name] = {side: medians(of) for side, of in runs.items()} | path.compare(runs)
    return {"medians": found, "runs": every}


def _damage(plan: Plan) -> dict[str, Any]:
    bed = Bed(plan.work, "damage")
    try:
        return _watched(lambda: damage.run(bed, plan.entries))
    finally:
        bed.stop()


def _datacenters(plan: Plan) -> dict[str, Any]:
    return _watched(lambda: datacenters.run(plan.work, 6 * plan.seconds, plan.cut_seconds))
