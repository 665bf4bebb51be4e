"""The forward recursion (docs/theory.md, section 6): covariances under the inverse of H + eps I, layer by layer.

With (H + eps I)^-1 for the covariance of all parameters, the states z that come into a layer have the covariance
Sigma (N x N). Per layer, with M^-1 K = F^-T sigma Y and w = W1, the parameters in the row space:

    G = [C -H; -H^T Sigma],   C = F^-T (sigma + sigma Y Sigma Y^T sigma) F^-1,   H = F^-T sigma Y Sigma
    Sigma' = [Dx J] G [Dx J]^T
    cov(x) = [T -C2/eps] G [T -C2/eps]^T + (Pj (x) I)/eps

G is the covariance of (w, z). Both maps of it are those of the solve, `step` and `expand_all`: applied to the rows of
G, then to the rows of the result's transpose. Where H + eps I is indefinite, so are these; nothing else changes.
"""

from typing import NamedTuple

import numpy as np

from ..dense.microkernel import pointer
from ..dense.product import gemm_nn, multiply, multiply_nt
from ..dense.rank_update import mirror
from ..dense.signed_cholesky import pack_size
from ..dense.triangular import backward_vectors
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import copy, fill, matrix, reshape, rows, vector
from ..steps.convolution import convolution_gather, convolution_project, convolution_variances
from ..steps.layer_table import BLOCKS, CONVOLUTION
from .substitute import expand_all, step

# Side of the square blocks that are transposed together: two of them fit into a first-level cache in float64.
TURN_BLOCK = 32


class Workspace(NamedTuple):
    """Scratch of the recursion; ``z`` keeps Sigma, its last N rows, between two layers."""

    w: np.ndarray  # (m + N) x m: the columns of G that belong to w
    z: np.ndarray  # (m + N) x N: those that belong to z
    moved: np.ndarray  # (m + N) x c, c = B n_out or p: the rows of G, mapped
    turned: np.ndarray  # c x (m + N): its transpose, in two parts as G
    unit: np.ndarray  # what the diagonal needs for one output of a layer; m scalars at least
    patches: np.ndarray  # of one sample


def work_sizes(table, sizes, num_samples, wanted):
    """Lengths of the arrays of a `Workspace` for a table's layers.

    ``wanted`` is "diagonal" of the inverse, or "block" (`covariance`) or "outputs" (`outputs`) of the last layer.
    """
    names = "m", "N", "n_out", "r", "d", "fan_in", "rows", "p"
    m, N, n_out, r, d, fan_in, layer_rows, p = (table[name] for name in names)
    mapped, both = num_samples * n_out, m + N
    mapped[-1] = {"diagonal": 0, "block": p[-1], "outputs": mapped[-1]}[wanted]
    unit = np.where(r < d, r * (N * (layer_rows + 2) + 2 * fan_in + r) + fan_in + num_samples, 0)
    return (
        int((both * m).max()),
        int((both * N).max()),
        int((both * np.maximum(mapped, m)).max()),
        int((both * mapped).max()),
        int(np.maximum(m, unit if wanted == "diagonal" else 0).max()),
        sizes.patches,
    )


def workspace(lengths, dtype):
    """An uninitialised `Workspace`."""
    return Workspace(*(np.empty(length, dtype) for length in lengths))


@inner
def _transpose(A, out):
    """out <- A^T."""
    count, columns = A.shape
    for i0 in range(0, count, TURN_BLOCK):
        for j0 in range(0, columns, TURN_BLOCK):
            for j in range(j0, min(j0 + TURN_BLOCK, columns)):
                for i in range(i0, min(i0 + TURN_BLOCK, count)):
                    out[j, i] = A[i, j]


@inner
def _disturb(A, noise):
    """The upper triangle of A <- itself times 1 +- noise, signs from a linear congruential generator."""
    state = np.uint64(1)
    for i in range(A.shape[0]):
        for j in range(i, A.shape[0]):
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            A[i, j] *= 1.0 + noise if state >> np.uint64(63) else 1.0 - noise


