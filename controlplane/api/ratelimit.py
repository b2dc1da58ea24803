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
_SPARED_SECONDS = 0.5


class _Bucket:
    __slots__ = ("at", "name", "policy", "rate", "tokens")

    def __init__(self, name: str, rate: int, now: float) -> None:
        self.name = name
        self.rate = rate
        self.policy = f'"{name}";q={rate};w=1'
        self.tokens = float(rate)
        self.at = now

    def fill(self, rate: int, now: float) -> None:
        if rate != self.rate:
            self.rate = rate
            self.policy = f'"{self.name}";q={rate};w=1'
        self.tokens = min(rate * _BURST_SECONDS, self.tokens + (now - self.at) * rate)
        self.at = now

    def wait(self, count: float) -> float:
        need = min(count, self.rate * _BURST_SECONDS)
        return (need - self.tokens) / self.rate

    def state(self) -> str:
        return f'"{self.name}";r={max(0, int(self.tokens))};t={max(1, math.ceil(-self.tokens / self.rate))}'


class RateLimiter:
    """One per node. A request larger than a second's worth may start with a full bucket, and the next ones wait longer."""

    def __init__(self, clock: Clock, default_rate: int) -> None:
        self._clock = clock
        self._default = default_rate
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()

    def take(self, caller: Caller, count: int) -> dict[str, str]:
        """Take `count` messages; the headers to answer with. Raises Problem 429 when there are not enough."""
        buckets = self._buckets_of(caller)
        wait = max(bucket.wait(count) for bucket in buckets)
        if wait > 0:
            raise self._limited(buckets, wait)
        for bucket in buckets:
            bucket.tokens -= count
        return self._headers(buckets)

    def take_spare(self, caller: Caller, count: int) -> float:
        """Take `count` messages and return 0; or take none, and return how long to wait (s). Half a second's worth is left to those who ask with `take`."""
        buckets = self._buckets_of(caller)
        wait = max(bucket.wait(count + bucket.rate * _SPARED_SECONDS) for bucket in buckets)
        if wait > 0:
            return wait
        for bucket in buckets:
            bucket.tokens -= count
        return 0.0

    def rate(self, caller: Caller) -> int:
        """Messages a second that it may send."""
        return min(bucket.rate for bucket in self._buckets_of(caller))

    def _buckets_of(self, caller: Caller) -> list[_Bucket]:
        now = self._clock.monotonic()
        buckets = [self._bucket("tenant", caller.tenant.id, caller.tenant.rate or self._default, now)]
        if caller.key.rate:
            buckets.append(self._bucket("key", caller.key.id, caller.key.rate, now))
        return buckets

    def _bucket(self, name: str, owner: str, rate: int, now: float) -> _Bucket:
        bucket = self._buckets.get((name, owner))
        if bucket is None:
            bucket = self._buckets[name, owner] = _Bucket(name, rate, now)
            if len(self._buckets) > _KEPT:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end((name, owner))
        bucket.fill(rate, now)
        return bucket

    @staticmethod
    def _headers(buckets: list[_Bucket]) -> dict[str, str]:
        return {
            "ratelimit-policy": ", ".join([bucket.policy for bucket in buckets]),
            "ratelimit": ", ".join([bucket.state() for bucket in buckets]),
        }

    def _limited(self, buckets: list[_Bucket], wait: float) -> Problem:
        seconds = max(1, math.ceil(wait))
        limits = ", ".join(f"{bucket.rate} a second for this {bucket.name}" for bucket in buckets)
        return Problem(
            "rate-limited",
            "Too many messages",
            429,
            f"This node takes {limits}.",
            f"Nothing was accepted. Send the same request again in {seconds} s.",
            headers={**self._headers(buckets), "Retry-After": str(seconds)},
        )
