"""Recipients' preferences end to end: real HTTP, real MongoDB, real SMPP."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.bootstrap import Node
from controlplane.clock import SystemClock
from controlplane.domain.preferences import NOBODY, Reason
from controlplane.domain.quiet import QuietHours, Window
from controlplane.errors import StoreUnavailableError
from controlplane.store.preferences import CHANGES, PREFERENCES, SUPPRESSIONS, NewSuppression, PreferenceStore
from controlplane.store.recipients import Recipients
from tests.simulators.node import running_node
from tests.simulators.receiver import receiver

TO = "+4915112340001"
NDJSON = {"content-type": "application/x-ndjson"}


def slug(problem: dict) -> str:
    return problem["type"].rsplit("/", 1)[1]


def window(start: datetime, end: datetime) -> dict:
    return {"start": f"{start:%H:%M}", "end": f"{end:%H:%M}"}


def now_quiet(minutes: int = 60) -> dict:
    """A period in UTC that has begun and goes on for at least as many minutes."""
    now = datetime.now(UTC)
    return window(now - timedelta(minutes=1), now + timedelta(minutes=minutes + 1))


@pytest.fixture
def forward(monkeypatch):
    """Puts the wall clock of everything in this process forward."""
    ahead, now_ms = [0], SystemClock.now_ms
    monkeypatch.setattr(SystemClock, "now_ms", lambda clock: now_ms(clock) + ahead[0])

    def forward(to: datetime) -> None:
        ahead[0] = int((to - datetime.now(UTC)).total_seconds() * 1000) + 50

    return forward


@pytest.fixture
async def ready(node, carriers):
    node.carrier = await carriers(http_port=0)
    await node.connect(node.carrier, tenant="sample")
    return node


async def phone(node, text: str, *, source: str = TO) -> None:
    """A text from a phone, and the carrier's acknowledgement of it."""
    before = node.carrier.exchange.counts["mo_answered_0"]
    message = {"from": source, "to": "12345", "body": text}
    async with node.http.post(f"http://127.0.0.1:{node.carrier.http_port}/mo", json=message) as answer:
        assert answer.status == 202
    await node.until(lambda: node.carrier.exchange.counts["mo_answered_0"] > before)


async def suppress(node, to: str = TO, **fields) -> dict:
    status, answer = await node.call("POST", "/v1/suppressions", json={"recipient": to, **fields})
    assert status in (200, 201), answer
    return answer


async def prefer(node, to: str = TO, **fields) -> dict:
    status, answer = await node.call("POST", "/v1/preferences", json={"recipient": to, **fields})
    assert status in (200, 201), answer
    return answer


async def refused(node, to: str = TO, **fields) -> dict:
    status, problem = await node.call("POST", "/v1/messages", json={"to": to, "body": "x", **fields})
    assert status == 422, problem
    return problem


