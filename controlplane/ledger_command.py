"""`heliograph ledger`: the role itself, and what people do with a ledger.

Exit codes of the commands: 0 all is well, 1 something is wrong (an alarm, a proof or log that does not hold), 2 wrong usage or configuration, 3 not reachable or
not complete.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from controlplane.client import ApiError, Client, UnreachableError
from controlplane.errors import ConfigError
from controlplane.options import DATA, AsJson, Data, Url

__all__ = ["follow", "ledger", "told"]

ledger = typer.Typer(invoke_without_command=True, help="Run one ledger; or look at, verify, prove and repair it.")

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

Keys = Annotated[
    list[str] | None,
    typer.Option("--key", help="Verifier key (vkey) of a log, from a place that you trust; once for each log."),
]
Dc = Annotated[str | None, typer.Option("--dc", help="Datacenter; else the node's own.")]
LogName = Annotated[
    str | None, typer.Option("--log", help="Log of the datacenter, such as 2026q4; else the current one.")
]
_WRONG, _USAGE, _INCOMPLETE = 1, 2, 3
_POLL_SECONDS = 0.5


def _json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


@contextmanager
def told() -> Iterator[None]:
    """Problems and silence become sentences and this module's exit codes."""
    try:
        yield
    except ApiError as error:
        problem = error.problem
        err.print(
            f"[bold red]{problem.get('title', 'Error')}[/]: {problem.get('detail', '')} {problem.get('next_step', '')}"
        )
        raise typer.Exit(_INCOMPLETE if int(problem.get("status", 500)) in (429, 502, 503, 504) else _USAGE) from None
    except UnreachableError as error:
        err.print(f"[bold red]Error[/]: {error}")
        raise typer.Exit(_INCOMPLETE) from None


