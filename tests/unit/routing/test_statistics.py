"""Decayed counts: what they estimate, and that the counts of nodes add in any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from controlplane.routing.statistics import (
    CURVE,
    EARLY_GOOD,
    EARLY_TRIES,
    GOOD,
    TRIES,
    WIDTH,
    Statistics,
    bin_of,
    reached,
    share_below,
)
from controlplane.routing.tuning import HOUR, Tuning

NOW = 1_788_220_800_000
BELOW = share_below(600.0)


def add(
    statistics: Statistics, arm: tuple[str, ...], tries: float, good: float, at: int = NOW, seconds: float = 5.0
) -> None:
    row = np.zeros((1, WIDTH))
    row[0, [TRIES, GOOD, EARLY_TRIES, EARLY_GOOD]] = tries, good, tries, good
    row[0, CURVE + bin_of(np.array([seconds]))] = good
    statistics.add(np.array([statistics.chain(*arm)]), np.array([at]), row, np.array([1.0]))


def estimate(statistics: Statistics, arm: tuple[str, ...], now: int = NOW):
    return statistics.estimate(np.array([statistics.chain(*arm)]), BELOW[np.newaxis], share_below(20.0), now)


ARM = ("cheap", "acme", "DE", "O2", "otp")


class TestEstimates:
    """A cell's own outcomes count; where there are few, the level above speaks; both fade with time."""

    def test_nothing_seen_is_the_prior(self):
        found = estimate(Statistics(Tuning()), ARM)
        assert found.p[0] == pytest.approx(0.9, abs=0.01)
        assert found.strength[0] < 10

    def test_many_outcomes_outweigh_the_prior(self):
        statistics = Statistics(Tuning())
        add(statistics, ARM, 2_000, 1_000)
        found = estimate(statistics, ARM)
        assert found.p[0] == pytest.approx(0.5, abs=0.01)
        assert found.strength[0] == pytest.approx(2_000, rel=0.02)

    def test_an_unseen_network_starts_at_its_countrys_level_and_another_country_at_the_routes(self):
        statistics = Statistics(Tuning())
        add(statistics, ARM, 1_000, 500)
        add(statistics, ("cheap", "acme", "FR", "SFR", "otp"), 1_000, 900)
        assert estimate(statistics, ("cheap", "acme", "DE", "Eplus", "otp")).p[0] == pytest.approx(0.5, abs=0.02)
        assert estimate(statistics, ("cheap", "acme", "ES", "Yoigo", "otp")).p[0] == pytest.approx(0.7, abs=0.02)

    def test_a_busy_bad_route_says_little_of_other_carriers(self):
        statistics = Statistics(Tuning())
        other = ("fine", "zeta", "DE", "O2", "otp")
        estimate(statistics, other)
        add(statistics, ARM, 100_000, 30_000)
        assert estimate(statistics, other).p[0] > 0.65
        assert estimate(statistics, ("sister", "acme", "DE", "O2", "otp")).p[0] < 0.65

    def test_a_break_is_forgotten_with_its_half_life(self):
        statistics = Statistics(Tuning())
        add(statistics, ARM, 1_000, 0, at=NOW - 12 * HOUR)
        add(statistics, ARM, 1_000, 1_000, at=NOW)
        assert estimate(statistics, ARM).p[0] > 0.98

    def test_messages_under_way_count_as_evidence(self):
        statistics = Statistics(Tuning())
        add(statistics, ARM, 100, 90)
        before = estimate(statistics, ARM).p[0]
        statistics.evidence[statistics.chain(*ARM)[0]] = 50
        assert estimate(statistics, ARM).p[0] < before - 0.2

    def test_latency_and_curve(self):
        statistics = Statistics(Tuning())
        add(statistics, ARM, 5_000, 5_000, seconds=20.0)
        found = estimate(statistics, ARM)
        assert found.latency[0] == pytest.approx(20.0, rel=0.35)
        assert reached(found.curve, np.array([5.0]))[0] < 0.05
        assert reached(found.curve, np.array([60.0]))[0] > 0.95

    def test_reset_keeps_the_new_level_and_little_certainty(self):
        statistics = Statistics(Tuning())
        add(statistics, ARM, 3_000, 2_850)
        statistics.reset(statistics.chain(*ARM)[:4], NOW, strength=30.0, ratio=0.75, mute_ms=HOUR)
        found = estimate(statistics, ARM)
        assert found.p[0] == pytest.approx(0.95 * 0.75, abs=0.05)
        assert found.strength[0] < 60

    def test_a_full_table_still_answers(self):
        statistics = Statistics(Tuning(cells=8))
        for n in range(20):
            add(statistics, (f"r{n}", "acme", "DE", "O2", "otp"), 10, 10)
        assert 0.5 < estimate(statistics, ("r19", "acme", "DE", "O2", "otp")).p[0] < 1.0


