"""From a request to the draft of an `accepted` event: decode, validate every field, analyse the text, plan the route.

The fast way decodes straight into `MessageRequest`. Only when that fails is the body looked at field by field, so that every error is told, not the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from controlplane.api import consent
from controlplane.api.auth import Caller
from controlplane.api.problems import invalid
from controlplane.api.services import Services
from controlplane.api.times import iso
from controlplane.domain.address import classify_sender, normalise_recipient
from controlplane.domain.catalog import MESSAGE_CLASSES, SenderType, Tenant, UnknownPolicy
from controlplane.domain.events import Event, Kind, canonical
from controlplane.domain.preferences import NOBODY, Standing
from controlplane.domain.text import MAX_PARTS, Analysis, analyse
from controlplane.errors import FieldError, Problem
from controlplane.ids import fingerprint, idempotent_mid, new_mid
from controlplane.routing import Plan, RouteRequest

__all__ = [
    "BatchItem",
    "MessageRequest",
    "Prepared",
    "accepted_answer",
    "check_key",
    "decode_item",
    "identify",
    "iso",
    "malformed",
    "plan_for",
    "prepare",
]

_MAX_AHEAD_MS = 30 * 86_400_000
_CLOCK_SKEW_MS = 60_000
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

Name = Annotated[str, Meta(max_length=40)]
Value = Annotated[str, Meta(max_length=200)]


class MessageRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """One SMS to one recipient."""

    to: Annotated[str, Meta(min_length=1, max_length=40, description="Recipient, international: +4915112345678.")]
    body: Annotated[str, Meta(min_length=1, max_length=40_000, description="The text.")]
    from_: Annotated[
        str, Meta(max_length=20, description="Sender: short code, number, or up to 11 letters and digits.")
    ] = msgspec.field(name="from", default="")
    cls: Annotated[
        Literal["otp", "transactional", "marketing"],
        Meta(description="Priority, and what is done when an outcome is unknown."),
    ] = msgspec.field(name="class", default="transactional")
    callback_url: Annotated[
        str, Meta(max_length=2_000, description="Where to tell of this message; else the tenant's endpoints.")
    ] = ""
    validity_seconds: (
        Annotated[int, Meta(ge=1, le=604_800, description="Give up after this long (default 48 h).")] | None
    ) = None
    send_at: Annotated[str, Meta(max_length=40, description="RFC 3339 with offset; at most 30 days ahead.")] = ""
    reference: Annotated[str, Meta(max_length=100, description="Yours; lists can be filtered by it.")] = ""
    context: Annotated[dict[Name, Value], Meta(max_length=10, description="Echoed in callbacks.")] = msgspec.field(
        default_factory=dict
    )
    max_price: Annotated[int, Meta(ge=0, le=1_000_000_000, description="Minor units for the whole message.")] | None = (
        None
    )
    max_parts: Annotated[int, Meta(ge=1, le=MAX_PARTS, description="Refuse the message when it needs more.")] | None = (
        None
    )
    origin: (
        Annotated[str, Meta(pattern="^[A-Z]{2}$", description="The sender's country, ISO 3166-1 alpha-2.")] | None
    ) = None
    durability: Annotated[
        Literal["regional", "global"],
        Meta(description="`global`: answered, and sent, once a second datacenter durably has the message too."),
    ] = "regional"
    unknown_policy: Literal["hold", "resend"] | None = None
    dry_run: Annotated[bool, Meta(description="Answer what would happen, and accept nothing.")] = False


class BatchItem(MessageRequest, frozen=True):
    """A MessageRequest in a batch."""

    idempotency_key: Annotated[str, Meta(max_length=255)] = ""


@dataclass(slots=True)
class Prepared:
    """A valid message, ready to be accepted."""

    draft: Event
    plan: Plan
    dry_run: bool


_decoders: dict[type[MessageRequest], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (MessageRequest, BatchItem)
}


def malformed(detail: str) -> Problem:
    """400: not JSON."""
    return Problem("malformed-json", "The body is not JSON", 400, detail, "Send a JSON document in UTF-8.")


def decode_item(body: bytes | msgspec.Raw, kind: type[MessageRequest] = MessageRequest) -> Any:
    """A `kind`. Raises Problem 400 (not JSON) or 422 (every wrong field, with its pointer)."""
    try:
        return _decoders[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        errors = _field_errors(body, kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise malformed(str(error)) from None
    except RecursionError:
        raise malformed("The document is nested too deeply.") from None
    raise invalid(errors)


def _field_errors(body: bytes | msgspec.Raw, kind: type[MessageRequest]) -> list[FieldError]:
    value = msgspec.json.decode(body)
    if not isinstance(value, dict):
        return [FieldError("", "must be a JSON object")]
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    errors = []
    for name, item in value.items():
        field = fields.get(name)
        if field is None:
            errors.append(FieldError("/" + _escape(name), f"is not a field; the fields are {', '.join(fields)}"))
            continue
        try:
            msgspec.convert(item, field.type)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at ")
            errors.append(FieldError("/" + name + _pointer(path), text))
    wrong = {error.pointer for error in errors}
    for name, check in (("to", normalise_recipient), ("from", classify_sender)):
        if isinstance(value.get(name), str) and value[name] and f"/{name}" not in wrong:
            errors += _value_error(f"/{name}", value[name], check)
    errors += [
        FieldError(f"/{name}", "is required") for name, field in fields.items() if field.required and name not in value
    ]
    return errors or [FieldError("", "is not valid")]


def _value_error(pointer: str, value: str, check: Callable[[str], object]) -> list[FieldError]:
    try:
        check(value)
    except ValueError as error:
        return [FieldError(pointer, str(error))]
    return []


def _escape(name: str) -> str:
    return name[:100].replace("~", "~0").replace("/", "~1")


def _pointer(path: str) -> str:
    """msgspec's `$[...]` path as the tail of a JSON pointer."""
    inner = path.strip("`").removeprefix("$")
    return "".join(f"/{part}" for part in re.findall(r"\[([^\]]+)\]", inner) if part != "...")


