"""Blocks of up to ``BLOCK`` rows in LLVM vector IR: what the signed Cholesky and its solves do inside a panel.

``solve_block(rows, columns, depth, solve, u, ldu, b, ldb, a, lda, c, ldc, t, ldt)``   C <- T^{-T} (A - U^T B)
``eliminate_block(...)``   the same for ``BLOCK`` rows of the matrix being factored; also scales, tests and keeps them
``factor_block(rows, tiny, t, ldt, d, inverse)``   U^T D U of a diagonal block without interchanges
T is unit upper triangular; matrices are pointers with row strides in elements. The rows of a block stay in registers
from the products with the rows above to the triangular solve. Numba's disk cache does not see changes of this file.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .microkernel import VECTOR_BYTES, _Emitter, _width

BLOCK = 8
# Accumulators are BLOCK x _VECTORS vectors: 16 of AVX-512's 32 registers, 8 of the 16 that others have.
_VECTORS = 2 if VECTOR_BYTES == 64 else 1
_FLAGS = ("nsz", "contract", "reassoc")
_I64 = ir.IntType(64)


def _int(value):
    return ir.Constant(_I64, value)


def _function(module, name, result, kinds, emit, dtype):
    """Get or emit an out-of-line function of this module; kinds: i (integer), s (scalar), p (pointer)."""
    name = f"numba_hinv_{name}_f{dtype.bitwidth}"
    if name in module.globals:
        return module.globals[name]
    scalar = ir.DoubleType() if dtype.bitwidth == 64 else ir.FloatType()
    kind = {"i": _I64, "s": scalar, "p": scalar.as_pointer()}
    function = ir.Function(module, ir.FunctionType(result, [kind[letter] for letter in kinds]), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    emit(_Emitter(ir.IRBuilder(function.append_basic_block("entry")), dtype, _width(dtype)), function.args)
    return function


def _minus_product(builder, x, y, z):
    """z - x y, in one instruction where the machine has it."""
    return builder.fsub(z, builder.fmul(x, y, flags=_FLAGS), flags=_FLAGS)


def _columns(emitter, columns, sweep, done):
    """Call sweep(first column, vectors, masks) over strips of columns: wide ones, then masked ones one vector wide.

    sweep leaves the builder where the next strip may start; done() is emitted at the end.
    """
    builder, width = emitter.builder, emitter.width
    place = builder.alloca(_I64)
    builder.store(_int(0), place)
    wide, wide_body, narrow, narrow_body, end = (
        emitter.block(name) for name in ("wide", "wide.body", "narrow", "narrow.body", "end")
    )
    builder.branch(wide)
    for head, body, after, vectors in ((wide, wide_body, narrow, _VECTORS), (narrow, narrow_body, end, 1)):
        builder.position_at_end(head)
        j = builder.load(place)
        left = builder.sub(columns, j)
        enough = _int(vectors * width) if head is wide else _int(1)
        builder.cbranch(builder.icmp_signed(">=", left, enough), body, after)
        builder.position_at_end(body)
        masks = [None] * vectors
        if head is narrow:
            whole = builder.icmp_signed("<", left, _int(width))
            masks = [emitter.mask(builder.select(whole, left, _int(width)))]
        builder.store(builder.add(j, _int(vectors * width)), place)
        sweep(j, vectors, masks, head)
    builder.position_at_end(end)
    done()


def _accumulate(emitter, depth, u, ldu, b, ldb, j, masks, row_offsets, start):
    """start (rows x vectors) - U^T B in the columns from j on."""
    builder, width = emitter.builder, emitter.width
    vectors = len(masks)
    before = builder.block
    some, after = emitter.block("depth"), emitter.block("depth.after")
    builder.cbranch(builder.icmp_signed(">", depth, _int(0)), some, after)
    builder.position_at_end(some)

    def body(step, sums):
        b_row = emitter.at(b, builder.mul(step, ldb), j)
        b_vectors = [emitter.load(emitter.at(b_row, v * width), masks[v]) for v in range(vectors)]
        u_row = emitter.at(u, builder.mul(step, ldu))
        new = []
        for r, offset in enumerate(row_offsets):
            x = emitter.splat(emitter.load_scalar(emitter.at(u_row, offset)))
            new += [_minus_product(builder, x, b_vectors[v], sums[r * vectors + v]) for v in range(vectors)]
        return new

    sums = emitter.loop(_int(0), 1, depth, start, body)
    last = builder.block
    builder.branch(after)
    builder.position_at_end(after)
    merged = []
    for first, second in zip(start, sums):
        phi = builder.phi(first.type)
        phi.add_incoming(first, before)
        phi.add_incoming(second, last)
        merged.append(phi)
    return merged


def _solved_row(emitter, r, vectors, sums, t, ldt):
    """Row r of T^{-T} X, rows before it being solved already; sums is changed."""
    builder = emitter.builder
    for i in range(r):
        x = emitter.splat(emitter.load_scalar(emitter.at(t, builder.mul(_int(i), ldt), r)))
        for v in range(vectors):
            at = r * vectors + v
            sums[at] = _minus_product(builder, x, sums[i * vectors + v], sums[at])


def _emit_solve(emitter, arguments):
    rows, columns, depth, solve, u, ldu, b, ldb, a, lda, c, ldc, t, ldt = arguments
    builder, width = emitter.builder, emitter.width
    whole, partial = emitter.block("whole"), emitter.block("partial")
    last = builder.sub(rows, _int(1))
    builder.cbranch(builder.icmp_signed("==", rows, _int(BLOCK)), whole, partial)
    for entry in (whole, partial):
        builder.position_at_end(entry)
        # A block of fewer rows computes its last row several times and stores it once: no load leaves the matrices.
        offsets = [_int(r) for r in range(BLOCK)]
        if entry is partial:
            offsets = [builder.select(builder.icmp_signed("<", r, last), r, last) for r in offsets]
        a_rows = [emitter.at(a, builder.mul(r, lda)) for r in offsets]

        def sweep(j, vectors, masks, head, entry=entry, offsets=offsets, a_rows=a_rows):
            start = [emitter.load(emitter.at(row, j, v * width), masks[v]) for row in a_rows for v in range(vectors)]
            sums = _accumulate(emitter, depth, u, ldu, b, ldb, j, masks, offsets, start)
            plain, solved = emitter.block("plain"), emitter.block("solved")
            builder.cbranch(builder.icmp_signed("!=", solve, _int(0)), solved, plain)
            for block in (plain, solved):
                builder.position_at_end(block)
                values = list(sums)
                for r in range(BLOCK):
                    if entry is partial:
                        more = emitter.block("row")
                        builder.cbranch(builder.icmp_signed(">", rows, _int(r)), more, head)
                        builder.position_at_end(more)
                    if block is solved:
                        _solved_row(emitter, r, vectors, values, t, ldt)
                    row = emitter.at(c, builder.mul(_int(r), ldc), j)
                    for v in range(vectors):
                        emitter.store(values[r * vectors + v], emitter.at(row, v * width), masks[v])
                builder.branch(head)

        _columns(emitter, columns, sweep, builder.ret_void)


def _emit_eliminate(emitter, arguments):
    columns, depth, u, ldu, b, ldb, a, lda, c, ldc, t, ldt, inverse, before, after, saved, lds = arguments
    builder, width = emitter.builder, emitter.width
    bits = ir.IntType(width)
    flags = builder.alloca(bits)
    builder.store(ir.Constant(bits, 0), flags)
    a_rows = [emitter.at(a, builder.mul(_int(r), lda)) for r in range(BLOCK)]

    def sweep(j, vectors, masks, head):
        start = [emitter.load(emitter.at(row, j, v * width), masks[v]) for row in a_rows for v in range(vectors)]
        for r in range(BLOCK):
            row = emitter.at(saved, builder.mul(_int(r), lds), j)
            for v in range(vectors):
                emitter.store(start[r * vectors + v], emitter.at(row, v * width), masks[v])
        sums = _accumulate(emitter, depth, u, ldu, b, ldb, j, masks, [_int(r) for r in range(BLOCK)], start)
        diagonal = [emitter.load(emitter.at(before, j, v * width), masks[v]) for v in range(vectors)]
        for r in range(BLOCK):
            _solved_row(emitter, r, vectors, sums, t, ldt)
            factor = emitter.splat(emitter.load_scalar(emitter.at(inverse, r)))
            row = emitter.at(c, builder.mul(_int(r), ldc), j)
            for v in range(vectors):
                value = sums[r * vectors + v]
                scaled = builder.fmul(value, factor)
                diagonal[v] = _minus_product(builder, value, scaled, diagonal[v])
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
        builder.ret(builder.zext(builder.icmp_unsigned("==", builder.load(flags), ir.Constant(bits, 0)), _I64))

    _columns(emitter, columns, sweep, done)


def _emit_factor(emitter, arguments):
    rows, tiny, t, ldt, d, inverse = arguments
    builder = emitter.builder
    one, zero = ir.Constant(emitter.scalar, 1.0), ir.Constant(emitter.scalar, 0.0)
    good, bad = emitter.block("good"), emitter.block("bad")
    at = [[emitter.at(t, builder.mul(_int(i), ldt), j) for j in range(BLOCK)] for i in range(BLOCK)]
    upper, inverses = {}, []
    for j in range(BLOCK):
        column = emitter.block("column")
        builder.cbranch(builder.icmp_signed(">", rows, _int(j)), column, good)
        builder.position_at_end(column)
        pivot = emitter.load_scalar(at[j][j])
        values = [emitter.load_scalar(at[i][j]) for i in range(j)]
        for i in range(j):
            for k in range(i):
                values[i] = _minus_product(builder, upper[k, i], values[k], values[i])
            upper[i, j] = builder.fmul(values[i], inverses[i])
            pivot = _minus_product(builder, upper[i, j], values[i], pivot)
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
    builder.ret(_int(1))
    builder.position_at_end(bad)
    builder.ret(_int(0))


@intrinsic
def solve_block(typingctx, rows, columns, depth, solve, u, ldu, b, ldb, a, lda, c, ldc, t, ldt):
    """C <- T^{-T} (A - U^T B), or A - U^T B if not solve: C, A rows x columns, U depth x rows, T rows x rows.

    1 <= rows <= BLOCK. C may be A.
    """
    i = types.int64
    sig = types.void(i, i, i, i, u, i, b, i, a, i, c, i, t, i)

    def codegen(context, builder, sig, args):
        function = _function(builder.module, "solve_block", ir.VoidType(), "iiiipipipipipi", _emit_solve, sig.args[4].dtype)
        builder.call(function, args)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def eliminate_block(typingctx, columns, depth, u, ldu, b, ldb, a, lda, c, ldc, t, ldt, inverse, before, after, saved, lds):
    """A <- W = T^{-T} (A - U^T B), C <- diag(inverse) W, after <- before - the diagonal of W^T C; saved <- the old A.

    BLOCK rows. Returns 1 if no entry of after is negative or NaN, else 0.
    """
    i = types.int64
    sig = i(i, i, u, i, b, i, a, i, c, i, t, i, inverse, before, after, saved, i)

    def codegen(context, builder, sig, args):
        function = _function(builder.module, "eliminate_block", _I64, "iipipipipipippppi", _emit_eliminate, sig.args[2].dtype)
        return builder.call(function, args)

    return sig, codegen


@intrinsic
def factor_block(typingctx, rows, tiny, t, ldt, d, inverse):
    """Upper triangle of T (rows x rows, rows <= BLOCK) = U^T D U, all pivots above tiny: returns 1, else 0.

    T <- U, zeros on and below the diagonal; d and inverse <- D and its inverse.
    """
    i = types.int64
    sig = i(i, tiny, t, i, d, inverse)

    def codegen(context, builder, sig, args):
        function = _function(builder.module, "factor_block", _I64, "ispipp", _emit_factor, sig.args[2].dtype)
        return builder.call(function, args)

    return sig, codegen
