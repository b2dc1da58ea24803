"""Text on the air: GSM 03.38 7-bit, UCS-2, how many parts a body makes, and the bytes of each part.

A part holds 160 septets or 70 UTF-16 units alone, 153 or 67 with an 8-bit concatenation header, 152 or 66 with a 16-bit one. GSM-7 travels unpacked,
one septet an octet, as SMPP carriers expect with data_coding 0. An escape pair (`€` is ESC e) and a surrogate pair are never cut.
Sources: 3GPP TS 23.038 section 6.2.1, TS 23.040 section 9.2.3.24, SMPP 3.4 section 5.2.19.
"""

from __future__ import annotations

import re
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

__all__ = [
    "Analysis",
    "Concat",
    "Encoding",
    "LongMode",
    "Offence",
    "Segment",
    "analyse",
    "decode",
    "decode_gsm7",
    "encode_gsm7",
    "offences",
    "parse_udh",
    "room",
    "split",
]

_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION = {
    "\f": 0x0A,
    "^": 0x14,
    "{": 0x28,
    "}": 0x29,
    "\\": 0x2F,
    "[": 0x3C,
    "~": 0x3D,
    "]": 0x3E,
    "|": 0x40,
    "€": 0x65,
}
_ESC = 0x1B

_ENCODE = {char: chr(code) for code, char in enumerate(_BASIC) if code != _ESC}
_ENCODE |= {char: f"\x1b{chr(code)}" for char, code in _EXTENSION.items()}
_TABLE = str.maketrans(_ENCODE)
_DECODE = dict(enumerate(_BASIC))
_DECODE_ESC = {code: char for char, code in _EXTENSION.items()}
_NOT_GSM7 = re.compile("[^" + re.escape("".join(_ENCODE)) + "]")
_EXTENDED = re.compile("[" + re.escape("".join(_EXTENSION)) + "]")

_SMART = {
    "‘": "'", "’": "'", "‚": ",", "‛": "'", "′": "'", "“": '"', "”": '"', "„": '"', "‟": '"', "″": '"', "«": '"', "»": '"', "‹": "'", "›": "'",
    "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "―": "-", "−": "-", "…": "...", "•": "-", "·": ".",
    "\u00a0": " ", "\u2002": " ", "\u2003": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\u200e": "", "\u200f": "", "\ufeff": "",
    "\u00ad": "", "\t": " ",
}  # fmt: skip


class Encoding(StrEnum):
    """How a body travels."""

    GSM7 = "gsm7"
    UCS2 = "ucs2"


class LongMode(StrEnum):
    """How the parts of a long message are told to belong together."""

    UDH8 = "udh8"
    UDH16 = "udh16"
    SAR = "sar"
    PAYLOAD = "payload"


_SINGLE = {Encoding.GSM7: 160, Encoding.UCS2: 70}
_MULTI = {
    Encoding.GSM7: {LongMode.UDH8: 153, LongMode.UDH16: 152, LongMode.SAR: 153},
    Encoding.UCS2: {LongMode.UDH8: 67, LongMode.UDH16: 66, LongMode.SAR: 67},
}
MAX_PARTS = 255


class Analysis(NamedTuple):
    """What a body will be on the air."""

    body: str
    """As it will be sent: after smart replacement, where that was asked for."""
    encoding: Encoding
    parts: int
    units: int
    """Septets (gsm7) or UTF-16 units (ucs2)."""
    per_part: int
    """Units that fit in each of its parts."""
    replaced: int = 0
    """Characters that smart encoding replaced."""


class Offence(NamedTuple):
    """A character that GSM 7-bit does not have."""

    position: int
    """In the body, from 0, in characters."""
    character: str
    suggestion: str | None
    """What smart encoding writes in its place ("" leaves it out); None: nothing."""


