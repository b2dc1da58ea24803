"""A message after it was accepted: get, cancel, erase, feedback."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict

from controlplane.api.auth import Caller, relay, requires
from controlplane.api.problems import invalid
from controlplane.api.services import Services
from controlplane.api.story import detail
from controlplane.domain.catalog import Scope
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, Status
from controlplane.errors import FieldError, Problem
from controlplane.ids import is_mid
from controlplane.store.book import Fact
from controlplane.store.erasure import erased, home, stories_of

__all__ = ["at_home", "load_message", "router", "services_of", "time_of"]

router = APIRouter(prefix="/v1/messages", tags=["messages"])

Reader = Annotated[Caller, Depends(requires(Scope.MESSAGES_READ))]
Writer = Annotated[Caller, Depends(requires(Scope.MESSAGES_WRITE))]

_CANCELLABLE = frozenset({Status.SCHEDULED, Status.ACCEPTED, Status.QUEUED})


def services_of(request: Request) -> Services:
    """The node's services."""
    services: Services = request.app.state.services
    return services


def no_such_message(mid: str) -> Problem:
    """404: not there, or another tenant's."""
    return Problem(
        "not-found",
        "No such message",
        404,
        f"There is no message {mid[:60]!r}.",
        "Check the id; GET /v1/messages lists yours.",
    )


def elsewhere(mid: str, home: str, here: str) -> Problem:
    """409: another datacenter's message; it alone may change it."""
    return Problem(
        "other-datacenter",
        "Another datacenter has this message",
        409,
        f"Message {mid} belongs to the datacenter {home}; this is {here}, which can read it and prove it.",
        f"Send the request to a node of {home}. When {home} is lost for good, the operator runs `heliograph region adopt {home}`.",
        extra={"datacenter": home},
    )


async def load_message(services: Services, caller: Caller, mid: str) -> tuple[Message, list[Event]]:
    """The message and its events. Problem 404 when it is not there, or another tenant's."""
    story = await services.book.load(mid) if is_mid(mid.partition("@")[0]) else None
    if story is None or (story[0].tenant != caller.tenant.id and not (caller.admin or caller.everywhere)):
        raise no_such_message(mid)
    return story


async def at_home(services: Services, message: Message, events: list[Event]) -> None:
    """Raise Problem 409 for a message that another datacenter alone may change, unless its messages were taken over here; for a second story always."""
    here, there = services.settings.datacenter, home(message, events)
    if there != here and ("@" in message.mid or there not in await services.regions.adopted()):
        raise elsewhere(message.mid, there, here)


def time_of(name: str, value: str | None) -> int | None:
    """A time in a request, as ms since the epoch. Raises Problem 422."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise invalid([FieldError(name, "must be RFC 3339, such as 2030-01-31T09:00:00Z")]) from None


@router.get("/{mid}", operation_id="getMessage", summary="One message with its timeline")
async def get_message(request: Request, mid: str, caller: Reader) -> dict[str, Any]:
    """Status, parts, each event in words, and why the route was chosen."""
    services = services_of(request)
    message, events = await load_message(services, caller, mid)
    return detail(message, events, services.clock.now_ms())


@router.post("/{mid}/cancel", operation_id="cancelMessage", summary="Cancel a message that has not been sent")
async def cancel_message(request: Request, mid: str, caller: Writer) -> Any:
    """Possible while it is scheduled, accepted or queued, and not in hand. Any node takes the request; the message's owner decides."""
    services = services_of(request)
    message, _ = await load_message(services, caller, mid)
    book = services.book
    event = None
    if book.get(mid) is not None:
        idle = Fact(Kind.CANCELLED, {}, guard=lambda m: m.status in _CANCELLABLE and mid not in book.flying)
        event = await book.record(mid, idle)
    elif message.owner is not None and not message.final:
        here = services.settings.datacenter
        if message.owner[0] != here:
            raise elsewhere(mid, message.owner[0], here)
        given, path = request.headers.get("authorization", ""), request.url.path
        authorization = relay(services, given, to=message.owner[1], path=path)
        return await services.peers.forward(request, message.owner[1:], authorization)
    message, events = await load_message(services, caller, mid)
    if event is None and message.status is not Status.CANCELLED:
        raise Problem(
            "not-cancellable",
            "Cannot be cancelled",
            409,
            f"The message is {message.status_at(services.clock.now_ms()).value} or on its way to the carrier.",
            "Nothing: GET the message to see what became of it.",
        )
    return detail(message, events, services.clock.now_ms())


@router.delete("/{mid}/content", operation_id="eraseContent", summary="Erase recipient, sender and text for good")
async def erase_content(request: Request, mid: str, caller: Writer) -> dict[str, Any]:
    """The events and their proofs stay; what they said about people is gone. Only for messages at their end."""
    services = services_of(request)
    message, events = await load_message(services, caller, mid)
    await at_home(services, message, events)
    if not message.final:
        raise Problem(
            "not-final",
            "Still open",
            409,
            f"The message is {message.status.value}; its text is still needed.",
            "Cancel it, or wait for its final status.",
        )
    await services.book.record(mid, erased(message))
    await services.events.erase(*stories_of(mid, await services.regions.adopted()))
    message, events = await load_message(services, caller, mid)
    return detail(message, events, services.clock.now_ms())


class Feedback(BaseModel):
    """What the message led to."""

    model_config = ConfigDict(extra="forbid")
    outcome: Literal["converted", "not_converted"]
    at: str | None = None


@router.post("/{mid}/feedback", operation_id="sendFeedback", summary="Say whether the message led to what it was for")
async def send_feedback(request: Request, mid: str, body: Feedback, caller: Writer) -> dict[str, Any]:
    """Such as a one-time code that was entered. Routing weighs it above receipts."""
    services = services_of(request)
    await at_home(services, *await load_message(services, caller, mid))
    at = time_of("/at", body.at) or services.clock.now_ms()
    feedback = Fact(
        Kind.FEEDBACK, {"outcome": body.outcome, "at": at}, guard=lambda m: not m.erased and m.feedback != body.outcome
    )
    await services.book.record(mid, feedback)
    message, events = await load_message(services, caller, mid)
    return detail(message, events, services.clock.now_ms())
