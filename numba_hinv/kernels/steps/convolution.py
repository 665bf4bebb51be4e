"""What every sweep does at a convolution: the dense layer of docs/theory.md, section 3, on the rows of patches.

A sample's state is channels x height x length, its patches Zt_i fan_in x positions (`patches`), and
``U_i = W Zt_i + c``, ``Z'_i = phi(U_i)`` (+ Z_i) units x positions: S, D and lam lie like the states that the layer
leaves, and nothing is ever reordered. Rows (i, t) of the patch matrix take the place of samples in R, r x (B
positions), which acts on states (i, a, t) as ``(R (x) I)[(k, a), (i, a, t)] = R[k, (i, t)]``. A is W on gathered
patches; its transpose folds. The front of its elimination is in `convolution_front`.
"""

from ..dense.microkernel import pointer
from ..dense.product import gemm_nt, gemm_tn, multiply, multiply_nt, multiply_tn
from ..plumbing.compiled import inner
from ..plumbing.memory import add, copy, fill, matrix, vector
from .layer_table import for_convolutions
from .patches import channel_size, element, fold, gather, kernel_size
from .row_space import expand, project


@inner
def _times_W(layer, params, at, state, state_at, beta, patches, u):
    """u (units x positions) <- W patches + beta u, patches those of ``state[state_at:]``, W at ``params[at:]``."""
    gather(layer, state, state_at, patches, 0, layer.positions, 1)
    W = matrix(params, at, layer.units, layer.fan_in)
    multiply(1.0, W, matrix(patches, 0, layer.fan_in, layer.positions), beta, u)


@inner
def _spread(layer, params, u):
    """u <- c 1^T, or 0 without a bias; c comes after W in ``params``, the layer's slice of a flat vector."""
    n, T = u.shape
    for a in range(n):
        fill(T, params[n * layer.fan_in + a] if layer.bias else 0.0, u, a * T)


@inner
def _add_gradient(layer, nu, patches, gradient, at):
    """``gradient[at:]`` += nu Zt_i^T, by W and then by c."""
    n, T = nu.shape
    multiply_nt(1.0, nu, matrix(patches, 0, layer.fan_in, T), 1.0, matrix(gradient, at, n, layer.fan_in))
    if layer.bias:
        dc = vector(gradient, at + n * layer.fan_in, n)
        for a in range(n):
            total = nu.dtype.type(0)
            for t in range(T):
                total += nu[a, t]
            dc[a] += total


@for_convolutions
def convolution_pre_activation(layer, params, lin, patches, U):
    """U_i = W Zt_i + c of all samples."""
    B = lin.output.shape[0]
    n, T = layer.units, layer.positions
    x = vector(params, layer.weights, layer.p + layer.held)
    for i in range(B):
        U_i = matrix(U, i * n * T, n, T)
        _spread(layer, x, U_i)
        _times_W(layer, x, 0, lin.Z, layer.z + i * layer.n_in, 1.0, patches, U_i)


@for_convolutions
def convolution_backward(layer, params, lin, gradient, G_out, G_in, patches):
    """lam = S G', D = phi'' G'; dW = sum_i lam_i Zt_i^T, dc = sum lam; G = A^T lam (+ G') but in the first layer."""
    B = lin.output.shape[0]
    n, T, n_in = layer.units, layer.positions, layer.n_in
    W = matrix(params, layer.weights, n, layer.fan_in)
    S = vector(lin.S, layer.u, B * n * T)
    D = vector(lin.D, layer.u, B * n * T)
    lam = vector(lin.lam, layer.u, B * n * T)
    G = vector(G_out, 0, B * n * T)
    for i in range(G.size):
        lam[i] = S[i] * G[i]
        D[i] *= G[i]
    fill(layer.p, 0.0, gradient, layer.parameters)
    if layer.N > 0:
        if layer.skip:
            copy(G_in.size, G_out, 0, G_in, 0)
        else:
            fill(G_in.size, 0.0, G_in, 0)
    for i in range(B):
        lam_i = matrix(lam, i * n * T, n, T)
        if layer.p > 0:
            gather(layer, lin.Z, layer.z + i * n_in, patches, 0, T, 1)
            _add_gradient(layer, lam_i, patches, gradient, layer.parameters)
        if layer.N > 0:
            multiply_tn(1.0, W, lam_i, 0.0, matrix(patches, 0, layer.fan_in, T))
            fold(layer, patches, G_in, i * n_in)


@for_convolutions
def convolution_tangent(layer, params, lin, V, dZ, dU, dZ_next, patches):
    """dU_i = W dZt_i + dW Zt_i + dc and dZ' = S dU (+ dZ); nothing comes into the first layer."""
    k, P = V.shape
    B = lin.output.shape[0]
    n, T, n_in = layer.units, layer.positions, layer.n_in
    S = matrix(lin.S, layer.u, B, n * T)
    Zt_i = matrix(patches, 0, layer.fan_in, T)
    if layer.p == 0:
        fill(dU.size, 0.0, dU, 0)
    for i in range(B if layer.p > 0 else 0):
        gather(layer, lin.Z, layer.z + i * n_in, patches, 0, T, 1)
        for t in range(k):
            dU_i = matrix(dU, (t * B + i) * n * T, n, T)
            dx = vector(V, t * P + layer.parameters, layer.p)
            _spread(layer, dx, dU_i)
            multiply(1.0, matrix(dx, 0, n, layer.fan_in), Zt_i, 1.0, dU_i)
    _finish_tangent(layer, params, S, dZ, dU, dZ_next, patches)


