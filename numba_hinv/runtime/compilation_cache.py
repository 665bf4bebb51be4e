"""Numba's disk cache of this package's compiled code: that there is one, where it lies, and that it is never stale.

Numba checks the file of a cached function, but not the files of the functions that were compiled into it: after an
upgrade it could run an old sweep on new kernels. So a digest of all source files is kept beside the cache, and the
cache's indices are dropped where it differs. `prepare` runs before anything is compiled or loaded.

Numba also lets errors of the disk end the call that compiles: for this package's functions they become a warning.
"""

import atexit
import contextlib
import hashlib
import pickle
import shutil
import tempfile
import warnings
from pathlib import Path

import numba
from numba.core.caching import Cache

_PACKAGE = Path(__file__).parents[1]
_STAMP = "numba_hinv.sha256"


def prepare():
    """Make sure that compiled code can be cached, and drop what other sources have left in the cache."""
    Cache._guard_against_spurious_io_errors = _tolerate_disk_errors
    try:
        directories = cache_directories()
    except RuntimeError:
        # Numba refuses cached functions where it can write neither beside the source nor to the user's cache.
        numba.config.CACHE_DIR = tempfile.mkdtemp(prefix="numba_hinv_")
        atexit.register(shutil.rmtree, numba.config.CACHE_DIR, ignore_errors=True)
        directories = cache_directories()
    digest = _digest()
    for directory in directories:
        stamp = directory / _STAMP
        try:
            if stamp.is_file() and stamp.read_text() == digest:
                continue
            for index in directory.glob("*.nbi"):
                index.unlink(missing_ok=True)
            stamp.write_text(digest)
        except OSError:
            # A full disk. Without the stamp the indices are dropped next time, too.
            continue


_numbas_guard = Cache._guard_against_spurious_io_errors


@contextlib.contextmanager
def _tolerate_disk_errors(cache):
    """Around Numba's loading and saving: what cannot be loaded is compiled, what cannot be saved is used unsaved."""
    try:
        with _numbas_guard(cache):
            yield
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        if cache._py_func.__module__.partition(".")[0] != _PACKAGE.name:
            raise
        warnings.warn(
            f"numba_hinv compiles anew in every process, since its cache cannot be used: {error}. Make room in "
            f"{cache.cache_path} or empty it, or set NUMBA_CACHE_DIR",
            RuntimeWarning,
            stacklevel=2,
        )


def cache_directories():
    """Directories of the cached code, one for each folder whose functions are compiled and cached."""
    kernels = sorted(path.parent for path in (_PACKAGE / "kernels").glob("*/__init__.py"))
    return [_cache_directory(folder) for folder in (_PACKAGE, _PACKAGE / "layers", _PACKAGE / "runtime", *kernels)]


def _cache_directory(folder):
    # Numba tells where it caches a function once there is one; this one is never compiled.
    namespace = {}
    exec(compile("def probe():\n    pass\n", str(folder / "__init__.py"), "exec"), namespace)
    return Path(numba.njit(cache=True)(namespace["probe"]).stats.cache_path)


def _digest():
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
