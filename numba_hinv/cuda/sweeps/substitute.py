"""The solve (docs/theory.md, sections 5 and 7), a thread block a right-hand side and segment: twin of
`kernels.substitute`.

A segment that ends in a seam has multipliers mu of its states there (docs/theory.md, section 10). On the way back it
leaves, for the seams' own system, what comes out of its first layer, and -K_mu^T M^-1 r for mu; on the way forth it
reads the states that it starts with, and mu.
"""

from typing import NamedTuple

import numpy as np

from ...kernels.steps.layer_table import BLOCKS
from ..dense.triangular import backward_vector, forward_vector
from ..plumbing.target import LANES, cuda, device, kernel, start_team
from ..steps.row_space import expand, project
from .multiply import blocks_tangent


class Workspace(NamedTuple):
    """Scratch of the two sweeps, a row a right-hand side and segment: those of one right-hand side follow one another.

    Layer l reads its state in row (l + 1) % 2 or l % 2.
    """

    state: np.ndarray  # (k, 2, B width): v or dZ of two neighbouring layers
    u: np.ndarray  # (k, B width): vu
    y: np.ndarray  # (k, 2, m)
    small: np.ndarray  # (k, B r)


@device
def _dense_back(team, layer, B, params, lin, space, damping, g, v, v_next, y, gQ, vu, small):
    """y = g Q + (R vu)^T and v_next = vu W (+ v) - (1/eps) lam (g - g Q Q^T), vu = S v.

    No barrier at the end: `forward_vector` begins with what the last one here has made visible.
    """
    n, n_in, r, w, u, lam = layer.n_out, layer.n_in, layer.r, layer.parameters, layer.u, lin.lam
    zero = damping - damping
    for x in range(team.rank, B * n, team.size):
        vu[x] = lin.S[u + x] * v[x]
    project(team, layer, space, g, w, gQ, 0)
    cuda.syncthreads()
    is_thin = layer.N > 0 and r < layer.d
    for k in range(team.group, r, team.groups):
        for a in range(team.lane, n, LANES):
            value = gQ[k * n + a]
            for i in range(B):
                value += space.R[layer.R + k * B + i] * vu[i * n + a]
            y[k * n + a] = value
    if is_thin:
        # lam g Q
        for i in range(team.group, B, team.groups):
            for k in range(team.lane, r, LANES):
                value = zero
                for a in range(n):
                    value += lam[u + i * n + a] * gQ[k * n + a]
                small[i * r + k] = value
    cuda.syncthreads()
    if layer.N > 0:
        for i in range(team.group, B, team.groups):
            for j in range(team.lane, n_in, LANES):
                value = v[i * n_in + j] if layer.skip else zero
                for a in range(n):
                    value += vu[i * n + a] * params[w + a * n_in + j]
                if is_thin:
                    outside = zero
                    for a in range(n):
                        outside += lam[u + i * n + a] * g[w + a * n_in + j]
                    for k in range(r):
                        outside -= small[i * r + k] * space.Q[layer.Q + k * n_in + j]
                    value -= outside / damping
                v_next[i * n_in + j] = value


@device
def blocks_back(team, layer, B, lin, g, v, v_next, y):
    """y = g + Dx^T v and v_next = Dz^T v."""
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    for row in range(team.rank, p, team.size):
        value = g[layer.parameters + row]
        for x in range(B * n):
            value += lin.Dx[layer.Dx + x * p + row] * v[x]
        y[row] = value
    for row in range(team.rank, layer.N, team.size):
        i, j = row // n_in, row % n_in
        value = v.dtype.type(0)
        for x in range(n):
            value += lin.Dz[layer.Dz + (i * n + x) * n_in + j] * v[i * n + x]
        v_next[row] = value
    cuda.syncthreads()


