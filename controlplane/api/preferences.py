"""Suppressions and preferences of a tenant's recipients. Numbers come in, are kept as a keyed hash, and are shown masked. Changes count on all nodes within 2 s."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from controlplane.api.auth import Caller, requires
from controlplane.api.bodies import JSON, NDJSON, lines, media_type
from controlplane.api.consent import record_id
from controlplane.api.cursor import open_cursor, seal_cursor
from controlplane.api.problems import document, invalid, request_id
from controlplane.api.quiet import WindowBody, windows_of, windows_view
from controlplane.api.reading import services_of
from controlplane.api.submission import malformed
from controlplane.api.times import iso
from controlplane.domain.address import classify_sender, normalise_recipient
from controlplane.domain.catalog import MessageClass, Scope
from controlplane.domain.preferences import COVERED, Preference, Reason, Suppression
from controlplane.domain.quiet import Action, QuietHours, is_time_zone
from controlplane.errors import FieldError, Problem
from controlplane.store.preferences import NewSuppression, Wishes, Written

__all__ = ["MAX_IMPORT", "router"]

router = APIRouter(prefix="/v1")

MAX_IMPORT = 10_000
_TURN = 500
"""Items that are checked before the loop may do something else."""
_ID = re.compile(r"(sup|pref)_([0-9a-f]{32}(?:[0-9a-f]{8})?)")

Reader = Annotated[Caller, Depends(requires(Scope.MESSAGES_READ))]
Writer = Annotated[Caller, Depends(requires(Scope.MESSAGES_WRITE))]
Cursor = Annotated[str | None, Query(max_length=500)]
Limit = Annotated[int, Query(ge=1, le=1000)]
RecipientFilter = Annotated[str | None, Query(max_length=40, description="Only of this number.")]
B = TypeVar("B", bound="_Body")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _OfRecipient(_Body):
    recipient: Annotated[str, Field(min_length=1, max_length=40, description="International: +4915112345678.")]

    @field_validator("recipient")
    @classmethod
    def _number(cls, value: str) -> str:
        return normalise_recipient(value)


def _sender(value: str) -> str:
    if value:
        classify_sender(value)
    return value


# -- suppressions --------------------------------------------------------------------------------------------------------


class NewSuppressionBody(_OfRecipient):
    """A recipient to whom nothing must be sent."""

    reason: Reason = Reason.MANUAL
    sender: Annotated[
        str, Field(max_length=20, description="Only messages from this sender, and those that name none; empty: all.")
    ] = ""
    classes: Annotated[
        set[MessageClass] | None,
        Field(
            min_length=1,
            description="What it covers; by default transactional and marketing for opt_out and complaint, all classes for invalid and manual.",
        ),
    ] = None
    source: Annotated[
        str, Field(max_length=100, description="Where it comes from, in your words. No personal data.")
    ] = ""

    _check_sender = field_validator("sender")(_sender)

    def record(self) -> NewSuppression:
        """To be stored."""
        covered = COVERED[self.reason] if self.classes is None else {cls.value for cls in self.classes}
        return NewSuppression(
            to=self.recipient,
            reason=self.reason,
            classes=frozenset(covered),
            sender=self.sender,
            source=self.source,
        )


def _suppression_view(item: Suppression) -> dict[str, Any]:
    return {
        "id": record_id(item.id),
        "recipient": item.recipient,
        "reason": item.reason.value,
        "sender": item.sender or None,
        "classes": sorted(item.classes),
        "source": item.source or None,
        "created_at": iso(item.at),
    }


@router.get("/suppressions", tags=["suppressions"], operation_id="listSuppressions", summary="Who gets nothing")
async def list_suppressions(
    request: Request,
    caller: Reader,
    recipient: RecipientFilter = None,
    reason: Reason | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """The tenant's, newest first."""
    services, to = services_of(request), _recipient(recipient)
    secret, context = services.settings.secret, f"suppressions|{caller.tenant.id}|{to}|{reason}"
    items = await services.recipients.store.suppressions(
        caller.tenant.id, to=to, reason=reason or "", before=_before(secret, context, cursor), limit=limit
    )
    return {
        "data": [_suppression_view(item) for item in items],
        "next": seal_cursor(secret, context, [items[-1].at, items[-1].id]) if len(items) == limit else None,
    }


