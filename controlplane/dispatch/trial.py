"""Try a connector's settings: one bind, one enquire_link, unbind; and say in words what happened. Sends no message, and takes none: what the
carrier delivers meanwhile is refused for now, and comes again on another bind.

Where the carrier limits the account's sessions (`max_binds`), a free slot is taken for the time of the trial; without one nothing is tried, so that a trial
never costs a working bind its place.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from controlplane.clock import Clock
from controlplane.domain.catalog import Connector
from controlplane.domain.trial import Step, Trial
from controlplane.errors import StoreUnavailableError
from controlplane.smpp import session as s
from controlplane.smpp.connection import tls_context
from controlplane.smpp.status import ESME_RALYBND, ESME_RINVPASWD, ESME_RINVSYSID, ESME_RX_T_APPN, name, sentence
from controlplane.store.slots import Slots

__all__ = ["BindTrial"]

_TOTAL_SECONDS = 10.0
_STEP_SECONDS = 6.0
_READ = 65_536
_NEXT = {
    "slot": "Disable the connector for the trial, or raise max_binds if the carrier allows more sessions.",
    "dns": "Check the host name, and the resolver of this machine.",
    "tcp": "Check host and port, the carrier's list of allowed addresses, and the firewalls between.",
    "tls": "Check that the port speaks TLS, `tls_ca`, and `tls_server_name`.",
    "bind": "Ask the carrier about the account: its state, allowed addresses and bind types.",
    "enquire_link": "The session was bound but does not answer: ask the carrier.",
    "unbind": "Harmless: the session was closed by us.",
}
_NEXT_OF_STATUS = {
    ESME_RINVPASWD: "Correct the password (at most 8 characters in SMPP 3.4).",
    ESME_RINVSYSID: "Correct the system_id; some carriers bind it to a system_type or to our address as well.",
    ESME_RALYBND: "The carrier allows no further session: set `binds` and `max_binds` to what it allows over all nodes.",
}
_ENDED = object()


class _FailedError(Exception):
    """The step did not succeed; says why."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.status = status


class BindTrial:
    """One per node."""

    def __init__(self, slots: Slots, clock: Clock) -> None:
        self._slots = slots
        self._clock = clock

    async def run(self, connector: Connector) -> Trial:
        """At most 10 s. Raises StoreUnavailableError only where the account is limited and MongoDB is away."""
        if not connector.max_binds:
            return await _Run(connector, self._clock).run()
        slot = await self._slots.take(connector.name, connector.max_binds)
        if slot is None:
            detail = (
                f"All {connector.max_binds} sessions that the carrier allows are in use or reserved: nothing was tried."
            )
            return Trial(steps=[Step(step="slot", ok=False, detail=detail, ms=0)], next_step=_NEXT["slot"])
        try:
            return await _Run(connector, self._clock).run()
        finally:
            with suppress(StoreUnavailableError):
                await self._slots.release(slot)


