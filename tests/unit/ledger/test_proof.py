"""A proof holds for what happened and for nothing else, and it says so in words: which event, and why not."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from bson.int64 import Int64
from hypothesis import given, settings
from hypothesis import strategies as hs

from controlplane.domain.events import Kind, committed_payload, leaf_hash
from controlplane.ledger.merkle import ProofError
from controlplane.ledger.note import Signer, derive, parse_note
from controlplane.ledger.proof import (  # fmt: skip
    EntryProof,
    EventProof,
    message_document,
    parse_document,
    parse_entry_proof,
    verify_document,
)
from tests.unit.ledger.sample import FRA, IAD, MID, TRUSTED, WITNESSES, Log, document, life, sealed, secret

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure

LIFE = life()
GOOD = document(LIFE)


def refused(changed, said: str, trusted=TRUSTED, require: int = 2) -> None:
    with pytest.raises(ProofError, match=said):
        verify_document(changed, trusted, require)


def with_events(change) -> dict:
    changed = copy.deepcopy(GOOD)
    change(changed["events"])
    return changed


class TestMessage:
    """The document shows what happened, event by event."""

    def test_all_of_it(self):
        report = verify_document(json.loads(json.dumps(GOOD)), TRUSTED, 2)
        assert (report.id, report.complete, report.pending) == (MID, True, ())
        assert [event.kind for event in report.events] == ["accepted", "submitted", "rerouted", "adopted", "delivered"]
        assert all(event.linked for event in report.events)
        assert [event.log for event in report.events] == [FRA.name] * 3 + [IAD.name] * 2
        assert report.events[0].payload == ["acme", LIFE[0].data]
        assert report.events[1].payload == ["acme", LIFE[1].data, ["c1/a7"]]
        assert [[c.name for c in log.cosigners] for log in report.logs] == [[w.name for w in WITNESSES]] * 2

    def test_an_erased_event_is_proven_all_the_same(self):
        report = verify_document(document(LIFE, erased=[0, 4]), TRUSTED, 2)
        assert [event.payload is None for event in report.events] == [True, False, False, False, True]
        assert all(event.linked for event in report.events)

    def test_pending_events_are_said(self):
        report = verify_document(document(LIFE[:3], pending=[3, 4]), TRUSTED, 2)
        assert (report.complete, report.pending, len(report.events)) == (False, (3, 4), 3)

    def test_an_event_after_a_pending_one_is_not_linked(self):
        report = verify_document(document([*LIFE[:2], *LIFE[3:]], pending=[2]), TRUSTED, 2)
        assert [event.linked for event in report.events] == [True, True, False, True]

    def test_a_gap_stands_for_what_is_lost(self):
        gap = sealed(1, Kind.GAP, leaf_hash(LIFE[0].leaf), {}, reason="lost")
        nameless = sealed(1, Kind.GAP, None, {}, reason="lost")
        for stand_in, linked in ((gap, True), (nameless, False)):
            report = verify_document(document([LIFE[0], stand_in, *LIFE[2:]]), TRUSTED, 2)
            assert [event.linked for event in report.events] == [True, linked, False, True, True]

    def test_nothing_in_the_ledger_yet(self):
        refused(message_document(MID, [], [0], {}, TRUSTED), "ask again")


class TestRefused:
    """Each lie has its sentence. That no change at all goes through is test_offline's."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda events: events.pop(1), "missing or twice"),
            (lambda events: events.insert(1, events[1]), "missing or twice"),
            (lambda events: events.reverse(), "not in order"),
            (lambda events: events[1].update(index=events[1]["index"] + 1), r"event 1 \(submitted\): leaf \d+ is not in the tree"),
            (lambda events: events[1].update(size=5), r"event 1 \(submitted\): the proof is for size 5, the checkpoint's is"),
            (lambda events: events[1].update(proof=events[1]["proof"][:-1]), "fewer hashes"),
            (lambda events: events[1].update(log=IAD.name), "event 1"),
            (lambda events: events[1].update(log="example.com/other"), "checkpoint of example.com/other is not in the document"),
            (lambda events: events[1].update(kind="delivered"), r"event 1 \(delivered\): the leaf is of another event"),
            (lambda events: events[1].update(at=5), "the leaf is of another event"),
            (lambda events: events[1].update(leaf=events[2]["leaf"]), r"event 1 \(submitted\): the leaf is of another event"),
            (lambda events: events[1].update(leaf=" " + events[1]["leaf"]), "not canonical"),
            (lambda events: events[1].update(leaf=events[1]["leaf"].replace('"k":1', '"k":1,"k":1')), "not canonical"),
            (lambda events: events[4]["opening"].update(salt="00" * 16), r"event 4 \(delivered\): salt and payload are not"),
            # HMAC pads a short key with zeros: a salt of another length would be another opening of the same commitment.
            (lambda events: events[4]["opening"].update(salt=events[4]["opening"]["salt"] + "00"), "salt"),
            (lambda events: events[4]["opening"].update(payload=events[3]["opening"]["payload"]), "salt and payload are not"),
            (lambda events: events[4].pop("opening"), "missing required field `opening`"),
            (lambda events: events[4].update(more=1), "unknown field `more`"),
        ],
    )  # fmt: skip
    def test_an_event_that_lies(self, change, said):
        refused(with_events(change), said)

    def test_another_history_of_genuine_leaves(self):
        other = sealed(1, Kind.SUBMITTED, secret("another"), {"connector": "c9"}, route="r9")
        refused(
            document([LIFE[0], other, *LIFE[2:]]),
            r"event 1 \(submitted\): it follows another event than 0 \(accepted\)",
        )

    def test_a_first_event_has_none_before_it_and_any_other_has(self):
        refused(document([sealed(0, Kind.ACCEPTED, secret("x"), {})]), "the first event names an event before it")
        refused(document([LIFE[0], sealed(1, Kind.SUBMITTED, None, {})]), "it names no event before it")

    def test_complete_and_pending(self):
        refused({**GOOD, "complete": False}, "contradict")
        refused({**GOOD, "pending": [5]}, "contradict")
        refused({**GOOD, "pending": [4], "complete": False}, "missing or twice")

    def test_a_log_that_nobody_trusts(self):
        refused(GOOD, f"checkpoint of {FRA.name}: no trusted key of the log", TRUSTED[1:])
        refused(GOOD, "no signature by a known key", [TRUSTED[1]], 0)
        other = Signer.log(FRA.name, derive(secret("other"), "log"))
        refused({**GOOD, "keys": {}}, "no trusted key of the log", [other.verifier, *TRUSTED[1:]])
        refused(GOOD, "is not the key that is trusted under that name", [other.verifier, *TRUSTED[1:]])

    def test_too_few_cosigners(self):
        refused(GOOD, "1 trusted cosigners signed it; 2 are required", TRUSTED[:3])
        assert verify_document(GOOD, TRUSTED[:3], 1).logs[0].cosigners[0].name == WITNESSES[0].name

    def test_one_cosigner_under_two_names_is_one(self):
        twin = Signer.cosigner("example.com/ledger/twin/witness", derive(secret("iad"), "witness"))
        log = Log(FRA)
        log.append(LIFE[0].leaf)
        event = EventProof.of(LIFE[0].leaf, FRA.name, 0, 1, [], None)
        made = message_document(MID, [event], [], {FRA.name: log.note(WITNESSES[0], twin)}, [])
        refused(made, "1 trusted cosigners", [FRA.verifier, WITNESSES[0].verifier, twin.verifier])

    def test_a_checkpoint_of_another_log_or_of_none(self):
        notes = GOOD["checkpoints"]
        refused({**GOOD, "checkpoints": {**notes, FRA.name: notes[IAD.name]}}, "no trusted key of the log")
        refused(
            {**GOOD, "checkpoints": {**notes, FRA.name: "x"}}, f"checkpoint of {FRA.name}: the note has no signatures"
        )
        refused({**GOOD, "checkpoints": {**notes, "example.com/other": notes[IAD.name]}}, "other")
        assert verify_document(document(LIFE[:2]), TRUSTED, 2).logs[0].origin == FRA.name
        refused({**document(LIFE[:2]), "checkpoints": notes}, "size|no event is in the log")

    @UNHURRIED
    @given(
        hs.recursive(
            hs.none() | hs.booleans() | hs.integers() | hs.floats() | hs.text(max_size=5),
            lambda inner: hs.lists(inner, max_size=3) | hs.dictionaries(hs.sampled_from([*GOOD, *GOOD["events"][0]]), inner, max_size=9),
            max_leaves=12,
        )
    )  # fmt: skip
    def test_nothing_but_a_proof_error(self, value):
        for changed in (
            value,
            {**GOOD, "events": value},
            {**GOOD, "checkpoints": value},
            {**GOOD, "pending": value or 1},
        ):
            with pytest.raises(ProofError):
                verify_document(changed, TRUSTED, 2)

    @pytest.mark.parametrize(
        "data",
        [b"", b"{", b"\xff", b"NaN", b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b"[" * 100_000, b"1" * 5000, b" " * 16_000_001],
        ids=range(9),
    )  # fmt: skip
    def test_what_is_no_json(self, data):
        with pytest.raises(ProofError):
            parse_document(data)

    def test_numbers_are_what_they_are_however_the_database_gives_them(self):
        """MongoDB's driver reads what does not fit 32 bit as an int of its own: the payload's bytes must not change."""
        event = replace(LIFE[0], data={"expires_at": 1_795_000_000_000, "parts": [1, True, None]})
        stored = replace(event, data={"expires_at": Int64(1_795_000_000_000), "parts": [Int64(1), True, None]})
        assert committed_payload(stored) == committed_payload(event)
        with pytest.raises(TypeError):
            committed_payload(replace(event, data={"price": object()}))

    def test_surrogates_are_no_text(self):
        refused(with_events(lambda events: events[0].update(leaf=events[0]["leaf"] + "\ud800")), "event 0")
        refused(with_events(lambda events: events[0]["opening"].update(payload="\ud800")), "event 0")


