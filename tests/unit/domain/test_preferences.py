"""The verdict: each rule, their order, scope and time zones."""

from dataclasses import replace
from datetime import datetime

import pytest

from controlplane.domain.preferences import (
    ALLOWED,
    COVERED,
    NOBODY,
    Outcome,
    Preference,
    Reason,
    Standing,
    Suppression,
    verdict,
)
from controlplane.domain.quiet import NO_QUIET_HOURS, QuietHours, Window

BERLIN, TOKYO, AUSTRALIA = "+4915112345678", "+819012345678", "+61412345678"
NIGHT = Window(22 * 60, 7 * 60)
AT = int(datetime.fromisoformat("2026-01-10T23:00+01:00").timestamp() * 1000)
MORNING = int(datetime.fromisoformat("2026-01-11T07:00+01:00").timestamp() * 1000)


def asked(standing=NOBODY, tenant=NO_QUIET_HOURS, *, cls="marketing", sender="Shop", to=BERLIN, at=AT):
    return verdict(standing, tenant, cls=cls, sender=sender, to=to, at=at)


def suppressed(reason=Reason.OPT_OUT, **fields) -> Standing:
    values = {"id": "s", "recipient": "+49…", "reason": reason, "classes": COVERED[reason], **fields}
    return Standing((Suppression(**values),))


def wish(**fields) -> Standing:
    return Standing((), Preference(id="p", recipient="+49…", **fields))


def test_nobody_is_restricted():
    assert asked() is ALLOWED


@pytest.mark.parametrize(
    ("reason", "rule", "otp"),
    [
        (Reason.OPT_OUT, "recipient_opted_out", False),
        (Reason.COMPLAINT, "recipient_complained", False),
        (Reason.INVALID, "recipient_invalid", True),
        (Reason.MANUAL, "recipient_suppressed", True),
    ],
)
def test_reasons_and_what_they_cover_by_default(reason, rule, otp):
    for cls in ("marketing", "transactional"):
        found = asked(suppressed(reason), cls=cls)
        assert (found.outcome, found.rule, found.record) == (Outcome.REFUSED, rule, "s")
        assert cls in found.detail
    assert (asked(suppressed(reason), cls="otp").outcome is Outcome.REFUSED) is otp


@pytest.mark.parametrize(
    ("scope", "sender", "outcome"),
    [
        ("", "Shop", Outcome.REFUSED),
        ("Shop", "shop", Outcome.REFUSED),
        ("Shop", "Bank", Outcome.ALLOWED),
        ("Shop", "", Outcome.REFUSED),  # the carrier's default sender: it may be that one
    ],
)
def test_a_senders_suppression(scope, sender, outcome):
    assert asked(suppressed(sender=scope), sender=sender).outcome is outcome


def test_a_blocked_class():
    found = asked(wish(blocked=frozenset({"marketing"})))
    assert (found.outcome, found.rule, found.record) == (Outcome.REFUSED, "class_blocked", "p")
    assert asked(wish(blocked=frozenset({"marketing"})), cls="otp") is ALLOWED


def test_a_suppression_speaks_first():
    both = replace(suppressed(), preference=wish(blocked=frozenset({"marketing"})).preference)
    assert asked(both).rule == "recipient_opted_out"


def test_quiet_hours_hold_by_the_numbers_own_zone():
    quiet = {"marketing": QuietHours((NIGHT,))}
    found = asked(tenant=quiet)
    assert (found.outcome, found.rule, found.until, found.record) == (Outcome.HELD, "quiet_hours", MORNING, "")
    assert "Europe/Berlin" in found.detail
    assert "2026-01-11T06:00Z" in found.detail
    assert asked(tenant=quiet, cls="transactional") is ALLOWED
    assert asked(tenant=quiet, at=MORNING) is ALLOWED
    assert asked(tenant=quiet, to=TOKYO) is ALLOWED  # it is seven in the morning there


def test_the_recipients_zone_goes_before_the_numbers():
    quiet = {"marketing": QuietHours((NIGHT,))}
    assert asked(wish(time_zone="Asia/Tokyo"), quiet) is ALLOWED
    assert asked(wish(time_zone="Europe/Berlin"), quiet, to=TOKYO).outcome is Outcome.HELD


def test_all_zones_of_a_number_must_allow_it():
    quiet = {"marketing": QuietHours((NIGHT,))}
    at = int(datetime.fromisoformat("2026-01-10T07:30+11:00").timestamp() * 1000)  # Sydney is awake, Perth is not
    found = asked(tenant=quiet, to=AUSTRALIA, at=at)
    assert found.until == int(datetime.fromisoformat("2026-01-10T07:00+08:00").timestamp() * 1000)
    assert "time zones" in found.detail


def test_a_number_without_zones_goes_by_utc():
    quiet = {"marketing": QuietHours((NIGHT,))}
    assert "UTC" in asked(tenant=quiet, to="+80012345678", at=AT).detail


def test_both_quiet_hours_apply_and_the_stricter_action():
    own = wish(time_zone="Europe/Berlin", quiet_hours={"marketing": QuietHours((Window(7 * 60, 9 * 60),), "reject")})
    tenant = {"marketing": QuietHours((NIGHT,))}
    found = asked(own, tenant)
    assert (found.outcome, found.record) == (Outcome.HELD, "")
    assert found.until == MORNING + 2 * 3_600_000  # not at seven, when the recipient's own begin
    found = asked(own, tenant, at=MORNING)
    assert (found.outcome, found.rule, found.record) == (Outcome.REFUSED, "quiet_hours", "p")


def test_quiet_hours_without_end_are_refused():
    found = asked(tenant={"marketing": QuietHours((Window(0, 1_440),))})
    assert (found.outcome, found.rule) == (Outcome.REFUSED, "quiet_hours_never_end")
