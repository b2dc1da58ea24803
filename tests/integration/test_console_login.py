"""Signing in to the console over real HTTP, by hand: what a browser would be too polite to try."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pyotp
import pytest

from controlplane.clock import SystemClock
from controlplane.domain.people import Look, Role, Stage
from controlplane.store.audit import AUDIT
from controlplane.store.sessions import SESSIONS
from tests.simulators.node import RunningNode, running_node
from tests.simulators.visitor import COOKIE, DEVICE, Visitor, secret_of

PASSWORD = "a long walk on a short pier"
HELP = "/console/help"


@pytest.fixture
def visitor(node) -> Visitor:
    return Visitor(node.http, node.base_url)


@pytest.fixture
def forward(monkeypatch):
    """Puts the wall clock of everything in this process forward, by minutes."""
    ahead, now_ms = [0], SystemClock.now_ms
    monkeypatch.setattr(SystemClock, "now_ms", lambda clock: now_ms(clock) + ahead[0])

    def forward(minutes: float) -> None:
        ahead[0] += int(minutes * 60_000)

    return forward


async def person(node: RunningNode, name: str = "ada", role: Role = Role.ADMIN, *, totp: bool = True) -> pyotp.TOTP:
    """Somebody who is set up; their authenticator."""
    people = node.node.people
    await people.create(name, role, "")
    await people.set_password(name, PASSWORD)
    secret = pyotp.random_base32()
    if totp:
        assert await people.set_totp(name, secret, pyotp.TOTP(secret).at(SystemClock().now_ms() // 1000 - 30))
    return pyotp.TOTP(secret)


def code(totp: pyotp.TOTP, ahead: int = 0) -> str:
    return totp.at(SystemClock().now_ms() // 1000 + ahead)


async def enter(visitor: Visitor, totp: pyotp.TOTP, name: str = "ada", ahead: int = 0) -> None:
    assert (await visitor.log_in(name, PASSWORD)).to == "/console/login/code?next=%2Fconsole%2F"
    assert (await visitor.post("/console/login/code", code=code(totp, ahead))).status == 303
    assert (await visitor.get(HELP)).status == 200


async def audited(node: RunningNode) -> list[tuple[str, str, str, str, str]]:
    found = await node.node.database[AUDIT].find({}).sort("_id", 1).to_list()
    return [(d["actor"], d["action"], d["object"], d["outcome"], d["detail"]) for d in found]


class TestGuard:
    """What changes something comes from the console's own pages; every answer carries the policy."""

    async def test_where_forms_come_from(self, node, visitor):
        await enter(visitor, await person(node))
        own, port = node.base_url, node.base_url.rpartition(":")[0]
        for site, origin, passes in (
            ("same-origin", None, True),
            ("same-origin", "https://evil.example", True),  # browsers alone set the first
            ("same-site", None, False),
            ("cross-site", None, False),
            ("none", None, False),
            ("cross-site", own, False),
            (None, own, True),
            (None, "https://evil.example", False),
            (None, "null", False),
            (None, port, False),
            (None, None, False),
        ):
            await node.node.people.set_look("ada", Look())
            headers = {"sec-fetch-site": site, "origin": origin}
            answer = await visitor.post("/console/account/look", headers=headers, theme="dark", time_zone="UTC")
            assert answer.status == (303 if passes else 403), headers
            assert (await node.node.people.find("ada")).look.theme == ("dark" if passes else "system")

    async def test_headers(self, visitor):
        for path in ("/console/login", HELP, "/console/nowhere", "/console/static/console.css"):
            headers = (await visitor.get(path)).headers
            assert headers["content-security-policy"] == (
                "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'; object-src 'none'"
            )
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert "strict-transport-security" not in headers
            assert (headers["cache-control"] == "no-store") or "static" in path

    async def test_a_refused_form_has_them_too(self, visitor):
        answer = await visitor.post("/console/login", headers={"sec-fetch-site": "cross-site"})
        assert answer.status == 403
        assert "content-security-policy" in answer.headers


