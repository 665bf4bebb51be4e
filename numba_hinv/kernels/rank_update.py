"""Symmetric updates of rank m: ``signed_rank_update``, and ``mirror``, which fills the lower triangle.

Only upper triangles are computed; what stands in a strict lower triangle afterwards is undefined until ``mirror`` has
written it. Small updates run on the micro-kernel, large ones in BLAS ``syrk``; the crossover is the constant below.
"""


from . import blas
from .compiled import inner, kernel
from .microkernel import pointer, row_stride, shift
from .product import gemm_tn_upper

# An update of N * N * m at least this goes to BLAS where it has several threads, or one alone. Rates in GF/s of useful
# flops, float64, AVX-512, OpenBLAS 0.3.30, for N = m, of the micro-kernel / syrk on one core / syrk on two:
# 256: 74 / 59 / 60, 320: 75 / 67 / 84, 384: 72 / 57 / 93, 512: 62 / 64 / 99, 1024: 56 / 73 / 124.
BLAS_WORK, ALONE_BLAS_WORK = 288**3, 480**3
# Side of the square blocks that mirror transposes: two of them fit into a first-level cache in float64.
MIRROR_BLOCK = 32


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


@kernel
def mirror(P):
    """Copy the strict upper triangle of P (N x N) onto the lower one."""
    n = P.shape[0]
    for i0 in range(0, n, MIRROR_BLOCK):
        i1 = min(i0 + MIRROR_BLOCK, n)
        for j0 in range(0, i1, MIRROR_BLOCK):
            for i in range(i0, i1):
                for j in range(j0, min(j0 + MIRROR_BLOCK, i)):
                    P[i, j] = P[j, i]
