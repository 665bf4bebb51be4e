"""Dense matrix products over the whole device, a block a tile of C: twin of `kernels.product`.

Matrices are row-major: a buffer, where they start in it, and the stride of their rows. ``gemm_nn`` and ``gemm_tn`` do
``count`` products at a time, whose matrices start ``*_step`` numbers apart. They are cuBLAS's where CuPy is installed.
"""

import functools

from numba import from_dtype

from ..plumbing.launch import MOST_BLOCKS, launch
from ..plumbing.target import BLOCK, SIMULATED, cuda, device, kernel
from . import library

# Threads of a block over the rows and columns of a tile, and the rows and columns of a thread; what it holds of them
# stays in registers. DEPTH columns of A and rows of B are in shared memory at a time.
THREADS_J = 2 if SIMULATED else 16
THREADS_I = BLOCK // THREADS_J
PER_I, PER_J = (2, 2) if SIMULATED else (8, 4)
TILE_I, TILE_J = THREADS_I * PER_I, THREADS_J * PER_J
DEPTH = 3 if SIMULATED else 16
# Threads read a tile of A along its rows and write it along its columns: a number more a column, and they do not all
# ask one bank of memory.
PADDED_I = TILE_I + 1
A_SIZE, B_SIZE, SUMS = DEPTH * PADDED_I, DEPTH * TILE_J, PER_I * PER_J


@functools.cache
def tile_product(dtype, transposed):
    """`add_tile` for A as it is, or (``transposed``) for A^T."""
    scalar = from_dtype(dtype)

    @device
    def add_tile(i0, j0, m, n, k, num_positive, alpha, A, A_at, lda, B, B_at, ldb, beta, C, C_at, ldc):
        """The tile of C (m x n) <- alpha op(A) sigma B + beta C that starts at i0, j0.

        sigma is 1 for the first num_positive of the k terms and -1 for the others. C is not read where beta is 0.
        """
        a = cuda.shared.array(A_SIZE, scalar)
        b = cuda.shared.array(B_SIZE, scalar)
        sums = cuda.local.array(SUMS, scalar)
        row = cuda.local.array(PER_J, scalar)
        rank = cuda.threadIdx.x
        ti, tj = rank // THREADS_J, rank % THREADS_J
        zero = alpha - alpha
        for x in range(SUMS):
            sums[x] = zero
        for k0 in range(0, k, DEPTH):
            for x in range(rank, DEPTH * TILE_I, BLOCK):
                if transposed:
                    kk, i = x // TILE_I, x % TILE_I
                    inside = k0 + kk < k and i0 + i < m
                    value = A[A_at + (k0 + kk) * lda + i0 + i] if inside else zero
                else:
                    i, kk = x // DEPTH, x % DEPTH
                    inside = k0 + kk < k and i0 + i < m
                    value = A[A_at + (i0 + i) * lda + k0 + kk] if inside else zero
                a[kk * PADDED_I + i] = value if k0 + kk < num_positive else -value
            for x in range(rank, B_SIZE, BLOCK):
                kk, j = x // TILE_J, x % TILE_J
                b[x] = B[B_at + (k0 + kk) * ldb + j0 + j] if k0 + kk < k and j0 + j < n else zero
            cuda.syncthreads()
            for kk in range(DEPTH):
                for q in range(PER_J):
                    row[q] = b[kk * TILE_J + tj + q * THREADS_J]
                for p in range(PER_I):
                    value = a[kk * PADDED_I + ti + p * THREADS_I]
                    for q in range(PER_J):
                        sums[p * PER_J + q] += value * row[q]
            cuda.syncthreads()
        for p in range(PER_I):
            i = i0 + ti + p * THREADS_I
            for q in range(PER_J):
                j = j0 + tj + q * THREADS_J
                if i < m and j < n:
                    at = C_at + i * ldc + j
                    value = alpha * sums[p * PER_J + q]
                    C[at] = value if beta == zero else value + beta * C[at]

    return add_tile


def tiles(m, n, count=1):
    """The grid of a kernel that calls `add_tile` for an m x n matrix, ``count`` times."""
    return -(-n // TILE_J), -(-m // TILE_I), count


@functools.cache
def gemm_kernel(dtype, transposed):
    """`gemm_nn` or, transposed, `gemm_tn` for a dtype."""
    add_tile = tile_product(dtype, transposed)

    @kernel
    def gemm(m, n, k, alpha, A, A_at, A_step, lda, B, B_at, B_step, ldb, beta, C, C_at, C_step, ldc):
        z = cuda.blockIdx.z
        add_tile(
            cuda.blockIdx.y * TILE_I, cuda.blockIdx.x * TILE_J, m, n, k, k, alpha,
            A, A_at + z * A_step, lda, B, B_at + z * B_step, ldb, beta, C, C_at + z * C_step, ldc,
        )

    return gemm


def _gemm(transposed, stream, count, m, n, k, alpha, A, A_at, A_step, lda, B, B_at, B_step, ldb, beta, C, C_at, C_step,
          ldc):
    cublas = library.cublas(C.dtype)
    if cublas is None:
        scalar = C.dtype.type
        for z in range(0, count, MOST_BLOCKS):
            launch(
                gemm_kernel(C.dtype, transposed), tiles(m, n, min(count - z, MOST_BLOCKS)), stream, m, n, k,
                scalar(alpha), A, A_at + z * A_step, A_step, lda, B, B_at + z * B_step, B_step, ldb, scalar(beta),
                C, C_at + z * C_step, C_step, ldc,
            )
        return
    for z in range(count):
        cublas.gemm(
            transposed, stream, m, n, k, alpha, A, A_at + z * A_step, lda, B, B_at + z * B_step, ldb, beta,
            C, C_at + z * C_step, ldc,
        )


def gemm_nn(stream, count, m, n, k, *matrices):
    """C (m x n) <- alpha A B + beta C, A (m x k), B (k x n).

    ``matrices`` are alpha, (buffer, start, step, stride) of A, those of B, beta, and those of C.
    """
    _gemm(False, stream, count, m, n, k, *matrices)


def gemm_tn(stream, count, m, n, k, *matrices):
    """C (m x n) <- alpha A^T B + beta C, A (k x m), B (k x n), as `gemm_nn`."""
    _gemm(True, stream, count, m, n, k, *matrices)
