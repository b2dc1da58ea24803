"""Text on the air: what is shown is what is sent, and nothing is cut in two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as hs

from controlplane.domain import text as t
from controlplane.domain.concat import StoredPart, assemble

GSM7 = "".join(t._ENCODE)
gsm7_text = hs.text(hs.sampled_from(GSM7), max_size=700)
any_text = hs.text(hs.characters(exclude_categories=["Cs"]), max_size=400)


def joined(segments: list[t.Segment], encoding: t.Encoding) -> str:
    octets = b"".join(t.parse_udh(s.data)[1] if s.esm_class & 0x40 else s.data for s in segments)
    return t.decode(octets, 8 if encoding is t.Encoding.UCS2 else 0)


class TestEncoding:
    """GSM-7 where it can be, UCS-2 where it must."""

    @given(gsm7_text)
    def test_gsm7_round_trip(self, body):
        assert t.decode_gsm7(t.encode_gsm7(body)) == body

    @given(hs.binary(max_size=200), hs.integers(0, 255))
    def test_anything_received_decodes(self, data, coding):
        assert isinstance(t.decode(data, coding), str)

    def test_row_27_golden_octets(self):
        assert t.encode_gsm7("@€ñ{") == bytes((0x00, 0x1B, 0x65, 0x7D, 0x1B, 0x28))
        assert t.decode(b"\x00", 0) == "@"
        assert t.decode(b"\xe9", 3) == "é"
        assert t.decode(b"\xe9", 0, default_alphabet="latin1") == "é"
        (segment,) = t.split("é@", t.Encoding.GSM7, default_alphabet="latin1")
        assert (segment.data, segment.data_coding) == (b"\xe9@", 3)
        (segment,) = t.split("€", t.Encoding.GSM7, default_alphabet="latin1")
        assert segment.data_coding == 0xF1

    def test_smart_encoding_saves_parts_and_changes_no_meaning(self):
        plain, smart = t.analyse("“It’s – fine…”"), t.analyse("“It’s – fine…”", smart=True)
        assert plain.encoding is t.Encoding.UCS2
        assert (smart.encoding, smart.body) == (t.Encoding.GSM7, '"It\'s - fine..."')
        assert t.analyse("“日本”", smart=True).body == "“日本”"


class TestParts:
    """160/153 and 70/67; escape and surrogate pairs stay whole."""

    @pytest.mark.parametrize(
        ("body", "parts"),
        [
            ("a" * 160, 1),
            ("a" * 161, 2),
            ("a" * 306, 2),
            ("a" * 307, 3),
            ("€" * 80, 1),
            ("€" * 81, 2),
            ("ж" * 70, 1),
            ("ж" * 71, 2),
        ],
    )
    def test_limits(self, body, parts):
        assert t.analyse(body).parts == parts

    @given(gsm7_text | any_text)
    def test_shown_is_sent(self, body):
        analysis = t.analyse(body)
        assert len(t.split(body, analysis.encoding)) == analysis.parts

    @given(gsm7_text | any_text, hs.sampled_from([t.LongMode.UDH8, t.LongMode.UDH16, t.LongMode.SAR]))
    def test_row_18_every_mode_rejoins(self, body, mode):
        analysis = t.analyse(body)
        segments = t.split(body, analysis.encoding, mode=mode, reference=0x1234)
        assert joined(segments, analysis.encoding) == body
        for number, segment in enumerate(segments, 1):
            assert len(segment.data) <= (160 if analysis.encoding is t.Encoding.GSM7 else 140)
            if len(segments) > 1 and mode is t.LongMode.SAR:
                assert segment.sar == (0x1234, len(segments), number)
            elif len(segments) > 1:
                concat, text = t.parse_udh(segment.data)
                assert concat == t.Concat(0x1234 if mode is t.LongMode.UDH16 else 0x34, len(segments), number)
                assert not (analysis.encoding is t.Encoding.GSM7 and text.endswith(b"\x1b"))

    def test_row_18_payload_is_one_segment(self):
        (segment,) = t.split("x" * 500, t.Encoding.GSM7, mode=t.LongMode.PAYLOAD)
        assert segment.payload
        assert len(segment.data) == 500

    def test_row_18_pairs_are_never_cut(self):
        segments = t.split("a" * 152 + "€" * 10, t.Encoding.GSM7)
        assert not any(t.parse_udh(segment.data)[1].endswith(b"\x1b") for segment in segments)
        segments = t.split("ж" * 66 + "😀" * 10, t.Encoding.UCS2)
        for segment in segments:
            t.parse_udh(segment.data)[1].decode("utf-16-be", "strict")


class TestAssembly:
    """Row 19: parts in any order, repeated, more than nine, incomplete."""

    @given(hs.permutations([StoredPart(n, 12, f"<{n}>") for n in range(1, 13)]))
    def test_row_19_any_order(self, parts):
        assert assemble([*parts, parts[0]]).body == "".join(f"<{n}>" for n in range(1, 13))

    def test_row_19_a_missing_part_is_marked(self):
        whole = assemble([StoredPart(1, 3, "a"), StoredPart(3, 3, "c")])
        assert (whole.body, whole.complete) == ("a…c", False)

    @given(hs.binary(max_size=40))
    def test_any_header(self, data):
        concat, _ = t.parse_udh(data)
        assert concat is None or 1 <= concat.number <= concat.total
