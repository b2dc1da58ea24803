"""The Merkle tree of RFC 6962 section 2.1: hashes, roots, inclusion and consistency proofs; and a log's tiles as it grows.

Two ways lead to a root, so that one can check the other before anything is signed: `Frontier` and `grow` go up row by row,
`root_of` is the RFC's recursive definition. Proofs are made from a `Reader` and verified by the algorithms of RFC 9162
sections 2.1.3.2 and 2.1.4.2, which has the same tree. A caller who keeps tiles asks `inclusion_tiles` (`consistency_tiles`,
`root_tiles`) which ones to fetch, then reads them through `tiles.TileHashes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from controlplane.domain.events import leaf_hash
from controlplane.ledger.tiles import (
    HASH_BYTES,
    MAX_SIZE,
    TILE_BYTES,
    WIDTH,
    Tile,
    row_above,
    tile_at,
    tile_hashes,
    tile_root,
)

__all__ = [
    "EMPTY",
    "Frontier",
    "Growth",
    "ProofError",
    "Reader",
    "consistency_proof",
    "consistency_tiles",
    "grow",
    "inclusion_proof",
    "inclusion_tiles",
    "leaf_hash",
    "node_hash",
    "root_of",
    "root_tiles",
    "tree_root",
    "verify_consistency",
    "verify_inclusion",
]

EMPTY = hashlib.sha256(b"").digest()
"""The root of the tree without leaves."""

Reader = Callable[[int, int], bytes]
"""`read(level, index)`: the root of the complete subtree over leaves index * 2^level up to (index + 1) * 2^level."""

Node = tuple[int, int]


class ProofError(ValueError):
    """A proof does not show what it should; the message says why."""


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree that only remembers what it needs to grow: the roots of the complete subtrees that make up [0, size).

    `hashes` has one hash for each bit set in `size`, from left (the largest) to right. ValueError if it does not.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.hashes = [bytes(value) for value in hashes]
        if not 0 <= size <= MAX_SIZE or len(self.hashes) != size.bit_count():
            raise ValueError(f"a frontier of size {size} does not have {len(self.hashes)} hashes")
        if any(len(value) != HASH_BYTES for value in self.hashes):
            raise ValueError(f"a hash has {HASH_BYTES} bytes")

    def copy(self) -> Frontier:
        """One that grows on its own."""
        return Frontier(self.size, self.hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes. One node hash a leaf, about 0.7 µs; row by row, so many at once cost less each."""
        row = list(leaves)
        sha256, rest, larger, done = hashlib.sha256, self.size, self.hashes.copy(), []
        size = rest + len(row)
        while row:
            if rest & 1:
                row.insert(0, larger.pop())
            if len(row) & 1:
                done.append(row.pop())
            pairs = iter(row)
            row = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
            rest >>= 1
        self.size, self.hashes = size, [*larger, *done[::-1]]

    def root(self) -> bytes:
        """The root of the tree; EMPTY of the empty one."""
        return _join(self.hashes)


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes, by the recursive definition: MTH(D[n]) = H(MTH(D[0:k]), MTH(D[k:n])), k the largest power of two below n."""

    def root(start: int, end: int) -> bytes:
        if end - start == 1:
            return leaf_hashes[start]
        if end - start == 2:
            return node_hash(leaf_hashes[start], leaf_hashes[start + 1])
        middle = start + _split(end - start)
        return node_hash(root(start, middle), root(middle, end))

    return root(0, len(leaf_hashes)) if leaf_hashes else EMPTY


class Growth(NamedTuple):
    """A log after more entries: what changed in its tiles, and what the next `grow` needs.

    `tiles` has the whole content of every tile of `grown(old, size)`; `tails` the partial tile of each level that has one.
    """

    size: int
    tiles: dict[tuple[int, int], bytes]
    tails: dict[int, bytes]
    frontier: Frontier
    root: bytes


def grow(old: int, tails: Mapping[int, bytes], entries: Sequence[bytes]) -> Growth:
    """Append entries to a log of size `old`, of which `tails` are the partial tiles: {level: ((old >> 8 * level) % 256) hashes}.

    About 1.5 µs an entry. ValueError where a tail has another length than `old` demands: it is not that log's.
    """
    size = old + len(entries)
    if not 0 <= old <= size <= MAX_SIZE:
        raise ValueError(f"a log does not go from {old} to {size} entries")
    tiles: dict[tuple[int, int], bytes] = {}
    new: dict[int, bytes] = {}
    row, level = tile_hashes(entries), 0
    while size >> 8 * level:
        index, width = divmod(old >> 8 * level, WIDTH)
        tail = tails.get(level, b"")
        if len(tail) != width * HASH_BYTES:
            raise ValueError(
                f"the tail of level {level} has {len(tail)} bytes; size {old} demands {width * HASH_BYTES}"
            )
        if row:
            row = tail + row
            for at in range(0, len(row), TILE_BYTES):
                tiles[level, index + at // TILE_BYTES] = row[at : at + TILE_BYTES]
            complete = len(row) // TILE_BYTES
            tail = row[complete * TILE_BYTES :]
            row = b"".join([tile_root(tiles[level, index + place]) for place in range(complete)])
        if tail:
            new[level] = tail
        level += 1
    frontier = Frontier(size, [value for place in sorted(new, reverse=True) for value in _peaks(new[place])])
    return Growth(size, tiles, new, frontier, frontier.root())


def inclusion_proof(index: int, size: int, read: Reader) -> list[bytes]:
    """The audit path of leaf `index` in the tree of `size` (RFC 6962 section 2.1.1), from the leaf's sibling to the root's child."""
    return [_join([read(*node) for node in _nodes(*part)]) for part in _inclusion_parts(index, size)]


def consistency_proof(old: int, new: int, read: Reader) -> list[bytes]:
    """That the tree of `old` is the beginning of the tree of `new` (RFC 6962 section 2.1.2). Empty for old = 0 and old = new."""
    return [_join([read(*node) for node in _nodes(*part)]) for part in _consistency_parts(old, new)]


def tree_root(size: int, read: Reader) -> bytes:
    """The root of the tree of `size`."""
    return _join([read(*node) for node in _nodes(0, size)])


def inclusion_tiles(index: int, size: int) -> list[Tile]:
    """The tiles that `inclusion_proof` reads, at their widths in the tree of `size`."""
    return _tiles(_inclusion_parts(index, size), size)


def consistency_tiles(old: int, new: int) -> list[Tile]:
    """The tiles that `consistency_proof` reads, at their widths in the tree of `new`."""
    return _tiles(_consistency_parts(old, new), new)


def root_tiles(size: int) -> list[Tile]:
    """The tiles that `tree_root` reads: the last of each level, where it is partial."""
    return _tiles([(0, size)], size)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf with this hash stands at `index` in the tree of `size` with this root (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size <= MAX_SIZE:
        raise ProofError(f"a tree of {size} leaves has no leaf {index}")
    _check_hashes(leaf, root, *proof)
    place, last, value = index, size - 1, leaf
    for sibling in proof:
        if not last:
            raise ProofError(f"the inclusion proof has more hashes than leaf {index} of {size} needs")
        if place & 1 or place == last:
            value = node_hash(sibling, value)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofError(f"the inclusion proof has fewer hashes than leaf {index} of {size} needs")
    if value != root:
        raise ProofError(f"leaf {index} is not in the tree of {size} with root {root.hex()}")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `old` with its root is the beginning of the tree of `new` with its root (RFC 9162 section 2.1.4.2).

    From 0 every tree has grown: the proof must be empty and `old_root` EMPTY. At equal sizes the roots must be equal.
    """
    _check_hashes(old_root, new_root, *proof)
    if _needs_none(old, old_root, new, new_root):
        if proof:
            raise ProofError(f"the consistency proof from {old} to {new} must be empty")
        return
    if not proof:
        raise ProofError(f"the consistency proof from {old} to {new} is empty")
    path = proof if old & (old - 1) else [old_root, *proof]
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = path[0]
    for value in path[1:]:
        if not last:
            raise ProofError(f"the consistency proof from {old} to {new} has more hashes than needed")
        if place & 1 or place == last:
            before, after = node_hash(value, before), node_hash(value, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = node_hash(after, value)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofError(f"the consistency proof from {old} to {new} has fewer hashes than needed")
    if before != old_root or after != new_root:
        which = "old" if before != old_root else "new"
        raise ProofError(f"the consistency proof from {old} to {new} does not lead to the {which} root")


def _needs_none(old: int, old_root: bytes, new: int, new_root: bytes) -> bool:
    """Whether sizes and roots alone show consistency; ProofError where they alone refute it."""
    if not 0 <= old <= new <= MAX_SIZE:
        raise ProofError(f"a tree does not grow from {old} to {new} leaves")
    if (not old and old_root != EMPTY) or (not new and new_root != EMPTY):
        raise ProofError("the tree without leaves has another root")
    if old == new and old_root != new_root:
        raise ProofError(f"two roots for one size, {old}: {old_root.hex()} and {new_root.hex()}")
    return not old or old == new


def _split(count: int) -> int:
    """The largest power of two below `count` (2 or more)."""
    return 1 << (count - 1).bit_length() - 1


def _join(hashes: Sequence[bytes]) -> bytes:
    """The root over complete subtrees that get smaller from left to right."""
    if not hashes:
        return EMPTY
    value = hashes[-1]
    for left in hashes[-2::-1]:
        value = node_hash(left, value)
    return value


def _peaks(tail: bytes) -> list[bytes]:
    """The roots of the complete subtrees, from the largest down, over the hashes of a partial tile."""
    peaks, at, count = [], 0, len(tail) // HASH_BYTES
    while count:
        size = 1 << count.bit_length() - 1
        row = tail[at : at + size * HASH_BYTES]
        while len(row) > HASH_BYTES:
            row = row_above(row)
        peaks.append(row)
        at, count = at + size * HASH_BYTES, count - size
    return peaks


def _nodes(start: int, end: int) -> Iterator[Node]:
    """The complete subtrees over leaves [start, end), from the largest down; `start` is a multiple of the first one's leaves."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _inclusion_parts(index: int, size: int) -> list[tuple[int, int]]:
    """Ranges of leaves whose roots are the audit path."""
    if not 0 <= index < size <= MAX_SIZE:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    start, end, parts = 0, size, []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            parts.append((middle, end))
            end = middle
        else:
            parts.append((start, middle))
            start = middle
    return parts[::-1]


def _consistency_parts(old: int, new: int) -> list[tuple[int, int]]:
    """Ranges of leaves whose roots are the consistency proof: SUBPROOF(old, D[new], true) of RFC 6962 section 2.1.2."""
    if not 0 <= old <= new <= MAX_SIZE:
        raise ValueError(f"a tree does not grow from {old} to {new} leaves")
    if not old or old == new:
        return []
    start, end, parts = 0, new, []
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            parts.append((middle, end))
            end = middle
        else:
            parts.append((start, middle))
            start = middle
    if start:
        parts.append((start, old))
    return parts[::-1]


def _tiles(parts: Iterable[tuple[int, int]], size: int) -> list[Tile]:
    return sorted({tile_at(*node, size) for part in parts for node in _nodes(*part)})


def _check_hashes(*hashes: bytes) -> None:
    if any(len(value) != HASH_BYTES for value in hashes):
        raise ProofError(f"a hash has {HASH_BYTES} bytes")
