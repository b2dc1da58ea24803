"""Regions: the datacenters, this one's nodes and its MongoDB: as a picture, and as tables."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response

from controlplane.console.backend import ApiError, Backend
from controlplane.console.figures import seconds
from controlplane.console.frame import backend_of, redirect, render
from controlplane.console.identity import Visit, allows
from controlplane.console.svg import Chart, topology
from controlplane.domain.people import Role

__all__ = ["router"]

router = APIRouter(prefix="/regions")

Operator = Annotated[Visit, Depends(allows(Role.OPERATOR))]
_TONES = {"running": "good", "not_ready": "bad", "gone": "bad", "stopped": "plain"}
_LAG_SECONDS = 60


@router.get("")
async def show_regions(request: Request, visit: Operator) -> Response:
    """What can be read is shown; what cannot says why."""
    backend = backend_of(request)
    regions, nodes, mongodb = await asyncio.gather(
        _read(backend, visit, "/v1/regions"), _read(backend, visit, "/v1/nodes"), _read(backend, visit, "/v1/topology")
    )
    return render(
        request,
        "regions/index.html",
        regions=regions.get("data"),
        nodes=nodes.get("data"),
        mongodb=mongodb if "sets" in mongodb else None,
        problems=[found["problem"] for found in (regions, nodes, mongodb) if "problem" in found],
        picture=_picture(regions.get("data", ()), nodes.get("data", ()), mongodb),
        tones=_TONES,
        seconds=seconds,
    )


@router.post("/nodes/{node}/forget")
async def forget(request: Request, visit: Operator, node: str, confirm: Annotated[str, Form()] = "") -> Response:
    """One that will not come back."""
    if confirm == node:
        await backend_of(request).delete(visit, f"/v1/nodes/{node}")
        return redirect("/console/regions", f"Node {node} is forgotten.")
    return redirect("/console/regions", f"Nothing was done: type {node} exactly.")


async def _read(backend: Backend, visit: Visit, path: str) -> dict[str, Any]:
    try:
        return await backend.get(visit, path)
    except ApiError as error:
        return {"problem": error.problem}


def _picture(
    regions: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]], mongodb: Mapping[str, Any]
) -> Chart:
    """Boxes for what is here and for the other datacenters; the tables below have the same and more."""
    groups: list[tuple[str, list[tuple[str, str, str]]]] = []
    if nodes:
        groups.append(
            ("Nodes", [(each["node"], each["status"].replace("_", " "), _TONES[each["status"]]) for each in nodes])
        )
    if routers := mongodb.get("routers", ()):
        groups.append(("Routers", [(each["host"], each["version"] or "", "good") for each in routers]))
    groups += [
        (
            f"{each['role'].capitalize()} {each['set']}" if each["role"] != "data" else f"Replica set {each['set']}",
            [_member(member) for member in each["members"]],
        )
        for each in mongodb.get("sets", ())
    ]
    others = [each for each in regions if not each["own"]]
    if others:
        groups.append(("Other datacenters", [_other(each) for each in others]))
    sick = sum(tone in ("bad", "warn") for _, members in groups for _, _, tone in members)
    members = sum(len(each["members"]) for each in mongodb.get("sets", ()))
    return Chart(
        title="What stands where",
        summary=f"{_some(len(nodes), 'node')}, {_some(members, 'member')} of MongoDB, {_some(len(others), 'other datacenter')}; "
        + (f"{sick} of them need somebody." if sick else "all are well."),
        svg=topology(groups),
        head=("What", "State"),
        rows=[(f"{title}: {name}", state) for title, found in groups for name, state, _ in found],
    )


def _some(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _member(member: Mapping[str, Any]) -> tuple[str, str, str]:
    lag = member["lag_seconds"]
    state = str(member["state"]).lower()
    if lag and member["role"] != "primary":
        state += f", {seconds(lag)} behind"
    tone = "bad" if not member["healthy"] else "warn" if (lag or 0) > _LAG_SECONDS else "good"
    return member["host"], state, tone


def _other(region: Mapping[str, Any]) -> tuple[str, str, str]:
    reachable = region["reachable"]
    word = "not configured" if reachable is None else "reachable" if reachable else "not reached"
    return region["datacenter"], word, "plain" if reachable is None else "good" if reachable else "bad"
