"""The learner as a node drives it: decisions are recorded and replayed, outcomes move traffic, and nothing moves it too far."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from controlplane.domain.catalog import MessageClass, Route, SenderType
from controlplane.routing import Arm, Candidate, Learner, RouteRequest, Terms, Tuning
from controlplane.routing.decision import HEADER, OUTLOOK, Decision, replay, same, unpack, words

NOW = 1_788_220_800_000
NUMBERS = ("+4915112345678", "+491520123456", "+33607123456", "+447300123456")


def candidates(**prices: int) -> tuple[Candidate, ...]:
    found = [Candidate(Route(name=name, connector=f"c-{name}"), price, "", True) for name, price in prices.items()]
    return tuple(sorted(found, key=lambda item: item.price))


def request(n: int, cls: MessageClass = MessageClass.TRANSACTIONAL, tenant: str = "t", **values) -> RouteRequest:
    return RouteRequest(
        **{
            "tenant": tenant,
            "to": NUMBERS[n % len(NUMBERS)],
            "sender_type": SenderType.LONG,
            "cls": cls,
            "parts": 1,
            "body": "Your order 12 is ready",
            "encoding": "gsm7",
            "mid": f"m{n}",
            **values,
        }
    )


class World:
    """Routes that deliver with a probability, after a lognormal delay; a message a tenth of a second."""

    def __init__(self, learner: Learner, delivers: dict[str, float], prices: dict[str, int], seed: int = 1) -> None:
        self.learner, self.delivers, self.now = learner, delivers, NOW
        self.offered = candidates(**prices)
        self.rng = np.random.default_rng(seed)
        self.receipts: list[tuple[int, str]] = []
        self.count = 0
        self.decisions: list[Decision] = []
        self.chosen: list[str] = []

    def run(
        self, seconds: int, cls: MessageClass = MessageClass.TRANSACTIONAL, tenants: tuple[str, ...] = ("t",)
    ) -> list[str]:
        chosen: list[str] = []
        for _ in range(seconds // 2):
            self.now += 2_000
            while self.receipts and self.receipts[0][0] <= self.now:
                at, mid = heapq.heappop(self.receipts)
                self.learner.receipt(mid, True, at)
            requests = [request(self.count + i, cls, tenants[(self.count + i) % len(tenants)]) for i in range(20)]
            self.count += 20
            decisions = self.learner.decide(requests, [self.offered] * 20, self.now)
            for item, decision in zip(requests, decisions, strict=True):
                self.learner.submitted(item.mid, decision.chosen, item, self.now)
                if self.rng.random() < self.delivers[decision.chosen]:
                    delay = int(self.rng.lognormal(1.3, 0.7) * 1_000)
                    heapq.heappush(self.receipts, (self.now + delay, item.mid))
            self.decisions += decisions
            chosen += [decision.chosen for decision in decisions]
        return chosen

    def drain(self, seconds: int) -> None:
        """No more messages; what is under way comes in."""
        end = self.now + seconds * 1_000
        for at, mid in sorted(self.receipts):
            self.learner.tick(at)
            self.learner.receipt(mid, True, at)
        self.learner.tick(end)
        self.now = end


def share(chosen: list[str], route: str) -> float:
    return chosen.count(route) / len(chosen)


class TestLearning:
    """Traffic goes where utility is best, and leaves what breaks."""

    def test_finds_the_better_route_and_leaves_it_when_it_goes_silent(self):
        world = World(Learner(node="n"), {"cheap": 0.6, "good": 0.96, "dear": 0.97}, {"cheap": 2, "good": 4, "dear": 9})
        world.run(240)
        assert share(world.run(60), "good") > 0.9
        world.delivers["good"] = 0.0
        lost = world.run(12)
        assert share(lost[-20:], "good") <= 0.1
        assert lost.count("good") <= 110
        assert share(world.run(60), "good") < 0.03

    def test_a_brown_out_is_seen_in_a_minute_and_does_not_pass_for_usual(self):
        learner = Learner(Tuning(usual_after_ms=90_000), node="n")
        world = World(learner, {"good": 0.9}, {"good": 4}, seed=4)
        world.run(150)
        assert not learner.breaks
        began, world.delivers["good"] = world.now, 0.7
        world.run(110)
        found = learner.breaks[0]
        assert (found.route, found.country, found.kind) == ("good", "", "brownout")
        assert found.at - began <= 75_000
        assert found.ratio == pytest.approx(0.78, abs=0.06)
        assert len(learner.breaks) == 1

    def test_what_is_expected_of_the_chosen_route_comes_true(self):
        learner = Learner(node="n")
        routes = {f"r{n}": 0.75 for n in range(12)}
        world = World(learner, routes, dict.fromkeys(routes, 4), seed=9)
        world.run(1_200)
        seen = [unpack(decision.record) for decision in world.decisions[-4_000:]]
        assert np.mean([one.outlook.p for one in seen]) == pytest.approx(0.75, abs=0.02)
        raw = np.mean([next(c.p for c in one.candidates if c.route == one.chosen) for one in seen])
        assert abs(np.mean([one.outlook.p for one in seen]) - 0.75) < abs(raw - 0.75)
        assert all(one.outlook.low < one.outlook.p < one.outlook.high for one in seen)

    def test_receipts_under_way_do_not_make_a_route_look_bad(self):
        learner = Learner(node="n")
        world = World(learner, {"good": 0.95}, {"good": 4})
        world.run(200)
        ps = [decision.candidates[0].p for decision in world.decisions[-300:]]
        assert np.mean(ps) == pytest.approx(0.95, abs=0.02)
        assert min(ps) > 0.9

    def test_refusals_open_the_breaker_and_the_reason_says_so(self):
        learner = Learner(node="n")
        offered = candidates(cheap=2, good=4)
        for n in range(20):
            learner.refused("cheap", request(n), NOW + n, connector="c-cheap")
        decision = learner.decide([request(99)], [offered], NOW + 100)[0]
        assert decision.ranked == ("good", "cheap")
        assert ("cheap", "breaker_open") in decision.excluded
        assert "not delivering" in decision.reason
        assert ("cheap", "", "") in learner.open_breakers()
        assert learner.breaks[0].kind == "refusals"

    def test_permanent_refusals_are_the_messages_own(self):
        learner = Learner(node="n")
        for n in range(50):
            learner.refused("cheap", request(n), NOW + n, permanent=True, connector="c-cheap")
        assert not learner.open_breakers()

    def test_many_routes_that_no_decision_named(self):
        learner = Learner(node="n")
        for n in range(400):
            learner.submitted(f"m{n}", f"r{n}", request(n), NOW + n, connector="c")
        for second in (1, 25, 130, 700):
            learner.tick(NOW + second * 1_000)
        offered = candidates(**{f"r{n}": 3 for n in range(300)})
        decision = learner.decide([request(1)], [offered], NOW + 701_000)[0]
        assert all(0 < item.p < 1 for item in decision.candidates)
        assert len(decision.candidates) == 255
        assert same(decision.record)

    def test_late_receipts_are_late(self):
        learner = Learner(node="n")
        learner.submitted("m0", "good", request(0, MessageClass.OTP), NOW, connector="c")
        learner.tick(NOW + 31_000)
        learner.receipt("m0", True, NOW + 40_000)
        learner.receipt("m0", True, NOW + 41_000)
        learner.tick(NOW + 42_000)
        found = learner.routes(NOW + 42_000)["good", "otp"]
        assert (found["tries"], found["in_time"], found["late"]) == pytest.approx((1, 0, 1), abs=0.01)


class TestDecisions:
    """A decision's record is compact and makes the same decision again."""

    def test_replay_is_identical(self):
        world = World(Learner(node="n"), {"a": 0.9, "b": 0.93, "c": 0.7}, {"a": 3, "b": 4, "c": 2}, seed=5)
        for cls in MessageClass:
            world.run(60, cls)
        world.delivers["b"] = 0.0
        world.run(60)
        assert len(world.decisions) == 2_400
        assert all(same(decision.record) for decision in world.decisions)
        assert all(same(decision.encoded) for decision in world.decisions[::50])
        assert {decision.chosen for decision in world.decisions} == {"a", "b", "c"}

    def test_size(self):
        decision = Learner(node="n").decide(
            [request(0)], [candidates(**{f"route-{i:02d}": i for i in range(20)})], NOW
        )[0]
        assert HEADER.size == 64
        assert len(decision.record) <= 64 + 20 * 40 + OUTLOOK.size

    def test_unpacked(self):
        learner = Learner(node="n")
        decision = learner.decide([request(0)], [candidates(a=3, b=5)], NOW, Terms(30.0, 1.0, 0.5), shadow=True)[0]
        seen = unpack(decision.record)
        assert (seen.value, seen.latency_price, seen.cls, seen.shadow, seen.at) == (
            30.0,
            0.5,
            "transactional",
            True,
            NOW,
        )
        assert [item.route for item in seen.candidates] == ["a", "b"]
        a = seen.candidates[0]
        assert a.low < a.p < a.high
        assert a.utility == pytest.approx(30 * a.p - 3 - 0.5 * a.latency, abs=0.01)
        assert decision.chosen == seen.chosen == "a"
        assert words(decision.record).startswith("a: cheapest of 2 within 1 % of the best delivery; ")
        assert seen.outlook.p == pytest.approx(a.p, abs=1e-4)  # nothing was learned yet

    def test_a_changed_input_is_noticed(self):
        record = bytearray(Learner(node="n").decide([request(0)], [candidates(a=3, b=5)], NOW)[0].record)
        record[64] ^= 0x80
        assert not same(bytes(record))

    def test_a_record_of_before_the_outlook_is_still_read(self):
        record = Learner(node="n").decide([request(0)], [candidates(a=3, b=5)], NOW)[0].record
        former = b"\x01" + record[1 : -OUTLOOK.size]
        assert same(former)
        seen = unpack(former)
        assert seen.outlook == (seen.candidates[0].p, seen.candidates[0].low, seen.candidates[0].high)
        with pytest.raises(ValueError, match="lengths"):
            replay(b"\x01" + record[1:])

    @pytest.mark.parametrize("record", [b"", b"\x03" + b"\0" * 63, b"\x01\x01" + b"\0" * 62, "!!!"])
    def test_what_is_no_record_is_refused(self, record):
        with pytest.raises(ValueError):
            replay(record)

    def test_the_seed_is_the_messages(self):
        learner = Learner(node="n")
        offered = candidates(a=3, b=5)
        first, second, other = (
            unpack(learner.decide([request(number)], [offered], NOW)[0].record).seed for number in (7, 7, 8)
        )
        assert first == second != other

    def test_lists_and_tuples_are_decided_alike(self):
        learner = Learner(node="n")
        offered = candidates(a=3, b=5)
        one, other = learner.decide([request(1), request(1)], [offered, list(offered)], NOW)
        assert one.ranked == other.ranked

    @pytest.mark.parametrize("dear", [3, 9])
    def test_whatever_was_decided_before(self, dear):
        """Scores are kept by what they go by: a field that were forgotten there would give one message another's decision."""
        met, offered = Learner(node="n"), candidates(a=3, b=dear)
        others = (
            {"to": "+33607123456"},
            {"sender_type": SenderType.ALPHANUMERIC},
            {"cls": MessageClass.OTP},
            {"parts": 2},
            {"body": "Your order is ready"},
            {"body": ""},
            {"encoding": "ucs2"},
            {"origin": "fr"},
            {"tenant": "u"},
        )
        asked = [(request(0, **values), offered, None) for values in ({}, *others)]
        asked += [(request(0), offered, Terms(20.0)), (request(0), candidates(a=3, b=dear, c=4), None)]
        alone = [Learner(node="n").decide_one(item, plan, NOW, terms).record for item, plan, terms in asked]
        assert len({unpack(record).features for record in alone}) == len(others) - 1  # class and tenant are no features
        for _ in range(2):
            one_by_one = [met.decide_one(item, plan, NOW, terms, dry=True) for item, plan, terms in asked]
            assert [decision.record for decision in one_by_one] == alone
        requests, plans, terms = zip(*asked, strict=True)
        together = met.decide(requests, plans, NOW, terms, dry=True)
        assert [decision.record for decision in together] == alone


