"""SMPP 3.4 PDUs: encode, decode, frame (section 4; field sizes of section 5.2).

Any bytes decode to a PDU or raise PduError, which says how to answer them. Strings are Latin-1, so that every octet a peer sends survives.
Lengths beyond the specification's are accepted on the way in, where no harm comes of it (real carriers send 65-octet message ids and longer), and refused on
the way out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import ClassVar, Self

from controlplane.smpp import tlv
from controlplane.smpp.status import ESME_RINVCMDID, ESME_RINVCMDLEN, ESME_RINVMSGLEN, ESME_RINVPARLEN

__all__ = [
    "AlertNotification",
    "BindReceiver",
    "BindReceiverResp",
    "BindTransceiver",
    "BindTransceiverResp",
    "BindTransmitter",
    "BindTransmitterResp",
    "CancelSm",
    "CancelSmResp",
    "DataSm",
    "DataSmResp",
    "DeliverSm",
    "DeliverSmResp",
    "EnquireLink",
    "EnquireLinkResp",
    "Framer",
    "FramingError",
    "GenericNack",
    "Outbind",
    "Pdu",
    "PduError",
    "QuerySm",
    "QuerySmResp",
    "ReplaceSm",
    "ReplaceSmResp",
    "SubmitSm",
    "SubmitSmResp",
    "Unbind",
    "UnbindResp",
    "Unknown",
    "absolute_time",
    "decode",
    "parse_time",
    "relative_time",
]

HEADER = 16
MAX_PDU = 70_000
RESPONSE = 0x80000000
_head = struct.Struct(">IIII")


class PduError(Exception):
    """A frame that is no PDU. Answer `command_id` (a generic_nack where the command is unknown) with `status`."""

    def __init__(self, detail: str, *, status: int, sequence: int, command_id: int) -> None:
        super().__init__(detail)
        self.status = status
        self.sequence = sequence
        self.command_id = command_id


class FramingError(Exception):
    """A command_length that cannot be: nothing that follows can be read. The session ends."""


class Framer:
    """Cuts a byte stream into PDUs by command_length, from the first octet, however TCP fragments or joins it."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = MAX_PDU) -> None:
        self._buffer = b""
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The frames (header included) that `data` completes. Raises FramingError."""
        buffer = self._buffer + data if self._buffer else bytes(data)
        frames: list[bytes] = []
        position, size = 0, len(buffer)
        while size - position >= 4:
            length = int.from_bytes(buffer[position : position + 4], "big")
            if not HEADER <= length <= self._limit:
                self._buffer = b""
                raise FramingError(f"command_length {length} is not between {HEADER} and {self._limit}")
            if size - position < length:
                break
            frames.append(buffer[position : position + length])
            position += length
        self._buffer = buffer[position:]
        return frames


class _Reader:
    """Mandatory fields of a body, in order."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def cstring(self) -> str:
        end = self.data.find(0, self.position)
        if end < 0:
            raise _FieldError("a string has no end")
        text = self.data[self.position : end].decode("latin-1")
        self.position = end + 1
        return text

    def octet(self) -> int:
        if self.position >= len(self.data):
            raise _FieldError("an integer is missing")
        value = self.data[self.position]
        self.position += 1
        return value

    def octets(self, size: int) -> bytes:
        value = self.data[self.position : self.position + size]
        if len(value) < size:
            raise _FieldError(f"{size} octets are announced, {len(value)} are there", ESME_RINVMSGLEN)
        self.position += size
        return value

    def tlvs(self) -> dict[int, bytes] | None:
        return tlv.decode(self.data[self.position :]) if self.position < len(self.data) else None


class _FieldError(ValueError):
    def __init__(self, detail: str, status: int = ESME_RINVCMDLEN) -> None:
        super().__init__(detail)
        self.status = status


