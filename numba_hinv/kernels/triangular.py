"""Solves with the factor F of ``signed_cholesky``: ``forward_rows``, ``forward_vectors``, ``backward_vectors``.

F^{-1} x: take x in the order of the pivots, solve with U^T, apply G^{-1}, put positive signs first. F^{-T} is the
transpose. Each solve reads the panels of L once. How the blocks are solved may be changed here; the layout of L is
described, and owned, by ``signed_cholesky``.
"""

from numba import njit

from .microkernel import pointer
from .pivot_block import BLOCK, solve_block
from .product import gemm_nn, gemm_nt, gemm_tn
from .signed_cholesky import panel_rows


@njit(cache=True, nogil=True)
def _in_order(pivots, m):
    """Whether neither the pivots nor their signs were reordered: then a solve needs no copy."""
    difference = 0
    for k in range(m):
        difference |= (pivots[k] ^ k) | (pivots[m + k] ^ k)
    return difference == 0


@njit(cache=True, nogil=True)
def _place(pivot):
    """The row of M that a pivot was taken from."""
    return ~pivot if pivot < 0 else pivot


@njit(cache=True, nogil=True)
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
        _solve_rows(L, K)
        for k in range(m):
            for j in range(n):
                K[k, j] *= scales[k, 0]
        return
    for k in range(m):
        row = _place(pivots[k])
        for j in range(n):
            work[k, j] = K[row, j]
    _solve_rows(L, work)
    k = 0
    while k < m:
        if pivots[k] < 0:
            for j in range(n):
                K[pivots[m + k], j] = scales[k, 0] * work[k, j] + scales[k, 1] * work[k + 1, j]
                K[pivots[m + k + 1], j] = scales[k + 1, 0] * work[k + 1, j] + scales[k + 1, 1] * work[k, j]
            k += 2
        else:
            for j in range(n):
                K[pivots[m + k], j] = scales[k, 0] * work[k, j]
            k += 1


@njit(cache=True, nogil=True)
def _solve_rows(L, K):
    """K <- U^{-T} K."""
    m, n = K.shape
    rows = panel_rows(m)
    base = 0
    for k0 in range(0, m, rows):
        stride = m - k0
        height = min(rows, stride)
        for k in range(0, height, BLOCK):
            here = pointer(K, (k0 + k) * n)
            solve_block(min(BLOCK, height - k), n, k, 1, pointer(L, base + k), stride, pointer(K, k0 * n), n, here, n,
                        here, n, pointer(L, base + k * stride + k), stride)
        gemm_tn(stride - height, n, height, K.dtype.type(-1), pointer(L, base + height), stride,
                pointer(K, k0 * n), n, K.dtype.type(1), pointer(K, (k0 + height) * n), n)
        base += height * stride


@njit(cache=True, nogil=True)
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
                work[c, k] = X[c, _place(pivots[k])]
    rows = panel_rows(m)
    base = 0
    for k0 in range(0, m, rows):
        stride = m - k0
        height = min(rows, stride)
        for c in range(count):
            for k in range(k0, k0 + height):
                for j in range(k + 1, k0 + height):
                    Y[c, j] -= Y[c, k] * L[base + (k - k0) * stride + j - k0]
        gemm_nn(count, stride - height, height, X.dtype.type(-1), pointer(Y, k0), m, pointer(L, base + height), stride,
                X.dtype.type(1), pointer(Y, k0 + height), m)
        base += height * stride
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


@njit(cache=True, nogil=True)
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
    rows = panel_rows(m)
    last = (m - 1) // rows * rows
    base = L.shape[0]
    for k0 in range(last, -1, -rows):
        stride = m - k0
        height = min(rows, stride)
        base -= height * stride
        gemm_nt(count, height, stride - height, X.dtype.type(-1), pointer(Y, k0 + height), m,
                pointer(L, base + height), stride, X.dtype.type(1), pointer(Y, k0), m)
        for c in range(count):
            for k in range(k0 + height - 1, k0 - 1, -1):
                for j in range(k + 1, k0 + height):
                    Y[c, k] -= Y[c, j] * L[base + (k - k0) * stride + j - k0]
    if not in_order:
        for c in range(count):
            for k in range(m):
                X[c, _place(pivots[k])] = work[c, k]
