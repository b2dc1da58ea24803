"""/v1/people and /v1/audit: real HTTP, real MongoDB."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from types import SimpleNamespace

import pytest

from controlplane.api.auth import act_for
from controlplane.console.backend import ApiError, Backend
from controlplane.domain.audit import person_actor
from controlplane.domain.people import Role, Stage
from controlplane.errors import StoreUnavailableError
from controlplane.settings import child_environment
from controlplane.store.audit import AUDIT, AuditStore

PASSWORD = "a long walk on a short pier"


async def admin(node, method: str, path: str, **kwargs):
    return await node.call(method, path, key=node.admin_key, **kwargs)


async def newest(node, **filters: str) -> list[dict]:
    status, page = await admin(node, "GET", "/v1/audit", params={"limit": "1000", **filters})
    assert status == 200, page
    return page["data"]


async def ready(node, name: str, role: str = "admin", tenant: str = "") -> None:
    """Somebody who can log in."""
    await node.node.people.create(name, Role(role), tenant)
    await node.node.people.set_password(name, PASSWORD)


class TestPeople:
    """Admins let people in and out; nobody else does; the last one stays."""

    async def test_invite_and_follow(self, node):
        status, made = await admin(
            node, "POST", "/v1/people", json={"name": "ada", "role": "sender", "tenant": "sample"}
        )
        assert status == 201, made
        assert made["person"] == {
            "name": "ada", "role": "sender", "tenant": "sample", "enabled": True, "state": "invited", "totp": False,
            "recovery_codes": 0, "created_at": made["person"]["created_at"], "last_login_at": None,
        }  # fmt: skip
        token = made["link"]["path"].removeprefix("/console/setup?token=")
        assert (await node.node.links.find(token)).name == "ada"
        assert await admin(node, "GET", "/v1/people") == (200, {"data": [made["person"]]})
        assert await admin(node, "GET", "/v1/people/ada") == (200, made["person"])
        status, again = await admin(node, "POST", "/v1/people/ada/link")
        assert status == 201
        assert again["path"] != made["link"]["path"]
        assert await node.node.links.find(token) is None

    async def test_the_first_one_chooses_a_name(self, node):
        status, made = await admin(node, "POST", "/v1/people", json={"role": "admin"})
        assert status == 201
        assert made["person"] is None
        assert (await admin(node, "GET", "/v1/people"))[1]["data"] == []

    async def test_refused(self, node):
        for body, pointer in (
            ({"name": "ada", "role": "operator", "tenant": "sample"}, "/role"),
            ({"name": "ada", "role": "admin", "tenant": "sample"}, "/role"),
            ({"name": "ada", "role": "viewer", "tenant": "nowhere"}, "/tenant"),
            ({"name": "ada", "role": "owner"}, "/role"),
            ({"name": "A B", "role": "viewer"}, "/name"),
            ({"name": "ada", "role": "viewer", "password": "x"}, "/password"),
        ):
            status, problem = await admin(node, "POST", "/v1/people", json=body)
            assert status == 422
            assert [error["pointer"] for error in problem["errors"]] == [pointer]
        assert (await admin(node, "GET", "/v1/people"))[1]["data"] == []

    async def test_a_name_once(self, node):
        await admin(node, "POST", "/v1/people", json={"name": "ada", "role": "viewer"})
        status, problem = await admin(node, "POST", "/v1/people", json={"name": "ada", "role": "admin"})
        assert (status, problem["type"].rpartition("/")[2]) == (409, "already-exists")
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/link"),
            ("DELETE", "/totp"),
            ("DELETE", "/sessions"),
        ):
            assert (await admin(node, method, f"/v1/people/nobody{path}"))[0] == 404

    async def test_only_admins(self, node):
        for method, path in (("GET", "/v1/people"), ("POST", "/v1/people"), ("GET", "/v1/audit")):
            body = {"role": "admin"} if method == "POST" else None
            assert (await node.call(method, path, json=body))[0] == 403

    async def test_disabled_is_out_at_once(self, node):
        await ready(node, "ada", "viewer")
        cookie = await node.node.sessions.begin("ada", Stage.OPEN, address="", agent="")
        token, _ = await node.node.links.make("ada", Role.VIEWER, "", "key")
        body = {"role": "viewer", "enabled": False}
        assert (await admin(node, "PUT", "/v1/people/ada", json=body))[1]["state"] == "disabled"
        assert await node.node.sessions.visit(cookie) is None
        assert await node.node.links.find(token) is None
        assert (await admin(node, "PUT", "/v1/people/ada", json={"role": "viewer"}))[1]["state"] == "active"
        assert await node.node.sessions.visit(cookie) is None

    async def test_the_last_admin_stays(self, node):
        await ready(node, "ada")
        await admin(node, "POST", "/v1/people", json={"name": "bob", "role": "admin"})  # has not come yet
        for body in ({"role": "operator"}, {"role": "admin", "enabled": False}):
            status, problem = await admin(node, "PUT", "/v1/people/ada", json=body)
            assert (status, problem["type"].rpartition("/")[2]) == (409, "last-admin")
        assert (await admin(node, "DELETE", "/v1/people/ada"))[0] == 409
        await node.node.people.set_password("bob", PASSWORD)
        assert (await admin(node, "PUT", "/v1/people/ada", json={"role": "operator"}))[0] == 200
        assert (await admin(node, "DELETE", "/v1/people/ada"))[0] == 204

    @pytest.mark.parametrize("call", ["PUT", "DELETE"])
    async def test_two_admins_cannot_take_each_other_away(self, node, monkeypatch, call):
        """Both have looked, and then both have gone: both are put back."""
        for name in ("ada", "bob"):
            await ready(node, name)
        before = await node.node.database["people"].find({}).to_list()
        method = {"PUT": "change", "DELETE": "remove"}[call]
        together, done = asyncio.Barrier(2), getattr(node.node.people, method)
        left = {"ada", "bob"}

        async def at_once(name, **values):
            if name not in left:
                return await done(name, **values)
            left.remove(name)
            await together.wait()
            answer = await done(name, **values)
            await together.wait()
            return answer

        monkeypatch.setattr(node.node.people, method, at_once)
        body = {"role": "viewer"} if call == "PUT" else None
        answers = await asyncio.gather(*(admin(node, call, f"/v1/people/{name}", json=body) for name in ("ada", "bob")))
        assert [(status, problem["type"].rpartition("/")[2]) for status, problem in answers] == [
            (409, "last-admin")
        ] * 2
        assert await node.node.database["people"].find({}).sort("_id", 1).to_list() == before

    @pytest.mark.parametrize("how", ["disabled", "demoted", "removed"])
    async def test_the_links_of_who_goes_end(self, node, how):
        """Else somebody who was shown the door could let themselves in by another one."""
        await ready(node, "ada")
        await ready(node, "bob")
        mine, _ = await node.node.links.make("", Role.ADMIN, "", person_actor("ada"))
        theirs, _ = await node.node.links.make("eve", Role.ADMIN, "", person_actor("bob"))
        stays = {"role": "admin"}
        assert (await admin(node, "PUT", "/v1/people/ada", json=stays))[0] == 200
        assert await node.node.links.find(mine) is not None
        body = {"disabled": stays | {"enabled": False}, "demoted": {"role": "operator"}, "removed": None}[how]
        status, _ = await admin(node, "PUT" if body else "DELETE", "/v1/people/ada", json=body)
        assert status in (200, 204)
        assert await node.node.links.find(mine) is None
        assert await node.node.links.find(theirs) is not None

    async def test_a_tenant_with_people_stays(self, node):
        assert (await admin(node, "POST", "/v1/tenants", json={"id": "bank", "name": "Bank"}))[0] == 201
        await ready(node, "bea", "viewer", "bank")
        status, problem = await admin(node, "DELETE", "/v1/tenants/bank")
        assert status == 409
        assert "bea" in problem["detail"]
        assert (await admin(node, "DELETE", "/v1/people/bea"))[0] == 204
        assert (await admin(node, "DELETE", "/v1/tenants/bank"))[0] == 204

    async def test_sessions_and_second_factor_can_be_taken_away(self, node):
        await ready(node, "ada", "viewer")
        for _ in range(2):
            await node.node.sessions.begin("ada", Stage.OPEN, address="", agent="")
        assert await admin(node, "DELETE", "/v1/people/ada/sessions") == (200, {"ended": 2})
        cookie = await node.node.sessions.begin("ada", Stage.OPEN, address="", agent="")
        assert (await admin(node, "DELETE", "/v1/people/ada/totp"))[0] == 200
        assert await node.node.sessions.visit(cookie) is None


class TestCommand:
    """`heliograph people`, as an admin types it."""

    @staticmethod
    async def run(node, *arguments: str) -> tuple[int, str, str]:
        environment = child_environment(url=node.base_url, api_key=node.admin_key)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controlplane", "people", *arguments),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def test_from_invitation_to_removal(self, node):
        code, out, _ = await self.run(node, "invite", "ada", "--role", "operator")
        assert code == 0
        token = re.search(rf"{node.base_url}/console/setup\?token=([\w-]+)\n", out)[1]
        assert (await node.node.links.find(token)).role is Role.OPERATOR
        assert "ada" in (await self.run(node, "list"))[1]
        code, out, _ = await self.run(node, "link", "ada", "--json")
        assert json.loads(out)["url"].startswith(f"{node.base_url}/console/setup?token=")
        assert await node.node.links.find(token) is None
        assert (await self.run(node, "set", "ada", "--role", "viewer", "--tenant", "sample"))[
            1
        ] == "ada: viewer of sample, invited\n"
        assert (await self.run(node, "disable", "ada"))[1] == "ada: viewer of sample, disabled\n"
        assert json.loads((await self.run(node, "list", "--json"))[1])["data"][0]["enabled"] is False
        assert (await self.run(node, "enable", "ada"))[0] == 0
        assert (await self.run(node, "reset-totp", "ada"))[0] == 0
        assert (await self.run(node, "log-out", "ada"))[1] == "0 ended.\n"
        assert (await self.run(node, "remove", "ada"))[0] == 0
        code, _, err = await self.run(node, "remove", "ada")
        assert code == 1
        assert "Nobody is called 'ada'" in err


class TestAudit:
    """Every change by anybody who is known is written down before the answer; never a number, a text or a secret."""

    async def test_a_change_by_a_key(self, node):
        headers = {"x-request-id": "request-4711"}
        status, key = await admin(
            node,
            "POST",
            "/v1/keys",
            json={"tenant": "sample", "name": "shop", "scopes": ["messages:read"]},
            headers=headers,
        )
        assert status == 201
        [entry] = await newest(node)
        admin_id = node.node.seal.digest_key(node.admin_key)[:8]
        assert entry == {
            "id": entry["id"], "at": entry["at"], "actor": admin_id, "action": "createKey", "object": f"keys/{key['id']}",
            "outcome": "done", "tenant": "", "address": "127.0.0.1", "detail": "", "node": "node-1",
            "request_id": "request-4711",
        }  # fmt: skip
        stored = await node.node.database[AUDIT].find({}).to_list()
        assert key["key"] not in str(stored)

    async def test_what_was_refused(self, node):
        await node.call("POST", "/v1/tenants", json={"id": "new", "name": "New"})
        await admin(node, "DELETE", "/v1/connectors/none")
        await admin(node, "POST", "/v1/people", json={"role": "emperor"})
        found = [(entry["action"], entry["object"], entry["outcome"], entry["detail"]) for entry in await newest(node)]
        assert found == [
            ("invitePerson", "people", "refused", "invalid-request"),
            ("deleteConnector", "connectors/none", "refused", "not-found"),
            ("createTenant", "tenants", "refused", "forbidden"),
        ]

    async def test_what_is_not_written_down(self, node):
        """Reads, what comes from nobody, searches that send nothing, and the path of messages, which has timelines."""
        await node.call("GET", "/v1/messages")
        await node.call("DELETE", "/v1/keys/x", key="hg_live_nobody")
        await node.call("POST", "/v1/route-searches", json={"to": "+4915112340001", "body": "x"})
        message = {"to": "+4915112340001", "body": "x", "dry_run": True}
        await node.call("POST", "/v1/messages", json=message)
        await node.call("POST", "/v1/messages/unknown/feedback", json={"outcome": "converted"})
        await admin(node, "POST", "/v1/nothing/there", json={})
        assert await newest(node) == []

    async def test_no_number(self, node):
        to = "+4915112340001"
        status, made = await node.call("POST", "/v1/suppressions", json={"recipient": to})
        assert status == 201
        await node.call("DELETE", f"/v1/suppressions/{to}")
        found = await newest(node)
        assert [entry["object"] for entry in found] == ["suppressions/…", f"suppressions/{made['id']}"]
        assert to[4:] not in str(await node.node.database[AUDIT].find({}).to_list())

    async def test_a_change_of_role_says_which(self, node):
        await ready(node, "ada", "viewer")
        await admin(node, "PUT", "/v1/people/ada", json={"role": "sender", "tenant": "sample"})
        await admin(node, "PUT", "/v1/people/ada", json={"role": "sender", "enabled": False})
        assert [(entry["object"], entry["detail"]) for entry in await newest(node, action="replacePerson")] == [
            ("people/ada", "sender of sample to sender (disabled)"),
            ("people/ada", "viewer to sender of sample"),
        ]

    async def test_pages_and_filters(self, node):
        for number in range(7):
            await admin(node, "DELETE", f"/v1/routes/r{number}")
        await node.call("DELETE", "/v1/routes/r0")
        seen, cursor = [], None
        while True:
            params = {"limit": "3", "action": "deleteRoute"} | ({"cursor": cursor} if cursor else {})
            status, page = await admin(node, "GET", "/v1/audit", params=params)
            assert status == 200
            seen += [entry["object"] for entry in page["data"]]
            cursor = page["next"]
            if not cursor:
                break
        assert seen == ["routes/r0", *(f"routes/r{number}" for number in reversed(range(7)))]
        own = node.node.seal.digest_key(node.key)[:8]
        assert len(await newest(node, actor=own)) == 1
        assert len(await newest(node, object="routes/r0")) == 2
        assert await newest(node, outcome="done") == []
        everything = await newest(node)
        middle = everything[4]["at"]
        later = await newest(node, since=middle)
        assert {entry["id"] for entry in everything if entry["at"] >= middle} == {entry["id"] for entry in later}
        assert len(later) + len(await newest(node, until=middle)) == 8
        assert (await admin(node, "GET", "/v1/audit", params={"since": "yesterday"}))[0] == 422
        assert (await admin(node, "GET", "/v1/audit", params={"cursor": "x"}))[0] == 422

    async def test_it_ends_after_its_days(self, node, database):
        await admin(node, "DELETE", "/v1/routes/none")
        document = await node.node.database[AUDIT].find_one({})
        assert document["forget"].timestamp() * 1000 - document["at"] == node.node.settings.audit_days * 86_400_000
        indexes = await node.node.database[AUDIT].index_information()
        assert indexes["ttl"]["expireAfterSeconds"] == 0

    async def test_the_log_has_it_when_the_store_is_away(self, node, monkeypatch, capsys):
        async def away(self, entry):
            raise StoreUnavailableError("MongoDB: away")

        monkeypatch.setattr(AuditStore, "append", away)
        status, _ = await admin(node, "DELETE", "/v1/routes/none")
        assert status == 404
        assert "audit_not_written" in capsys.readouterr().out


class TestOnBehalfOfPeople:
    """The console calls for people: their role as it is now decides, and their name is written down."""

    @staticmethod
    def backend(node) -> Backend:
        services = node.node.app.state.services
        return Backend(
            node.node.app,
            lambda visit, tenant: act_for(services, visit.person, tenant=tenant, own=visit.tenant, scopes=visit.scopes),
        )

    @staticmethod
    def visit(name: str, role: str, tenant: str = ""):
        return SimpleNamespace(person=name, tenant=tenant, scopes=Role(role).scopes, address="192.0.2.7")

    async def test_an_operator_makes_no_admins(self, node):
        """Although both have the scope admin: no people, no keys, no tenants, no audit."""
        backend = self.backend(node)
        await ready(node, "olga", "operator")
        olga = self.visit("olga", "operator")
        calls = [
            backend.post(olga, "/v1/people", {"role": "admin"}),
            backend.put(olga, "/v1/people/olga", {"role": "admin"}),
            backend.get(olga, "/v1/people"),
            backend.get(olga, "/v1/audit"),
            backend.post(olga, "/v1/keys", {"tenant": "sample", "name": "x", "scopes": ["admin"]}),
            backend.post(olga, "/v1/tenants", {"id": "x", "name": "x"}),
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [error.status for error in results if isinstance(error, ApiError)] == [403] * len(calls)
        assert (await backend.get(olga, "/v1/connectors"))["data"] == []

    async def test_a_role_that_was_taken_away_is_gone(self, node):
        backend = self.backend(node)
        await ready(node, "ada")
        await ready(node, "bea")
        ada = self.visit("ada", "admin")
        assert len((await backend.get(ada, "/v1/people"))["data"]) == 2
        await admin(node, "PUT", "/v1/people/ada", json={"role": "operator"})
        with pytest.raises(ApiError):
            await backend.get(ada, "/v1/people")

    async def test_who_sent_is_written_down(self, node, carriers):
        await node.connect(await carriers())
        await ready(node, "sam", "sender", "sample")
        sam = self.visit("sam", "sender", "sample")
        backend = self.backend(node)
        body = {"to": "+4915112340001", "body": "the text"}
        await backend.post(sam, "/v1/messages", body | {"dry_run": True})
        sent = await backend.post(sam, "/v1/messages", body)
        await node.reaches(sent["id"], "delivered")
        await backend.delete(sam, f"/v1/messages/{sent['id']}/content")
        found = [(e["actor"], e["action"], e["object"], e["tenant"], e["address"]) for e in await newest(node)]
        assert found == [
            ("person:sam", "eraseContent", f"messages/{sent['id']}", "sample", "192.0.2.7"),
            ("person:sam", "sendMessage", f"messages/{sent['id']}", "sample", "192.0.2.7"),
        ]
        assert "the text" not in str(await node.node.database[AUDIT].find({}).to_list())
