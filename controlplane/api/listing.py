"""`GET /v1/messages` and `/v1/messages.csv`: the caller's query, from the search box's language or from single parameters."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse

from controlplane.api.auth import Caller, requires
from controlplane.api.cursor import open_cursor, seal_cursor
from controlplane.api.problems import invalid
from controlplane.api.reading import services_of, time_of
from controlplane.api.services import Services
from controlplane.api.story import summary
from controlplane.api.times import iso
from controlplane.domain import query as language
from controlplane.domain.address import normalise_recipient
from controlplane.domain.catalog import Scope
from controlplane.domain.events import Event
from controlplane.domain.message import Message, Status
from controlplane.errors import FieldError, Problem
from controlplane.store.search_read import Found, Place

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["messages"])

_PAGE = 500
_COLUMNS = (
    "id",
    "accepted_at",
    "updated_at",
    "direction",
    "status",
    "reason",
    "to",
    "from",
    "class",
    "encoding",
    "parts",
    "price",
    "currency",
    "route",
    "reference",
    "body",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a cell for a formula (OWASP, CSV Injection)."""

_Text = Annotated[
    str | None,
    Query(
        max_length=language.MAX_LENGTH,
        description="Filters and words of the text, such as `to:+4915* status:failed,expired ref:order-* after:7d invoice`. "
        + "; ".join(f"`{name}:` {what}" for name, what in language.TOPICS.items())
        + '. Words are compared whole, without case and accents; `"a: b"` keeps colons out of the filters.',
        examples=["status:failed after:7d"],
    ),
]
_Status = Annotated[Status | None, Query(description="Only messages with this status now.")]
_To = Annotated[str | None, Query(max_length=40, description="Only to this number.")]
_Reference = Annotated[str | None, Query(max_length=100, description="Only with this reference.")]
_Since = Annotated[str | None, Query(max_length=40, description="Accepted at or after, RFC 3339.")]
_Until = Annotated[str | None, Query(max_length=40, description="Accepted before, RFC 3339.")]
_Tenant = Annotated[str | None, Query(max_length=64, description="Another tenant's, or `*` for all: scope admin.")]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A list: what is looked for, among whose messages."""

    services: Services
    query: language.Query
    tenants: frozenset[str]
    context: str
    """What its cursors are bound to."""

    async def page(self, place: Place | None, limit: int) -> Found:
        """Its messages beyond `place`."""
        return await self.services.search.page(self.query, self.tenants, place, limit)


async def _asked(
    request: Request,
    caller: Annotated[Caller, Depends(requires(Scope.MESSAGES_READ))],
    q: _Text = None,
    status: _Status = None,
    to: _To = None,
    reference: _Reference = None,
    since: _Since = None,
    until: _Until = None,
    tenant: _Tenant = None,
) -> _Asked:
    services = services_of(request)
    query = language.Query()
    if q is not None:
        try:
            query = language.parse(q, services.clock.now_ms())
        except language.QueryError as error:
            raise invalid([FieldError("q", f"at character {error.at + 1}: {error}")]) from None
    given: dict[str, Any] = {
        "statuses": frozenset({status}) if status else None,
        "to": _number(to),
        "reference": language.Match(reference) if reference is not None else None,
        "after": time_of("since", since),
        "before": time_of("until", until),
        "tenant": tenant,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    both = [name for name in chosen if getattr(query, name)]
    if both:
        raise invalid([FieldError("q", f"says {_NAMES[name]} as the parameters do; give it once") for name in both])
    query = replace(query, **chosen)
    if status is Status.RECEIVED:
        query = replace(query, direction=language.Direction.IN)
    tenants = _tenants(services, caller, query.tenant)
    parameters = (q, status, to, reference, since, until, query.tenant)
    return _Asked(services, query, tenants, f"messages|{caller.tenant.id}|{parameters}")


_NAMES = {
    "statuses": "status",
    "to": "to",
    "reference": "ref",
    "after": "after",
    "before": "before",
    "tenant": "tenant",
}
_List = Annotated[_Asked, Depends(_asked)]


def _number(to: str | None) -> language.Match | None:
    if to is None:
        return None
    try:
        return language.Match(normalise_recipient(to)[1:], number=True)
    except ValueError as error:
        raise invalid([FieldError("to", str(error))]) from None


def _tenants(services: Services, caller: Caller, wanted: str | None) -> frozenset[str]:
    known = frozenset(services.catalog.snapshot.tenants)
    if wanted is None and caller.everywhere:
        return known
    if wanted in (None, caller.tenant.id):
        return frozenset({caller.tenant.id})
    if not (caller.admin or caller.everywhere):
        raise Problem(
            "forbidden",
            "Scope missing",
            403,
            "Only a key with the scope admin lists another tenant's messages.",
            "Leave `tenant` out, or use an admin's key.",
        )
    if wanted == "*":
        return known
    if wanted not in known:
        raise invalid([FieldError("tenant", f"there is no tenant {wanted!r}; GET /v1/tenants lists them")])
    return frozenset({wanted or ""})


@router.get("/messages", operation_id="listMessages", summary="List and search messages, newest first")
async def list_messages(
    asked: _List,
    cursor: Annotated[str | None, Query(max_length=500, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> dict[str, Any]:
    """Everything given must hold. A page may be shorter than `limit` and still have a `next`: follow it until it is null.

    Messages accepted before `indexed_until` are found by an index, later ones by looking at each; what has become of a message since then is found when the index has it.
    """
    services, secret = asked.services, asked.services.settings.secret
    position = open_cursor(secret, asked.context, cursor) if cursor else None
    page = await asked.page((position[0], position[1]) if position else None, limit)
    now = services.clock.now_ms()
    return {
        "data": [summary(message, events, now) for message, events in page.items],
        "next": seal_cursor(secret, asked.context, page.next) if page.next else None,
        "indexed_until": iso(page.indexed_until) if page.indexed_until else None,
    }


@router.get(
    "/messages.csv",
    operation_id="exportMessages",
    summary="The same as CSV (RFC 4180), all of it",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}}, "description": "One line a message, newest first."}},
)
async def export_messages(asked: _List) -> StreamingResponse:
    """A cell that a spreadsheet would take for a formula begins with an apostrophe. What is accepted while it runs is not in it."""
    first = await asked.page(None, _PAGE)  # what goes wrong at the start is a problem document, not half a file
    headers = {"Content-Disposition": 'attachment; filename="messages.csv"', "Cache-Control": "no-store"}
    return StreamingResponse(_lines(asked, first), media_type="text/csv; charset=utf-8", headers=headers)


async def _lines(asked: _Asked, page: Found) -> AsyncIterator[str]:
    """A page at a time: what is in memory does not grow with the list."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    while True:
        now = asked.services.clock.now_ms()
        for message, events in page.items:
            writer.writerow(_cells(message, events, now))
        yield text.getvalue()
        text.seek(0)
        text.truncate()
        if page.next is None:
            return
        page = await asked.page(page.next, _PAGE)


def _cells(message: Message, events: list[Event], now: int) -> list[str]:
    row = summary(message, events, now)
    row |= {"body": message.body, "price": None, **({} if row["price"] is None else _price(row["price"]))}
    return [_cell(row.get(name)) for name in _COLUMNS]


def _price(price: dict[str, Any]) -> dict[str, Any]:
    return {"price": price["amount"], "currency": price["currency"]}


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return "'" + text if text.startswith(_FORMULA) else text
