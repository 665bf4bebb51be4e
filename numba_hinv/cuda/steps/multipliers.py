"""Multipliers of the states in which a segment ends (docs/theory.md, section 10), carried through a layer by a thread
block.

The segment has been cut off there, so that its parameters act on those states y, held fixed by multipliers mu, as they
do on its own incoming states: with Phi = d y / d z and the coupling K_mu = Dx^T Phi^T of the layer's parameters with
mu,

    Phi' = Phi J - K_mu^T M^-1 K,    Psi' = Psi + K_mu^T M^-1 K_mu
"""

from ...kernels.steps.layer_table import BLOCKS
from ..dense.pivot_arithmetic import place
from ..dense.triangular import forward_rows
from ..plumbing.target import LANES, cuda, device, largest


@device
def _couple(team, layer, B, c, lin, space, Phi, Phi_at, pivots, K_mu, K_at):
    """K_mu (m x c) <- Dx^T Phi^T, rows in the order of elimination. No barrier at the end."""
    n, m, p, u, a_all = layer.n_out, layer.m, layer.p, layer.u, B * layer.n_out
    for k in range(team.group, m, team.groups):
        row = place(pivots[layer.pivots + k])
        for j in range(team.lane, c, LANES):
            phi = Phi_at + j * a_all
            value = Phi.dtype.type(0)
            if layer.kind == BLOCKS:
                for x in range(a_all):
                    value += lin.Dx[layer.Dx + x * p + row] * Phi[phi + x]
            else:
                a = row % n
                for i in range(B):
                    x = i * n + a
                    value += space.R[layer.R + row // n * B + i] * lin.S[u + x] * Phi[phi + x]
            K_mu[K_at + k * c + j] = value


@device
def _times_J(team, layer, B, c, params, lin, Phi, Phi_at, Next_at):
    """The Phi at Next_at (c x N) <- Phi J. No barrier at the end."""
    n, n_in, N, w, u, a_all = layer.n_out, layer.n_in, layer.N, layer.parameters, layer.u, B * layer.n_out
    for j in range(team.group, c, team.groups):
        for y in range(team.lane, N, LANES):
            i, b = y // n_in, y % n_in
            phi = Phi_at + j * a_all + i * n
            value = Phi[phi + b] if layer.skip else Phi.dtype.type(0)
            for a in range(n):
                if layer.kind == BLOCKS:
                    value += Phi[phi + a] * lin.Dz[layer.Dz + (i * n + a) * n_in + b]
                else:
                    value += Phi[phi + a] * lin.S[u + i * n + a] * params[w + a * n_in + b]
            Phi[Next_at + j * N + y] = value


@device
def carry_multipliers(
    team, layer, B, c, params, lin, space, U, U_at, pivots, scales, num_positive, Y, Y_at, K_mu, K_at, Phi, Phi_at,
    Next_at, Psi_at, kept, kept_at,
):
    """Phi and Psi of the states before the layer from those behind it, c multipliers; Psi lies in the buffer of Phi.

    U is that of `signed_cholesky`, and Y = F^{-1} K in the order of elimination. K_mu : scratch, m x c. F^{-1} K_mu is
    left in ``kept``, ordered as Y is kept. Returns the largest squared norm of one of its rows in all threads.
    """
    m, N, order = layer.m, layer.N, layer.pivots + layer.m
    _couple(team, layer, B, c, lin, space, Phi, Phi_at, pivots, K_mu, K_at)
    _times_J(team, layer, B, c, params, lin, Phi, Phi_at, Next_at)
    cuda.syncthreads()
    forward_rows(team, m, c, U, U_at, pivots, layer.pivots, scales, layer.scales, K_mu, K_at)
    growth = 0.0
    for k in range(team.rank, m, team.size):
        size = 0.0
        for j in range(c):
            size += float(K_mu[K_at + k * c + j]) * float(K_mu[K_at + k * c + j])
        if not size <= growth:
            growth = size
    for k in range(team.group, m, team.groups):
        to = kept_at + pivots[order + k] * c
        for j in range(team.lane, c, LANES):
            kept[to + j] = K_mu[K_at + k * c + j]
    for j in range(team.group, c, team.groups):
        for y in range(team.lane, N, LANES):
            value = Phi[Next_at + j * N + y]
            for k in range(m):
                product = K_mu[K_at + k * c + j] * Y[Y_at + k * N + y]
                value -= product if pivots[order + k] < num_positive else -product
            Phi[Next_at + j * N + y] = value
        for i in range(team.lane, c, LANES):
            value = Phi[Psi_at + j * c + i]
            for k in range(m):
                product = K_mu[K_at + k * c + j] * K_mu[K_at + k * c + i]
                value += product if pivots[order + k] < num_positive else -product
            Phi[Psi_at + j * c + i] = value
    return largest(team, growth, 0)[0]
