"""The elimination (design, section 3): from the last layer to the first, the block LDL^T of H + eps I.

Entering a layer, P is the curvature of the loss in the layer's outputs after all later parameters have been minimised
out. The layer's own parameters, in the row space of its input, give

    pivot      M  = eps I + (R (x) I) V (R (x) I)^T,   V = diag(S) P diag(S) + diag(D)
    coupling   K  = (R (x) I) E + C1,                  E = diag(S) P J + diag(D) A
    next P     P' = A^T E + skip P J - K^T M^-1 K - (1/eps) C2^T C2

with A = I (x) W and J = diag(S) A (+ I with a skip). States are sample-major, pivots (k, a) -> k n_out + a.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from .memory import copy, fill, matrix, reshape, rows, vector
from .microkernel import pointer, shift
from .product import gemm_nn, gemm_tn, gemm_tn_upper, multiply, multiply_tn
from .rank_update import mirror, signed_rank_update
from .signed_cholesky import pack_size, signed_cholesky, work_size
from .status import NOT_FINITE, OK
from .triangular import forward_rows


class Factors(NamedTuple):
    """What the elimination leaves: ``M = F diag(sigma) F^T`` and ``Y = F^-1 K`` of every layer, packed."""

    L: np.ndarray  # packed triangles
    pivots: np.ndarray  # 2 m integers each
    scales: np.ndarray  # m x 2 each
    Y: np.ndarray  # m x N each, rows with sigma = +1 first
    num_positive: np.ndarray  # (L,), sigma = +1
    num_perturbed: np.ndarray  # (L,)
    logabsdet: np.ndarray  # (L,) float64, log|det M|
    growth: np.ndarray  # (L,) float64, largest squared norm of a row of Y: what one pivot takes from the next P


def allocate(sizes, num_layers, dtype):
    """Uninitialised `Factors`."""
    return Factors(
        np.empty(sizes.L, dtype),
        np.empty(sizes.pivots, np.int32),
        np.empty(sizes.scales, dtype),
        np.empty(sizes.Y, dtype),
        np.empty(num_layers, np.int64),
        np.empty(num_layers, np.int64),
        np.empty(num_layers, np.float64),
        np.empty(num_layers, np.float64),
    )


class Pivoting(NamedTuple):
    """How small pivots are perturbed. All four on the global scale of ||H||, not on that of their front."""

    singular: float  # pivots up to this
    perturbation: float  # become +- this
    limit: float  # those that would take more than this from the next P
    largest: float  # are enlarged, up to this


class Workspace(NamedTuple):
    """Scratch of `eliminate`. Layer l reads its P in ``front[(l + 1) % 2]`` and leaves the next in ``front[l % 2]``."""

    front: np.ndarray  # (2, largest front)
    mixed: np.ndarray  # E, then (R (x) I) V, then scratch of the triangular solve
    M: np.ndarray
    cholesky: np.ndarray


def workspace(sizes, dtype):
    """An uninitialised `Workspace`."""
    return Workspace(
        np.empty((2, sizes.front), dtype),
        np.empty(sizes.mixed, dtype),
        np.empty(sizes.m * sizes.m, dtype),
        np.empty(work_size(sizes.m), dtype),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _scale_columns(P, S):
    """P diag(S), in place; P is (rows, B n) or, per sample, (B n, n)."""
    B, n = S.shape
    if P.shape[1] == B * n:
        s = reshape(S, 1, B * n)
        for i in range(P.shape[0]):
            for j in range(B * n):
                P[i, j] *= s[0, j]
    else:
        for i in range(B):
            for a in range(n):
                for b in range(n):
                    P[i * n + a, b] *= S[i, b]


@njit(cache=True, nogil=True, error_model="numpy")
def _form_E(E, S, D, W):
    """diag(S) E + diag(D) A, in place; E is (B n, B n_in) or, per sample, (B n, n_in)."""
    B, n = S.shape
    n_in = W.shape[1]
    for i in range(B):
        first = i * n_in if E.shape[1] == B * n_in else 0
        for a in range(n):
            row = i * n + a
            for j in range(E.shape[1]):
                E[row, j] *= S[i, a]
            for j in range(n_in):
                E[row, first + j] += D[i, a] * W[a, j]


@njit(cache=True, nogil=True, error_model="numpy")
def _terminal_front(layer, B, W, S, D, R, damping, curvature, P, K, P_next, work):
    """M, K without C1 and the structured part of the next P, where P is block diagonal over the samples."""
    n, n_in, r = layer.n_out, layer.n_in, layer.r
    M = matrix(work.M, 0, layer.m, layer.m)
    E = matrix(work.mixed, 0, B * n, n_in)
    one, zero = W.dtype.type(1), W.dtype.type(0)
    copy(P.size, curvature, 0, P, 0)
    if layer.N > 0:
        beta = 0.0
        if layer.skip:
            beta = 1.0
            copy(E.size, P, 0, E, 0)
        _scale_columns(P, S)
        multiply(1.0, P, W, beta, E)
        fill(P_next.size, 0.0, P_next, 0)
        if layer.skip:
            for i in range(B):
                for a in range(n_in):
                    for b in range(n_in):
                        P_next[i * n_in + a, i * n_in + b] = E[i * n_in + a, b]
        _form_E(E, S, D, W)
        for i in range(B):
            E_i = rows(E, i * n, n)
            gemm_tn(
                n_in, n_in, n, one, pointer(W, 0), n_in, pointer(E_i, 0), n_in, one if layer.skip else zero,
                pointer(P_next, i * n_in * (B * n_in + 1)), B * n_in,
            )
            for k in range(r):
                for a in range(n):
                    for j in range(n_in):
                        K[k * n + a, i * n_in + j] = R[k, i] * E_i[a, j]
    else:
        _scale_columns(P, S)
    for i in range(B):
        for a in range(n):
            for b in range(n):
                P[i * n + a, b] *= S[i, a]
            P[i * n + a, a] += D[i, a]
    # Row k of blocks of M: sum_i R[k,i] R[l,i] V_i, l >= k, as one product over the samples.
    pairs = matrix(work.mixed, 0, r, B)
    blocks = matrix(work.mixed, r * B, r, n * n)
    for k in range(r):
        for l in range(k, r):
            for i in range(B):
                pairs[l, i] = R[k, i] * R[l, i]
        multiply(1.0, rows(pairs, k, r - k), reshape(P, B, n * n), 0.0, rows(blocks, k, r - k))
        for l in range(k, r):
            for a in range(n):
                for b in range(n):
                    M[k * n + a, l * n + b] = blocks[l, a * n + b]
    for k in range(layer.m):
        M[k, k] += damping


@njit(cache=True, nogil=True, error_model="numpy")
def _inner_front(layer, B, W, S, D, R, damping, P, K, P_next, work):
    """M, K without C1 and the structured part of the next P (upper triangle). P is destroyed."""
    n, n_in, r, m, N = layer.n_out, layer.n_in, layer.r, layer.m, layer.N
    M = matrix(work.M, 0, m, m)
    one, zero = W.dtype.type(1), W.dtype.type(0)
    if layer.N > 0:
        # E = P J first: column scaling, then one product with W for all rows and samples.
        E = matrix(work.mixed, 0, B * n, B * n_in)
        beta = 0.0
        if layer.skip:
            beta = 1.0
            copy(E.size, P, 0, E, 0)
        _scale_columns(P, S)
        multiply(1.0, reshape(P, B * n * B, n), W, beta, reshape(E, B * n * B, n_in))
        if layer.skip:
            copy(E.size, E, 0, P_next, 0)
        _form_E(E, S, D, W)
        if B == 1:
            for a in range(n):
                for j in range(n_in):
                    K[a, j] = R[0, 0] * E[a, j]
        else:
            multiply(1.0, R, reshape(E, B, n * B * n_in), 0.0, reshape(K, r, n * B * n_in))
        # P' = A^T E + skip P J, one block row of its upper triangle a sample.
        keep = one if layer.skip else zero
        for i in range(B):
            here, row = i * n_in, pointer(E, i * n * N + i * n_in)
            to = pointer(P_next, here * N + here)
            gemm_tn_upper(n_in, n_in, n, one, pointer(W, 0), n_in, row, N, keep, to, N)
            gemm_tn(
                n_in, N - here - n_in, n, one, pointer(W, 0), n_in, shift(row, n_in), N, keep, shift(to, n_in), N
            )
    else:
        _scale_columns(P, S)
    for i in range(B):
        for a in range(n):
            for j in range(B * n):
                P[i * n + a, j] *= S[i, a]
            P[i * n + a, i * n + a] += D[i, a]
    if B == 1:
        square = R[0, 0] * R[0, 0]
        for a in range(n):
            for b in range(n):
                M[a, b] = square * P[a, b]
            M[a, a] += damping
        return
    # (R (x) I) V, then the same from the right, a row at a time.
    T = matrix(work.mixed, 0, m, B * n)
    multiply(1.0, R, reshape(P, B, n * B * n), 0.0, reshape(T, r, n * B * n))
    for k in range(r):
        for a in range(n):
            row = k * n + a
            gemm_nn(
                r - k, n, B, one, pointer(R, k * B), B, pointer(T, row * B * n), n, zero, pointer(M, row * m + k * n), n
            )
            M[row, row] += damping


@njit(cache=True, nogil=True, error_model="numpy")
def _add_C1(K, lam, Q, r):
    """K[(k, a), (i, j)] += lam[i, a] Q[k, j]; an empty Q is the identity."""
    B, n = lam.shape
    n_in = K.shape[1] // B
    for k in range(r):
        for a in range(n):
            row = vector(K, (k * n + a) * K.shape[1], K.shape[1])
            for i in range(B):
                if Q.shape[0] == 0:
                    if k < n_in:
                        row[i * n_in + k] += lam[i, a]
                else:
                    for j in range(n_in):
                        row[i * n_in + j] += lam[i, a] * Q[k, j]


@njit(cache=True, nogil=True, error_model="numpy")
def _subtract_C2(P_next, lam, Q, damping, work):
    """P' -= (1/eps) (lam lam^T) (x) (I - Q Q^T)[:n_in, :n_in], upper triangle."""
    B = lam.shape[0]
    n_in = Q.shape[1]
    outside = matrix(work.mixed, 0, n_in, n_in)
    multiply_tn(-1.0, Q, Q, 0.0, outside)
    for j in range(n_in):
        outside[j, j] += 1.0
    for i in range(B):
        for i2 in range(i, B):
            weight = 0.0
            for a in range(lam.shape[1]):
                weight += lam[i, a] * lam[i2, a]
            weight /= damping
            for j in range(n_in):
                row = vector(P_next, (i * n_in + j) * P_next.shape[1] + i2 * n_in, n_in)
                for j2 in range(n_in):
                    row[j2] -= weight * outside[j, j2]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _squared_norm(y):
    total = 0.0
    for j in range(y.size):
        total += y[j] * y[j]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _limit_growth(Y, pivots, scales, pivoting):
    """Enlarge small pivots whose row of Y has a squared norm above the limit.

    Returns (largest squared norm before, number of pivots enlarged that were not perturbed already, what that adds to
    log|det M|).
    """
    m = Y.shape[0]
    growth, num_enlarged, added = 0.0, 0, 0.0
    for k in range(m):
        y = vector(Y, pivots[m + k] * Y.shape[1], Y.shape[1])
        size = float(_squared_norm(y))
        if not size <= growth:
            growth = size
        if size > pivoting.limit:
            pivot = 1.0 / (float(scales[k, 0]) ** 2 + float(scales[k, 1]) ** 2)
            if pivot < pivoting.largest:
                shrink = math.sqrt(max(pivoting.limit / size, pivot / pivoting.largest))
                for j in range(y.size):
                    y[j] *= shrink
                scales[k, 0] *= shrink
                scales[k, 1] *= shrink
                num_enlarged += abs(pivot - pivoting.perturbation) > 1e-5 * pivot
                added -= 2.0 * math.log(shrink)
    return growth, num_enlarged, added


