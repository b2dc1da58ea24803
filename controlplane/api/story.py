"""A message as people read it: its status, its parts, and each event in a sentence."""

from __future__ import annotations

from typing import Any

from controlplane.api.decisions import decision_view
from controlplane.api.times import iso
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message

__all__ = ["detail", "sentence", "summary"]

_REASONS = {
    "timeout": "the carrier did not answer in time",
    "connection_lost": "the connection broke before the carrier answered",
    "node_lost": "the node ended before the carrier's answer was recorded",
    "rejected": "the carrier refused it",
    "queue_full": "the carrier's queue stayed full",
    "temporary": "the carrier had trouble",
    "resend": "its outcome was unknown, and its policy is to send again",
    "validity": "its validity ended before it could be sent",
    "no_receipt": "no receipt came",
    "no_outcome": "neither a response nor a receipt came",
    "region_lost": "its datacenter was lost",
    "not_mirrored": "no second datacenter had it in time",
    "opted_out": "the recipient has opted out",
    "suppressed": "the recipient is suppressed",
    "class_blocked": "the recipient does not want such messages",
    "quiet_hours": "of quiet hours",
}


_EFFECTS = {
    "opted_out": " The keyword opted its number out.",
    "opted_in": " The keyword lifted its number's opt-outs.",
    "unknown_number": " The keyword had no effect: the number is not in international form.",
}


def _effect(data: dict[str, Any]) -> str:
    return str((data.get("preference") or {}).get("effect", ""))


def _why(event: Event) -> str:
    reason = event.reason or ""
    if reason.startswith("carrier:"):
        _, state, error = (reason + "::").split(":")[:3]
        return f"the carrier reports {state}" + (f" (error {error})" if error else "")
    return _REASONS.get(reason, reason)


def sentence(event: Event, decision: dict[str, Any] | None = None) -> str:  # noqa: C901, PLR0912 - one case a kind
    """What happened, in words; `decision` is its router's, where there was one."""
    data = event.data or {}
    status = data.get("command_status")
    code = f" (command_status 0x{status:02X})" if status else ""
    part = f"Part {data['part']}: " if "part" in data else ""
    match event.kind:
        case Kind.ACCEPTED:
            parts = data.get("parts", 1)
            text = f"Accepted durably: {parts} part{'s' if parts != 1 else ''}"
            if not data:
                return "Accepted durably."
            again = f" Sent anew in the place of {data['resent_from']}." if "resent_from" in data else ""
            waits = f" It waits: {data['held']['detail']}." if "held" in data else ""
            return f"{text} in {data['encoding']}.{again} Planned route: {data['plan']}.{waits}"
        case Kind.SUBMITTED:
            ids = ", ".join(cid for _, cid in data.get("part_ids", ()))
            why = f" Chosen {decision['why']}." if decision and decision.get("mode") == "learned" else ""
            return f"{data.get('connector', 'The carrier')} took it as {ids or 'a message without id'}.{why}"
        case Kind.DEFERRED if "rule" in data:
            return f"It waits: {data['detail']}."
        case Kind.DEFERRED:
            return f"{data.get('connector')} refused it for now{code}; it will be tried again."
        case Kind.REROUTED:
            return f"Leaves {event.route or 'its route'}: {_why(event)}{code}."
        case Kind.UNKNOWN if event.reason == "region_lost":
            return "Its datacenter was lost: it may or may not have been sent, and is not sent again."
        case Kind.UNKNOWN:
            return f"Sent to {data.get('connector')}, but {_why(event)}: it may or may not have been taken."
        case Kind.ENROUTE:
            return f"{part}on its way; {_why(event)}."
        case Kind.DELIVERED:
            return f"{part}delivered to the handset."
        case Kind.UNDELIVERED:
            return f"{part}not delivered: {_why(event)}" + ("; it goes to the next route." if "tried" in data else ".")
        case Kind.EXPIRED:
            return f"{part}expired: {_why(event)}."
        case Kind.FAILED if event.reason == "not_mirrored":
            return "Refused: no second datacenter had it in time. It was not sent."
        case Kind.FAILED if "rule" in data:
            return f"Not sent: {data['detail']}."
        case Kind.FAILED:
            return f"Failed: {_why(event)}{code}, and no route is left."
        case Kind.ADOPTED if "from_dc" in data:
            return f"Taken over by {event.node} of {event.dc} after the loss of {data['from_dc']}."
        case Kind.ADOPTED:
            return f"Taken over by {event.node} from {data.get('from_node')} (term {data.get('from_epoch')})."
        case Kind.CANCELLED:
            return "Cancelled on request."
        case Kind.FEEDBACK:
            return f"Feedback: {data.get('outcome')}."
        case Kind.RESENT:
            return f"Sent anew, as {data.get('message', 'another message')}."
        case Kind.ERASED:
            why = "since their retention is over" if event.reason == "retention" else "on request"
            return f"Recipient, sender and text erased {why}; the proof stays."
        case Kind.GAP:
            return "What happened here is lost everywhere; the ledger says so."
        case Kind.RECEIVED:
            missing = "" if data.get("complete", True) else ", with parts missing"
            return f"Received from {data.get('connector')}{missing}.{_EFFECTS.get(_effect(data), '')}"
        case _:
            return event.kind.value.capitalize() + "."


