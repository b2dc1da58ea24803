"""All entrants, as tuned, on the evaluation seeds: pairs of the same worlds and the same luck."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from bench.routing.entrants import ENTRANTS, OURS, VW, Bed, make
from bench.routing.measure import measure
from bench.routing.ours import Ours
from bench.routing.run import play, truth
from bench.routing.simple import LeastCost
from bench.routing.tune import tuned
from bench.routing.view import View
from bench.routing.world import World, load

__all__ = ["STATIONARY", "evaluate", "names", "repeated", "results", "seeds"]

STATIONARY = "vw, tuned to the stationary part"
"""Of all Vowpal Wabbit's configurations the one with the least regret there, when it is another one than the best overall."""
Found = dict[str, dict[str, Any]]
"""Entrant → seed → its figures."""
_SAFE = str.maketrans(" ,", "__")


def seeds(count: int = 0) -> list[int]:
    """The first of the evaluation seeds; all of them for 0."""
    of = load()["seeds"]
    return list(range(of["evaluation_first"], of["evaluation_first"] + (count or of["evaluation_count"])))


def _field() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name in the results → entrant, settings."""
    best = tuned()
    found = {name: (name, best[name]["best"] if name in best else {}) for name in ENTRANTS}
    tries = [(one["stationary"], name, one["settings"]) for name in VW if name in best for one in best[name]["regrets"]]
    if tries:
        _, name, settings = min(tries, key=lambda item: item[0])
        if settings != best[name]["best"]:
            found[STATIONARY] = name, settings
    return found


def names() -> list[str]:
    return list(_field())


def results(folder: Path) -> Found:
    """What there is, in the order of the field: a file for each entrant."""
    files = {name: folder / f"{name.translate(_SAFE)}.json" for name in names()}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def evaluate(
    chosen: Sequence[str], numbers: Sequence[int], folder: Path, *, workers: int = 2, again: bool = False
) -> Found:
    """Into the folder, written after each seed; what is there already is measured `again` only if asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {} if again else results(folder)
    field = names()
    missing = {
        number: [name for name in chosen if name in field and str(number) not in known.get(name, {})]
        for number in numbers
    }
    with ProcessPoolExecutor(workers, initializer=os.nice, initargs=(10,)) as pool:
        jobs = [pool.submit(_seed, number, of) for number, of in missing.items() if of]
        for job in as_completed(jobs):
            for name, seed, one in job.result():
                path = folder / f"{name.translate(_SAFE)}.json"
                found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                path.write_text(json.dumps(found | {str(seed): one}) + "\n", encoding="utf-8")
    return results(folder)


def _seed(number: int, chosen: list[str]) -> list[tuple[str, int, dict[str, Any]]]:
    world = World(load(), number)
    bed, known = Bed(world, View(world)), truth(world)
    static = play(world, bed.view, known, LeastCost(bed.view))
    found = []
    for name in chosen:
        entrant, settings = _field()[name]
        policy = make(entrant, bed, settings)
        course = play(world, bed.view, known, policy)
        one = measure(world, bed.view, known, course, policy, static) | {"routes": bed.view.routes}
        found.append((name, number, one))
        regret = {part: round(value / 1e6, 2) for part, value in one["regret"].items()}
        print(f"seed {number:2}  {name:34} {regret}", flush=True)
    return found


def repeated(number: int, until_s: float) -> tuple[int, int]:
    """Our learner twice over the beginning of the same world: decisions, and how many of their records are the same in both."""
    world = World(load(), number)
    bed, known = Bed(world, View(world)), truth(world)
    records = []
    for _ in range(2):
        policy = make(OURS, bed, _field()[OURS][1])
        play(world, bed.view, known, policy, until_s)
        if isinstance(policy, Ours):
            records.append(policy.records)
    return len(records[0]), sum(records[0][row] == records[1].get(row) for row in records[0])
