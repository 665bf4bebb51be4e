"""Pointers into arrays and (next) the vector micro-kernel, as LLVM IR behind Numba intrinsics.

``pointer(array, offset)``  address of the element ``offset`` elements after the array's first one; typed by its dtype
``shift(pointer, offset)``  that pointer moved by ``offset`` elements
``row_stride(array)``       elements between two rows of a 2-D array with contiguous rows
A pointer ``p`` can be indexed, ``p[i]``, in nopython code.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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
def row_stride(typingctx, array):
    """Elements between two consecutive rows of a 2-D array whose rows are contiguous."""
    sig = types.int64(array)

    def codegen(context, builder, sig, args):
        array_type = sig.args[0]
        view = context.make_array(array_type)(context, builder, args[0])
        bytes_ = builder.extract_value(view.strides, 0)
        size = context.get_abi_sizeof(context.get_value_type(array_type.dtype))
        return builder.sdiv(bytes_, ir.Constant(bytes_.type, size), flags=("exact",))

    return sig, codegen
