"""What a course through a world is judged by. Everything is exact where the truth is known: regret, utilities and probabilities carry no luck."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.routing.ours import Ours
from bench.routing.run import Course, Truth
from bench.routing.view import Policy, View
from bench.routing.world import CLASSES, Event, Flags, Floats, World

__all__ = ["ALPHA", "BINS_S", "POINTS", "ece", "measure", "until_below"]

POINTS = 60
"""Of each curve over the whole time."""
BINS_S = 5.0
"""Of the share of a route around its outage."""
BEFORE_S, AFTER_S = 60.0, 300.0
ALPHA = 0.01
"""Of the conservative constraint."""
_GRACE_S = 900.0
"""After an event, a route may still be said to be changing."""
_HOUR = 3_600.0


def measure(world: World, view: View, known: Truth, course: Course, policy: Policy, static: Course) -> dict[str, Any]:
    """Figures of one policy in one world; money in units, times in seconds. `static` is the least-cost course of the same world."""
    second, cls = world.messages.second, view.cls
    first = second < world.stationary_s
    faked = course.final == world.faker
    gained, base = known.value - course.regret, known.value - static.regret
    found: dict[str, Any] = {
        "messages": world.count,
        "regret": {
            "all": float(course.regret.sum()),
            "stationary": float(course.regret[first].sum()),
            "breaks": float(course.regret[~first].sum()),
            "breaks_faker": float(course.regret[~first & faked].sum()),
            "breaks_others": float(course.regret[~first & ~faked].sum()),
        },
        "utility": float(gained.sum()),
        "in_time": {name: float(course.in_time[cls == at].mean()) for at, name in enumerate(CLASSES)},
        "delivered_in_time": float(course.in_time.mean()),
        "cost_per_delivered": float(course.paid.sum() / max(1, course.in_time.sum())),
        "curves": _curves(world, course),
        "outage": _outage(world, course, _event(world, "outage")),
        "brown_out_share": _left(world, course, _event(world, "brown_out")),
        "faker_share": _faker(world, course),
        "violations": _violations(world, view, gained, base),
        "worst_tenant_regret": max(
            float(course.regret[view.tenant == at].mean()) for at in range(int(view.tenant.max()) + 1)
        ),
        "cpu_us": course.seconds / world.count * 1e6,
    }
    if isinstance(policy, Ours):
        found |= _ours(world, view, course, policy)
    return found


def _event(world: World, kind: str) -> Event:
    return next(event for event in world.events if event.kind == kind)


def _curves(world: World, course: Course) -> dict[str, list[float]]:
    edges = np.linspace(0, world.end_s, POINTS + 1)
    at = np.minimum(np.searchsorted(edges, world.messages.second, side="right") - 1, POINTS - 1)
    count = np.maximum(1, np.bincount(at, minlength=POINTS))
    good = np.bincount(at, course.in_time.astype(float), POINTS)
    return {
        "second": edges[1:].tolist(),
        "regret": np.cumsum(np.bincount(at, course.regret, POINTS)).tolist(),
        "in_time": (good / count).tolist(),
        "cost_per_delivered": (np.bincount(at, course.paid, POINTS) / np.maximum(1, good)).tolist(),
    }


def _outage(world: World, course: Course, event: Event) -> dict[str, Any]:
    """Choices of the dead route, those that were refused there included; the time until fewer than one of a hundred in half a minute go there."""
    second = world.messages.second
    dead = course.first == event.route
    edges = np.arange(event.begins - BEFORE_S, event.begins + AFTER_S + BINS_S, BINS_S)
    every, there = np.histogram(second, edges)[0], np.histogram(second[dead], edges)[0]
    during = (second >= event.begins) & (second < event.ends)
    return {
        "second": (edges[:-1] - event.begins).tolist(),
        "every": every.tolist(),
        "there": there.tolist(),
        "share_before": float(dead[(second >= event.begins - 600) & (second < event.begins)].mean()),
        "until_1_percent_s": until_below(second, dead, event, 0.01, 30.0),
        "lost": int((dead & during).sum()),
        "share_after_1_min": float(dead[(second >= event.begins + 60) & (second < event.ends)].mean()),
        "routes": {
            int(route): np.histogram(second[course.first == route], edges[::3])[0].tolist()
            for route in np.argsort(-np.bincount(course.first[(second > edges[0]) & (second < edges[-1])]))[:6]
        },
        "route": event.route,
    }


def until_below(second: Floats, there: Flags, event: Event, share: float, window_s: float) -> float:
    """Seconds after which, for the first time, less than `share` of the following `window_s` goes there; the event's length, where that never is."""
    for after in np.arange(0.0, event.ends - event.begins - window_s):
        low, high = np.searchsorted(second, [event.begins + after, event.begins + after + window_s])
        if high > low and there[low:high].mean() < share:
            return float(after)
    return event.ends - event.begins