@inner
def _form_G(layer, num_positive, factors, noise, work):
    """G from the Sigma in its last rows."""
    m, N = layer.m, layer.N
    L = vector(factors.L, layer.L, pack_size(m))
    pivots = vector(factors.pivots, layer.pivots, 2 * m)
    scales = matrix(factors.scales, layer.scales, m, 2)
    Y = matrix(factors.Y, layer.Y, m, N)
    w, z = matrix(work.w, 0, m + N, m), matrix(work.z, 0, m + N, N)
    C, Ht, Sigma = rows(w, 0, m), rows(w, m, N), rows(z, m, N)
    multiply_nt(1.0, Sigma, Y, 0.0, Ht)
    for i in range(N):
        for j in range(num_positive, m):
            Ht[i, j] = -Ht[i, j]
    multiply(1.0, Y, Ht, 0.0, C)
    for i in range(m):
        if i < num_positive:
            C[i, i] += 1.0
        else:
            for j in range(m):
                C[i, j] = -C[i, j]
            C[i, i] -= 1.0
    if noise != 0.0:
        _disturb(C, noise)
        mirror(C)
    backward_vectors(L, pivots, scales, C, matrix(work.moved, 0, m, m))
    half = matrix(work.moved, 0, m, m)
    _transpose(C, half)
    copy(m * m, half, 0, C, 0)
    backward_vectors(L, pivots, scales, C, half)
    mirror(C)
    backward_vectors(L, pivots, scales, Ht, matrix(work.moved, 0, N, m))
    for i in range(N):
        for j in range(m):
            Ht[i, j] = -Ht[i, j]
    _transpose(Ht, rows(z, 0, m))


@inner
def _gather(layer, lin, unit, z, lam, e, patches):
    """e_t = sum_i lam[i, unit] z_i of each row t of z (k, N): what C2 makes of a state for one output."""
    B = lin.output.shape[0]
    k, n, n_in = z.shape[0], layer.n_out, layer.n_in
    if layer.kind == CONVOLUTION:
        convolution_gather(layer, lin, unit, z, e, patches)
        return
    for i in range(B):
        lam[i] = lin.lam[layer.u + i * n + unit]
    one, zero = z.dtype.type(1), z.dtype.type(0)
    for t in range(k):
        gemm_nn(
            1, n_in, B, one, pointer(lam, 0), B, pointer(z, t * B * n_in), n_in, zero, pointer(e, t * n_in), n_in
        )


@inner
def _project_Sigma(layer, B, Q, Sigma, projected, patches):
    """projected (N, B, r, T) <- cov(z, Q zt), zt being the rows that a layer reads: T a sample, one if it is dense."""
    N = Sigma.shape[0]
    if layer.kind == CONVOLUTION:
        convolution_project(layer, Q, Sigma, projected, patches)
    else:
        multiply_nt(1.0, reshape(Sigma, N * B, layer.n_in), Q, 0.0, reshape(projected, N * B, layer.r))


@inner
def _variances(layer, lin, unit, Sigma, out):
    """out (fan_in,) <- the diagonal of cov(e), e as in `_gather`."""
    B, n, n_in = lin.output.shape[0], layer.n_out, layer.n_in
    if layer.kind == CONVOLUTION:
        convolution_variances(layer, lin, unit, Sigma, out)
        return
    fill(n_in, 0.0, out, 0)
    for i in range(B):
        for i2 in range(B):
            weight = lin.lam[layer.u + i * n + unit] * lin.lam[layer.u + i2 * n + unit]
            for j in range(n_in):
                out[j] += weight * Sigma[i * n_in + j, i2 * n_in + j]


