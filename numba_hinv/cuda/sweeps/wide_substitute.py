"""The solve (docs/theory.md, sections 5 and 7), one wide layer by the whole device: `substitute`, formula by formula.

``blockIdx.y`` is the right-hand side. Products run over the device, a block a row or some columns of a matrix; the
triangular solves are a block's work.
"""

from ...kernels.steps.layer_table import BLOCKS
from ..dense.triangular import backward_vector, forward_vector
from ..plumbing.launch import launch, spread
from ..plumbing.target import LANES, cuda, kernel, lane_total, start_grid_team, start_team, total
from ..steps.row_space import mix, place
from .multiply import blocks_tangent
from .substitute import blocks_back


@kernel
def _project(table, l, space, g, gQ):
    """The second half of gQ (k, 2, m) <- (g Q)^T, g being rows of slices of the layers; a block a row of W."""
    team, layer, a, t = start_team(), table[l], cuda.blockIdx.x, cuda.blockIdx.y
    n, n_in, r, w, Q = layer.n_out, layer.n_in, layer.r, layer.parameters, space.Q
    for k in range(r):
        if r < layer.d:
            value = 0.0
            for j in range(team.rank, n_in, team.size):
                value += Q[layer.Q + k * n_in + j] * g[t, w + a * n_in + j]
            value = total(team, value)
            if layer.bias:
                value += Q[layer.Q + r * n_in + k] * g[t, w + n * n_in + a]
        else:
            value = g[t, w + a * n_in + k] if k < n_in else g[t, w + n * n_in + a]
        if team.rank == 0:
            gQ[t, 1, k * n + a] = value


@kernel
def _start_y(table, l, lin, space, state, y):
    """y = g Q + (R S v)^T, from the projection in its second half."""
    team, layer, t, B = start_grid_team(), table[l], cuda.blockIdx.y, lin.output.shape[0]
    n, u, v = layer.n_out, layer.u, state[t, (l + 1) % 2]
    for x in range(team.rank, layer.m, team.size):
        k, a = x // n, x % n
        value = y[t, 1, x]
        for i in range(B):
            value += space.R[layer.R + k * B + i] * lin.S[u + i * n + a] * v[i * n + a]
        y[t, 0, x] = value


@kernel
def _lam_gQ(table, l, lin, gQ, small):
    """small (B x r) <- lam g Q, a block an entry."""
    team, layer, t = start_team(), table[l], cuda.blockIdx.y
    n, r, i, k = layer.n_out, layer.r, cuda.blockIdx.x // layer.r, cuda.blockIdx.x % layer.r
    value = 0.0
    for a in range(team.rank, n, team.size):
        value += lin.lam[layer.u + i * n + a] * gQ[t, 1, k * n + a]
    value = total(team, value)
    if team.rank == 0:
        small[t, i * r + k] = value


@kernel
def _start_v(table, l, params, lin, space, damping, g, state, small):
    """v <- vu W (+ v) - (1/eps) lam (g - g Q Q^T); a block some columns of W, `LANES`."""
    team, layer, t = start_team(), table[l], cuda.blockIdx.y
    n, n_in, r, w, u, Q = layer.n_out, layer.n_in, layer.r, layer.parameters, layer.u, space.Q
    v, v_next = state[t, (l + 1) % 2], state[t, l % 2]
    j = cuda.blockIdx.x * LANES + team.lane
    is_thin = r < layer.d
    for i in range(lin.output.shape[0]):
        value, outside = 0.0, 0.0
        if j < n_in:
            for a in range(team.group, n, team.groups):
                value += lin.S[u + i * n + a] * v[i * n + a] * params[w + a * n_in + j]
                if is_thin:
                    outside += lin.lam[u + i * n + a] * g[t, w + a * n_in + j]
        value = lane_total(team, value)
        if is_thin:
            outside = lane_total(team, outside)
            if j < n_in:
                for k in range(r):
                    outside -= small[t, i * r + k] * Q[layer.Q + k * n_in + j]
            value -= outside / damping[0]
        if j < n_in and team.group == 0:
            v_next[i * n_in + j] = value + v[i * n_in + j] if layer.skip else value


