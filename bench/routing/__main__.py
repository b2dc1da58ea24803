"""`python -m bench.routing [simulation|breaks|hostile|digits|speed] [--quick] [--seeds N] [--only NAME] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.routing.evaluate import seeds
from bench.routing.report import PARTS, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.routing", description="Route choice against a simulated world.")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="two seeds, and not those that take long")
    parser.add_argument("--seeds", type=int, default=0, help="the first so many; default: all")
    parser.add_argument("--only", action="append", default=[], help="an entrant; may be repeated")
    parser.add_argument("--again", action="store_true", help="measure again what is there already")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench/routing"))
    options = parser.parse_args()
    numbers = seeds(options.seeds) if options.seeds else ()
    print(
        run(
            options.out,
            options.parts,
            chosen=options.only,
            numbers=numbers,
            quick=options.quick,
            again=options.again,
            workers=options.workers,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
