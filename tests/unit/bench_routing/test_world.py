"""The simulated world is honest: what happens has the probabilities that the judge uses, and nothing depends on who looks."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from bench.routing.world import World, load


@pytest.fixture(scope="module")
def world() -> World:
    parameters = deepcopy(load())
    parameters["time"]["messages_per_s"] = 2.0
    return World(parameters, seed=3)


def test_the_same_seed_gives_the_same_world(world: World) -> None:
    again = World(world.parameters, seed=3)
    assert again.events == world.events
    assert again.messages.body == world.messages.body
    assert np.array_equal(again.utility, world.utility)
    other = World(world.parameters, seed=9)
    assert other.count != world.count


def test_outcomes_have_the_probabilities_of_the_truth(world: World) -> None:
    """For each route where it may carry: delivered in time as often as said, within four standard errors."""
    for route in range(len(world.carriers.name)):
        rows = np.flatnonzero(world.available[:, route])
        seen = np.array([world.outcome(int(i), route).in_time for i in rows])
        truth = world.in_time[rows, route].astype(float)
        error = np.sqrt((truth * (1 - truth)).sum()) / len(rows)
        assert abs(seen.mean() - truth.mean()) < 4 * error + 1e-6


def test_utility_is_what_is_gained_on_average(world: World) -> None:
    """Value x delivered in time - price - latency price x the mean latency of those in time, by simulating the latency itself."""
    i = int(np.flatnonzero(world.messages.cls == 0)[0])
    route = int(world.candidates(i)[0])
    rng = np.random.default_rng(1)
    p, of = world.parameters["latency"], world.carriers
    z, slow = rng.normal(size=400_000), rng.random(400_000) < of.slow[route]
    seconds = np.exp(
        np.where(slow, np.log(p["slow_median_s"]) + p["slow_sigma"] * z, world.mu[i, route] + p["sigma"] * z)
    )
    in_time = seconds <= world.deadline_s[0]
    expected = (
        world.tenants.value[world.messages.tenant[i], 0] * world.delivered[i, route] * in_time.mean()
        - world.prices[i, route]
        - world.latency_price[0] * seconds[in_time].mean()
    )
    assert world.utility[i, route] == pytest.approx(expected, rel=0.01)


def test_events_do_what_they_say(world: World) -> None:
    events = {event.kind: event for event in world.events}
    assert set(events) == set(world.parameters["events"]) - {"jitter_s"}

    def rows(kind: str) -> np.ndarray:
        event, second = events[kind], world.messages.second
        return np.flatnonzero((second >= event.begins) & (second < event.ends) & world.available[:, event.route])

    outage = events["outage"]
    hit = rows("outage")
    assert not world.delivered[hit, outage.route].any()
    assert all(world.outcome(int(i), outage.route).receipt_at == 0 for i in hit)
    assert not any(world.outcome(int(i), outage.route).delivered for i in hit)
    errors = events["errors"]
    refused = np.mean([world.refuses(int(i), errors.route) for i in rows("errors")])
    assert refused == pytest.approx(0.95, abs=0.03)
    calm = deepcopy(world.parameters)
    calm["events"]["brown_out"]["points"] = 0.0
    brown = events["brown_out"]
    lost = (
        World(calm, seed=3).delivered[rows("brown_out"), brown.route] - world.delivered[rows("brown_out"), brown.route]
    )
    assert np.median(lost) == pytest.approx(0.20, abs=1e-3)


def test_the_faking_route_reports_what_conversions_deny(world: World) -> None:
    rows = np.flatnonzero(world.available[:, world.faker])
    outcomes = [world.outcome(int(i), world.faker) for i in rows]
    reported = [one.receipt_delivered for one in outcomes if one.receipt_at]
    assert np.mean(reported) > 0.97
    assert np.mean([one.delivered for one in outcomes]) < 0.45
    said = [one.converted for one in outcomes if one.converted_at]
    assert np.mean(said) < 0.45


def test_receipts_go_missing_as_often_as_said(world: World) -> None:
    for route in range(world.faker):
        rows = np.flatnonzero(world.available[:, route] & ~world.silent[:, route])
        outcomes = [world.outcome(int(i), route) for i in rows]
        missing = np.mean([one.receipt_at == 0 for one in outcomes if one.delivered])
        assert missing == pytest.approx(world.carriers.missing[route], abs=0.03)


def test_only_time_within_the_second_part_changes_the_truth(world: World) -> None:
    """In the stationary part neither drift nor event touches a route; the faking and the new route do not exist."""
    first = world.messages.second < world.stationary_s
    assert not world.available[first][:, [world.faker, world.new]].any()
    assert all(event.begins >= world.stationary_s for event in world.events)
    calm = deepcopy(world.parameters)
    calm["drift"]["sd_per_root_hour"] = 0.0
    assert np.allclose(World(calm, seed=3).delivered[first], world.delivered[first])
    assert (world.available.sum(axis=1) > 0).all()


def test_the_oracle_is_the_best_of_those_that_accept(world: World) -> None:
    for i in range(0, world.count, 997):
        route, value = world.best(i)
        accepting = [one for one in world.candidates(i) if not world.refuses(i, int(one))]
        assert value == max(float(world.utility[i, one]) for one in accepting)
        assert route in accepting
