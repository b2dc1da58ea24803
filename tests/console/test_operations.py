"""Operations: asked for, followed and ended on a phone as on a desk, with JavaScript and without; and not by everybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from controlplane.store.operations import SILENT_MS, Claim, Operation, OperationState, Report
from tests.console.checks import assert_accessible, assert_fits
from tests.console.conftest import HOSTILE, World, enter
from tests.console.test_pages import look


class Agent:
    """Runs nothing, and tells what an agent tells."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.node.node.operations
        self.revision = 0
        self.lines = 0
        self.held: Operation

    def ask(self, kind: str, **variables: str) -> str:
        made = self.world.run(self.store.request(kind, variables, "ada"))
        assert made is not None
        return str(made.id)

    def claim(self) -> None:
        claim = Claim(agent="agent_one", host="desk-7", nonce="claim_one", restarted=True)
        self.held = self.world.run(self.store.claim(claim))
        assert self.held is not None
        self.revision = self.lines = 0

    def tell(
        self, *tasks: str, state: str = "running", unfinished: bool = True, kind: str = "changed", **fields: Any
    ) -> None:
        self.revision += 1
        events = [
            {"at": 1_790_000_000_000, "kind": kind, "host": "fra-1", "task": task, "message": "", "diff": ["unit a"]}
            for task in tasks
        ]
        steps = {
            "done": ["node on fra-1"],
            "open": ["node on fra-2"],
            "owed": ["node fra-2-1"],
            "total": 4,
            "passed": 1,
        }
        told = Report(
            agent="agent_one",
            fence=self.held.fence,
            revision=self.revision,
            spool="agent_one",
            first=self.lines + 1,
            events=events,
            state=OperationState(state),
            unfinished=unfinished,
            fields={"journal": steps, "canaries": {"accepted": 41, "retried": 2, "missing": 0}, "changed": 3} | fields,
        )
        assert self.world.run(self.store.report(self.held.id, told)) is not None
        self.lines += len(tasks)


@pytest.fixture
def agent(world: World) -> Iterator[Agent]:
    yield Agent(world)

    async def forget() -> None:
        for name in ("operations", "operation_agents"):
            await world.node.node.database[name].delete_many({})

    world.run(forget())


