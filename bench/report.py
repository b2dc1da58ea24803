"""What was measured, for people: Markdown tables and SVG plots. The JSON beside them has every run."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from bench.gateways import middle

Runs = dict[str, list[dict[str, Any]]]


def table(runs: Runs) -> str:
    """Medians, and ratios to Kannel and Jasmin in the same rounds."""
    kannel = middle(runs["kannel"], "end_to_end_per_s") if "kannel" in runs else 0.0
    jasmin = middle(runs["jasmin"], "end_to_end_per_s") if "jasmin" in runs else 0.0
    lines = [
        "| | end to end /s | × Kannel | × Jasmin | accept p50 ms | accept p99 ms | CPU µs a message | missing | twice |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, of in runs.items():
        rate = middle(of, "end_to_end_per_s")
        lines.append(
            f"| {name} | {rate:,.0f} | {_ratio(rate, kannel)} | {_ratio(rate, jasmin)} | {middle(of, 'latency_ms', 'p50'):.1f}"
            f" | {middle(of, 'latency_ms', 'p99'):.1f} | {middle(of, 'cpu_us_per_message'):.0f}"
            f" | {max(run['missing'] for run in of)} | {max(run['twice'] for run in of)} |"
        )
        if "half_load" in of[0]:
            lines.append(
                f"| {name}, at half load | {middle(of, 'half_load', 'end_to_end_per_s'):,.0f} | | "
                f"| {middle(of, 'half_load', 'latency_ms', 'p50'):.1f} | {middle(of, 'half_load', 'latency_ms', 'p99'):.1f}"
                f" | {middle(of, 'half_load', 'cpu_us_per_message'):.0f} | | |"
            )
    return "\n".join(lines)


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else "–"


def plots(runs: Runs, folder: Path) -> list[Path]:
    """Throughput, latency and CPU as bars."""
    names = list(runs)
    charts = {
        "throughput": ("End to end, messages a second (more is better)", [("", "end_to_end_per_s")]),
        "latency": (
            "Time to the answer at full load, ms (less is better)",
            [("p50", "latency_ms.p50"), ("p90", "latency_ms.p90"), ("p99", "latency_ms.p99")],
        ),
        "cpu": ("CPU of all the gateway's processes, µs a message (less is better)", [("", "cpu_us_per_message")]),
    }
    written = []
    for chart, (title, series) in charts.items():
        values = {name: [(label, middle(runs[name], *path.split("."))) for label, path in series] for name in names}
        path = folder / f"{chart}.svg"
        path.write_text(bars(title, values), encoding="utf-8")
        written.append(path)
    return written


_SHADES = ("#1f5fa8", "#6c9bd2", "#b9cfea")
_LEFT, _WIDTH, _BAR = 260, 900, 16


def bars(title: str, rows: dict[str, list[tuple[str, float]]]) -> str:
    """Horizontal bars, each with its figure; no script, readable on light and dark."""
    most = max((value for row in rows.values() for _, value in row), default=1.0) or 1.0
    y, body = 44, []
    for name, row in rows.items():
        body.append(
            f'<text x="{_LEFT - 8}" y="{y + 12 + (len(row) - 1) * _BAR / 2}" text-anchor="end">{escape(name)}</text>'
        )
        for shade, (label, value) in zip(_SHADES, row, strict=False):
            width = (_WIDTH - _LEFT - 110) * value / most
            figure = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
            body.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 3}" fill="{shade}"/>')
            body.append(f'<text x="{_LEFT + width + 5:.1f}" y="{y + 11}">{figure}{" " + label if label else ""}</text>')
            y += _BAR
        y += 8
    style = "text{font:12px sans-serif;fill:#222}@media(prefers-color-scheme:dark){text{fill:#ddd}}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 8}" role="img" aria-label="{escape(title)}">'
        f'<style>{style}</style><text x="10" y="24" style="font-size:15px;font-weight:bold">{escape(title)}</text>'
        + "".join(body)
        + "</svg>\n"
    )
