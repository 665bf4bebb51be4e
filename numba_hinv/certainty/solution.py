"""Solutions of right-hand sides, in columns or in rows of a block, and what is known of them."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import LinAlgWarning

from ..runtime import columns, representation
from ..runtime.annotations import Array, Check
from ..runtime.progress import bar
from ..runtime.validation import check_finite
from ..system.scaling import lengths, lengths_of, row_exponents
from . import lifted, singularity
from .refinement import backward_error
from .solver import BACKWARD_ERROR

# Rounding of a residual, in units of roundoff of ||H + damping I|| ||x|| + ||b||.
_RESIDUAL_ROUNDING = 8.0
# Right-hand sides whose lengths are outside of these are scaled.
_LEAST, _MOST = 2.0**-101, 2.0**100
_LARGEST = {np.dtype(dtype): float(np.finfo(dtype).max) for dtype in (np.float64, np.float32)}


class SolveInfo(NamedTuple):
    """How accurate the solutions of one `Factorization.solve` are, and how they were refined.

    Attributes
    ----------
    backward_error : (k,) array
        For each column of b, ``||b - (H + damping I) x|| / (||H|| ||x|| + ||b||)``. It is 0-dimensional if b is a
        vector.
    error_bound : (k,) array
        For each column, a bound of ``||x - exact x|| / ||exact x||``, which is the residual with its own rounding,
        times an estimate of ``||(H + damping I)^-1||``. It is 0-dimensional if b is a vector.
    refinement_steps : int
        The largest number of refinement steps of a column.
    krylov_steps : int
        The largest number of Krylov steps of a column, which help where refinement stalls.

    Notes
    -----
    All norms are 2-norms. Those of matrices are estimates from below that are seldom too small by more than a factor of
    2, which the bound allows for.

    For chains whose residual is formed on the lifted system (docs/theory.md, section 11), the backward error is that of
    the lifted system. It compares each entry of the residual with the magnitudes of the terms that it is the difference
    of; or, if that is less, it says how much the data would have to change to move x as far as the next correction
    does. Then ``error_bound`` is how far this correction and random changes of the data by rounding move x.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> H = net.hessian(np.zeros(3), X, y)
    >>> x, info = H.factorize(damping=0.5).solve(H.gradient, full_output=True)
    >>> bool(info.backward_error < 1e-14), info.krylov_steps
    (True, 0)
    """

    backward_error: np.ndarray
    error_bound: np.ndarray
    refinement_steps: int
    krylov_steps: int

    def __repr__(self) -> str:
        return representation.line(type(self).__name__, self._asdict())

    def _repr_html_(self) -> str:
        return representation.table(type(self).__name__, self._asdict())


def solve(
    solver: Any,
    given: Array,
    dtype: np.dtype[Any],
    refine: bool,
    full_output: bool,
    num_threads: int | None,
    progress: bool | None,
) -> tuple[Array, SolveInfo]:
    """(solutions of right-hand sides in columns, `SolveInfo`), block after block on threads, in columns of ``dtype``.

    ``given`` (P, k) is what the processor's ``as_columns`` has made of b.
    """
    system = solver.matrix.system
    on, count = system.on, given.shape[1]
    x = on.columns.empty(given, given.shape, dtype)
    solver.factors.prepare()
    if full_output:
        solver.norm_of_inverse()
    buffers = columns.Buffers()
    with bar(progress, count, "solve", "column") as shown:

        def solve_block(start: int, stop: int, check: Check) -> SolveInfo:
            squares = np.zeros(stop - start)
            rows = columns.gather(given, start, stop, buffers, check, squares)
            out, scratch = on.columns.place(x, start, stop), None
            if out is not None and refine:
                scratch = buffers.rows("residual", out.shape)
            b_lengths = lengths_of(rows, squares)
            if not all(map(math.isfinite, b_lengths.tolist())):
                check_finite("b", given)
            rows, known = solve_rows(solver, rows, b_lengths, dtype, refine, full_output, check, out, scratch)
            columns.scatter(rows, x, start)
            shown.update(stop - start)
            return known

        if solver.factors.solves_at_once:
            workers = on.num_workers(num_threads, max(count, 1), system.solves_reach_blas())
            found = columns.run(solve_block, given.shape, workers, on.columns.block)
        else:
            found = columns.run(solve_block, given.shape, 1, max(count, 1))
    errors = np.concatenate([known.backward_error for known in found] or [np.empty(0)])
    bounds = np.concatenate([known.error_bound for known in found] or [np.empty(0)])
    steps = max((known.refinement_steps for known in found), default=0)
    return x, SolveInfo(errors, bounds, steps, max((known.krylov_steps for known in found), default=0))


def solve_rows(
    solver: Any,
    rows: Array,
    b_lengths: Array,
    dtype: np.dtype[Any],
    refine: bool,
    full_output: bool,
    check: Check,
    out: Array | None = None,
    scratch: Any = None,
) -> tuple[Array, SolveInfo]:
    """(solutions of a block of right-hand sides, `SolveInfo`), both by rows, unscaled.

    The entries are finite, their norms ``b_lengths`` may have overflowed. ``out`` and ``scratch``, of the shape of
    rows, may be written to; the solutions are in ``out`` as a rule.
    """
    matrix = solver.matrix
    rows = matrix.system.on.memory.vectors(rows)
    exponents = None
    if not all(length == 0.0 or _LEAST <= length < _MOST for length in b_lengths.tolist()):
        exponents = row_exponents(rows)
        rows = np.ldexp(rows, -exponents[:, None])
        b_lengths = lengths(rows)
    errors, bounds, steps, krylov_steps = np.empty(rows.shape[0]), np.empty(rows.shape[0]), 0, 0
    if refine:
        refined = solver.refine(rows, dtype, check, 0.0, b_lengths, out, scratch)
        x, errors, steps, krylov_steps, x_lengths, _ = refined
        if not solver.is_lifted():
            singularity.check_solution(solver, refined)
    else:
        x = solver.factors.substitute(rows, check, out)
        x_lengths = lengths(x)
    if full_output:
        errors, bounds = _judge(solver, x, rows, refine)
    if exponents is None and matrix.scale.matrix:
        exponents = np.zeros(rows.shape[0], np.int32)
    if exponents is not None:
        exponents -= matrix.scale.matrix
        with np.errstate(over="ignore", under="ignore"):
            np.ldexp(x, exponents[:, None], out=x)
            x_lengths = np.ldexp(x_lengths, exponents)
    # No entry is larger than the norm; where that is too large or not a number, the entries are looked through.
    most = _LARGEST[dtype]
    fits = all(length <= most for length in x_lengths.tolist())
    if not fits and not max(x.max(initial=0.0), -x.min(initial=0.0)) <= most:
        if np.isnan(x).any():
            raise np.linalg.LinAlgError(
                f"b: numbers on the way to the solution overflow, with damping={matrix.damping:g}; expected smaller "
                "ones in params, X or the derivative blocks"
            )
        raise np.linalg.LinAlgError(f"b: the solution overflows, with damping={matrix.damping:g}")
    return x, SolveInfo(errors, bounds, steps, krylov_steps)


def _judge(solver: Any, x: Array, b: Array, is_refined: bool) -> tuple[Array, Array]:
    """Backward error, and bound of the relative error, of each row of x."""
    if solver.is_lifted():
        return lifted.judge(solver.factors, x, b, is_refined)
    matrix = solver.matrix
    residual, size, b_lengths = matrix.multiply(x, b=b), lengths(x), lengths(b)
    rounding = _RESIDUAL_ROUNDING * np.finfo(float).eps * (matrix.norm * size + b_lengths)
    error = solver.norm_of_inverse() * (lengths(residual) + rounding)
    # Of x first, then of the exact solution, which is smaller than x by the error at most.
    error = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
    error = np.where(error < 1.0, error / np.maximum(1.0 - error, 0.5), np.inf)
    return backward_error(matrix.hessian_norm, size, b_lengths, lengths(residual)), error


def warn(solver: Any, worst: float, steps: int, krylov_steps: int, dtype: np.dtype[Any], stacklevel: int) -> None:
    """``LinAlgWarning`` where the worst backward error is above what solutions in ``dtype`` are promised to have."""
    if worst > BACKWARD_ERROR[dtype]:
        matrix = solver.matrix
        narrow = matrix.dtype == np.float32 and dtype == np.float64
        advice = " for factors in float32" if narrow else ""
        warnings.warn(
            f"the solution has a backward error of {worst:.1e} after {steps} refinement and "
            f"{krylov_steps} Krylov steps; expected at most {BACKWARD_ERROR[dtype]:.0e}: H + damping I is "
            f"too ill-conditioned{advice} with damping={matrix.damping:g}",
            LinAlgWarning,
            stacklevel=stacklevel,
        )
