"""Signed Cholesky, M = F diag(sigma) F^T with sigma = +-1, by a thread block: twin of `kernels.signed_cholesky`.

The same pivots by the same rule, one at a time: M is turned into U where it lies, in shared memory if it fits. U is
then packed as on the CPU, so that factors can be exchanged between the two. `factor_rows` is also what factors a panel
of a large matrix (`panels`).
"""

import math

from ...kernels.dense import signed_cholesky as twin
from ...kernels.dense.pivot_arithmetic import EXCHANGE, MAX_FLOAT, PAIR, STAY
from ...kernels.plumbing.status import NOT_FINITE, OK, SINGULAR_PIVOT
from ..plumbing.target import LANES, cuda, device, largest, total
from .pivot_arithmetic import choice, is_weak, order, replacement, split_block, stays_nonnegative, times

panel_rows, panel_offset = device(twin.panel_rows), device(twin.panel_offset)


@device
def row_start(m, k):
    """Where row k of U starts in the packed factor, less the row's first column: add the column."""
    rows = panel_rows(m)
    panel = k // rows
    k0 = panel * rows
    return panel_offset(m, rows, panel) + (k - k0) * (m - k0) - k0


@device
def _interchange(team, m, M, at, K, K_at, n, k, p, q, pivots, pivots_at):
    """Swap p and q > p: in the rest of M from row k on, in the rows of U above, in the rows of K, and in pivots."""
    for i in range(team.rank, p, team.size):
        row = at + i * m
        M[row + p], M[row + q] = M[row + q], M[row + p]
    for j in range(p + 1 + team.rank, q, team.size):
        one, two = at + p * m + j, at + j * m + q
        M[one], M[two] = M[two], M[one]
    for j in range(q + 1 + team.rank, m, team.size):
        one, two = at + p * m + j, at + q * m + j
        M[one], M[two] = M[two], M[one]
    for j in range(team.rank, n, team.size):
        one, two = K_at + p * n + j, K_at + q * n + j
        K[one], K[two] = K[two], K[one]
    if team.rank == 0:
        one, two = at + p * m + p, at + q * m + q
        M[one], M[two] = M[two], M[one]
        one, two = pivots_at + p, pivots_at + q
        pivots[one], pivots[two] = pivots[two], pivots[one]
    cuda.syncthreads()


@device
def _is_bounded(team, m, W, row, s, s_at, s_step, k, d):
    """Whether the 1x1 pivot d > 0 leaves no later diagonal entry negative: then elements do not grow.

    The pivot's row is at ``W[row:]``, the diagonal at ``s[s_at:]``, ``s_step`` numbers from entry to entry.
    """
    bad = 0
    inverse = 1 / d
    for j in range(k + 1 + team.rank, m, team.size):
        if not stays_nonnegative(s[s_at + j * s_step], W[row + j], inverse):
            bad = 1
    return cuda.syncthreads_or(bad) == 0


@device
def _row_largest(team, m, W, row, k):
    """(largest modulus right of the diagonal in row k, its column)."""
    value, place = 0.0, m
    for j in range(k + 1 + team.rank, m, team.size):
        size = abs(float(W[row + j]))
        if size > value or size != size:
            value, place = size, j
    return largest(team, value, place)


@device
def _rest(m, M, at, start, k, i, j, W, W_at):
    """Entry (i, j) of what is left of M after the pivots before k, those from ``start`` on being in M only as U."""
    value = M[at + i * m + j] if i < j else M[at + j * m + i]
    for h in range(start, k):
        value -= M[at + h * m + i] * W[W_at + (h - start) * m + j]
    return value


@device
def _column_largest(team, m, M, at, start, k, q, W, W_at):
    """Largest modulus off the diagonal in row q of the symmetric rest M[k:, k:]."""
    value = 0.0
    for j in range(k + team.rank, m, team.size):
        if j != q:
            size = abs(float(_rest(m, M, at, start, k, q, j, W, W_at)))
            if size > value or size != size:
                value = size
    return largest(team, value, 0)[0]


@device
def _bring_up(team, m, M, at, start, k, i, W, W_at):
    """Row i of what is left of M, from k on, to its place in W."""
    for j in range(k + team.rank, m, team.size):
        W[W_at + (i - start) * m + j] = _rest(m, M, at, start, k, i, j, W, W_at)


@device
def _eliminate_one(team, m, M, at, k, inverse, d):
    """M[k+1:, k+1:] -= w^T w / d (upper triangle), w being the rest of row k; then w <- w / d."""
    row = at + k * m
    # The inverse of a subnormal pivot may not be a number.
    whole = abs(inverse) <= MAX_FLOAT
    for i in range(k + 1 + team.group, m, team.groups):
        # Float64, as the pivot is, would be several times as slow in the loop.
        factor = M.dtype.type(M[row + i] * inverse if whole else M[row + i] / d)
        for j in range(i + team.lane, m, LANES):
            M[at + i * m + j] -= factor * M[row + j]
    cuda.syncthreads()
    for j in range(k + 1 + team.rank, m, team.size):
        M[row + j] = M[row + j] * inverse if whole else M[row + j] / d


