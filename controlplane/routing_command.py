"""`heliograph routing`: what the router knows, and what learning gains. Exit codes as in `ledger_command`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from controlplane.client import Client
from controlplane.ledger_command import out, told
from controlplane.options import DATA, AsJson, Data, Url

__all__ = ["routing"]

routing = typer.Typer(no_args_is_help=True, help="What the router has learned, and what it gains.")


@routing.command()
def status(url: Url = None, data: Data = DATA, *, as_json: AsJson = False) -> None:
    """Routes as the router knows them, which of them it holds back, and the last breaks that it saw."""
    with told():
        known = Client(url, None, data).call("GET", "/v1/routing")
    if as_json:
        out.print_json(data=known)
        return
    table = Table("route", "class", "tries", "in time", "late", box=None)
    for item in known["routes"]:
        table.add_row(
            item["route"], item["class"], f"{item['tries']:,.0f}", f"{item['in_time']:.1%}", f"{item['late']:.1%}"
        )
    out.print(table if known["routes"] else "Nothing is known yet: no tenant's messages have been followed here.")
    for item in known["held_back"]:
        place = "/".join(filter(None, (item["country"], item["network"]))) or "everywhere"
        out.print(f"[yellow]held back[/] {item['route']} {place}")
    for item in known["breaks"][:10]:
        place = "/".join(filter(None, (item["country"], item["network"]))) or "everywhere"
        out.print(f"{item['at']}  {item['route']} {place}: {item['kind']}")


@routing.command()
def report(
    since: Annotated[str | None, typer.Option(help="RFC 3339: accepted from then on.")] = None,
    until: Annotated[str | None, typer.Option(help="RFC 3339: accepted before then.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=20_000, help="Messages, newest first.")] = 5_000,
    estimator: Annotated[str, typer.Option(help="Estimator: dr, ips, snips, dm …")] = "dr",
    url: Url = None,
    data: Data = DATA,
    *,
    as_json: AsJson = False,
) -> None:
    """What the learned order gains over the static one, by off-policy evaluation of the key's messages; and a replay of every decision."""
    with told():
        found = Client(url, None, data).call(
            "GET", "/v1/routing/report", since=since, until=until, limit=limit, estimator=estimator
        )
    if as_json:
        out.print_json(data=found)
    else:
        _print(found)
    if found["identical"] != found["replayed"]:
        raise typer.Exit(1)


def _print(found: dict[str, Any]) -> None:
    if not found["messages"]:
        out.print(
            "Nothing to evaluate: no message of this time has a decision whose outcome is known. Set the tenant's `routing` to shadow or learned, send, "
            "and ask again when receipts have come; or widen --since and --until."
        )
        return
    table = Table("", "utility a message", "95 %", "effective size", "delivered in time", box=None)
    for name in ("static", "learned", "gain"):
        one = found["utility"][name]
        delivered = found["delivered_in_time"].get(name)
        table.add_row(
            name,
            f"{one['value']:.3f}",
            f"{one['low']:.3f} to {one['high']:.3f}",
            f"{one['effective']:,.0f}",
            f"{delivered:.2%}" if delivered is not None else "",
        )
    out.print(table)
    out.print(
        f"{found['messages']:,} messages, {found['skipped']:,} more took a fallback; both orders agree on {found['agreement']:.1%}."
    )
    verdict = (
        "all identical" if found["identical"] == found["replayed"] else f"[bold red]{found['identical']:,} identical[/]"
    )
    out.print(f"{found['replayed']:,} decisions replayed: {verdict}.")
    if found["utility"]["gain"]["effective"] < 100:
        out.print("[yellow]Too few messages went another way than the one compared with it to believe the gain yet.[/]")
