"""Small pure pieces: addresses, backoff, throttle, timers, seal, carrier configuration."""

from __future__ import annotations

import random

import pytest

from controlplane.carrier.config import draw_ms, load_config
from controlplane.dispatch.throttle import Throttle
from controlplane.dispatch.timers import Wheel
from controlplane.domain.address import classify_sender, mask, normalise_recipient, source_address
from controlplane.domain.catalog import SenderType
from controlplane.domain.retry import CALLBACK_SCHEDULE, Verdict, backoff, classify
from controlplane.errors import ConfigError
from controlplane.ids import idempotent_mid, is_mid, new_mid
from controlplane.store.seal import Seal, checksum_ok, new_key


@pytest.mark.parametrize("value", ["+4915112345678", "+49 151 1234-5678", "004915112345678", "+49 (151) 12345678"])
def test_recipients_are_normalised(value):
    assert normalise_recipient(value) == "+4915112345678"


@pytest.mark.parametrize(
    "value", ["015112345678", "+0151", "+49", "hello", "", "+49151123456789012", "+4915x12345678", "+٤٩١٥١١٢٣٤٥"]
)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"\+"):
        normalise_recipient(value)


def test_senders():
    assert [classify_sender(value) for value in ("12345", "+4915112345678", "Helio")] == [
        SenderType.SHORT,
        SenderType.LONG,
        SenderType.ALPHANUMERIC,
    ]
    assert source_address("Helio", -1, -1) == (5, 0, "Helio")
    assert source_address("+4915112345678", -1, -1) == (1, 1, "4915112345678")
    assert source_address("", -1, -1) == (0, 0, "")
    for wrong in ("Größe", "", "longer than eleven", "12", " x"):
        with pytest.raises(ValueError, match="short code"):
            classify_sender(wrong)


def test_numbers_are_masked():
    assert mask("+4915112345678") == "+4915*******78"
    assert mask("123") == "***"


def test_row_25_vendor_codes_are_permanent_and_never_raise():
    assert classify(0x0419) is Verdict.PERMANENT
    assert classify(0x58) is Verdict.THROTTLED
    assert classify(0x14) is Verdict.QUEUE_FULL
    assert classify(0x08) is Verdict.TEMPORARY


def test_backoff_grows_and_is_capped():
    waits = [backoff(n, base=1, cap=60, jitter=1.0) for n in range(1, 10)]
    assert waits == sorted(waits)
    assert waits[-1] == 60
    assert 2 * 86_400 < sum(CALLBACK_SCHEDULE) < 4 * 86_400


def test_row_03_throttle_slows_and_recovers():
    throttle = Throttle(100.0, now=0.0)
    throttle.slow(1.0)
    throttle.slow(1.1)
    assert throttle.rate == pytest.approx(70)
    assert throttle.available(1.05) == 0
    for tenth in range(11, 400):
        throttle.available(tenth / 10)
    assert throttle.rate == 100


def test_throttle_keeps_the_contract():
    throttle = Throttle(50.0, now=0.0)
    sent = 0
    for step in range(1, 1001):
        count = throttle.available(step / 100)
        throttle.take(count)
        sent += count
    assert sent <= 50 * 10 + 5


def test_wheel():
    wheel = Wheel()
    wheel.add(1_500, "a")
    wheel.add(900, "b")
    assert wheel.due(999) == []
    assert wheel.due(2_000) == ["b", "a"]
    assert wheel.due(9_000) == []


def test_ids():
    assert new_mid(1) < new_mid(2)
    assert is_mid(new_mid(1))
    assert not is_mid("../../etc")
    assert idempotent_mid(b"s", "a", "bc") != idempotent_mid(b"s", "ab", "c")


def test_seal():
    seal = Seal(b"x" * 32)
    assert seal.open(seal.seal("secret")) == "secret"
    assert "secret" not in seal.seal("secret")
    with pytest.raises(ConfigError, match="HELIOGRAPH_SECRET_KEY"):
        Seal(b"y" * 32).open(seal.seal("secret"))


def test_keys_have_a_checksum():
    key = new_key()
    assert checksum_ok(key)
    assert not checksum_ok(key[:-1] + ("a" if key[-1] != "a" else "b"))
    assert new_key(test=True).startswith("hg_test_")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 'x'", "port"),
        ("colour = 1", "colour"),
        ("[behaviour]\nresponse_ms = 'fast'", "behaviour.response_ms"),
        ("[behaviour]\nreject = {x = 0.1}", "command_status"),
        ("[behaviour]\noutcomes = {}", "at least one"),
        ("[behaviour]\ndrop_response = 2", "behaviour.drop_response"),
        ("not toml", "is not TOML"),
    ],
)
def test_a_wrong_carrier_is_refused(tmp_path, text, words):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_latencies():
    rng = random.Random(1)
    assert draw_ms("5", rng) == 5
    assert 5 <= draw_ms("5-20", rng) <= 20
    assert draw_ms("lognormal:20:0.5", rng) > 0
