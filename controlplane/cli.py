"""The command line. Exit codes: 0 done, 1 the API refused, 2 wrong usage or configuration, 3 a message did not reach its end in time.

Those of `ledger` and `region` are in `ledger_command`.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from controlplane import __version__
from controlplane.backup_command import backup
from controlplane.carrier.command import carrier
from controlplane.client import ApiError, Client
from controlplane.cluster_command import cluster
from controlplane.domain.message import FINAL
from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.ledger_command import ledger
from controlplane.ops_command import ops
from controlplane.options import DATA, AsJson, Data, Url
from controlplane.people_command import people
from controlplane.region_adopt_command import region
from controlplane.region_command import seed, verify
from controlplane.routing_command import routing

__all__ = ["main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Heliograph: SMS delivery that proves what it did.",
)
messages = typer.Typer(no_args_is_help=True, help="Messages and what became of them.")
app.add_typer(messages, name="messages")
app.add_typer(backup, name="backup")
app.add_typer(cluster, name="cluster")
app.add_typer(ledger, name="ledger")
app.add_typer(ops, name="ops")
app.add_typer(region, name="region")
app.add_typer(people, name="people")
app.add_typer(routing, name="routing")
app.command()(carrier)
app.command()(seed)
app.command()(verify)

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def _print(value: Any) -> None:
    out.print_json(json.dumps(value, ensure_ascii=False)) if out.is_terminal else typer.echo(
        json.dumps(value, ensure_ascii=False)
    )


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def node() -> None:
    """Run one node; its settings are HELIOGRAPH_… variables (docs/settings.md)."""
    from controlplane.bootstrap import run_node  # noqa: PLC0415 - the client commands start without it
    from controlplane.settings import load  # noqa: PLC0415

    uvloop.run(run_node(load()))


@app.command()
def up(
    data: Annotated[Path, typer.Option(help="Where everything is kept; survives a restart.")] = DATA,
    host: Annotated[str, typer.Option(help="Address of the API.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")] = 8080,
    mongo_port: Annotated[int, typer.Option(min=1, max=65535)] = 27117,
    ledger_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the ledger.")] = 8444,
    carrier_ports: Annotated[tuple[int, int], typer.Option(help="SMPP ports of the two simulated carriers.")] = (
        2775,
        2776,
    ),
    carrier: Annotated[bool, typer.Option(help="Run simulated carriers.")] = True,
) -> None:
    """Run everything on this machine: mongod, a node, a ledger, two simulated carriers, a sample tenant."""
    from controlplane.embedded.up import Options  # noqa: PLC0415
    from controlplane.embedded.up import up as run_up  # noqa: PLC0415

    asyncio.run(run_up(Options(data, host, port, mongo_port, ledger_port, carrier_ports, carrier), out))


@app.command()
def send(
    to: Annotated[str, typer.Argument(help="Recipient, +4915112340001.")],
    body: Annotated[str, typer.Argument(help="The text.")],
    sender: Annotated[str | None, typer.Option("--from")] = None,
    cls: Annotated[str | None, typer.Option("--class", help="otp, transactional or marketing.")] = None,
    wait: Annotated[float, typer.Option(help="Wait so many seconds for the final status.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
    url: Url = None,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Send one message."""
    client = Client(url, None, data)
    request = {"to": to, "body": body, "from": sender, "class": cls, "dry_run": dry_run or None}
    answer = client.call("POST", "/v1/messages", {name: value for name, value in request.items() if value is not None})
    if dry_run or not wait:
        _print(answer) if as_json else out.print(
            f"{answer['status']}  {answer['id'] or '(dry run)'}  {answer['parts']} part(s), {answer['encoding']}, route {answer['route']['planned']}"
        )
        return
    message = client.wait(answer["id"], wait)
    _show(message, as_json=as_json)
    raise typer.Exit(0 if message["status"] in FINAL else 3)