@router.post(
    "/suppressions",
    status_code=201,
    responses={200: {"description": "It was there; it has the new classes and source."}},
    tags=["suppressions"],
    operation_id="createSuppression",
    summary="Suppress a recipient",
)
async def create_suppression(
    request: Request, body: NewSuppressionBody, caller: Writer, response: Response
) -> dict[str, Any]:
    """One for each recipient, reason and sender. Waiting messages to the recipient fail when their time comes."""
    store = services_of(request).recipients.store
    (written,) = await store.suppress(caller.tenant.id, [body.record()])
    await services_of(request).recipients.refresh()
    response.status_code = 201 if written.created else 200
    return _suppression_view(_found(await store.suppression(caller.tenant.id, written.id), "suppression"))


def _import_body(model: str) -> dict[str, Any]:
    item = {"$ref": f"#/components/schemas/{model}"}
    items = {"type": "array", "minItems": 1, "maxItems": MAX_IMPORT, "items": item}
    schema = {
        "type": "object",
        "required": ["items"],
        "additionalProperties": False,
        "properties": {"items": items},
    }
    example = {"recipient": "+4915112345678"}
    content = {
        "application/json": {"schema": schema, "example": {"items": [example]}},
        NDJSON[0]: {"schema": {"type": "string"}, "example": json.dumps(example)},
    }
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/suppressions/import",
    tags=["suppressions"],
    operation_id="importSuppressions",
    summary="Suppress up to 10,000 recipients",
    openapi_extra=_import_body("NewSuppressionBody"),
)
async def import_suppressions(request: Request, caller: Writer) -> dict[str, Any]:
    """A suppression a line, or `{"items": [...]}`, each with its own result, in order; a bad one never spoils the others."""
    store = services_of(request).recipients.store

    async def write(bodies: Sequence[NewSuppressionBody]) -> list[Written]:
        return await store.suppress(caller.tenant.id, [body.record() for body in bodies])

    return await _import(request, NewSuppressionBody, write)


@router.get("/suppressions/{suppression_id}", tags=["suppressions"], operation_id="getSuppression")
async def get_suppression(request: Request, suppression_id: str, caller: Reader) -> dict[str, Any]:
    """One suppression."""
    store = services_of(request).recipients.store
    identity = _identity("sup", suppression_id, "suppression")
    return _suppression_view(_found(await store.suppression(caller.tenant.id, identity), "suppression"))


@router.delete(
    "/suppressions/{suppression_id}", status_code=204, tags=["suppressions"], operation_id="deleteSuppression"
)
async def delete_suppression(request: Request, suppression_id: str, caller: Writer) -> None:
    """Lift it. Only with the recipient's consent where the recipient asked for it."""
    recipients = services_of(request).recipients
    if not await recipients.store.lift(caller.tenant.id, _identity("sup", suppression_id, "suppression")):
        raise _no_such("suppression")
    await recipients.refresh()


# -- preferences ---------------------------------------------------------------------------------------------------------


class RecipientQuietHours(_Body):
    """When the recipient does not want to be disturbed."""

    windows: Annotated[list[WindowBody], Field(min_length=1, max_length=20)]
    actions: Annotated[
        dict[MessageClass, Action],
        Field(
            min_length=1,
            description="What becomes of each class; one that is not named is sent. One-time passwords are not, by default.",
        ),
    ] = Field(default_factory=lambda: {MessageClass.TRANSACTIONAL: Action.HOLD, MessageClass.MARKETING: Action.HOLD})


