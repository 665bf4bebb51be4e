"""Views into packed buffers.

The sweeps keep the blocks of all layers in a few long one-dimensional arrays. These helpers give a block its shape:
no copy, no reference count, no bounds check, so the offsets of :mod:`numba_hinv.kernels.layers` must be right.
A CUDA twin of this file would offer the same names.
"""

from numba import carray, njit

from .microkernel import pointer


@njit(inline="always")
def vector(buffer, offset, size):
    """``buffer[offset : offset + size]``."""
    return carray(pointer(buffer, offset), (size,))


@njit(inline="always")
def matrix(buffer, offset, rows, columns):
    """The row-major ``rows x columns`` block that starts at ``buffer[offset]``."""
    return carray(pointer(buffer, offset), (rows, columns))


@njit(inline="always")
def reshape(block, rows, columns):
    """A contiguous block seen as ``rows x columns``."""
    return carray(pointer(block, 0), (rows, columns))
