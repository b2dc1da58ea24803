"""What a run that was cut has left behind is read from its journal."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from controlplane.ops.journal import Journal, read


def line(entry: str, step: str) -> str:
    return json.dumps({"at": 1.0, "entry": entry, "step": step})


def test_begun_done_owed_settled() -> None:
    lines = [
        line("owed", "balancer"),
        line("begun", "a"),
        line("done", "a"),
        line("begun", "b"),
        line("owed", "node n"),
        line("settled", "node n"),
    ]
    assert read(lines) == Journal(done=("a",), open=("b",), owed=("balancer",))


def test_begun_again_after_a_cut() -> None:
    lines = [line("begun", "a"), line("begun", "a"), line("done", "a")]
    assert read(lines) == Journal(done=("a",))


steps = st.lists(st.tuples(st.sampled_from(["begun", "done", "owed", "settled"]), st.sampled_from("abc")))


@given(steps, st.integers(0, 200))
def test_a_cut_line_says_nothing(found: list[tuple[str, str]], keep: int) -> None:
    """A journal that ends within a line is the journal without that line."""
    text = "".join(line(*one) + "\n" for one in found)
    cut = text[: max(0, len(text) - keep)]
    whole = cut[: cut.rfind("\n") + 1]
    complete = whole if cut == text or cut[len(whole) :] not in text.splitlines() else cut
    assert read(cut.splitlines()) == read(complete.splitlines())


def test_what_is_not_ours_is_passed_over() -> None:
    assert read(["", "null", "[]", '{"entry": "owed"}', "}"]) == Journal()


def test_how_many_steps_it_is_past() -> None:
    """Of the last run alone: one that goes on passes them all again."""
    lines = [line("expected", "3"), line("passed", "a"), line("passed", "b")]
    assert read(lines) == Journal(total=3, passed=2)
    lines += [line("expected", "x"), line("expected", "2"), line("passed", "a"), line("passed", "a")]
    assert read(lines) == Journal(total=2, passed=1)
    assert read([line("passed", "a")]) == Journal()
