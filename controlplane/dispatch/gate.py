"""The recipient's preferences once more, right before a message is routed: who opted out after it was accepted gets nothing, and quiet hours count for retries too."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from controlplane.domain.catalog import Snapshot
from controlplane.domain.message import Message
from controlplane.domain.preferences import NOBODY, Outcome, Standing, verdict
from controlplane.domain.quiet import NO_QUIET_HOURS
from controlplane.errors import StoreUnavailableError
from controlplane.store.recipients import Recipients

__all__ = ["GO", "Gate", "Ruling"]

_REASONS = {"recipient_opted_out": "opted_out", "class_blocked": "class_blocked"}
_AGAIN_MS = 1_000


class Ruling(NamedTuple):
    """What becomes of a message now."""

    go: bool = False
    failed: str = ""
    """Reason of the `failed` event."""
    until: int = 0
    """Look at it again then, ms since the epoch."""
    rule: str = ""
    """The rule that holds it; "" while its recipient is being read."""
    detail: str = ""


GO = Ruling(go=True)


class Gate:
    """One per node. Calling it is what the owner does for each message."""

    def __init__(self, recipients: Recipients, snapshot: Callable[[], Snapshot], look: Callable[[str], None]) -> None:
        self._recipients = recipients
        self._snapshot = snapshot
        self._look = look
        """Told of each mid whose recipient had to be read first."""
        self._reading: set[str] = set()

    def __call__(self, message: Message, now_ms: int) -> Ruling:
        """Whether this message may be routed now."""
        tenant = self._snapshot().tenants.get(message.tenant)
        quiet = tenant.quiet_hours if tenant is not None else NO_QUIET_HOURS
        standing = self._recipients.standing(message.tenant, message.to)
        if standing is None:
            self._read(message)
            return Ruling(until=now_ms + _AGAIN_MS)  # sooner, once it is read
        if standing is NOBODY and not quiet:
            return GO
        found = verdict(standing, quiet, cls=message.cls, sender=message.sender, to=message.to, at=now_ms)
        if found.outcome is Outcome.ALLOWED:
            return GO
        if found.rule == "quiet_hours":  # also where they reject: that was for the request to hear
            return Ruling(until=found.until, rule=found.rule, detail=found.detail)
        if found.rule == "quiet_hours_never_end":
            return Ruling(until=message.expires_at, rule=found.rule, detail=found.detail)
        return Ruling(failed=_REASONS.get(found.rule, "suppressed"), rule=found.rule, detail=found.detail)

    def _read(self, message: Message) -> None:
        mid = message.mid
        if mid in self._reading:
            return
        self._reading.add(mid)

        def known(outcome: list[Standing] | StoreUnavailableError) -> None:
            self._reading.discard(mid)
            if not isinstance(outcome, StoreUnavailableError):
                self._look(mid)

        self._recipients.read_soon([(message.tenant, message.to)], known)
