"""A tenant as a form, and back: pure. Whether values are right is for the API to say; here only what is no number or has no place is told."""

from __future__ import annotations

import re
from typing import Any

from starlette.datastructures import FormData

from controlplane.domain.catalog import MessageClass
from controlplane.domain.keywords import OPT_IN, OPT_OUT

__all__ = ["DAYS", "read_tenant", "show_tenant"]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLASSES = tuple(cls.value for cls in MessageClass)
_TERMS = ("value", "price", "latency")
_SPARE = 1
"""Empty rows for quiet hours, beside those that are there."""
_MOST = 20


def show_tenant(tenant: dict[str, Any]) -> dict[str, Any]:
    """What the template shows: the API's tenant, with its gaps filled and a spare row for quiet hours."""
    quiet: dict[str, dict[str, Any]] = tenant.get("quiet_hours", {})
    return {
        "id": tenant.get("id", ""),
        "name": tenant.get("name", ""),
        "enabled": tenant.get("enabled", True),
        "rate": tenant.get("rate", 0),
        "retention_days": tenant.get("retention_days"),
        "smart_encoding": tenant.get("smart_encoding", False),
        "unknown_policies": tenant.get("unknown_policies", {}),
        "routing": tenant.get("routing", "static"),
        "terms": {cls: tenant.get("routing_terms", {}).get(cls, {}) for cls in _CLASSES},
        "quiet": {
            cls: {
                "action": quiet.get(cls, {}).get("action", "hold"),
                "windows": [*quiet.get(cls, {}).get("windows", []), *[{"start": "", "end": "", "days": DAYS}] * _SPARE],
            }
            for cls in _CLASSES
        },
        "opt_out_keywords": "\n".join(tenant.get("opt_out_keywords", OPT_OUT)),
        "opt_in_keywords": "\n".join(tenant.get("opt_in_keywords", OPT_IN)),
        "opt_out_classes": tenant.get("opt_out_classes", ["transactional", "marketing"]),
    }


def read_tenant(form: FormData) -> tuple[dict[str, Any], dict[str, str]]:
    """(the API's body, field → what is wrong with it)."""
    errors: dict[str, str] = {}

    def number(name: str, kind: type[int] | type[float], empty: Any) -> Any:
        text = str(form.get(name, "")).strip()
        if not text:
            return empty
        try:
            return kind(text)
        except ValueError:
            errors[name] = "is not a number" if kind is float else "is not a whole number"
            return empty

    terms = {}
    for cls in _CLASSES:
        given = {term: number(f"routing_terms.{cls}.{term}", float, None) for term in _TERMS}
        found = {term: value for term, value in given.items() if value is not None}
        if found and "value" not in found:
            errors.setdefault(f"routing_terms.{cls}.value", "is needed where price or latency are given")
        if found:
            terms[cls] = found
    policies = {cls: str(form.get(f"unknown_policies.{cls}", "")) for cls in _CLASSES}
    body = {
        "name": str(form.get("name", "")).strip(),
        "enabled": bool(form.get("enabled")),
        "rate": number("rate", int, 0),
        "retention_days": number("retention_days", int, None),
        "smart_encoding": bool(form.get("smart_encoding")),
        "unknown_policies": {cls: policy for cls, policy in policies.items() if policy},
        "quiet_hours": {cls: quiet for cls in _CLASSES if (quiet := _quiet(form, cls))},
        "opt_out_keywords": _lines(form, "opt_out_keywords"),
        "opt_in_keywords": _lines(form, "opt_in_keywords"),
        "opt_out_classes": [str(item) for item in form.getlist("opt_out_classes")],
        "routing": str(form.get("routing", "static")),
        "routing_terms": terms,
    }
    return body, errors


def _quiet(form: FormData, cls: str) -> dict[str, Any] | None:
    windows = []
    for row in range(_MOST):
        start, end = (str(form.get(f"quiet.{cls}.{row}.{edge}", "")).strip() for edge in ("start", "end"))
        if start or end:
            days = [str(day) for day in form.getlist(f"quiet.{cls}.{row}.days")]
            windows.append({"start": start, "end": end, "days": days})
    return {"windows": windows, "action": str(form.get(f"quiet.{cls}.action", "hold"))} if windows else None


def _lines(form: FormData, name: str) -> list[str]:
    return [part.strip() for part in re.split(r"[\n,]", str(form.get(name, ""))) if part.strip()]
