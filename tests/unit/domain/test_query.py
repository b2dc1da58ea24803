"""The search box's language."""

from __future__ import annotations

import pytest

from controlplane.domain.events import Event, Kind
from controlplane.domain.message import Message, Status, fold
from controlplane.domain.query import (
    TOPICS,
    Direction,
    Match,
    Place,
    Query,
    QueryError,
    matches,
    parse,
    terms,
    words,
    written,
)

NOW = 1_800_000_000_000


def whole(digits: str) -> Match:
    return Match(digits, number=True)


def begin(digits: str) -> Match:
    return Match(digits, Place.BEGIN, number=True)


def end(digits: str) -> Match:
    return Match(digits, Place.END, number=True)


def accepted(**data) -> tuple[Message, Event]:
    data = {"to": "+4915112345678", "from": "ACME", "body": "Your code is 4711", "class": "otp", "parts": 1} | data
    event = Event("m", 0, "t", Kind.ACCEPTED, NOW, data)
    message = fold([event])
    assert message is not None
    return message, event


class TestNumbers:
    """People write numbers in many ways; each has one meaning."""

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("+4915112345678", whole("4915112345678")),
            ("004915112345678", whole("4915112345678")),
            ("+4915*", begin("4915")),
            ("+4915…", begin("4915")),
            ("4915*", begin("4915")),
            ("+1*", begin("1")),
            ("5678", end("5678")),
            ("*5678", end("5678")),
            ("…345678", end("345678")),
            ("005678", end("005678")),
            ("015112345678", end("15112345678")),
            ("15112345678", end("15112345678")),
        ],
    )
    def test_to(self, text, match):
        assert parse(f"to:{text}", NOW).to == match

    def test_spaces_in_quotes(self):
        assert parse('to:"+49 151 1234-5678"', NOW).to == whole("4915112345678")

    @pytest.mark.parametrize("text", ["678", "*1", "+", "*", "ACME", "+12", "", "12a45"])
    def test_what_is_none(self, text):
        with pytest.raises(QueryError, match="it takes a number"):
            parse(f"to:{text}", NOW)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("ACME", Match("acme")),
            ("12345", whole("12345")),
            ("+4930123456", whole("4930123456")),
            ("*5678", end("5678")),
        ],
    )
    def test_from(self, text, match):
        assert parse(f"from:{text}", NOW).sender == match

    def test_senders_without_regard_to_case(self):
        message, first = accepted()
        assert matches(parse("from:acme", NOW), message, first, NOW)
        assert not matches(parse("from:acm", NOW), message, first, NOW)


class TestLanguage:
    """Filters are told from words; everything given must hold."""

    def test_all_at_once(self):
        text = 'status:failed,expired ref:order-* route:gold connector:c1 class:OTP tenant:x after:2026-11-01 before:7d "Ihr Code" Größe'
        query = parse(text, NOW)
        assert query == Query(
            statuses=frozenset({Status.FAILED, Status.EXPIRED}),
            reference=Match("order-", Place.BEGIN),
            route="gold",
            connector="c1",
            cls="otp",
            tenant="x",
            after=1_793_491_200_000,
            before=NOW - 7 * 86_400_000,
            words=("ihr", "code", "grosse"),
        )
        assert query.narrow
        assert not parse("after:1h tenant:x", NOW).narrow

    @pytest.mark.parametrize(
        ("text", "at", "says"),
        [
            ("hello colour:red", 6, "no filter 'colour'"),
            ('to:+4915* "open', 10, "without its second"),
            ("status:gone", 0, "is no status"),
            ("a status:", 2, "is empty"),
            ("ref:a*", 0, "too short"),
            ("after:yesterday", 0, "is no time"),
            ("direction:up", 0, "the default"),
            ("to:5678 to:6789", 8, "twice"),
            ("+4915112345678", 0, "write to:"),
            (" ".join(f"w{n}" for n in range(17)), 0, "at most 16"),
        ],
    )
    def test_errors_say_where_and_what_is_right(self, text, at, says):
        with pytest.raises(QueryError, match=says) as caught:
            parse(text, NOW)
        assert caught.value.at == at

    def test_colons_in_quotes_and_times_are_words(self):
        assert parse('"http://x.example/a"', NOW).words == ("http", "x", "example", "a")
        assert parse("10:30", NOW).words == ("10", "30")

    def test_every_filter_is_explained(self):
        for name in TOPICS:
            with pytest.raises(QueryError) as caught:
                parse(f"{name}:", NOW)
            assert TOPICS[name] in str(caught.value)

    def test_received_ones_are_inbound(self):
        assert parse("status:received", NOW).direction is Direction.IN
        assert parse("status:received,failed", NOW).direction is Direction.ANY
        assert parse("direction:any status:received", NOW).direction is Direction.ANY


