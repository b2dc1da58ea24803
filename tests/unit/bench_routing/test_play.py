"""The harness is fair: all policies meet the same luck, see only what a gateway sees, and are judged by the truth."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from bench.routing.labels import Labels
from bench.routing.measure import ece, measure
from bench.routing.plots import lines
from bench.routing.run import Truth, play, truth
from bench.routing.simple import BestFixed, Counting, LeastCost, Oracle
from bench.routing.view import View
from bench.routing.world import World, load


@pytest.fixture(scope="module")
def world() -> World:
    parameters = deepcopy(load())
    parameters["time"]["messages_per_s"] = 1.0
    return World(parameters, seed=1)


@pytest.fixture(scope="module")
def view(world: World) -> View:
    return View(world)


@pytest.fixture(scope="module")
def known(world: World) -> Truth:
    return truth(world)


def test_the_oracle_has_no_regret_but_for_refusals_and_all_others_have_some(
    world: World, view: View, known: Truth
) -> None:
    courses = {
        "oracle": play(world, view, known, Oracle(view, world)),
        "fixed": play(world, view, known, BestFixed(view, world)),
        "greedy": play(world, view, known, Counting(view, 1, feedback=True)),
        "least": play(world, view, known, LeastCost(view)),
    }
    for course in courses.values():
        assert (course.regret > -1e-3).all()
    accepted = courses["oracle"].first == courses["oracle"].final
    assert np.abs(courses["oracle"].regret[accepted]).max() < 1e-3
    assert np.array_equal(courses["oracle"].final[accepted], known.best[accepted])
    regrets = [course.regret.sum() for course in courses.values()]
    assert regrets == sorted(regrets)


def test_a_policy_hears_only_of_its_own_messages_and_never_before_they_were_sent(
    world: World, view: View, known: Truth
) -> None:
    heard: list[tuple[int, int]] = []
    sent: dict[int, int] = {}

    class Listens(LeastCost):
        def accepted(self, row: int, route: int, now_ms: int) -> None:
            sent[row] = now_ms

        def receipt(self, row: int, now_ms: int, *, delivered: bool) -> None:
            heard.append((row, now_ms))

        def feedback(self, row: int, now_ms: int, *, converted: bool) -> None:
            heard.append((row, now_ms))
            assert view.reports[row]

    play(world, view, known, Listens(view), until_s=1_200.0)
    assert heard
    assert all(now > sent[row] for row, now in heard)
    assert len(heard) < 2 * len(sent)


def test_labels_are_given_once_and_only_for_what_came_in_time(view: View) -> None:
    otp = next(row for row in range(view.count) if view.cls[row] == 0)
    labels = Labels(view, feedback=False)
    labels.accepted(otp, 0, 0)
    labels.receipt(otp, 31_000, delivered=True)
    labels.receipt(otp, 32_000, delivered=True)
    assert [label.y for label in labels.due(40_000)] == [0.0]
    labels.accepted(otp, 0, 0)
    assert labels.due(29_000) == []
    assert [label.y for label in labels.due(30_000)] == [0.0]
    assert labels.due(99_000) == []


def test_measured_shares_follow_the_choices(world: World, view: View, known: Truth) -> None:
    static = play(world, view, known, LeastCost(view))
    found = measure(world, view, known, static, LeastCost(view), static)
    event = next(event for event in world.events if event.kind == "faker")
    late = world.messages.second >= event.begins + 7_200
    assert found["faker_share"]["after_2_h"] == pytest.approx((static.first[late] == world.faker).mean())
    assert found["violations"]["minutes"] == 0
    assert found["regret"]["all"] == pytest.approx(found["regret"]["stationary"] + found["regret"]["breaks"])
    assert found["regret"]["breaks"] == pytest.approx(
        found["regret"]["breaks_faker"] + found["regret"]["breaks_others"]
    )
    assert found["outage"]["every"]
    oracle = measure(world, view, known, play(world, view, known, Oracle(view, world)), Oracle(view, world), static)
    assert oracle["outage"]["until_1_percent_s"] == 0.0
    assert oracle["outage"]["share_before"] > 0.05


def test_calibration_error_is_the_mean_gap() -> None:
    p = np.linspace(0.1, 0.9, 3_000)
    assert ece(p, p) < 1e-9
    assert ece(p, p - 0.05) == pytest.approx(0.05)


def test_a_plot_names_each_line() -> None:
    svg = lines("t", {"a & b": ([0, 1], [0.0, 1.0]), "c": ([0, 1], [1.0, 0.0])}, x="x", y="y", marks=[(0.5, "here")])
    assert svg.startswith("<svg")
    assert "a &amp; b" in svg
    assert svg.count("<polyline") == 2
