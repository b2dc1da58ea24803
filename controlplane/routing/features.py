"""What of a message the content model sees: hashes of features, never text. The hash is fixed, so nodes and restarts agree.

Some features stand alone, most are crossed with the route. Of the text there is a template (URLs, digits and case taken away), the three smallest
hashes of its character 3-grams (MinHash, Broder 1997: similar templates share some), whether it has a URL, its script or language.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.numbers import Numbering, numbering
from controlplane.routing.router import RouteRequest
from controlplane.routing.tuning import HOUR

__all__ = [
    "BUCKETS",
    "WIDTH",
    "Content",
    "Contents",
    "TextFeatures",
    "buckets",
    "fixed_hash",
    "normalise",
    "text_features",
]

BUCKETS = 1 << 14
_BITS = 14
_ALONE = 3
_CROSSED = 13
WIDTH = _ALONE + _CROSSED
"""Features of one (message, route)."""

_URL = re.compile(r"(?:https?://|www\.)\S+|\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}/\S*", re.IGNORECASE)
_NUMBER = re.compile(r"[\d][\d.,:\s-]*")
_GRAMS = 3
_SCRIPTS = (
    "LATIN",
    "CYRILLIC",
    "GREEK",
    "ARABIC",
    "HEBREW",
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "DEVANAGARI",
    "THAI",
)
_WORDS = {
    "en": {"the", "your", "is", "you", "for", "and", "to", "code"},
    "de": {"der", "die", "ihr", "ist", "und", "sie", "für", "nicht"},
    "fr": {"le", "la", "votre", "est", "vous", "pour", "les", "et"},
    "es": {"el", "su", "es", "para", "los", "tu", "que", "código"},
    "it": {"il", "di", "è", "per", "tuo", "con", "che", "codice"},
    "pt": {"o", "seu", "é", "para", "não", "com", "uma", "você"},
    "nl": {"de", "het", "uw", "een", "voor", "je", "niet", "van"},
    "pl": {"twój", "jest", "kod", "na", "się", "do", "nie", "dla"},
    "tr": {"ve", "bir", "için", "kodunuz", "ile", "bu", "sizin", "doğrulama"},
}
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xC2B2AE3D27D4EB4F)
_SHIFT = np.uint64(64 - _BITS)


def fixed_hash(text: str) -> int:
    """64 bits of a text, the same in each process: two CRC-32, mixed. Not for secrets or against collisions on purpose."""
    data = text.encode()
    first = zlib.crc32(data)
    return ((first << 32) | zlib.crc32(data, first ^ 0x5BD1E995)) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF


class TextFeatures(NamedTuple):
    """What is kept of a text."""

    template: int
    """Hash of the normalised text; 0 without a text."""
    grams: tuple[int, ...]
    url: bool
    language: str
    """en, de … for Latin text with telling words; else the script; "" without letters."""


_EMPTY = TextFeatures(0, (0,) * _GRAMS, False, "")


def text_features(body: str) -> TextFeatures:
    """Features of a text."""
    return _analyse(normalise(body)) if body else _EMPTY


def normalise(body: str) -> str:
    """A text's template: without digits and case, \\x01 for each URL."""
    plain = body.lower()
    # Without either there is no URL, and to look for one costs more than all else here.
    if "/" in plain or "www." in plain:
        plain = _URL.sub("\x01", plain)
    return _NUMBER.sub("0", plain)


def _analyse(normal: str) -> TextFeatures:
    hashes = sorted({fixed_hash(normal[i : i + 3]) for i in range(len(normal) - 2)})[:_GRAMS]
    return TextFeatures(
        fixed_hash(normal), (*hashes, *(0,) * (_GRAMS - len(hashes))), "\x01" in normal, _language(normal)
    )


