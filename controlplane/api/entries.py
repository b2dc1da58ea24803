"""`GET /v1/ledger/logs/{dc}/{log}/entries`: a log's entries as people read them. The tiles have the same, for programs that verify."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from controlplane.api.auth import Caller, requires
from controlplane.api.reading import services_of
from controlplane.api.times import iso
from controlplane.domain.catalog import Scope
from controlplane.domain.events import leaf_hash
from controlplane.errors import Problem
from controlplane.ledger.published import UnreadableLogError
from controlplane.ledger.tiles import ENTRIES, WIDTH, Tile, decode_bundle
from controlplane.store.ledger import Log

__all__ = ["router"]

router = APIRouter(prefix="/v1/ledger", tags=["ledger"])

_MOST = 500


@router.get("/logs/{dc}/{log}/entries", operation_id="listEntries", summary="A log's entries, newest first")
async def list_entries(
    request: Request,
    _caller: Annotated[Caller, Depends(requires(Scope.LEDGER_READ))],
    dc: str,
    log: str,
    before: Annotated[int | None, Query(ge=0, description="Only entries with a smaller index.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 50,
) -> dict[str, Any]:
    """Each leaf: of which message, what, when, by whom; nothing of a person. `next` is the `before` of the next page, null at the log's beginning."""
    services = services_of(request)
    found = await services.published.log(f"{services.settings.ledger_domain}/ledger/{dc[:64]}/{log[:64]}")
    if found is None or found.dc != dc:
        raise Problem(
            "not-found", "No such log", 404, f"There is no log {log[:64]!r} of {dc[:64]!r} here.", "GET /ledger/ lists the logs."
        )  # fmt: skip
    end = found.size if before is None else min(before, found.size)
    start = max(0, end - limit)
    try:
        tiles = _bundles(found, start, end)
        bundles = await services.published.read(found, tiles)
    except UnreadableLogError as error:
        raise Problem(
            "damaged-log",
            "The log cannot be read",
            500,
            f"{error}.",
            "Tell the operator: `heliograph ledger repair` mends it from a mirror. Proofs that were given before stay valid.",
        ) from None
    leaves = [leaf for tile in tiles for leaf in decode_bundle(bundles[tile])]
    skipped = start - tiles[0].index * WIDTH if tiles else 0
    entries = [_entry(start + place, leaf) for place, leaf in enumerate(leaves[skipped : skipped + end - start])]
    return {
        "origin": found.origin,
        "size": found.size,
        "data": entries[::-1],
        "next": start or None,
    }


def _bundles(log: Log, start: int, end: int) -> list[Tile]:
    if start >= end:
        return []
    numbers = range(start // WIDTH, (end - 1) // WIDTH + 1)
    return [Tile(ENTRIES, number, min(WIDTH, log.size - number * WIDTH)) for number in numbers]


def _entry(index: int, leaf: bytes) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(leaf)
    return {
        "index": index,
        "kind": members["kind"],
        "at": iso(members["at"]),
        "message": members["mid"],
        "sequence": members["k"],
        "node": members["n"],
        "epoch": members["e"],
        "reason": members.get("reason"),
        "ref": members.get("ref"),
        "hash": leaf_hash(leaf).hex(),
        "leaf": leaf.decode(),
    }