class TestLogin:
    """In comes who has password and second factor, with a session that nobody else chose; and nobody learns which names there are."""

    async def test_in_and_out(self, node, visitor):
        totp = await person(node)
        answer = await visitor.log_in("  ADA ", PASSWORD, next="/console/messages?status=failed")
        assert answer.to == "/console/login/code?next=%2Fconsole%2Fmessages%3Fstatus%3Dfailed"
        answer = await visitor.post("/console/login/code", code=code(totp), next="/console/messages?status=failed")
        assert (answer.status, answer.to) == (303, "/console/messages?status=failed")
        assert (await visitor.get("/console/login")).to == "/console/"
        inside = visitor.cookies[COOKIE]
        assert (await visitor.post("/console/logout")).to == "/console/login"
        assert COOKIE not in visitor.cookies
        visitor.cookies[COOKIE] = inside
        assert (await visitor.get(HELP)).to == "/console/login?next=%2Fconsole%2Fhelp"
        assert await audited(node) == [
            ("person:ada", "login", "people/ada", "done", ""),
            ("person:ada", "logout", "people/ada", "done", ""),
        ]
        assert (await node.node.people.find("ada")).last_login_at

    async def test_the_cookie(self, node, visitor):
        await enter(visitor, await person(node))
        for name in (COOKIE, DEVICE):
            morsel = visitor.set_cookies[name]
            assert (morsel["path"], morsel["domain"], morsel["samesite"]) == ("/", "", "lax")
            assert morsel["secure"]
            assert morsel["httponly"]
        assert not visitor.set_cookies[COOKIE]["max-age"], "gone with the browser"

    async def test_fixation(self, node, visitor):
        """A session that somebody planted, or that is only half open, is never the one that becomes open."""
        totp = await person(node)
        mallory = await person(node, "mallory", Role.VIEWER)
        other = Visitor(node.http, node.base_url)
        await enter(other, mallory, "mallory")
        planted = other.cookies[COOKIE]
        visitor.cookies[COOKIE] = planted
        await visitor.log_in("ada", PASSWORD)
        half = visitor.cookies[COOKIE]
        await visitor.post("/console/login/code", code=code(totp))
        seen = {planted, half, visitor.cookies[COOKIE]}
        assert len(seen) == 3
        for former in (planted, half):
            other.cookies[COOKIE] = former
            assert (await other.get(HELP)).status == 303

    async def test_half_a_login_opens_nothing(self, node, visitor):
        await person(node)
        await visitor.log_in("ada", PASSWORD)
        for path in (HELP, "/console/account", "/console/people", "/console/setup/totp"):
            answer = await visitor.get(path)
            assert answer.status == 303, path
            assert answer.to.startswith("/console/login"), path
        answer = await visitor.post("/console/account/totp", proof=PASSWORD)
        assert answer.to.startswith("/console/login")

    async def test_unknown_names_are_answered_alike(self, node, visitor):
        await person(node)
        pages = [await visitor.log_in(name, "wrong but long enough") for name in ("ada", "bob")]
        assert [page.status for page in pages] == [422, 422]
        texts = [re.sub(r'data-now="\d+"|ada|bob', "", page.text) for page in pages]
        assert texts[0] == texts[1]
        assert await audited(node) == [
            ("", "login", "people/ada", "refused", "password"),
            ("", "login", "", "refused", "password"),
        ]

    async def test_a_disabled_person(self, node, visitor):
        totp = await person(node)
        await enter(visitor, totp)
        await node.node.people.change("ada", role=Role.ADMIN, tenant="", enabled=False)
        assert (await visitor.get(HELP)).status == 303
        assert (await visitor.log_in("ada", PASSWORD)).status == 422

    async def test_leads_nowhere_else(self, node, visitor):
        await person(node, totp=False)
        visitor.cookies[COOKIE] = await node.node.sessions.begin("ada", Stage.OPEN, address="", agent="")
        for to in (
            "https://evil.example/",
            "//evil.example/console/",
            "/\\evil.example",
            "javascript:alert(1)",
            "/consoleevil",
            "/docs",
            "/console/logout",
            "/console/login?next=/console/login",
            "/console/\nhelp",
            "/console/ help",
        ):
            assert (await visitor.get(f"/console/login?{urlencode({'next': to})}")).to == "/console/", to
        assert (await visitor.get("/console/login?next=/console/help%3Fa=b")).to == "/console/help?a=b"

    async def test_a_code_counts_once(self, node, visitor):
        totp = await person(node)
        await enter(visitor, totp)
        used = code(totp)
        again = Visitor(node.http, node.base_url)
        await again.log_in("ada", PASSWORD)
        assert (await again.post("/console/login/code", code=used)).status == 422
        assert (await again.get(HELP)).status == 303
        assert (await again.post("/console/login/code", code=code(totp, 30))).status == 303
        assert (await again.get(HELP)).status == 200

    async def test_a_recovery_code_counts_once(self, node, visitor):
        await person(node)
        [first, *_] = await node.node.people.renew_codes("ada")
        for expected in (303, 422):
            await visitor.log_in("ada", PASSWORD)
            assert (await visitor.post("/console/login/code", recovery=first)).status == expected
        assert ("person:ada", "login", "people/ada", "done", "recovery code") in await audited(node)

    async def test_only_over_tls_or_on_this_machine(self, node, visitor):
        for host, status in (
            ("sms.example.com", 403), ("10.0.0.5:8080", 403), ("localhost:8080", 200), ("[::1]:8080", 200), ("127.0.0.1", 200),
        ):  # fmt: skip
            answer = await visitor.get("/console/login", host=host)
            assert answer.status == status, host
            assert ("TLS is needed here" in answer.text) == (status == 403)
        form = {"name": "ada", "password": PASSWORD}
        refused = await visitor.request("POST", "/console/login", headers={"host": "sms.example.com"}, data=form)
        assert refused.status == 403
        proxied = await visitor.get("/console/login", host="sms.example.com", **{"x-forwarded-proto": "https"})
        assert proxied.status == 200, "a proxy on this machine ended TLS"
        assert proxied.headers["strict-transport-security"]

    async def test_htmx_loads_the_whole_login(self, node, visitor):
        answer = await visitor.get(
            HELP, **{"hx-request": "true", "hx-current-url": f"{node.base_url}/console/messages?status=failed"}
        )
        assert answer.status == 204
        assert answer.headers["hx-redirect"] == "/console/login?next=%2Fconsole%2Fmessages%3Fstatus%3Dfailed"


