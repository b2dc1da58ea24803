"""One request, and what its answer means."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum

import aiohttp

from controlplane.callbacks.guard import ForbiddenTargetError, check_url
from controlplane.callbacks.sign import sign
from controlplane.clock import Clock

__all__ = ["Answer", "Outcome", "Sender"]

_READ_LIMIT = 4_096
_RETRY_AFTER_LIMIT = 86_400


class Outcome(StrEnum):
    """What became of one attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    GONE = "gone"
    """410: the receiver wants no more."""
    REFUSED = "refused"
    """We do not send there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is 0 where there was no HTTP answer."""

    outcome: Outcome
    status: int
    error: str
    ms: int
    retry_after: int = 0


class Sender:
    """Posts signed bodies."""

    def __init__(self, session: aiohttp.ClientSession, clock: Clock, *, timeout: float, allow_private: bool) -> None:
        self._session = session
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._allow_private = allow_private

    async def post(self, url: str, secrets: tuple[str, ...], webhook_id: str, body: bytes) -> Answer:
        """Never raises but for cancellation."""
        started = self._clock.monotonic()

        def answer(outcome: Outcome, status: int = 0, error: str = "", retry_after: int = 0) -> Answer:
            return Answer(outcome, status, error[:200], int((self._clock.monotonic() - started) * 1000), retry_after)

        timestamp = self._clock.now_ms() // 1000
        headers = {
            "content-type": "application/json",
            "user-agent": "heliograph-callbacks/1",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secrets, webhook_id, timestamp, body),
        }
        try:
            check_url(url, allow_private=self._allow_private)
            async with self._session.post(
                url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                await response.content.read(_READ_LIMIT)
                return answer(*_judge(response.status), *self._after(response))
        except ForbiddenTargetError as error:
            return answer(Outcome.REFUSED, error=f"callback target {error}")
        except TimeoutError:
            return answer(Outcome.RETRY, error="no answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error.__cause__, ForbiddenTargetError):
                return answer(Outcome.REFUSED, error=str(error.__cause__))
            return answer(Outcome.RETRY, error=f"{type(error).__name__}: {error}")
        finally:
            await asyncio.sleep(0)

    def _after(self, response: aiohttp.ClientResponse) -> tuple[str, int]:
        """(error, retry_after) of an answer."""
        error = "" if response.status < 300 else f"HTTP {response.status}"
        if response.status not in (429, 503):
            return error, 0
        value = response.headers.get("retry-after", "")
        if value.isascii() and value.isdigit():
            return error, min(int(value[:9]), _RETRY_AFTER_LIMIT)
        try:
            seconds = parsedate_to_datetime(value).timestamp() - self._clock.now_ms() / 1000
        except (ValueError, TypeError):
            return error, 0
        return error, max(0, min(int(seconds) + 1, _RETRY_AFTER_LIMIT))


def _judge(status: int) -> tuple[Outcome, int]:
    if 200 <= status < 300:
        return Outcome.DELIVERED, status
    return (Outcome.GONE if status == 410 else Outcome.RETRY), status
