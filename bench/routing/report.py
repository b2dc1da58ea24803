"""The whole of it: the simulation, how soon breaks are seen, fake feedback, the off-policy estimators on digits, the speed of decisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.routing import detect, digits, hostile, speed
from bench.routing.evaluate import evaluate, names, repeated, seeds
from bench.routing.plots import plots
from bench.routing.tables import table
from bench.routing.world import load

__all__ = ["PARTS", "run"]

PARTS = ("simulation", "breaks", "hostile", "digits", "speed")
_SLOW = ("vw", "TS")
_REPEATED_S = 3_600.0
_HOSTILE_SEEDS = 5


def run(
    folder: Path,
    parts: Sequence[str] = PARTS,
    *,
    chosen: Sequence[str] = (),
    numbers: Sequence[int] = (),
    quick: bool = False,
    again: bool = False,
    workers: int = 2,
) -> str:
    """Writes JSON, SVG and table.md into the folder, and returns the tables. `quick`: two seeds without those that take long, five runs of digits."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rest.json"
    rest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    texts = ["All of this is simulated: see bench/routing/world.py."]
    if "simulation" in parts:
        who = chosen or [name for name in names() if not (quick and name.startswith(_SLOW))]
        found = evaluate(who, numbers or seeds(2 if quick else 0), folder, workers=workers, again=again)
        plots(found, load(), folder)
        texts.append(table(found))
        if not chosen:
            rest["repeated"] = repeated(seeds()[0], _REPEATED_S)
    if "repeated" in rest:
        count, same = rest["repeated"]
        texts.append(f"The same hour played twice: {same:,} of {count:,} decision records identical.")
    if "breaks" in parts:
        rest["breaks"] = detect.detect(numbers or seeds(2 if quick else 0), workers=workers)
    if "breaks" in rest:
        texts.append(detect.table(rest["breaks"]))
    if "hostile" in parts:
        rest["hostile"] = hostile.flood(numbers or seeds(1 if quick else _HOSTILE_SEEDS), workers=workers)
    if "hostile" in rest:
        texts.append(hostile.table(rest["hostile"]))
    if "digits" in parts:
        rest["digits"] = digits.run(5 if quick else digits.RUNS)
    if "digits" in rest:
        texts.append(digits.table(rest["digits"]))
    if "speed" in parts:
        rest["speed"] = speed.measure(1 if quick else 3)
    if "speed" in rest:
        texts.append(speed.table(rest["speed"]))
    path.write_text(json.dumps(rest, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(texts)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    return text
