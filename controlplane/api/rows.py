"""Rows of a table become messages: the same acceptance as for `/v1/batches`, each row with an id derived from its job and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from controlplane.api.acceptance import Acceptance, Accepted, Item, Outcome, as_problem
from controlplane.api.auth import Caller
from controlplane.api.submission import MessageRequest, decode_item
from controlplane.domain.audit import person_actor
from controlplane.domain.batch_job import BatchJob, Judged, Result
from controlplane.domain.catalog import Key, Scope
from controlplane.domain.events import Event
from controlplane.domain.merge import Mapping, Merge
from controlplane.domain.people import Role
from controlplane.domain.sheet import Row
from controlplane.errors import Problem, bare
from controlplane.ids import idempotent_mid

__all__ = ["Rows"]

_INTEGERS = frozenset({"validity_seconds", "max_price", "max_parts"})
_AT_ONCE = 200
_FULL = 0.9
"""Of the messages that a node may own; then jobs wait, and what comes directly still has room."""
_PATIENCE_SECONDS = 2.0
_PERSON = person_actor("")
_SENDS = frozenset({Scope.MESSAGES_WRITE.value, Scope.ADMIN.value})


class Rows:
    """One per node. What the background work asks of the API (`controlplane.batches.desk.Desk`)."""

    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._services = acceptance.services

    async def halted(self, job: BatchJob) -> str:
        """Why nobody may send for the job now; "" when its sender may. Raises StoreUnavailableError."""
        caller = await self._caller(job)
        return caller if isinstance(caller, str) else ""

    async def room(self, job: BatchJob, count: int) -> tuple[float, str]:
        """How long to wait, and why; (0, "") when so many are taken from the tenant's rate. Raises StoreUnavailableError."""
        services = self._services
        caller = await self._caller(job)
        if isinstance(caller, str):
            return _PATIENCE_SECONDS, caller
        if len(services.book.open) + count > services.settings.max_open_messages * _FULL:
            return _PATIENCE_SECONDS, "the node has as many open messages as it takes from batch jobs"
        wait = self._acceptance.limiter.take_spare(caller, count)
        return wait, "the tenant's rate" if wait else ""

    def slice(self, job: BatchJob) -> int:
        """A tenth of a second's worth, at most 200."""
        caller = self._sender(job)
        rate = _AT_ONCE if isinstance(caller, str) else self._acceptance.limiter.rate(caller) // 10
        return max(1, min(_AT_ONCE, rate))

    async def send(self, job: BatchJob, rows: Sequence[Row]) -> list[Judged]:
        """Accept them. Raises StoreUnavailableError."""
        return await self._judge(job, job.mapping, rows)

    async def recall(self, job: BatchJob, rows: Sequence[Row]) -> list[Result]:
        """What was accepted of them before; nothing is accepted. Raises StoreUnavailableError."""
        secret = self._services.settings.secret
        mids = [idempotent_mid(secret, job.tenant, _key(job, row)) for row in rows]
        stories = await self._services.events.load_many(mids)
        return [_recalled(stories[mid][0]) if mid in stories else Result() for mid in mids]

    async def check(self, job: BatchJob, rows: Sequence[Row], mapping: Mapping | None = None) -> list[Judged]:
        """What would become of them; `mapping` in the place of the job's. Raises ValueError for one that does not fit."""
        return await self._judge(job, mapping or job.mapping, rows, dry_run=True)

    def fields(self, job: BatchJob, rows: Sequence[Row], mapping: Mapping) -> list[dict[str, str]]:
        """The fields of their messages. Raises ValueError."""
        merge = Merge(mapping, job.header, job.width)
        return [merge.fields(row.cells) for row in rows]

    async def _judge(
        self, job: BatchJob, mapping: Mapping | None, rows: Sequence[Row], *, dry_run: bool = False
    ) -> list[Judged]:
        caller = await self._caller(job)
        if isinstance(caller, str):
            halted = _refused(Problem("forbidden", "Not allowed", 403, f"{caller}.", "Begin another job."))
            halted.again = 0.0 if dry_run else _PATIENCE_SECONDS  # `room` says so too; nothing is decided
            return [halted] * len(rows)
        merge = Merge(mapping or Mapping(), job.header, job.width)
        judged: list[Judged] = [Judged(Result())] * len(rows)
        items: list[Item] = []
        places: list[int] = []
        for place, row in enumerate(rows):
            if row.error:
                judged[place] = Judged(Result(status="rejected", error="unreadable-row", detail=row.error))
                continue
            try:
                request = _request(merge.fields(row.cells), dry_run=dry_run)
            except Problem as problem:
                judged[place] = _refused(problem)
                continue
            items.append(Item(request, _key(job, row), self._acceptance.standing(caller, request)))
            places.append(place)
        if items:
            try:
                outcomes = await self._acceptance.accept(items, caller)
            except Problem as problem:  # the node takes none of them now
                outcomes = [bare(problem)] * len(items)
            for place, outcome in zip(places, outcomes, strict=True):
                judged[place] = _judged(outcome, job)
        return judged

    async def _caller(self, job: BatchJob) -> Caller | str:
        """Who sends; or why nobody may for now. A person counts as they are at this moment."""
        caller = self._sender(job)
        if isinstance(caller, Caller) and job.key.startswith(_PERSON):
            person = await self._services.people.find(job.key.removeprefix(_PERSON))
            if person is None or not person.enabled:
                return "the person who began it is disabled or gone"
            if person.role < Role.SENDER or person.tenant not in ("", job.tenant):
                return "the person who began it may no longer send for the tenant"
        return caller

    def _sender(self, job: BatchJob) -> Caller | str:
        snapshot = self._services.catalog.snapshot
        tenant = snapshot.tenants.get(job.tenant)
        if tenant is None or not tenant.enabled:
            return "the tenant is disabled"
        if job.key.startswith(_PERSON):
            scopes = frozenset({Scope.MESSAGES_WRITE.value})
            key = Key(id=job.key, tenant=tenant.id, name=job.key, scopes=scopes, digest="", hint="", test=job.test)
            return Caller(key, tenant)
        found = next((key for key in snapshot.keys.values() if key.id == job.key), None)
        if found is None or not found.enabled:
            return "its API key is disabled or gone"
        if not found.scopes & _SENDS:
            return f"its API key no longer has the scope {Scope.MESSAGES_WRITE.value}"
        return Caller(replace(found, test=job.test), tenant)


