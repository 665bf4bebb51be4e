"""Checkpoints: the chain cut into segments, of which one at a time has its factors in memory.

Where a segment ends, the front that the layers after it have left is kept; from it the segment's elimination can be
done again, bit for bit, whenever a solve comes by. Without checkpoints the chain is one segment.
"""

from typing import NamedTuple

import numpy as np

# The packed parts of `eliminate.Factors`, by their names in the layer table.
PACKED = ("L", "pivots", "scales", "Y")
# Ways of cutting that are tried, from one segment to segments of two layers.
_TRIALS = 64


class Segment(NamedTuple):
    """Layers start..stop-1 of the chain."""

    start: int  # even, so that the sweeps' pairs of buffers alternate in the segment as they do in the chain
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


def whole(table, sizes):
    """The chain as one segment."""
    return [Segment(0, table.size, tuple(getattr(sizes, name) for name in PACKED), 0)]


def cut(table, sizes, dtype):
    """Segments, from the first layers on, that take the least memory: about sqrt(L) of them."""
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
    return [Segment(*part) for part in zip(bounds[:-1], bounds[1:], map(tuple, lengths), rows)]


def _bytes_of(lengths, dtype):
    L, pivots, scales, Y = lengths
    return dtype.itemsize * (L + scales + Y) + 4 * pivots


def packed_size(n):
    """Scalars of a symmetric n x n matrix without its lower triangle."""
    return n * (n + 1) // 2


def allocate(segments, sizes, dtype, allocate_factors):
    """`eliminate.Factors` that hold those of any one of the segments."""
    packed = _largest(segments)
    return allocate_factors(sizes._replace(**dict(zip(PACKED, packed))), _most_layers(segments), dtype)


def kept_bytes(segments, dtype):
    """Bytes of `allocate` and of the fronts between the segments."""
    fronts = sum(packed_size(segment.front) for segment in segments)
    return _bytes_of(_largest(segments), dtype) + dtype.itemsize * fronts + 32 * _most_layers(segments)


def _largest(segments):
    return np.max([segment.lengths for segment in segments], axis=0).tolist()


def _most_layers(segments):
    """Layers in a table of a segment: one more than are its own."""
    return max(segment.stop - segment.start for segment in segments) + (len(segments) > 1)


def pack(n, buffer):
    """The symmetric n x n matrix at the start of ``buffer`` as a new array of its upper triangle."""
    matrix, packed, at = buffer[: n * n].reshape(n, n), np.empty(packed_size(n), buffer.dtype), 0
    for i in range(n):
        packed[at : at + n - i] = matrix[i, i:]
        at += n - i
    return packed


def unpack(packed, n, buffer):
    """The inverse of `pack`."""
    matrix, at = buffer[: n * n].reshape(n, n), 0
    for i in range(n):
        matrix[i, i:] = matrix[i:, i] = packed[at : at + n - i]
        at += n - i
