"""Refinement and certificates on the lifted system: parameters, states and multipliers (docs/theory.md, section 11).

Rounding of a product with H is worth u ||H||. In an unstable chain, or beside barrier terms, that may be more than the
smallest eigenvalues, although the sweeps, which follow the loop that their own factors close, have the solution to all
digits. So residuals, contraction and errors are those of the lifted system here, which `Factors.residuals` and
`Factors.trajectory` sweep over. Vectors of the system, right-hand sides apart, are pairs (x, z) of parameters and states.
"""

import numpy as np

from ..runtime import threads
from ..runtime.probes import random_signs
from ..system.scaling import lengths
from .refinement import MAX_STEPS, Refined

# Errors of a solution are those that changes of its numbers by this cause, times two, of so many random ones.
_NOISE, _PROBES = 8.0 * np.finfo(np.float64).eps, 3


def maps(factors):
    """(multiply, solve) such that ``multiply(solve(w), b=w)`` is w times the symmetric ``I - F^-1 A F^-T sigma``.

    With ``A' = F sigma F^T`` for the factors' matrix. That is similar to I - A A'^-1, and the same for every scaling of
    parameters and states.
    """

    def multiply(point, b):
        return b + factors.residuals(np.zeros_like(b), *point)[0]

    return multiply, factors.trajectory


def refine(factors, b, goal, check=threads.no_check, offset=0.0, b_lengths=None, max_steps=MAX_STEPS):
    """`Refined` solutions of right-hand sides b (k, P), with backward errors of the lifted system.

    Steps are taken until the error is at most ``goal``, or less than halved.
    """
    return _refine(factors, b, goal, check, offset, b_lengths, max_steps)[0]


def judge(factors, x, b, is_refined, check=threads.no_check):
    """(backward errors, bounds of the relative errors) of solutions x, refined or not, (k,) each.

    The states are found again; then data and solution are changed by some units of roundoff, and what one more
    correction makes of that is what rounding may have done.
    """
    found, z = _refine(factors, b, 0.0, check, max_steps=MAX_STEPS if is_refined else 0)
    error = np.zeros(x.shape[0])
    for seed in range(50, 50 + _PROBES):
        changes = 1.0 + _NOISE * random_signs(seed, 2 * b.size + z.size)[0]
        of_b, of_x, of_z = np.split(changes, (b.size, 2 * b.size))
        noisy = b * of_b.reshape(b.shape), found.x * of_x.reshape(b.shape), z * of_z
        y, _ = factors.residuals(*noisy, check=check)
        error = np.maximum(error, lengths(factors.trajectory(y, check)[0]))
    error = 2.0 * error + lengths(x - found.x)
    size = lengths(x)
    error = np.divide(error, size, out=np.zeros_like(error), where=size > 0.0)
    return found.backward_error, np.where(error < 1.0, error / np.maximum(1.0 - error, 0.5), np.inf)


def _refine(factors, b, goal, check, offset=0.0, b_lengths=None, max_steps=MAX_STEPS):
    """(`Refined`, states of all solutions)."""
    k = b.shape[0]
    y, _ = factors.residuals(b, np.zeros_like(b), _no_states(factors, k), offset, check)
    x, z = factors.trajectory(y, check)
    y, error = factors.residuals(b, x, z, offset, check)
    steps = 0
    while steps < max_steps and not (error <= goal).all():
        steps += 1
        dx, dz = factors.trajectory(y, check)
        dx += x
        dz += z
        y_new, error_new = factors.residuals(b, dx, dz, offset, check)
        # All vectors go on together: their states lie layer by layer.
        if not error_new.max() < error.max():
            break
        is_halved = error_new.max() < 0.5 * error.max()
        x, z, y, error = dx, dz, y_new, error_new
        if not is_halved:
            break
    error = np.where(np.isfinite(error), error, np.inf)
    return Refined(x, error, steps, 0, lengths(x), lengths(b) if b_lengths is None else b_lengths), z


def _no_states(factors, k):
    system = factors.matrix.system
    return np.zeros(k * system.on.substitution.num_states(system.sizes, system.num_samples))
