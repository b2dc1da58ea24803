"""Latencies as counts in fixed buckets: they add over minutes, nodes and datacenters, and a quantile can be read from the sum. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

__all__ = ["BOUNDS", "BUCKETS", "added", "bucket", "quantile"]

BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper ends in seconds, inclusive; the last bucket has no end."""
BUCKETS = len(BOUNDS) + 1


def bucket(seconds: float) -> int:
    """Which bucket a latency falls into."""
    return bisect_left(BOUNDS, seconds)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Seconds below which `share` (0 to 1) of what was counted lies, linear within a bucket; None for nothing. What lies beyond the last end reads as that end."""
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for number, count in enumerate(counts):
        if count and below + count >= wanted:
            if number == len(BOUNDS):
                return BOUNDS[-1]
            start = BOUNDS[number - 1] if number else 0.0
            return start + (BOUNDS[number] - start) * (wanted - below) / count
        below += count
    return BOUNDS[-1]


def added(histograms: Iterable[Sequence[int]]) -> list[int]:
    """The sum, bucket by bucket. A shorter one, of a node with fewer buckets, counts as far as it goes."""
    total = [0] * BUCKETS
    for counts in histograms:
        for number, count in enumerate(counts[:BUCKETS]):
            total[number] += count
    return total
