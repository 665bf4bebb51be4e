"""The elimination (docs/theory.md, section 3): from the last layer to the first, the block LDL^T of H + eps I.

Entering a layer, P is the curvature of the loss in the layer's outputs after all later parameters have been minimised
out. The layer's own parameters give a pivot M, a coupling K to the layer's inputs, and what the inputs contribute
themselves (:mod:`numba_hinv.kernels.steps.front`); then

    M = F diag(sigma) F^T,   Y = F^-1 K,   P' = P' - Y^T diag(sigma) Y
"""

import math
from typing import NamedTuple

import numpy as np

from ..dense.norm import squared_norm
from ..dense.pivot_arithmetic import enlarge
from ..dense.rank_update import signed_rank_update
from ..dense.signed_cholesky import pack_size, signed_cholesky, work_size
from ..dense.triangular import forward_rows
from ..plumbing.compiled import inner, kernel, shared
from ..plumbing.memory import matrix, vector
from ..plumbing.status import NOT_FINITE, OK
from ..steps.front import form_front


class Factors(NamedTuple):
    """What the elimination leaves: ``M = F diag(sigma) F^T`` and ``Y = F^-1 K`` of every layer, packed."""

    L: np.ndarray  # packed triangles
    pivots: np.ndarray  # 2 m integers each
    scales: np.ndarray  # m x 2 each
    Y: np.ndarray  # m x N each, rows with sigma = +1 first
    num_positive: np.ndarray  # (L,), sigma = +1
    num_perturbed: np.ndarray  # (L,)
    logabsdet: np.ndarray  # (L,) float64, log|det M|
    growth: np.ndarray  # (L,) float64, largest squared norm of a row of Y: what one pivot takes from the next P


def allocate(sizes, num_layers, dtype):
    """Uninitialised `Factors`."""
    return Factors(
        np.empty(sizes.L, dtype),
        np.empty(sizes.pivots, np.int32),
        np.empty(sizes.scales, dtype),
        np.empty(sizes.Y, dtype),
        np.empty(num_layers, np.int64),
        np.empty(num_layers, np.int64),
        np.empty(num_layers, np.float64),
        np.empty(num_layers, np.float64),
    )


class Pivoting(NamedTuple):
    """How small pivots are perturbed. All four on the global scale of ||H||, not on that of their front."""

    singular: float  # pivots up to this
    perturbation: float  # become +- this
    limit: float  # those that would take more than this from the next P
    largest: float  # are enlarged, up to this


@shared
def scale_pivoting(relative, norm, damping):
    """The `Pivoting` of ``H + damping I`` from one in units of its norm, ``norm`` being that of H."""
    scale = norm + abs(damping)
    singular = relative.singular * scale
    if damping != 0.0:
        # Pivots as small as a small damping are what that damping asks for.
        singular = min(singular, 0.25 * abs(damping))
    return Pivoting(singular, relative.perturbation * scale, relative.limit * scale, relative.largest * scale)


@kernel
def scale_bounds(m, scales, smallest, largest):
    """The smallest scale of each layer's pivots, and the largest: infinity and 0 where m, the rows of the pivot, is 0.

    scales : those of layers that follow one another, m x 2 each; the second column is zero but for 2 x 2 pivots.
    """
    at = 0
    for l in range(m.size):
        least, most = math.inf, 0.0
        for k in range(at, at + m[l]):
            first, second = abs(scales[2 * k]), abs(scales[2 * k + 1])
            if 0.0 < first < least:
                least = first
            most = max(most, first, second)
        smallest[l], largest[l] = least, most
        at += m[l]


class Workspace(NamedTuple):
    """Scratch of `eliminate`. Layer l reads its P in ``front[(l + 1) % 2]`` and leaves the next in ``front[l % 2]``."""

    front: np.ndarray  # (2, largest front)
    mixed: np.ndarray  # (R (x) I) V and E, then scratch of the triangular solve
    M: np.ndarray
    cholesky: np.ndarray


def workspace(sizes, dtype):
    """An uninitialised `Workspace`."""
    return Workspace(
        np.empty((2, sizes.front), dtype),
        np.empty(sizes.mixed, dtype),
        np.empty(sizes.m * sizes.m, dtype),
        np.empty(work_size(sizes.m), dtype),
    )


def work_bytes(sizes, dtype):
    """Bytes of `workspace`."""
    return dtype.itemsize * (2 * sizes.front + sizes.mixed + sizes.m**2 + int(work_size(sizes.m)))


@inner
def _limit_growth(Y, pivots, scales, pivoting):
    """Enlarge small pivots whose row of Y has a squared norm above the limit.

    Returns (largest squared norm before, number of pivots enlarged that were not perturbed already, what that adds to
    log|det M|).
    """
    m = Y.shape[0]
    growth, num_enlarged, added = 0.0, 0, 0.0
    for k in range(m):
        y = vector(Y, pivots[m + k] * Y.shape[1], Y.shape[1])
        size = squared_norm(y)
        if not size <= growth:
            growth = size
        shrink, counts, more = enlarge(
            size, float(scales[k, 0]), float(scales[k, 1]), pivoting.perturbation, pivoting.limit, pivoting.largest
        )
        if shrink != 1.0:
            for j in range(y.size):
                y[j] *= shrink
            scales[k, 0] *= shrink
            scales[k, 1] *= shrink
        num_enlarged += counts
        added += more
    return growth, num_enlarged, added


@kernel
def eliminate(table, start, stop, params, lin, row_space, damping, pivoting, factors, work):
    """Eliminate layers stop-1, ..., start; layers after them must have been eliminated with the same workspace.

    Pivots that are singular or would blow the next P up are perturbed as ``pivoting`` says.
    Returns (status, layer at which the sweep ended).
    """
    B = lin.output.shape[0]
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        m, N, a = layer.m, layer.N, B * layer.n_out
        M = matrix(work.M, 0, m, m)
        K = matrix(factors.Y, layer.Y, m, N)
        P = matrix(work.front, ((l + 1) % 2) * work.front.shape[1], a, a)
        P_next = matrix(work.front, (l % 2) * work.front.shape[1], N, N)
        form_front(layer, l == table.size - 1, params, lin, row_space, damping + layer.ridge, P, K, P_next, work)
        L = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        status, num_negative, num_perturbed, logabsdet = signed_cholesky(
            M, pivoting.singular, pivoting.perturbation, L, pivots, scales, work.cholesky
        )
        if status != OK:
            return status, l
        factors.num_positive[l] = m - num_negative
        factors.num_perturbed[l] = num_perturbed
        factors.logabsdet[l] = logabsdet
        factors.growth[l] = 0.0
        if N > 0:
            Y = K
            forward_rows(L, pivots, scales, Y, matrix(work.mixed, 0, m, N))
            growth, num_enlarged, added = _limit_growth(Y, pivots, scales, pivoting)
            if not math.isfinite(growth):
                return NOT_FINITE, l
            factors.growth[l] = growth
            factors.num_perturbed[l] += num_enlarged
            factors.logabsdet[l] += added
            signed_rank_update(Y, m - num_negative, P_next)
    return OK, start
