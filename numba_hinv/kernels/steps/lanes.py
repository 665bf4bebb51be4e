"""Which layers a sweep takes with its vectors side by side (`dense.lanes`), and how states come into a run of them.

Narrow layers spend more time in calls than in arithmetic if each right-hand side is multiplied by itself; side by side
all of them are one product. Of wide layers, whose slices of the vectors leave the caches, turning them round would only
be one pass more.
"""

import numpy as np

from ..dense.lanes import LEAST_VECTORS, num_lanes, to_lanes, to_rows
from ..plumbing.compiled import inner
from ..plumbing.memory import move
from .layer_table import BLOCKS, DENSE

# Numbers of the largest block of vectors side by side: two of them and the layer stay in a second-level cache.
MOST_NUMBERS = 1 << 15
# Entries behind a block: `to_lanes` may write up to one less than the widest vector register has, and two are for sums.
_BEHIND = 17


def scratch_size(sizes, num_vectors, num_samples, dtype):
    """Length of one of the blocks that a layer in lanes needs: three of them are the scratch of a sweep."""
    lanes = num_lanes(num_vectors, np.dtype(dtype))
    if num_vectors < LEAST_VECTORS:
        return 0
    entries = max(sizes.width * (sizes.width + 1), sizes.m, num_samples * max(sizes.width, sizes.r))
    return min(entries * lanes, MOST_NUMBERS) + _BEHIND * lanes


@inner
def suits(layer, B, num_vectors, lanes):
    """Whether a layer is taken with its vectors side by side."""
    if num_vectors < LEAST_VECTORS or not (layer.kind == DENSE or layer.kind == BLOCKS):
        return False
    if layer.kind == BLOCKS and layer.taps > 0:
        return False
    entries = max(layer.p, layer.m, B * max(layer.n_in, layer.n_out, layer.r))
    return entries * lanes <= MOST_NUMBERS


@inner
def run_before(table, start, stop, B, num_vectors, lanes):
    """The first layer of the run of layers in lanes that ends before ``stop``; ``stop`` if there is none."""
    while stop > start and suits(table[stop - 1], B, num_vectors, lanes):
        stop -= 1
    return stop


@inner
def run_after(table, start, stop, B, num_vectors, lanes):
    """The layer behind the run of layers in lanes that begins with ``start``; ``start`` if there is none."""
    while start < stop and suits(table[start], B, num_vectors, lanes):
        start += 1
    return start


@inner
def state_to_lanes(num_vectors, size, state, lanes, scratch):
    """Turn vectors of ``size`` entries, one row after the other, round in their place."""
    to_lanes(num_vectors, size, state, size, scratch, lanes)
    move(size * lanes, scratch, state)


@inner
def state_to_rows(num_vectors, size, state, lanes, scratch):
    """The inverse of `state_to_lanes`."""
    to_rows(num_vectors, size, state, lanes, scratch, size)
    move(size * num_vectors, scratch, state)


@inner
def negate_behind(first, size, y, lanes):
    """sigma y, the signs being those of entries of which the first ones are positive."""
    for i in range(first * lanes, size * lanes):
        y[i] = -y[i]


@inner
def add_block(count, x, y):
    """y += x, ``count`` numbers each."""
    for i in range(count):
        y[i] += x[i]
