"""Where compiled code is kept on disk: in the user's cache folder, or that of NUMBA_CACHE_DIR; never beside the source.

What is beside the source stays there when the package is uninstalled, and an empty package then can be imported.
``cached`` gives one compiled function such a cache, ``callback`` compiles one that C code can call: other packages'
functions are cached as they have been. Errors of the disk do not end the call that compiles, but become a warning. If
Numba's classes have changed, so that these cannot be made of them, Numba's own cache takes over.
"""

import atexit
import contextlib
import functools
import os
import pickle
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numba
from numba import cfunc

try:
    from numba.core import sigutils
    from numba.core.caching import CacheImpl, FunctionCache, UserProvidedCacheLocator
    from numba.core.ccallback import CFunc
except ImportError:
    FunctionCache = None


def user_folder():
    """Where programs of this system keep what they can make again; as the package platformdirs has it."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "numba_hinv" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "numba_hinv"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "numba_hinv"


@functools.cache
def root():
    """The first of the folders that can be written to; at worst one that goes when the process ends."""
    given = numba.config.CACHE_DIR
    for folder in ((lambda: Path(given)) if given else None, user_folder):
        with contextlib.suppress(OSError, RuntimeError):
            if folder is not None:
                found = folder()
                found.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=found):
                    return found
    found = tempfile.mkdtemp(prefix="numba_hinv_")
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return Path(found)


if FunctionCache is not None:

    class _Locator(UserProvidedCacheLocator):
        """Says where the functions of a file are cached, and when they are stale: when the file has changed."""

        def __init__(self, py_func, py_file):
            super().__init__(py_func, py_file)
            self._cache_path = str(root() / self.get_suitable_cache_subpath(py_file))

        @classmethod
        def from_function(cls, py_func, py_file):
            if not os.path.exists(py_file):
                return None
            locator = cls(py_func, py_file)
            with contextlib.suppress(OSError):
                locator.ensure_cache_path()
            return locator

    class _Files(FunctionCache._impl_class):
        _locator_classes = [_Locator, *(kind for kind in CacheImpl._locator_classes if "InTree" not in kind.__name__)]

    class _Cache(FunctionCache):
        _impl_class = _Files

        @contextlib.contextmanager
        def _guard_against_spurious_io_errors(self):
            """Around loading and saving: what cannot be loaded is compiled, what cannot be saved is used unsaved."""
            try:
                with super()._guard_against_spurious_io_errors():
                    yield
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                warnings.warn(
                    f"numba_hinv compiles anew in every process, since its cache cannot be used: {error}. Make room in "
                    f"{self.cache_path} or empty it, or set NUMBA_CACHE_DIR",
                    RuntimeWarning,
                    stacklevel=2,
                )


def cached(dispatcher):
    """The same function that ``numba.njit`` has made, with a cache on disk."""
    if FunctionCache is None or not hasattr(dispatcher, "_cache"):
        dispatcher.enable_caching()
    else:
        dispatcher._cache = _Cache(dispatcher.py_func)
    return dispatcher


def callback(signature, cache):
    """Decorator: ``numba.cfunc`` of this signature, with NumPy's division; ``cache`` says whether it has a cache."""

    def compiled(function):
        if not cache or FunctionCache is None:
            return cfunc(signature, cache=cache, error_model="numpy")(function)
        made = CFunc(function, sigutils.normalize_signature(signature), {}, {"error_model": "numpy"})
        made._cache = _Cache(function)
        made.compile()
        return made

    return compiled


def folder_of(file):
    """The folder in which the functions of a Python file are cached."""
    # The locator tells once there is a function; this one is never compiled.
    namespace = {}
    exec(compile("def probe():\n    pass\n", str(file), "exec"), namespace)
    return Path(cached(numba.njit(namespace["probe"])).stats.cache_path)
