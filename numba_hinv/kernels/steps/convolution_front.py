"""The front of a convolution: M, K and the next P of docs/theory.md, section 3, on the rows of patches.

The names and the order of rows are those of `convolution`. P J goes through the patches of one row at a time, and A^T E
through one kernel element at a time, so that A is never formed.
"""

from ..dense.microkernel import pointer
from ..dense.product import gemm_nn, gemm_nt, gemm_tn, multiply_tn
from ..plumbing.compiled import inner
from ..plumbing.memory import copy, fill, matrix, vector
from .layer_table import for_convolutions
from .patches import channel_size, element, fold, fold_product, fold_row, kernel_size


@inner
def _multiply_R(layer, R, X, out):
    """out (r units x columns) <- (R (x) I) X, X (B n_out x columns)."""
    n, T, r, num_rows, columns = layer.units, layer.positions, layer.r, layer.rows, X.shape[1]
    one = X.dtype.type(1)
    for a in range(n):
        for i in range(num_rows // T):
            gemm_nn(
                r, columns, T, one, pointer(R, i * T), num_rows, pointer(X, (i * n + a) * T * columns), columns,
                one if i > 0 else X.dtype.type(0), pointer(out, a * columns), n * columns,
            )


@inner
def _form_PJ(layer, W, S, P, E, patches):
    """E = P J, row by row; P becomes P diag(S)."""
    n_in, n_out, a, N = layer.n_in, layer.n_out, P.shape[0], E.shape[1]
    T = layer.positions
    s = vector(S, 0, a)
    columns = matrix(patches, 0, layer.fan_in, T)
    for row in range(a):
        if layer.skip:
            copy(N, P, row * a, E, row * N)
        else:
            fill(N, 0.0, E, row * N)
        for j in range(a):
            P[row, j] *= s[j]
        for i in range(a // n_out):
            multiply_tn(1.0, W, matrix(P, row * a + i * n_out, layer.units, T), 0.0, columns)
            fold(layer, patches, E, row * N + i * n_in)


@inner
def _form_E(layer, W, S, D, E):
    """diag(S) E + diag(D) A, in place."""
    n, T, n_in = layer.units, layer.positions, layer.n_in
    N = E.shape[1]
    size, area = channel_size(layer), kernel_size(layer)
    channels = n_in // size
    s, d = vector(S, 0, E.shape[0]), vector(D, 0, E.shape[0])
    for row in range(E.shape[0]):
        for j in range(N):
            E[row, j] *= s[row]
    for k in range(area):
        for t in range(T):
            here = element(layer, k, t)
            for i in range(N // n_in if here >= 0 else 0):
                at = i * n_in + here
                for a in range(n):
                    row = (i * n + a) * T + t
                    for channel in range(channels):
                        E[row, at + channel * size] += d[row] * W[a, channel * area + k]


@inner
def _add_AtE(layer, W, E, P_next, W_k):
    """P' += A^T E, upper triangle: for each position and kernel element, one product on the channels that it reads."""
    n, T, n_in, N = layer.units, layer.positions, layer.n_in, E.shape[1]
    size, area = channel_size(layer), kernel_size(layer)
    channels = n_in // size
    one = E.dtype.type(1)
    for k in range(area):
        for a in range(n):
            for channel in range(channels):
                W_k[a * channels + channel] = W[a, channel * area + k]
        for t in range(T):
            row = element(layer, k, t)
            if row < 0:
                continue
            for i in range(N // n_in):
                here = i * n_in
                gemm_tn(
                    channels, N - here, n, one, pointer(W_k, 0), channels,
                    pointer(E, (i * n * T + t) * N + here), T * N, one,
                    pointer(P_next, (here + row) * N + here), size * N,
                )


@inner
def _add_C1(layer, K, lam, Q):
    """K += C1: C1[(k, a), (i, t, j)] = lam[i, a, t] Q[k, j] on patches, folded; an empty Q is the identity."""
    n, T, n_in = layer.units, layer.positions, layer.n_in
    N = K.shape[1]
    for k in range(layer.r):
        for a in range(n):
            for i in range(N // n_in):
                at = (k * n + a) * N + i * n_in
                lam_i = vector(lam, (i * n + a) * T, T)
                if Q.shape[0] == 0:
                    if k < layer.fan_in:
                        fold_row(layer, k, lam.dtype.type(1), lam_i, vector(K, at, n_in))
                else:
                    fold_product(layer, vector(Q, k * layer.fan_in, layer.fan_in), lam_i, K, at)


@inner
def _subtract_C2(layer, P_next, lam, Q, damping, work):
    """P' -= (1/eps) (lam lam^T) (x) (I - Q Q^T) on patches, folded on both sides; upper triangle."""
    n, T, n_in, fan_in, N = layer.units, layer.positions, layer.n_in, layer.fan_in, P_next.shape[1]
    outside = matrix(work.mixed, 0, fan_in, fan_in)
    multiply_tn(1.0 / damping, Q, Q, 0.0, outside)
    for j in range(fan_in):
        outside[j, j] -= 1.0 / damping
    products = matrix(work.mixed, fan_in * fan_in, T, T)
    for i in range(N // n_in):
        lam_i = matrix(lam, i * n * T, n, T)
        for i2 in range(i, N // n_in):
            multiply_tn(1.0, lam_i, matrix(lam, i2 * n * T, n, T), 0.0, products)
            for j in range(fan_in):
                channel, k = divmod(j, kernel_size(layer))
                for t in range(T):
                    here = element(layer, k, t)
                    if here < 0:
                        continue
                    row = i * n_in + channel * channel_size(layer) + here
                    fold_product(
                        layer, vector(outside, j * fan_in, fan_in), vector(products, t * T, T), P_next,
                        row * N + i2 * n_in,
                    )


@for_convolutions
def convolution_front(layer, params, lin, row_space, damping, P, K, P_next, work):
    """M, K and the upper triangle of the next P, as `front` says. P is destroyed."""
    n, T, fan_in, r, m, N, a = layer.units, layer.positions, layer.fan_in, layer.r, layer.m, layer.N, P.shape[0]
    W = matrix(params, layer.weights, n, fan_in)
    S = vector(lin.S, layer.u, a)
    D = vector(lin.D, layer.u, a)
    lam = vector(lin.lam, layer.u, a)
    Q = matrix(row_space.Q, layer.Q, r if r < layer.d else 0, fan_in)
    R = matrix(row_space.R, layer.R, r, layer.rows)
    M = matrix(work.M, 0, m, m)
    if N > 0:
        E = matrix(work.mixed, 0, a, N)
        scratch = vector(work.mixed, a * N, fan_in * max(T, n))
        _form_PJ(layer, W, S, P, E, scratch)
        if layer.skip:
            copy(E.size, E, 0, P_next, 0)
        else:
            fill(P_next.size, 0.0, P_next, 0)
        _form_E(layer, W, S, D, E)
        _multiply_R(layer, R, E, K)
        _add_C1(layer, K, lam, Q)
        _add_AtE(layer, W, E, P_next, scratch)
        if r < layer.d:
            _subtract_C2(layer, P_next, lam, Q, damping, work)
    else:
        for row in range(a):
            for j in range(a):
                P[row, j] *= S[j]
    for row in range(a):
        for j in range(a):
            P[row, j] *= S[row]
        P[row, row] += D[row]
    # (R (x) I) V, then the same from the right, a row at a time.
    RV = matrix(work.mixed, 0, m, a)
    _multiply_R(layer, R, P, RV)
    one, zero = P.dtype.type(1), P.dtype.type(0)
    for k in range(r):
        for row in range(k * n, (k + 1) * n):
            for i in range(layer.rows // T):
                gemm_nt(
                    r - k, n, T, one, pointer(R, k * layer.rows + i * T), layer.rows,
                    pointer(RV, row * a + i * n * T), T, one if i > 0 else zero, pointer(M, row * m + k * n), n,
                )
            M[row, row] += damping
            if k == r - 1:
                M[row, row] += layer.ridge_of_bias
