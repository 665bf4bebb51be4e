"""What a reader would use instead, on a net small enough for all of them."""

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import LinearOperator, minres

from .problem import DAMPING, Problem, Row


def dense_solve(problem):
    """Form H + damping I and solve with LAPACK's LU, which is faster here than its symmetric indefinite solver."""
    matrix = problem.hessian().todense()
    matrix[np.diag_indices_from(matrix)] += DAMPING
    return scipy.linalg.solve(matrix, problem.b, overwrite_a=True)


def minres_solve(problem, **options):
    """MINRES on this library's Hessian-vector products; `options` go to SciPy."""
    H = problem.hessian()
    shifted = LinearOperator(H.shape, matvec=lambda v: H @ v + DAMPING * v, dtype=problem.b.dtype)
    return minres(shifted, problem.b, **options)[0]


class Peers:
    timeout = 600

    def setup(self):
        self.problem = Problem(Row(width=8, batch=4, depth=20, skip=True))
        self.problem.solve()

    def time_numba_hinv(self):
        self.problem.solve()

    def time_dense(self):
        dense_solve(self.problem)

    def time_minres(self):
        minres_solve(self.problem, rtol=1e-10, maxiter=5 * self.problem.net.num_params)
