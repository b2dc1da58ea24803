"""The fold: monotone, final once, whatever comes late."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as hs

from controlplane.domain.events import Event, Kind, canonical, commitment, leaf_bytes, leaf_hash
from controlplane.domain.message import FINAL, Message, PartState, Status, fold

MID = "0" * 26


def event(k: int, kind: Kind, data: dict | None = None, **fields) -> Event:
    prev = b"\x01" * 32 if k else None
    made = Event(MID, k, "t", kind, 1000 + k, data or {}, prev, dc="dc", node="n", epoch=1, q=k + 1, **fields)
    made.leaf = leaf_bytes(made, "00")
    return made


def accepted(parts: int = 1, **data) -> Event:
    return event(0, Kind.ACCEPTED, {"to": "+49", "parts": parts, "class": "otp", "expires_at": 9e9, **data})


def submitted(k: int, part: int = 1, cid: str = "1") -> Event:
    return event(k, Kind.SUBMITTED, {"connector": "c", "attempt": 1, "part_ids": [[part, cid]]}, route="r")


def receipt(k: int, kind: Kind, part: int = 1) -> Event:
    data = {"part": part, "connector": "c", "receipt": {"id": "1", "state": kind.value, "error": "", "done_date": ""}}
    return event(k, kind, data)


FACTS = hs.sampled_from(
    [Kind.SUBMITTED, Kind.UNKNOWN, Kind.DEFERRED, Kind.REROUTED, Kind.ENROUTE, Kind.DELIVERED, Kind.UNDELIVERED, Kind.EXPIRED, Kind.FAILED,
     Kind.CANCELLED, Kind.ADOPTED, Kind.FEEDBACK]
)  # fmt: skip


def fact(k: int, kind: Kind, part: int) -> Event:
    if kind is Kind.SUBMITTED:
        return submitted(k, part)
    if kind in (Kind.ENROUTE, Kind.DELIVERED, Kind.UNDELIVERED):
        return receipt(k, kind, part)
    return event(k, kind, {"parts": [part], "attempt": 1, "connector": "c"})


class TestFold:
    """What is final stays."""

    @given(hs.lists(hs.tuples(FACTS, hs.integers(1, 3)), max_size=25))
    def test_row_14_final_never_moves(self, facts):
        message = Message(mid=MID)
        message.apply(accepted(parts=3))
        final: Status | None = None
        for k, (kind, part) in enumerate(facts, 1):
            message.apply(fact(k, kind, part))
            if final is not None:
                assert message.status is final
            elif message.status in FINAL:
                final = message.status
        assert message.next_k == len(facts) + 1

    def test_row_14_intermediate_final_duplicate_in_any_order(self):
        late = fold(
            [
                accepted(),
                submitted(1),
                receipt(2, Kind.DELIVERED),
                receipt(3, Kind.ENROUTE),
                receipt(4, Kind.UNDELIVERED),
            ]
        )
        assert late.status is Status.DELIVERED
        assert late.parts[0].state is PartState.DELIVERED

    def test_row_20_a_long_message_is_the_aggregate_of_its_parts(self):
        events = [accepted(2), submitted(1, 1, "a"), submitted(2, 2, "b"), receipt(3, Kind.DELIVERED, 1)]
        assert fold(events).status is Status.SUBMITTED
        assert fold([*events, receipt(4, Kind.DELIVERED, 2)]).status is Status.DELIVERED
        assert fold([*events, receipt(4, Kind.UNDELIVERED, 2)]).status is Status.UNDELIVERED

    def test_unknown_is_resolved_by_a_late_response_and_by_a_receipt(self):
        lost = [accepted(), event(1, Kind.UNKNOWN, {"parts": [1], "attempt": 1, "connector": "c"})]
        assert fold(lost).status is Status.UNKNOWN
        assert fold([*lost, submitted(2)]).status is Status.SUBMITTED
        assert fold([*lost, receipt(2, Kind.DELIVERED)]).status is Status.DELIVERED

    def test_a_gap_is_refused(self):
        with pytest.raises(ValueError, match="does not follow"):
            fold([accepted(), submitted(2)])

    def test_scheduled_becomes_queued_when_its_time_comes(self):
        message = fold([accepted(send_at=5000)])
        assert message.status_at(4999) is Status.SCHEDULED
        assert message.status_at(5000) is Status.QUEUED

    def test_erased_keeps_the_status_and_nothing_else(self):
        summary = {"status": "delivered", "class": "otp", "parts": 1, "encoding": "gsm7"}
        bare = [
            event(0, Kind.ACCEPTED),
            event(1, Kind.SUBMITTED),
            event(2, Kind.DELIVERED),
            event(3, Kind.ERASED, summary),
        ]
        message = fold(bare)
        assert (message.status, message.to, message.body, message.erased) == (Status.DELIVERED, "", "", True)


TEXTS = hs.text(hs.characters(exclude_categories=["Cs"]), max_size=10)
PAYLOADS = hs.dictionaries(
    TEXTS,
    hs.recursive(
        hs.none() | hs.booleans() | hs.integers(-(2**53), 2**53) | TEXTS,
        lambda inner: hs.lists(inner, max_size=3) | hs.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=8,
)


class TestLeaf:
    """The leaf is canonical JSON (RFC 8785) and says nothing personal."""

    @given(hs.text(max_size=20).filter(lambda s: not any(0xD800 <= ord(c) <= 0xDFFF for c in s)), hs.integers(0, 2**53))
    def test_canonical(self, reason, at):
        data = {"to": "+4915112345678"}
        sealed = Event(
            MID, 3, "t", Kind.FAILED, at, data, b"\x02" * 32, "route", reason, dc="dc", node="n", epoch=1, q=7
        )
        leaf = leaf_bytes(sealed, commitment(b"salt", canonical(data)))
        assert leaf == canonical(json.loads(leaf))
        assert b"4915112345678" not in leaf

    @given(PAYLOADS)
    def test_canonical_is_what_the_standard_library_writes(self, data):
        text = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        assert canonical(data) == text.encode()

    def test_commitment_depends_on_salt_and_data(self):
        assert len({commitment(b"a", b"1"), commitment(b"b", b"1"), commitment(b"a", b"2")}) == 3

    def test_rfc6962_leaf_hash(self):
        assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"


class TestSentOn:
    """A part that one route reports undelivered, and that goes to the next."""

    def message(self, *more: Event) -> Message:
        message = fold([accepted(), submitted(1), *more])
        assert message is not None
        return message

    def undelivered(self, k: int, **data) -> Event:
        made = receipt(k, Kind.UNDELIVERED)
        made.data.update(data)
        return made

    def test_is_pending_again(self):
        message = self.message(self.undelivered(2, tried=["r"]))
        assert (message.status, message.pending, message.tried) == (Status.QUEUED, [1], ("r",))

    def test_is_final_without_a_next_route(self):
        assert self.message(self.undelivered(2)).status is Status.UNDELIVERED

    def test_what_is_final_stays(self):
        late = self.undelivered(3, tried=["r"])
        message = self.message(event(2, Kind.CANCELLED), late)
        assert (message.status, message.tried) == (Status.CANCELLED, ())
        assert message.parts[0].state is PartState.UNDELIVERED

    @pytest.mark.parametrize("kind", [Kind.ENROUTE, Kind.UNDELIVERED, Kind.EXPIRED])
    def test_the_first_carrier_is_not_heard_any_more(self, kind):
        former = receipt(4, kind)
        former.data["former"] = True
        message = self.message(self.undelivered(2, tried=["r"]), submitted(3, cid="2"), former)
        assert (message.status, message.parts[0].state) == (Status.SUBMITTED, PartState.SUBMITTED)

    def test_but_for_a_delivery(self):
        former = receipt(4, Kind.DELIVERED)
        former.data["former"] = True
        message = self.message(self.undelivered(2, tried=["r"]), submitted(3, cid="2"), former)
        assert message.status is Status.DELIVERED
