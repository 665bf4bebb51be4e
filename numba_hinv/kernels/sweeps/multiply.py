"""The Hessian-vector product (docs/theory.md, sections 2 and 7; Pearlmutter): tangents forward, adjoints backward.

Vectors are stored one a row: k of them at once are a (k, P) array, and the k batches of tangents of a layer are a
(k B) x n block.
"""

import numpy as np
from numba import njit

from ..dense.lanes import lanes_of, num_lanes
from ..dense.microkernel import pointer
from ..dense.norm import squared_norm
from ..dense.product import gemm_nn, gemm_nt, gemm_tn, multiply, multiply_nt
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import add, fill, matrix, rows, units_at_once, vector
from ..steps.convolution import convolution_adjoint, convolution_tangent
from ..steps.lanes import run_after, run_before, scratch_size
from ..steps.layer_table import BLOCKS, CONVOLUTION
from ..steps.local import pull_kept, push_kept
from .multiply_lanes import adjoints_in_lanes, tangents_in_lanes


def workspace(sizes, num_vectors, num_samples, dtype):
    """Arrays (dZ, dU, q, scratch) for the two sweeps: tangents of all inputs and, last, of the output; two adjoints.

    A layer's tangents start at its offset in the table times the number of lanes.
    """
    blocks = 3 * scratch_size(sizes, num_vectors, num_samples, dtype)
    num_vectors = num_lanes(num_vectors, np.dtype(dtype))
    return (
        np.empty(num_vectors * (sizes.z + num_samples * sizes.outputs), dtype),
        np.empty(num_vectors * sizes.u, dtype),
        np.empty((2, num_vectors * num_samples * sizes.width), dtype),
        np.empty(max(sizes.patches, blocks), dtype),
    )


@njit(inline="always")
def _dense_tangent(layer, params, lin, V, dZ, dU, dZ_next):
    """dU = dZ W^T + Zt dWt^T and dZ' = S dU (+ dZ); nothing comes into the first layer."""
    k, P = V.shape
    B = lin.output.shape[0]
    n, n_in = layer.n_out, layer.n_in
    W = matrix(params, layer.weights, n, n_in)
    Z = matrix(lin.Z, layer.z, B, n_in)
    S = matrix(lin.S, layer.u, B, n)
    if layer.p == 0:
        # A frozen layer: there is one before it, which moves its input.
        multiply_nt(1.0, dZ, W, 0.0, dU)
    for t in range(k if layer.p > 0 else 0):
        dU_t = rows(dU, t * B, B)
        dW = matrix(V, t * P + layer.parameters, n, n_in)
        if layer.bias:
            dc = vector(V, t * P + layer.parameters + n * n_in, n)
            for i in range(B):
                for a in range(n):
                    dU_t[i, a] = dc[a]
            multiply_nt(1.0, Z, dW, 1.0, dU_t)
        else:
            multiply_nt(1.0, Z, dW, 0.0, dU_t)
    if layer.N > 0 and layer.p > 0:
        multiply_nt(1.0, dZ, W, 1.0, dU)
    for t in range(k):
        for i in range(B):
            for a in range(n):
                dZ_next[t * B + i, a] = S[i, a] * dU[t * B + i, a]
    if layer.skip and layer.N > 0:
        add(dZ.size, dZ, 0, dZ_next, 0)


@inner
def _finish(size, shift, V, b, HV, at, t, squares):
    """HV <- HV + shift V, or b - HV - shift V where b has rows, in ``size`` numbers of row t, from ``at`` on."""
    v, to, factor = vector(V, at, size), vector(HV, at, size), V.dtype.type(shift)
    if b.shape[0]:
        given = vector(b, at, size)
        for i in range(size):
            to[i] = given[i] - to[i] - factor * v[i]
        if squares.shape[0]:
            squares[t, 0] += squared_norm(to)
            squares[t, 1] += squared_norm(v)
    elif factor != 0.0:
        for i in range(size):
            to[i] += factor * v[i]


@inner
def _finish_all(layer, shift, V, b, HV, squares):
    """`_finish` for the layer's slices of all vectors."""
    for t in range(V.shape[0]):
        _finish(layer.p, shift, V, b, HV, t * V.shape[1] + layer.parameters, t, squares)


