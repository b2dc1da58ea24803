"""When to look at a message again."""

from __future__ import annotations

from controlplane.dispatch.timers import Wheel


class TestWheel:
    """An id comes out once its time has come, and never before; what is dropped does not come at all, and is not kept."""

    def test_due_is_up_to_a_second_late_and_never_early(self):
        wheel = Wheel()
        wheel.add(1_500, "a")
        wheel.add(2_000, "b")
        wheel.add(2_001, "c")
        assert wheel.due(1_999) == []
        assert wheel.due(2_000) == ["a", "b"]
        assert wheel.due(2_000) == []
        assert wheel.due(3_000) == ["c"]

    def test_dropped_ids_are_gone(self):
        wheel = Wheel()
        for number in range(100):
            wheel.add(5_000, f"m{number}")
        for number in range(99):
            wheel.drop(5_000, f"m{number}")
        wheel.drop(9_000, "never added")
        assert sum(map(len, wheel._slots.values())) == 1
        assert wheel.due(5_000) == ["m99"]
