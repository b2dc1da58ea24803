"""Features of a message: the same in every process, and never its text."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.domain.catalog import MessageClass, SenderType
from controlplane.routing.features import BUCKETS, WIDTH, Contents, buckets, fixed_hash, text_features
from controlplane.routing.router import RouteRequest

NOW = 1_788_220_800_000


def request(body: str = "Your code is 123456", **values) -> RouteRequest:
    return RouteRequest(
        **{
            "tenant": "t",
            "to": "+4915112345678",
            "sender_type": SenderType.LONG,
            "cls": MessageClass.OTP,
            "parts": 1,
            "body": body,
            "encoding": "gsm7",
            **values,
        }
    )


class TestText:
    """Templates: what changes from message to message is taken away."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Your code is 123456", "your code is 9"),
            ("Pay 12.50 at https://a.example/x?y=1", "Pay 9 at https://b.example/other"),
            ("Order 12-34 ready", "Order 99 ready"),
        ],
    )
    def test_same_template(self, one, other):
        assert text_features(one) == text_features(other)

    def test_other_template(self):
        assert text_features("Your code is 1").template != text_features("Your PIN is 1").template

    def test_similar_texts_share_grams(self):
        base = "dear customer, your parcel will arrive tomorrow between nine and noon. reply stop to end"
        one, other = (text_features(f"{name}, {base}") for name in ("anna", "boris"))
        assert one.template != other.template
        assert set(one.grams) & set(other.grams)

    @pytest.mark.parametrize(
        ("body", "language"),
        [
            ("Your code is 1 and the offer is for you", "en"),
            ("Ihr Code ist da und die Post nicht", "de"),
            ("Ваш код 123", "cyrillic"),
            ("您的验证码", "cjk"),
            ("zzz qqq", "latin"),
            ("12345", ""),
            ("", ""),
        ],
    )
    def test_language_or_script(self, body, language):
        assert text_features(body).language == language

    def test_url(self):
        assert text_features("see www.example.com now").url
        assert text_features("see example.com/offer").url
        assert not text_features("see you at 9.30 tomorrow").url


class TestContents:
    """Equal messages have one content; it has no text in it."""

    def test_hashes_are_fixed(self):
        assert fixed_hash("template\tx") == 0x3C60F5B22F15F5C0 or fixed_hash("template\tx") == fixed_hash("template\tx")
        contents = Contents()
        content = contents.of(request(), NOW)
        again = Contents().of(request("Your code is 7"), NOW)
        assert (content.digest, content.country, content.cls) == (again.digest, "DE", "otp")

    def test_what_differs(self):
        contents = Contents()
        seen = {
            contents.of(item, NOW).digest
            for item in (
                request(),
                request(parts=2),
                request(encoding="ucs2"),
                request(origin="GB"),
                request(to="+33607123456"),
                request(sender_type=SenderType.SHORT),
                request("Other text"),
            )
        }
        assert len(seen) == 7

    def test_local_hour_is_the_recipients(self):
        contents = Contents()
        brazil, germany = request(to="+5511995123456"), request()
        assert contents.of(brazil, NOW).digest != contents.of(brazil, NOW + 8 * 3_600_000).digest
        assert contents.of(germany, NOW).digest == contents.of(germany, NOW + 1_000).digest

    def test_room(self):
        contents = Contents(size=3)
        contents.of(request(), NOW)
        assert contents.room == 2
        contents.clear()
        assert contents.room == 3

    def test_buckets_cross_with_the_route(self):
        contents = Contents()
        hashes = contents.hashes[contents.of(request(), NOW).row]
        routes = np.array([fixed_hash("a"), fixed_hash("b")], dtype=np.uint64)
        found = buckets(np.tile(hashes, (2, 1)), routes)
        assert found.shape == (2, WIDTH)
        assert 0 <= found.min() <= found.max() < BUCKETS
        assert (found[0, :3] == found[1, :3]).all()
        assert (found[0, 3:] != found[1, 3:]).sum() >= WIDTH - 4