class TestResources:
    """/v1/suppressions and /v1/preferences."""

    async def test_a_suppression_from_its_creation_to_its_end(self, node):
        made = await suppress(node, reason="complaint", source="hotline")
        assert made["recipient"] == "+4915*******01"
        assert (made["reason"], made["classes"], made["sender"]) == ("complaint", ["marketing", "transactional"], None)
        status, again = await node.call("POST", "/v1/suppressions", json={"recipient": TO, "reason": "complaint"})
        assert (status, again["id"], again["source"]) == (200, made["id"], None)
        assert (await node.call("GET", f"/v1/suppressions/{made['id']}")) == (200, again)
        assert (await node.call("GET", f"/v1/suppressions/{made['id']}", key=node.other_key))[0] == 404
        assert (await node.call("DELETE", f"/v1/suppressions/{made['id']}", key=node.other_key))[0] == 404
        assert (await node.call("DELETE", f"/v1/suppressions/{made['id']}"))[0] == 204
        status, problem = await node.call("DELETE", f"/v1/suppressions/{made['id']}")
        assert (status, slug(problem)) == (404, "not-found")
        assert problem["next_step"]

    async def test_lists_have_pages_filters_and_one_tenant(self, node):
        made = [await suppress(node, f"+49151123400{n:02}", reason="manual" if n % 2 else "invalid") for n in range(7)]
        await node.call("POST", "/v1/suppressions", key=node.other_key, json={"recipient": TO})
        seen, path = [], "/v1/suppressions?limit=3"
        cursor = ""
        while cursor is not None:
            _, page = await node.call("GET", path + (f"&cursor={cursor}" if cursor else ""))
            seen += page["data"]
            cursor = page["next"]
        assert [item["id"] for item in seen] == [item["id"] for item in reversed(made)]
        _, page = await node.call("GET", "/v1/suppressions?recipient=%2B4915112340003")
        assert [item["id"] for item in page["data"]] == [made[3]["id"]]
        _, page = await node.call("GET", "/v1/suppressions?reason=invalid")
        assert len(page["data"]) == 4
        _, first = await node.call("GET", path)
        status, problem = await node.call("GET", f"/v1/suppressions?limit=3&reason=manual&cursor={first['next']}")
        assert (status, slug(problem)) == (422, "invalid-request")

    async def test_a_preference_from_its_creation_to_its_end(self, node):
        wishes = {
            "time_zone": "Europe/Berlin",
            "quiet_hours": {
                "windows": [{"start": "22:00", "end": "07:30", "days": ["mon", "sun"]}],
                "actions": {"otp": "reject"},
            },
            "sender": "Heliograph",
            "blocked_classes": ["marketing"],
            "source": "profile page",
        }
        made = await prefer(node, **wishes)
        assert {key: made[key] for key in wishes} == wishes
        status, changed = await node.call("PUT", f"/v1/preferences/{made['id']}", json={"time_zone": "Asia/Tokyo"})
        assert status == 200
        assert (changed["time_zone"], changed["quiet_hours"], changed["blocked_classes"]) == ("Asia/Tokyo", None, [])
        assert changed["created_at"] == made["created_at"]
        status, problem = await node.call("PUT", f"/v1/preferences/{made['id']}", key=node.other_key, json={})
        assert (status, slug(problem)) == (404, "not-found")
        _, page = await node.call("GET", "/v1/preferences")
        assert page == {"data": [changed], "next": None}
        assert (await node.call("DELETE", f"/v1/preferences/{made['id']}"))[0] == 204
        assert (await node.call("GET", f"/v1/preferences/{made['id']}"))[0] == 404

    async def test_what_is_wrong_is_pointed_to(self, node):
        status, problem = await node.call(
            "POST",
            "/v1/preferences",
            json={
                "recipient": "0151", "time_zone": "Berlin", "colour": "red", "sender": "a name that is too long",
                "quiet_hours": {"windows": [{"start": "25:00", "end": "8"}]},
            },
        )  # fmt: skip
        assert status == 422
        assert {error["pointer"] for error in problem["errors"]} >= {
            "/recipient",
            "/time_zone",
            "/colour",
            "/sender",
            "/quiet_hours/windows/0/start",
            "/quiet_hours/windows/0/end",
        }

    async def test_no_number_is_stored(self, node):
        await suppress(node, reason="opt_out")
        await prefer(node, blocked_classes=["otp"])
        for collection in (SUPPRESSIONS, PREFERENCES, CHANGES):
            for document in await node.node.database[collection].find().to_list():
                assert "15112340001" not in repr(document)

    async def test_import_of_ten_thousand_lines_with_bad_ones(self, node):
        lines = [json.dumps({"recipient": f"+49151{n:08}", "reason": "opt_out"}) for n in range(10_000)]
        lines[5] = '{"recipient": "nobody"}'
        lines[6] = "{"
        lines[7] = lines[4]
        started = time.monotonic()
        status, answer = await node.call("POST", "/v1/suppressions/import", data="\n".join(lines), headers=NDJSON)
        print(f"\nimport of 10,000 suppressions: {time.monotonic() - started:.2f} s")
        assert (status, answer["imported"], answer["rejected"]) == (200, 9_998, 2)
        assert answer["results"][5]["error"]["errors"][0]["pointer"] == "/recipient"
        assert slug(answer["results"][6]["error"]) == "invalid-request"
        assert answer["results"][7] == {"index": 7, "id": answer["results"][4]["id"], "created": False}
        status, answer = await node.call("POST", "/v1/preferences/import", json={"items": [{"recipient": TO}, {}]})
        assert (status, answer["imported"], answer["rejected"]) == (200, 1, 1)
        status, problem = await node.call(
            "POST", "/v1/suppressions/import", data="recipient", headers={"content-type": "text/csv"}
        )
        assert (status, slug(problem)) == (415, "unsupported-media-type")
        status, _ = await node.call("POST", "/v1/preferences/import", data="\n".join(["{}"] * 10_001), headers=NDJSON)
        assert status == 422

    async def test_tenants_have_quiet_hours_and_keywords(self, node):
        quiet = {
            "marketing": {"windows": [{"start": "21:00", "end": "08:00", "days": ["mon", "tue"]}], "action": "reject"}
        }
        status, answer = await node.call(
            "PUT",
            "/v1/tenants/other",
            key=node.admin_key,
            json={
                "name": "Other",
                "quiet_hours": quiet,
                "opt_out_keywords": ["HALT"],
                "opt_out_classes": ["otp", "marketing"],
            },
        )
        assert status == 200
        _, again = await node.call("GET", "/v1/tenants/other", key=node.admin_key)
        assert again == answer
        assert (again["quiet_hours"], again["opt_out_keywords"]) == (quiet, ["HALT"])
        assert (again["opt_out_classes"], again["opt_in_keywords"]) == (["marketing", "otp"], ["START", "UNSTOP"])
        stored = node.node.catalog.snapshot.tenants["other"].quiet_hours
        assert stored == {"marketing": QuietHours((Window(21 * 60, 8 * 60, 0b11),), "reject")}


