"""Of two states of a record the later one counts, in whatever order, grouping and number they come."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.preferences import Reason
from controlplane.store.preference_news import Preferred, Record, Suppressed, merged

SUPPRESSION, PREFERENCE = "a" * 40, "b" * 32


def state(identity: str, updated: int, dc: str, gone: bool) -> Record:
    """One write is one state: what it says follows from when and where it was."""
    source = f"{dc} {updated}"
    if gone:
        says = None
    elif len(identity) == 40:
        says = Suppressed("+49*1", Reason.OPT_OUT, "", ["otp"], source, updated)
    else:
        says = Preferred("+49*1", "UTC", {}, "", [], source, updated)
    return Record(identity, "sample", updated, dc, says)


writes = st.lists(
    st.tuples(st.sampled_from([SUPPRESSION, PREFERENCE]), st.integers(0, 4), st.sampled_from(["fra", "iad", "sin"])),
    max_size=12,
).map(lambda places: [state(*place, gone=(place[1] * 7 + len(place[2] + place[0])) % 3 == 0) for place in places])


@given(writes, st.randoms())
def test_order_and_repetition_do_not_matter(records, random):
    shuffled = records + random.sample(records, len(records) // 2)
    random.shuffle(shuffled)
    assert merged(shuffled) == merged(records)


@given(writes, st.integers(0, 12))
def test_grouping_does_not_matter(records, cut):
    first, second = merged(records[:cut]), merged(records[cut:])
    assert merged([*first.values(), *second.values()]) == merged([*second.values(), *first.values()]) == merged(records)


@given(writes)
def test_what_counts_is_the_latest_and_by_the_name_at_the_same_time(records):
    for identity, counts in merged(records).items():
        assert counts.stamp == max((r.updated, r.dc) for r in records if r.id == identity)


@given(writes)
def test_a_record_survives_the_way(records):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(records), type=list[Record]) == records


@pytest.mark.parametrize("other", [{"id": PREFERENCE}, {"says": Preferred("", "", {}, "", [], "", 0)}])
def test_an_id_of_the_other_kind_makes_no_sense(other):
    record = msgspec.structs.replace(state(SUPPRESSION, 1, "fra", gone=False), **other)
    with pytest.raises(ValueError, match="cannot be the id"):
        record.document()
