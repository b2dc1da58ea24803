"""The calibration corrects what is said of chosen routes: the optimizer's curse, and what is wrong of a class as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.routing.calibration import Calibration
from controlplane.routing.model import logit, sigmoid
from controlplane.routing.tuning import HOUR, Tuning

NOW = 1_788_220_800_000


def chosen(seed: int, n: int, *, routes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """What is expected of the best-looking of some alike routes, whose estimates have noise; and what is true of it."""
    rng = np.random.default_rng(seed)
    true = sigmoid(rng.normal(2.0, 0.3, (n, routes)))
    guess = sigmoid(logit(true) + rng.normal(0.0, 0.6, true.shape))
    best = guess.argmax(axis=1)
    rows = np.arange(n)
    return guess[rows, best], true[rows, best]


def taught(seed: int, *, cls: str = "otp", n: int = 20_000, worth: float = 1.0) -> Calibration:
    """Of messages that were delivered as is true, and of which a receipt came for one in `worth`."""
    calibration = Calibration(Tuning())
    rng = np.random.default_rng(seed)
    for step in range(0, n, 200):
        expected, true = chosen(seed + step, 200)
        labels = (rng.random(200) < true / worth) * worth
        calibration.learn(cls, expected, labels, np.ones(200), NOW + step)
        calibration.refresh(NOW + step)
    return calibration


def apply(calibration: Calibration, chances: np.ndarray, cls: str = "otp") -> np.ndarray:
    return calibration.apply(np.full(len(chances), calibration.number(cls)), chances)


class TestCalibration:
    """Expected and observed agree, over the whole range."""

    def test_says_at_first_what_it_is_told(self):
        chances = np.linspace(0.05, 0.95, 19)
        assert apply(Calibration(Tuning()), chances) == pytest.approx(chances)
        assert apply(Calibration(Tuning()), np.array([0.0, 1.0])) == pytest.approx([0.02, 0.99])

    @pytest.mark.parametrize("worth", [1.0, 1.25])
    def test_takes_the_optimizers_curse_out(self, worth):
        calibration = taught(3, worth=worth)
        expected, true = chosen(4_000_000, 20_000)
        assert (expected - true).mean() > 0.03
        said = apply(calibration, expected)
        for part in np.array_split(np.argsort(expected), 10):
            assert said[part].mean() == pytest.approx(true[part].mean(), abs=0.02)

    def test_never_falls(self):
        rng, calibration = np.random.default_rng(1), Calibration(Tuning())
        expected = rng.uniform(0.1, 0.98, 5_000)
        calibration.learn("otp", expected, (expected < 0.5).astype(float), np.ones(5_000), NOW)
        calibration.refresh(NOW)
        assert (np.diff(apply(calibration, np.linspace(0.03, 0.98, 200))) > 0).all()

    def test_a_class_of_which_little_is_known_is_as_all_are(self):
        calibration = taught(3)
        expected, true = chosen(4_000_000, 20_000)
        error = abs((apply(calibration, expected, "marketing") - true).mean())
        assert error < 0.5 * abs((expected - true).mean())

    def test_forgets(self):
        calibration = taught(3)
        calibration.refresh(NOW + 30 * 24 * HOUR)
        chances = np.linspace(0.1, 0.9, 9)
        assert apply(calibration, chances) == pytest.approx(chances, abs=0.002)


class TestSharing:
    """Nodes add, and a restart loses nothing."""

    def test_two_nodes_know_what_one_would(self):
        one, two, both = Calibration(Tuning()), Calibration(Tuning()), Calibration(Tuning())
        for seed, mine in ((3, one), (5, two)):
            expected, true = chosen(seed, 500)
            for calibration in (mine, both):
                calibration.learn("otp", expected, true, np.ones(500), NOW)
        dump = two.dump(NOW)
        assert one.merge("two", dump, NOW)
        assert not one.merge("two", dump, NOW)
        for calibration in (one, both):
            calibration.refresh(NOW)
        chances = np.linspace(0.5, 0.97, 20)
        assert apply(one, chances) == pytest.approx(apply(both, chances), abs=1e-4)

    def test_a_peer_whose_clock_is_ahead_weighs_what_others_weigh(self):
        one, other, later = taught(3), taught(3), NOW + 30_000
        dump = taught(5).dump(NOW + 1_000 * HOUR)
        assert one.merge("ahead", dump, later)
        assert other.merge("right", taught(5).dump(later), later)
        for calibration in (one, other):
            calibration.refresh(later)
        chances = np.linspace(0.5, 0.97, 20)
        assert apply(one, chances) == pytest.approx(apply(other, chances), abs=0.05)
        broken = dump[:-4] + np.array([np.nan], "<f4").tobytes()
        with pytest.raises(ValueError, match="none"):
            one.merge("broken", broken, later)

    def test_restore_of_a_dump_is_the_same(self):
        one, two = taught(3), Calibration(Tuning())
        later = NOW + 30_000
        two.restore(one.dump(later))
        one.refresh(later)
        assert two.dump(later) == one.dump(later)
        chances = np.linspace(0.1, 0.9, 9)
        assert apply(two, chances) == pytest.approx(apply(one, chances), abs=1e-4)

    def test_what_is_no_dump_is_refused(self):
        whole = Calibration(Tuning()).dump(NOW)
        for state in (b"", whole[:-4], b"\x07" + whole[1:]):
            with pytest.raises(ValueError):
                Calibration(Tuning()).restore(state)
