"""Scratch memory from the heap for nopython code, where it is too much for the stack of a thread.

``allocate(pointer, count)``: so many elements of the pointer's type, or a null pointer where there is no memory, which
``is_null`` tells; ``release(pointer)`` gives them back. By Python's allocator that needs no GIL, by symbol, so that
compiled code which refers to it can be cached on disk.
"""

import ctypes

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64, _BYTES = ir.IntType(64), ir.IntType(8).as_pointer()

for _name, _function in (("allocate", "PyMem_RawMalloc"), ("release", "PyMem_RawFree")):
    llvmlite.binding.add_symbol(
        f"numba_hinv_{_name}", ctypes.cast(getattr(ctypes.pythonapi, _function), ctypes.c_void_p).value
    )


@intrinsic
def allocate(typingctx, pointer, count):
    """Uninitialised memory for ``count`` elements of the type that ``pointer`` points to."""

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(pointer.dtype)
        num_bytes = builder.mul(args[1], ir.Constant(_I64, context.get_abi_sizeof(kind)))
        function_type = ir.FunctionType(_BYTES, [_I64])
        function = cgutils.get_or_insert_function(builder.module, function_type, "numba_hinv_allocate")
        return builder.bitcast(builder.call(function, [num_bytes]), kind.as_pointer())

    return pointer(pointer, types.int64), codegen


@intrinsic
def release(typingctx, pointer):
    """Give back what `allocate` has given; a null pointer is none."""

    def codegen(context, builder, sig, args):
        function_type = ir.FunctionType(ir.VoidType(), [_BYTES])
        function = cgutils.get_or_insert_function(builder.module, function_type, "numba_hinv_release")
        builder.call(function, [builder.bitcast(args[0], _BYTES)])
        return context.get_dummy_value()

    return types.void(pointer), codegen


@intrinsic
def is_null(typingctx, pointer):
    """Whether there was no memory."""

    def codegen(context, builder, sig, args):
        return cgutils.is_null(builder, args[0])

    return types.boolean(pointer), codegen
