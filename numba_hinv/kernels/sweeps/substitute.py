"""The solve (docs/theory.md, sections 5 and 7): the sweep back over the layers and the sweep forth, for k right-hand
sides.

Right-hand sides are rows: b and x are (k, P). Per layer, with g the layer's slice of b as a matrix:

    back   y = F^-1 (g Q + (R vu)^T),  vu = S v;   v <- vu W (+ v) - Y^T sigma y - (1/eps) lam (g - g Q Q^T)
    forth  W1 = F^-T sigma (y - Y dZ);  x = W1 Q^T + (h - h Q Q^T) / eps,  h = g - [lam^T dZ, 0];  dZ as in the tangent

and for a layer given as blocks  y = F^-1 (g + Dx^T v);  v <- Dz^T v - Y^T sigma y;  x = F^-T sigma (y - Y dZ).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from ..dense.lanes import lanes_of, num_lanes
from ..dense.microkernel import pointer
from ..dense.product import gemm_nn, gemm_tn, multiply, multiply_nt, multiply_tn
from ..dense.signed_cholesky import pack_size
from ..dense.triangular import backward_vectors, forward_vectors
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import add, copy, fill, matrix, reshape, rows, units_at_once, vector
from ..steps.convolution import convolution_back, convolution_expand_all, convolution_step
from ..steps.lanes import run_after, run_before, scratch_size
from ..steps.layer_table import BLOCKS, CONVOLUTION
from ..steps.local import pull_kept
from ..steps.row_space import expand, expand_units, project, project_units
from .multiply import blocks_tangent
from .substitute_lanes import back_in_lanes, forth_in_lanes


class Workspace(NamedTuple):
    """Scratch of the two sweeps for k right-hand sides. Layer l reads its state in row (l + 1) % 2 or l % 2.

    Where layers are taken in lanes, k is the number of lanes here.
    """

    state: np.ndarray  # (2, k B width): v or dZ of two neighbouring layers
    u: np.ndarray  # k B width: vu
    y: np.ndarray  # (2, k m)
    small: np.ndarray  # max(B, n_out) x r of one right-hand side
    patches: np.ndarray  # of one sample
    lanes: np.ndarray  # (2, numbers): blocks of a layer in lanes


def workspace(sizes, num_vectors, num_samples, dtype):
    """An uninitialised `Workspace`."""
    lanes = scratch_size(sizes, num_vectors, num_samples, dtype)
    num_vectors = num_lanes(num_vectors, np.dtype(dtype))
    return Workspace(
        np.empty((2, num_vectors * num_samples * sizes.width), dtype),
        np.empty(num_vectors * num_samples * sizes.width, dtype),
        np.empty((2, num_vectors * sizes.m), dtype),
        np.empty(max(num_samples, sizes.width) * sizes.r, dtype),
        np.empty(sizes.patches, dtype),
        np.empty((2, lanes), dtype),
    )


@inner
def apply_signs(num_positive, y):
    """sigma y for each row y."""
    for t in range(y.shape[0]):
        for j in range(num_positive, y.shape[1]):
            y[t, j] = -y[t, j]


@njit(inline="always")
def _dense_states(layer, params, lin, v, v_next, vu):
    """vu = S v and, where anything comes in, v_next = vu W (+ v)."""
    B = lin.output.shape[0]
    n, n_in = layer.n_out, layer.n_in
    S = matrix(lin.S, layer.u, B, n)
    for t in range(v.shape[0] // B):
        for i in range(B):
            for a in range(n):
                vu[t * B + i, a] = S[i, a] * v[t * B + i, a]
    if layer.N > 0:
        multiply(1.0, vu, matrix(params, layer.weights, n, n_in), 0.0, v_next)
        if layer.skip:
            add(v.size, v, 0, v_next, 0)


@njit(inline="always")
def _dense_back(layer, params, lin, row_space, damping, b, v, v_next, y, gQ, work):
    """y = g Q + (R vu)^T and v_next = vu W (+ v) - (1/eps) lam (g - g Q Q^T), vu = S v."""
    k, P = b.shape
    B = lin.output.shape[0]
    n, n_in, r, m = layer.n_out, layer.n_in, layer.r, layer.m
    lam = matrix(lin.lam, layer.u, B, n)
    Q = matrix(row_space.Q, layer.Q, r if r < layer.d else 0, n_in)
    R = matrix(row_space.R, layer.R, r, B)
    vu = matrix(work.u, 0, k * B, n)
    one, scale = b.dtype.type(1), b.dtype.type(1.0 / damping if r < layer.d else 0.0)
    _dense_states(layer, params, lin, v, v_next, vu)
    for t in range(k):
        at, gQ_t = t * P + layer.parameters, matrix(gQ, t * m, r, n)
        if r == layer.d:
            project(layer, row_space, b, at, gQ_t)
        else:
            v_t = rows(v_next, t * B, B if layer.N > 0 else 0)
            taken = units_at_once(n, n_in, B)
            for first in range(0, n, taken):
                count = min(taken, n - first)
                project_units(layer, row_space, b, at, first, count, gQ_t)
                gemm_nn(
                    v_t.shape[0], n_in, count, -scale, pointer(lam, first), n, pointer(b, at + first * n_in), n_in, one,
                    pointer(v_t, 0), n_in,
                )
            if layer.N > 0:
                lam_gQ = matrix(work.small, 0, B, r)
                multiply_nt(scale, lam, gQ_t, 0.0, lam_gQ)
                multiply(1.0, lam_gQ, Q, 1.0, v_t)
        copy(m, gQ, t * m, y, t * m)
        if r == 0:
            continue
        multiply(1.0, R, rows(vu, t * B, B), 1.0, matrix(y, t * m, r, n))


@njit(inline="always")
def _blocks_back(layer, lin, b, v, v_next, y):
    """y = g + Dx^T v and v_next = Dz^T v."""
    k, P = b.shape
    for t in range(k):
        copy(layer.p, b, t * P + layer.parameters, y, t * layer.p)
    _blocks_adjoint(layer, lin, 1.0, v, v_next, y)


@njit(inline="always")
def _blocks_adjoint(layer, lin, beta, v, v_next, y):
    """y <- Dx^T v + beta y and v_next = Dz^T v."""
    k, B = y.shape[0], lin.output.shape[0]
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    one, zero = y.dtype.type(1), y.dtype.type(0)
    gemm_nn(
        k, p, B * n, one, pointer(v, 0), B * n, pointer(lin.Dx, layer.Dx), p, y.dtype.type(beta), pointer(y, 0), p
    )
    if layer.N > 0:
        if layer.taps > 0:
            fill(k * B * n_in, 0.0, v_next, 0)
        for i in range(B):
            if layer.taps > 0:
                pull_kept(layer, lin, i, k, v, i * n, B * n, v_next, i * n_in, B * n_in)
                continue
            gemm_nn(
                k, n_in, n, one, pointer(v, i * n), B * n, pointer(lin.Dz, layer.Dz + i * n * n_in), n_in,
                zero, pointer(v_next, i * n_in), B * n_in,
            )


@njit(inline="always")
def adjoint(layer, params, lin, row_space, v, v_next, y, u):
    """y (k, m) = Dx^T v, in the order of the pivots, and v_next = J^T v, of k vectors: v is (k B, n_out).

    The adjoint of `step`, for dense layers and blocks. u : scratch of k B n_out numbers.
    """
    if layer.kind == BLOCKS:
        _blocks_adjoint(layer, lin, 0.0, v, v_next, y)
    else:
        B, n, r, m = lin.output.shape[0], layer.n_out, layer.r, layer.m
        vu = matrix(u, 0, v.shape[0], n)
        _dense_states(layer, params, lin, v, v_next, vu)
        for t in range(y.shape[0]):
            multiply(1.0, matrix(row_space.R, layer.R, r, B), rows(vu, t * B, B), 0.0, matrix(y, t * m, r, n))


@kernel
def substitute_back(table, start, stop, params, lin, row_space, factors, damping, b, x, work):
    """Layers stop-1..start: leaves y of each layer in its slice of x. v starts at 0 in the last layer."""
    k, P = b.shape
    B = lin.output.shape[0]
    if stop == table.size:
        fill(work.state.shape[1], 0.0, work.state, work.state.shape[1] * (stop % 2))
    lanes = lanes_of(k, pointer(b, 0))
    l = stop
    while l > start:
        first = run_before(table, start, l, B, k, lanes)
        if first < l:
            back_in_lanes(table, first, l, params, lin, row_space, factors, damping, b, x, work, lanes)
            l = first
            continue
        l -= 1
        layer = table[l]
        m, N = layer.m, layer.N
        v = matrix(work.state, work.state.shape[1] * ((l + 1) % 2), k * B, layer.n_out)
        v_next = matrix(work.state, work.state.shape[1] * (l % 2), k * B, layer.n_in)
        y = matrix(work.y, 0, k, m)
        scratch = matrix(work.y, work.y.shape[1], k, m)
        if layer.kind == BLOCKS:
            _blocks_back(layer, lin, b, v, v_next, y)
        elif layer.kind == CONVOLUTION:
            convolution_back(layer, params, lin, row_space, damping + layer.ridge, b, v, v_next, y, scratch, work)
        else:
            _dense_back(layer, params, lin, row_space, damping + layer.ridge, b, v, v_next, y, scratch, work)
        L = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        forward_vectors(L, pivots, scales, y, scratch)
        for t in range(k):
            copy(m, y, t * m, x, t * P + layer.parameters)
        if N > 0:
            apply_signs(factors.num_positive[l], y)
            multiply(-1.0, y, matrix(factors.Y, layer.Y, m, N), 1.0, reshape(v_next, k, N))


@njit(inline="always")
def _dense_step(layer, params, lin, row_space, W1, dZ, dZ_next):
    B = lin.output.shape[0]
    k, n, n_in, r, m = W1.shape[0], layer.n_out, layer.n_in, layer.r, layer.m
    W = matrix(params, layer.weights, n, n_in)
    S = matrix(lin.S, layer.u, B, n)
    R = matrix(row_space.R, layer.R, r, B)
    # dU = Zt dWt^T + dZ W^T, and Zt dWt^T = R^T W1: W2 is orthogonal to Zt.
    dU = dZ_next
    if r == 0:
        fill(dU.size, 0.0, dU, 0)
    for t in range(k if r > 0 else 0):
        multiply_tn(1.0, R, matrix(W1, t * m, r, n), 0.0, rows(dU, t * B, B))
    if layer.N > 0:
        multiply_nt(1.0, dZ, W, 1.0, dU)
    for t in range(k):
        for i in range(B):
            for a in range(n):
                dZ_next[t * B + i, a] = S[i, a] * dU[t * B + i, a]
    if layer.skip and layer.N > 0:
        add(dZ.size, dZ, 0, dZ_next, 0)


@njit(inline="always")
def step(layer, params, lin, row_space, W1, dZ, dZ_next, patches):
    """dZ' = J dZ + Dx w of k vectors: W1 is (k, m), in the order of the pivots, dZ (k B, n_in) and dZ' (k B, n_out)."""
    if layer.kind == BLOCKS:
        blocks_tangent(layer, lin, W1.shape[0], pointer(W1, 0), layer.m, dZ, dZ_next)
    elif layer.kind == CONVOLUTION:
        convolution_step(layer, params, lin, row_space, W1, dZ, dZ_next, patches)
    else:
        _dense_step(layer, params, lin, row_space, W1, dZ, dZ_next)


@njit(inline="always")
def expand_all(layer, lin, row_space, damping, W1, dZ, b, x, start, stride, hQ, patches):
    """x = W1 Q^T + (h - h Q Q^T) / eps of k vectors, h = g - [lam^T dZ, 0]; slice t, at start + t stride, is g in b.

    b may be x. hQ : scratch of m scalars. g matters only where Q is not the identity. Layers given as blocks have
    x = W1.
    """
    B = lin.output.shape[0]
    k, m = W1.shape
    if layer.kind == BLOCKS:
        for t in range(k):
            copy(m, W1, t * m, x, start + t * stride)
    elif layer.kind == CONVOLUTION:
        if layer.r < layer.d:
            for t in range(k):
                copy(layer.p, b, start + t * stride, x, start + t * stride)
        convolution_expand_all(layer, lin, row_space, damping, W1, dZ, x, start, stride, hQ, patches)
    else:
        n, n_in, r = layer.n_out, layer.n_in, layer.r
        one, hQ_t = x.dtype.type(1), matrix(hQ, 0, r, n)
        for t in range(k):
            at, W1_t = start + t * stride, matrix(W1, t * m, r, n)
            if r == layer.d:
                expand(layer, row_space, damping, W1_t, x, at, hQ_t)
                continue
            if layer.bias:
                copy(n, b, at + n * n_in, x, at + n * n_in)
            taken = units_at_once(n, n_in, B)
            for first in range(0, n, taken):
                count, here = min(taken, n - first), at + first * n_in
                copy(count * n_in, b, here, x, here)
                if layer.N > 0:
                    gemm_tn(
                        count, n_in, B, -one, pointer(lin.lam, layer.u + first), n,
                        pointer(dZ, t * B * n_in), n_in, one, pointer(x, here), n_in,
                    )
                expand_units(layer, row_space, damping, W1_t, x, at, first, count, hQ_t)


@kernel
def substitute_forth(table, start, stop, params, lin, row_space, factors, damping, b, x, work):
    """Layers start..stop-1: turns y in the slices of x into the solution. dZ starts at 0 in the first layer."""
    k, P = b.shape
    B = lin.output.shape[0]
    lanes = lanes_of(k, pointer(b, 0))
    after = start
    while after < stop:
        l = after
        after = run_after(table, l, stop, B, k, lanes)
        if after > l:
            forth_in_lanes(table, l, after, params, lin, row_space, factors, damping, b, x, work, lanes)
            continue
        after = l + 1
        layer = table[l]
        m, N = layer.m, layer.N
        dZ = matrix(work.state, work.state.shape[1] * (l % 2), k * B, layer.n_in)
        dZ_next = matrix(work.state, work.state.shape[1] * ((l + 1) % 2), k * B, layer.n_out)
        W1 = matrix(work.y, 0, k, m)
        for t in range(k):
            copy(m, x, t * P + layer.parameters, W1, t * m)
        if N > 0:
            multiply_nt(-1.0, reshape(dZ, k, N), matrix(factors.Y, layer.Y, m, N), 1.0, W1)
        apply_signs(factors.num_positive[l], W1)
        L = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        backward_vectors(L, pivots, scales, W1, matrix(work.y, work.y.shape[1], k, m))
        hQ = vector(work.y, work.y.shape[1], m)
        eps = damping + layer.ridge
        expand_all(layer, lin, row_space, eps, W1, dZ, b, x, layer.parameters, P, hQ, work.patches)
        step(layer, params, lin, row_space, W1, dZ, dZ_next, work.patches)
