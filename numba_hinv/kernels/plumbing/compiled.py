"""How kernels are compiled: ``kernel`` for those that Python calls, ``inner`` for those that only other kernels call.

``reassociated`` is ``kernel`` for sums in any order. ``shared`` marks plain functions of scalars that kernels for other
devices compile as well: each target compiles them into its callers, and Python may call them as they are.

Numba adds a wrapper for Python and one for C to everything it compiles; those that nobody calls are left out, since
unpacking tuples of arrays takes longer to compile than many a kernel. Nor do they count references to arrays, which
took up to half of the time of sweeps over small layers: the caller holds them all. So no kernel can allocate an array.
"""

from numba import njit
from numba.core.types import unliteral
from numba.extending import register_jitable

from .disk_cache import cached

_OPTIONS = {"nogil": True, "error_model": "numpy"}
_BARE = {**_OPTIONS, "_nrt": False, "no_cfunc_wrapper": True}


def compiled(**options):
    """Decorator: ``numba.njit`` with these options beside those of all functions here, and this package's disk
    cache.
    """

    def decorate(function):
        return cached(_once_for_constants(njit(**{**_OPTIONS, **options})(function)))

    return decorate


def _once_for_constants(dispatcher):
    """The same function; callers that write constants do not have it compiled again for each, as Numba would."""
    resolve = dispatcher.get_call_template

    def get_call_template(args, kws):
        return resolve([unliteral(kind) for kind in args], {name: unliteral(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


kernel = compiled(**_BARE)
inner = compiled(**_BARE, no_cpython_wrapper=True)
reassociated = compiled(**_BARE, fastmath={"reassoc", "contract", "nsz"})
shared = register_jitable(_nrt=False, error_model="numpy")
