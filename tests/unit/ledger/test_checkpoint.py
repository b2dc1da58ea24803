"""Checkpoints are c2sp.org/tlog-checkpoint's, in their one spelling."""

from __future__ import annotations

import contextlib
import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from controlplane.ledger.checkpoint import Checkpoint, CheckpointError, origin_of, parse, parse_size, quarter_of
from controlplane.ledger.note import NoteError

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure

# c2sp.org/tlog-checkpoint
SOFA = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
LINES = hs.text(hs.characters(exclude_characters="\n"), min_size=1, max_size=30)


class TestCheckpoint:
    """What a log signs reads back as the same size and root."""

    def test_published(self):
        checkpoint = parse(SOFA)
        assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
        assert checkpoint.root.hex()[:8] == "0ac5186a"
        assert checkpoint.text == SOFA

    @UNHURRIED
    @given(LINES, hs.integers(0, 2**63 - 1), hs.binary(min_size=32, max_size=32), hs.lists(LINES, max_size=3))
    def test_round_trip(self, origin, size, root, extension):
        checkpoint = Checkpoint(origin, size, root, tuple(extension))
        assert parse(checkpoint.text) == checkpoint

    @pytest.mark.parametrize(
        "text",
        [
            *("", "\n", "a\n", "a\n1\n", SOFA[:-1], SOFA + "\n", "\n" + SOFA, SOFA.replace("\n", "\r\n"), SOFA.replace("\n2", "\n\n2")),
            *(SOFA.replace("20852163", size) for size in ("020852163", "-1", "+1", "1.0", "1e3", " 1", "1 ", "", "x", "٢", "9223372036854775808", "9" * 5000)),
            *(SOFA.replace("CsUY", root) for root in ("", "Cs", "CsU_", "CsUYCsUY", " CsUY")),
            SOFA.replace("q2I=", "q2J="),  # the same bytes for a lenient decoder
            SOFA.replace("q2I=", "q2I"),
        ],
        ids=itertools.count(),
    )  # fmt: skip
    def test_refused(self, text):
        with pytest.raises(CheckpointError):
            parse(text)

    @UNHURRIED
    @given(hs.text(max_size=80) | hs.text("0123456789\nA=", max_size=60))
    def test_nothing_but_a_checkpoint_error(self, text):
        for data in (text, "a\n1\n" + text, SOFA + text):
            with contextlib.suppress(CheckpointError):
                assert parse(data).text == data

    @pytest.mark.parametrize("text", ["0", "1", "10", str(2**63 - 1)])
    def test_sizes(self, text):
        assert parse_size(text) == int(text)


class TestNames:
    """A log's name says whose, where and when."""

    @pytest.mark.parametrize(
        ("day", "quarter"),
        [((2026, 1, 1), "2026q1"), ((2026, 3, 31, 23, 59, 59), "2026q1"), ((2026, 4, 1), "2026q2"), ((2026, 9, 30), "2026q3"), ((2026, 12, 31, 23, 59, 59), "2026q4"),
         ((2027, 1, 1), "2027q1")],
    )  # fmt: skip
    def test_quarters_are_utc(self, day, quarter):
        assert quarter_of(int(datetime(*day, tzinfo=UTC).timestamp()) * 1000 + 999) == quarter

    def test_origin(self):
        assert origin_of("example.com", "fra", "2026q4") == "example.com/ledger/fra/2026q4"
        for bad in ("exam ple.com", "example.com+", "a" * 300):
            with pytest.raises(NoteError):
                origin_of(bad, "fra", "2026q4")
