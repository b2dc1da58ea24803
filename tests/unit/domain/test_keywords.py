"""Keywords count alone, however they are written."""

import pytest

from controlplane.domain.keywords import OPT_IN, OPT_OUT, Wish, wish_of


@pytest.mark.parametrize(
    "text",
    ["STOP", "stop", " Stop. ", "S T O P !", "Stop All", "ARRÊT", "arret", "Baja", "STOPP", "«QUIT»", "stop\r\n"],
)
def test_out(text):
    assert wish_of(text, OPT_OUT, OPT_IN) is Wish.OPT_OUT


@pytest.mark.parametrize("text", ["START", "start!", "Unstop"])
def test_in(text):
    assert wish_of(text, OPT_OUT, OPT_IN) is Wish.OPT_IN


@pytest.mark.parametrize("text", ["", " ", "...", "stop it", "please STOP", "nonstop", "STOP" * 20, "restart", "🛑"])
def test_neither(text):
    assert wish_of(text, OPT_OUT, OPT_IN) is None


def test_a_tenants_own():
    assert wish_of("halt", ("HALT",), ()) is Wish.OPT_OUT
    assert wish_of("stop", ("HALT",), ()) is None
    assert wish_of("!", ("!",), ()) is None
