"""Outer products of a few vectors, a column of vectors at a time, as Numba intrinsics for nopython code.

``outer`` and ``outer_pair`` write whole vectors of ``vector_columns`` numbers (`microkernel`), also where fewer are
wanted: what is written beyond them must be free, or be written later.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .microkernel import VECTOR_BYTES

# Contraction to FMA.
_FLAGS = ("contract",)


def _emit(context, builder, dtype, count, terms, out, stride):
    """``out[a stride :] = sum over terms (g, z) of g[a] z``, a < count, one vector each."""
    width = VECTOR_BYTES // (dtype.bitwidth // 8)
    kind = ir.VectorType(context.get_value_type(dtype), width)
    first, lanes = ir.Constant(ir.IntType(32), 0), ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)

    def address(at):
        return builder.bitcast(at, kind.as_pointer())

    def load(at):
        vector = builder.load(address(at))
        vector.align = dtype.bitwidth // 8
        return vector

    vectors = [load(z) for _, z in terms]
    with cgutils.for_range(builder, count) as loop:
        total = None
        for (g, _), vector in zip(terms, vectors):
            value = builder.load(builder.gep(g, [loop.index]))
            one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, first)
            splat = builder.shuffle_vector(one, one, lanes)
            product = builder.fmul(splat, vector, flags=_FLAGS)
            total = product if total is None else builder.fadd(total, product, flags=_FLAGS)
        to = builder.gep(out, [builder.mul(loop.index, stride)])
        builder.store(total, address(to)).align = dtype.bitwidth // 8
    return context.get_dummy_value()


@intrinsic
def outer(typingctx, count, g, z, out, stride):
    """out[a stride + k] <- g[a] z[k] for a < count and the k of one vector; out may not overlap g."""

    def codegen(context, builder, sig, args):
        count, g, z, out, stride = args
        return _emit(context, builder, sig.args[1].dtype, count, [(g, z)], out, stride)

    return types.void(types.int64, g, z, out, types.int64), codegen


@intrinsic
def outer_pair(typingctx, count, g, z, h, t, out, stride):
    """out[a stride + k] <- g[a] z[k] + h[a] t[k], likewise."""

    def codegen(context, builder, sig, args):
        count, g, z, h, t, out, stride = args
        return _emit(context, builder, sig.args[1].dtype, count, [(g, z), (h, t)], out, stride)

    return types.void(types.int64, g, z, h, t, out, types.int64), codegen
