"""Views into packed buffers, and the few loops over whole blocks that the sweeps share.

The sweeps keep the blocks of all layers in a few long one-dimensional arrays. The views give a block its shape: no
copy, no reference count, no bounds check, so the offsets of the layer table must be right. They and
the loops are spelt out because NumPy's slices and whole-array assignments compile to far more code.
"""

import functools
import itertools

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .compiled import inner

# Numbers of a vector's slice that three arrays of its kind can keep in a first-level cache, for one sample. The more
# samples, the more a step does with each number and the larger the products that it wants.
IN_CACHE = 2048


def _view(context, builder, view_type, buffer_type, buffer, offset, shape):
    """An array of ``shape`` that starts ``offset`` elements after the start of another, and borrows its memory."""
    start = context.make_array(buffer_type)(context, builder, buffer).data
    view = context.make_array(view_type)(context, builder)
    itemsize = context.get_constant(types.intp, buffer_type.dtype.bitwidth // 8)
    strides = [itemsize]
    for extent in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], extent))
    populate_array(view, builder.gep(start, [offset]), shape, strides, itemsize, None)
    return view._getvalue()


def _array_type(buffer, ndim):
    return types.Array(buffer.dtype, ndim, "C", readonly=not buffer.mutable, aligned=buffer.aligned)


@intrinsic
def vector(typingctx, buffer, offset, size):
    """``buffer[offset : offset + size]``."""
    view_type = _array_type(buffer, 1)

    def codegen(context, builder, signature, arguments):
        buffer_value, offset_value, size_value = arguments
        return _view(context, builder, view_type, buffer, buffer_value, offset_value, [size_value])

    return view_type(buffer, types.intp, types.intp), codegen


@intrinsic
def matrix(typingctx, buffer, offset, rows, columns):
    """The row-major ``rows x columns`` block that starts ``offset`` elements after the start of a contiguous array."""
    view_type = _array_type(buffer, 2)

    def codegen(context, builder, signature, arguments):
        buffer_value, offset_value, rows_value, columns_value = arguments
        return _view(context, builder, view_type, buffer, buffer_value, offset_value, [rows_value, columns_value])

    return view_type(buffer, types.intp, types.intp, types.intp), codegen


@njit(inline="always")
def units_at_once(n, fan_in, num_rows):
    """How many of the n rows of a weight matrix to take through all steps of a layer before the next ones."""
    return max(1, min(n, IN_CACHE * num_rows // max(fan_in, 1)))


@njit(inline="always")
def reshape(block, rows, columns):
    """A contiguous block seen as ``rows x columns``."""
    return matrix(block, 0, rows, columns)


@njit(inline="always")
def rows(block, start, count):
    """``block[start : start + count]`` of a contiguous matrix."""
    return matrix(block, start * block.shape[1], count, block.shape[1])


@inner
def fill(size, value, to, at):
    """``to[at : at + size] = value``, in elements of a contiguous array."""
    out = vector(to, at, size)
    for i in range(size):
        out[i] = value


@inner
def copy(size, source, at, to, to_at):
    """``to[to_at : to_at + size] = source[at : at + size]``, in elements of contiguous arrays."""
    out, given = vector(to, to_at, size), vector(source, at, size)
    for i in range(size):
        out[i] = given[i]


@inner
def add(size, source, at, to, to_at):
    """``to[to_at : to_at + size] += source[at : at + size]``, in elements of contiguous arrays."""
    out, given = vector(to, to_at, size), vector(source, at, size)
    for i in range(size):
        out[i] += given[i]


@inner
def move(count, source, to):
    """``to[:count] = source[:count]``, both pointers."""
    for i in range(count):
        to[i] = source[i]


def aligned(size, dtype):
    """An uninitialised array that starts on a cache line."""
    dtype = np.dtype(dtype)
    room = np.empty(size + 64 // dtype.itemsize, dtype)
    start = -room.ctypes.data % 64 // dtype.itemsize
    return room[start : start + size]


def together(sizes, dtype):
    """Uninitialised arrays of these sizes, each on a cache line of its own, in one piece of memory.

    The allocator of C gives large pieces back to the system, and takes them again page by page, but keeps one that is
    as large as those it has seen.
    """
    bounds, length = _bounds(tuple(sizes), 64 // np.dtype(dtype).itemsize)
    room = np.empty(length, dtype)
    return [room[start:stop] for start, stop in bounds]


@functools.lru_cache(maxsize=64)
def _bounds(sizes, line):
    """((first, last) of each array, numbers of all) where each starts at a multiple of ``line``."""
    starts = [0, *itertools.accumulate(-(-size // line) * line for size in sizes)]
    return [(start, start + size) for start, size in zip(starts, sizes)], starts[-1]
