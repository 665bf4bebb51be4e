"""Square blocks made exactly symmetric, in one pass: `symmetric_means`, and its micro-kernel in LLVM vector IR.

``symmetric_mean(n, given, out, found)``, a Numba intrinsic for nopython code, writes the mean of a block and its
transpose to ``out``, and the largest difference of entries across the diagonal, and the largest entry, to ``found[0]``
and ``found[1]``; a NaN counts as larger than all numbers. Tiles of whole vectors are transposed in registers, so that
the block is read twice and written once.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..plumbing.compiled import kernel
from .emitter import I64, Emitter, vector_width
from .microkernel import define, pointer, transposed

_NAME = "numba_hinv_symmetric_mean"


def _emit(emitter, arguments):
    builder, width = emitter.builder, emitter.width
    n, given, out, found = arguments
    zero, last = ir.Constant(I64, 0), builder.sub(n, ir.Constant(I64, 1))
    lanes = ir.VectorType(I64, width)
    size_mask = ir.Constant(lanes, [2**63 - 1] * width)
    half = ir.Constant(emitter.vector(), [0.5] * width)

    def rows_of(first, column, mask):
        """Vectors of the rows from ``first`` on; those beyond the last one repeat it."""
        vectors = []
        for g in range(width):
            row = builder.add(first, ir.Constant(I64, g))
            row = builder.select(builder.icmp_signed("<", row, n), row, last)
            vectors.append(emitter.load(emitter.at(given, builder.mul(row, n), column), mask))
        return vectors

    def larger(x, value, mask):
        """The larger of x and the sizes of the values, as integers, which are in the same order."""
        sizes = builder.and_(builder.bitcast(value, lanes), size_mask)
        return builder.select(builder.and_(mask, builder.icmp_unsigned(">", sizes, x)), sizes, x)

    def over_columns(column, most):
        columns = emitter.mask(builder.sub(n, column))

        def over_rows(row, most):
            difference, largest = most
            here = rows_of(row, column, columns)
            across = transposed(emitter, rows_of(column, row, emitter.mask(builder.sub(n, row))))
            for g, (x, y) in enumerate(zip(here, across)):
                at = builder.add(row, ir.Constant(I64, g))
                count = builder.select(builder.icmp_signed("<", at, n), builder.sub(n, column), zero)
                mask = emitter.mask(count)
                difference = larger(difference, builder.fsub(x, y), mask)
                largest = larger(largest, x, mask)
                # Halves first: the sum of two large numbers overflows.
                mean = builder.fadd(builder.fmul(half, x), builder.fmul(half, y))
                emitter.store(mean, emitter.at(out, builder.mul(at, n), column), mask)
            return [difference, largest]

        return emitter.loop(zero, width, n, most, over_rows)

    none = ir.Constant(lanes, None)
    most = emitter.loop(zero, width, n, [none, none], over_columns)
    for k, vector in enumerate(most):
        # The largest lane.
        size = builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))
        for lane in range(1, width):
            other = builder.extract_element(vector, ir.Constant(ir.IntType(32), lane))
            size = builder.select(builder.icmp_unsigned(">", other, size), other, size)
        builder.store(builder.bitcast(size, emitter.scalar), emitter.at(found, k))
    builder.ret_void()


@intrinsic
def symmetric_mean(typingctx, n, given, out, found):
    """See above: n at least 1; pointers to n x n float64 that are not the same, and to two."""
    signature = types.void(types.int64, *[types.CPointer(types.float64)] * 3)

    def codegen(context, builder, signature, arguments):
        function = builder.module.globals.get(_NAME)
        if function is None:
            address = ir.DoubleType().as_pointer()
            function, inside = define(builder.module, _NAME, [I64, address, address, address])
            _emit(Emitter(inside, types.float64, vector_width(types.float64)), function.args)
        builder.call(function, arguments)
        return context.get_dummy_value()

    return signature, codegen


@kernel
def symmetric_means(given, sizes, out, found):
    """out <- the means of square blocks, one after the other, and their transposes; another array than the given one.

    found : (k, 2), gets the largest difference of entries across the diagonal of each block, and its largest entry; NaN
    and infinity count as larger than all numbers.
    """
    at = 0
    for l in range(sizes.size):
        n = sizes[l]
        if n == 0:
            found[l, 0] = found[l, 1] = 0.0
        else:
            symmetric_mean(n, pointer(given, at), pointer(out, at), pointer(found, 2 * l))
        at += n * n