class TestDelays:
    """Guessing becomes slow, on all nodes; whoever has signed in before in a browser does not wait for strangers."""

    async def test_guessing(self, node, visitor, forward):
        totp = await person(node)
        known = Visitor(node.http, node.base_url)
        await enter(known, totp)
        await known.post("/console/logout")
        answers = [await visitor.log_in("ada", f"wrong number {number}") for number in range(8)]
        assert [answer.status for answer in answers] == [422] * 6 + [429] * 2
        assert int(answers[-1].headers["retry-after"]) == 1
        right = await visitor.log_in("ada", PASSWORD)
        assert right.status == 429, "not even the right one is looked at"
        assert PASSWORD not in right.text
        assert (await known.log_in("ada", PASSWORD)).status == 303
        forward(0.1)
        assert (await visitor.log_in("ada", PASSWORD)).status == 303

    async def test_guessing_codes(self, node, visitor, forward):
        """Ten minutes of half a session, and hardly more than ten codes."""
        totp = await person(node)
        await visitor.log_in("ada", PASSWORD)
        answers = [await visitor.post("/console/login/code", code=f"{number:06}") for number in range(20)]
        assert [answer.status for answer in answers] == [422] * 6 + [429] * 14
        assert (await visitor.post("/console/login/code", code=code(totp))).status == 429
        forward(0.1)
        assert (await visitor.post("/console/login/code", code=code(totp))).status == 303

    async def test_many_names_from_one_address(self, node, visitor):
        answers = [await visitor.log_in(f"name{number}", "wrong number") for number in range(24)]
        assert [answer.status for answer in answers] == [422] * 21 + [429] * 3

    async def test_a_forged_device_is_none(self, node, visitor):
        await person(node)
        visitor.cookies[DEVICE] = "00." + "0" * 64
        answers = [await visitor.log_in("ada", "wrong number") for _ in range(7)]
        visitor.cookies[DEVICE] = "01." + "0" * 64
        assert [answer.status for answer in answers][-1] == 429
        assert (await visitor.log_in("ada", PASSWORD)).status == 429


