"""SciPy's BLAS for nopython code: row-major matrix products and symmetric rank-k updates on raw pointers.

Three intrinsics, ``gemm``, ``gemv_rows`` and ``syrk_upper``, take matrices as (pointer, row stride in elements) and
call the BLAS that SciPy is linked to. BLAS is column-major, so each call states the transposed problem. The symbols are
registered when this module is imported, by name: compiled code that refers to them can be cached on disk.
To bind another routine, add its name to ``ROUTINES`` and an intrinsic that calls ``_call``. ``has_threads()`` says
whether BLAS uses more than one thread, as ``tell_threads`` was told last: kernels leave more to it then.
"""

import ctypes

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

ROUTINES = ("gemm", "gemv", "syrk")

for _routine in ROUTINES:
    for _letter in "sd":
        llvmlite.binding.add_symbol(
            f"numba_hinv_{_letter}{_routine}",
            get_cython_function_address("scipy.linalg.cython_blas", _letter + _routine),
        )

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)

_threads = ctypes.c_int64(1)
llvmlite.binding.add_symbol("numba_hinv_blas_threads", ctypes.addressof(_threads))


def tell_threads(count):
    """Say how many threads BLAS uses."""
    _threads.value = count


@intrinsic
def has_threads(typingctx):
    """Whether BLAS uses more than one thread."""

    def codegen(context, builder, sig, args):
        name, module = "numba_hinv_blas_threads", builder.module
        slot = module.globals.get(name) or ir.GlobalVariable(module, _I64, name)
        return builder.icmp_signed(">", builder.load(slot), ir.Constant(_I64, 1))

    return types.boolean(), codegen


def _stride(builder, stride, columns):
    """The row stride that BLAS accepts: NumPy gives a matrix of one row any stride, even 0."""
    return builder.select(builder.icmp_signed("<", stride, columns), columns, stride)


def _call(context, builder, routine, dtype, letters, numbers):
    """Call a BLAS routine; letters are flags, numbers (kind, value) with kind "int", "scalar" or "pointer"."""
    scalar = context.get_value_type(dtype)
    arguments = []
    for letter in letters:
        arguments.append(cgutils.alloca_once_value(builder, ir.Constant(_I8, ord(letter))))
    for kind, value in numbers:
        if kind == "pointer":
            arguments.append(value)
            continue
        if kind == "int":
            value = builder.trunc(value, _I32) if value.type.width > 32 else value
        slot = cgutils.alloca_once(builder, _I32 if kind == "int" else scalar)
        builder.store(value, slot)
        arguments.append(slot)
    name = "numba_hinv_" + ("d" if dtype == types.float64 else "s") + routine
    function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    builder.call(function, arguments)
    return context.get_dummy_value()


@intrinsic
def gemm(typingctx, transposed_a, transposed_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C <- alpha op(A) op(B) + beta C, row-major; the two flags are literal booleans: True takes the transpose."""
    if not isinstance(transposed_a, types.BooleanLiteral) or not isinstance(transposed_b, types.BooleanLiteral):
        return None
    size, dtype = types.int64, a.dtype
    sig = types.void(transposed_a, transposed_b, size, size, size, dtype, a, size, b, size, dtype, c, size)

    def codegen(context, builder, sig, args):
        _, _, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = args
        lda = _stride(builder, lda, m if transposed_a.literal_value else k)
        ldb = _stride(builder, ldb, k if transposed_b.literal_value else n)
        ldc = _stride(builder, ldc, n)
        # Row-major C is column-major C^T = op(B)^T op(A)^T, and a row-major matrix read column-major is its transpose.
        letters = "T" if transposed_b.literal_value else "N", "T" if transposed_a.literal_value else "N"
        return _call(context, builder, "gemm", a_type.dtype, letters,
                     [("int", n), ("int", m), ("int", k), ("scalar", alpha), ("pointer", b), ("int", ldb),
                      ("pointer", a), ("int", lda), ("scalar", beta), ("pointer", c), ("int", ldc)])

    a_type = a
    return sig, codegen


@intrinsic
def gemv_rows(typingctx, transposed, rows, columns, alpha, a, lda, x, incx, beta, y, incy):
    """y <- alpha A x + beta y for a row-major A (rows x columns), or A^T x where the literal flag is True."""
    if not isinstance(transposed, types.BooleanLiteral):
        return None
    size, dtype = types.int64, a.dtype
    sig = types.void(transposed, size, size, dtype, a, size, x, size, dtype, y, size)

    def codegen(context, builder, sig, args):
        _, rows, columns, alpha, a, lda, x, incx, beta, y, incy = args
        return _call(context, builder, "gemv", dtype, "N" if transposed.literal_value else "T",
                     [("int", columns), ("int", rows), ("scalar", alpha), ("pointer", a),
                      ("int", _stride(builder, lda, columns)), ("pointer", x), ("int", incx),
                      ("scalar", beta), ("pointer", y), ("int", incy)])

    return sig, codegen


@intrinsic
def syrk_upper(typingctx, n, k, alpha, a, lda, beta, c, ldc):
    """Upper triangle of C (n x n) <- alpha A^T A + beta C, row-major A (k x n)."""
    size, dtype = types.int64, a.dtype
    sig = types.void(size, size, dtype, a, size, dtype, c, size)

    def codegen(context, builder, sig, args):
        n, k, alpha, a, lda, beta, c, ldc = args
        lda, ldc = _stride(builder, lda, n), _stride(builder, ldc, n)
        # The row-major upper triangle is the column-major lower one, and row-major A^T A is column-major A A^T.
        return _call(context, builder, "syrk", dtype, "LN",
                     [("int", n), ("int", k), ("scalar", alpha), ("pointer", a), ("int", lda),
                      ("scalar", beta), ("pointer", c), ("int", ldc)])

    return sig, codegen