class _Run:
    def __init__(self, connector: Connector, clock: Clock) -> None:
        self._connector = connector
        self._clock = clock
        self._steps: list[Step] = []
        self._said = ""
        """What the step under way found."""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        config = s.SessionConfig(
            system_id=connector.system_id,
            password=connector.password,
            system_type=connector.system_type,
            bind_type=connector.bind_type,
            enquire_link_seconds=0.0,
            response_seconds=_STEP_SECONDS,
            bind_seconds=_STEP_SECONDS,
            unbind_seconds=2.0,
        )
        self._session = s.Session(config)

    async def run(self) -> Trial:
        next_step = "Nothing: save the settings."
        try:
            async with asyncio.timeout(_TOTAL_SECONDS):
                with self._step("dns"):
                    await self._resolve()
                with self._step("tcp"):
                    await self._connect()
                if self._connector.tls:
                    with self._step("tls"):
                        await self._secure()
                with self._step("bind"):
                    await self._bind()
                with self._step("enquire_link"):
                    await self._enquire()
                with self._step("unbind"):
                    await self._unbind()
        except (_FailedError, TimeoutError) as error:
            status = error.status if isinstance(error, _FailedError) else None
            next_step = _NEXT_OF_STATUS.get(status or 0, _NEXT[self._steps[-1].step])
        finally:
            if self._streams is not None:
                self._streams[1].transport.abort()
        return Trial(steps=self._steps, next_step=next_step)

    @contextmanager
    def _step(self, step: str) -> Iterator[None]:
        began = self._clock.monotonic()
        self._said, ok = "", False
        try:
            yield
            ok = True
        except _FailedError as error:
            self._said = str(error)
            raise
        except asyncio.CancelledError:
            self._said = f"No answer in the {_TOTAL_SECONDS:.0f} s that a trial may take."
            raise
        finally:
            ms = int((self._clock.monotonic() - began) * 1000)
            self._steps.append(Step(step=step, ok=ok, detail=self._said, ms=ms))

    async def _resolve(self) -> None:
        c = self._connector
        try:
            found = await asyncio.get_running_loop().getaddrinfo(c.host, c.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _FailedError(f"{c.host} has no address: {error.strerror or error}.") from None
        addresses = sorted({str(each[4][0]) for each in found})
        self._said = f"{c.host} is {', '.join(addresses[:4])}."

    async def _connect(self) -> None:
        c = self._connector
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                self._streams = await asyncio.open_connection(c.host, c.port)
        except TimeoutError:
            raise _FailedError(f"No connection to {c.host}:{c.port} in {_STEP_SECONDS:.0f} s.") from None
        except OSError as error:
            raise _FailedError(f"No connection to {c.host}:{c.port}: {error.strerror or error}.") from None
        peer = self._streams[1].get_extra_info("peername")
        self._said = f"Connected to {peer[0]}, port {peer[1]}."

    async def _secure(self) -> None:
        c = self._connector
        assert self._streams is not None  # noqa: S101 - tcp came first
        writer = self._streams[1]
        server = c.tls_server_name or c.host
        try:
            await writer.start_tls(tls_context(c), server_hostname=server, ssl_handshake_timeout=_STEP_SECONDS)
        except ssl.SSLCertVerificationError as error:
            raise _FailedError(f"The certificate is not good for {server}: {error.verify_message}.") from None
        except (OSError, ValueError) as error:  # ssl.SSLError, a reset, a timeout; a PEM that cannot be read
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise _FailedError(f"No TLS with {c.host}:{c.port}: {reason or type(error).__name__}.") from None
        spoken = writer.get_extra_info("ssl_object")
        checked = "" if c.tls_verify else "; the certificate was not verified"
        self._said = f"{spoken.version()} with {spoken.cipher()[0]}{checked}."

    async def _bind(self) -> None:
        self._session.start(self._clock.monotonic())
        found = await self._until(s.Bound, s.BindRefused)
        if isinstance(found, s.BindRefused):
            raise _FailedError(f"Refused with {name(found.status)}: {sentence(found.status)}", found.status)
        assert isinstance(found, s.Bound)  # noqa: S101 - asked for one of the two
        version = f"SMPP {found.version >> 4}.{found.version & 15}" if found.version else "its SMPP version unsaid"
        self._said = f"Bound as {self._connector.bind_type.value}; the carrier calls itself {found.peer or 'nothing'}, {version}."

    async def _enquire(self) -> None:
        self._session.tick(self._clock.monotonic())  # sends enquire_link at once: its interval is 0
        await self._until(answered=True)
        self._said = "Answered."

    async def _unbind(self) -> None:
        self._session.unbind(self._clock.monotonic())
        found = await self._until(s.Closed)
        self._said = f"{found.reason}." if isinstance(found, s.Closed) and found.reason else "Done."

    async def _until(self, *kinds: type, answered: bool = False) -> object:
        """Write what is to be written, then read until an event of these kinds (or, `answered`, anything) comes."""
        assert self._streams is not None  # noqa: S101 - tcp came first
        reader, writer = self._streams
        while True:
            writer.write(self._session.outgoing())
            try:
                async with asyncio.timeout(_STEP_SECONDS):
                    data = await reader.read(_READ)
            except TimeoutError:
                raise _FailedError(f"No answer in {_STEP_SECONDS:.0f} s.") from None
            except OSError as error:
                raise _FailedError(f"The connection broke: {error.strerror or error}.") from None
            if not data:
                raise _FailedError("The carrier closed the connection without an answer.")
            for event in self._session.receive(data, self._clock.monotonic()):
                if isinstance(event, kinds):
                    return event
                if isinstance(event, s.Delivered):  # a receipt: the carrier keeps it for a bind that stores it
                    self._session.answer(event.pdu, ESME_RX_T_APPN)
                if isinstance(event, s.ProtocolError):
                    raise _FailedError(f"The other side does not speak SMPP: {event.detail}.")
                if isinstance(event, s.Closed) and not answered:
                    raise _FailedError(f"The session ended: {event.reason}.")
            if answered:
                return _ENDED
