"""Factors for many dampings of one dense matrix: its eigenvalues and eigenvectors, computed once and shared.

`decomposition` costs as much as some twenty factorizations by `Dense`; then each damping costs a few vectors, a solve
two products with the eigenvectors, and the diagonal of the inverse 2 P^2 flops.
"""

import weakref
from threading import Lock
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh, eigvalsh

from ..runtime import memory_budget, threads
from .interface import LESS_OF_INVERSE
from .one_matrix import OneMatrix
from .pivots import PERTURBATION

# Those of the systems that have one, for as long as the system is there, as its dense matrix is.
_decompositions, _eigenvalues = weakref.WeakKeyDictionary(), weakref.WeakKeyDictionary()
_making = Lock()


class Decomposition(NamedTuple):
    """H = V diag(values) V^T, in float64 whatever the precision of the factors."""

    values: np.ndarray  # (P,), ascending
    vectors: np.ndarray  # (P, P): V, in Fortran order


def has_decomposition(system):
    """Whether `decomposition` has been called."""
    return system in _decompositions


def decomposition(system):
    """The `Decomposition` of a system's dense H, made once."""
    with _making:
        if system not in _decompositions:
            H = system.kept_dense()
            _decompositions[system] = Decomposition(*eigh(H, driver="evd", check_finite=False))
        return _decompositions[system]


def eigenvalues(system):
    """Those of a system's dense H, ascending: of its `decomposition` if there is one, else by themselves, computed
    once.

    Eigenvectors would cost several times as much. ``MemoryError`` where the scratch would not fit.
    """
    with _making:
        if system in _decompositions:
            return _decompositions[system].values
        if system not in _eigenvalues:
            memory_budget.require(8 * system.num_params**2, f"the eigenvalues of {system.num_params} parameters")
            _eigenvalues[system] = eigvalsh(system.kept_dense(), check_finite=False)
        return _eigenvalues[system]


class Spectrum(OneMatrix):
    """Factors of ``2^-k (H + shift I)`` by the eigenvalues of H.

    Parameters
    ----------
    matrix : Shifted
    shift : float
        The multiple of the identity that is factored with, scaled, in place of the matrix's ``eps``.
    shared : Decomposition
    """

    def __init__(self, matrix, shift, shared):
        self.matrix, self.shift, self.shared = matrix, shift, shared
        k = matrix.scale.matrix
        self.eigenvalues = np.ldexp(shared.values, -k) + (shift - np.ldexp(matrix.system.l2, -k))
        singular = self.eigenvalues == 0.0
        self.eigenvalues[singular] = PERTURBATION[matrix.dtype] * matrix.norm
        self.num_perturbed = int(singular.sum())

    @classmethod
    def factorize(cls, matrix, shift=None):
        """The factors of a matrix, by default with its own ``eps``."""
        return cls(matrix, matrix.eps if shift is None else shift, decomposition(matrix.system))

    @property
    def nbytes(self):
        """With the eigenvectors, which all of a system's share."""
        return self.eigenvalues.nbytes + self.shared.values.nbytes + self.shared.vectors.nbytes

    @staticmethod
    def num_bytes(system):
        """(bytes of each, bytes that all share, bytes of scratch while these are made), beside the dense H."""
        P = system.num_params
        return 8 * P, 8 * P * (P + 1), 8 * P * (2 * P + 7)

    def sweep(self, b, x, check):
        check()
        V = self.shared.vectors
        y = b @ V
        check()
        y /= self.eigenvalues
        x[...] = y @ V.T

    def square_root(self, rows, check=threads.no_check):
        check()
        return (rows / np.sqrt(self.eigenvalues)) @ self.shared.vectors.T

    def layer_of_smallest_pivot(self):
        """That of the largest entry of the eigenvector."""
        vector = self.shared.vectors[:, int(np.argmin(np.abs(self.eigenvalues)))]
        at = int(np.argmax(np.abs(vector)))
        return self.layer_of(at)

    def covariance_workspace(self, layer, num_kept, purpose):
        count = 0 if layer is None else 2 * self.matrix.size * int(self.matrix.system.table["p"][layer])
        memory_budget.require(8 * (count + num_kept), purpose, LESS_OF_INVERSE)

    def diagonal(self, noise, work, tick):
        """Rounding needs no imitation here: it is that of the solves which judge the diagonal."""
        V, found = self.shared.vectors, np.empty(self.matrix.size)
        np.einsum("ij,ij,j->i", V, V, 1.0 / self.eigenvalues, out=found)
        tick(self.matrix.system.num_layers)
        return found

    def block(self, layer, work, tick):
        entry = self.matrix.system.table[layer]
        rows = self.shared.vectors[int(entry["parameters"]) :][: int(entry["p"])]
        block = (rows / self.eigenvalues) @ rows.T
        tick(layer)
        return 0.5 * (block + block.T)

    def to_arrays(self):
        header = {"method": self.method, "shift": self.shift, "num_eigenvalues": self.matrix.size}
        # Arrays of files are in C order.
        return header, {"factors_values": self.shared.values, "factors_vectors": self.shared.vectors.T}
