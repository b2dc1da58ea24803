"""A tenant as a form: what is shown and sent back unchanged is the same tenant."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import FormData

from controlplane.console.tenant_form import read_tenant, show_tenant

TENANT: dict[str, Any] = {
    "name": "The Bank",
    "enabled": True,
    "rate": 250,
    "retention_days": 90,
    "smart_encoding": True,
    "unknown_policies": {"otp": "hold"},
    "quiet_hours": {
        "marketing": {
            "windows": [
                {"start": "21:00", "end": "08:00", "days": ["mon", "tue"]},
                {"start": "12:00", "end": "13:00", "days": ["sun"]},
            ],
            "action": "reject",
        }
    },
    "opt_out_keywords": ["STOP", "ENDE"],
    "opt_in_keywords": ["START"],
    "opt_out_classes": ["marketing"],
    "routing": "shadow",
    "routing_terms": {"otp": {"value": 50.0, "price": 1.0, "latency": 0.5}},
}


def filled(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """What a browser sends of the template's form."""
    fields = [
        *((name, str(shown[name])) for name in ("name", "rate", "routing", "opt_out_keywords", "opt_in_keywords")),
        ("retention_days", str(shown["retention_days"] or "")),
        *((name, "on") for name in ("enabled", "smart_encoding") if shown[name]),
        *(("opt_out_classes", cls) for cls in shown["opt_out_classes"]),
    ]
    for cls, terms in shown["terms"].items():
        fields += [(f"routing_terms.{cls}.{term}", str(terms.get(term, ""))) for term in ("value", "price", "latency")]
        fields.append((f"unknown_policies.{cls}", shown["unknown_policies"].get(cls, "")))
        fields.append((f"quiet.{cls}.action", shown["quiet"][cls]["action"]))
        for row, window in enumerate(shown["quiet"][cls]["windows"]):
            fields += [(f"quiet.{cls}.{row}.{edge}", window[edge]) for edge in ("start", "end")]
            fields += [(f"quiet.{cls}.{row}.days", day) for day in window["days"]]
    return fields


def test_back_as_it_was():
    assert read_tenant(FormData(filled(show_tenant(TENANT)))) == (TENANT, {})


def test_an_empty_row_is_none():
    rows = show_tenant(TENANT)["quiet"]["marketing"]["windows"]
    assert len(rows) == 3
    assert rows[-1]["start"] == ""


def test_half_a_row_is_for_the_api_to_refuse():
    body, errors = read_tenant(FormData([("quiet.otp.0.start", "21:00")]))
    assert body["quiet_hours"] == {"otp": {"windows": [{"start": "21:00", "end": "", "days": []}], "action": "hold"}}
    assert not errors


def test_what_is_no_number():
    form = FormData([("rate", "many"), ("retention_days", "1.5"), ("routing_terms.otp.value", "x")])
    assert read_tenant(form)[1] == {
        "rate": "is not a whole number",
        "retention_days": "is not a whole number",
        "routing_terms.otp.value": "is not a number",
    }
