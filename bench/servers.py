"""HTTP servers, parsers and loops side by side: the same small JSON POST, answered 202 by the same work in each. For ADR 6.

`python -m bench.servers KIND PORT` is one of them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import msgspec
import uvicorn
import uvloop
from fastapi import FastAPI

from bench.gateways import accepted
from bench.tools import Load, Process, cpu_seconds, free_port, listens, post, until
from controlplane.api.hot import Respond
from controlplane.api.server import Server
from controlplane.settings import Settings

KINDS = (
    "uvicorn h11 asyncio",
    "uvicorn httptools asyncio",
    "uvicorn httptools uvloop",
    "granian asgi",
    "fastapi route, uvicorn httptools uvloop",
    "ours: uvicorn httptools uvloop, hot path in the protocol",
)
PATH = "/v1/messages"
BODY = b'{"to": "+4915112345678", "body": "bench @@@@@@@@@@", "from": "12345"}'


class _Message(msgspec.Struct):
    to: str
    body: str
    from_: str = msgspec.field(name="from", default="")


_decode = msgspec.json.Decoder(_Message).decode
_encode = msgspec.json.encode


def _work(body: bytes) -> bytes:
    message = _decode(body)
    return _encode({"id": "0" * 26, "to": message.to, "status": "accepted"})


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The raw ASGI application that the servers are compared with."""
    if scope["type"] != "http":
        return
    answer = _work((await receive())["body"])
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": head})
    await send({"type": "http.response.body", "body": answer})


def _fastapi() -> FastAPI:
    app = FastAPI()

    @app.post(PATH, status_code=202)
    async def message(body: dict[str, str]) -> dict[str, str]:
        return {"id": "0" * 26, "to": body["to"], "status": "accepted"}

    return app


def _hot(_headers: dict[bytes, bytes], body: bytes, _rid: str, respond: Respond) -> None:
    respond(202, {"content-type": "application/json"}, _work(body))


def serve(kind: str, port: int) -> None:
    if kind == "granian asgi":
        granian = importlib.import_module("granian")
        granian.Granian("bench.servers:asgi", port=port, interface="asgi", workers=1, log_enabled=False).serve()
    elif kind.startswith("ours"):
        settings = Settings(secret_key="x" * 32)
        app = FastAPI()
        app.state.hot = {PATH.encode(): _hot}
        app.state.services = SimpleNamespace(settings=settings)
        uvloop.run(Server(app, settings).run_on(socket.create_server(("127.0.0.1", port))))
    else:
        app = _fastapi() if kind.startswith("fastapi") else asgi
        parser = "h11" if "h11" in kind else "httptools"
        config = uvicorn.Config(app, port=port, http=parser, log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        (uvloop.run if "uvloop" in kind else asyncio.run)(server.serve())


def run(work: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians of requests a second and CPU µs a request at 64 connections."""
    kinds = [kind for kind in KINDS if kind != "granian asgi" or importlib.util.find_spec("granian")]
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    load, request = Load(work), post(PATH, BODY, {"Content-Type": "application/json"})
    for _ in range(rounds):
        for kind in kinds:
            port = free_port()
            server = Process([sys.executable, "-m", "bench.servers", kind, str(port)], work / "servers.log")
            try:
                until(kind, lambda port=port: listens(port))  # type: ignore[misc]
                load.run([port], request, connections=64, seconds=1.0)
                before = cpu_seconds([server.pid])
                result = load.run([port], request, connections=64, seconds=seconds)
                used = cpu_seconds([server.pid]) - before
            finally:
                server.stop()
            count = accepted(result)
            found[kind].append((count / result["seconds"], used / count * 1e6))
            print(f"servers  {kind:58} {found[kind][-1][0]:8,.0f}/s  {found[kind][-1][1]:6.1f} µs", flush=True)
    return {
        kind: {"requests_per_s": median(rate for rate, _ in runs), "cpu_us": median(cpu for _, cpu in runs)}
        for kind, runs in found.items()
    }


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
