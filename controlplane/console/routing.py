"""Routing: what the router has learned of each route, what it holds back and why, and what learning gains over the static order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError
from controlplane.console.frame import backend_of, count, render, share
from controlplane.console.identity import Visit, allows
from controlplane.console.svg import Chart, bars
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/routing")

_MESSAGES = 2_000
_BREAKS = 50
_ENOUGH = 100
"""Effective messages below which an estimate is not to be believed (routing.evaluate)."""


@router.get("")
async def show_routing(
    request: Request, visit: Annotated[Visit, Depends(allows(Role.OPERATOR))], tenant: str = ""
) -> Response:
    """The router of this node, which has heard of all others; with `tenant`, what learning gains on its messages."""
    backend = backend_of(request)
    known = await backend.get(visit, "/v1/routing")
    tenants = (await backend.get(visit, "/v1/tenants"))["data"]
    report, problem = None, None
    if tenant:
        try:
            report = await backend.get(visit, "/v1/routing/report", {"limit": _MESSAGES}, tenant=tenant)
        except ApiError as error:
            problem = error.problem
    return render(
        request,
        "routing/index.html",
        routes=sorted(known["routes"], key=lambda each: (each["class"], -each["in_time"])),
        learned=_learned(known["routes"]),
        held=known["held_back"],
        breaks=known["breaks"][:_BREAKS],
        tenants=[(each["id"], f"{each['id']} ({each['routing']})") for each in tenants],
        modes=[(each["id"], each["name"], each["routing"]) for each in tenants],
        tenant=tenant,
        report=report,
        gain=_gain(report) if report else None,
        problem=problem,
    )


def _learned(routes: list[dict[str, Any]]) -> Chart:
    """Share in time of each route and class, the classes beside each other."""
    found = sorted(routes, key=lambda each: (str(each["class"]), str(each["route"])))
    best = max(found, key=lambda each: each["in_time"], default=None)
    return Chart(
        title="Delivered within the deadline, as learned",
        summary=f"{best['route']} does best, for {best['class']}: {share(best['in_time'])}."
        if best
        else "Nothing is learned yet.",
        svg=bars(
            [
                (f"{each['route'][:10]} {each['class'][:3]}", each["in_time"] * 100, share(each["in_time"], 0))
                for each in found[:24]
            ],
            most=100.0,
        ),
        head=("Route and class", "In time", "Too late", "Messages, the older the less"),
        rows=[
            (f"{each['route']}, {each['class']}", share(each["in_time"]), share(each["late"]), count(each["tries"]))
            for each in found
        ],
    )


def _gain(report: Mapping[str, Any]) -> str:
    """The gain in a sentence."""
    if not report["messages"]:
        return "No message of this tenant has a recorded decision whose outcome is known: it must be in mode shadow or learned for a while."
    found = report["utility"]["gain"]
    certain = "That may be chance."
    if found["low"] > 0 or found["high"] < 0:
        certain = f"It {'gains' if found['low'] > 0 else 'loses'}, and not by chance."
    if found["effective"] < _ENOUGH:
        certain = f"Do not believe it yet: it rests on what {found['effective']:.0f} messages are worth."
    return f"{found['value']:+.2f} minor units a message ({found['low']:+.2f} to {found['high']:+.2f} with 95 % confidence). {certain}"
