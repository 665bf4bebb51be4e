"""Refinement of solutions on the true residual (docs/theory.md, section 9).

Plain iterative refinement first; right-preconditioned flexible GMRES for the right-hand sides where that stalls.
Right-hand sides and solutions are rows, (k, P) in float64.
"""

import math
from typing import NamedTuple

import numpy as np

from ..runtime.probes import random_entries, uniform_entries
from ..system.scaling import lengths, lengths_of

MAX_STEPS = 10
_KRYLOV_STEPS = 20
_KRYLOV_CYCLES = 3
# Of 12,109 factorizations with a wrong inertia the least estimate of the contraction was 0.66 by one random start, 0.88
# by two.
_CONTRACTION_STEPS = 6
_CONTRACTION_STARTS = (2, 3)
# Chance with which `is_surely_below` is wrong of a matrix of which it is not so, and the most vectors that it takes.
_CHANCE = 1e-6
_MOST_VECTORS = 3


class Refined(NamedTuple):
    """Solutions and what is known of them."""

    x: np.ndarray  # (k, P)
    backward_error: np.ndarray  # (k,): ||b - A x|| / (||A|| ||x|| + ||b||)
    steps: int  # refinement steps, the most that a right-hand side took
    krylov_steps: int  # likewise
    x_lengths: np.ndarray  # (k,): 2-norms of the solutions
    b_lengths: np.ndarray  # (k,): of the right-hand sides


def backward_error(norm, x_lengths, b_lengths, residual_lengths):
    """Normwise backward errors, (k,); infinity where something is not finite."""
    sizes, lengths_left = (norm * x_lengths + b_lengths).tolist(), residual_lengths.tolist()
    errors = [left / size if size > 0 else 0.0 for left, size in zip(lengths_left, sizes)]
    return np.array([error if math.isfinite(error) else math.inf for error in errors])


def _measure(multiply, norm, x, b, b_lengths, out=None):
    """(residual, backward errors, 2-norms of x) of solutions x."""
    squares = np.zeros((b.shape[0], 2))
    residual = multiply(x, b=b, out=out, squares=squares)
    x_lengths = lengths_of(x, squares[:, 1])
    return residual, backward_error(norm, x_lengths, b_lengths, lengths_of(residual, squares[:, 0])), x_lengths


def refine(multiply, solve, norm, b, goal, limit, rescue=None, b_lengths=None, out=None, scratch=None):
    """Solve ``A x = b`` from an approximate inverse.

    Parameters
    ----------
    multiply : callable
        ``multiply(x)`` is rows times A; ``multiply(x, b=b, out=residual, squares=squares)`` is b minus that, and may
        add the squared norms of the residual and of x to ``squares`` (k, 2).
    solve : callable
        ``solve(b)``, or ``solve(b, out=x)``, is rows times the approximate inverse.
    norm : float
        Estimate of the 2-norm of A.
    b : (k, P) array
    goal : float
        Backward error at which refinement stops.
    limit : float
        Backward error above which a right-hand side is given to GMRES.
    rescue : callable, optional
        Returns another approximate inverse (or None), for what is above the limit after one cycle with the first.
    b_lengths : (k,) array, optional
        2-norms of the rows of b, where they are known.
    out, scratch : (k, P) arrays, optional
        Where the first solution, which is the last one as a rule, and its residual are written.
    """
    b_lengths = lengths(b) if b_lengths is None else b_lengths
    x = solve(b, out=out)
    residual, error, x_lengths = _measure(multiply, norm, x, b, b_lengths, scratch)
    if all(one <= goal for one in error.tolist()):
        return Refined(x, error, 0, 0, x_lengths, b_lengths)
    active, steps = np.flatnonzero(error > goal), 0
    while active.size and steps < MAX_STEPS:
        steps += 1
        # A copy only where some rows are done: rows may be long.
        some = active if active.size < b.shape[0] else slice(None)
        x_new = solve(residual[some])
        x_new += x[some]
        residual_new, error_new, lengths_new = _measure(multiply, norm, x_new, b[some], b_lengths[some])
        better = error_new < error[active]
        # Less than halved: what is left is rounding of the residual, or not to be had this way.
        going_on = better & (error_new < 0.5 * error[active]) & (error_new > goal)
        if active.size == b.shape[0] and better.all():
            x, residual, error, x_lengths = x_new, residual_new, error_new, lengths_new
        else:
            improved = active[better]
            x[improved], residual[improved], error[improved] = x_new[better], residual_new[better], error_new[better]
            x_lengths[improved] = lengths_new[better]
        active = active[going_on]
    krylov_steps = np.zeros(b.shape[0], np.int64)
    cycles = _KRYLOV_CYCLES if rescue is None else 1
    stalled = np.flatnonzero(error > limit)
    for row in stalled:
        krylov_steps[row] = _krylov(multiply, solve, norm, b, x, error, row, goal, limit, cycles)
    left = np.flatnonzero(error > limit)
    other = rescue() if rescue is not None and left.size else None
    if other is not None:
        for row in left:
            krylov_steps[row] += _krylov(multiply, other, norm, b, x, error, row, goal, limit, _KRYLOV_CYCLES)
    if stalled.size:
        x_lengths[stalled] = lengths(x[stalled])
    return Refined(x, error, steps, int(krylov_steps.max(initial=0)), x_lengths, b_lengths)