@inner
def _unit_diagonal(layer, lin, row_space, damping, unit, projected, work, start, diagonal):
    """Fill the entries of one output in the layer's slice of the diagonal, where Q is not the identity.

    The output's parameters are x = Q^T g - [e, 0] / eps + noise, with g = w + Q e / eps and e as in `_gather`.
    """
    m, N, n, T, fan_in, r = layer.m, layer.N, layer.units, layer.positions, layer.fan_in, layer.r
    B = lin.output.shape[0]
    Q = matrix(row_space.Q, layer.Q, r, fan_in)
    q = vector(row_space.Q, layer.Q + r * fan_in, r)
    G_w, G_z = matrix(work.w, 0, m + N, m), matrix(work.z, 0, m + N, N)
    columns = matrix(work.unit, start, N, r)
    start += N * r
    across = matrix(work.unit, start, r, N)
    start += r * N
    cov_we = matrix(work.unit, start, r, fan_in)
    start += r * fan_in
    cov_ge = matrix(work.unit, start, r, fan_in)
    start += r * fan_in
    cov_g = matrix(work.unit, start, r, r)
    start += r * r
    var_e = vector(work.unit, start, fan_in)
    lam = vector(work.unit, start + fan_in, B)
    for k in range(r):
        for k2 in range(r):
            cov_g[k, k2] = G_w[k * n + unit, k2 * n + unit]
    if N > 0:
        for k in range(r):
            copy(N, G_z, (k * n + unit) * N, across, k * N)
        _gather(layer, lin, unit, across, lam, cov_we, work.patches)
        multiply_nt(1.0 / damping, Q, cov_we, 1.0, cov_g)
        for s in range(N):
            for k in range(r):
                columns[s, k] = G_w[m + s, k * n + unit]
            for i in range(B):
                for k in range(r):
                    at = ((s * B + i) * r + k) * T
                    total = 0.0
                    for t in range(T):
                        total += lin.lam[layer.u + (i * n + unit) * T + t] * projected[at + t]
                    columns[s, k] += total / damping
        _transpose(columns, across)
        _gather(layer, lin, unit, across, lam, cov_ge, work.patches)
        multiply_nt(1.0 / damping, cov_ge, Q, 1.0, cov_g)
        _variances(layer, lin, unit, matrix(work.z, m * N, N, N), var_e)
    else:
        fill(cov_ge.size, 0.0, cov_ge, 0)
        fill(fan_in, 0.0, var_e, 0)
    moved = cov_we
    multiply(1.0, cov_g, Q, 0.0, moved)
    for j in range(fan_in):
        total, outside = var_e[j] / damping, 1.0
        for k in range(r):
            total -= 2.0 * Q[k, j] * cov_ge[k, j]
            outside -= Q[k, j] * Q[k, j]
        total = (total + outside) / damping
        for k in range(r):
            total += Q[k, j] * moved[k, j]
        diagonal[unit * fan_in + j] = total
    if layer.bias:
        total, outside = 0.0, 1.0
        for k in range(r):
            outside -= q[k] * q[k]
            for k2 in range(r):
                total += q[k] * cov_g[k, k2] * q[k2]
        diagonal[n * fan_in + unit] = total + outside / damping


@inner
def _diagonal(layer, lin, row_space, damping, work, diagonal):
    """The layer's slice of ``diagonal`` <- the diagonal of cov(x)."""
    m, n, fan_in, d = layer.m, layer.units, layer.fan_in, layer.d
    C = matrix(work.w, 0, m, m)
    x = vector(diagonal, layer.parameters, layer.p)
    if layer.kind == BLOCKS:
        for j in range(m):
            x[j] = C[j, j]
        return
    if layer.r < d:
        B, N = lin.output.shape[0], layer.N
        projected = vector(work.unit, 0, N * B * layer.r * layer.positions)
        if N > 0:
            Q = matrix(row_space.Q, layer.Q, layer.r, fan_in)
            _project_Sigma(layer, B, Q, matrix(work.z, m * N, N, N), projected, work.patches)
        for a in range(n):
            _unit_diagonal(layer, lin, row_space, damping, a, projected, work, projected.size, x)
        return
    for a in range(n):
        for j in range(d):
            x[a * fan_in + j if j < fan_in else n * fan_in + a] = C[j * n + a, j * n + a]


