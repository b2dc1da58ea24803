"""A connector as a form, and back: pure. Whether values are right is for the API to say; here only what is no number is told."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import FormData

__all__ = ["CHOICES", "DEFAULTS", "read_connector"]

DEFAULTS: dict[str, Any] = {
    "name": "",
    "host": "",
    "port": 2775,
    "system_id": "",
    "system_type": "",
    "bind_type": "trx",
    "binds": 1,
    "max_binds": 0,
    "window": 10,
    "rate": 100,
    "tls": False,
    "tls_verify": True,
    "tls_ca": "",
    "tls_server_name": "",
    "enquire_link_seconds": 30,
    "response_seconds": 30,
    "source_ton": -1,
    "source_npi": -1,
    "dest_ton": 1,
    "dest_npi": 1,
    "service_type": "",
    "default_alphabet": "gsm7",
    "long_messages": "udh8",
    "registered_delivery": 1,
    "receipt_id_format": "auto",
    "send_validity": True,
    "query_sm": False,
    "tenant": "",
    "enabled": True,
}
"""What most accounts need."""
CHOICES = {
    "bind_type": [
        ("trx", "transceiver: sends and receives"),
        ("tx", "transmitter: only sends"),
        ("rx", "receiver: only receives"),
    ],
    "default_alphabet": [("gsm7", "GSM 7-bit"), ("latin1", "Latin-1")],
    "long_messages": [
        ("udh8", "UDH, 8-bit reference"),
        ("udh16", "UDH, 16-bit reference"),
        ("sar", "SAR parameters"),
        ("payload", "message_payload"),
    ],
    "registered_delivery": [("1", "final ones"), ("17", "intermediate ones too")],
    "receipt_id_format": [
        ("auto", "found out"),
        ("as_is", "as in the response"),
        ("hex", "receipt decimal, response hexadecimal"),
        ("dec", "receipt hexadecimal, response decimal"),
    ],
}
_FLAGS = ("tls", "tls_verify", "send_validity", "query_sm", "enabled")
_WHOLE = (
    "port",
    "binds",
    "max_binds",
    "window",
    "source_ton",
    "source_npi",
    "dest_ton",
    "dest_npi",
    "registered_delivery",
)
_NUMBERS = ("rate", "enquire_link_seconds", "response_seconds")
_KEPT_AS_TYPED = ("password", "tls_ca")


def read_connector(form: FormData, *, new: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """(the API's body, field → what is wrong with it). An empty password is null: the stored one stays."""
    body: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name in (*DEFAULTS, "password"):
        if name == "name" and not new:
            continue
        text = str(form.get(name, ""))
        given = text if name in _KEPT_AS_TYPED else text.strip()
        if name in _FLAGS:
            body[name] = name in form
        elif name in _WHOLE or name in _NUMBERS:
            try:
                body[name] = int(given) if name in _WHOLE else float(given)
            except ValueError:
                body[name], errors[name] = given, "is not a whole number" if name in _WHOLE else "is not a number"
        else:
            body[name] = given
    body["password"] = body["password"] or None
    return body, errors
