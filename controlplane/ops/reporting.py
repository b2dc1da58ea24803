"""Telling the API of operations, so that they can be watched and cancelled from anywhere.

An API that does not answer stops nothing: what it could not be told stays in the operation's folder (`events.jsonl`), `told.json` there says how much of it the API
has, and the next command, or the agent, tells it the rest. The folder is the truth.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from controlplane.clock import Clock
from controlplane.domain.operations import refusals
from controlplane.errors import ConfigError
from controlplane.ops import canary
from controlplane.ops.desired import Desired
from controlplane.ops.journal import Journal
from controlplane.ops.operation import Operation, State, run, take_back
from controlplane.ops.runner import Event
from controlplane.ops.spool import Spool

__all__ = ["Desk", "HeldElsewhereError", "Telling", "operate"]

_PATIENCE_SECONDS = 3.0
"""For one call: a node that is there answers in milliseconds."""
_LAST_SECONDS = 10.0
"""For the end of an operation to be told."""
_EVERY_SECONDS = 2.0
_AGAIN_SECONDS = 10.0
_CAUGHT_UP = 20
_NAMES = 2_000


class HeldElsewhereError(ConfigError):
    """The API says that another operation is not finished, or that somebody else runs this one, or did since (`lost`)."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(f"{answer.get('detail', '')} {answer.get('next_step', '')}")
        self.lost = str(answer.get("type", "")).endswith("/not-held")


