"""Settings: the only reader of the environment and of secret files. Frozen, typed; an unknown `HELIOGRAPH_…` variable is refused.

Every setting is `HELIOGRAPH_<NAME>` in the environment; `HELIOGRAPH_<NAME>_FILE` reads it from a file instead (secrets).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from controlplane.errors import ConfigError

__all__ = ["ClientSettings", "Peer", "Settings", "Witness", "child_environment", "load", "load_client", "notify_socket"]

_PREFIX = "HELIOGRAPH_"
_SECRET = re.compile("LEDGER_KEY_FILE$")
_CLIENT = frozenset({"url", "api_key", "ca"})
Seconds = Annotated[float, Field(gt=0)]


def _hostname() -> str:
    return socket.gethostname().split(".")[0].lower()


def _public_key(value: str) -> str:
    try:
        good = len(base64.b64decode(value, validate=True)) == 32
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"{value[:60]!r} is not a public Ed25519 key (32 bytes in base64); `heliograph ledger keys` prints those of a ledger"
        )
    return value


PublicKey = Annotated[str, AfterValidator(_public_key)]


class Peer(BaseModel):
    """The ledger of another datacenter: we mirror its log and cosign it, and it does so for ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dc: str = Field(pattern=r"[a-z0-9][a-z0-9-]{0,31}")
    urls: tuple[Annotated[str, Field(pattern=r"https?://[^/?#]+")], ...] = Field(min_length=1)
    """Its ledgers, any of which may answer."""
    log_keys: tuple[PublicKey, ...] = Field(min_length=1)
    """Public keys that may sign its log; a second one while it changes its key."""
    witness_key: PublicKey
    mirror_key: PublicKey


class Witness(BaseModel):
    """A C2SP witness of somebody else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"https?://.+")
    """Its submission prefix: `<url>/add-checkpoint`."""
    vkey: str
    """Its verifier key, `name+hash+base64`."""


class Settings(BaseModel):
    """One node's settings. Catalog data (tenants, connectors, routes …) lives in MongoDB, not here."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    mongodb_uri: SecretStr = SecretStr("mongodb://127.0.0.1:27017/?replicaSet=rs0")
    """Where the event store is. Always a replica set or mongos: writes are majority + journal."""
    database: str = Field("heliograph", pattern=r"[A-Za-z0-9_-]{1,38}")
    secret_key: SecretStr
    """At least 32 characters. Peppers API keys, derives idempotent ids, seals stored passwords. The same on all nodes."""
    datacenter: str = Field("local", pattern=r"[a-z0-9][a-z0-9-]{0,31}")
    node: str = Field(default_factory=_hostname, pattern=r"[a-z0-9][a-z0-9_.-]{0,63}")
    """This node's name, unique in the datacenter."""
    state_dir: Path = Path("/var/lib/heliograph")
    """Holds the lock that tells a restarted node that its former self is gone."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    advertise_url: str = Field("", pattern=r"(https?://[^/?#]+)?")
    """Where the other nodes of the datacenter reach this one; empty: host and port, unless it listens on all addresses."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    max_body_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    max_upload_bytes: int = Field(50 * 1024 * 1024, ge=1024)
    """Of the table of a batch job."""
    max_upload_rows: int = Field(500_000, ge=1)
    batch_job_days: int = Field(7, ge=1, le=365)
    """How long a batch job that is at rest keeps its table and results."""

    lease_seconds: Seconds = 10.0
    lease_renew_seconds: Seconds = 2.0
    lease_margin_seconds: Seconds = 2.0
    """Submitting stops this long before the lease ends, whatever the clock of the others says."""

    max_open_messages: int = Field(1_000_000, ge=1)
    max_commit_queue: int = Field(20_000, ge=1)
    """Events that may wait for the committer before new messages are answered 503."""
    accept_timeout_seconds: Seconds = 10.0
    commit_unsafe: bool = False
    """Negative control of the loss tests only: acknowledge before MongoDB did. Refused outside `HELIOGRAPH_TESTING=1`."""
    testing: bool = False

    default_rate: int = Field(10_000, ge=1)
    """Messages a second that a node accepts from one tenant that has no rate of its own."""
    default_validity_seconds: int = Field(172_800, ge=1, le=604_800)
    receipt_grace_seconds: int = Field(86_400, ge=1)
    """How long after its validity a submitted or unknown message waits for a receipt before it is expired."""
    orphan_days: int = Field(7, ge=1)
    audit_days: int = Field(400, ge=1)
    """How long it is kept who changed what."""
    console_totp: Literal["required", "optional"] = "required"
    """Whether people of the console need a second factor."""

    ledger_domain: str = Field("heliograph.invalid", pattern=r"[a-z0-9.-]{1,100}(:[0-9]+)?")
    """What origins of logs begin with: the deployment's domain. The same in all datacenters; it is part of every proof."""
    ledger_key: SecretStr = SecretStr("")
    """Of a ledger: 32 random bytes in base64, from which its three signing keys are made. The same for all ledgers of a datacenter, of nobody else."""
    ledger_peers: tuple[Peer, ...] = ()
    """The other datacenters, as a JSON list. Nodes and ledgers alike have it."""
    ledger_witnesses: tuple[Witness, ...] = ()
    """Foreign witnesses, as a JSON list."""
    ledger_public: bool = False
    """Serve the logs under /ledger/ to everybody, without a key."""
    ledger_round_ms: int = Field(250, ge=10, le=60_000)
    """A ledger sequences what is new this often."""
    ledger_start_without_peers: bool = False
    """Sign although no peer or witness could be asked for the newest checkpoint that it knows of this log. Only after making sure that the database was not restored."""
    dispatch_without_peers: bool = False
    """A node that was away for more than a minute sends what was open before without asking the peers whether they took it over. Only after making sure that none did."""
    ledger_scrub_days: float = Field(7.0, gt=0, le=31)
    """Every bundle, tile and event is read and verified again within this time."""
    ledger_tls_certificate: Path | None = None
    ledger_tls_key: Path | None = None
    ledger_tls_authorities: Path | None = None
    """PEM of the authorities by which ledgers know each other; with it, ledgers speak mutual TLS only."""

    callback_allow_private: bool = False
    """Let callbacks go to private and loopback addresses (development, or receivers inside the datacenter)."""
    callback_timeout_seconds: Seconds = 10.0
    callback_concurrency: int = Field(64, ge=1)

    log_level: str = Field("info", pattern="debug|info|warning|error")
    log_json: bool = True

    @field_validator("secret_key")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < 32:
            raise ValueError("must have at least 32 characters; make one with: openssl rand -hex 32")
        return value

    @field_validator("ledger_key")
    @classmethod
    def _seed(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            try:
                _public_key(value.get_secret_value())
            except ValueError:
                raise ValueError(
                    "must be 32 bytes in base64; make one with: heliograph ledger keys --new FILE"
                ) from None
        return value

    @field_validator("ledger_peers", "ledger_witnesses", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "[]")
        except ValueError as error:
            raise ValueError(f"is not JSON ({error}); docs/settings.md shows the form") from None

    @property
    def ledger_seed(self) -> bytes:
        """32 bytes. ConfigError where there are none."""
        if not self.ledger_key.get_secret_value():
            raise ConfigError(
                "HELIOGRAPH_LEDGER_KEY: is required for a ledger. Make one with `heliograph ledger keys --new FILE` and set HELIOGRAPH_LEDGER_KEY_FILE."
            )
        return base64.b64decode(self.ledger_key.get_secret_value())

    @property
    def secret(self) -> bytes:
        """The secret key as bytes."""
        return self.secret_key.get_secret_value().encode()

    @property
    def peer_url(self) -> str:
        """Base URL for the other nodes; "" when it cannot be told."""
        if self.advertise_url or self.host in ("0.0.0.0", "::") or not self.port:  # noqa: S104 - compared, not bound
            return self.advertise_url
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_certificate else 'http'}://{host}:{self.port}"

    def model_post_init(self, _context: Any, /) -> None:
        """Refuse combinations that would lose messages."""
        if self.lease_renew_seconds + self.lease_margin_seconds >= self.lease_seconds:
            raise ValueError("lease_seconds must be larger than lease_renew_seconds + lease_margin_seconds")
        if self.commit_unsafe and not self.testing:
            raise ValueError("commit_unsafe is for the loss tests' negative control; it needs HELIOGRAPH_TESTING=1")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; set both or neither")
        tls = (self.ledger_tls_certificate, self.ledger_tls_key, self.ledger_tls_authorities)
        if any(tls) and not all(tls):
            raise ValueError(
                "ledger_tls_certificate, ledger_tls_key and ledger_tls_authorities go together; set all or none"
            )
        names = [peer.dc for peer in self.ledger_peers]
        if self.datacenter in names or len(set(names)) < len(names):
            raise ValueError("ledger_peers: each is another datacenter, and stands there once")
        if self.node == "ledger":
            raise ValueError("node: `ledger` is the name under which ledgers write; choose another one")


