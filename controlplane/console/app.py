"""The application at /console: guard, pages, errors as pages, static files."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from controlplane.console import (
    account,
    alerts,
    audit,
    batches,
    callbacks,
    connectors,
    guide,
    identity,
    keys,
    ledger,
    login,
    message,
    messages,
    operations,
    overview,
    people,
    proof,
    recipients,
    regions,
    routes,
    routing,
    send,
    setup,
)
from controlplane.console.backend import ApiError, Backend
from controlplane.console.frame import STATIC, Frame, refused
from controlplane.console.guard import Guard
from controlplane.console.live import Live
from controlplane.console.services import ConsoleServices
from controlplane.errors import Problem, StoreUnavailableError

__all__ = ["create_console"]

_KEEP = "public, max-age=31536000, immutable"


class _Files(StaticFiles):
    """Files whose URL changes with them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file."""
        answer = await super().get_response(path, scope)
        if scope["query_string"].startswith(b"v="):
            answer.headers["Cache-Control"] = _KEEP
        return answer


def create_console(services: ConsoleServices, backend: Backend) -> FastAPI:
    """To be mounted at /console. Nothing starts here."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    settings = services.settings
    app.state.services = services
    app.state.frame = Frame(backend, services.clock, settings.datacenter, settings.node)
    app.state.live = Live(services.clock, services.stopping)
    for module in (messages, message, ledger, proof):
        app.include_router(module.router)
    for module in (overview, connectors, routes, routing, regions, operations, alerts):
        app.include_router(module.router)
    for module in (login, setup, guide, account, people, keys, audit, send, batches, recipients, callbacks):
        app.include_router(module.router)
    app.mount("/static", _Files(directory=STATIC), name="static")
    identity.install(app)
    _errors(app)
    app.add_middleware(GZipMiddleware, minimum_size=1_000)
    app.add_middleware(Guard)
    return app


def _errors(app: FastAPI) -> None:
    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)  # noqa: S101 - registered for it
        return refused(request, error)

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101
        found = {"title": error.title, "detail": error.detail, "next_step": error.next_step}
        return refused(request, ApiError(error.status, found))

    async def on_store(request: Request, error: Exception) -> Response:
        found = {
            "title": "The store does not answer",
            "detail": str(error)[:300] if identity.seen(request) else "",
            "next_step": "Try again in a few seconds.",
        }
        return refused(request, ApiError(503, found))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        await identity.visit_of(request)
        found = {
            "title": "Not found" if error.status_code == 404 else "Not possible",
            "detail": f"There is no page {request.url.path[:100]}." if error.status_code == 404 else str(error.detail),
            "next_step": "Use the navigation, or search for a message.",
        }
        return refused(request, ApiError(error.status_code, found))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        wrong = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors()[:5])
        found = {
            "title": "The address or the form is not valid",
            "detail": wrong,
            "next_step": "Go back and correct it.",
        }
        return refused(request, ApiError(422, found))

    app.add_exception_handler(ApiError, on_refusal)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(StoreUnavailableError, on_store)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
