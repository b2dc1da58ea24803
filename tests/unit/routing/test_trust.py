"""What receipts are worth: a route that fakes them is found, and a tenant that lies moves nobody but itself."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.routing.trust import FULL, Trust
from controlplane.routing.tuning import HOUR, Tuning

NOW = 1_788_220_800_000
HONEST = {"good": 0.85, "fine": 0.85, "fake": 0.02}


def tell(
    trust: Trust, tenant: str, route: str, converted: bool, at: int = NOW, *, delivered: bool = True, prefix: str = ""
) -> bool:
    return trust.tell(
        (tenant, route, "DE", "otp"), prefix or f"{route}{at}", at, delivered=delivered, converted=converted
    )


def world(trust: Trust, tenant: str, seed: int, n: int = 60) -> None:
    """A tenant's true feedback: n messages with a receipt on each route."""
    rng = np.random.default_rng(seed)
    for route, rate in HONEST.items():
        for i in range(n):
            tell(trust, tenant, route, bool(rng.random() < rate), NOW + i * 1_000)


class TestTrust:
    """A route's conversions against those of its peers, with the benefit of the doubt."""

    def test_a_faking_route_is_found_and_honest_ones_are_not_blamed(self):
        trust = Trust(Tuning())
        for tenant in range(3):
            world(trust, f"t{tenant}", tenant)
        assert trust.refresh(NOW + HOUR)
        view = trust.of("t0")
        assert view is not None
        assert view["fake"].honest < 0.25
        assert trust.shared["fake"].honest < 0.25
        assert view["good"].honest == view["fine"].honest == trust.shared["good"].honest == 1.0

    def test_missing_receipts_are_known_from_conversions(self):
        trust = Trust(Tuning())
        rng = np.random.default_rng(1)
        for tenant in range(3):
            for i in range(300):
                for route, missing in (("good", 0.05), ("mute", 0.4)):
                    has = bool(rng.random() >= missing)
                    tell(trust, f"t{tenant}", route, bool(rng.random() < 0.85), NOW + i * 1_000, delivered=has)
        trust.refresh(NOW + HOUR)
        view = trust.of("t0")
        assert view is not None
        for seen in (view, trust.shared):
            assert seen["mute"].heard == pytest.approx(0.6, abs=0.08)
            assert seen["good"].heard == pytest.approx(0.95, abs=0.04)
        assert 0.7 < trust.usual.heard < 0.9

    def test_without_peers_only_one_time_passwords_tell(self):
        trust = Trust(Tuning())
        for i in range(100):
            tell(trust, "t", "fake", False, NOW + i)
            trust.tell(("u", "fake", "DE", "marketing"), f"u{i}", NOW + i, delivered=True, converted=False)
        trust.refresh(NOW + HOUR)
        assert trust.of("t")["fake"].honest < 0.4
        assert trust.of("u")["fake"].honest == 1.0

    def test_a_busy_route_is_not_blamed_for_the_luck_of_a_few_messages_elsewhere(self):
        trust = Trust(Tuning())
        rng = np.random.default_rng(4)
        for i in range(1_500):
            tell(trust, "t", "busy", bool(rng.random() < 0.85), NOW + i * 1_000)
        for i in range(20):
            tell(trust, "t", "quiet", True, NOW + i * 1_000)
        trust.refresh(NOW + HOUR)
        assert trust.of("t")["busy"].honest > 0.98

    def test_a_route_is_checked_when_its_honesty_is_settled(self):
        trust = Trust(Tuning())
        assert trust.checked("good")
        for tenant in range(3):
            world(trust, f"t{tenant}", tenant)
        for i in range(4):
            for tenant in range(3):
                tell(trust, f"t{tenant}", "new", i < 3, NOW + i)
        trust.refresh(NOW + HOUR)
        assert [trust.checked(route) for route in ("good", "fake", "new", "unheard of")] == [True, False, False, False]
        assert [trust.caught(route) for route in ("good", "fake", "new", "unheard of")] == [False, True, False, False]

    def test_fades(self):
        trust = Trust(Tuning())
        for tenant in range(3):
            world(trust, f"t{tenant}", tenant)
        trust.changed = True
        trust.refresh(NOW + 60 * HOUR)
        assert trust.shared.get("fake", FULL).honest > 0.9


