"""The CPU as a `System` sees it: the sweeps of :mod:`numba_hinv.kernels` on NumPy arrays.

Its parts are what any processor has: `memory`, `columns`, `models`, `products`, `elimination`, `substitution`,
`segments`.
"""

import numpy as np

from ..kernels.dense import blas
from ..kernels.dense.lanes import num_lanes
from ..kernels.plumbing import binding, packing
from ..kernels.steps import row_space
from ..kernels.sweeps import eliminate, lifted, multiply, substitute
from ..layers.targets import as_weights
from ..runtime import columns, memory_budget, threads
from ..runtime.chunks import chunks
from ..runtime.validation import as_columns
from . import cpu_segments, processor

# What `multiply.adjoints` takes where nobody asks for squared norms.
_NO_SQUARES = np.empty((0, 2))


class CpuMemory:
    """Arrays and vectors: here both are NumPy's."""

    require = staticmethod(memory_budget.require)
    empty = empty_vectors = staticmethod(np.empty)
    ldexp = staticmethod(np.ldexp)

    @staticmethod
    def put(array):
        """The array where the sweeps read it."""
        return array

    # The array for NumPy, and vectors for the sweeps.
    take = vectors = as_vectors = put

    @staticmethod
    def row(array, t):
        """Row t of a matrix, in its memory."""
        return array[t]

    @staticmethod
    def part(array, where):
        """A slice of an array, in its memory."""
        return array[where]

    @staticmethod
    def zero(array):
        """Fill an array with zeros."""
        array.fill(0.0)

    @staticmethod
    def astype(array, dtype):
        """A copy of an array in another dtype."""
        return array.astype(dtype)


class CpuColumns:
    """Right-hand sides and vectors as callers give and get them: in columns, (P, k)."""

    # How many of them are solved at the same time; None where that follows from their size.
    block = None
    as_columns = staticmethod(as_columns)
    place = staticmethod(columns.place)

    @staticmethod
    def empty(like, shape, dtype):
        """An uninitialised (P, k) array on the side of the given one."""
        return columns.empty(shape, dtype)

    @staticmethod
    def result(found, shape):
        """A (P, k) array as the caller gets it."""
        return found.reshape(shape)


class CpuModels:
    """A model and its batch, checked, and the derivative blocks that are made of them."""

    @staticmethod
    def as_params(model, params):
        """A copy of a model's parameters in float64, and the dtype that they were given in."""
        return model.copy_params(params)

    @staticmethod
    def as_samples(model, X):
        """Inputs of a model in float64."""
        return model.check_X(X, np.float64)

    @staticmethod
    def as_targets(model, y, weights):
        """`Targets` of a model's loss in float64, with weights on the host."""
        return model.check_y(y, weights.size, np.float64, weights=weights)

    @staticmethod
    def as_weights(name, weights, num_samples):
        """Weights of samples, of either sign, in float64 on the host."""
        return as_weights(name, weights, num_samples, True)

    @staticmethod
    def linearise(model, params, X, targets):
        """(`Linearisation`, loss, gradient, `Layout`) of a model."""
        return *model.linearise(params, X, targets, 2), model.layout(X.shape[0], np.float64)


class CpuProducts:
    """The two sweeps of a product with H."""

    workspace = staticmethod(multiply.workspace)

    @staticmethod
    def tangents(table, start, stop, params, lin, V, scratch):
        dZ, dU, _, patches = scratch
        multiply.tangents(table, start, stop, params, lin, V, dZ, dU, patches)

    @staticmethod
    def output_tangents(scratch, shape):
        """Those of the outputs, (k, B, n_L), as `tangents` has left them."""
        dZ, (k, B, n) = scratch[0], shape
        at = dZ.size - num_lanes(k, dZ.dtype) * B * n
        return dZ[at : at + k * B * n].reshape(shape)

    @staticmethod
    def adjoints(table, start, stop, params, lin, V, HV, scratch, shift=0.0, b=None, squares=None):
        b, squares = V[:0] if b is None else b, _NO_SQUARES if squares is None else squares
        multiply.adjoints(table, start, stop, params, lin, V, HV, *scratch, shift, b, squares)


