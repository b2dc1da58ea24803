"""Fixtures: a real mongod for the session, a fresh database for each test, a whole node with simulated carriers."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from controlplane.carrier import Carrier
from controlplane.embedded.mongod import Mongod
from controlplane.settings import Settings
from controlplane.store.client import Database, connect
from tests.simulators.network import free_port
from tests.simulators.node import RunningNode, running_carrier, running_node

exhaustive = pytest.mark.skipif(not os.environ.get("HG_ALL"), reason="takes long; HG_ALL=1 runs it")
"""For what a shorter test shows too, but for fewer cases."""
MANY_DATABASES = ("--setParameter", "minSnapshotHistoryWindowInSeconds=30", "--syncdelay", "10")
"""For a mongod that sees a database come and go with each test: it keeps the files of a dropped one open until nobody can want to read its past, five
minutes by default, and this suite once ran it out of file descriptors that way."""
SECRET = "a-secret-key-for-tests-of-at-least-32-characters"


def drop_databases(folder: Path) -> None:
    """Remove what ended mongods leave below a folder that many tests shared."""
    for made in list(folder.rglob("WiredTiger")):
        shutil.rmtree(made.parent)


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    """Tests run on the loop that nodes run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    process = Mongod(tmp_path_factory.mktemp("mongod"), free_port(), options=MANY_DATABASES)
    process.start()
    yield process
    process.stop()
    drop_databases(process.data)


@pytest.fixture
def settings(mongod: Mongod, tmp_path: Path) -> Settings:
    return Settings(
        mongodb_uri=mongod.uri,
        database=f"test_{uuid.uuid4().hex[:12]}",
        secret_key=SECRET,
        node="node-1",
        state_dir=tmp_path,
        port=0,
        lease_seconds=3,
        lease_renew_seconds=0.5,
        lease_margin_seconds=0.5,
        callback_allow_private=True,
        receipt_grace_seconds=3600,
        testing=True,
    )


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    database = connect(settings)
    yield database
    await database.client.drop_database(settings.database)
    await database.client.close()


@pytest.fixture
async def node(settings: Settings, database: Database) -> AsyncIterator[RunningNode]:
    async with running_node(settings) as running:
        await running.seed()
        yield running


@pytest.fixture
async def carriers() -> AsyncIterator[Any]:
    """Starts carriers that end with the test: `await carriers(receipt_first=True)`."""
    async with AsyncExitStack() as stack:

        async def start(**values: Any) -> Carrier:
            return await stack.enter_async_context(running_carrier(**values))

        yield start
