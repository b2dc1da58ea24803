"""A stack's configuration: typed, checked before anything is touched; each error names the field, the value and the mend.

One object, `heliograph:region`, says what the region is; the secrets stand beside it (`docs/operations.md` shows both). `python -m infra.new` writes them.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from cryptography import x509
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

__all__ = [
    "OPTIONAL",
    "SECRETS",
    "Certificates",
    "ConfigError",
    "ControlPlane",
    "Host",
    "Image",
    "Ledger",
    "MongoDB",
    "Peer",
    "Region",
    "Safety",
    "Secrets",
    "Shard",
    "Verify",
    "Witness",
    "parse_region",
    "parse_secrets",
]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=24)]
Port = Annotated[int, Field(ge=1024, le=65535)]
_KEY_BYTES = 32
_PROJECT = Path(__file__).parent.parent
_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


class ConfigError(Exception):
    """The configuration, a host or the topology is not as it must be; each line of the message says what to change."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for network in value:
        try:
            ipaddress.IPv4Network(network)
        except ValueError as error:
            raise ValueError(f"{network!r} is no IPv4 network ({error}); write it as 10.0.0.0/8") from None
    return value


Networks = Annotated[tuple[str, ...], AfterValidator(_networks)]


def _is_32_bytes(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def _public_key(value: str) -> str:
    if not _is_32_bytes(value):
        raise ValueError(
            f"{value[:60]!r} is not a public Ed25519 key (32 bytes in base64); `python -m infra.peer STACK` prints those of a region"
        )
    return value


PublicKey = Annotated[str, AfterValidator(_public_key)]


def _url(value: str) -> str:
    if not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?", value):
        raise ValueError(f"{value[:60]!r} is no address of a ledger; write it as https://10.0.0.11:8442")
    return value


Url = Annotated[str, AfterValidator(_url)]


class Safety(StrEnum):
    """What may fail without a replica set losing its majority."""

    NONE = "none"
    """Nothing: one member a set is enough. For a single host."""
    HOST = "host"
    """Any one host."""
    FAILURE_DOMAIN = "failure_domain"
    """Any one failure domain (rack, room, power feed)."""


class Host(_Model):
    """One bare Linux host, reached by SSH."""

    name: Name
    address: str
    """Private IP address: where the other hosts and the operator reach it, and what everything on it listens on."""
    host_key: str
    """The host's public SSH key, `ssh-ed25519 AAAA…`; pinned for every command."""
    failure_domain: str = ""
    """What it fails together with; empty = the host alone."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            parsed = ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(
                f"{value!r} is not an IP address; give the host's private address, such as 10.0.0.11"
            ) from None
        if parsed.version != 4 or parsed.is_unspecified or parsed.is_multicast or parsed.is_loopback:
            raise ValueError(f"{value} cannot be reached by the other hosts; give the host's private IPv4 address")
        return value

    @field_validator("host_key")
    @classmethod
    def _is_key(cls, value: str) -> str:
        algorithm, _, rest = value.partition(" ")
        body = rest.split(" ")[0]
        try:
            blob = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            blob = b""
        if not blob or blob[4 : 4 + int.from_bytes(blob[:4], "big")] != algorithm.encode():
            raise ValueError(
                "is not a public SSH key; on the host's own console run: cat /etc/ssh/ssh_host_ed25519_key.pub"
            )
        if algorithm == "ssh-rsa":
            raise ValueError(
                "is an RSA key, of which sshd no longer proves the old kind that the plugin asks for; give the ed25519 key"
            )
        return f"{algorithm} {body}"


class Ssh(_Model):
    """How the operator's machine reaches the hosts; the private key is the secret `sshKey`."""

    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")] = "operator"
    """Root, or a user who may `sudo` without a password."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22


class Image(_Model):
    """A container image, by digest."""

    reference: str
    """`registry/name@sha256:…`, never a tag."""
    archive: Path | None = None
    """An OCI archive on the operator's machine, copied to the hosts; without it the hosts pull from the registry. Relative to the project's folder."""

    @property
    def file(self) -> Path | None:
        """Where the archive is."""
        return _PROJECT / self.archive if self.archive else None

    @field_validator("reference")
    @classmethod
    def _has_digest(cls, value: str) -> str:
        if not _DIGEST.fullmatch(value):
            raise ValueError(
                f"{value!r} has no digest; give name@sha256:… (`podman image inspect --format '{{{{.Digest}}}}' NAME` prints it)"
            )
        return value


class Shard(_Model):
    """One shard, with its members' hosts."""

    name: Name
    hosts: tuple[Name, ...] = ()
    """One member on each; empty = all hosts of the region, when there are as many as `members`."""
    port: Port | None = None
    """Of its members; empty = `shard_port` and its place in the list. It never changes: a member is known by address and port."""


class MongoDB(_Model):
    """The sharded cluster."""

    image: Image
    version: Annotated[str, Field(pattern=r"^[678]\.[0-9]$")]
    """Of the image's mongod: the hosts are tuned for it."""
    shards: Annotated[tuple[Shard, ...], Field(min_length=1, max_length=64)] = (Shard(name="a"),)
    members: Annotated[int, Field(ge=1, le=7)] = 3
    """Of each replica set. Odd."""
    config_hosts: tuple[Name, ...] = ()
    """Where the config servers stand; empty = as for a shard."""
    cache_gb: Annotated[float, Field(ge=0.25)] = 0.25
    """WiredTiger cache of each member. Sum of a host's members and its nodes must fit its memory."""
    election_seconds: Annotated[float, Field(ge=1, le=60)] = 5.0
    """How long a primary may be silent before another is elected. MongoDB's own is 10; within one datacenter 5 is safe, and nodes keep their lease (10 s) through it."""
    oplog_mb: Annotated[int, Field(ge=990)] = 2048
    min_free_gb: Annotated[float, Field(ge=0)] = 10.0
    """Free space that preflight demands where the data goes."""
    data: Annotated[str, Field(pattern=r"^/[A-Za-z0-9/_.-]+$")] = "/var/lib/heliograph/data"
    router_port: Port = 27017
    config_port: Port = 27019
    shard_port: Port = 27020
    """Of the first shard; the next ones follow."""

    @field_validator("members")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(
                f"{value} voters tolerate no more failures than {value - 1} and can split evenly; use {value - 1} or {value + 1}"
            )
        return value


class ControlPlane(_Model):
    """The nodes."""

    image: Image
    nodes: Annotated[int, Field(ge=1, le=32)] = 1
    """On each host; one a core is a good start (docs/operations.md, Sizing)."""
    port: Port = 8443
    """Of the first node of a host; the next ones follow."""
    allow: Annotated[Networks, Field(min_length=1)] = ("0.0.0.0/0",)
    """Networks that may reach the API."""
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"


class Peer(_Model):
    """Another datacenter, with which the ledgers mirror and cosign each other: what `python -m infra.peer STACK` prints there."""

    name: Name
    """The other datacenter."""
    urls: Annotated[tuple[Url, ...], Field(min_length=1, max_length=16)]
    """Of its ledgers, any of which may answer."""
    log_keys: Annotated[tuple[PublicKey, ...], Field(min_length=1)]
    """Public keys that may sign its log; a second one while it changes its key."""
    witness_key: PublicKey
    mirror_key: PublicKey
    authority: str
    """PEM of its certificate authority; of the old and the new one while it changes them."""
    allow: Networks = ()
    """Networks that its ledgers come from, where these are not the addresses in `urls`."""

    @field_validator("authority")
    @classmethod
    def _is_certificate(cls, value: str) -> str:
        try:
            x509.load_pem_x509_certificates(value.encode())
        except ValueError:
            raise ValueError(
                "is not a certificate in PEM; `pulumi stack output authority` of the other region prints it"
            ) from None
        return value + "\n"

    @model_validator(mode="after")
    def _sound(self) -> Self:
        keys = [*self.log_keys, self.witness_key, self.mirror_key]
        if len(set(keys)) < len(keys):
            raise ValueError(
                "log_keys, witness_key and mirror_key are different keys; copy them anew from `python -m infra.peer STACK`"
            )
        if not self.allow and (names := [name for name in map(_host_of, self.urls) if not _is_address(name)]):
            raise ValueError(
                f"the firewall cannot look up {names[0]}; say with allow which networks the ledgers of {self.name} come from, such as allow: [192.0.2.0/24]"
            )
        return self

    @property
    def networks(self) -> tuple[str, ...]:
        """Where its ledgers may come from."""
        return self.allow or tuple(map(_host_of, self.urls))


def _host_of(url: str) -> str:
    return url.removeprefix("https://").rpartition(":")[0] or url.removeprefix("https://")


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


class Witness(_Model):
    """A C2SP witness of somebody else."""

    url: Annotated[str, Field(pattern=r"^https?://.+$")]
    """Its submission prefix."""
    vkey: Annotated[str, Field(pattern=r"^[^+\s]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+$")]
    """Its verifier key: name+hash+base64."""


class Ledger(_Model):
    """The ledgers: up to three, on the hosts of the config servers; one leads."""

    domain: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,98}[a-z0-9])?(:[0-9]+)?$")] = "heliograph.invalid"
    """What the names of all logs begin with, for ever; the same in all datacenters. A domain of yours."""
    port: Port = 8442
    """Where ledgers speak to each other: reached from the region's hosts and the peers alone."""
    peers: Annotated[tuple[Peer, ...], Field(max_length=16)] = ()
    witnesses: Annotated[tuple[Witness, ...], Field(max_length=16)] = ()
    public: bool = False
    """Nodes serve the logs under /ledger/ to everybody, without a key."""
    start_without_peers: bool = False
    """Sign although no peer can be asked for the newest checkpoint that it knows of this log. Only after making sure that no database was restored."""
    dispatch_without_peers: bool = False
    """Let nodes send what was open before the whole region was away, without asking the peers. Only after making sure that none of them took it over."""


