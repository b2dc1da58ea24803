"""`heliograph ops`: operations on a region, run where its stack is (the project's folder, with pulumi's passphrase and Ansible)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from controlplane.clock import SystemClock
from controlplane.errors import ConfigError
from controlplane.ops import canary
from controlplane.ops.desired import desired
from controlplane.ops.operation import Operation, State, begin, find, run
from controlplane.ops.runner import Event, play

__all__ = ["ops"]

ops = typer.Typer(
    no_args_is_help=True,
    help="Operations on a region: each looks first, goes step by step, counts messages all the while, and goes on after a cut when it is run again.",
)

Stack = Annotated[str, typer.Argument(help="The region's stack.")]
Folder = Annotated[Path, typer.Option("--state", help="Where operations are written down.")]
Scope = Annotated[str, typer.Option(help="nodes, mongodb or everything.")]
_STATE = Path("data") / "operations"
_SCOPES = ("nodes", "mongodb", "everything")
_FAILED = 1
_ABORT_SECONDS = 30.0


def _tell(event: Event) -> None:
    if event.kind != "ok":
        typer.echo(f"{event.kind:<8} {event.host:<15} {event.task}")
        for line in event.diff:
            typer.echo(f"{'':<24} {line}")
    if event.message:
        typer.echo(f"{'':<24} {event.message}")


def _operate(stack: str, folder: Path, kind: str, **variables: str) -> None:
    state = State((folder / stack).resolve())
    known, clock = desired(stack), SystemClock()
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda found, _frame: asked.append(found))
    with state.lock():
        operation = begin(state, kind, {name: value for name, value in variables.items() if value}, clock)
        if operation.resumed:
            written = state.journal(operation)
            typer.echo(
                f"{kind} of {stack} goes on: {len(written.done)} steps are done, open: {', '.join(written.open) or 'none'}"
            )
        ended = asyncio.run(run(state, operation, known, clock, _tell, canceled=lambda: bool(asked)))
    _say(stack, state, ended)
    if ended.state != "done":
        raise typer.Exit(_FAILED)


def _say(stack: str, state: State, operation: Operation) -> None:
    written = state.journal(operation)
    cut = operation.state == "running" and not state.held()
    typer.echo(
        f"{stack}: {operation.kind} {operation.id} {'was cut' if cut else operation.state}, {operation.changed} changed"
    )
    sent = canary.accepted(state.path(operation, "canaries.jsonl"))
    if sent:
        typer.echo(
            f"  messages through it: {len(sent)} accepted, {sum(one['retried'] for one in sent)} attempts repeated"
        )
    for words, found in (("done", written.done), ("open", written.open), ("owed", written.owed)):
        if found:
            typer.echo(f"  {words}: {', '.join(found)}")
    if operation.problem:
        typer.echo(f"  {operation.problem}")
    if operation.unfinished and (cut or operation.state != "running"):
        typer.echo("  Run it again to go on, or `heliograph ops abort` to take back what it owes.")


def _scope(value: str) -> str:
    if value not in _SCOPES:
        raise ConfigError(f"--scope {value} is not known; it is one of {', '.join(_SCOPES)}")
    return value


@ops.command()
def plan(stack: Stack, scope: Scope = "everything") -> None:
    """What an upgrade of this scope would change, host by host. Changes nothing."""
    done = play(
        desired(stack),
        "upgrade.yml",
        {"heliograph_scope": _scope(scope)},
        check=True,
        tell=_tell,
        canceled=lambda: False,
    )
    typer.echo(f"{stack}: {done.changed} steps would change something" if not done.problem else done.problem)
    if done.status != "successful":
        raise typer.Exit(_FAILED)


@ops.command()
def site(stack: Stack, state: Folder = _STATE) -> None:
    """Bring everything to what is declared, one step after another."""
    _operate(stack, state, "site")


@ops.command()
def verify(stack: Stack, state: Folder = _STATE) -> None:
    """Report drift and health, and send a message through each node. Changes nothing."""
    _operate(stack, state, "verify")


@ops.command()
def upgrade(stack: Stack, scope: Scope = "everything", state: Folder = _STATE) -> None:
    """Bring nodes, MongoDB or both to the declared images and settings, without a message lost."""
    _operate(stack, state, "upgrade", scope=_scope(scope))


@ops.command()
def features(
    stack: Stack, confirm: Annotated[str, typer.Option(help="The version, such as 8.0.")], state: Folder = _STATE
) -> None:
    """Raise MongoDB's feature compatibility version, once an upgrade has proven itself. There is no way back."""
    _operate(stack, state, "features", confirm=confirm)


@ops.command()
def drain(
    stack: Stack,
    host: Annotated[str, typer.Option(help="All nodes of this host.")] = "",
    node: Annotated[str, typer.Option(help="This node alone.")] = "",
    state: Folder = _STATE,
) -> None:
    """Stop nodes in good order: they take no more, and the others adopt what is open."""
    _operate(stack, state, "drain", host=host, node=node)


@ops.command()
def undrain(
    stack: Stack,
    host: Annotated[str, typer.Option(help="All nodes of this host.")] = "",
    node: Annotated[str, typer.Option(help="This node alone.")] = "",
    state: Folder = _STATE,
) -> None:
    """Start drained nodes again."""
    _operate(stack, state, "undrain", host=host, node=node)


@ops.command()
def status(stack: Stack, state: Folder = _STATE, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """The newest operations, and where an unfinished one stands."""
    known = State((state / stack).resolve())
    found = known.all()[-10:]
    if as_json:
        typer.echo(json.dumps([asdict(one) | asdict(known.journal(one)) for one in found]))
        return
    for operation in found:
        _say(stack, known, operation)
    if not found:
        typer.echo(f"{stack}: no operation was run from here")


@ops.command()
def abort(stack: Stack, state: Folder = _STATE) -> None:
    """End the operation that runs, or was cut, and take back what it owes: drained nodes run again, the balancer too. What was upgraded stays."""
    known = State((state / stack).resolve())
    left = find(known)
    if left is None:
        typer.echo(f"{stack}: nothing to abort")
        return
    end = time.monotonic() + _ABORT_SECONDS
    if known.held() and left.pid and left.pid != os.getpid():
        os.kill(left.pid, signal.SIGTERM)
        while known.held():
            if time.monotonic() > end:
                raise ConfigError(
                    f"The operation {left.id} (process {left.pid}) does not end; end it, then abort again."
                )
            time.sleep(0.2)
    with known.lock():
        written = known.journal(left)
        done = play(
            desired(stack),
            "abort.yml",
            {"heliograph_owed": list(written.owed), "heliograph_journal": str(known.path(left, "journal.jsonl"))},
            tell=_tell,
            canceled=lambda: False,
        )
        if done.status == "successful":
            left = known.save(replace(left, state="aborted", ended_at=SystemClock().now_ms(), pid=0))
    _say(stack, known, left)
    if done.status != "successful":
        sys.stderr.write(f"{done.problem}\n")
        raise typer.Exit(_FAILED)
