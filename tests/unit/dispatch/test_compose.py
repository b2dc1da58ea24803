"""From a message to its submit_sm."""

from __future__ import annotations

import pytest

from controlplane.dispatch.compose import compose
from controlplane.domain.catalog import Connector
from controlplane.domain.message import Message, Part, PartState
from controlplane.domain.text import analyse


def message(body: str, **fields) -> Message:
    analysis = analyse(body)
    parts = [Part() for _ in range(analysis.parts)]
    return Message(
        mid="m",
        to="+4915112345678",
        sender="Helio",
        body=body,
        encoding=analysis.encoding.value,
        parts=parts,
        expires_at=70_000,
        ref=0x1234,
        **fields,
    )


def connector(**fields) -> Connector:
    return Connector(**{"name": "c", "host": "h", "port": 1, "system_id": "s", "password": "p", **fields})


@pytest.mark.parametrize("bits", [1, 17])
def test_row_21_registered_delivery_is_set_on_every_part(bits):
    pdus = compose(message("x" * 400), connector(registered_delivery=bits), 0)
    assert [pdu.registered_delivery for _, pdu in pdus] == [bits] * 3


def test_row_22_the_remaining_validity_is_passed_on():
    ((_, pdu),) = compose(message("x"), connector(), 10_000)
    assert pdu.validity_period == "000000000100000R"
    ((_, pdu),) = compose(message("x"), connector(send_validity=False), 10_000)
    assert pdu.validity_period == ""


def test_only_what_is_pending_is_sent_with_the_same_reference():
    long = message("x" * 400)
    long.parts[0].state = PartState.SUBMITTED
    pdus = compose(long, connector(), 0)
    assert [numbers for numbers, _ in pdus] == [(2,), (3,)]
    assert {pdu.short_message[3] for _, pdu in pdus} == {0x34}


def test_what_was_shown_is_sent_also_with_a_wider_header():
    body = "x" * 459
    assert analyse(body).parts == 3
    assert len(compose(message(body), connector(long_messages="udh16"), 0)) == 3


def test_payload_carries_all_parts():
    ((numbers, pdu),) = compose(message("x" * 400), connector(long_messages="payload"), 0)
    assert numbers == (1, 2, 3)
    assert pdu.tlvs == {0x0424: b"x" * 400}
