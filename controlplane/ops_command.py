"""`heliograph ops`: operations on a region, run where its stack is (the project's folder, with pulumi's passphrase and Ansible)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from controlplane.clock import SystemClock
from controlplane.domain.operations import KINDS, refusals
from controlplane.errors import ConfigError
from controlplane.ops import canary
from controlplane.ops.agent import alone, serve
from controlplane.ops.desired import desired
from controlplane.ops.operation import Operation, State, begin, find
from controlplane.ops.phases import ask
from controlplane.ops.reporting import Desk, HeldElsewhereError, Telling, operate
from controlplane.ops.runner import Event, play

__all__ = ["ops"]

ops = typer.Typer(
    no_args_is_help=True,
    help="Operations on a region: each looks first, goes step by step, counts messages all the while, and goes on after a cut when it is run again.",
)

Stack = Annotated[str, typer.Argument(help="The region's stack.")]
Folder = Annotated[Path, typer.Option("--state", help="Where operations are written down.")]
Scope = Annotated[str, typer.Option(help="nodes, mongodb or everything.")]
Again = Annotated[bool, typer.Option("--again", help="Also where it was done today.")]
Told = Annotated[
    list[str] | None, typer.Option(help="A region elsewhere whose operator has the new entry, or `clients`.")
]
Check = Annotated[bool, typer.Option("--check", help="Tell what would be done; change nothing.")]
_STATE = Path("data") / "operations"
_FAILED = 1
_ABORT_SECONDS = 30.0


def _tell(event: Event) -> None:
    if event.kind != "ok":
        typer.echo(f"{event.kind:<8} {event.host:<15} {event.task}")
        for line in event.diff:
            typer.echo(f"{'':<24} {line}")
    if event.message:
        typer.echo(f"{'':<24} {event.message}")


def _checked(kind: str, **given: str) -> dict[str, str]:
    """Those that are given, once nothing is wrong with them. ConfigError."""
    variables = {name: value for name, value in given.items() if value}
    if wrong := refusals(kind, variables, here=True):
        raise ConfigError("; ".join(f"{where.rpartition('/')[2]}: {what}" for where, what in wrong))
    return variables


def _operate(stack: str, folder: Path, kind: str, **given: str) -> None:
    variables = _checked(kind, **given)
    state = State((folder / stack).resolve())
    known, clock, canceled = desired(stack), SystemClock(), _signals()
    with state.lock():

        async def work() -> Operation:
            async with Desk(known, state, clock) as desk:
                heard = await desk.catch_up()
                before = find(state)
                operation = begin(state, kind, variables, clock)
                telling = Telling(desk, operation)
                try:
                    if heard:
                        await telling.enter(operation)
                except HeldElsewhereError:
                    if KINDS[kind].changes:
                        _undo(state, before, operation)
                        raise
                if operation.resumed:
                    written = state.journal(operation)
                    left = ", ".join(written.open) or "none"
                    typer.echo(f"{kind} of {stack} goes on: {len(written.done)} steps are done, open: {left}")
                return await operate(telling, operation, _tell, canceled=canceled)

        ended = asyncio.run(work())
    _say(stack, state, ended)
    if ended.state != "done":
        raise typer.Exit(_FAILED)


def _signals() -> Callable[[], bool]:
    """Whether somebody wants this to end, from now on."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda found, _frame: asked.append(found))
    return lambda: bool(asked)


def _undo(state: State, before: Operation | None, operation: Operation) -> None:
    """As if it had never been begun: the API knows of another one that is not finished."""
    if before is not None and before.id == operation.id:
        state.save(before)
    else:
        state.forget(operation)


def _say(stack: str, state: State, operation: Operation) -> None:
    written = state.journal(operation)
    cut = operation.state == "running" and not state.held()
    typer.echo(
        f"{stack}: {operation.kind} {operation.id} {'was cut' if cut else operation.state}, {operation.changed} changed"
    )
    sent = canary.counted(state.path(operation, "canaries.jsonl"))
    if sent["accepted"]:
        typer.echo(
            f"  messages through it: {sent['accepted']} accepted, {sent['missing']} missing, {sent['retried']} attempts repeated"
        )
    if written.total:
        typer.echo(f"  steps: {written.passed} of {written.total} passed")
    for words, found in (("done", written.done), ("open", written.open), ("owed", written.owed)):
        if found:
            typer.echo(f"  {words}: {', '.join(found)}")
    if operation.problem:
        typer.echo(f"  {operation.problem}")
    if operation.unfinished and (cut or operation.state != "running"):
        typer.echo("  Run it again to go on, or `heliograph ops abort` to take back what it owes.")


