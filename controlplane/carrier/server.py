"""The SMSC's side of SMPP: one `Session` a connection, all of them sharing one `Exchange`."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, cast

from controlplane.carrier.config import Behaviour, CarrierConfig, draw_ms
from controlplane.carrier.ids import new_id
from controlplane.carrier.journal import Journal, digest
from controlplane.carrier.outcome import Fate, decide
from controlplane.carrier.receipts import Receipts, Taken
from controlplane.clock import Clock
from controlplane.domain.text import parse_udh
from controlplane.smpp import pdu as p
from controlplane.smpp import status as st
from controlplane.smpp.tlv import SAR_SEGMENT_SEQNUM, SC_INTERFACE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Exchange", "Session"]

_KEPT = 20_000


class Exchange:
    """What all sessions of the carrier share."""

    def __init__(self, config: CarrierConfig, clock: Clock, rng: random.Random, journal: Journal) -> None:
        self.config = config
        self.behaviour = config.behaviour
        self.clock = clock
        self.rng = rng
        self.journal = journal
        self.sessions: list[Session] = []
        self.counts: Counter[str] = Counter()
        self.by_status: Counter[str] = Counter()
        self.taken: dict[str, Taken] = {}
        self.receipts = Receipts(self)
        self.submits = 0
        self._tokens = 0.0
        self._filled = clock.monotonic()

    def change(self, **values: object) -> Behaviour:
        """Behave differently from now on. Raises pydantic's ValidationError."""
        self.behaviour = Behaviour.model_validate({**self.behaviour.model_dump(), **values})
        return self.behaviour

    def verdict(self, pdu: p.SubmitSm) -> Fate:
        """What is done with this submit."""
        b = self.behaviour
        self.submits += 1
        if b.rate_limit and not self._within_rate(b.rate_limit):
            return Fate(status=st.ESME_RTHROTTLED)
        if b.throttle_every and self.submits % b.throttle_every == 0:
            return Fate(status=st.ESME_RTHROTTLED)
        if b.queue_full_every and self.submits % b.queue_full_every == 0:
            return Fate(status=st.ESME_RMSGQFUL)
        if p.both_texts(pdu) is not None:
            return Fate(status=st.ESME_RINVPARLEN)
        if b.reject_part and _part_number(pdu) == b.reject_part:
            return Fate(status=st.ESME_RSUBMITFAIL if b.reject_part < 0 else st.ESME_RINVDSTADR)
        return decide(b, pdu.dest_addr, self.rng)

    def _within_rate(self, rate: float) -> bool:
        now = self.clock.monotonic()
        self._tokens = min(rate / 10 + 1, self._tokens + (now - self._filled) * rate)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def take(self, pdu: p.SubmitSm, fate: Fate, session: Session) -> Taken:
        """Accept a part: into the journal before anything is answered."""
        message_id = new_id(self.behaviour.id_format, self.submits, self.rng)
        taken = Taken(
            id=message_id,
            source=pdu.source_addr,
            dest=pdu.dest_addr,
            state=fate.state if pdu.registered_delivery & 0x03 else "",
            became=fate.became or fate.state,
            at=self.clock.now_ms(),
            digest=digest(pdu.message),
            text=pdu.message[:20].decode("latin-1"),
            session=session,
        )
        self.counts["accepted"] += 1
        if fate.state:
            self.counts[f"outcome_{fate.state}"] += 1
        self.journal.write(
            e="submit",
            id=message_id,
            src=taken.source,
            dst=taken.dest,
            at=taken.at,
            digest=taken.digest,
            state=taken.state,
        )
        self.taken[message_id] = taken
        if len(self.taken) > _KEPT:
            del self.taken[next(iter(self.taken))]
        return taken


def _part_number(pdu: p.SubmitSm) -> int:
    if pdu.esm_class & 0x40:
        concat, _ = parse_udh(pdu.short_message)
        return concat.number if concat else 0
    value = (pdu.tlvs or {}).get(SAR_SEGMENT_SEQNUM, b"\x00")
    return value[0] if value else 0


