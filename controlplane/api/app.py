"""The FastAPI application. Lifecycles belong to the composition root: nothing starts here."""

from __future__ import annotations

from fastapi import FastAPI

from controlplane import __version__
from controlplane.api import (
    alerts,
    audit,
    batch_jobs,
    callbacks,
    configuration,
    entries,
    explain,
    health,
    ledger,
    listing,
    nodes,
    openapi,
    operations,
    people,
    preferences,
    reading,
    reference,
    regions,
    resend,
    routing,
    statistics,
    texts,
)
from controlplane.api.acceptance import Acceptance
from controlplane.api.envelope import Envelope
from controlplane.api.hot import hot_handlers, hot_routes
from controlplane.api.problems import install
from controlplane.api.ratelimit import RateLimiter
from controlplane.api.rows import Rows
from controlplane.api.services import Services

__all__ = ["bare_app", "create_app"]

_UPLOADS = (("POST", "/v1/batch-jobs"), ("POST", "/console/batches"))
"""Bodies that are read as they come; the console's goes on to the API's."""


def bare_app() -> FastAPI:
    """The application with its described routes, and nothing behind them: enough for its OpenAPI document."""
    app = FastAPI(
        title="Heliograph",
        version=__version__,
        summary="SMS delivery that proves what it did.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    for module in (
        health,
        listing,
        reading,
        entries,
        ledger,
        regions,
        operations,
        callbacks,
        explain,
        routing,
        configuration,
        preferences,
        people,
        audit,
        nodes,
        statistics,
        alerts,
        batch_jobs,
        resend,
        texts,
    ):
        app.include_router(module.router)
    install(app)
    openapi.install(app)
    reference.install(app)
    return app


def create_app(services: Services) -> FastAPI:
    """The API over these services."""
    app = bare_app()
    app.state.services = services
    app.state.acceptance = Acceptance(services, RateLimiter(services.clock, services.settings.default_rate))
    app.state.rows = Rows(app.state.acceptance)
    app.state.hot = hot_handlers(app.state.acceptance)
    app.router.routes[:0] = hot_routes(app.state.hot)
    app.add_middleware(audit.Audited, services=services)
    app.add_middleware(
        Envelope,
        max_body=services.settings.max_body_bytes,
        streamed=dict.fromkeys(_UPLOADS, services.settings.max_upload_bytes),
    )
    return app
