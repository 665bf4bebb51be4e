"""Factors of the dense matrix, for chains whose batch is so large that their structure saves nothing.

A blocked signed Cholesky (`block_rows`). Memory and time depend on the number of parameters alone, P^2 / 2 numbers and
P^3/3 flops, however many samples there are.
"""

import functools

import numpy as np

from ..runtime import memory_budget, threads
from .block_rows import BlockRows
from .interface import LESS_OF_INVERSE
from .one_matrix import OneMatrix

_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)
# How much R may grow, in units of the norm of the matrix: beyond the first, what these factors say is confirmed, or
# left to the fallback; beyond the second, refinement would hardly contract, and there are none. Nets on digits with
# indefinite Hessians, P = 760 to 1,482, at dampings of either sign from 1e-6 to 0.3 ||H||, had growths of 0.02 to 102.
_CERTAIN = {_DOUBLE: 1e3, _SINGLE: 1e2}
_MOST = {_DOUBLE: 1e9, _SINGLE: 1e4}


class Dense(OneMatrix):
    """Factors of ``2^-k (H + shift I)`` as one matrix.

    Parameters
    ----------
    matrix : Shifted
    shift : float
        The multiple of the identity that is factored with, scaled, in place of the matrix's ``eps``.
    blocks : BlockRows
    """

    def __init__(self, matrix, shift, blocks):
        self.matrix, self.shift, self.blocks = matrix, shift, blocks
        self.pivot_sizes = blocks.pivot_sizes()

    @classmethod
    def factorize(cls, matrix, shift=None, certain=False, check=threads.no_check):
        """The factors of a matrix, by default with its own ``eps``; None where these would not do.

        With ``certain``, they are to have no fallback.
        """
        shift = matrix.eps if shift is None else shift
        limit = (_CERTAIN if certain else _MOST)[matrix.dtype] * matrix.norm
        matrix.system.on.load(matrix.dtype)
        fill = functools.partial(fill_rows, matrix, shift)
        blocks = BlockRows.factorize(fill, matrix.size, matrix.dtype, limit, check)
        return None if blocks is None else cls(matrix, shift, blocks)

    @property
    def has_fallback(self):
        """Whether R has grown so much that LAPACK's factors may be better. Where all pivots are positive it has not."""
        limit = _CERTAIN[self.matrix.dtype] * self.matrix.norm
        return bool(self.num_negative and not self.blocks.growth <= limit)

    @property
    def num_negative(self):
        return self.blocks.num_negative

    @property
    def nbytes(self):
        return self.blocks.nbytes

    @staticmethod
    def num_bytes(system, dtype):
        """(bytes that are kept, bytes of scratch), beside the dense H that all of a system's share."""
        return BlockRows.num_bytes(system.num_params, dtype)

    def sweep(self, b, x, check):
        y = x if x.flags.c_contiguous else np.empty(x.shape, x.dtype)
        y[...] = b
        self.blocks.forward(y, check)
        self.blocks.multiply_signs(y)
        self.blocks.backward(y, check)
        if y is not x:
            x[...] = y

    def square_root(self, rows, check=threads.no_check):
        x = rows.astype(self.matrix.dtype, order="C")
        self.blocks.backward(x, check)
        return x.astype(np.float64, copy=False)

    def log_pivots(self):
        k = self.matrix.scale.matrix
        return float(self.blocks.arrays["logarithms"].sum()) + self.matrix.size * (k * float(np.log(2.0)))

    def has_tiny_pivots(self, threshold):
        return bool(self.pivot_sizes.min() < threshold**2 * self.pivot_sizes.max())

    def layer_of_smallest_pivot(self):
        at = int(np.argmin(self.pivot_sizes))
        return self.layer_of(at)

    def covariance_workspace(self, layer, num_kept, purpose):
        P, rows = self.matrix.size, self.blocks.rows
        count = 3 * rows * self._workers()
        if layer is not None:
            count = 2 * int(self.matrix.system.table["p"][layer]) + 2 * rows
        memory_budget.require(self.matrix.dtype.itemsize * count * P + 8 * num_kept, purpose, LESS_OF_INVERSE)

    def _workers(self):
        return threads.num_workers(None, self.blocks.count, True)

    def diagonal(self, noise, work, tick):
        """Rounding needs no imitation here: it is that of the solves which judge the diagonal."""
        found, signs = np.empty(self.matrix.size), self.blocks.signs(np.float64)

        def job(k, check):
            start, stop = self.blocks.bounds(k)
            Y = self._forward_units(start, stop, check)
            found[start:stop] = np.einsum("ij,ij,j->i", Y[:, start:], Y[:, start:], signs[start:])

        try:
            jobs = [functools.partial(job, k) for k in range(self.blocks.count)]
            threads.run(jobs, self._workers())
        except threads.JobFailed as failure:
            raise failure.__cause__ from None
        tick(self.matrix.system.num_layers)
        return found

    def block(self, layer, work, tick):
        entry = self.matrix.system.table[layer]
        first, p = int(entry["parameters"]), int(entry["p"])
        Y = self._forward_units(first, first + p)
        block = (Y * self.blocks.signs(Y.dtype)) @ Y.T
        tick(layer)
        return 0.5 * (block + block.T).astype(np.float64)

    def _forward_units(self, start, stop, check=threads.no_check):
        """R^-T times the unit vectors from ``start`` to before ``stop``, as rows."""
        Y, at = np.zeros((stop - start, self.matrix.size), self.matrix.dtype), start
        Y[np.arange(stop - start), np.arange(start, stop)] = 1.0
        while at < stop:
            k = at // self.blocks.rows
            end = min(stop, self.blocks.bounds(k)[1])
            self.blocks.forward(Y[at - start : end - start], check, k)
            at = end
        return Y

    def to_arrays(self):
        header = {"method": self.method, "shift": self.shift}
        header |= {"block_rows": self.blocks.rows, "growth": float(self.blocks.growth)}
        return header, {f"factors_{name}": array for name, array in self.blocks.arrays.items()}


def fill_rows(matrix, shift, start, out):
    """out <- the rows from ``start`` on of ``2^-k H + (shift - l2) I``, in the columns from there on."""
    system, k = matrix.system, matrix.scale.matrix
    H = system.kept_dense()
    given = H[start : start + len(out), start : start + out.shape[1]]
    with np.errstate(over="ignore", under="ignore"):
        if abs(k) < 1000:
            # As ldexp, and several times as fast.
            np.multiply(given, 2.0**-k, out=out, casting="same_kind")
        else:
            np.ldexp(given, -k, out=out, casting="same_kind")
        i = np.arange(len(out))
        out[i, i] = np.ldexp(given[i, i], -k) + (shift - np.ldexp(system.l2, -k))