def identify(
    request: MessageRequest, caller: Caller, services: Services, key: str, resent_from: str = ""
) -> tuple[str, str]:
    """(the id that the Idempotency-Key stands for, the fingerprint by which its repetition is known)."""
    mid = idempotent_mid(services.settings.secret, caller.tenant.id, key)
    body = canonical(request)
    return mid, fingerprint(body + resent_from.encode() if resent_from else body)


def prepare(
    request: MessageRequest,
    caller: Caller,
    services: Services,
    key: str,
    standing: Standing = NOBODY,
    *,
    resent_from: str = "",
) -> Prepared:
    """Validate what types cannot, and draft the event. Raises Problem 422 that names every wrong field, or the rule that refuses the message.

    `key`: Idempotency-Key or ""; `standing`: what is recorded of the recipient; `resent_from`: the message that it repeats.
    """
    now = services.clock.now_ms()
    try:
        to = normalise_recipient(request.to)
        sender_type = classify_sender(request.from_) if request.from_ else SenderType.ALPHANUMERIC
        send_at = _send_at(request.send_at, now) if request.send_at else 0
        if request.callback_url:
            _check_callback(request.callback_url, services)
    except ValueError:
        raise invalid(_wrong_values(request, services, now)) from None
    if request.durability == "global" and not services.settings.ledger_peers:
        raise Problem(
            "no-peer",
            "No second datacenter",
            501,
            "durability `global` needs a second datacenter that mirrors this one, and this node knows none.",
            "Send with durability `regional` (the default), or ask the operator to set HELIOGRAPH_LEDGER_PEERS; nothing was accepted.",
        )
    tenant = caller.tenant
    analysis = analyse(request.body, smart=tenant.smart_encoding)
    if analysis.parts > (request.max_parts or MAX_PARTS):
        raise _too_long(analysis, request.max_parts or MAX_PARTS)
    route_request = RouteRequest(
        tenant.id,
        to,
        sender_type,
        MESSAGE_CLASSES[request.cls],
        analysis.parts,
        request.max_price,
        sender=request.from_,
    )
    plan, route_request = plan_for(services, route_request, standing)
    if not plan.candidates:
        raise _no_route(services, route_request)
    expires_at = max(now, send_at) + (request.validity_seconds or services.settings.default_validity_seconds) * 1000
    waits = None
    if standing is not NOBODY or tenant.quiet_hours:
        waits = consent.check(
            tenant,
            standing,
            cls=request.cls,
            sender=route_request.sender,
            to=to,
            at=max(now, send_at),
            expires_at=expires_at,
        )
    best = plan.candidates[0]
    data: dict[str, Any] = {
        "to": to,
        "from": route_request.sender,
        "sender_type": route_request.sender_type.value,
        "body": analysis.body,
        "class": request.cls,
        "encoding": analysis.encoding.value,
        "parts": analysis.parts,
        "price": best.price,
        "currency": best.route.currency,
        "planned_route": best.route.name,
        "plan": plan.reason,
        "expires_at": expires_at,
        "unknown_policy": request.unknown_policy or _unknown_policy(tenant, request.cls),
    }
    if waits is not None:
        data["held"] = consent.held(waits)
        send_at = waits.until
    if send_at > now:
        data["send_at"] = send_at
    _add_optional(data, request)
    if resent_from:
        data["resent_from"] = resent_from
    if key:
        mid, data["fingerprint"] = identify(request, caller, services, key, resent_from)
    else:
        mid = new_mid(now)
    return Prepared(Event(mid, 0, tenant.id, Kind.ACCEPTED, now, data), plan, request.dry_run or caller.key.test)


