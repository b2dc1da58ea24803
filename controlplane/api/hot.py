"""The hot path: `POST /v1/messages` and `POST /v1/batches` as raw ASGI, decoded by msgspec, without dependency injection."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controlplane.api.auth import Caller, authenticate
from controlplane.api.problems import document, invalid, render, request_id, store_unavailable
from controlplane.api.ratelimit import RateLimiter
from controlplane.api.services import Services
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
from controlplane.errors import FieldError, Problem, StoreUnavailableError
from controlplane.store.book import Accepted

__all__ = ["MAX_BATCH", "hot_routes"]

MAX_BATCH = 10_000
_JSON = "application/json"
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_encode = msgspec.json.Encoder().encode

Answer = tuple[int, dict[str, str], bytes]
Handler = Callable[[dict[bytes, bytes], bytes, str], Coroutine[Any, Any, Answer]]


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[msgspec.Raw]


_batch_decoder = msgspec.json.Decoder(_Batch)


class _Endpoint:
    """A raw ASGI endpoint: headers and body in, one answer out."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]  # the envelope has read it whole, bounded
        rid = request_id(scope)
        try:
            status, headers, answer = await self._handler(dict(scope["headers"]), body, rid)
        except Problem as problem:
            status, headers, answer = render(problem, scope["path"], rid)
        except StoreUnavailableError as error:
            status, headers, answer = render(store_unavailable(error), scope["path"], rid)
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": answer})


def hot_routes(services: Services, limiter: RateLimiter) -> list[Route]:
    """The two routes."""
    hot = _Hot(services, limiter)
    return [
        Route("/v1/messages", endpoint=_Endpoint(hot.message), methods=["POST"]),
        Route("/v1/batches", endpoint=_Endpoint(hot.batch), methods=["POST"]),
    ]


class _Hot:
    def __init__(self, services: Services, limiter: RateLimiter) -> None:
        self._services = services
        self._limiter = limiter

    def _caller(self, headers: dict[bytes, bytes]) -> Caller:
        value = headers.get(b"authorization")
        return authenticate(self._services, value.decode("latin-1") if value else None, KeyScope.MESSAGES_WRITE)

    async def message(self, headers: dict[bytes, bytes], body: bytes, _rid: str) -> Answer:
        """One message."""
        caller = self._caller(headers)
        _media_type(headers, (_JSON,))
        key = headers.get(b"idempotency-key", b"").decode("latin-1")
        if b"idempotency-key" in headers:
            check_key(key)
        prepared = prepare(decode_item(body), caller, self._services, key)
        answer_headers = {"content-type": _JSON, **self._limiter.take(caller, 1)}
        if prepared.dry_run:
            return 200, answer_headers, _encode(_dry(prepared))
        result = await self._services.book.accept(prepared.draft)
        answer, replayed = await self._answer(prepared, result)
        if replayed:
            answer_headers["idempotent-replayed"] = "true"
        answer_headers["location"] = f"/v1/messages/{prepared.draft.mid}"
        return 202, answer_headers, _encode(answer)

    async def _answer(self, prepared: Prepared, result: Accepted) -> tuple[dict[str, Any], bool]:
        draft = prepared.draft
        if result.message is not None:
            return accepted_answer(draft.mid, draft.at, draft.data), False
        events = await self._services.events.load(draft.mid)
        data = events[0].data
        if data is None:
            raise Problem(
                "no-longer-possible",
                "Content erased",
                409,
                "The message of this Idempotency-Key was accepted, and its content has been erased since.",
                f"GET /v1/messages/{draft.mid} shows what became of it.",
            )
        if data["fingerprint"] != draft.data["fingerprint"]:
            raise Problem(
                "idempotency-key-reused",
                "Idempotency-Key reused",
                422,
                "This Idempotency-Key came before with another body.",
                "Use a new key for a new message; repeat a request exactly.",
                extra={"id": draft.mid},
            )
        return accepted_answer(draft.mid, events[0].at, data), True

    async def batch(self, headers: dict[bytes, bytes], body: bytes, rid: str) -> Answer:
        """Up to 10,000 messages, each with its own result."""
        caller = self._caller(headers)
        media = _media_type(headers, (_JSON, *_NDJSON))
        key = headers.get(b"idempotency-key", b"").decode("latin-1")
        if b"idempotency-key" in headers:
            check_key(key)
        raws = _lines(body) if media in _NDJSON else _items(body)
        if not 1 <= len(raws) <= MAX_BATCH:
            raise invalid([FieldError("/messages", f"must have 1 to {MAX_BATCH} messages; it has {len(raws)}")])
        answer_headers = {"content-type": _JSON, **self._limiter.take(caller, len(raws))}
        results: list[dict[str, Any] | None] = [None] * len(raws)
        prepared: list[tuple[int, Prepared]] = []
        for index, raw in enumerate(raws):
            try:
                item = self._prepare_item(raw, caller, key, index)
            except Problem as problem:
                results[index] = {"index": index, "error": document(problem, "/v1/batches", rid)}
                continue
            if item.dry_run:
                results[index] = {"index": index, **_dry(item)}
            else:
                prepared.append((index, item))
        if prepared:
            await self._accept(prepared, results, rid)
        rejected = sum("error" in result for result in results if result)
        answer = {"accepted": len(results) - rejected, "rejected": rejected, "results": results}
        return 202, answer_headers, _encode(answer)

    def _prepare_item(self, raw: bytes | msgspec.Raw, caller: Caller, key: str, index: int) -> Prepared:
        item: BatchItem = decode_item(raw, BatchItem)
        own = item.idempotency_key
        if own:
            check_key(own)
        request: MessageRequest = msgspec.structs.replace(item, idempotency_key="")
        return prepare(request, caller, self._services, own or (f"{key} {index}" if key else ""))

    async def _accept(
        self, prepared: list[tuple[int, Prepared]], results: list[dict[str, Any] | None], rid: str
    ) -> None:
        accepted = await self._services.book.accept_many([item.draft for _, item in prepared])
        for (index, item), outcome in zip(prepared, accepted, strict=True):
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                answer, replayed = await self._answer(item, outcome)
                results[index] = {"index": index, **answer, **({"replayed": True} if replayed else {})}
            except Problem as problem:
                results[index] = {"index": index, "error": document(problem, "/v1/batches", rid)}
            except StoreUnavailableError as error:
                results[index] = {"index": index, "error": document(store_unavailable(error), "/v1/batches", rid)}


def _dry(prepared: Prepared) -> dict[str, Any]:
    answer = accepted_answer("", prepared.draft.at, prepared.draft.data)
    return {**answer, "id": None, "dry_run": True}


def _media_type(headers: dict[bytes, bytes], allowed: tuple[str, ...]) -> str:
    given = headers.get(b"content-type", b"").decode("latin-1")
    media = given.split(";")[0].strip().lower()
    if media not in allowed:
        raise Problem(
            "unsupported-media-type",
            "Unsupported media type",
            415,
            f"The Content-Type is {given[:100] or 'missing'}.",
            f"Send {' or '.join(allowed[:2])}.",
        )
    return media


def _items(body: bytes) -> list[Any]:
    try:
        return list(_batch_decoder.decode(body).messages)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        pointer = "/messages" if "messages" in path or "messages" in text else ""
        raise invalid([FieldError(pointer, text)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(str(error)) from None


def _lines(body: bytes) -> list[Any]:
    return [line for line in body.split(b"\n") if line.strip()]
