"""Messages that are sent through the API while an operation runs, so that a loss is seen at the step that caused it.

What a node accepted (202) is written down, on the disk, before the next is sent. From then on it must be known to every node that answers, and at the end be
final, with a complete proof of the ledger. `python -m controlplane.ops.canary check|settle FILE URLS` and `… stopped NODES URLS` are what the playbooks ask;
the API key and the authority come by HELIOGRAPH_API_KEY and HELIOGRAPH_CA_FILE.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp

from controlplane.clock import Clock, SystemClock
from controlplane.domain.message import FINAL
from controlplane.errors import ConfigError
from controlplane.settings import load_client

__all__ = ["Api", "Count", "accepted", "count", "counted", "main", "send"]

_ATTEMPT_SECONDS = 10.0
_PATIENCE_SECONDS = 120.0
_SETTLE_SECONDS = 240.0
_PAUSE_SECONDS = 0.5
_AT_ONCE = 16
_COUNT = ".count"
"""Of the file beside the messages with what became of them, as it was last counted."""


class Api:
    """The nodes of a region, any of which may be away: a call goes to the next one until somebody answers."""

    def __init__(self, urls: Sequence[str], key: str, authority: str, *, patience: float = _PATIENCE_SECONDS) -> None:
        self.urls = list(urls)
        self._patience = patience
        self._headers = {"authorization": f"Bearer {key}"}
        try:
            self._tls = ssl.create_default_context(cadata=authority or None)
        except ssl.SSLError as error:
            raise ConfigError(
                f"The region's certificate authority is not PEM ({error}); look at authorityCertificate."
            ) from None
        self._turn = 0

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls)
        timeout = aiohttp.ClientTimeout(total=_ATTEMPT_SECONDS, connect=3)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, int]:
        """(status, document, failed attempts). A node that is away, busy or stopping (5xx, 429) is no answer. ConfigError after two minutes (`patience`) of none."""
        failed, last = 0, ""
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    url = self.urls[self._turn % len(self.urls)]
                    self._turn += 1
                    try:
                        async with self._session.request(method, url + path, json=body, headers=headers) as answer:
                            document = await answer.json(content_type=None)
                            if answer.status < 500 and answer.status != 429:
                                return answer.status, document, failed
                            last = f"HTTP {answer.status}"
                    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
                        last = type(error).__name__
                    failed += 1
                    await asyncio.sleep(min(0.1 * failed, 1.0))
        except TimeoutError:
            raise ConfigError(
                f"No node answered {method} {path} for {self._patience:.0f} s; the last said {last}."
            ) from None


@dataclass
class Count:
    """What became of the messages that were accepted."""

    accepted: int = 0
    final: int = 0
    proven: list[str] = field(default_factory=list)
    """With a complete proof of the ledger; once is enough."""
    retried: int = 0
    """Attempts that no node answered with 202; each was made again until one did."""
    missing: list[str] = field(default_factory=list)
    """Accepted, and no node knows them."""

    @property
    def settled(self) -> bool:
        """Nothing is open any more."""
        return not self.missing and self.final == len(self.proven) == self.accepted


def accepted(path: Path) -> list[dict[str, Any]]:
    """`{id, retried}` of each, in order. A last line that was cut is left out: its message was not yet owed to anybody."""
    found = []
    for line in path.read_text(encoding="ascii").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _last(path: Path) -> dict[str, Any]:
    """What `count` kept of a file, {} before the first time."""
    last = path.with_suffix(_COUNT)
    return dict(json.loads(last.read_text(encoding="ascii"))) if last.exists() else {}


def counted(path: Path) -> dict[str, int]:
    """{accepted, retried, final, proven, missing}: as many as were accepted by now, the rest as they were last counted."""
    lines = accepted(path)
    rest = {name: len(value) if isinstance(value, list) else int(value) for name, value in _last(path).items()}
    now = {"accepted": len(lines), "retried": sum(line["retried"] for line in lines)}
    return {"final": 0, "proven": 0, "missing": 0} | rest | now


async def send(api: Api, to: str, path: Path, *, name: str, every: float, stop: asyncio.Event) -> None:
    """One message every so many seconds until `stop`, each tried again under its Idempotency-Key until it is accepted."""
    number = len(accepted(path))
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, b"\n")  # ends a line that was cut
        while not stop.is_set():
            body = {"to": to, "body": f"canary {number}", "reference": f"{name}-{number}"}
            key = f"{name}-{number}"
            status, document, failed = await api.call("POST", "/v1/messages", body, **{"idempotency-key": key})
            if status != 202:
                raise ConfigError(f"A canary message was refused: {document.get('detail', status)}")
            os.write(handle, json.dumps({"id": document["id"], "retried": failed}).encode() + b"\n")
            os.fsync(handle)
            number += 1
            try:
                async with asyncio.timeout(every):
                    await stop.wait()
            except TimeoutError:
                continue
    finally:
        os.close(handle)


async def count(api: Api, path: Path) -> Count:
    """Ask for each that was accepted, and for the proofs that were not complete before; keeps what it found beside the file. ConfigError when nobody answers."""
    lines, known = accepted(path), frozenset(_last(path).get("proven", ()))
    found = Count(accepted=len(lines), retried=sum(line["retried"] for line in lines))
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(mid: str) -> None:
        async with gate:
            status, message, _ = await api.call("GET", f"/v1/messages/{mid}")
            if status != 200:
                found.missing.append(mid)
                return
            if message["status"] in FINAL:
                found.final += 1
                if mid not in known:
                    status, proof, _ = await api.call("GET", f"/v1/messages/{mid}/proof")
                    if status != 200 or not proof["complete"]:
                        return
                found.proven.append(mid)

    async with asyncio.TaskGroup() as group:
        for line in lines:
            group.create_task(one(line["id"]))
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(found)), encoding="ascii")
    draft.replace(path.with_suffix(_COUNT))
    return found


async def settle(api: Api, path: Path, *, clock: Clock, seconds: float = _SETTLE_SECONDS) -> Count:
    """The count, once all are final and proven, one is missing, or the time is over."""
    end = clock.monotonic() + seconds
    while True:
        found = await count(api, path)
        if found.settled or found.missing or clock.monotonic() > end:
            return found
        await asyncio.sleep(_PAUSE_SECONDS)


async def _stopped(api: Api, nodes: Sequence[str]) -> list[str]:
    """Which of them have not said that they ended in good order, as the other nodes see it."""
    status, document, _ = await api.call("GET", "/v1/nodes")
    if status != 200:
        raise ConfigError(f"The nodes cannot be listed: {document.get('detail', status)}")
    states = {one["node"]: one["status"] for one in document["data"]}
    return [f"{node} is {states.get(node, 'unknown')}" for node in nodes if states.get(node) != "stopped"]


async def _run(what: str, subject: str, urls: Sequence[str]) -> int:
    settings = load_client()
    async with Api(urls, settings.api_key.get_secret_value(), settings.ca) as api:
        if what == "stopped":
            left = await _stopped(api, subject.split(","))
            sys.stderr.write("".join(f"{line}\n" for line in left))
            return int(bool(left))
        path = Path(subject)
        found = await (settle(api, path, clock=SystemClock()) if what == "settle" else count(api, path))
    sys.stdout.write(json.dumps(counted(path)) + "\n")
    if found.missing:
        sys.stderr.write(f"{len(found.missing)} accepted messages are missing: {', '.join(found.missing[:5])}\n")
    elif what == "settle" and not found.settled:
        sys.stderr.write(f"of {found.accepted} accepted {found.final} are final and {len(found.proven)} proven\n")
    return int(bool(found.missing) or (what == "settle" and not found.settled))


def main(arguments: Sequence[str]) -> int:
    """Exit code 0: nothing is missing; 1: something is; 2: it could not be asked."""
    if len(arguments) != 3 or arguments[0] not in ("check", "settle", "stopped"):
        sys.stderr.write("usage: python -m controlplane.ops.canary check|settle|stopped FILE|NODES URL,URL…\n")
        return 2
    try:
        return asyncio.run(_run(arguments[0], arguments[1], arguments[2].split(",")))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
