"""What the learner is told of messages."""

from __future__ import annotations

import pytest

from controlplane.clock import SystemClock
from controlplane.dispatch.learning import Learning
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message
from controlplane.routing import Learner

NOW = 1_800_000_000_000


class Told(Learner):
    """A learner that also writes down what it is told."""

    def __init__(self) -> None:
        super().__init__(node="fra/node-1")
        self.calls: list[tuple] = []

    def submitted(self, mid, route, request, now_ms, *, connector=""):
        self.calls.append(("submitted", mid, route))
        super().submitted(mid, route, request, now_ms, connector=connector)

    def refused(self, route, request, now_ms, *, permanent=False, connector=""):
        self.calls.append(("refused", route, permanent))
        super().refused(route, request, now_ms, permanent=permanent, connector=connector)

    def receipt(self, mid, delivered, now_ms):
        self.calls.append(("receipt", mid, delivered))
        super().receipt(mid, delivered, now_ms)


class Story:
    """Events of one message, told one by one."""

    def __init__(self, learning: Learning, mid: str = "m", *, node: str = "node-1", parts: int = 1) -> None:
        self.learning, self.message = learning, Message(mid=mid)
        data = {"to": "+4915112345678", "class": "otp", "body": "hi", "parts": parts, "expires_at": NOW + 10**8}
        self.message.apply(Event(mid, 0, "t", Kind.ACCEPTED, NOW, data, dc="fra", node=node, epoch=1))

    def tell(self, kind: Kind, data=None, *, at=NOW, reason=None, route="r", own=True) -> None:
        event = Event(self.message.mid, self.message.next_k, "t", kind, at, data or {}, route=route, reason=reason)
        self.message.apply(event)
        self.learning.on_event(self.message, event, own=own)

    def submitted(self, part: int = 1, **more) -> None:
        self.tell(Kind.SUBMITTED, {"connector": "c", "attempt": 1, "part_ids": [[part, str(part)]]}, **more)

    def receipt(self, kind: Kind, part: int = 1, **data) -> None:
        self.tell(kind, {"part": part, "receipt": {}, **data})


@pytest.fixture
def learner() -> Told:
    return Told()


@pytest.fixture
def learning(learner: Told) -> Learning:
    return Learning(learner, None, SystemClock(), dc="fra", node="node-1")


def test_a_message_is_told_once_when_all_its_parts_are_out(learning, learner):
    story = Story(learning, parts=2)
    story.submitted(1)
    story.submitted(2)
    story.receipt(Kind.DELIVERED, 1)
    story.receipt(Kind.DELIVERED, 2)
    assert learner.calls == [("submitted", "m", "r"), ("receipt", "m", True)]


def test_undelivered_counts_where_the_message_goes_on(learning, learner):
    story = Story(learning)
    story.submitted()
    story.receipt(Kind.UNDELIVERED, tried=["r"])
    story.submitted(route="s")
    story.receipt(Kind.DELIVERED)
    assert [call[0] for call in learner.calls] == ["submitted", "receipt", "submitted", "receipt"]
    assert [call[2] for call in learner.calls] == ["r", False, "s", True]


@pytest.mark.parametrize(
    ("kind", "data", "reason", "told"),
    [
        (Kind.REROUTED, {"command_status": 0x45, "tried": ["r"]}, "temporary", ("refused", "r", False)),
        (Kind.FAILED, {"command_status": 0x0B}, "rejected", ("refused", "r", True)),
        (Kind.UNKNOWN, {"parts": [1]}, "timeout", ("refused", "r", False)),
        (Kind.REROUTED, {"parts": [1]}, "resend", None),
    ],
)
def test_refusals(learning, learner, kind, data, reason, told):
    story = Story(learning)
    story.message.route = "r"
    story.tell(kind, {"connector": "c", "attempt": 1, **data}, reason=reason)
    assert learner.calls == ([told] if told else [])


def test_of_many_in_a_second_some_are_followed(learning, learner):
    """And receipts of the others are not taken for another node's."""
    stories = [Story(learning, f"m{number}") for number in range(300)]
    for story in stories:
        story.submitted()
    assert len(learner.calls) == 100
    for story in stories:
        story.receipt(Kind.DELIVERED)
    assert [call[0] for call in learner.calls].count("receipt") == 100
    Story(learning, "later").submitted(at=NOW + 1_000)
    assert learner.calls[-1] == ("submitted", "later", "r")


def test_a_receipt_of_another_nodes_message_is_passed_on(learning, learner):
    story = Story(learning, node="node-2")
    story.submitted(own=False)
    story.receipt(Kind.DELIVERED)
    assert learner.calls == [("receipt", "m", True)]
    owner = Learner(node="fra/node-2")
    mine = Story(Learning(owner, None, SystemClock(), dc="fra", node="node-2"), node="node-2")
    mine.submitted()
    owner.merge("fra/node-1", learner.export(NOW), NOW + 1_000)
    owner.tick(NOW + 1_000)
    (known,) = owner.routes(NOW + 1_000).values()
    assert (round(known["tries"], 2), known["in_time"]) == (1.0, 1.0)


def test_what_others_committed_is_not_counted_here(learning, learner):
    story = Story(learning)
    story.submitted(own=False)
    assert learner.calls == []
