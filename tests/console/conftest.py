"""A running node with its console, two simulated carriers and a ledger's worth of data, and Debian's Chromium through Playwright.

One world for all tests of this folder: starting and filling it takes seconds, looking at it milliseconds. Tests that change things make their own (names, messages).
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from controlplane.domain.people import Role, Stage
from controlplane.embedded.mongod import Mongod
from controlplane.settings import Settings
from tests.conftest import SECRET
from tests.simulators.node import RunningNode, running_carrier, running_node

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "console"
"""Screenshots: what a person looks at before a release."""
PASSWORD = "four unrelated words here"


HOSTILE = (
    """<script>alert(1)</script><img src=x onerror=alert(2)>"'`{{7*7}} \u202e\u0645\u0631\u062d\u0628\u0627"""
    + "W" * 60
)
"""A text that would like to be more than a text."""


class World:
    """A node on a loop of its own, in a thread of its own: browser tests are synchronous. `blank`: nobody has done anything there yet."""

    def __init__(self, mongod: Mongod, folder: Path, *, blank: bool = False) -> None:
        self._mongod = mongod
        self._folder = folder
        self._blank = blank
        self._loop = asyncio.new_event_loop()
        self._ready: Future[RunningNode] = Future()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="console-world")
        self.node: RunningNode
        self.messages: dict[str, str] = {}
        """What kind of message → id."""

    def start(self) -> None:
        """Raises what the node raises."""
        self._thread.start()
        self.node = self._ready.result(120)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(60)

    def run(self, work: Any, seconds: float = 60) -> Any:
        """A coroutine on the node's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    @property
    def url(self) -> str:
        """Of the console, by a name that browsers take secure cookies from without TLS."""
        return self.node.base_url.replace("127.0.0.1", "localhost") + "/console"

    def cookie(self, person: str, role: Role = Role.ADMIN, tenant: str = "") -> str:
        """A session of somebody who is there from now on."""
        return self.run(self._cookie(person, role, tenant))

    async def _cookie(self, person: str, role: Role, tenant: str) -> str:
        node = self.node.node
        if await node.people.find(person) is None:
            await node.people.create(person, role, tenant)
            await node.people.set_password(person, PASSWORD)
        else:  # another test's: for this one they are what it asks for
            await node.people.change(person, role=role, tenant=tenant, enabled=True)
        return await node.sessions.begin(person, Stage.OPEN, address="127.0.0.1", agent="test")

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
        finally:
            self._loop.close()

    async def _live(self) -> None:
        settings = Settings(
            mongodb_uri=self._mongod.uri,
            database=f"console_{uuid.uuid4().hex[:12]}",
            secret_key=SECRET,
            node="node-1",
            state_dir=self._folder,
            port=0,
            callback_allow_private=True,
            testing=True,
        )
        async with self._node(settings) as node:
            self._ready.set_result(node)
            await self._done.wait()

    @asynccontextmanager
    async def _node(self, settings: Settings) -> AsyncIterator[RunningNode]:
        async with (
            running_carrier() as good,
            running_carrier(outcomes={"UNDELIV": 1.0}) as poor,
            running_node(settings) as node,
        ):
            if not self._blank:
                await node.seed()
                await node.connect(good, "gold", prefixes=("49",), price=7)
                await node.connect(poor, "budget", prefixes=("44",), price=3)
                await self._fill(node)
            yield node

    async def _fill(self, node: RunningNode) -> None:
        """One message of each kind that a list or a page has to show."""
        sent = {
            "delivered": await node.send("+4915112340001", "Your code is 123456", **{"class": "otp"}),
            "undelivered": await node.send("+447700900002", "Hello", reference="order-17"),
            "hostile": await node.send("+4915112340011", HOSTILE, reference='"><b>bold</b>'),
            "long": await node.send("+4915112340015", "long text " * 60, **{"class": "marketing"}),
            "scheduled": await node.send("+4915112340017", "Later", send_at=_in_a_day()),
        }
        self.messages = {kind: answer["id"] for kind, answer in sent.items()}
        for kind, status in (("delivered", "delivered"), ("undelivered", "undelivered"), ("hostile", "delivered")):
            await node.reaches(self.messages[kind], status)


def _in_a_day() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


def _running(mongod: Mongod, folder: Path, *, blank: bool = False) -> Iterator[World]:
    made = World(mongod, folder, blank=blank)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="package")
def world(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Carriers, routes, tenants, messages."""
    yield from _running(mongod, tmp_path_factory.mktemp("console"))


@pytest.fixture(scope="package")
def blank(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A node on its first day: no tenant, no route, no message."""
    yield from _running(mongod, tmp_path_factory.mktemp("blank"), blank=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The distribution's; .ci/run installs it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("Chromium is not installed. Run: apt-get install chromium")
    return found


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="package")
def browser(playwright: Playwright, chromium: str) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source, from the lock file of tests/simulators."""
    folder = ROOT / "tests" / "simulators"
    path = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return path.read_text()


def enter(
    world: World, context: BrowserContext, person: str = "ada", role: Role = Role.ADMIN, tenant: str = ""
) -> None:
    """Log `person` in in this browser context."""
    context.add_cookies(
        [
            {
                "name": "__Host-heliograph",
                "value": world.cookie(person, role, tenant),
                "url": world.url.replace("http://", "https://"),
                "secure": True,
                "httpOnly": True,
                "sameSite": "Lax",
            }
        ]
    )


@pytest.fixture
def page(world: World, browser: Browser) -> Iterator[Page]:
    """A desktop browser in which an admin is logged in; fails the test on any error of the page's own scripts or its policy."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    enter(world, context)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
    yield page
    context.close()
    assert not faults