class TestRefusal:
    """What a suppression and a blocked class do to a request."""

    async def test_a_suppressed_recipient_is_refused_by_class(self, ready):
        made = await suppress(ready, reason="opt_out")
        problem = await refused(ready, **{"class": "marketing"})
        assert slug(problem) == "recipient-opted-out"
        assert (problem["rule"], problem["record"]) == ("recipient_opted_out", made["id"])
        assert slug(await refused(ready)) == "recipient-opted-out"
        assert slug(await refused(ready, dry_run=True)) == "recipient-opted-out"
        await ready.reaches((await ready.send(**{"class": "otp"}))["id"], "delivered")
        await ready.reaches((await ready.send("+4915112340011"))["id"], "delivered")
        status, _ = await ready.call(
            "POST", "/v1/messages", key=ready.other_key, json={"to": TO, "body": "another tenant's"}
        )
        assert status == 202
        await ready.call("DELETE", f"/v1/suppressions/{made['id']}")
        await ready.reaches((await ready.send())["id"], "delivered")

    async def test_one_sender_is_suppressed(self, ready):
        await suppress(ready, reason="opt_out", sender="Shop")
        assert slug(await refused(ready, **{"from": "shop"})) == "recipient-opted-out"
        assert slug(await refused(ready)) == "recipient-opted-out"  # it might come from any sender
        await ready.send(**{"from": "Bank"})

    async def test_items_of_a_batch_have_their_own_results(self, ready):
        await suppress(ready, "+4915112340003")
        await prefer(ready, "+4915112340004", blocked_classes=["marketing"])
        messages = [{"to": f"+491511234000{n}", "body": "x", "class": "marketing"} for n in range(6)]
        messages[5]["to"] = "wrong"
        status, answer = await ready.call("POST", "/v1/batches", json={"messages": messages})
        assert (status, answer["accepted"], answer["rejected"]) == (202, 3, 3)
        errors = {item["index"]: slug(item["error"]) for item in answer["results"] if "error" in item}
        assert errors == {3: "recipient-suppressed", 4: "class-blocked", 5: "invalid-request"}

    async def test_a_preferred_sender_is_used_where_a_route_can_carry_it(self, ready):
        await prefer(ready, sender="Helio")
        sent = await ready.send()
        assert (await ready.get(sent["id"]))["from"] == "Helio"
        assert (await ready.get((await ready.send(**{"from": "Other"}))["id"]))["from"] == "Other"
        route = ready.node.catalog.snapshot.routes["sim"]
        await ready.node.catalog.put(replace(route, sender_types=frozenset({"short"})))
        assert (await ready.get((await ready.send())["id"]))["from"] is None

    async def test_a_route_search_tells_it(self, ready):
        made = await suppress(ready, reason="invalid")
        status, found = await ready.call("POST", "/v1/route-searches", json={"to": TO})
        assert (status, found["chosen"], found["candidates"]) == (200, None, [])
        assert found["recipient"]["rule"] == "recipient_invalid"
        assert found["recipient"]["record"] == made["id"]
        assert [(item["route"], item["rule"]) for item in found["excluded"]] == [("sim", "recipient_invalid")]
        _, found = await ready.call("POST", "/v1/route-searches", json={"to": "+4915112340002"})
        assert (found["chosen"], found["recipient"]["outcome"]) == ("sim", "allowed")


