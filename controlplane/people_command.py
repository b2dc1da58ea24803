"""`heliograph people`: who may use the console (admin key). Exit codes as in `cli`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from controlplane.client import Client
from controlplane.domain.people import Role
from controlplane.options import DATA, AsJson, Data, Url

__all__ = ["people"]

people = typer.Typer(no_args_is_help=True, help="The people of the console (admin key).")
out = Console(soft_wrap=True, highlight=False)

Name = Annotated[str, typer.Argument(help="Login name.")]
Tenant = Annotated[str, typer.Option(help="Only this tenant is theirs (viewer, sender); else the whole deployment.")]


def _show(person: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(person, ensure_ascii=False))
        return
    place = f" of {person['tenant']}" if person["tenant"] else ""
    out.print(f"{person['name']}: {person['role']}{place}, {person['state']}")


def _tell_link(client: Client, link: dict[str, Any], *, as_json: bool) -> None:
    url = client.url + link["path"]
    if as_json:
        typer.echo(json.dumps({"url": url, "expires_at": link["expires_at"]}))
        return
    out.print(f"Set-up link, for once, until {link['expires_at'][:16].replace('T', ' ')} UTC:\n\n  {url}\n")
    out.print("Give it to that person only: whoever opens it first sets the password.")


@people.command()
def invite(
    name: Annotated[str, typer.Argument(help="Login name; without one the person chooses it.")] = "",
    role: Annotated[Role, typer.Option()] = Role.VIEWER,
    tenant: Tenant = "",
    url: Url = None,
    data: Data = DATA,
    *,
    as_json: AsJson = False,
) -> None:
    """Let somebody in: prints a link with which they set their password and second factor."""
    client = Client(url, None, data, admin=True)
    made = client.call("POST", "/v1/people", {"name": name, "role": role.value, "tenant": tenant})
    _tell_link(client, made["link"], as_json=as_json)


@people.command()
def link(name: Name, url: Url = None, data: Data = DATA, *, as_json: AsJson = False) -> None:
    """A new set-up link, for somebody who forgot their password or came too late."""
    client = Client(url, None, data, admin=True)
    _tell_link(client, client.call("POST", f"/v1/people/{name}/link"), as_json=as_json)


@people.command("list")
def list_people(url: Url = None, data: Data = DATA, *, as_json: AsJson = False) -> None:
    """All of them."""
    found = Client(url, None, data, admin=True).call("GET", "/v1/people")
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    table = Table("name", "role", "tenant", "state", "second factor", "last login", box=None, pad_edge=False)
    for one in found["data"]:
        factor = "yes" if one["totp"] else "no"
        table.add_row(one["name"], one["role"], one["tenant"], one["state"], factor, one["last_login_at"] or "")
    out.print(table if found["data"] else "Nobody yet: heliograph people invite NAME --role admin")


@people.command("set")
def change(
    name: Name,
    role: Annotated[Role | None, typer.Option()] = None,
    tenant: Annotated[str | None, typer.Option(help='"" = the whole deployment.')] = None,
    url: Url = None,
    data: Data = DATA,
    *,
    as_json: AsJson = False,
) -> None:
    """Change somebody's role or tenant; it counts with their next request."""
    _change(name, url, data, as_json=as_json, role=role.value if role else None, tenant=tenant)


@people.command()
def disable(name: Name, url: Url = None, data: Data = DATA, *, as_json: AsJson = False) -> None:
    """Log somebody out, and in no more."""
    _change(name, url, data, as_json=as_json, enabled=False)


@people.command()
def enable(name: Name, url: Url = None, data: Data = DATA, *, as_json: AsJson = False) -> None:
    """Let somebody in again who was disabled."""
    _change(name, url, data, as_json=as_json, enabled=True)


@people.command("reset-totp")
def reset_totp(name: Name, url: Url = None, data: Data = DATA, *, as_json: AsJson = False) -> None:
    """Take away a second factor that was lost with its recovery codes; they set a new one at their next login."""
    _show(Client(url, None, data, admin=True).call("DELETE", f"/v1/people/{name}/totp"), as_json=as_json)


@people.command("log-out")
def log_out(name: Name, url: Url = None, data: Data = DATA) -> None:
    """End all sessions of somebody."""
    ended = Client(url, None, data, admin=True).call("DELETE", f"/v1/people/{name}/sessions")["ended"]
    out.print(f"{ended} ended.")


@people.command()
def remove(name: Name, url: Url = None, data: Data = DATA) -> None:
    """Remove somebody; the audit keeps what they did."""
    Client(url, None, data, admin=True).call("DELETE", f"/v1/people/{name}")
    out.print(f"Removed {name}.")


def _change(name: str, url: str | None, data: Data, *, as_json: bool, **changes: Any) -> None:
    client = Client(url, None, data, admin=True)
    now = client.call("GET", f"/v1/people/{name}")
    kept = {field: now[field] for field in ("role", "tenant", "enabled")}
    wanted = kept | {field: value for field, value in changes.items() if value is not None}
    _show(client.call("PUT", f"/v1/people/{name}", wanted), as_json=as_json)
