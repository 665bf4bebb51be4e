"""Log-determinant of H + damping I: from the pivots, or where these have lost digits, from other factorizations.

Factors in float32 that have lost too many digits are replaced by those of the same matrix in float64, where there is
memory for them; in float64, the pivots of nearby dampings come to help.

A pivot of a trailing block can be tiny although ``A = H + damping I`` is well conditioned. The fronts before it are
then huge and lose digits, which refinement gives back to a solution but not to a determinant. ``log|det(A + h I)|`` is
analytic in h up to the smallest singular value of A, so that it is interpolated from small h of both signs, at which
that pivot is not tiny.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgWarning

from ..factors.elimination import no_tick
from ..runtime.probes import random_entries
from ..system.scaling import lengths
from .singularity import smallest_singular_value

# Chebyshev nodes, on an interval of this times the smallest singular value: of 8 nodes the interpolation error is about
# (1/40)^8 times the number of eigenvalues as small as that one.
_NODES = 8
_RADIUS = 0.05
_INVERSE_STEPS = 6
_PROBES = 6
# Random vectors may underestimate an error: by a tenth in the worst of 31,000 cases in float64, by a factor of 1.7 in
# 32,000 in float32 (of 3.4 with three vectors, of 89 with one). Fewer than _PROBES must leave so much more room as they
# miss more often: the power _PROBES / k for k of them. What these let pass was off by 0.02 of the tolerance at most.
_MISSED = 3.0
# Where less than this of the tolerance may be missing, nothing better is looked for.
_GOOD = 0.1
# Relative error of log-determinants above which there is a warning.
_TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-4}


class Determinant(NamedTuple):
    sign: float
    logabsdet: float
    uncertainty: float  # estimate of the absolute error of logabsdet


def is_within(tolerance, logabsdet, uncertainty):
    """Whether the error is at most the tolerance, relative to the log-determinant, or to 1 where that is less."""
    return uncertainty <= tolerance * max(abs(logabsdet), 1.0)


def determinant(solver, tick=no_tick):
    """`Determinant` of a solver's matrix, from others close to it where its own pivots miss the relative tolerance.

    ``tick(1)`` is called after every solve with a random vector, and every factorization.
    """
    solver, tolerance = solver.decided(), _TOLERANCE[solver.matrix.dtype]
    own = _from_pivots(solver, tolerance, tick)
    if is_within(_GOOD * tolerance, own.logabsdet, own.uncertainty):
        return own
    try:
        if solver.matrix.dtype != np.float64:
            return determinant(solver.widened(), tick)
        if solver.factors.has_fallback:
            return determinant(solver.whole(), tick)
        found = _from_nearby(solver, tolerance, tick)
    except (np.linalg.LinAlgError, MemoryError):
        return own
    return min(own, found, key=lambda one: one.uncertainty)


def warn(solver, found, stacklevel):
    """``LinAlgWarning`` where a `Determinant` may miss the tolerance."""
    tolerance = _TOLERANCE[solver.matrix.dtype]
    if not is_within(tolerance, found.logabsdet, found.uncertainty):
        warnings.warn(
            f"the log-determinant {found.logabsdet:.6g} may be off by about {found.uncertainty:.1e}; expected at most "
            f"{tolerance:.0e}, relative: H + damping I is too ill-conditioned with damping={solver.matrix.damping:g}",
            LinAlgWarning,
            stacklevel=stacklevel,
        )


def _from_pivots(solver, tolerance, tick):
    matrix, factors, P = solver.matrix, solver.factors, solver.matrix.size
    logabsdet, correction = factors.log_pivots(), solver.correction()
    if correction is not None:
        logabsdet += correction.logabsdet()
    # The bound leaves out u ||H|| times the sum of the inverse eigenvalues. In float64 that is what rounding of H costs
    # anyway (of 44,000 cases none was off by more); in float32 it is not: of 32,000 cases, 52 had errors above 1e-4.
    uncertainty = P**0.5 * factors.rounding_of_pivots() if matrix.dtype == np.float64 else np.inf
    if not is_within(_GOOD * tolerance, logabsdet, uncertainty):
        # log|det A| - log|det A'| = log|det(I - E)| with A' the matrix of the factors and E = I - A A'^-1: about minus
        # the trace of E, which random vectors estimate up to the Frobenius norm of E, which they estimate, too.
        largest = 0.0
        for k in range(_PROBES):
            probe = random_entries(4 + k, P)
            error = solver.mismatch(probe)
            tick(1)
            estimate = abs(float((probe * error).sum())) + float(lengths(error)[0])
            largest = max(largest, estimate if np.isfinite(estimate) else np.inf)
            uncertainty = _MISSED ** (_PROBES / (k + 1)) * largest
            if is_within(_GOOD * tolerance, logabsdet, uncertainty):
                break
    return Determinant(-1.0 if solver.num_negative() % 2 else 1.0, logabsdet, uncertainty)


def _from_nearby(solver, tolerance, tick):
    """By interpolation; of infinite uncertainty where that has no prospects."""
    nodes = np.cos((2 * np.arange(_NODES) + 1) * np.pi / (2 * _NODES))
    radius = _RADIUS * smallest_singular_value(solver, _INVERSE_STEPS)
    values, rounding = np.empty(_NODES), 0.0
    for k in range(_NODES):
        sign, values[k], uncertainty = _from_pivots(solver.nearby(radius * nodes[k]), tolerance, tick)
        tick(1)
        rounding = max(rounding, uncertainty)
        if not is_within(tolerance, values[k], rounding):
            return Determinant(sign, values[k], np.inf)
    # Coefficients of the Chebyshev polynomials; those of odd degree vanish in the middle.
    degrees = np.arange(0, _NODES, 2)
    coefficients = 2.0 / _NODES * np.cos(np.outer(degrees, np.arccos(nodes))) @ values
    coefficients[0] /= 2.0
    logabsdet = float(coefficients @ np.where(degrees % 4, -1.0, 1.0))
    return Determinant(sign, logabsdet, rounding + abs(float(coefficients[-1])))
