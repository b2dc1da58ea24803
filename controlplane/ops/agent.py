"""Runs what is asked for over the API: where the region's stack is, with what the command line has, and with nothing that a node would have to hold.

It asks for work every few seconds. What it claims it runs as `heliograph ops` does, in the same folder and under the same lock; a cut one goes on under its id.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any

from controlplane.clock import Clock
from controlplane.domain.operations import refusals
from controlplane.errors import ConfigError
from controlplane.ids import is_mid, token
from controlplane.ops.desired import Desired
from controlplane.ops.journal import Journal
from controlplane.ops.operation import Operation, State, adopt
from controlplane.ops.reporting import Desk, Telling, operate
from controlplane.ops.runner import Event

__all__ = ["alone", "serve"]

_EVERY_SECONDS = 3.0
_CATCH_UP_SECONDS = 30.0
_ANEW = 20
"""After so many claims that nobody answered it is read anew what is declared."""
_STEP = re.compile(r"[\w .:,=@/()+-]{1,200}", re.ASCII)


def alone(state: State) -> AbstractContextManager[None]:
    """One agent for a folder. ConfigError while there is another."""
    return state.alone("agent.lock", f"An agent for {state.folder.name} runs here already.")


async def serve(
    state: State,
    declared: Callable[[], Desired],
    clock: Clock,
    *,
    tell: Callable[[Event], None],
    say: Callable[[Operation], None],
    stopped: Callable[[], bool],
    once: bool = False,
) -> None:
    """Until `stopped`; with `once` until there is nothing to do. `declared` is asked anew for each operation, `say` is given each that has ended. ConfigError.

    Be `alone`. An operation that runs when `stopped` turns true is canceled.
    """
    async with Desk(await asyncio.to_thread(declared), state, clock) as desk:
        nonce, restarted, caught_up, unheard = token("claim"), not state.held(), float("-inf"), 0
        while not stopped():
            busy = state.held()
            if not busy and clock.monotonic() - caught_up >= _CATCH_UP_SECONDS:
                await desk.catch_up()
                caught_up = clock.monotonic()
            claimed = await _claim(desk, nonce, restarted=restarted, busy=busy)
            if claimed is not None:
                nonce, restarted = token("claim"), False
                if claimed["operation"] is not None:
                    say(await _take(desk, claimed, declared, tell=tell, stopped=stopped))
                    continue
                if once and not busy:
                    return
            elif not once:
                unheard += 1
                if unheard % _ANEW == 0:  # another key, or other nodes, may be declared by now
                    with suppress(ConfigError):
                        desk.known = await asyncio.to_thread(declared)
            else:
                raise ConfigError(f"No node of {desk.known.region} takes operations: {', '.join(desk.known.urls)}")
            await asyncio.sleep(_EVERY_SECONDS)


async def _claim(desk: Desk, nonce: str, *, restarted: bool, busy: bool) -> dict[str, Any] | None:
    body = {
        "agent": desk.agent,
        "host": desk.host,
        "region": desk.known.region,
        "nonce": nonce,
        "restarted": restarted,
        "busy": busy,
    }
    answer = await desk.call("POST", "/claim", body)
    return answer[1] if answer is not None and answer[0] == 200 else None


def _asked(claimed: Mapping[str, Any]) -> tuple[Operation, Journal]:
    """The operation as the API has it, and what was told of it, maybe by another machine."""
    found, steps = claimed["operation"], claimed["operation"]["steps"]
    written = Journal(tuple(steps["done"]), tuple(steps["open"]), tuple(steps["owed"]))
    return Operation(found["id"], found["kind"], found["variables"], "running", 0, resumed=found["resumed"]), written


def _check(state: State, asked: Operation, written: Journal) -> None:
    """A node is not trusted with this machine: what it gives becomes names of folders, and variables of Ansible, which would run a template. ConfigError.

    What is begun by hand alone is gone on with where it was begun so, and as it was.
    """
    known = [(one.id, one.kind, one.variables) for one in state.all()]
    here = (asked.id, asked.kind, asked.variables) in known
    wrong = [f"{where}: {what}" for where, what in refusals(asked.kind, asked.variables, here=here)]
    if not is_mid(asked.id):
        wrong.append("it has no id of an operation")
    if not all(_STEP.fullmatch(name) for names in (written.done, written.open, written.owed) for name in names):
        wrong.append("its steps are not names")
    if wrong:
        raise ConfigError(f"What the API asks for is not run here: {'; '.join(wrong)}")


async def _take(
    desk: Desk,
    claimed: Mapping[str, Any],
    declared: Callable[[], Desired],
    *,
    tell: Callable[[Event], None],
    stopped: Callable[[], bool],
) -> Operation:
    """What was claimed, to its end; one that cannot be begun has failed."""
    state, clock = desk.state, desk.clock
    asked, written = _asked(claimed)
    telling = Telling(desk, asked, int(claimed["fence"]), journal=written)
    try:
        _check(state, asked, written)
        telling.turn(await asyncio.to_thread(declared))
        while state.held() and not stopped():  # one was begun by hand meanwhile
            await telling.report(asked)
            await asyncio.sleep(_EVERY_SECONDS)
        with state.lock():
            operation = adopt(state, asked, written, clock)
            telling.journal = None
            if claimed["operation"]["cancelling"] or telling.canceled or stopped():
                ended = state.save(replace(operation, state="canceled", ended_at=clock.now_ms(), pid=0))
                await telling.finish(ended)
                return ended
            verb = claimed["operation"]["verb"]
            return await operate(telling, operation, tell, canceled=stopped, verb=verb)
    except ConfigError as error:
        failed = replace(asked, state="failed", problem=str(error))
        await telling.report(failed)
        return failed