def _krylov(multiply, solve, norm, b, x, error, row, goal, limit, cycles):
    """Flexible GMRES for the correction of one row, in place; the number of its steps.

    Flexible: the corrections ``z = F v`` are kept and ``A z`` is what is made orthogonal, so that rounding in F, which
    is large where A is nearly singular, cannot separate the solution from its residual (Saad, 1993).
    """
    taken = 0
    if not np.isfinite(error[row]):
        x[row] = 0.0
    for _ in range(cycles):
        here = slice(row, row + 1)
        residual = multiply(x[here], b=b[here])
        x_new, steps = _flexible_cycle(multiply, solve, norm, b[here], x[here], residual, goal)
        taken += steps
        error_new = _measure(multiply, norm, x_new, b[here], lengths(b[here]))[1][0]
        if not error_new < error[row]:
            break
        stalled = error_new > 0.5 * error[row]
        x[here], error[row] = x_new, error_new
        if error_new <= goal or (stalled and error_new <= limit):
            break
    return taken


def _flexible_cycle(multiply, solve, norm, b, x, residual, goal):
    """One cycle from the row ``x`` with its ``residual``: (the new x, number of steps)."""
    size = min(_KRYLOV_STEPS, b.size)
    basis, corrections = (np.empty_like(b, shape=(count, b.shape[1])) for count in (size + 1, size))
    hessenberg = np.zeros((size + 1, size))
    length, b_length = lengths(residual)[0], lengths(b)[0]
    if length == 0.0:
        return x, 0
    basis[:1] = residual / length
    best, steps = x, 0
    for j in range(size):
        correction = solve(basis[j : j + 1])
        scale = lengths(correction)[0]
        if not (np.isfinite(scale) and scale > 0.0):
            break
        corrections[j : j + 1] = correction / scale
        image = multiply(corrections[j : j + 1])
        steps += 1
        # Twice: once leaves the basis orthogonal only up to rounding times the condition.
        for _ in range(2):
            part = np.inner(basis[: j + 1], image)
            image -= part.T @ basis[: j + 1]
            hessenberg[: j + 1, j] += part[:, 0]
        hessenberg[j + 1, j] = lengths(image)[0]
        right = np.zeros(j + 2)
        right[0] = length
        y = np.linalg.lstsq(hessenberg[: j + 2, : j + 1], right, rcond=None)[0]
        remaining = np.linalg.norm(right - hessenberg[: j + 2, : j + 1] @ y)
        best = x + y[None] @ corrections[: j + 1]
        if remaining <= 0.5 * goal * (norm * lengths(best)[0] + b_length) or hessenberg[j + 1, j] == 0.0:
            break
        basis[j + 1 : j + 2] = image / hessenberg[j + 1, j]
    return best, steps


def is_surely_below(limit, multiply, solve, size, entries=uniform_entries):
    """Whether random vectors show that ``||I - A F||`` is below ``limit``; with one below 1, A and A' have one inertia.

    (`contraction` has the names.) With x random, its entries independent and uniform with variance 1, ``v^T x`` has a
    density of at most 1 / sqrt(2) for any unit vector v, as every symmetric log-concave variable of variance 1 has. So
    ``||(I - A F) x||``, which is at least the norm times ``|v^T x|`` for the leading right singular vector v, is below
    s with a chance of at most sqrt(2) s / norm, and for k vectors at the same time with the k-th power of that. The
    norm bounds the radius from above, often by far, so that where this fails nothing is said. ``entries(seed, size)``
    makes x.
    """
    longest = 0.0
    for count in range(1, _MOST_VECTORS + 1):
        x = entries(count, size)
        length = 2.0**0.5 * float(lengths(multiply(solve(x), b=x))[0])
        # More vectors would show nothing after one that is longer than this, or not a number.
        if not length <= _CHANCE ** (1 / _MOST_VECTORS) * limit:
            return False
        longest = max(longest, length)
        if longest <= _CHANCE ** (1 / count) * limit:
            return True
    return False


def contraction(multiply, solve, size, entries=random_entries):
    """How fast plain refinement shrinks a residual: estimate of the spectral radius of ``I - A F``.

    With A the matrix and F the inverse of A' = A + E, ``I - A F = E A'^-1``. A and A' have the same inertia if it has
    no real eigenvalue of 1 or more: then no matrix on the way from A' to A is singular. A radius below 1 says so.
    Rounding in the solves, as large as E, is different for every start, ``entries(seed, size)``: hence more than one.
    """
    residual = np.concatenate([entries(seed, size) for seed in _CONTRACTION_STARTS])
    residual /= lengths(residual)[:, None]
    worst = 0.0
    for step in range(_CONTRACTION_STEPS):
        residual = multiply(solve(residual), b=residual)
        length = lengths(residual)
        if not np.isfinite(length).all():
            return np.inf
        residual /= np.where(length > 0.0, length, 1.0)[:, None]
        # The first step depends on the start more than on the matrix.
        if step:
            worst = max(worst, float(length.max()))
            if worst >= 1.0:
                break
    return worst
