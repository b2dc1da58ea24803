"""The verifier that strangers run shares no code with ours, and both give the same verdict on thousands of documents."""

from __future__ import annotations

import ast
import copy
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.ledger import offline
from controlplane.ledger.merkle import ProofError, inclusion_proof, leaf_hash, root_of
from controlplane.ledger.proof import parse_document, verify_document
from controlplane.ledger.tiles import TileHashes, tile_hashes
from tests.unit.ledger.sample import FRA, IAD, MID, TRUSTED, WITNESSES, document, life

SOURCE = Path(offline.__file__)
KEYS = [offline.parse_key(verifier.vkey) for verifier in TRUSTED]
LIFE = life()
GOOD = document(LIFE)
# Wycheproof at dac1dd4, testvectors_v1/ed25519_test.json (Apache-2.0), one case a line.
WYCHEPROOF = [json.loads(line) for line in Path(__file__).with_name("ed25519.jsonl").read_text().splitlines()]
# RFC 8032 section 7.1, TEST 1 to 3: public key, message, signature.
RFC8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def verdicts(value: Any, require: int = 2) -> tuple[bool, bool]:
    """What proof.py and offline.py say. Any other error than their own is a failure."""
    ours = theirs = True
    try:
        verify_document(value, TRUSTED, require)
    except ProofError:
        ours = False
    try:
        offline.verify_document(value, KEYS, require)
    except offline.BadProofError:
        theirs = False
    return ours, theirs


class TestEd25519:
    """RFC 8032, in all its corners."""

    @pytest.mark.parametrize(("public", "message", "signature"), RFC8032)
    def test_rfc_8032(self, public, message, signature):
        public, message, signature = (bytes.fromhex(text) for text in (public, message, signature))
        assert offline.ed25519_holds(public, message, signature)
        assert not offline.ed25519_holds(public, message + b"x", signature)
        assert not offline.ed25519_holds(public, message, signature[:-1] + b"\x20")

    def test_wycheproof(self):
        assert len(WYCHEPROOF) == 151
        for case in WYCHEPROOF:
            data = [bytes.fromhex(case[name]) for name in ("public", "message", "signature")]
            assert offline.ed25519_holds(*data) is case["valid"], case


class TestRoot:
    """Its own way to the root leads to the same."""

    @pytest.mark.parametrize("size", range(1, 40))
    def test_every_place_in_small_trees(self, size):
        entries = [b"%d" % n for n in range(size)]
        leaves = [leaf_hash(entry) for entry in entries]
        read = TileHashes({(0, 0): tile_hashes(entries)}).read
        for index in range(size):
            path = inclusion_proof(index, size, read)
            assert offline.root_from(leaves[index], index, size, path) == root_of(leaves)
            assert offline.root_from(leaves[index], index, size, [*path, bytes(32)]) is None
            assert not path or offline.root_from(leaves[index], index, size, path[1:]) is None


DOCUMENTS = {
    "all": GOOD,
    "erased": document(LIFE, erased=range(5)),
    "pending": document(LIFE[:3], pending=[3, 4]),
    "one": document(LIFE[:1]),
}


class TestAgreement:
    """Both accept what is good, and each of both refuses every change of it."""

    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_good_ones(self, name):
        value = json.loads(json.dumps(DOCUMENTS[name]))
        ours, theirs = verify_document(value, TRUSTED, 2), offline.verify_document(value, KEYS, 2)
        assert (ours.id, ours.complete, list(ours.pending)) == (theirs["id"], theirs["complete"], theirs["pending"])
        assert [[e.k, e.kind, e.at, e.log, e.index, e.linked, e.payload] for e in ours.events] == [
            [e[key] for key in ("k", "kind", "at", "log", "index", "linked", "payload")] for e in theirs["events"]
        ]
        assert [[x.origin, x.size, x.root.hex(), [list(c) for c in x.cosigners]] for x in ours.logs] == [
            [x[key] for key in ("log", "size", "root", "cosigners")] for x in theirs["logs"]
        ]

    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_every_field_changed_in_every_way(self, name):
        good, changes = DOCUMENTS[name], 0
        for path, how, changed in mutations(good, random.Random(7)):
            changes += 1
            true = still_true(changed, good)
            assert verdicts(changed) == (true, true), (path, how)
        assert changes > (3000 if name == "all" else 500), changes

    def test_random_bytes_changed(self):
        chance, good, accepted = random.Random(11), json.dumps(GOOD, ensure_ascii=False).encode(), 0
        for _ in range(3000):
            data = bytearray(good)
            for _ in range(chance.choice([1, 1, 1, 2, 5])):
                at = chance.randrange(len(data))
                how = chance.randrange(3)
                if how == 0:
                    data[at] ^= 1 << chance.randrange(8)
                elif how == 1:
                    del data[at : at + chance.randrange(1, 4)]
                else:
                    data[at:at] = chance.choice([b" ", b'"', b",", b"}", b"0", b"\\", b"\\u0061", b"null"])
            parsed = []
            for parse, error in ((parse_document, ProofError), (offline.parse_document, offline.BadProofError)):
                try:
                    parsed.append(parse(bytes(data)))
                except error:
                    parsed.append(None)
            assert parsed[0] == parsed[1]
            ours, theirs = verdicts(parsed[0])
            assert ours is theirs, bytes(data)
            assert ours is still_true(parsed[0], GOOD), bytes(data)
            accepted += ours
        assert accepted < 300  # white space between members, here and there

    @pytest.mark.parametrize("require", range(4))
    def test_how_many_cosigners(self, require):
        assert verdicts(GOOD, require) == (require < 3, require < 3)


