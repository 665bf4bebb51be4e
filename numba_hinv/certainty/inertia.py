"""Whether the signs of the pivots are those of the eigenvalues: certificates of an inertia."""

from typing import Any, NamedTuple

import numpy as np

from ..runtime import representation

# The pivots have the signs of the eigenvalues where refinement with the factors contracts by this. That they are large
# does not show it: the triangular factors are not bounded, and an eigenvalue can be far below the smallest pivot. Of
# 122,000 shifts at distances of 1e-13 to 1e-2 ||H|| from an eigenvalue, in both precisions, 12,109 had a wrong inertia,
# with an estimate of the contraction of 0.88 or more; bounds by the smallest pivot had called 175 of them exact.
CONTRACTION = 0.5


class Inertia(NamedTuple):
    """How many eigenvalues of a matrix are negative, zero and positive.

    Attributes
    ----------
    negative : int
        The number of negative eigenvalues.
    zero : int
        The number of zero eigenvalues: 0, since singular matrices are not factorized.
    positive : int
        The number of positive eigenvalues.
    exact : bool
        False if pivots had to be perturbed, or if rounding may have changed the sign of a pivot.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> one = nh.LayerBlocks(np.ones((1, 3)), np.ones((1, 0)), np.diag([-1.0, 2.0, 3.0]), np.ones((3, 0)), np.eye(0))
    >>> H = nh.Hessian.from_blocks([one])
    >>> H.factorize(-2.5).inertia.negative
    2
    """

    negative: int
    zero: int
    positive: int
    exact: bool

    def _repr_html_(self) -> str:
        return representation.table("Inertia", self._asdict())


def is_exact(solver: Any) -> bool:
    """Whether the pivots have the signs of the eigenvalues for certain, none of them having been perturbed."""
    return not (solver.factors.num_perturbed or solver.factors.is_altered) and is_certified(solver)


def is_certified(solver: Any) -> bool:
    """Whether refinement contracts, so that the inertia is that of ``H + damping I`` even if pivots were perturbed.

    One solve as a rule shows it; only where it does not, the contraction itself is estimated.
    """
    return solver.surely_contracts(CONTRACTION) or bool(solver.contraction() < CONTRACTION)


def certified_count(solver: Any) -> tuple[int | None, str]:
    """(negative eigenvalues, ""), or (None, the reason why they cannot be counted for certain)."""
    solver = solver.decided()
    if solver.is_exact() or (solver.factors.num_perturbed and is_certified(solver)):
        return solver.factors.num_negative, ""
    if solver.factors.num_perturbed:
        # Without the limit on growth some pivots may need no perturbation.
        solver = solver.with_factors(growth=np.inf)
        if is_certified(solver):
            return solver.factors.num_negative, ""
    return None, "a pivot has the size of rounding errors"


def best_count(solver: Any) -> tuple[int, bool]:
    """(negative eigenvalues, whether their number is certain): that of the pivots where it is not."""
    try:
        count, _ = certified_count(solver)
    except (np.linalg.LinAlgError, MemoryError):
        count = None
    return (solver.num_negative_pivots(), False) if count is None else (count, True)
