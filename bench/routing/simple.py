"""Policies that need no library: static ones, the oracle, and those that count."""

from __future__ import annotations

from collections import deque

import numpy as np

from bench.routing.labels import Label, Labels
from bench.routing.view import View
from bench.routing.world import Floats, World

__all__ = ["BestFixed", "Counting", "EpsilonGreedy", "LeastCost", "Oracle", "WindowUcb"]


class _Silent:
    """Learns nothing."""

    def accepted(self, row: int, route: int, now_ms: int) -> None: ...

    def refused(self, row: int, route: int, now_ms: int) -> None: ...

    def receipt(self, row: int, now_ms: int, *, delivered: bool) -> None: ...

    def feedback(self, row: int, now_ms: int, *, converted: bool) -> None: ...

    def tick(self, now_ms: int) -> None: ...


class LeastCost(_Silent):
    """The cheapest route."""

    def __init__(self, view: View) -> None:
        self._view = view

    def choose(self, rows: list[int], _now_ms: int) -> list[list[int]]:
        return [self._view.candidates(row) for row in rows]


class Oracle(_Silent):
    """Knows every parameter of the world, and so the utility of each route; which submits fail it does not know."""

    def __init__(self, view: View, world: World) -> None:
        self._view, self._utility = view, world.utility

    def choose(self, rows: list[int], _now_ms: int) -> list[list[int]]:
        return [sorted(self._view.candidates(row), key=lambda route: -self._utility[row, route]) for row in rows]


class BestFixed(_Silent):
    """For each network and class the one route that was best over the whole time, in hindsight; then the next best, where it is not available."""

    def __init__(self, view: View, world: World) -> None:
        self._view = view
        self._mean = np.full((view.networks, 3, view.routes), -np.inf)
        for network in range(view.networks):
            for cls in range(3):
                rows = np.flatnonzero((view.network == network) & (view.cls == cls))
                if len(rows):
                    total = np.where(view.available[rows], world.utility[rows], 0.0).sum(axis=0)
                    self._mean[network, cls] = total / len(
                        rows
                    )  # a route that is not there from the beginning gains nothing until it is

    def choose(self, rows: list[int], _now_ms: int) -> list[list[int]]:
        view = self._view
        return [
            sorted(
                view.candidates(row), key=lambda route, mean=self._mean[view.network[row], view.cls[row]]: -mean[route]
            )
            for row in rows
        ]


class Counting:
    """Decayed counts by route x network x class, shrunk to the route's in the country and to the route's own. Takes what looks best: greedy."""

    def __init__(
        self,
        view: View,
        seed: int,
        *,
        feedback: bool = False,
        half_life_s: float = 3_600.0,
        strength: float = 20.0,
        prior: float = 0.9,
    ) -> None:
        self._view, self._labels = view, Labels(view, feedback=feedback)
        self._rng = np.random.default_rng([seed, 1])
        self._keep = 0.5 ** (1 / half_life_s)
        self._strength, self._prior = strength, prior
        shape = (view.routes, view.networks, 3)
        self._good, self._all = np.zeros(shape), np.zeros(shape)
        self._p = np.full(shape, prior)
        self._seconds = np.full(view.routes, 5.0)
        self._countries = np.eye(view.countries)[view.network_country]

    def _utility(self, row: int, of: list[int]) -> Floats:
        view = self._view
        p = self._p[of, view.network[row], view.cls[row]]
        utility: Floats = view.value[row] * p - view.prices[row, of] - view.latency_price[row] * self._seconds[of]
        return utility

    def choose(self, rows: list[int], _now_ms: int) -> list[list[int]]:
        found = []
        for row in rows:
            of = self._view.candidates(row)
            found.append([of[at] for at in np.argsort(-self._utility(row, of), kind="stable")])
        return found

    def accepted(self, row: int, route: int, now_ms: int) -> None:
        self._labels.accepted(row, route, now_ms)

    def refused(self, row: int, route: int, _now_ms: int) -> None:
        self._labels.refused(row, route)

    def receipt(self, row: int, now_ms: int, *, delivered: bool) -> None:
        self._labels.receipt(row, now_ms, delivered=delivered)

    def feedback(self, row: int, _now_ms: int, *, converted: bool) -> None:
        self._labels.feedback(row, converted=converted)

    def tick(self, now_ms: int) -> None:
        self._good *= self._keep
        self._all *= self._keep
        for label in self._labels.due(now_ms):
            cell = label.route, self._view.network[label.row], self._view.cls[label.row]
            self._good[cell] += label.y
            self._all[cell] += 1
            self._timed(label)
        self._estimate()

    def _timed(self, label: Label) -> None:
        if label.seconds and self._view.cls[label.row] == 0:
            self._seconds[label.route] += 0.02 * (label.seconds - self._seconds[label.route])

    def _estimate(self) -> None:
        k = self._strength
        good, every = self._good.sum(axis=2), self._all.sum(axis=2)
        route = (good.sum(axis=1) + k * self._prior) / (every.sum(axis=1) + k)
        country = (good @ self._countries + k * route[:, None]) / (every @ self._countries + k)
        self._p = (self._good + k * country[:, self._view.network_country, None]) / (self._all + k)


