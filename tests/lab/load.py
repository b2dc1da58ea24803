"""A client that sends through a fault: `python -m tests.lab.load SPEC.json` offers messages at a rate, tries each again until it is accepted, writes down all.

As a developer's service would: one Idempotency-Key a message, the next node after an error; a node that failed is left alone for `skip` seconds and then
asked whether it is ready, as load balancers do (0 = sent to again at once). One line of JSON per attempt:
`{"n", "at", "ms", "ok", "id" | "why"}`; `at` is this machine's monotonic time, seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["Ledger", "read"]

ATTEMPT_SECONDS = 15
GIVE_UP_SECONDS = 120


async def _one(session: aiohttp.ClientSession, spec: dict[str, Any], n: int, out: Any, away: dict[str, float]) -> None:
    """Messages `n` to `n` + `batch` - 1, in one request."""
    numbers = range(n, n + spec["batch"])
    messages = [
        {
            "to": f"+9990000{number % 10_000:04d}001",
            "body": f"message {number} of the lab",
            "class": "otp",
            "reference": f"{spec['name']}-{number}",
        }
        for number in numbers
    ]
    path, body = ("/v1/messages", messages[0]) if spec["batch"] == 1 else ("/v1/batches", {"messages": messages})
    headers = {"authorization": f"Bearer {spec['key']}", "idempotency-key": f"{spec['name']}-{n}"}
    end = time.monotonic() + GIVE_UP_SECONDS
    for attempt in range(1_000):
        begun = time.monotonic()
        ready = [url for url in spec["urls"] if away.get(url, 0) <= begun] or spec["urls"]
        url = ready[(n // spec["batch"] + attempt) % len(ready)]
        if spec["skip"] and url in away and begun < end:
            if not await _is_ready(session, url):
                away[url] = time.monotonic() + spec["skip"]
                await asyncio.sleep(0.2)
                continue
            away.pop(url, None)
        ids, why = [], ""
        try:
            async with session.post(f"{url}{path}", json=body, headers=headers) as answer:
                document = await answer.json(content_type=None)
                results = document.get("results", [document])
                refused = [one["error"]["status"] for one in results if "error" in one]
                why = str(refused[0]) if refused else "" if answer.status == 202 else str(answer.status)
                ids = [one["id"] for one in results] if not why else []
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, OSError) as error:
            why = type(error).__name__
        ended = time.monotonic()
        for at, number in enumerate(numbers):
            line = {"n": number, "at": begun, "ok": not why, "ms": round((ended - begun) * 1000, 1)}
            out.write(json.dumps(line | ({"why": why} if why else {"id": ids[at]})) + "\n")
        if not why or why == "422" or ended > end:  # what is wrong stays wrong
            return
        away[url] = ended + spec["skip"]
        await asyncio.sleep(min(0.2 * 2**attempt, 2.0))


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/readyz") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def _send(spec: dict[str, Any]) -> None:
    context = ssl.create_default_context(cafile=spec["ca"])
    timeout = aiohttp.ClientTimeout(total=ATTEMPT_SECONDS, connect=3)
    stop = Path(spec["stop"])
    with Path(spec["out"]).open("w", buffering=1) as out:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=500), timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            begun, n, away = time.monotonic(), 0, dict[str, float]()
            while not stop.exists() and time.monotonic() < begun + spec["seconds"]:
                group.create_task(_one(session, spec, n, out, away))
                n += spec["batch"]
                await asyncio.sleep(max(0.0, begun + n / spec["rate"] - time.monotonic()))


@dataclass
class Ledger:
    """What the client wrote down."""

    accepted: dict[int, str]
    """Message → id."""
    refused: list[dict[str, Any]]
    """Attempts that failed."""
    offered: int
    ok_at: list[float]
    ms: list[float]

    def outage(self, since: float, until: float) -> float:
        """The longest time without an acceptance between two moments, seconds."""
        moments = [since, *sorted(at for at in self.ok_at if since <= at <= until), until]
        return max(b - a for a, b in itertools.pairwise(moments))

    def errors(self, since: float, until: float) -> dict[str, Any]:
        """Attempts that failed between two moments: how many, of what kind, over how many seconds."""
        found = [one for one in self.refused if since <= one["at"] <= until]
        span = max((one["at"] for one in found), default=0) - min((one["at"] for one in found), default=0)
        return {"count": len(found), "kinds": dict(Counter(one["why"] for one in found)), "seconds": round(span, 1)}


def read(path: Path) -> Ledger:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    good = [line for line in lines if line["ok"]]
    return Ledger(
        accepted={line["n"]: line["id"] for line in good},
        refused=[line for line in lines if not line["ok"]],
        offered=len({line["n"] for line in lines}),
        ok_at=[line["at"] + line["ms"] / 1000 for line in good],
        ms=sorted(line["ms"] for line in good),
    )


if __name__ == "__main__":
    asyncio.run(_send(json.loads(Path(sys.argv[1]).read_text())))