class TestSessions:
    """They end by themselves, and when somebody says so."""

    async def test_idle(self, node, visitor, forward):
        await enter(visitor, await person(node))
        forward(29)
        assert (await visitor.get(HELP)).status == 200
        forward(31)
        assert (await visitor.get(HELP)).status == 303

    async def test_a_tab_that_is_only_open_is_idle(self, node, visitor, forward):
        await enter(visitor, await person(node))
        forward(25)
        assert (await visitor.get(HELP, accept="text/event-stream")).status == 200
        forward(10)
        assert (await visitor.get(HELP, accept="text/event-stream")).status == 303
        assert (await visitor.get(HELP)).status == 303

    async def test_absolute(self, node, visitor, forward):
        await enter(visitor, await person(node))
        for _ in range(19):
            forward(25)
            assert (await visitor.get(HELP)).status == 200
        forward(25)
        assert (await visitor.get(HELP)).status == 303

    async def test_a_new_password_ends_the_others(self, node, visitor):
        totp = await person(node)
        await enter(visitor, totp)
        other = Visitor(node.http, node.base_url)
        await enter(other, totp, ahead=30)
        new = "an entirely different pier"
        wrong = await visitor.post("/console/account/password", current="no", password=new, again=new)
        assert wrong.status == 422
        assert (await other.get(HELP)).status == 200
        answer = await visitor.post("/console/account/password", current=PASSWORD, password=new, again=new)
        assert answer.status == 303
        assert (await other.get(HELP)).status == 303
        assert (await visitor.get(HELP)).status == 200
        assert (await other.log_in("ada", PASSWORD)).status == 422
        assert (await other.log_in("ada", new)).status == 303

    async def test_ending_one(self, node, visitor):
        totp = await person(node)
        await enter(visitor, totp)
        other = Visitor(node.http, node.base_url)
        await enter(other, totp, ahead=30)
        page = (await visitor.get("/console/account")).text
        [handle] = re.findall(r"/console/account/sessions/(ses_\w+)/end", page)
        assert (await visitor.post(f"/console/account/sessions/{handle}/end")).status == 303
        assert (await other.get(HELP)).status == 303

    async def test_no_cookie_is_stored(self, node, visitor):
        await enter(visitor, await person(node))
        stored = str(await node.node.database[SESSIONS].find({}).to_list())
        assert visitor.cookies[COOKIE] not in stored


