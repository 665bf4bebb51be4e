"""Vectors side by side: entry j of all of them in ``lanes`` neighbouring numbers, so that SIMD runs across vectors.

A matrix is multiplied with such a block as with any other of so many columns (`product`). What is left is here: how
blocks are turned round from vectors that are rows, and back (``to_lanes``, ``to_rows``), and how their entries are
scaled, combined and made a residual. ``lanes`` is a whole number of vector registers, so that nothing is masked; the
lanes beyond the last vector repeat it, and are never read.
"""

from numba import types
from numba.extending import intrinsic

from ..plumbing.compiled import inner
from .emitter import VECTOR_BYTES
from .microkernel import transpose, vector_columns
from .strips import caller, int64

# Fewer vectors than this are multiplied with one after the other: most lanes would be idle.
LEAST_VECTORS = 4


def num_lanes(num_vectors, dtype):
    """Numbers that each entry of so many vectors takes."""
    unit = VECTOR_BYTES // dtype.itemsize
    return num_vectors if num_vectors < LEAST_VECTORS else -(-num_vectors // unit) * unit


@inner
def lanes_of(num_vectors, pointer):
    """`num_lanes` of vectors of what ``pointer`` points to."""
    unit = vector_columns(pointer)
    return num_vectors if num_vectors < LEAST_VECTORS else (num_vectors + unit - 1) // unit * unit


@inner
def to_lanes(num_vectors, size, rows, stride, block, lanes):
    """block (size x lanes) <- vectors of ``size`` entries that are rows, ``stride`` apart.

    Numbers behind the block are overwritten, of up to a vector register less one more entries.
    """
    if size > 0:
        transpose(num_vectors, size, rows, stride, block, lanes)


@inner
def to_rows(num_vectors, size, block, lanes, rows, stride):
    """Rows, ``stride`` apart, <- the first vectors of a block (size x lanes); nothing else is written."""
    unit = vector_columns(block)
    whole, count = size // unit * unit, num_vectors // unit * unit
    if whole > 0 and count > 0:
        transpose(whole, count, block, lanes, rows, stride)
    for t in range(num_vectors):
        for i in range(whole if t < count else 0, size):
            rows[t * stride + i] = block[i * lanes + t]


def _over_entries(emitter, count, lanes, body):
    """Call body(entry, place of a vector in the block) for every vector of a block of count x lanes numbers."""
    builder = emitter.builder
    some, done = emitter.block("some"), emitter.block("done")
    builder.cbranch(builder.icmp_signed(">", count, int64(0)), some, done)
    builder.position_at_end(some)

    def entry(j, _):
        first = builder.mul(j, lanes)

        def vector(t, _):
            body(j, builder.add(first, t))
            return []

        return emitter.loop(int64(0), emitter.width, lanes, [], vector)

    emitter.loop(int64(0), 1, count, [], entry)
    builder.branch(done)
    builder.position_at_end(done)


def _emit_scale(emitter, arguments):
    count, lanes, s, x, out = arguments

    def body(j, place):
        factor = emitter.splat(emitter.load_scalar(emitter.at(s, j)))
        emitter.store(emitter.times(factor, emitter.load(emitter.at(x, place))), emitter.at(out, place))

    _over_entries(emitter, count, lanes, body)
    emitter.builder.ret_void()


def _emit_combine(emitter, arguments):
    count, lanes, s, x, d, y = arguments

    def body(j, place):
        first, second = (emitter.splat(emitter.load_scalar(emitter.at(factors, j))) for factors in (s, d))
        kept = emitter.times(second, emitter.load(emitter.at(y, place)))
        emitter.store(emitter.multiply_add(first, emitter.load(emitter.at(x, place)), kept), emitter.at(y, place))

    _over_entries(emitter, count, lanes, body)
    emitter.builder.ret_void()


def _emit_residual(emitter, arguments):
    count, lanes, factor, v, b, r, squares = arguments
    builder = emitter.builder
    some, done = emitter.block("some"), emitter.block("done")
    builder.cbranch(builder.icmp_signed(">", count, int64(0)), some, done)
    builder.position_at_end(some)
    splat = emitter.splat(factor)

    def strip(t, _):
        at_r, at_v = emitter.at(squares, t), emitter.at(squares, t, lanes)

        def entry(j, sums):
            place = builder.add(builder.mul(j, lanes), t)
            x = emitter.load(emitter.at(v, place))
            left = builder.fsub(emitter.load(emitter.at(b, place)), emitter.load(emitter.at(r, place)))
            left = builder.fsub(left, emitter.times(splat, x))
            emitter.store(left, emitter.at(r, place))
            return [emitter.multiply_add(left, left, sums[0]), emitter.multiply_add(x, x, sums[1])]

        sums = emitter.loop(int64(0), 1, count, [emitter.load(at_r), emitter.load(at_v)], entry)
        emitter.store(sums[0], at_r)
        emitter.store(sums[1], at_v)
        return []

    emitter.loop(int64(0), emitter.width, lanes, [], strip)
    builder.branch(done)
    builder.position_at_end(done)
    builder.ret_void()


@intrinsic
def scale_entries(typingctx, count, lanes, s, x, out):
    """out <- diag(s) x, both count x lanes; out may be x."""
    sig = types.void(types.int64, types.int64, s, x, out)
    return caller("scale_entries", types.void, "iippp", _emit_scale, sig, 2)


@intrinsic
def combine_entries(typingctx, count, lanes, s, x, d, y):
    """y <- diag(s) x + diag(d) y, both count x lanes."""
    sig = types.void(types.int64, types.int64, s, x, d, y)
    return caller("combine_entries", types.void, "iipppp", _emit_combine, sig, 2)


@intrinsic
def residual_entries(typingctx, count, lanes, factor, v, b, r, squares):
    """r <- b - r - factor v, all count x lanes; squares (2, lanes) += the squared norms of r and of v."""
    sig = types.void(types.int64, types.int64, v.dtype, v, b, r, squares)
    return caller("residual_entries", types.void, "iispppp", _emit_residual, sig, 3)
