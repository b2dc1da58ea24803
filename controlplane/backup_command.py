"""`heliograph backup`: backups of a database, and what is in them. Each command ends with one line of JSON on stdout; what it does meanwhile it says on stderr.

Exit codes: 0 done, 1 the drill found something missing, 2 wrong usage, configuration or backup, 3 not reachable (run it again).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from controlplane.clock import SystemClock
from controlplane.errors import ConfigError, StoreUnavailableError
from controlplane.settings import Settings, load

if TYPE_CHECKING:
    from controlplane.store.backup import Manifest
    from controlplane.store.client import Database

__all__ = ["backup"]

backup = typer.Typer(
    no_args_is_help=True,
    help="Back up a database as of one instant while it is used; verify, restore and drill. Settings are those of a node (docs/settings.md).",
)

T = TypeVar("T")
Folder = Annotated[Path, typer.Argument(help="A backup.")]
Local = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Data directory of a `heliograph up` of this machine, in place of settings; it may run or not."
    ),
]
Port = Annotated[int, typer.Option("--mongo-port", min=1, max=65535, help="Of that `heliograph up`.")]
_MISSING, _AWAY = 1, 3
_PORT = 27117
_SCRATCH = Path(tempfile.gettempdir())


def _settings(data: Path | None, port: int) -> Settings:
    if data is None:
        return load()
    secret = data / "secret.key"
    try:
        key = secret.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"{secret}: cannot be read ({error.strerror}). Is {data} the --data of a `heliograph up`?"
        ) from None
    return load(secret_key=key, mongodb_uri=f"mongodb://127.0.0.1:{port}/?replicaSet=rs0")


@contextmanager
def _mongod(data: Path | None, port: int) -> Iterator[None]:
    """The mongod of a `heliograph up`, also where that does not run: then one is started meanwhile."""
    if data is None:
        yield
        return
    from controlplane.embedded.mongod import Mongod  # noqa: PLC0415

    with (data / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield  # it runs
            return
        mongod = Mongod(data.resolve(), port)
        mongod.start()
        try:
            yield
        finally:
            mongod.stop()


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _line(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except StoreUnavailableError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise typer.Exit(_AWAY) from None


async def _with(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    from controlplane.store.client import connect  # noqa: PLC0415 - the other commands start without it

    database = connect(settings)
    try:
        return await work(database)
    finally:
        await database.client.close()


def _of(manifest: Manifest) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "region": manifest.region,
        "instant": manifest.instant,
        "documents": manifest.documents,
        "messages": manifest.messages,
        "entries": sum(log.size for log in manifest.ledger.logs),
        "bytes": manifest.size,
    }


@backup.command()
def create(
    to: Annotated[
        Path, typer.Option(help="The backup's directory, which must not be there yet. Its name is the backup's id.")
    ],
    data: Local = None,
    mongo_port: Port = _PORT,
) -> None:
    """Write everything as of one instant, encrypted, while nodes and ledgers go on. What is cut leaves `<to>.partial` at most; the next run removes it."""
    from controlplane.store.backup import create as make  # noqa: PLC0415

    settings, clock = _settings(data, mongo_port), SystemClock()
    with _told(), _mongod(data, mongo_port):
        made = asyncio.run(_with(settings, lambda database: make(database, settings, to.absolute(), clock, _tell)))
    _line({"change": "backup", **_of(made), "seconds": made.seconds})


@backup.command()
def verify(
    folder: Folder,
    files: Annotated[
        bool,
        typer.Option(
            "--files", help="Only names, sizes and SHA-256 of the files; needs no key, and believes the manifest."
        ),
    ] = False,
    data: Local = None,
) -> None:
    """Read and decrypt all of a backup, and count and digest it again."""
    from controlplane.store.backup import check_files, open_archive  # noqa: PLC0415
    from controlplane.store.backup import verify as read  # noqa: PLC0415

    if files:
        _line({"verified": "files", **_of(check_files(folder))})
        return
    archive = open_archive(folder, _settings(data, _PORT).secret)
    read(archive, _tell)
    _line({"verified": "everything", **_of(archive.manifest)})


@backup.command()
def restore(folder: Folder, data: Local = None, mongo_port: Port = _PORT) -> None:
    """Put a backup into an empty database, and compare all of it afterwards. Run it again after a cut: it goes on."""
    from controlplane.store.backup import open_archive  # noqa: PLC0415
    from controlplane.store.backup import restore as put  # noqa: PLC0415

    settings = _settings(data, mongo_port)
    archive = open_archive(folder, settings.secret)
    if archive.manifest.region != settings.datacenter:
        raise ConfigError(
            f"The backup is of {archive.manifest.region}, and this is {settings.datacenter} (HELIOGRAPH_DATACENTER): "
            "a region takes its own backups only, its messages and logs bear its name. Nothing was changed."
        )
    with _told(), _mongod(data, mongo_port):
        new = asyncio.run(_with(settings, lambda database: put(database, archive, _tell)))
    _line({**({"change": "restored"} if new else {"restored": "before"}), **_of(archive.manifest)})


@backup.command()
def clear(
    confirm: Annotated[str, typer.Option(help="The region (HELIOGRAPH_DATACENTER) whose database is emptied.")],
    data: Local = None,
    mongo_port: Port = _PORT,
) -> None:
    """Delete every document of a database, before a restore. Nodes and ledgers must be stopped. There is no way back."""
    from controlplane.store.backup import clear as empty  # noqa: PLC0415

    settings = _settings(data, mongo_port)
    if confirm != settings.datacenter:
        raise ConfigError(f"--confirm {confirm}: this is {settings.datacenter}. Nothing was changed.")
    with _told(), _mongod(data, mongo_port):
        count = asyncio.run(_with(settings, empty))
    _line({"change": "cleared", "documents": count} if count else {"cleared": "before"})


@backup.command()
def drill(
    folder: Folder,
    canaries: Annotated[
        Path | None,
        typer.Option(
            help="Test messages that were accepted before the instant (canaries.jsonl of an operation); each must be there."
        ),
    ] = None,
    scratch: Annotated[
        Path, typer.Option(help="Where the mongod of the drill keeps its data; deleted afterwards.")
    ] = _SCRATCH,
    data: Local = None,
) -> None:
    """Restore into a mongod of its own and assert that every accepted message is there and has a status, and that the ledger is whole. Exit code 1 when not."""
    from controlplane.embedded.drill import drill as try_out  # noqa: PLC0415
    from controlplane.store.backup import open_archive  # noqa: PLC0415

    settings = _settings(data, _PORT)
    archive = open_archive(folder, settings.secret)
    with _told():
        found = asyncio.run(try_out(archive, settings.secret_key, canaries, scratch, SystemClock(), _tell))
    typer.echo(found.as_json())
    if not found.good:
        raise typer.Exit(_MISSING)
