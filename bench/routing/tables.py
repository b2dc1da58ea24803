"""What was found over all seeds, as Markdown: medians with the 5th and 95th percentile over seeds; ratios are of pairs, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bench.routing.entrants import OURS, VW
from bench.routing.evaluate import STATIONARY
from bench.routing.world import CLASSES

__all__ = ["ratio", "table", "targets"]

One = dict[str, Any]
Found = dict[str, dict[str, One]]
UCB, TS = "UCB 15 min", "TS bayesianbandits"


def _values(of: dict[str, One], pick: Callable[[One], float | None]) -> list[float]:
    return [value for one in of.values() if (value := pick(one)) is not None]


def _spread(values: Iterable[float], digits: int = 0, factor: float = 1.0) -> str:
    some = [value * factor for value in values]
    if not some:
        return "–"
    low, middle, high = np.percentile(some, [5, 50, 95])
    return f"{middle:,.{digits}f} ({low:,.{digits}f} … {high:,.{digits}f})"


def ratio(found: Found, name: str, base: str, part: str) -> tuple[float, float, float]:
    """Of regrets: the mean over seeds by the base's mean, with the 90 % interval of a paired bootstrap."""
    both = sorted(set(found[name]) & set(found[base]))
    a, b = (np.array([found[one][seed]["regret"][part] for seed in both]) for one in (name, base))
    rng = np.random.default_rng(1)
    draws = rng.integers(0, len(both), (2_000, len(both)))
    low, high = np.percentile(a[draws].mean(axis=1) / b[draws].mean(axis=1), [5, 95])
    return float(a.mean() / b.mean()), float(low), float(high)


def _ratio(found: Found, name: str, base: str, part: str) -> str:
    if base not in found or name == base:
        return "1" if name == base else "–"
    middle, low, high = ratio(found, name, base, part)
    return f"{middle:.2f} ({low:.2f} … {high:.2f})"


