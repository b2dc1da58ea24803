"""Discounted logistic regression on hashed features: what the counts cannot know because it lies in the message.

The logit of the counts is the offset, so the weights learn only deviations. State is in natural parameters of a diagonal Gaussian, precision and
precision × mean, without the prior: contributions of nodes add, and forgetting multiplies both (D-LinUCB, Russac et al. 2019; diagonal Laplace,
Chapelle & Li 2011). The prior is added when the mean is taken, and never forgotten.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from controlplane.routing.fading import Fading, Floats
from controlplane.routing.features import BUCKETS, WIDTH
from controlplane.routing.tuning import Tuning

__all__ = ["Model", "logit", "sigmoid"]

_HEADER = struct.Struct("<BQI")
_VERSION = 1
_BATCH = 32


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^−x)."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def logit(p: Floats) -> Floats:
    """ln(p / (1 − p))."""
    return np.asarray(np.log(p / (1.0 - p)))


class Model(Fading):
    """Weights of hashed features. Every feature present has the value 1."""

    def __init__(self, tuning: Tuning) -> None:
        super().__init__((2, BUCKETS), tuning.model_half_life_ms)  # precision; precision × mean
        self._tuning = tuning
        self._prior = WIDTH / tuning.model_sd**2
        self.mean = np.zeros(BUCKETS)
        self.variance = np.full(BUCKETS, 1.0 / self._prior)

    def learn(self, features: NDArray[np.int64], labels: Floats, offsets: Floats, weights: Floats, at_ms: int) -> None:
        """features (n, WIDTH) buckets, labels (n,) in [0, 1], offsets (n,) logits, weights (n,). One Newton step per 32 messages."""
        self._rebase(at_ms)
        grown = np.exp2((at_ms - self._ref) / self._half_life_ms)
        for start in range(0, len(labels), _BATCH):
            index = features[start : start + _BATCH]
            means = self.mean[index]
            p = sigmoid(offsets[start : start + _BATCH] + means.sum(axis=1))
            weight = weights[start : start + _BATCH]
            curvature = np.broadcast_to((self._tuning.damping * weight * p * (1.0 - p))[:, np.newaxis], index.shape)
            pull = (weight * (labels[start : start + _BATCH] - p))[:, np.newaxis] + curvature * means
            np.add.at(self._own[0], index, grown * curvature)
            np.add.at(self._own[1], index, grown * pull)
            touched = np.unique(index)
            self._settle(touched, at_ms)

    def refresh(self, now_ms: int) -> None:
        """Forget up to now: take means and variances of all weights again."""
        self._rebase(now_ms)
        self._settle(np.arange(BUCKETS), now_ms)

    def dump(self, now_ms: int) -> bytes:
        """This node's own contribution as of now: buckets with their two parameters in float32."""
        self._rebase(now_ms)
        state = (self._own * self._scale(now_ms)).astype("<f4")
        kept = np.flatnonzero(state[0] > 1e-4).astype("<u4")
        body = kept.tobytes() + np.ascontiguousarray(state[:, kept]).tobytes()
        return _HEADER.pack(_VERSION, now_ms, len(kept)) + zlib.compress(body, 1)

    def _settle(self, index: NDArray[np.int64], now_ms: int) -> None:
        precision, pulled = (self._own[:, index] + self._others[:, index]) * self._scale(now_ms)
        self.variance[index] = 1.0 / (self._prior + precision)
        self.mean[index] = pulled * self.variance[index]

    def _load(self, state: bytes) -> tuple[int, Floats]:
        try:
            version, at, n = _HEADER.unpack_from(state)
            if version != _VERSION:
                raise ValueError(f"a routing model of version {version}, and only {_VERSION} is known")
            body = zlib.decompress(state[_HEADER.size :])
            index = np.frombuffer(body, "<u4", n)
            values = np.frombuffer(body, "<f4", 2 * n, 4 * n).reshape(2, n)
        except (struct.error, zlib.error) as error:
            raise ValueError("not a dump of the routing model") from error
        if n and int(index.max()) >= BUCKETS:
            raise ValueError("a routing model with more buckets than this one")
        full = np.zeros((2, BUCKETS))
        full[:, index] = values
        return at, full
