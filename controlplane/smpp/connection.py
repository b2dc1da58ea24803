"""The asyncio shell around `Session`: one Bind connects, feeds its session, and comes back after every loss, until it is stopped.

Writes of one turn of the loop leave together. There is no task and no log line a PDU.
"""

from __future__ import annotations

import asyncio
import random as random_module
import ssl
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

from controlplane.clock import Clock
from controlplane.domain.catalog import BindType, Connector
from controlplane.smpp import session as s
from controlplane.smpp.pdu import AlertNotification, DataSm, DeliverSm, QuerySm, QuerySmResp, SubmitSm
from controlplane.smpp.status import ESME_RALYBND, ESME_RINVPASWD, ESME_RINVSYSID, name

__all__ = ["Bind", "BindHandler", "tls_context"]

_CONNECT_SECONDS = 10.0
_BACKOFF = (0.5, 30.0)
_CREDENTIAL_BACKOFF = (30.0, 300.0)
"""After a refused password or system_id: somebody has to mend it, and carriers lock accounts that knock too often."""
_HEALTHY_SECONDS = 10.0
"""A session that lasted so long starts the backoff anew."""


class BindHandler(Protocol):
    """What a Bind reports. Called in the loop; must not block."""

    def on_bound(self, bind: Bind) -> None:
        """The session is bound."""

    def on_unbound(self, bind: Bind, reason: str, retry_in: float, bind_status: int | None) -> None:
        """It is over; `bind_status` where the carrier refused the bind."""

    def on_room(self, bind: Bind) -> None:
        """The window has room."""

    def on_response(self, bind: Bind, token: object, status: int, message_id: str, latency: float, late: bool) -> None:
        """A submit was answered (`late`: after on_no_response)."""

    def on_no_response(self, bind: Bind, tokens: list[object], cause: str) -> None:
        """Submits without answer: `timeout` or `connection_lost`. The carrier may have taken them."""

    def on_deliver(self, bind: Bind, pdu: DeliverSm | DataSm, answer: Callable[[int], None]) -> None:
        """A receipt or message came. `answer(command_status)` may be called at any later time."""

    def on_query(self, bind: Bind, token: object, resp: QuerySmResp | None) -> None:
        """A query_sm was answered, or was not (None)."""

    def on_alert(self, bind: Bind, pdu: AlertNotification) -> None:
        """A handset can be reached again."""

    def on_protocol_error(self, bind: Bind, detail: str, raw: bytes) -> None:
        """The peer sent something that is not SMPP."""


def tls_context(connector: Connector) -> ssl.SSLContext:
    """TLS 1.2 or newer; verifies certificate and name unless the connector says otherwise."""
    context = ssl.create_default_context(cadata=connector.tls_ca or None)
    if not connector.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _Wire(asyncio.Protocol):
    """Socket callbacks of one connection."""

    def __init__(self, bind: Bind, session: s.Session) -> None:
        self.bind = bind
        self.session = session
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        self.bind.received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.bind.disconnected(self, f"connection lost: {exc}" if exc else "the peer closed the connection")

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.bind.resumed()


