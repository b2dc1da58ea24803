"""What a recipient's preferences mean for a request: refused in words, held until they allow it, or nothing."""

from __future__ import annotations

from typing import Any

from controlplane.api.times import iso
from controlplane.domain.catalog import Tenant
from controlplane.domain.preferences import Outcome, Standing, Verdict, verdict
from controlplane.errors import Problem

__all__ = ["check", "held", "record_id", "view"]

_TITLES = {
    "recipient_opted_out": "The recipient has opted out",
    "recipient_complained": "The recipient has complained",
    "recipient_invalid": "The number is known to be invalid",
    "recipient_suppressed": "The recipient is suppressed",
    "class_blocked": "The recipient does not want this class",
    "quiet_hours": "Quiet hours",
    "quiet_hours_never_end": "Quiet hours without an end",
}
_NEXT_STEPS = {
    "recipient_opted_out": "Do not send to this number. The recipient can opt in again with START.",
    "quiet_hours": "Send after `until`, or with a longer validity_seconds where quiet hours hold messages.",
    "quiet_hours_never_end": "Record the recipient's time_zone in a preference, or shorten the quiet hours.",
}
_NEXT_STEP = "Do not send to this number, or correct the record that `record` names."


def check(
    tenant: Tenant, standing: Standing, *, cls: str, sender: str, to: str, at: int, expires_at: int
) -> Verdict | None:
    """None when the message may go at `at`; a Verdict that holds it until then. Times in ms since the epoch. Raises Problem 422 when it is refused."""
    found = verdict(standing, tenant.quiet_hours, cls=cls, sender=sender, to=to, at=at)
    if found.outcome is Outcome.ALLOWED:
        return None
    if found.outcome is Outcome.HELD and found.until < expires_at:
        return found
    raise _refused(found)


def _refused(found: Verdict) -> Problem:
    detail = found.detail[:1].upper() + found.detail[1:]
    if found.outcome is Outcome.HELD:
        detail += "; the message's validity ends before"
    return Problem(
        found.rule.replace("_", "-"),
        _TITLES[found.rule],
        422,
        f"{detail}. Nothing was accepted.",
        _NEXT_STEPS.get(found.rule, _NEXT_STEP),
        extra={"rule": found.rule, "record": _name(found), "until": iso(found.until) if found.until else None},
    )


def record_id(identity: str) -> str:
    """The API's name of a stored suppression or preference."""
    return ("sup_" if len(identity) > 32 else "pref_") + identity


def held(found: Verdict) -> dict[str, Any]:
    """What the `accepted` event says of why its message waits; `until` in ms since the epoch."""
    return {"rule": found.rule, "detail": found.detail, "record": _name(found), "until": found.until}


def view(found: Verdict) -> dict[str, Any]:
    """A verdict as answers show it."""
    return {
        "outcome": found.outcome.value,
        "rule": found.rule or None,
        "detail": found.detail or None,
        "record": _name(found),
        "until": iso(found.until) if found.until else None,
    }


def _name(found: Verdict) -> str | None:
    return record_id(found.record) if found.record else None
