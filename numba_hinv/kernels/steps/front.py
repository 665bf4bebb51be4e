"""The front of one layer (docs/theory.md, sections 3 and 7): pivot M, coupling K and the structured part of the next P.

P is the curvature of the loss in the layer's outputs after all later parameters have been minimised out. The
elimination takes K^T M^-1 K from what stands here. Dense layers, in the row space of their input:

    pivot      M  = eps I + (R (x) I) V (R (x) I)^T,   V = diag(S) P diag(S) + diag(D)
    coupling   K  = (R (x) I) E + C1,                  E = diag(S) P J + diag(D) A
    next P     P' = A^T E + skip P J - (1/eps) C2^T C2

with A = I (x) W and J = diag(S) A (+ I with a skip). States are sample-major, pivots (k, a) -> k n_out + a. Layers
given as blocks:

    M = Dxx + eps I + Dx^T P Dx,   K = Dzx + Dx^T P Dz,   P' = Dzz + Dz^T P Dz

Of P, M and P' only the upper triangles are certain. The pieces of a dense front are pointers here, with sizes beside
them: taking arrays apart at each call costs as much as the work on a layer of 8 units.
"""

from numba import njit

from ..dense.microkernel import pointer, shift
from ..dense.product import gemm_nn, gemm_tn, gemm_tn_upper
from ..dense.rank_update import mirror, reflect, symmetric_columns
from ..plumbing.compiled import inner
from ..plumbing.memory import copy, fill, matrix, move
from .convolution_front import convolution_front
from .layer_table import BLOCKS, CONVOLUTION
from .local import local_front


@inner
def _scale_columns(height, width, S, X):
    """X diag(S), in place; X is height x width."""
    for i in range(height):
        row = shift(X, i * width)
        for j in range(width):
            row[j] *= S[j]


@inner
def _form_E(B, n, n_in, first, count, S, D, W, E):
    """diag(S) E + diag(D) A, in place, E having the columns of ``count`` samples from ``first`` on."""
    columns = count * n_in
    for i in range(B):
        here = (i - first) * n_in
        for a in range(n):
            row, factor = shift(E, (i * n + a) * columns), S[i * n + a]
            for j in range(columns):
                row[j] *= factor
            if 0 <= here < columns:
                row, w, factor = shift(row, here), shift(W, a * n_in), D[i * n + a]
                for j in range(n_in):
                    row[j] += factor * w[j]


@inner
def _form_V(B, n, first, count, S, D, V):
    """diag(S) V + diag(D), in place, V having the columns of ``count`` samples from ``first`` on."""
    columns = count * n
    for i in range(B):
        here = (i - first) * n + i * n * columns
        for a in range(n):
            row, factor = shift(V, (i * n + a) * columns), S[i * n + a]
            for j in range(columns):
                row[j] *= factor
            if first <= i < first + count:
                V[here + a * (columns + 1)] += D[i * n + a]


@inner
def _multiply_R(B, n, r, R, columns, X, to, stride):
    """(R (x) I) X for some columns: X is B n x columns, ``to`` points at the first of them, in rows of ``stride``."""
    # The rows of one unit of all samples at a time, or all rows where those of ``to`` follow each other.
    units = n if stride == columns else 1
    for a in range(0, n, units):
        gemm_nn(
            r, units * columns, B, 1, R, B, shift(X, a * columns), n * columns, 0, shift(to, a * stride), n * stride
        )


@inner
def _add_C1(B, n, n_in, r, first, count, is_identity, lam, Q, K):
    """K[(k, a), (i, j)] += lam[i, a] Q[k, j] for ``count`` samples i from ``first`` on."""
    N = B * n_in
    for k in range(r):
        for a in range(n):
            row = shift(K, (k * n + a) * N)
            for i in range(first, first + count):
                factor = lam[i * n + a]
                if is_identity:
                    if k < n_in:
                        row[i * n_in + k] += factor
                else:
                    to, q = shift(row, i * n_in), shift(Q, k * n_in)
                    for j in range(n_in):
                        to[j] += factor * q[j]


@inner
def _next_front(B, n, n_in, first, count, W, E, skip, P_next):
    """P' <- A^T E + skip P' in the columns of ``count`` samples from ``first`` on; upper triangle."""
    N, columns = B * n_in, count * n_in
    for i in range(first + count):
        left = max(i - first, 0) * n_in
        row, to = shift(E, i * n * columns + left), shift(P_next, i * n_in * N + first * n_in + left)
        if i >= first:
            gemm_tn_upper(n_in, n_in, n, 1, W, n_in, row, columns, skip, to, N)
            left, row, to = left + n_in, shift(row, n_in), shift(to, n_in)
        gemm_tn(n_in, columns - left, n, 1, W, n_in, row, columns, skip, to, N)


@inner
def _add_damping(layer, damping, M):
    """M += eps I, with an eps of its own for the bias where it has one: the last row of R is that of the bias then."""
    m = layer.m
    for k in range(m):
        M[k * (m + 1)] += damping
    if layer.ridge_of_bias != 0.0:
        for k in range(m - layer.n_out, m):
            M[k * (m + 1)] += layer.ridge_of_bias


