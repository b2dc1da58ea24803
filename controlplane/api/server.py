"""uvicorn, with a short way for the hot path: its requests go from the HTTP parser to their handler, and their answers leave in one write.

Everything else, and a hot request that was pipelined behind an unanswered one, takes uvicorn's way through the application.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from controlplane.api.envelope import body_too_large, given_or_new_id
from controlplane.api.hot import Handler
from controlplane.api.problems import render
from controlplane.serving import RoleServer
from controlplane.settings import Settings

__all__ = ["Server"]


class _Nobody:
    """In the place of the event that wakes an ASGI application."""

    def set(self) -> None:
        """Nobody waits."""


class _Cycle:
    """One hot request, as far as uvicorn's protocol looks at it (its RequestResponseCycle)."""

    __slots__ = ("body", "disconnected", "handler", "keep_alive", "path", "response_complete", "size")
    message_event = _Nobody()

    def __init__(self, path: bytes, handler: Handler, *, keep_alive: bool) -> None:
        self.path = path
        self.handler = handler
        self.keep_alive = keep_alive
        self.body: list[bytes] = []
        self.size = 0
        self.response_complete = False
        self.disconnected = False


class _Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        app = cast("FastAPI", config.app)
        self._hot: dict[bytes, Handler] = app.state.hot
        self._max_body: int = app.state.services.settings.max_body_bytes

    def on_headers_complete(self) -> None:
        handler = self._hot.get(self.url)
        if (
            handler is None
            or self.parser.get_method() != b"POST"
            or self.expect_100_continue
            or self.parser.should_upgrade()
            or not (self.cycle is None or self.cycle.response_complete)
        ):
            super().on_headers_complete()
            return
        cycle = _Cycle(self.url, handler, keep_alive=self.parser.should_keep_alive())
        self.cycle = cycle  # type: ignore[assignment]  # has all that the base class reads

    def on_body(self, body: bytes) -> None:
        cycle: object = self.cycle
        if not isinstance(cycle, _Cycle):
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.size += len(body)
            if cycle.size <= self._max_body:
                cycle.body.append(body)
                return
            cycle.keep_alive = False
            rid = given_or_new_id(dict(self.headers))
            self._respond(cycle, rid, *render(body_too_large(self._max_body), cycle.path.decode(), rid))

    def on_message_complete(self) -> None:
        cycle: object = self.cycle
        if not isinstance(cycle, _Cycle):
            super().on_message_complete()
        elif not cycle.response_complete:
            body = cycle.body[0] if len(cycle.body) == 1 else b"".join(cycle.body)
            cycle.body = []
            headers = dict(self.headers)
            rid = given_or_new_id(headers)
            cycle.handler(headers, body, rid, partial(self._respond, cycle, rid))

    def _respond(self, cycle: _Cycle, rid: str, status: int, headers: dict[str, str], body: bytes) -> None:
        """Write the answer. Nobody may be there any more to read it."""
        cycle.response_complete = True
        if cycle.disconnected or self.transport.is_closing():
            return
        lines = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if "x-request-id" not in headers:
            text += f"x-request-id: {rid}\r\n"
        if not cycle.keep_alive and "Connection" not in headers:
            text += "connection: close\r\n"
        lines += (text.encode("latin-1"), b"content-length: %d\r\n\r\n" % len(body), body)
        self.transport.write(b"".join(lines))
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()


class Server(RoleServer):
    """The node's HTTP server."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=10,
                ssl_certfile=str(settings.tls_certificate) if settings.tls_certificate else None,
                ssl_keyfile=str(settings.tls_key) if settings.tls_key else None,
            )
        )
