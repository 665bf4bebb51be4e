"""The front of one layer (design, sections 3 and 4) by a thread block: twin of `kernels.front`, with its formulas.

Matrices are a buffer and where they start in it. P is the full B n x B n matrix, but of a last dense layer, whose
curvature is read sample by sample where the loss has left it. Of M and P' only the upper triangles are computed.
"""

from ..kernels.layers import BLOCKS
from .target import LANES, cuda, device


@device
def _inner_product(zero, layer, B, W, W_at, S, S_at, P, P_at, x, i2, j):
    """Entry of P J = P (diag(S) W (+ I)): row x of P, column j of sample i2."""
    n, n_in = layer.n_out, layer.n_in
    row = P_at + x * B * n + i2 * n
    value = P[row + j] if layer.skip else zero
    for b in range(n):
        value += P[row + b] * S[S_at + i2 * n + b] * W[W_at + b * n_in + j]
    return value


@device
def _last_product(zero, layer, W, W_at, S, S_at, C, i, a, j):
    """The same where P is block diagonal: row a and column j of sample i, C being the curvature of all samples."""
    n, n_in = layer.n_out, layer.n_in
    value = C[i, a, j] if layer.skip else zero
    for b in range(n):
        value += C[i, a, b] * S[S_at + i * n + b] * W[W_at + b * n_in + j]
    return value


@device
def _outside(zero, layer, lam, u, Q, i, j, i2, j2):
    """Entry of C2^T C2 = (lam lam^T) (x) (I - Q Q^T)."""
    n, n_in = layer.n_out, layer.n_in
    value, weight = zero, zero
    if j == j2:
        value = zero + 1
    for k in range(layer.r):
        value -= Q[layer.Q + k * n_in + j] * Q[layer.Q + k * n_in + j2]
    for a in range(n):
        weight += lam[u + i * n + a] * lam[u + i2 * n + a]
    return weight * value


@device
def _C1(zero, layer, lam, Q, k, a, i, j):
    """Entry of C1: lam[i, a] Q[j, k], Q being the identity where it is not stored."""
    factor = lam[layer.u + i * layer.n_out + a]
    if layer.r < layer.d:
        return factor * Q[layer.Q + k * layer.n_in + j]
    return factor if k == j else zero