class Certificates(_Model):
    """When the region's own certificates begin, and how long they last. A later `not_before` renews all of them."""

    not_before: date
    days: Annotated[int, Field(ge=1, le=825)] = 397
    serial: Annotated[int, Field(ge=0)] = 0
    """Raised for new keys and certificates of the same day; `heliograph ops rotate-certificates` does."""
    trust: Annotated[int, Field(ge=0)] = 0
    """Raised when the authorities change that the region trusts: services read them at their start."""


class Verify(_Model):
    """The message that each `up` ends with."""

    to: Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$")] = "+99900000001"
    """+999 belongs to no country: the built-in carrier answers for it. Give a real number to go through a real connector."""
    wait_seconds: Annotated[int, Field(ge=1, le=600)] = 60


class Backups(_Model):
    """Of `heliograph ops backup`."""

    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """So many stay on the host that made them, the newest; those that were brought to the operator's machine stay there until somebody deletes them."""


class Region(_Model):
    """What the stack stands up."""

    name: Name
    """The datacenter's name, as the nodes know it."""
    safety: Safety = Safety.HOST
    hosts: Annotated[tuple[Host, ...], Field(min_length=1, max_length=200)]
    ssh: Ssh = Ssh()
    mongodb: MongoDB
    control_plane: ControlPlane
    ledger: Ledger = Ledger()
    certificates: Certificates
    carrier: bool = True
    """Run the built-in carrier simulator on the first host, for the numbers under +999."""
    verify: Verify = Verify()
    backups: Backups = Backups()
    purge: bool = False
    """`pulumi destroy` also deletes the data. Takes effect with the `up` before it."""
    offline: bool = False
    """Contact no host: `pulumi preview` of a stack whose hosts do not exist yet."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for what in ("name", "address"):
            values = [getattr(host, what) for host in self.hosts]
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"hosts: {what} {', '.join(twice)} stands there twice; each host needs its own")
        names = [shard.name for shard in self.mongodb.shards]
        if len(set(names)) < len(names) or "config" in names:
            raise ValueError(
                "mongodb.shards: each needs a name of its own, and `config` is taken by the config servers"
            )
        known = {host.name for host in self.hosts}
        placed = {name for shard in self.mongodb.shards for name in shard.hosts} | set(self.mongodb.config_hosts)
        if strange := sorted(placed - known):
            raise ValueError(f"mongodb: no host is called {', '.join(strange)}; hosts are {', '.join(sorted(known))}")
        peers = [peer.name for peer in self.ledger.peers]
        if self.name in peers or len(set(peers)) < len(peers):
            raise ValueError("ledger.peers: each is another datacenter, and stands there once")
        if not self.carrier and self.verify.to.startswith("+999"):
            raise ValueError(
                "verify.to: +999 needs `carrier: true`; give a real number that a connector of yours delivers to"
            )
        return self


class Secrets(_Model):
    """The stack's secrets, each set with `pulumi config set --secret`."""

    ssh_key: SecretStr
    """PEM or OpenSSH private key of `ssh.user`."""
    authority_certificate: str
    """PEM of the region's certificate authority."""
    authority_key: SecretStr
    """PEM of its private key."""
    secret_key: SecretStr
    """HELIOGRAPH_SECRET_KEY of the nodes: seals stored passwords, digests API keys."""
    admin_key: SecretStr
    """The region's first API key, with the scope admin."""
    ledger_key: SecretStr
    """HELIOGRAPH_LEDGER_KEY of the ledgers: 32 random bytes in base64, from which their signing keys are made."""
    trusted_authorities: str = ""
    """PEM of authorities that are trusted beside the region's own, while one follows another."""
    revoked_admin_key: SecretStr | None = None
    """The first API key before the present one: it is revoked wherever it is found."""
    log_keys: tuple[PublicKey, ...] = ()
    """Public keys of the log besides the present one's, those before and the one to come: peers are given them too."""

    @field_validator("trusted_authorities")
    @classmethod
    def _are_certificates(cls, value: str) -> str:
        if not value:
            return ""
        try:
            x509.load_pem_x509_certificates(value.encode())
        except ValueError:
            raise ValueError(
                "is not PEM; `pulumi config rm trustedAuthorities` where no rotation is under way"
            ) from None
        return value.strip() + "\n"

    @field_validator("log_keys", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("ledger_key")
    @classmethod
    def _seed(cls, value: SecretStr) -> SecretStr:
        if not _is_32_bytes(value.get_secret_value()):
            raise ValueError("must be 32 random bytes in base64; make them with: openssl rand -base64 32")
        return value

    @field_validator("secret_key")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < 32:
            raise ValueError("must have at least 32 characters; make one with: openssl rand -hex 32")
        return value


SECRETS = ("sshKey", "authorityCertificate", "authorityKey", "secretKey", "adminKey", "ledgerKey")
"""Their names in a stack's file."""
OPTIONAL = ("trustedAuthorities", "revokedAdminKey", "logKeys")
"""What stands beside them while, and after, one of them is changed (`infra.changes`)."""


def _raise(error: ValidationError, prefix: str) -> None:
    lines = []
    found = error.errors(include_url=False, include_input=False)
    for item in found:
        below = [one for one in found if one["loc"][:-1] == item["loc"]]
        if item["type"] == "too_short" and below:  # it counts the items that are right
            continue
        where = ".".join(str(part) for part in item["loc"])
        advice = {
            "extra_forbidden": "there is no such field; docs/operations.md lists them",
            "missing": "is required",
        }.get(item["type"], item["msg"].removeprefix("Value error, "))
        lines.append(f"{prefix}{'.' if where else ''}{where}: {advice}")
    raise ConfigError("\n".join(lines))


def parse_region(value: Any) -> Region:
    """`heliograph:region`. Raises ConfigError with one line for each thing that is wrong."""
    if not isinstance(value, dict):
        raise ConfigError(
            "heliograph:region is not set for this stack. `python -m infra.new STACK` writes a first one."
        )
    try:
        return Region(**value)
    except ValidationError as error:
        _raise(error, "heliograph:region")
        raise


def parse_secrets(value: dict[str, str | None]) -> Secrets:
    """The secrets by their names in the stack file (`sshKey` …). Raises ConfigError; never repeats a value."""
    absent = [name for name, given in value.items() if not given and name not in OPTIONAL]
    if absent:
        raise ConfigError(
            "\n".join(f"heliograph:{name} is not set; `pulumi config set --secret {name}` sets it" for name in absent)
        )
    try:
        return Secrets(
            **{
                re.sub(r"([A-Z])", lambda match: "_" + match[1].lower(), name): given
                for name, given in value.items()
                if given
            }
        )
    except ValidationError as error:
        _raise(error, "heliograph secrets")
        raise
