"""Factors of a chain whose segments were eliminated at the same time, with those of the seams between them.

`segmentation` has the mathematics of the cut, `batched` makes these factors, and `Segments` solves with them.
"""

import itertools
from typing import NamedTuple

import numpy as np

from ..kernels.steps.row_space import RowSpace
from ..kernels.steps.segment_table import whole
from ..kernels.sweeps.eliminate import Factors as Arrays
from ..kernels.sweeps.linearise import Linearisation
from . import segmentation, stretches
from .elimination import pieces
from .layers import ChainFactors
from .pivots import Pivots
from .stretches import Stretch


class SegmentArrays(NamedTuple):
    """What the elimination of a chain in segments leaves."""

    layers: Arrays
    Y_mu: np.ndarray
    seams: Arrays  # the factors of the chain of seams
    Dx: np.ndarray  # of that chain, with its Dz
    Dz: np.ndarray

    def map(self, function):
        """The same with another kind of arrays."""
        layers, seams = (Arrays(*map(function, part)) for part in (self.layers, self.seams))
        return SegmentArrays(layers, function(self.Y_mu), seams, function(self.Dx), function(self.Dz))


class Segments(ChainFactors):
    """Factors of all segments and of their seams.

    Where their pivots do not certify something, the chain is eliminated as one: the fallback.

    Parameters
    ----------
    elimination : Elimination
    pivots : Pivots
        Those of a seam count with the layer before it.
    plan : Segmentation
    arrays : SegmentArrays
    """

    has_fallback = True

    def __init__(self, elimination, pivots, plan, arrays):
        super().__init__(elimination, pivots)
        self.segmentation, self.bounds, self.arrays = plan, plan.bounds, arrays

    def __getstate__(self):
        state = {**self.__dict__, "arrays": self.arrays.map(self.matrix.system.on.memory.take)}
        # The layer tables hold addresses, which are others in another process.
        del state["segmentation"]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        system = self.matrix.system
        self.arrays = self.arrays.map(system.on.memory.put)
        self.segmentation = segmentation.segmentation_of(
            system.table, system.num_samples, self.bounds, system.on.segments
        )

    @staticmethod
    def num_bytes(system, dtype, plan):
        """(bytes that are kept, bytes of scratch of the elimination) with this `Segmentation`."""
        table, sizes, work_bytes = system.table, system.sizes, system.on.elimination.work_bytes
        kept = stretches.kept_bytes(stretches.whole(system.num_layers, sizes), dtype) + Pivots.nbytes(system.num_layers)
        blocks = sum(getattr(plan.sizes, name) for name in ("Dxx", "Dzx", "Dzz"))
        seams = dtype.itemsize * blocks + work_bytes(plan.seams, plan.sizes, dtype, by_blocks=True)
        # Where segments fail, the chain is eliminated again as one, when their workspace has been given back.
        work = max(work_bytes(table, sizes, dtype), work_bytes(table, sizes, dtype, plan) + seams)
        return kept + _beyond_layers(plan, dtype), work

    @property
    def nbytes(self):
        system, arrays = self.matrix.system, self.arrays
        beyond = (arrays.Y_mu, *arrays.seams, arrays.Dx, arrays.Dz)
        kept = stretches.kept_bytes(stretches.whole(system.num_layers, system.sizes), self.matrix.dtype)
        return kept + sum(array.size * np.dtype(array.dtype).itemsize for array in beyond)

    def _steps(self, num_vectors, back):
        """Runs of all segments, one each, in the order of a sweep."""
        plan, system = self.segmentation, self.matrix.system
        spans = [Stretch(start, stop, (), 0) for start, stop in zip(plan.bounds[:-1], plan.bounds[1:])]
        queues = [pieces(system, span, num_vectors, back) for span in spans]
        # A segment of fewer runs than others has nothing left to do.
        done = [0 if back else span.stop - span.start for span in spans]
        steps = []
        for parts in itertools.zip_longest(*queues):
            parts = [(end, end) if part is None else part for part, end in zip(parts, done)]
            ends = [(span.start + start, span.start + stop) for span, (start, stop) in zip(spans, parts)]
            steps.append(plan.runs(ends))
        return steps

    def sweep(self, b, x, check):
        """All segments, the seams, all segments again."""
        matrix, plan, kept = self.matrix, self.segmentation, self.arrays
        system, dtype, k, shift = matrix.system, matrix.dtype, b.shape[0], self.elimination.shift
        on, table, (params, lin, space) = system.on, matrix.table, matrix.blocks()
        work = on.substitution.workspaces(system.sizes, k, system.num_samples, dtype, plan.count)
        size = plan.sizes.parameters
        right, found = on.memory.empty((k, size), dtype), on.memory.empty((k, size), dtype)
        layers = params, lin, space, kept.layers, kept.Y_mu, shift, b, x
        on.substitution.runs(True, table, self._steps(k, True), *layers, right, work, check)
        nothing = on.memory.empty(1, dtype)
        output = on.memory.empty((1, 1), dtype)
        short = Linearisation(*[nothing] * 4, kept.Dx, kept.Dz, *[nothing] * 3, output, lin.curvature)
        seam_work = on.substitution.workspaces(plan.sizes, k, 1, dtype, 1)
        steps = [whole(plan.seams[:-1], 0, plan.count - 1)]
        vectors = on.memory.as_vectors(right), on.memory.as_vectors(found)
        seams = params, short, RowSpace(nothing, nothing, nothing), kept.seams, None, 0.0, *vectors
        for back in (True, False):
            on.substitution.runs(back, plan.seams, steps, *seams, None, seam_work, check)
        on.substitution.runs(False, table, self._steps(k, False), *layers, found, work, check)


def _beyond_layers(plan, dtype):
    """Bytes that are kept beyond those of the factors of the layers."""
    sizes, count = plan.sizes, plan.count - 1
    scalars = plan.Y + sizes.L + sizes.scales + sizes.Y + sizes.Dx + sizes.Dz
    return dtype.itemsize * scalars + 4 * sizes.pivots + 32 * count
