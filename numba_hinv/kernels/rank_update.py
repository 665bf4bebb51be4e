"""Symmetric updates of rank m: ``signed_rank_update``, and ``mirror``, which fills the lower triangle.

Only upper triangles are computed; call ``mirror`` where both halves are wanted.
"""

from numba import njit

from . import blas
from .microkernel import pointer, row_stride, shift


@njit(cache=True, nogil=True)
def signed_rank_update(Y, num_positive, P):
    """Upper triangle of P (N x N) <- P - Y+^T Y+ + Y-^T Y-; Y+ is the first num_positive rows of Y (m x N)."""
    n, rows = P.shape[0], Y.shape[0]
    if n == 0:
        return
    one = P.dtype.type(1)
    y, ldy, p, ldp = pointer(Y, 0), row_stride(Y), pointer(P, 0), row_stride(P)
    if num_positive > 0:
        blas.syrk_upper(n, num_positive, -one, y, ldy, one, p, ldp)
    if num_positive < rows:
        blas.syrk_upper(n, rows - num_positive, one, shift(y, num_positive * ldy), ldy, one, p, ldp)


@njit(cache=True, nogil=True)
def mirror(P):
    """Copy the strict upper triangle of P (N x N) onto the lower one, in blocks that stay in cache."""
    n = P.shape[0]
    block = 32
    for i0 in range(0, n, block):
        i1 = min(i0 + block, n)
        for j0 in range(0, i0 + block, block):
            for i in range(i0, i1):
                for j in range(j0, min(j0 + block, i)):
                    P[i, j] = P[j, i]
