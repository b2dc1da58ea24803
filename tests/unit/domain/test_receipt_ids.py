"""Joining receipts whose ids look different from their responses' (row 12)."""

from __future__ import annotations

import pytest

from controlplane.domain.receipt import FormatLearner, receipt_keys, submit_key


@pytest.mark.parametrize(
    ("response", "receipt"),
    [("ABC123", "abc123"), ("000123", "123"), ("1F", "31"), ("31", "1F"), ("0A1B2C", "662316"), ("A-b_9", "a-B_9")],
)
def test_row_12_six_forms(response, receipt):
    assert submit_key("c", response) in receipt_keys("c", receipt, "auto")


def test_row_12_ids_of_other_connectors_never_match():
    assert submit_key("c", "1") not in receipt_keys("d", "1", "auto")


def test_row_12_a_fixed_format_tries_nothing_else():
    assert tuple(receipt_keys("c", "31", "hex")) == (submit_key("c", "1f"),)


def test_row_12_the_format_is_learned_and_excludes_nothing():
    learner = FormatLearner()
    for number in range(100, 103):
        learner.observe("c", str(number), submit_key("c", f"{number:x}"))
    assert learner.order[0] == "hex"
    assert set(learner.order) == {"as_is", "hex", "dec"}
    keys = tuple(receipt_keys("c", "200", "auto", learner.order))
    assert keys[0] == submit_key("c", "c8")
    assert submit_key("c", "200") in keys
