"""The elimination (docs/theory.md, section 3): from the last layer to the first, the block LDL^T of H + eps I.

Entering a layer, P is the curvature of the loss in the layer's outputs after all later parameters have been minimised
out. The layer's own parameters give a pivot M, a coupling K to the layer's inputs, and what the inputs contribute
themselves (:mod:`numba_hinv.kernels.steps.front`); then

    M = F diag(sigma) F^T,   Y = F^-1 K,   P' = P' - Y^T diag(sigma) Y

As long as P is positive definite and layers are given as blocks of one sample, it is its Cholesky factor that is handed
down (:mod:`numba_hinv.kernels.steps.root_front`).
"""

import math
from typing import NamedTuple

import numpy as np

from ..dense import blas
from ..dense.microkernel import pointer
from ..dense.norm import squared_norm
from ..dense.pivot_arithmetic import enlarge
from ..dense.product import gemm_tn_upper
from ..dense.rank_update import signed_rank_update
from ..dense.signed_cholesky import pack_size, signed_cholesky, work_size
from ..dense.triangular import forward_rows
from ..plumbing.compiled import inner, kernel, shared
from ..plumbing.memory import aligned, matrix, vector
from ..plumbing.status import NOT_FINITE, OK
from ..steps.front import form_front
from ..steps.root_front import FACTORED, GROWTH, LOGABSDET, REST, root_of, root_step, rounded

# The most layers that a chain whose fronts were not definite goes on without asking whether they are now.
MOST_PATIENCE = 64
# The most parameters and incoming states of a layer whose front is kept as a Cholesky factor, where BLAS has threads
# that share the products which are taken otherwise.
SHARED_COLUMNS = 384


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
    root: np.ndarray  # the factor of a front, where it is kept as one
    root_work: np.ndarray
    nu: np.ndarray  # n_out


def workspace(sizes, dtype):
    """An uninitialised `Workspace`."""
    return Workspace(
        np.empty((2, sizes.front), dtype),
        np.empty(sizes.mixed, dtype),
        np.empty(sizes.m * sizes.m, dtype),
        np.empty(work_size(sizes.m), dtype),
        aligned(sizes.root, dtype),
        aligned(sizes.root_work, dtype),
        np.empty(sizes.width, dtype),
    )


def work_bytes(sizes, dtype):
    """Bytes of `workspace`."""
    roots = sizes.root + sizes.root_work + sizes.width
    return dtype.itemsize * (2 * sizes.front + sizes.mixed + sizes.m**2 + int(work_size(sizes.m)) + roots)


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


@inner
def _is_rooted(layer):
    """Whether the layer can be eliminated with its front as a Cholesky factor, and that is likely to be faster."""
    return layer.rooted and (layer.m + layer.N <= SHARED_COLUMNS or not blas.has_threads())


@inner
def _eliminate_root(layer, lin, damping, pivoting, factors, work, l, with_vector, b, x):
    """Eliminate layer l with the factor of its front, and leave that of the next; False where they are not definite.

    With a vector, the sweep back of the solve is done as well: b, x and ``work.nu`` are then as `root_step` has them.
    """
    m, scratch = layer.m, pointer(work.root_work, 0)
    root_step(
        layer.n_out, m, layer.N, with_vector, damping, pivoting.singular, pivoting.limit, pivoting.largest,
        pointer(work.root, 0), pointer(lin.Dx, layer.Dx), pointer(lin.Dz, layer.Dz), pointer(lin.Dxx, layer.Dxx),
        pointer(lin.Dzx, layer.Dzx), pointer(lin.Dzz, layer.Dzz), pointer(b, layer.parameters),
        pointer(factors.L, layer.L), pointer(factors.scales, layer.scales), pointer(factors.Y, layer.Y),
        pointer(x, layer.parameters), pointer(work.nu, 0), scratch,
    )  # fmt: skip
    if scratch[FACTORED] == 0:
        return False
    pivots = vector(factors.pivots, layer.pivots, 2 * m)
    for k in range(m):
        pivots[k] = k
        pivots[m + k] = k
    factors.num_positive[l], factors.num_perturbed[l], factors.growth[l] = m, 0, float(scratch[GROWTH])
    factors.logabsdet[l] = float(scratch[LOGABSDET]) + float(scratch[REST])
    return True


@inner
def _take_root(n, P, work):
    """Whether the front P (n x n) has a Cholesky factor; then that is in the workspace."""
    root_of(n, pointer(P, 0), pointer(work.root, 0), pointer(work.root_work, 0))
    return work.root_work[FACTORED] != 0


@inner
def _leave_root(n, work, P):
    """The front P (n x n, upper triangle) of the factor in the workspace."""
    U, ldu = pointer(work.root, 0), rounded(n)
    # What stands below its diagonal has not been written so far.
    for i in range(n):
        for j in range(i):
            U[i * ldu + j] = 0
    gemm_tn_upper(n, n, n, 1, U, ldu, U, ldu, 0, pointer(P, 0), n)


@kernel
def eliminate(table, start, stop, params, lin, row_space, damping, pivoting, factors, work):
    """Eliminate layers stop-1, ..., start; layers after them must have been eliminated with the same workspace.

    Pivots that are singular or would blow the next P up are perturbed as ``pivoting`` says.
    Returns (status, layer at which the sweep ended).
    """
    B = lin.output.shape[0]
    is_root, waiting, patience = False, 0, 1
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        m, N, a = layer.m, layer.N, B * layer.n_out
        is_last = l == table.size - 1
        P = matrix(work.front, ((l + 1) % 2) * work.front.shape[1], a, a)
        P_next = matrix(work.front, (l % 2) * work.front.shape[1], N, N)
        rooted = _is_rooted(layer)
        if rooted and not is_root:
            # A chain whose fronts are not definite is asked ever more rarely whether they have become so.
            if waiting > 0:
                waiting -= 1
            else:
                is_root = _take_root(a, matrix(lin.curvature, 0, a, a) if is_last else P, work)
                if not is_root:
                    waiting, patience = patience, min(2 * patience, MOST_PATIENCE)
        if is_root:
            is_root = rooted and _eliminate_root(
                layer, lin, damping + layer.ridge, pivoting, factors, work, l, 0, work.nu, work.nu
            )
            if is_root:
                if l == start or not _is_rooted(table[l - 1]):
                    _leave_root(N, work, P_next)
                    is_root = False
                continue
            _leave_root(a, work, P)
        M = matrix(work.M, 0, m, m)
        K = matrix(factors.Y, layer.Y, m, N)
        form_front(layer, is_last, params, lin, row_space, damping + layer.ridge, P, K, P_next, work)
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


@kernel
def eliminate_and_substitute_back(table, lin, damping, pivoting, factors, work, b, x):
    """`eliminate` and `substitute_back` of one right-hand side in one sweep over all layers, each read once.

    Only of chains whose layers can all be eliminated with their fronts as Cholesky factors: False where one cannot, and
    where a front is not definite; factors and x are not worth anything then.
    """
    last = table[table.size - 1]
    if not _is_rooted(last) or not _take_root(last.n_out, matrix(lin.curvature, 0, last.n_out, last.n_out), work):
        return False
    for i in range(last.n_out):
        work.nu[i] = 0
    for l in range(table.size - 1, -1, -1):
        layer = table[l]
        if not _is_rooted(layer) or not _eliminate_root(
            layer, lin, damping + layer.ridge, pivoting, factors, work, l, 1, b, x
        ):
            return False
    return True
