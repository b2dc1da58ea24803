"""The hot path: `POST /v1/messages` and `POST /v1/batches`, decoded by msgspec, without dependency injection, without a task a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controlplane.api.acceptance import Acceptance, Accepted, Item, Outcome, as_problem, dry
from controlplane.api.auth import Caller, authenticate
from controlplane.api.bodies import JSON, NDJSON, lines, media_type
from controlplane.api.problems import document, invalid, render, request_id
from controlplane.api.submission import BatchItem, check_key, decode_item, malformed
from controlplane.domain.catalog import Scope as KeyScope
from controlplane.domain.preferences import Standing
from controlplane.errors import FieldError, Problem, StoreUnavailableError, bare

__all__ = ["MAX_BATCH", "Handler", "Respond", "hot_handlers", "hot_routes"]

MAX_BATCH = 10_000
_CALLERS = 10_000
_MESSAGES = "/v1/messages"
_BATCHES = "/v1/batches"
_encode = msgspec.json.Encoder().encode

Answer = tuple[int, dict[str, str], bytes]
Respond = Callable[[int, dict[str, str], bytes], None]
Handler = Callable[[dict[bytes, bytes], bytes, str, Respond], None]
"""(headers, body, request id, respond): `respond` is called once with status, headers and body, at once or when the commit is durable."""


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[msgspec.Raw]


_batch_decoder = msgspec.json.Decoder(_Batch)


class _Endpoint:
    """A handler as raw ASGI."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]  # the envelope has read it whole, bounded
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def respond(status: int, headers: dict[str, str], body: bytes) -> None:
            if not answered.done():
                answered.set_result((status, headers, body))

        self._handler(dict(scope["headers"]), body, request_id(scope), respond)
        status, headers, answer = await answered
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": answer})


def hot_handlers(acceptance: Acceptance) -> dict[bytes, Handler]:
    """Path → handler of its POST."""
    hot = _Hot(acceptance)
    return {_MESSAGES.encode(): hot.message, _BATCHES.encode(): hot.batch}


def hot_routes(handlers: dict[bytes, Handler]) -> list[Route]:
    """The same for the application, which meets them where the server does not take them itself (api.server)."""
    return [Route(path.decode(), endpoint=_Endpoint(handler), methods=["POST"]) for path, handler in handlers.items()]