class TestHostile:
    """Feedback of one tenant never moves what others see."""

    @pytest.mark.parametrize("others", [0, 1, 2, 5])
    def test_a_flood_moves_only_the_liar(self, others):
        trust = Trust(Tuning())
        for tenant in range(others):
            world(trust, f"t{tenant}", tenant)
        trust.refresh(NOW + HOUR)
        before = {route: trust.shared[route].honest for route in trust.shared if route != "fake"}
        for i in range(20_000):
            tell(trust, "liar", "good", False, NOW + i * 100)
            tell(trust, "liar", "fine", True, NOW + i * 100)
        trust.refresh(NOW + HOUR)
        assert trust.of("liar")["good"].honest < 0.3
        assert trust.shared["good"].honest == before.get("good", 1.0) == 1.0
        for tenant in range(others):
            assert trust.of(f"t{tenant}")["good"].honest == 1.0

    def test_a_liar_cannot_clear_a_faking_route(self):
        trust = Trust(Tuning())
        for tenant in range(3):
            world(trust, f"t{tenant}", tenant)
        for i in range(20_000):
            tell(trust, "liar", "fake", True, NOW + i * 100)
            tell(trust, "liar", "good", True, NOW + i * 100)
        trust.refresh(NOW + HOUR)
        assert trust.shared["fake"].honest < 0.5
        assert trust.of("t0")["fake"].honest < 0.5

    @pytest.mark.parametrize("others", [2, 5])
    def test_a_liar_cannot_vouch_for_a_route_that_others_hardly_tried(self, others):
        trust = Trust(Tuning())
        for tenant in range(others):
            for i in range(60):
                tell(trust, f"t{tenant}", "good", i % 7 > 0, NOW + i * 1_000)
            for i in range(2):
                tell(trust, f"t{tenant}", "fake", i < 1, NOW + i * 1_000)
        for i in range(2_000):
            tell(trust, "liar", "fake", True, NOW + i * 1_000)
            tell(trust, "liar", "good", True, NOW + i * 1_000)
        trust.refresh(NOW + HOUR)
        assert trust.of("liar")["fake"].honest > 0.9
        assert not trust.checked("fake")

    @pytest.mark.parametrize("others", [3, 4, 6])
    def test_a_liar_does_not_unmake_a_route_in_use(self, others):
        trust = Trust(Tuning())
        for tenant in range(others):
            world(trust, f"t{tenant}", tenant)
        for i in range(2_000):
            tell(trust, "liar", "good", False, NOW + i * 1_000)
            tell(trust, "liar", "fine", True, NOW + i * 1_000)
            tell(trust, "liar", "fake", True, NOW + i * 1_000)
        trust.refresh(NOW + HOUR)
        assert [trust.plausible(route) for route in ("good", "fine", "fake", "unheard of")] == [
            True,
            True,
            False,
            False,
        ]
        assert not trust.caught("good")

    def test_of_eight_tenants_two_that_collude_move_nobody(self):
        trust = Trust(Tuning())
        for tenant in range(6):
            world(trust, f"t{tenant}", tenant)
        for liar in ("liar", "other liar"):
            for i in range(2_000):
                tell(trust, liar, "good", False, NOW + i * 1_000)
                tell(trust, liar, "fine", True, NOW + i * 1_000)
                tell(trust, liar, "fake", True, NOW + i * 1_000)
        trust.refresh(NOW + HOUR)
        assert trust.shared["good"].honest == 1.0
        assert trust.shared["fake"].honest < 0.25
        assert trust.checked("good")
        assert trust.caught("fake")
        assert trust.of("t0")["good"].honest == 1.0

    def test_caps(self):
        tuning = Tuning()
        trust = Trust(tuning)
        counted = [tell(trust, "t", "good", True, NOW, prefix="DE\tO2") for _ in range(100)]
        assert sum(counted) == tuning.feedback_per_prefix
        assert tell(trust, "t", "good", True, NOW + tuning.feedback_window_ms, prefix="DE\tO2")
        many = [tell(trust, "u", "good", True, NOW, prefix=str(i)) for i in range(3 * tuning.feedback_per_tenant)]
        assert sum(many) == tuning.feedback_per_tenant


class TestMerging:
    """Nodes' feedback adds, in any order."""

    def test_commutes_and_restores(self):
        nodes = []
        for tenant in range(3):
            node = Trust(Tuning())
            world(node, f"t{tenant}", tenant)
            nodes.append((f"n{tenant}", node.dump(NOW + 60_000)))
        found = []
        for order in (nodes, nodes[::-1] + nodes):
            trust = Trust(Tuning())
            for name, dump in order:
                trust.merge(name, dump)
            trust.refresh(NOW + HOUR)
            found.append(trust.shared)
        assert found[0] == found[1]
        assert found[0]["fake"].honest < 0.25
        again = Trust(Tuning())
        again.restore(nodes[0][1])
        assert again.dump(NOW + 60_000) == nodes[0][1]

    @pytest.mark.parametrize("state", [b"", b"junk", b"x\x9c\x8b\x8e\x05\x00\x01\x15\x00\xb9"])
    def test_what_is_no_dump_is_refused(self, state):
        with pytest.raises(ValueError):
            Trust(Tuning()).merge("n", state)
