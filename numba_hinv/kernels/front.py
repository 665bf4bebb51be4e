"""The front of one layer (design, sections 3 and 4): pivot M, coupling K and the structured part of the next P.

P is the curvature of the loss in the layer's outputs after all later parameters have been minimised out. The
elimination takes K^T M^-1 K from what stands here. Dense layers, in the row space of their input:

    pivot      M  = eps I + (R (x) I) V (R (x) I)^T,   V = diag(S) P diag(S) + diag(D)
    coupling   K  = (R (x) I) E + C1,                  E = diag(S) P J + diag(D) A
    next P     P' = A^T E + skip P J - (1/eps) C2^T C2

with A = I (x) W and J = diag(S) A (+ I with a skip). States are sample-major, pivots (k, a) -> k n_out + a. Layers
given as blocks:

    M = Dxx + eps I + Dx^T P Dx,   K = Dzx + Dx^T P Dz,   P' = Dzz + Dz^T P Dz

Of M and P' only the upper triangles are certain.
"""

from numba import njit

from .compiled import inner
from .convolution import convolution_front
from .layers import BLOCKS, CONVOLUTION
from .memory import copy, fill, matrix, reshape, rows, vector
from .microkernel import pointer, shift
from .product import gemm_nn, gemm_tn, gemm_tn_upper, multiply, multiply_tn


@inner
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


@inner
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


@inner
def _last_dense_front(layer, B, W, S, D, R, damping, curvature, P, K, P_next, work):
    """M, K without C1 and the next P without C2, where P, the loss's curvature, is block diagonal over the samples."""
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


@inner
def _inner_dense_front(layer, B, W, S, D, R, damping, P, K, P_next, work):
    """M, K without C1 and the next P without C2. P is destroyed."""
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


@inner
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


@inner
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


@njit(inline="always")
def _dense_front(layer, is_last, params, lin, row_space, damping, P, K, P_next, work):
    B = lin.output.shape[0]
    n, n_in, r = layer.n_out, layer.n_in, layer.r
    W = matrix(params, layer.parameters, n, n_in)
    S = matrix(lin.S, layer.u, B, n)
    D = matrix(lin.D, layer.u, B, n)
    lam = matrix(lin.lam, layer.u, B, n)
    Q = matrix(row_space.Q, layer.Q, r if r < layer.d else 0, n_in)
    R = matrix(row_space.R, layer.R, r, B)
    if is_last:
        _last_dense_front(layer, B, W, S, D, R, damping, lin.curvature, reshape(P, B * n, n), K, P_next, work)
    else:
        _inner_dense_front(layer, B, W, S, D, R, damping, P, K, P_next, work)
    if layer.N > 0:
        _add_C1(K, lam, Q, r)
        if r < layer.d:
            _subtract_C2(P_next, lam, Q, damping, work)


@inner
def _write_curvature(curvature, P):
    """P (B n, B n) <- the loss's curvature, block diagonal over the samples."""
    B, n = curvature.shape[:2]
    fill(P.size, 0.0, P, 0)
    for i in range(B):
        for b in range(n):
            copy(n, curvature, (i * n + b) * n, P, (i * n + b) * B * n + i * n)


@inner
def _blocks_front(layer, is_last, lin, damping, P, K, P_next, work):
    B = lin.output.shape[0]
    n, n_in, p, m, N = layer.n_out, layer.n_in, layer.p, layer.m, layer.N
    a = B * n
    if is_last:
        _write_curvature(lin.curvature, P)
    M = matrix(work.M, 0, m, m)
    one, zero = P.dtype.type(1), P.dtype.type(0)
    Dx, P_Dx, P_Dz = pointer(lin.Dx, layer.Dx), pointer(work.mixed, 0), pointer(work.mixed, a * p)
    gemm_nn(a, p, a, one, pointer(P, 0), a, Dx, p, zero, P_Dx, p)
    copy(p * p, lin.Dxx, layer.Dxx, M, 0)
    gemm_tn_upper(p, p, a, one, Dx, p, P_Dx, p, one, pointer(M, 0), p)
    for k in range(p):
        M[k, k] += damping
    if N == 0:
        return
    # Dz is block diagonal over the samples: one product for each block of columns, then of rows.
    for i in range(B):
        Dz_i = pointer(lin.Dz, layer.Dz + i * n * n_in)
        gemm_nn(a, n_in, n, one, pointer(P, i * n), a, Dz_i, n_in, zero, shift(P_Dz, i * n_in), N)
    copy(p * N, lin.Dzx, layer.Dzx, K, 0)
    gemm_tn(p, N, a, one, Dx, p, P_Dz, N, one, pointer(K, 0), N)
    if B > 1:
        fill(N * N, 0.0, P_next, 0)
    for i in range(B):
        here, Dzz_i = i * n_in, layer.Dzz + i * n_in * n_in
        for j in range(n_in):
            copy(n_in, lin.Dzz, Dzz_i + j * n_in, P_next, (here + j) * N + here)
        Dz_i, row = pointer(lin.Dz, layer.Dz + i * n * n_in), shift(P_Dz, i * n * N + here)
        to = pointer(P_next, here * N + here)
        gemm_tn_upper(n_in, n_in, n, one, Dz_i, n_in, row, N, one, to, N)
        gemm_tn(
            n_in, N - here - n_in, n, one, Dz_i, n_in, shift(row, n_in), N, zero, shift(to, n_in), N
        )


@njit(inline="always")
def form_front(layer, is_last, params, lin, row_space, damping, P, K, P_next, work):
    """Fill M (in ``work.M``), K and P_next of a layer from its P, which is destroyed.

    P is taken from ``lin.curvature`` where the layer is the last. ``work`` is the `Workspace` of the elimination.
    """
    if layer.kind == BLOCKS:
        _blocks_front(layer, is_last, lin, damping, P, K, P_next, work)
    elif layer.kind == CONVOLUTION:
        if is_last:
            _write_curvature(lin.curvature, P)
        convolution_front(layer, params, lin, row_space, damping, P, K, P_next, work)
    else:
        _dense_front(layer, is_last, params, lin, row_space, damping, P, K, P_next, work)
