"""The row space of every dense layer's input (docs/theory.md, section 3), a block a layer: twin of
`kernels.row_space`.
"""

from ...kernels.steps import row_space as twin
from ...kernels.steps.layer_table import BLOCKS
from ..plumbing.target import LANES, cuda, device, kernel, largest, start_team, total

reflection = device(twin.reflection)


@device
def _reflector(team, A, at, size):
    """Overwrite x = A[at : at + size] by v, v[0] = 1, of the reflection ``I - tau v v^T`` that maps x to ``beta e_1``.

    Returns (tau, beta) in all threads.
    """
    top, squares, alpha = 0.0, 0.0, A[at]
    for j in range(1 + team.rank, size, team.size):
        top = max(top, abs(A[at + j]))
    top, _ = largest(team, top, 0)
    if top == 0.0:
        if team.rank == 0:
            A[at] = 1.0
        return 0.0, alpha
    # Scaled, so that squares neither overflow nor vanish.
    top = max(top, abs(alpha))
    for j in range(team.rank, size, team.size):
        scaled = A[at + j] / top
        squares += scaled * scaled
    tau, beta = reflection(alpha, top, total(team, squares))
    for j in range(1 + team.rank, size, team.size):
        A[at + j] /= alpha - beta
    if team.rank == 0:
        A[at] = 1.0
    cuda.syncthreads()
    return tau, beta


@device
def _reflect(team, tau, A, v, x, size):
    """x <- (I - tau v v^T) x for the vectors at A[v:] and A[x:]."""
    product = 0.0
    for j in range(team.rank, size, team.size):
        product += A[v + j] * A[x + j]
    product = tau * total(team, product)
    for j in range(team.rank, size, team.size):
        A[x + j] -= product * A[v + j]
    cuda.syncthreads()


@kernel
def span(table, lin, space, work):
    """Fill Q and R of layer ``blockIdx.x``. work : (layers, scratch) in float64, twice `Sizes.reflectors`."""
    team = start_team()
    layer = table[cuda.blockIdx.x]
    if layer.kind == BLOCKS:
        return
    B, n_in, d, r = lin.output.shape[0], layer.n_in, layer.d, layer.r
    Z, Q, R, A = lin.Z, space.Q, space.R, work[cuda.blockIdx.x]
    if r == d:
        for j in range(team.group, d, team.groups):
            for i in range(team.lane, B, LANES):
                R[layer.R + j * B + i] = Z[layer.z + i * n_in + j] if j < n_in else 1.0
        return
    # Row i of A is column i of Zt^T; after step i it holds reflector i behind its diagonal.
    tau, Qt = B * d, B * d + B
    for i in range(team.group, B, team.groups):
        for j in range(team.lane, d, LANES):
            A[i * d + j] = Z[layer.z + i * n_in + j] if j < n_in else 1.0
            A[Qt + i * d + j] = 1.0 if i == j else 0.0
        for k in range(team.lane, B, LANES):
            R[layer.R + i * B + k] = 0.0
    cuda.syncthreads()
    for k in range(B):
        factor, beta = _reflector(team, A, k * d + k, d - k)
        if team.rank == 0:
            A[tau + k] = factor
            R[layer.R + k * B + k] = beta
        for i in range(k + 1, B):
            _reflect(team, factor, A, k * d + k, i * d + k, d - k)
            if team.rank == 0:
                R[layer.R + k * B + i] = A[i * d + k]
    cuda.syncthreads()
    for k in range(B):
        for i in range(k, -1, -1):
            _reflect(team, A[tau + i], A, i * d + i, Qt + k * d + i, d - i)
    for k in range(team.group, r, team.groups):
        for j in range(team.lane, d, LANES):
            Q[layer.Q + (k * n_in + j if j < n_in else r * n_in + k)] = A[Qt + k * d + j]


@device
def project(team, layer, space, g, at, gQ, gQ_at):
    """gQ (r x n) <- (g Q)^T, g being the layer's slice of a flat vector at ``at``. No barrier at the end."""
    n, n_in, r, Q = layer.n_out, layer.n_in, layer.r, space.Q
    for k in range(team.group, r, team.groups):
        for a in range(team.lane, n, LANES):
            if r < layer.d:
                value = Q[layer.Q + r * n_in + k] * g[at + n * n_in + a] if layer.bias else g.dtype.type(0)
                for j in range(n_in):
                    value += Q[layer.Q + k * n_in + j] * g[at + a * n_in + j]
            else:
                value = g[at + a * n_in + k] if k < n_in else g[at + n * n_in + a]
            gQ[gQ_at + k * n + a] = value


@device
def mix(team, layer, damping, W1, W1_at, hQ, hQ_at):
    """h Q, transposed, <- W1 - h Q / eps. No barrier at the end."""
    n = layer.n_out
    for k in range(team.group, layer.r, team.groups):
        for a in range(team.lane, n, LANES):
            here = k * n + a
            hQ[hQ_at + here] = W1[W1_at + here] - hQ[hQ_at + here] / damping


@device
def place(team, layer, space, damping, W1, W1_at, x, at, hQ, hQ_at):
    """x <- h / eps + (W1 - h Q / eps) Q^T, which `mix` has left in hQ. No barrier at the end."""
    n, n_in, r, Q = layer.n_out, layer.n_in, layer.r, space.Q
    for a in range(team.group, n, team.groups):
        for j in range(team.lane, layer.d, LANES):
            to = at + (a * n_in + j if j < n_in else n * n_in + a)
            if r < layer.d:
                value = x[to] / damping
                for k in range(r):
                    q = Q[layer.Q + (k * n_in + j if j < n_in else r * n_in + k)]
                    value += hQ[hQ_at + k * n + a] * q
                x[to] = value
            else:
                x[to] = W1[W1_at + j * n + a]


@device
def expand(team, layer, space, damping, W1, W1_at, x, at, hQ, hQ_at):
    """x <- W1 Q^T + (h - h Q Q^T) / eps, x being the layer's slice of a flat vector at ``at``, which holds h.

    W1 is r x n, as hQ, which is scratch. h matters only where Q is not the identity.
    """
    if layer.r < layer.d:
        project(team, layer, space, x, at, hQ, hQ_at)
        mix(team, layer, damping, W1, W1_at, hQ, hQ_at)
        cuda.syncthreads()
    place(team, layer, space, damping, W1, W1_at, x, at, hQ, hQ_at)
    cuda.syncthreads()
