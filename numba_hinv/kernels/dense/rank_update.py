"""Symmetric updates of rank m, ``signed_rank_update``, and the other triangle: ``mirror``, ``symmetric_columns``.

Only upper triangles are computed; what stands in a strict lower triangle afterwards is undefined until ``mirror`` (on
pointers, and from one matrix to another: ``reflect``) has written it. Small updates run on the micro-kernel, large ones
in BLAS ``syrk``; the crossover is the constant below.
"""


from ..plumbing.compiled import inner, kernel
from . import blas
from .microkernel import pointer, row_stride, shift
from .product import gemm_tn_upper

# An update of N * N * m at least this goes to BLAS where it has several threads, or one alone. Rates in GF/s of useful
# flops, float64, AVX-512, OpenBLAS 0.3.30, for N = m, of the micro-kernel / syrk on one core / syrk on two:
# 256: 74 / 59 / 60, 320: 75 / 67 / 84, 384: 72 / 57 / 93, 512: 62 / 64 / 99, 1024: 56 / 73 / 124.
BLAS_WORK, ALONE_BLAS_WORK = 288**3, 480**3
# Columns that are reflected together: a cache line in float64, from as many rows that are read side by side.
LINE = 8


@inner
def _add_gram(n, rows, sign, y, ldy, p, ldp):
    if n * n * rows >= (BLAS_WORK if blas.has_threads() else ALONE_BLAS_WORK):
        blas.syrk_upper(n, rows, sign, y, ldy, sign * sign, p, ldp)
    else:
        gemm_tn_upper(n, n, rows, sign, y, ldy, y, ldy, sign * sign, p, ldp)


@kernel
def signed_rank_update(Y, num_positive, P):
    """Upper triangle of P (N x N) <- P - Y+^T Y+ + Y-^T Y-; Y+ is the first num_positive rows of Y (m x N)."""
    n, rows = P.shape[0], Y.shape[0]
    if n == 0:
        return
    one = P.dtype.type(1)
    y, ldy, p, ldp = pointer(Y, 0), row_stride(Y), pointer(P, 0), row_stride(P)
    if num_positive > 0:
        _add_gram(n, num_positive, -one, y, ldy, p, ldp)
    if num_positive < rows:
        _add_gram(n, rows - num_positive, one, shift(y, num_positive * ldy), ldy, p, ldp)


@inner
def reflect(n, first, columns, p, ldp, v, ldv):
    """V <- what stands below the diagonal of the symmetric P (n x n), in the columns from ``first`` on."""
    for j0 in range(0, columns, LINE):
        width, diagonal = min(LINE, columns - j0), first + j0
        for i in range(diagonal + 1, min(diagonal + width, n)):
            for j in range(i - diagonal):
                v[i * ldv + j0 + j] = p[(diagonal + j) * ldp + i]
        if width == LINE:
            # Apart from the last columns, so that the inner loop has a constant length: it is unrolled.
            for i in range(diagonal + LINE, n):
                for j in range(LINE):
                    v[i * ldv + j0 + j] = p[(diagonal + j) * ldp + i]
        else:
            for i in range(diagonal + width, n):
                for j in range(width):
                    v[i * ldv + j0 + j] = p[(diagonal + j) * ldp + i]


@kernel
def mirror(P):
    """Copy the strict upper triangle of P (N x N) onto the lower one."""
    reflect(P.shape[0], 0, P.shape[0], pointer(P, 0), row_stride(P), pointer(P, 0), row_stride(P))


@inner
def symmetric_columns(n, first, columns, P, V):
    """V (n x columns) <- the columns from ``first`` on of the symmetric P (n x n), from its upper triangle."""
    for i in range(first + columns):
        for j in range(max(i - first, 0), columns):
            V[i * columns + j] = P[i * n + first + j]
    reflect(n, first, columns, P, n, V, columns)
