"""Off-policy estimators: known answers, coverage, and what switching modes would gain."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.domain.catalog import MessageClass, Route, SenderType
from controlplane.routing import Candidate, Learner, RouteRequest, Terms
from controlplane.routing.evaluate import ESTIMATORS, Log, Sent, bootstrap, effective_size, estimate, gain

NOW = 1_788_220_800_000
TRUE = np.array([[0.2, 0.5, 0.9], [0.8, 0.3, 0.4]])
"""Mean reward by context and action."""
LOGGING = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
TARGET = np.array([[0.1, 0.1, 0.8], [0.9, 0.05, 0.05]])
VALUE = float((TARGET * TRUE).sum(axis=1).mean())


def logged(seed: int, n: int = 4_000, error: float = 0.0) -> Log:
    """Rounds of the logging policy; a model that is `error` too high."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, n)
    a = (rng.random(n)[:, np.newaxis] > LOGGING[x].cumsum(axis=1)).sum(axis=1)
    reward = (rng.random(n) < TRUE[x, a]).astype(float)
    model = TRUE + error
    return Log(reward, TARGET[x, a] / LOGGING[x, a], model[x, a], (TARGET * model).sum(axis=1)[x])


class TestEstimators:
    """Unbiased where they should be; the doubly robust ones with a model that is wrong, too."""

    def test_by_hand(self):
        log = Log(np.array([1.0, 0.0]), np.array([2.0, 0.5]), np.array([0.5, 0.5]), np.array([0.6, 0.4]))
        assert estimate(log, "dm").value == pytest.approx(0.5)
        assert estimate(log, "ips").value == pytest.approx(1.0)
        assert estimate(log, "snips").value == pytest.approx(0.8)
        assert estimate(log, "dr").value == pytest.approx((0.6 + 2 * 0.5 + 0.4 - 0.5 * 0.5) / 2)
        assert estimate(log, "sndr").value == pytest.approx(0.5 + (2 * 0.5 - 0.5 * 0.5) / 2.5)
        assert effective_size(log.weight) == pytest.approx(2.5**2 / 4.25)

    @pytest.mark.parametrize("method", ["ips", "snips", "dr", "sndr", "dros", "switch-dr"])
    def test_near_the_truth_with_a_wrong_model(self, method):
        found = [estimate(logged(seed, error=0.1), method).value for seed in range(30)]
        assert np.mean(found) == pytest.approx(VALUE, abs=0.02)

    def test_the_direct_method_is_as_wrong_as_its_model(self):
        assert estimate(logged(1, error=0.1), "dm").value == pytest.approx(VALUE + 0.1, abs=0.01)

    def test_doubly_robust_varies_less(self):
        spread = {m: np.std([estimate(logged(s), m).value for s in range(30)]) for m in ("ips", "dr")}
        assert spread["dr"] < 0.8 * spread["ips"]

    @pytest.mark.parametrize("method", ["ips", "snips", "dr"])
    def test_intervals_cover(self, method):
        inside = [found.low <= VALUE <= found.high for s in range(100) for found in [estimate(logged(s, 800), method)]]
        assert np.mean(inside) >= 0.88

    def test_bootstrap_agrees(self):
        log = logged(5, 1_000)
        normal, resampled = estimate(log, "dr"), bootstrap(log, "dr", seed=1, rounds=200)
        assert resampled == bootstrap(log, "dr", seed=1, rounds=200)
        assert resampled.high - resampled.low == pytest.approx(normal.high - normal.low, rel=0.25)

    def test_the_same_policy_is_its_own_mean(self):
        log = logged(2)._replace(weight=np.ones(4_000))
        for method in ("ips", "snips"):
            assert estimate(log, method).value == pytest.approx(log.reward.mean())

    def test_refusals(self):
        empty = np.zeros(0)
        with pytest.raises(ValueError, match="no rounds"):
            estimate(Log(empty, empty, empty, empty))
        with pytest.raises(ValueError, match="never"):
            estimate(logged(1)._replace(weight=np.zeros(4_000)), "snips")
        with pytest.raises(KeyError):
            estimate(logged(1), "guess")
        assert set(ESTIMATORS) == {"dm", "ips", "snips", "dr", "sndr", "switch-dr", "dros"}


def sent(*, shadow: bool, n: int = 1_500, seed: int = 1) -> list[Sent]:
    """Messages over a cheap route that delivers 0.6 and a better one, 0.95, decided by a learner that was told so."""
    rng, learner = np.random.default_rng(seed), Learner(node="n")
    delivers = {"cheap": 0.6, "good": 0.95}
    offered = tuple(
        Candidate(Route(name=name, connector=name), price, "", True) for name, price in (("cheap", 2), ("good", 3))
    )
    found = []
    for i in range(n):
        now = NOW + i * 100
        item = RouteRequest("t", "+4915112345678", SenderType.LONG, MessageClass.TRANSACTIONAL, 1, mid=f"m{i}")
        decision = learner.decide([item], [offered], now, Terms(20.0), shadow=shadow)[0]
        for name, p in delivers.items():
            learner.submitted(f"{name}{i}", name, item, now)
            if rng.random() < p:
                learner.receipt(f"{name}{i}", True, now + 400)
        route = "cheap" if shadow else decision.chosen
        found.append(Sent(decision.encoded, route, bool(rng.random() < delivers[route]), 2.0))
    return found


class TestGain:
    """Records and outcomes say what the other order would have earned."""

    def test_shadow(self):
        found = gain(sent(shadow=True)[700:])
        assert found.agreement < 0.2
        assert found.static.value == pytest.approx(20 * 0.6 - 2, abs=0.9)
        assert found.learned.value == pytest.approx(20 * 0.95 - 3, abs=1.5)
        assert found.gain.low > 0
        assert found.learned_delivered - found.static_delivered == pytest.approx(0.35, abs=0.1)

    def test_learned(self):
        found = gain(sent(shadow=False)[700:])
        assert found.learned.value == pytest.approx(20 * 0.95 - 3, abs=0.7)
        assert found.gain.low <= 6.0 <= found.gain.high
        assert found.gain.effective < found.learned.effective

    def test_fallbacks_are_left_out(self):
        items = sent(shadow=False, n=50)
        moved = [item._replace(route="elsewhere") for item in items[:10]]
        assert gain(moved + items[10:]).skipped == 10
        with pytest.raises(ValueError, match="no decisions"):
            gain(moved)
