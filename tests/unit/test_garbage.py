"""The node's own garbage collection: what dies late goes as well, before it fills the memory."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from controlplane import garbage


class Circle:
    """Keeps itself alive, and some memory with it."""

    def __init__(self) -> None:
        self.itself = self
        self.held = [str(n) for n in range(100)]


@pytest.fixture
async def collecting(monkeypatch):
    """With looks in quick succession, and little that may be lost."""
    monkeypatch.setattr(garbage, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(garbage, "_NEW_OBJECTS", 100)
    monkeypatch.setattr(garbage, "_COUNT_LOOKS", 5)
    monkeypatch.setattr(garbage, "_TIMES", 1)
    monkeypatch.setattr(garbage, "_MORE_BLOCKS", 500_000)
    task = asyncio.create_task(garbage.collect())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_circles_that_live_through_a_look_cannot_fill_the_memory(collecting):
    seen: list[weakref.ref[Circle]] = []
    for _ in range(100):
        alive = [Circle() for _ in range(300)]
        seen += map(weakref.ref, alive)
        await asyncio.sleep(0.004)
        del alive
    assert gc.get_freeze_count()
    left = sum(ref() is not None for ref in seen)
    assert left < len(seen) * 0.8, f"{left} of {len(seen)}"


async def test_the_collector_of_python_is_back_when_it_ends(monkeypatch):
    task = asyncio.create_task(garbage.collect())
    await asyncio.sleep(0)
    assert not gc.isenabled()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
