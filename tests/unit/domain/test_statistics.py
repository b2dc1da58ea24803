"""What each event adds to the counts."""

from __future__ import annotations

import pytest

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message
from controlplane.domain.statistics import FIELDS, WIDTH, count, view

DEADLINE = 30_000


def _story(*events, parts=1, send_at=0):
    """The row that a message's events make together: (kind, ms, data)."""
    message, row = Message("m", "t"), [0] * WIDTH
    accepted = {"to": "+1", "class": "otp", "parts": parts, "expires_at": 10**9, "send_at": send_at}
    for k, (kind, at, data) in enumerate([(Kind.ACCEPTED, 0, accepted), *events]):
        event = Event("m", k, "t", kind, at, data, route="r", leaf=b"x")
        message.apply(event)
        count(row, message, event, lambda route: {"r": 5}[route], {"otp": DEADLINE})
    return {name: value for name, value in zip(FIELDS, row, strict=True) if value}


def _submitted(at, *numbers):
    return (
        Kind.SUBMITTED,
        at,
        {"route": "r", "connector": "c", "attempt": 1, "part_ids": [[n, f"id{n}"] for n in numbers]},
    )


def _receipt(kind, at, part=1, **data):
    return kind, at, {"part": part, "connector": "c", "receipt": {"id": f"id{part}", "state": "X"}, **data}


class TestCount:
    """Each message is accepted once and ends once, whatever else is said of it."""

    def test_delivered(self):
        found = _story(_submitted(10, 1), _receipt(Kind.DELIVERED, 900))
        histogram = {name: value for name, value in found.items() if name.startswith("h")}
        assert (
            found
            == {
                "accepted": 1,
                "accepted_parts": 1,
                "submitted": 1,
                "parts": 1,
                "price": 5,
                "delivered": 1,
                "in_5s": 1,
                "in_time": 1,
            }
            | histogram
        )
        assert list(histogram.values()) == [1]

    def test_a_long_message_is_submitted_when_all_of_it_is_and_delivered_with_its_last_part(self):
        found = _story(
            _submitted(10, 1),
            _submitted(20, 2),
            _receipt(Kind.DELIVERED, 500, 2),
            _receipt(Kind.DELIVERED, 6_000, 1),
            parts=2,
        )
        assert (found["submitted"], found["parts"], found["price"], found["delivered"]) == (1, 2, 10, 1)
        assert ("in_5s" in found, found["in_time"]) == (False, 1)

    def test_repeated_and_late_receipts_count_once(self):
        found = _story(
            _submitted(10, 1),
            _receipt(Kind.UNDELIVERED, 20),
            _receipt(Kind.UNDELIVERED, 30),
            _receipt(Kind.DELIVERED, 40),
        )
        assert (found["undelivered"], "delivered" in found) == (1, False)

    def test_a_part_that_goes_to_the_next_route_is_no_end(self):
        found = _story(
            _submitted(10, 1),
            _receipt(Kind.UNDELIVERED, 20, tried=["r"]),
            _submitted(30, 1),
            _receipt(Kind.DELIVERED, 40),
        )
        assert ("undelivered" in found, found["delivered"], found["submitted"]) == (False, 1, 2)

    def test_refusals_and_unknown(self):
        refused = {"route": "r", "connector": "c", "attempt": 1, "parts": [1], "command_status": 88, "retry_at": 5}
        found = _story((Kind.DEFERRED, 5, refused), (Kind.UNKNOWN, 9, {"connector": "c", "attempt": 2, "parts": [1]}))
        assert (found["refused"], found["unknown"]) == (1, 1)
        quiet = {"attempt": 0, "parts": [], "retry_at": 5, "rule": "quiet_hours"}
        assert "refused" not in _story((Kind.DEFERRED, 5, quiet))

    @pytest.mark.parametrize("kind", [Kind.FAILED, Kind.EXPIRED, Kind.CANCELLED])
    def test_other_ends(self, kind):
        found = _story((kind, 5, {}), (Kind.FEEDBACK, 9, {"outcome": "converted"}), (Kind.ADOPTED, 10, {}))
        assert found == {"accepted": 1, "accepted_parts": 1, kind.value: 1}

    def test_the_time_begins_when_it_was_due(self):
        assert _story(_submitted(60_010, 1), _receipt(Kind.DELIVERED, 61_000), send_at=60_000)["in_5s"] == 1


class TestView:
    """Rates are of what came to an end, and say nothing where nothing did."""

    def test_rates(self):
        shown = view(
            {"delivered": 90, "undelivered": 8, "failed": 2, "cancelled": 50, "in_5s": 45}, {"EUR": 7, "USD": 0}
        )
        assert (shown["delivery_rate"], shown["in_5s_rate"], shown["price"]) == (0.9, 0.45, {"EUR": 7})

    def test_nothing(self):
        shown = view([0] * WIDTH, {})
        assert (shown["delivery_rate"], shown["delivery_seconds"]) == (None, {"p50": None, "p95": None})
