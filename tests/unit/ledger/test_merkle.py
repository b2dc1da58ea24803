"""The tree is RFC 6962's: roots, proofs and tiles agree with the vectors of others and with the recursive definition."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from controlplane.ledger.merkle import (
    EMPTY,
    Frontier,
    ProofError,
    consistency_proof,
    consistency_tiles,
    grow,
    inclusion_proof,
    inclusion_tiles,
    leaf_hash,
    node_hash,
    root_of,
    root_tiles,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from controlplane.ledger.tiles import MissingTileError, TileHashes, bundles, grown, tile_root, tiles_of

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure

# certificate-transparency's eight leaves and the roots of the trees over the first 0, 1, … 8 of them (also in
# transparency-dev/merkle, testonly/constants.go).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# transparency-dev/merkle at 417fb0c, testdata/{inclusion,consistency} (Apache-2.0), one probe a line.
PROBES = [json.loads(line) for line in Path(__file__).with_name("probes.jsonl").read_text().splitlines()]

ENTRIES = [b"entry %d" % n for n in range(70_000)]
HASHES = [leaf_hash(entry) for entry in ENTRIES]
GROWTH = grow(0, {}, ENTRIES)
READ = TileHashes(GROWTH.tiles).read


def frontier_of(leaves: list[bytes]) -> Frontier:
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier


def fetched(tiles: list) -> TileHashes:
    """A reader that has only these tiles, only at these widths."""
    return TileHashes({(t.level, t.index): GROWTH.tiles[t.level, t.index][: t.width * 32] for t in tiles})


SIZES = hs.integers(0, len(ENTRIES)) | hs.integers(0, 600) | hs.sampled_from([1, 255, 256, 257, 65_535, 65_536, 65_537])


class TestRoots:
    """Frontier and recursion give the published roots, and each other's."""

    @pytest.mark.parametrize("size", range(9))
    def test_certificate_transparency_roots(self, size):
        leaves = [leaf_hash(leaf) for leaf in LEAVES[:size]]
        assert root_of(leaves).hex() == frontier_of(leaves).root().hex() == grow(0, {}, LEAVES[:size]).root.hex()
        assert root_of(leaves).hex() == ROOTS[size]

    def test_the_empty_tree(self):
        assert EMPTY.hex() == ROOTS[0]
        assert Frontier().root() == root_of([]) == tree_root(0, READ) == EMPTY

    def test_all_subtrees_up_to_130_leaves(self):
        """The rolling hash of draft-ietf-plants-merkle-tree-certs, "Subtree Test Vectors" (transparency-dev/merkle, testonly/vectors_test.go)."""
        leaves = [leaf_hash(bytes([n])) for n in range(130)]
        rolling = {"recursive": hashlib.sha256(), "frontier": hashlib.sha256()}
        for end in range(131):
            for start in range(end + 1):
                if is_subtree(start, end):
                    part = leaves[start:end]
                    rolling["recursive"].update(f"[{start}, {end}) {root_of(part).hex()}\n".encode())
                    rolling["frontier"].update(f"[{start}, {end}) {frontier_of(part).root().hex()}\n".encode())
        assert {kind: value.hexdigest() for kind, value in rolling.items()} == dict.fromkeys(
            rolling, "b82806ad4265bb151c1119c0f4db437bb4d1a1f887b3a7fba1cd4ebf552e3e81"
        )

    @UNHURRIED
    @given(hs.lists(hs.integers(0, 700), max_size=6))
    def test_how_leaves_are_added_does_not_matter(self, steps):
        frontier, at = Frontier(), 0
        for step in steps:
            before = frontier.copy()
            frontier.extend(HASHES[at : at + step])
            for leaf in HASHES[at : at + step]:
                before.append(leaf)
            at += step
            assert (frontier.size, frontier.hashes) == (before.size, before.hashes) == (at, before.hashes)
            assert frontier.root() == root_of(HASHES[:at])

    def test_a_copy_grows_on_its_own(self):
        first = frontier_of(HASHES[:3])
        second = first.copy()
        second.append(HASHES[3])
        assert first.root() == root_of(HASHES[:3])
        assert second.root() == root_of(HASHES[:4])

    @pytest.mark.parametrize(
        ("size", "hashes"), [(0, [EMPTY]), (3, [EMPTY]), (1, [b"short"]), (-1, []), (2**63, [EMPTY])]
    )
    def test_a_frontier_that_cannot_be_is_refused(self, size, hashes):
        with pytest.raises(ValueError):
            Frontier(size, hashes)


