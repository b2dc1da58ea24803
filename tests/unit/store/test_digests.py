"""A DigestSet is a set."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from controlplane.store import digests
from controlplane.store.digests import DigestSet

numbers = st.integers(0, 2**64 - 1) | st.integers(0, 50)


@given(st.lists(numbers), st.lists(numbers), st.lists(numbers))
def test_it_has_what_was_put_in(first, later, others):
    found = DigestSet(array("Q", first))
    for number in later:
        found.add(number)
    everything = set(first) | set(later)
    assert len(found) == len(everything)
    assert all(number in found for number in everything)
    assert all((number in found) == (number in everything) for number in others)


def test_what_is_added_is_sorted_in(monkeypatch):
    monkeypatch.setattr(digests, "_RECENT", 3)
    found = DigestSet(array("Q"))
    for number in range(2_000, 0, -3):
        found.add(number)
    assert list(found._sorted) == sorted(found._sorted)
    assert len(found._sorted) > 600
    assert [number in found for number in range(1, 2_001)] == [number % 3 == 2 for number in range(1, 2_001)]
