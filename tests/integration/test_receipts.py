"""Receipts: early, on another bind, repeated, out of order, in every id format. And messages that come from phones."""

from __future__ import annotations

import asyncio

import pytest


async def delivered_events(node, mid: str) -> list[str]:
    return [event["kind"] for event in (await node.get(mid))["timeline"]]


class TestReceipts:
    """A receipt finds its message, whichever comes first, and is recorded once."""

    async def test_row_11_receipt_before_response(self, node, carriers):
        await node.connect(await carriers(receipt_first=True))
        ids = [(await node.send(body=f"m{n}"))["id"] for n in range(20)]
        for mid in ids:
            await node.reaches(mid, "delivered")
        assert await node.node.database["orphans"].count_documents({}) == 0

    async def test_row_11_right_behind_the_response_it_waits_in_the_lane(self, node, carriers):
        """Before `submitted` is durable the part is not known by its id yet; the receipt is recorded behind it, without a stay among the orphans."""
        await node.connect(await carriers(receipt_ms="0"))
        ids = [(await node.send(body=f"m{n}"))["id"] for n in range(20)]
        for mid in ids:
            await node.reaches(mid, "delivered")
            assert await delivered_events(node, mid) == ["accepted", "submitted", "delivered"]
        assert node.node.ingest.orphaned == 0
        assert node.node.ingest.waiting == 0

    @pytest.mark.parametrize(
        ("id_format", "receipt_id"),
        [
            ("hex", "decimal"),
            ("decimal", "hex"),
            ("hex", "upper"),
            ("padded", "stripped"),
            ("decimal", "padded"),
            ("uuid", "upper"),
            ("alnum", "same"),
        ],
    )
    async def test_row_12_id_formats(self, node, carriers, id_format, receipt_id):
        await node.connect(await carriers(id_format=id_format, receipt_id=receipt_id))
        for number in range(5):
            mid = (await node.send(body=f"m{number}"))["id"]
            await node.reaches(mid, "delivered")

    @pytest.mark.parametrize("dialect", ["spec", "compact", "tlv", "data_sm", "esm44"])
    async def test_row_13_dialects(self, node, carriers, dialect):
        await node.connect(await carriers(receipt_dialect=dialect))
        await node.reaches((await node.send())["id"], "delivered")

    async def test_row_13_what_cannot_be_read_is_kept(self, node, carriers):
        await node.connect(await carriers(receipt_dialect="garbled"))
        await node.send()
        orphans = node.node.database["orphans"]
        async with asyncio.timeout(10):
            while not await orphans.count_documents({}):
                await asyncio.sleep(0.05)
        assert "who knows" in (await orphans.find_one({}))["receipt"]["text"]

    async def test_row_14_intermediate_duplicate_shuffled(self, node, carriers):
        await node.connect(await carriers(receipt_intermediate=True, receipt_duplicates=3, receipt_shuffle=True))
        mid = (await node.send())["id"]
        await node.reaches(mid, "delivered")
        await asyncio.sleep(0.5)
        kinds = await delivered_events(node, mid)
        assert kinds.count("delivered") == 1
        assert kinds.count("enroute") == 1
        assert (await node.get(mid))["status"] == "delivered"

    async def test_row_28_receipt_on_another_bind(self, node, carriers):
        await node.connect(await carriers(receipt_other_bind=True), binds=3)
        for number in range(10):
            await node.reaches((await node.send(body=f"m{number}"))["id"], "delivered")

    async def test_row_09_response_lost_receipt_resolves_it(self, node, carriers):
        await node.connect(await carriers(), response_seconds=1)
        mid = (await node.send(to="+4915112340006", unknown_policy="hold"))["id"]
        message = await node.reaches(mid, "delivered", seconds=20)
        kinds = [event["kind"] for event in message["timeline"]]
        assert kinds == ["accepted", "unknown", "delivered"]

    async def test_row_09_neither_response_nor_receipt_stays_unknown_and_is_sent_once(self, node, carriers):
        carrier = await carriers()
        await node.connect(carrier, response_seconds=1)
        mid = (await node.send(to="+4915112340008", unknown_policy="hold"))["id"]
        await node.reaches(mid, "unknown")
        await asyncio.sleep(2.5)
        assert (await node.get(mid))["status"] == "unknown"
        assert carrier.exchange.counts["accepted"] == 1

    async def test_row_09_resend_is_declared(self, node, carriers):
        carrier = await carriers(suffix_rules=False, drop_response=1.0, receipt_missing=1.0)
        await node.connect(carrier, response_seconds=1)
        mid = (await node.send(unknown_policy="resend"))["id"]
        await node.until(lambda: carrier.exchange.counts["accepted"] >= 2)
        kinds = await delivered_events(node, mid)
        assert kinds[:3] == ["accepted", "unknown", "rerouted"]

    async def test_row_16_redelivered_when_the_node_was_not_there(self, node, carriers):
        carrier = await carriers(redeliver_seconds=0.5)
        await node.connect(carrier)
        mid = (await node.send())["id"]
        await node.reaches(mid, "delivered")
        await node.until(lambda: carrier.exchange.counts["receipts_acknowledged"] == 1)
        assert (await delivered_events(node, mid)).count("delivered") == 1


