"""The product's sequencer over one mongod: how many entries a second it sequences, signs and publishes, how long a round takes, what an entry costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench.ledger.bed import Bed, Worker, percentiles, publish_ms
from bench.tools import BenchError, until

RATE = 10_000
"""Events a second of the running path."""
WRITERS = 2_048
"""Unanswered at once in closed loops, here and at Tessera."""
ROUND_MS = 250
FULL = 4_096
"""Entries of a full round."""
_STEPS = {
    "gathered": "read what nodes wrote",
    "staged": "hash, encode, stage drafts",
    "checked": "read drafts back, hash again",
    "signed": "sign",
    "committed": "commit",
}
_WARM_SECONDS = 2.0

Round = dict[str, Any]


class Sequencing:
    """The ledger at work beside whatever else runs over the bed."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self.worker: Worker = bed.worker("sequence", round_ms=ROUND_MS, mongod=bed.mongod_pid)
        self.worker.ready()

    def wait_for(self, nodes: Sequence[str], count: int) -> None:
        """Until so many of these nodes' events are in the log."""
        until("the ledger", lambda: sum(map(self._bed.marked, nodes)) >= count, 60 + count / 1_000)

    def end(self, *nodes: str) -> list[Round]:
        """Stop it; these nodes write no more."""
        found: list[Round] = self.worker.end()["rounds"]
        self._bed.complete(*nodes)
        return found


def catch_up(bed: Bed, name: str, backlog: int) -> dict[str, Any]:
    """`backlog` events that nobody has sequenced, and nothing else running."""
    bed.fill(name, backlog)
    sequencing = Sequencing(bed)
    sequencing.wait_for([name], backlog)
    rounds = sequencing.end(name)
    return {"per_s": _entries(rounds) / (_at(rounds[-1], "ended") - _at(rounds[0], "began")), **_figures(rounds)}


def catch_up_beside(bed: Bed, name: str, backlog: int) -> dict[str, Any]:
    """The same while two nodes write RATE events a second."""
    old, nodes = f"{name}-old", [f"{name}-1", f"{name}-2"]
    bed.fill(old, backlog)
    bed.know(*nodes)
    writer = bed.worker("write", nodes=nodes, rate=RATE)
    writer.ready()
    time.sleep(_WARM_SECONDS)
    sequencing = Sequencing(bed)
    sequencing.wait_for([old], backlog)
    written = writer.end()
    sequencing.wait_for(nodes, written["written"])
    rounds = sequencing.end(old, *nodes)
    busy = [one for one in rounds if _at(one, "ended") <= written["ended"] and one["entries"] >= FULL]
    took = _at(busy[-1], "ended") - _at(busy[0], "began")
    return {
        "per_s": _entries(busy) / took,
        "seconds": took,
        "written_per_s": written["per_s"],
        "durable_ms": written["durable_ms"],
        **_figures(busy),
    }


def steady(bed: Bed, name: str, seconds: float, *, rate: float = 0.0, ledger: bool = True) -> dict[str, Any]:
    """Two nodes write `rate` events a second (0: as many as are taken with WRITERS unanswered), with or without a ledger that sequences them."""
    nodes = [f"{name}-1", f"{name}-2"]
    bed.know(*nodes)
    sequencing = Sequencing(bed) if ledger else None
    load = {"rate": rate} if rate else {"writers": WRITERS}
    writer = bed.worker("write", nodes=nodes, **load)
    writer.ready()
    before = bed.mongod_cpu(), writer.cpu()
    time.sleep(seconds + _WARM_SECONDS)
    used = bed.mongod_cpu() - before[0], writer.cpu() - before[1]
    written = writer.end()
    found: dict[str, Any] = {
        "written_per_s": written["per_s"],
        "durable_ms": written["durable_ms"],
        "all_mongod_us": used[0] / written["written"] * 1e6,
        "writer_us": used[1] / written["written"] * 1e6,
    }
    after = sequencing or Sequencing(bed)
    after.wait_for(nodes, written["written"])
    caught_up = time.perf_counter()
    rounds = after.end(*nodes)
    if sequencing is None:
        return found
    begin = written["began"] + _WARM_SECONDS
    busy = [one for one in rounds if begin <= _at(one, "began") and _at(one, "ended") <= written["ended"]]
    log = bed.log()
    if log is None or len(busy) < 2:
        raise BenchError("The sequencer did nothing while the nodes wrote.")
    return found | {
        "per_s": _entries(busy[1:]) / (_at(busy[-1], "ended") - _at(busy[0], "ended")),
        "round_entries": percentiles([one["entries"] for one in busy]),
        **_figures(busy),
        "published_ms": percentiles(publish_ms(bed.database, log, name, rounds)),
        "caught_up_ms": max(0.0, caught_up - written["ended"]) * 1e3,
    }


def _figures(rounds: Sequence[Round]) -> dict[str, Any]:
    """Round times, and by steps: ms of a median round, µs of CPU an entry of the ledger and, meanwhile, of mongod."""
    entries = _entries(rounds)
    found: dict[str, Any] = {}
    before = "began"
    for step, label in _STEPS.items():
        spent = [[a - b for a, b in zip(one["steps"][step], one["steps"][before], strict=True)] for one in rounds]
        found[label] = {
            "ms": percentiles([1e3 * one[0] for one in spent])["p50"],
            "ledger_us": sum(one[1] for one in spent) / entries * 1e6,
            "mongod_us": sum(one[2] for one in spent) / entries * 1e6,
        }
        before = step
    return {
        "rounds": len(rounds),
        "round_ms": percentiles([1e3 * (_at(one, "ended") - _at(one, "began")) for one in rounds]),
        "ledger_us": sum(one["ledger_us"] for one in found.values()),
        "mongod_us": sum(one["mongod_us"] for one in found.values()),
        "steps": found,
    }


def _entries(rounds: Sequence[Round]) -> int:
    return sum(one["entries"] for one in rounds)


def _at(one: Round, step: str) -> float:
    return float(one["steps"][step][0])
