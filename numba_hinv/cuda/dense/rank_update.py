"""Symmetric update of rank m by a thread block, or by the whole device: twin of `kernels.rank_update`."""

import functools

from ..plumbing.target import LANES, cuda, device, kernel, start_grid_team
from .product import TILE_I, TILE_J, tile_product


@device
def signed_rank_update(team, m, n, Y, at, signs, signs_at, num_positive, P, P_at):
    """P (n x n) <- P - Y^T diag(sigma) Y, from the upper triangle of P; both triangles are written.

    sigma of row k of Y is -1 where ``signs[k]``, the place of the pivot once the positive ones come first, is at least
    num_positive. No barrier at the end.
    """
    for i in range(team.group, n, team.groups):
        for j in range(i + team.lane, n, LANES):
            value = P[P_at + i * n + j]
            for k in range(m):
                product = Y[at + k * n + i] * Y[at + k * n + j]
                value -= product if signs[signs_at + k] < num_positive else -product
            P[P_at + i * n + j] = value
            P[P_at + j * n + i] = value


@functools.cache
def rank_update_kernel(dtype):
    """The same of large matrices for a dtype, a block a tile of the upper triangle: `mirror` does the other one."""
    add_tile = tile_product(dtype, True)

    @kernel
    def signed_rank_update(m, n, minus_one, one, Y, at, num_positive, l, P, P_at):
        """sigma is -1 for the rows of Y from ``num_positive[l]`` on."""
        i0, j0 = cuda.blockIdx.y * TILE_I, cuda.blockIdx.x * TILE_J
        if i0 < j0 + TILE_J:
            add_tile(i0, j0, n, n, m, num_positive[l], minus_one, Y, at, n, Y, at, n, one, P, P_at, n)

    return signed_rank_update


@kernel
def mirror(n, P, P_at):
    """The lower triangle of P <- the upper one."""
    team = start_grid_team()
    for i in range(team.group, n, team.groups):
        for j in range(i + 1 + team.lane, n, LANES):
            P[P_at + j * n + i] = P[P_at + i * n + j]
