"""The node's own HTTP API, called in-process: a page has no other way to anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ApiError", "Backend", "Grant", "Passed", "Visitor"]

_JSON = "application/json"


class Visitor(Protocol):
    """Who calls, as far as the API has to know."""

    @property
    def person(self) -> str:
        """Their name."""
        ...

    @property
    def tenant(self) -> str:
        """Whom they are bound to; "" for the whole deployment."""
        ...

    @property
    def scopes(self) -> frozenset[str]:
        """What they may ask."""
        ...

    @property
    def address(self) -> str:
        """Where they are."""
        ...


Grant = Callable[[Visitor, str], AbstractContextManager[str]]
"""(who, the tenant to act for; "" = theirs) → an Authorization header for one call."""


class ApiError(Exception):
    """The API said no: `problem` is its problem+json."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {problem.get('detail', '')}")
        self.status = status
        self.problem = problem

    @property
    def fields(self) -> dict[str, str]:
        """Field → what is wrong with it, for the form that it came from."""
        errors: list[dict[str, str]] = self.problem.get("errors", [])
        return {error["pointer"].strip("/").replace("/", "."): error["detail"] for error in errors}


class _Collected:
    """An answer in memory."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: dict[str, str] = {}
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        """ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self._body += message.get("body", b"")

    def value(self) -> dict[str, Any]:
        """The JSON of it. Raises ApiError."""
        is_json = "json" in self.headers.get("content-type", "")
        found: dict[str, Any] = json.loads(self._body) if is_json and self._body else {}
        if self.status >= 400:
            raise ApiError(self.status, found or {"title": "Refused", "detail": self._body.decode(errors="replace")})
        return found


class Passed(Response):
    """The API's answer to a GET, given on while it comes: a download. Refusals become a page."""

    def __init__(
        self, call: Callable[[Receive, Send], Awaitable[None]], refused: Callable[[ApiError], Response]
    ) -> None:
        super().__init__()
        self._call = call
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        refusal: _Collected | None = None

        async def passing(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refusal = _Collected()
            await (send(message) if refusal is None else refusal.send(message))

        await self._call(receive, passing)
        if refusal is not None:
            try:
                refusal.value()
            except ApiError as error:
                await self._refused(error)(scope, receive, send)


class Backend:
    """One per node. Each call raises ApiError for an answer of 400 or more."""

    def __init__(self, app: ASGIApp, grant: Grant) -> None:
        self._app = app
        self._grant = grant

    async def get(
        self, visit: Visitor, path: str, params: Mapping[str, Any] | None = None, *, tenant: str = ""
    ) -> dict[str, Any]:
        """The JSON that is there. `params` that are None or empty are left out."""
        return await self.call(visit, "GET", path, params=params, tenant=tenant)

    async def post(
        self,
        visit: Visitor,
        path: str,
        body: Any = None,
        *,
        tenant: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Create, or act."""
        return await self.call(visit, "POST", path, body=body, tenant=tenant, headers=headers)

    async def put(self, visit: Visitor, path: str, body: Any, *, tenant: str = "") -> dict[str, Any]:
        """Replace."""
        return await self.call(visit, "PUT", path, body=body, tenant=tenant)

    async def delete(self, visit: Visitor, path: str, *, tenant: str = "") -> dict[str, Any]:
        """Remove."""
        return await self.call(visit, "DELETE", path, tenant=tenant)

    async def call(
        self,
        visit: Visitor,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        tenant: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Any call. `body` is JSON, or bytes that go as they are (name their content-type in `headers`)."""
        answer = _Collected()
        await self._send(answer.send, visit, method, path, params, body, tenant, headers or {})
        return answer.value()

    async def upload(
        self, visit: Visitor, path: str, receive: Receive, content_type: str, *, tenant: str = ""
    ) -> dict[str, Any]:
        """POST a body that goes on as it comes from the browser: `receive` is its request's."""
        answer = _Collected()
        with self._grant(visit, tenant) as authorization:
            headers = {"content-type": content_type, "authorization": authorization}
            await self._app(_scope("POST", path, None, headers, visit.address), receive, answer.send)
        return answer.value()

    def download(
        self,
        visit: Visitor,
        path: str,
        params: Mapping[str, Any],
        refused: Callable[[ApiError], Response],
        *,
        tenant: str = "",
    ) -> Passed:
        """A GET whose answer goes on to the browser piece by piece."""

        async def call(receive: Receive, send: Send) -> None:
            await self._send(send, visit, "GET", path, params, None, tenant, {}, receive)

        return Passed(call, refused)

    async def _send(
        self,
        send: Send,
        visit: Visitor,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        body: Any,
        tenant: str,
        headers: Mapping[str, str],
        receive: Receive | None = None,
    ) -> None:
        """`receive`: the browser's, where the answer goes on to it: when it is gone, so is the question."""
        payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"content-type": _JSON, **headers} if body is not None else headers
        with self._grant(visit, tenant) as authorization:
            headers = {**given, "authorization": authorization, "content-length": str(len(payload))}
            scope = _scope(method, path, params, headers, visit.address)
            await self._app(scope, _body(payload, receive), send)


def _scope(method: str, path: str, params: Mapping[str, Any] | None, headers: Mapping[str, str], address: str) -> Scope:
    given = {name: value for name, value in (params or {}).items() if value not in (None, "")}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "root_path": "",
        "query_string": urlencode(given, doseq=True).encode(),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "client": (address, 0),
        "server": ("console", 0),
        "state": {},
    }


def _body(payload: bytes, then: Receive | None) -> Receive:
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent and then is not None:
            return await then()
        if sent:
            await asyncio.Event().wait()  # whoever asked is still there
        sent = True
        return {"type": "http.request", "body": payload, "more_body": False}

    return receive