class _Hot:
    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._services = acceptance.services
        self._limiter = acceptance.limiter
        self._callers: dict[bytes, Caller] = {}
        """By Authorization header: checked once for each version of the catalog."""
        self._known_at = self._services.catalog.snapshot

    def _caller(self, headers: dict[bytes, bytes]) -> Caller:
        snapshot = self._services.catalog.snapshot
        if snapshot is not self._known_at or len(self._callers) >= _CALLERS:
            self._callers, self._known_at = {}, snapshot
        value = headers.get(b"authorization", b"")
        caller = self._callers.get(value)
        if caller is None:
            caller = authenticate(self._services, value.decode("latin-1"), KeyScope.MESSAGES_WRITE)
            if value[:7].lower() == b"bearer ":  # what people are granted ends with the call
                self._callers[value] = caller
        return caller

    def message(self, headers: dict[bytes, bytes], body: bytes, rid: str, respond: Respond) -> None:
        """One message."""
        try:
            caller = self._caller(headers)
            _media_type(headers, (JSON,))
            item = Item(decode_item(body), _key(headers))
            item.standing = self._acceptance.standing(caller, item.request)
            if item.standing is not None:
                self._accept(item, caller, rid, respond)
            else:
                known = partial(self._known, item, caller, rid, respond)
                self._services.recipients.read_soon([(caller.tenant.id, item.request.to)], known)
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            respond(*_problem(error, _MESSAGES, rid))

    def _known(
        self, item: Item, caller: Caller, rid: str, respond: Respond, outcome: list[Standing] | StoreUnavailableError
    ) -> None:
        """The recipient has been read."""
        if isinstance(outcome, StoreUnavailableError):
            respond(*_problem(outcome, _MESSAGES, rid))
            return
        item.standing = outcome[0]
        try:
            self._accept(item, caller, rid, respond)
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            respond(*_problem(error, _MESSAGES, rid))

    def _accept(self, item: Item, caller: Caller, rid: str, respond: Respond) -> None:
        try:
            prepared = self._acceptance.prepare(item, caller)
        except Problem as problem:
            if not item.key:
                raise
            tell = partial(self._told, rid, self._limiter.take(caller, 1), respond)
            self._acceptance.refuse([(item, bare(problem), tell)], caller)
            return
        tell = partial(self._told, rid, self._limiter.take(caller, 1), respond)
        if prepared.dry_run:
            tell(dry(prepared))
        else:
            self._services.book.accept_soon(prepared.draft, partial(self._acceptance.settled, prepared, tell))

    @staticmethod
    def _told(rid: str, limits: dict[str, str], respond: Respond, outcome: Outcome) -> None:
        """What became of it."""
        if not isinstance(outcome, Accepted):
            respond(*_problem(outcome, _MESSAGES, rid))
            return
        headers = {"content-type": JSON, **limits}
        if outcome.replayed:
            headers["idempotent-replayed"] = "true"
        if not outcome.dry_run:
            headers["location"] = f"{_MESSAGES}/{outcome.answer['id']}"
        respond(200 if outcome.dry_run else 202, headers, _encode(outcome.answer))

    def batch(self, headers: dict[bytes, bytes], body: bytes, rid: str, respond: Respond) -> None:
        """Up to 10,000 messages, each with its own result."""
        try:
            caller = self._caller(headers)
            media = _media_type(headers, (JSON, *NDJSON))
            key = _key(headers)
            raws = _counted(lines(body) if media in NDJSON else _items(body))
            limits = self._limiter.take(caller, len(raws))
            refused: dict[int, Problem] = {}
            items: list[Item] = []
            for index, raw in enumerate(raws):
                try:
                    items.append(self._item(raw, caller, key, index))
                except Problem as problem:
                    refused[index] = bare(problem)
            told = partial(self._all_told, refused, rid, limits, respond)
            if items:
                self._acceptance.accept_all(items, caller, told)
            else:
                told([])
        except Exception as error:  # noqa: BLE001
            respond(*_problem(error, _BATCHES, rid))

    def _item(self, raw: bytes | msgspec.Raw, caller: Caller, key: str, index: int) -> Item:
        request: BatchItem = decode_item(raw, BatchItem)
        own = request.idempotency_key
        if own:
            check_key(own)
            request = msgspec.structs.replace(request, idempotency_key="")  # it is no part of what is sent
        standing = self._acceptance.standing(caller, request)
        return Item(request, own or (f"{key} {index}" if key else ""), standing)

    @staticmethod
    def _all_told(
        refused: dict[int, Problem],
        rid: str,
        limits: dict[str, str],
        respond: Respond,
        outcomes: list[Outcome] | Exception,
    ) -> None:
        """What became of each; `refused` could not be read. Or none was accepted, and why."""
        if isinstance(outcomes, Exception):
            respond(*_problem(outcomes, _BATCHES, rid))
            return
        told = iter(outcomes)
        results: list[dict[str, Any]] = []
        rejected = 0
        for index in range(len(outcomes) + len(refused)):
            outcome = refused.get(index) or next(told)
            if not isinstance(outcome, Accepted):
                rejected += 1
                results.append({"index": index, "error": document(as_problem(outcome, rid), _BATCHES, rid)})
            elif outcome.replayed:
                results.append({"index": index, **outcome.answer, "replayed": True})
            else:
                results.append({"index": index, **outcome.answer})
        answer = {"accepted": len(results) - rejected, "rejected": rejected, "results": results}
        respond(202, {"content-type": JSON, **limits}, _encode(answer))


def _problem(error: Exception, path: str, rid: str) -> Answer:
    return render(as_problem(error, rid), path, rid)


def _key(headers: dict[bytes, bytes]) -> str:
    """The Idempotency-Key, or ""."""
    if b"idempotency-key" not in headers:
        return ""
    key = headers[b"idempotency-key"].decode("latin-1")
    check_key(key)
    return key


def _media_type(headers: dict[bytes, bytes], allowed: tuple[str, ...]) -> str:
    if headers.get(b"content-type") == b"application/json":
        return JSON
    return media_type(headers.get(b"content-type", b"").decode("latin-1"), allowed)


def _items(body: bytes) -> list[Any]:
    try:
        return list(_batch_decoder.decode(body).messages)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        pointer = "/messages" if "messages" in path or "messages" in text else ""
        raise invalid([FieldError(pointer, text)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(str(error)) from None


def _counted(raws: list[Any]) -> list[Any]:
    if not 1 <= len(raws) <= MAX_BATCH:
        raise invalid([FieldError("/messages", f"must have 1 to {MAX_BATCH} messages; it has {len(raws)}")])
    return raws
