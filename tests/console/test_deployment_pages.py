"""Overview, routes, connectors, routing, regions, alerts: full, empty and refused, at all widths and in both themes; and what is done on them."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from controlplane.domain.people import Role
from tests.console.checks import assert_fits
from tests.console.conftest import World, enter
from tests.console.test_pages import look

PAGES = (
    "/",
    "/?span=week",
    "/routes",
    "/routes/-/new",
    "/routes/gold",
    "/routes/gold/edit",
    "/connectors",
    "/connectors/-/new",
    "/connectors/gold",
    "/connectors/gold/edit",
    "/routing",
    "/regions",
    "/alerts",
    "/alerts?status=resolved",
    "/alerts/-/history",
)


def _name(path: str) -> str:
    return re.sub(r"[^a-z]+", "-", path.strip("/")).strip("-") or "overview"


@pytest.fixture(scope="module")
def counted(world: World) -> World:
    """Statistics are written, and the alerts have been looked at."""
    watch = world.node.node.watch

    async def now() -> None:
        await watch.recorder.flush()
        await watch.report.write()
        await watch.evaluator.round()

    world.run(now())
    return world


@pytest.mark.parametrize("path", PAGES)
def test_full(counted: World, browser: Browser, axe: str, path: str) -> None:
    look(counted, browser, axe, path, 200, _name(path))


@pytest.mark.parametrize("path", ["/", "/routes", "/connectors", "/routing", "/regions", "/alerts"])
def test_empty(blank: World, browser: Browser, axe: str, path: str) -> None:
    look(blank, browser, axe, path, 200, _name(path) + "-empty")


@pytest.mark.parametrize("path", ["/routes/none", "/connectors/none", "/alerts/one/none:x"])
def test_refused(world: World, browser: Browser, axe: str, path: str) -> None:
    look(world, browser, axe, path, 404, _name(path) + "-refused")


class TestOverview:
    """A glance says how it goes, with the same numbers as the API."""

    def test_numbers_and_their_table(self, counted: World, page: Page) -> None:
        page.goto(counted.url + "/")
        expect(page.locator(".stat", has_text="Accepted")).to_contain_text(re.compile(r"Accepted\s+[1-9]"))
        figure = page.locator("figure", has_text="What became of them")
        figure.locator("summary").click()
        row = figure.locator("tr", has_text="undelivered")
        expect(row).to_contain_text(re.compile(r"[1-9]"))
        worst = page.locator("section", has_text="Routes that delivered least").locator("tbody tr").first
        expect(worst).to_contain_text("budget")

    def test_it_goes_on_by_itself(self, counted: World, page: Page) -> None:
        page.goto(counted.url + "/")
        expect(page.locator("[data-live]")).to_contain_text("accepted", timeout=10_000)

    def test_without_scripts(self, counted: World, browser: Browser) -> None:
        context = browser.new_context(java_script_enabled=False)
        enter(counted, context)
        page = context.new_page()
        for path in ("/", "/routes/gold", "/connectors", "/regions", "/alerts"):
            page.goto(counted.url + path)
            expect(page.locator("h1")).to_be_visible()
            assert_fits(page)
        expect(page.locator("main")).to_contain_text("Firing")
        context.close()

    def test_a_tenants_viewer_sees_their_own_and_no_alerts(self, counted: World, browser: Browser) -> None:
        context = browser.new_context()
        enter(counted, context, "tess", Role.VIEWER, "other")
        page = context.new_page()
        page.goto(counted.url + "/")
        expect(page.locator(".stat", has_text="Accepted")).to_contain_text("0")
        expect(page.locator("main")).not_to_contain_text("alert")
        answer = page.goto(counted.url + "/alerts")
        assert answer is not None
        assert answer.status == 403
        page.goto(counted.url + "/routes/gold")
        expect(page.get_by_role("link", name="Change")).to_have_count(0)
        expect(page.locator("dl.facts")).to_contain_text("1 bound")
        expect(page.locator("dl.facts")).not_to_contain_text("Throughput")
        page.goto(counted.url + "/routes")
        expect(page.locator("tr", has_text="gold")).to_contain_text("in use")
        context.close()


class TestConnectors:
    """From the carrier's letter to a bound account, without leaving the page that says what is wrong."""

    def test_try_make_drain_remove(self, counted: World, page: Page) -> None:
        port = counted.run(_port(counted))
        page.goto(counted.url + "/connectors/-/new")
        page.fill("#name", "silver")
        page.fill("#host", "127.0.0.1")
        page.fill("#port", "abc")
        page.fill("#system_id", "heliograph")
        page.fill("#password", "secret")
        page.get_by_role("button", name="Try it first").click()
        expect(page.locator("#port-error")).to_have_text("is not a whole number")
        page.fill("#port", str(port))
        page.fill("#password", "secret")
        page.get_by_role("button", name="Try it first").click()
        expect(page.get_by_role("status", name="The trial")).to_contain_text("The carrier takes this account.")
        assert "secret" not in page.content()
        page.fill("#password", "secret")
        page.get_by_role("button", name="Make it").click()
        expect(page.locator("h1")).to_have_text("Connector silver")
        expect(page.locator(".said")).to_contain_text("It is made")

        page.get_by_role("button", name="Drain").click()
        expect(page.locator(".said")).to_contain_text("drained")
        page.get_by_role("button", name="Enable").click()
        page.locator("summary", has_text="Remove").click()
        page.locator("input[name=confirm]").fill("gold")
        page.locator(".confirm button").click()
        expect(page.locator(".error")).to_have_text("Type silver exactly.")
        page.locator("input[name=confirm]").fill("silver")
        page.locator(".confirm button").click()
        expect(page.locator(".said")).to_have_text("Connector silver is removed.")

    def test_one_that_routes_use_stays(self, counted: World, page: Page) -> None:
        page.goto(counted.url + "/connectors/gold")
        expect(page.locator("section", has_text="Binds")).to_contain_text("node-1")
        page.locator("summary", has_text="Remove").click()
        page.locator("input[name=confirm]").fill("gold")
        page.locator(".confirm button").click()
        expect(page.get_by_role("alert")).to_contain_text("route gold")

    def test_a_stored_one_is_tried(self, counted: World, page: Page) -> None:
        page.goto(counted.url + "/connectors/gold")
        page.get_by_role("button", name="Try a bind").click()
        expect(page.get_by_role("status", name="The trial")).to_contain_text("Bound as trx")