@njit(inline="always")
def _dense_adjoint(layer, params, lin, V, HV, dZ, dU, q, q_next, shift, b, squares):
    """nu = S q + D dU; (Hv)_l = nu^T Zt + lam^T [dZ, 0]; q <- nu W + lam dW (+ q). nu takes the place of dU."""
    k, P = V.shape
    B = lin.output.shape[0]
    n, n_in = layer.n_out, layer.n_in
    W = matrix(params, layer.weights, n, n_in)
    Z = matrix(lin.Z, layer.z, B, n_in)
    S = matrix(lin.S, layer.u, B, n)
    D = matrix(lin.D, layer.u, B, n)
    lam = matrix(lin.lam, layer.u, B, n)
    nu = dU
    for t in range(k):
        for i in range(B):
            for a in range(n):
                nu[t * B + i, a] = S[i, a] * q[t * B + i, a] + D[i, a] * nu[t * B + i, a]
    if layer.N > 0:
        multiply(1.0, nu, W, 0.0, q_next)
        if layer.skip:
            add(q_next.size, q, 0, q_next, 0)
    one, zero = V.dtype.type(1), V.dtype.type(0)
    taken = units_at_once(n, n_in, B)
    for t in range(k if layer.p > 0 else 0):
        nu_t, at = t * B * n, t * P + layer.parameters
        for first in range(0, n, taken):
            count, here = min(taken, n - first), at + first * n_in
            Hv = pointer(HV, here)
            gemm_tn(count, n_in, B, one, pointer(nu, nu_t + first), n, pointer(Z, 0), n_in, zero, Hv, n_in)
            if layer.N > 0:
                lam_first, N_t = pointer(lam, first), t * B * n_in
                gemm_tn(count, n_in, B, one, lam_first, n, pointer(dZ, N_t), n_in, one, Hv, n_in)
                gemm_nn(B, n_in, count, one, lam_first, n, pointer(V, here), n_in, one, pointer(q_next, N_t), n_in)
            _finish(count * n_in, shift, V, b, HV, here, t, squares)
        if layer.bias:
            Hv_c = vector(HV, at + n * n_in, n)
            fill(n, 0.0, Hv_c, 0)
            for i in range(B):
                for a in range(n):
                    Hv_c[a] += nu[t * B + i, a]
            _finish(n, shift, V, b, HV, at + n * n_in, t, squares)


@inner
def blocks_tangent(layer, lin, k, dx, stride, dZ, dZ_next):
    """dZ' = Dx dx + Dz dZ, for k vectors at once; dx points to the first of k rows, ``stride`` apart."""
    B = lin.output.shape[0]
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    one, zero = dZ.dtype.type(1), dZ.dtype.type(0)
    to = pointer(dZ_next, 0)
    gemm_nt(k, B * n, p, one, dx, stride, pointer(lin.Dx, layer.Dx), p, zero, to, B * n)
    if layer.N > 0:
        for i in range(B):
            if layer.taps > 0:
                push_kept(layer, lin, i, k, dZ, i * n_in, B * n_in, dZ_next, i * n, B * n)
                continue
            gemm_nt(
                k, n, n_in, one, pointer(dZ, i * n_in), B * n_in, pointer(lin.Dz, layer.Dz + i * n * n_in), n_in,
                one, pointer(dZ_next, i * n), B * n,
            )


@njit(inline="always")
def blocks_adjoint(layer, lin, V, HV, dZ, q, q_next):
    """(Hv)_l = Dxx dx + Dzx dZ + Dx^T q; q <- Dzx^T dx + Dzz dZ + Dz^T q."""
    k, P = V.shape
    B = lin.output.shape[0]
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    N = B * n_in
    one, zero = V.dtype.type(1), V.dtype.type(0)
    dx, Hv = pointer(V, layer.parameters), pointer(HV, layer.parameters)
    Dzx = pointer(lin.Dzx, layer.Dzx)
    gemm_nn(k, p, p, one, dx, P, pointer(lin.Dxx, layer.Dxx), p, zero, Hv, P)
    gemm_nn(k, p, B * n, one, pointer(q, 0), B * n, pointer(lin.Dx, layer.Dx), p, one, Hv, P)
    if layer.N > 0:
        gemm_nt(k, p, N, one, pointer(dZ, 0), N, Dzx, N, one, Hv, P)
        gemm_nn(k, N, p, one, dx, P, Dzx, N, zero, pointer(q_next, 0), N)
        for i in range(B):
            if layer.taps > 0:
                for t in range(k):
                    for j in range(n_in):
                        q_next[t * B + i, j] += lin.Dzz[layer.Dzz + i * n_in + j] * dZ[t * B + i, j]
                pull_kept(layer, lin, i, k, q, i * n, B * n, q_next, i * n_in, N)
                continue
            to = pointer(q_next, i * n_in)
            gemm_nn(
                k, n_in, n_in, one, pointer(dZ, i * n_in), N, pointer(lin.Dzz, layer.Dzz + i * n_in * n_in), n_in,
                one, to, N,
            )
            gemm_nn(
                k, n_in, n, one, pointer(q, i * n), B * n, pointer(lin.Dz, layer.Dz + i * n * n_in), n_in, one, to, N
            )


