"""The HTTP API against a real node: what a developer does, and does wrong."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, datetime, timedelta

import pytest


def pointers(problem: dict) -> set[str]:
    return {error["pointer"] for error in problem.get("errors", ())}


@pytest.fixture
async def ready(node, carriers):
    await node.connect(await carriers())
    return node


class TestIdempotency:
    """One key, one message."""

    async def test_fifty_at_once_are_one_message(self, ready):
        request = {"json": {"to": "+4915112340001", "body": "once"}, "headers": {"Idempotency-Key": "k-1"}}
        answers = await asyncio.gather(*(ready.call("POST", "/v1/messages", **request) for _ in range(50)))
        assert {status for status, _ in answers} == {202}
        assert len({json.dumps(answer) for _, answer in answers}) == 1
        _, page = await ready.call("GET", "/v1/messages")
        assert len(page["data"]) == 1

    async def test_another_body_is_refused(self, ready):
        headers = {"Idempotency-Key": "k-2"}
        await ready.call("POST", "/v1/messages", json={"to": "+4915112340001", "body": "a"}, headers=headers)
        status, problem = await ready.call(
            "POST", "/v1/messages", json={"to": "+4915112340001", "body": "b"}, headers=headers
        )
        assert (status, problem["type"].rsplit("/", 1)[1]) == (422, "idempotency-key-reused")

    async def test_keys_belong_to_tenants(self, ready):
        request = {"json": {"to": "+4915112340001", "body": "mine"}, "headers": {"Idempotency-Key": "k-3"}}
        _, mine = await ready.call("POST", "/v1/messages", **request)
        _, theirs = await ready.call("POST", "/v1/messages", key=ready.other_key, **request)
        assert mine["id"] != theirs["id"]


class TestBatches:
    """Each message has its own result; a bad one spoils nothing."""

    async def test_ten_thousand_with_bad_ones(self, ready):
        messages = [{"to": f"+49151{n:08d}", "body": f"m {n}"} for n in range(10_000)]
        messages[7] = {"to": "nobody", "body": "x"}
        messages[4_000] = {"to": "+4915112345678", "body": 5, "colour": "red"}
        messages[9_999] = "not an object"
        status, answer = await ready.call("POST", "/v1/batches", json={"messages": messages})
        assert status == 202
        assert (answer["accepted"], answer["rejected"]) == (9_997, 3)
        assert [r["index"] for r in answer["results"]] == list(range(10_000))
        assert pointers(answer["results"][7]["error"]) == {"/to"}
        assert pointers(answer["results"][4_000]["error"]) == {"/body", "/colour"}
        assert len({r["id"] for r in answer["results"] if "id" in r}) == 9_997

    async def test_ndjson_and_item_keys(self, ready):
        line = json.dumps({"to": "+4915112340001", "body": "x", "idempotency_key": "same"})
        body = f"{line}\n{line}\n\nnot json\n"
        headers = {"Content-Type": "application/x-ndjson"}
        status, answer = await ready.call("POST", "/v1/batches", data=body.encode(), headers=headers)
        assert status == 202
        first, second, third = answer["results"]
        assert first["id"] == second["id"]
        assert third["error"]["status"] == 400

    @pytest.mark.parametrize("body", ['{"messages": []}', "[]", '{"messages": 5}', '{"messages": [], "x": 1}', "{}"])
    async def test_a_batch_that_is_none(self, ready, body):
        status, problem = await ready.call(
            "POST", "/v1/batches", data=body, headers={"Content-Type": "application/json"}
        )
        assert status == 422
        assert problem["next_step"]


class TestBadInput:
    """Every wrong field is pointed at; nothing is a 500."""

    @pytest.mark.parametrize(
        ("change", "pointer"),
        [
            ({"to": "123"}, "/to"),
            ({"to": 5}, "/to"),
            ({"to": None}, "/to"),
            ({"body": ""}, "/body"),
            ({"body": 1.5}, "/body"),
            ({"from": "much too long a sender"}, "/from"),
            ({"from": "Größe"}, "/from"),
            ({"class": "spam"}, "/class"),
            ({"validity_seconds": 0}, "/validity_seconds"),
            ({"validity_seconds": "60"}, "/validity_seconds"),
            ({"validity_seconds": 10**30}, "/validity_seconds"),
            ({"send_at": "tomorrow"}, "/send_at"),
            ({"send_at": "2001-01-01T00:00:00Z"}, "/send_at"),
            ({"send_at": "2999-01-01T00:00:00Z"}, "/send_at"),
            ({"reference": "x" * 101}, "/reference"),
            ({"context": {"a": 1}}, "/context"),
            ({"context": {str(n): "x" for n in range(11)}}, "/context"),
            ({"max_price": -1}, "/max_price"),
            ({"max_parts": 0}, "/max_parts"),
            ({"origin": "Germany"}, "/origin"),
            ({"durability": "none"}, "/durability"),
            ({"unknown_policy": "hope"}, "/unknown_policy"),
            ({"dry_run": "yes"}, "/dry_run"),
            ({"callback_url": "ftp://x"}, "/callback_url"),
            ({"colour/~": 1}, "/colour~1~0"),
        ],
    )
    async def test_each_field(self, ready, change, pointer):
        request = {"to": "+4915112340001", "body": "x"} | change
        status, problem = await ready.call("POST", "/v1/messages", json=request)
        assert status == 422
        assert any(found.startswith(pointer) for found in pointers(problem)), problem
        assert problem["request_id"]

    async def test_all_wrong_fields_at_once(self, ready):
        status, problem = await ready.call(
            "POST", "/v1/messages", json={"to": "12", "from": "Größe", "class": "x", "y": 1}
        )
        assert status == 422
        assert pointers(problem) == {"/to", "/from", "/class", "/y", "/body"}

    @pytest.mark.parametrize(
        "body", [b"", b"{", b'{"to": "\xff"}', b'{"to": "\\ud800", "body": "x"}', b"[" * 5000, b"\x00"]
    )
    async def test_what_is_no_json(self, ready, body):
        for path in ("/v1/messages", "/v1/batches"):
            status, problem = await ready.call("POST", path, data=body, headers={"Content-Type": "application/json"})
            assert status in (400, 422), problem

    async def test_lone_surrogate_in_a_text(self, ready):
        body = b'{"to": "+4915112340001", "body": "a\\ud83d"}'
        status, _ = await ready.call("POST", "/v1/messages", data=body, headers={"Content-Type": "application/json"})
        assert status in (400, 422)

    async def test_oversize_wrong_type_wrong_method(self, ready):
        big = io.BytesIO(b"x" * (17 * 1024 * 1024))
        status, problem = await ready.call(
            "POST", "/v1/messages", data=big, headers={"Content-Type": "application/json"}
        )
        assert (status, problem["title"]) == (413, "Body too large")
        status, _ = await ready.call("POST", "/v1/messages", data=b"{}", headers={"Content-Type": "text/plain"})
        assert status == 415
        status, problem = await ready.call("PATCH", "/v1/messages", json={})
        assert (status, problem["title"]) == (405, "Method not allowed")
        status, problem = await ready.call("GET", "/v1/nothing")
        assert (status, problem["title"]) == (404, "Not found")

    async def test_keys(self, ready):
        for value, word in (("", "no Authorization"), ("Basic x", "form"), ("Bearer hg_live_typo", "checksum")):
            status, problem = await ready.call("GET", "/v1/messages", headers={"authorization": value})
            assert status == 401
            assert word in problem["detail"] or not value
        status, problem = await ready.call("GET", "/v1/tenants")
        assert (status, problem["title"]) == (403, "Scope missing")

    async def test_no_route_says_why(self, node):
        status, problem = await node.call("POST", "/v1/messages", json={"to": "+4915112340001", "body": "x"})
        assert (status, problem["title"]) == (422, "No route")

    async def test_global_durability_is_never_downgraded(self, ready):
        status, _ = await ready.call(
            "POST", "/v1/messages", json={"to": "+4915112340001", "body": "x", "durability": "global"}
        )
        assert status == 501


class TestReading:
    """Lists, cursors, and nobody else's messages."""

    async def test_pages(self, ready):
        sent = [(await ready.send(body=f"{n}", reference=f"r{n % 2}"))["id"] for n in range(7)]
        found, cursor = [], None
        while True:
            query = "?limit=3" + (f"&cursor={cursor}" if cursor else "")
            _, page = await ready.call("GET", "/v1/messages" + query)
            found += [message["id"] for message in page["data"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert found == sent[::-1]
        _, page = await ready.call("GET", "/v1/messages?reference=r1")
        assert len(page["data"]) == 3
        status, problem = await ready.call("GET", "/v1/messages?cursor=forged")
        assert (status, pointers(problem)) == (422, {"cursor"})

    async def test_by_status_and_number(self, ready):
        good = await ready.send(to="+4915112340001")
        bad = await ready.send(to="+4915112340002")
        await ready.reaches(good["id"], "delivered")
        await ready.reaches(bad["id"], "undelivered")
        _, page = await ready.call("GET", "/v1/messages?status=undelivered")
        assert [message["id"] for message in page["data"]] == [bad["id"]]
        _, page = await ready.call("GET", "/v1/messages?to=%2B4915112340001")
        assert [message["id"] for message in page["data"]] == [good["id"]]

    async def test_another_tenants_message_is_not_there(self, ready):
        mid = (await ready.send())["id"]
        for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", "/content")):
            status, _ = await ready.call(method, f"/v1/messages/{mid}{path}", key=ready.other_key)
            assert status == 404


class TestLife:
    """Schedule, cancel, erase, feedback, dry run, expiry."""

    async def test_scheduled_then_cancelled(self, ready):
        at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        answer = await ready.send(send_at=at)
        assert answer["status"] == "scheduled"
        status, message = await ready.call("POST", f"/v1/messages/{answer['id']}/cancel")
        assert (status, message["status"]) == (200, "cancelled")
        status, _ = await ready.call("POST", f"/v1/messages/{answer['id']}/cancel")
        assert status == 200

    async def test_scheduled_is_sent_in_time(self, ready):
        answer = await ready.send(send_at=(datetime.now(UTC) + timedelta(seconds=1.5)).isoformat())
        await asyncio.sleep(0.5)
        assert (await ready.get(answer["id"]))["status"] == "scheduled"
        await ready.reaches(answer["id"], "delivered")

    async def test_delivered_cannot_be_cancelled(self, ready):
        mid = (await ready.send())["id"]
        await ready.reaches(mid, "delivered")
        status, problem = await ready.call("POST", f"/v1/messages/{mid}/cancel")
        assert (status, problem["title"]) == (409, "Cannot be cancelled")

    async def test_erased_for_good(self, ready):
        mid = (await ready.send(to="+4915112340001", body="a secret text", reference="ref"))["id"]
        await ready.reaches(mid, "delivered")
        status, message = await ready.call("DELETE", f"/v1/messages/{mid}/content")
        assert status == 200
        assert (message["status"], message["erased"], message["to"], message["body"]) == ("delivered", True, None, None)
        stored = await ready.node.database["events"].find({"mid": mid}).to_list()
        assert b"secret" not in b"".join(str(document).encode() for document in stored)
        assert "15112340001" not in str(stored)
        status, _ = await ready.call("DELETE", f"/v1/messages/{mid}/content")
        assert status == 200

    async def test_feedback(self, ready):
        mid = (await ready.send())["id"]
        status, message = await ready.call("POST", f"/v1/messages/{mid}/feedback", json={"outcome": "converted"})
        assert (status, message["feedback"]) == (200, "converted")
        status, problem = await ready.call("POST", f"/v1/messages/{mid}/feedback", json={"outcome": "maybe"})
        assert (status, pointers(problem)) == (422, {"/outcome"})

    async def test_dry_run_accepts_nothing(self, ready):
        status, answer = await ready.call(
            "POST", "/v1/messages", json={"to": "+4915112340001", "body": "x" * 200, "dry_run": True}
        )
        assert (status, answer["id"], answer["parts"]) == (200, None, 2)
        _, page = await ready.call("GET", "/v1/messages")
        assert page["data"] == []

    async def test_row_22_validity_ends_in_our_queue(self, node, carriers):
        await node.connect(await carriers(bind_status=0, hang=False))
        status, _ = await node.call(
            "PUT", "/v1/connectors/sim", key=node.admin_key, json={"host": "127.0.0.1", "port": 1, "system_id": "x"}
        )
        assert status == 200
        await node.until(lambda: "sim" not in node.node.binds.live)
        mid = (await node.send(validity_seconds=2))["id"]
        message = await node.reaches(mid, "expired")
        assert message["reason"] == "validity"


class TestConfiguration:
    """Changes take effect; secrets are never shown again."""

    async def test_life_of_a_connector_and_a_route(self, node):
        admin = {"key": node.admin_key}
        body = {"name": "c1", "host": "127.0.0.1", "port": 1, "system_id": "me", "password": "topsecre"}
        status, view = await node.call("POST", "/v1/connectors", json=body, **admin)
        assert (status, view["password"]) == (201, None)
        assert (await node.call("POST", "/v1/connectors", json=body, **admin))[0] == 409
        assert (await node.call("POST", "/v1/routes", json={"name": "r1", "connector": "nope"}, **admin))[0] == 422
        assert (
            await node.call("POST", "/v1/routes", json={"name": "r1", "connector": "c1", "prefixes": ["4x"]}, **admin)
        )[0] == 422
        assert (
            await node.call("POST", "/v1/routes", json={"name": "r1", "connector": "c1", "prefixes": ["49"]}, **admin)
        )[0] == 201
        assert (await node.call("DELETE", "/v1/connectors/c1", **admin))[0] == 409
        assert (await node.call("DELETE", "/v1/routes/r1", **admin))[0] == 204
        assert (await node.call("DELETE", "/v1/connectors/c1", **admin))[0] == 204
        assert (await node.call("DELETE", "/v1/connectors/c1", **admin))[0] == 404
        stored = await node.node.database["connectors"].find({}).to_list()
        assert "topsecre" not in str(stored)

    async def test_a_key_works_at_once_and_not_after_its_end(self, node):
        body = {"tenant": "other", "name": "n", "scopes": ["messages:read"]}
        status, made = await node.call("POST", "/v1/keys", json=body, key=node.admin_key)
        assert status == 201
        assert (await node.call("GET", "/v1/messages", key=made["key"]))[0] == 200
        assert (await node.call("DELETE", f"/v1/keys/{made['id']}", key=node.admin_key))[0] == 204
        assert (await node.call("GET", "/v1/messages", key=made["key"]))[0] == 401

    async def test_rate_limit(self, ready):
        tenant = {"name": "Other", "rate": 5}
        assert (await ready.call("PUT", "/v1/tenants/other", json=tenant, key=ready.admin_key))[0] == 200
        request = {"json": {"to": "+4915112340001", "body": "x"}, "key": ready.other_key}
        answers = [await ready.call("POST", "/v1/messages", **request) for _ in range(12)]
        assert 429 in {status for status, _ in answers}

    async def test_explain(self, ready):
        status, answer = await ready.call("POST", "/v1/route-searches", json={"to": "+4915112340001", "max_price": 0})
        assert (status, answer["chosen"]) == (200, "sim")
        assert answer["candidates"][0]["healthy"]

    async def test_health_and_metrics(self, ready):
        await ready.send()
        status, body = await ready.call("GET", "/readyz")
        assert (status, body["ready"]) == (200, True)
        async with ready.http.get(ready.base_url + "/metrics") as answer:
            text = await answer.text()
        assert 'heliograph_events_total{kind="accepted"} 1.0' in text
        async with ready.http.get(ready.base_url + "/", allow_redirects=False) as answer:
            assert answer.headers["location"] == "/docs"
