"""One layer given as blocks, of one sample, whose front is kept as a Cholesky factor: P = U^T U (docs/theory.md, 7).

With T = U [Dx Dz], the pivot, the coupling and the next front are blocks of one matrix, and so are their factors:

    [M K; K^T P'] = [Dxx + eps I, Dzx; Dzx^T, Dzz] + T^T T,   and after the elimination of M   R = [F^T Y; 0 U']

which takes 8.7 n^3 flops with n states and n parameters, where the front, F, Y and the next front take 10.3 n^3 one
after the other, and reads and writes each block once. With v = U^T nu, the sweep back of a right-hand side g is
``[y; nu'] = R^-T ([g; 0] + T^T nu)``. Only fronts that are positive definite have such factors; `root_step` says where
one has none, and leaves U as it was. How rows are taken may be changed here, and the sizes in ``root_rows``.
"""

import math

from ..dense.microkernel import shift
from ..dense.pivot_arithmetic import MAX_FLOAT, times
from ..dense.root_rows import (
    NOTES,
    ROWS,
    STRIP,
    add_rows,
    factor_rows,
    move_rows,
    move_squares,
    prefetch,
    scale_upper,
    solve_corner,
    solve_rows,
    times_root,
)
from ..dense.signed_cholesky import panel_rows
from ..plumbing.binding import POINTER, SCALAR, SIZE, compiled_once
from ..plumbing.compiled import inner, shared
from ..plumbing.memory import move

# What `root_step` leaves in front of its scratch: 1 where it has factored the layer, log|det M| and what its rounding
# has left over, and the largest squared norm of a row of Y.
FACTORED, LOGABSDET, REST, GROWTH, RESULTS = 0, 1, 2, 3, 8
# Numbers of a cache line, at most.
LINE = 8


@shared
def rounded(count):
    """The next multiple of the rows of a block."""
    return (count + ROWS - 1) // ROWS * ROWS


@shared
def root_size(n):
    """Number of scalars of U for a front of n states: rows are `rounded` apart, and as many."""
    return rounded(n) * rounded(n)


@shared
def root_work_size(n, p, n_in):
    """Number of scalars of scratch that `root_step` needs for n states, of p parameters and n_in incoming states."""
    size = rounded(p + n_in)
    strips = (size + STRIP - 1) // STRIP
    return RESULTS + NOTES + 3 * size + strips * STRIP * (rounded(n) + size)


