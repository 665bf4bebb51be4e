"""Signed Cholesky and triangular solve of a large front, panel by panel: M and K lie in global memory.

A panel of `PANEL` pivots is tried first with all of them where they stand, every block a part of its columns
(``try_panel``). Where that breaks the rule of `signed_cholesky`, one block takes them one by one (``factor_panel``).
What a panel changes right of it is the work of the whole device, tile by tile. The host launches one after the other
without asking how it went: `notes` say where the factorization stands, and nothing is done after it has failed.
"""

import functools
import math

from numba import from_dtype

from ...kernels.dense.pivot_arithmetic import MAX_FLOAT
from ...kernels.plumbing.status import NOT_FINITE, OK
from ..dense.pivot_arithmetic import stays_nonnegative, times
from ..dense.product import TILE_I, TILE_J, tile_product
from ..dense.signed_cholesky import factor_rows, is_negative, order_pivots
from ..plumbing.target import BLOCK, SIMULATED, cuda, device, kernel, start_team, total
from .eliminate import limit_growth

PANEL = 3 if SIMULATED else 32
SQUARE = PANEL * PANEL
# Where things stand, numbers of float64 each: the status, the pivots that are done, those that were before the last
# panel, whether -M is factorized, the number of negative and of replaced pivots, log|det M|, and why the pivots of the
# panel that was tried cannot all be taken where they stand, if they cannot.
STATUS, DONE, BEGUN, FLIP, NEGATIVE, PERTURBED, LOGABSDET, REFUSED = range(8)
NOTES = 8
# Why: of the panel's square on the diagonal, and nothing has been changed, or of what is right of it.
BY_SQUARE, BY_COLUMNS = 1.0, 2.0


@kernel
def start_cholesky(m, M, M_at, pivots, pivots_at, notes):
    """Notes and pivots before the first panel; a block."""
    team = start_team()
    for k in range(team.rank, m, team.size):
        pivots[pivots_at + k] = k
    flip = is_negative(team, m, M, M_at)
    if team.rank == 0:
        for note in range(NOTES):
            notes[note] = 0.0
        notes[FLIP] = flip


@functools.cache
def try_kernel(dtype):
    """`try_panel` for a dtype."""
    scalar = from_dtype(dtype)

    @kernel
    def try_panel(m, stop, pivoting, least, M, M_at, W, W_at, saved_at, notes):
        """The pivots up to ``stop`` if all of them are positive and bounded; a thread a column right of them.

        Leaves rows of D U in W and, right of the panel, those of U in M, whose own are saved in W. least : no pivot is
        smaller than this, so that its inverse is a number.
        """
        team = start_team()
        a = cuda.shared.array(SQUARE, scalar)
        w = cuda.local.array(PANEL, scalar)
        begin = int(notes[DONE])
        size = stop - begin
        if notes[STATUS] != OK or size <= 0:
            return
        for x in range(team.rank, size * size, team.size):
            i, j = x // size, x % size
            if i <= j:
                a[i * PANEL + j] = M[M_at + (begin + i) * m + begin + j]
        cuda.syncthreads()
        # Every block factors the square on the diagonal for itself.
        refused = 0
        for k in range(size):
            d = a[k * PANEL + k]
            if not (d > pivoting[0] and d > least and float(d) <= MAX_FLOAT):
                refused = 1
                break
            inverse = 1 / d
            quotient = M.dtype.type(inverse)
            for j in range(k + 1 + team.rank, size, team.size):
                if not stays_nonnegative(a[j * PANEL + j], a[k * PANEL + j], inverse):
                    refused = 1
            refused = cuda.syncthreads_or(refused)
            if refused:
                break
            for x in range(team.rank, (size - k - 1) * (size - k - 1), team.size):
                i, j = k + 1 + x // (size - k - 1), k + 1 + x % (size - k - 1)
                if i <= j:
                    a[i * PANEL + j] -= a[k * PANEL + i] * quotient * a[k * PANEL + j]
            cuda.syncthreads()
        if refused:
            # All blocks say so.
            if cuda.blockIdx.x == 0 and team.rank == 0:
                notes[REFUSED] = BY_SQUARE
        else:
            if cuda.blockIdx.x == 0:
                for x in range(team.rank, size * size, team.size):
                    i, j = x // size, x % size
                    if i <= j:
                        W[W_at + i * m + begin + j] = a[i * PANEL + j]
            j = stop + cuda.blockIdx.x * BLOCK + team.rank
            if j < m:
                rest = M[M_at + j * m + j]
                for k in range(size):
                    here = M_at + (begin + k) * m + j
                    value = M[here]
                    W[saved_at + k * m + j] = value
                    for i in range(k):
                        value -= a[i * PANEL + k] * w[i]
                    W[W_at + k * m + j] = value
                    # The row of U.
                    w[k] = value / a[k * PANEL + k]
                    M[here] = w[k]
                    if not rest >= w[k] * value:
                        cuda.atomic.max(notes, REFUSED, BY_COLUMNS)
                    rest -= w[k] * value

    return try_panel


