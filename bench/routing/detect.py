"""How soon a break is seen where the route carries ten messages a second: the rate at which the aims are set.

The world is the simulation's, with one route so much cheaper that the engine itself gives it nearly all of the traffic; after 25 minutes it loses
everything (and says nothing), or 20 points of delivery. Each seed has its own carriers, shares of missing receipts, delays and content.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from bench.routing.entrants import OURS, Bed, make
from bench.routing.measure import until_below
from bench.routing.ours import Ours
from bench.routing.run import play, truth
from bench.routing.view import View
from bench.routing.world import Carriers, Event, World, load

__all__ = ["BREAKS", "detect", "table", "world"]

BREAKS = ("outage", "brown_out")
_PER_S, _QUIET_S, _BROKEN_S = 11.0, 1_500.0, 240.0
_ROUTES = 6
_BROKEN = 0
_CHEAPER = 0.4
_SEEN = frozenset({"silence", "brownout", "refusals"})


class _OneRoute(World):
    """Route 0 goes everywhere, takes all classes, and costs less than half of what the cheapest does."""

    def _draw_carriers(self, rng: np.random.Generator) -> Carriers:
        found = super()._draw_carriers(rng)
        found.covers[_BROKEN] = found.classes[_BROKEN] = True
        found.price[_BROKEN] = np.maximum(1, _CHEAPER * found.price.min(axis=0))
        return replace(found, url=np.where(np.arange(len(found.url)) == _BROKEN, 1.0, found.url))

    def _most_used(self, begins: float, events: Sequence[Event], rank: int) -> tuple[int, int]:  # noqa: ARG002 - of a fixed route
        return _BROKEN, -1


def world(seed: int, kind: str, *, quiet_s: float = _QUIET_S) -> World:
    """One with a single break, of the route that carries nearly all."""
    parameters = deepcopy(load())
    parameters["time"] |= {"stationary_s": quiet_s, "breaks_s": _BROKEN_S, "messages_per_s": _PER_S}
    parameters["routes"]["counts"] = [_ROUTES]
    events = parameters["events"]
    never = {"at": 10 * _BROKEN_S}
    parameters["events"] = {
        "jitter_s": 0,
        "faker": events["faker"] | never,
        "new_route": events["new_route"] | never,
        kind: events[kind] | {"at": 0, "lasts": _BROKEN_S, "rank": 1},
    }
    return _OneRoute(parameters, seed)


def _one(seed: int, kind: str) -> dict[str, Any]:
    of = world(seed, kind)
    bed, known = Bed(of, View(of)), truth(of)
    policy = make(OURS, bed, {})
    if not isinstance(policy, Ours):
        raise TypeError(OURS)
    course = play(of, bed.view, known, policy)
    event = next(event for event in of.events if event.kind == kind)
    second, there = of.messages.second, course.first == event.route
    before = (second >= event.begins - 300) & (second < event.begins)
    alarms = [((one.at - of.begin_ms) / 1_000, one) for one in policy.breaks if one.kind in _SEEN]
    return {
        "rate": float((there & before).sum() / 300),
        "share": float(there[before].mean()),
        "seen_s": next(
            (
                at - event.begins
                for at, one in alarms
                if at >= event.begins and policy.route[one.route] == event.route and not one.country
            ),
            None,
        ),
        "until_1_percent_s": until_below(second, there, event, 0.01, 30.0),
        "lost": int((there & (second >= event.begins)).sum()),
        "early": [(at, one.route, one.kind) for at, one in alarms if at < event.begins],
    }


def _seed(seed: int) -> dict[str, Any]:
    return {kind: _one(seed, kind) for kind in BREAKS}


def detect(numbers: Sequence[int], *, workers: int = 2) -> dict[str, dict[str, Any]]:
    """Seed → break → how soon it was seen, on the route that carried so many messages a second of all."""
    with ProcessPoolExecutor(workers, initializer=os.nice, initargs=(10,)) as pool:
        return dict(zip(map(str, numbers), pool.map(_seed, numbers), strict=True))


def table(found: dict[str, dict[str, Any]]) -> str:
    """Medians over seeds, with the 5th and 95th percentile."""
    lines = [
        "| on a route with 10 messages a second | its rate | its share, % | s until seen | s until below 1 % of traffic | early alarms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind in BREAKS:
        ones = [one[kind] for one in found.values()]
        seen = [one["seen_s"] if one["seen_s"] is not None else float("inf") for one in ones]
        until = _spread([one["until_1_percent_s"] for one in ones]) if kind == "outage" else ""
        lines.append(
            f"| {kind.replace('_', '-')} ({len(ones)} seeds) | {_spread([one['rate'] for one in ones], 1)} "
            f"| {_spread([100 * one['share'] for one in ones], 1)} | {_spread(seen)} | {until} "
            f"| {sum(len(one['early']) for one in ones)} |"
        )
    return "\n".join(lines)


def _spread(values: list[float], digits: int = 0) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95], method="nearest")
    return f"{middle:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"