@njit(cache=True, nogil=True, error_model="numpy")
def eliminate(table, start, stop, params, lin, row_space, damping, pivoting, factors, work):
    """Eliminate layers stop-1, ..., start; layers after them must have been eliminated with the same workspace.

    Pivots that are singular or would blow the next P up are perturbed as ``pivoting`` says.
    Returns (status, layer at which the sweep ended).
    """
    B = lin.output.shape[0]
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        n, n_in, r, m, N = layer.n_out, layer.n_in, layer.r, layer.m, layer.N
        W = matrix(params, layer.parameters, n, n_in)
        S = matrix(lin.S, layer.u, B, n)
        D = matrix(lin.D, layer.u, B, n)
        lam = matrix(lin.lam, layer.u, B, n)
        Q = matrix(row_space.Q, layer.Q, r if r < layer.d else 0, n_in)
        R = matrix(row_space.R, layer.R, r, B)
        M = matrix(work.M, 0, m, m)
        K = matrix(factors.Y, layer.Y, m, N)
        P_next = matrix(work.front, (l % 2) * work.front.shape[1], N, N)
        if l == table.size - 1:
            P = matrix(work.front, ((l + 1) % 2) * work.front.shape[1], B * n, n)
            _terminal_front(layer, B, W, S, D, R, damping, lin.curvature, P, K, P_next, work)
        else:
            P = matrix(work.front, ((l + 1) % 2) * work.front.shape[1], B * n, B * n)
            _inner_front(layer, B, W, S, D, R, damping, P, K, P_next, work)
        L = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        status, num_negative, num_perturbed, logabsdet = signed_cholesky(
            M, pivoting.singular, pivoting.perturbation, L, pivots, scales, work.cholesky
        )
        if status != OK:
            return status, l
        factors.num_positive[l] = m - num_negative
        factors.num_perturbed[l] = num_perturbed
        factors.logabsdet[l] = logabsdet
        factors.growth[l] = 0.0
        if N > 0:
            _add_C1(K, lam, Q, r)
            forward_rows(L, pivots, scales, K, matrix(work.mixed, 0, m, N))
            growth, num_enlarged, added = _limit_growth(K, pivots, scales, pivoting)
            if not math.isfinite(growth):
                return NOT_FINITE, l
            factors.growth[l] = growth
            factors.num_perturbed[l] += num_enlarged
            factors.logabsdet[l] += added
            signed_rank_update(K, m - num_negative, P_next)
            if r < layer.d:
                _subtract_C2(P_next, lam, Q, damping, work)
            mirror(P_next)
    return OK, start
