"""The quorum guard: the planner and the operations ask the same rules, with what is declared and with what lives."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.plan import plan
from infra.quorum import Voter, has_majority, live_voters, majority, node_refusal, refusals
from tests.unit.infra.sample import sample_region

FAST = settings(max_examples=200, deadline=None)


def member(number: int, *, votes: int = 1, state: str = "SECONDARY", answers: bool = True) -> dict[str, Any]:
    """As `heliograph cluster status` describes one."""
    healthy = state in ("PRIMARY", "SECONDARY")
    return {
        "host": f"h{number}:1",
        "votes": votes,
        "state": state,
        "healthy": healthy,
        "answers": answers,
        "why": "" if answers else "connection refused",
    }


def described(*members: dict[str, Any]) -> dict[str, Any]:
    return {"set": "fra-a", "primary": "h1:1", "members": list(members)}


members = st.lists(
    st.builds(
        member,
        st.integers(1, 9),
        votes=st.sampled_from([0, 1, 1, 1]),
        state=st.sampled_from(["PRIMARY", "SECONDARY", "SECONDARY", "RECOVERING", "DOWN"]),
        answers=st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=7,
    unique_by=lambda one: one["host"],
)


@FAST
@given(members, st.sets(st.integers(1, 9).map(lambda n: f"h{n}:1"), max_size=4))
def test_what_is_not_refused_leaves_a_majority(found: list[dict[str, Any]], stopped: set[str]) -> None:
    one = described(*found)
    votes = sum(each["votes"] for each in found)
    left = sum(each["votes"] for each in found if each["healthy"] and each["answers"] and each["host"] not in stopped)
    touched = bool(stopped & {each["host"] for each in found})
    assert bool(refusals([one], stopped)) == (touched and votes != 1 and left * 2 <= votes)
    assert has_majority(live_voters(one), stopped) == (left * 2 > votes)


def test_the_planner_asks_the_same() -> None:
    topology = plan(sample_region())
    for one in topology.sets:
        assert one.majority == majority(len(one.members)) == 2
        for host in ("fra-1", "fra-2", "fra-3"):
            assert one.survives({host}) == has_majority([Voter(m.host) for m in one.members], {host})
        assert not one.survives({"fra-1", "fra-2"})


def test_a_refusal_says_who_is_missing() -> None:
    one = described(member(1, state="PRIMARY"), member(2), member(3, state="DOWN", answers=False))
    [said] = refusals([one], ["h2:1"])
    assert said == (
        "fra-a: without h2:1 1 of 3 votes are left, no majority (h3:1 is connection refused); bring the others back first"
    )
    assert refusals([one], ["h3:1"]) == []  # it is down already: stopping it changes nothing
    assert refusals([one], ["elsewhere:1"]) == []


def test_a_member_without_a_vote_may_always_go() -> None:
    one = described(member(1, state="PRIMARY"), member(2), member(3), member(4, votes=0))
    assert refusals([one], ["h4:1"]) == []
    assert refusals([one], ["h1:1", "h4:1"]) == []
    assert refusals([one], ["h1:1", "h2:1"])


def test_a_set_of_one_is_its_owners_choice() -> None:
    assert refusals([described(member(1, state="PRIMARY"))], ["h1:1"]) == []


def test_nodes() -> None:
    ready = {"fra-1-1": True, "fra-2-1": True, "fra-3-1": False}
    assert node_refusal(ready, ["fra-1-1"]) == ""
    assert "fra-1-1, fra-2-1" in node_refusal(ready, ["fra-2-1", "fra-1-1"])
    assert node_refusal({"only": True}, ["only"]) == ""
    assert node_refusal(ready, []) == ""