class PreferenceBody(_Body):
    """What a recipient wishes."""

    time_zone: Annotated[
        str,
        Field(max_length=60, description="IANA name, such as Europe/Berlin; empty: the zones of the number's range."),
    ] = ""
    quiet_hours: Annotated[
        RecipientQuietHours | None, Field(description="In addition to the tenant's for the class.")
    ] = None
    sender: Annotated[
        str, Field(max_length=20, description="Used where a message names none, if a route can carry it.")
    ] = ""
    blocked_classes: Annotated[set[MessageClass], Field(description="Never sent.")] = Field(default_factory=set)
    source: Annotated[
        str, Field(max_length=100, description="Where it comes from, in your words. No personal data.")
    ] = ""

    _check_sender = field_validator("sender")(_sender)

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        if value and not is_time_zone(value):
            raise ValueError("must be a name of the IANA time zone database, such as Europe/Berlin")
        return value

    def wishes(self) -> Wishes:
        """To be stored."""
        quiet = self.quiet_hours
        windows = windows_of(quiet.windows) if quiet is not None else ()
        actions = quiet.actions if quiet is not None else {}
        return Wishes(
            time_zone=self.time_zone,
            quiet_hours={cls.value: QuietHours(windows, action.value) for cls, action in actions.items()},
            sender=self.sender,
            blocked=frozenset(cls.value for cls in self.blocked_classes),
            source=self.source,
        )


class NewPreferenceBody(PreferenceBody, _OfRecipient):
    """A recipient and what it wishes."""


def _preference_view(item: Preference) -> dict[str, Any]:
    quiet = None
    if item.quiet_hours:
        windows = next(iter(item.quiet_hours.values())).windows
        actions = {cls: hours.action for cls, hours in item.quiet_hours.items()}
        quiet = {"windows": windows_view(windows), "actions": actions}
    return {
        "id": record_id(item.id),
        "recipient": item.recipient,
        "time_zone": item.time_zone or None,
        "quiet_hours": quiet,
        "sender": item.sender or None,
        "blocked_classes": sorted(item.blocked),
        "source": item.source or None,
        "created_at": iso(item.at),
    }


