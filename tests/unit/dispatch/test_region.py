"""What becomes of a lost datacenter's messages."""

from __future__ import annotations

import pytest

from controlplane.dispatch.region import what_becomes
from controlplane.domain.message import Message, Part, PartState


class TestWhatBecomes:
    """Nothing that may have been sent is sent again against its policy."""

    def message(self, *states: PartState, **values) -> Message:
        parts = [Part(state) for state in states]
        return Message("m", parts=parts, **{"expires_at": 2_000, "unknown_policy": "resend", **values})

    @pytest.mark.parametrize(
        ("states", "values", "policy", "send", "hold"),
        [
            ("p", {}, "send", "send", "hold"),
            ("p", {"unknown_policy": "hold"}, "hold", "send", "hold"),
            ("p", {"send_at": 1_500}, "scheduled", "scheduled", "scheduled"),
            ("p", {"send_at": 1_500, "unknown_policy": "hold"}, "scheduled", "scheduled", "scheduled"),
            ("p", {"send_at": 1_500, "attempt": 1}, "send", "send", "hold"),
            ("p", {"expires_at": 1_000}, "hold", "hold", "hold"),
            ("sp", {}, "send", "send", "hold"),
            ("s", {}, "submitted", "submitted", "submitted"),
            ("u", {}, "unknown", "unknown", "hold"),
            ("su", {}, "unknown", "unknown", "hold"),
        ],
    )
    def test_each_case(self, states, values, policy, send, hold):
        letters = {"p": PartState.PENDING, "s": PartState.SUBMITTED, "u": PartState.UNKNOWN}
        message = self.message(*(letters[each] for each in states), **values)
        assert [what_becomes(message, choice, 1_000) for choice in ("policy", "send", "hold")] == [policy, send, hold]