class TestTerms:
    """A form takes a query apart and writes the same one again."""

    def test_round_trip(self):
        text = 'to:+4915* from:"ACME Shop" status:failed,expired "two words" hello'
        filters, rest = terms(text)
        assert filters == {"to": "+4915*", "from": "ACME Shop", "status": "failed,expired"}
        assert rest == '"two words" hello'
        assert written(filters, rest) == text

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("colour:red", ({}, "colour:red")),
            ("to: x", ({"to": ""}, "x")),
            ('a "open', ({}, "a open")),
            ("status:gone", ({"status": "gone"}, "")),
        ],
    )
    def test_what_is_wrong_is_taken_as_it_is(self, text, found):
        assert terms(text) == found

    def test_quotation_marks_do_not_break_out(self):
        assert written({"from": 'A" to:+49*'}) == 'from:"A to:+49*"'


class TestWords:
    """Case, accents and scripts without spaces do not keep words from being found."""

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("Your CODE is: 4711, code!", ["your", "code", "is", "4711"]),
            ("Größe ÉTÉ naïve", ["grosse", "ete", "naive"]),
            ("Cafe\u0301", ["cafe"]),
            ("验证码 4711", ["验", "证", "码", "4711"]),
            ("ΣΊΣΥΦΟΣ", ["σισυφοσ"]),
            ("İstanbul", ["istanbul"]),
            ("snake_case", ["snake", "case"]),
            ("", []),
        ],
    )
    def test_words(self, text, found):
        assert words(text) == found

    def test_all_must_be_there(self):
        message, first = accepted(body="Your parcel arrives today")
        assert matches(parse("TODAY parcel", NOW), message, first, NOW)
        assert not matches(parse("parcel tomorrow", NOW), message, first, NOW)
        assert not matches(parse("parc", NOW), message, first, NOW)


class TestMatching:
    """A message is what was looked for, or it is not."""

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("to:+4915112345678", True),
            ("to:+4915112345679", False),
            ("to:+49151*", True),
            ("to:+43*", False),
            ("to:5678", True),
            ("class:otp status:scheduled", False),
            ("class:otp status:accepted", True),
            ("class:marketing", False),
            ("route:gold", True),
            ("route:silver", False),
            ("connector:c1", False),
            ("ref:order-17", True),
            ("ref:order-1*", True),
            ("ref:order-1", False),
            ("after:2030-01-01", False),
            ("before:2030-01-01", True),
            ("direction:in", False),
            ("direction:any", True),
            ("tenant:t", True),
            ("tenant:u", False),
            ("tenant:*", True),
        ],
    )
    def test_each_filter(self, text, found):
        message, first = accepted(reference="order-17", planned_route="gold")
        assert matches(parse(text, NOW), message, first, NOW) is found

    def test_a_scheduled_one_whose_time_has_come_is_queued(self):
        message, first = accepted(send_at=NOW + 1000)
        assert matches(parse("status:scheduled", NOW), message, first, NOW)
        assert not matches(parse("status:queued", NOW), message, first, NOW)
        assert matches(parse("status:queued", NOW), message, first, NOW + 1000)
