"""Factors of the chain layer by layer, all of them in memory: the plain way."""

import functools

import numpy as np

from ..kernels.dense.norm import extremes
from ..kernels.steps.layer_table import BLOCKS
from ..kernels.sweeps import eliminate, substitute
from ..kernels.sweeps.sample import project_all
from ..runtime import threads
from . import recursion, stretches
from .elimination import no_tick, pieces
from .interface import Factors
from .pivots import Pivots


class ChainFactors(Factors):
    """What all ways that keep the pivots of a chain have in common.

    Parameters
    ----------
    elimination : Elimination
    pivots : Pivots
    """

    method = "layers"

    def __init__(self, elimination, pivots):
        self.elimination, self.matrix, self.pivots = elimination, elimination.matrix, pivots

    def prepare(self):
        self.matrix.blocks()

    @property
    def is_altered(self):
        return self.elimination.shift != self.matrix.eps

    @functools.cached_property
    def num_perturbed(self):
        return int(self.pivots.num_perturbed.sum())

    @property
    def num_negative(self):
        system = self.matrix.system
        negative = int((system.table["m"] - self.pivots.num_positive).sum())
        return negative + int(system.free()[self.matrix.dampings(self.elimination.shift) < 0.0].sum())

    def log_pivots(self):
        logabsdet = float(self.pivots.logabsdet.sum())
        free, k = self.matrix.system.free(), self.matrix.scale.matrix
        if free.any():
            dampings = self.matrix.dampings(self.elimination.shift)[free > 0]
            logabsdet += float((free[free > 0] * np.log(np.abs(dampings))).sum())
        if k:
            logabsdet += self.matrix.size * (k * float(np.log(2.0)))
        return logabsdet

    def has_tiny_pivots(self, threshold):
        return extremes(self.pivots.smallest)[0] < threshold * extremes(self.pivots.largest)[1]

    def layer_of_smallest_pivot(self):
        return int(np.argmax(self.pivots.largest))

    def rounding_of_pivots(self):
        """That of the largest front, over the smallest pivot."""
        if self.num_perturbed or self.is_altered:
            return np.inf
        matrix, system = self.matrix, self.matrix.system
        # On the Hessian's own scale, that of the parameters.
        levels = matrix.scale.levels_by_layer(system.num_layers)
        growth = float(np.ldexp(self.pivots.growth, 2 * levels).max())
        if system.num_free():
            # What the parameters that no sample sees take from the fronts: (1/eps) lam lam^T, and as many times that as
            # patches share a state.
            _, lin, _ = matrix.blocks()
            is_structured = system.table["kind"] != BLOCKS
            layers = system.table[is_structured]
            kernel = system.chain.kernel[is_structured]
            lam = np.maximum.reduceat(np.abs(system.on.memory.take(lin.lam)), layers["u"]) * np.sqrt(kernel)
            largest = float(np.ldexp(lam, levels[is_structured]).max())
            smallest = np.abs(matrix.dampings(matrix.eps))[system.free() > 0].min()
            growth += largest**2 * system.sizes.front**0.5 / smallest
        smallest = 1.0 / float(self.pivots.largest.max()) ** 2
        return np.finfo(matrix.dtype).eps * (matrix.norm + growth) / smallest


