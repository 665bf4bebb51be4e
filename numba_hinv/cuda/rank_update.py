"""Symmetric update of rank m by a thread block: twin of `kernels.rank_update`."""

from .target import LANES, cuda, device


@device
def signed_rank_update(team, m, n, Y, at, signs, signs_at, num_positive, P, P_at):
    """P (n x n) <- P - Y^T diag(sigma) Y, from the upper triangle of P; both triangles are written.

    sigma of row k of Y is -1 where ``signs[k]``, the place of the pivot once the positive ones come first, is at least
    num_positive.
    """
    for i in range(team.group, n, team.groups):
        for j in range(i + team.lane, n, LANES):
            value = P[P_at + i * n + j]
            for k in range(m):
                product = Y[at + k * n + i] * Y[at + k * n + j]
                value -= product if signs[signs_at + k] < num_positive else -product
            P[P_at + i * n + j] = value
            P[P_at + j * n + i] = value
    cuda.syncthreads()
