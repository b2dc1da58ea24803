"""What was measured of the ledger, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def tables(found: dict[str, Any]) -> str:
    """Of the parts that there are."""
    makers = {"sequencing": _sequencing, "path": _path, "damage": _damage, "datacenters": _datacenters}
    return "\n\n".join(make(found[part]) for part, make in makers.items() if part in found)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _percentiles(of: dict[str, float] | None, digits: int = 0) -> list[str]:
    return [_number((of or {}).get(name), digits) for name in ("p50", "p99")]


def _sequencing(found: dict[str, Any]) -> str:
    of = found["medians"]
    base = of["Tessera"]["per_s"]
    head = (
        "",
        "entries /s",
        "× Tessera",
        "CPU µs an entry",
        "published after p50 ms",
        "p99 ms",
        "round p50 ms",
        "p99 ms",
    )
    rows = []
    for name, one in of.items():
        if "per_s" not in one:
            continue
        cpu = one.get("cpu_us", one.get("ledger_us"))
        ratio = one["per_s"] / base if "hammer" not in name else one["per_s"] / of["hammer: Tessera"]["per_s"]
        times = [*_percentiles(one.get("published_ms")), *_percentiles(one.get("round_ms"))]
        rows.append([name, _number(one["per_s"]), _number(ratio, 2), _number(cpu, 1), *times])
    steps = of["catching up"]["steps"]
    sums = {key: sum(step[key] for step in steps.values()) for key in ("ms", "ledger_us", "mongod_us")}
    stage = [
        [name, _number(step["ms"], 1), _number(step["ledger_us"], 2), _number(step["mongod_us"], 2)]
        for name, step in [*steps.items(), ("**round**", sums)]
    ]
    checked = [
        [name, _number(one["per_s"]), _number(one["cpu_us"], 1), _number(one["faults"])]
        for name, one in found["verification"].items()
    ]
    stored = found["storage"]
    parts = [
        [name, *(_number(stored[name][key], 1) for key in ("bytes", "file_bytes", "index_bytes"))]
        for name in ("ledger_bundles", "ledger_tiles", "ledger_runs")
    ]
    return "\n\n".join(
        (
            _table(head, rows),
            _table(("step of a round of 4,096", "ms", "ledger µs an entry", "mongod µs an entry"), stage),
            _table(("verification", "entries /s", "CPU µs an entry", "faults"), checked),
            _table((f"bytes an entry (of {stored['entry_bytes']:.0f})", "documents", "files", "indexes"), parts)
            + f"\n\nBeyond the entries: {stored['beyond_entries']:.1f} bytes; a run: {stored['run_bytes']:.0f} bytes, "
            f"{stored['entries_a_run']:.0f} entries. The log: {found['log']}.",
        )
    )


def _path(found: dict[str, Any]) -> str:
    head = (
        "",
        "without /s",
        "with /s",
        "ratio",
        "ratios",
        "node µs",
        "mongod µs",
        "ledger µs",
        "behind",
        "caught up s",
    )
    rows = []
    for name, of in found["medians"].items():
        on, off = of["on"], of["off"]
        rows.append(
            [
                *(name, _number(off["per_s"]), _number(on["per_s"]), _number(of["ratio"], 3)),
                ", ".join(_number(ratio, 2) for ratio in of["ratios"]),
                *(f"{off[key]:.0f} → {on[key]:.0f}" for key in ("node_us", "mongod_us")),
                *(_number(on["ledger_us"], 1), _number(on["behind_entries"]), _number(on["caught_up_s"], 2)),
            ]
        )
    return _table(head, rows)


def _damage(found: dict[str, Any]) -> str:
    head = (
        f"of {found['entries']:,} entries",
        "found in s",
        "entries /s",
        "mended in s",
        "tiles",
        "bundles",
        "bytes moved",
    )
    rows = [
        [
            *(name, _number(one.get("search_s"), 1), _number(one.get("search_per_s"))),
            _number(one.get("mend_s", one.get("seconds")), 2),
            *(_number(one[key]) for key in ("tiles_moved", "bundles_moved", "bytes_moved")),
        ]
        for name, one in found.items()
        if isinstance(one, dict)
    ]
    return _table(head, rows)


def _datacenters(found: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {one}" for name, one in found.items())