@inner
def _advance(layer, params, lin, row_space, noise, Sigma, work):
    """Sigma (a B, n_out) <- [Dx J] G [Dx J]^T, the covariance of the states behind the layer, a of them."""
    B = lin.output.shape[0]
    m, N, a = layer.m, layer.N, B * layer.n_out
    w, z = matrix(work.w, 0, m + N, m), matrix(work.z, 0, (m + N) * B, layer.n_in)
    moved = matrix(work.moved, 0, m + N, a)
    step(layer, params, lin, row_space, w, z, reshape(moved, (m + N) * B, layer.n_out), work.patches)
    w, z = matrix(work.turned, 0, a, m), matrix(work.turned, a * m, a, N)
    _transpose(rows(moved, 0, m), w)
    _transpose(rows(moved, m, N), z)
    step(layer, params, lin, row_space, w, reshape(z, a * B, layer.n_in), Sigma, work.patches)
    if noise != 0.0:
        _disturb(reshape(Sigma, a, a), noise)
    mirror(reshape(Sigma, a, a))


@kernel
def propagate(table, start, stop, params, lin, row_space, factors, damping, noise, diagonal, work):
    """Layers start..stop-1: takes Sigma to the layer after them, and fills their slices of ``diagonal``, unless empty.

    The layers before them must have been visited with the same workspace. ``noise`` is the size of relative changes to
    Sigma and C, random but always the same, which show what rounding errors do; 0 for none.
    """
    B = lin.output.shape[0]
    for l in range(start, stop):
        layer = table[l]
        a = B * layer.n_out
        _form_G(layer, factors.num_positive[l], factors, noise, work)
        if diagonal.size > 0:
            _diagonal(layer, lin, row_space, damping + layer.ridge, work, diagonal)
        if l + 1 == table.size:
            continue
        _advance(layer, params, lin, row_space, noise, matrix(work.z, table[l + 1].m * a, a * B, layer.n_out), work)


@kernel
def covariance(table, l, lin, row_space, factors, damping, out, work):
    """out (p, p) <- cov(x) of layer l, after `propagate` of the layers before it."""
    B = lin.output.shape[0]
    layer = table[l]
    m, N, p, damping = layer.m, layer.N, layer.p, damping + layer.ridge
    _form_G(layer, factors.num_positive[l], factors, 0.0, work)
    w, z = matrix(work.w, 0, m + N, m), matrix(work.z, 0, (m + N) * B, layer.n_in)
    moved = matrix(work.moved, 0, m + N, p)
    fill(moved.size, 0.0, moved, 0)
    expand_all(layer, lin, row_space, damping, w, z, work.moved, work.moved, 0, p, work.unit, work.patches)
    w, z = matrix(work.turned, 0, p, m), matrix(work.turned, p * m, p, N)
    _transpose(rows(moved, 0, m), w)
    _transpose(rows(moved, m, N), z)
    fill(out.size, 0.0, out, 0)
    z = reshape(z, p * B, layer.n_in)
    expand_all(layer, lin, row_space, damping, w, z, out, out, 0, p, work.unit, work.patches)
    if layer.r < layer.d:
        _add_outside(layer, row_space, damping, out)
    mirror(out)


@kernel
def outputs(table, params, lin, row_space, factors, out, work):
    """out (B n_L, B n_L) <- Sigma behind the last layer of a table, after `propagate` of the layers before it."""
    l = table.size - 1
    layer = table[l]
    _form_G(layer, factors.num_positive[l], factors, 0.0, work)
    B = lin.output.shape[0]
    _advance(layer, params, lin, row_space, 0.0, matrix(out, 0, B * layer.n_out * B, layer.n_out), work)


@inner
def _add_outside(layer, row_space, damping, out):
    """out += (Pj (x) I) / eps."""
    n, fan_in, r, d = layer.units, layer.fan_in, layer.r, layer.d
    Q = matrix(row_space.Q, layer.Q, r, fan_in)
    q = vector(row_space.Q, layer.Q + r * fan_in, r)
    for j in range(d):
        for j2 in range(d):
            total = 1.0 if j == j2 else 0.0
            for k in range(r):
                total -= (Q[k, j] if j < fan_in else q[k]) * (Q[k, j2] if j2 < fan_in else q[k])
            total /= damping
            for a in range(n):
                row = a * fan_in + j if j < fan_in else n * fan_in + a
                column = a * fan_in + j2 if j2 < fan_in else n * fan_in + a
                out[row, column] += total
