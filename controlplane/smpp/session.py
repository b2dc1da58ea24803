"""One client session as a state machine (SMPP 3.4 chapter 2): bytes and time in, events and bytes out.

Time is monotonic seconds, given by the caller. Every submit ends in exactly one of: `Responded`, `TimedOut` (then perhaps `LateResponse`), or a place in
`Lost.tokens`. What timed out or was lost may have been taken by the carrier: it is unknown, and never sent again here.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from controlplane.domain.catalog import BindType
from controlplane.smpp import pdu as p
from controlplane.smpp.status import ESME_RINVBNDSTS, ESME_RINVCMDID, ESME_ROK, name
from controlplane.smpp.tlv import SC_INTERFACE_VERSION

__all__ = [
    "Alerted",
    "BindRefused",
    "Bound",
    "Closed",
    "Delivered",
    "LateResponse",
    "Lost",
    "ProtocolError",
    "Queried",
    "Responded",
    "Session",
    "SessionConfig",
    "SessionEvent",
    "SessionState",
    "TimedOut",
]

_LAST_SEQUENCE = 0x7FFFFFFF
_LATE_KEPT = 10_000
_NEVER = float("inf")


class SessionState(Enum):
    """Section 2.2, as the client sees it."""

    OPEN = "open"
    BINDING = "binding"
    BOUND = "bound"
    UNBINDING = "unbinding"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """What a session needs of its connector. Times in seconds."""

    system_id: str
    password: str
    system_type: str = ""
    bind_type: BindType = BindType.TRANSCEIVER
    window: int = 10
    enquire_link_seconds: float = 30.0
    response_seconds: float = 30.0
    bind_seconds: float = 10.0
    unbind_seconds: float = 5.0
    max_pdu: int = p.MAX_PDU


@dataclass(frozen=True, slots=True)
class Bound:
    """The bind was accepted."""

    peer: str
    version: int


@dataclass(frozen=True, slots=True)
class BindRefused:
    """The bind was refused; `Closed` follows."""

    status: int


class Responded(NamedTuple):
    """The answer to one submit_sm: submit_sm_resp, or a generic_nack that names it."""

    token: object
    status: int
    message_id: str
    latency: float


@dataclass(frozen=True, slots=True)
class TimedOut:
    """No answer within response_seconds."""

    token: object


@dataclass(frozen=True, slots=True)
class LateResponse:
    """The answer to a submit that had timed out."""

    token: object
    status: int
    message_id: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The session ended with these submits unanswered."""

    tokens: tuple[object, ...]
    reason: str


@dataclass(slots=True)
class Delivered:
    """A deliver_sm or data_sm: to be answered with `Session.answer`."""

    pdu: p.DeliverSm | p.DataSm


@dataclass(frozen=True, slots=True)
class Alerted:
    """An alert_notification."""

    pdu: p.AlertNotification


@dataclass(frozen=True, slots=True)
class Queried:
    """The answer to one query_sm; None: refused, timed out or lost."""

    token: object
    response: p.QuerySmResp | None