@kernel
def _start_blocks(table, l, lin, g, state, y):
    """y and v of a layer given as blocks."""
    t = cuda.blockIdx.y
    blocks_back(
        start_grid_team(), table[l], lin.output.shape[0], lin, g[t], state[t, (l + 1) % 2], state[t, l % 2], y[t, 0]
    )


@kernel
def _forward_vector(table, l, factors, y, x):
    """y <- F^{-1} y, also to x; a block."""
    team, layer, t = start_team(), table[l], cuda.blockIdx.y
    own, m = y[t, 0], layer.m
    forward_vector(
        team, m, factors.L, layer.L, factors.pivots, layer.pivots, factors.scales, layer.scales, own, 0, y[t, 1], 0
    )
    for k in range(team.rank, m, team.size):
        x[t, layer.parameters + k] = own[k]


@kernel
def _take_Y(table, l, factors, y, state):
    """v <- v - Y^T sigma y; a block some columns of Y, `LANES`."""
    team, layer, t = start_team(), table[l], cuda.blockIdx.y
    N, num_positive, v = layer.N, factors.num_positive[l], state[t, l % 2]
    j, value = cuda.blockIdx.x * LANES + team.lane, 0.0
    if j < N:
        for k in range(team.group, layer.m, team.groups):
            product = y[t, 0, k] * factors.Y[layer.Y + k * N + j]
            value += product if k < num_positive else -product
    value = lane_total(team, value)
    if j < N and team.group == 0:
        v[j] -= value


@kernel
def _start_w(table, l, factors, x, state, y):
    """y <- sigma (y - Y dZ), y being in x; a block a row of Y."""
    team, layer, k, t = start_team(), table[l], cuda.blockIdx.x, cuda.blockIdx.y
    N, dZ, value = layer.N, state[t, l % 2], 0.0
    for j in range(team.rank, N, team.size):
        value += factors.Y[layer.Y + k * N + j] * dZ[j]
    value = x[t, layer.parameters + k] - total(team, value)
    if team.rank == 0:
        y[t, 0, k] = value if k < factors.num_positive[l] else -value


@kernel
def _backward_vector(table, l, factors, y):
    """w <- F^{-T} y; a block."""
    team, layer, t = start_team(), table[l], cuda.blockIdx.y
    backward_vector(
        team, layer.m, factors.L, layer.L, factors.pivots, layer.pivots, factors.scales, layer.scales, y[t, 0], 0,
        y[t, 1], 0,
    )


@kernel
def _next_state(table, l, params, lin, space, y, state):
    """dZ' = S (R^T W1 + dZ W^T) (+ dZ); a block an output."""
    team, layer, a, t = start_team(), table[l], cuda.blockIdx.x, cuda.blockIdx.y
    n, n_in, w, B = layer.n_out, layer.n_in, layer.parameters, lin.output.shape[0]
    dZ, dZ_next = state[t, l % 2], state[t, (l + 1) % 2]
    for i in range(B):
        value = 0.0
        if layer.N > 0:
            for j in range(team.rank, n_in, team.size):
                value += dZ[i * n_in + j] * params[w + a * n_in + j]
        value = total(team, value)
        if team.rank == 0:
            for k in range(layer.r):
                value += space.R[layer.R + k * B + i] * y[t, 0, k * n + a]
            value *= lin.S[layer.u + i * n + a]
            if layer.skip and layer.N > 0:
                value += dZ[i * n + a]
            dZ_next[i * n + a] = value


