"""Estimate of the 1-norm of a symmetric operator, for condition numbers. Only how it is estimated may change."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, onenormest


def one_norm(multiply, size):
    """Estimate from below of the 1-norm of the symmetric matrix of which ``multiply`` gives products with rows.

    SciPy's estimator with one column, which draws no random numbers, and, as in LAPACK, an alternating vector that
    catches most of the matrices that deceive it.
    """
    if size == 1:
        return float(np.abs(np.asarray(multiply(np.ones((1, 1)))))[0, 0])

    def product(V):
        return np.asarray(multiply(np.ascontiguousarray(V.reshape(size, -1).T, np.float64))).T

    operator = LinearOperator(
        (size, size), matvec=product, matmat=product, rmatvec=product, rmatmat=product, dtype=float
    )
    alternating = (1.0 + np.arange(size) / (size - 1)) * np.where(np.arange(size) % 2, -1.0, 1.0)
    return max(float(onenormest(operator, t=1)), float(2.0 * np.abs(product(alternating)).sum() / (3.0 * size)))
