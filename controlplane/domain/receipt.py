"""Delivery receipts (SMPP 3.4 appendix B) and the ids that join them to their submits.

Carriers write the same id differently in submit_sm_resp and in the receipt: hexadecimal here and decimal there, other case, leading zeros. The id of
the response is stored once, under `submit_key`; an id from a receipt is tried in several forms, `receipt_keys`, best guess first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from controlplane.domain.events import Kind

__all__ = ["FormatLearner", "Receipt", "kind_of", "reason_of", "receipt_keys", "submit_key"]

_KINDS = {
    "DELIVRD": Kind.DELIVERED,
    "UNDELIV": Kind.UNDELIVERED,
    "REJECTD": Kind.UNDELIVERED,
    "DELETED": Kind.UNDELIVERED,
    "EXPIRED": Kind.EXPIRED,
    "ACCEPTD": Kind.ENROUTE,
    "ENROUTE": Kind.ENROUTE,
    "SCHEDULED": Kind.ENROUTE,
}
_FORMS = ("as_is", "hex", "dec")
_CONFIRMATIONS = 3


class Receipt(NamedTuple):
    """What a carrier said of one part. `state` has SMPP's names (DELIVRD, UNDELIV …) where it could be read."""

    id: str
    state: str
    error: str = ""
    submit_date: str = ""
    done_date: str = ""
    text: str = ""
    source: str = "text"
    """Where it was read from: tlv, text, or raw (nothing could be read: `text` has it all)."""

    def as_data(self) -> dict[str, str]:
        """The receipt as an event's data."""
        return {
            "id": self.id,
            "state": self.state,
            "error": self.error,
            "submit_date": self.submit_date,
            "done_date": self.done_date,
            "text": self.text,
        }


def kind_of(state: str) -> Kind | None:
    """The event that a state means; None for UNKNOWN and for what no specification names: it settles nothing."""
    return _KINDS.get(state)


def reason_of(kind: Kind, receipt: Receipt) -> str | None:
    """What the event's `reason` says of a receipt: nothing for a delivery, else `carrier:<state>:<error>`."""
    if kind is Kind.DELIVERED:
        return None
    return f"carrier:{receipt.state or 'unreadable'}:{receipt.error}"[:64]


def _normal(raw: str) -> str:
    return raw.strip().lower().lstrip("0") or "0"


def submit_key(connector: str, raw: str) -> str:
    """The one key under which the id of a submit_sm_resp is stored: `<connector>/<lower case, no leading zeros>`."""
    return f"{connector}/{_normal(raw)}"


def _hex_of_decimal(raw: str) -> str | None:
    return f"{int(raw):x}" if raw.isascii() and raw.isdigit() else None


def _decimal_of_hex(raw: str) -> str | None:
    if raw and len(raw) <= 32 and all(c in "0123456789abcdefABCDEF" for c in raw):
        return str(int(raw, 16))
    return None


def _form(raw: str, form: str) -> str | None:
    """The response's id that `raw`, seen in a receipt, would stand for."""
    text = raw.strip()
    if form == "hex":  # response hexadecimal, receipt decimal
        return _hex_of_decimal(text)
    if form == "dec":  # response decimal, receipt hexadecimal
        return _decimal_of_hex(text)
    return text


def _key(connector: str, raw: str, form: str) -> str | None:
    value = _form(raw, form)
    return None if value is None else submit_key(connector, value)


def receipt_keys(connector: str, raw: str, fmt: str, order: tuple[str, ...] = _FORMS) -> Iterator[str]:
    """Keys to look an id of a receipt up by, best first (the first nearly always hits). `fmt` is Connector.receipt_id_format."""
    for form in order if fmt == "auto" else (fmt,):
        key = _key(connector, raw, form)
        if key is not None:
            yield key


class FormatLearner:
    """Which form a connector's receipts use. Learns from what matched; reorders the candidates, and never excludes one."""

    __slots__ = ("_seen", "ambiguous", "order")

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self.order: tuple[str, ...] = _FORMS
        """Forms, the one to try first in front; unchanged until one was confirmed three times."""
        self.ambiguous = 0
        """Matches that more than one form would have given: they teach nothing."""

    def observe(self, connector: str, raw: str, matched: str) -> None:
        """The receipt's id `raw` belonged to the message stored under the key `matched`."""
        if self._seen[self.order[0]] >= _CONFIRMATIONS and _key(connector, raw, self.order[0]) == matched:
            return  # what we think already
        forms = [form for form in _FORMS if _key(connector, raw, form) == matched]
        if len(forms) == 1:
            self._seen[forms[0]] += 1
            confirmed = {form: n for form, n in self._seen.items() if n >= _CONFIRMATIONS}
            self.order = tuple(sorted(_FORMS, key=lambda form: -confirmed.get(form, 0)))
        elif forms:
            self.ambiguous += 1