events = hs.lists(
    hs.tuples(
        hs.sampled_from(["a", "b"]),
        hs.sampled_from(["DE", "FR"]),
        hs.integers(0, 50),
        hs.integers(0, 50),
        hs.integers(0, 10),
    ),
    max_size=8,
)


def node_of(found, at: int = NOW) -> bytes:
    statistics = Statistics(Tuning())
    for route, country, tries, good, hours in found:
        add(statistics, (route, "acme", country, "", "otp"), tries, min(good, tries), at - hours * HOUR)
    return statistics.dump(at)


class TestMerging:
    """Contributions of nodes add; the newest of each counts, whatever the order or the repeats."""

    @settings(max_examples=25, deadline=None)
    @given(hs.lists(events, min_size=1, max_size=3), hs.randoms(use_true_random=False))
    def test_commutes_and_is_idempotent(self, nodes, random):
        dumps = [(f"n{i}", node_of(found, NOW - i)) for i, found in enumerate(nodes)]
        shuffled = [*dumps, *dumps]
        random.shuffle(shuffled)
        results = []
        for order in (dumps, shuffled):
            statistics = Statistics(Tuning())
            for name, dump in order:
                statistics.merge(name, dump, NOW)
            results.append(
                [estimate(statistics, (r, "acme", c, "", "otp")).p[0] for r, c in itertools.product("ab", ("DE", "FR"))]
            )
        assert results[0] == results[1]

    def test_peers_add_to_what_a_node_saw_itself_and_are_not_passed_on(self):
        one, two, both = (Statistics(Tuning()) for _ in range(3))
        add(one, ARM, 100, 90)
        add(two, ARM, 300, 30)
        add(both, ARM, 100, 90)
        add(both, ARM, 300, 30)
        before = one.dump(NOW)
        assert one.merge("two", two.dump(NOW), NOW)
        assert estimate(one, ARM).p[0] == pytest.approx(estimate(both, ARM).p[0], abs=1e-6)
        assert one.dump(NOW) == before

    def test_an_older_state_is_not_taken(self):
        one, two = Statistics(Tuning()), Statistics(Tuning())
        add(two, ARM, 100, 10, at=NOW)
        old, new = two.dump(NOW), two.dump(NOW + 1)
        assert one.merge("two", new, NOW)
        assert not one.merge("two", old, NOW)
        assert not one.merge("two", new, NOW)

    def test_peers_are_muted_after_a_break_seen_here(self):
        one, two = Statistics(Tuning()), Statistics(Tuning())
        add(one, ARM, 1_000, 950)
        add(two, ARM, 5_000, 4_750)
        one.merge("two", two.dump(NOW), NOW)
        one.reset(one.chain(*ARM)[:4], NOW, strength=30.0, ratio=0.2, mute_ms=HOUR)
        assert estimate(one, ARM).p[0] < 0.5
        assert estimate(one, ARM, NOW + 2 * HOUR).p[0] > 0.8

    @settings(max_examples=25, deadline=None)
    @given(events)
    def test_restore_of_a_dump_is_the_same(self, found):
        dump = node_of(found)
        restored = Statistics(Tuning())
        restored.restore(dump)
        assert restored.dump(NOW) == dump

    @pytest.mark.parametrize("state", [b"", b"\x09" + b"\0" * 20, b"\x01" + b"\0" * 12 + b"junk"])
    def test_what_is_no_dump_is_refused(self, state):
        with pytest.raises(ValueError):
            Statistics(Tuning()).merge("two", state, NOW)
