"""Sweeps over one segment of a chain that was cut (docs/theory.md, section 10), for the multipliers of its last states.

The segment has been eliminated as a chain of its own. Its parameters act on the states y in which it ends, held fixed
by c multipliers mu, as they do on its incoming states. With Phi = dy/dz and K_mu = Dx^T Phi^T, last layers first,

    Y_mu = F^-1 K_mu,    Phi' = Phi J - Y_mu^T sigma Y,    Psi' = Psi + Y_mu^T sigma Y_mu

A solve meets mu in two places: `gather` finds what a right-hand side does to it, and `release` takes it, once it is
known, out of what the elimination has left of the parameters.
"""

import math
from typing import NamedTuple

import numpy as np

from ..dense.product import multiply, multiply_nt
from ..dense.signed_cholesky import pack_size
from ..dense.triangular import forward_vectors
from ..plumbing.compiled import kernel
from ..plumbing.memory import copy, matrix, reshape, vector
from ..plumbing.status import NOT_FINITE, OK
from .substitute import adjoint, apply_signs


class Carried(NamedTuple):
    """What goes through a segment with its elimination, and scratch. Layer l reads Phi in row (l + 1) % 2 or l % 2."""

    phi: np.ndarray  # (2, largest Phi)
    psi: np.ndarray  # (c, c)
    y: np.ndarray  # (2, c m)
    u: np.ndarray  # c B width


def carried(sizes, phi, c, num_samples, dtype):
    """An uninitialised `Carried` for c multipliers and a largest Phi of so many numbers."""
    return Carried(
        np.empty((2, phi), dtype), np.empty((c, c), dtype), np.empty((2, c * sizes.m), dtype),
        np.empty(c * num_samples * sizes.width, dtype),
    )


def carried_bytes(sizes, phi, c, num_samples, dtype):
    """Bytes of `carried`."""
    return dtype.itemsize * (2 * phi + c * c + 2 * c * sizes.m + c * num_samples * sizes.width)


@kernel
def carry(table, start, stop, params, lin, row_space, factors, Y_mu, at, work):
    """Y_mu, Phi and Psi of layers stop-1, ..., start, which have been eliminated.

    at : where Y_mu of a layer would start if there were no rows of pivots before it.
    Returns (status, layer at which the sweep ended).
    """
    B, c = lin.output.shape[0], work.psi.shape[0]
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        m, N = layer.m, layer.N
        Phi = matrix(work.phi, work.phi.shape[1] * ((l + 1) % 2), c * B, layer.n_out)
        Phi_next = matrix(work.phi, work.phi.shape[1] * (l % 2), c * B, layer.n_in)
        y = matrix(work.y, 0, c, m)
        adjoint(layer, params, lin, row_space, Phi, Phi_next, y, work.u)
        L = vector(factors.L, layer.L, pack_size(m))
        pivots = vector(factors.pivots, layer.pivots, 2 * m)
        scales = matrix(factors.scales, layer.scales, m, 2)
        forward_vectors(L, pivots, scales, y, matrix(work.y, work.y.shape[1], c, m))
        kept = matrix(Y_mu, at + layer.scales // 2 * c, m, c)
        growth = factors.growth[l]
        for k in range(m):
            size = 0.0
            for j in range(c):
                kept[k, j] = y[j, k]
                size += y[j, k] * y[j, k]
            if not size <= growth:
                growth = size
        if not math.isfinite(growth):
            return NOT_FINITE, l
        factors.growth[l] = growth
        apply_signs(factors.num_positive[l], y)
        multiply(1.0, y, kept, 1.0, work.psi)
        if N > 0:
            multiply(-1.0, y, matrix(factors.Y, layer.Y, m, N), 1.0, reshape(Phi_next, c, N))
    return OK, start


@kernel
def gather(table, start, stop, factors, Y_mu, at, x, mu, work):
    """mu (k, c) <- mu - (sigma y)^T Y_mu of layers start..stop-1, y lying in their slices of x (k, P)."""
    k, P = x.shape
    c = mu.shape[1]
    for l in range(start, stop):
        layer = table[l]
        y = matrix(work.y, 0, k, layer.m)
        for t in range(k):
            copy(layer.m, x, t * P + layer.parameters, y, t * layer.m)
        apply_signs(factors.num_positive[l], y)
        multiply(-1.0, y, matrix(Y_mu, at + layer.scales // 2 * c, layer.m, c), 1.0, mu)


@kernel
def release(table, start, stop, Y_mu, at, mu, x, work):
    """y <- y - Y_mu mu of layers start..stop-1, y lying in their slices of x (k, P)."""
    k, P = x.shape
    c = mu.shape[1]
    for l in range(start, stop):
        layer = table[l]
        y = matrix(work.y, 0, k, layer.m)
        for t in range(k):
            copy(layer.m, x, t * P + layer.parameters, y, t * layer.m)
        multiply_nt(-1.0, mu, matrix(Y_mu, at + layer.scales // 2 * c, layer.m, c), 1.0, y)
        for t in range(k):
            copy(layer.m, y, t * layer.m, x, t * P + layer.parameters)