@kernel
def _write_h(table, l, lin, g, x, state):
    """x <- h = g - [lam^T dZ, 0]"""
    team, layer, t, B = start_grid_team(), table[l], cuda.blockIdx.y, lin.output.shape[0]
    n, n_in, w, u, dZ = layer.n_out, layer.n_in, layer.parameters, layer.u, state[t, l % 2]
    for a in range(team.group, n, team.groups):
        for j in range(team.lane, layer.d, LANES):
            at = w + (a * n_in + j if j < n_in else n * n_in + a)
            value = g[t, at]
            if j < n_in and layer.N > 0:
                for i in range(B):
                    value -= lin.lam[u + i * n + a] * dZ[i * n_in + j]
            x[t, at] = value


@kernel
def _mix(table, l, damping, y):
    t = cuda.blockIdx.y
    mix(start_grid_team(), table[l], damping[0], y[t, 0], 0, y[t, 1], 0)


@kernel
def _place(table, l, space, damping, y, x):
    layer, t = table[l], cuda.blockIdx.y
    place(start_grid_team(), layer, space, damping[0], y[t, 0], 0, x[t], layer.parameters, y[t, 1], 0)


@kernel
def _place_blocks(table, l, y, x):
    """x <- w of a layer given as blocks."""
    team, layer, t = start_grid_team(), table[l], cuda.blockIdx.y
    for k in range(team.rank, layer.m, team.size):
        x[t, layer.parameters + k] = y[t, 0, k]


@kernel
def _next_blocks(table, l, lin, x, state):
    """dZ' = Dx w + Dz dZ of a layer given as blocks."""
    t = cuda.blockIdx.y
    blocks_tangent(
        start_grid_team(), table[l], lin.output.shape[0], lin, x[t], state[t, l % 2], 0, state[t, (l + 1) % 2], 0
    )


def _sizes(layer, b):
    """n_in, n_out, r, m, N and p of a layer, and the number of right-hand sides."""
    return *(int(layer[name]) for name in ("n_in", "n_out", "r", "m", "N", "p")), b.shape[0]


def substitute_back(stream, table, records, l, params, lin, space, factors, damping, b, x, work):
    """`substitute.substitute_back` of layer l; ``table`` is on the host, ``records`` the same on the device."""
    layer, B = table[l], lin.output.shape[0]
    n_in, n, r, m, N, p, k = _sizes(layer, b)
    columns = -(-n_in // LANES), k
    if layer["kind"] == BLOCKS:
        launch(_start_blocks, (spread(max(p, N)), k), stream, records, l, lin, b, work.state, work.y)
    else:
        launch(_project, (n, k), stream, records, l, space, b, work.y)
        launch(_start_y, (spread(m), k), stream, records, l, lin, space, work.state, work.y)
        if N > 0:
            if r < layer["d"]:
                launch(_lam_gQ, (B * r, k), stream, records, l, lin, work.y, work.small)
            launch(
                _start_v, columns, stream, records, l, params, lin, space, damping, b, work.state, work.small
            )
    launch(_forward_vector, (1, k), stream, records, l, factors, work.y, x)
    if N > 0:
        launch(_take_Y, (-(-N // LANES), k), stream, records, l, factors, work.y, work.state)


def substitute_forth(stream, table, records, l, params, lin, space, factors, damping, b, x, work):
    """`substitute.substitute_forth` of layer l, likewise."""
    layer, B = table[l], lin.output.shape[0]
    n_in, n, r, m, N, p, k = _sizes(layer, b)
    launch(_start_w, (m, k), stream, records, l, factors, x, work.state, work.y)
    launch(_backward_vector, (1, k), stream, records, l, factors, work.y)
    if layer["kind"] == BLOCKS:
        launch(_place_blocks, (spread(m), k), stream, records, l, work.y, x)
        launch(_next_blocks, (spread(B * n), k), stream, records, l, lin, x, work.state)
        return
    launch(_next_state, (n, k), stream, records, l, params, lin, space, work.y, work.state)
    if r < layer["d"]:
        launch(_write_h, (spread(p), k), stream, records, l, lin, b, x, work.state)
        launch(_project, (n, k), stream, records, l, space, x, work.y)
        launch(_mix, (spread(m), k), stream, records, l, damping, work.y)
    launch(_place, (spread(p), k), stream, records, l, space, damping, work.y, x)
