"""A segment packed is what went in."""

from __future__ import annotations

import random

import numpy as np
import pytest

from controlplane.domain.message import Message
from controlplane.domain.query import parse
from controlplane.store.search_pack import COLUMNS, MAX_ROWS, Chunk, Packed, Row, common, joined, lookup, pack, postings
from controlplane.store.search_tokens import Tokens


def rows(count: int, seed: int = 1, prefix: str = "m") -> list[Row]:
    chance = random.Random(seed)
    return [
        Row(
            chance.randrange(10_000),
            f"{prefix}{number}",
            sorted({chance.choice((chance.randrange(50), chance.getrandbits(32))) for _ in range(12)}),
            (chance.choice(("failed", "delivered")), *(f"v{chance.randrange(4)}" for _ in COLUMNS[1:])),
        )
        for number in range(count)
    ]


def found(packed: Packed, token: int) -> list[str]:
    bits, buckets = packed.bits, packed.buckets()
    return [packed.mids[ordinal] for ordinal in lookup(buckets[token >> 32 - bits], token)]


def same(packed: Packed, expected: list[Row]) -> None:
    expected = sorted(expected, key=lambda row: (row.at, row.mid))
    assert packed.ats == [row.at for row in expected]
    assert packed.mids == [row.mid for row in expected]
    for column, codes in enumerate(packed.columns):
        names = packed.dictionaries[column]
        assert [names[code] for code in codes] == [row.values[column] for row in expected]
    by_token: dict[int, list[str]] = {}
    for row in expected:
        for token in row.tokens:
            by_token.setdefault(token, []).append(row.mid)
    buckets = packed.buckets()
    assert len(buckets) == 1 << packed.bits
    for token, mids in by_token.items():
        ordinals = lookup(buckets[token >> 32 - packed.bits], token)
        assert [packed.mids[ordinal] for ordinal in ordinals] == mids
    tokens, ordinals = postings(buckets)
    assert (tokens.tolist(), ordinals.tolist()) == (packed.tokens.tolist(), packed.ordinals.tolist())
    for number, chunk in enumerate(packed.chunks()):
        again = Chunk.decode(chunk.encode(), len(chunk.ats))
        assert again == chunk
        assert again.find(chunk.ats[-1], chunk.mids[-1]) == len(chunk.ats) - 1
        assert again.find(chunk.ats[-1], "nobody") is None
        assert number == 0 or chunk.ats[0] >= packed.chunks()[number - 1].ats[-1]


class TestSegment:
    """Each row is found by each of its tokens, and by no other."""

    @pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 512, 513, 5_000])
    def test_round_trip(self, count):
        given = rows(count)
        same(pack(given), given)

    def test_unknown_tokens_find_nothing(self):
        packed = pack(rows(100))
        assert found(packed, 4_000_000_000) == []
        assert lookup(b"", 5).tolist() == []

    def test_as_large_as_it_gets(self):
        given = [
            Row(number, f"m{number}", (7, number + 100), ("delivered",) * len(COLUMNS)) for number in range(MAX_ROWS)
        ]
        packed = pack(given)
        assert len(found(packed, 7)) == MAX_ROWS
        assert found(packed, MAX_ROWS + 99) == [f"m{MAX_ROWS - 1}"]
        assert packed.counts(0) == {"delivered": MAX_ROWS}


class TestJoining:
    """Segments joined are the segment of all their rows, without what goes."""

    def test_all_rows(self):
        parts = [rows(300, seed, f"p{seed}-") for seed in range(5)]
        same(joined([pack(part) for part in parts]), [row for part in parts for row in part])

    def test_of_two_rows_of_a_message_the_later_stays(self):
        old, new = Row(5, "m", (1,), ("accepted",) * 6), Row(5, "m", (2,), ("delivered",) * 6)
        same(joined([pack([old]), pack([new])]), [new])

    def test_what_is_erased_keeps_its_row_and_loses_its_tokens(self):
        part = pack(rows(200))
        bare = Row(
            part.ats[17],
            part.mids[17],
            (),
            tuple(n[c[17]] for n, c in zip(part.dictionaries, part.columns, strict=True)),
        )
        after = joined([part], {(0, 17)}, [bare])
        expected = [row if row.mid != bare.mid else bare for row in rows(200)]
        same(after, expected)


def test_common():
    chance = random.Random(3)
    for _ in range(200):
        one, two = ({chance.randrange(60) for _ in range(chance.randrange(40))} for _ in range(2))
        arrays = [np.array(sorted(each), np.uint16) for each in (one, two)]
        assert common(*arrays).tolist() == sorted(one & two)


class TestTokens:
    """Whatever a query asks for, each message that it looks for has the token; and none can be made without the key."""

    MESSAGE = Message(
        "m",
        to="+4915112345678",
        sender="ACME",
        body="Your code: 4711 für Größe",
        reference="order-17/5-longer-than-twelve",
    )

    @pytest.mark.parametrize(
        "text",
        [
            "to:+4915112345678",
            *(f"to:+{'4915112345678'[:size]}*" for size in range(1, 13)),
            *(f"to:*{'4915112345678'[-size:]}" for size in range(4, 13)),
            "from:acme",
            "ref:order-17/5-longer-than-twelve",
            *(f"ref:{'order-17/5-longer-than-twelve'[:size]}*" for size in range(2, 29)),
            "CODE grosse fur 4711",
        ],
    )
    def test_every_query_of_it(self, text):
        tokens = Tokens(b"secret")
        asked = tokens.of_query(parse(text, 0))
        assert asked
        assert set(asked) <= set(tokens.of_message(self.MESSAGE))

    def test_another_key_other_tokens(self):
        one, two = Tokens(b"one").of_message(self.MESSAGE), Tokens(b"two").of_message(self.MESSAGE)
        assert len(set(one) & set(two)) == 0

    def test_what_is_erased_has_none(self):
        assert Tokens(b"secret").of_message(Message("m", erased=True, cls="otp")) == []
