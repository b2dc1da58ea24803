"""What is looked for among messages: the language of the search box, and whether a message is what was looked for.

    to:+4915112345678 from:ACME status:failed,expired ref:order-* route:gold class:otp after:7d "your code"

`name:value` is a filter, everything else are words of the text; all of it must hold. Quotes keep spaces together, and colons out of it. Words are compared
without case and accents, whole, in any order. `TOPICS` says what each filter takes, for help pages and for the errors of `parse`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from controlplane.domain.address import normalise_recipient
from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, Status

__all__ = [
    "LEAST_DIGITS",
    "TOPICS",
    "Direction",
    "Match",
    "Place",
    "Query",
    "QueryError",
    "digits_of",
    "matches",
    "parse",
    "terms",
    "words",
    "written",
]

MAX_LENGTH = 500
MAX_WORDS = 16
LEAST_DIGITS = 4
"""Of a number's end."""
LEAST_REFERENCE = 2
"""Characters that a reference's beginning must have."""

TOPICS = {
    "to": "a number: +4915112345678 exactly, +4915* its beginning, 5678 (four digits or more) its end",
    "from": "a sender as it was sent (ACME, without regard to case), or a number like `to`",
    "status": f"one or more of {', '.join(Status)}, with commas",
    "ref": "the reference exactly, or its beginning with a star: order-*",
    "route": "a route's name",
    "connector": "a connector's name",
    "class": "otp, transactional or marketing",
    "direction": "out (the default), in (from phones), or any",
    "tenant": "a tenant's id (needs the scope admin), or * for all",
    "after": "accepted at or after: 2026-11-01, 2026-11-01T09:00:00Z, or how long ago: 30m, 2h, 7d",
    "before": "accepted before, in the same forms",
}
_AGO = re.compile(r"([0-9]{1,5})([mhd])")
_AGO_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TERM = re.compile(
    r"""(?P<space>\s+)|(?P<name>[A-Za-z_]+):(?:"(?P<quoted>[^"]*)"|(?P<value>[^\s"]*))|"(?P<phrase>[^"]*)"|(?P<word>[^\s"]+)"""
)
_WORD = re.compile(  # scripts without spaces between words: each character is one
    "[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\\W_\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
_ASCII_WORD = re.compile("[a-z0-9]+")
_NOT_DIGIT = re.compile("[^0-9]+")
_NUMERIC = re.compile(r"[+*…]?[0-9\s().\-/]*[0-9][0-9\s().\-/]*[*…]?")


class QueryError(ValueError):
    """What is wrong with a query, where (`at`, an offset), and what would be right."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


class Place(StrEnum):
    """Which part of a value is given."""

    WHOLE = "whole"
    BEGIN = "begin"
    END = "end"


class Direction(StrEnum):
    """To phones, or from them."""

    OUT = "out"
    IN = "in"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Match:
    """A value, or a part of it. Of a number the digits, without +."""

    value: str
    place: Place = Place.WHOLE
    number: bool = False

    def holds(self, value: str) -> bool:
        """Whether a message's value is it."""
        if self.number:
            value = digits_of(value)
        elif self.place is Place.WHOLE:
            return value == self.value
        if self.place is Place.BEGIN:
            return value.startswith(self.value)
        return value.endswith(self.value) if self.place is Place.END else value == self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a message must be to be found. Times are ms since the epoch, of acceptance; `before` is exclusive."""

    to: Match | None = None
    sender: Match | None = None
    reference: Match | None = None
    words: tuple[str, ...] = ()
    statuses: frozenset[Status] = frozenset()
    route: str | None = None
    connector: str | None = None
    cls: str | None = None
    tenant: str | None = None
    """None: the caller's own; `*`: all."""
    direction: Direction = Direction.OUT
    after: int | None = None
    before: int | None = None

    @property
    def narrow(self) -> bool:
        """Whether it asks for more than a stretch of time."""
        return replace(self, tenant=None, direction=Direction.OUT, after=None, before=None) != Query()


def digits_of(number: str) -> str:
    """Its digits alone."""
    return number[1:] if number[:1] == "+" and number[1:].isdecimal() else _NOT_DIGIT.sub("", number)


def words(text: str) -> list[str]:
    """The distinct words of a text as they are compared, in order."""
    if text.isascii():
        return list(dict.fromkeys(_ASCII_WORD.findall(text.lower())))
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    return list(dict.fromkeys(_WORD.findall(plain)))


def matches(query: Query, message: Message, first: Event, now: int) -> bool:
    """Whether the message, whose first event is `first`, is what `query` looks for at `now` (ms since the epoch); of tenants it asks for `tenant` alone."""
    data = first.data or {}
    checks: tuple[tuple[object, Callable[[], bool]], ...] = (
        (query.tenant not in (None, "*"), lambda: message.tenant == query.tenant),
        (
            query.direction is not Direction.ANY,
            lambda: (first.kind is Kind.RECEIVED) == (query.direction is Direction.IN),
        ),
        (query.statuses, lambda: message.status_at(now) in query.statuses),
        (query.cls is not None, lambda: message.cls == query.cls),
        (query.route is not None, lambda: query.route == (message.route or data.get("planned_route"))),
        (query.connector is not None, lambda: message.connector == query.connector),
        (query.after is not None, lambda: message.accepted_at >= (query.after or 0)),
        (query.before is not None, lambda: message.accepted_at < (query.before or 0)),
        (query.to, lambda: query.to is not None and query.to.holds(message.to)),
        (query.sender, lambda: query.sender is not None and _sender(query.sender, message.sender)),
        (query.reference, lambda: query.reference is not None and query.reference.holds(message.reference)),
        (query.words, lambda: set(query.words) <= set(words(message.body))),
    )
    return all(holds() for asked, holds in checks if asked)


def _sender(match: Match, sender: str) -> bool:
    return match.holds(sender if match.number else sender.casefold())


# -- the language ------------------------------------------------------------------------------------------------------


def parse(text: str, now: int) -> Query:
    """The query that `text` writes; `now` is for times such as 7d. Raises QueryError."""
    if len(text) > MAX_LENGTH:
        raise QueryError(MAX_LENGTH, f"is longer than {MAX_LENGTH} characters")
    query, found, seen, at = Query(), dict[str, None](), set[str](), 0
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None:
            raise QueryError(at, 'has a quotation mark without its second; write "two words"')
        name = term["name"]
        if name is None:
            found |= dict.fromkeys(words(term["phrase"] or term["word"] or ""))
            if term["word"] and term["word"].startswith("+") and _NUMERIC.fullmatch(term["word"]):
                raise QueryError(at, f"{term['word']} is a number: write to:{term['word']} or from:{term['word']}")
        else:
            value = term["quoted"] if term["quoted"] is not None else term["value"]
            query = _filtered(query, name.lower(), value, at, now)
            if name.lower() in seen:
                raise QueryError(at, f"has {name} twice; all filters must hold, so give each once")
            seen.add(name.lower())
        at = term.end()
    if len(found) > MAX_WORDS:
        raise QueryError(0, f"has {len(found)} words of the text; give at most {MAX_WORDS}")
    if query.statuses and "direction" not in seen and Status.RECEIVED in query.statuses:
        query = replace(query, direction=Direction.IN if len(query.statuses) == 1 else Direction.ANY)
    return replace(query, words=tuple(found))


def terms(text: str) -> tuple[dict[str, str], str]:
    """What stands in a query: filter → value, and the rest. What `parse` refuses is taken as it is, for a form that mends it."""
    filters: dict[str, str] = {}
    rest: list[str] = []
    for term in _TERM.finditer(text[:MAX_LENGTH]):
        name = (term["name"] or "").lower()
        if name in TOPICS:
            filters[name] = term["quoted"] if term["quoted"] is not None else term["value"]
        elif not term["space"]:
            rest.append(term[0])
    return filters, " ".join(rest)


def written(filters: Mapping[str, str], rest: str = "") -> str:
    """The query of these filters and words: what `terms` takes apart. Quotation marks within a value cannot be written, and are left out."""
    found = []
    for name, value in filters.items():
        plain = value.replace('"', "").strip()
        if plain:
            found.append(f'{name}:"{plain}"' if any(c.isspace() for c in plain) else f"{name}:{plain}")
    return " ".join([*found, rest.strip()]).strip()


def _filtered(query: Query, name: str, value: str, at: int, now: int) -> Query:
    if name not in _FILTERS:
        allowed = ", ".join(TOPICS)
        raise QueryError(at, f"has no filter {name!r}; there are {allowed}. Put text that has a colon in quotes")
    value = value.strip()
    try:
        if not value:
            raise ValueError("is empty")  # noqa: TRY301 - one place says what is allowed
        return _FILTERS[name](query, value, now)
    except ValueError as error:
        raise QueryError(at, f"{name}:{value[:60]} {error}; it takes {TOPICS[name]}") from None


def number(value: str, *, exact_below: int = 0) -> Match:
    """A number or a part of it. Without + or star it is an end, unless it has fewer digits than `exact_below`. ValueError."""
    if not _NUMERIC.fullmatch(value):
        raise ValueError("is no number")
    digits = digits_of(value)
    if value[-1] in "*…":
        begin = digits.removeprefix("00")
        if not begin:
            raise ValueError("has no digits")
        return Match(begin, Place.BEGIN, number=True)
    if value.startswith("+") or (value.startswith("00") and len(digits) > 8):
        return Match(normalise_recipient(value)[1:], number=True)
    if value[0] not in "*…" and len(digits) < exact_below:
        return Match(digits, number=True)
    end = digits[1:] if digits.startswith("0") and len(digits) > 8 else digits  # a national number with its trunk zero
    if len(end) < LEAST_DIGITS:
        raise ValueError(f"has fewer than {LEAST_DIGITS} digits")
    return Match(end, Place.END, number=True)


def _from(query: Query, value: str, _now: int) -> Query:
    if _NUMERIC.fullmatch(value):
        return replace(query, sender=number(value, exact_below=9))
    return replace(query, sender=Match(value.casefold()))


def _status(query: Query, value: str, _now: int) -> Query:
    try:
        return replace(query, statuses=frozenset(Status(item.strip().lower()) for item in value.split(",")))
    except ValueError:
        raise ValueError("is no status") from None


def _reference(query: Query, value: str, _now: int) -> Query:
    if value[-1] not in "*…":
        return replace(query, reference=Match(value))
    if len(value) <= LEAST_REFERENCE:
        raise ValueError(f"is too short: {LEAST_REFERENCE} characters before the star, at least")
    return replace(query, reference=Match(value[:-1], Place.BEGIN))


def _direction(query: Query, value: str, _now: int) -> Query:
    return replace(query, direction=Direction(value.lower()))


def _time(value: str, now: int) -> int:
    if ago := _AGO.fullmatch(value.lower()):
        return now - int(ago[1]) * _AGO_MS[ago[2]]
    try:
        time = datetime.fromisoformat(value)
        return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError("is no time") from None


_FILTERS: dict[str, Callable[[Query, str, int], Query]] = {
    "to": lambda query, value, _now: replace(query, to=number(value)),
    "from": _from,
    "status": _status,
    "ref": _reference,
    "route": lambda query, value, _now: replace(query, route=value),
    "connector": lambda query, value, _now: replace(query, connector=value),
    "class": lambda query, value, _now: replace(query, cls=value.lower()),
    "direction": _direction,
    "tenant": lambda query, value, _now: replace(query, tenant=value),
    "after": lambda query, value, now: replace(query, after=_time(value, now)),
    "before": lambda query, value, now: replace(query, before=_time(value, now)),
}
