"""Covariances under the inverse of H + damping I: its diagonal, the blocks of layers, and samples.

One recursion over the layers (`numba_hinv.kernels.sweeps.covariance`) gives them from the factors, without refinement. What
that costs in digits is estimated from three sources, entry by entry: the factors' own error, by solves with and without
refinement; rounding of H, which no method can undo; and rounding in the recursion, by a second one with random changes
of a few units of roundoff. Where H + damping I is positive definite nothing cancels in the recursion, and the last
source does not count. Where it is indefinite, a pivot of nearly 0 amplifies rounding by the square of its inverse.
"""

import warnings

import numpy as np
from scipy.linalg import LinAlgWarning

from ..runtime import columns, memory_budget, threads
from ..runtime.chunks import chunks
from ..kernels.sweeps import covariance as recursion
from ..kernels.sweeps import substitute
from ..kernels.steps.layer_table import BLOCKS
from ..kernels.sweeps.sample import project_all
from ..runtime.probes import random_entries
from ..system.processor import require_cpu
from ..runtime.progress import bar
from ..runtime.validation import as_generator, as_size

# Of 1,500 random matrices 332 had an error above 1e-8, and with these an estimate that says so; 48 more were warned of
# although right to 1e-9. Without changes to C, only to Sigma, 4 of the 332 were missed.
_PROBES = 3
_NOISE = 64.0
_SAFETY = 2.0


def diagonal(F, tolerance, progress):
    """`Factorization.diagonal`."""
    require_cpu(F.hessian, "the diagonal of an inverse")
    P, num_layers = F.shape[0], F.hessian.num_layers
    work = _workspace(F, F.hessian._table, False, 2 * P, "the diagonal of the inverse")
    is_positive = _is_positive(F)
    with bar(progress, num_layers if is_positive else 2 * num_layers, "diagonal", "layer") as shown:

        def compute(noise):
            found = np.empty(P, F.factor_dtype)
            for _ in _propagate(F, num_layers, noise, found, work, shown.update):
                pass
            return found.astype(np.float64)

        found = compute(0.0)
        columns_of_inverse, uncertainty = _judge(F)
        if not is_positive:
            uncertainty += np.abs(compute(_NOISE * np.finfo(F.factor_dtype).eps) - found)
    scale = np.abs(found) if is_positive else np.maximum(np.abs(found), columns_of_inverse)
    _warn(F, "the diagonal of the inverse", _worst(uncertainty, scale), tolerance)
    return _unscaled(F, found, "diagonal")


def block(F, l, tolerance, progress):
    """`Factorization.blocks`, ``l`` being at least 0."""
    require_cpu(F.hessian, "a block of an inverse")
    table = F.hessian._table[: l + 1]
    first, p = int(table[l]["parameters"]), int(table[l]["p"])
    work = _workspace(F, table, True, 3 * p * p, f"the covariance of layer {l} with {p} parameters")
    _, lin, space = F._blocks()
    is_positive = _is_positive(F)
    with bar(progress, l, "blocks", "layer") as shown:
        found = np.empty((p, p), F.factor_dtype)
        for segment, factors in _propagate(F, l, 0.0, np.empty(0, F.factor_dtype), work, shown.update):
            if segment.start <= l < segment.stop:
                at = l - segment.start
                recursion.covariance(segment.table(F.hessian._table), at, lin, space, factors, F._shift, found, work)
    found = found.astype(np.float64)
    columns_of_inverse, uncertainty = (array[first : first + p] for array in _judge(F))
    scale, worst = np.abs(found.diagonal()), 0.0
    if not is_positive:
        scale = np.maximum(scale, columns_of_inverse)
        worst = _worst_of_block(F, first, found, np.sqrt(scale))
    _warn(F, f"the covariance of layer {l}", worst + _worst(uncertainty, scale), tolerance)
    return _unscaled(F, found, f"covariance of layer {l}")


def sample(F, rng, n, tolerance, num_threads, progress):
    """`Factorization.sample`."""
    require_cpu(F.hessian, "samples")
    rng, count, P = as_generator("rng", rng), 1 if n is None else as_size("n", n, 0), F.shape[0]
    negative = F._num_negative()
    if negative:
        raise np.linalg.LinAlgError(
            f"damping: expected H + damping I to be positive definite, as samples need it, got {negative} negative "
            f"eigenvalues and {P - negative} positive ones with damping={F.damping:g}; a larger damping, or the "
            "Gauss-Newton matrix (curvature='ggn'), has none"
        )
    memory_budget.require(16 * count * P, f"n: {count} samples of P = {P} parameters")
    error = F._factor_error() if count else 0.0
    if not error <= tolerance:
        _warn(F, "the variance of samples in some direction", error, tolerance)
    samples = rng.standard_normal((count, P))
    F._blocks()
    scale = 2.0 ** (-0.5 * F._scale.matrix)
    with bar(progress, count, "sample", "sample") as shown:

        def transform(start, stop, check):
            samples[start:stop] = square_root(F, samples[start:stop], check)
            samples[start:stop] *= scale
            shown.update(stop - start)

        if F.checkpoint:
            # Each block would have to make the factors again.
            columns.run(transform, (P, count), 1, max(count, 1))
        else:
            workers = threads.num_workers(num_threads, max(count, 1), F.hessian._solves_reach_blas())
            columns.run(transform, (P, count), workers)
    samples = _finite(F, samples, "samples").astype(F.dtype, copy=False)
    return samples[0] if n is None else samples


