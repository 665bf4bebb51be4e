"""The row space of every structured layer's input (docs/theory.md, section 3): ``Zt^T = Q R``, ``Zt = [Z, 1]``.

The rows of Z are the samples, or the patches that a convolution reads. Only the part of a weight perturbation in the
row space of Zt reaches later layers. Where Zt has fewer rows than columns: thin QR by Householder reflections, which
leaves Q orthonormal even if rows repeat or vanish. Otherwise Q is the identity, not stored, and R is Zt^T. This does
not depend on the damping, so factorizations share it. A bias with a damping of its own, as an L2 term may ask for, is
kept apart: Q is that of Z, with one more column that is the bias alone.
"""

import math
from typing import NamedTuple

import numpy as np

from ..dense.microkernel import pointer
from ..dense.product import gemm_nt, gemm_tn
from ..plumbing.compiled import inner, kernel, shared
from ..plumbing.memory import copy, fill, matrix, vector
from .layer_table import BLOCKS, CONVOLUTION
from .patches import gather


class RowSpace(NamedTuple):
    """Q and R of all layers, packed (offsets ``Q`` and ``R`` of the layer table)."""

    Q: np.ndarray  # where rows < d: Q[:fan_in]^T, r x fan_in, then the r entries of its bias row
    R: np.ndarray  # r x rows
    ridge: np.ndarray  # (P,), read where the layer table says ``by_parameter``; of any length elsewhere


def workspace(sizes, dtype):
    """Scratch for `span`: the reflectors of one layer."""
    return np.empty((2, sizes.reflectors), dtype)


@shared
def reflection(alpha, largest, squares):
    """(tau, beta) of the reflection of x to ``beta e_1``: x[0] is alpha, ``squares`` the square of x / largest."""
    beta = -math.copysign(largest * math.sqrt(squares), alpha)
    return (beta - alpha) / beta, beta


@inner
def _reflector(x):
    """Overwrite x by v, v[0] = 1, of the reflection ``I - tau v v^T`` that maps x to ``beta e_1``: (tau, beta)."""
    largest = 0.0
    for j in range(1, x.size):
        largest = max(largest, abs(x[j]))
    alpha = x[0]
    if largest == 0.0:
        x[0] = 1.0
        return 0.0, alpha
    # Scaled, so that squares neither overflow nor vanish.
    largest = max(largest, abs(alpha))
    total = 0.0
    for j in range(x.size):
        total += (x[j] / largest) ** 2
    tau, beta = reflection(alpha, largest, total)
    for j in range(1, x.size):
        x[j] /= alpha - beta
    x[0] = 1.0
    return tau, beta


@inner
def _reflect(tau, v, x):
    """x <- (I - tau v v^T) x."""
    product = 0.0
    for j in range(v.size):
        product += v[j] * x[j]
    product *= tau
    for j in range(v.size):
        x[j] -= product * v[j]


@kernel
def span(table, lin, row_space, work):
    """Fill Q and R of every structured layer. Cost: 4 d rows^2 flops a layer where rows < d, a transpose elsewhere."""
    B = lin.output.shape[0]
    for l in range(table.size):
        layer = table[l]
        if layer.kind == BLOCKS or layer.p == 0:
            continue
        n_in, fan_in, d, r, num_rows = layer.n_in, layer.fan_in, layer.d, layer.r, layer.rows
        Z = matrix(lin.Z, layer.z, B, n_in)
        R = matrix(row_space.R, layer.R, r, num_rows)
        if r == d:
            if layer.kind == CONVOLUTION:
                for i in range(B):
                    patches = vector(row_space.R, layer.R, r * num_rows)
                    gather(layer, lin.Z, layer.z + i * n_in, patches, i * layer.positions, num_rows, 1)
            else:
                for j in range(n_in):
                    for i in range(B):
                        R[j, i] = Z[i, j]
            if layer.bias:
                fill(num_rows, 1.0, R, fan_in * num_rows)
            continue
        # Row i of A is column i of Zt^T; after step i it holds reflector i behind its diagonal.
        taken = num_rows
        if layer.apart:
            d, taken = fan_in, r - 1
        A = matrix(work, 0, num_rows, d)
        if layer.kind == CONVOLUTION:
            for i in range(B):
                gather(layer, lin.Z, layer.z + i * n_in, vector(A, 0, A.size), i * layer.positions * d, 1, d)
        else:
            for i in range(B):
                copy(n_in, Z, i * n_in, A, i * d)
        if layer.bias and not layer.apart:
            for i in range(num_rows):
                A[i, fan_in] = 1.0
        fill(R.size, 0.0, R, 0)
        tau = vector(work, work.shape[1] + num_rows * d, num_rows)
        for k in range(num_rows):
            tau[k], R[k, k] = _reflector(vector(A, k * d + k, d - k))
            for i in range(k + 1, num_rows):
                _reflect(tau[k], vector(A, k * d + k, d - k), vector(A, i * d + k, d - k))
                R[k, i] = A[i, k]
        Qt = matrix(work, work.shape[1], num_rows, d)
        for k in range(taken):
            fill(d, 0.0, Qt, k * d)
            Qt[k, k] = 1.0
            for i in range(k, -1, -1):
                _reflect(tau[i], vector(A, i * d + i, d - i), vector(Qt, k * d + i, d - i))
        Q = matrix(row_space.Q, layer.Q, r, fan_in)
        for k in range(taken):
            copy(fan_in, Qt, k * d, Q, k * fan_in)
        if layer.apart:
            fill(fan_in, 0.0, Q, taken * fan_in)
            fill(num_rows, 1.0, R, taken * num_rows)
            q = vector(row_space.Q, layer.Q + r * fan_in, r)
            fill(taken, 0.0, q, 0)
            q[taken] = 1.0
        elif layer.bias:
            q = vector(row_space.Q, layer.Q + r * fan_in, r)
            for k in range(r):
                q[k] = Qt[k, fan_in]


