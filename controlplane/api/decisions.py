"""A router's decision as people read it: what it knew of each candidate, what it chose, and why in words."""

from __future__ import annotations

from typing import Any

from controlplane.api.times import iso
from controlplane.routing.decision import unpack, words

__all__ = ["decision_view"]


def decision_view(record: bytes | str) -> dict[str, Any]:
    """A decision's record (controlplane.routing.decision) as JSON. Raises ValueError for what is none."""
    seen = unpack(record)
    excluded = {item.route: item.rule for item in seen.excluded}
    return {
        "why": words(record),
        "chosen": seen.chosen,
        "at": iso(seen.at),
        "mode": "shadow" if seen.shadow else "learned",
        "model": seen.model,
        "features": seen.features,
        "seed": f"{seen.seed:016x}",
        "terms": {"value": seen.value, "price": seen.price_factor, "latency": seen.latency_price},
        "candidates": [
            {
                "route": item.route,
                "delivered_in_time": {"p": item.p, "low": item.low, "high": item.high},
                "latency_seconds": item.latency,
                "price": item.price,
                "utility": item.utility,
                "propensity": item.propensity,
                "excluded": excluded.get(item.route),
                "probe": item.probe,
                "young": item.young,
            }
            for item in seen.candidates
        ],
    }