def _c(value: str, limit: int, field: str) -> bytes:
    """A C-octet string of at most `limit` octets with its NUL."""
    if not value:
        return b"\x00"
    data = value.encode("latin-1")
    if len(data) >= limit or b"\x00" in data:
        raise ValueError(f"{field} must have at most {limit - 1} characters and no NUL")
    return data + b"\x00"


@lru_cache(maxsize=4096)
def _source(service_type: str, ton: int, npi: int, address: str, dest_ton: int, dest_npi: int) -> bytes:
    """The head of a submit_sm, up to dest_addr_npi: a sender's messages all have the same."""
    return (
        _c(service_type, 6, "service_type")
        + bytes((ton, npi))
        + _c(address, 21, "source_addr")
        + bytes((dest_ton, dest_npi))
    )


@dataclass(slots=True, kw_only=True)
class Pdu:
    """One PDU. `sequence` is set by the session."""

    ID: ClassVar[int] = 0
    sequence: int = 0
    status: int = 0

    def body(self) -> bytes:
        """The octets after the header."""
        return b""

    @classmethod
    def read(cls, _data: bytes) -> Self:
        """From the octets after the header."""
        return cls()

    def encode(self) -> bytes:
        """The whole frame."""
        body = self.body()
        return _head.pack(HEADER + len(body), self.ID, self.status, self.sequence) + body