@inner
def project_units(layer, row_space, g, at, first, count, gQ):
    """`project` for units first..first + count - 1 alone, where Q is not the identity."""
    n, fan_in, r = layer.units, layer.fan_in, layer.r
    gemm_nt(
        r, count, fan_in, gQ.dtype.type(1), pointer(row_space.Q, layer.Q), fan_in,
        pointer(g, at + first * fan_in), fan_in, gQ.dtype.type(0), pointer(gQ, first), n,
    )
    if layer.bias:
        g_c = vector(g, at + n * fan_in, n)
        q = vector(row_space.Q, layer.Q + r * fan_in, r)
        for k in range(r):
            for a in range(first, first + count):
                gQ[k, a] += q[k] * g_c[a]


@inner
def project(layer, row_space, g, at, gQ):
    """gQ (r x units) <- (g Q)^T, g being the layer's slice of a flat vector at ``at``."""
    n, fan_in = layer.units, layer.fan_in
    if layer.p == 0:
        return
    if layer.r < layer.d:
        project_units(layer, row_space, g, at, 0, n, gQ)
    else:
        g_W = matrix(g, at, n, fan_in)
        for a in range(n):
            for k in range(fan_in):
                gQ[k, a] = g_W[a, k]
        if layer.bias:
            g_c = vector(g, at + n * fan_in, n)
            for a in range(n):
                gQ[fan_in, a] = g_c[a]


@inner
def expand_units(layer, row_space, damping, W1, x, at, first, count, hQ):
    """`expand` for units first..first + count - 1 alone, where Q is not the identity."""
    n, fan_in, r = layer.units, layer.fan_in, layer.r
    # x = h / eps + (W1 - h Q / eps) Q^T
    project_units(layer, row_space, x, at, first, count, hQ)
    scale = 1.0 / damping
    for j in range(r):
        for a in range(first, first + count):
            hQ[j, a] = W1[j, a] - scale * hQ[j, a]
    gemm_tn(
        count, fan_in, r, hQ.dtype.type(1), pointer(hQ, first), n, pointer(row_space.Q, layer.Q), fan_in,
        hQ.dtype.type(scale), pointer(x, at + first * fan_in), fan_in,
    )
    if layer.bias:
        q = vector(row_space.Q, layer.Q + r * fan_in, r)
        x_c = vector(x, at + n * fan_in, n)
        for a in range(first, first + count):
            x_c[a] *= scale
            for j in range(r):
                x_c[a] += hQ[j, a] * q[j]


@inner
def expand(layer, row_space, damping, W1, x, at, hQ):
    """x <- W1 Q^T + (h - h Q Q^T) / eps, x being the layer's slice of a flat vector at ``at``, which holds h.

    W1 is r x units, as hQ, which is scratch. h matters only where Q is not the identity.
    """
    n, fan_in = layer.units, layer.fan_in
    if layer.p == 0:
        return
    if layer.r < layer.d:
        expand_units(layer, row_space, damping, W1, x, at, 0, n, hQ)
    else:
        x_W = matrix(x, at, n, fan_in)
        for a in range(n):
            for j in range(fan_in):
                x_W[a, j] = W1[j, a]
        if layer.bias:
            copy(n, W1, fan_in * n, x, at + n * fan_in)
