"""What the caller declares: replica sets and the sharded cluster, read from JSON, refused before anything is touched."""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.errors import ConfigError

__all__ = [
    "MAX_VOTERS",
    "ClusterSpec",
    "Collection",
    "Member",
    "MoveSpec",
    "Role",
    "SetSpec",
    "Shard",
    "SnapshotSpec",
    "StatusSpec",
    "User",
    "check_cluster",
    "check_set",
    "read",
]

MAX_VOTERS = 7  # https://www.mongodb.com/docs/manual/reference/limits/ "Number of Voting Members of a Replica Set"

Host = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[^:\s/,\[\]]+):[0-9]{1,5}$", description="host:port")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Member(_Model):
    """One member; the fields are those of `members[n]` of a replica set configuration (MongoDB manual, reference/replica-configuration)."""

    id: int = Field(ge=0, le=255)
    host: Host
    priority: float = Field(default=1, ge=0, le=1000)
    votes: Literal[0, 1] = 1
    hidden: bool = False
    tags: dict[str, str] = Field(default_factory=dict)


class SetSpec(_Model):
    """One replica set."""

    set: Name
    role: Literal["shardsvr", "configsvr", "replica"] = "replica"
    members: tuple[Member, ...] = Field(min_length=1, max_length=50)
    election_seconds: float | None = Field(None, ge=1, le=60)
    """How long a primary may be silent before another is elected (settings.electionTimeoutMillis); None = as it is, MongoDB's 10 at first."""

    @property
    def election_ms(self) -> int | None:
        """As MongoDB has it."""
        return None if self.election_seconds is None else int(self.election_seconds * 1000)


class Role(_Model):
    """One role of a user."""

    role: str
    db: str


class User(_Model):
    """One x509 user of `$external`: its name is the certificate's subject (RFC 4514)."""

    user: Annotated[str, Field(min_length=1)]
    roles: tuple[Role, ...]


class Shard(_Model):
    """One shard: the name of its replica set, and members by which it is found."""

    name: Name
    members: tuple[Host, ...] = Field(min_length=1)


class Collection(_Model):
    """One sharded collection; `key` keeps its order."""

    key: dict[str, int | Literal["hashed"]] = Field(min_length=1)
    unique: bool = False


class ClusterSpec(_Model):
    """The sharded cluster, as its routers see it."""

    routers: tuple[Host, ...] = Field(min_length=1)
    shards: tuple[Shard, ...] = ()
    database: Name
    collections: dict[str, Collection] = Field(default_factory=dict)
    users: tuple[User, ...] = ()


class StatusSpec(_Model):
    """What `heliograph cluster status` looks at."""

    sets: tuple[SetSpec, ...] = ()
    cluster: ClusterSpec | None = None


class MoveSpec(_Model):
    """A member that is to be restarted, and all members of its set."""

    set: Name
    member: Host
    members: tuple[Host, ...] = Field(min_length=1)


class BalancerSpec(_Model):
    """Whether the balancer is to run."""

    routers: tuple[Host, ...] = Field(min_length=1)
    running: bool


class SnapshotSpec(_Model):
    """For how long members keep old states, so that a backup can read all of one instant."""

    members: tuple[Host, ...] = Field(min_length=1)
    seconds: int = Field(ge=1, le=7 * 86_400)


class FeatureSpec(_Model):
    """The feature compatibility version that every member is to have: `8.0`."""

    routers: tuple[Host, ...] = Field(min_length=1)
    members: tuple[Host, ...] = Field(min_length=1)
    """All data-bearing members, of the config servers too."""
    version: Annotated[str, Field(pattern=r"^[678]\.[0-9]$")]


def check_move(spec: MoveSpec) -> None:
    """ConfigError when the member is not one of the set's."""
    if spec.member not in spec.members:
        raise ConfigError(f"{spec.member} is not among the members of {spec.set}. Correct the specification.")


_Spec = TypeVar("_Spec", SetSpec, ClusterSpec, StatusSpec, MoveSpec, BalancerSpec, FeatureSpec, SnapshotSpec)


def read(kind: type[_Spec], text: str) -> _Spec:
    """The specification in `text` (JSON). ConfigError names the field that is wrong."""
    try:
        found = kind.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = "/".join(str(part) for part in first["loc"]) or "the whole"
        raise ConfigError(f"The specification on stdin is wrong at {where}: {first['msg']}. Correct it.") from None
    except ValueError as error:
        raise ConfigError(f"The specification on stdin is not JSON: {error}. Give one JSON object.") from None
    match found:
        case MoveSpec():
            check_move(found)
        case SetSpec():
            check_set(found)
        case ClusterSpec():
            check_cluster(found)
        case StatusSpec():
            for each in found.sets:
                check_set(each)
            if found.cluster is not None:
                check_cluster(found.cluster)
    return found


def _repeated(values: list[str]) -> list[str]:
    return sorted({value for value in values if values.count(value) > 1})


def check_set(spec: SetSpec) -> None:
    """ConfigError when the set could lose its majority by its shape, or MongoDB would refuse it."""
    name = spec.set
    voters = sum(member.votes for member in spec.members)
    if twice := _repeated([str(member.id) for member in spec.members]):
        raise ConfigError(f"Set {name} declares the id {twice[0]} twice. Give each member its own.")
    if twice := _repeated([member.host for member in spec.members]):
        raise ConfigError(f"Set {name} declares the host {twice[0]} twice. Give each member its own.")
    if voters > MAX_VOTERS:
        raise ConfigError(f"Set {name} declares {voters} voters; MongoDB allows {MAX_VOTERS}. Give the others votes 0.")
    if voters % 2 == 0:
        raise ConfigError(
            f"Set {name} declares {voters} voters; an even number survives no more failures than one less. "
            "Add a voter, or give one member votes 0 and priority 0."
        )
    for member in spec.members:
        if member.priority > 0 and (member.hidden or not member.votes):
            what = "is hidden" if member.hidden else "has no vote"
            raise ConfigError(
                f"Set {name}: {member.host} {what} and has priority {member.priority:g}. Give it priority 0."
            )
    if not any(member.priority > 0 for member in spec.members):
        raise ConfigError(f"Set {name} has no member that could be elected. Give one a priority above 0.")


def check_cluster(spec: ClusterSpec) -> None:
    """ConfigError when names or hosts are declared twice."""
    for what, values in (
        ("shard", [shard.name for shard in spec.shards]),
        ("shard member", [host for shard in spec.shards for host in shard.members]),
        ("user", [user.user for user in spec.users]),
        ("router", list(spec.routers)),
    ):
        if twice := _repeated(values):
            raise ConfigError(f"The cluster declares the {what} {twice[0]} twice. Declare it once.")