class Segment(NamedTuple):
    """The bytes of one submit_sm."""

    data: bytes
    """short_message, with its user data header; or message_payload where `payload`."""
    esm_class: int
    data_coding: int
    sar: tuple[int, int, int] | None = None
    """(reference, total, number from 1) for the sar_* TLVs."""
    payload: bool = False


class Concat(NamedTuple):
    """A concatenation header."""

    ref: int
    total: int
    number: int


def analyse(body: str, *, smart: bool = False) -> Analysis:
    """Encoding and number of parts (8-bit references). `smart` replaces typographic characters that alone would force UCS-2."""
    replaced = 0
    offending = _NOT_GSM7.search(body)
    if offending is not None and smart:
        translated = "".join(_SMART.get(char, char) for char in body)
        if _NOT_GSM7.search(translated) is None:
            replaced = sum(char in _SMART for char in body)
            body, offending = translated, None
    if offending is None:
        units = len(body) + len(_EXTENDED.findall(body))
        encoding = Encoding.GSM7
    else:
        units = len(body.encode("utf-16-be", "surrogatepass")) // 2
        encoding = Encoding.UCS2
    if units <= _SINGLE[encoding]:
        return Analysis(body, encoding, 1, units, _SINGLE[encoding], replaced)
    per_part = _MULTI[encoding][LongMode.UDH8]
    return Analysis(body, encoding, len(_cuts(_units(body, encoding), encoding, per_part)), units, per_part, replaced)


def offences(body: str, limit: int) -> list[Offence]:
    """The first characters for which the body cannot travel in GSM 7-bit."""
    found = islice(_NOT_GSM7.finditer(body), limit)
    return [Offence(match.start(), match.group(), _SMART.get(match.group())) for match in found]


def room(analysis: Analysis) -> int:
    """Units that fit in behind the body before it takes another part."""
    if analysis.parts == 1:
        return analysis.per_part - analysis.units
    last = _cuts(_units(analysis.body, analysis.encoding), analysis.encoding, analysis.per_part)[-1]
    return analysis.per_part - len(last) // (1 if analysis.encoding is Encoding.GSM7 else 2)


def encode_gsm7(text: str) -> bytes:
    """Unpacked septets. ValueError names the first character that has none."""
    bad = _NOT_GSM7.search(text)
    if bad is not None:
        raise ValueError(f"{bad.group()!r} at {bad.start()} is not in the GSM 7-bit alphabet")
    return text.translate(_TABLE).encode("ascii")


def decode_gsm7(data: bytes) -> str:
    """Text of unpacked septets. Never raises: an unknown escape is the character it stands beside, as TS 23.038 asks; others become U+FFFD."""
    out: list[str] = []
    escaped = False
    for octet in data:
        if escaped:
            out.append(_DECODE_ESC.get(octet) or _DECODE.get(octet, "\ufffd"))
            escaped = False
        elif octet == _ESC:
            escaped = True
        else:
            out.append(_DECODE.get(octet, "\ufffd"))
    return "".join(out)


def decode(data: bytes, data_coding: int, *, default_alphabet: str = "gsm7") -> str:
    """The text of a received short_message (its header removed). Never raises; what has no character becomes U+FFFD."""
    group = data_coding >> 4
    if data_coding in (1, 3) or (data_coding == 0 and default_alphabet == "latin1"):
        return data.decode("ascii" if data_coding == 1 else "latin-1", "replace")
    if data_coding == 8 or (group in (0x4, 0x5) and data_coding & 0x0C == 0x08) or group == 0xE:
        return data.decode("utf-16-be", "replace")
    if data_coding in (2, 4) or (group == 0xF and data_coding & 0x04):
        return data.decode("latin-1")
    return decode_gsm7(data)


def _units(body: str, encoding: Encoding) -> bytes:
    if encoding is Encoding.GSM7:
        return encode_gsm7(body)
    return body.encode("utf-16-be", "surrogatepass")