@inner
def _finish_tangent(layer, params, S, dZ, dU, dZ_next, patches):
    """dU_i += W dZt_i, dZ' = S dU (+ dZ)."""
    B = S.shape[0]
    n, T = layer.units, layer.positions
    for i in range(dZ.shape[0]):
        if layer.N > 0:
            _times_W(layer, params, layer.weights, dZ, i * layer.n_in, 1.0, patches, matrix(dU, i * n * T, n, T))
        for a in range(n * T):
            dZ_next[i, a] = S[i % B, a] * dU[i, a]
    if layer.skip and layer.N > 0:
        add(dZ.size, dZ, 0, dZ_next, 0)


@for_convolutions
def convolution_adjoint(layer, params, lin, V, HV, dZ, dU, q, q_next, patches):
    """nu = S q + D dU, in dU; (Hv)_l = sum_i nu_i Zt_i^T + lam_i [dZt_i, 0]^T; q <- A^T nu + dA^T lam (+ q)."""
    k, P = V.shape
    B = lin.output.shape[0]
    n, T, n_in = layer.units, layer.positions, layer.n_in
    W = matrix(params, layer.weights, n, layer.fan_in)
    S = matrix(lin.S, layer.u, B, n * T)
    D = matrix(lin.D, layer.u, B, n * T)
    Zt_i = matrix(patches, 0, layer.fan_in, T)
    for t in range(k):
        for i in range(B):
            for a in range(n * T):
                dU[t * B + i, a] = S[i, a] * q[t * B + i, a] + D[i, a] * dU[t * B + i, a]
        fill(layer.p, 0.0, HV, t * P + layer.parameters)
    if layer.N > 0:
        if layer.skip:
            copy(q.size, q, 0, q_next, 0)
        else:
            fill(q_next.size, 0.0, q_next, 0)
    if layer.p == 0:
        for i in range(k * B):
            multiply_tn(1.0, W, matrix(dU, i * n * T, n, T), 0.0, Zt_i)
            fold(layer, patches, q_next, i * n_in)
        return
    for i in range(B):
        gather(layer, lin.Z, layer.z + i * n_in, patches, 0, T, 1)
        for t in range(k):
            nu_i = matrix(dU, (t * B + i) * n * T, n, T)
            _add_gradient(layer, nu_i, patches, HV, t * P + layer.parameters)
        if layer.N == 0:
            continue
        lam_i = matrix(lin.lam, layer.u + i * n * T, n, T)
        for t in range(k):
            at = t * P + layer.parameters
            gather(layer, dZ, (t * B + i) * n_in, patches, 0, T, 1)
            multiply_nt(1.0, lam_i, Zt_i, 1.0, matrix(HV, at, n, layer.fan_in))
            multiply_tn(1.0, W, matrix(dU, (t * B + i) * n * T, n, T), 0.0, Zt_i)
            multiply_tn(1.0, matrix(V, at, n, layer.fan_in), lam_i, 1.0, Zt_i)
            fold(layer, patches, q_next, (t * B + i) * n_in)


@for_convolutions
def convolution_back(layer, params, lin, row_space, damping, b, v, v_next, y, gQ, work):
    """y = g Q + (R vu)^T and v_next = A^T vu (+ v) - (1/eps) C2^T (g - g Q Q^T), vu = S v."""
    k, P = b.shape
    B = lin.output.shape[0]
    n, T, n_in, fan_in, r, m = layer.units, layer.positions, layer.n_in, layer.fan_in, layer.r, layer.m
    W = matrix(params, layer.weights, n, fan_in)
    S = matrix(lin.S, layer.u, B, n * T)
    one = b.dtype.type(1)
    if layer.N > 0:
        if layer.skip:
            copy(v.size, v, 0, v_next, 0)
        else:
            fill(v_next.size, 0.0, v_next, 0)
    for t in range(k):
        at = t * P + layer.parameters
        gQ_t = matrix(gQ, t * m, r, n)
        project(layer, row_space, b, at, gQ_t)
        copy(m, gQ, t * m, y, t * m)
        for i in range(B):
            vu = matrix(work.u, 0, n, T)
            for a in range(n * T):
                work.u[a] = S[i, a] * v[t * B + i, a]
            # A frozen layer has r = 0: there is nothing to add.
            gemm_nt(
                r, n, T, one, pointer(row_space.R, layer.R + i * T), layer.rows, pointer(vu, 0), T, one,
                pointer(y, t * m), n,
            )
            if layer.N > 0:
                patches = matrix(work.patches, 0, fan_in, T)
                multiply_tn(1.0, W, vu, 0.0, patches)
                if r < layer.d:
                    lam_i = matrix(lin.lam, layer.u + i * n * T, n, T)
                    gQ_lam = matrix(work.small, 0, r, T)
                    multiply_tn(-1.0 / damping, matrix(b, at, n, fan_in), lam_i, 1.0, patches)
                    multiply(1.0 / damping, gQ_t, lam_i, 0.0, gQ_lam)
                    multiply_tn(1.0, matrix(row_space.Q, layer.Q, r, fan_in), gQ_lam, 1.0, patches)
                fold(layer, work.patches, v_next, (t * B + i) * n_in)


