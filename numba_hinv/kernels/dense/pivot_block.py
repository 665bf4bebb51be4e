"""Blocks of up to ``BLOCK`` rows in LLVM vector IR: what the signed Cholesky and its solves do inside a panel.

``solve_block(rows, columns, depth, solve, u, ldu, b, ldb, a, lda, c, ldc, t, ldt)``   C <- T^{-T} (A - U^T B)
``eliminate_block(...)``   the same for ``BLOCK`` rows of the matrix being factored; also scales, tests and keeps them
``factor_block(rows, tiny, t, ldt, d, inverse)``   U^T D U of a diagonal block without interchanges
``subtract_rows``, ``largest``, ``scale_row``, ``scale_pair``   single rows, for the pivots that need care
``solve_vector``, ``solve_vector_back``   T^{-T} x and T^{-1} x for one vector of BLOCK entries
``retyped``, ``as_int32``   pointers seen as pointers to another type
T is unit upper triangular; matrices are pointers with row strides in elements. The rows of a block stay in registers
from the products with the rows above to the triangular solve.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emitter import FLAGS, I32, I64, VECTOR_BYTES, Emitter, scalar_type, vector_width

BLOCK = 8
# Accumulators are BLOCK x _VECTORS vectors: 16 of AVX-512's 32 registers, 8 of the 16 that others have.
_VECTORS = 2 if VECTOR_BYTES == 64 else 1


def _int(value):
    return ir.Constant(I64, value)


def _function(module, name, result, kinds, emit, dtype):
    """Get or emit an out-of-line function of this module; kinds: i (integer), s (scalar), p (pointer)."""
    name = f"numba_hinv_{name}_f{dtype.bitwidth}"
    if name in module.globals:
        return module.globals[name]
    scalar = scalar_type(dtype)
    kind = {"i": I64, "s": scalar, "p": scalar.as_pointer()}
    function = ir.Function(module, ir.FunctionType(result, [kind[letter] for letter in kinds]), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    emit(Emitter(ir.IRBuilder(function.append_basic_block("entry")), dtype, vector_width(dtype)), function.args)
    return function


def _minus_product(builder, x, y, z):
    """z - x y, in one instruction where the machine has it."""
    return builder.fsub(z, builder.fmul(x, y, flags=FLAGS), flags=FLAGS)


def _columns(emitter, columns, sweep, done, strips=(_VECTORS, 1)):
    """Call sweep(first column, vectors, masks, next) over strips of columns of decreasing width, the last one masked.

    sweep ends with a branch to next; done() is emitted at the end.
    """
    builder, width = emitter.builder, emitter.width
    place = builder.alloca(I64)
    builder.store(_int(0), place)
    heads = [emitter.block("strips") for _ in (*strips, None)]
    builder.branch(heads[0])
    for head, after, vectors in zip(heads, heads[1:], strips):
        masked = after is heads[-1]
        builder.position_at_end(head)
        j = builder.load(place)
        left = builder.sub(columns, j)
        body = emitter.block("strip")
        builder.cbranch(builder.icmp_signed(">=", left, _int(1 if masked else vectors * width)), body, after)
        builder.position_at_end(body)
        masks = [None] * vectors
        if masked:
            part = builder.icmp_signed("<", left, _int(width))
            masks = [emitter.mask(builder.select(part, left, _int(width)))]
        builder.store(builder.add(j, _int(vectors * width)), place)
        sweep(j, vectors, masks, head)
    builder.position_at_end(heads[-1])
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
        builder.ret(builder.zext(builder.icmp_unsigned("==", builder.load(flags), ir.Constant(bits, 0)), I64))

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


def _emit_subtract(emitter, arguments):
    columns, depth, u, ldu, b, ldb, a, c = arguments

    def sweep(j, vectors, masks, head):
        start = [emitter.load(emitter.at(a, j, v * emitter.width), masks[v]) for v in range(vectors)]
        sums = _accumulate(emitter, depth, u, ldu, b, ldb, j, masks, [_int(0)], start)
        for v in range(vectors):
            emitter.store(sums[v], emitter.at(c, j, v * emitter.width), masks[v])
        emitter.builder.branch(head)

    _columns(emitter, columns, sweep, emitter.builder.ret_void, (4 * _VECTORS, 2, 1))


def _emit_largest(emitter, arguments):
    columns, x, result = arguments
    builder, width, lane = emitter.builder, emitter.width, emitter.lane
    places = ir.VectorType(lane, width)
    iota = ir.Constant(places, list(range(width)))
    kind = ir.FunctionType(emitter.vector(), [emitter.vector()])
    modulus = emitter.declare(f"llvm.fabs.v{width}{emitter.letter}", kind)
    best, at, total = (builder.alloca(kind) for kind in (emitter.vector(), places, emitter.vector()))
    for slot, value in ((best, emitter.zero()), (at, ir.Constant(places, None)), (total, emitter.zero())):
        builder.store(value, slot)

    def keep_larger(value, place, other, other_place):
        better = builder.fcmp_ordered(">", other, value)
        return builder.select(better, other, value), builder.select(better, other_place, place)

    def sweep(j, vectors, masks, head):
        value = builder.call(modulus, [emitter.load(emitter.at(x, j), masks[0])])
        first = builder.trunc(j, lane) if lane.width < 64 else j
        here = builder.add(iota, emitter.splat(first))
        larger, place = keep_larger(builder.load(best), builder.load(at), value, here)
        builder.store(larger, best)
        builder.store(place, at)
        builder.store(builder.fadd(builder.load(total), value), total)
        builder.branch(head)

    def done():
        value, place, whole = builder.load(best), builder.load(at), builder.load(total)
        span = width
        while span > 1:
            span //= 2
            lanes = [*range(span, 2 * span)] + [0] * (width - span)
            others = emitter.shuffle(value, value, lanes), emitter.shuffle(place, place, lanes)
            value, place = keep_larger(value, place, *others)
            whole = builder.fadd(whole, emitter.shuffle(whole, whole, lanes))
        first = ir.Constant(I32, 0)
        value, place, whole = (builder.extract_element(vector, first) for vector in (value, place, whole))
        # A total that is not finite times zero is NaN; any other adds nothing.
        spoiled = builder.fmul(whole, ir.Constant(emitter.scalar, 0.0))
        builder.store(builder.fadd(value, spoiled), result)
        builder.ret(builder.sext(place, I64) if lane.width < 64 else place)

    _columns(emitter, columns, sweep, done, (1, 1))


def _emit_scale_row(emitter, arguments):
    columns, factor, w, c, a, s = arguments
    builder = emitter.builder

    def sweep(j, vectors, masks, head):
        x, diagonal = (emitter.load(emitter.at(row, j), masks[0]) for row in (w, s))
        scaled = builder.fmul(x, emitter.splat(factor))
        for value, row in ((scaled, c), (x, a), (_minus_product(builder, x, scaled, diagonal), s)):
            emitter.store(value, emitter.at(row, j), masks[0])
        builder.branch(head)

    _columns(emitter, columns, sweep, builder.ret_void, (1, 1))


def _emit_scale_pair(emitter, arguments):
    columns, p, q, r, w, v, c, d, a, b, s = arguments
    builder = emitter.builder

    def sweep(j, vectors, masks, head):
        x, y, diagonal = (emitter.load(emitter.at(row, j), masks[0]) for row in (w, v, s))
        across = emitter.splat(q)
        t = emitter.multiply_add(emitter.splat(p), x, emitter.times(across, y))
        u = emitter.multiply_add(across, x, emitter.times(emitter.splat(r), y))
        diagonal = _minus_product(builder, x, t, _minus_product(builder, y, u, diagonal))
        for value, row in ((t, c), (u, d), (x, a), (y, b), (diagonal, s)):
            emitter.store(value, emitter.at(row, j), masks[0])
        builder.branch(head)

    _columns(emitter, columns, sweep, builder.ret_void, (1, 1))


def _emit_vector(emitter, arguments, back):
    t, ldt, x = arguments
    builder = emitter.builder
    values = [emitter.load_scalar(emitter.at(x, i)) for i in range(BLOCK)]
    for i in reversed(range(BLOCK)) if back else range(BLOCK):
        for j in reversed(range(i)) if back else range(i + 1, BLOCK):
            upper = emitter.load_scalar(emitter.at(t, builder.mul(_int(min(i, j)), ldt), max(i, j)))
            values[j] = _minus_product(builder, upper, values[i], values[j])
        builder.store(values[i], emitter.at(x, i))
    builder.ret_void()


def _emit_vector_forward(emitter, arguments):
    _emit_vector(emitter, arguments, False)


def _emit_vector_back(emitter, arguments):
    _emit_vector(emitter, arguments, True)


def _caller(name, result, kinds, emit, sig, position):
    """codegen of an intrinsic that calls one of the functions above, of the dtype of the pointer at this position."""

    def codegen(context, builder, sig, args):
        llvm_result = I64 if result == types.int64 else ir.VoidType()
        value = builder.call(_function(builder.module, name, llvm_result, kinds, emit, sig.args[position].dtype), args)
        return value if result == types.int64 else context.get_dummy_value()

    return sig, codegen


@intrinsic
def retyped(typingctx, pointer, like):
    """The same address as a pointer to what ``like`` points to."""
    sig = like(pointer, like)

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], context.get_value_type(sig.return_type))

    return sig, codegen


@intrinsic
def as_int32(typingctx, pointer):
    """The same address as a pointer to int32."""
    sig = types.CPointer(types.int32)(pointer)

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], context.get_value_type(sig.return_type))

    return sig, codegen


@intrinsic
def subtract_rows(typingctx, columns, depth, u, ldu, b, ldb, a, c):
    """c <- a - u^T B for one row: u has depth entries, ldu apart, B is depth x columns. c may be a."""
    i = types.int64
    return _caller("subtract_rows", types.void, "iipipipp", _emit_subtract, types.void(i, i, u, i, b, i, a, c), 2)


@intrinsic
def largest(typingctx, columns, x, result):
    """Place of the largest modulus among columns entries, which is stored in result: NaN if any is not finite."""
    return _caller("largest", types.int64, "ipp", _emit_largest, types.int64(types.int64, x, result), 1)


@intrinsic
def scale_row(typingctx, columns, factor, w, c, a, s):
    """a <- w, c <- factor w, s <- s - w c (entry by entry)."""
    sig = types.void(types.int64, w.dtype, w, c, a, s)
    return _caller("scale_row", types.void, "ispppp", _emit_scale_row, sig, 2)


@intrinsic
def scale_pair(typingctx, columns, p, q, r, w, v, c, d, a, b, s):
    """a, b <- w, v; c, d <- [[p, q], [q, r]] (w, v); s <- s - w c - v d (entry by entry)."""
    x = w.dtype
    sig = types.void(types.int64, x, x, x, w, v, c, d, a, b, s)
    return _caller("scale_pair", types.void, "isssppppppp", _emit_scale_pair, sig, 4)


@intrinsic
def solve_vector(typingctx, t, ldt, x):
    """x <- T^{-T} x, BLOCK entries."""
    return _caller("solve_vector", types.void, "pip", _emit_vector_forward, types.void(t, types.int64, x), 0)


@intrinsic
def solve_vector_back(typingctx, t, ldt, x):
    """x <- T^{-1} x, BLOCK entries."""
    return _caller("solve_vector_back", types.void, "pip", _emit_vector_back, types.void(t, types.int64, x), 0)


@intrinsic
def solve_block(typingctx, rows, columns, depth, solve, u, ldu, b, ldb, a, lda, c, ldc, t, ldt):
    """C <- T^{-T} (A - U^T B), or A - U^T B if not solve: C, A rows x columns, U depth x rows, T rows x rows.

    1 <= rows <= BLOCK. C may be A.
    """
    i = types.int64
    sig = types.void(i, i, i, i, u, i, b, i, a, i, c, i, t, i)
    return _caller("solve_block", types.void, "iiiipipipipipi", _emit_solve, sig, 4)


@intrinsic
def eliminate_block(
    typingctx, columns, depth, u, ldu, b, ldb, a, lda, c, ldc, t, ldt, inverse, before, after, saved, lds
):
    """A <- W = T^{-T} (A - U^T B), C <- diag(inverse) W, after <- before - the diagonal of W^T C; saved <- the old A.

    BLOCK rows. Returns 1 if no entry of after is negative or NaN, else 0.
    """
    i = types.int64
    sig = i(i, i, u, i, b, i, a, i, c, i, t, i, inverse, before, after, saved, i)
    return _caller("eliminate_block", i, "iipipipipipippppi", _emit_eliminate, sig, 2)


@intrinsic
def factor_block(typingctx, rows, tiny, t, ldt, d, inverse):
    """Upper triangle of T (rows x rows, rows <= BLOCK) = U^T D U, all pivots above tiny: returns 1, else 0.

    T <- U, zeros on and below the diagonal; d and inverse <- D and its inverse.
    """
    i = types.int64
    sig = i(i, t.dtype, t, i, d, inverse)
    return _caller("factor_block", i, "ispipp", _emit_factor, sig, 2)