class Bind:
    """One live SMPP session of a connector's account, for ever anew."""

    def __init__(
        self,
        name: str,
        connector: Connector,
        handler: BindHandler,
        *,
        clock: Clock,
        random: random_module.Random,
        ssl_context: ssl.SSLContext | None = None,
        sequence: int = 1,
    ) -> None:
        self.name = name
        self.connector = connector
        self._handler = handler
        self._clock = clock
        self._random = random
        self._ssl = ssl_context
        self._sequence = sequence
        self._wire: _Wire | None = None
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._stopping = False
        self._stopped = asyncio.Event()
        self._failures = 0
        self.bound_since: float | None = None
        self.peer = ""
        self.last_error = ""
        self.bind_status: int | None = None
        """command_status of the last refused bind; None once bound."""

    # -- what the owner asks -------------------------------------------------------------------------------------------

    @property
    def bound(self) -> bool:
        """Whether a session is bound now."""
        return self._wire is not None and self._wire.session.state is s.SessionState.BOUND

    @property
    def sends(self) -> bool:
        """Whether this kind of session can submit."""
        return self.connector.bind_type is not BindType.RECEIVER

    @property
    def room(self) -> int:
        """Submits that may go now."""
        if self._wire is None or not self._wire.writable or self._stopping:
            return 0
        return self._wire.session.room

    @property
    def in_flight(self) -> int:
        """Submits without answer."""
        return self._wire.session.in_flight if self._wire else 0

    @property
    def window(self) -> int:
        """Submits that may be without answer at once."""
        return self._wire.session.window if self._wire else self.connector.window

    def submit(self, pdu: SubmitSm, token: object) -> None:
        """Send; RuntimeError without room, ValueError for a PDU that breaks a limit."""
        if self._wire is None:
            raise RuntimeError("not connected")
        self._wire.session.submit(pdu, token, self._clock.monotonic())
        self._schedule_flush()

    def query(self, pdu: QuerySm, token: object) -> None:
        """Ask for a message's state."""
        if self._wire is None:
            raise RuntimeError("not connected")
        self._wire.session.query(pdu, token, self._clock.monotonic())
        self._schedule_flush()

    # -- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect and serve until `stop`, or until cancelled (then unbind without waiting). May be run again after that."""
        self._stopping = False
        self._stopped.clear()
        try:
            while not self._stopping:
                started = self._clock.monotonic()
                reason = await self._serve()
                if self.bind_status is None and self._clock.monotonic() - started >= _HEALTHY_SECONDS:
                    self._failures = 0
                self._failures += 1
                pause = 0.0 if self._stopping else self._pause()
                self.last_error = reason
                self._handler.on_unbound(self, reason, pause, self.bind_status)
                if not self._stopping:
                    try:
                        async with asyncio.timeout(pause):  # wait_for of Python 3.11 can swallow a cancellation
                            await self._stopped.wait()
                    except TimeoutError:
                        continue
        finally:
            self._abort()
            self._stopped.set()

    async def stop(self, drain_seconds: float = 5.0) -> None:
        """Submit no more, wait for answers, unbind, close."""
        self._stopping = True
        deadline = self._clock.monotonic() + drain_seconds
        while self.in_flight and self._clock.monotonic() < deadline:  # noqa: ASYNC110 - bounded, once, at the end
            await asyncio.sleep(0.01)
        wire = self._wire
        if wire is not None and self.bound:
            wire.session.unbind(self._clock.monotonic())
            self._after(wire, [])
            await asyncio.wait([wire.closed], timeout=wire.session.config.unbind_seconds + 1)
        self._stopped.set()
        self._abort()

    def _pause(self) -> float:
        """Full jitter: between a tenth and the whole of an exponential wait."""
        wrong = self.bind_status in (ESME_RINVPASWD, ESME_RINVSYSID)
        base, cap = _CREDENTIAL_BACKOFF if wrong else _BACKOFF
        if self.bind_status == ESME_RALYBND:
            base = 2.0
        span: float = min(cap, base * 2.0 ** min(self._failures - 1, 20))
        return span * (0.1 + 0.9 * self._random.random())

    async def _serve(self) -> str:
        """One connection from beginning to end; why it ended."""
        c = self.connector
        session = s.Session(
            s.SessionConfig(
                system_id=c.system_id,
                password=c.password,
                system_type=c.system_type,
                bind_type=c.bind_type,
                window=c.window,
                enquire_link_seconds=c.enquire_link_seconds,
                response_seconds=c.response_seconds,
            ),
            sequence=self._sequence,
        )
        self.bind_status = None
        loop = asyncio.get_running_loop()
        wire = _Wire(self, session)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.create_connection(
                    lambda: wire,
                    c.host,
                    c.port,
                    ssl=self._ssl,
                    server_hostname=(c.tls_server_name or c.host) if self._ssl else None,
                )
        except TimeoutError:
            return f"no connection to {c.host}:{c.port} in {_CONNECT_SECONDS:.0f} s"
        except (OSError, ssl.SSLError) as error:
            return f"cannot connect to {c.host}:{c.port}: {error}"
        self._wire = wire
        session.start(self._clock.monotonic())
        self._after(wire, [])
        try:
            return await asyncio.shield(wire.closed)
        finally:
            self._wire = None
            self.bound_since = None
            if wire.transport is not None:
                wire.transport.abort()

    def _abort(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, float("inf")
        wire = self._wire
        if wire is not None and wire.transport is not None:
            if self.bound:
                wire.session.unbind(self._clock.monotonic())
                wire.transport.write(wire.session.outgoing())
            self._after(wire, wire.session.connection_lost("stopped"))

    # -- what happens on the wire --------------------------------------------------------------------------------------

    def received(self, wire: _Wire, data: bytes) -> None:
        """Bytes came."""
        self._after(wire, wire.session.receive(data, self._clock.monotonic()))

    def disconnected(self, wire: _Wire, reason: str) -> None:
        """The socket is gone."""
        self._after(wire, wire.session.connection_lost(reason))
        if not wire.closed.done():
            wire.closed.set_result(reason)

    def resumed(self) -> None:
        """The transport takes more."""
        if self.room:
            self._handler.on_room(self)

    def _after(self, wire: _Wire, events: list[s.SessionEvent]) -> None:
        """Tell the handler, write, set the timer. A handler that raises ends this session, loudly, and nothing else."""
        try:
            for event in events:
                self._tell(wire, event)
        except Exception as error:
            wire.session.connection_lost("handler failed")
            if not wire.closed.done():
                wire.closed.set_result(f"handler failed: {error!r}")
            raise
        if wire is self._wire:
            self._schedule_flush()
            self._arm(wire)
            if events and self.room:
                self._handler.on_room(self)

    def _tell(self, wire: _Wire, event: s.SessionEvent) -> None:  # noqa: C901, PLR0912 - one case an event
        handler = self._handler
        match event:
            case s.Responded(token, status, message_id, latency):
                handler.on_response(self, token, status, message_id, latency, False)
            case s.Delivered(pdu):
                handler.on_deliver(self, pdu, partial(self._answer, wire, pdu))
            case s.TimedOut(token):
                handler.on_no_response(self, [token], "timeout")
            case s.LateResponse(token, status, message_id):
                handler.on_response(self, token, status, message_id, 0.0, True)
            case s.Lost(tokens, _):
                handler.on_no_response(self, list(tokens), "connection_lost")
            case s.Queried(token, response):
                handler.on_query(self, token, response)
            case s.Bound(peer, _):
                self.peer = peer
                self.bound_since = self._clock.monotonic()
                handler.on_bound(self)
            case s.BindRefused(status):
                self.bind_status = status
                self.last_error = name(status)
            case s.Alerted(pdu):
                handler.on_alert(self, pdu)
            case s.ProtocolError(detail, raw):
                handler.on_protocol_error(self, detail, raw)
            case s.Closed(reason):
                if wire.transport is not None:
                    wire.transport.write(wire.session.outgoing())
                    wire.transport.close()
                if not wire.closed.done():
                    wire.closed.set_result(reason)

    def _answer(self, wire: _Wire, pdu: DeliverSm | DataSm, status: int) -> None:
        wire.session.answer(pdu, status)
        if wire is self._wire:
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        wire = self._wire
        if wire is not None and wire.transport is not None and not wire.transport.is_closing():
            data = wire.session.outgoing()
            if data:
                wire.transport.write(data)
            self._arm(wire)

    def _arm(self, wire: _Wire) -> None:
        """One timer, moved only when the deadline comes nearer: a timer that fires early just sets itself again."""
        deadline = wire.session.next_deadline
        if deadline >= self._timer_at or deadline == float("inf"):
            return
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, deadline - self._clock.monotonic())
        self._timer_at = deadline
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        wire = self._wire
        if wire is not None:
            self._after(wire, wire.session.tick(self._clock.monotonic()))
