"""How long a decision takes: one message with 20 candidates; batches of 200 with 8; and Vowpal Wabbit's predict, beside them in the same run.

The learner has seen a world's first minutes, so that its tables are filled. Each batch of 200 has messages that were not decided before; a score that
is still fresh may be used again, as in a running node. The clock goes on by a second for every so many messages, so refreshes are paid for.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from bench.routing.entrants import OURS, Bed, make
from bench.routing.ours import Ours
from bench.routing.run import play, truth
from bench.routing.view import View
from bench.routing.vw import example
from bench.routing.world import World, load
from controlplane.domain.catalog import Route
from controlplane.routing.learner import Terms
from controlplane.routing.router import Candidate, RouteRequest

__all__ = ["measure", "table"]

_SEED = 4
_LEARNED_S = 1_200.0
_SINGLES, _BATCHES, _BATCH = 4_000, 100, 200
_PER_SECOND = 2_000
"""Messages a second at which batches come: a busy node's."""
_SINGLE_PER_SECOND = 200


def measure(rounds: int = 3) -> dict[str, Any]:
    """Name → µs; the middle one of the rounds by its p50."""
    world = World(load(), _SEED)
    bed, known = Bed(world, View(world)), truth(world)
    policy = make(OURS, bed, {})
    if not isinstance(policy, Ours):
        raise TypeError(OURS)
    play(world, bed.view, known, policy, _LEARNED_S)
    found: dict[str, list[dict[str, float]]] = {}
    now = world.begin_ms + int(1_000 * _LEARNED_S)
    for _ in range(rounds):
        for name, step in (
            ("single, 20 candidates", _singles),
            ("batches of 200, 8 candidates", _batches),
            ("Vowpal Wabbit predict, 8 candidates", _vw),
            ("Vowpal Wabbit predict, 20 candidates", lambda *rest: _vw(*rest, candidates=20)),
        ):
            found.setdefault(name, []).append(step(policy, bed, now))
            now += 600_000
    return {name: sorted(runs, key=lambda one: one["p50"])[len(runs) // 2] for name, runs in found.items()}


def _requests(
    bed: Bed, count: int, candidates: int, now: int
) -> list[tuple[RouteRequest, tuple[Candidate, ...], Terms]]:
    """Messages of the world under other ids, each with so many candidates: its own, and others of the world's routes."""
    view, found = bed.view, []
    plans: dict[tuple[int, int, int], tuple[Candidate, ...]] = {}
    for n in range(count):
        row = n % view.count
        key = int(view.network[row]), int(view.cls[row]), int(view.parts[row])
        if key not in plans:
            own = view.offers(row)[:candidates]
            names = {one.route.name for one in own}
            more = [
                Candidate(Route(name=name, connector=name, price=400), 400 * key[2], "", healthy=True)
                for name in view.names
                if name not in names
            ]
            plans[key] = tuple((own + more)[:candidates])
        request = view.request(row)._replace(mid=f"s{now}-{n}")
        found.append((request, plans[key], Terms(float(view.value[row]), 1.0, float(view.latency_price[row]))))
    return found


def _singles(policy: Ours, bed: Bed, now: int) -> dict[str, float]:
    took = []
    for n, (request, offers, terms) in enumerate(_requests(bed, _SINGLES, 20, now)):
        started = time.perf_counter_ns()
        policy.learner.decide([request], [offers], now + n * 1_000 // _SINGLE_PER_SECOND, terms)
        took.append((time.perf_counter_ns() - started) / 1e3)
    return _percentiles(took)


def _batches(policy: Ours, bed: Bed, now: int) -> dict[str, float]:
    """µs a message."""
    every = _requests(bed, _BATCHES * _BATCH, 8, now)
    took = []
    for at in range(_BATCHES):
        requests, offers, terms = (list(column) for column in zip(*every[at * _BATCH : (at + 1) * _BATCH], strict=True))
        started = time.perf_counter_ns()
        policy.learner.decide(requests, offers, now + at * _BATCH * 1_000 // _PER_SECOND, terms)
        took.append((time.perf_counter_ns() - started) / 1e3 / _BATCH)
    return _percentiles(took)


def _vw(_: Ours, bed: Bed, now: int, *, candidates: int = 8) -> dict[str, float]:  # noqa: ARG001
    import vowpalwabbit  # noqa: PLC0415 - only in the benchmark's environment

    workspace = vowpalwabbit.Workspace("--cb_explore_adf --squarecb -q SA --ignore_linear S --quiet")
    rng = np.random.default_rng(1)
    took = []
    for row in range(_SINGLES):
        shared = (
            f"shared |S n{bed.view.network[row]} c{bed.view.cls[row]} t{bed.view.tenant[row]} u{int(bed.view.url[row])}"
        )
        prices = rng.random(candidates).tolist()
        started = time.perf_counter_ns()
        lines = example(shared, list(range(candidates)), prices)
        workspace.predict(lines)
        took.append((time.perf_counter_ns() - started) / 1e3)
        lines[1] = f"0:0.1:0.5 {lines[1]}"
        workspace.learn(lines)
    return _percentiles(took)


def _percentiles(took: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(took)), **{f"p{at}": float(np.percentile(took, at)) for at in (50, 99)}}


def table(found: dict[str, Any]) -> str:
    lines = ["| µs a decision | mean | p50 | p99 |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {of['mean']:,.1f} | {of['p50']:,.1f} | {of['p99']:,.1f} |" for name, of in found.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    results = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    print(json.dumps(results, indent=1))
    print(table(results))
