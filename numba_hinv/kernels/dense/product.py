"""Dense matrix products, row-major: ``multiply``, ``multiply_tn``, ``multiply_nt``, ``multiply_tn_upper`` on arrays.

The same on raw pointers, for sub-blocks: ``gemm_nn``, ``gemm_tn``, ``gemm_nt``, ``gemm_tn_upper``, with arguments
``(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)``: C is m x n, k is summed over, ld* are row strides in elements.
Pointers come from ``microkernel.pointer`` and ``microkernel.shift``; their element type decides the precision.
``beta == 0`` means that C is not read; any dimension may be zero. All of these are for nopython code (the ``multiply``
ones can also be called from Python). Small products run on the micro-kernel, large ones in BLAS; the crossovers are
the constants below and may be changed after a measurement.
"""


from ..plumbing.binding import POINTER, SCALAR, SIZE, compiled_once
from ..plumbing.compiled import inner, kernel
from ..plumbing.heap import allocate, is_null, release
from . import blas
from .microkernel import (
    BLOCK_COLUMNS,
    BLOCK_STRIDE,
    DOT_ROWS,
    PANEL_ROWS,
    dot_columns,
    panel,
    pointer,
    row_columns,
    row_stride,
    shift,
    tile_columns,
    tile_nn,
    tile_nt,
    tile_rows,
    tile_tn,
    transpose,
    vector_columns,
)

# A product of m * n * k at least this goes to BLAS: the first where it is flat (k < PACK_DEPTH) or BLAS has several
# threads, else the second. Rates in GF/s, float64, AVX-512, OpenBLAS 0.3.30, of the micro-kernel / BLAS on one core /
# BLAS on two free cores, for n x n x n: A B: 128: 86 / 57 / -, 192: 82 / 69 / -, 256: 86 / 72 / 117,
# 384: 78 / 75 / 139, 512: 62 / 76 / 138. A^T B: much the same; flat ones, 568 x 1536 x 32: 49 / 70 / -.
BLAS_WORK, ALONE_BLAS_WORK = 192**3, 320**3
# The upper triangle of A^T B: more columns than UPPER_BLOCK are a rectangle and two triangles. But flat ones, of at
# least UPPER_BLAS_WORK, go to BLAS in strips of BLAS_COLUMNS columns where it has several threads. GF/s of triangles /
# strips on one core, and on two: n = k: 256: 74 / 38, 66 / 65, 512: 62 / 41, 75 / 75, 1024: 61 / 38, 94 / 75;
# n = 1024, k = 64: 61 / 47, 48 / 84.
UPPER_BLOCK, UPPER_BLAS_WORK, BLAS_COLUMNS = 384, 256**3, 128
# A row vector times a matrix of at least this many elements goes to BLAS gemv, which uses all cores; up to there a
# matrix stays in the second-level cache. GB/s of the tiles / gemv on one core, x^T B: 64: 220 / 64, 256: 62 / 45,
# 500: 27 / 38, 1000: 21 / 29.
GEMV_WORK = 512**2
# A B^T by inner products costs about k/16 + 2 cycles per element of C (float64, AVX-512), on a transposed copy of B
# k/16 + 0.4 k/m: the copy is made from this many rows of C on, for k up to TRANSPOSE_DEPTH * m. It is
# made in whole vectors, so for smaller k it needs four times as many rows.
TRANSPOSE_ROWS, TRANSPOSE_DEPTH = 4, 5
# Rows of B that lie a multiple of 512 bytes (ALIASED doubles) apart share a few sets of the first-level cache: panels
# of B are packed then, in products this deep and this high; those of triangles always. GF/s without and with it,
# 128 x 128 x 128: 70 / 80; triangles with n = 512, k = 32: 49 / 53.
ALIASED, PACK_DEPTH, UPPER_PACK_DEPTH, PACK_ROWS = 64, 112, 16, 64

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


@inner
def _is_for_blas(m, n, k):
    work = m * n * k
    return work >= BLAS_WORK and (k < PACK_DEPTH or work >= ALONE_BLAS_WORK or blas.has_threads())


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
    if _is_for_blas(m, n, k):
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
    if upper and k < PACK_DEPTH and m * n * k >= UPPER_BLAS_WORK and blas.has_threads():
        for j in range(0, n, BLAS_COLUMNS):
            columns = min(n - j, BLAS_COLUMNS)
            rows = min(m, j + columns)
            blas.gemm(True, False, rows, columns, k, alpha, a, lda, shift(b, j), ldb, beta, shift(c, j), ldc)
        return
    if upper and n > UPPER_BLOCK:
        # What is right of and above two halves of the triangle, and these themselves.
        half = (n >> 1) // vector_columns(c) * vector_columns(c)
        right, below = shift(b, half), shift(c, half)
        _gemm_tn_part(0, half, n - half, k, alpha, a, lda, right, ldb, beta, below, ldc)
        _gemm_tn_part(1, half, half, k, alpha, a, lda, b, ldb, beta, c, ldc)
        _gemm_tn_part(
            1, n - half, n - half, k, alpha, shift(a, half), lda, right, ldb, beta, shift(below, half * ldc), ldc
        )
        return
    if not upper and _is_for_blas(m, n, k):
        blas.gemm(True, False, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
        return
    if m >= PACK_ROWS and (k >= UPPER_PACK_DEPTH if upper else k >= PACK_DEPTH and ldb & (ALIASED - 1) == 0):
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


@inner
def _pack(rows, columns, a, lda, packed, stride):
    for q in range(rows):
        row, to = shift(a, q * lda), shift(packed, q * stride)
        for i in range(columns):
            to[i] = row[i]


@compiled_once("gemm_packed", SIZE, SIZE, *_ARGUMENTS)
def _gemm_packed(transposed, upper, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C <- alpha op(A) B + beta C, op(A) being A or its transpose; ``upper`` as in `gemm_tn_upper`."""
    width, b_panel, a_block, kept = tile_columns(c), panel(c), c, beta
    # A transposed is read down its columns, where its rows alias as those of B do.
    pack_a = transposed and lda & (ALIASED - 1) == 0
    if pack_a:
        a_block = allocate(c, PANEL_ROWS * BLOCK_STRIDE)
        # Without memory it is slower.
        pack_a = not is_null(a_block)
    for p in range(0, k, PANEL_ROWS):
        depth = min(k - p, PANEL_ROWS)
        taken = min(m, BLOCK_COLUMNS) if pack_a else m
        for i in range(0, m, taken):
            rows, stride = min(m - i, taken), lda
            part = shift(a, p * lda + i if transposed else i * lda + p)
            if pack_a:
                _pack(depth, rows, part, lda, a_block, BLOCK_STRIDE)
                part, stride = a_block, BLOCK_STRIDE
            # Panels that end left of row i are below the diagonal.
            j = i // width * width if upper else 0
            while j < n:
                columns = _part_of_columns(n - j, width, vector_columns(c))
                end, to = min(rows, j + columns - i) if upper else rows, shift(c, i * ldc + j)
                _pack(depth, columns, shift(b, p * ldb + j), ldb, b_panel, width)
                if transposed:
                    gemm_tn(end, columns, depth, alpha, part, stride, b_panel, width, kept, to, ldc)
                else:
                    gemm_nn(end, columns, depth, alpha, part, stride, b_panel, width, kept, to, ldc)
                j += columns
        kept = 1.0
    if pack_a:
        release(a_block)


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
    if _is_for_blas(m, n, k):
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
