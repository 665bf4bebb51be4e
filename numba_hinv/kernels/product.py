"""Dense matrix products, row-major: ``multiply``, ``multiply_tn``, ``multiply_nt``, ``multiply_tn_upper`` on arrays.

The same on raw pointers, for sub-blocks: ``gemm_nn``, ``gemm_tn``, ``gemm_nt``, ``gemm_tn_upper``, with arguments
``(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)``: C is m x n, k is summed over, ld* are row strides in elements.
Pointers come from ``microkernel.pointer`` and ``microkernel.shift``; their element type decides the precision.
``beta == 0`` means that C is not read; any dimension may be zero. All of these are for nopython code (the ``multiply``
ones can also be called from Python). Small products run on the micro-kernel, large ones in BLAS; the crossovers are
the constants below and may be changed after a measurement.
"""


from . import blas
from .binding import POINTER, SCALAR, SIZE, compiled_once
from .compiled import inner, kernel
from .microkernel import (DOT_ROWS, PANEL_ROWS, dot_columns, panel, pointer, row_columns, row_stride, shift,
                          tile_columns, tile_nn, tile_nt, tile_rows, tile_tn, transpose, vector_columns)

# A product of m * n * k at least this goes to BLAS, an upper triangle (half the work) where it is at least the second.
# Rates in GF/s, float64, AVX-512, OpenBLAS 0.3.30, of the micro-kernel / BLAS on one core / BLAS on two free cores, for
# n x n x n: A B: 128: 75 / 60 / 67, 192: 80 / 67 / 102, 256: 74 / 69 / 95, 384: 70 / 70 / 121. A^T B: much the same.
# Upper triangle of A^T B, useful flops: 192: 53 / 35 / 49, 256: 54 / 39 / 53, 512: 22 / 36 / 65.
BLAS_WORK = 192**3
UPPER_BLAS_WORK = 256**3
# A row vector times a matrix of at least this many elements goes to BLAS gemv, which uses all cores; up to there a
# matrix stays in the second-level cache. GB/s of the tiles / gemv on one core, x^T B: 64: 220 / 64, 256: 62 / 45,
# 500: 27 / 38, 1000: 21 / 29.
GEMV_WORK = 512**2
# A B^T by inner products costs about k/16 + 2 cycles per element of C (float64, AVX-512), on a transposed copy of B
# k/16 + 0.4 k/m: the copy is made from this many rows of C on, for k up to TRANSPOSE_DEPTH * m. It is
# made in whole vectors, so for smaller k it needs four times as many rows.
TRANSPOSE_ROWS, TRANSPOSE_DEPTH = 4, 5
# Columns per block of the upper triangle in BLAS products.
UPPER_BLOCK = 128
# Rows of B that lie a multiple of 512 bytes (ALIASED doubles) apart share a few sets of the first-level cache: panels of B
# are packed then, in products this deep and this high. GF/s without and with it, 128 x 128 x 128: 70 / 80.
ALIASED, PACK_DEPTH, PACK_ROWS = 64, 112, 64

_ARGUMENTS = (SIZE, SIZE, SIZE, SCALAR, POINTER, SIZE, POINTER, SIZE, SCALAR, POINTER, SIZE)


@inner
def _scale(m, n, beta, c, ldc):
    for i in range(m):
        for j in range(n):
            c[i * ldc + j] = c[i * ldc + j] * beta if beta != 0 else 0 * beta


@inner
def _part(left, most):
    """How many of the rows or columns left to take: most, or about half of them where two tiles are left."""
    if left <= most:
        return left
    return (left + 1) >> 1 if left < 2 * most else most


@inner
def _part_of_columns(left, most, unit):
    """As _part, in whole vectors of unit columns."""
    return left if left <= most else (2 * unit if left <= 4 * unit and most == 3 * unit else most)


