"""How kernels are compiled: ``kernel`` for those that Python calls, ``inner`` for those that only other kernels call.

``shared`` marks plain functions of scalars that kernels for other devices compile as well: each target compiles them
into its callers, and Python may call them as they are.

Numba adds a wrapper for Python and one for C to everything it compiles; those that nobody calls are left out, since
unpacking tuples of arrays takes longer to compile than many a kernel. Nor do they count references to arrays, which
took up to half of the time of sweeps over small layers: the caller holds them all. So no kernel can allocate an array.
"""

from numba import njit
from numba.extending import register_jitable

OPTIONS = {"cache": True, "_nrt": False, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}

kernel = njit(**OPTIONS)
inner = njit(**OPTIONS, no_cpython_wrapper=True)
shared = register_jitable(_nrt=False, error_model="numpy")
