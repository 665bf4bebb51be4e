"""Factors of the dense matrix by LAPACK's symmetric indefinite factorization of Bunch and Kaufman.

They take twice the memory of `Dense` and more of the time, but interchange over the whole matrix, so that they are
certain where interchanges within blocks are not enough: the fallback of those.
"""

import numpy as np
from scipy.linalg import lapack

from ..runtime import memory_budget, threads
from .dense import fill_rows
from .interface import LESS_OF_INVERSE
from .one_matrix import OneMatrix
from .pivots import PERTURBATION


class Lapack(OneMatrix):
    """Factors of ``2^-k (H + shift I)`` as one matrix.

    Parameters
    ----------
    matrix : Shifted
    shift : float
        The multiple of the identity that is factored with, scaled, in place of the matrix's ``eps``.
    array : (P, P) array in Fortran order
        What LAPACK's sytrf leaves in the lower triangle; in files of format 4 also what potrf leaves there.
    pivots : (P,) int32 array
        Interchanges as sytrf states them; empty after potrf.
    """

    def __init__(self, matrix, shift, array, pivots):
        self.matrix, self.shift, self.array, self.pivots = matrix, shift, array, pivots
        self.eigenvalues, self.num_perturbed = self._take_pivots()

    @classmethod
    def factorize(cls, matrix, shift=None):
        """The factors of a matrix, by default with its own ``eps``."""
        shift = matrix.eps if shift is None else shift
        # In C order its transpose, which is the same.
        array = np.empty((matrix.size, matrix.size), matrix.dtype)
        fill_rows(matrix, shift, 0, array)
        sytrf, sytrf_lwork = lapack.get_lapack_funcs(("sytrf", "sytrf_lwork"), (array,))
        width = int(sytrf_lwork(matrix.size, lower=1)[0].real)
        factor, pivots, _ = sytrf(array.T, lower=1, lwork=max(width, 1), overwrite_a=1)
        if not np.isfinite(factor.diagonal()).all():
            raise np.linalg.LinAlgError(
                f"damping: the factorization met numbers that are not finite with damping={matrix.damping:g} in "
                f"{matrix.dtype}; expected a damping of larger magnitude"
            )
        return cls(matrix, shift, factor, pivots)

    def _take_pivots(self):
        """(eigenvalues of the pivots, how many were 0 and are replaced)."""
        if not self.pivots.size:
            return self.array.diagonal().astype(float) ** 2, 0
        diagonal, below = self.array.diagonal().astype(float), np.append(self.array.diagonal(-1), 0.0)
        # A 2 x 2 pivot has two equal negative entries among the interchanges.
        pairs = np.flatnonzero(self.pivots < 0)[::2]
        one, two, off = diagonal[pairs], diagonal[pairs + 1], below[pairs].astype(float)
        middle, radius = 0.5 * (one + two), np.hypot(0.5 * (one - two), off)
        values = diagonal.copy()
        values[pairs], values[pairs + 1] = middle + radius, middle - radius
        singular = np.flatnonzero(values == 0.0)
        least = PERTURBATION[self.matrix.dtype] * self.matrix.norm
        values[singular] = self.array[singular, singular] = least
        return values, singular.size

    @property
    def nbytes(self):
        return self.array.nbytes + self.pivots.nbytes

    @staticmethod
    def num_bytes(system, dtype):
        """(bytes that are kept, bytes of scratch), beside the dense H that all of a system's share."""
        P = system.num_params
        return dtype.itemsize * P * P, 64 * dtype.itemsize * P

    def _call(self, routine, *arguments):
        """The first result of LAPACK's ``sy`` or ``po`` routine of this name for the factors at hand."""
        name, given = ("sy", (self.array, self.pivots)) if self.pivots.size else ("po", (self.array,))
        (function,) = lapack.get_lapack_funcs((name + routine,), (self.array,))
        return function(*given, *arguments, lower=1)[0]

    def _solve(self, columns):
        return self._call("trs", columns)

    def sweep(self, b, x, check):
        check()
        x[...] = self._solve(b.T).T

    def square_root(self, rows, check=threads.no_check):
        check()
        if self.pivots.size:
            raise np.linalg.LinAlgError(
                "damping: expected H + damping I to be positive definite, as samples need it, got a matrix that is "
                f"singular to working precision with damping={self.matrix.damping:g}; expected a larger damping"
            )
        (solve,) = lapack.get_lapack_funcs(("trtrs",), (self.array,))
        return solve(self.array, rows.T.astype(self.matrix.dtype), lower=1, trans=1)[0].T.astype(np.float64)

    def covariance_workspace(self, layer, num_kept, purpose):
        P = self.matrix.size
        count = P * P if layer is None else P * int(self.matrix.system.table["p"][layer])
        memory_budget.require(self.matrix.dtype.itemsize * count + 8 * num_kept, purpose, LESS_OF_INVERSE)

    def diagonal(self, noise, work, tick):
        """Rounding needs no imitation here: it is that of the solves which judge the diagonal."""
        inverse = self._call("tri")
        tick(self.matrix.system.num_layers)
        return inverse.diagonal().astype(np.float64)

    def block(self, layer, work, tick):
        entry = self.matrix.system.table[layer]
        first, p = int(entry["parameters"]), int(entry["p"])
        unit = np.zeros((self.matrix.size, p), self.matrix.dtype, order="F")
        unit[first + np.arange(p), np.arange(p)] = 1.0
        block = self._solve(unit)[first : first + p].astype(np.float64)
        tick(layer)
        return 0.5 * (block + block.T)

    def to_arrays(self):
        header = {"method": self.method, "shift": self.shift, "num_pivots": self.pivots.size}
        # Arrays of files are in C order.
        return header, {"factors_array": self.array.T, "factors_pivots": self.pivots}
