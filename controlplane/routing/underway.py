"""Messages under way: what their receipts teach, and what missing ones say before and at their deadlines."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.arms import Arms
from controlplane.routing.breaker import Alarm, Breakers, silence_gain
from controlplane.routing.calibration import Calibration
from controlplane.routing.features import buckets
from controlplane.routing.model import Model, logit, sigmoid
from controlplane.routing.pool import DELIVERED, EXPIRED, FAILED, LATE, PENDING, Entry, Pool
from controlplane.routing.statistics import (
    CURVE,
    EARLY_GOOD,
    EARLY_TRIES,
    GOOD,
    LEVELS,
    TRIES,
    WIDTH,
    Statistics,
    bin_of,
    reached,
)
from controlplane.routing.statistics import LATE as LATE_COLUMN
from controlplane.routing.trust import Trust
from controlplane.routing.tuning import Tuning

__all__ = ["Break", "UnderWay", "place"]

_OLD_EVERY_MS = 30_000
_WATCHED = 300
"""Messages of a route before its usual early rate is known."""


class Break(NamedTuple):
    """A break that was seen."""

    at: int
    """ms since the epoch."""
    route: str
    country: str
    network: str
    """Both empty: the whole route."""
    kind: str
    """refusals, silence, brownout, recovery, probes_failed or closed."""
    ratio: float
    """Receipts seen of those expected."""
    opened: bool


class _Label(NamedTuple):
    """An outcome to be counted at the next tick."""

    arm: int
    at: int
    tries: float
    good: float
    late: float
    seconds: float
    """Of a receipt for the delay curve; negative: none, or one that the curve takes when the message is mature."""


class _Early(NamedTuple):
    """Messages that came to the early mark together: (n,) arms, ms of their submits, weights, whether they had a receipt."""

    passed: int
    arms: NDArray[np.int64]
    at: NDArray[np.int64]
    weight: NDArray[np.float64]
    seen: NDArray[np.bool_]


class UnderWay:
    """Messages that were submitted, until they are forgotten. Counts go to the statistics and the model, alarms to the breakers and `breaks`."""

    def __init__(
        self,
        tuning: Tuning,
        statistics: Statistics,
        breakers: Breakers,
        arms: Arms,
        model: Model,
        calibration: Calibration,
        trust: Trust,
    ) -> None:
        self._tuning, self._statistics, self._breakers = tuning, statistics, breakers
        self._arms, self._model, self._calibration, self._trust = arms, model, calibration, trust
        self._worth = trust.worth(arms.routes)
        self._pools = {
            cls: Pool(own, early_ms=min(tuning.early_ms, own.deadline_ms), capacity=tuning.pool)
            for cls, own in tuning.classes.items()
        }
        self._labels: list[_Label] = []
        self.breaks: deque[Break] = deque(maxlen=500)
        """The last breaks that were seen, oldest first."""
        self._recent: deque[_Early] = deque()
        self._old_from = 0
        self._old_at = -_OLD_EVERY_MS
        self._old_evidence = np.zeros(0)

    def add(self, cls: str, mid: str, arm: int, hashes: NDArray[np.uint64], at: int) -> None:
        """The carrier took a message."""
        self._pools[cls].add(mid, arm, hashes, at)

    def find(self, mid: str) -> Entry | None:
        """What is known of a message that is not forgotten."""
        for pool in self._pools.values():
            position = pool.find(mid)
            if position is not None:
                return pool.entry(position)
        return None

    def refused(self, arm: int, at: int, tries: float) -> None:
        """The carrier did not take a message: so much of a failed try."""
        self._labels.append(_Label(arm, at, tries, 0.0, 0.0, -1.0))

    def receipt(self, mid: str, delivered: bool, now_ms: int) -> bool | None:
        """The final receipt of a message: whether it taught something; None where the message is not known here."""
        for cls, pool in self._pools.items():
            position = pool.find(mid)
            if position is None:
                continue
            arm, at, weight, state = pool.entry(position)
            age = max(0, now_ms - at)
            overdue = age > self._tuning.classes[cls].deadline_ms
            if state == PENDING and not overdue:
                pool.settle(position, DELIVERED if delivered else FAILED, age)
                self._labels.append(_Label(arm, at, weight, weight * delivered, 0.0, age / 1000 if delivered else -1.0))
            elif state in {PENDING, EXPIRED} and delivered:
                pool.settle(position, LATE, age)
                tries = weight if state == PENDING else 0.0
                self._labels.append(_Label(arm, at, tries, 0.0, weight, age / 1000))
            else:
                return False
            return True
        return None

    def tick(self, now_ms: int) -> list[str]:
        """What time alone says; mids of messages whose deadline is over."""
        overdue: list[str] = []
        self._worth = self._trust.worth(self._arms.routes)
        for pool in self._pools.values():
            self._expect(pool, now_ms)
        for cls, pool in self._pools.items():
            overdue += self._expire(pool, now_ms)
            self._early(pool, now_ms)
            self._mature(cls, pool, now_ms)
            pool.pass_mark("forgotten", now_ms)
        self._become_usual(now_ms)
        self.count()
        self._look(now_ms)
        return overdue

    def count(self) -> None:
        """Add the outcomes since the last time to the counts."""
        if not self._labels:
            return
        columns = np.array(self._labels)
        self._labels.clear()
        arms, at, seconds = columns[:, 0].astype(np.int64), columns[:, 1].astype(np.int64), columns[:, 5]
        increments = np.zeros((len(columns), WIDTH))
        increments[:, [TRIES, GOOD, LATE_COLUMN]] = columns[:, 2:5]
        came = np.flatnonzero(seconds >= 0)
        increments[came, CURVE + bin_of(seconds[came])] = columns[came, 3] + columns[came, 4]
        self._statistics.add(self._arms.chain[arms], at, increments, self._arms.in_time[arms])

    def apply(self, alarms: list[Alarm], now_ms: int) -> None:
        """Note alarms; counts of what has changed are reset."""
        for alarm in alarms:
            route, country, network = place(self._breakers.name(alarm.cell))
            self.breaks.append(Break(now_ms, route, country, network, alarm.kind, alarm.ratio, alarm.opened))
            if alarm.kind in {"brownout", "recovery"}:
                self._statistics.reset(
                    self._arms.under(alarm.cell).tolist(),
                    now_ms,
                    strength=self._tuning.reset_strength,
                    ratio=alarm.ratio,
                    mute_ms=self._tuning.mute_ms,
                )
                self._forget_recent(alarm.cell)
                self._arms.expire()

    def _expect(self, pool: Pool, now_ms: int) -> None:
        """Note what is expected of new messages, before their receipts are counted."""
        sent = pool.pass_mark("sent", now_ms)
        if not len(sent):
            return
        arms = pool.arm[sent]
        self._arms.refresh(arms, now_ms)
        index = buckets(pool.hashes[sent], self._arms.hash[arms])
        chance = sigmoid(logit(self._arms.p[arms]) + self._model.mean[index].sum(axis=1))
        pool.expected[sent] = np.minimum(chance * self._worth[self._arms.route[arms]], 1.0)

    def _expire(self, pool: Pool, now_ms: int) -> list[str]:
        due = pool.pass_mark("due", now_ms)
        due = due[pool.state[due] == PENDING]
        pool.state[due] = EXPIRED
        for position in due.tolist():
            arm, at, weight, _ = pool.entry(position)
            self._labels.append(_Label(arm, at, weight, 0.0, 0.0, -1.0))
        return [pool.mid(position) for position in due.tolist()]

    def _early(self, pool: Pool, now_ms: int) -> None:
        """Compare with what is usual; it becomes part of that some minutes later, so that a brown-out does not pass for usual."""
        passed = pool.pass_mark("early", now_ms)
        if not len(passed):
            return
        arms = pool.arm[passed]
        self._arms.refresh(arms, now_ms)
        seen = (pool.state[passed] == DELIVERED) & (pool.latency[passed] <= self._tuning.early_ms)
        usual = np.flatnonzero(self._arms.watched[arms] >= _WATCHED)
        self.apply(
            self._breakers.early(
                self._arms.layers[arms[usual]].T,
                pool.at[passed[usual]],
                self._arms.early[arms[usual]],
                seen[usual],
                now_ms,
            ),
            now_ms,
        )
        self._recent.append(_Early(now_ms, arms, pool.at[passed], pool.weight[passed], seen))

    def _forget_recent(self, cell: int) -> None:
        """What was seen under a breaker before it was known to have changed shall not become usual."""
        for n, (passed, arms, *columns) in enumerate(self._recent):
            other = (self._arms.layers[arms] != cell).all(axis=1)
            if not other.all():
                self._recent[n] = _Early(passed, arms[other], *(column[other] for column in columns))

    def _become_usual(self, now_ms: int) -> None:
        while self._recent and self._recent[0].passed <= now_ms - self._tuning.usual_after_ms:
            _, arms, at, weight, seen = self._recent.popleft()
            increments = np.zeros((len(arms), WIDTH))
            increments[:, EARLY_TRIES] = weight
            increments[:, EARLY_GOOD] = weight * seen
            self._statistics.add(self._arms.chain[arms], at, increments, self._arms.in_time[arms])

    def _mature(self, cls: str, pool: Pool, now_ms: int) -> None:
        """Content model and calibration learn from each message once, at one age, so that good news has no lead over bad news.

        So do the delay curves: fast receipts alone, while the slow ones are on their way, would make a curve too steep.
        """
        passed = pool.pass_mark("mature", now_ms)
        if not len(passed):
            return
        arms, state, number = pool.arm[passed], pool.state[passed], self._calibration.number(cls)
        self._arms.refresh(arms, now_ms)
        p, worth = self._arms.p[arms], self._worth[self._arms.route[arms]]
        labels = np.where(state == DELIVERED, 1.0, 0.0)
        pending = passed[state == PENDING]
        if len(pending):
            f = self._reached(pool.arm[pending], (now_ms - pool.at[pending]) / 1000)
            hoped = self._calibration.apply(np.full(len(pending), number), pool.expected[pending])
            hoped = np.minimum(hoped / worth[state == PENDING], 0.999)
            labels[state == PENDING] = hoped * (1.0 - f) / (1.0 - hoped * f)
        index = buckets(pool.hashes[passed], self._arms.hash[arms])
        self._calibration.learn(cls, pool.expected[passed], labels * worth, pool.weight[passed], now_ms)
        self._model.learn(index, labels, logit(p), pool.weight[passed], now_ms)
        came = passed[(state == DELIVERED) & (pool.latency[passed] <= pool.mature_ms)]
        increments = np.zeros((len(came), WIDTH))
        increments[np.arange(len(came)), CURVE + bin_of(pool.latency[came] / 1000)] = pool.weight[came]
        arms = pool.arm[came]
        self._statistics.add(self._arms.chain[arms], pool.at[came], increments, self._arms.in_time[arms])

    def _reached(self, arms: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the receipts that come in time, the share that has come by an age."""
        return np.minimum(1.0, reached(self._arms.curve[arms], seconds) / self._arms.in_time[arms])

    def _look(self, now_ms: int) -> None:
        """Missing receipts are evidence before their deadline: survival weights for the counts, silence for the breakers.

        A message without receipt at age t counts as F(1 − p)/(1 − pF) of a failed try, F the share of in-time receipts that come by t: the
        fixed point of EM for a censored outcome, so that a route is not thought bad because its receipts are still on their way.
        """
        horizon = max(self._tuning.silence_windows_ms)
        recompute = now_ms - self._old_at >= _OLD_EVERY_MS
        if recompute:
            self._old_at, self._old_from = now_ms, now_ms - horizon
        young: list[tuple[Pool, int]] = []
        old = np.zeros(len(self._statistics.evidence))
        for pool in self._pools.values():
            first = pool.since(self._old_from)
            young.append((pool, first))
            if recompute:
                self._evidence(pool, np.arange(pool.open_from(), first), now_ms, old)
        if recompute:
            self._old_evidence = old
        evidence = np.zeros(len(self._statistics.evidence))
        evidence[: len(self._old_evidence)] = self._old_evidence
        for pool, first in young:
            self._evidence(pool, np.arange(max(first, pool.open_from()), pool.size), now_ms, evidence)
        evidence[0] = 0.0
        self._statistics.evidence = evidence
        self._silence(young, now_ms)

    def _evidence(self, pool: Pool, positions: NDArray[np.int64], now_ms: int, into: NDArray[np.float64]) -> None:
        positions = positions[pool.state[positions] == PENDING]
        if not len(positions):
            return
        arms, age = pool.arm[positions], (now_ms - pool.at[positions]) / 1000
        p, f = self._arms.p[arms], self._reached(arms, age)
        weight = pool.weight[positions] * f * (1.0 - p) / (1.0 - p * f)
        for level in range(LEVELS):
            decayed = weight * np.exp2(-1000 * age / self._tuning.half_lives_ms[level])
            if level >= 3:
                decayed = decayed * self._arms.in_time[arms]
            into += np.bincount(self._arms.chain[arms, level], decayed, len(into))

    def _silence(self, young: list[tuple[Pool, int]], now_ms: int) -> None:
        cells, windows = len(self._breakers), np.array(self._tuning.silence_windows_ms)
        sums = np.zeros((3, cells, len(windows)))
        for pool, _ in young:
            positions = np.arange(pool.since(now_ms - int(windows[-1])), pool.size)
            arms, at, weight = pool.arm[positions], pool.at[positions], pool.weight[positions]
            chance = self._arms.p[arms] * self._reached(arms, (now_ms - at) / 1000)
            chance *= self._arms.receipts[arms] / (self._arms.receipts[arms] + self._tuning.curve_strength)
            heard = (pool.state[positions] != PENDING) & (pool.state[positions] != EXPIRED)
            age = np.minimum(np.searchsorted(windows, now_ms - at), len(windows) - 1)
            for cell in self._arms.layers[arms].T:
                fresh = weight * (at >= self._breakers.since[cell])
                place = cell * len(windows) + age
                for i, column in enumerate((silence_gain(chance, heard), chance, heard)):
                    sums[i] += np.bincount(place, fresh * column, sums[i].size).reshape(sums[i].shape)
        gains, expected, seen = sums.cumsum(axis=2).transpose(0, 2, 1)
        self.apply(self._breakers.silent(gains, expected, seen, now_ms), now_ms)


def place(name: str) -> tuple[str, str, str]:
    """Route, country and network of a breaker; both empty for the whole route."""
    route, country, network = (*name.split("\t"), "", "")[:3]
    return route, country, network
