"""Covariances under the inverse of H + damping I: its diagonal, the blocks of layers, and samples.

One recursion over the layers (`factors.recursion`) gives them from the factors, without refinement. What that costs in
digits is estimated from three sources, entry by entry: the factors' own error, by solves with and without refinement;
rounding of H, which no method can undo; and rounding in the recursion, by a second one with random changes of a few
units of roundoff. Where H + damping I is positive definite nothing cancels in the recursion, and the last source does
not count. Where it is indefinite, a pivot of nearly 0 amplifies rounding by the square of its inverse.
"""

import warnings

import numpy as np
from scipy.linalg import LinAlgWarning

from ..runtime import columns, memory_budget, threads
from ..runtime.probes import random_entries
from ..runtime.progress import bar
from ..system.processor import require_cpu
from .refinement import contraction

# Of 1,500 random matrices 332 had an error above 1e-8, and with these an estimate that says so; 48 more were warned of
# although right to 1e-9. Without changes to C, only to Sigma, 4 of the 332 were missed.
_PROBES = 3
# Relative error of covariances above which there is a warning.
_TOLERANCE = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 1e-3}
_NOISE = 64.0
# Contraction of refinement up to which a covariance is as good as one by refined solves.
_ACCURATE = 1e-10
# Where H + damping I is indefinite, estimates may be too low: of 22,015 matrices in float64 6 were missed with 2, the
# worst with an error of 2.4 times the allowance. Of 2,143 other ones none was with 5: where there was no warning, the
# error was at most 0.21 of the allowance. 156 of 738 warnings were of errors below a tenth of it.
_SAFETY, _INDEFINITE_SAFETY = 2.0, {np.dtype(np.float64): 5.0, np.dtype(np.float32): 2.0}


def diagonal(solver, dtype, tolerance=None, progress=False):
    """`Factorization.diagonal`, with a warning where more than the tolerance may be missing."""
    tolerance = _TOLERANCE[solver.matrix.dtype] if tolerance is None else tolerance
    require_cpu(solver.matrix.system.on, "the diagonal of an inverse")
    solver = solver.whole()
    factors, P, num_layers = solver.factors, solver.matrix.size, solver.matrix.system.num_layers
    work = factors.covariance_workspace(None, 2 * P, "the diagonal of the inverse")
    is_positive = solver.is_positive()
    with bar(progress, num_layers if is_positive else 2 * num_layers, "diagonal", "layer") as shown:
        found, plain = factors.diagonal(0.0, work, shown.update), None
        correction = solver.correction()
        if correction is not None:
            plain, found = found, found + correction.diagonal()
        columns_of_inverse, uncertainty = _judge(solver)
        if not is_positive:
            noise = _NOISE * np.finfo(solver.matrix.dtype).eps
            uncertainty += np.abs(factors.diagonal(noise, work, shown.update) - (found if plain is None else plain))
    scale = np.abs(found) if is_positive else np.maximum(np.abs(found), columns_of_inverse)
    safety = _SAFETY if is_positive else _INDEFINITE_SAFETY[solver.matrix.dtype]
    _warn(solver, "the diagonal of the inverse", _worst(uncertainty, scale), tolerance, safety)
    return _unscaled(solver.matrix, found, "diagonal", dtype)


def block(solver, layer, dtype, progress):
    """`Factorization.blocks`, ``layer`` being at least 0."""
    tolerance = _TOLERANCE[solver.matrix.dtype]
    require_cpu(solver.matrix.system.on, "a block of an inverse")
    solver = solver.whole()
    entry = solver.matrix.system.table[layer]
    first, p = int(entry["parameters"]), int(entry["p"])
    named = layer + solver.matrix.system.first
    purpose = f"the covariance of layer {named} with {p} parameters"
    work = solver.factors.covariance_workspace(layer, 3 * p * p, purpose)
    is_positive = solver.is_positive()
    with bar(progress, layer, "blocks", "layer") as shown:
        found, correction = solver.factors.block(layer, work, shown.update), solver.correction()
        if correction is not None:
            found = found + correction.block(slice(first, first + p))
    columns_of_inverse, uncertainty = (array[first : first + p] for array in _judge(solver))
    scale, worst = np.abs(found.diagonal()), 0.0
    if not is_positive:
        scale = np.maximum(scale, columns_of_inverse)
        worst = _worst_of_block(solver, first, found, np.sqrt(scale))
    safety = _SAFETY if is_positive else _INDEFINITE_SAFETY[solver.matrix.dtype]
    _warn(solver, f"the covariance of layer {named}", worst + _worst(uncertainty, scale), tolerance, safety)
    return _unscaled(solver.matrix, found, f"covariance of layer {named}", dtype)


def outputs(solver):
    """The covariance of the net's outputs, (B n_L, B n_L), by the recursion; None where that may lose more digits.

    It is J A^-1 J^T, J being the Jacobian of the outputs of all samples and A = H + damping I. Where that is positive
    definite nothing cancels, and the relative error of no variance exceeds that of the inverse. None, too, of factors
    that visit no states.
    """
    if not is_accurate(solver):
        return None
    found, scale = solver.factors.outputs(), solver.matrix.scale
    if found is None:
        return None
    with np.errstate(over="ignore", under="ignore"):
        # In the units of the matrix, and in those of the last state.
        found = np.ldexp(found, (2 * scale.states[-1] if scale.states else 0) - scale.matrix, out=found)
    return _as_dtype(solver.matrix, found, "covariance of the outputs", np.dtype(np.float64))


