"""A set of 64-bit numbers in eight octets each: a million take 8 MB (a `set` of ints: 100 MB), and are asked in half a microsecond.

For numbers that are spread evenly, as digests are: a directory by their first 16 bits leaves few to look at.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

__all__ = ["DigestSet"]

_RECENT = 4_096
_SHIFT = 48
_BORDERS = np.arange(1, 1 << 16, dtype=np.uint64) << np.uint64(_SHIFT)


class DigestSet:
    """Grows only. A sorted array with its directory, and what was added since it was last sorted."""

    __slots__ = ("_places", "_recent", "_sorted")

    def __init__(self, digests: array[int]) -> None:
        """`digests`: of type Q, in any order, each as often as it likes."""
        self._recent: set[int] = set()
        self._sort(np.unique(np.frombuffer(digests, np.uint64)))

    def _sort(self, numbers: NDArray[np.uint64]) -> None:
        self._sorted = array("Q", numbers.tobytes())
        places = np.searchsorted(numbers, _BORDERS)
        self._places = array("Q", [0, *places.tolist(), len(numbers)])
        """Where the numbers with the same first 16 bits begin."""

    def __contains__(self, digest: int) -> bool:
        if digest in self._recent:
            return True
        head = digest >> _SHIFT
        end = self._places[head + 1]
        place = bisect_left(self._sorted, digest, self._places[head], end)
        return place < end and self._sorted[place] == digest

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def add(self, digest: int) -> None:
        """Take one more."""
        if digest in self:
            return
        self._recent.add(digest)
        if len(self._recent) > max(_RECENT, len(self._sorted) >> 6):
            both = np.concatenate((np.frombuffer(self._sorted, np.uint64), np.fromiter(self._recent, np.uint64)))
            both.sort(kind="stable")  # nearly sorted
            self._sort(both)
            self._recent.clear()