@device
def _eliminate_two(team, m, M, at, k, p, q, r):
    """The same for the block of rows k and k + 1, whose inverse is [[p, q], [q, r]]."""
    row, below = at + k * m, at + (k + 1) * m
    for i in range(k + 2 + team.group, m, team.groups):
        t = M.dtype.type(p * M[row + i] + q * M[below + i])
        u = M.dtype.type(q * M[row + i] + r * M[below + i])
        for j in range(i + team.lane, m, LANES):
            M[at + i * m + j] -= t * M[row + j] + u * M[below + j]
    cuda.syncthreads()
    for j in range(k + 2 + team.rank, m, team.size):
        w, v = M[row + j], M[below + j]
        M[row + j] = p * w + q * v
        M[below + j] = q * w + r * v
    if team.rank == 0:
        M[row + k + 1] = 0.0


@device
def _divide_one(team, m, M, at, k, inverse, d, W, row, s, s_at):
    """Row k of U <- w / d, w being the pivot's row in W; the diagonal of the rest, in s, follows."""
    whole = abs(inverse) <= MAX_FLOAT
    for j in range(k + 1 + team.rank, m, team.size):
        w = W[row + j]
        u = w * inverse if whole else w / d
        M[at + k * m + j] = u
        s[s_at + j] -= u * w


@device
def _divide_two(team, m, M, at, k, p, q, r, W, row, s, s_at):
    """The same for the block of rows k and k + 1, whose inverse is [[p, q], [q, r]]."""
    for j in range(k + 2 + team.rank, m, team.size):
        w, v = W[row + j], W[row + m + j]
        t, u = p * w + q * v, q * w + r * v
        M[at + k * m + j] = t
        M[at + (k + 1) * m + j] = u
        s[s_at + j] -= t * w + u * v
    if team.rank == 0:
        M[at + k * m + k + 1] = 0.0


@device
def factor_rows(
    team, m, M, at, begin, stop, tiny, perturbation, K, K_at, n, pivots, pivots_at, scales, scales_at,
    late, W, W_at, s, s_at, s_step,
):
    """Eliminate the pivots of M from ``begin`` on until ``stop`` is reached, or passed by a 2x2 block.

    Every pivot is taken from the rest of M at once, or (``late``) from its row when that is asked for and from the
    diagonal, which is kept in s: what is right of it is left to the caller, with the rows of D U in W.
    At once: W is M, its first row the one at ``begin``, and s the diagonal of M.
    Returns (status, the pivot to go on with, number of negative sigma, number of replaced pivots, log of the modulus
    of their product), the same in all threads. No barrier at the end.
    """
    num_negative, num_perturbed, product, exponent = 0, 0, 1.0, 0.0
    k = begin
    while k < stop:
        row = W_at + (k - begin) * m
        first = begin if late else k
        if late:
            _bring_up(team, m, M, at, begin, k, k, W, W_at)
            cuda.syncthreads()
        d = float(W[row + k])
        size, other = 1, k
        if not (d > 0 and _is_bounded(team, m, W, row, s, s_at, s_step, k, d)):
            colmax, q = _row_largest(team, m, W, row, k)
            if not (abs(d) <= MAX_FLOAT and colmax <= MAX_FLOAT):
                return NOT_FINITE, k, 0, 0, 0.0
            if is_weak(d, colmax):
                rowmax = _column_largest(team, m, M, at, first, k, q, W, W_at)
                e = float(s[s_at + q * s_step])
                if not (abs(e) <= MAX_FLOAT and rowmax <= MAX_FLOAT):
                    return NOT_FINITE, k, 0, 0, 0.0
                chosen = choice(d, colmax, e, rowmax)
                if chosen != STAY:
                    other = q
                if chosen == PAIR:
                    size = 2
                elif chosen == EXCHANGE:
                    d = e
            # No thread may change what another still compares.
            cuda.syncthreads()
        elif not d <= MAX_FLOAT:
            return NOT_FINITE, k, 0, 0, 0.0
        last = k + size - 1
        if other != last:
            if late:
                for i in range(team.rank, k - begin, team.size):
                    one, two = W_at + i * m + last, W_at + i * m + other
                    W[one], W[two] = W[two], W[one]
                if team.rank == 0:
                    s[s_at + last], s[s_at + other] = s[s_at + other], s[s_at + last]
            _interchange(team, m, M, at, K, K_at, n, k, last, other, pivots, pivots_at)
        if late and (other != last or size == 2):
            for i in range(k, last + 1):
                _bring_up(team, m, M, at, begin, k, i, W, W_at)
            cuda.syncthreads()
        if size == 1:
            if not abs(d) > tiny:
                if perturbation == 0:
                    return SINGULAR_PIVOT, k, 0, 0, 0.0
                d = replacement(d, perturbation)
                num_perturbed += 1
            if late:
                _divide_one(team, m, M, at, k, 1 / d, d, W, row, s, s_at)
            else:
                _eliminate_one(team, m, M, at, k, 1 / d, d)
            num_negative += int(d < 0)
            product, exponent = times(product, exponent, abs(d))
            if team.rank == 0:
                scales[scales_at + 2 * k] = 1 / math.sqrt(abs(d))
                scales[scales_at + 2 * k + 1] = 0.0
                pivots[pivots_at + m + k] = int(d < 0)
        else:
            b, c = float(W[row + last]), float(W[row + m + last])
            count, one, two, left, right, p, q_, r, g0, g1, g2, g3 = split_block(d, b, c, tiny, perturbation)
            if count < 0:
                return SINGULAR_PIVOT, k, 0, 0, 0.0
            if late:
                _divide_two(team, m, M, at, k, p, q_, r, W, row, s, s_at)
            else:
                _eliminate_two(team, m, M, at, k, p, q_, r)
            num_negative += one + two
            num_perturbed += count
            product, exponent = times(product, exponent, left)
            product, exponent = times(product, exponent, right)
            if team.rank == 0:
                scales[scales_at + 2 * k], scales[scales_at + 2 * k + 1] = g0, g1
                scales[scales_at + 2 * last + 1], scales[scales_at + 2 * last] = g2, g3
                pivots[pivots_at + m + k], pivots[pivots_at + m + last] = one, two
                pivots[pivots_at + k], pivots[pivots_at + last] = ~pivots[pivots_at + k], ~pivots[pivots_at + last]
        if late:
            # At once, what follows reads no row of U before another barrier.
            cuda.syncthreads()
        k += size
    return OK, k, num_negative, num_perturbed, exponent + math.log(product)


