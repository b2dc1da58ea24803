"""From scores to a choice: which routes are plausible, with which probability each is taken, and which comes next when it fails.

Inverse-gap weights (SquareCB: Foster & Rakhlin 2020; Abe & Long 1999) over plausible routes, scaled down to the class's budget, so propensities are
exact; a conservative constraint (Wu et al. 2016) in estimated utilities against the static order. Only +, −, ×, ÷ and comparisons of float64 on
quantised inputs, sums in a fixed order: the same inputs give the same bits, for one message or a thousand at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EXCLUDED",
    "FRESH",
    "NO_BIND",
    "OPEN_BREAKER",
    "PROBE",
    "YOUNG",
    "Inputs",
    "Rules",
    "Weighed",
    "pick",
    "weigh",
]

Floats = NDArray[np.float64]
NO_BIND, OPEN_BREAKER, PROBE, YOUNG, FRESH = 1, 2, 4, 8, 16
"""FRESH: hardly tried, and nothing else is known well either; it gets the benefit of the doubt."""
EXCLUDED = NO_BIND | OPEN_BREAKER


class Rules(NamedTuple):
    """What the choice goes by, per message; arrays (n,) of float64 that a float32 holds."""

    value: Floats
    price: Floats
    latency: Floats
    budget: Floats
    gamma: Floats
    delta: Floats
    alpha: Floats
    young_share: Floats
    near_equals: NDArray[np.bool_]


class Inputs(NamedTuple):
    """Scores (n, K) of n messages' candidates, in the static order; rows may end in candidates that are not `there`."""

    p: Floats
    low: Floats
    high: Floats
    latency: Floats
    price: Floats
    flags: NDArray[np.int64]
    there: NDArray[np.bool_]


class Weighed(NamedTuple):
    """What follows from scores, before a seed chooses."""

    utility: Floats
    """(n, K)"""
    propensity: Floats
    """(n, K) with exploration."""
    best: NDArray[np.int64]
    """(n,) what is chosen without it."""
    floor: Floats
    """(n,) utility that the constraint asks for on average: (1 − alpha) × the static choice's."""
    need: Floats
    """(n,) surplus that must have been saved for the message to explore."""
    order: NDArray[np.int64]
    """(n, K) in which order to fall back."""


def weigh(rules: Rules, inputs: Inputs) -> Weighed:
    """Utilities, propensities and order."""
    value, price, latency = (column[:, np.newaxis] for column in (rules.value, rules.price, rules.latency))
    delta = (rules.delta * rules.value)[:, np.newaxis]
    cost = inputs.price * price + inputs.latency * latency
    utility, low, high = (value * chance - cost for chance in (inputs.p, inputs.low, inputs.high))

    flags, there = inputs.flags, inputs.there
    rows = np.arange(len(there))
    usable = there & (flags & EXCLUDED == 0)
    usable = np.where(usable.any(axis=1, keepdims=True), usable, there & (flags & NO_BIND == 0))
    usable = np.where(usable.any(axis=1, keepdims=True), usable, there)
    sound = usable & (flags & PROBE == 0)
    sound = np.where(sound.any(axis=1, keepdims=True), sound, usable)
    known = sound & (flags & YOUNG == 0)
    known = np.where(known.any(axis=1, keepdims=True), known, sound)
    static = known.argmax(axis=1)
    """The first of them: what the static order would have taken."""

    hoped = np.where(flags & FRESH != 0, high, utility)
    best = np.where(known, hoped, -np.inf).argmax(axis=1)
    top = utility[rows, best][:, np.newaxis]
    reach = np.where(known, low, -np.inf).max(axis=1, keepdims=True) - delta
    probe = usable & (flags & PROBE != 0)
    equal = np.where(probe, high, utility) >= top - delta
    plausible = usable & np.where(rules.near_equals[:, np.newaxis], equal, high >= reach)
    plausible[rows, best] = False

    # Routes that are not known yet and look better than the best known one share a fixed part of the budget until they are.
    young = sound & ~known & (utility > top)
    part = rules.budget * rules.young_share / np.maximum(_sum(np.where(young, 1.0, 0.0)), 1.0)
    shares = np.where(young, part[:, np.newaxis], 0.0)

    count = _sum(np.where(plausible, 1.0, 0.0)) + 1.0
    gap = np.maximum(top - utility, 0.0) / np.maximum(value, 1e-9)
    weight = 1.0 / (count[:, np.newaxis] + rules.gamma[:, np.newaxis] * gap)
    weight = np.where(plausible & ~young, weight, 0.0)
    left = rules.budget - _sum(shares)
    weight = weight * np.minimum(1.0, left / np.maximum(_sum(weight), 1e-12))[:, np.newaxis]

    propensity = shares + weight
    propensity[rows, best] = 1.0 - _sum(propensity)
    base = utility[rows, static]
    floor = base - rules.alpha * np.abs(base)
    tried = shares + weight > 0
    need = np.where(tried, floor[:, np.newaxis] - low, -np.inf).max(axis=1)
    # Falling back: usable ones by utility, then probes, then what is excluded, then what has no bind.
    rank = np.where(there, np.where(usable, np.where(sound, 0, 1), np.where(flags & NO_BIND == 0, 2, 3)), 4)
    order = np.lexsort((-utility, rank), axis=1)
    return Weighed(utility, propensity, best, floor, np.maximum(need, 0.0), order)


def _sum(columns: Floats) -> Floats:
    """Along the last axis, from the left: np.sum groups by length, and padding must not change the last bit."""
    return np.asarray(np.add.accumulate(columns, axis=1)[:, -1])


def pick(propensity: list[float], best: int, seed: int) -> int:
    """The candidate that a seed (64 bits) chooses; the best one's share comes first."""
    rest = (seed >> 11) * 2.0**-53 - propensity[best]
    if rest < 0.0:
        return best
    for candidate, share in enumerate(propensity):
        if candidate != best:
            rest -= share
            if rest < 0.0:
                return candidate
    return best
