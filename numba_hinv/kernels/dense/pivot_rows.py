"""Single rows in LLVM vector IR, for the pivots of the signed Cholesky that need care.

``subtract_rows``, ``largest``, ``scale_row`` and ``scale_pair`` do for one row or two what `pivot_block` does for many,
so that each pivot can be chosen once it is known. Matrices are pointers with row strides in elements.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emitter import I32, I64
from .strips import VECTORS, accumulate, caller, int64, minus_product, over_columns


def _emit_subtract(emitter, arguments):
    columns, depth, u, ldu, b, ldb, a, c = arguments

    def sweep(j, vectors, masks, head):
        start = [emitter.load(emitter.at(a, j, v * emitter.width), masks[v]) for v in range(vectors)]
        sums = accumulate(emitter, depth, u, ldu, b, ldb, j, masks, [int64(0)], start)
        for v in range(vectors):
            emitter.store(sums[v], emitter.at(c, j, v * emitter.width), masks[v])
        emitter.builder.branch(head)

    over_columns(emitter, columns, sweep, emitter.builder.ret_void, (4 * VECTORS, 2, 1))


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

    over_columns(emitter, columns, sweep, done, (1, 1))


def _emit_scale_row(emitter, arguments):
    columns, factor, w, c, a, s = arguments
    builder = emitter.builder

    def sweep(j, vectors, masks, head):
        x, diagonal = (emitter.load(emitter.at(row, j), masks[0]) for row in (w, s))
        scaled = builder.fmul(x, emitter.splat(factor))
        for value, row in ((scaled, c), (x, a), (minus_product(builder, x, scaled, diagonal), s)):
            emitter.store(value, emitter.at(row, j), masks[0])
        builder.branch(head)

    over_columns(emitter, columns, sweep, builder.ret_void, (1, 1))


def _emit_scale_pair(emitter, arguments):
    columns, p, q, r, w, v, c, d, a, b, s = arguments
    builder = emitter.builder

    def sweep(j, vectors, masks, head):
        x, y, diagonal = (emitter.load(emitter.at(row, j), masks[0]) for row in (w, v, s))
        across = emitter.splat(q)
        t = emitter.multiply_add(emitter.splat(p), x, emitter.times(across, y))
        u = emitter.multiply_add(across, x, emitter.times(emitter.splat(r), y))
        diagonal = minus_product(builder, x, t, minus_product(builder, y, u, diagonal))
        for value, row in ((t, c), (u, d), (x, a), (y, b), (diagonal, s)):
            emitter.store(value, emitter.at(row, j), masks[0])
        builder.branch(head)

    over_columns(emitter, columns, sweep, builder.ret_void, (1, 1))


@intrinsic
def subtract_rows(typingctx, columns, depth, u, ldu, b, ldb, a, c):
    """c <- a - u^T B for one row: u has depth entries, ldu apart, B is depth x columns. c may be a."""
    i = types.int64
    return caller("subtract_rows", types.void, "iipipipp", _emit_subtract, types.void(i, i, u, i, b, i, a, c), 2)


@intrinsic
def largest(typingctx, columns, x, result):
    """Place of the largest modulus among columns entries, which is stored in result: NaN if any is not finite."""
    return caller("largest", types.int64, "ipp", _emit_largest, types.int64(types.int64, x, result), 1)


@intrinsic
def scale_row(typingctx, columns, factor, w, c, a, s):
    """a <- w, c <- factor w, s <- s - w c (entry by entry)."""
    sig = types.void(types.int64, w.dtype, w, c, a, s)
    return caller("scale_row", types.void, "ispppp", _emit_scale_row, sig, 2)


@intrinsic
def scale_pair(typingctx, columns, p, q, r, w, v, c, d, a, b, s):
    """a, b <- w, v; c, d <- [[p, q], [q, r]] (w, v); s <- s - w c - v d (entry by entry)."""
    x = w.dtype
    sig = types.void(types.int64, x, x, x, w, v, c, d, a, b, s)
    return caller("scale_pair", types.void, "isssppppppp", _emit_scale_pair, sig, 4)