@dataclass(frozen=True, slots=True)
class ProtocolError:
    """The peer sent something that is not SMPP; `raw` is what it was."""

    detail: str
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over: close the socket."""

    reason: str


SessionEvent = (
    Bound
    | BindRefused
    | Responded
    | TimedOut
    | LateResponse
    | Lost
    | Delivered
    | Alerted
    | Queried
    | ProtocolError
    | Closed
)

_BINDS: dict[BindType, type[p.BindTransceiver | p.BindTransmitter | p.BindReceiver]] = {
    BindType.TRANSCEIVER: p.BindTransceiver,
    BindType.TRANSMITTER: p.BindTransmitter,
    BindType.RECEIVER: p.BindReceiver,
}


class _Waiting(NamedTuple):
    token: object
    sent: float
    query: bool


class Session:
    """One session, from connected socket to closed one."""

    def __init__(self, config: SessionConfig, *, sequence: int = 1) -> None:
        self.config = config
        self.window = config.window
        self.state = SessionState.OPEN
        self._sequence = sequence
        self._framer = p.Framer(config.max_pdu)
        self._out: list[bytes] = []
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()
        """Requests without answer, oldest first."""
        self._late: OrderedDict[int, object] = OrderedDict()
        self._submits = 0
        self._bind_sequence = 0
        self._unbind_sequence = 0
        self._deadline = _NEVER
        """When binding or unbinding has taken too long."""
        self._heard = 0.0
        self._enquired: float | None = None
        self._closed_reason = ""

    # -- what the owner asks -------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self.state is SessionState.CLOSED

    @property
    def in_flight(self) -> int:
        """Submits without answer."""
        return self._submits

    @property
    def room(self) -> int:
        """Submits that the window allows now; 0 unless bound for sending."""
        if self.state is not SessionState.BOUND or self.config.bind_type is BindType.RECEIVER:
            return 0
        return max(0, self.window - self._submits)

    @property
    def next_deadline(self) -> float:
        """When `tick` must be called at the latest."""
        deadline = self._deadline
        if self._waiting:
            deadline = min(deadline, next(iter(self._waiting.values())).sent + self.config.response_seconds)
        if self.state is SessionState.BOUND:
            since = self._enquired if self._enquired is not None else self._heard
            wait = self.config.response_seconds if self._enquired is not None else self.config.enquire_link_seconds
            deadline = min(deadline, since + wait)
        return deadline

    def outgoing(self) -> bytes:
        """Take the bytes that are to be written."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def start(self, now: float) -> None:
        """The socket is connected: bind."""
        config = self.config
        self._bind_sequence = self._next()
        bind = _BINDS[config.bind_type](
            sequence=self._bind_sequence,
            system_id=config.system_id,
            password=config.password,
            system_type=config.system_type,
        )
        self._out.append(bind.encode())
        self.state = SessionState.BINDING
        self._heard = now
        self._deadline = now + config.bind_seconds

    def submit(self, pdu: p.SubmitSm, token: object, now: float) -> None:
        """Send. `token` comes back with the outcome. RuntimeError when there is no room, ValueError when the PDU breaks a limit."""
        if self.room <= 0:
            raise RuntimeError(f"no room: state {self.state.value}, {self._submits} of {self.window} in flight")
        pdu.sequence = self._next()
        self._out.append(pdu.encode())
        self._waiting[pdu.sequence] = _Waiting(token, now, False)
        self._submits += 1

    def query(self, pdu: p.QuerySm, token: object, now: float) -> None:
        """Ask for a message's state; the answer is a Queried. RuntimeError unless bound for sending."""
        if self.state is not SessionState.BOUND or self.config.bind_type is BindType.RECEIVER:
            raise RuntimeError(f"cannot query: state {self.state.value}")
        pdu.sequence = self._next()
        self._out.append(pdu.encode())
        self._waiting[pdu.sequence] = _Waiting(token, now, True)

    def answer(self, pdu: p.DeliverSm | p.DataSm, status: int) -> None:
        """Answer a delivered PDU; nothing happens once the session is closed."""
        if self.state in (SessionState.BOUND, SessionState.UNBINDING):
            kind = p.DeliverSmResp if isinstance(pdu, p.DeliverSm) else p.DataSmResp
            self._out.append(kind(sequence=pdu.sequence, status=status).encode())

    def unbind(self, now: float) -> None:
        """Send unbind; submits that wait for an answer get unbind_seconds for it."""
        if self.state is SessionState.BOUND:
            self._unbind_sequence = self._next()
            self._out.append(p.Unbind(sequence=self._unbind_sequence).encode())
            self.state = SessionState.UNBINDING
            self._deadline = now + self.config.unbind_seconds

    # -- what happens --------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[SessionEvent]:
        """Bytes came from the peer."""
        if self.closed:
            return []
        self._heard = now
        self._enquired = None
        events: list[SessionEvent] = []
        try:
            frames = self._framer.feed(data)
        except p.FramingError as error:
            self._out.append(p.GenericNack(status=2).encode())
            events.append(ProtocolError(str(error), data[:64]))
            return events + self._close(f"framing: {error}")
        for frame in frames:
            if self._over():  # a frame before this one ended the session
                break
            try:
                pdu = p.decode(frame)
            except p.PduError as error:
                events += self._undecodable(error, frame, now)
            else:
                events += self._take(pdu, now)
        return events

    def tick(self, now: float) -> list[SessionEvent]:
        """Time passed."""
        if self.closed:
            return []
        if now >= self._deadline:
            what = "bind" if self.state is SessionState.BINDING else "unbind"
            return self._close(f"no {what} response in time")
        events = self._expire(now)
        if self.state is SessionState.BOUND:
            if self._enquired is not None and now - self._enquired >= self.config.response_seconds:
                return events + self._close("enquire_link unanswered: the peer is dead")
            if self._enquired is None and now - self._heard >= self.config.enquire_link_seconds:
                self._out.append(p.EnquireLink(sequence=self._next()).encode())
                self._enquired = now
        return events

    def connection_lost(self, reason: str) -> list[SessionEvent]:
        """The socket is gone."""
        return [] if self.state is SessionState.CLOSED else self._close(reason)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        while True:
            sequence = self._sequence
            self._sequence = 1 if sequence >= _LAST_SEQUENCE else sequence + 1
            if sequence not in self._waiting:
                self._late.pop(sequence, None)
                return sequence

    def _over(self) -> bool:
        return self.state is SessionState.CLOSED

    def _expire(self, now: float) -> list[SessionEvent]:
        events: list[SessionEvent] = []
        while self._waiting:
            sequence, waiting = next(iter(self._waiting.items()))
            if now - waiting.sent < self.config.response_seconds:
                break
            del self._waiting[sequence]
            if waiting.query:
                events.append(Queried(waiting.token, None))
                continue
            self._submits -= 1
            self._late[sequence] = waiting.token
            if len(self._late) > _LATE_KEPT:
                self._late.popitem(last=False)
            events.append(TimedOut(waiting.token))
        return events

    def _close(self, reason: str) -> list[SessionEvent]:
        self.state = SessionState.CLOSED
        self._deadline = _NEVER
        events: list[SessionEvent] = [Queried(w.token, None) for w in self._waiting.values() if w.query]
        lost = tuple(w.token for w in self._waiting.values() if not w.query)
        self._waiting.clear()
        self._submits = 0
        if lost:
            events.append(Lost(lost, reason))
        events.append(Closed(reason))
        return events

    def _undecodable(self, error: p.PduError, frame: bytes, now: float) -> list[SessionEvent]:
        """Answer what cannot be read. An unreadable response still ends its request: its outcome is not known."""
        events: list[SessionEvent] = [ProtocolError(str(error), frame)]
        waiting = self._waiting.get(error.sequence)
        if error.command_id & p.RESPONSE:
            if waiting is not None and not waiting.query:
                del self._waiting[error.sequence]
                self._submits -= 1
                events.append(TimedOut(waiting.token))
        elif error.command_id == p.DeliverSm.ID:
            self._out.append(p.DeliverSmResp(sequence=error.sequence, status=error.status).encode())
        elif error.command_id == p.DataSm.ID:
            self._out.append(p.DataSmResp(sequence=error.sequence, status=error.status).encode())
        else:
            self._out.append(p.GenericNack(sequence=error.sequence, status=error.status).encode())
        del now
        return events

    def _take(self, pdu: p.Pdu, now: float) -> list[SessionEvent]:
        if isinstance(pdu, p.SubmitSmResp):
            return self._responded(pdu.sequence, pdu.status, pdu.message_id, now)
        if isinstance(pdu, p.DeliverSm | p.DataSm):
            return self._delivered(pdu)
        if isinstance(pdu, p.EnquireLink):
            self._out.append(p.EnquireLinkResp(sequence=pdu.sequence).encode())
            return []
        if isinstance(pdu, p.BindTransceiverResp | p.BindTransmitterResp | p.BindReceiverResp):
            return self._bind_answered(pdu)
        if isinstance(pdu, p.GenericNack):
            return self._nacked(pdu, now)
        return self._take_rare(pdu, now)

    def _take_rare(self, pdu: p.Pdu, now: float) -> list[SessionEvent]:
        if isinstance(pdu, p.Unbind):
            return self._peer_unbinds(pdu, now)
        if isinstance(pdu, p.UnbindResp):
            return self._close("unbound") if self.state is SessionState.UNBINDING and self._unbind_sequence else []
        if isinstance(pdu, p.QuerySmResp):
            waiting = self._waiting.pop(pdu.sequence, None)
            return [Queried(waiting.token, pdu if pdu.status == ESME_ROK else None)] if waiting else []
        if isinstance(pdu, p.AlertNotification):
            return [Alerted(pdu)]
        if isinstance(pdu, p.Outbind):
            return []  # we are bound, or binding, already
        if isinstance(pdu, p.Unknown) and pdu.command_id & p.RESPONSE:
            return [ProtocolError(f"unknown response 0x{pdu.command_id:08X}", pdu.raw)]
        if not type(pdu).ID & p.RESPONSE:
            self._out.append(p.GenericNack(sequence=pdu.sequence, status=ESME_RINVCMDID).encode())
            command = pdu.command_id if isinstance(pdu, p.Unknown) else type(pdu).ID
            return [ProtocolError(f"unexpected command 0x{command:08X}")]
        return []

    def _bind_answered(
        self, pdu: p.BindTransceiverResp | p.BindTransmitterResp | p.BindReceiverResp
    ) -> list[SessionEvent]:
        if self.state is not SessionState.BINDING or pdu.sequence != self._bind_sequence:
            return [ProtocolError("a bind response that nobody asked for")]
        if pdu.status != ESME_ROK:
            return [BindRefused(pdu.status), *self._close(f"bind refused: {name(pdu.status)}")]
        self.state = SessionState.BOUND
        self._deadline = _NEVER
        version = (pdu.tlvs or {}).get(SC_INTERFACE_VERSION, b"\x33")
        return [Bound(pdu.system_id, version[0] if version else 0x33)]

    def _responded(self, sequence: int, status: int, message_id: str, now: float) -> list[SessionEvent]:
        waiting = self._waiting.get(sequence)
        if waiting is not None and not waiting.query:
            del self._waiting[sequence]
            self._submits -= 1
            events: list[SessionEvent] = [Responded(waiting.token, status, message_id, now - waiting.sent)]
            return events + self._drained()
        token = self._late.pop(sequence, None)
        return [LateResponse(token, status, message_id)] if token is not None else []

    def _nacked(self, pdu: p.GenericNack, now: float) -> list[SessionEvent]:
        if pdu.sequence in self._waiting or pdu.sequence in self._late:
            waiting = self._waiting.get(pdu.sequence)
            if waiting is not None and waiting.query:
                del self._waiting[pdu.sequence]
                return [Queried(waiting.token, None)]
            return self._responded(pdu.sequence, pdu.status or ESME_RINVCMDID, "", now)
        if self.state is SessionState.BINDING and pdu.sequence in (0, self._bind_sequence):
            return [BindRefused(pdu.status), *self._close(f"bind refused: {name(pdu.status)}")]
        if pdu.sequence == 0:
            return [ProtocolError("generic_nack without a sequence number"), *self._close("generic_nack")]
        return []

    def _delivered(self, pdu: p.DeliverSm | p.DataSm) -> list[SessionEvent]:
        if self.state not in (SessionState.BOUND, SessionState.UNBINDING):
            kind = p.DeliverSmResp if isinstance(pdu, p.DeliverSm) else p.DataSmResp
            self._out.append(kind(sequence=pdu.sequence, status=ESME_RINVBNDSTS).encode())
            return [ProtocolError("a delivery before the bind")]
        return [Delivered(pdu)]

    def _peer_unbinds(self, pdu: p.Unbind, now: float) -> list[SessionEvent]:
        """Answer at once; then wait a while for the responses that are still on their way."""
        self._out.append(p.UnbindResp(sequence=pdu.sequence).encode())
        if self.state is SessionState.BOUND:
            self.state = SessionState.UNBINDING
            self._deadline = now + self.config.unbind_seconds
            self._unbind_sequence = 0
        return self._drained() if not self._submits else []

    def _drained(self) -> list[SessionEvent]:
        """The peer has unbound and nothing waits any more."""
        if self.state is SessionState.UNBINDING and not self._unbind_sequence and not self._submits:
            return self._close("the peer unbound")
        return []
