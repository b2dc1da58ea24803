"""Each entrant's configurations on the tuning seeds, and the best of them: by all its regret, and by that of the stationary part."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.routing.entrants import OURS, VW, Bed, configurations, make
from bench.routing.run import play, truth
from bench.routing.view import View
from bench.routing.world import World, load

__all__ = ["TUNED", "tune", "tuned"]

_SLOW = (*VW, "TS bayesianbandits", OURS)
_SLOW_UNTIL_S = 9_000.0
"""These are tuned on the stationary part and the first hour of the other: the faking route, the outage."""
TUNED = Path(__file__).with_name("tuned.json")


def _tries(seed: int, names: list[str]) -> list[dict[str, Any]]:
    world = World(load(), seed)
    bed, known = Bed(world, View(world)), truth(world)
    first = world.messages.second < world.stationary_s
    found = []
    for name in names:
        for at, settings in enumerate(configurations()[name]):
            course = play(world, bed.view, known, make(name, bed, settings), _SLOW_UNTIL_S if name in _SLOW else 0.0)
            one = {
                "name": name,
                "seed": seed,
                "at": at,
                "settings": settings,
                "stationary": float(course.regret[first].sum()),
                "breaks": float(course.regret[~first].sum()),
            }
            print(json.dumps(one), flush=True)
            found.append(one)
    return found


def tune(names: list[str], *, workers: int = 2) -> dict[str, Any]:
    """Name → its best settings, and every try."""
    seeds = load()["seeds"]["tuning"]
    with ProcessPoolExecutor(workers) as pool:
        tries = [one for found in pool.map(_tries, seeds, [names] * len(seeds)) for one in found]
    best: dict[str, Any] = {}
    for name in names:
        settings = configurations()[name]
        total = [
            (sum(one["stationary"] for one in tries if (one["name"], one["at"]) == (name, at)) / len(seeds),
             sum(one["breaks"] for one in tries if (one["name"], one["at"]) == (name, at)) / len(seeds))
            for at in range(len(settings))
        ]  # fmt: skip
        all_over = min(range(len(settings)), key=lambda at, total=total: sum(total[at]))
        stationary = min(range(len(settings)), key=lambda at, total=total: total[at][0])
        best[name] = {
            "best": settings[all_over],
            "best_stationary": settings[stationary],
            "regrets": [
                {"settings": of, "stationary": round(a), "breaks": round(b)}
                for of, (a, b) in zip(settings, total, strict=True)
            ],
        }
    return best


def tuned() -> dict[str, Any]:
    """What was found, with the file's own configurations."""
    found: dict[str, Any] = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {}
    return found


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(configurations())
    found = tune(chosen)
    results = tuned() | found  # read late: others may have been tuned meanwhile
    TUNED.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
