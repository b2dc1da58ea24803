"""What was answered under an Idempotency-Key is answered again, whatever the rules say since; messages sent anew; texts that are not sent."""

from __future__ import annotations

import asyncio
import gc
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from controlplane.api.acceptance import Item
from controlplane.clock import SystemClock
from controlplane.errors import Problem

TO = "+4915112340001"


def slug(problem) -> str:
    return problem["type"].rsplit("/", 1)[-1]


async def opt_out(node, to: str = TO) -> None:
    status, _ = await node.call("POST", "/v1/suppressions", json={"recipient": to})
    assert status == 201


class TestRefusedRepetitions:
    """A repeated request gets its first answer also when it would be refused today; a new one is refused."""

    async def test_after_the_recipient_opted_out(self, node, carriers):
        await node.connect(await carriers())
        request = {"json": {"to": TO, "body": "once"}, "headers": {"Idempotency-Key": "k"}}
        status, first = await node.call("POST", "/v1/messages", **request)
        assert status == 202
        await opt_out(node)
        async with node.http.post(
            node.base_url + "/v1/messages",
            json=request["json"],
            headers={"authorization": f"Bearer {node.key}", "Idempotency-Key": "k"},
        ) as response:
            assert response.status == 202
            assert response.headers["idempotent-replayed"] == "true"
            assert response.headers["location"] == f"/v1/messages/{first['id']}"
            assert await response.json() == first
        status, problem = await node.call(
            "POST", "/v1/messages", json={"to": TO, "body": "other"}, headers={"Idempotency-Key": "k"}
        )
        assert (status, slug(problem), problem["id"]) == (422, "idempotency-key-reused", first["id"])
        for headers in ({}, {"Idempotency-Key": "new"}):
            status, problem = await node.call("POST", "/v1/messages", json=request["json"], headers=headers)
            assert (status, slug(problem)) == (422, "recipient-suppressed")
        status, problem = await node.call("POST", "/v1/messages", key=node.other_key, **request)
        assert status == 202  # another tenant's key is another key, and its recipient has not opted out

    async def test_when_no_route_is_left(self, node, carriers):
        await node.connect(await carriers())
        request = {"json": {"to": TO, "body": "once"}, "headers": {"Idempotency-Key": "k"}}
        status, first = await node.call("POST", "/v1/messages", **request)
        await node.node.catalog.put(replace(node.node.catalog.snapshot.routes["sim"], enabled=False))
        assert await node.call("POST", "/v1/messages", **request) == (202, first)
        status, problem = await node.call("POST", "/v1/messages", json=request["json"])
        assert (status, slug(problem)) == (422, "no-route")

    async def test_when_its_time_has_passed(self, node, carriers):
        await node.connect(await carriers())
        at = SystemClock().now_ms() - 59_000
        body = {"to": TO, "body": "once", "send_at": datetime.fromtimestamp(at / 1000, UTC).isoformat()}
        request = {"json": body, "headers": {"Idempotency-Key": "k"}}
        status, first = await node.call("POST", "/v1/messages", **request)
        assert status == 202, first
        await asyncio.sleep(1.5)
        assert (await node.call("POST", "/v1/messages", json=body))[0] == 422
        assert await node.call("POST", "/v1/messages", **request) == (202, first)

    async def test_in_a_batch(self, node, carriers):
        await node.connect(await carriers())
        items = [{"to": f"+491511234000{n}", "body": "x", "idempotency_key": f"k{n}"} for n in range(4)]
        lines = "\n".join(json.dumps(item) for item in items[:3])
        ndjson = {"content-type": "application/x-ndjson"}
        _, first = await node.call("POST", "/v1/batches", data=lines, headers=ndjson)
        assert first["accepted"] == 3
        for item in (items[1], items[3]):
            await opt_out(node, item["to"])
        status, again = await node.call("POST", "/v1/batches", data="\n".join(map(json.dumps, items)), headers=ndjson)
        assert (status, again["accepted"], again["rejected"]) == (202, 3, 1)
        assert [result.get("id") for result in again["results"][:3]] == [result["id"] for result in first["results"]]
        assert all(result["replayed"] for result in again["results"][:3])
        assert slug(again["results"][3]["error"]) == "recipient-suppressed"

    async def test_a_dry_run_says_what_would_be_now(self, node, carriers):
        await node.connect(await carriers())
        await node.call("POST", "/v1/messages", json={"to": TO, "body": "x"}, headers={"Idempotency-Key": "k"})
        await opt_out(node)
        status, problem = await node.call(
            "POST", "/v1/messages", json={"to": TO, "body": "x", "dry_run": True}, headers={"Idempotency-Key": "k"}
        )
        assert (status, slug(problem)) == (422, "recipient-suppressed")