@device
def is_negative(team, m, M, at):
    """Whether the trace of M is negative: only positive pivots may stay where they are, so -M is factorized then."""
    trace = 0.0
    for k in range(team.rank, m, team.size):
        trace += M[at + k * m + k]
    return int(total(team, trace) < 0)


@device
def negate(team, m, M, at):
    """The upper triangle of M <- that of -M. No barrier at the end."""
    for i in range(team.group, m, team.groups):
        for j in range(i + team.lane, m, LANES):
            M[at + i * m + j] = -M[at + i * m + j]


@device
def order_pivots(team, m, flip, pivots, pivots_at):
    """Turn the signs behind the permutation in pivots, of -M where ``flip``, into the places of the pivots."""
    if team.rank == 0:
        if flip:
            for k in range(m):
                pivots[pivots_at + m + k] ^= 1
        order(pivots[pivots_at : pivots_at + 2 * m], m)
    cuda.syncthreads()


@device
def signed_cholesky(team, m, M, at, tiny, perturbation, K, K_at, n, pivots, pivots_at, scales, scales_at):
    """Factor the symmetric m x m matrix at ``M[at:]``; only its upper triangle is read, and becomes U.

    Interchanges are applied to the m x n matrix ``K`` as well. pivots (2 m integers) and scales (m x 2) as on the CPU.
    Returns (status, number of negative sigma, number of replaced pivots, log|det M|), the same in all threads.
    """
    for k in range(team.rank, m, team.size):
        pivots[pivots_at + k] = k
    flip = is_negative(team, m, M, at)
    if flip:
        negate(team, m, M, at)
        cuda.syncthreads()
    status, _, num_negative, num_perturbed, logabsdet = factor_rows(
        team, m, M, at, 0, m, tiny, perturbation, K, K_at, n, pivots, pivots_at, scales, scales_at,
        False, M, at, M, at, m + 1,
    )
    if status != OK:
        return status, 0, 0, 0.0
    order_pivots(team, m, flip, pivots, pivots_at)
    return OK, m - num_negative if flip else num_negative, num_perturbed, logabsdet


@device
def pack(team, m, U, at, L, L_at):
    """Copy U, as `signed_cholesky` leaves it, to its packed layout."""
    rows, zero = panel_rows(m), U.dtype.type(0)
    for k in range(team.group, m, team.groups):
        k0 = k - k % rows
        start = L_at + row_start(m, k)
        for j in range(k0 + team.lane, m, LANES):
            L[start + j] = U[at + k * m + j] if j > k else zero
