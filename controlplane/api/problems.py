"""Every error of the API is `application/problem+json` (RFC 9457) that says what happened and what to do next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from controlplane.errors import FieldError, Problem, StoreUnavailableError

__all__ = ["PROBLEM_SCHEMA", "install", "invalid", "render", "request_id", "store_unavailable"]

_log = structlog.get_logger()
_BASE = "https://heliograph.dev/problems/"

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail", "next_step", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "next_step": {"type": "string", "description": "What to do about it."},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "RFC 6901 JSON pointer, or a parameter's name."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def invalid(errors: Sequence[FieldError]) -> Problem:
    """422 with a pointer to each wrong field."""
    first = errors[0]
    more = f" ({len(errors)} in all)" if len(errors) > 1 else ""
    return Problem(
        "invalid-request",
        "The request is not valid",
        422,
        f"{first.pointer or 'The body'}: {first.detail}{more}",
        "Correct what `errors` points to; nothing was accepted.",
        errors=errors,
    )


def store_unavailable(error: StoreUnavailableError) -> Problem:
    """503 for a MongoDB that does not answer."""
    return Problem(
        "store-unavailable",
        "The store does not answer",
        503,
        str(error)[:300],
        "Send the same request again in a few seconds.",
        headers={"Retry-After": "2"},
    )


def document(problem: Problem, instance: str, rid: str) -> dict[str, Any]:
    """The problem as JSON."""
    body: dict[str, Any] = {
        "type": _BASE + problem.slug,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
        "next_step": problem.next_step,
        "request_id": rid,
    }
    if problem.errors:
        body["errors"] = [{"pointer": error.pointer, "detail": error.detail} for error in problem.errors]
    return body | problem.extra


def render(problem: Problem, instance: str, rid: str) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of the answer."""
    headers = {"content-type": "application/problem+json", "x-request-id": rid, **problem.headers}
    return problem.status, headers, json.dumps(document(problem, instance, rid), ensure_ascii=True).encode()


def request_id(scope: Mapping[str, Any]) -> str:
    """The id that the outermost middleware gave this request."""
    return str(scope.get("state", {}).get("request_id", ""))


def _answer(request: Request, problem: Problem) -> Response:
    status, headers, body = render(problem, request.url.path, request_id(request.scope))
    return Response(body, status, headers)


def _of_http(error: HTTPException, request: Request) -> Problem:
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        return Problem(
            "method-not-allowed",
            "Method not allowed",
            405,
            f"{request.method} is not possible here.",
            f"Use {allow or 'another method'}; /docs lists all calls.",
            headers={"Allow": allow} if allow else {},
        )
    return Problem(
        "not-found", "Not found", 404, f"There is nothing at {request.url.path[:200]}.", "See /docs for what there is."
    )


def _of_validation(error: RequestValidationError) -> Problem:
    errors = []
    for item in error.errors():
        place, *path = item["loc"]
        if item["type"] == "json_invalid":
            return Problem(
                "malformed-json",
                "The body is not JSON",
                400,
                str(item.get("ctx", {}).get("error", item["msg"])),
                "Send a JSON document.",
            )
        pointer = "".join(f"/{part}" for part in path) if place == "body" else str(path[0]) if path else str(place)
        errors.append(FieldError(pointer, str(item["msg"])))
    return invalid(errors)


def install(app: FastAPI) -> None:
    """Register the handlers."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101 - registered for it
        return _answer(request, error)

    async def on_store(request: Request, error: Exception) -> Response:
        assert isinstance(error, StoreUnavailableError)  # noqa: S101
        return _answer(request, store_unavailable(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return _answer(request, _of_http(error, request))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return _answer(request, _of_validation(error))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(StoreUnavailableError, on_store)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def internal() -> Problem:
    """500: our fault, told without a word of what happened inside."""
    return Problem(
        "internal",
        "Internal error",
        500,
        "Something went wrong on our side.",
        "Try again; if it stays, give the request_id to the operator.",
    )