def _cuts(data: bytes, encoding: Encoding, per_part: int) -> list[bytes]:
    """Pieces of at most `per_part` units; no escape pair and no surrogate pair is cut."""
    width = 1 if encoding is Encoding.GSM7 else 2
    pieces: list[bytes] = []
    start = 0
    while start < len(data):
        end = min(start + per_part * width, len(data))
        if end < len(data):
            if width == 1 and _dangling_escape(data, start, end):
                end -= 1
            elif width == 2 and 0xD8 <= data[end - 2] <= 0xDB and 0xDC <= data[end] <= 0xDF:
                end -= 2
        pieces.append(data[start:end])
        start = end
    return pieces or [b""]


def _dangling_escape(data: bytes, start: int, end: int) -> bool:
    return end > start and data[end - 1] == _ESC


def split(
    body: str,
    encoding: Encoding,
    *,
    mode: LongMode = LongMode.UDH8,
    reference: int = 0,
    default_alphabet: str = "gsm7",
) -> list[Segment]:
    """The segments of a body. ValueError when it needs more than 255 parts, or cannot be encoded so."""
    data = _units(body, encoding)
    coding = 8 if encoding is Encoding.UCS2 else 0
    width = 2 if encoding is Encoding.UCS2 else 1
    single = len(data) <= _SINGLE[encoding] * width
    if mode is LongMode.PAYLOAD and not single:
        text, coding = _latin1(data, body, coding, default_alphabet)
        return [Segment(text, 0, coding, payload=True)]
    if single:
        text, coding = _latin1(data, body, coding, default_alphabet)
        return [Segment(text, 0, coding)]
    pieces = _cuts(data, encoding, _MULTI[encoding][mode])
    if len(pieces) > MAX_PARTS:
        raise ValueError(f"needs {len(pieces)} parts; a concatenated message has at most {MAX_PARTS}")
    total = len(pieces)
    segments = []
    for number, piece in enumerate(pieces, 1):
        text, used = piece, coding
        if encoding is Encoding.GSM7 and default_alphabet == "latin1":
            text, used = _latin1(piece, decode_gsm7(piece), coding, default_alphabet)
        if mode is LongMode.SAR:
            segments.append(Segment(text, 0, used, sar=(reference & 0xFFFF, total, number)))
        else:
            segments.append(Segment(_udh(mode, reference, total, number) + text, 0x40, used))
    return segments


def _latin1(data: bytes, body: str, coding: int, default_alphabet: str) -> tuple[bytes, int]:
    """GSM-7 text for a carrier whose data_coding 0 is Latin-1: Latin-1 (3) where that has it all, else GSM-7 said outright (0xF1: class 1)."""
    if coding != 0 or default_alphabet != "latin1":
        return data, coding
    try:
        return body.encode("latin-1"), 3
    except UnicodeEncodeError:
        return data, 0xF1


def _udh(mode: LongMode, reference: int, total: int, number: int) -> bytes:
    if mode is LongMode.UDH16:
        return bytes((6, 8, 4, reference >> 8 & 0xFF, reference & 0xFF, total, number))
    return bytes((5, 0, 3, reference & 0xFF, total, number))


def parse_udh(data: bytes) -> tuple[Concat | None, bytes]:
    """(concatenation, text) of a short_message whose esm_class has UDHI set. A malformed header is left in the text."""
    if not data or data[0] + 1 > len(data):
        return None, data
    header, text = data[1 : data[0] + 1], data[data[0] + 1 :]
    position, concat = 0, None
    while position + 2 <= len(header):
        kind, size = header[position], header[position + 1]
        value = header[position + 2 : position + 2 + size]
        if len(value) < size:
            return None, data
        if kind == 0 and size == 3:
            concat = Concat(value[0], value[1], value[2])
        elif kind == 8 and size == 4:
            concat = Concat(value[0] << 8 | value[1], value[2], value[3])
        position += 2 + size
    if concat is not None and not 1 <= concat.number <= concat.total:
        concat = None
    return concat, text
