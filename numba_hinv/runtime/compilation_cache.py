"""Numba's disk cache of this package's compiled code: that there is one, where it lies, and that it is never stale.

Numba checks the file of a cached function, but not the files of the functions that were compiled into it: after an
upgrade it could run an old sweep on new kernels. So a digest of all files with compiled functions is kept beside the
cache, and the cache's indices are dropped where it differs. `prepare` runs before anything is compiled or loaded. Where
the cache lies, `numba_hinv.kernels.plumbing.disk_cache` says.
"""

import hashlib
from pathlib import Path

from ..kernels.plumbing.disk_cache import folder_of

_PACKAGE = Path(__file__).parents[1]
_STAMP = "numba_hinv.sha256"
_COMPILED = ("embedded.py", "layers/*.py", "runtime/columns.py", "kernels/**/*.py")


def prepare() -> None:
    """Drop what other sources have left in the cache."""
    digest = _digest()
    for directory in cache_directories():
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


def cache_directories() -> list[Path]:
    """Directories of the cached code, one for each folder whose functions are compiled and cached."""
    return [folder_of(folder / "__init__.py") for folder in sorted({path.parent for path in sources()})]


def sources() -> list[Path]:
    """The files in which functions are compiled and cached; these use each other's functions, and no others."""
    return sorted({path for pattern in _COMPILED for path in _PACKAGE.glob(pattern)})


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