@compiled_once("gemm_nn", *_ARGUMENTS)
def gemm_nn(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C (m x n) <- alpha A B + beta C, A (m x k), B (k x n)."""
    if m <= 0 or n <= 0:
        return
    if k <= 0:
        _scale(m, n, beta, c, ldc)
        return
    if m == 1 and n * k >= GEMV_WORK:
        blas.gemv_rows(True, k, n, alpha, b, ldb, a, 1, beta, c, 1)
        return
    if m * n * k >= BLAS_WORK:
        blas.gemm(False, False, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
        return
    if k >= PACK_DEPTH and m >= PACK_ROWS and ldb & (ALIASED - 1) == 0:
        _gemm_packed(0, 0, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
        return
    height, width = tile_rows(c), row_columns(c) if m == 1 else tile_columns(c)
    j = 0
    while j < n:
        columns = _part_of_columns(n - j, width, vector_columns(c))
        i = 0
        while i < m:
            rows = _part(m - i, height)
            tile_nn(rows, columns, k, alpha, shift(a, i * lda), lda, shift(b, j), ldb,
                    beta, shift(c, i * ldc + j), ldc)
            i += rows
        j += columns


@compiled_once("gemm_tn_part", SIZE, *_ARGUMENTS)
def _gemm_tn_part(upper, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    if m <= 0 or n <= 0:
        return
    if k <= 0:
        _scale(m, n, beta, c, ldc)
        return
    if m == 1 and n * k >= GEMV_WORK:
        blas.gemv_rows(True, k, n, alpha, b, ldb, a, lda, beta, c, 1)
        return
    if m * n * k >= (UPPER_BLAS_WORK if upper else BLAS_WORK):
        width = UPPER_BLOCK if upper else n
        for j in range(0, n, width):
            columns = min(n - j, width)
            rows = min(m, j + columns) if upper else m
            blas.gemm(True, False, rows, columns, k, alpha, a, lda, shift(b, j), ldb, beta, shift(c, j), ldc)
        return
    if k >= PACK_DEPTH and m >= PACK_ROWS and ldb & (ALIASED - 1) == 0:
        _gemm_packed(1, upper, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
        return
    height, width = tile_rows(c), tile_columns(c)
    j = 0
    while j < n:
        columns = _part_of_columns(n - j, width, vector_columns(c))
        end = min(m, j + columns) if upper else m
        i = 0
        while i < end:
            rows = _part(end - i, height)
            tile_tn(rows, columns, k, alpha, shift(a, i), lda, shift(b, j), ldb,
                    beta, shift(c, i * ldc + j), ldc)
            i += rows
        j += columns


@kernel
def gemm_tn(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C (m x n) <- alpha A^T B + beta C, A (k x m), B (k x n)."""
    _gemm_tn_part(0, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


@kernel
def gemm_tn_upper(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """As gemm_tn with m == n; of C only the upper triangle is certain to be computed."""
    _gemm_tn_part(1, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


@compiled_once("gemm_packed", SIZE, SIZE, *_ARGUMENTS)
def _gemm_packed(transposed, upper, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C <- alpha op(A) B + beta C, op(A) being A or its transpose; ``upper`` as in `gemm_tn_upper`."""
    width, packed, kept = tile_columns(c), panel(c), beta
    for p in range(0, k, PANEL_ROWS):
        depth = min(k - p, PANEL_ROWS)
        part = shift(a, p * lda if transposed else p)
        j = 0
        while j < n:
            columns = _part_of_columns(n - j, width, vector_columns(c))
            end = min(m, j + columns) if upper else m
            for q in range(depth):
                for i in range(columns):
                    packed[q * width + i] = b[(p + q) * ldb + j + i]
            if transposed:
                gemm_tn(end, columns, depth, alpha, part, lda, packed, width, kept, shift(c, j), ldc)
            else:
                gemm_nn(end, columns, depth, alpha, part, lda, packed, width, kept, shift(c, j), ldc)
            j += columns
        kept = 1.0


@compiled_once("gemm_nt", *_ARGUMENTS)
def gemm_nt(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C (m x n) <- alpha A B^T + beta C, A (m x k), B (n x k)."""
    if m <= 0 or n <= 0:
        return
    if k <= 0:
        _scale(m, n, beta, c, ldc)
        return
    if m == 1 and n * k >= GEMV_WORK:
        blas.gemv_rows(False, n, k, alpha, b, ldb, a, 1, beta, c, 1)
        return
    if m * n * k >= BLAS_WORK:
        blas.gemm(False, True, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
        return
    if m >= TRANSPOSE_ROWS and k <= TRANSPOSE_DEPTH * m and (k >= vector_columns(c) or m >= 4 * TRANSPOSE_ROWS):
        width, b_panel, kept = tile_columns(c), panel(c), beta
        for p in range(0, k, PANEL_ROWS):
            depth = min(k - p, PANEL_ROWS)
            j = 0
            while j < n:
                columns = _part_of_columns(n - j, width, vector_columns(c))
                transpose(columns, depth, shift(b, j * ldb + p), ldb, b_panel, width)
                gemm_nn(m, columns, depth, alpha, shift(a, p), lda, b_panel, width, kept, shift(c, j), ldc)
                j += columns
            kept = 1.0
        return
    width = dot_columns(c)
    j = 0
    while j < n:
        columns = min(n - j, width)
        i = 0
        while i < m:
            rows = _part(m - i, DOT_ROWS)
            tile_nt(rows, columns, k, alpha, shift(a, i * lda), lda, shift(b, j * ldb), ldb,
                    beta, shift(c, i * ldc + j), ldc)
            i += rows
        j += columns


@kernel
def multiply(alpha, A, B, beta, C):
    """C <- alpha A B + beta C, A (m x k), B (k x n), C (m x n)."""
    gemm_nn(C.shape[0], C.shape[1], A.shape[1], C.dtype.type(alpha), pointer(A, 0), row_stride(A),
            pointer(B, 0), row_stride(B), C.dtype.type(beta), pointer(C, 0), row_stride(C))


@kernel
def multiply_tn(alpha, A, B, beta, C):
    """C <- alpha A^T B + beta C, A (k x m), B (k x n), C (m x n)."""
    gemm_tn(C.shape[0], C.shape[1], A.shape[0], C.dtype.type(alpha), pointer(A, 0), row_stride(A),
            pointer(B, 0), row_stride(B), C.dtype.type(beta), pointer(C, 0), row_stride(C))


@kernel
def multiply_nt(alpha, A, B, beta, C):
    """C <- alpha A B^T + beta C, A (m x k), B (n x k), C (m x n)."""
    gemm_nt(C.shape[0], C.shape[1], A.shape[1], C.dtype.type(alpha), pointer(A, 0), row_stride(A),
            pointer(B, 0), row_stride(B), C.dtype.type(beta), pointer(C, 0), row_stride(C))


@kernel
def multiply_tn_upper(alpha, A, B, beta, C):
    """As multiply_tn, C square, of which only the upper triangle is certain to be computed."""
    gemm_tn_upper(C.shape[0], C.shape[1], A.shape[0], C.dtype.type(alpha), pointer(A, 0), row_stride(A),
                  pointer(B, 0), row_stride(B), C.dtype.type(beta), pointer(C, 0), row_stride(C))
