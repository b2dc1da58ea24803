"""The OpenAPI 3.1 document: FastAPI's, plus the two hot routes from their msgspec types, the problems, the security scheme.

`python -m controlplane.api > docs/openapi.json` writes the committed copy; a test compares.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from controlplane.api.problems import PROBLEM_SCHEMA
from controlplane.api.submission import BatchItem, MessageRequest

__all__ = ["document", "install"]

_EXAMPLE = {"to": "+4915112345678", "body": "Your code is 482913", "class": "otp"}
_NULLABLE_STRING = {"type": ["string", "null"]}
_ACCEPTED: dict[str, Any] = {
    "type": "object",
    "required": ["id", "status", "to", "parts", "encoding", "price", "route", "accepted_at", "expires_at"],
    "properties": {
        "id": {"type": ["string", "null"], "description": "Null for a dry run."},
        "status": {"type": "string", "enum": ["accepted", "scheduled"]},
        "to": {"type": "string"},
        "parts": {"type": "integer", "minimum": 1},
        "encoding": {"type": "string", "enum": ["gsm7", "ucs2"]},
        "price": {
            "type": "object",
            "required": ["amount", "currency"],
            "properties": {
                "amount": {"type": "integer", "description": "Minor units."},
                "currency": {"type": "string"},
            },
        },
        "route": {
            "type": "object",
            "properties": {"planned": {"type": "string"}, "why": {"type": "string"}},
        },
        "reference": _NULLABLE_STRING,
        "accepted_at": {"type": "string", "format": "date-time"},
        "send_at": {"type": ["string", "null"], "format": "date-time"},
        "held": {
            "type": ["object", "null"],
            "description": "Why it waits: the recipient's, or the tenant's, quiet hours.",
            "properties": {
                "rule": {"type": "string"},
                "detail": {"type": "string"},
                "record": {
                    "type": ["string", "null"],
                    "description": "The preference that decided; null: the tenant's.",
                },
                "until": {"type": "string", "format": "date-time"},
            },
        },
        "expires_at": {"type": "string", "format": "date-time"},
        "dry_run": {"type": "boolean"},
    },
}
_BATCH_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["accepted", "rejected", "results"],
    "properties": {
        "accepted": {"type": "integer"},
        "rejected": {"type": "integer"},
        "results": {
            "type": "array",
            "description": "One for each message, in order: an Accepted with its index, or an error.",
            "items": {
                "type": "object",
                "required": ["index"],
                "properties": {"index": {"type": "integer"}, "error": {"$ref": "#/components/schemas/Problem"}},
            },
        },
    },
}
_KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 255 printable ASCII characters. The same request again gets the same answer; another body gets 422.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_STATUSES = {
    "400": "Not JSON",
    "401": "No usable API key",
    "403": "Scope missing, or tenant disabled",
    "404": "Not found",
    "409": "Not possible in the present state",
    "413": "Body too large",
    "415": "Unsupported media type",
    "422": "Not valid; `errors` points to each field",
    "429": "Too many messages",
    "500": "A fault of ours",
    "501": "Not available on this node",
    "503": "Not accepted for now; try again",
}


def _problems(*codes: str) -> dict[str, Any]:
    return {code: {"$ref": f"#/components/responses/Problem{code}"} for code in codes}


def _hot_paths() -> dict[str, Any]:
    limits = {
        name: {"schema": {"type": "string"}, "description": text}
        for name, text in (("RateLimit", "What is left."), ("RateLimit-Policy", "What is allowed."))
    }
    errors = _problems("400", "401", "403", "409", "413", "415", "422", "429", "501", "503")
    message = {
        "tags": ["messages"],
        "operationId": "sendMessage",
        "summary": "Send a message",
        "description": "Answered 202 once the message is written by a majority and journaled: from then on it is not lost.",
        "parameters": [_KEY_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/MessageRequest"}, "example": _EXAMPLE}
            },
        },
        "responses": {
            "200": _answer("Accepted", "A dry run: nothing was accepted.", limits),
            "202": _answer("Accepted", "Accepted.", limits),
            **errors,
        },
    }
    batch = {
        "tags": ["messages"],
        "operationId": "sendBatch",
        "summary": "Send up to 10,000 messages",
        "description": "Each has its own result, in order; a bad one never spoils the others. NDJSON: one message a line.",
        "parameters": [_KEY_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["messages"],
                        "additionalProperties": False,
                        "properties": {
                            "messages": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 10_000,
                                "items": {"$ref": "#/components/schemas/BatchItem"},
                            }
                        },
                    },
                    "example": {"messages": [_EXAMPLE]},
                },
                "application/x-ndjson": {"schema": {"type": "string"}, "example": json.dumps(_EXAMPLE)},
            },
        },
        "responses": {"202": _answer("BatchAnswer", "One result for each message.", limits), **errors},
    }
    return {"/v1/messages": {"post": message}, "/v1/batches": {"post": batch}}


def _answer(schema: str, description: str, headers: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "headers": headers, "content": content}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    spec = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes, openapi_version="3.1.0"
    )
    spec["servers"] = [{"url": "/"}]
    spec["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    _, schemas = msgspec.json.schema_components([MessageRequest, BatchItem], ref_template="#/components/schemas/{name}")
    components = spec.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas)
    components["schemas"] |= {"Problem": PROBLEM_SCHEMA, "Accepted": _ACCEPTED, "BatchAnswer": _BATCH_ANSWER}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["responses"] = {
        f"Problem{code}": {
            "description": text,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for code, text in _STATUSES.items()
    }
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key: hg_live_… or hg_test_…"}
    }
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            if path.startswith("/v1/"):
                _complete(method, path, operation)
            elif path.startswith("/ledger/") and path != "/ledger/verifier.py":
                operation["responses"].update(_problems("401", "403", "404", "422", "500", "503"))
                operation["security"] = [{"key": []}, {}]  # without one where ledger_public is set
    for path, item in _hot_paths().items():
        item["post"]["security"] = [{"key": []}]
        spec["paths"].setdefault(path, {}).update(item)
    spec["paths"] = dict(sorted(spec["paths"].items()))
    return spec


def _complete(method: str, path: str, operation: dict[str, Any]) -> None:
    codes = ["401", "403", "422", "503"]
    if "{" in path:
        codes.append("404")
    if method in ("post", "put", "delete"):
        codes += ["400", "404", "409", "413"]
    if "application/x-ndjson" in operation.get("requestBody", {}).get("content", {}):
        codes.append("415")
    codes += [code for code in operation["responses"] if code in _STATUSES]
    operation["responses"].update(_problems(*sorted(set(codes))))
    operation["security"] = [{"key": []}]


def install(app: FastAPI) -> None:
    """Serve it at /openapi.json."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
