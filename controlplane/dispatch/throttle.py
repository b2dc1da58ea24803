"""How fast a connector may be fed: a token bucket under the contract's rate that learns the real one (additive increase, multiplicative decrease)."""

from __future__ import annotations

__all__ = ["Throttle"]

_DECREASE = 0.7
_RECOVERY_SECONDS = 30.0
_FLOOR = 0.02
_BURST_SECONDS = 0.1


class Throttle:
    """Tokens are parts. `now` is monotonic seconds."""

    def __init__(self, contract: float, now: float) -> None:
        self.contract = contract
        self.rate = contract
        """What is allowed at present, parts a second."""
        self._tokens = max(1.0, contract * _BURST_SECONDS)
        self._filled = now
        self._paused_until = now
        self._slowed = now - 1.0

    def available(self, now: float) -> int:
        """How many parts may go now."""
        if now < self._paused_until:
            return 0
        elapsed = max(0.0, now - self._filled)
        self._filled = now
        self.rate = min(self.contract, self.rate + self.contract * elapsed / _RECOVERY_SECONDS)
        self._tokens = min(max(1.0, self.rate * _BURST_SECONDS), self._tokens + elapsed * self.rate)
        return int(self._tokens)

    def take(self, count: int) -> None:
        """`count` parts go."""
        self._tokens -= count

    def give_back(self, count: int) -> None:
        """They did not go after all."""
        self._tokens += count

    def delay(self, now: float) -> float:
        """Seconds until at least one part may go."""
        if now < self._paused_until:
            return self._paused_until - now
        return max(0.0, (1.0 - self._tokens) / self.rate)

    def slow(self, now: float) -> None:
        """The carrier throttles (ESME_RTHROTTLED). Refusals of one burst count once: at most one decrease in 0.5 s."""
        self._paused_until = max(self._paused_until, now + 0.1)
        if now - self._slowed >= 0.5:
            self._slowed = now
            self.rate = max(self.contract * _FLOOR, self.rate * _DECREASE)
            self._tokens = min(self._tokens, 0.0)

    def pause(self, now: float, seconds: float) -> None:
        """Send nothing for a while (ESME_RMSGQFUL)."""
        self._paused_until = max(self._paused_until, now + seconds)
