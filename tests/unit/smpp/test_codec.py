"""The codec: what is written can be read, and any bytes at all raise PduError or FramingError and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as hs

from controlplane.smpp import pdu as p
from controlplane.smpp.receipt_text import parse_receipt

latin = hs.text(hs.characters(min_codepoint=1, max_codepoint=255), max_size=5)
octet = hs.integers(0, 255)
tlvs = hs.none() | hs.dictionaries(hs.integers(0, 0xFFFF), hs.binary(max_size=40), min_size=1, max_size=4)


class TestRoundTrip:
    """decode(encode(x)) == x."""

    @given(latin, latin, octet, octet, hs.binary(max_size=254), tlvs)
    def test_submit_sm(self, source, dest, esm_class, coding, text, extra):
        pdu = p.SubmitSm(
            sequence=9,
            source_addr=source,
            dest_addr=dest,
            esm_class=esm_class,
            data_coding=coding,
            short_message=text,
            tlvs=extra,
        )
        assert p.decode(pdu.encode()) == pdu

    @pytest.mark.parametrize("kind", list(p._CLASSES))
    def test_each_command_with_its_defaults(self, kind):
        pdu = kind(sequence=1)
        again = p.decode(pdu.encode())
        assert type(again) is kind
        assert again.encode() == pdu.encode()

    def test_golden_octets(self):
        pdu = p.SubmitSm(
            sequence=1,
            source_ton=5,
            source_addr="Helio",
            dest_ton=1,
            dest_npi=1,
            dest_addr="4915",
            registered_delivery=1,
            short_message=b"hi",
        )
        header = "0000002f000000040000000000000001"
        body = "00050048656c696f0001013439313500000000000001000000026869"
        assert pdu.encode().hex() == header.replace("2f", f"{16 + len(body) // 2:02x}") + body


class TestHostile:
    """No bytes end the process."""

    @given(hs.binary(max_size=200))
    def test_any_frame(self, data):
        with contextlib.suppress(p.PduError):
            p.decode(data)

    @given(hs.sampled_from([cls.ID for cls in p._CLASSES]), hs.binary(max_size=120))
    def test_any_body_of_any_command(self, command, body):
        frame = (16 + len(body)).to_bytes(4, "big") + command.to_bytes(4, "big") + bytes(4) + b"\x00\x00\x00\x01" + body
        try:
            pdu = p.decode(frame)
        except p.PduError as error:
            assert error.sequence == 1
        else:
            if isinstance(pdu, p.DeliverSm | p.DataSm):
                parse_receipt(pdu)

    @given(hs.lists(hs.binary(max_size=30), max_size=10))
    def test_any_stream(self, chunks):
        framer = p.Framer()
        with contextlib.suppress(p.FramingError):
            for chunk in chunks:
                framer.feed(chunk)

    @given(hs.lists(hs.binary(max_size=40), max_size=6), hs.data())
    def test_framing_does_not_depend_on_how_tcp_cuts(self, bodies, data):
        frames = [(16 + len(body)).to_bytes(4, "big") + bytes(12) + body for body in bodies]
        stream, framer, found = b"".join(frames), p.Framer(), []
        while stream:
            cut = data.draw(hs.integers(1, len(stream)))
            found += framer.feed(stream[:cut])
            stream = stream[cut:]
        assert found == frames
