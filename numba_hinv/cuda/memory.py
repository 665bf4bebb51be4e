"""Arrays on a GPU: twin of `system.cpu.CpuMemory` for device arrays.

Arrays have the offsets and layouts of the CPU's, vectors are `Vectors`. All work goes to one stream, in order.
"""

import numba.cuda
import numpy as np

from ..runtime.memory_budget import FEWER
from ..system.processor import is_on_device
from .plumbing.launch import current_gpu
from .plumbing.vectors import Vectors, to_host


class DeviceMemory:
    """Arrays and vectors on the device of a stream.

    Parameters
    ----------
    stream : numba.cuda stream, or 0
    """

    def __init__(self, stream):
        self.stream = stream
        self._gpu = current_gpu()
        self._tables = []

    def _check_gpu(self):
        current = current_gpu()
        if current != self._gpu:
            raise ValueError(
                f"device: expected GPU {self._gpu} to be the current one, on which this Hessian is, got GPU {current}; "
                f"make that current: with numba.cuda.gpus[{self._gpu}]"
            )

    def require(self, num_bytes, purpose, way_out=FEWER):
        """``MemoryError`` if ``num_bytes`` for ``purpose`` are not free on the device."""
        self._check_gpu()
        free = numba.cuda.current_context().get_memory_info().free
        if num_bytes > free:
            raise MemoryError(
                f"{purpose} would need {num_bytes:,} bytes ({num_bytes / 2**30:.2f} GiB) on the GPU, {free:,} are "
                f"free; "
                f"{way_out}"
            )

    def put(self, array):
        """A device array with the numbers of a NumPy array; one that is on the device as it is."""
        if is_on_device(array):
            return array
        self._check_gpu()
        return numba.cuda.to_device(np.ascontiguousarray(array), stream=self.stream)

    def take(self, array):
        """A NumPy array with the numbers of a device array."""
        return to_host(array, self.stream)

    def vectors(self, array):
        return Vectors.of(array, self.stream)

    def empty_vectors(self, shape, dtype):
        return Vectors.empty(shape, dtype, self.stream)

    def empty(self, shape, dtype):
        """An uninitialised array on the device."""
        self._check_gpu()
        return numba.cuda.device_array(shape, dtype, stream=self.stream)

    def row(self, array, t):
        """Row t of a matrix on the device, in its memory."""
        return self.part(array.reshape(array.size), slice(t * array.shape[1], (t + 1) * array.shape[1]))

    def part(self, array, where):
        """A slice of an array on the device, in its memory."""
        return array[where] if where.start < where.stop else self.empty(0, array.dtype)

    def as_vectors(self, array):
        """Vectors for the sweeps in the memory of a (k, P) array on the device."""
        return Vectors(array, self.stream)

    def zero(self, array):
        """Fill an array with zeros."""
        if array.size:
            Vectors(array.reshape(1, array.size), self.stream)[0] = 0.0

    def astype(self, array, dtype):
        """A copy of an array in another dtype."""
        if not array.size:
            return self.empty(array.shape, dtype)
        flat = Vectors(array.reshape(1, array.size), self.stream).astype(dtype)
        return flat.data_on_device.reshape(array.shape)

    def ldexp(self, array, exponents):
        """A copy of an array times powers of two; exponents, an int or a NumPy array, are those of its entries."""
        # Made on the host, once for a factorization of a net whose states are scaled.
        return self.put(np.ldexp(self.take(array), exponents))

    def table(self, table):
        """A layer table on the device; the last few are kept."""
        self._check_gpu()
        for host, found in self._tables:
            if host is table:
                return found
        found = self.put(table)
        self._tables = [*self._tables[-3:], (table, found)]
        return found
