"""Sending a message anew that came to its end without delivery: the same content, in a message of its own."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.acceptance import Acceptance, Accepted, Item
from controlplane.api.auth import Caller, requires
from controlplane.api.reading import at_home, load_message, no_such_message, services_of
from controlplane.api.submission import MessageRequest, check_key, identify
from controlplane.domain.catalog import Scope
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, PartState, Status
from controlplane.errors import Problem
from controlplane.store.book import Fact

__all__ = ["router"]

router = APIRouter(prefix="/v1/messages", tags=["messages"])

_RESENDABLE = frozenset({Status.FAILED, Status.UNDELIVERED, Status.EXPIRED, Status.CANCELLED, Status.UNKNOWN})
_ON_AIR = frozenset({PartState.SUBMITTED, PartState.UNKNOWN, PartState.ENROUTE})


class Resend(BaseModel):
    """How to send it anew."""

    model_config = ConfigDict(extra="forbid")
    even_if_unknown: Annotated[
        bool, Field(description="Also when the first one may have arrived: the recipient may get it twice.")
    ] = False


@router.post(
    "/{mid}/resend",
    status_code=202,
    operation_id="resendMessage",
    summary="Send a message anew that was not delivered",
    responses={
        200: {"description": "A test key: nothing was accepted."},
        429: {"description": "Too many messages"},
    },
)
async def resend_message(
    request: Request,
    response: Response,
    mid: str,
    caller: Annotated[Caller, Depends(requires(Scope.MESSAGES_WRITE))],
    body: Annotated[Resend | None, Body()] = None,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="Needed only to send the same message anew a second time.")
    ] = None,
) -> dict[str, Any]:
    """Recipient, sender, text, class, reference and validity are the first one's; the route is searched anew. A repetition of this call gets the same answer."""
    acceptance: Acceptance = request.app.state.acceptance
    services = services_of(request)
    message, events = await load_message(services, caller, mid)
    if message.tenant != caller.tenant.id:
        raise no_such_message(mid)
    await at_home(services, message, events)
    if message.erased:
        raise Problem(
            "no-longer-possible", "Content erased", 409, "The message's content is erased.", "Send a new message."
        )
    if idempotency_key is not None:
        check_key(idempotency_key)
    # with two spaces, so that it is no client's key, nor that of an item of a client's batch
    item = Item(_again(message, events[0]), idempotency_key or f"resend  {mid}", resent_from=mid)
    if message.resent_as != identify(item.request, caller, services, item.key, mid)[0]:  # else it is a repetition
        _check(message, even_if_unknown=body is not None and body.even_if_unknown)
    limits = acceptance.limiter.take(caller, 1)
    (outcome,) = await acceptance.accept([item], caller)
    if not isinstance(outcome, Accepted):
        raise outcome
    response.headers.update(limits)
    if outcome.dry_run:
        response.status_code = 200
    else:
        new = outcome.answer["id"]
        response.headers["location"] = f"/v1/messages/{new}"
        await services.book.record(mid, Fact(Kind.RESENT, {"message": new}, guard=lambda m: m.resent_as != new))
    if outcome.replayed:
        response.headers["idempotent-replayed"] = "true"
    return {**outcome.answer, "resent_from": mid}


def _check(message: Message, *, even_if_unknown: bool) -> None:
    if message.status not in _RESENDABLE:
        raise Problem(
            "not-resendable",
            "Cannot be sent anew",
            409,
            f"The message is {message.status.value}.",
            "Only a message that failed, expired, was cancelled or not delivered, or whose outcome is unknown, can be sent anew.",
        )
    if not even_if_unknown and any(part.state in _ON_AIR for part in message.parts):
        raise Problem(
            "may-have-arrived",
            "It may have arrived",
            409,
            f"The message is {message.status.value}, but a carrier took it or may have: the recipient may get it twice.",
            'Ask the recipient, or send {"even_if_unknown": true}.',
        )


def _again(message: Message, first: Event) -> MessageRequest:
    data = first.data or {}
    optional = {
        name: data[name] for name in ("callback_url", "reference", "context", "max_price", "origin") if name in data
    }
    return MessageRequest(
        to=data["to"],
        body=data["body"],
        from_=data.get("from", ""),
        cls=data["class"],
        validity_seconds=max(1, math.ceil((message.expires_at - max(message.accepted_at, message.send_at)) / 1000)),
        durability=data.get("durability", "regional"),
        unknown_policy=data["unknown_policy"],
        **optional,
    )
