"""Curves over simulated time, as SVG: no script, readable on light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bench.routing.entrants import OURS

__all__ = ["lines", "plots"]

Found = dict[str, dict[str, dict[str, Any]]]
Series = dict[str, tuple[Sequence[float], Sequence[float]]]
_COLOURS = (
    "#1f5fa8",
    "#d1495b",
    "#2a9d5c",
    "#e08e1b",
    "#7b4fb5",
    "#3fa7c4",
    "#8a6d3b",
    "#c05299",
    "#6b7a8f",
    "#9aa51f",
    "#444444",
    "#b33a1e",
    "#5fb0a0",
)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 420, 70, 230, 44, 46


def lines(title: str, series: Series, *, x: str, y: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """One line each with its name at the side; ours is drawn last and thicker. `marks`: what happened when."""
    xs = [value for line, _ in series.values() for value in line]
    ys = [value for _, line in series.values() for value in line if np.isfinite(value)]
    low, high = min(xs), max(xs)
    bottom, top = min(0.0, *ys), max(ys) * 1.05 or 1.0
    if min(ys) > 0.3 * top:
        bottom = 0.95 * min(ys)

    def at(a: float, b: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * (a - low) / ((high - low) or 1.0),
            _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (b - bottom) / ((top - bottom) or 1.0),
        )

    body: list[str] = []
    for value in np.linspace(bottom, top, 6):
        _, place = at(low, float(value))
        body.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}" class="grid"/>')
        body.append(f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{_figure(float(value), top)}</text>')
    for value in np.linspace(low, high, 7):
        place, _ = at(float(value), bottom)
        body.append(
            f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_figure(float(value), high)}</text>'
        )
    for moment, name in marks:
        place, _ = at(moment, bottom)
        body.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" class="mark"/>')
        body.append(f'<text x="{place + 3:.1f}" y="{_TOP + 10}" style="font-size:10px">{escape(name)}</text>')
    names = sorted(series, key=lambda name: -float(series[name][1][-1]))
    colours = {
        name: _COLOURS[n % len(_COLOURS)] for n, name in enumerate([OURS, *(name for name in series if name != OURS)])
    }
    for name in sorted(series, key=lambda name: name == OURS):
        points = " ".join(
            "{:.1f},{:.1f}".format(*at(float(a), float(b)))
            for a, b in zip(*series[name], strict=True)
            if np.isfinite(b)
        )
        body.append(
            f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="{3 if name == OURS else 1.6}"/>'
        )
    for n, name in enumerate(names):
        place = _TOP + 12 + 19 * n
        body.append(
            f'<line x1="{_WIDTH - _RIGHT + 12}" x2="{_WIDTH - _RIGHT + 34}" y1="{place}" y2="{place}" stroke="{colours[name]}" stroke-width="3"/>'
        )
        body.append(f'<text x="{_WIDTH - _RIGHT + 40}" y="{place + 4}">{escape(name)}</text>')
    body.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>')
    body.append(f'<text x="{_LEFT}" y="{_TOP - 6}" style="font-size:11px">{escape(y)}</text>')
    style = (
        "text{font:12px sans-serif;fill:#222}.grid{stroke:#8884;stroke-width:1}.mark{stroke:#888;stroke-dasharray:3 3}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<style>{style}</style><text x="10" y="22" style="font-size:15px;font-weight:bold">{escape(title)}</text>'
        + "".join(body)
        + "</svg>\n"
    )


def _figure(value: float, most: float) -> str:
    return f"{value:,.0f}" if abs(most) >= 20 else f"{value:.1f}" if abs(most) >= 2 else f"{value:.2f}"


_MARKS = {
    "faker": "faking route",
    "outage": "outage",
    "brown_out": "brown-out",
    "errors": "errors",
    "prices": "prices",
    "new_route": "new route",
    "throttling": "throttling",
    "network_outage": "network outage",
}


def plots(found: Found, parameters: dict[str, Any], folder: Path) -> list[Path]:
    """Means over the seeds; the outage of one seed route by route."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = parameters["time"]["stationary_s"]
    marks = [
        ((begin + of["at"]) / 3_600, _MARKS[kind]) for kind, of in parameters["events"].items() if kind != "jitter_s"
    ]
    written = []

    def write(name: str, svg: str) -> None:
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        written.append(folder / f"{name}.svg")

    def mean(of: dict[str, dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
        curves = [one["curves"] for one in of.values()]
        return [second / 3_600 for second in curves[0]["second"]], np.mean(
            [curve[key] for curve in curves], axis=0
        ).tolist()

    learners = {name: of for name, of in found.items() if name != "least cost"}
    hours = "simulated hours; events are moved by up to three minutes in each seed"
    write(
        "regret",
        lines(
            "Regret to the oracle (less is better; least cost left out)",
            {name: _scaled(mean(of, "regret"), 1e-6) for name, of in learners.items()},
            x=hours,
            y="EUR 100, mean of the seeds",
            marks=marks,
        ),
    )
    write(
        "in_time",
        lines(
            "Delivered within the deadline (more is better; least cost left out)",
            {name: _scaled(mean(of, "in_time"), 100) for name, of in learners.items()},
            x=hours,
            y="% of all messages",
            marks=marks,
        ),
    )
    write(
        "cost",
        lines(
            "Price paid per message delivered in time (less is better)",
            {name: mean(of, "cost_per_delivered") for name, of in learners.items()},
            x=hours,
            y="1/100 cent",
            marks=marks,
        ),
    )

    dead: Series = {}
    for name, of in learners.items():
        there, every = (np.sum([one["outage"][key] for one in of.values()], axis=0) for key in ("there", "every"))
        dead[name] = next(iter(of.values()))["outage"]["second"], (100 * there / np.maximum(1, every)).tolist()
    write(
        "outage",
        lines(
            "Share of the route that accepts everything and delivers nothing",
            dead,
            x="seconds after its outage began",
            y="% of choices, all seeds",
            marks=[(0.0, "outage")],
        ),
    )
    if OURS in found:
        seed = max(found[OURS], key=lambda one: found[OURS][one]["outage"]["share_before"])
        one = found[OURS][seed]["outage"]
        xs = one["second"][::3][: len(next(iter(one["routes"].values())))]
        total = np.maximum(1, np.add.reduceat(one["every"], np.arange(0, len(one["every"]), 3))[: len(xs)])
        routes = {
            f"route {route}{' (dead)' if int(route) == one['route'] else ''}": (
                xs[:-1],
                (100 * np.array(counts) / total).tolist()[:-1],
            )
            for route, counts in one["routes"].items()
        }
        write(
            "outage_routes",
            lines(
                f"Our choices through the outage, seed {seed}",
                routes,
                x="seconds after the outage began",
                y="% of choices in 15 s",
                marks=[(0.0, "outage")],
            ),
        )
    return written


def _scaled(curve: tuple[list[float], list[float]], factor: float) -> tuple[list[float], list[float]]:
    return curve[0], [value * factor for value in curve[1]]
