"""The ledger over HTTP: proofs of messages, the logs as plain tlog-tiles (c2sp.org/tlog-tiles), how the ledger stands, and repairs."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.auth import Caller, authenticate, requires
from controlplane.api.reading import load_message, services_of
from controlplane.api.services import Services
from controlplane.api.submission import iso
from controlplane.domain.catalog import Scope
from controlplane.errors import Problem
from controlplane.ids import token
from controlplane.ledger import offline
from controlplane.ledger.evidence import cosigner_keys, prove
from controlplane.ledger.published import UnreadableLogError
from controlplane.ledger.standing import log_name
from controlplane.ledger.tiles import ENTRIES, Tile, parse_path
from controlplane.store.ledger import Finding, Log

__all__ = ["router"]

router = APIRouter()

Reader = Annotated[Caller, Depends(requires(Scope.MESSAGES_READ))]
LedgerReader = Annotated[Caller, Depends(requires(Scope.LEDGER_READ))]
Admin = Annotated[Caller, Depends(requires(Scope.ADMIN))]

_FOREVER = "max-age=31536000, immutable"
_SHORT = "max-age=1"
_NOTE_TYPE = "text/plain; charset=utf-8"


class _Public:
    """A dependency: anybody where the settings say so, else a key with `ledger:read`."""

    def __call__(self, request: Request) -> Services:
        services = services_of(request)
        if not services.settings.ledger_public:
            authenticate(services, request.headers.get("authorization"), Scope.LEDGER_READ)
        return services


Public = Annotated[Services, Depends(_Public())]


def _damaged(error: UnreadableLogError) -> Problem:
    return Problem(
        "damaged-log",
        "The log cannot be read",
        500,
        f"{error}.",
        "Tell the operator: `heliograph ledger repair` mends it from a mirror. Proofs that were given before stay valid.",
    )


# -- the proof of a message --------------------------------------------------------------------------------------------------


@router.get(
    "/v1/messages/{mid}/proof",
    tags=["messages"],
    operation_id="proveMessage",
    summary="The ledger's proof of a message",
)
async def prove_message(
    request: Request,
    mid: str,
    caller: Reader,
    payload: Annotated[bool, Query(description="With what the leaves commit to: salts, recipient, text.")] = False,
) -> dict[str, Any]:
    """Each event with its place in a log, the way to the root, and the checkpoint. `GET /ledger/verifier.py` verifies it offline.

    `pending` are events that no published checkpoint covers yet: usually for less than a second.
    """
    services = services_of(request)
    message, events = await load_message(services, caller, mid)
    try:
        return await prove(services.published, message.mid, events, cosigner_keys(services.settings), opened=payload)
    except UnreadableLogError as error:
        raise _damaged(error) from None


# -- the logs ------------------------------------------------------------------------------------------------------------------


@router.get("/ledger/verifier.py", tags=["ledger"], operation_id="offlineVerifier", response_class=PlainTextResponse)
async def verifier() -> Response:
    """A program of one file that verifies proofs with nothing but Python. Read it: it is what you have to trust."""
    return Response(_verifier(), media_type="text/plain; charset=utf-8", headers={"cache-control": "max-age=3600"})


@lru_cache(maxsize=1)
def _verifier() -> bytes:
    return Path(offline.__file__).read_bytes()


async def _view(services: Services, log: Log) -> dict[str, Any]:
    newest = await services.published.newest_at(log)
    return {
        "origin": log.origin,
        "datacenter": log.dc,
        "epoch": log_name(log),
        "own": log.own,
        "state": log.state,
        "size": log.size,
        "vkey": log.vkey,
        "newest_entry_at": iso(newest) if newest else None,
        "previous": log.previous or None,
        "next": log.next or None,
        "url": f"/ledger/{log.dc}/{log_name(log)}",
    }


@router.get("/ledger/", tags=["ledger"], operation_id="listLogs", summary="The logs that are held here")
async def list_logs(services: Public) -> dict[str, Any]:
    """This datacenter's and those that it mirrors, oldest first."""
    return {"data": [await _view(services, log) for log in await services.published.logs()]}


@router.get("/ledger/{dc}", tags=["ledger"], operation_id="listLogsOfDatacenter", summary="The logs of one datacenter")
async def list_logs_of(services: Public, dc: str) -> dict[str, Any]:
    """Oldest first. Take its keys (`vkey`) from a place that you trust, and compare."""
    return {"data": [await _view(services, log) for log in await _logs(services, dc)]}


@router.get(
    "/ledger/{dc}/checkpoint", tags=["ledger"], operation_id="currentCheckpoint", response_class=PlainTextResponse
)
async def current_checkpoint(services: Public, dc: str) -> Response:
    """The newest signed checkpoint of the datacenter's current log, with the cosignatures over it so far."""
    return await _checkpoint(services, (await _logs(services, dc))[-1])


