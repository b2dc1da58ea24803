"""A region as the steps that bring it into its declared state, in the order in which they are safe. Pure.

Ansible takes them one by one (`playbooks/roles/steps`); each is one `hostctl` verb on one host with the specification that `pulumi up` gives it, so that the
next `up` finds nothing left to do. What only the operator's machine knows (keys, certificates) is left as `up` installed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra import render
from infra.config import Image, Region
from infra.plan import Topology

__all__ = ["SCOPES", "in_scope", "ordered", "steps"]

SCOPES = ("everything", "nodes", "mongodb")
_KEPT = {"secret-key": "/etc/heliograph/node/secret-key", "ledger": "/etc/heliograph/ledger/key"}
"""Bundle → the file in it that only `pulumi up` can write."""


def _step(kind: str, host: str, name: str, verb: str, spec: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": f"{name} on {host}", "kind": kind, "host": host, "verb": verb, "spec": dict(spec), **more}


def _install(kind: str, host: str, bundle: render.Bundle, **more: Any) -> dict[str, Any]:
    keep = [_KEPT[bundle.name]] if bundle.name in _KEPT else []
    return _step(kind, host, bundle.name, "install", bundle.as_spec() | ({"keep": keep} if keep else {}), **more)


def _image(host: str, name: str, image: Image, *, current: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"name": f"image-{name}", "reference": image.reference, "current": current}
    source = ""
    if image.file:
        spec["archive"] = f"/var/tmp/heliograph-{name}-{image.reference.rpartition(':')[2][:12]}.tar"  # noqa: S108 - its digest is checked when it is loaded
        source = str(image.file)
    return _step("image", host, f"image-{name}", "image", spec, image=name, archive=source)


def steps(region: Region, topology: Topology) -> list[dict[str, Any]]:
    """All of them: `{name, kind, host, verb, spec}`; kind is host, image, member, set, router, shards, carrier, node or ledger.

    A member also has `set` and `endpoint`; a node `node` and `url`; an image `image` and `archive` (a file on this machine, or "").
    """
    addresses = {host.name: host.address for host in region.hosts}
    found = [_install("host", name, render.host(region, topology, name)) for name in addresses]
    for name in addresses:
        found.append(_image(name, "mongod", region.mongodb.image, current=False))
        found.append(_image(name, "controlplane", region.control_plane.image, current=True))
    for one in topology.sets:
        found += [
            _install("member", m.host, render.member(region, one, m), set=one.name, endpoint=m.endpoint)
            for m in one.members
        ]
        spec = render.cluster_run("replica-set", render.set_spec(region, one))
        found.append(_step("set", one.members[0].host, f"set {one.name}", "run", spec, set=one.name))
    found += [_install("router", one.host, render.router(region, topology, one)) for one in topology.routers]
    cluster = render.cluster_run("shards", render.shard_spec(topology))
    found.append(_step("shards", topology.routers[0].host, "shards", "run", cluster))
    found += [_install("base", host, render.node_base()) for host in dict.fromkeys(n.host for n in topology.nodes)]
    if topology.carrier:
        found.append(_install("carrier", topology.carrier, render.carrier(region, addresses[topology.carrier])))
    found += [
        _install("node", one.host, render.node(region, topology, one), node=one.name, url=one.url)
        for one in topology.nodes
    ]
    found += [_install("ledger", one.host, render.ledger(region, topology, one)) for one in topology.ledgers]
    return found


def in_scope(step: Mapping[str, Any], scope: str) -> bool:
    """Whether a step belongs to one of SCOPES."""
    match scope:
        case "nodes":
            return step["kind"] in ("carrier", "node", "ledger") or step.get("image") == "controlplane"
        case "mongodb":
            return step["kind"] in ("member", "router") or step.get("image") == "mongod"
        case _:
            return True


def ordered(known: Sequence[Mapping[str, Any]], sets: Sequence[Mapping[str, Any]], scope: str) -> list[dict[str, Any]]:
    """The steps of a scope; of each replica set the present primary last, so that it steps down once. `sets`: as `heliograph cluster status` describes them."""
    if scope not in SCOPES:
        raise ValueError(f"{scope!r} is no scope; there are {', '.join(SCOPES)}")
    primaries = {one["set"]: one["primary"] for one in sets}
    found: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    for step in known:
        if not in_scope(step, scope):
            continue
        if waiting and not (step["kind"] == "member" and step["set"] == waiting[0]["set"]):
            found, waiting = found + waiting, []
        if step["kind"] == "member" and step["endpoint"] == primaries.get(step["set"]):
            waiting.append(dict(step))
        else:
            found.append(dict(step))
    return found + waiting
