"""Loops that end when they are told to.

On Python 3.11 a cancellation can be lost inside a library (`asyncio.wait_for` does it when its future completes in the same turn of the loop).
A loop without end would then go on for ever, and its TaskGroup with it. The request itself is not lost: the task remembers it.
"""

from __future__ import annotations

import asyncio

__all__ = ["going_on"]


def going_on() -> bool:
    """Whether nobody has asked the current task to end: the condition of every loop that would otherwise be `while True`."""
    task = asyncio.current_task()
    return task is None or not task.cancelling()
