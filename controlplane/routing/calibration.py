"""Whether what was said came true: a map from predicted to observed P(delivered in time), per class, learned from what was chosen.

Among many routes the one that is chosen is more often one that was thought too good than too bad (the optimizer's curse: Smith & Winkler 2006), because
counts and content model each have noise of their own. So what was expected of chosen routes is compared with what became of it: a piecewise-linear
shift of the logit (Platt 1999, with more than one slope) by a discounted logistic regression on hat functions. A class's shift is drawn to that of
all classes, that one to none, and each knot to its neighbours. The map never falls. It holds for what was chosen, so it is not used to compare routes.
State is in natural parameters, as the content model's: contributions of nodes add.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.fading import Fading, Floats
from controlplane.routing.model import logit, sigmoid
from controlplane.routing.tuning import Tuning

__all__ = ["Calibration"]

Ints = NDArray[np.int64]
_KNOTS = np.array([-2.0, 0.0, 1.0, 2.0, 3.0, 4.0])
"""Logits at which the shift is learned: 12 % to 98 %; constant outside."""
_N = len(_KNOTS)
_INSIDE = 0.02, 0.99
"""What is thought more certain than this is taken as this."""
_SLOPE = 0.1
"""The map rises at least so much."""
_HEADER = struct.Struct("<BQ")
_VERSION = 1


class Calibration(Fading):
    """One map per class of the tuning."""

    def __init__(self, tuning: Tuning) -> None:
        self._classes = {cls: n for n, cls in enumerate(tuning.classes)}
        shape = len(self._classes), _N, _N + 1  # precision matrix, and precision × mean
        super().__init__(shape, tuning.calibration_half_life_ms)
        steps = np.diff(np.eye(_N), axis=0)
        self._prior = tuning.calibration_strength * (np.eye(_N) + 2.0 * steps.T @ steps)
        self._bond = tuning.calibration_bond * self._prior
        self._shift = np.zeros((len(self._classes), _N))

    def number(self, cls: str) -> int:
        """Of a class, for `apply`."""
        return self._classes[cls]

    def apply(self, classes: Ints, chances: Floats) -> Floats:
        """Calibrated probabilities: classes (n,) numbers, chances (n, …) as predicted."""
        found = logit(np.clip(chances, *_INSIDE))
        for number in np.unique(classes):
            mine = classes == number
            found[mine] += np.interp(found[mine], _KNOTS, self._shift[number])
        return sigmoid(found)

    def learn(self, cls: str, chances: Floats, labels: Floats, weights: Floats, at_ms: int) -> None:
        """What became of messages: chances (n,) as predicted before anything was known of them, labels (n,) with their means, weights (n,).

        A label may be above one: a receipt stands for more than one delivery where some go missing. One Newton step; `refresh` takes it.
        """
        self._rebase(at_ms)
        logits = logit(np.clip(chances, *_INSIDE))
        number, hats = self._classes[cls], _hats(logits)
        shift = hats @ self._shift[number]
        p = sigmoid(logits + shift)
        curvature = weights * p * (1.0 - p)
        own = self._own[number]
        grown = float(np.exp2((at_ms - self._ref) / self._half_life_ms))
        own[:, :_N] += grown * (hats.T @ (hats * curvature[:, np.newaxis]))
        own[:, _N] += grown * (hats.T @ (weights * (labels - p) + curvature * shift))

    def refresh(self, now_ms: int) -> None:
        """Take all shifts again, as of now."""
        self._rebase(now_ms)
        known = (self._own + self._others) * self._scale(now_ms)
        every = known.sum(axis=0)
        common = np.linalg.solve(self._prior + every[:, :_N], every[:, _N])
        shift = np.linalg.solve(self._bond + known[:, :, :_N], (known[:, :, _N] + self._bond @ common)[..., np.newaxis])
        least = _SLOPE * _KNOTS
        self._shift = np.maximum.accumulate(_KNOTS + shift[..., 0] - least, axis=1) + least - _KNOTS

    def dump(self, now_ms: int) -> bytes:
        """This node's own contribution as of now, in float32."""
        self._rebase(now_ms)
        return _HEADER.pack(_VERSION, now_ms) + (self._own * self._scale(now_ms)).astype("<f4").tobytes()

    def _load(self, state: bytes) -> tuple[int, Floats]:
        if len(state) != _HEADER.size + 4 * self._own.size:
            raise ValueError("not a dump of the calibration")
        version, at = _HEADER.unpack_from(state)
        if version != _VERSION:
            raise ValueError(f"a calibration of version {version}, and only {_VERSION} is known")
        own = np.frombuffer(state, "<f4", offset=_HEADER.size).astype(np.float64).reshape(self._own.shape)
        if not np.isfinite(own).all():
            raise ValueError("a calibration with numbers that are none")
        return at, own


def _hats(logits: Floats) -> Floats:
    """(n, knots): weights of the two knots around each logit."""
    inside = np.clip(logits, _KNOTS[0], _KNOTS[-1])
    left = np.clip(np.searchsorted(_KNOTS, inside) - 1, 0, _N - 2)
    share = (inside - _KNOTS[left]) / (_KNOTS[left + 1] - _KNOTS[left])
    found = np.zeros((len(logits), _N))
    rows = np.arange(len(logits))
    found[rows, left], found[rows, left + 1] = 1.0 - share, share
    return found
