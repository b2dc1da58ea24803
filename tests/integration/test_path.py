"""The whole path of a message on real parts: HTTP, MongoDB, SMPP, receipt."""

from __future__ import annotations


class TestPath:
    """What is accepted reaches its end, and the timeline tells how."""

    async def test_delivered(self, node, carriers):
        await node.connect(await carriers())
        answer = await node.send()
        message = await node.reaches(answer["id"], "delivered")
        assert [event["kind"] for event in message["timeline"]] == ["accepted", "submitted", "delivered"]

    async def test_each_suffix_has_its_outcome(self, node, carriers):
        await node.connect(await carriers())
        for suffix, status in (
            ("0002", "undelivered"),
            ("0003", "expired"),
            ("0004", "failed"),
            ("0007", "undelivered"),
        ):
            answer = await node.send(to=f"+491511234{suffix}")
            message = await node.reaches(answer["id"], status)
            assert message["status"] == status

    async def test_long_message_has_parts(self, node, carriers):
        await node.connect(await carriers())
        answer = await node.send(body="x" * 400)
        assert answer["parts"] == 3
        message = await node.reaches(answer["id"], "delivered")
        assert [part["state"] for part in message["part_states"]] == ["delivered"] * 3
