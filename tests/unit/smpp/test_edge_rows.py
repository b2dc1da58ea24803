"""The SMPP edge cases that break other gateways, one test each, as transcripts against the sans-IO session."""

from __future__ import annotations

import pytest

from controlplane.domain.catalog import BindType
from controlplane.smpp import pdu as p
from controlplane.smpp import session as s
from controlplane.smpp import status as st
from controlplane.smpp.receipt_text import is_receipt, parse_receipt


class Playbook:
    """`play << PDU` receives it; `play.sent()` is what the session wrote since the last look."""

    def __init__(self, sequence: int = 1, **config: object) -> None:
        values = {"system_id": "me", "password": "pw", **config}
        self.session = s.Session(s.SessionConfig(**values), sequence=sequence)
        self.now = 100.0
        self.session.start(self.now)
        self.framer = p.Framer()

    def sent(self) -> list[p.Pdu]:
        return [p.decode(frame) for frame in self.framer.feed(self.session.outgoing())]

    def __lshift__(self, pdu: p.Pdu | bytes) -> list[s.SessionEvent]:
        return self.session.receive(pdu if isinstance(pdu, bytes) else pdu.encode(), self.now)

    def later(self, seconds: float) -> list[s.SessionEvent]:
        self.now += seconds
        return self.session.tick(self.now)

    def submit(self, token: object = "t") -> int:
        pdu = p.SubmitSm(dest_addr="4915112345678", short_message=b"hi")
        self.session.submit(pdu, token, self.now)
        return pdu.sequence


def bound(**config: object) -> Playbook:
    play = Playbook(**config)
    (bind,) = play.sent()
    events = play << p.BindTransceiverResp(sequence=bind.sequence, system_id="smsc", tlvs={0x0210: b"\x34"})
    assert events == [s.Bound("smsc", 0x34)]
    return play


class TestWindowAndTime:
    """No more is in flight than agreed, and what gets no answer is reported, never repeated."""

    def test_row_01_window_full_is_refused(self):
        play = bound(window=2)
        play.submit("a")
        play.submit("b")
        assert play.session.room == 0
        with pytest.raises(RuntimeError, match="no room"):
            play.submit("c")

    def test_row_02_a_response_makes_room_at_once(self):
        play = bound(window=1)
        sequence = play.submit("a")
        play.now += 0.2
        (event,) = play << p.SubmitSmResp(sequence=sequence, message_id="1")
        assert event == s.Responded("a", 0, "1", pytest.approx(0.2))
        assert play.session.room == 1

    def test_row_03_throttling_is_an_answer_like_any_other(self):
        play = bound()
        (event,) = play << p.SubmitSmResp(sequence=play.submit("a"), status=st.ESME_RTHROTTLED)
        assert (event.token, event.status) == ("a", 0x58)

    def test_row_05_enquire_link_is_answered_and_sent(self):
        play = bound(enquire_link_seconds=30)
        play.sent()
        play << p.EnquireLink(sequence=77)
        assert play.sent() == [p.EnquireLinkResp(sequence=77)]
        assert play.later(31) == []
        (enquire,) = play.sent()
        assert isinstance(enquire, p.EnquireLink)
        play << p.EnquireLinkResp(sequence=enquire.sequence)
        assert play.later(29) == []

    def test_row_05_a_dead_peer_is_closed_and_its_submits_are_lost(self):
        play = bound(enquire_link_seconds=5, response_seconds=10)
        play.later(4)
        play.submit("a")
        play.later(2)
        events = play.later(10)
        assert s.TimedOut("a") in events or s.Lost(("a",), events[-1].reason) in events
        assert isinstance(events[-1], s.Closed)

    def test_row_09_no_response_is_reported_once_and_not_resent(self):
        play = bound(response_seconds=10, enquire_link_seconds=1000)
        play.submit("a")
        play.sent()
        assert play.later(10) == [s.TimedOut("a")]
        assert play.later(1) == []
        assert play.sent() == []

    def test_row_09_a_broken_connection_loses_what_is_in_flight(self):
        play = bound()
        play.submit("a")
        play.submit("b")
        events = play.session.connection_lost("reset")
        assert events == [s.Lost(("a", "b"), "reset"), s.Closed("reset")]

    def test_row_10_a_late_response_still_finds_its_submit(self):
        play = bound(response_seconds=10, enquire_link_seconds=1000)
        sequence = play.submit("a")
        play.later(11)
        assert play << p.SubmitSmResp(sequence=sequence, message_id="9") == [s.LateResponse("a", 0, "9")]
        assert play << p.SubmitSmResp(sequence=sequence, message_id="9") == []