def _show(message: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print(message)
        return
    out.print(f"[bold]{message['status']}[/]  {message['id']}  to {message['to'] or '(erased)'}")
    for event in message["timeline"]:
        out.print(f"  {event['at'][11:23]}  {event['kind']:<12} {event['text']}")


@messages.command("get")
def get_message(message_id: str, url: Url = None, data: Data = DATA, as_json: AsJson = False) -> None:
    """One message with its timeline."""
    _show(Client(url, None, data).call("GET", f"/v1/messages/{message_id}"), as_json=as_json)


@messages.command("list")
def list_messages(
    status: Annotated[str | None, typer.Option()] = None,
    to: Annotated[str | None, typer.Option()] = None,
    reference: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    cursor: Annotated[str | None, typer.Option()] = None,
    url: Url = None,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """The newest messages."""
    client = Client(url, None, data)
    page = client.call("GET", "/v1/messages", status=status, to=to, reference=reference, limit=limit, cursor=cursor)
    if as_json:
        _print(page)
        return
    _table(page["data"], ("accepted_at", "status", "to", "parts", "route", "id"))
    if page["next"]:
        out.print(f"More: --cursor {page['next']}")


@messages.command("cancel")
def cancel_message(message_id: str, url: Url = None, data: Data = DATA, as_json: AsJson = False) -> None:
    """Cancel a message that has not been sent."""
    _show(Client(url, None, data).call("POST", f"/v1/messages/{message_id}/cancel"), as_json=as_json)


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if row.get(column) is None else str(row[column]) for column in columns))
    out.print(table if rows else "None.")


def _values(pairs: list[str]) -> dict[str, Any]:
    """`name=value`; a value that is JSON is read as JSON."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not of the form name=value, such as port=2775")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _resource(noun: str, key: str, columns: tuple[str, ...], *, readable: bool = True) -> typer.Typer:
    """list, get, add, remove for one kind of catalog record."""
    commands = typer.Typer(no_args_is_help=True, help=f"The {noun} of this deployment (admin key).")
    app.add_typer(commands, name=noun)
    path = f"/v1/{noun}"

    @commands.command("list")
    def list_all(url: Url = None, data: Data = DATA, as_json: AsJson = False) -> None:
        """All of them."""
        answer = Client(url, None, data, admin=True).call("GET", path)
        _print(answer) if as_json else _table(answer["data"], columns)

    @commands.command("add")
    def add(
        values: Annotated[list[str], typer.Argument(help="name=value …; docs/api.md has the fields.")],
        url: Url = None,
        data: Data = DATA,
    ) -> None:
        """Create one."""
        _print(Client(url, None, data, admin=True).call("POST", path, _values(values)))

    @commands.command("remove")
    def remove(identity: str, url: Url = None, data: Data = DATA) -> None:
        """Delete one."""
        Client(url, None, data, admin=True).call("DELETE", f"{path}/{identity}")
        out.print(f"Removed {identity}.")

    if not readable:
        return commands

    @commands.command("get")
    def get(identity: str, url: Url = None, data: Data = DATA) -> None:
        """One of them."""
        _print(Client(url, None, data, admin=True).call("GET", f"{path}/{identity}"))

    @commands.command("set")
    def replace_one(identity: str, values: list[str], url: Url = None, data: Data = DATA) -> None:
        """Change fields of one."""
        client = Client(url, None, data, admin=True)
        now = client.call("GET", f"{path}/{identity}")
        kept = {name: value for name, value in now.items() if name not in (key, "state")}
        _print(client.call("PUT", f"{path}/{identity}", kept | _values(values)))

    return commands


_resource("tenants", "id", ("id", "name", "enabled", "rate"))
keys = _resource("keys", "id", ("id", "tenant", "name", "scopes", "hint"), readable=False)
_resource("connectors", "name", ("name", "host", "port", "bind_type", "binds", "rate", "enabled"))
_resource("routes", "name", ("name", "connector", "prefixes", "price", "currency", "priority", "enabled"))


@keys.command("generate")
def generate_key() -> None:
    """Print a fresh API key that no node knows yet: for the first key of a region."""
    from controlplane.store.seal import new_key  # noqa: PLC0415

    typer.echo(new_key())


def main() -> None:
    """The entry point: errors are sentences, not tracebacks."""
    try:
        app()
    except ApiError as error:
        problem = error.problem
        err.print(f"[bold red]{problem.get('title', 'Error')}[/]: {problem.get('detail', '')}")
        for item in problem.get("errors", ()):
            err.print(f"  {item['pointer']}: {item['detail']}")
        err.print(problem.get("next_step", ""))
        raise SystemExit(1) from None
    except (ConfigError, StoreUnavailableError) as error:
        err.print(f"[bold red]Error[/]: {escape(str(error))}", markup=True)
        raise SystemExit(2) from None
    except BaseExceptionGroup as group:
        known = group.subgroup((ConfigError, StoreUnavailableError))
        if known is None:
            raise
        for leaf in _leaves(known):
            err.print(f"[bold red]Error[/]: {leaf}")
        raise SystemExit(2) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