class TestKeywords:
    """STOP from a phone acts before the carrier has its acknowledgement."""

    async def test_stop_then_refused_then_start(self, ready):
        await phone(ready, " Stop! ")
        assert slug(await refused(ready)) == "recipient-opted-out"
        _, page = await ready.call("GET", "/v1/suppressions")
        (made,) = page["data"]
        assert (made["reason"], made["source"]) == ("opt_out", "keyword stop")
        _, page = await ready.call("GET", "/v1/messages?status=received")
        story = await ready.node.reader.load(page["data"][0]["id"])
        assert story[0].data["preference"]["effect"] == "opted_out"
        assert made["id"] == "sup_" + story[0].data["preference"]["suppression"]
        await phone(ready, "START")
        await ready.send()
        await phone(ready, "Stop.")  # a different text within a minute: no redelivery
        assert slug(await refused(ready)) == "recipient-opted-out"

    async def test_the_same_stop_after_a_start_within_a_minute_counts(self, ready):
        for text in ("STOP", "START", "STOP"):
            await phone(ready, text)
        assert slug(await refused(ready)) == "recipient-opted-out"

    async def test_start_lifts_no_complaint(self, ready):
        await suppress(ready, reason="complaint")
        await phone(ready, "START")
        assert slug(await refused(ready)) == "recipient-complained"

    async def test_other_texts_and_other_numbers_change_nothing(self, ready):
        await phone(ready, "please stop calling")
        await phone(ready, "STOP", source="12345")
        await ready.send()
        _, page = await ready.call("GET", "/v1/messages?status=received")
        stories = [await ready.node.reader.load(item["id"]) for item in page["data"]]
        effects = [(story[0].data.get("preference") or {}).get("effect") for story in stories]
        assert sorted(map(str, effects)) == ["None", "unknown_number"]

    async def test_a_tenants_own_keywords(self, ready):
        tenant = ready.node.catalog.snapshot.tenants["sample"]
        changed = replace(tenant, opt_out_keywords=("HALT",), opt_out_classes=frozenset({"otp"}))
        await ready.node.catalog.put(changed)
        await phone(ready, "STOP")
        await ready.send()
        await phone(ready, "halt")
        assert slug(await refused(ready, **{"class": "otp"})) == "recipient-opted-out"
        await ready.send()

    async def test_who_opts_out_while_a_message_waits_gets_nothing(self, ready):
        at = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
        mid = (await ready.send(send_at=at))["id"]
        await phone(ready, "STOP")
        message = await ready.reaches(mid, "failed")
        assert message["reason"] == "opted_out"
        assert [event["kind"] for event in message["timeline"]] == ["accepted", "failed"]
        assert not ready.carrier.exchange.counts["accepted"]


