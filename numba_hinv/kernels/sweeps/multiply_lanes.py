"""The Hessian-vector product of `multiply` for runs of narrow layers, with vectors side by side.

Tangents, adjoints and what they are multiplied with are (entries, lanes) blocks here; vectors come from rows and the
products go there.
"""

from numba import njit

from ..dense.lanes import combine_entries, residual_entries, scale_entries, to_lanes, to_rows
from ..dense.microkernel import pointer, shift
from ..dense.product import gemm_nn, gemm_tn
from ..plumbing.compiled import kernel
from ..plumbing.memory import fill, move, vector
from ..steps.lanes import add_block, state_to_lanes, state_to_rows
from ..steps.layer_table import BLOCKS
from .substitute_lanes import add_units, blocks_tangent_in_lanes


@njit(inline="always")
def _dense_tangent(layer, params, lin, V, dZ, dU, dZ_next, lanes):
    """dU = dZ W^T + Zt dWt^T and dZ' = S dU (+ dZ)."""
    B = lin.output.shape[0]
    n, n_in = layer.n_out, layer.n_in
    one, zero = lin.S.dtype.type(1), lin.S.dtype.type(0)
    if layer.p > 0:
        add_units(n, n_in, B, one, pointer(lin.Z, layer.z), V, zero, dU, lanes)
        for i in range(B if layer.bias else 0):
            add_block(n * lanes, shift(V, n * n_in * lanes), shift(dU, i * n * lanes))
    beta = one if layer.p > 0 else zero
    for i in range(B if layer.N > 0 else 0):
        at, to = shift(dZ, i * n_in * lanes), shift(dU, i * n * lanes)
        gemm_nn(n, lanes, n_in, one, pointer(params, layer.weights), n_in, at, lanes, beta, to, lanes)
    scale_entries(B * n, lanes, pointer(lin.S, layer.u), dU, dZ_next)
    if layer.skip and layer.N > 0:
        add_block(B * n * lanes, dZ, dZ_next)


@kernel
def tangents_in_lanes(table, start, stop, params, lin, V, dZ, dU, scratch, lanes):
    """`tangents` for layers that are all taken in lanes; what comes into the first and leaves the last is in rows."""
    k, B = V.shape[0], lin.output.shape[0]
    v = pointer(scratch, 0)
    if table[start].N > 0:
        state_to_lanes(k, table[start].N, pointer(dZ, lanes * table[start].z), lanes, v)
    for l in range(start, stop):
        layer = table[l]
        dZ_l = pointer(dZ, lanes * layer.z)
        dZ_next = pointer(dZ, lanes * (layer.z + B * layer.n_in))
        to_lanes(k, layer.p, pointer(V, layer.parameters), V.shape[1], v, lanes)
        if layer.kind == BLOCKS:
            blocks_tangent_in_lanes(layer, lin, v, dZ_l, dZ_next, lanes)
        else:
            _dense_tangent(layer, params, lin, v, dZ_l, pointer(dU, lanes * layer.u), dZ_next, lanes)
    last = table[stop - 1]
    state_to_rows(k, B * last.n_out, pointer(dZ, lanes * (last.z + B * last.n_in)), lanes, v)


@njit(inline="always")
def _dense_adjoint(layer, params, lin, V, HV, dZ, nu, q, q_next, lanes):
    """nu = S q + D dU, in the place of dU; HV = nu^T Zt + lam^T [dZ, 0]; q_next = nu W + lam dW (+ q)."""
    B = lin.output.shape[0]
    n, n_in = layer.n_out, layer.n_in
    one, zero, wide = lin.S.dtype.type(1), lin.S.dtype.type(0), n_in * lanes
    combine_entries(B * n, lanes, pointer(lin.S, layer.u), q, pointer(lin.D, layer.u), nu)
    if layer.N > 0:
        for i in range(B):
            at, to = shift(nu, i * n * lanes), shift(q_next, i * wide)
            gemm_tn(n_in, lanes, n, one, pointer(params, layer.weights), n_in, at, lanes, zero, to, lanes)
        if layer.skip:
            add_block(B * n * lanes, q, q_next)
    if layer.p == 0:
        return
    Z, lam = pointer(lin.Z, layer.z), pointer(lin.lam, layer.u)
    for a in range(n):
        gemm_tn(n_in, lanes, B, one, Z, n_in, shift(nu, a * lanes), n * lanes, zero, shift(HV, a * wide), lanes)
    if layer.N > 0:
        gemm_tn(n, wide, B, one, lam, n, dZ, wide, one, HV, wide)
        gemm_nn(B, wide, n, one, lam, n, V, wide, one, q_next, wide)
    if layer.bias:
        move(n * lanes, nu, shift(HV, n * wide))
        for i in range(1, B):
            add_block(n * lanes, shift(nu, i * n * lanes), shift(HV, n * wide))


