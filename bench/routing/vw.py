"""Vowpal Wabbit's contextual bandits with action-dependent features: SquareCB, RegCB, Cover."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from bench.routing.labels import Labels
from bench.routing.view import View

__all__ = ["VowpalWabbit", "example"]


class VowpalWabbit:
    """Costs are those of the utility, in units of the value: (price + latency price x seconds) / value - delivered. The price is a feature too."""

    def __init__(
        self, view: View, seed: int, bodies: list[str], *, explore: str, options: str = "", feedback: bool = False
    ) -> None:
        import vowpalwabbit  # noqa: PLC0415 - only in the benchmark's environment

        self._view, self._labels = view, Labels(view, feedback=feedback)
        self._vw = vowpalwabbit.Workspace(
            f"--cb_explore_adf {explore} {options} -q SA --ignore_linear S --quiet --random_seed {seed}"
        )
        self._rng = np.random.default_rng([seed, 3])
        self._shared = [
            f"shared |S n{network} c{cls} t{tenant}x{cls}x{template} u{int(url)} e{int(ucs2)} o{origin} k{int('prize' in body)} h{int(hour) // 3}"
            for network, cls, tenant, template, url, ucs2, origin, hour, body in zip(
                *(
                    one.tolist()
                    for one in (
                        view.network,
                        view.cls,
                        view.tenant,
                        view.template,
                        view.url,
                        view.ucs2,
                        view.origin,
                        view.local_hour,
                    )
                ),
                bodies,
                strict=True,
            )
        ]
        self._asked: dict[int, tuple[list[int], list[float], list[str]]] = {}

    def choose(self, rows: list[int], _now_ms: int) -> list[list[int]]:
        view, found = self._view, []
        for row in rows:
            of = view.candidates(row)
            value = float(view.value[row])
            lines = example(self._shared[row], of, [float(view.prices[row, route]) / value for route in of])
            pmf = self._vw.predict(lines)
            total = list(accumulate(pmf))
            draw = self._rng.random() * total[-1]
            chosen = next((at for at, upto in enumerate(total) if draw <= upto), len(of) - 1)
            order = sorted((at for at in range(len(of)) if at != chosen), key=lambda at: -pmf[at])
            self._asked[row] = of, list(pmf), lines
            found.append([of[chosen], *(of[at] for at in order)])
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
        view = self._view
        for label in self._labels.due(now_ms):
            of, pmf, lines = self._asked[label.row]
            at = of.index(label.route)
            value = float(view.value[label.row])
            paid = float(view.prices[label.row, label.route]) + float(view.latency_price[label.row]) * label.seconds
            labelled = lines.copy()
            labelled[1 + at] = f"{at}:{paid / value - label.y:.4f}:{max(pmf[at], 1e-3):.5f} {lines[1 + at]}"
            self._vw.learn(labelled)


def example(shared: str, routes: list[int], prices: list[float]) -> list[str]:
    """Lines of a multi-line example: what all share, and each action with its price in units of the value."""
    return [shared, *(f"|A r{route} |P p:{price:.4f}" for route, price in zip(routes, prices, strict=True))]
