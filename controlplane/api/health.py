"""Liveness, readiness, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from controlplane.api.reading import services_of

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/", include_in_schema=False)
async def home() -> RedirectResponse:
    """The API's documentation."""
    return RedirectResponse("/docs")


@router.get("/livez", operation_id="live", summary="The process runs", response_class=PlainTextResponse)
async def live() -> str:
    """Always 200 while the event loop turns."""
    return "ok\n"


@router.get(
    "/readyz",
    operation_id="ready",
    summary="The node takes messages",
    responses={503: {"description": "It does not, and why."}},
)
async def ready(request: Request) -> JSONResponse:
    """503 with the failing checks when it does not."""
    health = services_of(request).health()
    body: dict[str, Any] = {"ready": health.ready, "checks": health.checks}
    return JSONResponse(body, 200 if health.ready else 503)


@router.get("/metrics", operation_id="metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Text exposition format."""
    return Response(generate_latest(services_of(request).registry), media_type=CONTENT_TYPE_LATEST)