@inner
def _at(strips, height, row, column):
    """The place of an entry in strips of ``height`` rows."""
    return shift(strips, (column // STRIP * height + row) * STRIP + column % STRIP)


@inner
def _left(column, end):
    """How many of the columns from this one to before ``end`` are in the same strip."""
    return min(STRIP - column % STRIP, end - column)


@inner
def _zero(rows, x, stride):
    """A column of blocks, rows x ROWS, of zeros."""
    for i in range(rows):
        row = shift(x, i * stride)
        for j in range(ROWS):
            row[j] = 0


@inner
def _place(rows, columns, source, strips, height, row, column):
    """The rows of a matrix where they belong in the strips, each of ``height`` rows."""
    # A few rows at a time, so that the matrix is read from one end to the other.
    for first in range(0, rows, ROWS):
        done, taken = 0, min(ROWS, rows - first)
        while done < columns:
            count = _left(column + done, column + columns)
            to = _at(strips, height, row + first, column + done)
            move_rows(taken, count, shift(source, first * columns + done), columns, to, STRIP)
            done += count


@inner
def _take_upper(n, strips, height, row, column, beyond, first, taken, factors, to, ldt):
    """to <- factors times the rows first to first + taken - 1 of a triangle that starts at this row and column.

    They are written from their column ``first`` on; entries left of column ``beyond`` of row 0, and so on, are 0.
    """
    done = first
    while done < n:
        count = _left(column + done, column + n)
        source = _at(strips, height, row + first, column + done)
        scale_upper(
            taken, count, done - first + beyond, source, STRIP, shift(factors, first), shift(to, done - first), ldt
        )
        done += count


@inner
def _take_root(n, strips, height, row, column, ones, U, ldu):
    """U <- the triangle of n rows at this row and column of the strips, with zeros in the blocks of its diagonal."""
    for first in range(0, n, ROWS):
        _take_upper(
            n, strips, height, row, column, 1, first, min(ROWS, n - first), ones, shift(U, first * (ldu + 1)), ldu
        )


@inner
def _pad_root(n, U, ldu):
    """Rows of zeros up to the next multiple of ROWS."""
    for i in range(n, rounded(n)):
        for j in range(ldu):
            U[i * ldu + j] = 0


@inner
def _factor_block(k, size, plus, strips, height, pivots, roots, notes):
    """Rows k to k + ROWS - 1 of R, below T of ``plus`` rows; whether their pivots are positive."""
    u = _at(strips, height, 0, k)
    if factor_rows(_left(k, size) // ROWS, plus, k, u, notes) == 0:
        return False
    for i in range(ROWS):
        pivots[k + i], roots[k + i] = notes[i], notes[ROWS + i]
    for first in range((k // STRIP + 1) * STRIP, size, STRIP):
        vectors = _left(first, size) // ROWS
        solve_rows(vectors, plus, k, u, _at(strips, height, 0, first), notes)
    return True


@inner
def _fetch_before(count, k, size, block):
    """Ask for a part of the ``count`` numbers that stand before a block: where k goes from 0 to size, for all of them.

    They are the same block of the layer to come, if that has the same sizes.
    """
    lines = count // LINE + 1
    first, last = lines * k // size, lines * (k + ROWS) // size
    prefetch(last - first, shift(block, first * LINE - count))


@compiled_once("root_of", SIZE, POINTER, POINTER, POINTER, family="roots")
def root_of(n, P, U, work):
    """U of a front P (n x n, of which only the upper triangle is certain); work[FACTORED] says whether there is one."""
    notes = shift(work, RESULTS)
    roots = shift(notes, NOTES)
    size = rounded(n)
    pivots = shift(roots, size)
    strips, height = shift(pivots, 2 * size), size
    work[FACTORED] = 0
    if size > n:
        _zero(size, _at(strips, height, 0, size - ROWS), STRIP)
    _place(n, n, P, strips, height, 0, 0)
    for i in range(n, size):
        _at(strips, height, i, i)[0] = 1
    for k in range(0, size, ROWS):
        if not _factor_block(k, size, 0, strips, height, pivots, roots, notes):
            return
    for i in range(n):
        if not float(pivots[i]) <= MAX_FLOAT:
            return
        roots[i] = 1
    _take_root(n, strips, height, 0, 0, roots, U, size)
    _pad_root(n, U, size)
    work[FACTORED] = 1


@inner
def _substitute(n, size, strips, height, roots, nu, t, y):
    """y <- R^-T (t + T^T nu), a block of rows after the other; t comes as size numbers and is destroyed."""
    for first in range(0, size, STRIP):
        vectors = _left(first, size) // ROWS
        add_rows(vectors, n, nu, _at(strips, height, 0, first), shift(t, first))
    for k in range(0, size, ROWS):
        row = rounded(n) + k
        solve_corner(_at(strips, height, row, k), shift(roots, k), shift(t, k), shift(y, k))
        column = k + ROWS
        while column < size:
            vectors = _left(column, size) // ROWS
            add_rows(vectors, ROWS, shift(t, k), _at(strips, height, row, column), shift(t, column))
            column += vectors * ROWS


@compiled_once("root_step", *[SIZE] * 4, *[SCALAR] * 4, *[POINTER] * 13, family="roots")
def root_step(
    n, p, n_in, with_vector, damping, tiny, limit, most, U, Dx, Dz, Dxx, Dzx, Dzz, g, L, scales, Y, y, nu, work
):
    """F, Y and the next U of a layer of n states, p parameters and n_in incoming states, from its blocks and U.

    With a vector, g is that of its right-hand side, y becomes ``F^-1 (g + Dx^T U^T nu)``, and nu the next one.

    The packed factor, scales and Y are written as `signed_cholesky` and `forward_rows` do. ``work[FACTORED]`` is 0
    where there is no such factor, where a pivot is at most ``tiny``, and where one below ``most`` has a row of Y whose
    squared norm is above ``limit``: U is then as before, and L, scales and Y hold nothing of use.
    """
    notes = shift(work, RESULTS)
    plus, width = rounded(n), p + n_in
    size = rounded(width)
    roots = shift(notes, NOTES)
    pivots, squares = shift(roots, size), shift(roots, 2 * size)
    strips, height = shift(roots, 3 * size), plus + size
    work[FACTORED] = 0
    if size > width:
        _zero(height, _at(strips, height, 0, size - ROWS), STRIP)
    _place(n, p, Dx, strips, height, 0, 0)
    _place(n, n_in, Dz, strips, height, 0, p)
    for first in range(0, size, STRIP):
        vectors = _left(first, size) // ROWS
        times_root(vectors, n, plus, U, plus, _at(strips, height, 0, first))
    _place(p, p, Dxx, strips, height, plus, 0)
    _place(p, n_in, Dzx, strips, height, plus, p)
    _place(n_in, n_in, Dzz, strips, height, plus + p, p)
    for i in range(p):
        _at(strips, height, plus + i, i)[0] += damping
    for i in range(width, size):
        _at(strips, height, plus + i, i)[0] = 1
    for k in range(0, size, ROWS):
        _fetch_before(n * p, k, size, Dx)
        _fetch_before(n * n_in, k, size, Dz)
        _fetch_before(p * p, k, size, Dxx)
        _fetch_before(p * n_in, k, size, Dzx)
        _fetch_before(n_in * n_in, k, size, Dzz)
        if not _factor_block(k, size, plus, strips, height, pivots, roots, notes):
            return
    product, exponent = 1.0, 0.0
    for k in range(p):
        pivot = float(pivots[k])
        if not (pivot > tiny and pivot <= MAX_FLOAT):
            return
        product, exponent = times(product, exponent, pivot)
        scales[2 * k], scales[2 * k + 1] = roots[k], 0
    for k in range(size):
        squares[k] = 0
    # F in its panels, and Y.
    rows, to = panel_rows(p), L
    for k0 in range(0, p, rows):
        stride = p - k0
        taken = min(rows, stride)
        for first in range(k0, k0 + taken, ROWS):
            here = shift(to, (first - k0) * stride)
            count, left = min(ROWS, k0 + taken - first), first - k0
            for i in range(count):
                for j in range(left):
                    here[i * stride + j] = 0
            _take_upper(p, strips, height, plus, 0, 0, first, count, roots, shift(here, left), stride)
        to = shift(to, taken * stride)
    for first in range(0, p, ROWS):
        done = 0
        while done < n_in:
            count = _left(p + done, width)
            source = _at(strips, height, plus + first, p + done)
            to = shift(Y, first * n_in + done)
            move_squares(min(ROWS, p - first), count, source, STRIP, to, n_in, shift(squares, first))
            done += count
    growth = 0.0
    for k in range(p):
        square = float(squares[k])
        if not square <= MAX_FLOAT or (square > limit and float(pivots[k]) < most):
            return
        growth = max(growth, square)
    for i in range(n_in):
        if not float(pivots[p + i]) <= MAX_FLOAT:
            return
    if with_vector:
        # The pivots have been read.
        t, found = pivots, squares
        move(p, g, t)
        for i in range(p, size):
            t[i] = 0
        _substitute(n, size, strips, height, roots, nu, t, found)
        move(p, found, y)
        move(n_in, shift(found, p), nu)
    for i in range(n_in):
        roots[i] = 1
    _take_root(n_in, strips, height, plus + p, p, roots, U, rounded(n_in))
    _pad_root(n_in, U, rounded(n_in))
    logarithm = exponent + math.log(product)
    work[FACTORED], work[LOGABSDET], work[GROWTH] = 1, logarithm, growth
    work[REST] = logarithm - float(work[LOGABSDET])
