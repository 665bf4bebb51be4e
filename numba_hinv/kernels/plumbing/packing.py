"""Symmetric matrices kept without their lower triangle, as fronts between the stretches of a chain are."""

import numpy as np


def packed_size(n):
    """Scalars of a symmetric n x n matrix without its lower triangle."""
    return n * (n + 1) // 2


def pack(n, buffer):
    """The symmetric n x n matrix at the start of ``buffer`` as a new array of its upper triangle."""
    matrix, packed, at = buffer[: n * n].reshape(n, n), np.empty(packed_size(n), buffer.dtype), 0
    for i in range(n):
        packed[at : at + n - i] = matrix[i, i:]
        at += n - i
    return packed


def unpack(packed, n, buffer):
    """The inverse of `pack`."""
    matrix, at = buffer[: n * n].reshape(n, n), 0
    for i in range(n):
        matrix[i, i:] = matrix[i:, i] = packed[at : at + n - i]
        at += n - i
