"""The blocked signed Cholesky ``A = R^T diag(sigma) R`` of a large matrix: what is done with one piece, on one thread.

The upper triangle of A lies in block rows of ``rows`` rows, one after the other: block row k holds the columns from its
own first one to the last, row-major (`block_offset`). R takes its place, but for the blocks on the diagonal, which are
the transposes of factors F of ``signed_cholesky`` and are kept as those are: what is right of one is
``W = diag(sigma) F^-1 A``, the rows with sigma = +1 first. `solve_columns` makes columns of W, `update` subtracts
``W^T diag(sigma) W`` from the block rows below; `forward` and `backward` solve with a block row of R.

W is left in a packed copy as well, in strips of ``STRIP`` columns, so that the micro-kernel reads both of its factors
in their order, from few pages. Factors are made without BLAS, and each of their numbers by the same operations however
the work is cut in pieces: so they are the same on any number of threads.
"""

from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import matrix, move
from .microkernel import pointer, shift, tile_columns, tile_rows, tile_tn
from .product import gemm_nn, gemm_nt
from .signed_cholesky import panel_offset
from .triangular import backward_vectors, forward_rows, forward_vectors

# Columns of a strip, a multiple of the rows and of the columns of every processor's tiles; block rows are multiples of
# it. GF/s on one core with strips of 24 (in float64 a tile) and of 48 columns, P = 3,000: solves 30 and 36, updates
# alike.
STRIP = 48
# Rows of W that a tile takes at a time: of one strip they stay in a first-level cache. GF/s of updates with 96, 128 and
# 256, P = 3,000: 49, 50, 48.
_DEPTH = 128
_MOST = 1e300


def packed_size(size, rows):
    """Numbers of the packed copy of W, at most."""
    return rows * (size + STRIP)


@kernel
def block_offset(size, rows, k):
    """Where block row k of a matrix of ``size`` rows starts; with k the number of block rows, where the last one ends.

    Only the last block row may have fewer than ``rows`` rows.
    """
    if k * rows < size:
        return panel_offset(size, rows, k)
    last = (size - 1) // rows
    return panel_offset(size, rows, last) + (size - last * rows) ** 2


@kernel
def solve_columns(A, size, rows, k, first, last, num_positive, L, pivots, scales, packed, sums, work):
    """Make W of the strips of columns from ``first`` to before ``last``, counted from the diagonal block on.

    Parameters
    ----------
    A : block rows of a matrix of ``size`` rows
        Block row k is read, and its W written.
    num_positive : int
        How many of its sigma are +1.
    L, pivots, scales : arrays
        The factor of its diagonal block, of ``rows`` rows.
    packed : (packed_size(size, rows),) array
        Out: the strips.
    sums : (size,) array of float64
        The squares of what is in a column of W are added to it.
    work : (rows * STRIP,) array
        Scratch.

    Returns
    -------
    largest : float
        The largest of these sums; infinity where one is huge, or not a number.
    """
    stride = size - k * rows
    width, largest = stride - rows, 0.0
    for strip in range(first, last):
        begin = strip * STRIP
        count, column = min(STRIP, width - begin), (k + 1) * rows + begin
        W, scratch = matrix(packed, begin * rows, rows, STRIP), matrix(work, 0, rows, STRIP)
        source = block_offset(size, rows, k) + rows + begin
        _take(A, source, stride, rows, count, W)
        forward_rows(L, pivots, scales, W, scratch)
        for i in range(num_positive, rows):
            for j in range(STRIP):
                W[i, j] = -W[i, j]
        for i in range(rows):
            to = source + i * stride
            for j in range(count):
                A[to + j] = W[i, j]
                sums[column + j] += float(W[i, j]) * float(W[i, j])
        for j in range(count):
            if not sums[column + j] <= _MOST:
                return float("inf")
            largest = max(largest, sums[column + j])
    return largest


@inner
def _take(A, source, stride, rows, count, W):
    """W (rows x STRIP) <- columns of a block row, and zeros where there are fewer."""
    for i in range(rows):
        at = source + i * stride
        if count == STRIP:
            for j in range(STRIP):
                W[i, j] = A[at + j]
        else:
            for j in range(STRIP):
                W[i, j] = A[at + j] if j < count else 0


@kernel
def update(A, size, rows, k, i, first, last, num_positive, packed):
    """Subtract what block row k contributes to some columns of block row i > k.

    Of diagonal blocks only the upper triangle is certain to be computed. The columns are the strips of ``packed`` from
    ``first`` to before ``last``; ``num_positive`` rows of W have sigma = +1.
    """
    b = pointer(packed, 0)
    high, wide = tile_rows(b), tile_columns(b)
    begin, stride, width = (i - k - 1) * rows, size - i * rows, size - (k + 1) * rows
    height, c = min(rows, stride), pointer(A, block_offset(size, rows, i))
    for column in range(first * STRIP, min(last * STRIP, width), wide):
        columns, strip = min(wide, width - column), column // STRIP
        bottom = min(height, column + columns - begin)
        p = 0
        while p < rows:
            sign, end = (-1, num_positive) if p < num_positive else (1, rows)
            depth = min(_DEPTH, end - p)
            right = shift(b, (strip * rows + p) * STRIP + column % STRIP)
            for r in range(0, bottom, high):
                left = shift(b, ((begin + r) // STRIP * rows + p) * STRIP + (begin + r) % STRIP)
                tile_tn(min(high, height - r), columns, depth, sign, left, STRIP, right, STRIP,
                        1, shift(c, r * stride + column - begin), stride)
            p += depth


@inner
def _block(X, k, rows):
    """(first, how many) of the columns of X that block row k stands for."""
    return k * rows, min(rows, X.shape[1] - k * rows)


@kernel
def forward(A, rows, k, L, pivots, scales, X, work):
    """One step of x <- R^-T x for each row of X: solve with block k and subtract it from what is right of it.

    Parameters
    ----------
    A : block rows of R
    L, pivots, scales : arrays
        The factor of its diagonal block k.
    X : (count, size) C-contiguous array
        In the columns of block k and right of it, read and overwritten.
    work : (2 * rows * count,) array
        Scratch.
    """
    count, size = X.shape
    at, m = _block(X, k, rows)
    y, scratch = matrix(work, 0, count, m), matrix(work, count * m, count, m)
    for c in range(count):
        move(m, pointer(X, c * size + at), pointer(y, c * m))
    forward_vectors(L, pivots, scales, y, scratch)
    for c in range(count):
        move(m, pointer(y, c * m), pointer(X, c * size + at))
    rest = size - at - m
    gemm_nn(count, rest, m, -1, pointer(y, 0), m, pointer(A, block_offset(size, rows, k) + m), m + rest,
            1, pointer(X, at + m), size)


@kernel
def backward(A, rows, k, L, pivots, scales, X, work):
    """One step of x <- R^-1 x for each row of X: subtract from block k what is right of it, which is known, and solve.

    Arguments as for `forward`.
    """
    count, size = X.shape
    at, m = _block(X, k, rows)
    rest, y, scratch = size - at - m, matrix(work, 0, count, m), matrix(work, count * m, count, m)
    for c in range(count):
        move(m, pointer(X, c * size + at), pointer(y, c * m))
    gemm_nt(count, m, rest, -1, pointer(X, at + m), size, pointer(A, block_offset(size, rows, k) + m), m + rest,
            1, pointer(y, 0), m)
    backward_vectors(L, pivots, scales, y, scratch)
    for c in range(count):
        move(m, pointer(y, c * m), pointer(X, c * size + at))