class TestSetUp:
    """A link lets one person in, once; the second factor comes with it."""

    async def link(self, node, name="ada", role=Role.ADMIN) -> str:
        if name:
            await node.node.people.create(name, role, "")
        token, _ = await node.node.links.make(name, role, "", "key")
        return token

    async def test_first_run(self, node, visitor):
        token = await self.link(node, "")
        assert (await visitor.get(f"/console/setup?token={token}")).status == 200
        answer = await visitor.post("/console/setup", token=token, name="Ada", password=PASSWORD, again=PASSWORD)
        assert answer.to.startswith("/console/setup/totp")
        assert (await visitor.get(HELP)).status == 303, "not before the second factor"
        page = await visitor.get("/console/setup/totp")
        secret = secret_of(page)
        assert "<svg" in page.text
        assert (await visitor.post("/console/setup/totp", code="000000")).status == 422
        assert secret_of(await visitor.get("/console/setup/totp")) == secret
        half = visitor.cookies[COOKIE]
        shown = await visitor.post("/console/setup/totp", code=code(pyotp.TOTP(secret)))
        assert shown.status == 200
        codes = re.findall(r"^(?:.*>)?((?:[a-z2-7]{4}-){3}[a-z2-7]{4})$", shown.text, re.MULTILINE)
        assert len(codes) == 10
        assert visitor.cookies[COOKIE] != half
        assert (await visitor.get("/console/people")).status == 200
        ada = await node.node.people.find("ada")
        assert (ada.role, ada.totp, ada.recovery_codes) == (Role.ADMIN, True, 10)
        again = await visitor.post("/console/setup", token=token, name="eve", password=PASSWORD, again=PASSWORD)
        assert again.status == 404
        assert await node.node.people.find("eve") is None
        assert [entry[:4] for entry in await audited(node)] == [
            ("person:ada", "setUp", "people/ada", "done"),
            ("person:ada", "setTotp", "people/ada", "done"),
            ("person:ada", "login", "people/ada", "done"),
        ]
        assert not any(PASSWORD in str(entry) or secret in str(entry) for entry in await audited(node))

    async def test_weak_ones(self, node, visitor):
        token = await self.link(node)
        for password, again, says in (
            ("short", "short", "at least 12"),
            ("my name is ada, hello", "my name is ada, hello", "login name"),
            ("Password1234!", "Password1234!", "tried first"),
            ("aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaa", "same few"),
            ("12345678901234", "12345678901234", "tried first"),
            (PASSWORD, PASSWORD + "x", "not the same"),
            ("x" * 300, "x" * 300, "at most"),
        ):
            answer = await visitor.post("/console/setup", token=token, password=password, again=again)
            assert answer.status == 422, password
            assert says in answer.text
            assert password not in answer.text
        assert not (await node.node.people.find("ada")).ready
        any_characters = "ключ от старого дома 🗝"
        good = await visitor.post("/console/setup", token=token, password=any_characters, again=any_characters)
        assert good.status == 303, "the link was not used up"

    async def test_a_name_that_is_taken(self, node, visitor):
        await person(node)
        token = await self.link(node, "")
        answer = await visitor.post("/console/setup", token=token, name="ada", password=PASSWORD, again=PASSWORD)
        assert answer.status == 422
        assert "is taken" in answer.text

    async def test_a_named_link_is_for_that_name(self, node, visitor):
        token = await self.link(node, "bob", Role.VIEWER)
        await visitor.post("/console/setup", token=token, name="root", password=PASSWORD, again=PASSWORD)
        assert await node.node.people.find("root") is None
        assert (await node.node.people.find("bob")).ready

    async def test_a_forgotten_password(self, node, visitor):
        """The link sets a new one; the second factor is asked for all the same."""
        totp = await person(node)
        await enter(visitor, totp)
        token, _ = await node.node.links.make("ada", Role.ADMIN, "", "key")
        other = Visitor(node.http, node.base_url)
        new = "an entirely different pier"
        answer = await other.post("/console/setup", token=token, password=new, again=new)
        assert answer.to.startswith("/console/login/code")
        assert (await other.get(HELP)).status == 303
        assert (await visitor.get(HELP)).status == 303, "all former sessions are over"
        assert (await other.post("/console/login/code", code=code(totp, 30))).status == 303
        assert (await other.get(HELP)).status == 200

    async def test_links_that_are_none(self, node, visitor, forward):
        token = await self.link(node)
        assert (await visitor.get("/console/setup?token=nonsense")).status == 404
        await node.node.people.change("ada", role=Role.ADMIN, tenant="", enabled=False)
        assert (await visitor.get(f"/console/setup?token={token}")).status == 404
        await node.node.people.change("ada", role=Role.ADMIN, tenant="", enabled=True)
        forward(24 * 60)
        assert (await visitor.get(f"/console/setup?token={token}")).status == 404

    async def test_without_one_it_is_set_up_at_the_next_login(self, node, visitor):
        await person(node, totp=False)
        answer = await visitor.log_in("ada", PASSWORD)
        assert answer.to.startswith("/console/setup/totp")
        assert (await visitor.get(HELP)).status == 303
        secret = secret_of(await visitor.get("/console/setup/totp"))
        await visitor.post("/console/setup/totp", code=code(pyotp.TOTP(secret)))
        assert (await visitor.get(HELP)).status == 200

    async def test_where_it_is_optional(self, settings, database):
        async with running_node(settings.model_copy(update={"console_totp": "optional"})) as node:
            visitor = Visitor(node.http, node.base_url)
            await person(node, totp=False)
            assert (await visitor.log_in("ada", PASSWORD)).to == "/console/"
            assert (await visitor.get(HELP)).status == 200
            assert (await visitor.get("/console/setup/totp")).status == 303, "not without the password"
            await visitor.post("/console/account/totp", proof=PASSWORD)
            secret = secret_of(await visitor.get("/console/setup/totp"))
            await visitor.post("/console/setup/totp", code=code(pyotp.TOTP(secret)))
            await visitor.post("/console/logout")
            assert (await visitor.log_in("ada", PASSWORD)).to.startswith("/console/login/code")


