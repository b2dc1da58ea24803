"""The page at /docs: swagger-ui over /openapi.json. Everything it needs is here (`docs/`), so that it works without internet and runs nobody else's scripts."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["install"]

_FOLDER = Path(__file__).parent / "docs"
_HEADERS = {
    # swagger-ui sets style attributes; its pictures are in its style sheet
    "content-security-policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; object-src 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file, with what browsers are told of it."""
        answer = await super().get_response(path, scope)
        answer.headers.update(_HEADERS)
        return answer


def install(app: FastAPI) -> None:
    """Serve it; the OpenAPI document does not name it."""
    files = _Files(directory=_FOLDER)

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.router.routes += [Route("/docs", page), Mount("/docs", files)]