@contextmanager
def progress(what: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's standard error: `told(done, total)`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not (shown and err.is_terminal)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@ledger.callback()
def role(context: typer.Context) -> None:
    """Without a command: run one ledger; its settings are HELIOGRAPH_… variables (docs/settings.md)."""
    if context.invoked_subcommand is None:
        from controlplane.ledger.service import run_ledger  # noqa: PLC0415 - the other commands start without it
        from controlplane.settings import load  # noqa: PLC0415

        uvloop.run(run_ledger(load()))


@ledger.command()
def status(url: Url = None, data: Data = DATA, as_json: AsJson = False) -> None:
    """How it stands. Exit code 1 when there are alarms."""
    with told():
        found = Client(url, None, data, admin=True).call("GET", "/v1/ledger")
    if as_json:
        _json(found)
    else:
        _show(found)
    raise typer.Exit(_WRONG if found["alarms"] else 0)


def _show(found: dict[str, Any]) -> None:
    leader, waiting = found["leader"], found["unsequenced"]
    out.print(f"datacenter {found['datacenter']}, led by {leader['holder'] if leader else 'nobody'}")
    out.print(f"{waiting['events']} events wait to be sequenced, the oldest for {waiting['seconds']} s")
    table = Table("log", "", "state", "published", "witnessed", "mirrored", box=None, pad_edge=False)
    for log in found["logs"]:
        sizes = (str(log[name]) for name in ("published", "witnessed", "mirrored"))
        table.add_row(log["origin"], "own" if log["own"] else "copy", log["state"], *sizes)
    out.print(table)
    for log in found["logs"]:
        for item in log["cosigners"]:
            behind = (
                f", {item['behind_entries']} entries and {item['behind_seconds']} s behind"
                if item["behind_entries"]
                else ""
            )
            out.print(f"  {item['name']} has cosigned {item['size']} of {log['origin']}{behind}")
    for alarm in found["alarms"]:
        out.print(f"[bold red]{alarm['kind']}[/]: {alarm['what']} {alarm['next_step']}")
    if not found["alarms"]:
        out.print("All is well.")


# -- verifying logs ----------------------------------------------------------------------------------------------------------


@ledger.command()
def verify(
    dc: Annotated[str | None, typer.Option("--dc", help="Only the logs of this datacenter.")] = None,
    log: Annotated[str | None, typer.Option("--log", help="Only this log, such as 2026q4.")] = None,
    key: Keys = None,
    start: Annotated[
        int, typer.Option("--from", min=0, help="Begin at this entry; what is before enters by its hashes.")
    ] = 0,
    url: Url = None,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Download and verify whole logs, believing nobody: entries, tiles, root, signatures."""
    client = Client(url, None, data, admin=True, anonymous=True)
    with told():
        results = asyncio.run(_verify(client, dc, log, key or [], start, as_json=as_json))
    if as_json:
        _json({"logs": results})
    if not results:
        err.print("No such log. GET /ledger/ lists those that are held.")
        raise typer.Exit(_USAGE)
    states = {result["state"] for result in results}
    raise typer.Exit(_WRONG if "wrong" in states else _INCOMPLETE if "incomplete" in states else 0)


async def _verify(
    client: Client, dc: str | None, name: str | None, vkeys: list[str], start: int, *, as_json: bool
) -> list[dict[str, Any]]:
    results = []
    async with client.fetching() as fetch:
        listed = json.loads(await fetch("/ledger/"))["data"]
        for log in listed:
            if dc in (None, log["datacenter"]) and name in (None, log["epoch"]):
                result = await _verify_one(fetch, log, vkeys, start, quiet=as_json)
                results.append(result)
                if not as_json:
                    _print_verified(result)
    return results


async def _verify_one(
    fetch: Callable[[str], Any], log: dict[str, Any], vkeys: list[str], start: int, *, quiet: bool
) -> dict[str, Any]:
    from controlplane.ledger.remote import RemoteLogError, open_note, verify_log  # noqa: PLC0415

    origin = log["origin"]
    keys, given = _keys(vkeys, origin, log["vkey"])
    result: dict[str, Any] = {
        "origin": origin,
        "key": "given" if given else "from the server",
        "state": "wrong",
        "verified": start,
    }
    if not given and not quiet:
        err.print(f"[yellow]{origin}: verified with the key that the server names, {log['vkey']}[/]")

    async def read(path: str) -> bytes:
        try:
            return bytes(await fetch(f"{log['url']}/{path}"))
        except ApiError as error:
            if error.problem.get("status") == 404:
                raise RemoteLogError(f"{origin}/{path} is not served") from None
            raise

    with progress(origin, shown=not quiet) as bar:

        def count(done: int, total: int) -> None:
            result["verified"] = done
            bar(done, total)

        try:
            seen = open_note(await read("checkpoint"), origin, keys)
            result |= {"size": seen.checkpoint.size, "root": seen.checkpoint.root.hex()}
            result["signed_by"] = [name for name, _ in seen.signed_by]
            result["entries"] = await verify_log(read, seen, start, count)
            result["state"] = "verified"
        except RemoteLogError as error:
            result["error"] = str(error)
        except (ApiError, UnreachableError) as error:
            result |= {"state": "incomplete", "error": str(error)}
    return result


def _keys(vkeys: list[str], origin: str, served: str) -> tuple[list[Any], bool]:
    """Verifiers, and whether one for this log was given."""
    from controlplane.ledger.note import NoteError, Verifier  # noqa: PLC0415

    try:
        keys = [Verifier.parse(vkey.strip()) for vkey in vkeys]
        given = any(key.name == origin for key in keys)
        return (keys if given else [*keys, Verifier.parse(served)]), given
    except NoteError as error:
        raise ConfigError(f"--key: {error}") from None


def _print_verified(result: dict[str, Any]) -> None:
    origin = result["origin"]
    if result["state"] == "verified":
        names = ", ".join(result["signed_by"])
        out.print(
            f"[green]verified[/] {origin}: {result['entries']} of {result['size']} entries, root {result['root']}, signed by {names}"
        )
    elif result["state"] == "incomplete":
        out.print(f"[yellow]incomplete[/] {origin}: {result['error']} Go on with --from {result['verified']}.")
    else:
        out.print(f"[bold red]wrong[/] {result['error']} ({result['verified']} entries were right so far)")


@ledger.command()
def checkpoint(
    dc: Dc = None, log: LogName = None, key: Keys = None, url: Url = None, data: Data = DATA, as_json: AsJson = False
) -> None:
    """Print a log's newest signed checkpoint, and verify it."""
    from controlplane.ledger.remote import RemoteLogError, open_note  # noqa: PLC0415

    client = Client(url, None, data, admin=True, anonymous=True)

    async def read() -> tuple[dict[str, Any], str]:
        async with client.fetching() as fetch:
            logs = [
                each
                for each in json.loads(await fetch("/ledger/"))["data"]
                if (each["own"] if dc is None else each["datacenter"] == dc)
            ]
            logs = [each for each in logs if log in (None, each["epoch"])]
            if not logs:
                raise ConfigError("No such log. GET /ledger/ lists those that are held.")
            return logs[-1], (await fetch(f"{logs[-1]['url']}/checkpoint")).decode()

    with told():
        found, note = asyncio.run(read())
    keys, given = _keys(key or [], found["origin"], found["vkey"])
    try:
        seen = open_note(note, found["origin"], keys)
    except RemoteLogError as error:
        err.print(f"[bold red]wrong[/]: {error}")
        raise typer.Exit(_WRONG) from None
    if as_json:
        signed = [{"name": name, "at": at} for name, at in seen.signed_by]
        _json(
            {
                "origin": found["origin"],
                "size": seen.checkpoint.size,
                "root": seen.checkpoint.root.hex(),
                "note": note,
                "signed_by": signed,
                "key": "given" if given else "from the server",
            }
        )
        return
    typer.echo(note, nl=False)
    if not given:
        err.print(f"[yellow]verified with the key that the server names, {found['vkey']}[/]")


# -- proofs of messages --------------------------------------------------------------------------------------------------------


@ledger.command()
def prove(
    message_id: str,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write the proof; else standard output.")
    ] = None,
    payload: Annotated[
        bool, typer.Option("--payload", help="With recipient, text and what else the log commits to.")
    ] = False,
    url: Url = None,
    data: Data = DATA,
) -> None:
    """Fetch the proof of a message. Exit code 3 while some of its events are not in a published checkpoint yet."""
    with told():
        found = Client(url, None, data, admin=True).call(
            "GET", f"/v1/messages/{message_id}/proof", payload="true" if payload else None
        )
    text = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        err.print(
            f"{len(found['events'])} events, {len(found['pending'])} pending; verify it with: heliograph ledger verify-proof {output} --key …"
        )
    raise typer.Exit(0 if found["complete"] else _INCOMPLETE)


@ledger.command("verify-proof")
def verify_proof(
    file: Annotated[Path, typer.Argument(help="As `prove` wrote it.", exists=True, dir_okay=False)],
    key: Annotated[
        list[str], typer.Option("--key", help="vkey of a log, from a place that you trust; once for each log.")
    ],
    witness: Annotated[
        list[str] | None, typer.Option("--witness", help="vkey of a witness or mirror that you trust.")
    ] = None,
    require: Annotated[
        int | None, typer.Option("--require", min=0, help="How many of these must have cosigned; else all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a proof. Needs no server; the one file of GET /ledger/verifier.py does the same without Heliograph."""
    from controlplane.ledger.merkle import ProofError  # noqa: PLC0415
    from controlplane.ledger.note import NoteError, Verifier  # noqa: PLC0415
    from controlplane.ledger.proof import parse_document, verify_document  # noqa: PLC0415

    try:
        keys = [Verifier.parse(vkey.strip()) for vkey in [*key, *(witness or [])]]
    except NoteError as error:
        raise ConfigError(str(error)) from None
    needed = len(witness or []) if require is None else require
    if needed > len(witness or []):
        raise ConfigError(f"--require {needed}, but {len(witness or [])} --witness are given")
    try:
        report = verify_document(parse_document(file.read_bytes()), keys, needed)
    except ProofError as error:
        _json({"verified": False, "error": str(error)}) if as_json else err.print(f"[bold red]NOT VERIFIED[/]: {error}")
        raise typer.Exit(_WRONG) from None
    logs: list[dict[str, Any]] = [
        {"log": each.origin, "size": each.size, "root": each.root.hex(), "cosigners": [[c.name, c.timestamp] for c in each.cosigners]}
        for each in report.logs
    ]  # fmt: skip
    events = [event._asdict() for event in report.events]
    if as_json:
        _json(
            {
                "verified": True,
                "id": report.id,
                "complete": report.complete,
                "events": events,
                "pending": report.pending,
                "logs": logs,
            }
        )
    else:
        out.print(f"message {report.id}")
        for event in report.events:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.at / 1000))
            out.print(f"  {event.k:3} {event.kind:12} {when} UTC  entry {event.index} of {event.log}")
            if event.payload is not None:
                out.print(f"      {json.dumps(event.payload, ensure_ascii=False)}", markup=False)
        for each in logs:
            names = ", ".join(name for name, _ in each["cosigners"]) or "no witness that was given"
            out.print(
                f"log {each['log']}: {each['size']} entries, root {each['root']}, signed by its key, seen by {names}"
            )
        out.print(
            "[green]VERIFIED[/]"
            + ("" if report.complete else f"; not complete: events {list(report.pending)} are not in the log yet")
        )
    raise typer.Exit(0 if report.complete else _INCOMPLETE)


# -- repair --------------------------------------------------------------------------------------------------------------------


@ledger.command()
def repair(
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, only say what would be done.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the ledger that leads.")] = 3600.0,
    url: Url = None,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Verify everything that is held here, and mend what is not as it was signed. Exit code 1 when something is left."""
    client = Client(url, None, data, admin=True)
    with told():
        asked = client.call("POST", "/v1/ledger/repairs", {"dry_run": not apply})
        found = follow(
            partial(client.call, "GET", f"/v1/ledger/repairs/{asked['id']}"), "repair", wait, shown=not as_json
        )
    if as_json:
        _json(found)
    else:
        _print_repair(found)
    if found["state"] in ("asked", "running"):
        raise typer.Exit(_INCOMPLETE)
    raise typer.Exit(0 if found["state"] == "done" and found.get("report", {}).get("clean") else _WRONG)


def follow(read: Callable[[], dict[str, Any]], what: str, wait: float, *, shown: bool) -> dict[str, Any]:
    """Ask until it is at its end, or the time is over."""
    deadline = time.monotonic() + wait
    with progress(what, shown=shown) as bar:
        while True:
            found = read()
            if found["state"] not in ("asked", "running") or time.monotonic() > deadline:
                return found
            bar(found.get("seen", 0), found.get("total") or 0)
            time.sleep(_POLL_SECONDS)


def _print_repair(found: dict[str, Any]) -> None:
    report = found.get("report", {})
    if found["state"] in ("asked", "running"):
        out.print(f"{found['id']} is {found['state']}. `heliograph ledger status` says whether a ledger leads.")
        return
    if found["state"] != "done":
        out.print(f"[bold red]{found['state']}[/] {found.get('error', '')}")
        return
    for action in report.get("actions", ()):
        out.print(
            f"{action['outcome']:8} {action['kind']:14} {action['origin']} {action['first']}–{action['last']} {action['subject']}: {action['what']}",
            markup=False,
        )
    for finding in report.get("remaining", ()):
        out.print(
            f"left     {finding['kind']:14} {finding['origin']} {finding['first']}–{finding['last']} {finding['subject']}: {finding['detail'].splitlines()[0] if finding['detail'] else ''}",
            markup=False,
        )
    words = "nothing was changed" if report.get("dry_run") else "done"
    out.print(
        "[green]Everything is as it was signed.[/]"
        if report.get("clean")
        else f"{len(report.get('remaining', ()))} findings; {words}."
    )


# -- keys ----------------------------------------------------------------------------------------------------------------------


@ledger.command()
def keys(
    new: Annotated[
        Path | None, typer.Option("--new", help="Make a new secret in this file (mode 0600; must not exist).")
    ] = None,
    seed_file: Annotated[
        Path | None, typer.Option("--seed-file", help="Secret to show the public keys of; else HELIOGRAPH_LEDGER_KEY.")
    ] = None,
    dc: Annotated[str | None, typer.Option("--dc", help="Datacenter; else HELIOGRAPH_DATACENTER.")] = None,
    domain: Annotated[str | None, typer.Option("--domain", help="Else HELIOGRAPH_LEDGER_DOMAIN.")] = None,
    urls: Annotated[
        list[str] | None, typer.Option("--ledger-url", help="Where other datacenters reach this one's ledgers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the public keys of a ledger's secret, as the other side's HELIOGRAPH_LEDGER_PEERS wants them."""
    from controlplane.ledger.keys import public_keys, read_seed, write_seed  # noqa: PLC0415
    from controlplane.settings import load  # noqa: PLC0415

    if new is not None:
        write_seed(new)
    file = new or seed_file
    settings = load(datacenter=dc, ledger_domain=domain) if file is None or dc is None or domain is None else None
    seed = read_seed(file) if file is not None else settings.ledger_seed if settings else b""
    found = public_keys(
        seed,
        dc or (settings.datacenter if settings else ""),
        domain or (settings.ledger_domain if settings else ""),
        urls or [],
    )
    if as_json:
        _json(found)
        return
    if new is not None:
        err.print(
            f"{new} is the secret of this datacenter's ledgers. Keep it apart from the database, and set HELIOGRAPH_LEDGER_KEY_FILE to it."
        )
    out.print("For the other datacenters' HELIOGRAPH_LEDGER_PEERS:")
    typer.echo(json.dumps([found["peer"]], indent=1))
    out.print("Verifier keys, to be published where those who verify proofs trust you:")
    for name in ("log", "witness", "mirror"):
        typer.echo(found["vkeys"][name])
