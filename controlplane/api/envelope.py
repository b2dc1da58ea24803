"""The outermost middleware: request id, bounded body, and no exception that leaves as anything but a problem."""

from __future__ import annotations

import re
from collections.abc import Mapping

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane.api.problems import internal, render
from controlplane.errors import Problem
from controlplane.ids import random_bytes

__all__ = ["Envelope", "body_too_large", "given_or_new_id"]

_log = structlog.get_logger()
_GIVEN_ID = re.compile(rb"[A-Za-z0-9_.-]{8,64}")


class Envelope:
    """Raw ASGI. Reads the body whole before anything else does: endpoints get it as one message. Those that are `streamed` get it as it comes."""

    def __init__(self, app: ASGIApp, max_body: int, streamed: Mapping[tuple[str, str], int] | None = None) -> None:
        self._app = app
        self._max_body = max_body
        self._streamed = streamed or {}
        """(method, path) → octets that its body may have."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        rid = given_or_new_id(dict(scope["headers"]))
        scope.setdefault("state", {})["request_id"] = rid
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = message.setdefault("headers", [])
                if not any(name == b"x-request-id" for name, _ in headers):
                    message["headers"] = [*headers, (b"x-request-id", rid.encode())]
            await send(message)

        try:
            limit = self._streamed.get((scope["method"], scope["path"]))
            if limit is not None:
                await self._app(scope, _bounded(scope, receive, limit), tagged)
                return
            body = await self._read(scope, receive)
            if body is None:
                return
            await self._app(scope, _once(body, receive), tagged)
        except Problem as problem:
            await _answer(problem, scope, rid, send)
        except Exception:
            _log.exception("request_failed", request_id=rid, method=scope["method"], path=scope["path"])
            if started:
                raise
            await _answer(internal(), scope, rid, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when the client went away. Raises Problem 413 as soon as it is too large."""
        _check_announced(scope, self._max_body)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body:
                raise body_too_large(self._max_body)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def body_too_large(limit: int) -> Problem:
    """413; the connection is closed, since the rest of the body is not read."""
    return Problem(
        "body-too-large",
        "Body too large",
        413,
        f"The body has more than {limit} octets.",
        "Send fewer messages in one batch.",
        headers={"Connection": "close"},
    )


def given_or_new_id(headers: dict[bytes, bytes]) -> str:
    """The caller's X-Request-Id where it is one, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _GIVEN_ID.fullmatch(given):
        return given.decode("ascii")
    return random_bytes(8).hex()


def _check_announced(scope: Scope, limit: int) -> None:
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > limit:
        raise body_too_large(limit)


def _bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """The body as it comes. Raises Problem 413 as soon as it is too large."""
    _check_announced(scope, limit)
    size = 0

    async def read() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise body_too_large(limit)
        return message

    return read


def _once(body: bytes, receive: Receive) -> Receive:
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


async def _answer(problem: Problem, scope: Scope, rid: str, send: Send) -> None:
    status, headers, body = render(problem, scope["path"], rid)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
