"""Refinement and certificates on the lifted system: parameters, states and multipliers (docs/theory.md, section 11).

Rounding of a product with H is worth u ||H||. In an unstable chain, or beside barrier terms, that may be more than the
smallest eigenvalues, although the sweeps, which follow the loop that their own factors close, have the solution to all
digits. So residuals, contraction and errors are those of the lifted system here, which `Factors.residuals` and
`Factors.trajectory` sweep over. Vectors of the system, right-hand sides apart, are pairs (x, z) of parameters and
states.
"""

import numpy as np

from ..runtime import threads
from ..runtime.probes import random_entries
from ..system.scaling import lengths
from .refinement import MAX_STEPS, Refined

# Rounding may do to a solution what changes of data by this do, relatively; so many random ones are tried. Of 1,498
# random chains near a singular one the largest error was 0.30 of the bound.
_NOISE, _PROBES = 8.0 * np.finfo(np.float64).eps, 3


def maps(factors):
    """(multiply, solve) such that ``multiply(solve(w), b=w)`` is w times the symmetric ``I - F^-1 A F^-T sigma``.

    With ``A' = F sigma F^T`` for the factors' matrix. That is similar to I - A A'^-1, and the same for every scaling of
    parameters and states.
    """

    def multiply(point, b):
        return b + factors.residuals(np.zeros_like(b), *point)[0]

    return multiply, factors.trajectory


def refine(factors, b, goal, limit, check=threads.no_check, offset=0.0, b_lengths=None):
    """`Refined` solutions of right-hand sides b (k, P), with backward errors of the lifted system.

    That is the largest entry of the residual relative to the moduli which it is the difference of, or, where that is
    above ``limit``, how much data must change for an effect on x of the size of the next correction. Steps are taken
    until the first is at most ``goal``, or corrections do not halve.
    """
    refined, z, y = _refine(factors, b, goal, check, offset, b_lengths)
    if refined.backward_error.max(initial=0.0) > limit:
        error, _ = _errors(factors, b, refined, z, y, check, offset)
        refined = refined._replace(backward_error=error)
    return refined


def solves(factors, limit):
    """Whether the solution of a random right-hand side comes to a backward error within the limit."""
    probe = random_entries(1, factors.matrix.size)
    return bool(refine(factors, probe, limit / 16, limit).backward_error[0] <= limit)


def judge(factors, x, b, is_refined, check=threads.no_check):
    """(backward errors, bounds of the relative errors) of solutions x, refined or not, (k,) each.

    The states are found again.
    """
    refined, z, y = _refine(factors, b, 0.0, check, max_steps=MAX_STEPS if is_refined else 0)
    backward, error = _errors(factors, b, refined, z, y, check)
    error, size = error + lengths(x - refined.x), lengths(x)
    error = np.divide(error, size, out=np.zeros_like(error), where=size > 0.0)
    return backward, np.where(error < 1.0, error / np.maximum(1.0 - error, 0.5), np.inf)


def _errors(factors, b, refined, z, y, check, offset=0.0):
    """(backward errors, bounds of the errors of x) of points with the residual y.

    The bound is twice the next correction and four times what noise does to it.
    """
    x, noise = refined.x, np.zeros(b.shape[0])
    for seed in range(50, 50 + _PROBES):
        changes = 1.0 + _NOISE * random_entries(seed, 2 * b.size + z.size + 1)[0]
        of_b, of_x, of_z, of_shift = np.split(changes, np.cumsum([b.size, b.size, z.size]))
        # A damping that cancels entries of Dxx is multiplied with the same x.
        shift = offset + float(of_shift[0] - 1.0) * (factors.matrix.eps + offset)
        y_changed, _ = factors.residuals(b * of_b.reshape(b.shape), x * of_x.reshape(b.shape), z * of_z, shift, check)
        noise = np.maximum(noise, lengths(factors.trajectory(y_changed - y, check)[0]))
    correction = lengths(factors.trajectory(y, check)[0])
    explained = np.divide(correction, noise, out=np.full_like(noise, np.inf), where=noise > 0.0)
    return np.fmin(refined.backward_error, _NOISE * explained), 2.0 * correction + 4.0 * noise


def _refine(factors, b, goal, check, offset=0.0, b_lengths=None, max_steps=MAX_STEPS):
    """(`Refined`, the states and the residuals y of all solutions)."""
    k, steps, before = b.shape[0], 0, np.inf
    y, _ = factors.residuals(b, np.zeros_like(b), _no_states(factors, k), offset, check)
    x, z = factors.trajectory(y, check)
    y, error = factors.residuals(b, x, z, offset, check)
    while steps < max_steps and not (error <= goal).all():
        dx, dz = factors.trajectory(y, check)
        correction = _largest_ratio(lengths(dx), lengths(x))
        # What is left once corrections do not halve is rounding. All vectors go on together: their states lie layer by
        # layer.
        if not correction < 0.5 * before:
            break
        steps, before = steps + 1, correction
        x, z = x + dx, z + dz
        y, error = factors.residuals(b, x, z, offset, check)
    error = np.where(np.isfinite(error), error, np.inf)
    return Refined(x, error, steps, 0, lengths(x), lengths(b) if b_lengths is None else b_lengths), z, y


def _largest_ratio(part, whole):
    return float(np.divide(part, whole, out=np.zeros_like(part), where=part > 0.0).max(initial=0.0))


def _no_states(factors, k):
    system = factors.matrix.system
    return np.zeros(k * system.on.lifting.num_states(system.sizes, system.num_samples))
