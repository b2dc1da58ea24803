"""Settings: the only reader of the environment and of secret files. Frozen, typed; an unknown `HELIOGRAPH_…` variable is refused.

Every setting is `HELIOGRAPH_<NAME>` in the environment; `HELIOGRAPH_<NAME>_FILE` reads it from a file instead (secrets).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from controlplane.errors import ConfigError

__all__ = ["ClientSettings", "Settings", "child_environment", "load", "load_client", "notify_socket"]

_PREFIX = "HELIOGRAPH_"
_CLIENT = frozenset({"url", "api_key", "ca"})
Seconds = Annotated[float, Field(gt=0)]


def _hostname() -> str:
    return socket.gethostname().split(".")[0].lower()


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


def _environment() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if not name.startswith(_PREFIX):
            continue
        key = name.removeprefix(_PREFIX).lower()
        if key.endswith("_file"):
            key = key.removesuffix("_file")
            try:
                value = Path(value).read_text(encoding="utf-8").strip()  # noqa: PLW2901
            except OSError as error:
                raise ConfigError(
                    f"{name}={value}: cannot be read ({error.strerror}). Check the path and its permissions."
                ) from error
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