class Desk:
    """The API, as far as it keeps operations."""

    def __init__(self, known: Desired, state: State, clock: Clock) -> None:
        self.known = self._of = known
        self.state = state
        self.clock = clock
        self.agent = state.identity()
        self.host = socket.gethostname()[:100]
        self._api: canary.Api | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *given: object) -> None:
        await self._close()

    async def _close(self) -> None:
        if self._api is not None:
            await self._api.__aexit__()
        self._api = None

    async def _open(self) -> canary.Api:
        """With what is declared now: the operation itself may change hosts, keys and authority."""
        if self._api is None or self._of is not self.known:
            await self._close()
            self._of = self.known
            made = canary.Api(self._of.urls, self._of.admin_key, self._of.authority, patience=_PATIENCE_SECONDS)
            self._api = await made.__aenter__()
        return self._api

    async def call(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """(status, document); None where nobody answers, or not as this version does."""
        with suppress(ConfigError):
            api = await self._open()
            status, document, _ = await api.call(method, f"/v1/operations{path}", body)
            if isinstance(document, dict) and status in (200, 404, 409):
                return status, document
        return None

    async def enter(self, operation: Operation, *, over: bool = False) -> int | None:
        """Hold it, with `over` only to tell how it ended: the fence; None where nobody answers. Raises HeldElsewhereError."""
        body = {
            "agent": self.agent,
            "host": self.host,
            "region": self.known.region,
            "kind": operation.kind,
            "variables": operation.variables,
            "begun_at": operation.begun_at,
            "unfinished": operation.unfinished or operation.state == "running",
            "over": over,
        }
        answer = await self.call("PUT", f"/{operation.id}", body)
        if answer is None:
            return None
        if answer[0] == 409:
            raise HeldElsewhereError(answer[1])
        fence = answer[1].get("fence")
        return fence if answer[0] == 200 and isinstance(fence, int) else None

    async def catch_up(self) -> bool:
        """Tell of what ended and could not be told then; whether nothing is left to tell. Nothing of ours may run meanwhile."""
        for operation in self.state.all()[-_CAUGHT_UP:]:
            if operation.state == "running" or refusals(operation.kind, operation.variables, here=True):
                continue
            telling = Telling(self, operation)
            if telling.told:
                continue
            try:
                await telling.enter(operation, over=True)
            except HeldElsewhereError as error:
                if error.lost:
                    telling.settle()
                continue
            if telling.fence is None or not await telling.finish(operation):
                return False
        return True


class Telling:
    """One operation, told under one fence at a time."""

    def __init__(
        self, desk: Desk, operation: Operation, fence: int | None = None, *, journal: Journal | None = None
    ) -> None:
        self.spool = Spool(desk.state.path(operation, "events.jsonl"), desk.clock)
        self.fence = fence
        self.journal = journal
        """Of one that was not begun here yet."""
        self.canceled = False
        """The API says that it is to end: somebody asked, or another one runs it now."""
        self.desk = desk
        self._operation = operation
        self._path = desk.state.path(operation, "told.json")
        self._revision = 0
        self._known = 0
        """Lines that the API has, as far as it said so."""
        self.turn(desk.known)

    def turn(self, known: Desired) -> None:
        """What is declared from now on: the API is asked so, and these secrets are left out too."""
        self.desk.known = known
        self.spool.hide(known.admin_key, known.ssh_key, known.secret_key)

    def _kept(self) -> Any:
        with suppress(OSError, ValueError):
            return json.loads(self._path.read_text(encoding="ascii"))
        return None

    def _mark(self) -> dict[str, Any]:
        """What the API has when it has all of it."""
        path = self.desk.state.path(self._operation, "events.jsonl")
        size = path.stat().st_size if path.exists() else 0
        return {"state": self._operation.state, "ended_at": self._operation.ended_at, "size": size}

    @property
    def told(self) -> bool:
        """The API has all of it, its end too."""
        return bool(self._kept() == self._mark())

    async def enter(self, operation: Operation, *, over: bool = False) -> None:
        """Hold it, where somebody answers. Raises HeldElsewhereError."""
        self._operation = operation
        self.fence = await self.desk.enter(operation, over=over)
        self._known = self._revision = 0

    def settle(self) -> None:
        """There is nothing left to tell of it."""
        self._path.write_text(json.dumps(self._mark()), encoding="ascii")

    async def report(self, operation: Operation) -> str:
        """Once; the state that the API has by it, "" where it has none. While lines are left to be told it is running."""
        if self.fence is None:
            return ""
        self._revision += 1
        events = self.spool.after(self._known)
        state = "running" if self._known + len(events) < self.spool.count else operation.state
        body = {
            "agent": self.desk.agent,
            "fence": self.fence,
            "revision": self._revision,
            "spool": self.desk.agent,
            "first": self._known + 1,
            "events": events,
            "state": state,
            **self._standing(operation),
        }
        answer = await self.desk.call("POST", f"/{operation.id}/report", body)
        if answer is None:
            return ""
        status, document = answer
        if status != 200:
            self.fence, self.canceled = None, self.canceled or status == 409
            return ""
        known = document.get("known")
        if not isinstance(known, int):
            return ""
        self._known = min(known, self.spool.count)
        self.canceled = self.canceled or bool(document.get("cancel"))
        return state

    def _standing(self, operation: Operation) -> dict[str, Any]:
        state = self.desk.state
        written = self.journal or state.journal(operation)
        return {
            "unfinished": operation.state == "running" or (operation.unfinished and self.journal != Journal()),
            "changed": operation.changed + (self.spool.changed if operation.state == "running" else 0),
            "resumed": operation.resumed,
            "problem": self.spool.clean(operation.problem)[:4_000],
            "task": self.spool.task if operation.state == "running" else "",
            "journal": {
                "done": [name[:200] for name in written.done[-_NAMES:]],
                "open": [name[:200] for name in written.open[-_NAMES:]],
                "owed": [name[:200] for name in written.owed[-_NAMES:]],
                "total": written.total,
                "passed": written.passed,
            },
            "canaries": canary.counted(state.path(operation, "canaries.jsonl")),
        }

    async def keep_telling(self, operation: Operation, stop: asyncio.Event) -> None:
        """Every two seconds, until `stop`. Whoever could not be asked at the beginning is asked again."""
        asked = self.desk.clock.monotonic()
        running = replace(operation, state="running")
        while not stop.is_set():
            if self.fence is None and not self.canceled and self.desk.clock.monotonic() - asked >= _AGAIN_SECONDS:
                asked = self.desk.clock.monotonic()
                with suppress(HeldElsewhereError):
                    await self.enter(running)
            await self.report(running)
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_SECONDS):
                    await stop.wait()

    async def finish(self, operation: Operation) -> bool:
        """Tell all that is left, the end too; whether that was heard."""
        self._operation = operation
        with suppress(TimeoutError, HeldElsewhereError):
            async with asyncio.timeout(_LAST_SECONDS):
                if self.fence is None and not self.canceled:
                    await self.enter(operation, over=True)
                while said := await self.report(operation):
                    if said == operation.state and self._known == self.spool.count:
                        self.settle()
                        return True
        return False


async def operate(
    telling: Telling,
    operation: Operation,
    tell: Callable[[Event], None],
    *,
    canceled: Callable[[], bool],
    verb: str = "run",
) -> Operation:
    """Run it, or abort it (`verb`), and tell the API all the while. One that cannot even be begun has failed. Hold the lock."""
    state, known, clock = telling.desk.state, telling.desk.known, telling.desk.clock
    stop = asyncio.Event()

    def heard(event: Event) -> None:
        telling.spool.tell(event)
        tell(event)

    def ended() -> bool:
        return canceled() or telling.canceled

    async def work() -> Operation:
        try:
            if verb == "abort":
                return await asyncio.to_thread(take_back, state, operation, known, clock, heard, canceled=ended)
            return await run(state, operation, known, clock, heard, canceled=ended, turned_to=telling.turn)
        except Exception as error:
            problem = _first(error)
            words = str(problem) if isinstance(problem, ConfigError) else f"It broke: {problem!r}"
            failed = state.save(replace(operation, state="failed", ended_at=clock.now_ms(), problem=words, pid=0))
            if not isinstance(problem, ConfigError):
                raise
            return failed
        finally:
            stop.set()

    async with asyncio.TaskGroup() as group:
        working = group.create_task(work())
        group.create_task(telling.keep_telling(operation, stop))
    await telling.finish(working.result())
    return working.result()


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