def still_true(value: Any, good: Any) -> bool:
    """Whether a document tells nothing but what the good one tells. It may show less: not the opening of an event, none of the keys,
    and not the last events, as nobody can see from a document that an event followed its last one.
    """
    try:
        pending, events = value["pending"], value["events"]
        ks = [event["k"] for event in events]
        openings = [(event["opening"], GOOD["events"][event["k"]]["opening"]) for event in events]
        shown = [{**event, "opening": None} for event in events]
        expected = [{**event, "opening": None} for event in good["events"] if event["k"] in ks]
        return (
            all(opening in (None, genuine) for opening, genuine in openings)
            and value["keys"].items() <= good["keys"].items()
            and bool(ks)
            and text(sorted(ks + pending)) == text(range(len(ks + pending)))
            and text(value)
            == text(
                {
                    **{name: good[name] for name in ("format", "id")},
                    **{name: value[name] for name in ("events", "keys")},
                    "pending": sorted(pending),
                    "complete": not pending,
                    "checkpoints": {event["log"]: good["checkpoints"][event["log"]] for event in events},
                }
            )
            and text(shown) == text(expected)
        )
    except (TypeError, KeyError, IndexError, AttributeError):
        return False


def text(value: Any) -> str:
    """To compare with: 1, 1.0 and true are not the same."""
    return json.dumps(list(value) if isinstance(value, range) else value, sort_keys=True)


def mutations(good: Any, chance: random.Random) -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    """(path, how, document): every value of the document, changed in every way that its type allows."""
    for path in paths(good):
        for how, value in changed_values(at(good, path), chance):
            made = copy.deepcopy(good)
            at(made, path[:-1])[path[-1]] = value
            if made != good or type(value) is not type(at(good, path)):
                yield path, how, made
        parent = at(good, path[:-1])
        made = copy.deepcopy(good)
        del at(made, path[:-1])[path[-1]]
        yield path, "drop", made
        if isinstance(parent, dict):
            made = copy.deepcopy(good)
            inside = at(made, path[:-1])
            inside[f"{path[-1]}x"] = inside.pop(path[-1])
            yield path, "rename", made
            made = copy.deepcopy(good)
            at(made, path[:-1])[f"{path[-1]}x"] = at(good, path)
            yield path, "add", made
        elif len(parent) > 1:
            made = copy.deepcopy(good)
            row = at(made, path[:-1])
            row[path[-1]], row[path[-1] - 1] = row[path[-1] - 1], row[path[-1]]
            yield path, "swap", made
            made = copy.deepcopy(good)
            at(made, path[:-1]).insert(path[-1], at(good, path))
            yield path, "twice", made


def paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in members:
        yield (*here, name)
        yield from paths(inner, (*here, name))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def changed_values(value: Any, chance: random.Random) -> Iterator[tuple[str, Any]]:
    if value is not None:
        yield "null", None
    for other in ([], {}, "", 0, True, 1.5, [value], {"x": value}):
        yield "type", other
    if isinstance(value, str) and value:
        for _ in range(6):
            place = chance.randrange(len(value))
            yield "flip", value[:place] + chr(ord(value[place]) ^ 1 << chance.randrange(7)) + value[place + 1 :]
            yield "cut", value[:place] + value[place + 1 :]
            yield (
                "insert",
                value[:place] + chance.choice(["0", "a", " ", "\n", "\u00e9", "\ud800", "\x00"]) + value[place:],
            )
        yield from (("end", value + "\n"), ("end", value[:-1]), ("case", value.swapcase()), ("twice", value * 2))
    elif isinstance(value, bool):
        yield "not", not value
    elif isinstance(value, int):
        for other in (
            value + 1,
            value - 1,
            -value,
            value + 2**53,
            value + 2**63,
            value << 1,
            float(value),
            str(value),
            10**400,
        ):
            yield "number", other
    elif value is None:
        yield "opening", GOOD["events"][0]["opening"]


