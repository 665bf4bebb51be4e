"""The Hessian-vector product (docs/theory.md, sections 2 and 7): twin of `kernels.multiply`.

Tangents and adjoints of vector t lie in row t of (k, size) arrays. ``tangents`` and ``adjoints`` are a thread block's
work for each vector, over several layers. Those named ``wide_`` do one wide layer by the whole device; ``blockIdx.y``
is the vector.
"""

from ...kernels.steps.layer_table import BLOCKS
from ..plumbing.target import LANES, cuda, device, kernel, lane_total, start_grid_team, start_team, total


@device
def blocks_tangent(team, layer, B, lin, V, dZ, z, dZ_next, z_next):
    """dZ' = Dx dx + Dz dZ of one vector. No barrier at the end."""
    n, n_in, p, x = layer.n_out, layer.n_in, layer.p, layer.parameters
    for row in range(team.rank, B * n, team.size):
        i = row // n
        value = V.dtype.type(0)
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
def _write_nu(team, layer, B, lin, nu, q):
    """nu = S q + D dU; nu takes the place of dU."""
    u = layer.u
    for x in range(team.rank, B * layer.n_out, team.size):
        nu[u + x] = lin.S[u + x] * q[x] + lin.D[u + x] * nu[u + x]


@device
def _write_product(team, layer, B, lin, HV, dZ, nu):
    """(Hv)_l = nu^T Zt + lam^T [dZ, 0]"""
    n, n_in, w, z, u, lam = layer.n_out, layer.n_in, layer.parameters, layer.z, layer.u, lin.lam
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


@device
def _dense_adjoint(team, layer, B, params, lin, V, HV, dZ, nu, q, q_next):
    """nu = S q + D dU; (Hv)_l = nu^T Zt + lam^T [dZ, 0]; q <- nu W + lam dW (+ q)."""
    n, n_in, w, u, lam = layer.n_out, layer.n_in, layer.parameters, layer.u, lin.lam
    _write_nu(team, layer, B, lin, nu, q)
    cuda.syncthreads()
    _write_product(team, layer, B, lin, HV, dZ, nu)
    if layer.N > 0:
        for i in range(team.group, B, team.groups):
            for j in range(team.lane, n_in, LANES):
                value = q[i * n_in + j] if layer.skip else 0.0
                for a in range(n):
                    at, here = u + i * n + a, w + a * n_in + j
                    value += nu[at] * params[here] + lam[at] * V[here]
                q_next[i * n_in + j] = value


@device
def _start_adjoint(team, table, lin, dZ, q):
    """q = (loss curvature) dZ_L"""
    B, n_L = lin.output.shape
    z = table[table.size - 1].z + B * table[table.size - 1].n_in
    to = q[table.size % 2]
    for i in range(team.group, B, team.groups):
        for a in range(team.lane, n_L, LANES):
            value = 0.0
            for b in range(n_L):
                value += lin.curvature[i, a, b] * dZ[z + i * n_L + b]
            to[i * n_L + a] = value


@kernel
def adjoints(table, start, stop, params, lin, V, HV, dZ, dU, q):
    """The sweep back, over layers stop-1..start: HV (k, P) <- V H; row ``blockIdx.x``. q : (k, 2, B x width)."""
    team = start_team()
    t = cuda.blockIdx.x
    B, V, HV, dZ, dU = lin.output.shape[0], V[t], HV[t], dZ[t], dU[t]
    if stop == table.size:
        _start_adjoint(team, table, lin, dZ, q[t])
        cuda.syncthreads()
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        q_l, q_next = q[t, (l + 1) % 2], q[t, l % 2]
        if layer.kind == BLOCKS:
            _blocks_adjoint(team, layer, B, lin, V, HV, dZ, q_l, q_next)
        else:
            _dense_adjoint(team, layer, B, params, lin, V, HV, dZ, dU, q_l, q_next)
        cuda.syncthreads()


@kernel
def wide_tangents(table, l, params, lin, V, dZ, dU):
    """The sweep forth over layer l; a block an output."""
    team, layer, a, t = start_team(), table[l], cuda.blockIdx.x, cuda.blockIdx.y
    n, n_in, w, z, u, B = layer.n_out, layer.n_in, layer.parameters, layer.z, layer.u, lin.output.shape[0]
    for i in range(B):
        value = 0.0
        for j in range(team.rank, n_in, team.size):
            value += lin.Z[z + i * n_in + j] * V[t, w + a * n_in + j]
            if layer.N > 0:
                value += dZ[t, z + i * n_in + j] * params[w + a * n_in + j]
        value = total(team, value)
        if team.rank == 0:
            if layer.bias:
                value += V[t, w + n * n_in + a]
            here = i * n + a
            dU[t, u + here] = value
            value *= lin.S[u + here]
            if layer.skip and layer.N > 0:
                value += dZ[t, z + here]
            dZ[t, z + B * n_in + here] = value


@kernel
def wide_blocks_tangents(table, l, lin, V, dZ):
    """The sweep forth over layer l, one that is given as blocks."""
    layer, t, B = table[l], cuda.blockIdx.y, lin.output.shape[0]
    z = layer.z
    blocks_tangent(start_grid_team(), layer, B, lin, V[t], dZ[t], z, dZ[t], z + B * layer.n_in)


@kernel
def wide_start(table, lin, dZ, q):
    """What the sweep back starts with."""
    t = cuda.blockIdx.y
    _start_adjoint(start_grid_team(), table, lin, dZ[t], q[t])


@kernel
def wide_nu(table, l, lin, nu, q):
    """nu of layer l."""
    t = cuda.blockIdx.y
    _write_nu(start_grid_team(), table[l], lin.output.shape[0], lin, nu[t], q[t, (l + 1) % 2])


@kernel
def wide_product(table, l, lin, HV, dZ, nu):
    """(Hv)_l"""
    t = cuda.blockIdx.y
    _write_product(start_grid_team(), table[l], lin.output.shape[0], lin, HV[t], dZ[t], nu[t])


@kernel
def wide_adjoints(table, l, params, lin, V, nu, q):
    """q of the inputs of layer l; a block some of them, `LANES`."""
    team, layer, t = start_team(), table[l], cuda.blockIdx.y
    n, n_in, w, u, lam = layer.n_out, layer.n_in, layer.parameters, layer.u, lin.lam
    j = cuda.blockIdx.x * LANES + team.lane
    for i in range(lin.output.shape[0]):
        value = 0.0
        if j < n_in:
            for a in range(team.group, n, team.groups):
                at, here = u + i * n + a, w + a * n_in + j
                value += nu[t, at] * params[here] + lam[at] * V[t, here]
        value = lane_total(team, value)
        if j < n_in and team.group == 0:
            q[t, l % 2, i * n_in + j] = value + q[t, (l + 1) % 2, i * n_in + j] if layer.skip else value


@kernel
def wide_blocks_adjoints(table, l, lin, V, HV, dZ, q):
    """The sweep back over layer l, one that is given as blocks."""
    t = cuda.blockIdx.y
    _blocks_adjoint(
        start_grid_team(), table[l], lin.output.shape[0], lin, V[t], HV[t], dZ[t], q[t, (l + 1) % 2], q[t, l % 2]
    )
