"""What a simulated carrier is and how it behaves. Unknown fields and impossible values are refused with their names."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from controlplane.errors import ConfigError

__all__ = ["Behaviour", "CarrierConfig", "draw_ms", "load_config"]

Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
IdFormat = Literal["decimal", "hex", "hex_upper", "padded", "uuid", "alnum"]


def draw_ms(spec: str, rng: random.Random) -> float:
    """Milliseconds drawn from `5` (fixed), `5-20` (uniform) or `lognormal:20:0.5` (median, sigma)."""
    if spec.startswith("lognormal:"):
        _, median, sigma = spec.split(":")
        return float(median) * rng.lognormvariate(0.0, float(sigma))
    low, _, high = spec.partition("-")
    return rng.uniform(float(low), float(high)) if high else float(low)


class Behaviour(BaseModel):
    """How the carrier answers. Counts of 0 and probabilities of 0 switch a misbehaviour off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # bind
    silence: bool = False
    """Accept the connection and answer nothing, not even the bind."""
    bind_status: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = 0
    """Refuse every bind with this status (0x0E wrong password, 0x05 already bound …)."""
    max_binds: Count = 0
    """Refuse further binds of the account with ESME_RALYBND."""
    hang: bool = False
    """Once bound, answer nothing any more: a dead peer on a live connection."""
    enquire_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Send enquire_link so often."""
    outbind: bool = False
    """Send an outbind and an alert_notification after each bind."""

    # submit
    response_ms: str = "1"
    reject: dict[str, Probability] = Field(default_factory=dict)
    """command_status → probability, such as {"0x0B": 0.01}; vendors' codes are possible."""
    throttle_every: Count = 0
    rate_limit: Annotated[float, Field(ge=0)] = 0.0
    """Submits a second; more are answered ESME_RTHROTTLED."""
    queue_full_every: Count = 0
    reject_part: Count = 0
    """Refuse the part with this number of every long message."""
    drop_response: Probability = 0.0
    """Take the message and never answer."""
    drop_connection: Probability = 0.0
    """Take the message and cut the connection."""
    unbind_after: Count = 0
    garbage_after: Count = 0
    bad_length_after: Count = 0
    nack: Probability = 0.0
    """Answer with a generic_nack that names the PDU."""
    nack_zero: Probability = 0.0
    """Answer with a generic_nack without a sequence number."""
    unknown_tlvs: bool = False
    fragment: bool = False
    """Write one octet at a time."""
    id_format: IdFormat = "hex"

    # receipts
    receipt_ms: str = "50-500"
    outcomes: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=lambda: {"DELIVRD": 1.0})
    """State → weight."""
    suffix_rules: bool = True
    """Let the last four digits of a number decide: see outcome.SUFFIXES."""
    receipt_first: bool = False
    """The receipt before the response."""
    receipt_missing: Probability = 0.0
    receipt_duplicates: Count = 0
    receipt_intermediate: bool = False
    receipt_shuffle: bool = False
    """The intermediate receipt after the final one."""
    receipt_other_bind: bool = False
    receipt_dialect: Literal["spec", "compact", "tlv", "data_sm", "esm44", "garbled"] = "spec"
    receipt_id: Literal["same", "decimal", "hex", "upper", "padded", "stripped"] = "same"
    """How the receipt writes the id of the response."""
    redeliver_seconds: Annotated[float, Field(gt=0)] = 5.0
    """A receipt unanswered for so long, or refused, is sent again, with growing pauses."""

    @field_validator("response_ms", "receipt_ms")
    @classmethod
    def _drawable(cls, value: str) -> str:
        try:
            drawn = draw_ms(value, random.Random(0))  # noqa: S311 - a trial
        except ValueError:
            drawn = -1.0
        if drawn < 0:
            raise ValueError("must be milliseconds: 5, 5-20 or lognormal:20:0.5")
        return value

    @field_validator("reject")
    @classmethod
    def _statuses(cls, value: dict[str, float]) -> dict[str, float]:
        for status in value:
            try:
                int(status, 0)
            except ValueError:
                raise ValueError(f"{status!r} is not a command_status; write it as 0x0B") from None
        if sum(value.values()) > 1:
            raise ValueError("the probabilities add up to more than 1")
        return value

    @field_validator("outcomes")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or sum(value.values()) <= 0:
            raise ValueError("needs at least one state with a weight above 0")
        return value


class CarrierConfig(BaseModel):
    """One simulated carrier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=15)] = "sim"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 2775
    http_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    system_id: str = "heliograph"
    password: str = "secret"  # noqa: S105 - a simulator's
    seed: int | None = None
    journal: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    behaviour: Behaviour = Behaviour()


def load_config(path: Path | None, **overrides: Any) -> CarrierConfig:
    """From a TOML file (or the defaults), `overrides` that are not None first. Raises ConfigError that names each wrong field."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not TOML: {error}") from error
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        config = CarrierConfig.model_validate(values)
    except ValidationError as error:
        where = f"{path}: " if path else ""
        lines = [f"{where}{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise ConfigError("tls_certificate and tls_key go together; set both or neither")
    return config
