"""What the router has learned, and what learning gains: for operators, and for tenants about their own messages."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from controlplane.api.auth import Caller, requires
from controlplane.api.problems import invalid
from controlplane.api.reading import services_of, time_of
from controlplane.api.times import iso
from controlplane.domain.catalog import Scope
from controlplane.domain.events import Event
from controlplane.domain.query import Query as Wanted
from controlplane.errors import FieldError
from controlplane.routing.decision import same
from controlplane.routing.evaluate import ESTIMATORS, Estimate, Gain, gain
from controlplane.routing.outcomes import decisions, sent
from controlplane.store.events import Page

__all__ = ["router"]

router = APIRouter(prefix="/v1/routing", tags=["routes"])

_PAGE = 500


@router.get("", operation_id="getRouting", summary="What this node's router knows")
async def get_routing(
    request: Request, _caller: Annotated[Caller, Depends(requires(Scope.ROUTES_READ))]
) -> dict[str, Any]:
    """Decayed counts of each route and class over all nodes, routes that are held back at present, and the last breaks that were seen."""
    services = services_of(request)
    learner, now = services.learner, services.clock.now_ms()
    learner.tick(now)
    return {
        "routes": [
            {"route": route, "class": cls, **known} for (route, cls), known in sorted(learner.routes(now).items())
        ],
        "held_back": [
            {"route": route, "country": country or None, "network": network or None}
            for route, country, network in learner.open_breakers()
        ],
        "breaks": [
            {
                "at": iso(item.at),
                "route": item.route,
                "country": item.country or None,
                "network": item.network or None,
                "kind": item.kind,
                "receipts_of_expected": item.ratio,
                "opened": item.opened,
            }
            for item in reversed(learner.breaks)
        ],
    }


@router.get("/report", operation_id="getRoutingReport", summary="What the learned order gains over the static one")
async def get_report(
    request: Request,
    caller: Annotated[Caller, Depends(requires(Scope.ROUTES_READ))],
    since: Annotated[str | None, Query(description="RFC 3339: accepted from then on.")] = None,
    until: Annotated[str | None, Query(description="RFC 3339: accepted before then.")] = None,
    limit: Annotated[int, Query(ge=1, le=20_000, description="Messages, newest first.")] = 5_000,
    estimator: Annotated[str, Query(description=f"One of: {', '.join(ESTIMATORS)}.")] = "dr",
) -> dict[str, Any]:
    """Off-policy evaluation of the caller's messages from their decisions' recorded propensities, with 95 % intervals; and a replay of each decision. No `messages`: none of this time has a decision whose outcome is known."""
    if estimator not in ESTIMATORS:
        raise invalid([FieldError("/estimator", f"must be one of {', '.join(ESTIMATORS)}")])
    services = services_of(request)
    wanted = Wanted(after=time_of("/since", since), before=time_of("/until", until))
    stories: list[list[Event]] = []
    cursor = None
    while len(stories) < limit:
        page: Page = await services.search.page(wanted, {caller.tenant.id}, cursor, min(_PAGE, limit - len(stories)))
        stories += [events for _, events in page.items]
        cursor = page.next
        if cursor is None:
            break
    deadlines = {str(cls): own.deadline_ms for cls, own in services.learner.tuning.classes.items()}
    now = services.clock.now_ms()

    def work() -> tuple[Gain | None, int, int]:
        records = [decided.record for events in stories for decided in decisions(events)]
        known = list(sent(stories, deadlines, now))
        return (gain(known, estimator) if known else None), len(records), sum(map(same, records))

    found, replayed, identical = await asyncio.to_thread(work)
    counts = {"estimator": estimator, "replayed": replayed, "identical": identical}
    if found is None:
        nothing = {"messages": 0, "skipped": 0, "agreement": None, "utility": None, "delivered_in_time": None}
        return {**nothing, **counts}
    return {
        "messages": found.messages,
        "skipped": found.skipped,
        "agreement": found.agreement,
        "utility": {
            "static": _estimate(found.static),
            "learned": _estimate(found.learned),
            "gain": _estimate(found.gain),
        },
        "delivered_in_time": {"static": found.static_delivered, "learned": found.learned_delivered},
        **counts,
    }


def _estimate(found: Estimate) -> dict[str, float]:
    return dict(found._asdict())
