"""`/v1/operations` over a real mongod: one at a time, held by one agent, told once; and what nobody may put there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.domain.catalog import Key, Scope
from controlplane.store.operations import SILENT_MS
from controlplane.store.seal import new_key
from tests.simulators.node import RunningNode

UPGRADE = {"kind": "upgrade", "variables": {"scope": "nodes"}}
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----"


@pytest.fixture
def api(node: RunningNode) -> Api:
    return Api(node)


class Api:
    """What an admin and their agents ask."""

    def __init__(self, node: RunningNode) -> None:
        self.node = node
        self.region = node.node.settings.datacenter

    async def call(self, method: str, path: str, body: Any = None, *, key: str = "", **query: Any) -> tuple[int, Any]:
        return await self.node.call(
            method, f"/v1/operations{path}", key=key or self.node.admin_key, json=body, params=query
        )

    async def ask(self, body: Any = UPGRADE) -> str:
        status, found = await self.call("POST", "", body)
        assert status == 202, found
        return str(found["id"])

    async def claim(self, agent: str = "agent_one", **more: Any) -> Any:
        nonce = more.pop("nonce", f"claim_{new_key()[-8:].lower()}")
        body = {"agent": agent, "host": f"{agent}.example", "region": self.region, "nonce": nonce, **more}
        status, found = await self.call("POST", "/claim", body)
        assert status == 200, found
        return found

    async def report(self, operation: str, fence: int, revision: int = 1, **more: Any) -> tuple[int, Any]:
        body = {
            "agent": "agent_one",
            "fence": fence,
            "revision": revision,
            "spool": "agent_one",
            "first": 1,
            "events": [],
            "state": "running",
            "unfinished": True,
            "journal": {},
            "canaries": {},
        }
        return await self.call("POST", f"/{operation}/report", body | more)

    async def a_minute_goes_by(self) -> None:
        for name in ("operations", "operation_agents"):
            await self.node.node.database[name].update_many({}, {"$inc": {"beat": -SILENT_MS}})

    async def get(self, operation: str) -> Any:
        status, found = await self.call("GET", f"/{operation}")
        assert status == 200
        return found

    async def events(self, operation: str, **query: Any) -> list[Any]:
        status, found = await self.call("GET", f"/{operation}/events", **query)
        assert status == 200
        return list(found["data"])


def event(task: str, **more: Any) -> dict[str, Any]:
    return {"at": 1, "kind": "changed", "host": "fra-1", "task": task, **more}


class TestAsking:
    """What is asked for is what the command line takes, and of what changes the region there is one."""

    async def test_asked_claimed_told_and_ended(self, api: Api) -> None:
        operation = await api.ask()
        _, listed = await api.call("GET", "")
        assert listed["agent"] is None
        assert "start `heliograph ops agent" in listed["next_step"]
        assert (listed["data"][0]["state"], listed["data"][0]["can"]) == ("requested", ["cancel"])
        claimed = await api.claim()
        assert (claimed["operation"]["id"], claimed["fence"]) == (operation, 1)
        assert (await api.claim("agent_two"))["operation"] is None
        told = {
            "journal": {"done": ["node on fra-1"], "open": [], "owed": ["balancer"], "total": 4, "passed": 2},
            "canaries": {"accepted": 7, "missing": 1},
            "task": "Install, node on fra-1",
        }
        events = [event("Install, node on fra-1", diff=["unit heliograph-node-1.service"])]
        assert (await api.report(operation, 1, events=events, **told))[1] == {
            "cancel": False,
            "known": 1,
            "state": "running",
        }
        found = await api.get(operation)
        assert (found["state"], found["steps"]["total"], found["steps"]["passed"]) == ("running", 4, 2)
        assert (found["canaries"]["accepted"], found["canaries"]["missing"]) == (7, 1)
        assert found["task"] == "Install, node on fra-1"
        [seen] = await api.events(operation)
        assert (seen["n"], seen["task"], seen["diff"]) == (
            1,
            "Install, node on fra-1",
            ["unit heliograph-node-1.service"],
        )
        status, _ = await api.report(operation, 1, 2, state="done", unfinished=False, changed=3, first=2)
        assert status == 200
        found = await api.get(operation)
        assert (found["state"], found["unfinished"], found["can"], found["changed"]) == ("done", False, [], 3)
        _, listed = await api.call("GET", "")
        assert listed["agent"]["alive"]
        assert listed["next_step"] is None
        await api.ask()

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"kind": "nothing"}, "/kind"),
            ({"kind": "abort"}, "/kind"),
            ({"kind": "upgrade", "variables": {"scope": "all"}}, "/variables/scope"),
            ({"kind": "upgrade", "variables": {"playbook": "x"}}, "/variables/playbook"),
            ({"kind": "upgrade", "variables": {"scope": ["nodes"]}}, "/variables/scope"),
            ({"kind": "features"}, "/variables/confirm"),
            ({"kind": "features", "variables": {"confirm": "8.0\n"}}, "/variables/confirm"),
            ({"kind": "drain"}, "/variables"),
            ({"kind": "drain", "variables": {"host": "fra-1", "node": "fra-1-1"}}, "/variables"),
            ({"kind": "drain", "variables": {"host": "{{ lookup('env', 'HOME') }}"}}, "/variables/host"),
            ({"kind": "drain", "variables": {"host": "-oProxyCommand=x"}}, "/variables/host"),
            ({"kind": "drain", "variables": {"host": "x" * 201}}, "/variables/host"),
            ({"kind": "verify", "region": "fra"}, "/region"),
        ],
    )
    async def test_what_is_refused(self, api: Api, body: Any, pointer: str) -> None:
        status, found = await api.call("POST", "", body)
        assert status == 422
        assert pointer in [error["pointer"] for error in found["errors"]]
        _, listed = await api.call("GET", "")
        assert listed["data"] == []

    async def test_of_many_at_once_one_is_there(self, api: Api) -> None:
        answers = await asyncio.gather(*(api.call("POST", "", UPGRADE) for _ in range(12)))
        assert sorted(status for status, _ in answers) == [202, *[409] * 11]
        [made] = [found["id"] for status, found in answers if status == 202]
        refused = next(found for status, found in answers if status == 409)
        assert refused["type"].endswith("/operation-unfinished")
        assert (refused["operation"], "upgrade scope=nodes" in refused["detail"]) == (made, True)
        assert (await api.call("POST", "", {"kind": "verify"}))[0] == 202
        assert (await api.call("POST", "", {"kind": "verify"}))[0] == 409

    async def test_pages_and_the_newest_stay(self, api: Api) -> None:
        store = api.node.node.operations
        first = await api.ask({"kind": "drain", "variables": {"node": "fra-1-1"}})
        ids = [first]
        for _ in range(201):
            made = await store.request("verify", {}, "somebody")
            assert made is not None
            ids.append(made.id)
            await store.cancel(made.id, "somebody")
        seen, cursor = [], ""
        while True:
            _, page = await api.call("GET", "", limit=80, **({"cursor": cursor} if cursor else {}))
            seen += [each["id"] for each in page["data"]]
            if not (cursor := page["next"]):
                break
        assert seen == [*sorted(ids[2:], reverse=True), first]  # what is not finished is kept however old
        _, left = await api.call("GET", "", unfinished="true")
        assert [each["id"] for each in left["data"]] == [first]
        assert (await api.call("GET", "", cursor="none"))[0] == 422
        assert (await api.call("GET", f"/{ids[1]}"))[0] == 404


class TestHolding:
    """One agent runs an operation; whoever held it before tells nothing any more."""

    async def test_two_agents_race(self, api: Api) -> None:
        operation = await api.ask()
        claims = await asyncio.gather(*(api.claim(f"agent_{n:02d}") for n in range(8)))
        held = [claim for claim in claims if claim["operation"]]
        assert [claim["operation"]["id"] for claim in held] == [operation]

    async def test_a_claim_whose_answer_was_lost(self, api: Api) -> None:
        operation = await api.ask()
        first, second = [await api.claim(nonce="claim_lost") for _ in range(2)]
        assert first == second
        assert (await api.claim(nonce="claim_next"))["operation"] is None
        assert (await api.get(operation))["resumed"] == 0

    async def test_cut_and_claimed_again(self, api: Api) -> None:
        operation = await api.ask()
        await api.claim()
        journal = {"done": ["a"], "open": ["b"], "owed": ["balancer"]}
        await api.report(operation, 1, events=[event("one"), event("two")], journal=journal)
        assert (await api.claim("agent_two"))["operation"] is None
        await api.a_minute_goes_by()
        assert (await api.get(operation))["state"] == "cut"
        _, listed = await api.call("GET", "", key=api.node.admin_key)
        assert not listed["agent"]["alive"] or listed["agent"]["host"] == "agent_two.example"
        taken = await api.claim("agent_two")
        assert taken["fence"] == 2
        assert taken["operation"]["steps"]["owed"] == ["balancer"]  # for a machine that knows nothing of it
        status, refused = await api.report(operation, 1, 2, events=[event("three")], first=3)
        assert (status, refused["type"].rpartition("/")[2]) == (409, "not-held")
        status, refused = await api.report(operation, 2, 2)  # the fence of another
        assert status == 409
        other = {"agent": "agent_two", "spool": "agent_two"}
        assert (await api.report(operation, 2, 1, events=[event("four")], **other))[0] == 200
        assert [each["task"] for each in await api.events(operation)] == ["one", "two", "four"]
        assert [each["n"] for each in await api.events(operation, after=1, limit=1)] == [2]

    async def test_the_same_agent_after_a_restart_need_not_wait(self, api: Api) -> None:
        operation = await api.ask()
        await api.claim()
        assert (await api.claim())["operation"] is None
        again = await api.claim(restarted=True)
        assert (again["operation"]["id"], again["fence"]) == (operation, 2)

    async def test_an_agent_that_is_busy_takes_nothing(self, api: Api) -> None:
        await api.ask()
        assert (await api.claim(busy=True))["operation"] is None
        _, listed = await api.call("GET", "")
        assert listed["agent"]["alive"]

    async def test_an_event_that_a_former_holder_left_is_written_over(self, api: Api) -> None:
        """Its report was cut between the events and the count of them."""
        operation = await api.ask()
        await api.claim()
        stored = api.node.node.database["operation_events"]
        left = {"_id": f"{operation}:1", "op": operation, "n": 1, "fence": 1, **event("never told")}
        await stored.insert_one(left)
        assert await api.events(operation) == []
        await api.a_minute_goes_by()
        await api.claim("agent_two")
        other = {"agent": "agent_two", "spool": "agent_two"}
        assert (await api.report(operation, 2, events=[event("told")], **other))[0] == 200
        assert [each["task"] for each in await api.events(operation)] == ["told"]


class TestReports:
    """Told twice, late, or at once from two sides: it is there once, and in order."""

    async def test_repeated_late_and_overlapping(self, api: Api) -> None:
        operation = await api.ask()
        await api.claim()
        lines = [event(f"task {n}") for n in range(1, 8)]
        first = {"events": lines[:4], "changed": 4}
        for _ in range(2):
            assert (await api.report(operation, 1, 1, **first))[1]["known"] == 4
        assert (await api.report(operation, 1, 2, events=lines[2:7], first=3, changed=7))[1]["known"] == 7
        assert (await api.report(operation, 1, 1, **first))[1]["known"] == 7  # came late
        assert (await api.get(operation))["changed"] == 7
        assert (await api.report(operation, 1, 3, events=[event("gap")], first=20))[1]["known"] == 7
        assert [each["task"] for each in await api.events(operation)] == [line["task"] for line in lines]

    async def test_at_once(self, api: Api) -> None:
        operation = await api.ask()
        await api.claim()
        lines = [event(f"task {n}") for n in range(1, 41)]
        await asyncio.gather(
            *(api.report(operation, 1, 1, events=lines[: 10 * n]) for n in (1, 2, 3, 4) for _ in (1, 2))
        )
        assert [each["task"] for each in await api.events(operation)] == [line["task"] for line in lines]

    async def test_the_end_is_told_once(self, api: Api) -> None:
        operation = await api.ask()
        await api.claim()
        for revision in (1, 1, 2):
            status, found = await api.report(operation, 1, revision, state="failed", problem="Refused: no majority")
            assert (status, found["state"]) == (200, "failed")
        found = await api.get(operation)
        assert (found["state"], found["problem"], found["can"]) == (
            "failed",
            "Refused: no majority",
            ["resume", "abort"],
        )
        assert len(await audited(api, "endOperation")) == 1

    @pytest.mark.parametrize(
        "more",
        [
            {"spool": "a.b$where"},
            {"spool": "x"},
            {"events": [event("x", kind="evil")]},
            {"events": [event("x" * 501)]},
            {"events": [event("x", diff=["y"] * 51)]},
            {"events": [event("x")] * 101},
            {"events": [event("x", more=1)]},
            {"journal": {"done": ["x" * 201]}},
            {"canaries": {"accepted": -1}},
            {"state": "requested"},
            {"fence": 0},
            {"revision": 0},
            {"first": 0},
        ],
    )
    async def test_what_is_refused(self, api: Api, more: dict[str, Any]) -> None:
        operation = await api.ask()
        await api.claim()
        status, _ = await api.report(operation, **{"fence": 1, **more})
        assert status == 422
        assert (await api.get(operation))["events"] == 0

    async def test_what_is_not_there(self, api: Api) -> None:
        nowhere = "0" * 26
        assert (await api.report(nowhere, 1))[0] == 404
        assert (await api.call("GET", f"/{nowhere}"))[0] == 404
        assert (await api.call("GET", f"/{nowhere}/events"))[0] == 404
        for verb in ("cancel", "resume", "abort"):
            assert (await api.call("POST", f"/{nowhere}/{verb}"))[0] == 404
        assert (await api.call("GET", "/none"))[0] == 404
        body = {"agent": "agent_one", "host": "x", "region": "elsewhere", "nonce": "claim_one"}
        status, found = await api.call("POST", "/claim", body)
        assert (status, found["errors"][0]["pointer"]) == (422, "/region")


class TestVerbs:
    """Cancelled, gone on with, taken back: whatever is possible then, and nothing else."""

    async def test_cancelled_before_anybody_began(self, api: Api) -> None:
        operation = await api.ask()
        status, found = await api.call("POST", f"/{operation}/cancel")
        assert (status, found["state"], found["unfinished"]) == (202, "canceled", False)
        assert (await api.claim())["operation"] is None
        assert (await api.call("POST", f"/{operation}/cancel"))[0] == 409
        assert (await api.call("POST", f"/{operation}/resume"))[0] == 409
        await api.ask()

    async def test_cancelled_while_it_runs_then_gone_on_with_then_taken_back(self, api: Api) -> None:
        operation = await api.ask()
        await api.claim()
        for _ in range(2):
            status, found = await api.call("POST", f"/{operation}/cancel")
            assert (status, found["state"], found["cancelling"], found["can"]) == (202, "running", True, [])
        assert (await api.report(operation, 1))[1]["cancel"]
        await api.report(operation, 1, 2, state="canceled", journal={"owed": ["balancer"]})
        assert (await api.call("POST", "", UPGRADE))[0] == 409
        status, found = await api.call("POST", f"/{operation}/resume")
        assert (status, found["state"], found["verb"], found["cancelling"]) == (202, "requested", "run", False)
        # to go on was asked for, and is not wanted any more: what it owes is still owed
        status, found = await api.call("POST", f"/{operation}/cancel")
        assert (found["state"], found["unfinished"], found["can"]) == ("canceled", True, ["resume", "abort"])
        status, found = await api.call("POST", f"/{operation}/abort")
        assert (found["state"], found["verb"]) == ("requested", "abort")
        claimed = await api.claim()
        assert (claimed["operation"]["verb"], claimed["operation"]["steps"]["owed"]) == ("abort", ["balancer"])
        await api.report(operation, claimed["fence"], state="aborted", unfinished=False)
        found = await api.get(operation)
        assert (found["state"], found["unfinished"], found["can"], found["steps"]["owed"]) == ("aborted", False, [], [])
        await api.ask()

    async def test_one_that_runs_is_not_gone_on_with(self, api: Api) -> None:
        operation = await api.ask()
        await api.claim()
        for verb in ("resume", "abort"):
            status, found = await api.call("POST", f"/{operation}/{verb}")
            assert (status, found["type"].rpartition("/")[2]) == (409, "operation-not-so")
            assert "cancel" in found["next_step"]

    async def test_a_cut_one_is_taken_back_and_its_agent_is_fenced_off(self, api: Api) -> None:
        operation = await api.ask()
        await api.claim()
        await api.a_minute_goes_by()
        assert (await api.call("POST", f"/{operation}/abort"))[0] == 202
        assert (await api.report(operation, 1))[0] == 409
        assert (await api.claim())["operation"]["verb"] == "abort"


class TestByHand:
    """Begun on the command line: seen and cancelled here all the same, and not gone on with unasked."""

    async def enter(self, api: Api, operation: str, agent: str = "agent_one", **more: Any) -> tuple[int, Any]:
        body = {"agent": agent, "host": "desk", "region": api.region, "begun_at": 1, "unfinished": True, **UPGRADE}
        return await api.call("PUT", f"/{operation}", body | more)

    async def test_entered_told_and_not_taken_by_others(self, api: Api) -> None:
        operation = "0" * 25 + "1"
        status, found = await self.enter(api, operation)
        assert (status, found["fence"], found["operation"]["by_hand"]) == (200, 1, True)
        assert (await api.report(operation, 1, events=[event("one")]))[0] == 200
        assert (await api.call("POST", "", UPGRADE))[0] == 409
        assert (await self.enter(api, operation, "agent_two"))[1]["type"].endswith("/not-held")
        assert (await self.enter(api, "0" * 26))[1]["type"].endswith("/operation-unfinished")
        await api.a_minute_goes_by()
        assert (await api.claim("agent_two"))["operation"] is None  # it is its operator's to go on with
        assert (await api.get(operation))["can"] == ["resume", "abort", "cancel"]
        assert (await api.call("POST", f"/{operation}/resume"))[0] == 202
        assert (await api.claim("agent_two"))["operation"]["id"] == operation

    async def test_told_when_it_is_over(self, api: Api) -> None:
        """No node answered while it ran; meanwhile another one was asked for."""
        asked, operation = await api.ask(), "0" * 25 + "2"
        status, found = await self.enter(api, operation, unfinished=False)
        assert status == 200
        assert (await api.report(operation, found["fence"], state="done", unfinished=False))[0] == 200
        assert (await api.get(operation))["state"] == "done"
        assert (await api.claim())["operation"]["id"] == asked

    async def test_whoever_lost_it_does_not_open_it_again(self, api: Api) -> None:
        """It was taken over and brought to its end; the first machine comes back and would tell that it was cut."""
        operation = await api.ask()
        await api.claim()
        await api.a_minute_goes_by()
        assert (await api.claim("agent_two"))["fence"] == 2
        other = {"agent": "agent_two", "spool": "agent_two"}
        await api.report(operation, 2, state="done", unfinished=False, **other)
        for unfinished in (True, False):
            status, found = await self.enter(api, operation, over=True, unfinished=unfinished)
            assert (status, found["type"].rpartition("/")[2]) == (409, "not-held")
        assert (await api.get(operation))["state"] == "done"

    async def test_what_only_its_operator_may_begin(self, api: Api) -> None:
        key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEX2mVqK5mM4J7pYv8r5uY1cXq4l2pQzq3b0kQnW8TtG"
        body = {"kind": "replace-host", "variables": {"host": "fra-1", "by": "fra-9=10.0.0.9", "host_key": key}}
        assert (await api.call("POST", "", body))[0] == 422
        assert (await self.enter(api, "0" * 26, **body))[0] == 200

    async def test_what_is_entered_is_checked(self, api: Api) -> None:
        assert (await self.enter(api, "0" * 26, variables={"password": "x"}))[0] == 422
        assert (await self.enter(api, "0" * 26, region="elsewhere"))[0] == 422
        assert (await self.enter(api, "../x"))[0] in (404, 405, 422)


class TestWho:
    """Only who may administer the platform; and it is written down, once for each act."""

    async def test_others_are_refused(self, api: Api) -> None:
        operation = await api.ask()
        paths = [("POST", "", UPGRADE), ("GET", "", None), ("GET", f"/{operation}", None)]
        paths += [("GET", f"/{operation}/events", None), ("POST", f"/{operation}/cancel", None)]
        paths += [("POST", f"/{operation}/resume", None), ("POST", f"/{operation}/abort", None)]
        paths += [("POST", "/claim", {}), ("POST", f"/{operation}/report", {}), ("PUT", f"/{operation}", {})]
        for method, path, body in paths:
            assert (await api.call(method, path, body, key=api.node.key))[0] == 403, path
            assert (await api.call(method, path, body, key=new_key()))[0] == 401, path

    async def test_the_audit_log_has_each_act_once(self, api: Api) -> None:
        operation = await api.ask()
        for _ in range(3):
            await api.claim()
        for revision in (1, 2, 3):
            await api.report(operation, 1, revision)
        await api.call("POST", f"/{operation}/cancel")
        await api.report(operation, 1, 4, state="canceled")
        await api.call("POST", f"/{operation}/abort")
        entries = await audited(api)
        acts = [each["action"] for each in reversed(entries) if each["object"] == f"operations/{operation}"]
        assert acts == ["requestOperation", "claimOperation", "cancelOperation", "endOperation", "abortOperation"]
        assert {each["detail"].split(":")[0].split(" on ")[0] for each in entries} == {"upgrade scope=nodes"}


async def audited(api: Api, action: str = "") -> list[Any]:
    status, found = await api.node.call("GET", "/v1/audit", key=api.node.admin_key, params={"action": action})
    assert status == 200
    return list(found["data"])


async def test_no_secret_is_kept(api: Api) -> None:
    """Whatever is told of an operation: keys, private keys and passwords in addresses are left out before they are stored."""
    operation = await api.ask()
    await api.claim()
    key = new_key()
    words = f"key {key} uri mongodb://root:hunter22@db/ {PRIVATE}"
    told = {
        "events": [event(words, message=words, diff=[words[:280]])],
        "problem": words,
        "task": words,
        "journal": {"owed": [f"node {key}"[:200]]},
    }
    assert (await api.report(operation, 1, **told))[0] == 200
    database = api.node.node.database
    for name in ("operations", "operation_events", "audit"):
        kept = str(await database[name].find({}).to_list())
        for secret in (key, "hunter22", "b3BlbnNzaC1rZXktdjEAAAAA"):
            assert secret not in kept, name
    shown = str(await api.get(operation)) + str(await api.events(operation))
    assert "[secret]" in shown
    assert key not in shown


async def test_an_operator_may_and_a_viewer_may_not(api: Api) -> None:
    """Keys with other scopes than admin."""
    digest = api.node.node.seal.digest_key(key := new_key())
    every = frozenset(Scope) - {Scope.ADMIN}
    await api.node.node.catalog.put(
        Key(id="limited", tenant="sample", name="x", scopes=every, digest=digest, hint=key[:12])
    )
    assert (await api.call("GET", "", key=key))[0] == 403
