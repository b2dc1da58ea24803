"""The deployment's datacenters, and taking over the messages of one that is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.auth import Caller, requires
from controlplane.api.services import Services
from controlplane.api.submission import iso
from controlplane.domain.catalog import Scope
from controlplane.errors import Problem
from controlplane.store.regions import Adoption

__all__ = ["router"]

router = APIRouter(prefix="/v1/regions", tags=["regions"])

Admin = Annotated[Caller, Depends(requires(Scope.ADMIN))]
_CONNECT_SECONDS = 3.0
_ALIVE_MS = 60_000
_STALLED_MS = 30_000


class AdoptBody(BaseModel):
    """How to take over."""

    model_config = ConfigDict(extra="forbid")
    dry_run: Annotated[bool, Field(description="Count only, change nothing.")] = True
    unattempted: Annotated[
        Literal["policy", "send", "hold"],
        Field(
            description="Messages of which no attempt is known: `policy` sends those whose unknown_policy is resend and makes the others unknown; `send` sends all, `hold` none."
        ),
    ] = "policy"
    force: Annotated[bool, Field(description="Although the datacenter still answers.")] = False


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _answers(urls: Sequence[str]) -> bool:
    """Whether something takes a connection at one of these addresses."""

    async def one(url: str) -> bool:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(parts.hostname, port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    return any(await asyncio.gather(*map(one, urls)))


async def _reachable(services: Services, dc: str) -> bool | None:
    """Whether that datacenter's ledger answers, or answered within a minute; None for one that the settings do not name."""
    peer = next((peer for peer in services.settings.ledger_peers if peer.dc == dc), None)
    if peer is None:
        return None
    prefix = f"{services.settings.ledger_domain}/ledger/{dc}/"
    since = services.clock.now_ms() - _ALIVE_MS
    heard = any(item.cosigner.startswith(prefix) and item.at >= since for item in await services.ledger.cosignatures())
    return heard or await _answers(peer.urls)


def _adoption_view(adoption: Adoption) -> dict[str, Any]:
    return asdict(adoption) | {"at": iso(adoption.at), "beat": iso(adoption.beat)}


@router.get("", operation_id="listRegions", summary="The datacenters, and how much of each is here")
async def list_regions(request: Request, _caller: Admin) -> dict[str, Any]:
    """This one, those that the settings name, and those whose logs are held here."""
    services = _services(request)
    standing = await services.standing.read()
    adoptions = await services.regions.adoptions()
    here = services.settings.datacenter
    names = {
        here,
        *(peer.dc for peer in services.settings.ledger_peers),
        *(log["datacenter"] for log in standing["logs"]),
    }
    reachable = dict(zip(names, await asyncio.gather(*(_reachable(services, dc) for dc in names)), strict=True))
    regions = []
    for dc in sorted(names, key=lambda dc: (dc != here, dc)):
        logs = [log for log in standing["logs"] if log["datacenter"] == dc]
        newest = max((log["newest_entry_at"] or 0 for log in logs), default=0)
        regions.append(
            {
                "datacenter": dc,
                "own": dc == here,
                "reachable": reachable[dc],
                "entries": sum(log["published"] for log in logs),
                "newest_entry_at": iso(newest) if newest else None,
                "newest_entry_age_seconds": (services.clock.now_ms() - newest) // 1000 if newest else None,
                "adoptions": [_adoption_view(item) for item in adoptions if item.dc == dc],
            }
        )
    return {"data": regions}


@router.post(
    "/{dc}/adopt", status_code=202, operation_id="adoptRegion", summary="Take over a lost datacenter's messages"
)
async def adopt_region(request: Request, dc: str, body: AdoptBody, _caller: Admin) -> dict[str, Any]:
    """Its open messages, as far as they are mirrored here, become this node's. Begins; GET the answer's `id` to follow."""
    services = _services(request)
    settings = services.settings
    if dc == settings.datacenter:
        raise Problem(
            "own-datacenter",
            "This is the datacenter itself",
            409,
            f"{dc} is this node's own datacenter; the messages of a lost node are taken over by the others by themselves.",
            "Name the datacenter that is lost.",
        )
    held = [log for log in await services.published.logs() if log.dc == dc]
    if not held and all(peer.dc != dc for peer in settings.ledger_peers):
        raise Problem(
            "not-found",
            "No such datacenter",
            404,
            f"No datacenter {dc[:60]!r} is known here.",
            "GET /v1/regions lists those that are.",
        )
    if not (body.dry_run or body.force) and await _reachable(services, dc):
        raise Problem(
            "region-alive",
            "The datacenter answers",
            409,
            f"The ledger of {dc} answers, or did within the last minute. Messages that both datacenters own would be sent twice.",
            "Stop its nodes first. If they are certainly stopped, say `force`.",
        )
    now = services.clock.now_ms()
    for running in await services.regions.adoptions(dc):
        if running.state == "running" and now - running.beat < _STALLED_MS:
            raise Problem(
                "adoption-running",
                "It is being done",
                409,
                f"{running.by} has been at it since {iso(running.at)}.",
                f"GET /v1/regions/{dc}/adoptions/{running.id} shows how far it is.",
                extra={"id": running.id},
            )
    adoption = await services.adoption.ask(dc, dry_run=body.dry_run, unattempted=body.unattempted)
    return _adoption_view(adoption)


@router.get("/{dc}/adoptions/{adoption_id}", operation_id="getAdoption", summary="How far an adoption is")
async def get_adoption(request: Request, dc: str, adoption_id: str, _caller: Admin) -> dict[str, Any]:
    """`counts` are open messages by what becomes of them: scheduled, send, hold (unknown, and not sent again), submitted, unknown.

    One whose `beat` stands still was cut short: begin it again, nothing is done twice.
    """
    found = await _services(request).regions.adoption(adoption_id)
    if found is None or found.dc != dc:
        raise Problem(
            "not-found", "No such adoption", 404, f"There is no adoption {adoption_id[:60]!r}.", "GET /v1/regions lists them."
        )  # fmt: skip
    return _adoption_view(found)
