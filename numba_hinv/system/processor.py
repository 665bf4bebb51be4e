"""Where the sweeps run: the CPU, or (`numba_hinv.cuda.device`, its twin) a GPU.

A `System` holds one of the two and reaches memory and compiled sweeps through it alone, so that scaling, pivoting,
refinement, certificates and determinants are the same code for both. Another kind of device is a class with the methods
of `Cpu` that its own package gives to `register`.
"""

import numpy as np

from ..kernels.dense import blas
from ..kernels.plumbing import binding, packing
from ..kernels.steps import row_space
from ..kernels.sweeps import eliminate, multiply, substitute
from ..runtime import columns, memory_budget, threads
from ..runtime.chunks import chunks
from ..runtime.validation import as_columns

# What `multiply.adjoints` takes where nobody asks for squared norms.
_NO_SQUARES = np.empty((0, 2))


class Cpu:
    """Sweeps of :mod:`numba_hinv.kernels`, NumPy arrays."""

    name = "cpu"
    require = staticmethod(memory_budget.require)
    ldexp = staticmethod(np.ldexp)
    empty_vectors = staticmethod(np.empty)
    multiply_workspace = staticmethod(multiply.workspace)
    allocate_factors = staticmethod(eliminate.allocate)
    substitution_workspace = staticmethod(substitute.workspace)
    num_workers = staticmethod(threads.num_workers)
    column_block = None
    batches = False
    place = staticmethod(columns.place)
    as_columns = staticmethod(as_columns)
    eliminate = staticmethod(eliminate.eliminate)
    substitute_back = staticmethod(substitute.substitute_back)
    substitute_forth = staticmethod(substitute.substitute_forth)

    def load(self, dtype):
        """Have all kernels for a dtype at hand, and the number of BLAS's threads, which may have changed."""
        blas.tell_threads(threads.blas_threads())
        binding.load(dtype)

    def put(self, array):
        """The array where the sweeps read it."""
        return array

    # The array for NumPy, and vectors for the sweeps.
    take = vectors = put

    def empty_columns(self, like, shape, dtype):
        """An uninitialised (P, k) array on the side of the given one."""
        return columns.empty(shape, dtype)

    def result(self, found, shape):
        """A (P, k) array as the caller gets it."""
        return found.reshape(shape)

    def zero(self, array):
        """Fill an array with zeros."""
        array.fill(0.0)

    def astype(self, array, dtype):
        """A copy of an array in another dtype."""
        return array.astype(dtype)

    def as_params(self, model, params):
        """A copy of a model's parameters in float64, and the dtype that they were given in."""
        params = model.check_params(params)
        return np.array(params, np.float64), params.dtype

    def as_samples(self, model, X):
        """Inputs of a model in float64."""
        return model.check_X(X, np.float64)

    def as_targets(self, model, y, num_samples):
        """Targets of a model's loss in float64."""
        return model.check_y(y, num_samples, np.float64)

    def linearise(self, model, params, X, targets):
        """(`Linearisation`, loss, gradient, layer table and sizes) of a model."""
        return *model.linearise(params, X, targets, 2), model.table(X.shape[0], np.float64)

    def span(self, table, sizes, lin):
        """`RowSpace` of the inputs of all layers, in float64."""
        space = row_space.RowSpace(np.empty(sizes.Q), np.empty(sizes.R))
        scratch = row_space.workspace(sizes, np.dtype(np.float64))
        # Reflections are plain loops, four times as slow as products.
        for start, stop in chunks(16.0 * table["rows"] * table["r"] * table["d"]):
            row_space.span(table[start:stop], lin, space, scratch)
        return space

    def tangents(self, table, start, stop, params, lin, V, scratch):
        dZ, dU, _, patches = scratch
        multiply.tangents(table, start, stop, params, lin, V, dZ, dU, patches)

    def output_tangents(self, scratch, shape):
        """Those of the outputs, (k, B, n_L), as `tangents` has left them."""
        dZ = scratch[0]
        return dZ[dZ.size - np.prod(shape) :].reshape(shape)

    def adjoints(self, table, start, stop, params, lin, V, HV, scratch, shift=0.0, b=None, squares=None):
        b, squares = V[:0] if b is None else b, _NO_SQUARES if squares is None else squares
        multiply.adjoints(table, start, stop, params, lin, V, HV, *scratch, shift, b, squares)

    def elimination_workspace(self, table, sizes, dtype):
        """Scratch of `eliminate`."""
        return eliminate.workspace(sizes, dtype)

    def elimination_bytes(self, table, sizes, dtype):
        """Bytes of `elimination_workspace`."""
        return eliminate.work_bytes(sizes, dtype)

    def pack(self, n, work, index):
        """The symmetric n x n front ``index`` of a workspace, kept."""
        return packing.pack(n, work.front[index])

    def unpack(self, kept, n, work, index):
        """The inverse of `pack`."""
        packing.unpack(kept, n, work.front[index])


CPU = Cpu()
# What opens a processor on the stream of an array, by name.
_OPENERS = {CPU.name: lambda like: CPU}


def register(name, opener):
    """Let ``device=name`` mean what ``opener(like)`` returns, a twin of `Cpu` on the stream of the array ``like``."""
    _OPENERS[name] = opener


def get(name, like=None):
    """The processor of this name; on the stream of the array ``like``, if that says one."""
    if not isinstance(name, str) or name not in _OPENERS:
        raise ValueError(f"device: expected {' or '.join(map(repr, _OPENERS))}, got {name!r}")
    return _OPENERS[name](like)


def require_cpu(on, what):
    """``ValueError`` where a Hessian is on a GPU and this is not done there."""
    if on.name != CPU.name:
        raise ValueError(
            f"device: expected 'cpu' for {what}, got a Hessian on {on.name!r}; "
            "a factorization that is saved on one is loaded on the other"
        )


def is_on_device(array):
    """Whether an array is one of CuPy, torch or Numba on a GPU (or in Numba's simulator of one)."""
    return hasattr(array, "__cuda_array_interface__") or getattr(array, "__cuda_ndarray__", False) is True
