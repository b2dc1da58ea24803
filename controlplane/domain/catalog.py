"""What an operator configures: tenants, keys, carriers' connectors, routes, callback endpoints. Plain immutable records."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.domain.keywords import OPT_IN, OPT_OUT
from controlplane.domain.quiet import QuietHours

__all__ = [
    "MESSAGE_CLASSES",
    "SENDER_TYPES",
    "BindType",
    "CallbackEndpoint",
    "Connector",
    "Key",
    "MessageClass",
    "Route",
    "RoutingMode",
    "Scope",
    "SenderType",
    "Snapshot",
    "Tenant",
    "UnknownPolicy",
]


class Scope(StrEnum):
    """What a key may do."""

    MESSAGES_WRITE = "messages:write"
    MESSAGES_READ = "messages:read"
    ROUTES_READ = "routes:read"
    LEDGER_READ = "ledger:read"
    ADMIN = "admin"


class MessageClass(StrEnum):
    """Why the message is sent; decides priority, and what happens when its outcome is unknown."""

    OTP = "otp"
    TRANSACTIONAL = "transactional"
    MARKETING = "marketing"


class UnknownPolicy(StrEnum):
    """What to do with a message whose submit has no known outcome."""

    HOLD = "hold"
    """Wait for a late response or a receipt; expire otherwise. At most once."""
    RESEND = "resend"
    """Send again. At least once."""


class RoutingMode(StrEnum):
    """How a tenant's messages find their routes."""

    STATIC = "static"
    """By priority, prefix and price."""
    SHADOW = "shadow"
    """Static; what the learned engine would have chosen is recorded beside it."""
    LEARNED = "learned"
    """By what is learned of delivery, latency and price; a message that is reported undelivered goes to the next route."""


class SenderType(StrEnum):
    """The kind of source address a route can carry."""

    ALPHANUMERIC = "alphanumeric"
    LONG = "long"
    SHORT = "short"


MESSAGE_CLASSES = {cls.value: cls for cls in MessageClass}
SENDER_TYPES = {kind.value: kind for kind in SenderType}
"""By their values: calling an enumeration takes ten times as long, and every message needs both."""


class BindType(StrEnum):
    """SMPP 3.4 section 4.1."""

    TRANSCEIVER = "trx"
    TRANSMITTER = "tx"
    RECEIVER = "rx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A customer."""

    id: str
    name: str
    enabled: bool = True
    rate: int = 0
    """Messages a second that one node accepts for this tenant; 0 = the node's default."""
    unknown_policies: dict[str, str] = field(default_factory=dict)
    """MessageClass → UnknownPolicy, over the defaults (otp, transactional: resend; marketing: hold)."""
    smart_encoding: bool = False
    callback_secrets: tuple[str, ...] = ()
    """`whsec_…`, newest first; each signs, so that a rotation needs no pause."""
    retention_days: int | None = None
    """Final messages older than this lose their recipient, sender and text; None keeps them."""
    quiet_hours: dict[str, QuietHours] = field(default_factory=dict)
    """MessageClass → when its messages must not arrive, by each recipient's own clock."""
    opt_out_keywords: tuple[str, ...] = OPT_OUT
    """A text from a phone that is one of them suppresses its number at once."""
    opt_in_keywords: tuple[str, ...] = OPT_IN
    """A text that is one of them lifts that."""
    opt_out_classes: frozenset[str] = frozenset({MessageClass.TRANSACTIONAL, MessageClass.MARKETING})
    """What an opt-out by keyword covers. One-time passwords are not among them: the recipient has just asked for each."""
    routing: str = RoutingMode.STATIC
    routing_terms: dict[str, dict[str, float]] = field(default_factory=dict)
    """MessageClass → what such a message is worth: `value` of a delivery in time and `latency` a second, in minor units, `price` as a factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key. The key itself is never stored; `digest` is HMAC-SHA256(pepper, key), hex."""

    id: str
    tenant: str
    name: str
    scopes: frozenset[str]
    digest: str
    hint: str
    """`hg_live_abcd…`: enough to recognise the key."""
    test: bool = False
    enabled: bool = True
    created_at: int = 0
    rate: int = 0
    """Messages a second on one node; 0 = the tenant's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """One configured SMPP account at a carrier."""

    name: str
    host: str
    port: int
    system_id: str
    password: str
    system_type: str = ""
    bind_type: BindType = BindType.TRANSCEIVER
    binds: int = 1
    """Sessions that each node opens."""
    max_binds: int = 0
    """Sessions that the carrier allows for the whole account over all nodes (leased); 0 = no such limit."""
    window: int = 10
    """Unanswered submit_sm a bind may have (SMPP 3.4 section 2.7 suggests 10)."""
    rate: float = 100.0
    """Parts a second that the contract allows, over all binds of one node."""
    tls: bool = False
    tls_ca: str = ""
    """PEM of the certificate authority; empty = the system's."""
    tls_verify: bool = True
    tls_server_name: str = ""
    enquire_link_seconds: float = 30.0
    response_seconds: float = 30.0
    """A submit_sm without response for this long is `unknown`."""
    source_ton: int = -1
    """-1 = from the sender: alphanumeric 5, short code 3, number 1."""
    source_npi: int = -1
    dest_ton: int = 1
    dest_npi: int = 1
    service_type: str = ""
    default_alphabet: str = "gsm7"
    """What data_coding 0 means at this carrier: gsm7 or latin1."""
    long_messages: str = "udh8"
    """udh8, udh16, sar or payload."""
    registered_delivery: int = 1
    receipt_id_format: str = "auto"
    """auto, as_is, hex (receipt decimal, response hex) or dec (receipt hex, response decimal)."""
    send_validity: bool = True
    query_sm: bool = False
    """Ask the carrier (query_sm) for the state of a part that has no receipt when its message's validity is over."""
    tenant: str = ""
    """Who receives this connector's mobile-originated messages; empty = nobody: they are kept."""
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A way to reach a destination."""

    name: str
    connector: str
    prefixes: tuple[str, ...] = ("",)
    """Digits after the +, longest match wins; "" matches every number."""
    sender_types: frozenset[str] = frozenset(SenderType)
    classes: frozenset[str] = frozenset(MessageClass)
    price: int = 0
    """Minor units per part."""
    currency: str = "EUR"
    priority: int = 100
    """Lower goes first."""
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackEndpoint:
    """Where a tenant wants to hear of its messages; used for each message that names no `callback_url` of its own."""

    id: str
    tenant: str
    url: str
    events: frozenset[str] = frozenset()
    """Kinds to send; empty = all."""
    enabled: bool = True
    disabled_reason: str = ""
    created_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole catalog at one version; nodes swap it as one reference, so that no request sees half a change."""

    version: int = 0
    tenants: dict[str, Tenant] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    """By digest."""
    connectors: dict[str, Connector] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    endpoints: dict[str, CallbackEndpoint] = field(default_factory=dict)