def _key(job: BatchJob, row: Row) -> str:
    """In the place of an Idempotency-Key; with two spaces, so that it is no client's key, nor that of an item of a client's batch."""
    return f"{job.id}  {row.line}"


def _recalled(accepted: Event) -> Result:
    return Result(accepted.mid, "scheduled" if "send_at" in (accepted.data or ()) else "accepted")


def _request(fields: dict[str, str], *, dry_run: bool) -> MessageRequest:
    """Raises Problem 422 that names every wrong field."""
    values: dict[str, object] = {
        name: int(text) if name in _INTEGERS and text.isascii() and text.isdigit() else text
        for name, text in fields.items()
    }
    if dry_run:
        values["dry_run"] = True
    request: MessageRequest = decode_item(msgspec.json.encode(values))
    return request


def _judged(outcome: Outcome, job: BatchJob) -> Judged:
    if not isinstance(outcome, Accepted):
        return _refused(as_problem(outcome, job.id))
    answer = outcome.answer
    status = "test" if outcome.dry_run and job.test else answer["status"]
    return Judged(
        Result(answer["id"] or "", status),
        to=answer["to"],
        parts=answer["parts"],
        encoding=answer["encoding"],
        price=answer["price"]["amount"],
        currency=answer["price"]["currency"],
    )


def _refused(problem: Problem) -> Judged:
    detail = "; ".join(f"{error.pointer.lstrip('/')}: {error.detail}" for error in problem.errors) or problem.detail
    again = float(problem.headers.get("Retry-After", 1)) if problem.status in (429, 503) else 0.0
    return Judged(Result(status="rejected", error=problem.slug, detail=detail[:300]), again=again)
