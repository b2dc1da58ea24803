"""Settings: wrong ones are refused by name, with the mend."""

from __future__ import annotations

import pytest

from controlplane import settings
from controlplane.errors import ConfigError
from controlplane.telemetry.logs import redact

KEY = "x" * 32


@pytest.fixture
def environment(monkeypatch):
    for name in [n for n in settings.os.environ if n.startswith("HELIOGRAPH_")]:
        monkeypatch.delenv(name)
    return lambda **values: [monkeypatch.setenv(f"HELIOGRAPH_{name}", value) for name, value in values.items()]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "HELIOGRAPH_SECRET_KEY: is required"),
        ({"SECRET_KEY": "short"}, "openssl rand"),
        ({"SECRET_KEY": KEY, "COLOUR": "red"}, "HELIOGRAPH_COLOUR: no such setting"),
        ({"SECRET_KEY": KEY, "PORT": "http"}, "HELIOGRAPH_PORT"),
        ({"SECRET_KEY": KEY, "LEASE_SECONDS": "3", "LEASE_RENEW_SECONDS": "3"}, "lease_seconds must be larger"),
        ({"SECRET_KEY": KEY, "COMMIT_UNSAFE": "1"}, "negative control"),
        ({"SECRET_KEY_FILE": "/nowhere"}, "cannot be read"),
        ({"SECRET_KEY": KEY, "TLS_KEY": "/k"}, "go together"),
    ],
)
def test_refused(environment, values, words):
    environment(**values)
    with pytest.raises(ConfigError, match=words):
        settings.load()


def test_a_secret_may_come_from_a_file(environment, tmp_path):
    (tmp_path / "s").write_text(KEY + "\n")
    environment(SECRET_KEY_FILE=str(tmp_path / "s"), URL="http://x", API_KEY="k")
    assert settings.load().secret == KEY.encode()
    assert KEY not in repr(settings.load())
    assert settings.load_client().url == "http://x"


def test_logs_hide_secrets_and_people():
    line = redact(
        None,
        "",
        {"event": "x", "password": "p", "note": "to +4915112345678 with hg_live_abcdefgh1234 at mongodb://u:p@h/"},
    )
    assert line == {
        "event": "x",
        "password": "[hidden]",
        "note": "to +491****78 with hg_live_[hidden] at mongodb://[hidden]@h/",
    }
