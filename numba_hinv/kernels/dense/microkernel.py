"""The dense micro-kernels in LLVM vector IR, and pointers into arrays, as Numba intrinsics.

``pointer(array, offset)``, ``shift(pointer, offset)``, ``row_stride(array)``: addresses; ``p[i]`` reads and writes;
``retyped``, ``as_int32``: pointers seen as pointers to another type.
``tile_nn``, ``tile_tn``, ``tile_nt``: C <- alpha op(A) op(B) + beta C, at most ``tile_rows`` x ``tile_columns``
(one row of ``tile_nn``: ``row_columns``; ``tile_nt``: ``DOT_ROWS`` x ``dot_columns``). ``transpose``: B^T to a panel.
Accumulators are vector phis of the loop over k, so LLVM keeps them in registers; edges are masked vectors, so there is
no scalar code; one function per dtype and kind holds all tile sizes. The numbers at the top may be changed after a
measurement, as the tile sizes of `emitter`.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emitter import I64, MASKS_ARE_CHEAP, TILE_ROWS, TILE_VECTORS, VECTOR_BYTES, Emitter, scalar_type, vector_width

DOT_ROWS = 3
# Vectors in a tile of one row: enough independent sums to hide the latency of additions.
ROW_VECTORS = 8
# Rows of the scratch panel: with tile_columns columns it takes half of a first-level cache of 48 KiB.
PANEL_ROWS = 128
# Columns of the scratch block, which stays in a second-level cache, and the distance of its rows: one cache line more,
# so that they do not share sets of the first-level cache.
BLOCK_COLUMNS, BLOCK_STRIDE = 128, 136


def _group(dtype):
    """Rows of B per dot tile: as many as a vector has lanes, so that the sums are one vector, but no more than 8."""
    return min(vector_width(dtype), 8)


@intrinsic
def pointer(typingctx, array, offset):
    """Address of the element ``offset`` elements after the first one."""
    sig = types.CPointer(array.dtype)(array, types.int64)

    def codegen(context, builder, sig, args):
        view = context.make_array(sig.args[0])(context, builder, args[0])
        return builder.gep(view.data, [args[1]])

    return sig, codegen


@intrinsic
def shift(typingctx, pointer, offset):
    """The pointer moved by ``offset`` elements."""
    sig = pointer(pointer, types.int64)

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

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
def row_stride(typingctx, array):
    """Elements between two consecutive rows of a 2-D array whose rows are contiguous."""
    sig = types.int64(array)

    def codegen(context, builder, sig, args):
        array_type = sig.args[0]
        view = context.make_array(array_type)(context, builder, args[0])
        stride = builder.extract_value(view.strides, 0)
        size = context.get_abi_sizeof(context.get_value_type(array_type.dtype))
        return builder.sdiv(stride, ir.Constant(stride.type, size), flags=("exact",))

    return sig, codegen


def _constant(value):
    @intrinsic
    def constant(typingctx, pointer):
        sig = types.int64(pointer)

        def codegen(context, builder, sig, args):
            return ir.Constant(I64, value(sig.args[0].dtype))

        return sig, codegen

    return constant


tile_rows = _constant(lambda dtype: TILE_ROWS)
tile_columns = _constant(lambda dtype: TILE_VECTORS * vector_width(dtype))
vector_columns = _constant(vector_width)
row_columns = _constant(lambda dtype: ROW_VECTORS * vector_width(dtype))
dot_columns = _constant(_group)


def _scratch(columns):
    @intrinsic
    def scratch(typingctx, pointer):
        sig = pointer(pointer)

        def codegen(context, builder, sig, args):
            dtype = sig.args[0].dtype
            size = ir.Constant(I64, PANEL_ROWS * columns(dtype))
            memory = cgutils.alloca_once(builder, context.get_value_type(dtype), size)
            memory.align = VECTOR_BYTES
            return memory

        return sig, codegen

    return scratch


# Scratch memory on the stack, PANEL_ROWS x tile_columns elements: 24 kB at most. Threads may have no more than 128 kB,
# so that the scratch block, of 139 kB, is for the heap.
panel = _scratch(lambda dtype: TILE_VECTORS * vector_width(dtype))


def _emit_outer_tile(emitter, transposed, rows, vectors, masked, arguments):
    """The tile of rank-one updates: rows x (vectors * width) accumulators."""
    builder = emitter.builder
    _, columns, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
    width = emitter.width
    count = builder.sub(columns, ir.Constant(I64, (vectors - 1) * width))
    masks = [None] * (vectors - 1) + [emitter.mask(count) if masked else None]

    a_rows = [] if transposed else [emitter.at(a, builder.mul(ir.Constant(I64, r), lda)) for r in range(rows)]

    def body(step, sums):
        b_row = emitter.at(b, builder.mul(step, ldb))
        b_vectors = [emitter.load(emitter.at(b_row, v * width), masks[v]) for v in range(vectors)]
        a_step = emitter.at(a, builder.mul(step, lda)) if transposed else None
        new = []
        for r in range(rows):
            x = emitter.splat(emitter.load_scalar(emitter.at(a_step, r) if transposed else emitter.at(a_rows[r], step)))
            new += [emitter.multiply_add(x, b_vectors[v], sums[r * vectors + v]) for v in range(vectors)]
        return new

    sums = emitter.loop(ir.Constant(I64, 0), 1, k, [emitter.zero()] * (rows * vectors), body)
    c_rows = [emitter.at(c, builder.mul(ir.Constant(I64, r), ldc)) for r in range(rows)]
    emitter.write(alpha, beta, [(sums[r * vectors + v], emitter.at(c_rows[r], v * width), masks[v])
                                for r in range(rows) for v in range(vectors)])


def _emit_dot_tile(emitter, group, rows, arguments):
    """The tile of inner products: rows x group accumulators, whose lanes are summed at the end."""
    builder = emitter.builder
    _, columns, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
    width = emitter.width
    last = builder.sub(columns, ir.Constant(I64, 1))
    b_rows = [b]
    for g in range(1, group):
        # Rows beyond the last one repeat it: their sums are not stored.
        row = builder.select(builder.icmp_signed("<", ir.Constant(I64, g), columns), ir.Constant(I64, g), last)
        b_rows.append(emitter.at(b, builder.mul(row, ldb)))
    a_rows = [emitter.at(a, builder.mul(ir.Constant(I64, r), lda)) for r in range(rows)]

    def accumulate(step, sums, mask):
        a_vectors = [emitter.load(emitter.at(row, step), mask) for row in a_rows]
        new = list(sums)
        for g in range(group):
            b_vector = emitter.load(emitter.at(b_rows[g], step), mask)
            for r in range(rows):
                new[r * group + g] = emitter.multiply_add(a_vectors[r], b_vector, sums[r * group + g])
        return new

    rest = builder.and_(k, ir.Constant(I64, width - 1))
    whole = builder.sub(k, rest)
    start = builder.block
    any_whole, edge, tail, finish = (emitter.block(name) for name in ("whole", "edge", "tail", "finish"))
    builder.cbranch(builder.icmp_signed(">", whole, ir.Constant(I64, 0)), any_whole, edge)
    builder.position_at_end(any_whole)
    zeros = [emitter.zero()] * (rows * group)
    whole_sums = emitter.loop(ir.Constant(I64, 0), width, whole, zeros,
                              lambda step, sums: accumulate(step, sums, None))
    whole_end = builder.block
    builder.branch(edge)

    def merge(first, first_block, second, second_block):
        merged = []
        for x, y in zip(first, second):
            phi = builder.phi(x.type)
            phi.add_incoming(x, first_block)
            phi.add_incoming(y, second_block)
            merged.append(phi)
        return merged

    builder.position_at_end(edge)
    sums = merge(zeros, start, whole_sums, whole_end)
    builder.cbranch(builder.icmp_signed(">", rest, ir.Constant(I64, 0)), tail, finish)
    builder.position_at_end(tail)
    tail_sums = accumulate(whole, sums, emitter.mask(rest))
    tail_end = builder.block
    builder.branch(finish)
    builder.position_at_end(finish)
    sums = merge(sums, edge, tail_sums, tail_end)
    mask = emitter.mask(columns, group)
    emitter.write(alpha, beta, [(sum_lanes(emitter, sums[r * group:(r + 1) * group]),
                                 emitter.at(c, builder.mul(ir.Constant(I64, r), ldc)), mask) for r in range(rows)])


def _pair_lanes(width, span):
    """Of two vectors side by side: the even blocks of span lanes, alternately from each, and the odd ones."""
    low = []
    for base in range(0, width, 2 * span):
        low += [*range(base, base + span), *range(width + base, width + base + span)]
    return low, [lane + span for lane in low]


def sum_lanes(emitter, vectors):
    """The vector whose lane g is the sum of the lanes of vectors[g], by a tree of shuffles and additions."""
    width, span = emitter.width, 1
    while len(vectors) > 1:
        low, high = _pair_lanes(width, span)
        vectors = [emitter.add(emitter.shuffle(x, y, low), emitter.shuffle(x, y, high))
                   for x, y in zip(vectors[::2], vectors[1::2])]
        span *= 2
    total = vectors[0]
    while width > span:
        width //= 2
        total = emitter.add(emitter.shuffle(total, total, [*range(width)]),
                            emitter.shuffle(total, total, [*range(width, 2 * width)]))
    return total


def transposed(emitter, rows):
    """The columns of a square block, as vectors, from its rows, by a network of shuffles."""
    block, span = list(rows), 1
    while span < emitter.width:
        low, high = _pair_lanes(emitter.width, span)
        for i in range(emitter.width):
            if not i & span:
                x, y = block[i], block[i + span]
                block[i], block[i + span] = emitter.shuffle(x, y, low), emitter.shuffle(x, y, high)
        span *= 2
    return block


def _emit_transpose(emitter, arguments):
    """Blocks of width x width through registers; rows are rounded up to whole blocks."""
    builder = emitter.builder
    columns, k, b, ldb, out, ldo = arguments
    width = emitter.width
    last = builder.sub(columns, ir.Constant(I64, 1))
    zero = ir.Constant(I64, 0)

    def over_columns(first, _):
        b_rows = []
        for g in range(width):
            row = builder.add(first, ir.Constant(I64, g))
            # Rows beyond the last one repeat it, and fill columns of the panel that no tile reads.
            row = builder.select(builder.icmp_signed("<", row, columns), row, last)
            b_rows.append(emitter.at(b, builder.mul(row, ldb)))

        def over_rows(step, _):
            mask = emitter.mask(builder.select(builder.icmp_signed("<", builder.sub(k, step), width_),
                                               builder.sub(k, step), width_))
            target = emitter.at(out, first, builder.mul(step, ldo))
            for row in transposed(emitter, [emitter.load(emitter.at(row, step), mask) for row in b_rows]):
                emitter.store(row, target)
                target = emitter.at(target, ldo)
            return []

        return emitter.loop(zero, width, k, [], over_rows)

    width_ = ir.Constant(I64, width)
    emitter.loop(zero, width, columns, [], over_columns)
    builder.ret_void()


def define(module, name, argument_types):
    """A function that returns nothing, to be emitted into a module once, and a builder at its start."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), argument_types), name)
    function.linkage = "linkonce_odr"
    # optsize keeps LLVM from unrolling the loops over k: the tiles are unrolled already.
    for attribute in ("noinline", "nounwind", "optsize"):
        function.attributes.add(attribute)
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def _tile_function(module, dtype, kind):
    """Get or emit the function of this kind ("nn", "tn" or "nt") that dispatches on the tile's size."""
    name = f"numba_hinv_tile_{kind}_f{dtype.bitwidth}"
    if name in module.globals:
        return module.globals[name]
    scalar = scalar_type(dtype)
    address = scalar.as_pointer()
    function, builder = define(module, name, [I64, I64, I64, scalar, address, I64, address, I64, scalar,
                                               address, I64])
    width = vector_width(dtype)
    emitter = Emitter(builder, dtype, width)
    rows, columns = function.args[:2]
    unreachable = function.append_basic_block("unreachable")
    ir.IRBuilder(unreachable).unreachable()
    if kind == "nt":
        switch = builder.switch(rows, unreachable)
        for r in range(1, DOT_ROWS + 1):
            block = function.append_basic_block(f"rows{r}")
            switch.add_case(ir.Constant(I64, r), block)
            builder.position_at_end(block)
            _emit_dot_tile(emitter, _group(dtype), r, function.args)
        return function
    # Case number: ((vectors - 1) * 2 + whole) * TILE_ROWS + rows - 1, where whole says that no mask is needed.
    whole = ir.Constant(I64, 0)
    if not MASKS_ARE_CHEAP:
        rest = builder.urem(columns, ir.Constant(I64, width))
        whole = builder.zext(builder.icmp_unsigned("==", rest, ir.Constant(I64, 0)), I64)
    vectors = builder.udiv(builder.sub(columns, ir.Constant(I64, 1)), ir.Constant(I64, width))
    case = builder.add(builder.mul(vectors, ir.Constant(I64, 2)), whole)
    case = builder.add(builder.mul(case, ir.Constant(I64, TILE_ROWS)), builder.sub(rows, ir.Constant(I64, 1)))
    switch = builder.switch(case, unreachable)
    for r in range(1, TILE_ROWS + 1):
        for v in range(1, (ROW_VECTORS if r == 1 and kind == "nn" else TILE_VECTORS) + 1):
            for w in (0,) if MASKS_ARE_CHEAP else (0, 1):
                block = function.append_basic_block(f"rows{r}.vectors{v}.whole{w}")
                switch.add_case(ir.Constant(I64, ((v - 1) * 2 + w) * TILE_ROWS + r - 1), block)
                builder.position_at_end(block)
                _emit_outer_tile(emitter, kind == "tn", r, v, w == 0, function.args)
    return function


