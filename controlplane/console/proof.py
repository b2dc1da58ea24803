"""A message's proof, verified in the visitor's own browser (static/proof.js) or with a program of one file: nobody has to believe this page."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, render
from controlplane.console.identity import Visit, allows
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/ledger/proof/{mid}")

Viewer = Annotated[Visit, Depends(allows(Role.VIEWER))]


@router.get("")
async def show_proof(request: Request, visit: Viewer, mid: str) -> Response:
    """What there is to be proven, and how."""
    proof = await backend_of(request).get(visit, f"/v1/messages/{mid[:64]}/proof")
    here = quote(mid, safe="")
    return render(
        request,
        "ledger/proof.html",
        mid=mid,
        proof=proof,
        message=f"/console/messages/{here}",
        document=f"/console/ledger/proof/{here}/document",
        base=str(request.base_url).rstrip("/").removesuffix("/console"),
        keys=sorted(proof["keys"].values()),
        logs=sorted(proof["checkpoints"]),
    )


@router.get("/document")
async def document(request: Request, visit: Viewer, mid: str) -> Response:
    """The proof itself, without what the leaves commit to. A refusal is the API's problem document: a program reads it."""
    headers = {"Cache-Control": "no-store", "Content-Disposition": 'attachment; filename="proof.json"'}
    try:
        proof = await backend_of(request).get(visit, f"/v1/messages/{mid[:64]}/proof")
    except ApiError as error:
        return Response(json.dumps(error.problem), error.status, media_type="application/problem+json")
    return Response(json.dumps(proof, indent=1), media_type="application/json", headers=headers)