async def undelivered(node, **fields) -> str:
    """A message that was reported undelivered: the simulator does so for numbers that end so."""
    mid = (await node.send(to="+4915112340002", **fields))["id"]
    await node.reaches(mid, "undelivered", "failed")
    return mid


class TestMemory:
    """What is refused leaves nothing behind that only a garbage collector would find: the node's own looks at what is old once an hour."""

    async def test_refused_messages(self, node):
        wrong = (
            [{"to": "+49", "body": "x"}] * 20
            + [{"to": TO, "body": "no route leads there"}] * 20
            + [{"unknown": 1}] * 20
        )
        gc.collect()
        gc.disable()
        try:
            for headers in ({}, {"Idempotency-Key": "k"}):
                _, answer = await node.call("POST", "/v1/batches", json={"messages": wrong}, headers=headers)
                assert answer["rejected"] == 60
                await node.call("POST", "/v1/messages", json=wrong[0], headers=headers)
            await asyncio.sleep(0)
            left = [one for one in gc.get_objects() if isinstance(one, Problem | Item)]
            assert not left, len(left)
        finally:
            gc.enable()


class TestResend:
    """Sent anew once, with the same content, and told of in both timelines; never what was, or may have been, delivered without a word."""

    async def test_the_same_content(self, node, carriers):
        carrier = await carriers()
        await node.connect(carrier)
        later = datetime.fromtimestamp(SystemClock().now_ms() / 1000 + 3600, UTC).isoformat()
        first = await node.send(
            body="“hello”", reference="r-1", context={"a": "b"}, send_at=later, validity_seconds=600, **{"class": "otp"}
        )
        await node.call("POST", f"/v1/messages/{first['id']}/cancel")
        status, again = await node.call("POST", f"/v1/messages/{first['id']}/resend")
        assert (status, again["resent_from"], again["reference"], again["status"]) == (
            202,
            first["id"],
            "r-1",
            "accepted",
        )
        new = await node.reaches(again["id"], "delivered")
        assert (new["body"], new["class"], new["context"], new["resent_from"]) == (
            "“hello”",
            "otp",
            {"a": "b"},
            first["id"],
        )
        assert f"Sent anew in the place of {first['id']}" in new["timeline"][0]["text"]
        old = await node.get(first["id"])
        assert (old["status"], old["resent_as"]) == ("cancelled", again["id"])
        assert old["timeline"][-1]["text"] == f"Sent anew, as {again['id']}."

        assert await node.call("POST", f"/v1/messages/{first['id']}/resend") == (202, again)
        assert len((await node.get(first["id"]))["timeline"]) == len(old["timeline"])
        status, third = await node.call(
            "POST", f"/v1/messages/{first['id']}/resend", headers={"Idempotency-Key": "again"}
        )
        assert status == 202
        assert third["id"] not in (again["id"], first["id"])
        await node.reaches(third["id"], "delivered")

    async def test_many_at_once(self, node, carriers):
        await node.connect(await carriers())
        mid = await undelivered(node)
        answers = await asyncio.gather(*(node.call("POST", f"/v1/messages/{mid}/resend") for _ in range(8)))
        assert {status for status, _ in answers} == {202}
        assert len({answer["id"] for _, answer in answers}) == 1
        assert [event["kind"] for event in (await node.get(mid))["timeline"]].count("resent") == 1

    async def test_what_may_have_arrived(self, node, carriers):
        await node.connect(await carriers(), response_seconds=0.5)
        mid = (await node.send(to="+4915112340008", unknown_policy="hold"))["id"]
        await node.reaches(mid, "unknown")
        status, problem = await node.call("POST", f"/v1/messages/{mid}/resend")
        assert (status, slug(problem)) == (409, "may-have-arrived")
        status, again = await node.call("POST", f"/v1/messages/{mid}/resend", json={"even_if_unknown": True})
        assert (status, again["resent_from"]) == (202, mid)

    async def test_what_cannot_be(self, node, carriers):
        await node.connect(await carriers())
        delivered = (await node.send())["id"]
        await node.reaches(delivered, "delivered")
        status, problem = await node.call("POST", f"/v1/messages/{delivered}/resend", json={"even_if_unknown": True})
        assert (status, slug(problem)) == (409, "not-resendable")
        mid = await undelivered(node)
        assert (await node.call("POST", f"/v1/messages/{mid}/resend", key=node.other_key))[0] == 404
        await node.call("DELETE", f"/v1/messages/{mid}/content")
        status, problem = await node.call("POST", f"/v1/messages/{mid}/resend")
        assert (status, slug(problem)) == (409, "no-longer-possible")

    async def test_the_rules_of_today_hold(self, node, carriers):
        await node.connect(await carriers())
        mid = await undelivered(node)
        await opt_out(node, "+4915112340002")
        status, problem = await node.call("POST", f"/v1/messages/{mid}/resend")
        assert (status, slug(problem)) == (422, "recipient-suppressed")
        assert (await node.get(mid))["resent_as"] is None


