"""Solves with the factor F of ``signed_cholesky``: ``forward_rows``, ``backward_rows``, ``forward_vectors``,
``backward_vectors``.

F^{-1} x: take x in the order of the pivots, solve with U^T, apply G^{-1}, put positive signs first. F^{-T} is the
transpose. Each solve reads the panels of L once. How the blocks are solved may be changed here; the layout of L is
described, and owned, by ``signed_cholesky``.
"""


from ..plumbing.binding import POINTER, SIZE, compiled_once
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import move
from .microkernel import dot_columns, pointer, shift, tile_nt
from .pivot_arithmetic import place
from .pivot_block import BLOCK, solve_block, solve_block_back, solve_vector, solve_vector_back
from .pivot_rows import subtract_rows
from .product import gemm_nn, gemm_nt, gemm_tn
from .signed_cholesky import panel_rows


@inner
def _in_order(pivots, m):
    """Whether neither the pivots nor their signs were reordered: then a solve needs no copy."""
    difference = 0
    for k in range(m):
        difference |= (pivots[k] ^ k) | (pivots[m + k] ^ k)
    return difference == 0


@inner
def _scale(count, factor, x, out):
    for j in range(count):
        out[j] = factor * x[j]


@inner
def _combine(count, a, x, b, y, out):
    for j in range(count):
        out[j] = a * x[j] + b * y[j]


@kernel
def forward_rows(L, pivots, scales, K, work):
    """K <- F^{-1} K in place, rows with sigma = +1 first.

    Parameters
    ----------
    L, pivots, scales : arrays
        The factor of an m x m matrix, from `signed_cholesky`.
    K : (m, N) C-contiguous array
        Overwritten.
    work : (m, N) C-contiguous array
        Scratch; used only where rows have to be reordered.

    Notes
    -----
    m^2 N flops.
    """
    m, n = K.shape
    if _in_order(pivots, m):
        _solve_rows(m, n, pointer(L, 0), pointer(K, 0))
        for k in range(m):
            row = pointer(K, k * n)
            _scale(n, scales[k, 0], row, row)
        return
    for k in range(m):
        move(n, pointer(K, place(pivots[k]) * n), pointer(work, k * n))
    _solve_rows(m, n, pointer(L, 0), pointer(work, 0))
    k = 0
    while k < m:
        x, out = pointer(work, k * n), pointer(K, pivots[m + k] * n)
        if pivots[k] < 0:
            y = shift(x, n)
            _combine(n, scales[k, 0], x, scales[k, 1], y, out)
            _combine(n, scales[k + 1, 1], x, scales[k + 1, 0], y, pointer(K, pivots[m + k + 1] * n))
            k += 2
        else:
            _scale(n, scales[k, 0], x, out)
            k += 1


@compiled_once("solve_rows", SIZE, SIZE, POINTER, POINTER)
def _solve_rows(m, n, L, K):
    """K (m x n) <- U^{-T} K."""
    rows = panel_rows(m)
    for k0 in range(0, m, rows):
        stride = m - k0
        height = min(rows, stride)
        for k in range(0, height, BLOCK):
            here = shift(K, k * n)
            solve_block(min(BLOCK, height - k), n, k, 1, shift(L, k), stride, K, n, here, n, here, n,
                        shift(L, k * stride + k), stride)
        gemm_tn(stride - height, n, height, -1, shift(L, height), stride, K, n, 1, shift(K, height * n), n)
        L, K = shift(L, height * stride), shift(K, height * n)


@kernel
def backward_rows(L, pivots, scales, K, work):
    """K <- F^{-T} K in place, rows with sigma = +1 first in what is given.

    Parameters
    ----------
    L, pivots, scales : arrays
        The factor of an m x m matrix, from `signed_cholesky`.
    K : (m, N) C-contiguous array
        Overwritten.
    work : (m, N) C-contiguous array
        Scratch; used only where rows have to be reordered.

    Notes
    -----
    m^2 N flops.
    """
    m, n = K.shape
    end = pointer(L, L.shape[0])
    if _in_order(pivots, m):
        for k in range(m):
            row = pointer(K, k * n)
            _scale(n, scales[k, 0], row, row)
        _solve_rows_back(m, n, end, pointer(K, 0))
        return
    k = 0
    while k < m:
        x, out = pointer(K, pivots[m + k] * n), pointer(work, k * n)
        if pivots[k] < 0:
            y = pointer(K, pivots[m + k + 1] * n)
            _combine(n, scales[k, 0], x, scales[k + 1, 1], y, out)
            _combine(n, scales[k, 1], x, scales[k + 1, 0], y, shift(out, n))
            k += 2
        else:
            _scale(n, scales[k, 0], x, out)
            k += 1
    _solve_rows_back(m, n, end, pointer(work, 0))
    for k in range(m):
        move(n, pointer(work, k * n), pointer(K, place(pivots[k]) * n))