class EpsilonGreedy(Counting):
    """The same, and at random in a share of the decisions."""

    def __init__(self, view: View, seed: int, *, epsilon: float = 0.03, **rest: float) -> None:
        super().__init__(view, seed, **rest)  # type: ignore[arg-type]
        self._epsilon = epsilon

    def choose(self, rows: list[int], now_ms: int) -> list[list[int]]:
        found = super().choose(rows, now_ms)
        for ranked in found:
            if self._rng.random() < self._epsilon:
                ranked.insert(0, ranked.pop(int(self._rng.integers(len(ranked)))))
        return found


class WindowUcb:
    """The vendors' published way: from the outcomes of the last 15 minutes, every 5 minutes, an upper confidence bound for each route and destination;
    its winner carries the traffic until the next time, but for a share that goes evenly over the others.
    """

    WINDOW_MS, EVERY_MS = 900_000, 300_000

    def __init__(
        self,
        view: View,
        seed: int,
        *,
        width: float = 0.3,
        explore: float = 0.03,
        by: str = "network",
        feedback: bool = True,
        prior: float = 0.9,
    ) -> None:
        self._view, self._labels = view, Labels(view, feedback=feedback)
        self._rng = np.random.default_rng([seed, 2])
        self._width, self._explore, self._prior = width, explore, prior
        self._cell = view.network if by == "network" else view.country
        cells = view.networks if by == "network" else view.countries
        shape = (view.routes, cells, 3)
        self._window: deque[tuple[int, Label]] = deque()
        self._good, self._all = np.zeros(shape), np.zeros(shape)
        self._index = np.full(shape, prior + width)
        self._seconds = np.full(view.routes, 5.0)
        self._next = 0

    def choose(self, rows: list[int], _now_ms: int) -> list[list[int]]:
        found, view = [], self._view
        for row in rows:
            of = view.candidates(row)
            p = self._index[of, self._cell[row], view.cls[row]]
            utility = view.value[row] * p - view.prices[row, of] - view.latency_price[row] * self._seconds[of]
            ranked = [of[at] for at in np.argsort(-utility, kind="stable")]
            if len(ranked) > 1 and self._rng.random() < self._explore:
                ranked.insert(0, ranked.pop(1 + int(self._rng.integers(len(ranked) - 1))))
            found.append(ranked)
        return found

    def accepted(self, row: int, route: int, now_ms: int) -> None:
        self._labels.accepted(row, route, now_ms)

    def refused(self, row: int, route: int, _now_ms: int) -> None:
        self._labels.refused(row, route)

    def receipt(self, row: int, now_ms: int, *, delivered: bool) -> None:
        self._labels.receipt(row, now_ms, delivered=delivered)

    def feedback(self, row: int, _now_ms: int, *, converted: bool) -> None:
        self._labels.feedback(row, converted=converted)

    def tick(self, now_ms: int) -> None:
        for label in self._labels.due(now_ms):
            self._window.append((now_ms, label))
            self._count(label, 1)
            if label.seconds and self._view.cls[label.row] == 0:
                self._seconds[label.route] += 0.02 * (label.seconds - self._seconds[label.route])
        while self._window and self._window[0][0] < now_ms - self.WINDOW_MS:
            self._count(self._window.popleft()[1], -1)
        if now_ms >= self._next:
            self._next = now_ms + self.EVERY_MS
            tried = self._all + 1.0
            mean = (self._good + self._prior) / tried
            total = np.maximum(self._all.sum(axis=0, keepdims=True), 2.0)
            self._index = np.minimum(1.0, mean + self._width * np.sqrt(2 * np.log(total) / tried))

    def _count(self, label: Label, sign: int) -> None:
        cell = label.route, self._cell[label.row], self._view.cls[label.row]
        self._good[cell] += sign * label.y
        self._all[cell] += sign
