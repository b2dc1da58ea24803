"""Counts of messages over time, by route, class, tenant or datacenter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from controlplane.api.auth import Caller, requires
from controlplane.api.problems import invalid
from controlplane.api.reading import services_of, time_of
from controlplane.api.times import iso
from controlplane.domain.catalog import Scope
from controlplane.domain.statistics import FIELDS, view
from controlplane.errors import FieldError
from controlplane.store.statistics import Series

__all__ = ["router"]

router = APIRouter(prefix="/v1/statistics", tags=["statistics"])

_POINTS = 1_500
_STEPS = {"minute": 60, "5m": 300, "15m": 900, "hour": 3_600, "6h": 21_600, "day": 86_400}


@router.get("", operation_id="getStatistics", summary="Counts over time")
async def get_statistics(
    request: Request,
    caller: Annotated[Caller, Depends(requires(Scope.MESSAGES_READ))],
    since: Annotated[str | None, Query(max_length=40, description="RFC 3339; an hour ago if not said.")] = None,
    until: Annotated[str | None, Query(max_length=40, description="RFC 3339; now if not said.")] = None,
    step: Annotated[
        Literal["minute", "5m", "15m", "hour", "6h", "day"], Query(description="Length of a point.")
    ] = "minute",
    by: Annotated[
        Literal["route", "class", "tenant", "datacenter"], Query(description="One series for each.")
    ] = "route",
    tenant: Annotated[
        str | None, Query(max_length=64, description="Only this one's; keys of a tenant see their own.")
    ] = None,
    route: Annotated[str | None, Query(max_length=64, description="Only this route's.")] = None,
    datacenter: Annotated[str | None, Query(max_length=32, description="Only what its nodes counted.")] = None,
) -> dict[str, Any]:
    """Events are counted in the minute in which they were recorded: a late receipt counts when it comes. Points without events are left out.
    Of all datacenters: what the nodes of the others counted is copied from them by the ledgers every ten seconds.

    `accepted` has no route yet: it stands in the series whose `key` is null. Minutes are kept for five weeks, whole hours for 400 days.
    """
    services = services_of(request)
    width = _STEPS[step]
    end = time_of("until", until) or services.clock.now_ms()
    begin = time_of("since", since) or end - 3_600_000
    first, last = begin // 1000 // width * width, -(-end // (width * 1000)) * width
    if first >= last:
        raise invalid([FieldError("since", "must be before `until`")])
    if (last - first) // width > _POINTS:
        raise invalid([FieldError("step", f"makes more than {_POINTS} points; take a longer step or a shorter time")])
    whole = caller.admin or caller.everywhere
    found = await services.watch.statistics.series(
        since=first,
        until=last,
        step=width,
        by=by,
        tenant=(tenant or None) if whole else caller.tenant.id,
        where={name: value for name, value in (("route", route), ("datacenter", datacenter)) if value},
    )
    series: dict[str, list[Series]] = {}
    for one in found:
        series.setdefault(one.key or "", []).append(one)
    return {
        "since": iso(first * 1000),
        "until": iso(last * 1000),
        "step_seconds": width,
        "by": by,
        "total": _sum(found),
        "points": _points(found),
        "data": [{"key": key or None, "total": _sum(of), "points": _points(of)} for key, of in series.items()],
    }


def _points(found: Iterable[Series]) -> list[dict[str, Any]]:
    """The sum of all series at each time."""
    at: dict[int, list[Series]] = {}
    for one in found:
        at.setdefault(one.at, []).append(one)
    return [{"at": iso(second * 1000), **_sum(at[second])} for second in sorted(at)]


def _sum(found: Iterable[Series]) -> dict[str, Any]:
    counts = dict.fromkeys(FIELDS, 0)
    prices: dict[str, int] = {}
    for one in found:
        for name, value in one.counts.items():
            counts[name] += value
        for currency, amount in one.prices.items():
            prices[currency] = prices.get(currency, 0) + amount
    return view(counts, prices)