@njit(inline="always")
def _blocks_adjoint(layer, lin, V, HV, dZ, q, q_next, lanes):
    """HV = Dxx dx + Dzx dZ + Dx^T q; q_next = Dzx^T dx + Dzz dZ + Dz^T q."""
    B = lin.output.shape[0]
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    N = B * n_in
    one, zero = lin.S.dtype.type(1), lin.S.dtype.type(0)
    Dzx = pointer(lin.Dzx, layer.Dzx)
    # Dxx is symmetric.
    gemm_nn(p, lanes, p, one, pointer(lin.Dxx, layer.Dxx), p, V, lanes, zero, HV, lanes)
    gemm_tn(p, lanes, B * n, one, pointer(lin.Dx, layer.Dx), p, q, lanes, one, HV, lanes)
    if layer.N > 0:
        gemm_nn(p, lanes, N, one, Dzx, N, dZ, lanes, one, HV, lanes)
        gemm_tn(N, lanes, p, one, Dzx, N, V, lanes, zero, q_next, lanes)
        for i in range(B):
            to, Dzz = shift(q_next, i * n_in * lanes), pointer(lin.Dzz, layer.Dzz + i * n_in * n_in)
            gemm_nn(n_in, lanes, n_in, one, Dzz, n_in, shift(dZ, i * n_in * lanes), lanes, one, to, lanes)
            Dz = pointer(lin.Dz, layer.Dz + i * n * n_in)
            gemm_tn(n_in, lanes, n, one, Dz, n_in, shift(q, i * n * lanes), lanes, one, to, lanes)


@kernel
def adjoints_in_lanes(table, start, stop, params, lin, V, HV, dZ, dU, q, scratch, shift_by, b, squares, lanes):
    """`adjoints` for layers that are all taken in lanes; the adjoint is in rows before and after."""
    k, P = V.shape
    B, size = lin.output.shape[0], scratch.shape[0] // 3
    v, Hv, given = pointer(scratch, 0), pointer(scratch, size), pointer(scratch, 2 * size)
    # The last two entries of the scratch.
    sums = vector(scratch, scratch.shape[0] - 2 * lanes, 2 * lanes)
    fill(2 * lanes, 0.0, sums, 0)
    factor = V.dtype.type(shift_by)
    q_l = pointer(q, q.shape[1] * (stop % 2))
    state_to_lanes(k, B * table[stop - 1].n_out, q_l, lanes, v)
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        p, at = layer.p, layer.parameters
        dZ_l = pointer(dZ, lanes * layer.z)
        q_l, q_next = pointer(q, q.shape[1] * ((l + 1) % 2)), pointer(q, q.shape[1] * (l % 2))
        to_lanes(k, p, pointer(V, at), P, v, lanes)
        if layer.kind == BLOCKS:
            _blocks_adjoint(layer, lin, v, Hv, dZ_l, q_l, q_next, lanes)
        else:
            _dense_adjoint(layer, params, lin, v, Hv, dZ_l, pointer(dU, lanes * layer.u), q_l, q_next, lanes)
        if b.shape[0]:
            to_lanes(k, p, pointer(b, at), P, given, lanes)
            residual_entries(p, lanes, factor, v, given, Hv, pointer(sums, 0))
        elif factor != 0.0:
            for i in range(p * lanes):
                Hv[i] += factor * v[i]
        to_rows(k, p, Hv, lanes, pointer(HV, at), P)
    if table[start].N > 0:
        state_to_rows(k, table[start].N, pointer(q, q.shape[1] * (start % 2)), lanes, v)
    if b.shape[0]:
        for t in range(squares.shape[0]):
            squares[t, 0] += sums[t]
            squares[t, 1] += sums[lanes + t]
