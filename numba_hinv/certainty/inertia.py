"""Whether the signs of the pivots are those of the eigenvalues: certificates of an inertia."""

from typing import NamedTuple

import numpy as np

# Pivots above the root of roundoff times the largest front have their sign for certain; otherwise the contraction of
# refinement decides. (The triangular factors are not bounded: an eigenvalue can be far below the smallest pivot.)
CONTRACTION = 0.5


class Inertia(NamedTuple):
    """Number of negative, zero and positive eigenvalues.

    ``exact`` is False where pivots had to be perturbed, or where rounding may have changed the sign of one.
    """

    negative: int
    zero: int
    positive: int
    exact: bool


def is_exact(solver):
    """Whether the pivots have the signs of the eigenvalues: none perturbed, and rounding too small to turn one."""
    factors = solver.factors
    if factors.num_perturbed or factors.is_altered:
        return False
    roundoff = np.finfo(solver.matrix.dtype).eps
    return bool(factors.rounding_of_pivots() < np.sqrt(roundoff)) or is_certified(solver)


def is_certified(solver):
    """Whether refinement contracts, so that the inertia is that of ``H + damping I`` even if pivots were perturbed."""
    return bool(solver.contraction() < CONTRACTION)


def certified_count(solver):
    """(negative eigenvalues, ""), or (None, the reason why they cannot be counted for certain)."""
    if solver.is_exact() or (solver.factors.num_perturbed and is_certified(solver)):
        return solver.factors.num_negative, ""
    if solver.factors.num_perturbed:
        # Without the limit on growth some pivots may need no perturbation.
        solver = solver.with_factors(growth=np.inf)
        if is_certified(solver):
            return solver.factors.num_negative, ""
    return None, "a pivot has the size of rounding errors"
