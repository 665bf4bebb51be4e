"""The caller's arrays on the device: anything with ``__cuda_array_interface__``, read where it lies."""

import sys

import numba.cuda
import numpy as np

from ...runtime import tensors
from ...system.processor import is_on_device
from .launch import current_gpu, launch
from .target import BLOCK, SIMULATED, cuda, kernel
from .vectors import Vectors, to_host

_BLOCKS = 2 if SIMULATED else 256


@kernel
def _copy(x, out):
    """out <- x, in another dtype or of other strides"""
    for i in range(cuda.grid(1), x.shape[0], cuda.gridsize(1)):
        out[i] = x[i]


@kernel
def _copy_matrix(x, first, transposed, out):
    """out <- x from column ``first`` on, or its transpose"""
    rows, columns = out.shape
    for at in range(cuda.grid(1), rows * columns, cuda.gridsize(1)):
        i, j = at // columns, at % columns
        out[i, j] = x[j, first + i] if transposed else x[i, first + j]


@kernel
def _write_columns(rows, first, out):
    """Columns of out, from ``first`` on, <- rows"""
    count, size = rows.shape
    for at in range(cuda.grid(1), count * size, cuda.gridsize(1)):
        out[at // count, first + at % count] = rows[at % count, at // count]


def _launch(kernel, size, stream, *arguments):
    launch(kernel, max(1, min(_BLOCKS, -(-size // BLOCK))), stream, *arguments)


def in_place(name, value):
    """A device array in the memory of the caller's, once the work of the caller's stream that fills it is done.

    ``ValueError`` where that memory is on another GPU than the current one.
    """
    found, current = _gpu_of(value), current_gpu()
    if found not in (None, current):
        raise ValueError(
            f"{name}: expected an array on GPU {current}, the current one, got one on GPU {found}; "
            f"make that current: with numba.cuda.gpus[{found}]"
        )
    if tensors.is_tensor(value):
        # What PyTorch says of a tensor names no stream.
        sys.modules["torch"].cuda.current_stream(value.device).synchronize()
    if not getattr(value, "__cuda_ndarray__", False):
        return numba.cuda.as_cuda_array(value)
    if value.stream:
        value.stream.synchronize()
    return value


def _gpu_of(value):
    """Number of the GPU that an array of Numba, CuPy or PyTorch lies on, or None where it does not say."""
    data = getattr(value, "gpu_data", None)
    device = getattr(value, "device", None) if data is None else data.context.device
    number = getattr(device, "id", getattr(device, "index", None))
    return number if isinstance(number, int) else None


def as_array(name, value, shape, dtype, stream, meaning=""):
    """A device array of this shape, finite and contiguous, in ``dtype`` (None: float32 stays, all else is float64).

    None in ``shape`` is any length. What is so already is not copied.
    """
    if not is_on_device(value):
        raise TypeError(f"{name}: expected an array on the device, got {type(value).__name__}")
    array = in_place(name, value)
    given = np.dtype(array.dtype)
    if given.kind not in "fiu" or given.itemsize > 8:
        raise TypeError(f"{name}: expected an array of real numbers (float64 or float32), got dtype {given}")
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape ({wanted}){meaning}, got {tuple(array.shape)}")
    if dtype is None:
        dtype = np.dtype(np.float32) if given == np.float32 else np.dtype(np.float64)
    if given != dtype or not array.is_c_contiguous():
        found = numba.cuda.device_array(tuple(array.shape), dtype, stream=stream)
        if array.ndim == 1:
            _launch(_copy, array.size, stream, array, found)
        else:
            _launch(_copy_matrix, array.size, stream, array, 0, False, found)
        array = found
    check_finite(name, array, stream)
    return array


def check_finite(name, array, stream):
    """``ValueError`` where an entry of a device array is NaN or infinite."""
    if array.size:
        rows = Vectors(array.reshape(1, array.size), stream)
        for entry in (rows.max(), rows.min()):
            if not np.isfinite(entry):
                raise ValueError(f"{name}: expected finite numbers, got {entry}")


class Columns:
    """A (P, k) array of columns on the device, that `columns.gather` and `columns.scatter` take rows from and to."""

    def __init__(self, array, stream):
        self.array, self.stream, self.shape, self.dtype = array, stream, tuple(array.shape), np.dtype(array.dtype)

    @classmethod
    def empty(cls, shape, dtype, stream):
        return cls(numba.cuda.device_array(shape, dtype, stream=stream), stream)

    def gather(self, start, stop):
        """`Vectors` in float64."""
        if self.shape[1] == 1 and self.dtype == np.float64:
            return Vectors(self.array.reshape(1, self.shape[0]), self.stream)
        rows = Vectors.empty((stop - start, self.shape[0]), np.float64, self.stream)
        _launch(_copy_matrix, rows.size, self.stream, self.array, start, True, rows)
        return rows

    def scatter(self, rows, start):
        _launch(_write_columns, rows.size, self.stream, rows, start, self.array)


def take_row(name, value, stream):
    """One number a sample, a label or a weight, as a NumPy array."""
    return to_host(in_place(name, value), stream)
