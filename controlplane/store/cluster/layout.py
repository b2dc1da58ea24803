"""What a router says of its cluster, and what it takes to reach the declared one. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography.x509 import Name
from cryptography.x509.oid import NameOID

from controlplane.store.client import Document
from controlplane.store.cluster.spec import ClusterSpec, Collection, Shard

__all__ = ["Action", "Layout", "State", "compare"]


@dataclass(frozen=True, slots=True)
class State:
    """Answers of one router."""

    shards: dict[str, Document]
    """name → listShards' document: `host` is "set/h1:p,h2:p"; `draining` while it is being removed."""
    default: Document
    """getDefaultRWConcern's answer."""
    databases: frozenset[str]
    collections: dict[str, Document]
    """namespace → document of config.collections, of those that are sharded."""
    users: dict[str, frozenset[tuple[str, str]]]
    """user of $external → its (role, database)s."""


@dataclass(frozen=True, slots=True)
class Action:
    """One command that is missing. `shard` when its primary must be there first."""

    change: str
    detail: str
    command: Document
    database: str = "admin"
    shard: Shard | None = None


@dataclass(slots=True)
class Layout:
    """The comparison: `refusals` come before anything is done, `findings` are left as they are."""

    refusals: list[str] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def compare(spec: ClusterSpec, state: State) -> Layout:
    """What to refuse, to do and to tell, in the order of MongoDB's manual (tutorial/deploy-shard-cluster)."""
    layout = Layout()
    _compare_default(state, layout)
    _compare_shards(spec, state, layout)
    _compare_collections(spec, state, layout)
    _compare_users(spec, state, layout)
    return layout


def _compare_default(state: State, layout: Layout) -> None:
    """`w: majority` is the implicit default of most sets; set, it stays when someone adds an arbiter."""
    concern = state.default.get("defaultWriteConcern") or {}
    if concern.get("w") == "majority" and state.default.get("defaultWriteConcernSource", "global") == "global":
        return
    layout.actions.append(
        Action(
            "write_concern",
            "default write concern: majority",
            {
                "setDefaultRWConcern": 1,
                "defaultWriteConcern": {"w": "majority", "wtimeout": 0},
                "writeConcern": {"w": "majority"},
            },
        )
    )


def _hosts(document: Document) -> set[str]:
    return set(str(document["host"]).partition("/")[2].split(","))


def _compare_shards(spec: ClusterSpec, state: State, layout: Layout) -> None:
    declared = {shard.name: shard for shard in spec.shards}
    for name, document in state.shards.items():
        if document.get("draining"):
            layout.findings.append(f"shard {name} is draining")
        elif name not in declared:
            layout.refusals.append(
                f"the shard {name} ({document['host']}) is in the cluster and not declared: "
                "removing a shard moves data: use the drain operation, or declare it"
            )
    for name, shard in declared.items():
        here = state.shards.get(name)
        if here is not None:
            if not _hosts(here) & set(shard.members):
                layout.refusals.append(
                    f"the shard {name} is in the cluster with other hosts ({here['host']}), declared are "
                    f"{', '.join(shard.members)}: give the new shard its own name, or declare the hosts that it has"
                )
            continue
        twins = [other for other, document in state.shards.items() if _hosts(document) & set(shard.members)]
        if twins:
            layout.refusals.append(
                f"the members declared for the shard {name} are in the cluster as {twins[0]}: a shard keeps its name; declare {twins[0]}"
            )
            continue
        seeds = f"{name}/{','.join(shard.members)}"
        layout.actions.append(Action("shard", f"{name} added: {seeds}", {"addShard": seeds, "name": name}, shard=shard))


def _key(document: Document) -> list[tuple[str, object]]:
    return [(name, value if isinstance(value, str) else int(value)) for name, value in document["key"].items()]


def _words(key: list[tuple[str, object]]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in key) + "}"


def _compare_collections(spec: ClusterSpec, state: State, layout: Layout) -> None:
    if spec.database not in state.databases:
        layout.actions.append(
            Action(
                "database",
                f"{spec.database} made",
                {"enableSharding": spec.database},
            )
        )
    for name, collection in spec.collections.items():
        _compare_collection(f"{spec.database}.{name}", collection, state, layout)


def _compare_collection(namespace: str, collection: Collection, state: State, layout: Layout) -> None:
    wanted: list[tuple[str, object]] = list(collection.key.items())
    here = state.collections.get(namespace)
    if here is None:
        command = {
            "shardCollection": namespace,
            "key": dict(collection.key),
            **({"unique": True} if collection.unique else {}),
        }
        layout.actions.append(Action("collection", f"{namespace} sharded by {_words(wanted)}", command))
    elif _key(here) != wanted:
        layout.refusals.append(
            f"{namespace} is sharded by {_words(_key(here))}, declared is {_words(wanted)}: resharding rewrites all data and is not done here; "
            "declare the key that it has, or use reshardCollection"
        )


def organizations(subject: str) -> frozenset[str]:
    """The O= of an RFC 4514 subject; none when it is no such subject."""
    try:
        name = Name.from_rfc4514_string(subject)
    except ValueError:
        return frozenset()
    return frozenset(str(each.value) for each in name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))


def _users(spec: ClusterSpec) -> Iterator[tuple[str, frozenset[tuple[str, str]]]]:
    for user in spec.users:
        yield user.user, frozenset((role.role, role.db) for role in user.roles)


def _compare_users(spec: ClusterSpec, state: State, layout: Layout) -> None:
    declared = dict(_users(spec))
    for name, roles in declared.items():
        here = state.users.get(name)
        if here == roles:
            continue
        verb = "createUser" if here is None else "updateUser"
        listed = [{"role": role, "db": database} for role, database in sorted(roles)]
        words = ", ".join(f"{role} on {database}" for role, database in sorted(roles)) or "no role"
        layout.actions.append(
            Action(
                "user",
                f"{name} {'made' if here is None else 'changed'}: {words}",
                {verb: name, "roles": listed, "writeConcern": {"w": "majority"}},
                "$external",
            )
        )
    ours = frozenset().union(*(organizations(name) for name in declared))
    layout.findings += [
        f"the user {name} is of {', '.join(sorted(ours & organizations(name)))} and not declared; drop it with dropUser if it is of no use"
        for name in sorted(state.users)
        if name not in declared and ours & organizations(name)
    ]
