"""The message path with the static router, with the learned one in shadow, and with the learned one, in turn: what learning takes from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.ledger.bed import medians
from bench.ledger.path import WAYS, compare, measure

__all__ = ["MODES", "run"]

MODES = ("static", "shadow", "learned")
ROUTES = 8
"""Candidates of every message; all lead to the one sink."""


def run(work: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Way → mode → medians, and the ratio of each mode's throughput to static's, by rounds."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number in range(rounds):
        order = MODES if number % 2 else tuple(reversed(MODES))
        for way in WAYS:
            for mode in order:
                found = measure(way, work, seconds, routing=mode, routes=ROUTES)
                runs.setdefault(way.name, {}).setdefault(mode, []).append(found)
                print(f"path  round {number + 1}  {way.name}, {mode}: {found['per_s']:,.0f}/s", flush=True)
    return {
        "medians": {
            way: {mode: medians(found) for mode, found in modes.items()}
            | {f"{mode} ratio": compare({"off": modes["static"], "on": modes[mode]})["ratio"] for mode in MODES[1:]}
            for way, modes in runs.items()
        },
        "runs": runs,
    }