def square_root(F, rows, check=threads.no_check):
    """rows (k, P) times S^T, where S S^T is the inverse of ``2^-k (H + damping I)``, positive definite."""
    hessian = F.hessian
    params, lin, space = F._blocks()
    noise = rows.astype(F.factor_dtype)
    x = np.empty_like(noise)
    work = substitute.workspace(hessian._sizes, rows.shape[0], hessian.num_samples, F.factor_dtype)
    project_all(hessian._table, 0, hessian.num_layers, space, noise, x)
    noise *= np.sqrt(max(F._shift, 0.0))
    for segment, factors in F._visit(range(len(F._segments))):
        table = segment.table(hessian._table)
        for start, stop in F._pieces(segment, rows.shape[0], False):
            check()
            substitute.substitute_forth(table, start, stop, params, lin, space, factors, F._shift, noise, x, work)
    return x.astype(np.float64, copy=False)


def _workspace(F, table, is_block, num_kept, purpose):
    """`recursion.Workspace` for all layers of a table; ``MemoryError`` where it and so many numbers would not fit."""
    lengths = recursion.work_sizes(table, F.hessian._sizes, F.hessian.num_samples, is_block)
    memory_budget.require(F.factor_dtype.itemsize * sum(lengths) + 8 * num_kept, purpose)
    return recursion.workspace(lengths, F.factor_dtype)


def _propagate(F, stop, noise, diagonal, work, tick):
    """The recursion over layers 0..stop-1; yields every segment with its factors, and that of layer ``stop``."""
    table = F.hessian._table
    params, lin, space = F._blocks()
    wanted = [index for index, segment in enumerate(F._segments) if segment.start <= stop]
    for segment, factors in F._visit(wanted):
        part = segment.table(table)
        num_layers = min(segment.stop, stop) - segment.start
        flops = _flops(F, part[:num_layers], diagonal.size > 0)
        for first, last in chunks(flops) if num_layers else []:
            recursion.propagate(part, first, last, params, lin, space, factors, F._shift, noise, diagonal, work)
            tick(last - first)
        yield segment, factors


def _flops(F, layers, is_diagonal):
    """Of each layer's step of the recursion."""
    m, N, n_in, n_out, units, r, d, rows = (
        layers[name].astype(float) for name in ("m", "N", "n_in", "n_out", "units", "r", "d", "rows")
    )
    a = F.hessian.num_samples * n_out
    per_row = np.where(layers["kind"] == BLOCKS, 2 * a * (m + n_in), 2 * rows * (r + d) * units)
    flops = 2 * m**3 + 5 * m * m * N + 2 * m * N * N + (m + N + a) * (per_row + 32 * a)
    if is_diagonal:
        flops += np.where(r < d, units * (r * (2 * N * (rows + 4) + 6 * r * d) + 4 * rows * rows * d), 0.0)
    return flops


def _is_positive(F):
    """Whether H + damping I is positive definite for certain."""
    return F._num_negative() == 0 and F._is_exact()


def _judge(F):
    """(norms of the inverse's columns, errors of their entries by the factors and by rounding of H), (P,) each.

    Of ``E = A'^-1 - A^-1``, A' being the factors' matrix, entry j of E z has about the size of E's row j for a random
    z, which is no less than E[j, j]. A change of A by its rounding, u ||A||, moves entry j by the square of column j.
    """
    probes = np.concatenate([random_entries(seed, F.shape[0]) for seed in range(6, 6 + _PROBES)])
    refined = F._refined_inverse(probes)
    norms = np.sqrt((refined**2).mean(axis=0))
    with np.errstate(over="ignore"):
        errors = np.abs(F._substitute(probes) - refined).max(axis=0)
        errors += np.finfo(np.float64).eps * F._norm * norms**2
    return norms, errors


def _worst_of_block(F, first, found, root):
    """Largest error of a block relative to ``root_i root_j``, by its products with random vectors, beside refined solves."""
    probes = np.zeros((_PROBES, F.shape[0]))
    of_block = probes[:, first : first + root.size]
    for row, seed in zip(of_block, range(6 + _PROBES, 6 + 2 * _PROBES)):
        row[:] = random_entries(seed, root.size)[0] / root
    errors = np.abs(F._refined_inverse(probes)[:, first : first + root.size] - of_block @ found).max(axis=0)
    return _worst(errors, root)


def _worst(uncertainty, scale):
    """The largest error relative to its scale; infinity where one is not finite."""
    ratio = np.divide(uncertainty, scale, out=np.zeros_like(uncertainty), where=uncertainty > 0)
    return float(ratio.max(initial=0.0)) if np.isfinite(ratio).all() else np.inf


def _unscaled(F, found, name):
    """What is found for the scaled matrix, in the Hessian's own units and dtype."""
    with np.errstate(over="ignore", under="ignore"):
        found = np.ldexp(found, -F._scale.matrix)
    return _finite(F, found, name).astype(F.dtype, copy=False)


def _finite(F, found, name):
    """``found``, or ``LinAlgError`` where it is not finite in the Hessian's dtype."""
    largest = max(found.max(initial=0.0), -found.min(initial=0.0))
    if not largest <= np.finfo(F.dtype).max:
        raise np.linalg.LinAlgError(
            f"damping: the {name} of the inverse: expected finite numbers, got some that are not, with "
            f"damping={F.damping:g} and factors in {F.factor_dtype}"
        )
    return found


def _warn(F, name, error, tolerance):
    if not _SAFETY * error <= tolerance:
        warnings.warn(
            f"{name} may be off by about {error:.1e}, relative; expected at most {tolerance:.0e}: H + damping I is too "
            f"ill-conditioned, or too close to a singular trailing block, with damping={F.damping:g}",
            LinAlgWarning,
            stacklevel=4,
        )
