"""`heliograph region`: the datacenters, and taking over the messages of one that is lost. Exit codes as in `ledger_command`."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from controlplane.client import Client
from controlplane.errors import ConfigError
from controlplane.ledger_command import follow, told
from controlplane.options import DATA, AsJson, Data, Url

__all__ = ["region"]

region = typer.Typer(no_args_is_help=True, help="The deployment's datacenters, and the loss of one.")

out = Console(soft_wrap=True, highlight=False)

_WORDS = {
    "scheduled": "are sent at their time, which is still to come: certainly not sent before",
    "send": "have no recorded attempt, and are sent now",
    "hold": "become `unknown`, and are not sent: an attempt cannot be excluded",
    "submitted": "were taken by a carrier; their receipts are awaited",
    "unknown": "are `unknown` already; their own policy decides",
}


@region.command("list")
def list_regions(url: Url = None, data: Data = DATA, as_json: AsJson = False) -> None:
    """The datacenters, and how much of each is held here."""
    with told():
        found = Client(url, None, data, admin=True).call("GET", "/v1/regions")
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    table = Table("datacenter", "", "entries", "newest entry", "reachable", "adopted", box=None, pad_edge=False)
    for item in found["data"]:
        adopted = [each["at"] for each in item["adoptions"] if not each["dry_run"] and each["state"] == "done"]
        reachable = {True: "yes", False: "no", None: ""}[item["reachable"]]
        own = "this one" if item["own"] else ""
        table.add_row(
            item["datacenter"],
            own,
            str(item["entries"]),
            item["newest_entry_at"] or "none",
            reachable,
            adopted[0] if adopted else "",
        )
    out.print(table)


@region.command()
def adopt(
    dc: Annotated[str, typer.Argument(help="Datacenter that is lost.")],
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, only count.")] = False,
    hold: Annotated[
        bool,
        typer.Option("--hold", help="Send nothing that may have been sent: make it `unknown`, whatever its policy."),
    ] = False,
    send: Annotated[
        bool, typer.Option("--send", help="Send everything of which no attempt is recorded, whatever its policy.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Although it still answers. Its nodes must be stopped.")
    ] = False,
    wait: Annotated[float, typer.Option(help="Seconds to follow it; it goes on without.")] = 86_400.0,
    url: Url = None,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Take over the open messages of a datacenter that is lost for good, as they are mirrored here."""
    if hold and send:
        raise ConfigError("--hold and --send exclude each other")
    client = Client(url, None, data, admin=True)
    body = {"dry_run": not apply, "force": force, "unattempted": "hold" if hold else "send" if send else "policy"}
    with told():
        regions = {item["datacenter"]: item for item in client.call("GET", "/v1/regions")["data"]}
        asked = client.call("POST", f"/v1/regions/{dc}/adopt", body)
        found = follow(
            partial(client.call, "GET", f"/v1/regions/{dc}/adoptions/{asked['id']}"), f"{dc}", wait, shown=not as_json
        )
    if as_json:
        typer.echo(json.dumps({**found, "region": regions.get(dc)}, ensure_ascii=False))
    else:
        _print(found, regions.get(dc) or {})
    raise typer.Exit({"done": 1 if found["damaged"] else 0, "failed": 1}.get(found["state"], 3))


def _print(found: dict[str, Any], region_now: dict[str, Any]) -> None:
    age = region_now.get("newest_entry_age_seconds")
    out.print(
        f"The last mirrored entry of {found['dc']} is {f'{age} s old' if age is not None else 'not there'}; what happened after it is not known here."
    )
    for name, words in _WORDS.items():
        if found["counts"].get(name):
            out.print(f"{found['counts'][name]:10} {words}")
    if not found["counts"]:
        out.print("No open messages.")
    if found["damaged"]:
        out.print(
            f"[bold red]{found['damaged']}[/] messages cannot be read; the node's log names them, `heliograph ledger repair` mends them"
        )
    if found["state"] == "failed":
        out.print(f"[bold red]failed[/]: {found['error']} Begin it again: nothing is done twice.")
    elif found["state"] == "running":
        out.print(f"It goes on: GET /v1/regions/{found['dc']}/adoptions/{found['id']}")
    elif found["dry_run"]:
        out.print("Nothing was changed. With --apply it is done.")
    else:
        out.print(f"{found['adopted']} messages were taken over.")
