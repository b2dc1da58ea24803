"""From a message and a connector to the submit_sm of each part."""

from __future__ import annotations

from controlplane.domain.address import source_address
from controlplane.domain.catalog import Connector
from controlplane.domain.message import Message
from controlplane.domain.text import Encoding, LongMode, Segment, split
from controlplane.smpp.pdu import SubmitSm, relative_time
from controlplane.smpp.tlv import MESSAGE_PAYLOAD, SAR_MSG_REF_NUM, SAR_SEGMENT_SEQNUM, SAR_TOTAL_SEGMENTS

__all__ = ["compose"]


def compose(message: Message, connector: Connector, now_ms: int) -> list[tuple[tuple[int, ...], SubmitSm]]:
    """The PDUs of the parts that are still to be submitted: ((part numbers it carries), submit_sm).

    One PDU carries one part, but for `long_messages = "payload"`, where one PDU carries them all in message_payload.
    """
    pending = set(message.pending)
    segments = _segments(message, connector)
    if len(segments) == 1:
        carried = [(tuple(range(1, len(message.parts) + 1)), segments[0])]
    else:
        carried = [((number,), segment) for number, segment in enumerate(segments, 1)]
    seconds = max(1, (message.expires_at - now_ms) // 1000)
    validity = relative_time(seconds) if connector.send_validity else ""
    ton, npi, source = source_address(message.sender, connector.source_ton, connector.source_npi)
    return [
        (
            numbers,
            SubmitSm(
                service_type=connector.service_type,
                source_ton=ton,
                source_npi=npi,
                source_addr=source,
                dest_ton=connector.dest_ton,
                dest_npi=connector.dest_npi,
                dest_addr=message.to.removeprefix("+"),
                esm_class=segment.esm_class,
                validity_period=validity,
                registered_delivery=connector.registered_delivery,
                data_coding=segment.data_coding,
                short_message=b"" if segment.payload else segment.data,
                tlvs=_tlvs(segment),
            ),
        )
        for numbers, segment in carried
        if pending.issuperset(numbers)
    ]


def _segments(message: Message, connector: Connector) -> list[Segment]:
    mode = LongMode(connector.long_messages)
    segments = _split(message, connector, mode)
    if mode is not LongMode.PAYLOAD and len(segments) != len(message.parts):
        # A 16-bit reference leaves less room a part. What was shown and priced at acceptance is what is sent.
        segments = _split(message, connector, LongMode.UDH8)
    return segments


def _split(message: Message, connector: Connector, mode: LongMode) -> list[Segment]:
    return split(
        message.body,
        Encoding(message.encoding),
        mode=mode,
        reference=message.ref,
        default_alphabet=connector.default_alphabet,
    )


def _tlvs(segment: Segment) -> dict[int, bytes] | None:
    if segment.payload:
        return {MESSAGE_PAYLOAD: segment.data}
    if segment.sar is not None:
        reference, total, number = segment.sar
        return {
            SAR_MSG_REF_NUM: reference.to_bytes(2, "big"),
            SAR_TOTAL_SEGMENTS: bytes([total]),
            SAR_SEGMENT_SEQNUM: bytes([number]),
        }
    return None
