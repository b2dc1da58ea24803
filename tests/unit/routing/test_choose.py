"""The choice: exact propensities within the class's budget, only plausible routes, and the same bits from the same record."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from controlplane.routing.choose import EXCLUDED, FRESH, NO_BIND, OPEN_BREAKER, PROBE, YOUNG, Inputs, Rules, pick, weigh

BUDGETS = (0.005, 0.01, 0.05)


def rules_of(n: int, rng, *, near: bool | None = None) -> Rules:
    return Rules(
        rng.uniform(5, 60, n),
        rng.choice([0.0, 1.0], n),
        rng.uniform(0, 0.1, n),
        rng.choice(BUDGETS, n),
        np.full(n, 20.0),
        rng.choice([0.02, 0.05, 0.1], n),
        np.full(n, 0.01),
        rng.choice([0.5, 1.0], n),
        rng.random(n) < 0.5 if near is None else np.full(n, near),
    )


def inputs_of(n: int, k: int, rng, flags: np.ndarray | None = None) -> Inputs:
    p = rng.uniform(0.3, 0.99, (n, k))
    half = rng.uniform(0, 0.3, (n, k))
    if flags is None:
        flags = rng.choice([0, 0, 0, 0, NO_BIND, OPEN_BREAKER, PROBE, YOUNG, FRESH], (n, k))
    return Inputs(
        p,
        p - np.minimum(half, p),
        np.minimum(p + half, 1.0),
        rng.uniform(0, 60, (n, k)),
        rng.integers(0, 20, (n, k)).astype(float),
        flags,
        np.arange(k) < rng.integers(1, k + 1, (n, 1)),
    )


def one(p, price, *, low=None, high=None, flags=None, value=20.0, budget=0.05, near=False, delta=0.05, young_share=0.8):
    p, price = np.array([p]), np.array([price], dtype=float)
    rules = Rules(
        *(np.array([x]) for x in (value, 1.0, 0.0, budget, 20.0, delta, 0.01, young_share)),
        near_equals=np.array([near]),
    )
    return weigh(
        rules,
        Inputs(
            p,
            p - 0.01 if low is None else np.array([low]),
            p + 0.01 if high is None else np.array([high]),
            np.zeros_like(p),
            price,
            np.zeros(p.shape, dtype=np.int64) if flags is None else np.array([flags]),
            np.ones(p.shape, dtype=bool),
        ),
    )


class TestPropensities:
    """They sum to one, explore only what may be as good, and stay within the budget, first messages of new routes and probes included."""

    @settings(max_examples=60, deadline=None)
    @given(hs.integers(0, 2**32), hs.integers(1, 12))
    def test_properties(self, seed, k):
        rng = np.random.default_rng(seed)
        rules, inputs = rules_of(50, rng), inputs_of(50, k, rng)
        weighed = weigh(rules, inputs)
        rows = np.arange(50)
        assert weighed.propensity.sum(axis=1) == pytest.approx(1.0)
        assert (weighed.propensity >= 0).all()
        assert not weighed.propensity[~inputs.there].any()
        young = (inputs.flags & YOUNG != 0) & (weighed.utility > weighed.utility[rows, weighed.best][:, np.newaxis])
        explored = weighed.propensity.copy()
        explored[rows, weighed.best] = 0.0
        assert (explored.sum(axis=1) <= rules.budget + 1e-12).all()
        assert (np.where(young, explored, 0).sum(axis=1) <= rules.budget * rules.young_share + 1e-12).all()
        usable = inputs.there & (inputs.flags & EXCLUDED == 0)
        alternatives = usable.any(axis=1)
        assert not (weighed.propensity[alternatives] * ~usable[alternatives]).any()

    @settings(max_examples=20, deadline=None)
    @given(hs.integers(0, 2**32))
    def test_padding_changes_no_bit(self, seed):
        rng = np.random.default_rng(seed)
        rules, inputs = rules_of(20, rng), inputs_of(20, 9, rng)
        together = weigh(rules, inputs)
        for i in range(20):
            n = int(inputs.there[i].sum())
            alone = weigh(Rules(*(x[i : i + 1] for x in rules)), Inputs(*(x[i : i + 1, :n] for x in inputs)))
            assert alone.utility.tobytes() == np.ascontiguousarray(together.utility[i, :n]).tobytes()
            assert alone.propensity.tobytes() == np.ascontiguousarray(together.propensity[i, :n]).tobytes()
            assert alone.need[0] == together.need[i]
            assert alone.order[0].tolist() == together.order[i, :n].tolist()

    def test_inverse_gap(self):
        found = one([0.95, 0.93, 0.91, 0.50], [4, 4, 4, 4], budget=1.0)
        gap = (0.95 - 0.93, 0.95 - 0.91)
        assert found.propensity[0, 1] == pytest.approx(1 / (3 + 20 * gap[0]))
        assert found.propensity[0, 2] == pytest.approx(1 / (3 + 20 * gap[1]))
        assert found.propensity[0, 3] == 0.0

    def test_near_equals_only(self):
        wide = {"low": [0.9, 0.2, 0.2], "high": [0.99, 0.99, 0.99]}
        loose = one([0.95, 0.94, 0.6], [4, 4, 4], **wide)
        strict = one([0.95, 0.94, 0.6], [4, 4, 4], **wide, near=True, delta=0.02)
        assert loose.propensity[0, 2] > 0
        assert strict.propensity[0, 2] == 0
        assert strict.propensity[0, 1] > 0

    def test_a_young_route_that_looks_better_gets_its_share_and_no_more(self):
        found = one([0.9, 0.97, 0.91, 0.9], [4, 3, 3, 4], flags=[0, YOUNG, YOUNG, 0])
        assert found.best[0] == 0
        assert found.propensity[0, 1] == found.propensity[0, 2] == pytest.approx(0.02)
        assert found.propensity[0, 3] == pytest.approx(0.01)
        alone = one([0.9, 0.97], [4, 3], flags=[OPEN_BREAKER, YOUNG])
        assert alone.propensity[0].tolist() == [0.0, 1.0]

    def test_a_fresh_route_is_taken_at_its_best(self):
        wide = {"low": [0.88, 0.6, 0.5], "high": [0.92, 0.98, 0.97]}
        assert one([0.9, 0.85, 0.8], [4, 4, 4], flags=[0, FRESH, FRESH], **wide).best[0] == 1
        assert one([0.9, 0.85, 0.8], [4, 4, 4], flags=[0, 0, FRESH], **wide).best[0] == 2
        assert one([0.9, 0.85, 0.8], [4, 4, 4], **wide).best[0] == 0

    def test_probes_are_paid_from_the_budget(self):
        found = one([0.9, 0.97], [4, 3], flags=[0, PROBE], budget=0.01)
        assert found.best[0] == 0
        assert found.propensity[0, 1] == pytest.approx(0.01)

    def test_with_nothing_usable_all_are_used(self):
        assert one([0.9, 0.97], [4, 3], flags=[OPEN_BREAKER, OPEN_BREAKER]).best[0] == 1
        assert one([0.9, 0.97], [4, 3], flags=[NO_BIND, NO_BIND]).best[0] == 1
        assert one([0.9, 0.97], [4, 3], flags=[NO_BIND, OPEN_BREAKER]).best[0] == 1

    def test_fallback_order(self):
        found = one([0.9, 0.99, 0.8, 0.95, 0.7], [4, 4, 4, 4, 4], flags=[0, NO_BIND, 0, OPEN_BREAKER, PROBE])
        assert found.order[0].tolist() == [0, 2, 4, 3, 1]


class TestPick:
    """A seed chooses with the propensities' frequencies, and always the same."""

    def test_frequencies(self):
        propensity = [0.02, 0.9, 0.0, 0.08]
        seeds = np.random.default_rng(4).integers(0, 2**64, 50_000, dtype=np.uint64).tolist()
        counts = np.bincount([pick(propensity, 1, seed) for seed in seeds], minlength=4) / len(seeds)
        assert counts == pytest.approx(propensity, abs=0.005)
        assert counts[2] == 0

    def test_extremes(self):
        assert pick([0.1, 0.9], 1, 0) == 1
        assert pick([0.1, 0.9], 1, 2**64 - 1) == 0
        assert pick([1.0], 0, 2**64 - 1) == 0


class TestConservative:
    """The constraint asks for a saved surplus before a message may explore."""

    def test_need(self):
        found = one([0.95, 0.94], [4, 4], low=[0.9, 0.7])
        static = 20 * 0.95 - 4
        assert found.floor[0] == pytest.approx(0.99 * static)
        assert found.need[0] == pytest.approx(0.99 * static - (20 * 0.7 - 4))
        assert one([0.95], [4]).need[0] == 0.0
