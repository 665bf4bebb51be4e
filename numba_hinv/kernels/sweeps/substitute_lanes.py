"""The solve of `substitute` for runs of narrow layers, with right-hand sides side by side: the same formulas, in which
every product is one for all of them.

States, and what is solved for, are (entries, lanes) blocks here; right-hand sides come from rows and go there.
"""

from numba import njit

from ..dense.lanes import scale_entries, to_lanes, to_rows
from ..dense.microkernel import pointer, shift
from ..dense.product import gemm_nn, gemm_tn
from ..dense.signed_cholesky import pack_size
from ..dense.triangular import backward_rows, forward_rows
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import matrix, move, vector
from ..steps.lanes import add_block, negate_behind, state_to_lanes, state_to_rows
from ..steps.layer_table import BLOCKS


@inner
def add_units(n, fan_in, r, scale, Q, g, beta, out, lanes):
    """out (r x n) <- scale Q^T g^T + beta out: Q^T is r x fan_in, g n x fan_in, entries of lanes numbers."""
    for a in range(n):
        at, to = shift(g, a * fan_in * lanes), shift(out, a * lanes)
        gemm_nn(r, lanes, fan_in, scale, Q, fan_in, at, lanes, beta, to, n * lanes)


@njit(inline="always")
def _dense_back(layer, params, lin, row_space, damping, g, v, v_next, vu, y, small, lanes):
    """y = g Q + (R vu)^T and v_next = vu W (+ v) - (1/eps) lam (g - g Q Q^T), vu = S v."""
    B = lin.output.shape[0]
    n, n_in, r = layer.n_out, layer.n_in, layer.r
    one, zero = lin.S.dtype.type(1), lin.S.dtype.type(0)
    Q, R = pointer(row_space.Q, layer.Q), pointer(row_space.R, layer.R)
    scale_entries(B * n, lanes, pointer(lin.S, layer.u), v, vu)
    if layer.N > 0:
        W = pointer(params, layer.weights)
        for i in range(B):
            at, to = shift(vu, i * n * lanes), shift(v_next, i * n_in * lanes)
            gemm_tn(n_in, lanes, n, one, W, n_in, at, lanes, zero, to, lanes)
        if layer.skip:
            add_block(B * n * lanes, v, v_next)
    if r == 0:
        return
    if r == layer.d:
        for a in range(n):
            for j in range(n_in):
                move(lanes, shift(g, (a * n_in + j) * lanes), shift(y, (j * n + a) * lanes))
        if layer.bias:
            move(n * lanes, shift(g, n * n_in * lanes), shift(y, n_in * n * lanes))
    else:
        add_units(n, n_in, r, one, Q, g, zero, y, lanes)
        if layer.bias:
            gemm_nn(
                r, n * lanes, 1, one, shift(Q, r * n_in), 1, shift(g, n * n_in * lanes), n * lanes, one, y, n * lanes
            )
        if layer.N > 0:
            scale, lam, wide = lin.S.dtype.type(1.0 / damping), pointer(lin.lam, layer.u), n_in * lanes
            gemm_nn(B, wide, n, -scale, lam, n, g, wide, one, v_next, wide)
            for j in range(r):
                at = shift(y, j * n * lanes)
                gemm_nn(B, lanes, n, scale, lam, n, at, lanes, zero, shift(small, j * lanes), r * lanes)
            for i in range(B):
                at, to = shift(small, i * r * lanes), shift(v_next, i * wide)
                gemm_tn(n_in, lanes, r, one, Q, n_in, at, lanes, one, to, lanes)
    gemm_nn(r, n * lanes, B, one, R, B, vu, n * lanes, one, y, n * lanes)


