"""Whether a matrix is singular to working precision, by inverse iteration on refined solves."""

import numpy as np

from ..runtime.probes import random_entries
from ..system.scaling import lengths

# H + damping I itself counts as singular where its smallest singular value is below this many units of roundoff of
# ||H||.
_SINGULAR_MATRIX = 16.0
# A solve that enlarges a random vector by this over ||H|| makes singularity worth a closer look: of a vector of P
# entries, 1 / sqrt(P) lies in the null space, where the factors of a singular matrix give 1e14 or more over ||H||.
_EXPLODED = 1e8
_EPS = float(np.finfo(np.float64).eps)
# Pivots are tiny below the square of this times another one, by the precision of the factors.
_TINY_PIVOT = {np.dtype(dtype): np.finfo(dtype).eps ** 0.25 for dtype in (np.float64, np.float32)}


def is_suspect(solver):
    """Whether H + damping I may be singular: a pivot was perturbed, or is tiny and one solve explodes."""
    matrix, factors = solver.matrix, solver.factors
    if factors.num_perturbed or matrix.eps == 0.0:
        return True
    if not factors.has_tiny_pivots(_TINY_PIVOT[matrix.dtype]):
        return False
    probe = random_entries(1, matrix.size)
    return not lengths(factors.substitute(probe))[0] * matrix.norm < _EXPLODED * lengths(probe)[0]


def check(solver):
    """``LinAlgError`` where the smallest singular value is at the roundoff of ||H||."""
    smallest = smallest_singular_value(solver, 3)
    if smallest <= _SINGULAR_MATRIX * np.finfo(np.float64).eps * solver.matrix.norm:
        raise error(solver, smallest)


def check_solution(solver, refined):
    """``LinAlgError`` where a solution is so large that it shows the matrix to be singular."""
    matrix, shown = solver.matrix, np.inf
    known = (refined.x_lengths, refined.b_lengths, refined.backward_error)
    for size, b_length, backward_error in zip(*(values.tolist() for values in known)):
        image = b_length + backward_error * (matrix.hessian_norm * size + b_length)
        if image > 0.0 and size > 0.0:
            shown = min(shown, image / size)
    if shown <= _SINGULAR_MATRIX * _EPS * matrix.norm:
        raise error(solver, shown)


def error(solver, smallest):
    """The ``LinAlgError`` of a singular matrix with this smallest singular value."""
    matrix, layer = solver.matrix, solver.factors.layer_of_smallest_pivot()
    bound = _SINGULAR_MATRIX * np.finfo(np.float64).eps * matrix.norm
    wider = " or, for a chain of many scales, factor_dtype='float64'" if matrix.dtype == np.float32 else ""
    stages = ""
    if solver.stage_rounding is not None:
        stages = (
            ", nor on the scales of the stages, where rounding changes some pivot by about "
            f"{min(solver.stage_rounding, 1.0):.0e} of itself"
        )
    return np.linalg.LinAlgError(
        f"damping: H + damping I is singular to working precision with damping={matrix.damping:g}: its smallest "
        f"singular value is at most about {np.ldexp(smallest, matrix.scale.matrix):.1e}, and not told from 0 below "
        f"{np.ldexp(bound, matrix.scale.matrix):.1e} where ||H|| is {matrix.system.norm():.1e}{stages}, by the pivot "
        f"of layer {layer + matrix.system.first}; expected a damping further from minus an eigenvalue of H{wider}"
    )


def smallest_singular_value(solver, num_steps):
    """Estimate from above by inverse iteration, always from the same start."""
    v = random_entries(1, solver.matrix.size)
    v /= lengths(v)
    smallest = np.inf
    for _ in range(num_steps):
        v = solver.inverse(v)
        length = lengths(v)[0]
        if not np.isfinite(length) or length == 0.0:
            break
        v /= length
        image = 1.0 / length if solver.is_lifted() else lengths(solver.matrix.multiply(v))[0]
        smallest = min(smallest, float(image))
    return smallest
