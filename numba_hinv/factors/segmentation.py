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

from ..kernels.steps.layer_table import BLOCKS, ONE_POSITION, Chain, Sizes, layer_table
from ..kernels.steps.segment_table import SEGMENT

# Layers whose fronts have at most so many rows.
_LARGEST_FRONT = 96
# Pi = 2^GUESS alpha I, which keeps pivots away from zero, being positive, and is of the size of what it stands for. Of
# 120 built cases all inertias were right with any Pi from 0 to 1,000 alpha I; but with 1,000 solutions lost six digits
# before refinement, and with 0 fronts grew to 1e7 ||H||.
GUESS = -3
# Levels of states (`scaling`) between which alpha and its square exist in float32.
LARGEST_LEVEL = 20
# The segmentations of systems that were factorized, as `plan` has made them.
_plans = weakref.WeakKeyDictionary()


def plan(system):
    """The `Segmentation` of a system on its processor, None where its chain is not cut; made once."""
    if system not in _plans:
        bounds = cut(system.table, system.num_samples, system.on.segments)
        found = None if bounds is None else segmentation_of(system.table, system.num_samples, bounds)
        _plans[system] = bounds, found
    return _plans[system][1]


def cut(table, num_samples, segments):
    """Bounds of the segments for a processor's `segments`: (0, ..., L), or None where the chain is not cut.

    Cut are long chains of small fronts, into at most as many segments as the device has multiprocessors; fewer where
    the short chain of the seams, which runs alone, would take longer than a segment does.
    """
    states = num_samples * table["n_out"]
    if np.maximum.reduce([table["m"], table["N"], states]).max() > _LARGEST_FRONT:
        return None
    count = min(segments.num_blocks(), math.isqrt(table.size // 2), table.size // segments.shortest)
    if count < segments.fewest:
        return None
    m, N = table["m"].astype(float), table["N"]
    done = np.cumsum(m**3 / 3 + m * m * N + m * N * N + states * (m + N) * (states + m + N))
    ends = np.interp(done[-1] * np.arange(count + 1) / count, np.append(0.0, done), np.arange(table.size + 1))
    bounds = np.unique(np.rint(ends).astype(int))
    return tuple(bounds.tolist()) if bounds.size > 2 else None


class Segmentation(NamedTuple):
    """What the sweeps must know of a chain that is cut."""

    bounds: tuple
    records: np.ndarray  # `SEGMENT`, each as one run
    Y: int  # scalars of Y_mu
    phi: int  # of the largest Phi
    psi: int
    mixed: int  # of the largest K_mu
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
        none + BLOCKS, repeated(n_in, 0), repeated(c, 1), repeated(2 * c, 0), none, none, none,
        *[none + value for value in ONE_POSITION],
    )
    return layer_table(chain, 1)


def segmentation_of(table, num_samples, bounds):
    """The `Segmentation` between the given bounds."""
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
    return Segmentation(
        tuple(bounds), records, int(each.sum()), int((carried * states).max()), int(c.max()) ** 2,
        int((carried * table["m"]).max()), seams, sizes,
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