def _language(text: str) -> str:
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return ""
    names = [unicodedata.name(char, "").split(" ", 1)[0] for char in letters[:40]]
    script = max(_SCRIPTS, key=names.count)
    if script != "LATIN":
        return script.lower()
    words = set(re.findall(r"[^\W\d_]+", text))
    scored = {language: len(words & telling) for language, telling in _WORDS.items()}
    best = max(scored, key=lambda language: scored[language])
    return best if scored[best] else "latin"


@lru_cache(maxsize=4096)
def _local_hour(zone: str, hour_since_epoch: int) -> int:
    return datetime.fromtimestamp(hour_since_epoch * 3600, UTC).astimezone(ZoneInfo(zone)).hour


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a message is, for all purposes of scoring. Messages that are scored alike have the same one, so it is known by its identity."""

    row: int
    """In Contents.hashes."""
    digest: int
    """32 bits of the hashes: the feature hash of a decision's record."""
    country: str
    network: str
    cls: str


class Contents:
    """Contents by their features, remembered up to `size`. The owner sees to it that there is room, and calls `clear` when no row is in use."""

    def __init__(self, size: int = 20_000) -> None:
        self._size = size
        self.hashes = np.zeros((size, WIDTH), dtype=np.uint64)
        """One row a content."""
        self._known: dict[tuple[object, ...], Content] = {}
        self._texts: dict[int, TextFeatures] = {}

    def of(self, request: RouteRequest, now_ms: int) -> Content:
        """The content of a request. Fast where such a one was met before."""
        place = numbering(request.to)
        text = self._text(request.body) if request.body else _EMPTY
        zones = place.time_zones
        hour = _local_hour(zones[0] if zones else "UTC", now_ms // HOUR) // 4
        key = (
            text.template,
            place,
            request.cls,
            request.encoding,
            request.parts,
            request.sender_type,
            request.origin,
            hour,
        )
        content = self._known.get(key)
        if content is None:
            content = self._known[key] = self._new(text, place, request, hour)
        return content

    @property
    def room(self) -> int:
        """How many new contents there is room for."""
        return self._size - len(self._known)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def _text(self, body: str) -> TextFeatures:
        normal = normalise(body)
        key = hash(normal)  # the text itself is not kept, not even in memory
        found = self._texts.get(key)
        if found is None:
            if len(self._texts) >= self._size:
                self._texts.clear()
            found = self._texts[key] = _analyse(normal)
        return found

    def _new(self, text: TextFeatures, place: Numbering, request: RouteRequest, hour: int) -> Content:
        where = f"{place.country}\t{place.network}"
        names = [
            f"kind\t{place.country}\t{place.kind}",
            f"template\t{text.template}",
            f"url\t{text.url}\t{where}",
            # From here on crossed with the route.
            f"kind\t{place.kind}",
            f"encoding\t{request.encoding}",
            f"parts\t{min(request.parts, 6)}\t{request.encoding}",
            f"url\t{text.url}",
            f"url\t{text.url}\t{where}",
            f"language\t{text.language}",
            f"template\t{text.template}",
            *(f"gram\t{gram}" for gram in text.grams),
            f"sender\t{request.sender_type}\t{where}",
            f"origin\t{request.origin}\t{place.country}",
            f"hour\t{hour}\t{place.country}",
        ]
        row = len(self._known)
        self.hashes[row] = [fixed_hash(name) for name in names]
        digest = zlib.crc32(self.hashes[row].tobytes())
        return Content(row, digest, place.country, place.network, str(request.cls))


def buckets(hashes: NDArray[np.uint64], routes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Features of (message, route): hashes (..., WIDTH) of the contents, routes (...) the routes' hashes; gives (..., WIDTH) buckets."""
    crossed = routes[..., np.newaxis] * _MIX
    mixed = hashes.copy()
    mixed[..., _ALONE:] ^= crossed
    mixed *= _SPREAD
    return np.asarray(((mixed ^ (mixed >> np.uint64(29))) * _MIX) >> _SHIFT, dtype=np.int64)