class TestSubmitting:
    """What a carrier's answer means."""

    async def test_row_03_throttled_goes_on_without_losing_a_retry(self, node, carriers):
        carrier = await carriers(throttle_every=3)
        await node.connect(carrier)
        ids = [(await node.send(body=f"m{n}"))["id"] for n in range(12)]
        for mid in ids:
            message = await node.reaches(mid, "delivered", seconds=30)
            assert [event["kind"] for event in message["timeline"]] == ["accepted", "submitted", "delivered"]
        assert node.node.binds.outboxes["sim"].throttle.rate < 5000

    async def test_row_04_queue_full_diverts(self, node, carriers):
        await node.connect(await carriers(queue_full_every=1), name="full", priority=1)
        await node.connect(await carriers(), name="other", priority=2)
        message = await node.reaches((await node.send())["id"], "delivered", seconds=40)
        assert message["route"] == "other"
        assert "rerouted" in [event["kind"] for event in message["timeline"]]

    async def test_refused_for_good_goes_to_the_next_route(self, node, carriers):
        await node.connect(await carriers(), name="first", priority=1)
        await node.connect(await carriers(suffix_rules=False), name="second", priority=2)
        message = await node.reaches((await node.send(to="+4915112340004"))["id"], "delivered")
        assert message["route"] == "second"

    async def test_a_dead_bind_diverts_what_waits(self, node, carriers):
        first = await carriers()
        await node.connect(first, name="first", priority=1)
        await node.connect(await carriers(), name="second", priority=2)
        first.exchange.change(bind_status=13)
        for session in list(first.exchange.sessions):
            session.cut()
        await node.until(lambda: "first" not in node.node.binds.live)
        message = await node.reaches((await node.send())["id"], "delivered")
        assert message["route"] == "second"

    async def test_row_20_one_part_refused(self, node, carriers):
        await node.connect(await carriers(reject_part=2))
        message = await node.reaches((await node.send(body="x" * 400))["id"], "failed")
        states = [part["state"] for part in message["part_states"]]
        assert states[1] == "pending"
        assert states[0] in ("submitted", "delivered")

    @pytest.mark.parametrize("mode", ["udh8", "udh16", "sar", "payload"])
    async def test_row_18_long_modes(self, node, carriers, mode):
        await node.connect(await carriers(), long_messages=mode)
        message = await node.reaches((await node.send(body="y" * 320))["id"], "delivered")
        assert {part["state"] for part in message["part_states"]} == {"delivered"}

    @pytest.mark.parametrize(
        "trouble",
        [
            {"garbage_after": 2},
            {"bad_length_after": 2},
            {"unbind_after": 2},
            {"fragment": True},
            {"unknown_tlvs": True},
            {"nack": 0.3},
            {"nack_zero": 0.3},
            {"outbind": True},
            {"enquire_seconds": 0.1},
        ],
    )
    async def test_a_misbehaving_carrier_ends_nothing(self, node, carriers, trouble):
        await node.connect(await carriers(**trouble), response_seconds=1)
        ids = [(await node.send(body=f"m{n}", unknown_policy="resend"))["id"] for n in range(6)]
        for mid in ids:
            await node.reaches(mid, "delivered", "failed", seconds=40)

    async def test_row_26_a_wrong_password_is_reported(self, node, carriers):
        carrier = await carriers(bind_status=0x0E)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await node.connect(carrier)
        (state,) = node.node.connector_states()
        assert "ESME_RINVPASWD" in state.binds[0].last_error

    async def test_row_28_slots_of_a_limited_account(self, node, carriers):
        carrier = await carriers(max_binds=1)
        await node.connect(carrier, binds=3, max_binds=1)
        await asyncio.sleep(1.5)
        assert sum(bind.bound for _, binds in node.node.binds.states() for bind in binds) == 1
        assert carrier.exchange.counts["binds_refused"] == 0


class TestInbound:
    """Row 19: messages from phones are put together, once, and kept."""

    async def received(self, node, count: int) -> list[dict]:
        async with asyncio.timeout(10):
            while True:
                _, page = await node.call("GET", "/v1/messages?status=received")
                if len(page["data"]) >= count:
                    return page["data"]
                await asyncio.sleep(0.1)

    @pytest.mark.parametrize("reverse", [False, True])
    async def test_row_19_long_repeated_any_order(self, node, carriers, reverse):
        carrier = await carriers(http_port=0)
        await node.connect(carrier, tenant="sample")
        body = "".join(f"<{n:03d}>" for n in range(400))
        async with node.http.post(
            f"http://127.0.0.1:{carrier.http_port}/mo",
            json={"from": "4915112345678", "to": "12345", "body": body, "reverse": reverse, "copies": 2},
        ) as answer:
            assert (await answer.json())["parts"] > 9
        (message,) = await self.received(node, 1)
        status, detail = await node.call("GET", f"/v1/messages/{message['id']}")
        assert (status, detail["body"], detail["direction"]) == (200, body, "inbound")
        await asyncio.sleep(0.3)
        assert len(await self.received(node, 1)) == 1


class TestQuery:
    """Where a carrier offers query_sm, a lost receipt does not stay unknown for ever."""

    async def test_a_lost_receipt_is_asked_for(self, node, carriers):
        await node.connect(await carriers(suffix_rules=False, receipt_missing=1.0), query_sm=True)
        mid = (await node.send(validity_seconds=1))["id"]
        message = await node.reaches(mid, "delivered")
        assert message["timeline"][-1]["receipt"]["text"] == "answer to query_sm"

    async def test_a_carrier_that_does_not_offer_it_is_not_asked(self, node, carriers):
        await node.connect(await carriers(suffix_rules=False, receipt_missing=1.0))
        mid = (await node.send(validity_seconds=1))["id"]
        await asyncio.sleep(3)
        assert (await node.get(mid))["status"] == "submitted"