class TestGrow:
    """The tiles of a log are the same however it grew there, and so is its root."""

    @UNHURRIED
    @given(hs.lists(hs.integers(0, 800), max_size=6))
    def test_in_steps(self, steps):
        tiles, growth = {}, grow(0, {}, [])
        for step in steps:
            old = growth.size
            growth = grow(old, growth.tails, ENTRIES[old : old + step])
            assert growth.tiles.keys() == {(tile.level, tile.index) for tile in grown(old, growth.size)}
            for tile in grown(old, growth.size):
                assert len(growth.tiles[tile.level, tile.index]) == tile.width * 32
            tiles.update(growth.tiles)
            assert growth.root == growth.frontier.root() == root_of(HASHES[: growth.size])
            assert growth.frontier.hashes == frontier_of(HASHES[: growth.size]).hashes
        assert tiles == grow(0, {}, ENTRIES[: growth.size]).tiles
        assert tiles.keys() == {(tile.level, tile.index) for tile in tiles_of(growth.size)}

    @UNHURRIED
    @given(SIZES, hs.integers(0, 300))
    def test_from_the_tails_alone_it_goes_on_as_if_it_never_stopped(self, old, more):
        tails = {t.level: GROWTH.tiles[t.level, t.index][: t.width * 32] for t in tiles_of(old) if t.width < 256}
        growth = grow(old, tails, ENTRIES[old : old + more])
        assert growth.root == tree_root(growth.size, READ)
        for place, data in growth.tiles.items():
            assert GROWTH.tiles[place].startswith(data)
        for level, tail in tails.items():
            assert growth.tiles.get((level, (old >> 8 * level) // 256), tail).startswith(tail)

    def test_a_tile_above_holds_the_roots_of_those_below(self):
        for (level, index), data in GROWTH.tiles.items():
            if len(data) == 8192:
                place = index % 256 * 32
                assert GROWTH.tiles[level + 1, index // 256][place : place + 32] == tile_root(data)
        assert (len(bundles(0, 70_000)), GROWTH.tails.keys()) == (274, {0, 1, 2})

    @pytest.mark.parametrize("tails", [{}, {0: b"\0" * 31}, {0: b"\0" * 64}, {0: b"\0" * 32, 1: b""}])
    def test_tails_of_another_size_are_refused(self, tails):
        with pytest.raises(ValueError, match="demands"):
            grow(257, tails, [b"x"])


class TestProofs:
    """A proof that we make verifies; a changed one never does."""

    def test_all_inclusion_proofs_up_to_130_leaves(self):
        """The rolling hash of draft-ietf-plants-merkle-tree-certs: those of a subtree are those of the tree of its leaves."""
        leaves = [leaf_hash(bytes([n])) for n in range(130)]
        rolling = hashlib.sha256()
        for end in range(131):
            for start in range(end + 1):
                if not is_subtree(start, end):
                    continue
                tree, root = levels(leaves[start:end]), root_of(leaves[start:end])
                for index in range(end - start):
                    proof = inclusion_proof(index, end - start, lambda level, place, tree=tree: tree[level][place])
                    verify_inclusion(leaves[start + index], index, end - start, proof, root)
                    text = "".join(f" {value.hex()}" for value in proof)
                    rolling.update(f"{start + index} [{start}, {end}){text}\n".encode())
        assert rolling.hexdigest() == "ac2a8f989e44d99e399db448050ff5f19757df53cfb716aa81015d3955d8163f"

    @pytest.mark.parametrize("probe", [p for p in PROBES if p["kind"] == "inclusion"], ids=lambda p: p["desc"])
    def test_inclusion_probes(self, probe):
        root, leaf, *proof = (
            base64.b64decode(text or "") for text in (probe["root"], probe["leafHash"], *probe["proof"])
        )
        accepted = True
        try:
            verify_inclusion(leaf, probe["leafIdx"], probe["treeSize"], proof, root)
        except ProofError:
            accepted = False
        assert accepted is not probe["wantErr"]

    @pytest.mark.parametrize("probe", [p for p in PROBES if p["kind"] == "consistency"], ids=lambda p: p["desc"])
    def test_consistency_probes(self, probe):
        old, new, *proof = (base64.b64decode(text or "") for text in (probe["root1"], probe["root2"], *probe["proof"]))
        if any(len(value) != 32 for value in (old, new, *proof)):  # what is no hash is refused before anything else
            probe = {**probe, "wantErr": True}
        accepted = True
        try:
            verify_consistency(probe["size1"], old, probe["size2"], new, proof)
        except ProofError:
            accepted = False
        assert accepted is not probe["wantErr"]

    def test_certificate_transparency_proofs(self):
        """Those that merkletree's tests name: paths of leaves 0, 5, 2, 1 and consistency 1→8, 6→8, 2→5, made by us."""
        read = TileHashes(grow(0, {}, LEAVES).tiles).read
        happy = [p for p in PROBES if p["desc"] == "happy path"]
        assert len(happy) == 10
        for probe in happy:
            if probe["kind"] == "inclusion":
                made = inclusion_proof(probe["leafIdx"], probe["treeSize"], read)
            else:
                made = consistency_proof(probe["size1"], probe["size2"], read)
            assert [base64.b64encode(value).decode() for value in made] == probe["proof"]

    @UNHURRIED
    @given(SIZES, hs.randoms(use_true_random=False))
    def test_inclusion_from_the_named_tiles_alone(self, size, chance):
        if not size:
            return
        index = chance.randrange(size)
        proof = inclusion_proof(index, size, fetched(inclusion_tiles(index, size)).read)
        root = tree_root(size, READ)
        verify_inclusion(HASHES[index], index, size, proof, root)
        for wrong in mutated(proof, chance):
            with pytest.raises(ProofError):
                verify_inclusion(HASHES[index], index, size, wrong, root)
        with pytest.raises(ProofError):
            verify_inclusion(leaf_hash(b"another"), index, size, proof, root)

    @UNHURRIED
    @given(SIZES, SIZES, hs.randoms(use_true_random=False))
    def test_consistency_from_the_named_tiles_alone(self, a, b, chance):
        old, new = sorted((a, b))
        proof = consistency_proof(old, new, fetched(consistency_tiles(old, new)).read)
        old_root, new_root = tree_root(old, READ), tree_root(new, READ)
        verify_consistency(old, old_root, new, new_root, proof)
        assert len(proof) <= 63
        assert proof != [] or old in (0, new)
        for wrong in mutated(proof, chance):
            with pytest.raises(ProofError):
                verify_consistency(old, old_root, new, new_root, wrong)
        for roots in ((leaf_hash(b"x"), new_root), (old_root, leaf_hash(b"x"))):
            if roots[0] != old_root or old:  # every tree has grown from the empty one
                with pytest.raises(ProofError):
                    verify_consistency(old, roots[0], new, roots[1], proof)

    @pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_793, 69_999, 70_000])
    def test_root_from_the_named_tiles_alone(self, size):
        assert tree_root(size, fetched(root_tiles(size)).read) == frontier_of(HASHES[:size]).root()

    @pytest.mark.parametrize("old", range(1, 40))
    def test_every_small_consistency_proof_is_the_recursive_one(self, old):
        for new in range(old, 40):
            assert consistency_proof(old, new, READ) == subproof(old, HASHES[:new], True)

    def test_a_missing_tile_is_named(self):
        with pytest.raises(MissingTileError, match=r"tile/0/000"):
            inclusion_proof(0, 300, TileHashes({}).read)
        with pytest.raises(MissingTileError):
            tree_root(300, TileHashes({(0, 1): b"\0" * 32 * 43, (1, 0): b"\0" * 32}).read)

    @pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 4), (5, 4)])
    def test_no_proof_of_what_is_not_there(self, index, size):
        for ask in (inclusion_proof, lambda i, n, _: inclusion_tiles(i, n)):
            with pytest.raises(ValueError):
                ask(index, size, READ)
        with pytest.raises(ProofError):
            verify_inclusion(HASHES[0], index, size, [], HASHES[0])

    @UNHURRIED
    @given(
        hs.integers(-(2**70), 2**70),
        hs.integers(-(2**70), 2**70),
        hs.lists(hs.binary(min_size=32, max_size=32) | hs.binary(max_size=40), max_size=70),
        hs.binary(max_size=33),
    )
    def test_nothing_but_a_proof_error(self, one, two, proof, root):
        for check in (
            lambda: verify_inclusion(root, one, two, proof, root),
            lambda: verify_consistency(one, root, two, root, proof),
        ):
            try:
                check()
            except ProofError:
                continue
            assert (one, two) in ((0, 1), (0, 0)) or one == two


