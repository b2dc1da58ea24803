"""From requests to accepted messages: what `/v1/messages`, `/v1/batches`, batch jobs and resends share.

The recipients' records are read where they must be, each request is prepared, and all of them go to the book at once. What comes of each is told as an
`Accepted` or as what refuses it. Nothing here awaits: the hot path is made of callbacks.

An Idempotency-Key is answered by what is stored, whatever the rules say today: only where a request with a key would be refused, it is looked up whether the
message of that key was accepted before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from controlplane.api.auth import Caller
from controlplane.api.problems import internal, store_unavailable
from controlplane.api.ratelimit import RateLimiter
from controlplane.api.services import Services
from controlplane.api.submission import MessageRequest, Prepared, accepted_answer, identify, prepare
from controlplane.domain.events import Event
from controlplane.domain.preferences import NOBODY, Standing
from controlplane.errors import Problem, StoreUnavailableError, bare

__all__ = ["Acceptance", "Accepted", "Item", "Outcome", "as_problem"]

_log = structlog.get_logger()


@dataclass(slots=True)
class Accepted:
    """A message that is durable; or, of a dry run, would be."""

    answer: dict[str, Any]
    """As clients see it (`submission.accepted_answer`)."""
    replayed: bool = False
    """The Idempotency-Key came before: it is that request's answer."""
    dry_run: bool = False


Outcome = Accepted | Exception
Told = Callable[[Outcome], None]
"""Called in the loop, once."""


@dataclass(slots=True)
class Item:
    """One of several requests."""

    request: MessageRequest
    key: str = ""
    """Idempotency-Key, or another text that stands for this message alone; "" for none."""
    standing: Standing | None = None
    """What is recorded of its recipient; None while that has to be read."""
    resent_from: str = ""
    """The message that it repeats."""


Refused = tuple[Item, Problem, Told]


class Acceptance:
    """One per node."""

    def __init__(self, services: Services, limiter: RateLimiter) -> None:
        self.services = services
        self.limiter = limiter

    async def accept(self, items: Sequence[Item], caller: Caller) -> list[Outcome]:
        """`accept_all` for those who can wait. Raises what refuses all of them."""
        future: asyncio.Future[list[Outcome] | Exception] = asyncio.get_running_loop().create_future()

        def told(outcomes: list[Outcome] | Exception) -> None:
            if not future.done():
                future.set_result(outcomes)

        self.accept_all(items, caller, told)
        outcomes = await future
        if isinstance(outcomes, Exception):
            raise outcomes
        return outcomes

    def accept_all(
        self, items: Sequence[Item], caller: Caller, told: Callable[[list[Outcome] | Exception], None]
    ) -> None:
        """Each has its own outcome, in order; or none is accepted, and an exception says why. `told` is called once, and this never raises."""
        unread = [item for item in items if item.standing is None]
        if not unread:
            self._go(items, caller, told)
            return
        asked = [(caller.tenant.id, item.request.to) for item in unread]
        self.services.recipients.read_soon(asked, partial(self._known, items, unread, caller, told))

    def standing(self, caller: Caller, request: MessageRequest) -> Standing | None:
        """What is known without a read of the recipient."""
        return self.services.recipients.standing(caller.tenant.id, request.to)

    def _known(
        self,
        items: Sequence[Item],
        unread: list[Item],
        caller: Caller,
        told: Callable[[list[Outcome] | Exception], None],
        outcome: list[Standing] | StoreUnavailableError,
    ) -> None:
        """The recipients have been read."""
        if isinstance(outcome, StoreUnavailableError):
            told(outcome)
            return
        for item, standing in zip(unread, outcome, strict=True):
            item.standing = standing
        self._go(items, caller, told)

    def _go(self, items: Sequence[Item], caller: Caller, told: Callable[[list[Outcome] | Exception], None]) -> None:
        collected = _Collected(len(items), told)
        drafts = []
        refused: list[Refused] = []
        try:
            for index, item in enumerate(items):
                tell = partial(collected.put, index)
                try:
                    prepared = self.prepare(item, caller)
                except Problem as problem:
                    refused.append((item, bare(problem), tell))
                    continue
                if prepared.dry_run:
                    tell(dry(prepared))
                else:
                    drafts.append((prepared.draft, partial(self.settled, prepared, tell)))
            if drafts:
                self.services.book.accept_all(drafts)
            self.refuse(refused, caller)
        except Exception as error:  # noqa: BLE001 - every request gets an answer
            collected.fail(error)

    def prepare(self, item: Item, caller: Caller) -> Prepared:
        """Raises Problem 422; see `submission.prepare`."""
        return prepare(
            item.request, caller, self.services, item.key, item.standing or NOBODY, resent_from=item.resent_from
        )

    def refuse(self, refused: Sequence[Refused], caller: Caller) -> None:
        """Requests that the rules refuse now: where one has a key, and was accepted before, that answer is given again."""
        keyed: dict[str, list[tuple[str, Refused]]] = {}
        for each in refused:
            item, problem, tell = each
            if not item.key or item.request.dry_run or caller.key.test:
                tell(problem)
                continue
            mid, mark = identify(item.request, caller, self.services, item.key, item.resent_from)
            keyed.setdefault(mid, []).append((mark, each))
        if keyed:
            self.services.book.recall_soon(list(keyed), partial(self._recalled, keyed))

    def _recalled(
        self, keyed: dict[str, list[tuple[str, Refused]]], found: dict[str, Event] | StoreUnavailableError
    ) -> None:
        for mid, repeated in keyed.items():
            for mark, (_, problem, tell) in repeated:
                if isinstance(found, StoreUnavailableError):
                    tell(found)
                elif mid in found:
                    self._tell(found[mid], mark, tell, replayed=True)
                else:
                    tell(problem)

    def settled(self, prepared: Prepared, tell: Told, outcome: Event | Exception) -> None:
        """What the book says of a draft."""
        draft = prepared.draft
        self._tell(outcome, (draft.data or {}).get("fingerprint", ""), tell, replayed=outcome is not draft)

    def _tell(self, outcome: Event | Exception, mark: str, tell: Told, *, replayed: bool) -> None:
        """With durability `global` a second datacenter is waited for."""
        answer = _answer(outcome, mark, replayed=replayed)
        if isinstance(answer, Accepted) and isinstance(outcome, Event) and "durability" in (outcome.data or ()):
            self.services.wait_for_mirror(outcome, partial(self._mirrored, answer, tell))
        else:
            tell(answer)

    @staticmethod
    def _mirrored(answer: Accepted, tell: Told, error: Exception | None) -> None:
        """A second datacenter has the message, or (error) is not known to have it."""
        tell(answer if error is None else error)


