"""How kernels are compiled: ``kernel`` for those that Python calls, ``inner`` for those that only other kernels call.

Numba adds a wrapper for Python and one for C to everything it compiles; those that nobody calls are left out, since
unpacking tuples of arrays takes longer to compile than many a kernel.
"""

from numba import njit

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}

kernel = njit(**_OPTIONS)
inner = njit(**_OPTIONS, no_cpython_wrapper=True)