@inner
def _add_ridge(layer, ridge, M):
    """M += the ridge of each parameter: Q is the identity, so that row (k, a) is the weight (a, k), or the bias a."""
    n, fan_in, m = layer.units, layer.fan_in, layer.m
    for row in range(m):
        k, a = row // n, row % n
        at = row if layer.kind == BLOCKS else n * fan_in + a if k == fan_in else a * fan_in + k
        M[row, row] += ridge[layer.parameters + at]


@inner
def _last_dense_front(layer, B, W, S, D, lam, Q, R, damping, curvature, P, K, P_next, M, mixed):
    """M, K and the next P without C2, where P, the loss's curvature, is block diagonal over the samples."""
    n, n_in, r, m, N = layer.n_out, layer.n_in, layer.r, layer.m, layer.N
    move(B * n * n, curvature, P)
    for j in range(N * N):
        P_next[j] = 0
    for i in range(B):
        V, E, S_i, D_i = shift(P, i * n * n), mixed, shift(S, i * n), shift(D, i * n)
        if N > 0 and layer.skip:
            move(n * n, V, E)
        _scale_columns(n, n, S_i, V)
        if N > 0:
            gemm_nn(n, n_in, n, 1, V, n, W, n_in, layer.skip, E, n_in)
            to = shift(P_next, i * n_in * (N + 1))
            if layer.skip:
                for a in range(n_in):
                    move(n_in, shift(E, a * n_in), shift(to, a * N))
            _form_E(1, n, n_in, 0, 1, S_i, D_i, W, E)
            gemm_tn(n_in, n_in, n, 1, W, n_in, E, n_in, layer.skip, to, N)
            for k in range(r):
                for a in range(n):
                    row, e, factor = shift(K, (k * n + a) * N + i * n_in), shift(E, a * n_in), R[k * B + i]
                    for j in range(n_in):
                        row[j] = factor * e[j]
        _form_V(1, n, 0, 1, S_i, D_i, V)
    if N > 0:
        _add_C1(B, n, n_in, r, 0, B, r == layer.d, lam, Q, K)
    # Row k of blocks of M: sum_i R[k,i] R[l,i] V_i, l >= k, as one product over the samples.
    pairs, blocks = mixed, shift(mixed, r * B)
    for k in range(r):
        for l in range(k, r):
            for i in range(B):
                pairs[l * B + i] = R[k * B + i] * R[l * B + i]
        here = shift(blocks, k * n * n)
        gemm_nn(r - k, n * n, B, 1, shift(pairs, k * B), B, P, n * n, 0, here, n * n)
        for l in range(k, r):
            for a in range(n):
                move(n, shift(blocks, (l * n + a) * n), shift(M, (k * n + a) * m + l * n))
    _add_damping(layer, damping, M)


@inner
def _columns_of_samples(layer, B, first, count, W, S, D, lam, Q, R, V, E, K, P_next, T):
    """K, the next P without C2 and T = (R (x) I) V in the columns of ``count`` samples from ``first`` on.

    V comes as P in these columns, E as scratch.
    """
    n, n_in, r, N = layer.n_out, layer.n_in, layer.r, layer.N
    # E = P J first: column scaling, then one product with W for all rows and samples.
    if N > 0 and layer.skip:
        move(B * n * count * n, V, E)
    _scale_columns(B * n, count * n, shift(S, first * n), V)
    if N > 0:
        gemm_nn(B * n * count, n_in, n, 1, V, n, W, n_in, layer.skip, E, n_in)
        if layer.skip:
            if count == B:
                move(N * N, E, P_next)
            else:
                for j in range((first + count) * n_in):
                    move(count * n_in, shift(E, j * count * n_in), shift(P_next, j * N + first * n_in))
        _form_E(B, n, n_in, first, count, S, D, W, E)
        _multiply_R(B, n, r, R, count * n_in, E, shift(K, first * n_in), N)
        _add_C1(B, n, n_in, r, first, count, r == layer.d, lam, Q, K)
        _next_front(B, n, n_in, first, count, W, E, layer.skip, P_next)
    _form_V(B, n, first, count, S, D, V)
    if B > 1:
        _multiply_R(B, n, r, R, count * n, V, shift(T, first * n), B * n)


@inner
def _inner_dense_front(layer, B, W, S, D, lam, Q, R, damping, P, K, P_next, M, mixed):
    """M, K and the next P without C2, a few samples' columns of P at a time. P is destroyed."""
    n, r, m = layer.n_out, layer.r, layer.m
    a, count = B * n, layer.at_once
    # (R (x) I) V comes first; V is P itself where that is taken whole.
    T = mixed
    V, E = P, shift(T, m * a if B > 1 else 0)
    if count == B:
        reflect(a, 0, a, P, a, P, a)
    else:
        V, E = E, shift(E, a * count * n)
    for first in range(0, B, count):
        here = min(B - first, count)
        if count < B:
            symmetric_columns(a, first * n, here * n, P, V)
        _columns_of_samples(layer, B, first, here, W, S, D, lam, Q, R, V, E, K, P_next, T)
    if B == 1:
        for k in range(r):
            for l in range(k, r):
                for a in range(n):
                    to, row, factor = shift(M, (k * n + a) * m + l * n), shift(V, a * n), R[k] * R[l]
                    for b in range(n):
                        to[b] = factor * row[b]
    else:
        # The same from the right, a row at a time.
        for k in range(r):
            for row in range(k * n, (k + 1) * n):
                to = shift(M, row * m + k * n)
                gemm_nn(r - k, n, B, 1, shift(R, k * B), B, shift(T, row * a), n, 0, to, n)
    _add_damping(layer, damping, M)


