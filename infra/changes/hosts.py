"""Another host in the place of one, and a shard more: edits of `heliograph:region`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.changes.phase import Config, Fresh, Phase, key
from infra.config import ConfigError, parse_region
from infra.plan import plan

__all__ = ["add_shard", "checked", "is_replaced", "new_host", "replace_host", "stands"]

_REGION = key("region")
Value = dict[str, Any]
"""`heliograph:region` as data."""


def checked(value: Value) -> Value:
    """As it is. ConfigError where the region would break a rule."""
    plan(parse_region(value))
    return value


def stands(value: Value, name: str) -> Value:
    """The entry of a host. ConfigError where there is none."""
    found = next((one for one in value["hosts"] if one["name"] == name), None)
    if found is None:
        raise ConfigError(f"no host is called {name}; hosts are {', '.join(one['name'] for one in value['hosts'])}")
    return dict(found)


def new_host(text: str, host_key: str) -> Value:
    """The entry for `name=address`."""
    name, _, address = text.partition("=")
    if not (name and address):
        raise ConfigError(f"{text!r} is not of the form name=address, such as fra-4=10.0.0.14")
    return {"name": name, "address": address, "host_key": host_key}


def is_replaced(value: Value, old: str, new: Mapping[str, Any]) -> bool:
    """Whether the region has the new host already, and not the old one."""
    known = {one["name"]: one for one in value["hosts"]}
    there = known.get(new["name"])
    same = there is not None and all(there.get(name) == new[name] for name in ("address", "host_key"))
    return same and (old == new["name"] or old not in known)


def _explicit(value: Value) -> None:
    """With the hosts of each set named: those that it has now. Else another host would move members."""
    topology = plan(parse_region(value))
    mongodb = value["mongodb"]
    mongodb["config_hosts"] = [member.host for member in topology.config_set.members]
    shards = mongodb.get("shards") or [{"name": "a"}]
    mongodb["shards"] = [
        {**shard, "hosts": [member.host for member in known.members]}
        for shard, known in zip(shards, topology.shards, strict=True)
    ]


def _put(value: Value, old: str, new: Mapping[str, Any], *, keep: bool) -> None:
    """The new host in the place of the old one, in every set; `keep`: the old one stays in the list of hosts, before it."""
    _explicit(value)
    former = stands(value, old)
    entry = {**{name: former[name] for name in ("failure_domain",) if name in former}, **new}
    if keep and new["name"] in {one["name"] for one in value["hosts"]}:
        raise ConfigError(
            f"{new['name']} is a host of this region already; give the new machine another name, or, where {old} is dead, its own"
        )
    value["hosts"] = [item for one in value["hosts"] for item in _at(one, old, entry, keep=keep)]
    mongodb = value["mongodb"]
    for holder in ({"hosts": mongodb["config_hosts"]}, *mongodb["shards"]):
        holder["hosts"][:] = [new["name"] if name == old else name for name in holder["hosts"]]
    checked(value)


def _at(one: Value, old: str, entry: Value, *, keep: bool) -> list[Value]:
    if one["name"] != old:
        return [one]
    return [one, entry] if keep else [entry]


def replace_host(old: str, new: Mapping[str, Any], *, alive: bool) -> list[Phase]:
    """Of a host that answers: the new one comes first, then the old one leaves. Of a dead one: the new one stands in its place at once."""

    def join(config: Config, _fresh: Fresh) -> None:
        _put(config[_REGION], old, new, keep=True)

    def leave(config: Config, _fresh: Fresh) -> None:
        value = config[_REGION]
        value["hosts"] = [one for one in value["hosts"] if one["name"] != old]
        checked(value)

    def swap(config: Config, _fresh: Fresh) -> None:
        _put(config[_REGION], old, new, keep=False)

    if alive:
        return [
            Phase("join", f"{new['name']} takes over the members of {old}, which leave when its own have their data", join),
            Phase("leave", f"{old} is no host of this region any more", leave, more={"drain": old}),
        ]  # fmt: skip
    return [
        Phase(
            "swap",
            f"{new['name']} stands in the place of {old}",
            swap,
            more={"forget": old if old != new["name"] else ""},
        )
    ]


def add_shard(name: str, hosts: list[str]) -> list[Phase]:
    """A shard behind the others, on these hosts (none: on all, where there are as many as members)."""

    def add(config: Config, _fresh: Fresh) -> None:
        value = config[_REGION]
        shards = value["mongodb"].get("shards") or [{"name": "a"}]
        value["mongodb"]["shards"] = [*shards, {"name": name, **({"hosts": hosts} if hosts else {})}]
        checked(value)

    return [Phase("add", f"the shard {name} is part of the cluster", add)]
