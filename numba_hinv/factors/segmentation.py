"""The chain in segments that are eliminated at the same time: the cut, and the seams between them.

The mathematics is in docs/theory.md, section 10. A segment ends in states y of c numbers. It is eliminated from a guess
Pi of the curvature there, and carries multipliers mu of y, so that afterwards the parameters of all segments are gone
and y and mu of every seam are left. They are the parameters of a short chain, a layer a seam, given as blocks:

    Dx = [I 0],   Dxx = [-Pi  -I; -I  -Psi],   Dzx = [0; Phi],   Dz = 0,   Dzz = P

where Psi, Phi and P are those of the segment before the seam, and the P of the last segment is the curvature that the
short chain starts with. So the sweeps for layers are those for seams as well. mu is taken in units of alpha, the scale
of the Hessian in these states: all blocks are then on that scale, and alpha I stands in the place of I.
"""

import functools
import math
import weakref
from typing import NamedTuple

import numpy as np
import scipy.optimize

from ..kernels.steps.layer_table import BLOCKS, CONVOLUTION, ONE_POSITION, Chain, Sizes, layer_table
from ..kernels.steps.segment_table import SEGMENT

# Layers whose fronts have at most so many rows.
_LARGEST_FRONT = 96
# Pi = 2^GUESS alpha I, which keeps pivots away from zero, being positive, and is of the size of what it stands for. Of
# 120 built cases all inertias were right with any Pi from 0 to 1,000 alpha I; but with 1,000 solutions lost six digits
# before refinement, and with 0 fronts grew to 1e7 ||H||.
GUESS = -3
# Levels of states (`scaling`) between which alpha and its square exist in float32.
LARGEST_LEVEL = 20
# What a layer, and its multipliers, cost beside their flops, in flops: small products run at a fraction of the rate of
# large ones.
_LAYER, _MULTIPLIERS = 2e3, 8e2
# The segmentations of systems that were factorized, by the number of segments asked for, as `plan` has made them.
_plans = weakref.WeakKeyDictionary()


def plan(system, count=None):
    """The `Segmentation` of a system on its processor, None where its chain is not cut; made once.

    count : segments at most; by default as many as the processor takes by itself.
    """
    plans = _plans.setdefault(system, {})
    if count not in plans:
        bounds = cut(system.table, system.num_samples, system.on.segments, count)
        plans[count] = bounds and segmentation_of(system.table, system.num_samples, bounds, system.on.segments)
    return plans[count]


