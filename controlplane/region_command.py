"""`heliograph seed` and `heliograph verify`: how `pulumi up` begins a region's catalog, and ends with a message that was really delivered.

Both read one JSON document from stdin, so that no key stands on a command line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.client import ApiError, Client
from controlplane.domain.catalog import Connector, Route, Scope
from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.seed import Seed, plant
from controlplane.settings import load
from controlplane.store.cluster import Deadline

__all__ = ["seed", "verify"]

M = TypeVar("M", bound=BaseModel)
_PATIENCE_SECONDS = 60.0


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _SeedConnector(_Document):
    name: str
    host: str
    port: int = Field(ge=1, le=65535)
    system_id: str
    password: str
    window: int = 100
    rate: float = 1000.0


class _SeedRoute(_Document):
    name: str
    connector: str
    prefixes: tuple[str, ...]
    priority: int = 100


class _SeedDocument(_Document):
    admin_key: str = Field(min_length=46, max_length=46)
    revoked_keys: list[str] = []
    connectors: list[_SeedConnector] = []
    routes: list[_SeedRoute] = []


class _VerifyDocument(_Document):
    api_key: str
    urls: list[str] = Field(min_length=1)
    to: str
    wait_seconds: float = Field(60, gt=0)
    ca: Path | None = None


def _read(kind: type[M]) -> M:
    try:
        return kind.model_validate_json(sys.stdin.read())
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, item['loc'])) or 'stdin'}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigError("The document on stdin is not as it must be:\n" + "\n".join(lines)) from None


def seed() -> None:
    """Give a region its first key, connectors and routes, where they are missing, and end former first keys (JSON on stdin; settings as of a node)."""
    document = _read(_SeedDocument)
    wanted = Seed(
        tenant="operator",
        tenant_name="Operator of this region",
        keys={"first": (document.admin_key, frozenset(Scope))},
        revoked=document.revoked_keys,
        connectors=[Connector(**one.model_dump()) for one in document.connectors],
        routes=[Route(**one.model_dump()) for one in document.routes],
    )
    for line in asyncio.run(_planted(wanted)):
        typer.echo(json.dumps({"change": "created", "what": line}))


async def _planted(wanted: Seed) -> list[str]:
    """`plant`, again for a minute while MongoDB is away: an election or a router's start is no reason to fail. Says on stderr what it waited for."""
    settings, deadline, said = load(), Deadline(_PATIENCE_SECONDS), ""
    while True:
        try:
            return await plant(settings, wanted)
        except StoreUnavailableError as error:
            if not await deadline.pause():
                raise
            if str(error) != said:
                said = str(error)
                typer.echo(f"tried again: {said}", err=True)


def verify() -> None:
    """Send one message through each node and wait until it is delivered (JSON on stdin). Exit code 3 when one is not."""
    document = _read(_VerifyDocument)
    authority = document.ca.read_text(encoding="ascii") if document.ca else ""

    def one(url: str) -> dict[str, Any]:
        return {"url": url, **_deliver(Client(url, document.api_key, Path("data"), ca=authority), document)}

    with ThreadPoolExecutor(len(document.urls)) as threads:
        seen = list(threads.map(one, document.urls))
    for line in seen:
        typer.echo(json.dumps(line))
    if any(line["status"] != "delivered" for line in seen):
        raise typer.Exit(3)


def _deliver(client: Client, document: _VerifyDocument) -> dict[str, Any]:
    """What became of one message: status, seconds and, where it was not delivered, its timeline in words."""
    begun = time.monotonic()
    try:
        answer = client.call(
            "POST", "/v1/messages", {"to": document.to, "body": "Heliograph: a message to verify this region"}
        )
        message = client.wait(answer["id"], document.wait_seconds)
        taken = round(time.monotonic() - begun, 2)
    except (ApiError, ConfigError) as error:
        return {"status": "error", "why": str(error)}
    if message["status"] == "delivered":
        return {"status": "delivered", "seconds": taken, "id": answer["id"]}
    return {
        "status": message["status"],
        "seconds": taken,
        "id": answer["id"],
        "why": [event["text"] for event in message["timeline"]],
    }