async def _port(world: World) -> int:
    return world.node.node.catalog.snapshot.connectors["gold"].port


class TestRoutes:
    """Made, changed, taken out of use, removed; what the API refuses stands at its field."""

    def test_life(self, counted: World, page: Page) -> None:
        page.goto(counted.url + "/routes/-/new")
        page.fill("#name", "spare")
        page.select_option("#connector", "gold")
        page.fill("#prefixes", "+43 4x")
        page.get_by_role("button", name="Make it").click()
        expect(page.locator("#prefixes-error")).to_contain_text("is not a prefix")
        page.fill("#prefixes", "+43, 41")
        page.fill("#price", "9")
        page.get_by_role("button", name="Make it").click()
        expect(page.locator("h1")).to_have_text("Route spare")
        expect(page.locator("dl.facts")).to_contain_text("+43, +41")
        page.get_by_role("button", name="Take out of use").click()
        expect(page.locator("main")).to_contain_text("out of use")
        page.get_by_role("link", name="Change").click()
        page.fill("#priority", "7")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("dl.facts")).to_contain_text("7")
        page.locator("summary", has_text="Remove").click()
        page.locator("input[name=confirm]").fill("spare")
        page.locator(".confirm button").click()
        expect(page.locator(".said")).to_have_text("Route spare is removed.")

    def test_its_figures_are_those_of_its_messages(self, counted: World, page: Page) -> None:
        page.goto(counted.url + "/routes/budget")
        expect(page.locator(".stat", has_text="Delivered")).to_contain_text("0.0 %")
        page.get_by_role("link", name="Week").click()
        expect(page.locator("figure", has_text="How much arrived")).to_contain_text("0.0 % of what came to its end")


class TestRouting:
    """What was learned, and how to compare."""

    def test_compare(self, counted: World, page: Page) -> None:
        page.goto(counted.url + "/routing")
        expect(page.locator("figure").first).to_contain_text("Delivered within the deadline, as learned")
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("section", has_text="Learned against static")).to_contain_text("No message of this tenant")


class TestRegions:
    """The picture and the tables say the same."""

    def test_nodes_and_members(self, counted: World, page: Page) -> None:
        page.goto(counted.url + "/regions")
        expect(page.locator("section", has_text="Nodes").first).to_contain_text("node-1")
        expect(page.locator("section", has_text="MongoDB")).to_contain_text("primary")
        texts = page.locator("svg.topology text").all_text_contents()
        assert "node-1" in texts


class TestAlerts:
    """The on-call screen, on a phone."""

    def test_take_on_silence_and_lift(self, counted: World, browser: Browser) -> None:
        context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
        enter(counted, context, "otto", Role.OPERATOR)
        page = context.new_page()
        identity = counted.run(_fire(counted))
        page.goto(counted.url + "/alerts")
        page.get_by_role("link", name="No ledger leads in this datacenter.").click()
        page.fill("#note", "starting it")
        page.get_by_role("button", name="Take it on").click()
        expect(page.locator("main")).to_contain_text("otto is at it")
        page.get_by_role("button", name="Silence it").click()
        assert page.url.endswith(identity)  # the browser wants a reason first
        page.fill("#reason", "x")
        page.get_by_role("button", name="Silence it").click()
        expect(page.locator("#reason-error")).to_be_visible()
        page.fill("#reason", "no ledger in this test")
        page.get_by_role("button", name="Silence it").click()
        expect(page.locator("dl.facts")).to_contain_text("silenced")
        page.get_by_role("button", name="Lift the silence").click()
        expect(page.locator("dl.facts")).to_contain_text("acknowledged")
        page.get_by_role("button", name="Give it back").click()
        page.goto(counted.url + "/alerts/-/history")
        expect(page.locator("tbody tr").nth(1)).to_contain_text("unsilenced")
        expect(page.locator("tbody tr").nth(1)).to_contain_text("otto")
        context.close()


async def _fire(world: World) -> str:
    """The ledger's alarm, as it will be when it has lasted."""
    watch = world.node.node.watch
    for alert in await watch.alerts.all():
        if alert.id == "ledger:no-leader" and alert.state == "pending":
            alert.since -= 60_000
            await watch.alerts.save([alert], [], [])
    await watch.evaluator.round()
    return "ledger%3Ano-leader"
