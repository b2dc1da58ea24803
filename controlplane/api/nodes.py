"""The nodes of this datacenter, and how its MongoDB stands. Any node answers for all of them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request

from controlplane.api.auth import Caller, requires
from controlplane.api.reading import services_of
from controlplane.api.times import iso
from controlplane.domain.catalog import Scope
from controlplane.domain.node_state import SeenNode
from controlplane.errors import Problem

__all__ = ["overseer", "router"]

router = APIRouter(prefix="/v1", tags=["deployment"])

Admin = Annotated[Caller, Depends(requires(Scope.ADMIN))]


def overseer(caller: Annotated[Caller, Depends(requires(Scope.ROUTES_READ))]) -> Caller:
    """A FastAPI dependency: whoever may see the whole deployment, and not only one tenant's part of it."""
    if not (caller.admin or caller.everywhere):
        raise Problem(
            "forbidden",
            "Not for one tenant",
            403,
            "This shows the whole deployment; the key is one tenant's.",
            "Use a key with the scope admin, or a person of the whole deployment.",
        )
    return caller


Overseer = Annotated[Caller, Depends(overseer)]


def _view(seen: SeenNode, here: str) -> dict[str, Any]:
    state: dict[str, Any] = msgspec.to_builtins(seen.state)
    return state | {
        "status": seen.status,
        "this": seen.state.node == here,
        "age_seconds": round(seen.age_seconds, 1),
        "started_at": iso(seen.state.started_at),
    }


@router.get("/nodes", operation_id="listNodes", summary="The nodes of this datacenter")
async def list_nodes(request: Request, _caller: Overseer) -> dict[str, Any]:
    """As each wrote it in the last two seconds: readiness, gauges, connectors with their binds, held-back routes. `status` is running, not_ready, stopped, or gone: silent for longer than its lease lasts; a day later it is forgotten."""
    services = services_of(request)
    here = services.settings.node
    return {
        "datacenter": services.settings.datacenter,
        "data": [_view(seen, here) for seen in await services.watch.nodes()],
    }


@router.delete("/nodes/{node}", status_code=204, operation_id="forgetNode", summary="Forget a node that is gone")
async def forget_node(request: Request, node: str, _caller: Admin) -> None:
    """One that will not come back. Its messages have been adopted by the others long since."""
    watch = services_of(request).watch
    found = next((seen for seen in await watch.nodes() if seen.state.node == node), None)
    if found is None:
        raise Problem("not-found", "No such node", 404, f"There is no node {node[:60]!r}.", "GET /v1/nodes lists them.")
    if found.counts:
        raise Problem(
            "in-use",
            "The node is there",
            409,
            f"Node {node} said something {found.age_seconds:.0f} s ago.",
            "Stop it first; then it can be forgotten.",
        )
    await watch.states.forget(node)


@router.get("/topology", operation_id="getTopology", summary="How MongoDB stands")
async def get_topology(request: Request, _caller: Overseer) -> dict[str, Any]:
    """Replica sets with their members' roles, states and lag, config servers, routers. `not_seen` says what this node's MongoDB user may not see, and which role it lacks (clusterMonitor)."""
    services = services_of(request)
    return {"datacenter": services.settings.datacenter, **await services.watch.topology.read()}