@inner
def _subtract_C2(B, n, n_in, r, lam, Q, damping, P_next, outside):
    """P' -= (1/eps) (lam lam^T) (x) (I - Q Q^T)[:n_in, :n_in], upper triangle; ``outside`` is scratch, n_in x n_in."""
    N = B * n_in
    # First of all: where Q covers a coordinate this is 0, and 1 / eps multiplies no rounding.
    gemm_tn(n_in, n_in, r, -1, Q, n_in, Q, n_in, 0, outside, n_in)
    for j in range(n_in):
        outside[j * (n_in + 1)] += 1
    for i in range(B):
        for i2 in range(i, B):
            weight = 0.0
            for a in range(n):
                weight += lam[i * n + a] * lam[i2 * n + a]
            weight /= damping
            for j in range(n_in):
                to, row = shift(P_next, (i * n_in + j) * N + i2 * n_in), shift(outside, j * n_in)
                for j2 in range(j if i == i2 else 0, n_in):
                    to[j2] -= weight * row[j2]


@njit(inline="always")
def _dense_front(layer, is_last, params, lin, row_space, damping, P, K, P_next, work):
    B = lin.output.shape[0]
    W, S, D = pointer(params, layer.weights), pointer(lin.S, layer.u), pointer(lin.D, layer.u)
    lam, Q, R = pointer(lin.lam, layer.u), pointer(row_space.Q, layer.Q), pointer(row_space.R, layer.R)
    P, K, P_next = pointer(P, 0), pointer(K, 0), pointer(P_next, 0)
    M, mixed = pointer(work.M, 0), pointer(work.mixed, 0)
    if is_last:
        curvature = pointer(lin.curvature, 0)
        _last_dense_front(layer, B, W, S, D, lam, Q, R, damping, curvature, P, K, P_next, M, mixed)
    else:
        _inner_dense_front(layer, B, W, S, D, lam, Q, R, damping, P, K, P_next, M, mixed)
    if layer.N > 0 and layer.r < layer.d:
        _subtract_C2(B, layer.n_out, layer.n_in, layer.r, lam, Q, damping, P_next, mixed)


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
    else:
        mirror(P)
    M = matrix(work.M, 0, m, m)
    Dx, P_Dx, P_Dz = pointer(lin.Dx, layer.Dx), pointer(work.mixed, 0), pointer(work.mixed, a * p)
    gemm_nn(a, p, a, 1, pointer(P, 0), a, Dx, p, 0, P_Dx, p)
    copy(p * p, lin.Dxx, layer.Dxx, M, 0)
    gemm_tn_upper(p, p, a, 1, Dx, p, P_Dx, p, 1, pointer(M, 0), p)
    for k in range(p):
        M[k, k] += damping
    if N == 0:
        return
    # Dz is block diagonal over the samples: one product for each block of columns, then of rows.
    for i in range(B if layer.taps == 0 else 0):
        Dz_i = pointer(lin.Dz, layer.Dz + i * n * n_in)
        gemm_nn(a, n_in, n, 1, pointer(P, i * n), a, Dz_i, n_in, 0, shift(P_Dz, i * n_in), N)
    if layer.taps > 0:
        local_front(layer, lin, P, work.mixed, a * p, P_next)
    copy(p * N, lin.Dzx, layer.Dzx, K, 0)
    gemm_tn(p, N, a, 1, Dx, p, P_Dz, N, 1, pointer(K, 0), N)
    if layer.taps > 0:
        return
    if B > 1:
        fill(N * N, 0.0, P_next, 0)
    for i in range(B):
        here, Dzz_i = i * n_in, layer.Dzz + i * n_in * n_in
        for j in range(n_in):
            copy(n_in, lin.Dzz, Dzz_i + j * n_in, P_next, (here + j) * N + here)
        Dz_i, row = pointer(lin.Dz, layer.Dz + i * n * n_in), shift(P_Dz, i * n * N + here)
        to = pointer(P_next, here * N + here)
        gemm_tn_upper(n_in, n_in, n, 1, Dz_i, n_in, row, N, 1, to, N)
        gemm_tn(n_in, N - here - n_in, n, 1, Dz_i, n_in, shift(row, n_in), N, 0, shift(to, n_in), N)


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
        else:
            mirror(P)
        convolution_front(layer, params, lin, row_space, damping, P, K, P_next, work)
    else:
        _dense_front(layer, is_last, params, lin, row_space, damping, P, K, P_next, work)
    if layer.by_parameter:
        _add_ridge(layer, row_space.ridge, matrix(work.M, 0, layer.m, layer.m))