def _tile(kind):
    @intrinsic
    def tile(typingctx, rows, columns, k, alpha, a, lda, b, ldb, beta, c, ldc):
        size, dtype = types.int64, a.dtype
        sig = types.void(size, size, size, dtype, a, size, b, size, dtype, c, size)

        def codegen(context, builder, sig, args):
            builder.call(_tile_function(builder.module, dtype, kind), args)
            return context.get_dummy_value()

        return sig, codegen

    return tile


tile_nn, tile_tn, tile_nt = _tile("nn"), _tile("tn"), _tile("nt")


@intrinsic
def transpose(typingctx, columns, k, b, ldb, out, ldo):
    """out (k x columns) <- B^T, B (columns x k); writes up to whole vectors in both directions (see ``panel``)."""
    size, dtype = types.int64, b.dtype
    sig = types.void(size, size, b, size, out, size)

    def codegen(context, builder, sig, args):
        name = f"numba_hinv_transpose_f{dtype.bitwidth}"
        function = builder.module.globals.get(name)
        if function is None:
            address = scalar_type(dtype).as_pointer()
            function, inner = define(builder.module, name, [I64, I64, address, I64, address, I64])
            _emit_transpose(Emitter(inner, dtype, vector_width(dtype)), function.args)
        builder.call(function, args)
        return context.get_dummy_value()

    return sig, codegen
