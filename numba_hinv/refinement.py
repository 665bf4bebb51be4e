"""Refinement of solutions on the true residual (design, section 3, "Accuracy").

Plain iterative refinement first; right-preconditioned GMRES (SciPy's) for the right-hand sides where that stalls.
Right-hand sides and solutions are rows, (k, P) in float64.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator, gmres

MAX_STEPS = 10
_KRYLOV_STEPS = 20
_KRYLOV_CYCLES = 3


class Refined(NamedTuple):
    """Solutions and what is known of them."""

    x: np.ndarray  # (k, P)
    backward_error: np.ndarray  # (k,): ||b - A x|| / (||A|| ||x|| + ||b||)
    steps: int  # refinement steps, the most that a right-hand side took
    krylov_steps: int  # likewise


def backward_error(norm, x, b, residual):
    """Normwise backward error of each row; infinity where something is not finite."""
    size = norm * np.linalg.norm(x, axis=1) + np.linalg.norm(b, axis=1)
    error = np.linalg.norm(residual, axis=1)
    error = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
    return np.where(np.isfinite(error), error, np.inf)


def refine(multiply, solve, norm, b, goal, limit):
    """Solve ``A x = b`` from an approximate inverse.

    Parameters
    ----------
    multiply, solve : callable
        Rows times A, and rows times the approximate inverse.
    norm : float
        Estimate of the 2-norm of A.
    b : (k, P) array
    goal : float
        Backward error at which refinement stops.
    limit : float
        Backward error above which a right-hand side is given to GMRES.
    """
    x = solve(b)
    residual = b - multiply(x)
    error = backward_error(norm, x, b, residual)
    active = np.flatnonzero(error > goal)
    steps = 0
    while active.size and steps < MAX_STEPS:
        steps += 1
        x_new = x[active] + solve(residual[active])
        residual_new = b[active] - multiply(x_new)
        error_new = backward_error(norm, x_new, b[active], residual_new)
        better = error_new < error[active]
        # Less than halved: what is left is rounding of the residual, or not to be had this way.
        going_on = better & (error_new < 0.5 * error[active]) & (error_new > goal)
        improved = active[better]
        x[improved], residual[improved], error[improved] = x_new[better], residual_new[better], error_new[better]
        active = active[going_on]
    krylov_steps = 0
    for row in np.flatnonzero(error > limit):
        taken = _krylov(multiply, solve, norm, b, x, error, row, goal)
        krylov_steps = max(krylov_steps, taken)
    return Refined(x, error, steps, krylov_steps)


def _krylov(multiply, solve, norm, b, x, error, row, goal):
    """GMRES on ``A F u = residual``, ``x += F u``, in place for one row; the number of its steps."""
    P = b.shape[1]
    preconditioned = LinearOperator((P, P), lambda u: multiply(solve(u.reshape(1, P)))[0], dtype=np.float64)
    taken = []
    if not np.isfinite(error[row]):
        x[row] = 0.0
    for _ in range(_KRYLOV_CYCLES):
        residual = b[row] - multiply(x[row : row + 1])[0]
        length = np.linalg.norm(residual)
        if length == 0.0:
            break
        target = goal * (norm * np.linalg.norm(x[row]) + np.linalg.norm(b[row]))
        u, _ = gmres(
            preconditioned,
            residual / length,
            rtol=min(0.1, max(0.5 * target / length, np.finfo(float).eps)),
            restart=min(_KRYLOV_STEPS, P),
            maxiter=1,
            callback=taken.append,
            callback_type="pr_norm",
        )
        x_new = x[row : row + 1] + length * solve(u.reshape(1, P))
        residual_new = b[row : row + 1] - multiply(x_new)
        error_new = backward_error(norm, x_new, b[row : row + 1], residual_new)[0]
        if not error_new < error[row]:
            break
        x[row], error[row] = x_new[0], error_new
        if error_new <= goal:
            break
    return len(taken)


def contraction(multiply, solve, size):
    """How fast plain refinement shrinks a residual: estimate of the spectral radius of ``I - A F``.

    With A the matrix and F the inverse of A' = A + E, ``I - A F = E A'^-1``. A and A' have the same inertia if it has no
    real eigenvalue of 1 or more: then no matrix on the way from A' to A is singular. A radius below 1 says so.
    """
    residual = np.random.default_rng(2).standard_normal((1, size))
    residual /= np.linalg.norm(residual)
    worst = 0.0
    for step in range(3):
        residual = residual - multiply(solve(residual))
        length = np.linalg.norm(residual)
        if not np.isfinite(length):
            return np.inf
        if length == 0.0:
            break
        residual /= length
        # The first step depends on the start more than on the matrix.
        if step:
            worst = max(worst, float(length))
    return worst