class Layers(ChainFactors):
    """Factors of every layer, in memory as one stretch.

    Parameters
    ----------
    elimination : Elimination
    pivots : Pivots
    stretches : sequence of Stretch
        What `cut` gives.
    arrays : kernels.sweeps.eliminate.Factors
    """

    def __init__(self, elimination, pivots, stretches, arrays):
        super().__init__(elimination, pivots)
        self.stretches, self.arrays = stretches, arrays

    @staticmethod
    def cut(layout, dtype):
        """The `Stretch`es of a chain."""
        return stretches.whole(layout.table.size, layout.sizes)

    @classmethod
    def num_bytes(cls, system, dtype):
        """(bytes that are kept, bytes of scratch of the elimination)."""
        return system.layout.kept(cls._num_bytes, system.on, dtype)

    @classmethod
    def _num_bytes(cls, layout, on, dtype):
        kept = stretches.kept_bytes(cls.cut(layout, dtype), dtype) + Pivots.nbytes(layout.table.size)
        return kept, on.elimination.work_bytes(layout.table, layout.sizes, dtype)

    @classmethod
    def eliminate(cls, elimination, tick=no_tick):
        """The factors of an `Elimination`; ``tick(n)`` is called after every n layers and may raise."""
        matrix, system = elimination.matrix, elimination.matrix.system
        on, whole = system.on, system.layout.kept(cls.cut, matrix.dtype)
        arrays = on.elimination.allocate(system.sizes, system.num_layers, matrix.dtype)
        work = on.elimination.workspace(system.table, system.sizes, matrix.dtype)
        elimination.eliminate(whole[0], arrays, work, tick)
        return cls.of_arrays(elimination, arrays)

    @classmethod
    def of_arrays(cls, elimination, arrays):
        """Those whose arrays are there already."""
        system = elimination.matrix.system
        whole = system.layout.kept(cls.cut, elimination.matrix.dtype)
        return cls(elimination, Pivots.of_chain(system.table, arrays, system.on.memory.take), whole, arrays)

    def __getstate__(self):
        return {**self.__dict__, "arrays": eliminate.Factors(*map(self.matrix.system.on.memory.take, self.arrays))}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.arrays = eliminate.Factors(*map(self.matrix.system.on.memory.put, self.arrays))

    def to_arrays(self):
        take = self.matrix.system.on.memory.take
        arrays = {f"factors_{name}": take(array) for name, array in self.arrays._asdict().items()}
        return {"method": self.method, "shift": self.elimination.shift}, arrays

    @property
    def nbytes(self):
        return stretches.kept_bytes(self.stretches, self.matrix.dtype)

    def visit(self, indices):
        """The stretches of these indices with their arrays, one after the other."""
        for index in indices:
            yield self.stretches[index], self.arrays

    def sweep(self, b, x, check):
        system, matrix = self.matrix.system, self.matrix
        on, (params, lin, space) = system.on, matrix.blocks()
        work = on.substitution.workspace(system.sizes, b.shape[0], system.num_samples, matrix.dtype)
        run, back = on.substitution.back, True
        order = list(range(len(self.stretches)))
        for stretch, factors in self.visit(order[::-1] + order):
            table = stretch.table(matrix.table)
            for start, stop in pieces(system, stretch, b.shape[0], back):
                check()
                run(table, start, stop, params, lin, space, factors, self.elimination.shift, b, x, work)
            if stretch.start == 0:
                run, back = on.substitution.forth, False

    @property
    def lifts(self):
        system = self.matrix.system
        return system.is_of_blocks and system.on.lifting is not None and not self.is_altered and system.ridge is None

    def has_pivots_below(self, size):
        # Magnitudes of pivots are one over the squares of their scales.
        return bool(self.pivots.largest.max() ** 2 * size > 1.0)

    def residuals(self, b, x, z, offset=0.0, check=threads.no_check):
        y, worst = np.empty_like(x), np.zeros(x.shape[0])
        self._lifted_sweep(True, (self.matrix.eps + offset, b, x, z, y, worst), check)
        return y, worst

    def trajectory(self, y, check=threads.no_check):
        system, k = self.matrix.system, y.shape[0]
        x, z = np.empty_like(y), np.zeros(k * system.on.lifting.num_states(system.sizes, system.num_samples))
        self._lifted_sweep(False, (y, x, z), check)
        return x, z

    def _lifted_sweep(self, back, arguments, check):
        """`residuals` or `trajectory` over all layers, with their arguments from the fifth on."""
        system, matrix = self.matrix.system, self.matrix
        on, (_, lin), k = system.on.lifting, system.scaled(matrix.scale), arguments[1].shape[0]
        work = on.workspace(system.sizes, k, system.num_samples, matrix.dtype)
        run, order = on.residuals if back else on.trajectory, range(len(self.stretches))
        for stretch, factors in self.visit(order[::-1] if back else order):
            table = stretch.table(system.table)
            for start, stop in pieces(system, stretch, k, back):
                check()
                run(table, start, stop, lin, factors, *arguments, work)

    def square_root(self, rows, check=threads.no_check):
        system, matrix, shift = self.matrix.system, self.matrix, self.elimination.shift
        params, lin, space = matrix.blocks()
        noise = rows.astype(matrix.dtype)
        x = np.empty_like(noise)
        work = substitute.workspace(system.sizes, rows.shape[0], system.num_samples, matrix.dtype)
        project_all(system.table, 0, system.num_layers, space, noise, x)
        noise *= np.repeat(np.sqrt(np.maximum(matrix.dampings(shift), 0.0)), system.chain.p).astype(matrix.dtype)
        for stretch, factors in self.visit(range(len(self.stretches))):
            table = stretch.table(matrix.table)
            for start, stop in pieces(system, stretch, rows.shape[0], False):
                check()
                substitute.substitute_forth(table, start, stop, params, lin, space, factors, shift, noise, x, work)
        return x.astype(np.float64, copy=False)

    def covariance_workspace(self, layer, num_kept, purpose):
        return recursion.workspace(self.matrix, layer, num_kept, purpose)

    def diagonal(self, noise, work, tick):
        found = np.empty(self.matrix.size, self.matrix.dtype)
        for _ in recursion.propagate(self, self.matrix.system.num_layers, noise, found, work, tick):
            pass
        return found.astype(np.float64)

    def block(self, layer, work, tick):
        return recursion.block(self, layer, work, tick)

    def outputs(self, tick=no_tick):
        return recursion.outputs(self, tick)