@compiled_once("solve_rows_back", SIZE, SIZE, POINTER, POINTER)
def _solve_rows_back(m, n, L, K):
    """K (m x n) <- U^{-1} K. L points to the end of the factor."""
    rows = panel_rows(m)
    for k0 in range((m - 1) // rows * rows, -1, -rows):
        stride = m - k0
        height = min(rows, stride)
        L, panel = shift(L, -height * stride), shift(K, k0 * n)
        gemm_nn(height, n, stride - height, -1, shift(L, height), stride, shift(panel, height * n), n, 1, panel, n)
        for k in range((height - 1) // BLOCK * BLOCK, -1, -BLOCK):
            block = min(BLOCK, height - k)
            t, here = shift(L, k * stride + k), shift(panel, k * n)
            solve_block_back(block, n, height - k - block, shift(t, block), stride, shift(here, block * n), n,
                             here, n, t, stride)


@compiled_once("solve_vectors", SIZE, SIZE, POINTER, POINTER)
def _solve_vectors(count, m, L, Y):
    """Each row y of Y <- U^{-T} y."""
    rows = panel_rows(m)
    for k0 in range(0, m, rows):
        stride = m - k0
        height = min(rows, stride)
        # One vector takes each row of U once, to its end; several leave what is right of the panel to a product.
        width = stride if count == 1 else height
        for k in range(0, height, BLOCK):
            block = min(BLOCK, height - k)
            t = shift(L, k * stride + k)
            for c in range(count):
                y = shift(Y, c * m + k0 + k)
                if block == BLOCK:
                    solve_vector(t, stride, y)
                else:
                    for i in range(block):
                        for j in range(i + 1, block):
                            y[j] -= y[i] * t[i * stride + j]
                after = shift(y, block)
                subtract_rows(width - k - block, block, y, 1, shift(t, block), stride, after, after)
        if width < stride:
            gemm_nn(count, stride - height, height, -1, shift(Y, k0), m, shift(L, height), stride, 1,
                    shift(Y, k0 + height), m)
        L = shift(L, height * stride)


@compiled_once("solve_vectors_back", SIZE, SIZE, POINTER, POINTER)
def _solve_vectors_back(count, m, L, Y):
    """Each row y of Y <- U^{-1} y. L points to the end of the factor."""
    rows = panel_rows(m)
    for k0 in range((m - 1) // rows * rows, -1, -rows):
        stride = m - k0
        height = min(rows, stride)
        L = shift(L, -height * stride)
        width = stride if count == 1 else height
        if width < stride:
            gemm_nt(count, height, stride - height, -1, shift(Y, k0 + height), m, shift(L, height), stride, 1,
                    shift(Y, k0), m)
        for k in range((height - 1) // BLOCK * BLOCK, -1, -BLOCK):
            block = min(BLOCK, height - k)
            t = shift(L, k * stride + k)
            rest = width - k - block
            for c in range(count):
                y = shift(Y, c * m + k0 + k)
                if rest > 0:
                    for i in range(0, block, dot_columns(Y)):
                        tile_nt(1, min(block - i, dot_columns(Y)), rest, -1, shift(y, block), m,
                                shift(t, i * stride + block), stride, 1, shift(y, i), m)
                if block == BLOCK:
                    solve_vector_back(t, stride, y)
                else:
                    for i in range(block - 1, -1, -1):
                        for j in range(i + 1, block):
                            y[i] -= y[j] * t[i * stride + j]


@kernel
def forward_vectors(L, pivots, scales, X, work):
    """Each row x of X <- F^{-1} x in place.

    Parameters
    ----------
    L, pivots, scales : arrays
        The factor of an m x m matrix, from `signed_cholesky`.
    X : (k, m) C-contiguous array
        Overwritten.
    work : (k, m) C-contiguous array
        Scratch.

    Notes
    -----
    k m^2 flops; reads L once.
    """
    count, m = X.shape
    in_order = _in_order(pivots, m)
    Y = X if in_order else work
    if not in_order:
        for c in range(count):
            for k in range(m):
                work[c, k] = X[c, place(pivots[k])]
    _solve_vectors(count, m, pointer(L, 0), pointer(Y, 0))
    for c in range(count):
        if in_order:
            for k in range(m):
                X[c, k] *= scales[k, 0]
            continue
        k = 0
        while k < m:
            if pivots[k] < 0:
                X[c, pivots[m + k]] = scales[k, 0] * work[c, k] + scales[k, 1] * work[c, k + 1]
                X[c, pivots[m + k + 1]] = scales[k + 1, 0] * work[c, k + 1] + scales[k + 1, 1] * work[c, k]
                k += 2
            else:
                X[c, pivots[m + k]] = scales[k, 0] * work[c, k]
                k += 1


@kernel
def backward_vectors(L, pivots, scales, X, work):
    """Each row x of X <- F^{-T} x in place.

    Parameters
    ----------
    L, pivots, scales : arrays
        The factor of an m x m matrix, from `signed_cholesky`.
    X : (k, m) C-contiguous array
        Overwritten.
    work : (k, m) C-contiguous array
        Scratch.

    Notes
    -----
    k m^2 flops; reads L once.
    """
    count, m = X.shape
    in_order = _in_order(pivots, m)
    Y = X if in_order else work
    for c in range(count):
        if in_order:
            for k in range(m):
                X[c, k] *= scales[k, 0]
            continue
        k = 0
        while k < m:
            x = X[c, pivots[m + k]]
            if pivots[k] < 0:
                y = X[c, pivots[m + k + 1]]
                work[c, k] = scales[k, 0] * x + scales[k + 1, 1] * y
                work[c, k + 1] = scales[k + 1, 0] * y + scales[k, 1] * x
                k += 2
            else:
                work[c, k] = scales[k, 0] * x
                k += 1
    _solve_vectors_back(count, m, pointer(L, L.shape[0]), pointer(Y, 0))
    if not in_order:
        for c in range(count):
            for k in range(m):
                X[c, place(pivots[k])] = work[c, k]
