"""Sweeps over the lifted system (docs/theory.md, section 11): parameters, states and multipliers, all unknowns.

For layers given as blocks, and k vectors as rows. Each layer has the equations

    b = (Dxx + eps I) x + Dzx z + Dx^T q,    q_before = Dzx^T x + Dzz z + Dz^T q,    z' = Dx x + Dz z

z being its incoming and z' its outgoing state, and q the multiplier of z'. `residuals` goes back and finds multipliers
and the residual r of the first equation at a point (x, z); `trajectory` goes forth and turns F^-1 r into the correction
of x and z. Both follow the loop that the factors close, ``x = -M^-1 K z``: what rounds off in one layer is damped in
the next ones as states are, where products with H would let an unstable chain make the most of it.

Blocks and vectors are in float64, the factors in their own precision.
"""

from typing import NamedTuple

import numpy as np

from ..dense.microkernel import pointer
from ..dense.product import multiply, multiply_nt
from ..dense.signed_cholesky import pack_size
from ..dense.triangular import backward_vectors, forward_vectors
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import copy, matrix, reshape, vector
from .multiply import blocks_adjoint, blocks_tangent
from .substitute import apply_signs


class Workspace(NamedTuple):
    """Scratch of both sweeps for k vectors."""

    multipliers: np.ndarray  # (2, k B width)
    sums: np.ndarray  # (2, k B width): of the moduli of what each multiplier is the sum of
    y: np.ndarray  # (2, k m), in the precision of the factors
    state: np.ndarray  # k B width, likewise


def workspace(sizes, num_vectors, num_samples, dtype):
    """An uninitialised `Workspace`."""
    width = num_vectors * num_samples * sizes.width
    return Workspace(
        np.empty((2, width)), np.empty((2, width)), np.empty((2, num_vectors * sizes.m), dtype), np.empty(width, dtype)
    )


def num_states(sizes, num_samples):
    """Numbers of a vector's states: the inputs of all layers and, last, the output."""
    return sizes.z + num_samples * sizes.outputs


@inner
def _sum(size, a, b):
    """|a|^T |b|."""
    total = 0.0
    for j in range(size):
        total += abs(a[j] * b[j])
    return total


@inner
def _parameter_error(layer, lin, shift, b, x, z, sums, r):
    """The largest of the entries of r relative to the sum of moduli of what they are made of, with ``sums`` for q."""
    B = lin.output.shape[0]
    n, p, N = layer.n_out, layer.p, layer.N
    Dxx, Dzx, Dx = matrix(lin.Dxx, layer.Dxx, p, p), matrix(lin.Dzx, layer.Dzx, p, N), pointer(lin.Dx, layer.Dx)
    worst = 0.0
    for j in range(p):
        size = abs(b[j]) + abs(shift * x[j]) + _sum(p, Dxx[j], x) + _sum(N, Dzx[j], z)
        for i in range(B * n):
            size += abs(Dx[i * p + j]) * sums[i]
        # A sum that is not a number leaves an error which is none.
        if not abs(r[j]) <= worst * size:
            worst = abs(r[j]) / size
    return worst


@inner
def _add_up(layer, lin, x, z, q, q_before, sums):
    """sums <- those of the moduli of q_before and of what it is made of."""
    B = lin.output.shape[0]
    n, n_in, p, N = layer.n_out, layer.n_in, layer.p, layer.N
    Dzx = matrix(lin.Dzx, layer.Dzx, p, N)
    for j in range(N):
        sums[j] = abs(q_before[j])
    for i in range(p):
        for j in range(N):
            sums[j] += abs(Dzx[i, j] * x[i])
    for s in range(B):
        Dz = matrix(lin.Dz, layer.Dz + s * n * n_in, n, n_in)
        Dzz = matrix(lin.Dzz, layer.Dzz + s * n_in * n_in, n_in, n_in)
        for i in range(n):
            for j in range(n_in):
                sums[s * n_in + j] += abs(Dz[i, j] * q[s * n + i])
        for i in range(n_in):
            for j in range(n_in):
                sums[s * n_in + j] += abs(Dzz[i, j] * z[s * n_in + i])


