"""Callback endpoints, their secrets, the delivery log, replay."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.auth import Caller, requires
from controlplane.api.cursor import open_cursor, seal_cursor
from controlplane.api.problems import invalid
from controlplane.api.reading import no_such_message, services_of
from controlplane.api.services import Services
from controlplane.api.submission import iso
from controlplane.domain.catalog import CallbackEndpoint, Scope
from controlplane.domain.events import Kind
from controlplane.errors import FieldError
from controlplane.ids import is_mid, token
from controlplane.store.callback_log import Attempt
from controlplane.store.catalog import not_found

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["callbacks"])

Reader = Annotated[Caller, Depends(requires(Scope.MESSAGES_READ))]
Writer = Annotated[Caller, Depends(requires(Scope.MESSAGES_WRITE))]

_KINDS = ("submitted", "unknown", "delivered", "undelivered", "failed", "expired", "cancelled", "received")


class EndpointBody(BaseModel):
    """Where to tell of messages that name no callback_url of their own."""

    model_config = ConfigDict(extra="forbid")
    url: Annotated[str, Field(max_length=2_000)]
    events: set[Kind] = Field(default_factory=set, description="Kinds to send; empty = all.")
    enabled: bool = True


def _view(endpoint: CallbackEndpoint) -> dict[str, Any]:
    return asdict(endpoint) | {"events": sorted(endpoint.events), "created_at": iso(endpoint.created_at)}


def _checked(body: EndpointBody, services: Services) -> frozenset[str]:
    errors = []
    if wrong := services.check_callback_url(body.url):
        errors.append(FieldError("/url", wrong))
    unsent = sorted(kind.value for kind in body.events if kind.value not in _KINDS)
    if unsent:
        errors.append(
            FieldError("/events", f"{', '.join(unsent)}: no callback is sent for it; there are {', '.join(_KINDS)}")
        )
    if errors:
        raise invalid(errors)
    return frozenset(kind.value for kind in body.events)


def _own(services: Services, caller: Caller, endpoint_id: str) -> CallbackEndpoint:
    endpoint = services.catalog.snapshot.endpoints.get(endpoint_id)
    if endpoint is None or endpoint.tenant != caller.tenant.id:
        raise not_found(CallbackEndpoint, endpoint_id)
    return endpoint


@router.get("/callbacks", operation_id="listCallbacks", summary="Your callback endpoints")
async def list_callbacks(request: Request, caller: Reader) -> dict[str, Any]:
    """All of the tenant's."""
    endpoints = services_of(request).catalog.snapshot.endpoints.values()
    return {"data": [_view(endpoint) for endpoint in endpoints if endpoint.tenant == caller.tenant.id]}


@router.post("/callbacks", status_code=201, operation_id="createCallback", summary="Add a callback endpoint")
async def create_callback(request: Request, body: EndpointBody, caller: Writer) -> dict[str, Any]:
    """Callbacks are signed with the tenant's secret."""
    services = services_of(request)
    endpoint = CallbackEndpoint(
        id=token("cb", 8),
        tenant=caller.tenant.id,
        url=body.url,
        events=_checked(body, services),
        enabled=body.enabled,
        created_at=services.clock.now_ms(),
    )
    await services.catalog.put(endpoint, create=True)
    return _view(endpoint)


@router.post("/callbacks/rotate-secret", operation_id="rotateCallbackSecret", summary="A new signing secret")
async def rotate_secret(request: Request, caller: Writer) -> dict[str, Any]:
    """Shown only here. The secret before signs along until the next rotation, so that receivers can change without a gap."""
    services = services_of(request)
    secret = services.new_callback_secret()
    await services.catalog.rotate_callback_secret(caller.tenant.id, secret)
    return {"callback_secret": secret}


@router.get("/callbacks/deliveries", operation_id="listDeliveries", summary="The delivery log, newest first")
async def list_deliveries(
    request: Request,
    caller: Reader,
    callback: Annotated[str | None, Query(max_length=64, description="Only this endpoint.")] = None,
    message: Annotated[str | None, Query(max_length=64, description="Only this message.")] = None,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> dict[str, Any]:
    """Each attempt: when, where, what came back, how long it took."""
    services = services_of(request)
    secret, context = services.settings.secret, f"deliveries|{caller.tenant.id}|{callback}|{message}"
    before = open_cursor(secret, context, cursor) if cursor else None
    attempts = await services.callback_log.attempts(
        tenant=caller.tenant.id, endpoint=callback, mid=message, before=before, limit=limit
    )
    last = attempts[-1].id if len(attempts) == limit else None
    return {
        "data": [_attempt(attempt) for attempt in attempts],
        "next": seal_cursor(secret, context, last) if last else None,
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "id": attempt.id,
        "message": attempt.mid,
        "sequence": attempt.k,
        "callback": attempt.endpoint,
        "url": attempt.url,
        "at": iso(attempt.at),
        "attempt": attempt.attempt,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "ms": attempt.ms,
        "error": attempt.error or None,
    }


@router.get("/callbacks/{callback_id}", operation_id="getCallback", summary="One callback endpoint")
async def get_callback(request: Request, callback_id: str, caller: Reader) -> dict[str, Any]:
    """With the reason, if we disabled it."""
    return _view(_own(services_of(request), caller, callback_id))


@router.put("/callbacks/{callback_id}", operation_id="replaceCallback", summary="Change a callback endpoint")
async def replace_callback(request: Request, callback_id: str, body: EndpointBody, caller: Writer) -> dict[str, Any]:
    """Enabling it again clears the reason for which it was disabled."""
    services = services_of(request)
    old = _own(services, caller, callback_id)
    endpoint = CallbackEndpoint(
        id=old.id,
        tenant=old.tenant,
        url=body.url,
        events=_checked(body, services),
        enabled=body.enabled,
        created_at=old.created_at,
    )
    await services.catalog.put(endpoint)
    return _view(endpoint)


@router.delete("/callbacks/{callback_id}", status_code=204, operation_id="deleteCallback", summary="Remove an endpoint")
async def delete_callback(request: Request, callback_id: str, caller: Writer) -> None:
    """What waits for a retry there is dropped."""
    services = services_of(request)
    _own(services, caller, callback_id)
    await services.catalog.delete(CallbackEndpoint, callback_id)


class Replay(BaseModel):
    """Which callbacks to send again."""

    model_config = ConfigDict(extra="forbid")
    message: Annotated[str, Field(max_length=64)]
    sequence: Annotated[int | None, Field(ge=0, description="Only of this event.")] = None
    callback: Annotated[str | None, Field(max_length=64, description="Only to this endpoint.")] = None


@router.post("/callbacks/replay", status_code=202, operation_id="replayCallbacks", summary="Send callbacks again")
async def replay(request: Request, body: Replay, caller: Writer) -> dict[str, Any]:
    """The webhook-id stays the same, so that a receiver which had them can tell."""
    services = services_of(request)
    count = 0
    if is_mid(body.message):
        count = await services.callbacks.replay(
            tenant=caller.tenant.id, mid=body.message, endpoint=body.callback, k=body.sequence
        )
    if not count:
        raise no_such_message(body.message)
    return {"queued": count}
