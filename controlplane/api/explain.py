"""How a message would be routed, and why: nothing is sent."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api import consent
from controlplane.api.auth import Caller, requires
from controlplane.api.decisions import decision_view
from controlplane.api.problems import invalid
from controlplane.api.reading import services_of
from controlplane.api.submission import plan_for
from controlplane.domain.address import classify_sender, normalise_recipient
from controlplane.domain.catalog import MessageClass, Scope, SenderType
from controlplane.domain.preferences import Outcome, verdict
from controlplane.domain.text import analyse
from controlplane.errors import FieldError
from controlplane.ids import new_mid
from controlplane.routing import Exclusion, Plan, RouteRequest

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["routes"])


class RouteSearch(BaseModel):
    """A message that is not sent."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    to: Annotated[str, Field(max_length=40)]
    body: Annotated[str, Field(max_length=40_000)] = ""
    from_: Annotated[str, Field(max_length=20, alias="from")] = ""
    cls: Annotated[MessageClass, Field(alias="class")] = MessageClass.TRANSACTIONAL
    max_price: Annotated[int | None, Field(ge=0, le=1_000_000_000)] = None
    origin: Annotated[str | None, Field(pattern="^[A-Z]{2}$", description="The sender's country.")] = None


@router.post(
    "/route-searches", operation_id="searchRoutes", summary="Explain the routing of a message that is not sent"
)
async def search_routes(
    request: Request, body: RouteSearch, caller: Annotated[Caller, Depends(requires(Scope.ROUTES_READ))]
) -> dict[str, Any]:
    """Candidates in order, exclusions with their rules, and why the first is first."""
    try:
        to = normalise_recipient(body.to)
    except ValueError as error:
        raise invalid([FieldError("/to", str(error))]) from None
    try:
        sender_type = classify_sender(body.from_) if body.from_ else SenderType.ALPHANUMERIC
    except ValueError as error:
        raise invalid([FieldError("/from", str(error))]) from None
    if any(0xD800 <= ord(char) <= 0xDFFF for char in body.body):
        raise invalid([FieldError("/body", "has half of a surrogate pair")])
    analysis = analyse(body.body, smart=caller.tenant.smart_encoding)
    services = services_of(request)
    standing = await services.recipients.find(caller.tenant.id, to)
    _, route_request = plan_for(
        services,
        RouteRequest(
            tenant=caller.tenant.id,
            to=to,
            sender_type=sender_type,
            cls=body.cls,
            parts=analysis.parts,
            max_price=body.max_price,
            sender=body.from_,
            body=analysis.body,
            encoding=analysis.encoding.value,
            origin=body.origin or "",
        ),
        standing,
    )
    plan, excluded = services.router.explain(route_request._replace(mid=new_mid(services.clock.now_ms())))
    sender, now = route_request.sender, services.clock.now_ms()
    found = verdict(standing, caller.tenant.quiet_hours, cls=body.cls.value, sender=sender, to=to, at=now)
    if found.outcome is Outcome.REFUSED:  # no route may carry it
        excluded += tuple(Exclusion(item.route.name, found.rule, found.detail) for item in plan.candidates)
        plan = Plan((), found.detail)
    return {
        "from": sender or None,
        "recipient": consent.view(found),
        "parts": analysis.parts,
        "encoding": analysis.encoding.value,
        "chosen": plan.candidates[0].route.name if plan.candidates else None,
        "why": plan.reason,
        "mode": caller.tenant.routing,
        "decision": decision_view(plan.decision.record) if plan.decision is not None else None,
        "candidates": [
            {
                "route": item.route.name,
                "connector": item.route.connector,
                "price": {"amount": item.price, "currency": item.route.currency},
                "priority": item.route.priority,
                "prefix": item.prefix,
                "healthy": item.healthy,
            }
            for item in plan.candidates
        ],
        "excluded": [{"route": item.route, "rule": item.rule, "detail": item.detail} for item in excluded],
    }