class TestQueued:
    """Preferences count until the last moment: also for what waits in a connector's queue."""

    async def test_who_opts_out_while_a_message_is_queued_gets_nothing(self, ready, carriers):
        slow = await carriers()
        await ready.connect(slow, "slow", prefixes=("49",), rate=1.0)
        ids = [(await ready.send(f"+49151123400{n}1"))["id"] for n in range(5)]
        await phone(ready, "STOP", source="+4915112340041")
        message = await ready.reaches(ids[4], "failed")
        assert message["reason"] == "opted_out"
        assert message["timeline"][-1]["text"] == "Not sent: the recipient has opted out; this covers transactional."
        await ready.reaches(ids[3], "delivered")
        assert slow.exchange.counts["accepted"] == 4

    async def test_quiet_hours_that_begin_hold_the_queue(self, ready, carriers):
        slow = await carriers()
        await ready.connect(slow, "slow", prefixes=("49",), rate=1.0)
        ids = [(await ready.send(f"+49151123400{n}1"))["id"] for n in range(5)]
        quiet = {"windows": [now_quiet(30)]}
        await prefer(ready, "+4915112340041", time_zone="UTC", quiet_hours=quiet)
        await ready.reaches(ids[3], "delivered")
        timeline = []
        async with asyncio.timeout(15):
            while len(timeline) < 2:
                await asyncio.sleep(0.1)
                timeline = (await ready.get(ids[4]))["timeline"]
        assert [event["kind"] for event in timeline] == ["accepted", "deferred"]
        assert "It waits: quiet hours for transactional in UTC until" in timeline[-1]["text"]

    async def test_a_keyword_is_told_by_callback_and_in_the_story(self, ready):
        async with receiver() as told:
            await ready.call("POST", "/v1/callbacks", json={"url": told.url})
            await phone(ready, "STOP")
            await ready.until(lambda: told.requests)
        body = json.loads(told.requests[0][1])
        assert (body["type"], body["data"]["preference"]["effect"]) == ("message.received", "opted_out")
        _, page = await ready.call("GET", "/v1/messages?status=received")
        text = (await ready.get(page["data"][0]["id"]))["timeline"][0]["text"]
        assert text == "Received from sim. The keyword opted its number out."


