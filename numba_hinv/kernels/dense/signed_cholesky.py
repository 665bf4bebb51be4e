"""Signed Cholesky: M = F diag(sigma) F^T with sigma = +-1, of a symmetric matrix, definite or not.

Here live the packed layout of the factor (``panel_rows``, ``pack_size``, ``work_size``) and the factorization itself.
``M[perm][:, perm] = U^T D U`` with U unit upper triangular and D of 1x1 and 2x2 blocks, each block being split as
``G diag(sigma) G^T``. Panel widths and the pivot rule may be changed here; the layout is also read by ``triangular``.

Layout of ``L``: panels of ``panel_rows(m)`` rows. The panel that starts at row k0 holds the columns k0..m of its rows
of U, row-major with row stride m - k0; the unit diagonal is not stored: zeros stand on and below it.
"""

import math

import numpy as np

from ..plumbing.binding import POINTER, SCALAR, SIZE, compiled_once
from ..plumbing.compiled import inner, kernel
from ..plumbing.status import NOT_FINITE, OK, SINGULAR_PIVOT
from .microkernel import as_int32, pointer, retyped, row_stride, shift
from .pivot_arithmetic import (
    EXCHANGE,
    MAX_FLOAT,
    PAIR,
    STAY,
    choice,
    is_weak,
    order,
    replacement,
    split_block,
    stays_nonnegative,
    times,
)
from .pivot_block import BLOCK, eliminate_block, factor_block, solve_block
from .pivot_rows import largest, scale_pair, scale_row, subtract_rows
from .product import gemm_tn_upper

# Scalars that kernels leave for each other: pivots and inverses of a block; results.
NOTES = 3 * BLOCK
RESULTS = 2 * BLOCK


@kernel
def panel_rows(m):
    """Rows of U per panel of the packed factor of an m x m matrix."""
    # Measured: wide panels feed the products better, narrow ones cost the pivots that need care less. With m = 128 and
    # panels of 16, 32 rows: factorization 21, 20 us (indefinite: 39, 45), F^-1 K with m columns 37, 31 us.
    if m <= 64:
        return 16
    if m <= 768:
        return 32
    return 64