@kernel
def substitute_back(table, segments, params, lin, space, factors, Y_mu, damping, b, x, seams, work):
    """Layers of run ``blockIdx.y``, last ones first: y of each layer into its slice of row ``blockIdx.x`` of x.

    v starts at 0. seams : (k, size), the right-hand sides of the seams' system.
    """
    team = start_team()
    t, row = cuda.blockIdx.x, cuda.blockIdx.x * cuda.gridDim.y + cuda.blockIdx.y
    segment = segments[cuda.blockIdx.y]
    start, stop, c, mu = segment.start, segment.stop, segment.c, segment.after
    g, to, state, y, scratch = b[t], x[t], work.state[row], work.y[row, 0], work.y[row, 1]
    B = lin.output.shape[0]
    if stop == segment.end:
        for j in range(team.rank, state.shape[1], team.size):
            state[stop % 2, j] = 0.0
        for j in range(team.rank, c, team.size):
            seams[t, mu + j] = 0.0
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        m, N, w = layer.m, layer.N, layer.parameters
        v, v_next = state[(l + 1) % 2], state[l % 2]
        # Between two dense layers every thread reads of v what it wrote itself, until the next barrier.
        if layer.kind == BLOCKS:
            cuda.syncthreads()
            blocks_back(team, layer, B, lin, g, v, v_next, y)
        else:
            _dense_back(
                team, layer, B, params, lin, space, damping[0], g, v, v_next, y, scratch, work.u[row], work.small[row]
            )
        forward_vector(
            team, m, factors.L, layer.L, factors.pivots, layer.pivots, factors.scales, layer.scales, y, 0, scratch, 0
        )
        for k in range(team.rank, m, team.size):
            to[w + k] = y[k]
        num_positive, at = factors.num_positive[l], segment.Y + layer.scales // 2 * c
        for j in range(team.rank, N, team.size):
            value = v_next[j]
            for k in range(m):
                product = y[k] * factors.Y[layer.Y + k * N + j]
                value -= product if k < num_positive else -product
            v_next[j] = value
        for j in range(team.rank, c, team.size):
            value = seams[t, mu + j]
            for k in range(m):
                product = y[k] * Y_mu[at + k * c + j]
                value -= product if k < num_positive else -product
            seams[t, mu + j] = value
    if start == segment.first and segment.before >= 0:
        for j in range(team.rank, table[start].N, team.size):
            seams[t, segment.before + j] = state[start % 2, j]


@device
def _dense_forth(team, layer, B, params, lin, space, damping, g, x, W1, dZ, dZ_next, hQ):
    """x = W1 Q^T + (h - h Q Q^T) / eps, h = g - [lam^T dZ, 0], and dZ' as in the tangent pass."""
    n, n_in, r, w, u, lam = layer.n_out, layer.n_in, layer.r, layer.parameters, layer.u, lin.lam
    for i in range(team.group, B, team.groups):
        for a in range(team.lane, n, LANES):
            # dU = Zt dWt^T + dZ W^T, and Zt dWt^T = R^T W1: W2 is orthogonal to Zt.
            value = damping - damping
            for k in range(r):
                value += space.R[layer.R + k * B + i] * W1[k * n + a]
            if layer.N > 0:
                for j in range(n_in):
                    value += dZ[i * n_in + j] * params[w + a * n_in + j]
            value *= lin.S[u + i * n + a]
            if layer.skip and layer.N > 0:
                value += dZ[i * n + a]
            dZ_next[i * n + a] = value
    if r < layer.d:
        for a in range(team.group, n, team.groups):
            for j in range(team.lane, layer.d, LANES):
                at = w + (a * n_in + j if j < n_in else n * n_in + a)
                value = g[at]
                if j < n_in and layer.N > 0:
                    for i in range(B):
                        value -= lam[u + i * n + a] * dZ[i * n_in + j]
                x[at] = value
    cuda.syncthreads()
    expand(team, layer, space, damping, W1, 0, x, w, hQ, 0)


@kernel
def substitute_forth(table, segments, params, lin, space, factors, Y_mu, damping, b, x, seams, work):
    """Layers of run ``blockIdx.y``: turns y in the slices of row ``blockIdx.x`` of x into the solution.

    dZ starts at 0 or at the seam before. seams : (k, size), the solutions of the seams' system.
    """
    team = start_team()
    t, row = cuda.blockIdx.x, cuda.blockIdx.x * cuda.gridDim.y + cuda.blockIdx.y
    segment = segments[cuda.blockIdx.y]
    start, stop, c, mu = segment.start, segment.stop, segment.c, segment.after
    g, to, state, W1, scratch = b[t], x[t], work.state[row], work.y[row, 0], work.y[row, 1]
    B = lin.output.shape[0]
    if start == segment.first and segment.before >= 0:
        for j in range(team.rank, table[start].N, team.size):
            state[start % 2, j] = seams[t, segment.before + j]
        cuda.syncthreads()
    for l in range(start, stop):
        layer = table[l]
        m, N, w = layer.m, layer.N, layer.parameters
        dZ, dZ_next = state[l % 2], state[(l + 1) % 2]
        num_positive, at = factors.num_positive[l], segment.Y + layer.scales // 2 * c
        for k in range(team.rank, m, team.size):
            value = to[w + k]
            for j in range(N):
                value -= factors.Y[layer.Y + k * N + j] * dZ[j]
            for j in range(c):
                value -= Y_mu[at + k * c + j] * seams[t, mu + j]
            W1[k] = value if k < num_positive else -value
        cuda.syncthreads()
        backward_vector(
            team, m, factors.L, layer.L, factors.pivots, layer.pivots, factors.scales, layer.scales, W1, 0, scratch, 0
        )
        if layer.kind == BLOCKS:
            for k in range(team.rank, m, team.size):
                to[w + k] = W1[k]
            cuda.syncthreads()
            blocks_tangent(team, layer, B, lin, to, dZ, 0, dZ_next, 0)
            cuda.syncthreads()
        else:
            _dense_forth(team, layer, B, params, lin, space, damping[0], g, to, W1, dZ, dZ_next, scratch)