def _rows(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(
        [
            "| " + " | ".join(head) + " |",
            "|---|" + "---:|" * (len(head) - 1),
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
    )


def table(found: Found) -> str:
    """Regret, then what else is measured of all, then what only our engine says of itself."""

    def regret(part: str) -> Callable[[One], float]:
        return lambda one: one["regret"][part] / one["messages"]

    parts = ("all", "stationary", "breaks", "breaks_others")
    first = _rows(
        [
            "regret a message (1/100 cent)",
            "seeds",
            "all",
            "stationary",
            "drift and breaks",
            "of it not by the faking route",
            "× UCB 15 min",
            "CPU µs a message",
        ],
        (
            [
                name,
                str(len(of)),
                *(_spread(_values(of, regret(part)), 1) for part in parts),
                _ratio(found, name, UCB, "all"),
                _spread(_values(of, lambda one: one["cpu_us"])),
            ]
            for name, of in found.items()
        ),
    )
    second = _rows(
        [
            *("in time, %", *CLASSES, "cost per delivered (1/100 cent)", "faking route after 2 h, %"),
            *("outage: share before, %", "s until below 1 %", "lost there", "share after a minute, %"),
        ],
        (
            [
                name,
                *(_spread(_values(of, lambda one, cls=cls: one["in_time"][cls]), 1, 100) for cls in CLASSES),
                _spread(_values(of, lambda one: one["cost_per_delivered"])),
                _spread(_values(of, lambda one: one["faker_share"]["after_2_h"]), 1, 100),
                _spread(_values(of, lambda one: one["outage"]["share_before"]), 1, 100),
                _spread(_values(of, lambda one: one["outage"]["until_1_percent_s"])),
                _spread(_values(of, lambda one: one["outage"]["lost"])),
                _spread(_values(of, lambda one: one["outage"]["share_after_1_min"]), 1, 100),
            ]
            for name, of in found.items()
        ),
    )
    return first + "\n\n" + second + ("\n\n" + targets(found) if OURS in found else "")


def targets(found: Found) -> str:
    """Each aim with what was reached; every figure is simulated."""
    ours = found[OURS]
    rows: list[list[str]] = []

    def row(what: str, aim: str, reached: str, *, met: bool) -> None:
        rows.append([what, aim, reached, "yes" if met else "**no**"])

    def by_ratio(what: str, base: str, part: str, most: float) -> None:
        if base in found:
            middle, *_ = ratio(found, OURS, base, part)
            row(what, f"≤ {most}", _ratio(found, OURS, base, part), met=middle <= most)

    def best_vw(part: str) -> str:
        there = [name for name in (*VW, STATIONARY) if name in found]
        return min(
            there, key=lambda name: float(np.mean(_values(found[name], lambda one: one["regret"][part]))), default=""
        )

    by_ratio("regret × UCB 15 min", UCB, "all", 0.5)
    for part, most, said in (
        ("stationary", 1.0, "stationary part"),
        ("breaks", 0.7, "drift and breaks"),
        ("breaks_others", 0.7, "drift and breaks, messages on the faking route left out"),
    ):
        by_ratio(f"regret × best Vowpal Wabbit ({best_vw(part)}), {said}", best_vw(part), part, most)
    by_ratio("regret × TS bayesianbandits, drift and breaks", TS, "breaks", 0.7)

    used = {seed: one for seed, one in ours.items() if one["outage"]["share_before"] >= 0.05}
    untils = _values(used, lambda one: one["outage"]["until_1_percent_s"])
    row(
        f"outage: s until below 1 % (the {len(used)} of {len(ours)} worlds where it had 5 % before)",
        "≤ 10",
        _spread(untils),
        met=bool(untils) and float(np.median(untils)) <= 10,
    )
    carried = {seed: one for seed, one in ours.items() if one["alarms"]["brown_out_share"] >= 0.05}
    browns = _values(carried, lambda one: one["alarms"]["brown_out_s"])
    row(
        f"brown-out: s until seen ({len(browns)} of {len(carried)} worlds where it had 5 % before)",
        "≤ 60",
        _spread(browns),
        met=len(browns) == len(carried) and bool(browns) and float(np.median(browns)) <= 60,
    )
    weeks = sum(_values(ours, lambda one: one["alarms"]["route_weeks"]))
    false = sum(_values(ours, lambda one: one["alarms"]["false"]))
    quiet = sum(_values(ours, lambda one: one["alarms"]["false_stationary"]))
    row(
        f"false alarms a route and week ({false:.0f} in {weeks:.1f} route-weeks, {quiet:.0f} of them in the stationary part)",
        "≤ 1",
        f"{false / max(weeks, 1e-9):.2f}",
        met=false <= weeks,
    )
    faker = _values(ours, lambda one: one["faker_share"]["after_2_h"])
    row("share of the faking route after 2 h, %", "≤ 0.5", _spread(faker, 2, 100), met=float(np.median(faker)) <= 0.005)
    violated = _values(ours, lambda one: one["violations"]["minutes"])
    row(
        "minutes below the conservative constraint, all tenants together", "0", _spread(violated), met=not any(violated)
    )
    pairs = _values(ours, lambda one: one["violations"]["tenant_class_minutes"])
    row("the same by tenant and class, in true utility", "0", _spread(pairs), met=not any(pairs))
    for cls in CLASSES:
        for key, what in (("ece_outcome", "outcomes"), ("ece_truth", "true probability")):
            errors = _values(ours, lambda one, cls=cls, key=key: one["calibration"][cls][key])
            row(
                f"calibration error, {cls}, to {what}",
                "≤ 0.02",
                _spread(errors, 3),
                met=float(np.median(errors)) <= 0.02,
            )
    checked, same = (sum(_values(ours, lambda one, key=key: one["replay"][key])) for key in ("checked", "same"))
    row(
        f"replay: identical of {checked:,.0f} records",
        "100 %",
        f"{100 * same / max(1, checked):.3f} %",
        met=checked == same,
    )
    for cls, most in (("otp", 0.5), ("transactional", 1.0), ("marketing", 5.0)):
        explored = _values(ours, lambda one, cls=cls: one["explored"][cls])
        row(
            f"messages that explored, {cls}, %",
            f"≤ {most}",
            _spread(explored, 2, 100),
            met=float(np.median(explored)) <= most / 100,
        )
    row(
        "regret of those that explored, % of all",
        "",
        _spread(_values(ours, lambda one: one["exploration_regret"] / max(1.0, one["regret"]["all"])), 1, 100),
        met=True,
    )
    return _rows(["heliograph, simulated", "aim", "reached", "met"], rows)