@dataclass(slots=True, kw_only=True)
class _Bind(Pdu):
    system_id: str = ""
    password: str = ""
    system_type: str = ""
    interface_version: int = 0x34
    addr_ton: int = 0
    addr_npi: int = 0
    address_range: str = ""

    def body(self) -> bytes:
        return (
            _c(self.system_id, 16, "system_id")
            + _c(self.password, 9, "password")
            + _c(self.system_type, 13, "system_type")
            + bytes((self.interface_version, self.addr_ton, self.addr_npi))
            + _c(self.address_range, 41, "address_range")
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        r = _Reader(data)
        return cls(
            system_id=r.cstring(),
            password=r.cstring(),
            system_type=r.cstring(),
            interface_version=r.octet(),
            addr_ton=r.octet(),
            addr_npi=r.octet(),
            address_range=r.cstring(),
        )


@dataclass(slots=True, kw_only=True)
class _BindResp(Pdu):
    system_id: str = ""
    tlvs: dict[int, bytes] | None = None

    def body(self) -> bytes:
        if self.status:
            return b""
        return _c(self.system_id, 16, "system_id") + tlv.encode(self.tlvs or {})

    @classmethod
    def read(cls, data: bytes) -> Self:
        r = _Reader(data)
        return cls(system_id=r.cstring() if data else "", tlvs=r.tlvs())


class BindReceiver(_Bind):
    """Section 4.1.3."""

    ID = 0x00000001


class BindReceiverResp(_BindResp):
    """Section 4.1.4."""

    ID = 0x80000001


class BindTransmitter(_Bind):
    """Section 4.1.1."""

    ID = 0x00000002


class BindTransmitterResp(_BindResp):
    """Section 4.1.2."""

    ID = 0x80000002


class BindTransceiver(_Bind):
    """Section 4.1.5."""

    ID = 0x00000009


class BindTransceiverResp(_BindResp):
    """Section 4.1.6."""

    ID = 0x80000009


@dataclass(slots=True, kw_only=True)
class _Sm(Pdu):
    """The body that submit_sm and deliver_sm share (tables 4-10 and 4-12)."""

    service_type: str = ""
    source_ton: int = 0
    source_npi: int = 0
    source_addr: str = ""
    dest_ton: int = 0
    dest_npi: int = 0
    dest_addr: str = ""
    esm_class: int = 0
    protocol_id: int = 0
    priority: int = 0
    schedule_delivery_time: str = ""
    validity_period: str = ""
    registered_delivery: int = 0
    replace_if_present: int = 0
    data_coding: int = 0
    sm_default_msg_id: int = 0
    short_message: bytes = b""
    tlvs: dict[int, bytes] | None = None

    @property
    def message(self) -> bytes:
        """short_message, or message_payload where that carries the text."""
        if self.short_message or not self.tlvs:
            return self.short_message
        return self.tlvs.get(tlv.MESSAGE_PAYLOAD, b"")

    def body(self) -> bytes:
        if len(self.short_message) > 254:
            raise ValueError("short_message must have at most 254 octets; use message_payload")
        body = (
            _source(self.service_type, self.source_ton, self.source_npi, self.source_addr, self.dest_ton, self.dest_npi)
            + _c(self.dest_addr, 21, "destination_addr")
            + bytes((self.esm_class, self.protocol_id, self.priority))
            + _c(self.schedule_delivery_time, 17, "schedule_delivery_time")
            + _c(self.validity_period, 17, "validity_period")
            + bytes(
                (
                    self.registered_delivery,
                    self.replace_if_present,
                    self.data_coding,
                    self.sm_default_msg_id,
                    len(self.short_message),
                )
            )
            + self.short_message
        )
        return body + tlv.encode(self.tlvs) if self.tlvs else body

    @classmethod
    def read(cls, data: bytes) -> Self:
        pdu = cls.__new__(cls)
        pdu.sequence = pdu.status = 0
        try:
            end = data.index(0)
            pdu.service_type = data[:end].decode("latin-1")
            pdu.source_ton, pdu.source_npi = data[end + 1], data[end + 2]
            start, end = end + 3, data.index(0, end + 3)
            pdu.source_addr = data[start:end].decode("latin-1")
            pdu.dest_ton, pdu.dest_npi = data[end + 1], data[end + 2]
            start, end = end + 3, data.index(0, end + 3)
            pdu.dest_addr = data[start:end].decode("latin-1")
            pdu.esm_class, pdu.protocol_id, pdu.priority = data[end + 1], data[end + 2], data[end + 3]
            start, end = end + 4, data.index(0, end + 4)
            pdu.schedule_delivery_time = data[start:end].decode("latin-1")
            start, end = end + 1, data.index(0, end + 1)
            pdu.validity_period = data[start:end].decode("latin-1")
            pdu.registered_delivery, pdu.replace_if_present = data[end + 1], data[end + 2]
            pdu.data_coding, pdu.sm_default_msg_id = data[end + 3], data[end + 4]
            size, start = data[end + 5], end + 6
        except (ValueError, IndexError):
            raise _FieldError("the mandatory parameters do not fit the PDU's length") from None
        end = start + size
        if end > len(data):
            raise _FieldError(f"sm_length {size} exceeds the PDU", ESME_RINVMSGLEN)
        pdu.short_message = data[start:end]
        pdu.tlvs = tlv.decode(data[end:]) if end < len(data) else None
        return pdu


class SubmitSm(_Sm):
    """Section 4.4.1."""

    ID = 0x00000004


class DeliverSm(_Sm):
    """Section 4.6.1."""

    ID = 0x00000005


@dataclass(slots=True, kw_only=True)
class _IdResp(Pdu):
    message_id: str = ""
    tlvs: dict[int, bytes] | None = None

    def body(self) -> bytes:
        if self.status and not self.message_id:
            return b""
        return _c(self.message_id, 65, "message_id") + tlv.encode(self.tlvs or {})

    @classmethod
    def read(cls, data: bytes) -> Self:
        if not data:  # an error response has no body, and some carriers send none with ESME_ROK
            return cls()
        end = data.find(0)
        if end < 0:  # a message id without its NUL: seen in the field, harmless
            return cls(message_id=data.decode("latin-1"))
        rest = data[end + 1 :]
        return cls(message_id=data[:end].decode("latin-1"), tlvs=tlv.decode(rest) if rest else None)


class SubmitSmResp(_IdResp):
    """Section 4.4.2."""

    ID = 0x80000004


class DeliverSmResp(_IdResp):
    """Section 4.6.2."""

    ID = 0x80000005


class DataSmResp(_IdResp):
    """Section 4.7.2."""

    ID = 0x80000103


@dataclass(slots=True, kw_only=True)
class DataSm(Pdu):
    """Section 4.7.1: the text is in message_payload."""

    ID = 0x00000103
    service_type: str = ""
    source_ton: int = 0
    source_npi: int = 0
    source_addr: str = ""
    dest_ton: int = 0
    dest_npi: int = 0
    dest_addr: str = ""
    esm_class: int = 0
    registered_delivery: int = 0
    data_coding: int = 0
    tlvs: dict[int, bytes] | None = None

    @property
    def message(self) -> bytes:
        """message_payload."""
        return (self.tlvs or {}).get(tlv.MESSAGE_PAYLOAD, b"")

    def body(self) -> bytes:
        return (
            _c(self.service_type, 6, "service_type")
            + bytes((self.source_ton, self.source_npi))
            + _c(self.source_addr, 65, "source_addr")
            + bytes((self.dest_ton, self.dest_npi))
            + _c(self.dest_addr, 65, "destination_addr")
            + bytes((self.esm_class, self.registered_delivery, self.data_coding))
            + tlv.encode(self.tlvs or {})
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        r = _Reader(data)
        return cls(
            service_type=r.cstring(),
            source_ton=r.octet(),
            source_npi=r.octet(),
            source_addr=r.cstring(),
            dest_ton=r.octet(),
            dest_npi=r.octet(),
            dest_addr=r.cstring(),
            esm_class=r.octet(),
            registered_delivery=r.octet(),
            data_coding=r.octet(),
            tlvs=r.tlvs(),
        )


class Unbind(Pdu):
    """Section 4.2.1."""

    ID = 0x00000006


class UnbindResp(Pdu):
    """Section 4.2.2."""

    ID = 0x80000006


class EnquireLink(Pdu):
    """Section 4.11.1."""

    ID = 0x00000015


class EnquireLinkResp(Pdu):
    """Section 4.11.2."""

    ID = 0x80000015


class GenericNack(Pdu):
    """Section 4.3.1."""

    ID = 0x80000000


@dataclass(slots=True, kw_only=True)
class QuerySm(Pdu):
    """Section 4.8.1."""

    ID = 0x00000003
    message_id: str = ""
    source_ton: int = 0
    source_npi: int = 0
    source_addr: str = ""

    def body(self) -> bytes:
        return (
            _c(self.message_id, 65, "message_id")
            + bytes((self.source_ton, self.source_npi))
            + _c(self.source_addr, 21, "source_addr")
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        r = _Reader(data)
        return cls(message_id=r.cstring(), source_ton=r.octet(), source_npi=r.octet(), source_addr=r.cstring())


@dataclass(slots=True, kw_only=True)
class QuerySmResp(Pdu):
    """Section 4.8.2."""

    ID = 0x80000003
    message_id: str = ""
    final_date: str = ""
    message_state: int = 0
    error_code: int = 0

    def body(self) -> bytes:
        if self.status:
            return b""
        return (
            _c(self.message_id, 65, "message_id")
            + _c(self.final_date, 17, "final_date")
            + bytes((self.message_state, self.error_code))
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        if not data:
            return cls()
        r = _Reader(data)
        return cls(message_id=r.cstring(), final_date=r.cstring(), message_state=r.octet(), error_code=r.octet())


@dataclass(slots=True, kw_only=True)
class CancelSm(Pdu):
    """Section 4.9.1."""

    ID = 0x00000008
    service_type: str = ""
    message_id: str = ""
    source_ton: int = 0
    source_npi: int = 0
    source_addr: str = ""
    dest_ton: int = 0
    dest_npi: int = 0
    dest_addr: str = ""

    def body(self) -> bytes:
        return (
            _c(self.service_type, 6, "service_type")
            + _c(self.message_id, 65, "message_id")
            + bytes((self.source_ton, self.source_npi))
            + _c(self.source_addr, 21, "source_addr")
            + bytes((self.dest_ton, self.dest_npi))
            + _c(self.dest_addr, 21, "destination_addr")
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        r = _Reader(data)
        return cls(
            service_type=r.cstring(),
            message_id=r.cstring(),
            source_ton=r.octet(),
            source_npi=r.octet(),
            source_addr=r.cstring(),
            dest_ton=r.octet(),
            dest_npi=r.octet(),
            dest_addr=r.cstring(),
        )


class CancelSmResp(Pdu):
    """Section 4.9.2."""

    ID = 0x80000008


@dataclass(slots=True, kw_only=True)
class ReplaceSm(Pdu):
    """Section 4.10.1."""

    ID = 0x00000007
    message_id: str = ""
    source_ton: int = 0
    source_npi: int = 0
    source_addr: str = ""
    schedule_delivery_time: str = ""
    validity_period: str = ""
    registered_delivery: int = 0
    sm_default_msg_id: int = 0
    short_message: bytes = b""

    def body(self) -> bytes:
        return (
            _c(self.message_id, 65, "message_id")
            + bytes((self.source_ton, self.source_npi))
            + _c(self.source_addr, 21, "source_addr")
            + _c(self.schedule_delivery_time, 17, "schedule_delivery_time")
            + _c(self.validity_period, 17, "validity_period")
            + bytes((self.registered_delivery, self.sm_default_msg_id, len(self.short_message)))
            + self.short_message
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        r = _Reader(data)
        return cls(
            message_id=r.cstring(),
            source_ton=r.octet(),
            source_npi=r.octet(),
            source_addr=r.cstring(),
            schedule_delivery_time=r.cstring(),
            validity_period=r.cstring(),
            registered_delivery=r.octet(),
            sm_default_msg_id=r.octet(),
            short_message=r.octets(r.octet()),
        )


class ReplaceSmResp(Pdu):
    """Section 4.10.2."""

    ID = 0x80000007


@dataclass(slots=True, kw_only=True)
class AlertNotification(Pdu):
    """Section 4.12.1: the handset can be reached again."""

    ID = 0x00000102
    source_ton: int = 0
    source_npi: int = 0
    source_addr: str = ""
    esme_ton: int = 0
    esme_npi: int = 0
    esme_addr: str = ""
    tlvs: dict[int, bytes] | None = None

    def body(self) -> bytes:
        return (
            bytes((self.source_ton, self.source_npi))
            + _c(self.source_addr, 65, "source_addr")
            + bytes((self.esme_ton, self.esme_npi))
            + _c(self.esme_addr, 65, "esme_addr")
            + tlv.encode(self.tlvs or {})
        )

    @classmethod
    def read(cls, data: bytes) -> Self:
        r = _Reader(data)
        return cls(
            source_ton=r.octet(),
            source_npi=r.octet(),
            source_addr=r.cstring(),
            esme_ton=r.octet(),
            esme_npi=r.octet(),
            esme_addr=r.cstring(),
            tlvs=r.tlvs(),
        )


@dataclass(slots=True, kw_only=True)
class Outbind(Pdu):
    """Section 4.1.7."""

    ID = 0x0000000B
    system_id: str = ""
    password: str = ""

    def body(self) -> bytes:
        return _c(self.system_id, 16, "system_id") + _c(self.password, 9, "password")

    @classmethod
    def read(cls, data: bytes) -> Self:
        r = _Reader(data)
        return cls(system_id=r.cstring(), password=r.cstring())


@dataclass(slots=True, kw_only=True)
class Unknown(Pdu):
    """A command that SMPP 3.4 does not define: kept raw."""

    command_id: int = 0
    raw: bytes = b""

    def body(self) -> bytes:
        return self.raw

    def encode(self) -> bytes:
        return _head.pack(HEADER + len(self.raw), self.command_id, self.status, self.sequence) + self.raw


_CLASSES: tuple[type[Pdu], ...] = (
    BindReceiver,
    BindReceiverResp,
    BindTransmitter,
    BindTransmitterResp,
    BindTransceiver,
    BindTransceiverResp,
    SubmitSm,
    SubmitSmResp,
    DeliverSm,
    DeliverSmResp,
    DataSm,
    DataSmResp,
    Unbind,
    UnbindResp,
    EnquireLink,
    EnquireLinkResp,
    GenericNack,
    QuerySm,
    QuerySmResp,
    CancelSm,
    CancelSmResp,
    ReplaceSm,
    ReplaceSmResp,
    AlertNotification,
    Outbind,
)
_READ: dict[int, Callable[[bytes], Pdu]] = {cls.ID: cls.read for cls in _CLASSES}


def decode(frame: bytes) -> Pdu:
    """One PDU from a frame (header included). Raises PduError and nothing else."""
    if len(frame) < HEADER:
        raise PduError("shorter than a header", status=ESME_RINVCMDLEN, sequence=0, command_id=0)
    length, command_id, status, sequence = _head.unpack_from(frame)
    if length != len(frame):
        raise PduError(
            f"command_length {length} of {len(frame)} octets",
            status=ESME_RINVCMDLEN,
            sequence=sequence,
            command_id=command_id,
        )
    read = _READ.get(command_id)
    if read is None:
        pdu: Pdu = Unknown(command_id=command_id, raw=frame[HEADER:])
    else:
        try:
            pdu = read(frame[HEADER:])
        except (_FieldError, tlv.TlvError) as error:
            raise PduError(str(error), status=error.status, sequence=sequence, command_id=command_id) from None
    pdu.sequence = sequence
    pdu.status = status
    return pdu


def unknown_command(pdu: Unknown) -> GenericNack:
    """The answer to a request that we do not know (section 4.3.1)."""
    return GenericNack(sequence=pdu.sequence, status=ESME_RINVCMDID)


def both_texts(pdu: SubmitSm | DeliverSm) -> int | None:
    """ESME_RINVPARLEN where short_message and message_payload are both set (section 5.3.2.32), else None."""
    if pdu.short_message and pdu.tlvs and tlv.MESSAGE_PAYLOAD in pdu.tlvs:
        return ESME_RINVPARLEN
    return None


@lru_cache(maxsize=4096)
def relative_time(seconds: int) -> str:
    """YYMMDDhhmmss000R of section 7.1.1.2, with years and months of 0: at most 99 days."""
    seconds = min(max(seconds, 0), 99 * 86_400 - 1)
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    return f"0000{days:02d}{hours:02d}{minutes:02d}{rest:02d}000R"


def absolute_time(ms: int) -> str:
    """YYMMDDhhmmsstnn+ of section 7.1.1.1, in UTC. `ms` since the Unix epoch."""
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.strftime("%y%m%d%H%M%S") + f"{at.microsecond // 100_000}00+"


def parse_time(text: str, now_ms: int) -> int | None:
    """Either form as ms since the Unix epoch; None for "" and for what is neither. Quarter hours of time zone are honoured."""
    if len(text) != 16 or not text[:15].isdigit():
        return None
    numbers = [int(text[position : position + 2]) for position in range(0, 12, 2)]
    if text[15] == "R":
        years, months, days, hours, minutes, seconds = numbers
        span = timedelta(days=years * 365 + months * 30 + days, hours=hours, minutes=minutes, seconds=seconds)
        return now_ms + int(span.total_seconds() * 1000)
    if text[15] not in "+-":
        return None
    offset = timedelta(minutes=15 * int(text[13:15]))
    try:
        zone = timezone(offset if text[15] == "+" else -offset)
        year, month, day, hour, minute, second = numbers
        at = datetime(2000 + year, month, day, hour, minute, second, int(text[12]) * 100_000, zone)
    except ValueError:
        return None
    return int(at.timestamp() * 1000)
