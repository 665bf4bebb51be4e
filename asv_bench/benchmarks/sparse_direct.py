"""Sparse direct solvers for the lifted system: SciPy's SuperLU, and PARDISO of MKL by way of pypardiso.

The options are the fastest that were found with a small error, on nets of width 8 to 256 with 1 to 16 samples.
SuperLU: the system's own order; COLAMD takes up to 30 times longer, minimum degree of A + A^T up to 500 times.
PARDISO: symmetric indefinite with minimum degree; nested dissection and the system's own order perturb pivots until
the answer has no digit left in some cases, weighted matching and the unsymmetric solver are slower, and no better.
"""

import os

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from .problem import threads


def superlu_solve(lifted, rhs):
    return splu(lifted.matrix, permc_spec="NATURAL").solve(rhs)


def pardiso_solve(lifted, rhs):
    os.environ.setdefault("MKL_NUM_THREADS", str(threads()))
    from pypardiso import PyPardisoSolver

    solver = PyPardisoSolver(mtype=-2)
    # (own parameters follow, minimum degree, refinement steps, perturbation 1e-8, 2x2 pivots)
    for number, value in ((1, 1), (2, 0), (8, 10), (10, 8), (21, 1)):
        solver.set_iparm(number, value)
    upper = upper_triangle(lifted.matrix)
    solver.factorize(upper)
    unknowns = solver.solve(upper, rhs)
    solver.free_memory(everything=True)
    return unknowns


def upper_triangle(matrix):
    """As PARDISO takes it: CSR with every diagonal entry stored, zeros too."""
    upper = sp.triu(matrix, format="coo")
    diagonal = np.arange(matrix.shape[0])
    rows, columns = np.concatenate([upper.row, diagonal]), np.concatenate([upper.col, diagonal])
    values = np.concatenate([upper.data, np.zeros(len(diagonal))])
    upper = sp.csr_matrix((values, (rows, columns)), shape=matrix.shape)
    upper.sort_indices()
    return upper


def banded(matrix):
    """((below, above), ab) as `scipy.linalg.solve_banded` takes them."""
    entries = matrix.tocoo()
    offset = entries.col - entries.row
    below, above = int(-offset.min()), int(offset.max())
    ab = np.zeros((below + above + 1, matrix.shape[0]), order="F")
    ab[above - offset, entries.col] = entries.data
    return (below, above), ab


def banded_solve(bands, rhs):
    return scipy.linalg.solve_banded(*bands, rhs, check_finite=False)
