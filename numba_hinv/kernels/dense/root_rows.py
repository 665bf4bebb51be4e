"""Blocks of ``ROWS`` rows of a Cholesky factorization in LLVM vector IR, for fronts that are kept as their factors.

``times_root(vectors, depth, rows, u, ldu, x)``   X <- U X, U upper triangular, in place
``factor_rows(vectors, plus, minus, x, notes)``   R <- F^{-T} (A + T^T T - R^T R), the block of the diagonal being first
``solve_rows(vectors, plus, minus, u, x, notes)``   the same for columns that are right of what ``factor_rows`` has done
``add_rows(vectors, rows, factors, x, out)``, ``solve_corner(x, roots, t, y)``   R^{-T} t for one vector
``move_rows``, ``move_squares``, ``scale_upper``   copies of up to ``ROWS`` rows from one stride to another
``prefetch(count, source)``   asks for cache lines
Matrices are kept in strips of ``STRIP`` columns, which the first five take one at a time: a row of a strip is
contiguous, the next row follows it, so that whatever the sizes, memory is read from one end to the other. Sizes are
rounded up to `ROWS` by their caller, so that there are no edges. The sizes at the top may be changed after a
measurement.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emitter import I32, VECTOR_BYTES
from .microkernel import sum_lanes
from .strips import accumulate, caller, int64, minus_product, over_columns

# Rows of a block, which are the lanes of its vectors too, for both dtypes: the block of the diagonal is one vector
# wide. With three vectors the sums of a tile take 24 of AVX-512's 32 registers, and 12 of the 16 that others have.
ROWS = 8 if VECTOR_BYTES == 64 else 4
MOST_VECTORS = 3
STRIP = MOST_VECTORS * ROWS
# What `factor_rows` leaves: pivots, the inverses of their roots, and the rows of the unit triangle.
NOTES = (2 + ROWS) * ROWS


def _for_each_count(emitter, vectors, emit):
    """Emit for one, two and three vectors of columns, of which one count is taken at run time; each returns itself."""
    builder = emitter.builder
    unreachable = emitter.block("unreachable")
    switch = builder.switch(vectors, unreachable)
    builder.position_at_end(unreachable)
    builder.unreachable()
    for count in range(1, MOST_VECTORS + 1):
        block = emitter.block(f"vectors{count}")
        switch.add_case(int64(count), block)
        builder.position_at_end(block)
        emit(count)


def _emit_times(emitter, arguments):
    vectors, depth, rows, u, ldu, x = arguments
    builder = emitter.builder

    def emit(count):
        def over_blocks(i, _):
            u_rows = [emitter.at(u, builder.mul(builder.add(i, int64(r)), ldu)) for r in range(ROWS)]

            def body(k, sums):
                row = emitter.at(x, builder.mul(k, int64(STRIP)))
                right = [emitter.load(emitter.at(row, v * ROWS)) for v in range(count)]
                new = []
                for r in range(ROWS):
                    left = emitter.splat(emitter.load_scalar(emitter.at(u_rows[r], k)))
                    new += [emitter.multiply_add(left, right[v], sums[r * count + v]) for v in range(count)]
                return new

            # The rows above i are done, and no row from i on needs them.
            sums = emitter.loop(i, 1, depth, [emitter.zero()] * (ROWS * count), body)
            for r in range(ROWS):
                row = emitter.at(x, builder.mul(builder.add(i, int64(r)), int64(STRIP)))
                for v in range(count):
                    emitter.store(sums[r * count + v], emitter.at(row, v * ROWS))
            return []

        emitter.loop(int64(0), ROWS, rows, [], over_blocks)
        builder.ret_void()

    _for_each_count(emitter, vectors, emit)


def _sums(emitter, count, plus, minus, u, x):
    """(A + T^T T - R^T R, where it stands): T are the first rows of a strip, R the next, then there are those of A."""
    builder, stride = emitter.builder, int64(STRIP)
    rows = [int64(r) for r in range(ROWS)]
    masks = [None] * count
    after = builder.mul(plus, stride)
    here = emitter.at(x, builder.mul(builder.add(plus, minus), stride))
    places = [emitter.at(here, r * STRIP + v * ROWS) for r in range(ROWS) for v in range(count)]
    start = [emitter.load(place) for place in places]
    zero = int64(0)
    sums = accumulate(emitter, plus, u, stride, x, stride, zero, masks, rows, start, sign=1)
    sums = accumulate(
        emitter, minus, emitter.at(u, after), stride, emitter.at(x, after), stride, zero, masks, rows, sums
    )
    return sums, places


def _lane(emitter, vector, lane):
    """A vector of one lane of another."""
    return emitter.shuffle(vector, vector, [lane] * ROWS)


def _emit_factor(emitter, arguments):
    vectors, plus, minus, x, notes = arguments
    builder = emitter.builder
    tiny = 4 * np.finfo(np.float64 if emitter.letter == "f64" else np.float32).tiny
    one = emitter.splat(ir.Constant(emitter.scalar, 1.0))
    square_root = emitter.declare(
        f"llvm.sqrt.v{ROWS}{emitter.letter}", ir.FunctionType(emitter.vector(), [emitter.vector()])
    )
    boolean = ir.VectorType(ir.IntType(1), ROWS)

    def lanes(chosen):
        return ir.Constant(boolean, [int(lane in chosen) for lane in range(ROWS)])

    def emit(count):
        sums, places = _sums(emitter, count, plus, minus, x, x)
        pivots, inverses = emitter.zero(), emitter.zero()
        for r in range(ROWS):
            first = sums[r * count]
            pivot = _lane(emitter, first, r)
            inverse = builder.fdiv(one, pivot)
            pivots = builder.select(lanes([r]), pivot, pivots)
            inverses = builder.select(lanes([r]), inverse, inverses)
            emitter.store(builder.fmul(inverse, first), emitter.at(notes, (2 + r) * ROWS))
            for i in range(r + 1, ROWS):
                factor = _lane(emitter, first, i)
                for v in range(count):
                    # These products need not wait for the inverse, which is what the next pivot waits for.
                    product = builder.fmul(factor, sums[r * count + v])
                    sums[i * count + v] = minus_product(builder, product, inverse, sums[i * count + v])
        roots = builder.call(square_root, [inverses])
        emitter.store(pivots, notes)
        emitter.store(roots, emitter.at(notes, ROWS))
        for r in range(ROWS):
            root = _lane(emitter, roots, r)
            for v in range(count):
                value = builder.fmul(root, sums[r * count + v])
                if v == 0:
                    value = builder.select(lanes(range(r, ROWS)), value, emitter.zero())
                emitter.store(value, places[r * count + v])
        good = builder.fcmp_ordered(">", pivots, emitter.splat(ir.Constant(emitter.scalar, float(tiny))))
        bits = ir.IntType(ROWS)
        builder.ret(builder.zext(builder.icmp_unsigned("==", builder.bitcast(good, bits), ir.Constant(bits, -1)),
                                 ir.IntType(64)))

    _for_each_count(emitter, vectors, emit)


def _emit_solve(emitter, arguments):
    vectors, plus, minus, u, x, notes = arguments
    builder = emitter.builder

    def emit(count):
        sums, places = _sums(emitter, count, plus, minus, u, x)
        for r in range(ROWS):
            for i in range(r):
                factor = emitter.splat(emitter.load_scalar(emitter.at(notes, (2 + i) * ROWS + r)))
                for v in range(count):
                    at = r * count + v
                    sums[at] = minus_product(builder, factor, sums[i * count + v], sums[at])
        for r in range(ROWS):
            root = emitter.splat(emitter.load_scalar(emitter.at(notes, ROWS + r)))
            for v in range(count):
                emitter.store(builder.fmul(root, sums[r * count + v]), places[r * count + v])
        builder.ret_void()

    _for_each_count(emitter, vectors, emit)


def _over_rows(emitter, rows, emit):
    """Emit emit(first, count) for a whole block of ROWS rows, and for one row at a time where there are fewer.

    first is the number of the first of ``count`` rows, which emit takes to their end; then return.
    """
    builder = emitter.builder
    whole, single = emitter.block("whole"), emitter.block("single")
    builder.cbranch(builder.icmp_signed("==", rows, int64(ROWS)), whole, single)
    builder.position_at_end(whole)
    emit(int64(0), ROWS)
    builder.ret_void()
    builder.position_at_end(single)

    def body(r, _):
        emit(r, 1)
        return []

    emitter.loop(int64(0), 1, rows, [], body)
    builder.ret_void()


def _rows_of(emitter, base, stride, first, count):
    """Addresses of ``count`` rows from ``first`` on."""
    start = emitter.at(base, emitter.builder.mul(first, stride))
    rows = [start]
    for _ in range(count - 1):
        rows.append(emitter.at(rows[-1], stride))
    return rows


def _emit_move(emitter, arguments):
    rows, columns, source, lds, to, ldt = arguments

    def emit(first, count):
        given, targets = (_rows_of(emitter, base, stride, first, count) for base, stride in ((source, lds), (to, ldt)))

        def sweep(j, vectors, masks, head):
            values = [emitter.load(emitter.at(row, j), masks[0]) for row in given]
            for value, row in zip(values, targets):
                emitter.store(value, emitter.at(row, j), masks[0])
            emitter.builder.branch(head)

        over_columns(emitter, columns, sweep, lambda: None, (1, 1))

    _over_rows(emitter, rows, emit)


def _emit_squares(emitter, arguments):
    rows, columns, source, lds, to, ldt, squares = arguments
    builder = emitter.builder
    totals = [builder.alloca(emitter.vector()) for _ in range(ROWS)]

    def emit(first, count):
        given, targets = (_rows_of(emitter, base, stride, first, count) for base, stride in ((source, lds), (to, ldt)))
        for total in totals[:count]:
            builder.store(emitter.zero(), total)

        def sweep(j, vectors, masks, head):
            values = [emitter.load(emitter.at(row, j), masks[0]) for row in given]
            for value, row, total in zip(values, targets, totals):
                emitter.store(value, emitter.at(row, j), masks[0])
                builder.store(emitter.multiply_add(value, value, builder.load(total)), total)
            builder.branch(head)

        over_columns(emitter, columns, sweep, lambda: None, (1, 1))
        place = emitter.at(squares, first)
        # Of one row alone, zeros for what would be the others.
        found = [builder.load(total) for total in totals[:count]]
        found = sum_lanes(emitter, found + [emitter.zero()] * (ROWS - count))
        if count == ROWS:
            emitter.store(emitter.add(emitter.load(place), found), place)
        else:
            found = builder.extract_element(found, ir.Constant(I32, 0))
            builder.store(builder.fadd(emitter.load_scalar(place), found), place)

    _over_rows(emitter, rows, emit)


def _emit_upper(emitter, arguments):
    rows, columns, beyond, source, lds, factors, to, ldt = arguments
    builder = emitter.builder
    iota = ir.Constant(ir.VectorType(I32, ROWS), list(range(ROWS)))

    def emit(first, count):
        given, targets = (_rows_of(emitter, base, stride, first, count) for base, stride in ((source, lds), (to, ldt)))
        scales = [emitter.splat(emitter.load_scalar(emitter.at(factors, first, r))) for r in range(count)]
        # The first column that is kept of row ``first``, as the sweep counts them.
        bound = builder.trunc(builder.sub(first, beyond), I32)

        def sweep(j, vectors, masks, head):
            here = builder.add(iota, emitter.splat(builder.sub(builder.trunc(j, I32), bound)))
            values = [emitter.load(emitter.at(row, j), masks[0]) for row in given]
            for r, (value, scale, row) in enumerate(zip(values, scales, targets)):
                kept = builder.icmp_signed(">", here, ir.Constant(here.type, [r] * ROWS))
                value = builder.select(kept, builder.fmul(scale, value), emitter.zero())
                emitter.store(value, emitter.at(row, j), masks[0])
            builder.branch(head)

        over_columns(emitter, columns, sweep, lambda: None, (1, 1))

    _over_rows(emitter, rows, emit)


def _emit_prefetch(emitter, arguments):
    count, source = arguments
    builder = emitter.builder
    place = ir.IntType(8).as_pointer()
    function = emitter.declare("llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [place, I32, I32, I32]))
    line = int64(64 // emitter.align)
    some, done = emitter.block("some"), emitter.block("done")
    builder.cbranch(builder.icmp_signed(">", count, int64(0)), some, done)
    builder.position_at_end(some)

    def body(i, _):
        # To be read, kept in the second-level cache, data.
        address = builder.bitcast(emitter.at(source, builder.mul(i, line)), place)
        builder.call(function, [address, *(ir.Constant(I32, number) for number in (0, 2, 1))])
        return []

    emitter.loop(int64(0), 1, count, [], body)
    builder.branch(done)
    builder.position_at_end(done)
    builder.ret_void()


@intrinsic
def prefetch(typingctx, count, source):
    """Have ``count`` cache lines brought nearer. The address need not be a valid one."""
    return caller("prefetch", types.void, "ip", _emit_prefetch, types.void(types.int64, source), 1)


@intrinsic
def times_root(typingctx, vectors, depth, rows, u, ldu, x):
    """X <- U X in place, X being rows of a strip and U upper triangular, rows x depth; rows is a multiple of ROWS.

    Rows of U from depth on are 0, and so are those that X gets.
    """
    i = types.int64
    return caller("times_root", types.void, "iiipip", _emit_times, types.void(i, i, i, u, i, x), 3, ROWS)


@intrinsic
def factor_rows(typingctx, vectors, plus, minus, x, notes):
    """Rows of the factor, from a strip's column of the diagonal on: returns 1, or 0 where a pivot is not positive.

    x points to this column in a strip of ``plus`` rows of T, ``minus`` rows of R and the rows of A that become R.
    """
    i = types.int64
    return caller("factor_rows", i, "iiipp", _emit_factor, i(i, i, i, x, notes), 3, ROWS)


@intrinsic
def solve_rows(typingctx, vectors, plus, minus, u, x, notes):
    """The same rows in another strip, at x; u points to the column of the diagonal in its own strip."""
    i = types.int64
    return caller("solve_rows", types.void, "iiippp", _emit_solve, types.void(i, i, i, u, x, notes), 3, ROWS)


def _emit_add(emitter, arguments):
    vectors, rows, factors, x, out = arguments
    builder = emitter.builder

    def emit(count):
        def body(i, sums):
            factor = emitter.splat(emitter.load_scalar(emitter.at(factors, i)))
            row = emitter.at(x, builder.mul(i, int64(STRIP)))
            return [
                emitter.multiply_add(factor, emitter.load(emitter.at(row, v * ROWS)), sums[v]) for v in range(count)
            ]

        start = [emitter.load(emitter.at(out, v * ROWS)) for v in range(count)]
        for v, value in enumerate(emitter.loop(int64(0), 1, rows, start, body)):
            emitter.store(value, emitter.at(out, v * ROWS))
        builder.ret_void()

    _for_each_count(emitter, vectors, emit)


def _emit_corner(emitter, arguments):
    x, roots, t, y = arguments
    builder = emitter.builder
    left, found = emitter.load(t), emitter.zero()
    scales = emitter.load(roots)
    for r in range(ROWS):
        value = builder.fmul(_lane(emitter, left, r), _lane(emitter, scales, r))
        chosen = ir.Constant(ir.VectorType(ir.IntType(1), ROWS), [int(lane == r) for lane in range(ROWS)])
        found = builder.select(chosen, value, found)
        left = minus_product(builder, value, emitter.load(emitter.at(x, r * STRIP)), left)
    emitter.store(found, y)
    emitter.store(builder.fneg(found), t)
    builder.ret_void()


@intrinsic
def add_rows(typingctx, vectors, rows, factors, x, out):
    """out <- out + factors^T X, X being one or more rows of a strip."""
    i = types.int64
    return caller("add_rows", types.void, "iippp", _emit_add, types.void(i, i, factors, x, out), 2, ROWS)


@intrinsic
def solve_corner(typingctx, x, roots, t, y):
    """y <- R^{-T} t and t <- -y, R being the block of the diagonal at x, roots being one over its diagonal."""
    return caller("solve_corner", types.void, "pppp", _emit_corner, types.void(x, roots, t, y), 0, ROWS)


@intrinsic
def move_rows(typingctx, rows, columns, source, lds, to, ldt):
    """to <- source, rows x columns, 1 <= rows <= ROWS."""
    i = types.int64
    return caller("move_rows", types.void, "iipipi", _emit_move, types.void(i, i, source, i, to, i), 2, ROWS)


@intrinsic
def move_squares(typingctx, rows, columns, source, lds, to, ldt, squares):
    """to <- source, rows x columns, 1 <= rows <= ROWS; what this makes the squared norms of
    the rows is added to squares."""
    i = types.int64
    sig = types.void(i, i, source, i, to, i, squares)
    return caller("move_squares", types.void, "iipipip", _emit_squares, sig, 2, ROWS)


@intrinsic
def scale_upper(typingctx, rows, columns, beyond, source, lds, factors, to, ldt):
    """to[r, j] <- factors[r] source[r, j] where j + beyond > r, and 0 elsewhere; 1 <= rows <= ROWS."""
    i = types.int64
    sig = types.void(i, i, i, source, i, factors, to, i)
    return caller("scale_upper", types.void, "iiipippi", _emit_upper, sig, 3, ROWS)
