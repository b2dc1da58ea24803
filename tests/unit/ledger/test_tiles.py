"""Tiles and bundles lie where c2sp.org/tlog-tiles says, and whatever else comes is refused with a ValueError."""

from __future__ import annotations

import contextlib
import gzip

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as hs

from controlplane.ledger.merkle import leaf_hash, root_of
from controlplane.ledger.tiles import (
    ENTRIES,
    Tile,
    bundles,
    decode_bundle,
    encode_bundle,
    grown,
    parse_path,
    row_above,
    tile_hashes,
    tile_root,
    tiles_of,
)

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure

TILES = hs.builds(Tile, hs.integers(-1, 63), hs.integers(0, 10**18 - 1), hs.integers(1, 256))


class TestPaths:
    """One tile, one path."""

    @pytest.mark.parametrize(
        ("tile", "path"),
        [
            # tlog-tiles: "index 1234067 will be encoded as x001/x234/067"
            (Tile(0, 1234067, 256), "tile/0/x001/x234/067"),
            # Tessera, api/layout/paths_test.go
            (Tile(ENTRIES, 0, 256), "tile/entries/000"),
            (Tile(ENTRIES, 0, 8), "tile/entries/000.p/8"),
            (Tile(ENTRIES, 255, 253), "tile/entries/255.p/253"),
            (Tile(ENTRIES, 123456789, 256), "tile/entries/x123/x456/789"),
            (Tile(0, 0, 255), "tile/0/000.p/255"),
            (Tile(1, 0, 256), "tile/1/000"),
            (Tile(15, 455667, 256), "tile/15/x455/667"),
            (Tile(15, 123456789, 41), "tile/15/x123/x456/789.p/41"),
        ],
    )
    def test_published(self, tile, path):
        assert tile.path == path
        assert parse_path(path) == tile

    @UNHURRIED
    @given(TILES)
    def test_round_trip(self, tile):
        assert parse_path(tile.path) == tile

    @pytest.mark.parametrize(
        "path",
        [
            *("", "tile", "tile/0", "tile/0/", "tile/0/0", "tile/0/00", "tile/0/0000", "/tile/0/000", "tile/0/000/"),
            *(
                "tile/00/000",
                "tile/01/000",
                "tile/64/000",
                "tile/100/000",
                "tile/-1/000",
                "tile/x/000",
                "tile/data/000",
            ),
            *("tile/0/x000/001", "tile/0/x000/x000/001", "tile/0/001/234", "tile/0/x001", "tile/0/x001/x234"),
            *(
                "tile/0/000.p/0",
                "tile/0/000.p/256",
                "tile/0/000.p/01",
                "tile/0/000.p/",
                "tile/0/000.p/-1",
                "tile/0/000.p",
            ),
            *(
                "tile/0/000.p/1/",
                "tile/0/000.p/1\n",
                "tile/0/000\n",
                "tile/0/ 00",
                "tile/0/+00",
                "tile/٠/000",
                "tile/0/٠٠٠",
            ),
            "tile/0/" + "x001/" * 6 + "000",
            "tile/0/" + "x001/" * 100_000 + "000",
        ],
    )
    def test_any_other_spelling_is_refused(self, path):
        with pytest.raises(ValueError, match="path of a tile"):
            parse_path(path)

    @UNHURRIED
    @given(hs.text(max_size=30) | hs.from_regex(r"tile/[0-9a-z]{1,8}/[x0-9/.p]{0,20}"))
    def test_nothing_but_a_value_error(self, path):
        try:
            tile = parse_path(path)
        except ValueError:
            return
        assert tile.path == path


