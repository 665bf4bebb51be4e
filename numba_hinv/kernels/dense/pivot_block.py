"""Blocks of up to ``BLOCK`` rows in LLVM vector IR: what the signed Cholesky and its solves do inside a panel.

``solve_block(rows, columns, depth, solve, u, ldu, b, ldb, a, lda, c, ldc, t, ldt)``   C <- T^{-T} (A - U^T B)
``eliminate_block(...)``   the same for ``BLOCK`` rows of the matrix being factored; also scales, tests and keeps them
``factor_block(rows, tiny, t, ldt, d, inverse)``   U^T D U of a diagonal block without interchanges
``solve_block_back(...)``   C <- T^{-1} (A - U B)
``solve_vector``, ``solve_vector_back``   T^{-T} x and T^{-1} x for one vector of BLOCK entries
T is unit upper triangular; matrices are pointers with row strides in elements. The rows of a block stay in registers
from the products with the rows above to the triangular solve.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emitter import I64
from .strips import accumulate, caller, int64, minus_product, over_columns

BLOCK = 8


def _solved_row(emitter, r, vectors, sums, t, ldt):
    """Row r of T^{-T} X, rows before it being solved already; sums is changed."""
    builder = emitter.builder
    for i in range(r):
        x = emitter.splat(emitter.load_scalar(emitter.at(t, builder.mul(int64(i), ldt), r)))
        for v in range(vectors):
            at = r * vectors + v
            sums[at] = minus_product(builder, x, sums[i * vectors + v], sums[at])


def _emit_solve(emitter, arguments):
    rows, columns, depth, solve, u, ldu, b, ldb, a, lda, c, ldc, t, ldt = arguments
    builder, width = emitter.builder, emitter.width
    whole, partial = emitter.block("whole"), emitter.block("partial")
    last = builder.sub(rows, int64(1))
    builder.cbranch(builder.icmp_signed("==", rows, int64(BLOCK)), whole, partial)
    for entry in (whole, partial):
        builder.position_at_end(entry)
        # A block of fewer rows computes its last row several times and stores it once: no load leaves the matrices.
        offsets = [int64(r) for r in range(BLOCK)]
        if entry is partial:
            offsets = [builder.select(builder.icmp_signed("<", r, last), r, last) for r in offsets]
        a_rows = [emitter.at(a, builder.mul(r, lda)) for r in offsets]

        def sweep(j, vectors, masks, head, entry=entry, offsets=offsets, a_rows=a_rows):
            start = [emitter.load(emitter.at(row, j, v * width), masks[v]) for row in a_rows for v in range(vectors)]
            sums = accumulate(emitter, depth, u, ldu, b, ldb, j, masks, offsets, start)
            plain, solved = emitter.block("plain"), emitter.block("solved")
            builder.cbranch(builder.icmp_signed("!=", solve, int64(0)), solved, plain)
            for block in (plain, solved):
                builder.position_at_end(block)
                values = list(sums)
                for r in range(BLOCK):
                    if entry is partial:
                        more = emitter.block("row")
                        builder.cbranch(builder.icmp_signed(">", rows, int64(r)), more, head)
                        builder.position_at_end(more)
                    if block is solved:
                        _solved_row(emitter, r, vectors, values, t, ldt)
                    row = emitter.at(c, builder.mul(int64(r), ldc), j)
                    for v in range(vectors):
                        emitter.store(values[r * vectors + v], emitter.at(row, v * width), masks[v])
                builder.branch(head)

        over_columns(emitter, columns, sweep, builder.ret_void)


def _emit_solve_back(emitter, arguments):
    rows, columns, depth, u, ldu, b, ldb, c, ldc, t, ldt = arguments
    builder, width = emitter.builder, emitter.width
    last = builder.sub(rows, int64(1))
    # A block of fewer rows has its last row several times, as zeros, which are written before what it holds.
    is_row = [builder.icmp_signed("<=", int64(r), last) for r in range(BLOCK)]
    places = [builder.select(is_row[r], int64(r), last) for r in range(BLOCK)]
    u_rows = [builder.mul(place, ldu) for place in places]
    c_rows = [emitter.at(c, builder.mul(place, ldc)) for place in places]

    def sweep(j, vectors, masks, head):
        start = [emitter.load(emitter.at(row, j, v * width), masks[v]) for row in c_rows for v in range(vectors)]
        sums = accumulate(emitter, depth, u, int64(1), b, ldb, j, masks, u_rows, start)
        sums = [builder.select(is_row[at // vectors], value, emitter.zero()) for at, value in enumerate(sums)]
        for r in reversed(range(BLOCK)):
            row = emitter.at(t, builder.mul(places[r], ldt))
            for i in range(r + 1, BLOCK):
                x = emitter.splat(emitter.load_scalar(emitter.at(row, places[i])))
                for v in range(vectors):
                    sums[r * vectors + v] = minus_product(builder, x, sums[i * vectors + v], sums[r * vectors + v])
            for v in range(vectors):
                emitter.store(sums[r * vectors + v], emitter.at(c_rows[r], j, v * width), masks[v])
        builder.branch(head)

    over_columns(emitter, columns, sweep, builder.ret_void)


def _emit_eliminate(emitter, arguments):
    columns, depth, u, ldu, b, ldb, a, lda, c, ldc, t, ldt, inverse, before, after, saved, lds = arguments
    builder, width = emitter.builder, emitter.width
    bits = ir.IntType(width)
    flags = builder.alloca(bits)
    builder.store(ir.Constant(bits, 0), flags)
    a_rows = [emitter.at(a, builder.mul(int64(r), lda)) for r in range(BLOCK)]

    def sweep(j, vectors, masks, head):
        start = [emitter.load(emitter.at(row, j, v * width), masks[v]) for row in a_rows for v in range(vectors)]
        for r in range(BLOCK):
            row = emitter.at(saved, builder.mul(int64(r), lds), j)
            for v in range(vectors):
                emitter.store(start[r * vectors + v], emitter.at(row, v * width), masks[v])
        sums = accumulate(emitter, depth, u, ldu, b, ldb, j, masks, [int64(r) for r in range(BLOCK)], start)
        diagonal = [emitter.load(emitter.at(before, j, v * width), masks[v]) for v in range(vectors)]
        for r in range(BLOCK):
            _solved_row(emitter, r, vectors, sums, t, ldt)
            factor = emitter.splat(emitter.load_scalar(emitter.at(inverse, r)))
            row = emitter.at(c, builder.mul(int64(r), ldc), j)
            for v in range(vectors):
                value = sums[r * vectors + v]
                scaled = builder.fmul(value, factor)
                diagonal[v] = minus_product(builder, value, scaled, diagonal[v])
                emitter.store(value, emitter.at(a_rows[r], j, v * width), masks[v])
                emitter.store(scaled, emitter.at(row, v * width), masks[v])
        for v in range(vectors):
            emitter.store(diagonal[v], emitter.at(after, j, v * width), masks[v])
            bad = builder.not_(builder.fcmp_ordered(">=", diagonal[v], emitter.zero()))
            if masks[v] is not None:
                bad = builder.and_(bad, masks[v])
            builder.store(builder.or_(builder.load(flags), builder.bitcast(bad, bits)), flags)
        builder.branch(head)

    def done():
        builder.ret(builder.zext(builder.icmp_unsigned("==", builder.load(flags), ir.Constant(bits, 0)), I64))

    over_columns(emitter, columns, sweep, done)


def _emit_factor(emitter, arguments):
    rows, tiny, t, ldt, d, inverse = arguments
    builder = emitter.builder
    one, zero = ir.Constant(emitter.scalar, 1.0), ir.Constant(emitter.scalar, 0.0)
    good, bad = emitter.block("good"), emitter.block("bad")
    at = [[emitter.at(t, builder.mul(int64(i), ldt), j) for j in range(BLOCK)] for i in range(BLOCK)]
    upper, inverses = {}, []
    for j in range(BLOCK):
        column = emitter.block("column")
        builder.cbranch(builder.icmp_signed(">", rows, int64(j)), column, good)
        builder.position_at_end(column)
        pivot = emitter.load_scalar(at[j][j])
        values = [emitter.load_scalar(at[i][j]) for i in range(j)]
        for i in range(j):
            for k in range(i):
                values[i] = minus_product(builder, upper[k, i], values[k], values[i])
            upper[i, j] = builder.fmul(values[i], inverses[i])
            pivot = minus_product(builder, upper[i, j], values[i], pivot)
            builder.store(upper[i, j], at[i][j])
        for i in range(j + 1):
            builder.store(zero, at[j][i])
        builder.store(pivot, emitter.at(d, j))
        following = emitter.block("pivot")
        builder.cbranch(builder.fcmp_ordered(">", pivot, tiny), following, bad)
        builder.position_at_end(following)
        inverses.append(builder.fdiv(one, pivot))
        builder.store(inverses[j], emitter.at(inverse, j))
    builder.branch(good)
    builder.position_at_end(good)
    builder.ret(int64(1))
    builder.position_at_end(bad)
    builder.ret(int64(0))


def _emit_vector(emitter, arguments, back):
    t, ldt, x = arguments
    builder = emitter.builder
    values = [emitter.load_scalar(emitter.at(x, i)) for i in range(BLOCK)]
    for i in reversed(range(BLOCK)) if back else range(BLOCK):
        for j in reversed(range(i)) if back else range(i + 1, BLOCK):
            upper = emitter.load_scalar(emitter.at(t, builder.mul(int64(min(i, j)), ldt), max(i, j)))
            values[j] = minus_product(builder, upper, values[i], values[j])
        builder.store(values[i], emitter.at(x, i))
    builder.ret_void()


def _emit_vector_forward(emitter, arguments):
    _emit_vector(emitter, arguments, False)


def _emit_vector_back(emitter, arguments):
    _emit_vector(emitter, arguments, True)


@intrinsic
def solve_vector(typingctx, t, ldt, x):
    """x <- T^{-T} x, BLOCK entries."""
    return caller("solve_vector", types.void, "pip", _emit_vector_forward, types.void(t, types.int64, x), 0)


@intrinsic
def solve_vector_back(typingctx, t, ldt, x):
    """x <- T^{-1} x, BLOCK entries."""
    return caller("solve_vector_back", types.void, "pip", _emit_vector_back, types.void(t, types.int64, x), 0)


@intrinsic
def solve_block(typingctx, rows, columns, depth, solve, u, ldu, b, ldb, a, lda, c, ldc, t, ldt):
    """C <- T^{-T} (A - U^T B), or A - U^T B if not solve: C, A rows x columns, U depth x rows, T rows x rows.

    1 <= rows <= BLOCK. C may be A.
    """
    i = types.int64
    sig = types.void(i, i, i, i, u, i, b, i, a, i, c, i, t, i)
    return caller("solve_block", types.void, "iiiipipipipipi", _emit_solve, sig, 4)


@intrinsic
def solve_block_back(typingctx, rows, columns, depth, u, ldu, b, ldb, c, ldc, t, ldt):
    """C <- T^{-1} (C - U B): C rows x columns, U rows x depth, B depth x columns, T rows x rows.

    1 <= rows <= BLOCK.
    """
    i = types.int64
    sig = types.void(i, i, i, u, i, b, i, c, i, t, i)
    return caller("solve_block_back", types.void, "iiipipipipi", _emit_solve_back, sig, 3)


@intrinsic
def eliminate_block(
    typingctx, columns, depth, u, ldu, b, ldb, a, lda, c, ldc, t, ldt, inverse, before, after, saved, lds
):
    """A <- W = T^{-T} (A - U^T B), C <- diag(inverse) W, after <- before - the diagonal of W^T C; saved <- the old A.

    BLOCK rows. Returns 1 if no entry of after is negative or NaN, else 0.
    """
    i = types.int64
    sig = i(i, i, u, i, b, i, a, i, c, i, t, i, inverse, before, after, saved, i)
    return caller("eliminate_block", i, "iipipipipipippppi", _emit_eliminate, sig, 2)


@intrinsic
def factor_block(typingctx, rows, tiny, t, ldt, d, inverse):
    """Upper triangle of T (rows x rows, rows <= BLOCK) = U^T D U, all pivots above tiny: returns 1, else 0.

    T <- U, zeros on and below the diagonal; d and inverse <- D and its inverse.
    """
    i = types.int64
    sig = i(i, t.dtype, t, i, d, inverse)
    return caller("factor_block", i, "ispipp", _emit_factor, sig, 2)