@njit(inline="always")
def _blocks_back(layer, lin, v, v_next, y, lanes):
    """y <- y + Dx^T v and v_next = Dz^T v."""
    B = lin.output.shape[0]
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    one, zero = lin.S.dtype.type(1), lin.S.dtype.type(0)
    gemm_tn(p, lanes, B * n, one, pointer(lin.Dx, layer.Dx), p, v, lanes, one, y, lanes)
    for i in range(B if layer.N > 0 else 0):
        Dz = pointer(lin.Dz, layer.Dz + i * n * n_in)
        at, to = shift(v, i * n * lanes), shift(v_next, i * n_in * lanes)
        gemm_tn(n_in, lanes, n, one, Dz, n_in, at, lanes, zero, to, lanes)


@kernel
def back_in_lanes(table, start, stop, params, lin, row_space, factors, damping, b, x, work, lanes):
    """`substitute_back` for layers that are all taken in lanes; the state is in rows before and after."""
    k, P = b.shape
    B, size = lin.output.shape[0], work.lanes.shape[1]
    g, small = pointer(work.lanes, 0), pointer(work.lanes, size)
    vu = pointer(work.u, 0)
    v = pointer(work.state, work.state.shape[1] * (stop % 2))
    state_to_lanes(k, B * table[stop - 1].n_out, v, lanes, g)
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        m, N = layer.m, layer.N
        v = pointer(work.state, work.state.shape[1] * ((l + 1) % 2))
        v_next = pointer(work.state, work.state.shape[1] * (l % 2))
        to_lanes(k, layer.p, pointer(b, layer.parameters), P, g, lanes)
        if layer.kind == BLOCKS:
            y = matrix(work.lanes, 0, m, lanes)
            _blocks_back(layer, lin, v, v_next, pointer(y, 0), lanes)
        else:
            y = matrix(work.y, 0, m, lanes)
            eps = damping + layer.ridge
            _dense_back(layer, params, lin, row_space, eps, g, v, v_next, vu, pointer(y, 0), small, lanes)
        L = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        forward_rows(L, pivots, scales, y, matrix(work.y, work.y.shape[1], m, lanes))
        to_rows(k, m, pointer(y, 0), lanes, pointer(x, layer.parameters), P)
        if N > 0:
            negate_behind(factors.num_positive[l], m, pointer(y, 0), lanes)
            Y, minus, one = pointer(factors.Y, layer.Y), b.dtype.type(-1), b.dtype.type(1)
            gemm_tn(N, lanes, m, minus, Y, N, pointer(y, 0), lanes, one, v_next, lanes)
    if table[start].N > 0:
        v = pointer(work.state, work.state.shape[1] * (start % 2))
        state_to_rows(k, table[start].N, v, lanes, g)


@njit(inline="always")
def _expand(layer, lin, row_space, damping, W1, dZ, h, hQ, lanes):
    """h <- W1 Q^T + (h - h Q Q^T) / eps, from which lam^T dZ is taken first; Q is not the identity."""
    B = lin.output.shape[0]
    n, n_in, r = layer.n_out, layer.n_in, layer.r
    one = lin.S.dtype.type(1)
    Q, scale, wide = pointer(row_space.Q, layer.Q), lin.S.dtype.type(1.0 / damping), n_in * lanes
    if layer.N > 0:
        gemm_tn(n, wide, B, -one, pointer(lin.lam, layer.u), n, dZ, wide, one, h, wide)
    move(layer.m * lanes, W1, hQ)
    add_units(n, n_in, r, -scale, Q, h, one, hQ, lanes)
    if layer.bias:
        h_c, q = shift(h, n * wide), pointer(row_space.Q, layer.Q + r * n_in)
        gemm_nn(r, n * lanes, 1, -scale, q, 1, h_c, n * lanes, one, hQ, n * lanes)
        gemm_tn(1, n * lanes, r, one, q, 1, hQ, n * lanes, scale, h_c, n * lanes)
    for a in range(n):
        gemm_tn(
            n_in, lanes, r, one, Q, n_in, shift(hQ, a * lanes), n * lanes, scale, shift(h, a * wide), lanes
        )


