"""Launching kernels, on a GPU and in Numba's simulator."""

import numba.cuda
import numpy as np

from .target import BLOCK, PLAIN_SHARED, RESERVED_SHARED, SIMULATED

if SIMULATED:
    from . import simulator


# Blocks of a grid along y and along z, at most (CUDA C programming guide, "Technical specifications").
MOST_BLOCKS = 2**16 - 1


def launch(kernel, grid, stream, *arguments, shared=0):
    """``kernel[grid, BLOCK, stream, shared](*arguments)``; an empty grid is nothing to do.

    ``ValueError`` where there are more vectors than a grid takes: their number is that of blocks along y.
    """
    sizes = np.atleast_1d(grid).tolist()
    if 0 in sizes:
        return
    if max(sizes[1:], default=0) > MOST_BLOCKS:
        raise ValueError(
            f"device: expected at most {MOST_BLOCKS:,} columns at a time on a GPU, got {max(sizes[1:]):,}; "
            "give them in parts, or factorize without checkpoint=True, which does so by itself"
        )
    if SIMULATED:
        simulator.run(kernel, grid, BLOCK, shared, arguments)
        return
    arguments = [getattr(argument, "data_on_device", argument) for argument in arguments]
    if shared > PLAIN_SHARED - RESERVED_SHARED:
        _allow(kernel, arguments, shared)
    kernel[grid, BLOCK, stream, shared](*arguments)


def current_gpu():
    """Number of the GPU that is current in this thread."""
    return 0 if SIMULATED else numba.cuda.get_current_device().id


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


# Bytes by kernel, types of its arguments, and GPU: another of any is another function to the driver.
_allowed = {}


def _allow(kernel, arguments, shared):
    """Opt in to more shared memory than a kernel has without asking (CUDA C programming guide, "Shared memory")."""
    from cuda.bindings import driver

    types, gpu = tuple(map(kernel.typeof_pyval, arguments)), current_gpu()
    if _allowed.get((kernel, types, gpu), 0) >= shared:
        return
    compiled = kernel.compile(types)._codelibrary.get_cufunc()
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, shared, compiled.handle, gpu)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise MemoryError(f"device: the GPU refuses a kernel {shared:,} bytes of shared memory: {status.name}")
    _allowed[kernel, types, gpu] = shared
