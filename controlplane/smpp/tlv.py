"""Optional parameters (SMPP 3.4 section 5.3). Unknown tags are kept raw."""

from __future__ import annotations

from controlplane.smpp.status import ESME_RINVOPTPARSTREAM

__all__ = [
    "MESSAGE_PAYLOAD",
    "MESSAGE_STATE",
    "NETWORK_ERROR_CODE",
    "RECEIPTED_MESSAGE_ID",
    "SAR_MSG_REF_NUM",
    "SAR_SEGMENT_SEQNUM",
    "SAR_TOTAL_SEGMENTS",
    "SC_INTERFACE_VERSION",
    "TlvError",
    "decode",
    "encode",
]

SC_INTERFACE_VERSION = 0x0210
RECEIPTED_MESSAGE_ID = 0x001E
SAR_MSG_REF_NUM = 0x020C
SAR_TOTAL_SEGMENTS = 0x020E
SAR_SEGMENT_SEQNUM = 0x020F
NETWORK_ERROR_CODE = 0x0423
MESSAGE_PAYLOAD = 0x0424
MESSAGE_STATE = 0x0427


class TlvError(ValueError):
    """The optional part of a PDU does not add up."""

    status = ESME_RINVOPTPARSTREAM


def encode(tlvs: dict[int, bytes]) -> bytes:
    """Tag, length, value of each."""
    return b"".join(tag.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value for tag, value in tlvs.items())


def decode(data: bytes) -> dict[int, bytes]:
    """By tag; of a repeated tag the last counts. Raises TlvError for a length beyond the end."""
    found: dict[int, bytes] = {}
    position, end = 0, len(data)
    while position < end:
        if position + 4 > end:
            raise TlvError(f"{end - position} octets are left, too few for a tag and a length")
        tag = data[position] << 8 | data[position + 1]
        size = data[position + 2] << 8 | data[position + 3]
        position += 4
        if position + size > end:
            raise TlvError(f"tag 0x{tag:04X} claims {size} octets, {end - position} are left")
        found[tag] = data[position : position + size]
        position += size
    return found