def _read(name: str, path: Path) -> str:
    try:
        if _SECRET.search(name) and path.stat().st_mode & 0o077:
            raise ConfigError(f"{name}={path}: others may read it. Run: chmod 600 {path}")
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"{name}={path}: cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error


def _environment() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if not name.startswith(_PREFIX):
            continue
        key = name.removeprefix(_PREFIX).lower()
        if key.endswith("_file"):
            key = key.removesuffix("_file")
            value = _read(name, Path(value))  # noqa: PLW2901
        found[key] = value
    return found


class ClientSettings(BaseModel):
    """What the command line needs to talk to a node."""

    model_config = ConfigDict(frozen=True)

    url: str = ""
    """HELIOGRAPH_URL; empty: that of a local `heliograph up`."""
    api_key: SecretStr = SecretStr("")
    """HELIOGRAPH_API_KEY; empty: that of a local `heliograph up`."""
    ca: str = ""
    """HELIOGRAPH_CA_FILE: PEM of the authority that signed the nodes' certificates; empty: the system's authorities."""


def load_client() -> ClientSettings:
    """The client's settings from the environment."""
    found = _environment()
    return ClientSettings(**{name: found[name] for name in _CLIENT & found.keys()})


def notify_socket() -> str:
    """Where the service manager listens (sd_notify(3)); "" when nobody does."""
    return os.environ.get("NOTIFY_SOCKET", "")


def child_environment(**settings: object) -> dict[str, str]:
    """The environment for a child process: ours without HELIOGRAPH_ variables, and these settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    return inherited | {_PREFIX + name.upper(): str(value) for name, value in settings.items()}


def load(**overrides: Any) -> Settings:
    """Settings from the environment, `overrides` first. Raises ConfigError that names each wrong setting and its mend."""
    try:
        given = {name: value for name, value in _environment().items() if name not in _CLIENT}
        return Settings(**{**given, **{k: v for k, v in overrides.items() if v is not None}})
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = _PREFIX + "_".join(str(part) for part in item["loc"]).upper() if item["loc"] else "settings"
            advice = {
                "extra_forbidden": "no such setting; see docs/settings.md for the list",
                "missing": "is required; set it or its _FILE form",
            }.get(item["type"], item["msg"])
            lines.append(f"{name}: {advice}")
        raise ConfigError("\n".join(lines)) from None
