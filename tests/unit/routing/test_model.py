"""The content model learns deviations from the counts, forgets, and adds over nodes."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.routing.features import BUCKETS, WIDTH
from controlplane.routing.model import Model, logit, sigmoid
from controlplane.routing.tuning import HOUR, Tuning

NOW = 1_788_220_800_000


def rows(rng, n: int, *, url: bool) -> np.ndarray:
    """Buckets of messages: one tells of the URL, the others are alike for both kinds or noise."""
    found = np.tile(np.arange(WIDTH) * 7, (n, 1))
    found[:, 0] = 9_000 + url
    found[:, 1] = 10_000 + rng.integers(0, 50, n)
    return found


def teach(model: Model, seed: int, n: int = 3_000, at: int = NOW) -> None:
    """Messages with a URL are delivered at 0.5, the others at 0.97; the counts say 0.735 of both."""
    rng = np.random.default_rng(seed)
    url = rng.random(2 * n) < 0.5
    index = np.where(url[:, np.newaxis], rows(rng, 2 * n, url=True), rows(rng, 2 * n, url=False))
    labels = (rng.random(2 * n) < np.where(url, 0.5, 0.97)).astype(float)
    model.learn(index, labels, np.full(2 * n, float(logit(np.array(0.735)))), np.ones(2 * n), at)


def chance(model: Model, *, url: bool) -> float:
    index = rows(np.random.default_rng(1), 200, url=url)
    return float(sigmoid(logit(np.array(0.735)) + model.mean[index].sum(axis=1)).mean())


class TestModel:
    """Weights are deviations from the offset, with a prior at none."""

    def test_knows_nothing_at_first(self):
        model = Model(Tuning())
        assert not model.mean.any()
        assert model.variance[:WIDTH].sum() == pytest.approx(Tuning().model_sd ** 2)

    def test_learns_what_lies_in_the_content(self):
        model = Model(Tuning())
        teach(model, 3)
        assert chance(model, url=True) == pytest.approx(0.5, abs=0.08)
        assert chance(model, url=False) == pytest.approx(0.97, abs=0.05)

    def test_is_stable_when_all_that_comes_at_once_is_alike(self):
        model = Model(Tuning())
        index = np.tile(np.arange(WIDTH), (5_000, 1))
        model.learn(index, np.full(5_000, 0.8), np.zeros(5_000), np.ones(5_000), NOW)
        assert float(sigmoid(model.mean[:WIDTH].sum())) == pytest.approx(0.8, abs=0.02)

    def test_forgets(self):
        model = Model(Tuning())
        teach(model, 3)
        model.refresh(NOW + 30 * 24 * HOUR)
        assert chance(model, url=True) == pytest.approx(0.735, abs=0.01)

    def test_nodes_add(self):
        one, two = Model(Tuning()), Model(Tuning())
        teach(one, 3)
        teach(two, 4)
        dump = two.dump(NOW)
        assert one.merge("two", dump, NOW)
        assert not one.merge("two", dump, NOW)
        one.refresh(NOW)
        assert chance(one, url=True) == pytest.approx(0.5, abs=0.08)
        assert one.variance.min() < two.variance.min()

    def test_restore_of_a_dump_is_the_same(self):
        one, two = Model(Tuning()), Model(Tuning())
        teach(one, 3, 100)
        two.restore(one.dump(NOW))
        assert two.dump(NOW) == one.dump(NOW)

    def test_what_is_no_dump_is_refused(self):
        for state in (b"", b"\x01" + b"\0" * 12, b"\x07" + b"\0" * 12):
            with pytest.raises(ValueError):
                Model(Tuning()).restore(state)
        assert BUCKETS == 1 << 14
