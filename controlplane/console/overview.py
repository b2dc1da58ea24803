"""Overview: is all well, what became of the messages, and where to look. Everything is the API's; who may not see a part of it sees the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from markupsafe import Markup
from starlette.responses import Response

from controlplane.console.backend import ApiError, Backend
from controlplane.console.figures import SPANS, axis, funnel, seconds, traffic_chart
from controlplane.console.frame import Frame, backend_of, count, render, share
from controlplane.console.identity import Visit, allows
from controlplane.console.live import Live
from controlplane.console.svg import sparkline
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter()

Viewer = Annotated[Visit, Depends(allows(Role.VIEWER))]
_WORST = 5
_FEED_SECONDS = 5.0
_FEED_MINUTES = 2


@router.get("/")
async def show_overview(request: Request, visit: Viewer, span: str = "hour") -> Response:
    """The numbers of an hour, a day, a week or a month."""
    frame: Frame = request.app.state.frame
    backend, chosen = backend_of(request), SPANS.get(span, SPANS["hour"])
    query = chosen.query(frame.clock.now_ms())
    found = await backend.get(visit, "/v1/statistics", {**query, "by": "datacenter"})
    routes = await backend.get(visit, "/v1/statistics", {**query, "by": "route"})
    alerts = await _alerts(backend, visit)
    named = (await backend.get(visit, "/v1/routes"))["data"]
    zone = visit.look.time_zone or "UTC"
    return render(
        request,
        "overview/index.html",
        spans=[(each.key, each.word) for each in SPANS.values()],
        span=chosen.key,
        total=found["total"],
        alerts=alerts,
        funnel=funnel(found["total"]),
        traffic=traffic_chart(found, zone),
        strip=[_strip(found, series) for series in found["data"]],
        worst=_worst(routes["data"]),
        seconds=seconds,
        routes=named,
    )


async def _alerts(backend: Backend, visit: Visit) -> list[dict[str, Any]] | None:
    """Those that nobody has taken on; None for who may not see them."""
    try:
        found: list[dict[str, Any]] = (await backend.get(visit, "/v1/alerts", {"status": "firing"}))["data"]
    except ApiError as error:
        if error.status == 403:
            return None
        raise
    return found


def _strip(found: Mapping[str, Any], series: Mapping[str, Any]) -> dict[str, Any]:
    """Rate, errors and duration of one datacenter, each with its line."""
    points = [point for _, point in axis(found, series["points"])]
    total, step = series["total"], found["step_seconds"]
    rates = [point.get("accepted", 0) / step for point in points]
    lost = [None if point.get("delivery_rate") is None else 1 - point["delivery_rate"] for point in points]
    times = [point["delivery_seconds"]["p95"] if point else None for point in points]
    return {
        "datacenter": series["key"],
        "rate": _rate(sum(rates) / max(1, len(rates))),
        "rate_line": sparkline(rates),
        "errors": share(None if total["delivery_rate"] is None else 1 - total["delivery_rate"]),
        "errors_line": sparkline(lost, top=1.0),
        "time": seconds(total["delivery_seconds"]["p95"]),
        "time_line": sparkline(times),
    }


def _rate(a_second: float) -> str:
    if a_second >= 1:
        return f"{count(a_second)} a second"
    return f"{count(a_second * 60)} a minute" if a_second >= 1 / 60 else f"{count(a_second * 3600)} an hour"


def _worst(series: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Routes that delivered the smallest share of what came to its end on them."""
    known = [each for each in series if each["key"] and each["total"]["delivery_rate"] is not None]
    known.sort(key=lambda each: (each["total"]["delivery_rate"], each["key"]))
    return [{"name": each["key"], **each["total"]} for each in known[:_WORST]]


@router.get("/overview/feed")
async def feed(request: Request, visit: Viewer) -> Response:
    """What happened in the last minutes, as one sentence; all tabs of one tenant's people share the question."""
    frame: Frame = request.app.state.frame
    backend = backend_of(request)

    async def ask() -> str:
        until = datetime.fromtimestamp(frame.clock.now_ms() / 1000, UTC)
        since = until - timedelta(minutes=_FEED_MINUTES - 1)
        query = {"since": since.isoformat(), "until": until.isoformat(), "by": "datacenter"}
        return str(feed_html((await backend.get(visit, "/v1/statistics", query))["total"]))

    live: Live = request.app.state.live
    return live.stream(request, ("overview", visit.tenant), ask, _FEED_SECONDS)


def feed_html(total: Mapping[str, Any]) -> Markup:
    """The sentence; nothing in it comes from a message."""
    lost = total["undelivered"] + total["failed"] + total["expired"]
    return Markup(
        "<span>In the last {} minutes: <b>{}</b> accepted, <b>{}</b> delivered, <b>{}</b> not delivered.</span>"
    ).format(_FEED_MINUTES, count(total["accepted"]), count(total["delivered"]), count(lost))