def cut(table, num_samples, segments, count=None):
    """Bounds of the segments for a processor's `segments`: (0, ..., L), or None where the chain is not cut.

    Cut are long chains of small fronts, into at most ``count`` segments, by default as many as the processor runs at a
    time; fewer where the short chain of the seams, which runs alone, would take longer than a segment does. All take
    the same time: the last one, which carries no multipliers, has the most layers.
    """
    if not may_cut(table, num_samples):
        return None
    count = segments.num_blocks() if count is None else count
    count = min(count, math.isqrt(table.size // 2), table.size // segments.shortest)
    if count < segments.fewest or _costs(table, num_samples, segments)[0].sum() < segments.least:
        return None
    bounds = balanced(table, num_samples, segments, count)
    return bounds if len(bounds) > 2 else None


def balanced(table, num_samples, segments, count):
    """Bounds (0, ..., L) of at most ``count`` segments that take the same time on a processor with such `segments`."""
    alone, loaded = (np.append(0.0, np.cumsum(costs)) for costs in _costs(table, num_samples, segments))
    layers = np.arange(table.size + 1)

    def ends(time):
        return np.interp(time * np.arange(count), loaded, layers)

    # How much longer the last segment takes than the others, if they take so long.
    time = scipy.optimize.brentq(
        lambda time: alone[-1] - np.interp(ends(time)[-1], layers, alone) - time, 0.0, loaded[-1], rtol=1e-6
    )
    return tuple(np.unique(np.rint(np.append(ends(time), table.size)).astype(int)).tolist())


def may_cut(table, num_samples):
    """Whether a chain has fronts that are small enough, and no convolutions."""
    rows = np.maximum.reduce([table["m"], table["N"], num_samples * table["n_out"]])
    return bool(rows.max() <= _LARGEST_FRONT and (table["kind"] != CONVOLUTION).all())


def _costs(table, num_samples, segments):
    """(costs of eliminating every layer, costs where it carries multipliers as well)."""
    m, N, c = table["m"].astype(float), table["N"], num_samples * table["n_out"]
    alone = m**3 / 3 + m * m * N + m * N * N + c * (m + N) * (c + m + N) + _LAYER
    share = np.where(table["kind"] == BLOCKS, segments.carrying[1], segments.carrying[0])
    return alone, alone + share * (c * (m * m + 2 * m * (N + c) + 2 * c * (m + N)) + _MULTIPLIERS)


class Segmentation(NamedTuple):
    """What the sweeps must know of a chain that is cut."""

    bounds: tuple
    records: np.ndarray  # `SEGMENT`, each as one run
    Y: int  # scalars of Y_mu
    phi: int  # of the largest Phi
    psi: int
    mixed: int  # of the largest K_mu
    loads: np.ndarray  # what the layers of each segment cost, over what they would cost in the chain as one
    seams: np.ndarray  # the layer table of the seams
    sizes: Sizes  # its sizes

    @property
    def count(self):
        return len(self.bounds) - 1

    def runs(self, pieces):
        """Their records with other starts and stops, ``pieces`` being (start, stop) of each."""
        records = self.records.copy()
        records["start"], records["stop"] = np.array(pieces).T
        return records


@functools.lru_cache(maxsize=64)
def _seam_chain(states, copies):
    """The layer table of so many copies of the seams' chain, and a layer of no size behind them; sizes of one copy."""
    c = np.array(states, np.int64)
    n_in = np.concatenate([[0], c[:-1]])
    none = np.zeros(copies * c.size + 1, np.int64)

    def repeated(values, last):
        return np.append(np.tile(values, copies), last)

    chain = Chain(
        none + BLOCKS,
        repeated(n_in, 0),
        repeated(c, 1),
        repeated(2 * c, 0),
        none,
        none,
        none,
        *[none + value for value in ONE_POSITION],
    )
    return layer_table(chain, 1)


def segmentation_of(table, num_samples, bounds, segments):
    """The `Segmentation` between the given bounds, for a processor's `segments`."""
    count, ends = len(bounds) - 1, np.array(bounds[1:-1])
    c = num_samples * table["n_out"][ends - 1]
    rows = np.append(table["scales"] // 2, 0)
    rows[-1] = rows[-2] + table["m"][-1]
    records = np.zeros(count, SEGMENT)
    records["start"] = records["first"] = bounds[:-1]
    records["stop"] = records["end"] = bounds[1:]
    records["c"][:-1] = c
    each = records["c"] * (rows[records["stop"]] - rows[records["start"]])
    records["Y"] = np.cumsum(each) - each - records["c"] * rows[records["start"]]
    y = np.cumsum(2 * c) - 2 * c
    records["before"] = np.append(-1, y)
    records["after"][:-1] = y + c
    carried = np.repeat(records["c"], np.diff(bounds))
    states = np.maximum(num_samples * table["n_out"], table["N"])
    seams, sizes = _seam_chain(tuple(c.tolist()), 1)
    alone, loaded = (np.add.reduceat(costs, bounds[:-1])[:-1] for costs in _costs(table, num_samples, segments))
    return Segmentation(
        tuple(bounds),
        records,
        int(each.sum()),
        int((carried * states).max()),
        int(c.max()) ** 2,
        int((carried * table["m"]).max()),
        np.append(loaded / alone, 1.0),
        seams,
        sizes,
    )


def seams_together(plan, copies):
    """(layer table of the seams of several dampings, their runs): a segment each."""
    count, table = plan.count - 1, _seam_chain(tuple(plan.records["c"][:-1].tolist()), copies)[0]
    runs = np.zeros(copies, SEGMENT)
    runs["start"] = runs["first"] = count * np.arange(copies)
    runs["stop"] = runs["end"] = runs["start"] + count
    runs["before"] = -1
    return table, runs


def scales(plan, norm, levels):
    """alpha of every segment's end, powers of two: the norm in the units of the states there, (S,)."""
    alpha = np.ones(plan.count)
    exponent = int(np.frexp(norm)[1])
    alpha[:-1] = np.ldexp(1.0, exponent - 2 * levels[np.array(plan.bounds[1:-1])])
    return alpha