@kernel
def tangents(table, start, stop, params, lin, V, dZ, dU, patches):
    """The sweep forth, over layers start..stop-1: dZ and dU, for k vectors V (k, P)."""
    k, B = V.shape[0], lin.output.shape[0]
    lanes = lanes_of(k, pointer(V, 0))
    after = start
    while after < stop:
        l = after
        after = run_after(table, l, stop, B, k, lanes)
        if after > l:
            tangents_in_lanes(table, l, after, params, lin, V, dZ, dU, patches, lanes)
            continue
        after = l + 1
        layer = table[l]
        dZ_l = matrix(dZ, lanes * layer.z, k * B, layer.n_in)
        dZ_next = matrix(dZ, lanes * (layer.z + B * layer.n_in), k * B, layer.n_out)
        if layer.kind == BLOCKS:
            blocks_tangent(layer, lin, k, pointer(V, layer.parameters), V.shape[1], dZ_l, dZ_next)
        elif layer.kind == CONVOLUTION:
            dU_l = matrix(dU, lanes * layer.u, k * B, layer.n_out)
            convolution_tangent(layer, params, lin, V, dZ_l, dU_l, dZ_next, patches)
        else:
            _dense_tangent(layer, params, lin, V, dZ_l, matrix(dU, lanes * layer.u, k * B, layer.n_out), dZ_next)


@kernel
def adjoints(table, start, stop, params, lin, V, HV, dZ, dU, q, patches, shift, b, squares):
    """The sweep back, over layers stop-1..start: HV (k, P) <- V (H + shift I), H being the Hessian (symmetric).

    b : (k, P), of which that is subtracted: HV is the residual then; (0, P) for the product itself.
    squares : (k, 2), to which the squared norms of the rows of that residual and of V are added; or (0, 2).

    Both sweeps cost about 6 k rows p multiply-adds a structured layer; rows are B or, of a convolution, B positions.
    """
    k, (B, n_L) = V.shape[0], lin.output.shape
    L, lanes = table.size, lanes_of(k, pointer(V, 0))
    if stop == L:
        # q = (loss curvature) dZ_L
        dZ_L = lanes * (table[L - 1].z + B * table[L - 1].n_in)
        for t in range(k):
            for i in range(B):
                at = (t * B + i) * n_L
                curvature = matrix(lin.curvature, i * n_L * n_L, n_L, n_L)
                q_i = matrix(q, q.shape[1] * (L % 2) + at, 1, n_L)
                multiply(1.0, matrix(dZ, dZ_L + at, 1, n_L), curvature, 0.0, q_i)
    l = stop
    while l > start:
        first = run_before(table, start, l, B, k, lanes)
        if first < l:
            adjoints_in_lanes(
                table, first, l, params, lin, V, HV, dZ, dU, q, patches, shift, b, squares, lanes
            )
            l = first
            continue
        l -= 1
        layer = table[l]
        dZ_l = matrix(dZ, lanes * layer.z, k * B, layer.n_in)
        q_l = matrix(q, q.shape[1] * ((l + 1) % 2), k * B, layer.n_out)
        q_next = matrix(q, q.shape[1] * (l % 2), k * B, layer.n_in)
        if layer.kind == BLOCKS:
            blocks_adjoint(layer, lin, V, HV, dZ_l, q_l, q_next)
            _finish_all(layer, shift, V, b, HV, squares)
        elif layer.kind == CONVOLUTION:
            nu = matrix(dU, lanes * layer.u, k * B, layer.n_out)
            convolution_adjoint(layer, params, lin, V, HV, dZ_l, nu, q_l, q_next, patches)
            _finish_all(layer, shift, V, b, HV, squares)
        else:
            nu = matrix(dU, lanes * layer.u, k * B, layer.n_out)
            _dense_adjoint(layer, params, lin, V, HV, dZ_l, nu, q_l, q_next, shift, b, squares)
