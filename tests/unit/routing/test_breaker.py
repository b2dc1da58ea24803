"""Breakers: what is broken is seen in seconds, what is not is left alone. Rates by seeded simulation."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from controlplane.routing.breaker import CLOSED, HALF_OPEN, OPEN, Alarm, Breakers, silence_gain
from controlplane.routing.tuning import Tuning

TUNING = Tuning()
USUAL = 0.86
"""Share of receipts within 20 s of a good route: 95 % delivered, 90 % of receipts by then."""


def watched(seed: int, p: float, messages: int, batch: int = 10) -> tuple[list[Alarm], int]:
    """Alarms of a route that used to show USUAL and now shows p; messages until the first."""
    rng, breakers = np.random.default_rng(seed), Breakers(TUNING)
    cells = breakers.cell("r"), breakers.cell("r\tDE\tO2")
    layers = np.tile(np.array([[cells[0]], [cells[1]]]), (1, batch))
    usual = np.full(batch, USUAL)
    for n in range(0, messages, batch):
        alarms = breakers.early(layers, np.full(batch, n), usual, rng.random(batch) < p, n)
        if alarms:
            return alarms, n + batch
    return [], messages


class TestBrownOut:
    """−20 points of delivery are seen within a minute at 10 messages a second; noise and small drifts are not alarms."""

    def test_detection(self):
        falls = [watched(seed, USUAL * 0.75 / 0.95, 2_000) for seed in range(40)]
        assert all(alarms[0].kind == "brownout" for alarms, _ in falls)
        taken = np.array([n for _, n in falls])
        assert np.median(taken) <= 250  # and 20 s until the first has come to the mark: 45 s at 10 a second
        assert np.quantile(taken, 0.9) <= 400
        assert np.mean([alarms[0].ratio for alarms, _ in falls]) == pytest.approx(0.79, abs=0.05)

    @pytest.mark.parametrize("p", [USUAL, USUAL - 0.03])
    def test_false_alarms(self, p):
        assert watched(7, p, 100_000, batch=50) == ([], 100_000)

    def test_recovery(self):
        alarms, taken = watched(3, 0.97, 4_000)
        assert alarms[0].kind == "recovery"
        assert alarms[0].ratio > 1
        assert taken < 2_000

    def test_next_to_nothing_left_opens(self):
        alarms, taken = watched(3, 0.02, 1_000)
        assert (alarms[0].kind, alarms[0].opened) == ("silence", True)
        assert taken <= 20


class TestRefusals:
    """A carrier that refuses is left at once; a refusal now and then is nothing."""

    def test_five_in_a_row(self):
        breakers = Breakers(TUNING)
        cells = breakers.cell("r"), breakers.cell("r\tDE\t")
        for _ in range(100):
            assert not breakers.submit(cells, 0, accepted=True)
        found = [bool(breakers.submit(cells, 1_000, accepted=False)) for _ in range(5)]
        assert found == [False, False, False, False, True]
        assert breakers.state[list(cells)].tolist() == [OPEN, OPEN]

    def test_one_in_fifty(self):
        rng, breakers = np.random.default_rng(5), Breakers(TUNING)
        cells = breakers.cell("r"), breakers.cell("r\tDE\t")
        assert not any(breakers.submit(cells, n, accepted=bool(rng.random() > 0.02)) for n in range(50_000))


class TestSilence:
    """Some ten certain receipts that do not come open the breaker; a share that comes keeps it closed."""

    def test_gain(self):
        gain = silence_gain(np.array([0.95, 0.95, 0.0]), np.array([False, True, False]))
        assert gain[0] == pytest.approx(1.8, abs=0.1)
        assert gain[1] < -2
        assert gain[2] == 0

    @pytest.mark.parametrize(("seen", "state"), [(0, OPEN), (8, CLOSED), (14, CLOSED)])
    def test_opens(self, seen, state):
        breakers = Breakers(TUNING)
        cell = breakers.cell("r")
        came = np.arange(16) < seen
        gains = np.full((1, 1), silence_gain(np.full(16, 0.9), came).sum())
        breakers.silent(gains, np.full((1, 1), 14.4), np.full((1, 1), float(seen)), 0)
        assert breakers.state[cell] == state


def silent_seconds(seed: int, rate: float, seconds: int, *, p: float, believed: float, out: int) -> np.ndarray:
    """Seconds at which silence would open a route's breaker: `rate` messages a second, lognormal receipts of a share p until `out`, then none.

    Each second is a breaker of its own, so that one alarm hides no other.
    """
    rng, breakers = np.random.default_rng(seed), Breakers(TUNING)
    windows = np.array(TUNING.silence_windows_ms) // 1_000
    count = rng.poisson(rate, seconds)
    submitted = np.repeat(np.arange(seconds), count)
    comes = (rng.random(len(submitted)) < p) & (submitted < out)
    age = np.where(comes, 6.0 * np.exp(0.8 * rng.standard_normal(len(submitted))), np.inf)
    curve = np.array([NormalDist().cdf(np.log((a + 0.5) / 6.0) / 0.8) for a in range(windows[-1])])
    sums = np.zeros((3, len(windows), seconds))
    running = np.zeros((3, seconds))
    for a, share in enumerate(curve):
        heard = np.bincount(submitted[age <= a + 0.5], minlength=seconds)[: seconds - a]
        chance, sent = np.full(1, believed * share), count[: seconds - a]
        miss, hit = (float(silence_gain(chance, np.array([seen]))[0]) for seen in (False, True))
        running[:, a:] += (sent - heard) * miss + heard * hit, sent * chance[0], heard
        sums[:, windows > a] = running[:, np.newaxis]
    for second in range(seconds):
        breakers.cell(str(second))
    return np.array([alarm.cell for alarm in breakers.silent(*sums, 0)])


class TestSilenceOverTime:
    """An outage is seen in some ten seconds at three messages a second, and a healthy route is left alone."""

    @pytest.mark.parametrize(("rate", "within"), [(1.0, 22), (3.0, 12), (10.0, 8)])
    def test_outage(self, rate, within):
        seen = [silent_seconds(seed, rate, 180, p=0.8, believed=0.8, out=100).min() - 100 + 1 for seed in range(15)]
        assert np.median(seen) <= within

    @pytest.mark.parametrize("rate", [0.1, 1.0, 5.0])
    def test_false_alarms(self, rate):
        seconds = 30_000  # a twentieth of a week, and the belief is 5 % too good
        assert not len(silent_seconds(1, rate, seconds, p=0.8, believed=0.84, out=seconds))


class TestStates:
    """Open for a pause that doubles, half-open until probes decide."""

    def opened(self) -> tuple[Breakers, tuple[int, int]]:
        breakers = Breakers(TUNING)
        cells = breakers.cell("r"), breakers.cell("r\tDE\t")
        for _ in range(5):
            breakers.submit(cells, 0, accepted=False)
        return breakers, cells

    def test_half_open_after_the_pause_and_closed_by_good_probes(self):
        breakers, cells = self.opened()
        breakers.tick(TUNING.open_ms - 1)
        assert breakers.state[cells[0]] == OPEN
        breakers.tick(TUNING.open_ms)
        assert breakers.state[cells[0]] == HALF_OPEN
        alarms = [alarm for _ in range(3) for alarm in breakers.submit(cells, TUNING.open_ms + 1, accepted=True)]
        assert {alarm.kind for alarm in alarms} == {"closed"}
        assert breakers.state[cells[0]] == CLOSED

    def test_a_bad_probe_opens_it_for_twice_as_long(self):
        breakers, cells = self.opened()
        breakers.tick(TUNING.open_ms)
        assert breakers.submit(cells, TUNING.open_ms, accepted=False)[0].kind == "probes_failed"
        breakers.tick(3 * TUNING.open_ms - 1)
        assert breakers.state[cells[0]] == OPEN
        breakers.tick(3 * TUNING.open_ms)
        assert breakers.state[cells[0]] == HALF_OPEN

    def test_messages_of_before_say_nothing_about_a_probe(self):
        breakers = Breakers(TUNING)
        cell = breakers.cell("r")
        layers = np.array([[cell], [breakers.cell("r\tDE\t")]])
        for _ in range(40):
            breakers.early(layers, np.array([0]), np.array([USUAL]), np.array([False]), 100)
        assert breakers.state[cell] == OPEN
        breakers.tick(10**6)
        for _ in range(50):
            breakers.early(layers, np.array([0]), np.array([USUAL]), np.array([False]), 10**6 + 1)
        assert breakers.state[cell] == HALF_OPEN
        for _ in range(2):
            breakers.early(layers, np.array([10**6]), np.array([USUAL]), np.array([True]), 10**6 + 1)
        assert breakers.state[cell] == CLOSED