@for_convolutions
def convolution_step(layer, params, lin, row_space, W1, dZ, dZ_next, patches):
    """dU_i = dW Zt_i + W dZt_i and dZ' = S dU (+ dZ); dW Zt_i = W1^T R_i, since W2 is orthogonal to Zt."""
    k, B = W1.shape[0], lin.output.shape[0]
    n, T, r, m = layer.units, layer.positions, layer.r, layer.m
    one, zero = dZ.dtype.type(1), dZ.dtype.type(0)
    if r == 0:
        fill(dZ_next.size, 0.0, dZ_next, 0)
    for t in range(k if r > 0 else 0):
        for i in range(B):
            gemm_tn(
                n, T, r, one, pointer(W1, t * m), n, pointer(row_space.R, layer.R + i * T), layer.rows, zero,
                pointer(dZ_next, (t * B + i) * n * T), T,
            )
    S = matrix(lin.S, layer.u, B, n * T)
    _finish_tangent(layer, params, S, dZ, matrix(dZ_next, 0, k * B, n * T), dZ_next, patches)


@for_convolutions
def convolution_expand_all(layer, lin, row_space, damping, W1, dZ, x, start, stride, hQ, patches):
    """x = W1 Q^T + (h - h Q Q^T) / eps, h = g - [sum_i lam_i dZt_i^T, 0]; the slices of x hold g."""
    B = lin.output.shape[0]
    n, T, fan_in, r, m = layer.units, layer.positions, layer.fan_in, layer.r, layer.m
    for t in range(W1.shape[0]):
        at = start + t * stride
        if r < layer.d and layer.N > 0:
            for i in range(B):
                gather(layer, dZ, (t * B + i) * layer.n_in, patches, 0, T, 1)
                lam_i = matrix(lin.lam, layer.u + i * n * T, n, T)
                multiply_nt(-1.0, lam_i, matrix(patches, 0, fan_in, T), 1.0, matrix(x, at, n, fan_in))
        expand(layer, row_space, damping, matrix(W1, t * m, r, n), x, at, matrix(hQ, 0, r, n))


@for_convolutions
def convolution_gather(layer, lin, unit, z, e, patches):
    """e_t = sum_i lam_i[unit] Zt_i^T of each row t of z (k, N), Zt_i being its patches."""
    k, B = z.shape[0], lin.output.shape[0]
    n, T, fan_in = layer.units, layer.positions, layer.fan_in
    for t in range(k):
        for i in range(B):
            gather(layer, z, (t * B + i) * layer.n_in, patches, 0, T, 1)
            lam = matrix(lin.lam, layer.u + (i * n + unit) * T, 1, T)
            keep = 0.0 if i == 0 else 1.0
            multiply_nt(1.0, lam, matrix(patches, 0, fan_in, T), keep, matrix(e, t * fan_in, 1, fan_in))


@for_convolutions
def convolution_project(layer, Q, Sigma, projected, patches):
    """projected (N, B, r, T) <- Q Zt_i of each row of Sigma."""
    N, T, fan_in, r = layer.N, layer.positions, layer.fan_in, layer.r
    for i in range(N * (N // layer.n_in)):
        gather(layer, Sigma, i * layer.n_in, patches, 0, T, 1)
        multiply(1.0, Q, matrix(patches, 0, fan_in, T), 0.0, matrix(projected, i * r * T, r, T))


@for_convolutions
def convolution_variances(layer, lin, unit, Sigma, out):
    """The diagonal of cov(e), e as `convolution_gather` makes it."""
    n, T, n_in = layer.units, layer.positions, layer.n_in
    B = Sigma.shape[0] // n_in
    for j in range(layer.fan_in):
        channel, k = divmod(j, kernel_size(layer))
        start = channel * channel_size(layer)
        total = 0.0
        for t in range(T):
            here = element(layer, k, t)
            for t2 in range(T if here >= 0 else 0):
                there = element(layer, k, t2)
                if there < 0:
                    continue
                for i in range(B):
                    lam = lin.lam[layer.u + (i * n + unit) * T + t]
                    for i2 in range(B):
                        lam2 = lin.lam[layer.u + (i2 * n + unit) * T + t2]
                        total += lam * lam2 * Sigma[i * n_in + start + here, i2 * n_in + start + there]
        out[j] = total