class TestRoles:
    """A page shows itself to whom it is for."""

    async def test_admin_pages(self, node, visitor):
        await person(node, totp=False)
        visitor.cookies[COOKIE] = await node.node.sessions.begin("ada", Stage.OPEN, address="", agent="")
        pages = ("people", "people/-/new", "keys", "keys/-/new", "audit")
        for role in Role:
            await node.node.people.change("ada", role=role, tenant="", enabled=True)
            for page in pages:
                answer = await visitor.get(f"/console/{page}")
                assert answer.status == (200 if role is Role.ADMIN else 403), (role, page)
            answer = await visitor.post("/console/people/-/new", name="eve", role="admin")
            assert answer.status == (200 if role is Role.ADMIN else 403)
            assert (await visitor.get("/console/account")).status == 200

    async def test_a_lower_role_counts_at_once(self, node, visitor):
        await enter(visitor, await person(node))
        await node.node.people.change("ada", role=Role.VIEWER, tenant="", enabled=True)
        assert (await visitor.get("/console/people")).status == 403

    async def test_an_open_session_only(self, node, visitor):
        """A made-up cookie, one of another stage, none at all."""
        await person(node, totp=False)
        enrolling = await node.node.sessions.begin("ada", Stage.ENROL, address="", agent="")
        for cookie in ("made-up", enrolling, ""):
            visitor.cookies = {COOKIE: cookie} if cookie else {}
            assert (await visitor.get("/console/people")).status == 303


async def test_hostile_words_are_words(node, visitor):
    """What people and programs call themselves is shown as text."""
    script = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    visitor.headers["user-agent"] = script
    await enter(visitor, await person(node))
    body = {"tenant": "sample", "name": script, "scopes": ["messages:read"]}
    assert (await node.call("POST", "/v1/keys", key=node.admin_key, json=body))[0] == 201
    status, _ = await node.call("POST", "/v1/tenants", key=node.admin_key, json={"id": "evil", "name": script})
    assert status == 201
    status, keys = await node.call("GET", "/v1/keys", key=node.admin_key)
    key_id = next(key["id"] for key in keys["data"] if key["name"] == script)
    for path in (
        "/console/account", "/console/keys", f"/console/keys/{key_id}", "/console/keys/tenants/evil", "/console/people/-/new",
        "/console/audit", f"/console/audit?actor={script}", f"/console/login?next={script}", "/console/keys/-/new?tenant=evil",
    ):  # fmt: skip
        page = await visitor.get(path)
        assert page.status in (200, 303), path
        assert "<script>alert" not in page.text, path
        assert "<img src=x" not in page.text, path
    stranger = Visitor(node.http, node.base_url)
    page = await stranger.log_in(script, script)
    assert "<script>alert" not in page.text