class TestProtocol:
    """Whatever the peer sends is answered as the specification says, and ends no more than it must."""

    def test_row_06_unbind_is_answered_and_drained(self):
        play = bound()
        sequence = play.submit("a")
        play.sent()
        assert play << p.Unbind(sequence=5) == []
        assert play.sent() == [p.UnbindResp(sequence=5)]
        assert play.session.room == 0
        events = play << p.SubmitSmResp(sequence=sequence, message_id="1")
        assert isinstance(events[0], s.Responded)
        assert isinstance(events[1], s.Closed)

    def test_row_06_our_unbind_waits_for_the_answer(self):
        play = bound()
        play.session.unbind(play.now)
        (unbind,) = play.sent()
        assert play << p.UnbindResp(sequence=unbind.sequence) == [s.Closed("unbound")]

    def test_row_07_generic_nack_with_sequence_fails_that_submit(self):
        play = bound()
        (event,) = play << p.GenericNack(sequence=play.submit("a"), status=3)
        assert (event.token, event.status) == ("a", 3)

    def test_row_07_generic_nack_without_sequence_ends_the_session(self):
        play = bound()
        play.submit("a")
        events = play << p.GenericNack(sequence=0, status=2)
        assert [type(event) for event in events] == [s.ProtocolError, s.Lost, s.Closed]

    def test_row_07_unknown_command_is_nacked(self):
        play = bound()
        play << p.Unknown(command_id=0x00010200, sequence=9, raw=b"x")
        assert play.sent()[-1] == p.GenericNack(sequence=9, status=st.ESME_RINVCMDID)

    def test_row_07_bad_length_is_nacked_and_closed(self):
        play = bound()
        events = play << b"\x00\x00\x00\x03garbage!"
        assert isinstance(events[-1], s.Closed)
        assert play.sent()[-1].status == st.ESME_RINVCMDLEN

    def test_row_08_sequence_numbers_wrap_and_skip_those_in_flight(self):
        play = Playbook(sequence=0x7FFFFFFE, window=10)
        (bind,) = play.sent()
        play << p.BindTransceiverResp(sequence=bind.sequence, system_id="x")
        first = play.submit("a")
        assert first == 0x7FFFFFFF
        assert play.submit("b") == 1
        play.session._sequence = 1
        assert play.submit("c") == 2

    def test_row_16_a_delivery_is_answered_only_when_told(self):
        play = bound()
        (event,) = play << p.DeliverSm(sequence=4, short_message=b"x")
        assert play.sent() == []
        play.session.answer(event.pdu, st.ESME_RX_T_APPN)
        assert play.sent() == [p.DeliverSmResp(sequence=4, status=0x64)]

    def test_row_17_message_payload_and_short_message(self):
        both = p.DeliverSm(short_message=b"a", tlvs={0x0424: b"b"})
        assert p.both_texts(both) == st.ESME_RINVPARLEN
        assert p.decode(p.SubmitSm(tlvs={0x0424: b"x" * 400}).encode()).message == b"x" * 400
        with pytest.raises(ValueError, match="254"):
            p.SubmitSm(short_message=b"x" * 255).encode()

    def test_row_22_validity_absolute_and_relative(self):
        assert p.relative_time(90_061) == "000001010101000R"
        assert p.parse_time("000001010101000R", 0) == 90_061_000
        at = 1_800_000_000_000
        assert p.parse_time(p.absolute_time(at), 0) == at
        assert p.parse_time("270115120000004+", 0) == p.parse_time("270115110000000+", 0)
        assert p.parse_time("nonsense", 0) is None

    def test_row_23_alert_outbind_and_data_sm(self):
        play = bound()
        alert = p.AlertNotification(source_addr="4915", esme_addr="me")
        assert play << alert == [s.Alerted(alert)]
        assert play << p.Outbind(system_id="smsc") == []
        (event,) = play << p.DataSm(sequence=3, esm_class=4, tlvs={0x001E: b"7\x00", 0x0427: b"\x02"})
        receipt = parse_receipt(event.pdu)
        assert (receipt.id, receipt.state) == ("7", "DELIVRD")
        play.session.answer(event.pdu, 0)
        assert play.sent()[-1] == p.DataSmResp(sequence=3)

    def test_row_24_fragments_and_coalesced_reads(self):
        play = Playbook()
        (bind,) = play.sent()
        stream = (
            p.BindTransceiverResp(sequence=bind.sequence, system_id="x").encode() + p.DeliverSm(sequence=2).encode()
        )
        events = [event for octet in stream for event in play << bytes((octet,))]
        assert [type(event) for event in events] == [s.Bound, s.Delivered]
        again = Playbook()
        (bind,) = again.sent()
        assert [type(event) for event in again << stream] == [s.Bound, s.Delivered]

    def test_row_25_vendor_codes_and_unknown_tlvs(self):
        play = bound()
        (event,) = play << p.SubmitSmResp(sequence=play.submit(), status=0x0419)
        assert event.status == 0x0419
        assert "0x419" in st.sentence(0x0419)
        (event,) = play << p.SubmitSmResp(sequence=play.submit(), message_id="1", tlvs={0x1403: b"\xff"})
        assert event.message_id == "1"

    def test_row_26_a_refused_bind_says_why(self):
        play = Playbook()
        (bind,) = play.sent()
        events = play << p.BindTransceiverResp(sequence=bind.sequence, status=st.ESME_RINVPASWD)
        assert events[0] == s.BindRefused(0x0E)
        assert "ESME_RINVPASWD" in events[1].reason

    def test_a_receiver_never_submits(self):
        play = Playbook(bind_type=BindType.RECEIVER)
        (bind,) = play.sent()
        play << p.BindReceiverResp(sequence=bind.sequence, system_id="x")
        assert play.session.room == 0

    def test_an_unreadable_response_leaves_its_submit_unknown(self):
        play = bound()
        sequence = play.submit("a")
        frame = bytearray(p.SubmitSmResp(sequence=sequence, message_id="1", tlvs={1: b"xx"}).encode())
        frame[-3] = 200
        events = play << bytes(frame)
        assert s.TimedOut("a") in events


class TestReceiptFlags:
    """esm_class is read bit by bit."""

    @pytest.mark.parametrize("esm_class", [0x04, 0x20, 0x44, 0x24, 0x05])
    def test_row_15_receipt(self, esm_class):
        assert is_receipt(p.DeliverSm(esm_class=esm_class))

    @pytest.mark.parametrize("esm_class", [0x00, 0x40, 0x08, 0x01])
    def test_row_15_not_a_receipt(self, esm_class):
        assert not is_receipt(p.DeliverSm(esm_class=esm_class))
