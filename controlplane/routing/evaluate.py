"""Off-policy evaluation: what another policy would have earned, from decisions whose propensities were recorded.

Estimators: direct method; inverse propensity (IPS, Horvitz & Thompson 1952) and self-normalised (SNIPS, Swaminathan & Joachims 2015); doubly robust
(DR, Dudík et al. 2011) and self-normalised; DR with switched (Wang et al. 2017) and shrunk weights (DRos, Su et al. 2020). Intervals are normal, by the
delta method for ratios; `bootstrap` where that is doubted. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.decision import Unpacked, unpack

__all__ = ["ESTIMATORS", "Estimate", "Gain", "Log", "Sent", "bootstrap", "effective_size", "estimate", "gain"]

Floats = NDArray[np.float64]
_Z = 1.96


class Log(NamedTuple):
    """n logged rounds, and what a target policy thinks of them."""

    reward: Floats
    """(n,) what the logged action earned."""
    weight: Floats
    """(n,) target's probability of the logged action over the logging policy's."""
    predicted: Floats
    """(n,) a model's estimate of the logged action's reward."""
    expected: Floats
    """(n,) the same model's, in expectation over the target's actions."""


class Estimate(NamedTuple):
    """A policy's mean reward, with a 95 % interval."""

    value: float
    low: float
    high: float
    effective: float
    """Effective sample size (Σw)²/Σw²: below a hundred or so, do not believe the rest."""


def _dm(log: Log) -> Floats:
    return log.expected


def _ips(log: Log) -> Floats:
    return log.weight * log.reward


def _snips(log: Log) -> Floats:
    scale = log.weight.mean()
    value = (log.weight * log.reward).mean() / scale
    return np.asarray(value + log.weight * (log.reward - value) / scale)


def _dr(log: Log) -> Floats:
    return log.expected + log.weight * (log.reward - log.predicted)


def _sndr(log: Log) -> Floats:
    scale, error = log.weight.mean(), log.reward - log.predicted
    correction = (log.weight * error).mean() / scale
    return np.asarray(log.expected + correction + log.weight * (error - correction) / scale)


def _switch(log: Log, threshold: float = 10.0) -> Floats:
    return log.expected + np.where(log.weight <= threshold, log.weight, 0.0) * (log.reward - log.predicted)


def _dros(log: Log, shrinkage: float = 100.0) -> Floats:
    return log.expected + shrinkage * log.weight / (log.weight**2 + shrinkage) * (log.reward - log.predicted)


ESTIMATORS: dict[str, Callable[[Log], Floats]] = {
    "dm": _dm,
    "ips": _ips,
    "snips": _snips,
    "dr": _dr,
    "sndr": _sndr,
    "switch-dr": _switch,
    "dros": _dros,
}
"""Name → contributions (n,) of the rounds, whose mean is the estimate."""


def effective_size(weight: Floats) -> float:
    """(Σw)²/Σw²: how many rounds of the target policy itself the weighted ones are worth."""
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares else 0.0


def estimate(log: Log, method: str = "dr") -> Estimate:
    """The target policy's mean reward. Raises KeyError for an unknown method, ValueError where nothing was logged, or (self-normalised) nothing
    that the target would do."""
    if not len(log.reward):
        raise ValueError("no rounds to evaluate")
    if method.startswith("sn") and not log.weight.any():
        raise ValueError("the target policy never does what was logged")
    return _interval(ESTIMATORS[method](log), log.weight)


def bootstrap(log: Log, method: str = "dr", *, seed: int, rounds: int = 1_000) -> Estimate:
    """As `estimate`, with a percentile interval over `rounds` resamples."""
    rng = np.random.default_rng(seed)
    n = len(log.reward)
    values = []
    for _ in range(rounds):
        chosen = rng.integers(0, n, n)
        values.append(estimate(Log(*(column[chosen] for column in log)), method).value)
    low, high = np.percentile(values, [2.5, 97.5])
    return estimate(log, method)._replace(low=float(low), high=float(high))


def _interval(contributions: Floats, weight: Floats) -> Estimate:
    value, n = float(contributions.mean()), len(contributions)
    half = _Z * float(contributions.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    return Estimate(value, value - half, value + half, effective_size(weight))


class Sent(NamedTuple):
    """A decision and what came of the message."""

    record: bytes | str
    route: str
    """That took the message in the end, or last."""
    in_time: bool
    """Delivered within the class's deadline."""
    seconds: float
    """To its receipt; whatever where there was none."""


class Gain(NamedTuple):
    """What the learned order earned, or would have earned, over the static one; minor units a message, by the tenants' own terms."""

    messages: int
    skipped: int
    """Sent by another route than decided (a fallback), so that they say nothing about the decision."""
    agreement: float
    """Share of decisions in which both orders put the same route first."""
    static: Estimate
    learned: Estimate
    gain: Estimate
    """Learned − static, paired."""
    static_delivered: float
    learned_delivered: float
    """Shares delivered in time, by the same estimator."""
    method: str


def gain(sent: Iterable[Sent], method: str = "dr") -> Gain:
    """Compare both orders over decisions in any mix of modes: each is on-policy for one order and evaluates the other. Raises ValueError for none.

    In shadow mode only the static order's route is ever tried, so where the orders differ, doubly robust rests on the model alone and IPS sees nothing.
    Trust the gain as far as `gain.effective` goes, or switch a few tenants to `learned` for a while.
    """
    rows, skipped, agreed = [], 0, 0
    for item in sent:
        seen = unpack(item.record)
        static = _static(seen)
        used = static if seen.shadow else next(i for i, one in enumerate(seen.candidates) if one.route == seen.chosen)
        if seen.candidates[used].route != item.route:
            skipped += 1
            continue
        agreed += seen.candidates[static].route == seen.chosen
        rows.append(_columns(seen, item, static, used))
    if not rows:
        raise ValueError("no decisions whose outcome is known")
    money, delivery = np.array(rows).transpose(1, 2, 0)
    logs = [
        Log(columns[0], columns[w], columns[1], columns[e])
        for columns in (money, delivery)
        for w, e in ((2, 4), (3, 5))
    ]
    found = [ESTIMATORS[method](log) for log in logs]
    weights = np.minimum(logs[0].weight, logs[1].weight)
    return Gain(
        len(rows),
        skipped,
        agreed / len(rows),
        _interval(found[0], logs[0].weight),
        _interval(found[1], logs[1].weight),
        _interval(found[1] - found[0], weights),
        float(found[2].mean()),
        float(found[3].mean()),
        method,
    )


def _static(seen: Unpacked) -> int:
    """The static order's first: it knows of binds, not of breakers."""
    dead = {item.route for item in seen.excluded if item.rule == "no_bind"}
    return next((i for i, one in enumerate(seen.candidates) if one.route not in dead), 0)


def _columns(seen: Unpacked, item: Sent, static: int, used: int) -> list[list[float]]:
    """Reward, prediction, static's and learned's weight, static's and learned's expectation: in money, and in delivery."""
    one = seen.candidates[used]
    logged = 1.0 if seen.shadow else one.propensity
    weights = float(used == static) / logged, one.propensity / logged
    seconds = item.seconds if item.in_time else one.latency
    earned = seen.value * item.in_time - seen.price_factor * one.price - seen.latency_price * seconds
    learned = sum(c.propensity * c.utility for c in seen.candidates), sum(c.propensity * c.p for c in seen.candidates)
    return [
        [earned, one.utility, *weights, seen.candidates[static].utility, learned[0]],
        [float(item.in_time), one.p, *weights, seen.candidates[static].p, learned[1]],
    ]
