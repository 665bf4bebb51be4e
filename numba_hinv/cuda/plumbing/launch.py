"""Launching kernels: on a GPU, and in Numba's simulator, to which arrays are handed as what they are."""

import contextlib
import sys
import threading
from types import SimpleNamespace

import numba.cuda
import numpy as np

from .target import BLOCK, PLAIN_SHARED, SIMULATED


def launch(kernel, grid, stream, *arguments, shared=0):
    """``kernel[grid, BLOCK, stream, shared](*arguments)``; an empty grid is nothing to do."""
    if 0 in np.atleast_1d(grid):
        return
    if SIMULATED:
        with _simulation():
            kernel[grid, BLOCK, stream, shared](*[_bare(argument) for argument in arguments])
        return
    if shared > PLAIN_SHARED:
        _allow(kernel, arguments, shared)
    kernel[grid, BLOCK, stream, shared](*[getattr(argument, "data_on_device", argument) for argument in arguments])


class Launcher:
    """`launch` on one stream.

    Parameters
    ----------
    stream : numba.cuda stream, or 0
    """

    def __init__(self, stream):
        self.stream = stream

    def __call__(self, kernel, grid, *arguments, shared=0):
        launch(kernel, grid, self.stream, *arguments, shared=shared)


def spread(size):
    """Blocks of a grid over so many numbers: more of them than run at a time gain nothing."""
    return min(-(-size // BLOCK), 2 if SIMULATED else 1024)


_allowed = {}


def _allow(kernel, arguments, shared):
    """Opt in to more shared memory than a kernel has without asking (CUDA C programming guide, "Shared memory")."""
    if _allowed.get(kernel, 0) >= shared:
        return
    from cuda.bindings import driver

    types = tuple(kernel.typeof_pyval(getattr(a, "data_on_device", a)) for a in arguments)
    compiled = kernel.compile(types)._codelibrary.get_cufunc()
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    device = numba.cuda.get_current_device().id
    (status,) = driver.cuKernelSetAttribute(attribute, shared, compiled.kernel.handle, device)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise MemoryError(f"device: the GPU refuses a kernel {shared:,} bytes of shared memory: {status.name}")
    _allowed[kernel] = shared


# The simulator runs one kernel at a time, and hands the turn to another thread of a block only when Python does.
_simulator, _SWITCH = threading.Lock(), 1e-5


@contextlib.contextmanager
def _simulation():
    with _simulator:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        try:
            yield
        finally:
            sys.setswitchinterval(interval)


class _Table(list):
    """A layer table whose records are plain objects."""

    @property
    def size(self):
        return len(self)


class _Array:
    """An array that the simulator leaves alone: the ones that it makes of arrays are slower by far."""

    def __init__(self, array):
        self._array = array
        self.shape, self.size = array.shape, array.size

    def __getitem__(self, index):
        return self._array[index]

    def __setitem__(self, index, value):
        self._array[index] = value


def _bare(argument):
    argument = getattr(argument, "data_on_device", argument)
    if isinstance(argument, tuple):
        return type(argument)(*[getattr(part, "_ary", part) for part in argument])
    array = getattr(argument, "_ary", argument)
    if not isinstance(array, np.ndarray):
        return argument
    if array.dtype.names:
        return _Table(SimpleNamespace(**dict(zip(array.dtype.names, record))) for record in array.tolist())
    return _Array(array)
