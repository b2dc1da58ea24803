"""Latencies as histograms that add."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.latency import BOUNDS, BUCKETS, added, bucket, quantile


def _counts(seconds):
    counts = [0] * BUCKETS
    for one in seconds:
        counts[bucket(one)] += 1
    return counts


class TestQuantile:
    """What is read from the sum of histograms is as good as their buckets are fine."""

    def test_of_nothing(self):
        assert quantile([0] * BUCKETS, 0.5) is None

    def test_ends_are_inclusive(self):
        assert [bucket(end) for end in BOUNDS] == list(range(len(BOUNDS)))

    def test_beyond_the_last_end(self):
        assert quantile(_counts([5_000.0]), 0.99) == BOUNDS[-1]

    @given(st.lists(st.floats(0.0, 3_600.0), min_size=1), st.sampled_from([0.5, 0.95, 1.0]))
    def test_it_lies_in_the_bucket_of_the_true_one(self, seconds, share):
        found = quantile(_counts(seconds), share)
        rank = max(0, -(-int(share * 1000) * len(seconds) // 1000) - 1)
        true = sorted(seconds)[min(rank, len(seconds) - 1)]
        assert found is not None
        assert bucket(found) == bucket(true)

    def test_near_the_truth_for_many(self):
        source = random.Random(3)
        seconds = [source.expovariate(0.5) for _ in range(20_000)]
        assert quantile(_counts(seconds), 0.5) == pytest.approx(statistics.median(seconds), rel=0.1)

    @given(st.lists(st.floats(0.0, 100.0)), st.lists(st.floats(0.0, 100.0)))
    def test_sums_are_those_of_all(self, here, there):
        assert added([_counts(here), _counts(there)]) == _counts(here + there)
