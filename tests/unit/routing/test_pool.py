"""Messages under way: each passes each mark once, and what is thinned out is still counted."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.routing.features import WIDTH
from controlplane.routing.pool import DELIVERED, EXPIRED, PENDING, Pool
from controlplane.routing.tuning import ClassTuning, Terms

HASHES = np.zeros(WIDTH, dtype=np.uint64)


def pool_of(capacity: int = 4_096, **values) -> Pool:
    tuning = ClassTuning(
        **{
            "deadline_ms": 600,
            "mature_ms": 100,
            "remember_ms": 5_000,
            "budget": 0.01,
            "delta": 0.05,
            "terms": Terms(1.0),
            **values,
        }
    )
    return Pool(tuning, early_ms=20, capacity=capacity)


class TestMarks:
    """A mark is passed at its age, in the order of submits."""

    def test_each_once(self):
        pool = pool_of()
        for n in range(10):
            pool.add(f"m{n}", n, HASHES, n * 10)
        assert pool.pass_mark("early", 19).tolist() == []
        assert pool.pass_mark("early", 20).tolist() == [0]
        assert pool.pass_mark("early", 55).tolist() == [1, 2, 3]
        assert pool.pass_mark("early", 55).tolist() == []
        assert pool.pass_mark("due", 690).tolist() == list(range(10))
        assert pool.open_from() == 10

    def test_told_late_passes_late_but_never_early(self):
        pool = pool_of()
        pool.add("new", 0, HASHES, 1_000)
        pool.add("old", 1, HASHES, 0)
        assert pool.pass_mark("due", 1_500).tolist() == []
        assert pool.pass_mark("due", 1_600).tolist() == [0, 1]

    def test_submitted_again_starts_again(self):
        pool = pool_of()
        pool.add("m", 1, HASHES, 0)
        pool.add("m", 2, HASHES, 50)
        position = pool.find("m")
        assert position is not None
        assert pool.entry(position).arm == 2
        assert pool.mid(0) == ""


class TestBounds:
    """Memory is bounded, and the sums of what is open are kept."""

    def test_stories_that_are_over_go_first(self):
        pool = pool_of(capacity=1_000)
        for n in range(3_000):
            pool.add(f"m{n}", 0, HASHES, n)
            position = pool.find(f"m{n}")
            assert position is not None
            if n % 4:
                pool.settle(position, DELIVERED, 1)
            pool.pass_mark("mature", n)
        open_ones = pool.state[: pool.size] == PENDING
        assert len(pool.at) <= 1_024
        assert pool.weight[: pool.size][open_ones].sum() == pytest.approx(750, abs=10)

    def test_open_ones_are_thinned_and_their_neighbours_stand_for_them(self):
        pool = pool_of(capacity=1_000, deadline_ms=10**9, remember_ms=2 * 10**9)
        for n in range(20_000):
            pool.add(f"m{n}", n % 2, HASHES, n)
        weight = pool.weight[: pool.size]
        assert pool.size <= 1_000
        assert weight.sum() == pytest.approx(20_000, rel=0.01)
        assert weight[0] > weight[-1] == 1.0
        assert all(pool.find(pool.mid(position)) == position for position in range(pool.size))

    def test_what_is_forgotten_makes_room(self):
        pool = pool_of(capacity=1_000)
        for n in range(5_000):
            pool.add(f"m{n}", 0, HASHES, n * 100)
            due = pool.pass_mark("due", n * 100)
            pool.state[due] = EXPIRED
            pool.pass_mark("forgotten", n * 100)
        assert pool.weight[: pool.size].max() == 1.0
        assert pool.find("m4999") is not None
        assert pool.find("m10") is None
