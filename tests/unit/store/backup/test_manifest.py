"""A manifest is believed when the region's key made it, and as it is."""

from __future__ import annotations

import json

import pytest

from controlplane.store.backup.manifest import (
    Accepted,
    Kept,
    Ledger,
    LogAt,
    Manifest,
    ManifestError,
    Part,
    opened,
    signed,
)
from controlplane.store.backup.part import Keys
from controlplane.store.backup.tally import Tally
from controlplane.store.backup.verify import differences

SECRET = b"a secret of at least thirty-two characters"
KEYS = Keys(SECRET, bytes(32))
PARTS = [Part("events.0000", 100, "ab", 3), Part("events.0001", 50, "cd", 1)]
MANIFEST = Manifest(
    format=1,
    id="b1",
    region="fra",
    cluster_time=(1_800_000_000, 7),
    seconds=1.5,
    heliograph="0.1.0",
    mongodb="6.0.5",
    salt=bytes(32).hex(),
    key_check=KEYS.check,
    collections=[
        Kept("events", 4, 40, f"{5:064x}", PARTS),
        Kept("meta", 0, 0, f"{0:064x}", [Part("meta.0000", 9, "ef", 0)]),
    ],
    left_out=["search_data"],
    accepted=[Accepted("fra", 2, f"{9:064x}")],
    ledger=Ledger("example.org", [], [LogAt("example.org/ledger/fra/2026q4", "fra", True, 4, "00")]),
)


def test_what_it_says() -> None:
    found, keys = opened(signed(MANIFEST, KEYS), SECRET)
    assert keys is not None
    assert found.mac
    assert (found.instant, found.size, found.documents, found.messages) == ("2027-01-15T08:00:00Z", 159, 4, 2)
    assert [(name, part.name) for name, part in found.parts] == [
        ("events", "events.0000"),
        ("events", "events.0001"),
        ("meta", "meta.0000"),
    ]
    assert opened(signed(MANIFEST, KEYS), None) == (found, None)


def test_every_field_is_authenticated() -> None:
    """Each value of the document, changed, is refused: also by adding and leaving out."""
    whole = json.loads(signed(MANIFEST, KEYS))

    def changed(value: object) -> list[object]:
        match value:
            case bool():
                return [not value]
            case str():
                return [value + "0", "00"]
            case int() | float():
                return [value + 1]
            case list():
                return [value[:-1], [*value, *value[:1], *([] if value else [1])], value[::-1]]
            case dict():
                return [{**value, "more": 1}, dict(list(value.items())[:-1])]
            case _:
                raise AssertionError(value)

    def each(value: object) -> list[object]:
        found = [one for one in changed(value) if one != value]
        if isinstance(value, dict):
            found += [{**value, key: one} for key, inner in value.items() for one in each(inner)]
        if isinstance(value, list):
            found += [[*value[:at], one, *value[at + 1 :]] for at, inner in enumerate(value) for one in each(inner)]
        return found

    tried = each(whole)
    assert len(tried) > 80
    for one in tried:
        with pytest.raises(ManifestError):
            opened(json.dumps(one).encode(), SECRET)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"format": 1}', b"null"])
def test_what_is_no_manifest(text: bytes) -> None:
    with pytest.raises(ManifestError):
        opened(text, SECRET)


def test_the_reasons() -> None:
    with pytest.raises(ManifestError, match="the key is not the one of this backup of 'fra'"):
        opened(signed(MANIFEST, KEYS), SECRET + b"!")
    with pytest.raises(ManifestError, match="was changed after it was written"):
        opened(signed(MANIFEST, KEYS).replace(b'"b1"', b'"b2"'), SECRET)
    with pytest.raises(ManifestError, match="is of format 2"):
        opened(signed(MANIFEST, KEYS).replace(b'"format": 1', b'"format": 2'), SECRET)


def tally(count: int, size: int, total: int) -> Tally:
    return Tally(count, size, total)


def test_differences() -> None:
    right = {"events": tally(4, 40, 5)}, {"fra": tally(2, 10, 9)}
    assert differences(MANIFEST, *right) == []
    assert differences(MANIFEST, {"events": tally(3, 40, 5)}, right[1]) == ["events has 3 documents, not 4"]
    assert differences(MANIFEST, {"events": tally(4, 40, 6)}, right[1]) == [
        "events has other documents than were backed up"
    ]
    assert differences(MANIFEST, {**right[0], "meta": tally(1, 1, 1)}, right[1]) == ["meta has 1 documents, not 0"]
    for accepted in ({}, {"fra": tally(1, 5, 9)}, {"fra": tally(2, 10, 8)}, {**right[1], "iad": tally(1, 1, 1)}):
        assert len(differences(MANIFEST, right[0], accepted)) == 1


def test_a_tally_does_not_depend_on_the_order() -> None:
    members = [bytes((n,)) * n for n in range(50)]
    one, two, three = Tally(), Tally(), Tally()
    one.add(members)
    two.add(members[30:][::-1])
    three.add(members[:30])
    two.join(three)
    assert one == two
    assert (one.count, one.size) == (50, sum(range(50)))
    two.add([members[0]])
    assert one.digest != two.digest
    assert len(one.digest) == 64
