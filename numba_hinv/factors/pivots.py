"""Pivots: how small they may be before they are perturbed, and what is known of them where their factors are gone."""

from typing import NamedTuple

import numpy as np

from ..kernels.sweeps.eliminate import Pivoting, scale_bounds

_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)
# Static pivoting, in units of ||H||: a scale relative to the pivot's own front would cascade (docs/theory.md, section
# 9). Pivots below PERTURBATION become +- as much. Pivots below _ENLARGED that would take more than _GROWTH from the
# next front are enlarged, since its rounding would drown the small eigenvalues; larger ones come after a perturbed
# pivot, are right, and must cancel. Of 1,754 shifts at or near eigenvalues of trailing blocks, these left none above a
# backward error of 1e-15, with 9 Krylov steps at most, and no inertia wrong. Without _GROWTH there were 27 steps, and
# one inertia that was wrong but flagged.
PERTURBATION = {_DOUBLE: 1e-10, _SINGLE: 1e-6}
_GROWTH = {_DOUBLE: 1e12, _SINGLE: 1e6}
_ENLARGED = 1e-2
# Layers whose scales are looked through at a time.
_LOOKED_THROUGH = 4096


def relative_pivoting(dtype):
    """How factors in ``dtype`` are pivoted, in units of the norm of the matrix."""
    return Pivoting(PERTURBATION[dtype], PERTURBATION[dtype], _GROWTH[dtype], _ENLARGED)


class Pivots(NamedTuple):
    """What is kept of the pivots of every layer even where their factors are not, (L,) each."""

    num_positive: np.ndarray
    num_perturbed: np.ndarray
    logabsdet: np.ndarray
    growth: np.ndarray
    smallest: np.ndarray  # smallest and largest scale: 1 / sqrt(the largest pivot), 1 / sqrt(the smallest)
    largest: np.ndarray

    @classmethod
    def allocate(cls, num_layers):
        counts = (np.empty(num_layers, np.int64) for _ in range(2))
        return cls(*counts, *(np.empty(num_layers) for _ in range(4)))

    @classmethod
    def nbytes(cls, num_layers):
        """Bytes of `allocate`."""
        return 8 * num_layers * len(cls._fields)

    @classmethod
    def of_chain(cls, table, factors, take):
        """Those of all layers, with arrays of the factors among them; ``take`` makes them NumPy arrays."""
        arrays = (take(getattr(factors, name)) for name in cls._fields[:4])
        found = cls(*arrays, np.empty(table.size), np.empty(table.size))
        found._fill_scales(0, table.size, table, factors.scales, take)
        return found

    def fill(self, stretch, table, factors, take):
        """Take those of a stretch of layers from its factors; ``take`` makes them NumPy arrays."""
        for name in self._fields[:4]:
            there = take(getattr(factors, name))
            getattr(self, name)[stretch.start : stretch.stop] = there[: stretch.stop - stretch.start]
        self._fill_scales(stretch.start, stretch.stop, table, factors.scales, take)

    def _fill_scales(self, start, stop, table, scales, take):
        m, starts = table["m"], table["scales"]
        for first in range(start, stop, _LOOKED_THROUGH):
            last = min(first + _LOOKED_THROUGH, stop)
            at, end = (int(starts[l] - starts[start]) for l in (first, last - 1))
            part, rows = take(scales[at : end + 2 * int(m[last - 1])]), np.ascontiguousarray(m[first:last])
            scale_bounds(rows, part, self.smallest[first:last], self.largest[first:last])