class TestBounds:
    """Exploration stays within its budget, and estimated utility above the static order's."""

    def test_budget_and_constraint(self):
        learner = Learner(node="n")
        world = World(learner, {"a": 0.85, "b": 0.95, "c": 0.93}, {"a": 3, "b": 4, "c": 4}, seed=2)
        world.run(100)
        gained = floor = 0.0
        world.decisions.clear()
        world.run(200)
        explored = 0
        for decision in world.decisions:
            seen = unpack(decision.record)
            by_name = {item.route: item for item in seen.candidates}
            gained += by_name[seen.chosen].utility
            floor += 0.99 * seen.candidates[0].utility
            explored += by_name[seen.chosen].propensity < 0.5
            assert seen.surplus >= 0
        assert gained >= floor
        assert 0 < explored / len(world.decisions) <= 0.02

    def test_a_new_route_that_looks_better_is_held_back_until_it_is_known(self):
        learner = Learner(Tuning(established=500), node="n")
        world = World(learner, {"old": 0.9, "new": 0.97}, {"old": 4})
        world.run(100, MessageClass.MARKETING)
        world.offered = candidates(old=4, new=3)
        first = world.run(80, MessageClass.MARKETING)
        assert 0 < share(first, "new") < 0.07
        assert share(world.run(200, MessageClass.MARKETING)[-600:], "new") > 0.9

    def test_when_the_known_route_breaks_a_newcomer_does_not_take_its_place(self):
        learner = Learner(Tuning(established=500), node="n")
        world = World(learner, {"old": 0.95, "second": 0.9, "new": 0.99}, {"second": 5})
        world.run(30, MessageClass.MARKETING)
        world.offered = candidates(old=4, second=5)
        world.run(60, MessageClass.MARKETING)
        learner.feedback(
            Arm("old", "c-old", NUMBERS[0], "otp", True), True, "t", world.now
        )  # so that routes are checked
        world.offered = candidates(old=4, second=5, new=2)
        world.run(40, MessageClass.MARKETING)
        for n in range(20):
            learner.refused("old", request(n), world.now, connector="c-old")
        chosen = world.run(30, MessageClass.MARKETING)
        assert "old" not in chosen
        assert share(chosen, "new") <= 0.1

    @pytest.mark.parametrize(("reporting", "known"), [(("a", "b", "c"), False), (("a", "b"), True)])
    def test_traffic_alone_makes_no_route_known_where_enough_tenants_could_vouch_for_it(self, reporting, known):
        learner = Learner(Tuning(established=300, unaudited=5_000), node="n")
        world = World(learner, {"old": 0.9, "new": 0.97}, {"old": 4})
        world.run(100, MessageClass.MARKETING)
        for tenant in reporting:
            for n in range(40):
                learner.feedback(Arm("old", "c-old", NUMBERS[n % 4], "otp", True), n % 6 > 0, tenant, world.now)
        world.offered = candidates(new=4)
        world.run(60, MessageClass.MARKETING)
        world.offered = candidates(old=4, new=3)
        chosen = world.run(30, MessageClass.MARKETING)
        assert (share(chosen, "new") > 0.9) is known
        assert known or share(chosen, "new") < 0.1

    def test_without_surplus_nothing_is_explored(self):
        learner = Learner(node="n")
        decision = learner.decide([request(0)], [candidates(a=3, b=3)], NOW)[0]
        assert decision.candidates[0].propensity == 1.0
        assert not unpack(decision.record).explored