class TestTexts:
    """What a text becomes is told by what the acceptance would do."""

    @pytest.mark.parametrize(
        "body",
        ["", "a", "a" * 160, "a" * 161, "a" * 152 + "€" * 2, "日" * 70, "日" * 71, "a" * 66 + "😀" * 3, "“x”" * 60],
    )
    async def test_the_same_as_sending(self, node, carriers, body):
        await node.connect(await carriers())
        status, found = await node.call("POST", "/v1/texts", json={"body": body})
        assert status == 200, found
        if body:
            _, sent = await node.call("POST", "/v1/messages", json={"to": TO, "body": body, "dry_run": True})
            assert (found["encoding"], found["parts"]) == (sent["encoding"], sent["parts"])
        sign = "日" if found["encoding"] == "ucs2" else "a"
        _, full = await node.call("POST", "/v1/texts", json={"body": body + sign * found["left"]})
        assert (full["parts"], full["left"]) == (found["parts"], 0)
        _, over = await node.call("POST", "/v1/texts", json={"body": body + sign * (found["left"] + 1)})
        assert over["parts"] == found["parts"] + 1

    async def test_offending_characters(self, node):
        _, found = await node.call("POST", "/v1/texts", json={"body": "It’s 5 – ok"})
        assert found["offending"] == [
            {"position": 2, "character": "’", "code": "U+2019", "suggestion": "'"},
            {"position": 7, "character": "–", "code": "U+2013", "suggestion": "-"},
        ]
        assert (found["encoding"], found["with_smart_encoding"]["encoding"]) == ("ucs2", "gsm7")
        assert found["with_smart_encoding"]["body"] == "It's 5 - ok"
        _, smart = await node.call("POST", "/v1/texts", json={"body": "It’s 5 – ok", "smart_encoding": True})
        assert (smart["encoding"], smart["replaced"], smart["body"]) == ("gsm7", 2, "It's 5 - ok")
        status, _ = await node.call(
            "POST", "/v1/texts", data='{"body": "\\ud800"}', headers={"content-type": "application/json"}
        )
        assert status == 422
