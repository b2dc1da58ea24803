"""Policies with one linear model for each route: LinUCB, and Thompson sampling by `bayesianbandits`."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.routing.labels import Label, Labels
from bench.routing.view import View
from bench.routing.world import Floats

__all__ = ["LinUcb", "Thompson", "features"]


def features(view: View, bodies: list[str]) -> Floats:
    """Row x feature: one, network, class, URL, UCS-2, the word that some carriers filter, the sender's origin, the evening."""
    away = np.abs(view.local_hour - 19.0)
    evening = np.exp(-0.5 * (np.minimum(away, 24 - away) / 2.0) ** 2)
    return np.column_stack(
        [
            np.ones(view.count),
            np.eye(view.networks)[view.network],
            np.eye(3)[view.cls],
            view.url,
            view.ucs2,
            ["prize" in body for body in bodies],
            np.eye(int(view.origin.max()) + 1)[view.origin],
            evening,
        ]
    ).astype(float)


class _Linear:
    """What both share: labels, latencies, utilities."""

    def __init__(self, view: View, x: Floats, *, feedback: bool) -> None:
        self._view, self._labels, self._x = view, Labels(view, feedback=feedback), x
        self._seconds = np.full(view.routes, 5.0)

    def _ranked(self, row: int, of: list[int], p: Floats) -> list[int]:
        view = self._view
        utility = view.value[row] * p - view.prices[row, of] - view.latency_price[row] * self._seconds[of]
        return [of[at] for at in np.argsort(-utility, kind="stable")]

    def accepted(self, row: int, route: int, now_ms: int) -> None:
        self._labels.accepted(row, route, now_ms)

    def refused(self, row: int, route: int, _now_ms: int) -> None:
        self._labels.refused(row, route)

    def receipt(self, row: int, now_ms: int, *, delivered: bool) -> None:
        self._labels.receipt(row, now_ms, delivered=delivered)

    def feedback(self, row: int, _now_ms: int, *, converted: bool) -> None:
        self._labels.feedback(row, converted=converted)

    def _due(self, now_ms: int) -> list[Label]:
        found = self._labels.due(now_ms)
        for label in found:
            if label.seconds and self._view.cls[label.row] == 0:
                self._seconds[label.route] += 0.02 * (label.seconds - self._seconds[label.route])
        return found


class LinUcb(_Linear):
    """Li et al. 2010, disjoint models; with `half_life_s` the discounted one of Russac et al. 2019. Models are solved every few seconds."""

    EVERY_S = 10

    def __init__(
        self,
        view: View,
        x: Floats,
        *,
        alpha: float = 0.3,
        half_life_s: float = 0.0,
        ridge: float = 1.0,
        feedback: bool = False,
    ) -> None:
        super().__init__(view, x, feedback=feedback)
        self._alpha, self._ridge = alpha, ridge
        self._keep = 0.5 ** (self.EVERY_S / half_life_s) if half_life_s else 1.0
        d = x.shape[1]
        self._a = np.zeros((view.routes, d, d))
        self._b = np.zeros((view.routes, d))
        self._inverse = np.tile(np.eye(d) / ridge, (view.routes, 1, 1))
        self._theta = np.zeros((view.routes, d))
        self._ticks = 0
        self._changed: set[int] = set()

    def choose(self, rows: list[int], _now_ms: int) -> list[list[int]]:
        found = []
        for row in rows:
            of, x = self._view.candidates(row), self._x[row]
            inverse = self._inverse[of]
            width = np.sqrt(np.maximum(0.0, (inverse @ x) @ x))
            found.append(self._ranked(row, of, self._theta[of] @ x + self._alpha * width))
        return found

    def tick(self, now_ms: int) -> None:
        for label in self._due(now_ms):
            x = self._x[label.row]
            self._a[label.route] += np.outer(x, x)
            self._b[label.route] += label.y * x
            self._changed.add(label.route)
        self._ticks += 1
        if self._ticks % self.EVERY_S == 0:
            self._a *= self._keep
            self._b *= self._keep
            which = (
                list(range(self._view.routes))
                if self._keep < 1 and self._ticks % (6 * self.EVERY_S) == 0
                else sorted(self._changed)
            )
            if which:
                self._inverse[which] = np.linalg.inv(self._a[which] + self._ridge * np.eye(self._x.shape[1]))
                self._theta[which] = (self._inverse[which] @ self._b[which][:, :, None])[:, :, 0]
            self._changed.clear()


class Thompson(_Linear):
    """`bayesianbandits`: a Bayesian logistic regression for each route, sampled for each decision, that forgets with time."""

    EVERY_S = 3

    def __init__(
        self,
        view: View,
        x: Floats,
        seed: int,
        *,
        half_life_s: float = 3_600.0,
        alpha: float = 1.0,
        feedback: bool = False,
    ) -> None:
        super().__init__(view, x, feedback=feedback)
        import bayesianbandits as bb  # noqa: PLC0415 - only in the benchmark's environment

        rate = 0.5 ** (self.EVERY_S / half_life_s)
        self._forgetting = bb.StabilizedForgetting(rate)
        self._arms = [
            bb.BayesianGLM(
                alpha=alpha,
                link="logit",
                approximator=bb.LaplaceApproximator(n_iter=1),
                random_state=1_000 * seed + route,
            )
            for route in range(view.routes)
        ]
        self._waiting: dict[int, list[Label]] = {}
        self._fitted = [False] * view.routes
        self._ticks = 0

    def choose(self, rows: list[int], _now_ms: int) -> list[list[int]]:
        of = [self._view.candidates(row) for row in rows]
        p = np.zeros((len(rows), self._view.routes))
        for route, arm in enumerate(self._arms):
            where = [at for at, candidates in enumerate(of) if route in candidates]
            if where:
                p[where, route] = arm.sample(self._x[[rows[at] for at in where]], 1)[0]
        return [
            self._ranked(row, candidates, p[at, candidates])
            for at, (row, candidates) in enumerate(zip(rows, of, strict=True))
        ]

    def tick(self, now_ms: int) -> None:
        for label in self._due(now_ms):
            self._waiting.setdefault(label.route, []).append(label)
        self._ticks += 1
        if self._ticks % self.EVERY_S:
            return
        for route, arm in enumerate(self._arms):
            if self._fitted[route]:
                arm.decay(self._forgetting)
            if found := self._waiting.pop(route, None):
                self._fit(arm, found)
                self._fitted[route] = True

    def _fit(self, arm: Any, labels: list[Label]) -> None:
        arm.partial_fit(self._x[[label.row for label in labels]], np.array([label.y for label in labels]))