@device
def _dense_front(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    zero = damping - damping
    n, n_in, r, m, N = layer.n_out, layer.n_in, layer.r, layer.m, layer.N
    u, w, a_all = layer.u, layer.parameters, B * layer.n_out
    S, D, lam, C, Q, R = lin.S, lin.D, lin.lam, lin.curvature, space.Q, space.R
    columns = n_in if is_last else N
    if N > 0:
        # T <- E, and P J to P' where there is a skip.
        for x in range(team.group, a_all, team.groups):
            i, a = x // n, x % n
            for y in range(team.lane, columns, LANES):
                i2, j = (i, y) if is_last else (y // n_in, y % n_in)
                if is_last:
                    value = _last_product(zero, layer, params, w, S, u, C, i, a, j)
                else:
                    value = _inner_product(zero, layer, B, params, w, S, u, P, P_at, x, i2, j)
                if layer.skip:
                    X[X_at + x * N + i2 * n_in + j] = value
                value *= S[u + x]
                if i == i2:
                    value += D[u + x] * params[w + a * n_in + j]
                T[T_at + x * columns + y] = value
        cuda.syncthreads()
        for x in range(team.group, m, team.groups):
            k, a = x // n, x % n
            for y in range(team.lane, N, LANES):
                i2, j = y // n_in, y % n_in
                value = _C1(zero, layer, lam, Q, k, a, i2, j)
                if is_last:
                    value += R[layer.R + k * B + i2] * T[T_at + (i2 * n + a) * n_in + j]
                else:
                    for i in range(B):
                        value += R[layer.R + k * B + i] * T[T_at + (i * n + a) * N + y]
                K[K_at + x * N + y] = value
        for x in range(team.group, N, team.groups):
            i, j = x // n_in, x % n_in
            for y in range(x + team.lane, N, LANES):
                i2, j2 = y // n_in, y % n_in
                value = zero
                if i == i2 or not is_last:
                    if layer.skip:
                        value += X[X_at + x * N + y]
                    at = T_at + i * n * columns + (j2 if is_last else y)
                    for a in range(n):
                        value += params[w + a * n_in + j] * T[at + a * columns]
                if layer.r < layer.d:
                    value -= _outside(zero, layer, lam, u, Q, i, j, i2, j2) / damping
                X[X_at + x * N + y] = value
        cuda.syncthreads()
    if is_last:
        for x in range(team.group, m, team.groups):
            k, a = x // n, x % n
            for y in range(x + team.lane, m, LANES):
                l, b = y // n, y % n
                value = zero
                for i in range(B):
                    V = S[u + i * n + a] * C[i, a, b] * S[u + i * n + b]
                    if a == b:
                        V += D[u + i * n + a]
                    value += R[layer.R + k * B + i] * R[layer.R + l * B + i] * V
                if x == y:
                    value += damping
                M[M_at + x * m + y] = value
        cuda.syncthreads()
        return
    # T <- (R (x) I) V, then the same from the right.
    for x in range(team.group, m, team.groups):
        k, a = x // n, x % n
        for y in range(team.lane, a_all, LANES):
            value = zero
            for i in range(B):
                V = S[u + i * n + a] * P[P_at + (i * n + a) * a_all + y] * S[u + y]
                if i * n + a == y:
                    V += D[u + y]
                value += R[layer.R + k * B + i] * V
            T[T_at + x * a_all + y] = value
    cuda.syncthreads()
    for x in range(team.group, m, team.groups):
        for y in range(x + team.lane, m, LANES):
            l, b = y // n, y % n
            value = zero
            for i in range(B):
                value += R[layer.R + l * B + i] * T[T_at + x * a_all + i * n + b]
            if x == y:
                value += damping
            M[M_at + x * m + y] = value
    cuda.syncthreads()


@device
def write_curvature(team, zero, B, n, C, P, P_at):
    """P (B n x B n) <- the loss's curvature, block diagonal over the samples."""
    for x in range(team.group, B * n, team.groups):
        for y in range(team.lane, B * n, LANES):
            here = x // n == y // n
            P[P_at + x * B * n + y] = C[x // n, x % n, y % n] if here else zero
    cuda.syncthreads()


@device
def _blocks_front(team, layer, is_last, B, lin, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    zero = damping - damping
    n, n_in, p, N, a_all = layer.n_out, layer.n_in, layer.p, layer.N, B * layer.n_out
    Dx, Dz, Dxx, Dzx, Dzz = layer.Dx, layer.Dz, layer.Dxx, layer.Dzx, layer.Dzz
    if is_last:
        write_curvature(team, zero, B, n, lin.curvature, P, P_at)
    # P Dx, then P Dz behind it.
    G_at = T_at + a_all * p
    for x in range(team.group, a_all, team.groups):
        for y in range(team.lane, p, LANES):
            value = zero
            for b in range(a_all):
                value += P[P_at + x * a_all + b] * lin.Dx[Dx + b * p + y]
            T[T_at + x * p + y] = value
        for y in range(team.lane, N, LANES):
            i, j = y // n_in, y % n_in
            value = zero
            for b in range(n):
                value += P[P_at + x * a_all + i * n + b] * lin.Dz[Dz + (i * n + b) * n_in + j]
            T[G_at + x * N + y] = value
    cuda.syncthreads()
    for x in range(team.group, p, team.groups):
        for y in range(x + team.lane, p, LANES):
            value = lin.Dxx[Dxx + x * p + y]
            for b in range(a_all):
                value += lin.Dx[Dx + b * p + x] * T[T_at + b * p + y]
            if x == y:
                value += damping
            M[M_at + x * p + y] = value
        for y in range(team.lane, N, LANES):
            value = lin.Dzx[Dzx + x * N + y]
            for b in range(a_all):
                value += lin.Dx[Dx + b * p + x] * T[G_at + b * N + y]
            K[K_at + x * N + y] = value
    for x in range(team.group, N, team.groups):
        i, j = x // n_in, x % n_in
        for y in range(x + team.lane, N, LANES):
            value = zero
            if y // n_in == i:
                value += lin.Dzz[Dzz + x * n_in + y % n_in]
            for b in range(n):
                value += lin.Dz[Dz + (i * n + b) * n_in + j] * T[G_at + (i * n + b) * N + y]
            X[X_at + x * N + y] = value
    cuda.syncthreads()


@device
def form_front(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """Fill M, K and the upper triangle of P' (X) of a layer from its P. T : scratch, `Sizes.mixed` numbers."""
    if layer.kind == BLOCKS:
        _blocks_front(team, layer, is_last, B, lin, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at)
    else:
        _dense_front(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
