"""`heliograph up`: everything on one machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import signal
import socket
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError

from rich.console import Console

from controlplane.client import Client
from controlplane.embedded.mongod import Mongod
from controlplane.embedded.processes import Child
from controlplane.embedded.seed import Credentials, credentials, seed
from controlplane.errors import ConfigError
from controlplane.ledger.note import new_seed
from controlplane.settings import Settings, child_environment

__all__ = ["Options", "up"]

_READY_SECONDS = 60.0
_LOW_DISK_BYTES = 2 * 2**30

_GOLD = """# Fast, reliable, dearer.
[behaviour]
response_ms = "2-8"
receipt_ms = "lognormal:800:0.5"
outcomes = {DELIVRD = 0.985, UNDELIV = 0.01, EXPIRED = 0.005}
"""
_BUDGET = """# Cheaper, slower, loses receipts, throttles, writes ids in decimal.
[behaviour]
response_ms = "lognormal:60:0.6"
receipt_ms = "lognormal:4000:0.8"
rate_limit = 300.0
receipt_missing = 0.05
receipt_id = "decimal"
receipt_dialect = "compact"
outcomes = {DELIVRD = 0.9, UNDELIV = 0.08, EXPIRED = 0.02}
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What `heliograph up` takes."""

    data: Path
    host: str
    port: int
    mongo_port: int
    ledger_port: int
    carrier_ports: tuple[int, int]
    carriers: bool


async def up(options: Options, console: Console) -> None:
    """Start, say where everything is, run until SIGINT or SIGTERM, stop in order. Raises ConfigError."""
    data = options.data.resolve()
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{data}: cannot be made ({error.strerror}). Choose another --data.") from error
    with (data / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"Another `heliograph up` uses {data}. Stop it, or choose another --data.") from None
        _check_machine(options, data)
        await _Machine(options, data, console).run()


def _check_machine(options: Options, data: Path) -> None:
    ports = {"--port": options.port, "--mongo-port": options.mongo_port, "--ledger-port": options.ledger_port}
    if options.carriers:
        ports |= {
            "--carrier-ports (first)": options.carrier_ports[0],
            "--carrier-ports (second)": options.carrier_ports[1],
        }
    if len(set(ports.values())) < len(ports):
        raise ConfigError(f"The ports must differ: {ports}")
    for option, port in ports.items():
        try:
            socket.create_server((options.host if option == "--port" else "127.0.0.1", port)).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"Port {port} cannot be used ({error}). Choose another one with {option.split()[0]}."
            ) from None
    free = shutil.disk_usage(data).free
    if free < _LOW_DISK_BYTES // 4:
        raise ConfigError(
            f"Only {free // 2**20} MiB are free at {data}; mongod needs at least 512. Free some, or choose another --data."
        )


class _Machine:
    """The processes of one machine."""

    def __init__(self, options: Options, data: Path, console: Console) -> None:
        self._options = options
        self._data = data
        self._console = console
        shown = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host  # noqa: S104 - compared
        self._url = f"http://{shown}:{options.port}"
        self._children: list[Child] = []

    async def run(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        mongod = Mongod(self._data, self._options.mongo_port, cache_gb=0.5)
        started = time.monotonic()
        try:
            self._say("Starting mongod (journaled, one-member replica set) …")
            await asyncio.to_thread(mongod.start)
            made = await self._start_children(mongod)
            self._greet(made, await asyncio.to_thread(self._console_url, made), time.monotonic() - started)
            async with asyncio.TaskGroup() as group:
                watches = [group.create_task(child.watch(self._say)) for child in self._children]
                await stop.wait()
                for watch in watches:
                    watch.cancel()
        finally:
            await self._stop(mongod)

    async def _start_children(self, mongod: Mongod) -> Credentials:
        made = credentials(self._data / "credentials.json")
        made = replace(made, url=self._url)
        made.write(self._data / "credentials.json")
        secret = self._data / "secret.key"
        secret.touch(mode=0o600)
        secret.write_text(made.secret_key, encoding="utf-8")
        ports: dict[str, int] = {}
        if self._options.carriers:
            ports = dict(zip(("sim-gold", "sim-budget"), self._options.carrier_ports, strict=True))
            for name, text in zip(ports, (_GOLD, _BUDGET), strict=True):
                await self._carrier(name, ports[name], text)
        await seed(Settings(mongodb_uri=mongod.uri, secret_key=made.secret_key), made, ports)
        shared = {"mongodb_uri": mongod.uri, "secret_key_file": secret, "state_dir": self._data}
        await self._role(
            "node",
            child_environment(
                **shared,
                node="node-1",
                host=self._options.host,
                port=self._options.port,
                callback_allow_private="true",
                console_totp="optional",
            ),
            self._url,
        )
        key = self._data / "ledger.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_text(new_seed(), encoding="utf-8")
        await self._role(
            "ledger",
            child_environment(**shared, node="ledger-1", port=self._options.ledger_port, ledger_key_file=key),
            f"http://127.0.0.1:{self._options.ledger_port}",
        )
        return made

    async def _role(self, role: str, environment: dict[str, str], url: str) -> None:
        child = Child(role, [role], environment, self._data / f"{role}.log")
        self._children.append(child)
        self._say(f"Starting the {role} …")
        await child.start()
        await child.ready(lambda: _answers(url), _READY_SECONDS)

    async def _carrier(self, name: str, port: int, text: str) -> None:
        config = self._data / f"{name}.toml"
        if not config.exists():
            config.write_text(text, encoding="utf-8")
        journal = self._data / f"{name}.journal"
        arguments = ["carrier", "--config", str(config), "--name", name, "--port", str(port), "--journal", str(journal)]
        child = Child(f"carrier {name}", arguments, child_environment(), self._data / f"{name}.log")
        self._children.append(child)
        self._say(f"Starting the simulated carrier {name} …")
        await child.start()
        await child.ready(lambda: _connects(port), _READY_SECONDS)

    async def _stop(self, mongod: Mongod) -> None:
        self._say("Stopping: ledger, node, carriers, mongod …")
        for child in reversed(self._children):
            with suppress(ProcessLookupError):
                await child.stop()
        await asyncio.to_thread(mongod.stop)
        self._say("Stopped; everything accepted is in the data directory.")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def _console_url(self, made: Credentials) -> str:
        """Of the console; a fresh set-up link while nobody has set up theirs."""
        client = Client(self._url, made.admin_key, self._data)
        console = f"{self._url}/console"
        if any(person["state"] != "invited" for person in client.call("GET", "/v1/people")["data"]):
            return console
        link = client.call("POST", "/v1/people", {"role": "admin"})["link"]
        return f"{self._url}{link['path']}\n             (works once, for 24 hours; afterwards {console})"

    def _greet(self, made: Credentials, console: str, seconds: float) -> None:
        lines = [
            "",
            f"[bold green]Heliograph is ready[/] ({seconds:.1f} s)",
            "",
            f"  Console    {console}",
            f"  API        {self._url}/v1     documentation {self._url}/docs",
            f"  API key    {made.api_key}   (tenant sample)",
            f"  Admin key  {made.admin_key}",
            f"  Data       {self._data}     logs are there too",
            "",
            "Send a message:",
            "",
            f"  curl -s {self._url}/v1/messages -H 'Authorization: Bearer {made.api_key}' \\",
            '    -H \'Content-Type: application/json\' -d \'{"to": "+4915112340001", "body": "Hello from Heliograph"}\'',
            "",
            "See what became of it (put the id from the answer in place of ID):",
            "",
            f"  curl -s {self._url}/v1/messages/ID -H 'Authorization: Bearer {made.api_key}'",
            "",
            "Ctrl-C stops everything in order.",
        ]
        for line in lines:
            self._say(line)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 - our own http URL
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
