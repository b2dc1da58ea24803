"""The experiments on breaks at ten messages a second and on fake feedback do what they say."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from bench.routing import detect, hostile
from bench.routing.run import play, truth
from bench.routing.view import View
from bench.routing.world import World, load


def test_one_route_is_far_cheapest_everywhere_and_it_is_the_one_that_breaks() -> None:
    world = detect.world(3, "brown_out", quiet_s=120.0)
    route = next(event.route for event in world.events if event.kind == "brown_out")
    assert world.available[:, route].all()
    before = world.messages.second < world.stationary_s
    others = np.delete(np.where(world.available, world.prices, np.inf), route, axis=1).min(axis=1)
    assert (world.prices[before, route] <= 0.5 * others[before]).all()
    lost = world.delivered[before, route].mean() - world.delivered[~before, route].mean()
    assert lost == pytest.approx(0.2, abs=0.05)
    assert before.sum() / world.stationary_s == pytest.approx(11, abs=2)


def test_a_break_that_was_not_seen_is_not_a_quick_one() -> None:
    one = {"rate": 10.0, "share": 0.9, "seen_s": 40.0, "until_1_percent_s": 8.0, "early": []}
    found = {str(seed): dict.fromkeys(detect.BREAKS, one) for seed in range(9)}
    found["9"] = dict.fromkeys(detect.BREAKS, one | {"seen_s": None})
    assert "| 40 (40 … inf) |" in detect.table(found)


def test_hostile_tenants_lie_of_all_their_messages_and_only_of_theirs() -> None:
    parameters = deepcopy(load())
    parameters["time"]["messages_per_s"] = 2.0
    world = World(parameters, seed=1)
    view = View(world)
    told: list[tuple[str, str, bool]] = []
    policy = hostile.Flood(view, [0], target=1, begins_ms=world.begin_ms + 60_000, times=2)
    tell = policy.learner._trust.tell

    def listen(key: tuple[str, str, str, str], prefix: str, now_ms: int, *, delivered: bool, converted: bool) -> bool:
        told.append((key[0], key[1], converted))
        return tell(key, prefix, now_ms, delivered=delivered, converted=converted)

    policy.learner._trust.tell = listen  # type: ignore[method-assign]
    play(world, view, truth(world), policy, 300.0)
    lies = [(route, converted) for tenant, route, converted in told if tenant == "tenant-0"]
    assert len(lies) > 100
    assert sum(converted != (route != view.names[1]) for route, converted in lies) < 0.1 * len(lies)  # of before
    honest = {tenant for tenant, _, _ in told} - {"tenant-0"}
    assert honest == {world.tenants.name[at] for at in np.flatnonzero(world.tenants.reports)} - {"tenant-0"}
