"""Right-hand sides and vectors of callers, in NumPy arrays or on a GPU: twin of `system.cpu.CpuColumns`."""

import numba.cuda
import numpy as np

from ..runtime.validation import as_columns
from ..system.processor import is_on_device
from .plumbing import arrays


class DeviceColumns:
    """Columns on either side, read and written through a stream."""

    # Right-hand sides that are solved at the same time, a block each.
    block = 64

    def __init__(self, stream):
        self.stream = stream

    def as_columns(self, name, value, num_rows, default_dtype):
        """`validation.as_columns`, and the same of arrays on the device."""
        if not is_on_device(value):
            return as_columns(name, value, num_rows, default_dtype)
        if len(value.shape) not in (1, 2) or value.shape[0] != num_rows:
            raise ValueError(f"{name}: expected shape ({num_rows},) or ({num_rows}, k), got {tuple(value.shape)}")
        array = arrays.as_array(name, value, value.shape, None, self.stream)
        dtype = np.result_type(array.dtype, default_dtype)
        width = array.size // num_rows if array.size else value.shape[-1]
        return arrays.Columns(array.reshape(num_rows, width), self.stream), dtype

    def empty(self, like, shape, dtype):
        """An uninitialised (P, k) array on the side of the given one."""
        if isinstance(like, arrays.Columns):
            return arrays.Columns.empty(shape, dtype, self.stream)
        return np.empty(shape, dtype)

    def place(self, array, start, stop):
        """None: rows are `Vectors`, never a part of an array of columns."""

    def result(self, found, shape):
        """A (P, k) array as the caller gets it; what fills it is done, so that it may be read on any stream."""
        if isinstance(found, arrays.Columns):
            (self.stream or numba.cuda.default_stream()).synchronize()
        return (found.array if isinstance(found, arrays.Columns) else found).reshape(shape)
