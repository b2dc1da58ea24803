"""Tables as people save them."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain import sheet
from controlplane.domain.sheet import Dialect, Reader, SheetError, cell, detect

TABLE = "Phone;Name;Text\n+4915112345678;Jürgen;Grüße\n+4915112345679;Zoë;Hi\n"


def read(data: bytes, dialect: Dialect, step: int = 7) -> list[sheet.Row]:
    reader = Reader(dialect)
    rows = [row for at in range(0, len(data), step) for row in reader.feed(data[at : at + step])]
    return rows + reader.close()


class TestDetect:
    """What a table does not say of itself is found out, and what is given is taken."""

    @pytest.mark.parametrize(
        ("encoded", "name"),
        [
            (TABLE.encode(), "utf-8"),
            (TABLE.encode("utf-8-sig"), "utf-8"),
            (TABLE.encode("utf-16"), "utf-16-le"),
            (TABLE.encode("utf-16-le"), "utf-16-le"),
            (TABLE.encode("utf-16-be"), "utf-16-be"),
            (TABLE.encode("latin-1"), "windows-1252"),
        ],
    )
    def test_encodings(self, encoded, name):
        dialect = detect(encoded)
        assert dialect == Dialect(name, ";", header=True)
        rows = read(encoded, dialect, step=3)
        assert [row.cells for row in rows] == [line.split(";") for line in TABLE.splitlines()]
        assert [row.line for row in rows] == [1, 2, 3]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_delimiters(self, delimiter):
        text = delimiter.join(("to", "text")) + "\n" + delimiter.join(("+4915112345678", '"a, b; c|d"')) + "\n"
        assert detect(text.encode()).delimiter == delimiter

    def test_no_header(self):
        assert not detect(b"+4915112345678,hello\n").header
        assert not detect(b"4915112345678,hello\n").header
        assert detect(b"number,text\n+4915112345678,hello\n").header

    def test_given_is_taken(self):
        assert detect(b"a;b,c\n", encoding="latin-1", delimiter=",", header=False) == Dialect("latin-1", ",", False)

    def test_one_column(self):
        assert detect(b"to\n+4915112345678\n") == Dialect("utf-8", ",", True)

    def test_a_character_at_the_end_of_the_sample(self):
        assert detect("to,text\n+4915112345678,ü".encode()[:-1]).encoding == "utf-8"


class TestReader:
    """Every row, with its line, whatever the pieces; a bad one spoils no other."""

    @given(
        rows=st.lists(
            st.lists(
                st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])), min_size=2, max_size=4
            ),
            max_size=6,
        ),
        step=st.integers(1, 50),
    )
    def test_what_csv_writes_is_read(self, rows, step):
        out = io.StringIO()
        csv.writer(out).writerows(rows)
        found = read(out.getvalue().encode(), Dialect(), step)
        assert [row.cells for row in found] == [cells for cells in rows if any(text.strip() for text in cells)]

    def test_lines_are_an_editors(self):
        rows = read(b'a,b\r\n\r\n1,"x\r\ny"\r2,z\n', Dialect())
        assert rows == [(1, ["a", "b"], ""), (3, ["1", "x\ny"], ""), (5, ["2", "z"], "")]

    def test_an_unreadable_row(self):
        rows = read(b'a,b\n1,"x"y\n2,z\n', Dialect())
        assert [(row.line, row.cells) for row in rows] == [(1, ["a", "b"]), (2, []), (3, ["2", "z"])]
        assert "expected after" in rows[1].error

    def test_a_quotation_mark_without_end(self):
        rows = read(b'a,b\n1,"x\n2,z\n3,z\n', Dialect())
        assert [row.line for row in rows if row.error] == [2]
        assert [row.cells for row in rows if not row.error] == [["a", "b"], ["2", "z"], ["3", "z"]]

    def test_it_ends_within_bounds(self):
        """A mark without end in a long table costs one row and a bounded look ahead."""
        reader = Reader(Dialect())
        rows = reader.feed(b'1,"x\n')
        for number in range(0, 20_000, 500):
            rows += reader.feed(b"".join(b"%d,z\n" % (number + n) for n in range(500)))
            assert sum(map(len, reader._lines)) <= sheet.MAX_RECORD + 5_000
        rows += reader.close()
        assert [row.line for row in rows if row.error] == [1]
        assert len(rows) == 20_001

    def test_not_of_the_encoding(self):
        with pytest.raises(SheetError, match="near line 2: octet 0xfc is not utf-8"):
            read(b"a,b\n1,\xfc\n", Dialect())

    def test_a_binary_is_refused(self):
        with pytest.raises(SheetError, match="rows cannot be read"):
            read(b'"a"b\n' * 2_000, Dialect(), step=1000)
        with pytest.raises(SheetError, match="more than 65536 characters"):
            read(b"x" * 70_000, Dialect(), step=10_000)

    def test_too_wide(self):
        (row,) = read(b"x," * 300 + b"x\n", Dialect())
        assert "301 columns" in row.error


class TestCell:
    """What a spreadsheet would run is text."""

    @pytest.mark.parametrize("text", ['=HYPERLINK("x")', "+49151", "-1", "@SUM(A1)", "\tx"])
    def test_formulas(self, text):
        assert cell(text) == "'" + text

    def test_others_stay(self):
        assert [cell(text) for text in ("", "1", "a=b")] == ["", "1", "a=b"]
