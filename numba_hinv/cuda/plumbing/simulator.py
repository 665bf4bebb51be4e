"""Numba's simulator of a GPU (``NUMBA_ENABLE_CUDASIM=1``): `cuda` as kernels see it there, and how they are run.

`run` may be exchanged for another way to run kernels on the same arguments, and names set in `cuda` take the place of
the simulator's: the tests' race checker does so.
"""

import contextlib
import sys
import threading
from types import SimpleNamespace

import numpy as np
from numba.cuda.simulator.kernel import _get_kernel_context
from numba.np.numpy_support import as_dtype


class _Shared:
    """Arrays of shared memory, one a line that asks for one: the simulator may give two threads different ones."""

    _lock = threading.Lock()

    def array(self, shape, dtype):
        launched, frame = _get_kernel_context().shared, sys._getframe(1)
        if shape == 0:
            return launched.array(shape, dtype)
        line = frame.f_code.co_filename, frame.f_lineno
        with self._lock:
            if line not in launched._allocations:
                launched._allocations[line] = np.empty(shape, as_dtype(dtype))
            return launched._allocations[line]


class _Launched:
    """`numba.cuda` as the kernel that runs sees it, without exchanging the globals of every function it calls."""

    shared = _Shared()

    def __getattr__(self, name):
        return getattr(_get_kernel_context(), name)


cuda = _Launched()

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


def run(kernel, grid, block, shared, arguments):
    """``kernel[grid, block, 0, shared](*arguments)``."""
    with _simulation():
        kernel[grid, block, 0, shared](*[bare(argument) for argument in arguments])


class _Table(list):
    """A layer table whose records are plain objects."""

    @property
    def size(self):
        return len(self)


class _Array:
    """An array that the simulator leaves alone: the ones that it makes of arrays are slower by far."""

    def __init__(self, array):
        self._array = array
        self.shape, self.size, self.dtype = array.shape, array.size, array.dtype

    def __getitem__(self, index):
        return self._array[index]

    def __setitem__(self, index, value):
        self._array[index] = value


def _as_it_is(array):
    return array


def bare(argument, wrap=_Array, wrap_part=_as_it_is):
    """An argument of `launch` as a kernel gets it: ``wrap`` of the array in it, ``wrap_part`` of those in a tuple."""
    argument = getattr(argument, "data_on_device", argument)
    if isinstance(argument, tuple):
        parts = [getattr(part, "_ary", part) for part in argument]
        return type(argument)(*[wrap_part(part) if isinstance(part, np.ndarray) else part for part in parts])
    array = getattr(argument, "_ary", argument)
    if not isinstance(array, np.ndarray):
        return argument
    if array.dtype.names:
        return _Table(SimpleNamespace(**dict(zip(array.dtype.names, record))) for record in array.tolist())
    return wrap(array)
