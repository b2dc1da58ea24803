"""Opaque cursors: where a list goes on. Bound to the tenant and the filters, so that one cannot be used for another list."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

from controlplane.api.problems import invalid
from controlplane.errors import FieldError

__all__ = ["open_cursor", "seal_cursor"]

_TAG = 12


def _tag(secret: bytes, context: str, body: bytes) -> bytes:
    return hmac.digest(secret, b"cursor\x00" + context.encode() + b"\x00" + body, "sha256")[:_TAG]


def seal_cursor(secret: bytes, context: str, position: Any) -> str:
    """`position` (JSON) as text for the client. `context` names the list: tenant and filters."""
    body = json.dumps(position, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_tag(secret, context, body) + body).decode("ascii").rstrip("=")


def open_cursor(secret: bytes, context: str, cursor: str) -> Any:
    """The position. Raises Problem 422 for a cursor that is not ours, or of another list."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        tag, body = raw[:_TAG], raw[_TAG:]
        if hmac.compare_digest(tag, _tag(secret, context, body)):
            return json.loads(body)
    except ValueError:
        pass
    raise invalid(
        [FieldError("cursor", "is not a cursor of this list; use the `next` of the page before, with the same filters")]
    )