def _decision(event: Event) -> dict[str, Any] | None:
    """Why the router chose this route, where a router that learns was asked."""
    record = (event.data or {}).get("decision")
    if record is None:
        return None
    try:
        return decision_view(record)
    except ValueError as error:
        return {"error": str(error)}


def summary(message: Message, events: list[Event], now: int) -> dict[str, Any]:
    """A message as a list shows it."""
    first = events[0].data or {}
    return {
        "id": message.mid,
        "tenant": message.tenant,
        "status": message.status_at(now).value,
        "direction": "inbound" if events[0].kind is Kind.RECEIVED else "outbound",
        "to": message.to or None,
        "from": message.sender or None,
        "class": message.cls or None,
        "encoding": message.encoding or None,
        "parts": len(message.parts) or first.get("parts", 0),
        "price": {"amount": first["price"], "currency": first["currency"]} if "price" in first else None,
        "route": message.route or first.get("planned_route"),
        "reason": message.reason or None,
        "reference": first.get("reference"),
        "accepted_at": iso(message.accepted_at),
        "updated_at": iso(message.updated_at),
        "send_at": iso(message.send_at) if message.send_at else None,
        "expires_at": iso(message.expires_at) if message.expires_at else None,
        "erased": message.erased,
    }


def detail(message: Message, events: list[Event], now: int) -> dict[str, Any]:
    """Everything about one message."""
    first = events[0].data or {}
    return {
        **summary(message, events, now),
        "body": message.body or None,
        "context": first.get("context", {}),
        "unknown_policy": message.unknown_policy or None,
        "durability": first.get("durability", "regional") if first else None,
        "attempts": message.attempt,
        "why": first.get("plan"),
        "feedback": message.feedback or None,
        "resent_from": first.get("resent_from"),
        "resent_as": message.resent_as or None,
        "part_states": [
            {
                "part": number,
                "state": part.state.value,
                "connector": part.connector or None,
                "carrier_id": part.cid or None,
                "attempts": part.attempt,
            }
            for number, part in enumerate(message.parts, 1)
        ],
        "timeline": [
            {
                "sequence": event.k,
                "kind": event.kind.value,
                "at": iso(event.at),
                "text": sentence(event, decision),
                "route": event.route,
                "reason": event.reason,
                "node": event.node,
                "datacenter": event.dc,
                "receipt": (event.data or {}).get("receipt"),
                "decision": decision,
            }
            for event, decision in [(event, _decision(event)) for event in events]
        ],
    }
