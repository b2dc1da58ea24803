"""Tenants and keys in a browser: made, used, disabled; every field of a tenant comes back as it was sent."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.console.conftest import HOSTILE, World


def test_a_key_from_birth_to_removal(page: Page, world: World) -> None:
    name = f"shop {HOSTILE[:40]}"
    page.goto(world.url + "/keys")
    page.get_by_role("link", name="New key for Other").click()
    assert page.get_by_label("Tenant", exact=True).input_value() == "other"
    page.get_by_label("Name").fill(name)
    for box in page.get_by_role("checkbox", name=re.compile("^(messages|routes):")).all():
        box.uncheck()
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#scopes-error")).to_be_visible()
    page.get_by_role("checkbox", name=re.compile("messages:read")).check()
    page.get_by_label("Messages a second").fill("many")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#rate-error")).to_be_visible()
    page.get_by_label("Messages a second").fill("5")
    page.get_by_role("button", name="Make the key").click()
    key = page.get_by_label("API key").input_value()
    assert world.run(world.node.call("GET", "/v1/messages", key=key))[0] == 200
    page.get_by_role("link", name="I have kept it").click()
    assert key not in page.content()
    expect(page.get_by_text(name)).to_be_visible()
    page.get_by_role("link", name=name).click()
    page.get_by_label("It works").uncheck()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_be_visible()
    assert world.run(world.node.call("GET", "/v1/messages", key=key))[0] == 401
    page.get_by_role("link", name=name).click()
    page.locator("summary", has_text="Remove").click()
    page.get_by_role("textbox", name=re.compile("to confirm")).fill(name)
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status")).to_contain_text("is removed")
    assert page.get_by_role("link", name=name).count() == 0


def test_every_field_of_a_tenant(page: Page, world: World) -> None:
    page.goto(world.url + "/keys/tenants/-/new")
    page.get_by_label("Id").fill("bank")
    page.get_by_label("Name").fill("The Bank")
    page.get_by_role("button", name="Make the tenant").click()
    secret = page.get_by_label("Callback secret").input_value()
    assert secret.startswith("whsec_")
    page.goto(world.url + "/keys/tenants/bank")
    before = _tenant(world)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_be_visible()
    assert _tenant(world) == before, "a form that was only looked at changes nothing"

    page.get_by_label("Name").fill("The Other Bank")
    page.locator("#rate").fill("250")
    page.get_by_label("Erase after days").fill("90")
    page.get_by_label("Smart encoding").check()
    page.get_by_label("Mode").select_option("learned")
    page.get_by_label("Unknown outcome, otp").select_option("hold")
    page.locator("[id='routing_terms.marketing.value']").fill("12.5")
    page.locator("[id='routing_terms.marketing.latency']").fill("0.25")
    row = page.get_by_role("group", name="Quiet hours 1, marketing")
    row.get_by_label("From").fill("21:00")
    row.get_by_label("to", exact=True).fill("08:00")
    for day in ("sat", "sun"):
        row.get_by_label(day).uncheck()
    page.locator("[id='quiet.marketing.action']").select_option("reject")
    page.get_by_label("Words that opt out").fill("STOP\nENDE, SCHLUSS")
    page.locator("[name=opt_out_classes][value=otp]").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_be_visible()
    assert _tenant(world) == before | {
        "name": "The Other Bank",
        "rate": 250,
        "retention_days": 90,
        "smart_encoding": True,
        "routing": "learned",
        "unknown_policies": {"otp": "hold"},
        "routing_terms": {"marketing": {"value": 12.5, "price": 1.0, "latency": 0.25}},
        "quiet_hours": {
            "marketing": {
                "windows": [{"start": "21:00", "end": "08:00", "days": ["mon", "tue", "wed", "thu", "fri"]}],
                "action": "reject",
            }
        },
        "opt_out_keywords": ["STOP", "ENDE", "SCHLUSS"],
        "opt_out_classes": ["marketing", "otp", "transactional"],
    }
    expect(page.get_by_role("group", name="Quiet hours 2, marketing")).to_be_visible()
    page.get_by_role("group", name="Quiet hours 1, marketing").get_by_label("From").fill("")
    page.get_by_role("group", name="Quiet hours 1, marketing").get_by_label("to", exact=True).fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_be_visible()
    assert _tenant(world)["quiet_hours"] == {}


def test_what_is_wrong_stands_at_its_field(page: Page, world: World) -> None:
    page.goto(world.url + "/keys/tenants/sample")
    before = _tenant(world, "sample")
    page.locator("[id='routing_terms.otp.latency']").fill("soon")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("[id='routing_terms.otp.latency-error']")).to_have_text("is not a number")
    page.locator("[id='routing_terms.otp.latency']").fill("1")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("[id='routing_terms.otp.value-error']")).to_be_visible()
    page.locator("[id='routing_terms.otp.latency']").fill("")
    page.get_by_label("Erase after days").fill("100000")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#retention_days-error")).to_be_visible()
    page.get_by_label("Erase after days").fill("")
    page.get_by_label("Words that opt out").fill("!!!")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("opt_out_keywords.0")).to_be_visible()
    assert _tenant(world, "sample") == before


def test_a_tenant_with_keys_stays(page: Page, world: World) -> None:
    page.goto(world.url + "/keys/tenants/sample")
    page.locator("summary", has_text="Remove").click()
    page.get_by_label("Type sample to confirm").fill("sample")
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("alert")).to_contain_text("Still in use")


def _tenant(world: World, tenant_id: str = "bank") -> dict:
    status, tenant = world.run(world.node.call("GET", f"/v1/tenants/{tenant_id}", key=world.node.admin_key))
    assert status == 200
    return tenant