def plan_for(services: Services, request: RouteRequest, standing: Standing) -> tuple[Plan, RouteRequest]:
    """The plan, and what was planned: with the sender that the recipient prefers, where the request names none and a route can carry it."""
    preference = standing.preference
    if preference is not None and preference.sender and not request.sender:
        wished = request._replace(sender=preference.sender, sender_type=classify_sender(preference.sender))
        plan = services.router.plan(wished)
        if plan.candidates:
            return plan, wished
    return services.router.plan(request), request


def _add_optional(data: dict[str, Any], request: MessageRequest) -> None:
    """Fields that are stored where they were given."""
    if request.callback_url:
        data["callback_url"] = request.callback_url
    if request.reference:
        data["reference"] = request.reference
    if request.context:
        data["context"] = request.context
    if request.max_price is not None:
        data["max_price"] = request.max_price
    if request.origin:
        data["origin"] = request.origin
    if request.durability == "global":
        data["durability"] = request.durability


def _unknown_policy(tenant: Tenant, cls: str) -> str:
    default = UnknownPolicy.HOLD if cls == "marketing" else UnknownPolicy.RESEND
    return tenant.unknown_policies.get(cls) or default.value


def _check_callback(url: str, services: Services) -> None:
    if wrong := services.check_callback_url(url):
        raise ValueError(wrong)


def _wrong_values(request: MessageRequest, services: Services, now: int) -> list[FieldError]:
    """Every field whose value is wrong, not the first."""
    checks: tuple[tuple[str, str, Callable[[str], object]], ...] = (
        ("/to", request.to, normalise_recipient),
        ("/from", request.from_, classify_sender),
        ("/callback_url", request.callback_url, lambda url: _check_callback(url, services)),
        ("/send_at", request.send_at, lambda text: _send_at(text, now)),
    )
    return [error for pointer, value, check in checks if value for error in _value_error(pointer, value, check)]


def _send_at(text: str, now: int) -> int:
    """The time as ms since the epoch. ValueError says what is wrong."""
    wrong = ValueError("must be RFC 3339 with an offset, such as 2030-01-31T09:00:00Z")
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            raise wrong
        ms = int(at.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise wrong from None
    if ms < 0:
        raise wrong
    if ms > now + _MAX_AHEAD_MS:
        raise ValueError("must be at most 30 days ahead")
    if ms < now - _CLOCK_SKEW_MS:
        raise ValueError("is in the past; leave it out to send now")
    return ms


def _too_long(analysis: Analysis, allowed: int) -> Problem:
    return Problem(
        "too-many-parts",
        "Too many parts",
        422,
        f"The text needs {analysis.parts} parts in {analysis.encoding.value}; {allowed} are allowed.",
        "Shorten the text, or raise max_parts.",
        errors=[FieldError("/body", f"needs {analysis.parts} parts")],
    )


def _no_route(services: Services, request: RouteRequest) -> Problem:
    _, excluded = services.router.explain(request)
    return Problem(
        "no-route",
        "No route",
        422,
        "No route may carry this message.",
        "Read `excluded`; then change the message, or ask the operator for a route.",
        extra={"excluded": [{"route": item.route, "rule": item.rule, "detail": item.detail} for item in excluded]},
    )


def check_key(key: str) -> None:
    """Raise Problem 422 for an Idempotency-Key that is not one."""
    if not _KEY.fullmatch(key):
        raise invalid([FieldError("Idempotency-Key", "must be 1 to 255 printable ASCII characters without spaces")])


def accepted_answer(event: Event) -> dict[str, Any]:
    """What the client is told of an accepted message: the same for the first request and for each replay."""
    data = event.data or {}
    return {
        "id": event.mid,
        "status": "scheduled" if "send_at" in data else "accepted",
        "to": data["to"],
        "parts": data["parts"],
        "encoding": data["encoding"],
        "price": {"amount": data["price"], "currency": data["currency"]},
        "route": {"planned": data["planned_route"], "why": data["plan"]},
        "reference": data.get("reference"),
        "accepted_at": iso(event.at),
        "send_at": iso(data["send_at"]) if "send_at" in data else None,
        "held": {**data["held"], "until": iso(data["held"]["until"])} if "held" in data else None,
        "expires_at": iso(data["expires_at"]),
    }
