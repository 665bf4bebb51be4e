"""Dense matrix products, row-major: ``multiply``, ``multiply_tn``, ``multiply_nt``, ``multiply_tn_upper`` on arrays.

The same on raw pointers, for sub-blocks: ``gemm_nn``, ``gemm_tn``, ``gemm_nt``, ``gemm_tn_upper``, all with the arguments
``(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)``: C is m x n, k is summed over, ld* are row strides in elements.
Pointers come from ``microkernel.pointer`` and ``microkernel.shift``; their element type decides the precision.
``beta == 0`` means that C is not read; any dimension may be zero.
"""

from numba import njit

from . import blas
from .microkernel import pointer, row_stride


@njit(cache=True, nogil=True)
def _scale(m, n, beta, c, ldc):
    for i in range(m):
        for j in range(n):
            c[i * ldc + j] = c[i * ldc + j] * beta if beta != 0 else 0 * beta


@njit(cache=True, nogil=True)
def gemm_nn(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C (m x n) <- alpha A B + beta C, A (m x k), B (k x n)."""
    if m <= 0 or n <= 0:
        return
    if k <= 0:
        _scale(m, n, beta, c, ldc)
        return
    blas.gemm(False, False, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


@njit(cache=True, nogil=True)
def gemm_tn(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C (m x n) <- alpha A^T B + beta C, A (k x m), B (k x n)."""
    if m <= 0 or n <= 0:
        return
    if k <= 0:
        _scale(m, n, beta, c, ldc)
        return
    blas.gemm(True, False, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


@njit(cache=True, nogil=True)
def gemm_nt(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C (m x n) <- alpha A B^T + beta C, A (m x k), B (n x k)."""
    if m <= 0 or n <= 0:
        return
    if k <= 0:
        _scale(m, n, beta, c, ldc)
        return
    blas.gemm(False, True, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


@njit(cache=True, nogil=True)
def gemm_tn_upper(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """As gemm_tn with m == n, of which only the upper triangle of C is certain to be computed."""
    gemm_tn(m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


@njit(cache=True, nogil=True)
def multiply(alpha, A, B, beta, C):
    """C <- alpha A B + beta C, A (m x k), B (k x n), C (m x n)."""
    gemm_nn(C.shape[0], C.shape[1], A.shape[1], C.dtype.type(alpha), pointer(A, 0), row_stride(A),
            pointer(B, 0), row_stride(B), C.dtype.type(beta), pointer(C, 0), row_stride(C))


@njit(cache=True, nogil=True)
def multiply_tn(alpha, A, B, beta, C):
    """C <- alpha A^T B + beta C, A (k x m), B (k x n), C (m x n)."""
    gemm_tn(C.shape[0], C.shape[1], A.shape[0], C.dtype.type(alpha), pointer(A, 0), row_stride(A),
            pointer(B, 0), row_stride(B), C.dtype.type(beta), pointer(C, 0), row_stride(C))


@njit(cache=True, nogil=True)
def multiply_nt(alpha, A, B, beta, C):
    """C <- alpha A B^T + beta C, A (m x k), B (n x k), C (m x n)."""
    gemm_nt(C.shape[0], C.shape[1], A.shape[1], C.dtype.type(alpha), pointer(A, 0), row_stride(A),
            pointer(B, 0), row_stride(B), C.dtype.type(beta), pointer(C, 0), row_stride(C))


@njit(cache=True, nogil=True)
def multiply_tn_upper(alpha, A, B, beta, C):
    """As multiply_tn, C square, of which only the upper triangle is certain to be computed."""
    gemm_tn_upper(C.shape[0], C.shape[1], A.shape[0], C.dtype.type(alpha), pointer(A, 0), row_stride(A),
                  pointer(B, 0), row_stride(B), C.dtype.type(beta), pointer(C, 0), row_stride(C))