@router.get(
    "/ledger/{dc}/{log}/checkpoint", tags=["ledger"], operation_id="checkpoint", response_class=PlainTextResponse
)
async def checkpoint(services: Public, dc: str, log: str) -> Response:
    """c2sp.org/tlog-checkpoint. The log's origin is its URL without `https://` and `/checkpoint`."""
    return await _checkpoint(services, await _log(services, dc, log))


@router.get(
    "/ledger/{dc}/{log}/tile/{path:path}",
    tags=["ledger"],
    operation_id="tile",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def tile(request: Request, services: Public, dc: str, log: str, path: str) -> Response:
    """c2sp.org/tlog-tiles: `<L>/<N>[.p/<W>]` and `entries/<N>[.p/<W>]`, up to the size of the checkpoint and never beyond."""
    found = await _log(services, dc, log)
    try:
        wanted = parse_path(f"tile/{path}")
        data = (await services.published.read(found, [wanted]))[wanted]
    except (ValueError, KeyError):
        raise _nothing(f"{found.origin}/tile/{path}") from None
    except UnreadableLogError as error:
        raise _damaged(error) from None
    return await _immutable(request, services, wanted, data)


async def _immutable(request: Request, services: Services, wanted: Tile, data: bytes) -> Response:
    headers = {"cache-control": f"{'public' if services.settings.ledger_public else 'private'}, {_FOREVER}"}
    if wanted.level == ENTRIES:
        headers["vary"] = "accept-encoding"
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            data = await asyncio.to_thread(gzip.compress, data, 5, mtime=0)
    return Response(data, media_type="application/octet-stream", headers=headers)


async def _checkpoint(services: Services, log: Log) -> Response:
    return Response(await services.published.checkpoint(log), media_type=_NOTE_TYPE, headers={"cache-control": _SHORT})


async def _logs(services: Services, dc: str) -> list[Log]:
    found = [log for log in await services.published.logs() if log.dc == dc]
    if not found:
        raise _nothing(f"a log of {dc[:60]!r}")
    return found


async def _log(services: Services, dc: str, name: str) -> Log:
    found = await services.published.log(f"{services.settings.ledger_domain}/ledger/{dc}/{name}")
    if found is None or found.dc != dc:
        raise _nothing(f"the log {name[:60]!r} of {dc[:60]!r}")
    return found


def _nothing(what: str) -> Problem:
    return Problem(
        "not-found", "Not found", 404, f"There is nothing published as {what[:200]}.", "GET /ledger/ lists the logs and their sizes."
    )  # fmt: skip


# -- how it stands ---------------------------------------------------------------------------------------------------------


@router.get("/v1/ledger", tags=["ledger"], operation_id="getLedger", summary="How the ledger stands")
async def get_ledger(request: Request, _caller: LedgerReader) -> dict[str, Any]:
    """Sequenced, published, witnessed, mirrored: how far, and by whom; findings; `alarms` in sentences, empty when all is well."""
    return await services_of(request).standing.read()


@router.get("/v1/ledger/findings", tags=["ledger"], operation_id="listFindings", summary="What verification found")
async def list_findings(
    request: Request,
    _caller: LedgerReader,
    state: Annotated[Literal["open", "cured", "sealed"] | None, Query(description="Only those in this state.")] = None,
) -> dict[str, Any]:
    """The newest thousand."""
    return {"data": [_finding(item) for item in await services_of(request).ledger.findings(state)]}


def _finding(item: Finding) -> dict[str, Any]:
    return asdict(item) | {"id": item.id, "at": iso(item.at)}


class RepairBody(BaseModel):
    """What is asked of repair."""

    model_config = ConfigDict(extra="forbid")
    dry_run: Annotated[bool, Field(description="Say what would be done, and change nothing.")] = True


@router.post(
    "/v1/ledger/repairs", status_code=202, tags=["ledger"], operation_id="askRepair", summary="Verify and mend"
)
async def ask_repair(request: Request, caller: Admin, body: RepairBody) -> dict[str, Any]:
    """Queued for the ledger that leads. GET the answer's `id` for its report."""
    services = services_of(request)
    identity = token("rep", 8)
    asked = {"at": services.clock.now_ms(), "dry_run": body.dry_run, "by": caller.key.id}
    await services.ledger.ask_repair(identity, asked)
    return {"id": identity, "state": "asked", **asked, "at": iso(asked["at"])}


@router.get(
    "/v1/ledger/repairs/{repair_id}", tags=["ledger"], operation_id="getRepair", summary="What became of a repair"
)
async def get_repair(request: Request, repair_id: str, _caller: LedgerReader) -> dict[str, Any]:
    """`state` is asked, running, then done or failed."""
    found = await services_of(request).ledger.repair(repair_id)
    if found is None:
        raise Problem(
            "not-found", "No such repair", 404, f"There is no repair {repair_id[:60]!r}.", "POST /v1/ledger/repairs begins one."
        )  # fmt: skip
    view: dict[str, Any] = _plain({"id": found.pop("_id"), **found})
    return view | {"at": iso(found["at"])}


def _plain(value: Any) -> Any:
    """A document as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
