"""Charts: sound SVG whatever comes in, series told apart by more than colour, gaps as gaps."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from controlplane.console.figures import axis, funnel, seconds
from controlplane.console.svg import bars, lines, sparkline, topology

HOSTILE = "<script>alert(1)</script>\"'&"


def _tree(markup):
    """Raises where it is no XML."""
    return ET.fromstring(str(markup))


class TestSound:
    """Names are texts, never markup; nothing at all is drawn as nothing."""

    @pytest.mark.parametrize(
        "markup",
        [
            lines({HOSTILE: [1.0, None, 3.0]}),
            bars([(HOSTILE, 3.0, HOSTILE)]),
            topology([(HOSTILE, [(HOSTILE, HOSTILE, "bad")])]),
        ],
    )
    def test_hostile_names(self, markup):
        tree = _tree(markup)
        assert not [each for each in tree.iter() if each.tag == "script"]
        assert "<script" not in markup

    @pytest.mark.parametrize(
        "markup", [lines({}), lines({"a": []}), bars([]), sparkline([]), sparkline([None]), topology([])]
    )
    def test_nothing(self, markup):
        assert _tree(markup).get("aria-hidden") == "true"

    @pytest.mark.parametrize("values", [[0.0], [5.0], [0.0, 0.0], [1e9, 2e9]])
    def test_extremes_stay_inside(self, values):
        for number in re.findall(r"[ML][\d.]+ ([\d.]+)", str(lines({"a": values}))):
            assert 0.0 <= float(number) <= 170.0


class TestLines:
    """A gap is a gap; each series has a dash and a name of its own."""

    def test_gaps(self):
        path = next(each.get("d") for each in _tree(sparkline([1.0, 2.0, None, 1.0, 2.0])))
        assert path.count("M") == 2

    def test_dashes_and_labels(self):
        tree = _tree(lines({"accepted": [1.0, 2.0], "delivered": [1.0, 2.0], "not delivered": [0.0, 0.0]}))
        dashes = [each.get("stroke-dasharray") for each in tree if each.get("class", "").startswith("line")][::2]
        assert len(set(dashes)) == 3
        labels = [each for each in tree if each.get("class") == "label"]
        assert [label.text for label in labels] == ["accepted", "delivered", "not delivered"]
        heights = sorted(float(label.get("y")) for label in labels)
        assert all(b - a >= 15 for a, b in pairwise(heights))


class TestTopology:
    """What is wrong is told by its border as well as its colour."""

    def test_borders(self):
        boxes = [
            each
            for each in _tree(topology([("Nodes", [("a", "running", "good"), ("b", "gone", "bad")])]))
            if "box" in each.get("class", "").split()
        ]
        assert [box.get("stroke-dasharray") for box in boxes] == [None, "5 3"]


class TestFigures:
    """Numbers in words."""

    def test_every_time_has_a_point(self):
        found = {"since": "2030-01-01T00:00:00.000Z", "until": "2030-01-01T00:03:00.000Z", "step_seconds": 60}
        points = axis(found, [{"at": "2030-01-01T00:01:00.000Z", "accepted": 5}])
        assert [point.get("accepted") for _, point in points] == [None, 5, None]

    @pytest.mark.parametrize(("value", "words"), [(None, "–"), (0.0421, "42 ms"), (3.26, "3.3 s"), (600, "10 min")])
    def test_seconds(self, value, words):
        assert seconds(value) == words

    def test_a_funnel_of_nothing_has_no_picture_to_show(self):
        names = ("accepted", "submitted", "delivered", "undelivered", "failed", "expired", "cancelled")
        chart = funnel(dict.fromkeys(names, 0))
        assert (chart.rows, chart.summary) == (
            (),
            "Of 0 accepted messages 0 were sent and 0 delivered; 0 came to another end.",
        )