class TestQuietHours:
    """Held until they end, or refused."""

    async def test_held_then_sent(self, ready, forward):
        made = await prefer(ready, time_zone="UTC", quiet_hours={"windows": [now_quiet(30)]})
        status, dry = await ready.call("POST", "/v1/messages", json={"to": TO, "body": "x", "dry_run": True})
        assert (status, dry["status"], dry["held"]["rule"]) == (200, "scheduled", "quiet_hours")
        sent = await ready.send()
        assert (sent["status"], sent["send_at"]) == ("scheduled", sent["held"]["until"])
        assert sent["held"]["record"] == made["id"]
        until = datetime.fromisoformat(sent["send_at"])
        assert timedelta(minutes=29) < until - datetime.now(UTC) < timedelta(minutes=33)
        otp = await ready.send(**{"class": "otp"})
        assert (otp["status"], otp["held"]) == ("accepted", None)
        await ready.reaches(otp["id"], "delivered")
        await asyncio.sleep(0.5)
        assert (await ready.get(sent["id"]))["status"] == "scheduled"
        forward(until)
        message = await ready.reaches(sent["id"], "delivered")
        assert [event["kind"] for event in message["timeline"]] == ["accepted", "submitted", "delivered"]

    async def test_refused_where_they_reject_or_validity_ends_before(self, ready):
        await prefer(
            ready,
            time_zone="UTC",
            quiet_hours={"windows": [now_quiet(90)], "actions": {"marketing": "reject", "transactional": "hold"}},
        )
        problem = await refused(ready, **{"class": "marketing"})
        assert (slug(problem), problem["rule"]) == ("quiet-hours", "quiet_hours")
        assert datetime.fromisoformat(problem["until"]) > datetime.now(UTC)
        problem = await refused(ready, validity_seconds=600)
        assert slug(problem) == "quiet-hours"
        assert "validity ends before" in problem["detail"]

    async def test_a_tenants_own_by_the_numbers_time_zone(self, ready):
        local = datetime.now(UTC) + timedelta(hours=9)
        quiet = QuietHours(
            (Window((local.hour * 60 + local.minute - 1) % 1440, (local.hour * 60 + local.minute + 60) % 1440),)
        )
        tenant = ready.node.catalog.snapshot.tenants["sample"]
        await ready.node.catalog.put(replace(tenant, quiet_hours={"marketing": quiet}))
        japan, germany = "+819012345678", "+4915112340009"
        assert (await ready.send(japan, **{"class": "marketing"}))["held"]["record"] is None
        assert (await ready.send(germany, **{"class": "marketing"}))["held"] is None
        assert (await ready.send(japan))["held"] is None

    async def test_they_count_again_when_a_message_is_due(self, ready, forward):
        sent = await ready.send(send_at=(datetime.now(UTC) + timedelta(seconds=2)).isoformat())
        await prefer(ready, time_zone="UTC", quiet_hours={"windows": [now_quiet(30)]})
        message = await self._deferred(ready, sent["id"])
        assert message["timeline"][-1]["reason"] == "quiet_hours"
        await asyncio.sleep(1.5)
        assert [event["kind"] for event in (await ready.get(sent["id"]))["timeline"]] == ["accepted", "deferred"]
        assert not ready.carrier.exchange.counts["accepted"]
        forward(datetime.now(UTC) + timedelta(minutes=35))
        await ready.reaches(sent["id"], "delivered")

    @staticmethod
    async def _deferred(node, mid: str) -> dict:
        async with asyncio.timeout(10):
            while True:
                message = await node.get(mid)
                if message["timeline"][-1]["kind"] == "deferred":
                    return message
                await asyncio.sleep(0.1)

    async def test_validity_goes_on_meanwhile(self, ready):
        at = datetime.now(UTC) + timedelta(seconds=1)
        sent = await ready.send(send_at=at.isoformat(), validity_seconds=2)
        await prefer(ready, time_zone="UTC", quiet_hours={"windows": [now_quiet(30)]})
        message = await ready.reaches(sent["id"], "expired")
        assert message["reason"] == "validity"


