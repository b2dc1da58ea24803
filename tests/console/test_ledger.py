"""The ledger in a browser: how it stands, its entries, and proofs that the browser itself verifies, or refuses."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from controlplane.domain.people import Role
from controlplane.embedded.mongod import Mongod
from controlplane.settings import Settings
from tests.console.checks import assert_accessible, assert_fits
from tests.console.conftest import World, enter
from tests.simulators.ledger import running_ledger, with_peer
from tests.simulators.node import RunningNode


class LedgerWorld(World):
    """With a ledger that sequences, and a second datacenter that cosigns."""

    @asynccontextmanager
    async def _node(self, settings: Settings) -> AsyncIterator[RunningNode]:
        settings = with_peer(settings)
        async with super()._node(settings) as node, running_ledger(settings, node.node.database) as ledger:
            ledger.cosigning = {"witness", "mirror"}
            yield node


@pytest.fixture(scope="module")
def world(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = LedgerWorld(mongod, tmp_path_factory.mktemp("ledger"))
    made.start()
    yield made
    made.stop()


def proven(world: World) -> str:
    """A message that is at its end and in a signed log, all of it."""
    mid = world.messages["delivered"]

    async def complete() -> None:
        while True:
            status, proof = await world.node.call("GET", f"/v1/messages/{mid}/proof")
            if status == 200 and proof["complete"]:
                return

    world.run(complete())
    return mid


class TestLedger:
    """Watermarks, findings and entries."""

    def test_how_it_stands(self, page: Page, world: World, axe: str) -> None:
        proven(world)
        page.goto(world.url + "/ledger")
        row = page.locator("tbody tr").first
        expect(row).to_contain_text("open own")
        expect(row).to_contain_text(re.compile("ledger/iad/mirror"))
        expect(page.get_by_text("Nothing was ever found")).to_be_visible()
        assert_accessible(page, axe)
        row.get_by_role("link").click()
        expect(page.locator("tbody tr").last).to_contain_text("opened")
        page.get_by_role("link", name=world.messages["delivered"]).first.click()
        expect(page.get_by_role("heading", name="What happened")).to_be_visible()

    def test_verification_on_request(self, page: Page, world: World) -> None:
        page.goto(world.url + "/ledger")
        page.get_by_role("button", name="Verify everything now").click()
        expect(page.get_by_role("status")).to_contain_text("It is asked for")
        expect(page.locator("dl.facts")).to_contain_text("asked")

    def test_who_may_not(self, world: World, browser: Browser) -> None:
        context = browser.new_context()
        enter(world, context, "sam", Role.SENDER)
        page = context.new_page()
        page.goto(world.url + "/ledger")
        assert page.get_by_role("button", name=re.compile("Verify")).count() == 0
        answer = context.request.post(world.url + "/ledger/repairs", headers={"Sec-Fetch-Site": "same-origin"})
        assert answer.status == 403
        context.close()


class TestProof:
    """The browser computes it, and says no where anything was changed."""

    def open(self, page: Page, world: World, change: Any = None) -> None:
        mid = proven(world)
        if change is not None:

            def changed(route: Route) -> None:
                proof = route.fetch().json()
                change(proof)
                route.fulfill(status=200, content_type="application/json", body=json.dumps(proof))

            page.route("**/document", changed)
        page.goto(f"{world.url}/ledger/proof/{mid}")

    def test_verified(self, page: Page, world: World, axe: str) -> None:
        self.open(page, world)
        expect(page.get_by_role("status")).to_have_text("Verified: every event of the message is in a signed log.")
        steps = page.locator("[data-proof] li")
        expect(steps.filter(has_text="signed")).to_have_count(3)
        expect(steps.filter(has_text="delivered: entry")).to_have_count(1)
        for width in (320, 1440):
            page.set_viewport_size({"width": width, "height": 844})
            assert_fits(page)
        assert_accessible(page, axe)
        expect(page.locator("pre", has_text="verifier.py")).to_contain_text("--key '")

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("leaf", "does not lead to the root"),
            ("path", "does not lead to the root"),
            ("index", "Not proven"),
            ("signature", "does not hold"),
            ("checkpoint", "does not hold"),
            ("without a signature", "the log's own signature is missing"),
            ("another message", "no proof of this message"),
            ("an event left out", "one is missing or twice"),
        ],
    )
    def test_whatever_is_changed_is_found(self, page: Page, world: World, name: str, says: str) -> None:
        self.open(page, world, CHANGES[name])
        expect(page.get_by_role("status")).to_contain_text(says)
        expect(page.get_by_role("status")).to_contain_text("Not proven")

    def test_the_command_of_the_page_verifies(self, page: Page, world: World, tmp_path) -> None:
        self.open(page, world)
        with page.expect_download() as download:
            page.get_by_role("link", name="Download proof.json").click()
        proof = tmp_path / "proof.json"
        proof.write_bytes(download.value.path().read_bytes())
        fetch, _, command = page.locator("pre", has_text="verifier.py").inner_text().partition("\n")
        answer = page.context.request.get(fetch.removeprefix("curl -O "))
        assert answer.ok
        (tmp_path / "verifier.py").write_bytes(answer.body())
        words = shlex.split(command.replace("\\\n", " "))
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _swap(text: str) -> str:
    """The first letter of base64 or text replaced by another."""
    return ("A" if text[0] != "A" else "B") + text[1:]


def _signature(proof: dict) -> None:
    for origin, note in proof["checkpoints"].items():
        head, _, line = note.rstrip("\n").rpartition(" ")
        proof["checkpoints"][origin] = f"{head} {line[:20]}{_swap(line[20:])}\n"


def _checkpoint(proof: dict) -> None:
    for origin, note in proof["checkpoints"].items():
        first, size, root, rest = note.split("\n", 3)
        proof["checkpoints"][origin] = "\n".join((first, size, _swap(root), rest))


def _unsigned(proof: dict) -> None:
    proof["keys"] = {name: key for name, key in proof["keys"].items() if name not in proof["checkpoints"]}


CHANGES: dict[str, Any] = {
    "leaf": lambda proof: proof["events"][0].update(leaf=proof["events"][0]["leaf"].replace('"n":"', '"n":"x')),
    "path": lambda proof: proof["events"][0]["proof"].__setitem__(0, _swap(proof["events"][0]["proof"][0])),
    "index": lambda proof: proof["events"][0].update(index=proof["events"][0]["index"] + 1),
    "signature": _signature,
    "checkpoint": _checkpoint,
    "without a signature": _unsigned,
    "another message": lambda proof: proof.update(id="0" * 26),
    "an event left out": lambda proof: proof["events"].pop(1),
}
