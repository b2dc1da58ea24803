"""Recipients' preferences as hard constraints: who must not be written to, about what, and when. Pure: records and time come in, a verdict comes out.

Rule ids, in the order in which they are asked:

| rule | the message |
|---|---|
| recipient_opted_out, recipient_complained, recipient_invalid, recipient_suppressed | is refused: a Suppression covers its class and sender |
| class_blocked | is refused: the recipient's Preference blocks its class |
| quiet_hours | waits until they end, or is refused, as the quiet hours' action says |
| quiet_hours_never_end | is refused: over all zones where the recipient may be, there is no minute outside them |

Quiet hours (domain.quiet) are told by the recipient's own clock: the time zone of the Preference, else all zones of the number's range, and then it must be
allowed in each; UTC where the range has none. Those of the tenant and those of the recipient both apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from controlplane.domain.numbers import numbering
from controlplane.domain.quiet import NEVER, Action, QuietHours, quiet_until

__all__ = [
    "ALLOWED",
    "COVERED",
    "NOBODY",
    "Outcome",
    "Preference",
    "Reason",
    "Standing",
    "Suppression",
    "Verdict",
    "verdict",
]

_UNKNOWN_ZONES = ("UTC",)


class Reason(StrEnum):
    """Why a recipient is suppressed."""

    OPT_OUT = "opt_out"
    COMPLAINT = "complaint"
    INVALID = "invalid"
    MANUAL = "manual"


_ASKED_FOR = frozenset({"transactional", "marketing"})
_ALL_CLASSES = frozenset({"otp", "transactional", "marketing"})
COVERED: Mapping[Reason, frozenset[str]] = {
    Reason.OPT_OUT: _ASKED_FOR,
    Reason.COMPLAINT: _ASKED_FOR,
    Reason.INVALID: _ALL_CLASSES,
    Reason.MANUAL: _ALL_CLASSES,
}
"""Classes that a suppression covers where it does not say: one-time passwords, which the recipient has just asked for, stay possible after an opt-out."""

_RULES = {
    Reason.OPT_OUT: ("recipient_opted_out", "the recipient has opted out"),
    Reason.COMPLAINT: ("recipient_complained", "the recipient has complained"),
    Reason.INVALID: ("recipient_invalid", "the number is known to be invalid"),
    Reason.MANUAL: ("recipient_suppressed", "the recipient is suppressed"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """A recipient to whom a tenant must not write."""

    id: str
    recipient: str
    """Masked: the number itself is not kept."""
    reason: Reason
    classes: frozenset[str]
    sender: str = ""
    """Only messages from this sender, and those that name none; "" = from every sender."""
    source: str = ""
    """Where it comes from, in words."""
    at: int = 0
    """ms since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What a recipient wishes of a tenant."""

    id: str
    recipient: str
    """Masked."""
    time_zone: str = ""
    """IANA name; "" = those of the number's range."""
    quiet_hours: Mapping[str, QuietHours] = field(default_factory=dict)
    """By class; a class that is not there has none."""
    sender: str = ""
    """Taken where a message names none, if a route can carry it."""
    blocked: frozenset[str] = frozenset()
    """Classes."""
    source: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """All that is recorded of one recipient at one tenant."""

    suppressions: tuple[Suppression, ...] = ()
    preference: Preference | None = None


NOBODY = Standing()
"""Of whom nothing is recorded."""


class Outcome(StrEnum):
    """What is to be done with a message."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    HELD = "held"


class Verdict(NamedTuple):
    """What the recipient's preferences say to one message at one time."""

    outcome: Outcome
    rule: str = ""
    detail: str = ""
    """In words, without the number."""
    until: int = 0
    """Of `held`, and of quiet hours that reject: when they end, ms since the epoch."""
    record: str = ""
    """Id of the Suppression or Preference that decided; "" for the tenant's quiet hours."""


ALLOWED = Verdict(Outcome.ALLOWED)


def verdict(
    standing: Standing, tenant_quiet: Mapping[str, QuietHours], *, cls: str, sender: str, to: str, at: int
) -> Verdict:
    """Whether a message of this class may reach `to` (E.164 with +) from `sender` ("" = the carrier's default) at `at` (ms since the epoch)."""
    for suppression in standing.suppressions:
        if cls in suppression.classes and _in_scope(suppression.sender, sender):
            rule, words = _RULES[suppression.reason]
            scope = f" for {suppression.sender}" if suppression.sender else ""
            return Verdict(Outcome.REFUSED, rule, f"{words}{scope}; this covers {cls}", record=suppression.id)
    preference = standing.preference
    if preference is not None and cls in preference.blocked:
        return Verdict(Outcome.REFUSED, "class_blocked", f"the recipient does not want {cls}", record=preference.id)
    own = preference.quiet_hours.get(cls) if preference is not None else None
    tenants = tenant_quiet.get(cls)
    if own is None and tenants is None:
        return ALLOWED
    return _quiet(own, tenants, preference, cls, to, at)


def _in_scope(scope: str, sender: str) -> bool:
    """A message that names no sender may come from any: who opted out of one must not get it by chance."""
    return not scope or not sender or scope.casefold() == sender.casefold()


def _quiet(
    own: QuietHours | None, tenants: QuietHours | None, preference: Preference | None, cls: str, to: str, at: int
) -> Verdict:
    zones = _zones(preference.time_zone if preference is not None else "", to)
    minute = at // 60_000
    rules = [quiet for quiet in (own, tenants) if quiet is not None]
    now_quiet = [quiet for quiet in rules if quiet_until(quiet.windows, zones, minute) != minute]
    if not now_quiet:
        return ALLOWED
    record = preference.id if preference is not None and own in now_quiet else ""
    end = quiet_until(tuple(window for quiet in rules for window in quiet.windows), zones, minute)
    where = zones[0] if len(zones) == 1 else f"one of the number's {len(zones)} time zones"
    if end == NEVER:
        return Verdict(
            Outcome.REFUSED,
            "quiet_hours_never_end",
            f"there is no time for {cls} outside quiet hours in all {len(zones)} time zones where the recipient may be",
            record=record,
        )
    until = datetime.fromtimestamp(end * 60, UTC).strftime("%Y-%m-%dT%H:%MZ")
    detail = f"quiet hours for {cls} in {where} until {until}"
    rejects = any(quiet.action == Action.REJECT for quiet in now_quiet)
    outcome = Outcome.REFUSED if rejects else Outcome.HELD
    return Verdict(outcome, "quiet_hours", detail, end * 60_000, record)


def _zones(own: str, to: str) -> tuple[str, ...]:
    return (own,) if own else numbering(to).time_zones or _UNKNOWN_ZONES