@pytest.fixture
def phone(world: World, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    enter(world, context, "otto", Role.OPERATOR)
    yield context.new_page()
    context.close()


def full(agent: Agent) -> str:
    """One that runs, one that waits for an agent, two that are over."""
    for state in ("done", "failed"):
        agent.ask("verify")
        agent.claim()
        agent.tell("Look", state=state, unfinished=False, problem="" if state == "done" else HOSTILE)
    operation = agent.ask("upgrade", scope="nodes")
    agent.claim()
    agent.tell("Install, node on fra-1", HOSTILE, task="Wait until the node takes messages")
    agent.ask("verify")
    return operation


@pytest.mark.parametrize(
    "path", ["", "/{id}", "/{id}/events", "/-/new", "/-/new?kind=upgrade", "/-/new?kind=drain", "/-/new?kind=features"]
)
def test_full(world: World, browser: Browser, axe: str, agent: Agent, path: str) -> None:
    operation = full(agent)
    name = "operations" + path.replace("/{id}", "-one").replace("/-/", "-").replace("?kind=", "-").replace("/", "-")
    look(world, browser, axe, "/operations" + path.format(id=operation), 200, name)


class TestLife:
    """From the question to the end, on a phone."""

    def test_asked_for_followed_and_cancelled(self, world: World, phone: Page, agent: Agent, axe: str) -> None:
        phone.goto(world.url + "/operations")
        expect(phone.locator("main")).to_contain_text("Nothing was done yet")
        expect(phone.locator(".note")).to_contain_text("start `heliograph ops agent")
        phone.get_by_role("link", name="Ask for one").first.click()
        phone.get_by_role("link", name="upgrade").click()
        expect(phone.locator(".about")).to_contain_text("without a message lost")
        phone.select_option("select", "nodes")
        phone.get_by_role("button", name="Ask for upgrade").click()
        expect(phone.locator(".said")).to_have_text("It is asked for.")
        expect(phone.locator("h1")).to_have_text("upgrade scope=nodes")
        expect(phone.locator("main")).to_contain_text("Asked for by otto")
        agent.claim()
        agent.tell("Install, node on fra-1", task="Wait until the node takes messages")
        progress = phone.locator("[data-live]")
        expect(progress).to_contain_text("1 of 4 steps", timeout=15_000)  # by itself
        expect(progress).to_contain_text("none missing of 41 test messages")
        expect(progress).to_contain_text("To be taken back: node fra-2-1")
        agent.tell("Install, node on fra-2")
        expect(progress.locator(".timeline li").first).to_contain_text("Install, node on fra-2", timeout=15_000)
        assert_fits(phone)
        assert_accessible(phone, axe)
        phone.locator("summary", has_text="Cancel it").click()
        phone.get_by_role("button", name="Cancel it").click()
        expect(phone.locator("summary", has_text="Cancel it")).to_be_visible()  # the browser wants the tick first
        phone.get_by_label("End it").check()
        phone.get_by_role("button", name="Cancel it").click()
        expect(phone.locator(".said")).to_contain_text("It ends as soon as")
        expect(phone.locator("main")).to_contain_text("cancelling")
        agent.tell(state="canceled")
        expect(phone.get_by_role("button", name="Go on with it")).to_be_visible(
            timeout=15_000
        )  # nobody had the page in hand
        phone.locator("summary", has_text="Take back what it owes").click()
        phone.get_by_label("Abort it").check()
        phone.get_by_role("button", name="Take back what it owes").click()
        expect(phone.locator("main")).to_contain_text("It is to be taken back")
        agent.claim()
        agent.tell(state="aborted", unfinished=False, journal={})
        phone.goto(world.url + "/operations")
        expect(phone.locator("tbody tr")).to_contain_text("aborted")
        expect(phone.locator("main")).to_contain_text("Run on desk-7")

    def test_what_is_refused_stands_where_it_belongs(self, world: World, page: Page, agent: Agent) -> None:
        page.goto(world.url + "/operations/-/new?kind=drain")
        page.get_by_role("button", name="Ask for drain").click()
        expect(page.get_by_role("alert")).to_contain_text("exactly one of host, node")
        page.locator("input[name='variables.host']").fill("no such host!")
        page.get_by_role("button", name="Ask for drain").click()
        expect(page.locator(".field .error")).to_contain_text("is not a name")
        agent.ask("upgrade")
        page.locator("input[name='variables.host']").fill("fra-1")
        page.get_by_role("button", name="Ask for drain").click()
        expect(page.get_by_role("alert")).to_contain_text("`upgrade`")

    def test_without_a_way_back_the_region_is_typed(self, world: World, page: Page, agent: Agent) -> None:
        here = world.node.node.settings.datacenter
        page.goto(world.url + "/operations/-/new?kind=features")
        expect(page.locator("main")).to_contain_text("There is no way back.")
        page.locator("input[name='variables.confirm']").fill("8.0")
        page.fill("#region", "elsewhere")
        page.get_by_role("button", name="Ask for features").click()
        expect(page.locator(".error")).to_have_text(f"Type {here} exactly.")
        assert world.run(agent.store.page(None, 10)) == []
        expect(page.locator("input[name='variables.confirm']")).to_have_value("8.0")
        page.fill("#region", here)
        page.get_by_role("button", name="Ask for features").click()
        expect(page.locator("h1")).to_have_text("features confirm=8.0")

    def test_cut(self, world: World, page: Page, agent: Agent) -> None:
        operation = agent.ask("upgrade")
        agent.claim()
        agent.tell("Install")

        async def silent() -> None:
            await world.node.node.database["operations"].update_many({}, {"$inc": {"beat": -SILENT_MS}})

        page.goto(f"{world.url}/operations/{operation}")
        world.run(silent())
        expect(page.get_by_role("button", name="Go on with it")).to_be_visible(timeout=15_000)
        expect(page.locator("main")).to_contain_text("Not heard of since")

    def test_a_page_in_hand_is_left_alone(self, world: World, page: Page, agent: Agent) -> None:
        """Somebody is about to cancel it when it ends: what they have open stays, and the end is offered."""
        operation = agent.ask("upgrade")
        agent.claim()
        agent.tell("Install")
        page.goto(f"{world.url}/operations/{operation}")
        page.locator("summary", has_text="Cancel it").click()
        agent.tell(state="done", unfinished=False)
        expect(page.get_by_role("link", name="Show what may be done now")).to_be_visible(timeout=15_000)
        page.get_by_label("End it").check()
        page.get_by_role("button", name="Cancel it").click()
        expect(page.get_by_role("alert")).to_contain_text("is done")


def test_without_scripts(world: World, browser: Browser, agent: Agent) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    enter(world, context, "otto", Role.OPERATOR)
    page = context.new_page()
    page.goto(world.url + "/operations/-/new")
    page.get_by_role("link", name="verify").click()
    page.get_by_role("button", name="Ask for verify").click()
    expect(page.locator("h1")).to_have_text("verify")
    agent.claim()
    agent.tell("Look", HOSTILE)
    expect(page.locator("main")).to_contain_text("1 of 4 steps", timeout=15_000)  # it is read again every five seconds
    expect(page.locator(".timeline > li")).to_have_count(2)
    assert_fits(page)
    page.locator("summary", has_text="Cancel it").click()
    page.get_by_label("End it").check()
    page.get_by_role("button", name="Cancel it").click()
    expect(page.locator("main")).to_contain_text("cancelling")
    page.goto(world.url + "/operations")
    expect(page.locator("main")).to_contain_text("1 of 4 steps")
    context.close()


def test_a_cancellation_wants_a_tick(world: World, page: Page, agent: Agent) -> None:
    operation = agent.ask("upgrade")
    page.goto(f"{world.url}/operations/{operation}")
    page.locator("summary", has_text="Cancel it").click()
    page.evaluate("document.querySelector('input[name=sure]').required = false")
    page.get_by_role("button", name="Cancel it").click()
    expect(page.locator(".error")).to_have_text("Tick the box.")
    assert world.run(agent.store.get(operation)).state == "requested"


@pytest.mark.parametrize(("person", "role", "tenant"), [("vera", Role.SENDER, ""), ("tess", Role.VIEWER, "other")])
def test_refused(world: World, browser: Browser, agent: Agent, person: str, role: Role, tenant: str) -> None:
    operation = agent.ask("upgrade")
    context = browser.new_context()
    enter(world, context, person, role, tenant)
    page = context.new_page()
    for path in ("", "/-/new", f"/{operation}", f"/{operation}/events", f"/{operation}/live"):
        answer = page.goto(world.url + "/operations" + path)
        assert answer is not None
        assert answer.status == 403, path
    page.goto(world.url + "/")
    expect(page.get_by_role("link", name="Operations")).to_have_count(0)
    answer = page.request.post(
        f"{world.url}/operations/{operation}/cancel", form={"sure": "yes"}, headers={"sec-fetch-site": "same-origin"}
    )
    assert answer.status == 403
    assert world.run(agent.store.get(operation)).state == "requested"
    context.close()
