"""Who takes part, and what each may be tuned to: eight configurations for each, chosen among on seeds that are not evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any

from bench.routing.linear import LinUcb, Thompson, features
from bench.routing.ours import Ours
from bench.routing.simple import BestFixed, Counting, EpsilonGreedy, LeastCost, Oracle, WindowUcb
from bench.routing.view import Policy, View
from bench.routing.vw import VowpalWabbit
from bench.routing.world import Floats, World
from controlplane.routing.learner import Tuning

__all__ = ["ENTRANTS", "OURS", "UNTUNED", "VW", "Bed", "configurations", "make"]

Settings = dict[str, Any]

OURS = "heliograph"
VW = ("vw squarecb", "vw regcb", "vw cover")
UNTUNED = ("oracle", "least cost", "best fixed")


class Bed:
    """A world and what is made of it once for all policies."""

    def __init__(self, world: World, view: View) -> None:
        self.world, self.view = world, view
        self.bodies = world.messages.body

    @cached_property
    def features(self) -> Floats:
        return features(self.view, self.bodies)


def _ours(bed: Bed, settings: Settings) -> Policy:
    return Ours(bed.view, replace(Tuning(), **settings))


ENTRANTS: dict[str, Callable[[Bed, Settings], Policy]] = {
    "oracle": lambda bed, _: Oracle(bed.view, bed.world),
    "least cost": lambda bed, _: LeastCost(bed.view),
    "best fixed": lambda bed, _: BestFixed(bed.view, bed.world),
    "greedy": lambda bed, of: Counting(bed.view, bed.world.seed, **of),
    "epsilon-greedy": lambda bed, of: EpsilonGreedy(bed.view, bed.world.seed, **of),
    "UCB 15 min": lambda bed, of: WindowUcb(bed.view, bed.world.seed, **of),
    "LinUCB": lambda bed, of: LinUcb(bed.view, bed.features, **of),
    "TS bayesianbandits": lambda bed, of: Thompson(bed.view, bed.features, bed.world.seed, **of),
    "vw squarecb": lambda bed, of: VowpalWabbit(bed.view, bed.world.seed, bed.bodies, **of),
    "vw regcb": lambda bed, of: VowpalWabbit(bed.view, bed.world.seed, bed.bodies, **of),
    "vw cover": lambda bed, of: VowpalWabbit(bed.view, bed.world.seed, bed.bodies, **of),
    OURS: _ours,
}


def make(name: str, bed: Bed, settings: Settings) -> Policy:
    return ENTRANTS[name](bed, settings)


def _grid(**choices: tuple[Any, ...]) -> list[Settings]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


_BOTH = (False, True)
_WITH = (True,)
"""Those whose configurations take long have feedback in all of them: without it every other one lost three times as much to the faking route."""
_COSTS = "--cb_min_cost -1 --cb_max_cost 1"
_RATES = ("", "-l 0.1", "--power_t 0 -l 0.1", "--power_t 0 -l 0.02")
"""Learning rates: VW's own, which falls; a slower one; two that do not fall."""


def configurations() -> dict[str, list[Settings]]:
    """Entrant → the eight that it is tuned over."""
    return {
        "greedy": _grid(feedback=_BOTH, half_life_s=(900.0, 3_600.0), strength=(5.0, 20.0)),
        "epsilon-greedy": _grid(feedback=_BOTH, half_life_s=(900.0, 3_600.0), epsilon=(0.01, 0.03)),
        "UCB 15 min": _grid(feedback=_BOTH, by=("network", "country"), width=(0.03, 0.1)),
        "LinUCB": _grid(feedback=_BOTH, alpha=(0.1, 0.3), half_life_s=(0.0, 3_600.0)),
        "TS bayesianbandits": _grid(feedback=_WITH, half_life_s=(900.0, 1_800.0, 3_600.0, 7_200.0), alpha=(1.0, 5.0)),
        "vw squarecb": _grid(
            feedback=_WITH, explore=("--squarecb --gamma_scale 10", "--squarecb --gamma_scale 50"), options=_RATES
        ),
        "vw regcb": _grid(
            feedback=_WITH,
            explore=(f"--regcbopt --mellowness 0.01 {_COSTS}", f"--regcbopt --mellowness 0.001 {_COSTS}"),
            options=_RATES,
        ),
        "vw cover": _grid(
            feedback=_WITH, explore=("--cover 3 --psi 0.1", "--cover 3 --psi 0.01 --nounif"), options=_RATES
        ),
        OURS: _grid(gamma=(20.0,)),
    }