def root(solver, start, stop):
    """Rows (k, P) of S^T, S S^T being (H + damping I)^-1, from ``start`` on; None where there is no accurate root."""
    if not is_accurate(solver):
        return None
    unit = np.zeros((stop - start, solver.matrix.size))
    unit[np.arange(stop - start), np.arange(start, stop)] = 1.0
    try:
        rows = solver.factors.square_root(unit)
    except np.linalg.LinAlgError:
        # LAPACK's factors with interchanges have none.
        return None
    rows *= 2.0 ** (-0.5 * solver.matrix.scale.matrix)
    return rows


def is_accurate(solver):
    """Whether unrefined covariances lose nothing: a positive definite matrix, and factors that are it to ten digits."""
    return bool(
        not solver.factors.has_fallback
        and not solver.factors.num_perturbed
        and solver.is_positive()
        and solver.contraction() <= _ACCURATE
    )


def sample(solver, rng, count, dtype, num_threads, progress):
    """(count, P) samples of `Factorization.sample`, drawn with the generator ``rng``."""
    tolerance = _TOLERANCE[solver.matrix.dtype]
    matrix, P = solver.matrix, solver.matrix.size
    require_cpu(matrix.system.on, "samples")
    solver = solver.whole()
    factors, negative, correction = solver.factors, solver.num_negative(), solver.correction()
    if negative:
        raise np.linalg.LinAlgError(
            f"damping: expected H + damping I to be positive definite, as samples need it, got {negative} negative "
            f"eigenvalues and {P - negative} positive ones with damping={matrix.damping:g}; a larger damping, or the "
            "Gauss-Newton matrix (curvature='ggn') of a loss that is convex in the outputs, has none"
        )
    memory_budget.require(
        16 * count * P, f"n: {count} samples of P = {P} parameters", "draw fewer at a time, with one generator"
    )
    error = 0.0
    if count and correction is None:
        error = solver.contraction()
    elif count:
        error = contraction(matrix.multiply, solver.corrected, P)
    if not error <= tolerance:
        _warn(solver, "the variance of samples in some direction", error, tolerance)
    samples = rng.standard_normal((count, P))
    solver.factors.prepare()
    scale = 2.0 ** (-0.5 * matrix.scale.matrix)
    with bar(progress, count, "sample", "sample") as shown:

        def transform(start, stop, check):
            rows = factors.square_root(samples[start:stop], check)
            samples[start:stop] = rows if correction is None else correction.sample(rows)
            samples[start:stop] *= scale
            shown.update(stop - start)

        if factors.solves_at_once:
            workers = threads.num_workers(num_threads, max(count, 1), matrix.system.solves_reach_blas())
            columns.run(transform, (P, count), workers)
        else:
            columns.run(transform, (P, count), 1, max(count, 1))
    return _as_dtype(matrix, samples, "samples", dtype)


def _judge(solver):
    """(norms of the inverse's columns, errors of their entries by the factors and by rounding of H), (P,) each.

    Of ``E = A'^-1 - A^-1``, A' being the factors' matrix, entry j of E z has about the size of E's row j for a random
    z, which is no less than E[j, j]. A change of A by its rounding, u ||A||, moves entry j by the square of column j.
    """
    matrix = solver.matrix
    probes = np.concatenate([random_entries(seed, matrix.size) for seed in range(6, 6 + _PROBES)])
    refined = solver.inverse(probes)
    norms = np.sqrt((refined**2).mean(axis=0))
    with np.errstate(over="ignore"):
        errors = np.abs(solver.corrected(probes) - refined).max(axis=0)
        if solver.is_lifted():
            # A^-1 = R sigma R^T, R = F^-T, changes by R N R^T with a norm of N that is the contraction: entry j by no
            # more than that times the square of row j of R, which random vectors show.
            errors += solver.contraction() * (solver.factors.trajectory(probes)[0] ** 2).max(axis=0)
        else:
            errors += np.finfo(np.float64).eps * matrix.norm * norms**2
    return norms, errors


def _worst_of_block(solver, first, found, root):
    """Largest error of a block relative to ``root_i root_j``, by its products with random vectors, and solves."""
    probes = np.zeros((_PROBES, solver.matrix.size))
    of_block = probes[:, first : first + root.size]
    for row, seed in zip(of_block, range(6 + _PROBES, 6 + 2 * _PROBES)):
        row[:] = random_entries(seed, root.size)[0] / root
    errors = np.abs(solver.inverse(probes)[:, first : first + root.size] - of_block @ found).max(axis=0)
    return _worst(errors, root)


def _worst(uncertainty, scale):
    """The largest error relative to its scale; infinity where one is not finite."""
    ratio = np.divide(uncertainty, scale, out=np.zeros_like(uncertainty), where=uncertainty > 0)
    return float(ratio.max(initial=0.0)) if np.isfinite(ratio).all() else np.inf


def _unscaled(matrix, found, name, dtype):
    """What is found for the scaled matrix, in the Hessian's own units."""
    with np.errstate(over="ignore", under="ignore"):
        return _as_dtype(matrix, np.ldexp(found, -matrix.scale.matrix), name, dtype)


def _as_dtype(matrix, found, name, dtype):
    """``found`` in this dtype; ``LinAlgError`` where it is not finite there."""
    largest = max(found.max(initial=0.0), -found.min(initial=0.0))
    if not largest <= np.finfo(dtype).max:
        raise np.linalg.LinAlgError(
            f"damping: the {name} of the inverse: expected finite numbers, got some that are not, with "
            f"damping={matrix.damping:g} and factors in {matrix.dtype}"
        )
    return found.astype(dtype, copy=False)


def _warn(solver, name, error, tolerance, safety=_SAFETY):
    if not safety * error <= tolerance:
        warnings.warn(
            f"{name} may be off by about {error:.1e}, relative; expected at most {tolerance:.0e}: H + damping I is too "
            f"ill-conditioned, or too close to a singular trailing block, with damping={solver.matrix.damping:g}",
            LinAlgWarning,
            stacklevel=4,
        )
