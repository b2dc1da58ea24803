"""Fake feedback: how far tenants that flood it move the routes of the others.

From a quarter of an hour on, hostile tenants say of each of their messages, of every class, many times over, that it did not convert on the route that
the others use most, and that it converted on all others; an hour later the faking route appears, which they praise with them. What the others' traffic
does is compared with the same world without; beside it, what it does when the first of them only falls silent, since any change moves something.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from bench.routing.entrants import Bed
from bench.routing.ours import Ours
from bench.routing.run import Course, play, truth
from bench.routing.view import View
from bench.routing.world import Flags, World, load

__all__ = ["CASES", "Flood", "flood", "table"]

CASES = ("silent", "one", "two")
"""The first hostile tenant gives no feedback any more; it floods; two that collude do."""
_BEGINS_S, _ENDS_S = 900.0, 7_200.0
_TIMES = 10


class Flood(Ours):
    """Our learner, and tenants that lie to it."""

    def __init__(self, view: View, hostile: Sequence[int], target: int, *, begins_ms: int, times: int = _TIMES) -> None:
        super().__init__(view)
        self._hostile, self._target = frozenset(hostile), target
        self._begins_ms, self._times = begins_ms, times
        self._routes: dict[int, int] = {}

    def _lies(self, row: int, now_ms: int) -> bool:
        return now_ms >= self._begins_ms and int(self._view.tenant[row]) in self._hostile

    def accepted(self, row: int, route: int, now_ms: int) -> None:
        super().accepted(row, route, now_ms)
        if self._lies(row, now_ms):
            for _ in range(
                self._times
            ):  # before the receipt the last of them is kept, and counts when the outcome is known
                super().feedback(row, now_ms, converted=route != self._target)
            self._routes[row] = route

    def receipt(self, row: int, now_ms: int, *, delivered: bool) -> None:
        super().receipt(row, now_ms, delivered=delivered)
        if self._lies(row, now_ms) and (route := self._routes.get(row)) is not None:
            for _ in range(self._times):
                super().feedback(row, now_ms, converted=route != self._target)

    def feedback(self, row: int, now_ms: int, *, converted: bool) -> None:
        if not self._lies(row, now_ms):
            super().feedback(row, now_ms, converted=converted)


def flood(numbers: Sequence[int], *, workers: int = 2) -> dict[str, dict[str, Any]]:
    """Seed → case → how the others fared, beside the same world without."""
    with ProcessPoolExecutor(workers, initializer=os.nice, initargs=(10,)) as pool:
        return dict(zip(map(str, numbers), pool.map(_seed, numbers), strict=True))


def _seed(seed: int) -> dict[str, Any]:
    world = World(load(), seed)
    bed, known = Bed(world, View(world)), truth(world)
    view = bed.view
    share = np.bincount(view.tenant, minlength=len(world.tenants.name))
    first, second = sorted(np.flatnonzero(world.tenants.reports), key=lambda tenant: -share[tenant])[:2]
    late = (world.messages.second >= _BEGINS_S) & (world.messages.second < _ENDS_S)
    others = late & (view.tenant != first) & (view.tenant != second)
    honest = play(world, view, known, Ours(view), _ENDS_S)
    target = int(np.bincount(honest.first[others]).argmax())
    begins = world.begin_ms + int(1_000 * _BEGINS_S)
    found: dict[str, Any] = {
        "reporting": int(world.tenants.reports.sum()),
        "hostile_share": [float(share[tenant] / share.sum()) for tenant in (first, second)],
        "honest": _fared(world, honest, honest, others, target),
    }
    for case, hostile, times in (
        ("silent", (first,), 0),
        ("one", (first,), _TIMES),
        ("two", (first, second), _TIMES),
    ):
        policy = Flood(view, [int(tenant) for tenant in hostile], target, begins_ms=begins, times=times)
        found[case] = _fared(world, play(world, view, known, policy, _ENDS_S), honest, others, target)
    return found


def _fared(world: World, course: Course, honest: Course, others: Flags, target: int) -> dict[str, float]:
    routes = len(world.carriers.name)
    mine, theirs = (np.bincount(one.first[others], minlength=routes) / others.sum() for one in (course, honest))
    return {
        "regret": float(course.regret[others].mean()),
        "moved": float(np.abs(mine - theirs).sum() / 2),
        "target": float(mine[target]),
        "faker": float(mine[world.faker]),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Of all other tenants, medians over seeds with the 5th and 95th percentile."""
    said = {
        "honest": "all honest",
        "silent": "the largest that reports falls silent",
        "one": "it floods lies",
        "two": "two collude",
    }
    lines = [
        "| fake feedback: the other tenants' | traffic moved, % | on the slandered route, % | on the faking route, % | regret a message | × honest |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case, words in said.items():
        ones = [(one[case], one["honest"]) for one in found.values()]
        cells = [
            _spread([100 * a["moved"] for a, _ in ones], 1),
            _spread([100 * a["target"] for a, _ in ones], 1),
            _spread([100 * a["faker"] for a, _ in ones], 2),
            _spread([a["regret"] for a, _ in ones], 1),
            _spread([a["regret"] / b["regret"] for a, b in ones], 2),
        ]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{middle:,.{digits}f} ({low:,.{digits}f} … {high:,.{digits}f})"