def _left(world: World, course: Course, event: Event) -> dict[str, float]:
    """The route's share before its brown-out, and from the third minute on."""
    second, there = world.messages.second, course.first == event.route
    return {
        "before": float(there[(second >= event.begins - 600) & (second < event.begins)].mean()),
        "after_3_min": float(there[(second >= event.begins + 180) & (second < event.ends)].mean()),
    }


def _faker(world: World, course: Course) -> dict[str, float]:
    since = world.messages.second - _event(world, "faker").begins
    there = course.first == world.faker
    return {
        "first_10_min": float(there[(since >= 0) & (since < 600)].mean()),
        "first_2_h": float(there[(since >= 0) & (since < 2 * _HOUR)].mean()),
        "after_2_h": float(there[since >= 2 * _HOUR].mean()),
    }


def _violations(world: World, view: View, gained: Floats, base: Floats) -> dict[str, int]:
    """Minutes at whose end what was gained is below (1 - ALPHA) x what the least-cost order would have, over all and by tenant and class."""
    edges = np.searchsorted(world.messages.second, np.arange(60, world.end_s + 1, 60))

    def minutes(rows: Flags) -> int:
        ours, floor = (np.cumsum(np.where(rows, one, 0.0))[edges - 1] for one in (gained, base))
        return int((ours < floor - ALPHA * np.abs(floor)).sum())

    every = np.ones(world.count, bool)
    each = [
        minutes((view.tenant == tenant) & (view.cls == at))
        for tenant in range(int(view.tenant.max()) + 1)
        for at in range(len(CLASSES))
    ]
    return {
        "minutes": minutes(every),
        "tenant_class_minutes": sum(each),
        "tenant_classes": sum(one > 0 for one in each),
    }


def _ours(world: World, view: View, course: Course, policy: Ours) -> dict[str, Any]:
    p, explored = policy.predictions()
    checked, same = policy.replayed()
    # Calibration is of the choice; where its submit failed, the message went elsewhere and says nothing of it.
    own = (course.first == course.final) & np.isfinite(p)
    rows = np.arange(world.count)
    truth = world.in_time[rows, np.maximum(course.first, 0)].astype(float)
    spent = course.regret * explored
    return {
        "calibration": {
            name: {
                "ece_outcome": ece(p[own & (view.cls == at)], course.in_time[own & (view.cls == at)].astype(float)),
                "ece_truth": ece(p[own & (view.cls == at)], truth[own & (view.cls == at)]),
                "bias": float((p - truth)[own & (view.cls == at)].mean()),
            }
            for at, name in enumerate(CLASSES)
        },
        "explored": {name: float(explored[view.cls == at].mean()) for at, name in enumerate(CLASSES)},
        "exploration_regret": float(spent.sum()),
        "alarms": _alarms(world, course, policy),
        "replay": {"checked": checked, "same": same, "digest": policy.digest()},
    }


def ece(p: Floats, y: Floats, bins: int = 15) -> float:
    """Expected calibration error over bins of equal mass."""
    if not len(p):
        return 0.0
    order = np.argsort(p, kind="stable")
    return float(
        sum(abs(p[part].mean() - y[part].mean()) * len(part) for part in np.array_split(order, bins) if len(part))
        / len(p)
    )


def _alarms(world: World, course: Course, policy: Ours) -> dict[str, Any]:
    """When the brown-out was seen, and which alarms nothing in the world explains. A route counts in hours in which it carried something."""
    said = [
        ((one.at - world.begin_ms) / 1_000, policy.route[one.route], one)
        for one in policy.breaks
        if one.kind not in ("closed", "recovery", "probes_failed")
    ]
    brown, outage = _event(world, "brown_out"), _event(world, "outage")

    def seen(event: Event) -> float | None:
        return next(
            (at - event.begins for at, route, _ in said if route == event.route and event.begins <= at < event.ends),
            None,
        )

    def explained(at: float, route: int) -> bool:
        return any(
            event.route == route and event.begins <= at < event.ends + _GRACE_S
            for event in world.events
            if event.kind not in ("prices", "new_route")
        )

    hours = sum(
        len(np.unique((world.messages.second[course.first == route] // _HOUR).astype(int)))
        for route in range(len(world.carriers.name))
    )
    false = [(at, route, one) for at, route, one in said if not explained(at, route)]
    return {
        "brown_out_s": seen(brown),
        "brown_out_share": float(
            (course.first == brown.route)[
                (world.messages.second >= brown.begins - 60) & (world.messages.second < brown.begins)
            ].mean()
        ),
        "outage_s": seen(outage),
        "false": len(false),
        "false_stationary": sum(at < world.stationary_s for at, _, _ in false),
        "false_opened": sum(one.opened for _, _, one in false),
        "route_weeks": hours / 168,
        "list": [
            [round(at), world.carriers.name[route], one.country, one.network, one.kind, round(one.ratio, 2), one.opened]
            for at, route, one in said
        ],
    }
