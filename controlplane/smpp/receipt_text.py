"""Reading delivery receipts: TLVs first, then the text of appendix B in the dialects that carriers write. Never raises, never drops.

The text form is a vendor's convention that the specification only quotes: `id:IIIIIIIIII sub:SSS dlvrd:DDD submit date:YYMMDDhhmm done date:YYMMDDhhmm
stat:DDDDDDD err:E text: …`. Seen in the field: other case, `submitdate:`, twelve-digit dates, ids of any length with letters and dashes, no text.
"""

from __future__ import annotations

import re

from controlplane.domain.receipt import Receipt
from controlplane.domain.text import decode
from controlplane.smpp.pdu import DataSm, DeliverSm
from controlplane.smpp.tlv import MESSAGE_STATE, NETWORK_ERROR_CODE, RECEIPTED_MESSAGE_ID

__all__ = ["is_receipt", "parse_receipt", "state_name"]

_STATES = {
    0: "SCHEDULED",
    1: "ENROUTE",
    2: "DELIVRD",
    3: "EXPIRED",
    4: "DELETED",
    5: "UNDELIV",
    6: "ACCEPTD",
    7: "UNKNOWN",
    8: "REJECTD",
    9: "SKIPPED",
}
"""message_state, SMPP 3.4 table 5-6 (and 5.0 for 0, 9)."""

_WORDS = {
    "DELIVERED": "DELIVRD",
    "DELIVRED": "DELIVRD",
    "DELIVERD": "DELIVRD",
    "UNDELIVERABLE": "UNDELIV",
    "UNDELIVERED": "UNDELIV",
    "UNDELIVRD": "UNDELIV",
    "UNDLVRD": "UNDELIV",
    "FAILED": "UNDELIV",
    "REJECTED": "REJECTD",
    "REJECTE": "REJECTD",
    "ACCEPTED": "ACCEPTD",
    "BUFFERED": "ENROUTE",
    "BUFFRED": "ENROUTE",
    "EN_ROUTE": "ENROUTE",
}

_FIELDS = re.compile(
    r"(?:^|[\s,;])(id|sub|dlvrd|submit[ _]?date|done[ _]?date|stat(?:us)?|err(?:or)?|text)\s*[:=]\s*", re.IGNORECASE
)
_USUAL = re.compile(
    r"id:(?P<id>[0-9A-Za-z-]+) sub:(?P<sub>\d+) dlvrd:(?P<dlvrd>\d+) submit date:(?P<submitdate>\d{6,14}) done date:(?P<donedate>\d{6,14})"
    r" stat:(?P<stat>[A-Z]+) err:(?P<err>[0-9A-Za-z]+) [Tt]ext:(?P<text>\S*)\Z"
).match
"""Appendix B to the letter, with a text of no spaces: what most receipts are, read in a tenth of the time."""
_DATE = re.compile(r"\d{6,14}")


def state_name(message_state: int) -> str:
    """SMPP's word for a message_state; UNKNOWN for what no specification names."""
    return _STATES.get(message_state, "UNKNOWN")


def is_receipt(pdu: DeliverSm | DataSm) -> bool:
    """Bits 2 to 5 of esm_class (section 5.2.12): delivery receipt (0x04), or intermediate notification (0x20). Others may be set beside them."""
    kind = pdu.esm_class & 0x3C
    if kind in (0x04, 0x20, 0x24):
        return True
    return pdu.esm_class & 0x3C == 0 and bool(pdu.tlvs) and RECEIPTED_MESSAGE_ID in (pdu.tlvs or {})


def parse_receipt(pdu: DeliverSm | DataSm) -> Receipt:
    """What can be read; with source `raw`, and all of the text, when that is neither an id nor a state."""
    text = decode(pdu.message, pdu.data_coding if pdu.data_coding == 8 else 3).replace("\x00", "")
    fields = _fields(text)
    tlvs = pdu.tlvs or {}
    tlv_id = tlvs.get(RECEIPTED_MESSAGE_ID, b"").split(b"\x00")[0].decode("latin-1").strip()
    tlv_state = tlvs.get(MESSAGE_STATE, b"")
    state = _STATES.get(tlv_state[0], "") if tlv_state else ""
    word = fields.get("stat", "").upper()
    state = state or _WORDS.get(word, word)
    message_id = tlv_id or fields.get("id", "")
    if not message_id and not state:
        return Receipt(id="", state="", text=text, source="raw")
    return Receipt(
        id=message_id,
        state=state,
        error=_error(tlvs.get(NETWORK_ERROR_CODE, b"")) or fields.get("err", ""),
        submit_date=fields.get("submitdate", ""),
        done_date=fields.get("donedate", ""),
        text=fields.get("text", ""),
        source="tlv" if tlv_id or tlv_state else "text",
    )


def _fields(text: str) -> dict[str, str]:
    """Fields by their short names; `text` has everything to the end."""
    usual = _USUAL(text)
    if usual is not None:
        return usual.groupdict()
    found: dict[str, str] = {}
    matches = list(_FIELDS.finditer(text))
    for position, match in enumerate(matches):
        name = match.group(1).lower().replace(" ", "").replace("_", "")
        name = {"status": "stat", "error": "err"}.get(name, name)
        if name == "text":
            found.setdefault("text", text[match.end() :].strip())
            break
        end = matches[position + 1].start() if position + 1 < len(matches) else len(text)
        value = text[match.end() : end].strip()
        if name.endswith("date"):
            date = _DATE.match(value)
            value = date.group() if date else value
        elif name != "id" or " " in value:
            value = value.split(" ")[0] if value else ""
        found.setdefault(name, value)
    return found


def _error(value: bytes) -> str:
    """network_error_code (section 5.3.2.31): network type and code, as `3:0042` → "66"."""
    return str(value[1] << 8 | value[2]) if len(value) >= 3 else ""