class TestGrown:
    """Which tiles a size has, and which change from one to the next."""

    def test_published_size_70000(self):
        """tlog-tiles: 273 full and one of width 112 at level 0, one full and one of width 17 at level 1, width 1 at level 2."""
        tiles = list(tiles_of(70_000))
        assert [sum(tile.level == level and tile.width == 256 for tile in tiles) for level in range(3)] == [273, 1, 0]
        assert [tile for tile in tiles if tile.width < 256] == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]

    def test_published_size_256(self):
        assert list(tiles_of(256)) == [Tile(0, 0, 256), Tile(1, 0, 1)]

    @pytest.mark.parametrize("size", [0, 1, 255, 257, 65_536, 2**40 + 5])
    def test_widths_are_those_of_the_formula(self, size):
        for level in range(8):
            partial = [tile for tile in grown(max(0, size - 300), size) if tile.level == level and tile.width < 256]
            assert [tile.width for tile in partial] == [width for width in [size // 256**level % 256] if partial]

    @UNHURRIED
    @given(hs.integers(0, 2000), hs.integers(0, 2000))
    def test_it_is_the_difference(self, old, more):
        before, after = set(tiles_of(old)), set(tiles_of(old + more))
        assert set(grown(old, old + more)) == after - before
        assert len(grown(old, old + more)) == len(after - before)
        whole = {tile._replace(level=0) for tile in bundles(old, old + more)}
        assert whole == {tile for tile in after - before if tile.level == 0}

    @pytest.mark.parametrize(("old", "new"), [(1, 0), (-1, 5), (0, 2**63)])
    def test_a_log_never_shrinks(self, old, new):
        for ask in (grown, bundles):
            with pytest.raises(ValueError):
                ask(old, new)


class TestBundles:
    """A bundle holds its entries and nothing else."""

    @UNHURRIED
    @given(hs.lists(hs.binary(max_size=300), min_size=1, max_size=256))
    @example([b""])
    def test_round_trip(self, entries):
        assert decode_bundle(encode_bundle(entries)) == entries

    def test_the_largest(self):
        entries = [b"x" * 65_535] * 256
        assert decode_bundle(encode_bundle(entries)) == entries

    def test_the_bytes(self):
        assert encode_bundle([b"", b"ab", b"c" * 258]) == b"\0\0" + b"\0\2ab" + b"\1\2" + b"c" * 258

    @pytest.mark.parametrize("entries", [[], [b""] * 257, [b"x" * 65_536]])
    def test_what_does_not_fit_is_not_written(self, entries):
        with pytest.raises(ValueError):
            encode_bundle(entries)

    @pytest.mark.parametrize(
        ("data", "said"),
        [(b"", "empty"), (b"\0", "within entry 0"), (b"\0\1", "within entry 0"), (b"\0\1a\0", "within entry 1"), (b"\0\1a\0\3bc", "within entry 1"),
         (b"\0\0" * 257, "more than 256"), (b"\0\0" * 1_000_000, "more than 256")],
    )  # fmt: skip
    def test_what_is_none_says_where(self, data, said):
        with pytest.raises(ValueError, match=said):
            decode_bundle(data)

    @UNHURRIED
    @given(hs.binary(max_size=600))
    def test_nothing_but_a_value_error(self, data):
        try:
            entries = decode_bundle(data)
        except ValueError:
            return
        assert encode_bundle(entries) == data

    @UNHURRIED
    @given(hs.lists(hs.binary(max_size=50), min_size=1, max_size=20), hs.data())
    def test_cut_anywhere_it_is_refused_or_shorter(self, entries, data):
        whole = encode_bundle(entries)
        cut = whole[: data.draw(hs.integers(0, len(whole) - 1))]
        with contextlib.suppress(ValueError):
            assert decode_bundle(cut) == entries[: len(decode_bundle(cut))]

    def test_gzip_is_not_ours_to_undo(self):
        with pytest.raises(ValueError):
            decode_bundle(gzip.compress(encode_bundle([b"entry"])))


class TestHashes:
    """Tiles hold RFC 6962 hashes."""

    def test_tile_hashes_and_root(self):
        entries = [b"%d" % n for n in range(256)]
        leaves = [leaf_hash(entry) for entry in entries]
        assert tile_hashes(entries) == b"".join(leaves)
        assert tile_root(tile_hashes(entries)) == root_of(leaves)
        assert row_above(leaves[0] + leaves[1]) == root_of(leaves[:2])

    @pytest.mark.parametrize("size", [0, 32, 8191, 8193, 16384])
    def test_only_a_complete_tile_has_a_root(self, size):
        with pytest.raises(ValueError, match="8192"):
            tile_root(bytes(size))