class Session(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.transport: asyncio.Transport | None = None
        self.bound = False
        self.receives = False
        self._framer = p.Framer()
        self._sequence = 0
        self._waiting: dict[int, Callable[[int], None]] = {}
        self._out: list[bytes] = []
        self._flushing = False
        self._submits = 0
        self._hangs = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses
        self.exchange.sessions.append(self)
        self.exchange.counts["connections"] += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """asyncio's."""
        if self in self.exchange.sessions:
            self.exchange.sessions.remove(self)
        self.bound = False
        waiting, self._waiting = self._waiting, {}
        for answered in waiting.values():
            answered(-1)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        if self.exchange.behaviour.silence or self._hangs:
            return
        try:
            frames = self._framer.feed(data)
        except p.FramingError:
            self.send(p.GenericNack(status=st.ESME_RINVCMDLEN))
            self.close()
            return
        for frame in frames:
            try:
                self._take(p.decode(frame))
            except p.PduError as error:
                self.exchange.counts["undecodable"] += 1
                self.send(p.GenericNack(sequence=error.sequence, status=error.status))

    def send(self, pdu: p.Pdu) -> None:
        """Write with what else is ready in this turn of the loop."""
        self.write(pdu.encode())

    def write(self, data: bytes) -> None:
        """Write raw octets."""
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        data = b"".join(self._out)
        self._out.clear()
        if self.transport is None or self.transport.is_closing():
            return
        if self.exchange.behaviour.fragment:
            for octet in data:
                self.transport.write(bytes((octet,)))
        else:
            self.transport.write(data)

    def close(self) -> None:
        """Flush and close."""
        if self.transport is not None:
            self._flush()
            self.transport.close()

    def cut(self) -> None:
        """Reset the connection."""
        if self.transport is not None:
            self.transport.abort()

    def unbind(self) -> None:
        """Ask the client to go."""
        self.send(p.Unbind(sequence=self.next_sequence()))

    def next_sequence(self) -> int:
        """A fresh sequence number of ours."""
        self._sequence = self._sequence % 0x7FFFFFFF + 1
        return self._sequence

    def deliver(self, pdu: p.DeliverSm | p.DataSm, answered: Callable[[int], None]) -> None:
        """Send a deliver_sm or data_sm; `answered` gets its status, or -1 when the connection ends first."""
        pdu.sequence = self.next_sequence()
        self._waiting[pdu.sequence] = answered
        self.send(pdu)

    def forget(self, sequence: int) -> None:
        """Nobody waits for this answer any more."""
        self._waiting.pop(sequence, None)

    def _take(self, pdu: p.Pdu) -> None:
        if isinstance(pdu, p.SubmitSm):
            self._submit(pdu)
        elif isinstance(pdu, p.DeliverSmResp | p.DataSmResp):
            answered = self._waiting.pop(pdu.sequence, None)
            if answered is not None:
                answered(pdu.status)
        elif isinstance(pdu, p.EnquireLink):
            self.send(p.EnquireLinkResp(sequence=pdu.sequence))
        elif isinstance(pdu, p.BindTransceiver | p.BindTransmitter | p.BindReceiver):
            self._bind(pdu)
        elif isinstance(pdu, p.Unbind):
            self.send(p.UnbindResp(sequence=pdu.sequence))
            self.close()
        elif isinstance(pdu, p.UnbindResp):
            self.close()
        elif isinstance(pdu, p.QuerySm):
            self._query(pdu)
        elif not type(pdu).ID & p.RESPONSE:
            self.send(p.GenericNack(sequence=pdu.sequence, status=st.ESME_RINVCMDID))

    def _bind(self, pdu: p.BindTransceiver | p.BindTransmitter | p.BindReceiver) -> None:
        exchange, b = self.exchange, self.exchange.behaviour
        status = b.bind_status
        if pdu.system_id != exchange.config.system_id:
            status = status or st.ESME_RINVSYSID
        elif pdu.password != exchange.config.password:
            status = status or st.ESME_RINVPASWD
        elif b.max_binds and sum(session.bound for session in exchange.sessions) >= b.max_binds:
            status = status or st.ESME_RALYBND
        kind = {
            p.BindTransceiver.ID: p.BindTransceiverResp,
            p.BindTransmitter.ID: p.BindTransmitterResp,
            p.BindReceiver.ID: p.BindReceiverResp,
        }[type(pdu).ID]
        tlvs = {SC_INTERFACE_VERSION: b"\x34"}
        self.send(kind(sequence=pdu.sequence, status=status, system_id=exchange.config.name, tlvs=tlvs))
        if status:
            exchange.counts["binds_refused"] += 1
            return
        exchange.counts["binds"] += 1
        self.bound = True
        self.receives = not isinstance(pdu, p.BindTransmitter)
        self._hangs = b.hang
        if b.outbind:
            self.send(p.Outbind(sequence=self.next_sequence(), system_id=exchange.config.name))
            self.send(p.AlertNotification(sequence=self.next_sequence(), source_addr="4915100000000"))
        exchange.receipts.wake()

    def _query(self, pdu: p.QuerySm) -> None:
        taken = self.exchange.taken.get(pdu.message_id)
        states = {"DELIVRD": 2, "EXPIRED": 3, "UNDELIV": 5, "REJECTD": 8}
        if taken is None:
            self.send(p.QuerySmResp(sequence=pdu.sequence, status=0x67))
        else:
            state = states.get(taken.became, 1)
            self.send(p.QuerySmResp(sequence=pdu.sequence, message_id=pdu.message_id, message_state=state))

    def _submit(self, pdu: p.SubmitSm) -> None:
        exchange, b = self.exchange, self.exchange.behaviour
        exchange.counts["submits"] += 1
        self._submits += 1
        if not self.bound:
            self.send(p.SubmitSmResp(sequence=pdu.sequence, status=st.ESME_RINVBNDSTS))
            return
        if b.nack and exchange.rng.random() < b.nack:
            self.send(p.GenericNack(sequence=pdu.sequence, status=st.ESME_RSYSERR))
            return
        if b.nack_zero and exchange.rng.random() < b.nack_zero:
            self.send(p.GenericNack(sequence=0, status=st.ESME_RSYSERR))
            return
        fate = exchange.verdict(pdu)
        exchange.by_status[st.name(fate.status)] += 1
        if fate.status:
            self._respond(p.SubmitSmResp(sequence=pdu.sequence, status=fate.status))
        else:
            taken = exchange.take(pdu, fate, self)
            tlvs = {0x1401: b"\x01\x02", 0x3FFF: b""} if b.unknown_tlvs else None
            answer = p.SubmitSmResp(sequence=pdu.sequence, message_id=taken.id, tlvs=tlvs)
            if taken.state:
                delay = 0.0 if b.receipt_first else draw_ms(b.receipt_ms, exchange.rng) / 1000
                exchange.receipts.schedule(taken, delay)
            if fate.cut:
                self.cut()
            elif fate.respond:
                self._respond(answer)
        self._mischief(b)

    def _respond(self, answer: p.SubmitSmResp) -> None:
        b = self.exchange.behaviour
        delay = draw_ms(b.response_ms, self.exchange.rng) / 1000
        if b.receipt_first:
            delay = max(delay, 0.05)
        if delay <= 0:
            self.send(answer)
        else:
            asyncio.get_running_loop().call_later(delay, self.send, answer)

    def _mischief(self, b: Behaviour) -> None:
        if b.unbind_after and self._submits == b.unbind_after:
            self.unbind()
        if b.garbage_after and self._submits == b.garbage_after:
            self.write(bytes(self.exchange.rng.randrange(256) for _ in range(64)))
        if b.bad_length_after and self._submits == b.bad_length_after:
            self.write(b"\x00\x00\x00\x03")
