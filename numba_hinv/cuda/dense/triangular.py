"""Solves with the factor F of ``signed_cholesky`` by a thread block: twin of `kernels.triangular`.

``forward_rows`` works on U where it was made, ``forward_vector`` and ``backward_vector`` on U as it is packed.
"""

from ..plumbing.target import LANES, cuda, device, group_total
from .pivot_arithmetic import place
from .signed_cholesky import panel_rows, row_start


@device
def _leads(pivots, at, k):
    """Whether pivot k, one of a 2x2 block, is the first of its block."""
    before = 0
    while k - before > 0 and pivots[at + k - before - 1] < 0:
        before += 1
    return before % 2 == 0


@device
def scale_rows(team, m, n, pivots, pivots_at, scales, scales_at, K, K_at):
    """K (m x n) <- G^{-1} K, D being G diag(sigma) G^T. No barrier at the end."""
    for k in range(team.group, m, team.groups):
        here, scale = K_at + k * n, scales_at + 2 * k
        if pivots[pivots_at + k] >= 0:
            for j in range(team.lane, n, LANES):
                K[here + j] *= scales[scale]
        elif _leads(pivots, pivots_at, k):
            for j in range(team.lane, n, LANES):
                x, y = K[here + j], K[here + n + j]
                K[here + j] = scales[scale] * x + scales[scale + 1] * y
                K[here + n + j] = scales[scale + 3] * x + scales[scale + 2] * y


@device
def forward_rows(team, m, n, U, at, pivots, pivots_at, scales, scales_at, K, K_at):
    """K (m x n) <- F^{-1} K in place, its rows in the order of elimination: the interchanges have been made in K."""
    for k in range(m - 1):
        for i in range(k + 1 + team.group, m, team.groups):
            u = U[at + k * m + i]
            for j in range(team.lane, n, LANES):
                K[K_at + i * n + j] -= u * K[K_at + k * n + j]
        cuda.syncthreads()
    scale_rows(team, m, n, pivots, pivots_at, scales, scales_at, K, K_at)
    cuda.syncthreads()


@device
def forward_vector(team, m, L, L_at, pivots, pivots_at, scales, scales_at, y, y_at, work, work_at):
    """y <- F^{-1} y in place, entries with sigma = +1 first. work : m numbers of scratch."""
    for k in range(team.rank, m, team.size):
        work[work_at + k] = y[y_at + place(pivots[pivots_at + k])]
    cuda.syncthreads()
    rows = panel_rows(m)
    for begin in range(0, m, rows):
        stop = min(begin + rows, m)
        first = L_at + row_start(m, begin)
        # The panel's own rows, then what is below it by all of them at a time.
        for k in range(begin, stop - 1):
            known = work[work_at + k]
            for i in range(k + 1 + team.rank, stop, team.size):
                work[work_at + i] -= L[first + (k - begin) * (m - begin) + i] * known
            cuda.syncthreads()
        for i in range(stop + team.rank, m, team.size):
            value = work[work_at + i]
            for k in range(begin, stop):
                value -= L[first + (k - begin) * (m - begin) + i] * work[work_at + k]
            work[work_at + i] = value
        if stop < m:
            cuda.syncthreads()
    for k in range(team.rank, m, team.size):
        here, scale, to = work_at + k, scales_at + 2 * k, y_at + pivots[pivots_at + m + k]
        if pivots[pivots_at + k] >= 0:
            y[to] = scales[scale] * work[here]
        else:
            # The entry off the diagonal belongs to the other pivot of the block.
            other = here + 1 if _leads(pivots, pivots_at, k) else here - 1
            y[to] = scales[scale] * work[here] + scales[scale + 1] * work[other]
    cuda.syncthreads()


@device
def backward_vector(team, m, L, L_at, pivots, pivots_at, scales, scales_at, y, y_at, work, work_at):
    """y <- F^{-T} y in place. work : m numbers of scratch."""
    for k in range(team.rank, m, team.size):
        scale, order = scales_at + 2 * k, pivots_at + m + k
        value = scales[scale] * y[y_at + pivots[order]]
        if pivots[pivots_at + k] < 0:
            step = 1 if _leads(pivots, pivots_at, k) else -1
            value += scales[scale + 2 * step + 1] * y[y_at + pivots[order + step]]
        work[work_at + k] = value
    cuda.syncthreads()
    rows = panel_rows(m)
    for begin in range((m - 1) // rows * rows if m > 0 else 0, -1, -rows):
        stop = min(begin + rows, m)
        first = L_at + row_start(m, begin)
        if stop < m:
            # What is below the panel, a row of it by threads that read side by side; all threads sum.
            for k0 in range(begin, stop, team.groups):
                k, value = k0 + team.group, 0.0
                if k < stop:
                    for i in range(stop + team.lane, m, LANES):
                        value += L[first + (k - begin) * (m - begin) + i] * work[work_at + i]
                value = group_total(team, value)
                if k < stop and team.lane == 0:
                    work[work_at + k] -= value
            cuda.syncthreads()
        for k in range(stop - 1, begin, -1):
            known = work[work_at + k]
            for i in range(begin + team.rank, k, team.size):
                work[work_at + i] -= L[first + (i - begin) * (m - begin) + k] * known
            cuda.syncthreads()
    for k in range(team.rank, m, team.size):
        y[y_at + place(pivots[pivots_at + k])] = work[work_at + k]
    cuda.syncthreads()