@kernel
def residuals(table, start, stop, lin, factors, shift, b, x, z, y, worst, work):
    """Layers stop-1..start: y (k, P) <- F^-1 r at the point x (k, P), z of k vectors, with ``shift`` for eps.

    z : the states as `trajectory` leaves them.
    worst : (k,), raised to the largest of the entries of r relative to the sum of the moduli of what they are made of,
        multipliers counting with the sum of moduli of what they are made of: one for r that is nothing but rounding of
        its own is some units of roundoff.
    """
    k, P = x.shape
    B, n_L = lin.output.shape
    L = table.size
    if stop == L:
        end = k * (table[L - 1].z + B * table[L - 1].n_in)
        for t in range(k):
            for i in range(B):
                at = (t * B + i) * n_L
                curvature = matrix(lin.curvature, i * n_L * n_L, n_L, n_L)
                q_i = matrix(work.multipliers, work.multipliers.shape[1] * (L % 2) + at, 1, n_L)
                multiply(1.0, matrix(z, end + at, 1, n_L), curvature, 0.0, q_i)
                z_i, sums = vector(z, end + at, n_L), vector(work.sums, work.sums.shape[1] * (L % 2) + at, n_L)
                for a in range(n_L):
                    sums[a] = _sum(n_L, curvature[a], z_i)
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        m, N, n = layer.m, layer.N, B * layer.n_out
        z_l = matrix(z, k * layer.z, k * B, layer.n_in)
        q = matrix(work.multipliers, work.multipliers.shape[1] * ((l + 1) % 2), k * B, layer.n_out)
        q_before = matrix(work.multipliers, work.multipliers.shape[1] * (l % 2), k * B, layer.n_in)
        sums = matrix(work.sums, work.sums.shape[1] * ((l + 1) % 2), k, n)
        sums_before = matrix(work.sums, work.sums.shape[1] * (l % 2), k, N)
        blocks_adjoint(layer, lin, x, y, z_l, q, q_before)
        F_y = matrix(work.y, 0, k, m)
        for t in range(k):
            at = t * P + layer.parameters
            x_t, b_t, r = vector(x, at, m), vector(b, at, m), vector(y, at, m)
            for j in range(m):
                r[j] = b_t[j] - r[j] - shift * x_t[j]
            error = _parameter_error(layer, lin, shift, b_t, x_t, vector(z, k * layer.z + t * N, N), sums[t], r)
            if not error <= worst[t]:
                worst[t] = error
            copy(m, y, at, F_y, t * m)
        L_l = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        forward_vectors(L_l, pivots, scales, F_y, matrix(work.y, work.y.shape[1], k, m))
        for t in range(k):
            copy(m, F_y, t * m, y, t * P + layer.parameters)
        if N > 0:
            # q of the point that x + M^-1 r is, which is where the next layers go on from.
            apply_signs(factors.num_positive[l], F_y)
            change = matrix(work.state, 0, k, N)
            multiply(1.0, F_y, matrix(factors.Y, layer.Y, m, N), 0.0, change)
            for t in range(k):
                before, more = vector(q_before, t * N, N), vector(change, t * N, N)
                x_t, z_t = vector(x, t * P + layer.parameters, m), vector(z, k * layer.z + t * N, N)
                _add_up(layer, lin, x_t, z_t, vector(q, t * n, n), before, sums_before[t])
                for j in range(N):
                    before[j] += more[j]


@kernel
def trajectory(table, start, stop, lin, factors, y, x, z, work):
    """Layers start..stop-1: x (k, P) <- ``F^-T sigma (y - Y z)``, and the states z that x leads to.

    z : k numbers for each one of `num_states`. The states that come into a layer lie one vector after the other.
    """
    k, P = x.shape
    B = lin.output.shape[0]
    for l in range(start, stop):
        layer = table[l]
        m, N = layer.m, layer.N
        z_l = matrix(z, k * layer.z, k * B, layer.n_in)
        z_next = matrix(z, k * (layer.z + B * layer.n_in), k * B, layer.n_out)
        w = matrix(work.y, 0, k, m)
        for t in range(k):
            copy(m, y, t * P + layer.parameters, w, t * m)
        if N > 0:
            state = matrix(work.state, 0, k, N)
            copy(k * N, z_l, 0, state, 0)
            multiply_nt(-1.0, reshape(state, k, N), matrix(factors.Y, layer.Y, m, N), 1.0, w)
        apply_signs(factors.num_positive[l], w)
        L_l = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        backward_vectors(L_l, pivots, scales, w, matrix(work.y, work.y.shape[1], k, m))
        for t in range(k):
            copy(m, w, t * m, x, t * P + layer.parameters)
        blocks_tangent(layer, lin, k, pointer(x, layer.parameters), P, z_l, z_next)