class TestEntry:
    """A c2sp.org/tlog-proof file holds for one entry."""

    def made(self, extra: bytes | None = None) -> tuple[EntryProof, bytes]:
        log = Log(FRA)
        log.fill(300)
        index = log.append(LIFE[0].leaf)
        log.fill(20)
        return EntryProof(index, tuple(log.prove(index)), parse_note(log.note(*WITNESSES)), extra), LIFE[0].leaf

    @pytest.mark.parametrize("extra", [None, b"", b"age-v1.2.1"])
    def test_round_trip(self, extra):
        proof, leaf = self.made(extra)
        text = str(proof)
        assert text.startswith("c2sp.org/tlog-proof@v1\n" + ("" if extra is None else "extra "))
        assert parse_entry_proof(text) == parse_entry_proof(text.encode()) == proof
        checkpoint, verified = proof.verify(leaf_hash(leaf), FRA.name, TRUSTED)
        assert (checkpoint.size, [v.name for v in verified]) == (321, [FRA.name, *(w.name for w in WITNESSES)])

    def test_another_entry_another_log_another_key(self):
        proof, leaf = self.made()
        for value, origin, keys in (
            (leaf_hash(b"another"), FRA.name, TRUSTED),
            (leaf_hash(leaf), IAD.name, TRUSTED),
            (leaf_hash(leaf), FRA.name, TRUSTED[1:]),
        ):
            with pytest.raises(ValueError):
                proof.verify(value, origin, keys)

    def test_refused(self):
        good = str(self.made(b"x")[0])
        for bad in (
            *(
                "",
                good[:-1],
                good.replace("@v1", "@v2"),
                good.replace("extra ", "extra  "),
                good.replace("eA==", "eB=="),
            ),
            *(good.replace("index ", "index 0"), good.replace("index ", "index -"), good.replace("index ", "index: ")),
            *(good.replace("\n\n", "\n", 1), good.replace("extra eA==\n", "extra eA==\nextra eA==\n"), good + "\n"),
            good.replace("\n\n", "\n" + "A" * 43 + "=\n\n", 1).replace(
                "\n\n", ("\n" + "A" * 43 + "=") * 63 + "\n\n", 1
            ),
        ):
            if bad != good:
                with pytest.raises(ProofError):
                    parse_entry_proof(bad)

    @UNHURRIED
    @given(hs.text(max_size=60) | hs.binary(max_size=60), hs.integers(0, 900))
    def test_nothing_but_a_proof_error(self, data, at):
        good = str(self.made()[0])
        for text in (data, good[:at] + data + good[at:] if isinstance(data, str) else good.encode()[:at] + data):
            try:
                proof = parse_entry_proof(text)
            except ProofError:
                continue
            assert str(proof) == (text if isinstance(text, str) else text.decode())
