"""How many messages a second a key and its tenant may send through this node (nodes share nothing: N nodes allow N times as much).

Headers by draft-ietf-httpapi-ratelimit-headers-09: `RateLimit-Policy: "key";q=100;w=1`, `RateLimit: "key";r=42;t=1`.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from controlplane.api.auth import Caller
from controlplane.clock import Clock
from controlplane.errors import Problem

__all__ = ["RateLimiter"]

_KEPT = 10_000
_BURST_SECONDS = 1.0


class _Bucket:
    __slots__ = ("at", "rate", "tokens")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self.tokens = float(rate)
        self.at = now

    def fill(self, rate: int, now: float) -> None:
        self.rate = rate
        self.tokens = min(rate * _BURST_SECONDS, self.tokens + (now - self.at) * rate)
        self.at = now


class RateLimiter:
    """One per node. A request larger than a second's worth may start with a full bucket, and the next ones wait longer."""

    def __init__(self, clock: Clock, default_rate: int) -> None:
        self._clock = clock
        self._default = default_rate
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, caller: Caller, count: int) -> dict[str, str]:
        """Take `count` messages; the headers to answer with. Raises Problem 429 when there are not enough."""
        tenant_rate = caller.tenant.rate or self._default
        buckets = [("tenant", self._bucket("t:" + caller.tenant.id, tenant_rate))]
        if caller.key.rate:
            buckets.append(("key", self._bucket("k:" + caller.key.id, caller.key.rate)))
        wait = max(self._wait(bucket, count) for _, bucket in buckets)
        if wait > 0:
            raise self._limited(buckets, wait)
        for _, bucket in buckets:
            bucket.tokens -= count
        return self._headers(buckets)

    def _bucket(self, name: str, rate: int) -> _Bucket:
        now = self._clock.monotonic()
        bucket = self._buckets.pop(name, None) or _Bucket(rate, now)
        bucket.fill(rate, now)
        self._buckets[name] = bucket
        if len(self._buckets) > _KEPT:
            self._buckets.popitem(last=False)
        return bucket

    @staticmethod
    def _wait(bucket: _Bucket, count: int) -> float:
        need = min(count, bucket.rate * _BURST_SECONDS)
        return max(0.0, (need - bucket.tokens) / bucket.rate)

    @staticmethod
    def _headers(buckets: list[tuple[str, _Bucket]]) -> dict[str, str]:
        return {
            "ratelimit-policy": ", ".join(f'"{name}";q={bucket.rate};w=1' for name, bucket in buckets),
            "ratelimit": ", ".join(
                f'"{name}";r={max(0, int(bucket.tokens))};t={max(1, math.ceil(-bucket.tokens / bucket.rate))}'
                for name, bucket in buckets
            ),
        }

    def _limited(self, buckets: list[tuple[str, _Bucket]], wait: float) -> Problem:
        seconds = max(1, math.ceil(wait))
        limits = ", ".join(f"{bucket.rate} a second for this {name}" for name, bucket in buckets)
        return Problem(
            "rate-limited",
            "Too many messages",
            429,
            f"This node takes {limits}.",
            f"Nothing was accepted. Send the same request again in {seconds} s.",
            headers={**self._headers(buckets), "Retry-After": str(seconds)},
        )
