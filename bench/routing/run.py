"""One policy in one world: what it chose, and what that was worth."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from bench.routing.view import Policy, View
from bench.routing.world import REFUSAL_SECONDS, Flags, Floats, Ints, World

__all__ = ["Course", "Truth", "play", "truth"]

_TRIES = 3


@dataclass(frozen=True)
class Truth:
    """What the oracle gets of each message, the luck of submits included."""

    best: Ints
    value: Floats
    refuses: Flags
    """Message x route."""


@dataclass
class Course:
    """One row a message."""

    first: Ints
    """The route that was chosen."""
    final: Ints
    """The route that took it; -1 none."""
    regret: Floats
    in_time: Flags
    paid: Floats
    seconds: float = 0.0
    """Of CPU that the policy took."""
    notes: list[tuple[int, str, str]] = field(default_factory=list)
    """Second, what, which: what the policy says of itself."""


def truth(world: World) -> Truth:
    refuses = np.zeros(world.available.shape, bool)
    pairs = np.argwhere(world.available)
    refuses[tuple(pairs.T)] = [world.refuses(row, route) for row, route in pairs.tolist()]
    utility = np.where(world.available & ~refuses, world.utility, -np.inf)
    best = utility.argmax(axis=1)
    value = utility[np.arange(world.count), best]
    return Truth(best, np.where(np.isfinite(value), value, 0.0), refuses)


def play(world: World, view: View, known: Truth, policy: Policy, until_s: float = 0.0) -> Course:
    """The whole of the world's time, or its beginning, in steps of a second: first what came in, then the decisions of that second."""
    count, end = world.count, int(until_s or world.end_s)
    course = Course(
        first=np.full(count, -1),
        final=np.full(count, -1),
        regret=np.zeros(count),
        in_time=np.zeros(count, bool),
        paid=np.zeros(count),
    )
    bounds = np.searchsorted(world.messages.second, np.arange(end + 1)).tolist()
    events: list[list[tuple[int, int, bool, bool]]] = [[] for _ in range(end + 1)]
    begin, spent = world.begin_ms, 0.0
    for second in range(end):
        now = begin + 1_000 * (second + 1)
        rows = list(range(bounds[second], bounds[second + 1]))
        started = time.thread_time()
        for at, row, receipt, good in sorted(events[second]):
            if receipt:
                policy.receipt(row, at, delivered=good)
            else:
                policy.feedback(row, at, converted=good)
        events[second] = []
        policy.tick(now)
        ranked = policy.choose(rows, now) if rows else []
        spent += time.thread_time() - started
        for row, order in zip(rows, ranked, strict=True):
            _submit(world, view, known, policy, course, row, order, now, events)
    course.seconds = spent
    return course


def _submit(
    world: World,
    view: View,
    known: Truth,
    policy: Policy,
    course: Course,
    row: int,
    order: list[int],
    now: int,
    events: list[list[tuple[int, int, bool, bool]]],
) -> None:
    course.first[row] = order[0]
    gained = 0.0
    for route in order[:_TRIES]:
        if known.refuses[row, route]:
            policy.refused(row, route, now)
            gained -= REFUSAL_SECONDS * float(view.latency_price[row])
            continue
        policy.accepted(row, route, now)
        outcome = world.outcome(row, route)
        shift = now - int(world.messages.at_ms[row])
        for at, receipt, good in (
            (outcome.receipt_at, True, outcome.receipt_delivered),
            (outcome.converted_at, False, outcome.converted),
        ):
            second = (at + shift - world.begin_ms) // 1_000
            if at and second < len(events) - 1:
                events[second].append((at + shift, row, receipt, good))
        course.final[row], course.in_time[row] = route, outcome.in_time
        course.paid[row] = world.prices[row, route]
        gained += float(world.utility[row, route])
        break
    course.regret[row] = known.value[row] - gained
