"""The sweeps on a GPU: `numba.cuda` twins of :mod:`numba_hinv.kernels`, in folders and files of the same names.

Importing this package makes ``device="cuda"`` known and nothing else: what needs numba-cuda is imported when a GPU is
first asked for. `device` is what a `System` holds and calls, `plumbing.target` says what kernels are compiled for. What
the CPU does one after the other, dampings and segments of a chain, is one launch here (`sweeps.segments`).
"""

from ..system import processor


def _open(like):
    from .device import Device

    return Device.for_array(like)


processor.register("cuda", _open)