class TestFeedback:
    """Feedback outranks receipts, and one tenant's moves only its own view."""

    def test_a_faking_route_loses_its_traffic(self):
        learner = Learner(node="n")
        tenants = ("t0", "t1", "t2")
        world = World(learner, {"fake": 0.98, "good": 0.95, "fine": 0.94}, {"fake": 2, "good": 4, "fine": 4}, seed=3)
        rng = np.random.default_rng(6)
        for _ in range(6):
            before = len(world.decisions)
            chosen = world.run(60, MessageClass.OTP, tenants)
            for i in range(0, 600, 5):
                n = before + i
                really = chosen[i] != "fake"
                arm = Arm(chosen[i], f"c-{chosen[i]}", NUMBERS[n % 4], "otp", True)
                learner.feedback(arm, bool(rng.random() < (0.85 if really else 0.02)), tenants[n % 3], world.now)
        assert share(world.run(60, MessageClass.OTP, tenants), "fake") <= 0.005

    def test_a_flood_of_lies_moves_no_other_tenant(self):
        learner = Learner(node="n")
        world = World(learner, {"good": 0.96, "dear": 0.97}, {"good": 4, "dear": 9})
        world.run(120)
        before = learner.decide([request(1)], [world.offered], world.now)[0].candidates[0].p
        for n in range(5_000):
            learner.feedback(Arm("good", "c-good", NUMBERS[n % 4], "transactional", True), False, "liar", world.now + n)
            learner.feedback(Arm("dear", "c-dear", NUMBERS[n % 4], "transactional", True), True, "liar", world.now + n)
        world.drain(10)
        other, liar = (
            learner.decide([request(1, tenant=tenant)], [world.offered], world.now)[0] for tenant in ("t", "liar")
        )
        assert other.candidates[0].p == pytest.approx(before, abs=0.03)
        assert other.chosen == "good"
        assert liar.candidates[0].p < 0.5

    def test_feedback_before_the_receipt_waits_for_it(self):
        learner = Learner(node="n")
        for n in range(40):
            for route in ("a", "b"):
                learner.submitted(f"{route}{n}", route, request(n, MessageClass.OTP), NOW + n, connector="c")
                learner.feedback(f"{route}{n}", True, "t", NOW + n)
                learner.receipt(f"{route}{n}", True, NOW + 3_000)
        learner.tick(NOW + 40_000)
        assert all(trust.heard == 1.0 for trust in (learner._trust.of("t") or {}).values())
        assert learner._trust.of("t")


