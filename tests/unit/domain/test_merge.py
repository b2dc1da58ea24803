"""From rows to messages."""

from __future__ import annotations

import pytest

from controlplane.domain.merge import Mapping, Merge, guess

HEADER = ["Phone", "Name", "Sum {EUR}", "id"]
CELLS = ["+4915112345678", " Ada ", "12", "A-1"]


class TestMerge:
    """Each row becomes the message that the mapping says, and a mapping that does not fit is refused before any row."""

    def test_a_row(self):
        mapping = Mapping(
            columns={"to": "phone", "reference": "4"}, body="Hi {name}, {{{3}}} left", values={"class": "marketing"}
        )
        assert Merge(mapping, HEADER, 4).fields(CELLS) == {
            "to": "+4915112345678", "reference": "A-1", "body": "Hi Ada, {12} left", "class": "marketing",
        }  # fmt: skip

    def test_a_column_before_a_value(self):
        mapping = Mapping(columns={"to": "1", "body": "2", "from": "3"}, values={"from": "ACME"})
        merge = Merge(mapping, [], 3)
        assert merge.fields(["+49", "x", "OTHER"])["from"] == "OTHER"
        assert merge.fields(["+49", " x "]) == {"to": "+49", "body": " x ", "from": "ACME"}

    def test_values_are_not_templates(self):
        mapping = Mapping(columns={"to": "phone"}, body="{name}")
        assert Merge(mapping, HEADER, 4).fields(["+49", "{id}{{"])["body"] == "{id}{{"

    @pytest.mark.parametrize(
        ("mapping", "error"),
        [
            (Mapping(body="x"), "columns/to: say which"),
            (Mapping(columns={"to": "Fone"}, body="x"), "columns/to: 'Fone' is no column; there are Phone"),
            (Mapping(columns={"to": "9"}, body="x"), "numbers 1 to 4"),
            (Mapping(columns={"to": "1"}), "body: give a text"),
            (Mapping(columns={"to": "1"}, body="Hi {Nme}"), "body: 'Nme' is no column"),
            (Mapping(columns={"to": "1"}, body="Hi {Name"), "body: has a { without its partner at 3"),
            (Mapping(columns={"to": "1", "dry_run": "2"}, body="x"), "columns/dry_run: is no field"),
            (Mapping(columns={"to": "1"}, values={"x": "2"}, body="x"), "values/x: is no field"),
        ],
    )
    def test_what_does_not_fit(self, mapping, error):
        with pytest.raises(ValueError, match=error):
            Merge(mapping, HEADER, 4)

    def test_guess(self):
        assert guess(["Mobile", "Text", "Id", "Country"]).columns == {"to": "Mobile", "body": "Text", "reference": "Id"}
        assert guess(["a", "b"]).columns == {}
