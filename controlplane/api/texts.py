"""What a text becomes on the air; nothing is sent."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from controlplane.api.auth import Caller, requires
from controlplane.api.problems import invalid
from controlplane.domain.catalog import Scope
from controlplane.domain.text import MAX_PARTS, Analysis, Encoding, analyse, offences, room
from controlplane.errors import FieldError

__all__ = ["router"]

router = APIRouter(prefix="/v1/texts", tags=["messages"])

_OFFENCES = 200


class Text(BaseModel):
    """A text that is not sent."""

    model_config = ConfigDict(extra="forbid")
    body: Annotated[str, Field(max_length=40_000)]
    smart_encoding: Annotated[
        bool | None,
        Field(description="Replace typographic characters that alone would force UCS-2; null: the tenant's."),
    ] = None


@router.post("", operation_id="analyseText", summary="Encoding, parts and offending characters of a text")
async def analyse_text(
    _request: Request, body: Text, caller: Annotated[Caller, Depends(requires(Scope.MESSAGES_WRITE))]
) -> dict[str, Any]:
    """By the same code as the acceptance. `left`: units (septets of gsm7, UTF-16 units of ucs2) before another part is needed."""
    if any(0xD800 <= ord(char) <= 0xDFFF for char in body.body):
        raise invalid([FieldError("/body", "has half of a surrogate pair")])
    smart = caller.tenant.smart_encoding if body.smart_encoding is None else body.smart_encoding
    found = analyse(body.body, smart=smart)
    offending = offences(body.body, _OFFENCES)
    smarter = None
    if offending and not smart:
        tried = analyse(body.body, smart=True)
        smarter = _view(tried) if tried.encoding is Encoding.GSM7 else None
    return {
        **_view(found),
        "characters": len(body.body),
        "sendable": found.parts <= MAX_PARTS,
        "smart_encoding": smart,
        "replaced": found.replaced,
        "offending": [
            {
                "position": item.position,
                "character": item.character,
                "code": f"U+{ord(item.character):04X}",
                "suggestion": item.suggestion,
            }
            for item in offending
        ],
        "with_smart_encoding": smarter,
    }


def _view(found: Analysis) -> dict[str, Any]:
    return {
        "body": found.body,
        "encoding": found.encoding.value,
        "parts": found.parts,
        "units": found.units,
        "per_part": found.per_part,
        "left": room(found),
    }