class TestSharing:
    """Nodes add; a node goes on from where it was."""

    def taught(self, node: str, delivers: float) -> Learner:
        world = World(Learner(node=node), {"a": delivers, "b": 0.9}, {"a": 3, "b": 4})
        world.run(120)
        world.drain(700)
        self.now = world.now
        return world.learner

    def test_a_peer_teaches(self):
        state = self.taught("one", 0.3).export(self.now)
        fresh = Learner(node="two")
        offered = candidates(a=3, b=4)
        assert fresh.decide([request(0)], [offered], self.now)[0].chosen == "a"
        for _ in range(2):
            fresh.merge("one", state, self.now)
        assert fresh.decide([request(0)], [offered], self.now + 1_000)[0].chosen == "b"

    def test_own_state_is_not_merged_and_restores_exactly(self):
        learner = self.taught("one", 0.3)
        state = learner.export(self.now)
        learner.merge("one", state, self.now)
        assert learner.export(self.now) == state
        again = Learner(node="one")
        again.restore(state)
        assert again.export(self.now) == state

    def test_a_receipt_that_came_to_another_node_finds_its_message(self):
        one, two = Learner(node="one"), Learner(node="two")
        one.submitted("m0", "good", request(0), NOW, connector="c")
        assert one.remembers("m0")
        assert not two.remembers("m0")
        two.receipt("m0", True, NOW + 4_000)
        one.merge("two", two.export(NOW + 5_000), NOW + 5_000)
        one.merge("two", two.export(NOW + 6_000), NOW + 6_000)
        one.tick(NOW + 700_000)
        assert one.routes(NOW + 700_000)["good", "transactional"]["in_time"] == pytest.approx(1.0)

    @pytest.mark.parametrize("state", [b"", b"HRS2" + b"\0" * 20 + b"x", b"XXXX" + b"\0" * 20])
    def test_what_is_no_state_is_refused(self, state):
        with pytest.raises(ValueError):
            Learner(node="n").merge("other", state, NOW)


def test_tuning_can_be_changed():
    learner = Learner(Tuning(prior=0.5), node="n")
    assert learner.decide([request(0)], [candidates(a=3)], NOW)[0].candidates[0].p == pytest.approx(0.5, abs=0.01)
