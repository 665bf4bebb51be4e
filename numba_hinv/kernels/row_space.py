"""The row space of every dense layer's input (design, section 3): ``Zt^T = Q R``, ``Zt = [Z, 1]``.

Only the part of a weight perturbation in the row space of Zt reaches later layers. Where B < d: thin QR by Householder
reflections, which leaves Q orthonormal even if samples repeat or vanish. Otherwise Q is the identity, not stored, and
R is Zt^T. Independent of the damping, so factorizations share it.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from .layers import BLOCKS
from .memory import copy, fill, matrix, vector


class RowSpace(NamedTuple):
    """Q and R of all layers, packed (offsets ``Q`` and ``R`` of the layer table)."""

    Q: np.ndarray  # where B < d: Q[:n_in]^T, r x n_in, then the r entries of its bias row
    R: np.ndarray  # r x B


def workspace(sizes, num_samples, dtype):
    """Scratch for `span`: the reflectors of one layer."""
    return np.empty((2, num_samples * (sizes.width + 2)), dtype)


@njit(cache=True, nogil=True, error_model="numpy")
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
    beta = -math.copysign(largest * math.sqrt(total), alpha)
    for j in range(1, x.size):
        x[j] /= alpha - beta
    x[0] = 1.0
    return (beta - alpha) / beta, beta


@njit(cache=True, nogil=True, error_model="numpy")
def _reflect(tau, v, x):
    """x <- (I - tau v v^T) x."""
    product = 0.0
    for j in range(v.size):
        product += v[j] * x[j]
    product *= tau
    for j in range(v.size):
        x[j] -= product * v[j]


@njit(cache=True, nogil=True, error_model="numpy")
def span(table, lin, row_space, work):
    """Fill Q and R of every dense layer. Cost: 4 d B^2 flops a layer where B < d, a transpose elsewhere."""
    B = lin.output.shape[0]
    for l in range(table.size):
        layer = table[l]
        if layer.kind == BLOCKS:
            continue
        n_in, d, r = layer.n_in, layer.d, layer.r
        Z = matrix(lin.Z, layer.z, B, n_in)
        R = matrix(row_space.R, layer.R, r, B)
        if r == d:
            for j in range(n_in):
                for i in range(B):
                    R[j, i] = Z[i, j]
            if layer.bias:
                fill(B, 1.0, R, n_in * B)
            continue
        # Row i of A is column i of Zt^T; after step i it holds reflector i behind its diagonal.
        A = matrix(work, 0, B, d)
        for i in range(B):
            copy(n_in, Z, i * n_in, A, i * d)
            if layer.bias:
                A[i, n_in] = 1.0
        fill(R.size, 0.0, R, 0)
        tau = vector(work, work.shape[1] + B * d, B)
        for k in range(B):
            tau[k], R[k, k] = _reflector(vector(A, k * d + k, d - k))
            for i in range(k + 1, B):
                _reflect(tau[k], vector(A, k * d + k, d - k), vector(A, i * d + k, d - k))
                R[k, i] = A[i, k]
        Qt = matrix(work, work.shape[1], B, d)
        for k in range(B):
            fill(d, 0.0, Qt, k * d)
            Qt[k, k] = 1.0
            for i in range(k, -1, -1):
                _reflect(tau[i], vector(A, i * d + i, d - i), vector(Qt, k * d + i, d - i))
        Q = matrix(row_space.Q, layer.Q, r, n_in)
        for k in range(r):
            copy(n_in, Qt, k * d, Q, k * n_in)
        if layer.bias:
            q = vector(row_space.Q, layer.Q + r * n_in, r)
            for k in range(r):
                q[k] = Qt[k, n_in]
