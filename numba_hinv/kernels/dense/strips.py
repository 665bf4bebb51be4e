"""Functions over a few rows of matrices in LLVM vector IR, strip by strip of columns: what their emitters share.

Matrices are pointers with row strides in elements. `over_columns` emits the loop over strips, `accumulate` the products
with the rows above, which stay in registers; `caller` makes an intrinsic of an emitted function.
"""

from llvmlite import ir
from numba import types

from .emitter import FLAGS, I64, VECTOR_BYTES, Emitter, scalar_type, vector_width

# Vectors of a strip. With 8 rows its sums take 16 of AVX-512's 32 registers, 8 of the 16 that others have.
VECTORS = 2 if VECTOR_BYTES == 64 else 1


def int64(value):
    """A constant index or size."""
    return ir.Constant(I64, value)


def _function(module, name, result, kinds, emit, dtype, width):
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
    width = width or vector_width(dtype)
    emit(Emitter(ir.IRBuilder(function.append_basic_block("entry")), dtype, width), function.args)
    return function


def minus_product(builder, x, y, z):
    """z - x y, in one instruction where the machine has it."""
    return builder.fsub(z, builder.fmul(x, y, flags=FLAGS), flags=FLAGS)


def over_columns(emitter, columns, sweep, done, strips=(VECTORS, 1)):
    """Call sweep(first column, vectors, masks, next) over strips of columns of decreasing width, the last one masked.

    sweep ends with a branch to next; done() is emitted at the end.
    """
    builder, width = emitter.builder, emitter.width
    # At the start of the function, since this may stand in a loop.
    with builder.goto_entry_block():
        place = builder.alloca(I64)
    builder.store(int64(0), place)
    heads = [emitter.block("strips") for _ in (*strips, None)]
    builder.branch(heads[0])
    for head, after, vectors in zip(heads, heads[1:], strips):
        masked = after is heads[-1]
        builder.position_at_end(head)
        j = builder.load(place)
        left = builder.sub(columns, j)
        body = emitter.block("strip")
        builder.cbranch(builder.icmp_signed(">=", left, int64(1 if masked else vectors * width)), body, after)
        builder.position_at_end(body)
        masks = [None] * vectors
        if masked:
            part = builder.icmp_signed("<", left, int64(width))
            masks = [emitter.mask(builder.select(part, left, int64(width)))]
        builder.store(builder.add(j, int64(vectors * width)), place)
        sweep(j, vectors, masks, head)
    builder.position_at_end(heads[-1])
    done()


def accumulate(emitter, depth, u, ldu, b, ldb, j, masks, row_offsets, start, sign=-1):
    """start (rows x vectors) - U^T B in the columns from j on, or with a sign of 1 their sum."""
    builder, width = emitter.builder, emitter.width
    vectors = len(masks)
    before = builder.block
    some, after = emitter.block("depth"), emitter.block("depth.after")
    builder.cbranch(builder.icmp_signed(">", depth, int64(0)), some, after)
    builder.position_at_end(some)

    def body(step, sums):
        b_row = emitter.at(b, builder.mul(step, ldb), j)
        b_vectors = [emitter.load(emitter.at(b_row, v * width), masks[v]) for v in range(vectors)]
        u_row = emitter.at(u, builder.mul(step, ldu))
        new = []
        for r, offset in enumerate(row_offsets):
            x = emitter.splat(emitter.load_scalar(emitter.at(u_row, offset)))
            for v in range(vectors):
                total = sums[r * vectors + v]
                if sign < 0:
                    new.append(minus_product(builder, x, b_vectors[v], total))
                else:
                    new.append(emitter.multiply_add(x, b_vectors[v], total))
        return new

    sums = emitter.loop(int64(0), 1, depth, start, body)
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


def caller(name, result, kinds, emit, sig, position, width=None):
    """codegen of an intrinsic that calls one of the functions above, of the dtype of the pointer at this position.

    width : lanes of its vectors, where they are not those of the machine's.
    """

    def codegen(context, builder, sig, args):
        llvm_result, dtype = I64 if result == types.int64 else ir.VoidType(), sig.args[position].dtype
        value = builder.call(_function(builder.module, name, llvm_result, kinds, emit, dtype, width), args)
        return value if result == types.int64 else context.get_dummy_value()

    return sig, codegen
