"""The command line's way to the API."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from controlplane.domain.message import FINAL
from controlplane.embedded.seed import Credentials
from controlplane.errors import ConfigError
from controlplane.settings import load_client

__all__ = ["ApiError", "Client", "UnreachableError"]

_POLL_SECONDS = 0.2
_TRIES = 4


class ApiError(Exception):
    """The API answered with a problem; `problem` is its document."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail", "error"))
        self.problem = problem


class UnreachableError(ConfigError):
    """Nobody answers there as a node should."""


class Client:
    """Calls one node. URL and key: options, then the environment, then a local `heliograph up` on the data directory."""

    def __init__(
        self,
        url: str | None,
        key: str | None,
        data: Path,
        *,
        admin: bool = False,
        ca: str = "",
        anonymous: bool = False,
    ) -> None:
        settings = load_client()
        authority = ca or settings.ca
        try:
            self._tls = ssl.create_default_context(cadata=authority or None)
        except ssl.SSLError as error:
            raise ConfigError(f"The certificate authority is not PEM ({error}); look at HELIOGRAPH_CA_FILE.") from None
        local = _local(data)
        local_key = (local.admin_key if admin else local.api_key) if local else ""
        self.url = (url or settings.url or (local.url if local else "")).rstrip("/")
        self._key = key or settings.api_key.get_secret_value() or local_key
        if not self.url or not (self._key or anonymous):
            raise ConfigError(
                f"No node to talk to: {data / 'credentials.json'} is not there. Run `heliograph up`, or give --url and set HELIOGRAPH_API_KEY."
            )

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """The answer's JSON. Raises ApiError, ConfigError."""
        return asyncio.run(self._call(method, path, body, {k: str(v) for k, v in params.items() if v is not None}))

    def wait(self, message_id: str, seconds: float) -> Any:
        """The message, once its status is final or the time is over. Raises ApiError, ConfigError."""
        deadline = time.monotonic() + seconds
        while True:
            message = self.call("GET", f"/v1/messages/{message_id}")
            if message["status"] in FINAL or time.monotonic() > deadline:
                return message
            time.sleep(_POLL_SECONDS)

    @asynccontextmanager
    async def fetching(self) -> AsyncIterator[Callable[[str], Awaitable[bytes]]]:
        """`await fetch(path)`: the body of a GET, many at once over few connections. Raises ApiError, UnreachableError (after some tries)."""
        timeout = aiohttp.ClientTimeout(total=60, sock_connect=10)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=8)) as session:

            async def fetch(path: str) -> bytes:
                for left in reversed(range(_TRIES)):
                    try:
                        async with session.get(self.url + path, headers=self._headers(), ssl=self._tls) as response:
                            answer = await response.read()
                            if response.status < 400:
                                return answer
                            if response.status not in (429, 502, 503, 504) or not left:
                                raise ApiError(_problem(answer, response.status))
                    except (aiohttp.ClientError, TimeoutError) as error:
                        if not left:
                            raise UnreachableError(f"{self.url} does not answer: {error!r}") from error
                    await asyncio.sleep(2.0 / left)
                raise AssertionError

            yield fetch

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    async def _call(self, method: str, path: str, body: Any, params: dict[str, str]) -> Any:
        headers = self._headers()
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
                session.request(
                    method, self.url + path, json=body, params=params, headers=headers, ssl=self._tls
                ) as response,
            ):
                text = await response.text()
                answer = json.loads(text) if text else {}
                if response.status >= 400:
                    raise ApiError(answer)
                return answer
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise UnreachableError(f"{self.url} does not answer as a node should: {error}") from error


def _problem(answer: bytes, status: int) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"title": "Error", "detail": f"HTTP {status}", "status": status}


def _local(data: Path) -> Credentials | None:
    path = data / "credentials.json"
    try:
        return Credentials(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