def _runs_of_span(layout):
    """Layers for one compiled call of `CpuElimination.span`."""
    table = layout.table
    # Reflections are plain loops, four times as slow as products.
    return chunks(16.0 * table["rows"] * table["r"] * table["d"])


class CpuElimination:
    """The row spaces of a chain, and the sweep that eliminates its layers."""

    # Whether the eliminations of many dampings are one call.
    batches = False
    eliminate = staticmethod(eliminate.eliminate)
    layers = staticmethod(cpu_segments.eliminate_layers)
    runs = staticmethod(cpu_segments.eliminate_runs)

    @staticmethod
    def allocate(sizes, num_layers, dtype, count=None):
        """Uninitialised `Factors`; with ``count``, a row for each of so many factorizations."""
        if count is None:
            return eliminate.allocate(sizes, num_layers, dtype)
        rows = [eliminate.allocate(sizes, num_layers, dtype) for _ in range(count)]
        return eliminate.Factors(*zip(*rows))

    @staticmethod
    def span(layout, lin):
        """`RowSpace` of the inputs of all layers, in float64."""
        sizes = layout.sizes
        space = row_space.RowSpace(np.empty(sizes.Q), np.empty(sizes.R), np.zeros(1))
        scratch = row_space.workspace(sizes, np.dtype(np.float64))
        for start, stop in layout.kept(_runs_of_span):
            row_space.span(layout.table[start:stop], lin, space, scratch)
        return space

    @staticmethod
    def workspace(table, sizes, dtype, num_rows=None, plan=None, by_blocks=False):
        """Scratch of `eliminate`; with ``num_rows``, that of `runs` for so many dampings and segments."""
        if num_rows is None:
            return eliminate.workspace(sizes, dtype)
        return cpu_segments.workspaces(table, sizes, dtype, num_rows, plan)

    @staticmethod
    def work_bytes(table, sizes, dtype, plan=None, by_blocks=False):
        """Bytes of `workspace` for one damping."""
        return (
            eliminate.work_bytes(sizes, dtype) if plan is None else cpu_segments.work_bytes(table, sizes, dtype, plan)
        )

    @staticmethod
    def pack(n, work, index):
        """The symmetric n x n front ``index`` of a workspace, kept."""
        return packing.pack(n, work.front[index])

    @staticmethod
    def unpack(kept, n, work, index):
        """The inverse of `pack`."""
        packing.unpack(kept, n, work.front[index])


class CpuSubstitution:
    """The two sweeps of a solve."""

    workspace = staticmethod(substitute.workspace)
    back = staticmethod(substitute.substitute_back)
    forth = staticmethod(substitute.substitute_forth)
    runs = staticmethod(cpu_segments.substitute_runs)

    @staticmethod
    def workspaces(sizes, num_vectors, num_samples, dtype, num_segments):
        """Scratch of `runs`."""
        return [substitute.workspace(sizes, num_vectors, num_samples, dtype) for _ in range(num_segments)]


class CpuLifting:
    """The two sweeps over the lifted system; a processor without them has None for this part."""

    workspace = staticmethod(lifted.workspace)
    num_states = staticmethod(lifted.num_states)
    residuals = staticmethod(lifted.residuals)
    trajectory = staticmethod(lifted.trajectory)


class Cpu:
    """The processor of whoever names none."""

    name = "cpu"
    memory = CpuMemory()
    columns = CpuColumns()
    models = CpuModels()
    products = CpuProducts()
    elimination = CpuElimination()
    substitution = CpuSubstitution()
    lifting = CpuLifting()
    segments = cpu_segments.CpuSegments()
    num_workers = staticmethod(threads.num_workers)

    def load(self, dtype, table=None):
        """Have all kernels for a dtype at hand, and the number of BLAS's threads, which may have changed.

        Those that eliminate some chains alone only for a table that says so.
        """
        blas.tell_threads(threads.blas_threads())
        binding.load(dtype, "roots" if table is not None and table["rooted"].any() else None)


CPU = Cpu()
processor.register(Cpu.name, lambda like: CPU)
