"""What perturbed pivots have changed, as a matrix of low rank: found by solves, and taken out of what factors say.

With A the matrix and A' that of the factors, ``A' - A`` has the rank of the perturbed pivots but for rounding, and
``(I - A A'^-1) R`` lies in its range for any R: Q is a basis. Let ``Y = A^-1 Q`` by refined solves, ``M = Q^T A^-1 Q``
and ``K = Q^T A'^-1 Q``. Then, with ``C = K^-1 - M^-1``,

    A^-1 = A'^-1 + Y (C - C K C) Y^T,    det A = det A' det K / det M,    n(A) = n(A') + n(-K) - n(-M),

n being the number of negative eigenvalues. Of a normal vector x with covariance A'^-1, what is left of it once
``u = Q^T x`` is given has the same law as for A, so that only u is to be made one with covariance M.
"""

import numpy as np

from ..runtime.probes import random_entries
from ..system.scaling import lengths

# More pivots than these are left as they are: their vectors take so many times P numbers.
_MOST = 32
# Seeds of the vectors that the range is found with, more than its rank by so many, and of the one that judges it.
_SEED, _MORE, _JUDGE = 40, 2, 39


class Correction:
    """The difference between the inverses of a solver's matrix and of its factors' matrix."""

    def __init__(self, solver, rank):
        matrix, factors = solver.matrix, solver.factors
        rows = np.concatenate([random_entries(_SEED + k, matrix.size) for k in range(min(rank + _MORE, matrix.size))])
        # Twice: what is not in the range is rounding, and the second product has less of it.
        for _ in range(2):
            rows = matrix.multiply(factors.substitute(rows), b=rows)
            self.Q = np.linalg.svd(rows, full_matrices=False)[2][:rank]
            rows = self.Q
        self.Y = solver.inverse(self.Q)
        self.K, self.M = _symmetric(self.Q @ factors.substitute(self.Q).T), _symmetric(self.Q @ self.Y.T)
        C = _symmetric(np.linalg.inv(self.K) - np.linalg.inv(self.M))
        self.middle = _symmetric(C - C @ self.K @ C)

    def substitute(self, rows):
        """What is missing in ``Factors.substitute``."""
        return (rows @ self.Y.T) @ self.middle @ self.Y

    def diagonal(self):
        return ((self.middle @ self.Y) * self.Y).sum(axis=0)

    def block(self, where):
        return self.Y[:, where].T @ self.middle @ self.Y[:, where]

    def logabsdet(self):
        return float(np.linalg.slogdet(self.K)[1] - np.linalg.slogdet(self.M)[1])

    def num_negative(self):
        """What is missing in the number of negative pivots."""
        return int((np.linalg.eigvalsh(self.K) > 0.0).sum() - (np.linalg.eigvalsh(self.M) > 0.0).sum())

    def sample(self, rows):
        """Rows with covariance A'^-1, made such with covariance A^-1; both are positive definite."""
        u = rows @ self.Q.T
        target = np.linalg.solve(np.linalg.cholesky(self.K), u.T)
        return rows + np.linalg.solve(self.M, np.linalg.cholesky(self.M) @ target - u.T).T @ self.Y


def correction(solver):
    """The `Correction` of a solver; None where no pivot was perturbed, too many were, or nothing is gained by it."""
    rank = solver.factors.num_perturbed
    if not 0 < rank <= min(_MOST, solver.matrix.size) or solver.factors.is_altered or solver.factors.has_fallback:
        return None
    probe = random_entries(_JUDGE, solver.matrix.size)
    try:
        with np.errstate(all="ignore"):
            found = Correction(solver, rank)
            rough = solver.factors.substitute(probe)
            before, after = (
                float(lengths(solver.matrix.multiply(x, b=probe))[0]) for x in (rough, rough + found.substitute(probe))
            )
    except np.linalg.LinAlgError:
        return None
    return found if after < 0.5 * before else None


def _symmetric(A):
    return 0.5 * (A + A.T)