class TestCommand:
    """What a stranger sees, with nothing but Python."""

    @pytest.fixture
    def run(self, tmp_path):
        script, proof = tmp_path / "verifier.py", tmp_path / "proof.json"
        script.write_bytes(SOURCE.read_bytes())
        proof.write_text(json.dumps(GOOD))

        def run(*arguments: str, value: Any = None) -> tuple[int, str, str]:
            text = json.dumps(value) if value is not None else ""
            command = [sys.executable, "-I", "-S", str(script), "-" if text else str(proof), *arguments]
            done = subprocess.run(
                command, input=text, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60
            )
            return done.returncode, done.stdout, done.stderr

        return run

    ALL = ("--key", FRA.vkey, "--key", IAD.vkey, *(word for w in WITNESSES for word in ("--witness", w.vkey)))

    def test_it_verifies(self, run):
        code, out, err = run(*self.ALL)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == f"message {MID}"
        assert lines[-1] == "VERIFIED: 5 events, each of which names the one before it"
        assert "      to: +4915112345678" in lines
        assert any(line.startswith("    4 delivered    2026-11-18") for line in lines), out
        assert sum(line.startswith("  seen by example.com/ledger/") for line in lines) == 4

    def test_without_witnesses_it_says_what_that_means(self, run):
        code, out, _ = run("--key", FRA.vkey, "--key", IAD.vkey)
        assert (code, "would not be noticed" in out) == (0, True)

    def test_pending_and_gaps_are_said(self, run):
        code, out, _ = run(*self.ALL, value=DOCUMENTS["pending"])
        assert (code, "NOT COMPLETE: events [3, 4]" in out) == (0, True)

    def test_a_lie_is_named(self, run):
        changed = copy.deepcopy(GOOD)
        changed["events"][4]["opening"]["payload"] = changed["events"][4]["opening"]["payload"].replace(
            "DELIVRD", "EXPIRED"
        )
        code, out, err = run(*self.ALL, value=changed)
        assert (code, err) == (1, "")
        assert out == "NOT VERIFIED: event 4 (delivered): the content shown is not what was committed to\n"

    def test_json(self, run):
        code, out, _ = run(*self.ALL, "--json")
        answer = json.loads(out)
        assert (code, answer["verified"], [event["kind"] for event in answer["events"]][-1]) == (0, True, "delivered")
        code, out, _ = run(*self.ALL, "--json", value={**GOOD, "complete": False})
        assert (code, json.loads(out)["verified"]) == (1, False)

    def test_a_terminal_is_not_moved(self, run):
        changed = copy.deepcopy(GOOD)
        changed["events"][0]["kind"] = "\x1b[2Jdelivered"
        code, out, _ = run(*self.ALL, value=changed)
        assert (code, "\x1b" in out) == (1, False)

    def test_the_key_of_a_log_is_missing(self, run):
        code, out, _ = run("--key", FRA.vkey)
        assert (code, out) == (1, f"NOT VERIFIED: checkpoint of {IAD.name}: no --key of this log was given\n")

    @pytest.mark.parametrize(
        "arguments",
        [(), ("--key", "x"), ("--key", FRA.vkey[:-2] + "A="), ("--key", WITNESSES[0].vkey), ("--witness", FRA.vkey, "--key", FRA.vkey),
         ("--key", FRA.vkey, "--require", "1"), ("--key", FRA.vkey, "--require", "x"), (*ALL, "--require", "-1"), (*ALL, "--nothing")],
        ids=range(9),
    )  # fmt: skip
    def test_wrong_usage(self, run, arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert "error:" in err

    def test_no_file(self):
        with pytest.raises(SystemExit) as ended:
            offline.main(["/nonexistent/proof.json", "--key", FRA.vkey])
        assert ended.value.code == 2

    def test_only_the_standard_library_and_python_3_9(self):
        tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
        names = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
