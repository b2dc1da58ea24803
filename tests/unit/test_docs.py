"""Docs are tested: every setting, status and metric is explained somewhere."""

from __future__ import annotations

from pathlib import Path

from controlplane.carrier.outcome import SUFFIXES
from controlplane.domain.message import Status
from controlplane.ledger.index_gauges import INDEX_GAUGES
from controlplane.settings import Settings
from controlplane.telemetry.metrics import BIND_GAUGES, GAUGES, LEDGER_GAUGES

DOCS = Path(__file__).parents[2] / "docs"


def missing(names, page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [name for name in names if f"`{name}`" not in text]


def test_every_setting_is_documented():
    assert missing((f"HELIOGRAPH_{name.upper()}" for name in Settings.model_fields), "settings.md") == []


def test_every_status_is_documented():
    assert missing((status.value for status in Status), "api.md") == []


def test_every_metric_is_documented():
    assert (
        missing(
            (
                *GAUGES,
                *BIND_GAUGES,
                *LEDGER_GAUGES,
                *INDEX_GAUGES,
                "heliograph_events",
                "heliograph_commit_seconds",
                "heliograph_commit_retries",
            ),
            "operations.md",
        )
        == []
    )


def test_every_suffix_of_the_simulator_is_documented():
    assert missing(SUFFIXES, "operations.md") == []