@ops.command()
def plan(stack: Stack, scope: Scope = "everything") -> None:
    """What an upgrade of this scope would change, host by host. Changes nothing."""
    done = play(
        desired(stack),
        "upgrade.yml",
        {"heliograph_scope": _checked("plan", scope=scope)["scope"]},
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
    _operate(stack, state, "upgrade", scope=scope)


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


def _change(stack: str, folder: Path, kind: str, *, check: bool, told: list[str] | None = None, **given: str) -> None:
    """An operation of phases, or with `check` what they would be. `told`: regions, or clients, that have what a phase waits for."""
    variables = _checked(kind, **given)
    subject = variables.get("scope", kind)
    for one in told or ():
        ask("told", stack, subject, peer=one, variables=variables)
    if not check:
        _operate(stack, folder, kind, **given)
        return
    found = ask("plan", stack, subject, variables=variables)
    for line in found["phases"]:
        typer.echo(line)
    typer.echo(f"{stack}: {found['preview'] or 'the next phase is under way, or changes no host by itself'}")


@ops.command("rotate-certificates")
def rotate_certificates(
    stack: Stack,
    scope: Annotated[str, typer.Option(help="certificates, or authority: a new one, and then all certificates.")],
    again: Again = False,
    told: Told = None,
    check: Check = False,
    state: Folder = _STATE,
) -> None:
    """New keys and certificates on every host, one service after another; under a new authority the old ones are refused at the end."""
    _change(
        stack,
        state,
        "rotate-certificates",
        check=check,
        told=told,
        scope=scope,
        again="true" if again else "",
    )


@ops.command("rotate-keys")
def rotate_keys(
    stack: Stack,
    scope: Annotated[str, typer.Option(help="api, ledger or ssh.")],
    again: Again = False,
    told: Told = None,
    check: Check = False,
    state: Folder = _STATE,
) -> None:
    """A new first API key, key of the log, or SSH key; the old one ends once the new one has proven itself."""
    _change(stack, state, "rotate-keys", check=check, told=told, scope=scope, again="true" if again else "")


@ops.command("replace-host")
def replace_host(
    stack: Stack,
    host: Annotated[str, typer.Option(help="The host that goes: dead, or to be retired.")],
    by: Annotated[str, typer.Option(help="The new machine: name=address.")],
    host_key: Annotated[str, typer.Option(help="Its public SSH key; without it the key is read and shown.")] = "",
    check: Check = False,
    state: Folder = _STATE,
) -> None:
    """Put another machine in the place of a host. Its members get their data from the others."""
    _change(stack, state, "replace-host", check=check, host=host, by=by, host_key=host_key or _host_key(by))


def _host_key(by: str) -> str:
    """What answers at the address, once somebody has compared it."""
    shown = ask("host-key", "-", "replace-host", variables={"by": by})
    typer.echo(f"{by} answers with the SSH key {shown['fingerprint']}. Compare it on the machine's own console:")
    typer.echo("  ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
    typer.confirm("Is it the same?", abort=True)
    return str(shown["key"])


@ops.command("add-shard")
def add_shard(
    stack: Stack,
    shard: Annotated[str, typer.Argument(help="Its name.")],
    hosts: Annotated[str, typer.Option(help="Where its members stand, separated by commas.")] = "",
    check: Check = False,
    state: Folder = _STATE,
) -> None:
    """Add a shard behind the others. There is no way back."""
    _change(stack, state, "add-shard", check=check, shard=shard, hosts=hosts)


Where = Annotated[str, typer.Option("--host", help="On this host, which has a node; else on the first that has.")]


@ops.command()
def backup(
    stack: Stack,
    host: Where = "",
    name: Annotated[str, typer.Option(help="Of the backup; else the operation's id.")] = "",
    state: Folder = _STATE,
) -> None:
    """Back the database up as of one instant, while messages go on; the encrypted archive comes to data/backups/STACK."""
    _operate(stack, state, "backup", host=host, backup=name)


@ops.command()
def restore(
    stack: Stack,
    backup: Annotated[str, typer.Option(help="Which of those in data/backups/STACK.")],
    confirm: Annotated[str, typer.Option(help="The region's name, once more: what its database holds is replaced.")],
    host: Where = "",
    discard: Annotated[
        bool, typer.Option("--discard", help="Stop nodes and ledgers, and empty the database, first.")
    ] = False,
    state: Folder = _STATE,
) -> None:
    """Put a backup into the region's empty database, then start ledgers and nodes in the right order. Run it again after a cut."""
    _operate(stack, state, "restore", backup=backup, confirm=confirm, host=host, discard="true" if discard else "")


@ops.command()
def drill(
    stack: Stack,
    backup: Annotated[str, typer.Option(help="Which of those in data/backups/STACK; else the newest.")] = "",
    state: Folder = _STATE,
) -> None:
    """Restore a backup on this machine, and assert that every accepted message is there. The region is not asked."""
    _operate(stack, state, "drill", backup=backup)


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
    known, clock = State((state / stack).resolve()), SystemClock()
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

        async def work() -> Operation:
            async with Desk(desired(stack), known, clock) as desk:
                telling = Telling(desk, left)
                with suppress(HeldElsewhereError):  # what is owed here is taken back here
                    await telling.enter(left)
                return await operate(telling, left, _tell, canceled=lambda: False, verb="abort")

        ended = asyncio.run(work())
    _say(stack, known, ended)
    if ended.state != "aborted":
        raise typer.Exit(_FAILED)


@ops.command()
def agent(
    stack: Stack,
    once: Annotated[bool, typer.Option(help="Run what is asked for now, and end.")] = False,
    state: Folder = _STATE,
) -> None:
    """Run what is asked for over the API and the console, until Ctrl-C. Keep it running where the region's stack is."""
    known, canceled = State((state / stack).resolve()), _signals()
    typer.echo(f"{stack}: operations that are asked for run here; Ctrl-C ends this")
    with alone(known):
        asyncio.run(
            serve(
                known,
                lambda: desired(stack),
                SystemClock(),
                tell=_tell,
                say=lambda ended: _say(stack, known, ended),
                stopped=canceled,
                once=once,
            )
        )
