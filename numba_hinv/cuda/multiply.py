"""The Hessian-vector product (design, sections 2 and 4), a thread block a vector: twin of `kernels.multiply`.

Tangents and adjoints of vector t lie in row t of (k, size) arrays.
"""

from ..kernels.layers import BLOCKS
from .target import LANES, cuda, device, kernel, start_team


@device
def blocks_tangent(team, layer, B, lin, V, dZ, z, dZ_next, z_next):
    """dZ' = Dx dx + Dz dZ of one vector. No barrier at the end."""
    n, n_in, p, x = layer.n_out, layer.n_in, layer.p, layer.parameters
    for row in range(team.rank, B * n, team.size):
        i = row // n
        value = V[x] * 0 if p > 0 else lin.output[0, 0] * 0
        for y in range(p):
            value += lin.Dx[layer.Dx + row * p + y] * V[x + y]
        if layer.N > 0:
            for j in range(n_in):
                value += lin.Dz[layer.Dz + row * n_in + j] * dZ[z + i * n_in + j]
        dZ_next[z_next + row] = value


@kernel
def tangents(table, start, stop, params, lin, V, dZ, dU):
    """The sweep forth, over layers start..stop-1: dZ and dU of vector ``blockIdx.x``, a row of V (k, P)."""
    team = start_team()
    t = cuda.blockIdx.x
    B, V, dZ, dU = lin.output.shape[0], V[t], dZ[t], dU[t]
    for l in range(start, stop):
        layer = table[l]
        n, n_in, w, z, u = layer.n_out, layer.n_in, layer.parameters, layer.z, layer.u
        z_next = z + B * n_in
        if layer.kind == BLOCKS:
            blocks_tangent(team, layer, B, lin, V, dZ, z, dZ, z_next)
            cuda.syncthreads()
            continue
        for i in range(team.group, B, team.groups):
            for a in range(team.lane, n, LANES):
                value = V[w + n * n_in + a] if layer.bias else 0.0
                for j in range(n_in):
                    value += lin.Z[z + i * n_in + j] * V[w + a * n_in + j]
                if layer.N > 0:
                    for j in range(n_in):
                        value += dZ[z + i * n_in + j] * params[w + a * n_in + j]
                here = i * n + a
                dU[u + here] = value
                value *= lin.S[u + here]
                if layer.skip and layer.N > 0:
                    value += dZ[z + here]
                dZ[z_next + here] = value
        cuda.syncthreads()


@device
def _blocks_adjoint(team, layer, B, lin, V, HV, dZ, q, q_next):
    """(Hv)_l = Dxx dx + Dzx dZ + Dx^T q; q <- Dzx^T dx + Dzz dZ + Dz^T q."""
    n, n_in, p, x, z = layer.n_out, layer.n_in, layer.p, layer.parameters, layer.z
    N = layer.N
    for row in range(team.rank, p, team.size):
        value = 0.0
        for y in range(p):
            value += lin.Dxx[layer.Dxx + row * p + y] * V[x + y]
        for y in range(N):
            value += lin.Dzx[layer.Dzx + row * N + y] * dZ[z + y]
        for y in range(B * n):
            value += lin.Dx[layer.Dx + y * p + row] * q[y]
        HV[x + row] = value
    for row in range(team.rank, N, team.size):
        i, j = row // n_in, row % n_in
        value = 0.0
        for y in range(p):
            value += lin.Dzx[layer.Dzx + y * N + row] * V[x + y]
        for y in range(n_in):
            value += lin.Dzz[layer.Dzz + row * n_in + y] * dZ[z + i * n_in + y]
        for y in range(n):
            value += lin.Dz[layer.Dz + (i * n + y) * n_in + j] * q[i * n + y]
        q_next[row] = value


@device
def _dense_adjoint(team, layer, B, params, lin, V, HV, dZ, nu, q, q_next):
    """nu = S q + D dU; (Hv)_l = nu^T Zt + lam^T [dZ, 0]; q <- nu W + lam dW (+ q). nu takes the place of dU."""
    n, n_in, w, z, u, lam = layer.n_out, layer.n_in, layer.parameters, layer.z, layer.u, lin.lam
    for x in range(team.rank, B * n, team.size):
        nu[u + x] = lin.S[u + x] * q[x] + lin.D[u + x] * nu[u + x]
    cuda.syncthreads()
    for a in range(team.group, n, team.groups):
        for j in range(team.lane, layer.d, LANES):
            value = 0.0
            for i in range(B):
                at, here = u + i * n + a, z + i * n_in + j
                if j == n_in:
                    value += nu[at]
                elif layer.N > 0:
                    value += nu[at] * lin.Z[here] + lam[at] * dZ[here]
                else:
                    value += nu[at] * lin.Z[here]
            HV[w + (a * n_in + j if j < n_in else n * n_in + a)] = value
    if layer.N > 0:
        for i in range(team.group, B, team.groups):
            for j in range(team.lane, n_in, LANES):
                value = q[i * n_in + j] if layer.skip else 0.0
                for a in range(n):
                    at, here = u + i * n + a, w + a * n_in + j
                    value += nu[at] * params[here] + lam[at] * V[here]
                q_next[i * n_in + j] = value


@kernel
def adjoints(table, start, stop, params, lin, V, HV, dZ, dU, q):
    """The sweep back, over layers stop-1..start: HV (k, P) <- V H; row ``blockIdx.x``. q : (k, 2, B x width)."""
    team = start_team()
    t = cuda.blockIdx.x
    B, n_L = lin.output.shape
    V, HV, dZ, dU = V[t], HV[t], dZ[t], dU[t]
    L = table.size
    if stop == L:
        # q = (loss curvature) dZ_L
        z = table[L - 1].z + B * table[L - 1].n_in
        to = q[t, L % 2]
        for i in range(team.group, B, team.groups):
            for a in range(team.lane, n_L, LANES):
                value = 0.0
                for b in range(n_L):
                    value += lin.curvature[i, a, b] * dZ[z + i * n_L + b]
                to[i * n_L + a] = value
        cuda.syncthreads()
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        q_l, q_next = q[t, (l + 1) % 2], q[t, l % 2]
        if layer.kind == BLOCKS:
            _blocks_adjoint(team, layer, B, lin, V, HV, dZ, q_l, q_next)
        else:
            _dense_adjoint(team, layer, B, params, lin, V, HV, dZ, dU, q_l, q_next)
        cuda.syncthreads()
