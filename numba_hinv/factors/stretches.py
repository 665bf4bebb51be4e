"""Stretches: consecutive layers of a chain whose factors are in memory at the same time.

Without checkpoints the chain is one stretch. With them, the front that comes into a stretch is kept, and from it its
elimination can be done again, bit for bit, whenever a solve comes by (`checkpoints`).
"""

import functools
from typing import NamedTuple

import numpy as np

from ..kernels.plumbing.packing import packed_size

# The packed parts of `eliminate.Factors`, by their names in the layer table.
PACKED = ("L", "pivots", "scales", "Y")
# Ways of cutting that are tried, from one stretch to stretches of two layers.
_TRIALS = 64


class Stretch(NamedTuple):
    """Layers start..stop-1 of the chain."""

    start: int  # even, so that the sweeps' pairs of buffers alternate in the stretch as they do in the chain
    stop: int
    lengths: tuple  # of the packed factors, in the order of PACKED
    front: int  # rows of the front that it leaves

    def table(self, table):
        """Its layers in the chain's table, and the next one if there is one; offsets of factors from ``start`` on."""
        part = table[self.start : self.stop + 1]
        if self.start:
            part = part.copy()
            for name in PACKED:
                part[name] -= part[name][0]
        return part


@functools.lru_cache(maxsize=64)
def whole(num_layers, sizes):
    """The chain as one stretch, in a tuple."""
    return (Stretch(0, num_layers, tuple(getattr(sizes, name) for name in PACKED), 0),)


def cut(table, sizes, dtype):
    """Stretches, from the first layers on, that take the least memory: about sqrt(L) of them."""
    ends = np.array([np.append(table[name], getattr(sizes, name)) for name in PACKED])
    done = _bytes_of(ends, dtype).astype(float)
    fronts = dtype.itemsize * packed_size(table["N"])
    least, bounds = np.inf, None
    for count in np.unique(np.geomspace(1, max(1, table.size // 2), _TRIALS).astype(int)):
        interior = 2 * (np.searchsorted(done, done[-1] * np.arange(1, count) / count) // 2)
        tried = np.unique(np.concatenate([[0], interior[interior < table.size], [table.size]]))
        nbytes = _bytes_of(np.diff(ends[:, tried]).max(axis=1), dtype) + fronts[tried[1:-1]].sum()
        if nbytes < least:
            least, bounds = nbytes, tried.tolist()
    lengths = np.diff(ends[:, bounds]).T.tolist()
    rows = table["N"][bounds[:-1]].tolist()
    return [Stretch(*part) for part in zip(bounds[:-1], bounds[1:], map(tuple, lengths), rows)]


def _bytes_of(lengths, dtype):
    L, pivots, scales, Y = lengths
    return dtype.itemsize * (L + scales + Y) + 4 * pivots


def allocate(stretches, sizes, dtype, allocate_factors):
    """`eliminate.Factors` that hold those of any one of the stretches."""
    packed = _largest(stretches)
    return allocate_factors(sizes._replace(**dict(zip(PACKED, packed))), _most_layers(stretches), dtype)


def kept_bytes(stretches, dtype):
    """Bytes of `allocate` and of the fronts between the stretches."""
    fronts = sum(packed_size(stretch.front) for stretch in stretches)
    return _bytes_of(_largest(stretches), dtype) + dtype.itemsize * fronts + 32 * _most_layers(stretches)


def _largest(stretches):
    return [max(lengths) for lengths in zip(*(stretch.lengths for stretch in stretches))]


def _most_layers(stretches):
    """Layers in a table of a stretch: one more than are its own."""
    return max(stretch.stop - stretch.start for stretch in stretches) + (len(stretches) > 1)