def mutated(proof: list[bytes], chance: random.Random) -> list[list[bytes]]:
    """The proof with a bit flipped, a hash more, a hash less, two swapped."""
    extra = bytes(32)
    wrong = [[*proof, extra], [extra, *proof], proof + proof[-1:]]
    if proof:
        at = chance.randrange(len(proof))
        flipped = bytearray(proof[at])
        flipped[chance.randrange(32)] ^= 1 << chance.randrange(8)
        wrong += [[*proof[:at], bytes(flipped), *proof[at + 1 :]], proof[:at] + proof[at + 1 :]]
    if len(proof) > 1:
        wrong.append([proof[1], proof[0], *proof[2:]])
    return [one for one in wrong if one != proof]


def is_subtree(start: int, end: int) -> bool:
    return start in (0, end) or start % (1 << (end - start - 1).bit_length()) == 0


def levels(leaves: list[bytes]) -> list[list[bytes]]:
    rows = [leaves]
    while len(rows[-1]) > 1:
        row = rows[-1]
        rows.append([node_hash(row[n], row[n + 1]) for n in range(0, len(row) - 1, 2)])
    return rows


def subproof(old: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """RFC 6962 section 2.1.2, as it stands there."""
    if old == len(leaves):
        return [] if whole else [root_of(leaves)]
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= middle:
        return [*subproof(old, leaves[:middle], whole), root_of(leaves[middle:])]
    return [*subproof(old - middle, leaves[middle:], False), root_of(leaves[:middle])]