@device
def _accept(team, m, begin, stop, M, M_at, W, W_at, pivots, pivots_at, scales, scales_at):
    """What `try_panel` leaves to one block; returns log of the product of the pivots."""
    size = stop - begin
    for x in range(team.rank, size * size, team.size):
        i, j = x // size, x % size
        if i < j:
            d = W[W_at + i * m + begin + i]
            M[M_at + (begin + i) * m + begin + j] = W[W_at + i * m + begin + j] / d
    product, exponent = 1.0, 0.0
    for k in range(size):
        product, exponent = times(product, exponent, float(W[W_at + k * m + begin + k]))
    for k in range(team.rank, size, team.size):
        row = scales_at + 2 * (begin + k)
        scales[row] = 1 / math.sqrt(W[W_at + k * m + begin + k])
        scales[row + 1] = 0.0
        pivots[pivots_at + m + begin + k] = 0
    return exponent + math.log(product)


@device
def _restore(team, m, begin, stop, M, M_at, W, saved_at):
    """Right of the panel, the rows of M as they were."""
    for k in range(stop - begin):
        for j in range(stop + team.rank, m, team.size):
            M[M_at + (begin + k) * m + j] = W[saved_at + k * m + j]
    cuda.syncthreads()


@kernel
def factor_panel(
    m, stop, pivoting, M, M_at, W, W_at, s_at, saved_at, K, K_at, n, pivots, pivots_at, scales, scales_at, notes
):
    """The pivots up to ``stop``; a block. Leaves their rows of U in M, those of D U in W (`PANEL` + 1 rows)."""
    team = start_team()
    begin, refused = int(notes[DONE]), notes[REFUSED]
    if notes[STATUS] != OK or begin >= stop:
        # A 2x2 block of the last panel may have been the last of M.
        if team.rank == 0:
            notes[BEGUN] = begin
        return
    status, done, num_negative, num_perturbed = OK, stop, 0, 0
    if refused == BY_COLUMNS:
        _restore(team, m, begin, stop, M, M_at, W, saved_at)
    if refused != 0:
        for j in range(begin + team.rank, m, team.size):
            W[s_at + j] = M[M_at + j * m + j]
        status, done, num_negative, num_perturbed, logabsdet = factor_rows(
            team, m, M, M_at, begin, stop, pivoting[0], pivoting[1], K, K_at, n, pivots, pivots_at, scales, scales_at,
            True, W, W_at, W, s_at, 1,
        )
    else:
        logabsdet = _accept(team, m, begin, stop, M, M_at, W, W_at, pivots, pivots_at, scales, scales_at)
    cuda.syncthreads()
    if team.rank == 0:
        notes[STATUS], notes[DONE], notes[BEGUN], notes[REFUSED] = status, done, begin, 0.0
        notes[NEGATIVE] += num_negative
        notes[PERTURBED] += num_perturbed
        notes[LOGABSDET] += logabsdet


@functools.cache
def update_kernel(dtype):
    """`update_rest` for a dtype."""
    add_tile = tile_product(dtype, True)

    @kernel
    def update_rest(m, minus_one, one, M, M_at, W, W_at, notes):
        """M <- M - U^T D U (upper triangle) of the rest, by the rows of the last panel; a block a tile."""
        begin, done = int(notes[BEGUN]), int(notes[DONE])
        i0, j0 = cuda.blockIdx.y * TILE_I, cuda.blockIdx.x * TILE_J
        if notes[STATUS] != OK or j0 + TILE_J <= i0 or begin == done:
            return
        rest = M_at + done * m + done
        add_tile(
            i0, j0, m - done, m - done, done - begin, m, minus_one, M, M_at + begin * m + done, m, W, W_at + done, m,
            one, M, rest, m,
        )

    return update_rest


@kernel
def solve_panel(n, begin, stop, m, U, U_at, K, K_at):
    """Rows begin..stop-1 of K (m x n) <- U^{-T} K, by the rows of U among them; a thread a column."""
    for j in range(cuda.grid(1), n, cuda.gridsize(1)):
        for i in range(begin + 1, stop):
            value = K[K_at + i * n + j]
            for k in range(begin, i):
                value -= U[U_at + k * m + i] * K[K_at + k * n + j]
            K[K_at + i * n + j] = value


@kernel
def square_rows(n, Y, Y_at, norms, norms_at):
    """norms <- squared norms of the rows of Y; a block a row."""
    team = start_team()
    k, size = cuda.blockIdx.x, 0.0
    for j in range(team.rank, n, team.size):
        size += float(Y[Y_at + k * n + j]) * float(Y[Y_at + k * n + j])
    size = total(team, size)
    if team.rank == 0:
        norms[norms_at + k] = size


@kernel
def finish_layer(l, m, n, pivoting, Y, Y_at, norms_at, pivots, pivots_at, scales, scales_at, factors, notes, results):
    """What is said of a layer in the factors, and small pivots enlarged (`eliminate.limit_growth`); a block."""
    team = start_team()
    status, growth, num_enlarged, added = int(notes[STATUS]), 0.0, 0, 0.0
    if status == OK and n > 0:
        growth, num_enlarged, added = limit_growth(
            team, m, n, Y, Y_at, Y, norms_at, scales, scales_at, pivoting
        )
        if not growth < math.inf:
            status = NOT_FINITE
            if team.rank == 0:
                notes[STATUS] = status
    if status == OK:
        flip = notes[FLIP] != 0
        order_pivots(team, m, flip, pivots, pivots_at)
        if team.rank == 0:
            negative = int(notes[NEGATIVE])
            factors.num_positive[l] = negative if flip else m - negative
            factors.num_perturbed[l] = int(notes[PERTURBED]) + num_enlarged
            factors.logabsdet[l] = notes[LOGABSDET] + added
            factors.growth[l] = growth
    if team.rank == 0:
        results[0, 0], results[0, 1] = status, l
