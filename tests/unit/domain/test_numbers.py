"""What numbers say about themselves: some of every continent, shared country codes, global services, and text that is no number."""

import timeit

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain import numbers
from controlplane.domain.numbers import Numbering, numbering, zones_of_country


@pytest.mark.parametrize(
    ("to", "country", "network", "kind", "zone"),
    [
        ("+4915112345678", "DE", "T-Mobile", "mobile", "Europe/Berlin"),
        ("+493012345678", "DE", "", "fixed", "Europe/Berlin"),
        ("+447400123456", "GB", "Three", "mobile", "Europe/London"),
        ("+33612345678", "FR", "SFR", "mobile", "Europe/Paris"),
        ("+12125550123", "US", "", "fixed_or_mobile", "America/New_York"),
        ("+14155550123", "US", "", "fixed_or_mobile", "America/Los_Angeles"),
        ("+16135550123", "CA", "", "fixed_or_mobile", "America/Toronto"),
        ("+5511987654321", "BR", "TIM", "mobile", "America/Sao_Paulo"),
        ("+8613800138000", "CN", "China Mobile", "mobile", "Asia/Shanghai"),
        ("+919876543210", "IN", "Airtel", "mobile", "Asia/Calcutta"),
        ("+81901234567", "JP", "", "unknown", "Asia/Tokyo"),
        ("+2348031234567", "NG", "MTN", "mobile", "Africa/Lagos"),
        ("+27821234567", "ZA", "Vodacom", "mobile", "Africa/Johannesburg"),
        ("+201001234567", "EG", "Vodafone", "mobile", "Africa/Cairo"),
        ("+972502345678", "IL", "Pelephone", "mobile", "Asia/Jerusalem"),
        ("+6421123456", "NZ", "Vodafone", "mobile", "Pacific/Auckland"),
        ("+77011234567", "KZ", "Kcell/Activ", "mobile", "Asia/Almaty"),
        ("+43664123456", "AT", "A1 TA", "mobile", "Europe/Vienna"),
    ],
)
def test_a_number_says_its_country_network_kind_and_zone(to, country, network, kind, zone):
    found = numbering(to)
    assert (found.country, found.network, found.kind) == (country, network, kind)
    assert zone in found.time_zones


def test_a_country_of_several_zones_gives_all_of_its_own_and_none_of_another_with_the_same_code():
    zones = numbering("+77011234567").time_zones
    assert zones == ("Asia/Almaty", "Asia/Aqtobe")
    russian = numbering("+79161234567").time_zones
    assert {"Europe/Moscow", "Asia/Vladivostok"} <= set(russian)
    assert "Asia/Almaty" not in russian
    assert numbering("+447400123456").time_zones == ("Europe/London",)


def test_a_global_service_has_no_zone_and_an_unknown_range_has_its_countrys():
    assert numbering("+80012345678") == Numbering("001", "", "toll_free", ())
    unassigned = numbering("+5215512345678")  # the old way to write a Mexican mobile number
    assert unassigned.country == "MX"
    assert set(unassigned.time_zones) <= zones_of_country("MX")


@given(st.text(max_size=20) | st.from_regex(r"\+[0-9]{0,16}", fullmatch=True))
def test_no_text_makes_it_raise(text):
    assert isinstance(numbering(text), Numbering)


@given(st.sampled_from(sorted(phonenumbers.SUPPORTED_REGIONS)), st.integers(0, 9999))
def test_the_answer_is_that_of_the_whole_number(region, tail):
    example = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
    if example is None:
        return
    to = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
    to = to[: max(len(to) - 4, 8)] + f"{tail:04}"[: len(to) - max(len(to) - 4, 8)]
    parsed = phonenumbers.parse(to, None)
    if phonenumbers.is_valid_number(parsed):
        assert numbering(to).country == phonenumbers.region_code_for_number(parsed)


def test_a_hit_is_fast_and_the_memory_bounded():
    numbering("+4915112345678")
    best = min(timeit.repeat(lambda: numbering("+4915112345678"), number=20_000, repeat=5)) / 20_000
    assert best < 20e-6  # 0.3 µs on a quiet machine
    assert numbers._of_prefix.cache_info().maxsize == 65_536