class _Collected:
    """The outcomes of one request with many messages, as they come; tells when the last one is there."""

    def __init__(self, count: int, told: Callable[[list[Outcome] | Exception], None]) -> None:
        self._outcomes: list[Any] = [None] * count
        self._left = count
        self._told = told

    def put(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._left -= 1
        if not self._left:
            self._told(self._outcomes)

    def fail(self, error: Exception) -> None:
        """None is accepted."""
        if self._left > 0:
            self._left = 0  # what is still told of single ones is not the last word
            self._told(error)


def dry(prepared: Prepared) -> Accepted:
    """What a dry run answers."""
    return Accepted({**accepted_answer(prepared.draft), "id": None, "dry_run": True}, dry_run=True)


def _answer(outcome: Event | Exception, mark: str, *, replayed: bool) -> Outcome:
    """What to say of a message that is there; a Problem where the key's message is another one, or erased."""
    if isinstance(outcome, Exception):
        return outcome
    if not replayed:
        return Accepted(accepted_answer(outcome))
    data = outcome.data
    if data is None:
        return Problem(
            "no-longer-possible",
            "Content erased",
            409,
            "The message of this Idempotency-Key was accepted, and its content has been erased since.",
            f"GET /v1/messages/{outcome.mid} shows what became of it.",
        )
    if data.get("fingerprint") != mark:
        return Problem(
            "idempotency-key-reused",
            "Idempotency-Key reused",
            422,
            "This Idempotency-Key came before with another body.",
            "Use a new key for a new message; repeat a request exactly.",
            extra={"id": outcome.mid},
        )
    return Accepted(accepted_answer(outcome), replayed=True)


def as_problem(error: Exception, rid: str) -> Problem:
    """The problem that tells of this error; a fault of ours goes to the log, under the request's id."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, StoreUnavailableError):
        return store_unavailable(error)
    _log.error("request_failed", request_id=rid, exc_info=error)
    return internal()