class TestNodes:
    """What one node is told, the others know within two seconds; and memory stays small."""

    async def test_a_second_node_knows_within_two_seconds(self, settings, ready, tmp_path):
        other = settings.model_copy(update={"node": "node-2", "state_dir": tmp_path / "2"})
        (tmp_path / "2").mkdir()
        async with running_node(other) as second:
            second.key = ready.key
            await second.until(lambda: "sim" in second.node.binds.live)
            await second.send()
            await suppress(ready)
            started = time.monotonic()
            while (await second.call("POST", "/v1/messages", json={"to": TO, "body": "x"}))[0] != 422:
                assert time.monotonic() - started < 2
                await asyncio.sleep(0.02)
            print(f"\nknown to the second node after {time.monotonic() - started:.2f} s")
            _, page = await second.call("GET", "/v1/suppressions")
            await second.call("DELETE", f"/v1/suppressions/{page['data'][0]['id']}")
            started = time.monotonic()
            while (await ready.call("POST", "/v1/messages", json={"to": TO, "body": "x"}))[0] != 202:
                assert time.monotonic() - started < 2
                await asyncio.sleep(0.02)

    async def test_a_change_that_was_never_told_is_found_by_reading_everything(self, database, settings, monkeypatch):
        monkeypatch.setattr("controlplane.store.recipients._PATIENCE_SECONDS", 0.0)
        clock = SystemClock()
        store = PreferenceStore(database, settings.secret, clock, settings.datacenter)
        known = Recipients(store, clock)
        await known.refresh()
        opt_out = NewSuppression(to=TO, reason=Reason.OPT_OUT, classes=frozenset({"otp"}))
        await store.suppress("sample", [opt_out])
        await database[CHANGES].delete_many({})  # its writer died between the two
        await known.refresh()
        assert known.standing("sample", TO) is NOBODY
        await asyncio.sleep(0.01)
        await known.refresh()
        assert known.standing("sample", TO) is None
        assert (await known.find("sample", TO)).suppressions[0].reason is Reason.OPT_OUT
        assert known.standing("sample", TO).suppressions
        await store.lift_opt_outs("sample", TO)
        await known.refresh()
        assert (await known.find("sample", TO)).suppressions == ()

    async def test_those_who_wait_are_answered_together_and_in_their_order(self, database, settings, monkeypatch):
        clock = SystemClock()
        store = PreferenceStore(database, settings.secret, clock, settings.datacenter)
        known = Recipients(store, clock)
        numbers = [f"+49151123{n:05}" for n in range(50)]
        await store.suppress(
            "sample",
            [
                NewSuppression(to=to, reason=Reason.INVALID, classes=frozenset({"otp"}), source=to[-5:])
                for to in numbers
            ],
        )
        await known.refresh()
        answers = {}
        for number in range(0, 50, 5):
            asked = [("sample", to) for to in numbers[number : number + 5]]
            known.read_soon(asked, lambda outcome, number=number: answers.update({number: outcome}))
        monkeypatch.setattr("controlplane.store.recipients._MOST_WAITING", 10)
        known.read_soon([("sample", TO)], lambda outcome: answers.update({"late": outcome}))
        assert isinstance(answers["late"], StoreUnavailableError)
        running = asyncio.ensure_future(known.run())
        async with asyncio.timeout(5):
            while len(answers) < 11:
                await asyncio.sleep(0.01)
        running.cancel()
        for number in range(0, 50, 5):
            sources = [standing.suppressions[0].source for standing in answers[number]]
            assert sources == [to[-5:] for to in numbers[number : number + 5]]

    async def test_a_hundred_thousand(self, database, settings):
        clock = SystemClock()
        store = PreferenceStore(database, settings.secret, clock, settings.datacenter)
        documents = [
            {
                "_id": (r := store.digest("sample", f"+49151{n:08}").hex()) + "00000000", "r": r, "t": "sample",
                "masked": "+4915*******01", "reason": "opt_out", "sender": "", "classes": ["marketing"],
                "source": "", "at": n, "updated": n,
            }
            for n in range(100_000)
        ]  # fmt: skip
        for start in range(0, len(documents), 10_000):
            await database[SUPPRESSIONS].insert_many(documents[start : start + 10_000], ordered=False)
        del documents
        started = time.monotonic()
        await Recipients(store, clock).refresh()
        took = time.monotonic() - started
        known = Recipients(store, clock)
        tracemalloc.start()
        await known.refresh()
        size, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(known) == 100_000
        assert size < 2_000_000
        numbers = [f"+49171{n:08}" for n in range(20_000)]
        started = time.perf_counter()
        answers = [known.standing("sample", to) for to in numbers]
        miss = (time.perf_counter() - started) / len(numbers)
        assert all(answer is NOBODY for answer in answers)
        started = time.perf_counter()
        for to in numbers:
            known.standing("other", to)
        none = (time.perf_counter() - started) / len(numbers)
        assert known.standing("sample", "+4915100000007") is None
        assert (await known.find("sample", "+4915100000007")).suppressions
        print(
            f"\n100,000 suppressions: loaded in {took:.2f} s, {size / 1e6:.2f} MB kept, {peak / 1e6:.2f} MB at most; "
            f"check {miss * 1e6:.2f} µs, of a tenant without any {none * 1e6:.2f} µs"
        )
        assert miss < 50e-6
        assert none < 10e-6


async def test_a_node_that_starts_knows_everything(settings, database, carriers):
    async with running_node(settings) as node:
        await node.seed()
        await suppress(node)
        key = node.key
    node = await Node.open(settings)
    try:
        assert len(node.recipients) == 1
        assert node.recipients.standing("sample", TO) is None
    finally:
        await node.close()
    assert key