@router.get("/preferences", tags=["preferences"], operation_id="listPreferences", summary="What recipients wish")
async def list_preferences(
    request: Request,
    caller: Reader,
    recipient: RecipientFilter = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """The tenant's, newest first."""
    services, to = services_of(request), _recipient(recipient)
    secret, context = services.settings.secret, f"preferences|{caller.tenant.id}|{to}"
    items = await services.recipients.store.preferences(
        caller.tenant.id, to=to, before=_before(secret, context, cursor), limit=limit
    )
    return {
        "data": [_preference_view(item) for item in items],
        "next": seal_cursor(secret, context, [items[-1].at, items[-1].id]) if len(items) == limit else None,
    }


@router.post(
    "/preferences",
    status_code=201,
    responses={200: {"description": "The recipient had one; it is replaced."}},
    tags=["preferences"],
    operation_id="createPreference",
    summary="Record what a recipient wishes",
)
async def create_preference(
    request: Request, body: NewPreferenceBody, caller: Writer, response: Response
) -> dict[str, Any]:
    """One for each recipient."""
    store = services_of(request).recipients.store
    (written,) = await store.prefer(caller.tenant.id, [(body.recipient, body.wishes())])
    await services_of(request).recipients.refresh()
    response.status_code = 201 if written.created else 200
    return _preference_view(_found(await store.preference(caller.tenant.id, written.id), "preference"))


@router.post(
    "/preferences/import",
    tags=["preferences"],
    operation_id="importPreferences",
    summary="Record what up to 10,000 recipients wish",
    openapi_extra=_import_body("NewPreferenceBody"),
)
async def import_preferences(request: Request, caller: Writer) -> dict[str, Any]:
    """A preference a line, or `{"items": [...]}`, each with its own result, in order; a bad one never spoils the others."""
    store = services_of(request).recipients.store

    async def write(bodies: Sequence[NewPreferenceBody]) -> list[Written]:
        return await store.prefer(caller.tenant.id, [(body.recipient, body.wishes()) for body in bodies])

    return await _import(request, NewPreferenceBody, write)


@router.get("/preferences/{preference_id}", tags=["preferences"], operation_id="getPreference")
async def get_preference(request: Request, preference_id: str, caller: Reader) -> dict[str, Any]:
    """One preference."""
    store = services_of(request).recipients.store
    identity = _identity("pref", preference_id, "preference")
    return _preference_view(_found(await store.preference(caller.tenant.id, identity), "preference"))


@router.put("/preferences/{preference_id}", tags=["preferences"], operation_id="replacePreference")
async def replace_preference(
    request: Request, preference_id: str, body: PreferenceBody, caller: Writer
) -> dict[str, Any]:
    """The whole preference."""
    recipients = services_of(request).recipients
    identity = _identity("pref", preference_id, "preference")
    if not await recipients.store.change(caller.tenant.id, identity, body.wishes()):
        raise _no_such("preference")
    await recipients.refresh()
    return _preference_view(_found(await recipients.store.preference(caller.tenant.id, identity), "preference"))


@router.delete("/preferences/{preference_id}", status_code=204, tags=["preferences"], operation_id="deletePreference")
async def delete_preference(request: Request, preference_id: str, caller: Writer) -> None:
    """Forget it."""
    recipients = services_of(request).recipients
    if not await recipients.store.forget(caller.tenant.id, _identity("pref", preference_id, "preference")):
        raise _no_such("preference")
    await recipients.refresh()


# -- both ----------------------------------------------------------------------------------------------------------------


def _recipient(value: str | None) -> str:
    if not value:
        return ""
    try:
        return normalise_recipient(value)
    except ValueError as error:
        raise invalid([FieldError("recipient", str(error))]) from None


def _before(secret: bytes, context: str, cursor: str | None) -> tuple[int, str] | None:
    if not cursor:
        return None
    at, identity = open_cursor(secret, context, cursor)
    return at, identity


def _identity(prefix: str, name: str, noun: str) -> str:
    match = _ID.fullmatch(name)
    if match is None or match[1] != prefix:
        raise _no_such(noun)
    return match[2]


F = TypeVar("F", Suppression, Preference)


def _found(item: F | None, noun: str) -> F:
    if item is None:
        raise _no_such(noun)
    return item


def _no_such(noun: str) -> Problem:
    return Problem(
        "not-found",
        f"No such {noun}",
        404,
        f"There is no {noun} of yours with this id.",
        f"GET /v1/{noun}s lists what there is; `recipient` finds those of one number.",
    )


async def _import(
    request: Request, kind: type[B], write: Callable[[Sequence[B]], Awaitable[list[Written]]]
) -> dict[str, Any]:
    items = _given(request, await request.body())
    results: list[dict[str, Any]] = []
    good: list[tuple[int, B]] = []
    for index, item in enumerate(items):
        results.append({"index": index})
        try:
            good.append((index, kind.model_validate_json(item)))
        except ValidationError as error:
            problem = invalid(_field_errors(error))
            results[index]["error"] = document(problem, request.url.path, request_id(request.scope))
        if index % _TURN == _TURN - 1:
            await asyncio.sleep(0)
    if good:
        written = await write([body for _, body in good])
        for (index, _), one in zip(good, written, strict=True):
            results[index] |= {"id": record_id(one.id), "created": one.created}
        await services_of(request).recipients.refresh()
    return {"imported": len(good), "rejected": len(items) - len(good), "results": results}


class _Items(msgspec.Struct, forbid_unknown_fields=True):
    items: list[msgspec.Raw]


def _given(request: Request, body: bytes) -> list[bytes]:
    media = media_type(request.headers.get("content-type", ""), (NDJSON[0], JSON, *NDJSON[1:]))
    if media == JSON:
        try:
            items = [bytes(item) for item in msgspec.json.decode(body, type=_Items).items]
        except msgspec.ValidationError as error:
            raise invalid([FieldError("", str(error))]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(str(error)) from None
    else:
        items = lines(body)
    if not 1 <= len(items) <= MAX_IMPORT:
        raise invalid([FieldError("", f"must have 1 to {MAX_IMPORT} items; it has {len(items)}")])
    return items


def _field_errors(error: ValidationError) -> list[FieldError]:
    return [
        FieldError("".join(f"/{part}" for part in item["loc"]), str(item["msg"]))
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