@njit(inline="always")
def _dense_step(layer, params, lin, row_space, W1, dZ, dZ_next, lanes):
    """dZ' = S dU (+ dZ), dU = Zt dWt^T + dZ W^T."""
    B = lin.output.shape[0]
    n, n_in, r = layer.n_out, layer.n_in, layer.r
    one, zero = lin.S.dtype.type(1), lin.S.dtype.type(0)
    gemm_tn(B, n * lanes, r, one, pointer(row_space.R, layer.R), B, W1, n * lanes, zero, dZ_next, n * lanes)
    for i in range(B if layer.N > 0 else 0):
        at, to = shift(dZ, i * n_in * lanes), shift(dZ_next, i * n * lanes)
        gemm_nn(n, lanes, n_in, one, pointer(params, layer.weights), n_in, at, lanes, one, to, lanes)
    scale_entries(B * n, lanes, pointer(lin.S, layer.u), dZ_next, dZ_next)
    if layer.skip and layer.N > 0:
        add_block(B * n * lanes, dZ, dZ_next)


@inner
def blocks_tangent_in_lanes(layer, lin, dx, dZ, dZ_next, lanes):
    """dZ' = Dx dx + Dz dZ."""
    B = lin.output.shape[0]
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    one, zero = lin.S.dtype.type(1), lin.S.dtype.type(0)
    gemm_nn(B * n, lanes, p, one, pointer(lin.Dx, layer.Dx), p, dx, lanes, zero, dZ_next, lanes)
    for i in range(B if layer.N > 0 else 0):
        Dz = pointer(lin.Dz, layer.Dz + i * n * n_in)
        at, to = shift(dZ, i * n_in * lanes), shift(dZ_next, i * n * lanes)
        gemm_nn(n, lanes, n_in, one, Dz, n_in, at, lanes, one, to, lanes)


@kernel
def forth_in_lanes(table, start, stop, params, lin, row_space, factors, damping, b, x, work, lanes):
    """`substitute_forth` for layers that are all taken in lanes; the state is in rows before and after."""
    k, P = b.shape
    B, size = lin.output.shape[0], work.lanes.shape[1]
    w, h = pointer(work.lanes, 0), pointer(work.lanes, size)
    if table[start].N > 0:
        dZ = pointer(work.state, work.state.shape[1] * (start % 2))
        state_to_lanes(k, table[start].N, dZ, lanes, w)
    for l in range(start, stop):
        layer = table[l]
        m, N = layer.m, layer.N
        dZ = pointer(work.state, work.state.shape[1] * (l % 2))
        dZ_next = pointer(work.state, work.state.shape[1] * ((l + 1) % 2))
        at = pointer(x, layer.parameters)
        to_lanes(k, m, at, P, w, lanes)
        if N > 0:
            one = b.dtype.type(1)
            gemm_nn(m, lanes, N, -one, pointer(factors.Y, layer.Y), N, dZ, lanes, one, w, lanes)
        negate_behind(factors.num_positive[l], m, w, lanes)
        L = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        hQ = matrix(work.y, 0, m, lanes)
        backward_rows(L, pivots, scales, matrix(work.lanes, 0, m, lanes), hQ)
        if layer.kind == BLOCKS:
            to_rows(k, m, w, lanes, at, P)
            blocks_tangent_in_lanes(layer, lin, w, dZ, dZ_next, lanes)
            continue
        if layer.p > 0:
            n, n_in = layer.n_out, layer.n_in
            if layer.r == layer.d:
                for a in range(n):
                    for j in range(n_in):
                        move(lanes, shift(w, (j * n + a) * lanes), shift(h, (a * n_in + j) * lanes))
                if layer.bias:
                    move(n * lanes, shift(w, n_in * n * lanes), shift(h, n * n_in * lanes))
            else:
                to_lanes(k, layer.p, pointer(b, layer.parameters), P, h, lanes)
                _expand(layer, lin, row_space, damping + layer.ridge, w, dZ, h, pointer(hQ, 0), lanes)
            to_rows(k, layer.p, h, lanes, at, P)
        _dense_step(layer, params, lin, row_space, w, dZ, dZ_next, lanes)
    state = pointer(work.state, work.state.shape[1] * (stop % 2))
    state_to_rows(k, B * table[stop - 1].n_out, state, lanes, w)
