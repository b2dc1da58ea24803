"""Pulumi's state without a host that is gone: what cannot be reached any more cannot be taken back, and an `up` would wait for it. Pure."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["forgotten"]

_HOST, _PART = "heliograph:infra:Host", "heliograph:infra:Quadlet"
Resource = Mapping[str, Any]


def forgotten(deployment: Mapping[str, Any], host: str) -> tuple[dict[str, Any], list[str]]:
    """(what `pulumi stack export` said, without the resources that stand on this host; their URNs). Who waited for one of them waits for the others.

    What only runs there and belongs to the whole (a set, the shards, the first key) stays: its next run is elsewhere.
    """
    found = copy.deepcopy(dict(deployment))
    inner = found["deployment"]
    resources = inner.get("resources") or []
    gone = _on(resources, host)
    inner["resources"] = [_freed(one, gone) for one in resources if one["urn"] not in gone]
    if pending := inner.get("pending_operations"):
        inner["pending_operations"] = [one for one in pending if one["resource"]["urn"] not in gone]
    return found, sorted(gone)


def _on(resources: Sequence[Resource], host: str) -> set[str]:
    """URNs of the host, of its parts and of what belongs to them."""
    hosts = [_name(one) for one in resources if one["type"] == _HOST]
    own = [one["urn"] for one in resources if one["type"] in (_HOST, _PART) and _host_of(one, hosts) == host]
    return _with_children(resources, own)


def _host_of(one: Resource, hosts: Sequence[str]) -> str:
    """By its name, for addresses in a state are encrypted: parts are called after their host; the longest name that fits, or ""."""
    return max((host for host in hosts if f"{_name(one)}-".startswith(f"{host}-")), key=len, default="")


def _with_children(resources: Sequence[Resource], urns: Collection[str]) -> set[str]:
    """URNs of these, of their children, of the children of those …: a state with a child without its parent is none."""
    found = set(urns)
    while more := {one["urn"] for one in resources if one.get("parent") in found} - found:
        found |= more
    return found


def _name(one: Resource) -> str:
    return str(one["urn"].rpartition("::")[2])


def _freed(one: Resource, gone: Collection[str]) -> dict[str, Any]:
    freed = dict(one)
    if "dependencies" in freed:
        freed["dependencies"] = [urn for urn in freed["dependencies"] or [] if urn not in gone]
    if "propertyDependencies" in freed:
        freed["propertyDependencies"] = {
            name: [urn for urn in urns or [] if urn not in gone]
            for name, urns in (freed["propertyDependencies"] or {}).items()
        }
    return freed
