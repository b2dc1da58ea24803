"""The hot path: `POST /v1/messages` and `POST /v1/batches`, decoded by msgspec, without dependency injection, without a task a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import structlog
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controlplane.api.auth import Caller, authenticate
from controlplane.api.bodies import JSON, NDJSON, lines, media_type
from controlplane.api.problems import document, internal, invalid, render, request_id, store_unavailable
from controlplane.api.ratelimit import RateLimiter
from controlplane.api.services import Services, WaitForMirror
from controlplane.api.submission import (
    BatchItem,
    MessageRequest,
    Prepared,
    accepted_answer,
    check_key,
    decode_item,
    malformed,
    prepare,
)
from controlplane.domain.catalog import Scope as KeyScope
from controlplane.domain.events import Event
from controlplane.domain.preferences import NOBODY, Standing
from controlplane.errors import FieldError, Problem, StoreUnavailableError

__all__ = ["MAX_BATCH", "Handler", "Respond", "hot_handlers", "hot_routes"]

_log = structlog.get_logger()

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


def hot_handlers(services: Services, limiter: RateLimiter) -> dict[bytes, Handler]:
    """Path → handler of its POST."""
    hot = _Hot(services, limiter)
    return {_MESSAGES.encode(): hot.message, _BATCHES.encode(): hot.batch}


def hot_routes(handlers: dict[bytes, Handler]) -> list[Route]:
    """The same for the application, which meets them where the server does not take them itself (api.server)."""
    return [Route(path.decode(), endpoint=_Endpoint(handler), methods=["POST"]) for path, handler in handlers.items()]


class _Hot:
    def __init__(self, services: Services, limiter: RateLimiter) -> None:
        self._services = services
        self._limiter = limiter
        self._callers: dict[bytes, Caller] = {}
        """By Authorization header: checked once for each version of the catalog."""
        self._known_at = services.catalog.snapshot

    def _caller(self, headers: dict[bytes, bytes]) -> Caller:
        snapshot = self._services.catalog.snapshot
        if snapshot is not self._known_at or len(self._callers) >= _CALLERS:
            self._callers, self._known_at = {}, snapshot
        value = headers.get(b"authorization", b"")
        caller = self._callers.get(value)
        if caller is None:
            caller = authenticate(self._services, value.decode("latin-1"), KeyScope.MESSAGES_WRITE)
            self._callers[value] = caller
        return caller

    def message(self, headers: dict[bytes, bytes], body: bytes, rid: str, respond: Respond) -> None:
        """One message."""
        try:
            caller = self._caller(headers)
            _media_type(headers, (JSON,))
            request, key = decode_item(body), _key(headers)
            standing = self._services.recipients.standing(caller.tenant.id, request.to)
            if standing is not None:
                self._accept(request, caller, key, standing, rid, respond)
            else:
                known = partial(self._known, request, caller, key, rid, respond)
                self._services.recipients.read_soon([(caller.tenant.id, request.to)], known)
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            respond(*_problem(error, _MESSAGES, rid))

    def _known(
        self,
        request: MessageRequest,
        caller: Caller,
        key: str,
        rid: str,
        respond: Respond,
        outcome: list[Standing] | StoreUnavailableError,
    ) -> None:
        """The recipient has been read."""
        try:
            self._accept(request, caller, key, _standings(outcome)[0], rid, respond)
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            respond(*_problem(error, _MESSAGES, rid))

    def _accept(
        self, request: MessageRequest, caller: Caller, key: str, standing: Standing, rid: str, respond: Respond
    ) -> None:
        prepared = prepare(request, caller, self._services, key, standing)
        answer_headers = {"content-type": JSON, **self._limiter.take(caller, 1)}
        if prepared.dry_run:
            respond(200, answer_headers, _encode(_dry(prepared)))
            return
        self._services.book.accept_soon(prepared.draft, partial(self._settled, prepared, rid, answer_headers, respond))

    def _settled(
        self,
        prepared: Prepared,
        rid: str,
        headers: dict[str, str],
        respond: Respond,
        outcome: Event | Exception,
    ) -> None:
        try:
            answer, replayed = _answer(prepared, outcome)
        except Exception as error:  # noqa: BLE001
            respond(*_problem(error, _MESSAGES, rid))
            return
        if replayed:
            headers["idempotent-replayed"] = "true"
        headers["location"] = f"/v1/messages/{prepared.draft.mid}"
        if "durability" in (prepared.draft.data or ()) and isinstance(outcome, Event):
            self._services.wait_for_mirror(outcome, partial(self._mirrored, rid, headers, respond, _encode(answer)))
            return
        respond(202, headers, _encode(answer))

    @staticmethod
    def _mirrored(rid: str, headers: dict[str, str], respond: Respond, answer: bytes, error: Exception | None) -> None:
        """A second datacenter has the message, or (error) is not known to have it."""
        if error is None:
            respond(202, headers, answer)
        else:
            respond(*_problem(error, _MESSAGES, rid))

    def batch(self, headers: dict[bytes, bytes], body: bytes, rid: str, respond: Respond) -> None:
        """Up to 10,000 messages, each with its own result."""
        try:
            caller = self._caller(headers)
            media = _media_type(headers, (JSON, *NDJSON))
            key = _key(headers)
            raws = _counted(lines(body) if media in NDJSON else _items(body))
            answer_headers = {"content-type": JSON, **self._limiter.take(caller, len(raws))}
            collected = _Collected(
                len(raws), rid, partial(respond, 202, answer_headers), self._services.wait_for_mirror
            )
            items: list[_Item] = []
            for index, raw in enumerate(raws):
                try:
                    items.append(self._item(raw, caller, key, index))
                except Problem as problem:
                    collected.refuse(index, problem)
            unread = [item for item in items if item.standing is None]
            if not unread:
                self._accept_all(items, caller, collected)
                return
            asked = [(caller.tenant.id, item.request.to) for item in unread]
            known = partial(self._all_known, items, unread, caller, collected, rid, respond)
            self._services.recipients.read_soon(asked, known)
        except Exception as error:  # noqa: BLE001
            respond(*_problem(error, _BATCHES, rid))

    def _item(self, raw: bytes | msgspec.Raw, caller: Caller, key: str, index: int) -> _Item:
        item: BatchItem = decode_item(raw, BatchItem)
        own = item.idempotency_key
        if own:
            check_key(own)
            item = msgspec.structs.replace(item, idempotency_key="")  # it is no part of what is sent
        standing = self._services.recipients.standing(caller.tenant.id, item.to)
        return _Item(index, item, own or (f"{key} {index}" if key else ""), standing)

    def _all_known(
        self,
        items: list[_Item],
        unread: list[_Item],
        caller: Caller,
        collected: _Collected,
        rid: str,
        respond: Respond,
        outcome: list[Standing] | StoreUnavailableError,
    ) -> None:
        """The recipients have been read."""
        try:
            for item, standing in zip(unread, _standings(outcome), strict=True):
                item.standing = standing
            self._accept_all(items, caller, collected)
        except Exception as error:  # noqa: BLE001
            respond(*_problem(error, _BATCHES, rid))

    def _accept_all(self, items: list[_Item], caller: Caller, collected: _Collected) -> None:
        prepared: list[tuple[int, Prepared]] = []
        for item in items:
            try:
                one = prepare(item.request, caller, self._services, item.key, item.standing or NOBODY)
            except Problem as problem:
                collected.refuse(item.index, problem)
                continue
            if one.dry_run:
                collected.put(item.index, _dry(one))
            else:
                prepared.append((item.index, one))
        if prepared:
            drafts = [(one.draft, partial(collected.settled, index, one)) for index, one in prepared]
            self._services.book.accept_all(drafts)


@dataclass(slots=True)
class _Item:
    """A message of a batch."""

    index: int
    request: BatchItem
    key: str
    standing: Standing | None
    """None while its recipient has to be read."""


class _Collected:
    """The results of one batch, as they come; answers when the last one is there."""

    def __init__(self, count: int, rid: str, respond: Callable[[bytes], None], wait_for_mirror: WaitForMirror) -> None:
        self._results: list[dict[str, Any]] = [{}] * count
        self._left = count
        self._rejected = 0
        self._rid = rid
        self._respond = respond
        self._wait_for_mirror = wait_for_mirror

    def put(self, index: int, result: dict[str, Any]) -> None:
        self._results[index] = {"index": index, **result}
        self._left -= 1
        if not self._left:
            accepted = len(self._results) - self._rejected
            self._respond(_encode({"accepted": accepted, "rejected": self._rejected, "results": self._results}))

    def refuse(self, index: int, problem: Problem) -> None:
        self._rejected += 1
        self.put(index, {"error": document(problem, _BATCHES, self._rid)})

    def settled(self, index: int, prepared: Prepared, outcome: Event | Exception) -> None:
        try:
            answer, replayed = _answer(prepared, outcome)
        except Exception as error:  # noqa: BLE001
            self.refuse(index, _as_problem(error, self._rid))
            return
        if replayed:
            answer["replayed"] = True
        if "durability" in (prepared.draft.data or ()) and isinstance(outcome, Event):
            self._wait_for_mirror(outcome, partial(self._mirrored, index, answer))
        else:
            self.put(index, answer)

    def _mirrored(self, index: int, answer: dict[str, Any], error: Exception | None) -> None:
        if error is None:
            self.put(index, answer)
        else:
            self.refuse(index, _as_problem(error, self._rid))


def _answer(prepared: Prepared, outcome: Event | Exception) -> tuple[dict[str, Any], bool]:
    """What to say of an accepted message, and whether it is a repetition. Raises what the outcome says."""
    if isinstance(outcome, Exception):
        raise outcome
    draft = prepared.draft
    if outcome is draft:
        return accepted_answer(draft), False
    data = outcome.data
    if data is None:
        raise Problem(
            "no-longer-possible",
            "Content erased",
            409,
            "The message of this Idempotency-Key was accepted, and its content has been erased since.",
            f"GET /v1/messages/{draft.mid} shows what became of it.",
        )
    if data.get("fingerprint") != (draft.data or {}).get("fingerprint"):
        raise Problem(
            "idempotency-key-reused",
            "Idempotency-Key reused",
            422,
            "This Idempotency-Key came before with another body.",
            "Use a new key for a new message; repeat a request exactly.",
            extra={"id": draft.mid},
        )
    return accepted_answer(outcome), True


def _standings(outcome: list[Standing] | StoreUnavailableError) -> list[Standing]:
    if isinstance(outcome, StoreUnavailableError):
        raise outcome
    return outcome


def _as_problem(error: Exception, rid: str) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, StoreUnavailableError):
        return store_unavailable(error)
    _log.error("request_failed", request_id=rid, exc_info=error)
    return internal()


def _problem(error: Exception, path: str, rid: str) -> Answer:
    return render(_as_problem(error, rid), path, rid)


def _key(headers: dict[bytes, bytes]) -> str:
    """The Idempotency-Key, or ""."""
    if b"idempotency-key" not in headers:
        return ""
    key = headers[b"idempotency-key"].decode("latin-1")
    check_key(key)
    return key


def _dry(prepared: Prepared) -> dict[str, Any]:
    return {**accepted_answer(prepared.draft), "id": None, "dry_run": True}


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
