"""One carrier, running."""

from __future__ import annotations

import asyncio
import random
import ssl

import uvicorn

from controlplane.carrier.config import CarrierConfig
from controlplane.carrier.http import create_app
from controlplane.carrier.journal import Journal, read_journal
from controlplane.carrier.receipts import Taken
from controlplane.carrier.server import Exchange, Session
from controlplane.clock import Clock, SystemClock
from controlplane.errors import ConfigError
from controlplane.smpp.pdu import EnquireLink
from controlplane.tasks import going_on

__all__ = ["Carrier"]


class Carrier:
    """Serves until cancelled. `started` is set once it listens; `port` and `http_port` are the real ones."""

    def __init__(self, config: CarrierConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.started = asyncio.Event()
        self.port = config.port
        self.http_port = config.http_port
        rng = random.Random(config.seed)  # noqa: S311 - a simulator must be repeatable
        self._journal = Journal(config.journal)
        self.exchange = Exchange(config, clock or SystemClock(), rng, self._journal)

    async def run(self) -> None:
        """Listen, and go on with what an earlier life took."""
        self._resume()
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: Session(self.exchange), self.config.host, self.config.port, ssl=self._tls(), backlog=256
            )
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on {self.config.host}:{self.config.port} ({error.strerror}). Choose another --port."
            ) from error
        self.port = server.sockets[0].getsockname()[1]
        try:
            async with server, asyncio.TaskGroup() as group:
                group.create_task(self.exchange.receipts.run())
                group.create_task(self._enquire())
                if self.config.http_port is not None:
                    group.create_task(self._serve_http())
                else:
                    self.started.set()
        finally:
            for session in list(self.exchange.sessions):
                session.cut()
            self._journal.close()

    def _tls(self) -> ssl.SSLContext | None:
        if self.config.tls_certificate is None or self.config.tls_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.config.tls_certificate, self.config.tls_key)
        return context

    async def _serve_http(self) -> None:
        config = uvicorn.Config(
            create_app(self.exchange),
            host=self.config.host,
            port=self.config.http_port or 0,
            log_config=None,
            lifespan="off",
        )
        server = uvicorn.Server(config)
        async with asyncio.TaskGroup() as group:
            group.create_task(server._serve())  # noqa: SLF001 - its public `serve` captures SIGTERM
            try:
                while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                    await asyncio.sleep(0.01)
                self.http_port = server.servers[0].sockets[0].getsockname()[1]
                self.started.set()
                await asyncio.Event().wait()
            finally:
                for listener in server.servers:
                    listener.close()

    async def _enquire(self) -> None:
        while going_on():
            await asyncio.sleep(self.exchange.behaviour.enquire_seconds or 1.0)
            if self.exchange.behaviour.enquire_seconds:
                for session in self.exchange.sessions:
                    if session.bound:
                        session.send(EnquireLink(sequence=session.next_sequence()))

    def _resume(self) -> None:
        """Receipts that an earlier life owed."""
        if self.config.journal is None:
            return
        owed: dict[str, Taken] = {}
        for line in read_journal(self.config.journal):
            if line["e"] == "submit":
                self.exchange.submits += 1
                if line["state"]:
                    owed[line["id"]] = Taken(
                        id=line["id"],
                        source=line["src"],
                        dest=line["dst"],
                        state=line["state"],
                        became=line["state"],
                        at=line["at"],
                        digest=line["digest"],
                        text="",
                    )
            elif line["e"] == "ack":
                owed.pop(line["id"], None)
        self.exchange.submits += 1_000_000 if self.exchange.submits else 0  # ids of answers that were never written
        for taken in owed.values():
            self.exchange.receipts.schedule(taken, 0.5)
