"""The front of one layer (docs/theory.md, sections 3 and 7): twin of `kernels.front`, with its formulas.

Matrices are a buffer and where they start in it. P is the full B n x B n matrix, but of a last dense layer, whose
curvature is read sample by sample where the loss has left it. Of M and P' only the upper triangles are computed.

`form_front` is the work of one thread block. What it calls between two barriers are stages with its arguments, each of
which any team may do: a block, or (`wide`) a whole grid.
"""

from ...kernels.steps.layer_table import BLOCKS
from ..plumbing.target import LANES, cuda, device


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
def _C1(zero, layer, lam, Q, k, a, i, j):
    """Entry of C1: lam[i, a] Q[j, k], Q being the identity where it is not stored."""
    factor = lam[layer.u + i * layer.n_out + a]
    if layer.r < layer.d:
        return factor * Q[layer.Q + k * layer.n_in + j]
    return factor if k == j else zero


@device
def _E(layer, lin, params, x, i2, j, value):
    """Entry of E = diag(S) P J + diag(D) A from that of P J: row x, column j of sample i2."""
    n = layer.n_out
    value *= lin.S[layer.u + x]
    if x // n == i2:
        value += lin.D[layer.u + x] * params[layer.parameters + x % n * layer.n_in + j]
    return value


@device
def write_E(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """T <- E, and P J to P' where there is a skip."""
    zero = damping - damping
    n, n_in, N, w, S = layer.n_out, layer.n_in, layer.N, layer.parameters, lin.S
    columns = n_in if is_last else N
    for x in range(team.group, B * n, team.groups):
        for y in range(team.lane, columns, LANES):
            i2, j = (x // n, y) if is_last else (y // n_in, y % n_in)
            if is_last:
                value = _last_product(zero, layer, params, w, S, layer.u, lin.curvature, i2, x % n, j)
            else:
                value = _inner_product(zero, layer, B, params, w, S, layer.u, P, P_at, x, i2, j)
            if layer.skip:
                X[X_at + x * N + i2 * n_in + j] = value
            T[T_at + x * columns + y] = _E(layer, lin, params, x, i2, j, value)


@device
def write_J(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """K <- the per-sample Jacobians J = diag(S) W (+ I), which are B x n_out x n_in; they take the place of K."""
    n, n_in, one = layer.n_out, layer.n_in, K.dtype.type(1)
    for x in range(team.group, B * n, team.groups):
        for j in range(team.lane, n_in, LANES):
            value = lin.S[layer.u + x] * params[layer.parameters + x % n * n_in + j]
            K[K_at + x * n_in + j] = value + one if layer.skip and x % n == j else value


@device
def turn_to_E(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """T <- E, and P J to P' where there is a skip, from P J in T."""
    N, n_in = layer.N, layer.n_in
    for x in range(team.group, B * layer.n_out, team.groups):
        for y in range(team.lane, N, LANES):
            value = T[T_at + x * N + y]
            if layer.skip:
                X[X_at + x * N + y] = value
            T[T_at + x * N + y] = _E(layer, lin, params, x, y // n_in, y % n_in, value)


@device
def write_K(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """K from E in T."""
    zero = damping - damping
    n, n_in, N, R = layer.n_out, layer.n_in, layer.N, space.R
    for x in range(team.group, layer.m, team.groups):
        k, a = x // n, x % n
        for y in range(team.lane, N, LANES):
            i2, j = y // n_in, y % n_in
            value = _C1(zero, layer, lin.lam, space.Q, k, a, i2, j)
            if is_last:
                value += R[layer.R + k * B + i2] * T[T_at + (i2 * n + a) * n_in + j]
            else:
                for i in range(B):
                    value += R[layer.R + k * B + i] * T[T_at + (i * n + a) * N + y]
            K[K_at + x * N + y] = value


@device
def write_next(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """P' <- J^T P J + A^T diag(D) A = A^T E (+ P J with skip)."""
    zero = damping - damping
    n, n_in, N, w = layer.n_out, layer.n_in, layer.N, layer.parameters
    columns = n_in if is_last else N
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
            X[X_at + x * N + y] = value


@device
def subtract_outside(
    team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
):
    """P' <- P' - (1/eps) C2^T C2, C2^T C2 = (lam lam^T) (x) (I - Q Q^T); reads and writes what `write_next` does."""
    if layer.r == layer.d:
        return
    zero, one = X.dtype.type(0), X.dtype.type(1)
    n, n_in, N, u, lam, Q = layer.n_out, layer.n_in, layer.N, layer.u, lin.lam, space.Q
    for x in range(team.group, N, team.groups):
        i, j = x // n_in, x % n_in
        known, weight = -1, zero
        for y in range(x + team.lane, N, LANES):
            i2, j2 = y // n_in, y % n_in
            if i2 != known:
                known, weight = i2, zero
                for a in range(n):
                    weight += lam[u + i * n + a] * lam[u + i2 * n + a]
            value = one if j == j2 else zero
            for k in range(layer.r):
                value -= Q[layer.Q + k * n_in + j] * Q[layer.Q + k * n_in + j2]
            X[X_at + x * N + y] -= weight * value / damping


@device
def write_last_M(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """M of the last layer, whose P is block diagonal."""
    zero = damping - damping
    n, m, u, S, D, C, R = layer.n_out, layer.m, layer.u, lin.S, lin.D, lin.curvature, space.R
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


@device
def write_RV(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """T <- (R (x) I) V"""
    zero = damping - damping
    n, u, S, a_all = layer.n_out, layer.u, lin.S, B * layer.n_out
    for x in range(team.group, layer.m, team.groups):
        k, a = x // n, x % n
        for y in range(team.lane, a_all, LANES):
            value = zero
            for i in range(B):
                V = S[u + i * n + a] * P[P_at + (i * n + a) * a_all + y] * S[u + y]
                if i * n + a == y:
                    V += lin.D[u + y]
                value += space.R[layer.R + k * B + i] * V
            T[T_at + x * a_all + y] = value


@device
def write_M(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """M <- (R (x) I) V (R (x) I)^T + eps I from the product in T."""
    zero = damping - damping
    n, m, a_all = layer.n_out, layer.m, B * layer.n_out
    for x in range(team.group, m, team.groups):
        for y in range(x + team.lane, m, LANES):
            l, b = y // n, y % n
            value = zero
            for i in range(B):
                value += space.R[layer.R + l * B + i] * T[T_at + x * a_all + i * n + b]
            if x == y:
                value += damping
            M[M_at + x * m + y] = value


@device
def _dense_front(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    if layer.N > 0:
        write_E(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
        cuda.syncthreads()
        write_K(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
        write_next(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
        subtract_outside(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
        cuda.syncthreads()
    if is_last:
        write_last_M(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
    else:
        write_RV(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
        cuda.syncthreads()
        write_M(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
    cuda.syncthreads()


@device
def write_curvature(
    team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
):
    """P <- the loss's curvature, block diagonal over the samples."""
    zero, n = damping - damping, layer.n_out
    for x in range(team.group, B * n, team.groups):
        for y in range(team.lane, B * n, LANES):
            P[P_at + x * B * n + y] = lin.curvature[x // n, x % n, y % n] if x // n == y // n else zero


@device
def write_PD(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """T <- P Dx, then P Dz behind it, of a layer given as blocks."""
    zero = damping - damping
    n, n_in, p, N, a_all = layer.n_out, layer.n_in, layer.p, layer.N, B * layer.n_out
    for x in range(team.group, a_all, team.groups):
        for y in range(team.lane, p, LANES):
            value = zero
            for b in range(a_all):
                value += P[P_at + x * a_all + b] * lin.Dx[layer.Dx + b * p + y]
            T[T_at + x * p + y] = value
        for y in range(team.lane, N, LANES):
            i, j = y // n_in, y % n_in
            value = zero
            for b in range(n):
                value += P[P_at + x * a_all + i * n + b] * lin.Dz[layer.Dz + (i * n + b) * n_in + j]
            T[T_at + a_all * p + x * N + y] = value


@device
def write_second(
    team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
):
    """M <- Dxx + eps I, K <- Dzx, P' <- Dzz, which is block diagonal over the samples."""
    zero = damping - damping
    n_in, p, N = layer.n_in, layer.p, layer.N
    for x in range(team.group, p, team.groups):
        for y in range(x + team.lane, p, LANES):
            value = lin.Dxx[layer.Dxx + x * p + y]
            M[M_at + x * p + y] = value + damping if x == y else value
        for y in range(team.lane, N, LANES):
            K[K_at + x * N + y] = lin.Dzx[layer.Dzx + x * N + y]
    for x in range(team.group, N, team.groups):
        for y in range(x + team.lane, N, LANES):
            here = x // n_in == y // n_in
            X[X_at + x * N + y] = lin.Dzz[layer.Dzz + x * n_in + y % n_in] if here else zero


@device
def add_PD(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """M += Dx^T P Dx, K += Dx^T P Dz, P' += Dz^T P Dz, from T; reads and writes what `write_second` does."""
    n, n_in, p, N, a_all = layer.n_out, layer.n_in, layer.p, layer.N, B * layer.n_out
    Dx, Dz, G_at = layer.Dx, layer.Dz, T_at + a_all * p
    for x in range(team.group, p, team.groups):
        for y in range(x + team.lane, p, LANES):
            value = M[M_at + x * p + y]
            for b in range(a_all):
                value += lin.Dx[Dx + b * p + x] * T[T_at + b * p + y]
            M[M_at + x * p + y] = value
        for y in range(team.lane, N, LANES):
            value = K[K_at + x * N + y]
            for b in range(a_all):
                value += lin.Dx[Dx + b * p + x] * T[G_at + b * N + y]
            K[K_at + x * N + y] = value
    for x in range(team.group, N, team.groups):
        i, j = x // n_in, x % n_in
        for y in range(x + team.lane, N, LANES):
            value = X[X_at + x * N + y]
            for b in range(n):
                value += lin.Dz[Dz + (i * n + b) * n_in + j] * T[G_at + (i * n + b) * N + y]
            X[X_at + x * N + y] = value


@device
def _blocks_front(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    if is_last:
        write_curvature(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
        cuda.syncthreads()
    write_PD(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at)
    cuda.syncthreads()
    write_second(
        team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
    )
    add_PD(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at)
    cuda.syncthreads()


@device
def form_front(team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at):
    """Fill M, K and the upper triangle of P' (X) of a layer from its P. T : scratch, `Sizes.mixed_whole` numbers."""
    if layer.kind == BLOCKS:
        _blocks_front(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
    else:
        _dense_front(
            team, layer, is_last, B, params, lin, space, damping, P, P_at, X, X_at, M, M_at, K, K_at, T, T_at
        )