@kernel
def panel_offset(m, rows, panel):
    """Where panel number `panel` starts in the packed factor."""
    return rows * (panel * m - rows * (panel * (panel - 1) // 2))


@kernel
def pack_size(m):
    """Number of scalars of the packed factor of an m x m matrix: about m (m + panel_rows(m)) / 2."""
    rows = panel_rows(m)
    full = m // rows
    return panel_offset(m, rows, full) + (m - full * rows) * (m - full * rows)


@kernel
def work_size(m):
    """Number of scalars of scratch that `signed_cholesky` needs."""
    return (4 + BLOCK) * m + NOTES


@inner
def _interchange(m, M, lda, L, base, k0, start, k, p, q, pivots, s):
    """Swap p and q > p in the rows start..k of M and k0..k of U; index q of the rest of M takes p's entries."""
    for j in range(p + 1, q):
        M[j * lda + q] = M[p * lda + j]
    for j in range(q + 1, m):
        M[q * lda + j] = M[p * lda + j]
    M[q * lda + q] = M[p * lda + p]
    for i in range(start, k):
        M[i * lda + p], M[i * lda + q] = M[i * lda + q], M[i * lda + p]
    for i in range(k - k0):
        at = base + i * (m - k0) - k0
        L[at + p], L[at + q] = L[at + q], L[at + p]
    pivots[p], pivots[q] = pivots[q], pivots[p]
    s[p], s[q] = s[q], s[p]


@inner
def _bounded(m, w, s, d, k):
    """Whether the 1x1 pivot d > 0 leaves no later diagonal entry negative: then elements do not grow."""
    inverse, bad = 1 / d, 0
    for j in range(k + 1, m):
        bad |= not stays_nonnegative(s[j], w[j], inverse)
    return bad == 0


@compiled_once("careful_pivot", SIZE, POINTER, SIZE, *[POINTER] * 7, *[SIZE] * 4, SCALAR, SCALAR)
def _careful_pivot(m, M, lda, L, pivots, scales, s, w, v, block, base, k0, start, k, tiny, perturbation):
    """Eliminate one 1x1 or 2x2 pivot at step k, with an interchange if it takes one.

    Leaves in block[RESULTS:] the number of rows eliminated (0 if the matrix holds NaN or infinity, -1 if the pivot is
    singular and may not be replaced), the numbers of negative and of replaced eigenvalues, and two factors of the
    modulus of their product.
    """
    pivots = as_int32(pivots)
    results = shift(block, RESULTS)
    results[0] = 0
    stride = m - k0
    coefficients, above = shift(L, base + (start - k0) * stride - k0), shift(M, start * lda + k)
    subtract_rows(m - k, k - start, shift(coefficients, k), stride, above, lda, shift(M, k * lda + k), shift(w, k))
    d = float(w[k])
    q = k + 1 + largest(m - k - 1, shift(w, k + 1), block)
    colmax = float(block[0])
    size, other = 1, k
    if not (abs(d) <= MAX_FLOAT and colmax <= MAX_FLOAT):
        return
    if is_weak(d, colmax) and not (d > 0 and _bounded(m, w, s, d, k)):
        for j in range(k, q):
            v[j] = M[j * lda + q]
        for j in range(q, m):
            v[j] = M[q * lda + j]
        subtract_rows(m - k, k - start, shift(coefficients, q), stride, above, lda, shift(v, k), shift(v, k))
        e = v[q]
        v[q] = 0
        largest(m - k, shift(v, k), block)
        rowmax = float(block[0])
        v[q] = e
        if not (abs(e) <= MAX_FLOAT and rowmax <= MAX_FLOAT):
            return
        chosen = choice(d, colmax, float(e), rowmax)
        if chosen != STAY:
            other = q
        if chosen == PAIR:
            size = 2
        elif chosen == EXCHANGE:
            w, v = v, w
            d = float(e)
    last = k + size - 1
    if other != last:
        _interchange(m, M, lda, L, base, k0, start, k, last, other, pivots, s)
        w[last], w[other] = w[other], w[last]
        v[last], v[other] = v[other], v[last]
    row = base + (k - k0) * stride - k0
    for j in range(k0, k + 1):
        L[row + j] = 0
    if size == 1:
        count = 0
        if not abs(d) > tiny:
            if perturbation == 0:
                results[0] = -1
                return
            d = replacement(d, perturbation)
            count = 1
        inverse = 1 / d
        block[0] = inverse
        if abs(float(block[0])) <= MAX_FLOAT:
            after = k + 1
            scale_row(m - after, inverse, shift(w, after), shift(L, row + after), shift(M, k * lda + after),
                      shift(s, after))
        else:
            for j in range(k + 1, m):
                L[row + j] = w[j] / d
                M[k * lda + j] = w[j]
                s[j] -= L[row + j] * w[j]
        scales[2 * k] = 1 / math.sqrt(abs(d))
        scales[2 * k + 1] = 0
        pivots[m + k] = 4 * other + int(d < 0)
        results[0], results[1], results[2], results[3], results[4] = 1, int(d < 0), count, abs(d), 1
        return
    b, c = float(w[last]), float(v[last])
    count, first, second, one, two, p, q_, r, g0, g1, g2, g3 = split_block(d, b, c, tiny, perturbation)
    if count < 0:
        results[0] = -1
        return
    below = row + stride
    if last >= k0 + panel_rows(m):
        # The block straddles two panels.
        k0 = last
        below = panel_offset(m, panel_rows(m), last // panel_rows(m)) - k0
    for j in range(k0, last + 1):
        L[below + j] = 0
    L[row + last] = 0
    M[k * lda + last] = 0
    after = last + 1
    scale_pair(m - after, p, q_, r, shift(w, after), shift(v, after), shift(L, row + after),
               shift(L, below + after), shift(M, k * lda + after), shift(M, last * lda + after), shift(s, after))
    scales[2 * k], scales[2 * k + 1], scales[2 * last + 1], scales[2 * last] = g0, g1, g2, g3
    pivots[m + k] = 4 * other + 2 + first
    pivots[m + last] = 4 * last + second
    pivots[k], pivots[last] = ~pivots[k], ~pivots[last]
    results[0], results[1], results[2], results[3], results[4] = 2, first + second, count, one, two


@inner
def _late_interchanges(L, pivots, m):
    """Apply to each panel the interchanges that were made after it had been finished."""
    rows = panel_rows(m)
    for panel in range(m // rows):
        k0 = panel * rows
        first = k0 + rows
        base = panel_offset(m, rows, panel)
        for i in range(rows):
            row = base + i * (m - k0) - k0
            for k in range(first, m):
                q = pivots[m + k] >> 2
                p = k + ((pivots[m + k] >> 1) & 1)
                if p != q:
                    L[row + p], L[row + q] = L[row + q], L[row + p]


@inner
def _update(m, M, lda, L, base, k0, start, stop, k):
    """Subtract the contribution of the rows start..stop of U from M[k:, k:] (upper triangle)."""
    gemm_tn_upper(m - k, m - k, stop - start, -1, shift(L, base + (start - k0) * (m - k0) + k - k0), m - k0,
                  shift(M, start * lda + k), lda, 1, shift(M, k * lda + k), lda)


@compiled_once("definite_block", SIZE, POINTER, SIZE, *[POINTER] * 5, *[SIZE] * 5, SCALAR)
def _definite_block(m, M, lda, L, s, s_after, saved, block, base, k0, start, k, rows, threshold):
    """Eliminate `rows` positive pivots from step k on if none of them leaves a negative diagonal entry.

    block[RESULTS] says whether it was so; if not, M and s are as before. The new s is s_after; the pivots are in block.
    """
    block[RESULTS] = 0
    stride = m - k0
    here, after = base + (k - k0) * stride + k - k0, k + rows
    t, u, b = shift(L, here), shift(L, base + (start - k0) * stride - k0), shift(M, start * lda)
    a, d, inverse = shift(M, k * lda), block, shift(block, BLOCK)
    solve_block(rows, rows, k - start, 0, shift(u, k), stride, shift(b, k), lda, shift(a, k), lda, t, stride, t, stride)
    if not factor_block(rows, threshold, t, stride, d, inverse):
        return
    if after < m and not eliminate_block(
        m - after, k - start, shift(u, k), stride, shift(b, after), lda, shift(a, after), lda, shift(t, rows), stride,
        t, stride, inverse, shift(s, after), shift(s_after, after), shift(saved, after), m,
    ):
        for i in range(rows):
            for j in range(after, m):
                M[(k + i) * lda + j] = saved[i * m + j]
        return
    for i in range(rows):
        for j in range(here - (k - k0), here):
            L[j + i * stride] = 0
    block[RESULTS] = 1


@compiled_once("signed_cholesky", SIZE, POINTER, SIZE, SCALAR, SCALAR, SCALAR, *[POINTER] * 4)
def _factor(m, M, lda, tiny, perturbation, threshold, L, pivots, scales, work):
    """`signed_cholesky` on pointers; leaves its results, the logarithm in two parts, at the end of work."""
    s, s_after, w, v, saved = work, shift(work, m), shift(work, 2 * m), shift(work, 3 * m), shift(work, 4 * m)
    block = shift(work, (4 + BLOCK) * m)
    results = shift(block, RESULTS)
    packed_pivots, pivots = pivots, as_int32(pivots)
    rows = panel_rows(m)
    trace = 0.0
    for k in range(m):
        trace += M[k * lda + k]
    # Only positive pivots are eliminated in blocks: where negative ones prevail, -M is factorized.
    flip = int(trace < 0)
    if flip:
        for k in range(m):
            for j in range(k * lda + k, k * lda + m):
                M[j] = -M[j]
    for k in range(m):
        s[k] = M[k * lda + k]
        pivots[k] = k
    num_negative, num_perturbed, product, exponent = 0, 0, 1.0, 0.0
    k, start, interchanged = 0, 0, False
    while k < m:
        k0 = k - k % rows
        base = panel_offset(m, rows, k0 // rows)
        end = min(k0 + rows, m)
        careful = 0
        while k < end:
            height = min(BLOCK, end - k)
            if k >= careful and (height == BLOCK or end == m):
                _definite_block(m, M, lda, L, s, s_after, saved, block, base, k0, start, k, height, threshold)
                if results[0] > 0:
                    s, s_after = s_after, s
                    for i in range(height):
                        d = float(block[i])
                        if not d <= MAX_FLOAT:
                            results[0] = NOT_FINITE
                            return
                        product, exponent = times(product, exponent, d)
                        scales[2 * (k + i)] = 1 / math.sqrt(d)
                        scales[2 * (k + i) + 1] = 0
                        pivots[m + k + i] = 4 * (k + i)
                    k += height
                    continue
                careful = end
            _careful_pivot(m, M, lda, L, packed_pivots, scales, s, w, v, block, base, k0, start, k, tiny, perturbation)
            if results[0] <= 0:
                results[0] = NOT_FINITE if results[0] == 0 else SINGULAR_PIVOT
                return
            interchanged = interchanged or pivots[m + k] >> 2 != k
            num_negative += int(results[1])
            num_perturbed += int(results[2])
            product, exponent = times(product, exponent, float(results[3]))
            product, exponent = times(product, exponent, float(results[4]))
            k += int(results[0])
        if k < m:
            _update(m, M, lda, L, base, k0, start, end, k)
            start = end
            if k > end:
                _update(m, M, lda, L, panel_offset(m, rows, end // rows), end, end, k, k)
                start = k
    if interchanged:
        _late_interchanges(L, pivots, m)
    if flip:
        num_negative = m - num_negative
        for k in range(m):
            pivots[m + k] ^= 1
    order(pivots, m)
    logarithm = exponent + math.log(product)
    results[0], results[1], results[2], results[3] = OK, num_negative, num_perturbed, logarithm
    results[4] = logarithm - float(results[3])


@kernel
def signed_cholesky(M, tiny, perturbation, L, pivots, scales, work):
    """Factor a symmetric matrix as ``F diag(sigma) F^T``, sigma = +-1.

    Each pivot is taken where it stands if it is positive and leaves every later diagonal entry nonnegative, which
    bounds the growth of elements as in a Cholesky factorization and holds for every pivot of a positive definite
    matrix (of -M if the trace of M is negative). The other pivots follow Bunch and Kaufman's partial pivoting (LAPACK's
    sytrf).

    Parameters
    ----------
    M : (m, m) array, float64 or float32, rows contiguous
        Only the upper triangle is read. Destroyed.
    tiny : float
        A pivot (1x1, or eigenvalue of a 2x2 block) of modulus at most `tiny` is singular to working precision.
    perturbation : float
        What such a pivot is replaced by, with its sign (that of the trace for 0). Zero: none is replaced.
    L : (pack_size(m),) array
        Out: U, in the layout that this file's opening describes.
    pivots : (2m,) int32 array
        Out: the permutation, entries of 2x2 blocks as one's complement; then the place of each pivot in F's order.
    scales : (m, 2) array
        Out: row k of G^{-1}, the entry on the diagonal and the one at the pivot's partner in a 2x2 block.
    work : (work_size(m),) array
        Scratch.

    Returns
    -------
    status : int
        OK, SINGULAR_PIVOT (only with ``perturbation == 0``) or NOT_FINITE; the outputs hold nothing of use then.
    num_negative, num_perturbed : int
        How many sigma are -1; how many pivots were replaced.
    logabsdet : float
        The logarithm of abs(det(F diag(sigma) F^T)).

    Notes
    -----
    m^3 / 3 flops where no interchange is made. J. R. Bunch and L. Kaufman, Math. Comp. 31 (1977), 163-179.
    """
    m = M.shape[0]
    # Pivots whose inverse could overflow are left to the careful path.
    threshold = max(M.dtype.type(tiny), M.dtype.type(4) * np.finfo(M.dtype).tiny)
    scratch = pointer(work, 0)
    _factor(m, pointer(M, 0), row_stride(M), tiny, perturbation, threshold, pointer(L, 0),
            retyped(pointer(pivots, 0), scratch), pointer(scales, 0), scratch)
    results = shift(scratch, (4 + BLOCK) * m + RESULTS)
    if results[0] != OK:
        return int(results[0]), 0, 0, 0.0
    return OK, int(results[1]), int(results[2]), float(results[3]) + float(results[4])
