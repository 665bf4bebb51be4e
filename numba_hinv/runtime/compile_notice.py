"""A line on stderr, once per process, where kernels are compiled for longer than a moment.

Not where they come from the cache on disk, and not in processes that another one has started for its work.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from typing import Any

from numba.core import event

from ..kernels.plumbing.disk_cache import root
from .validation import as_flag

# Set to 0, it switches the notice off from the start.
VARIABLE = "NUMBA_HINV_COMPILE_NOTICE"
# Seconds of compiling that need no word.
_PATIENCE = 1.0
_PACKAGE = __name__.partition(".")[0]


class Notice(event.Listener):  # type: ignore[misc]
    """Adds up the time that this package's functions take to compile, those in others counted once."""

    def __init__(self) -> None:
        self.is_on = os.environ.get(VARIABLE, "1").strip().lower() not in ("0", "false", "no", "off")
        self._spent = 0.0
        self._thread = threading.local()

    def on_start(self, happening: Any) -> None:
        depth = getattr(self._thread, "depth", 0)
        if depth == 0:
            if not _is_own(happening):
                return
            self._thread.since = time.perf_counter()
        self._thread.depth = depth + 1
        self._look()

    def on_end(self, happening: Any) -> None:
        depth = getattr(self._thread, "depth", 0)
        if depth == 0:
            return
        self._look()
        self._thread.depth = depth - 1
        if depth == 1:
            self._spent += time.perf_counter() - self._thread.since

    def _look(self) -> None:
        if self.is_on and self._spent + time.perf_counter() - self._thread.since > _PATIENCE:
            self.is_on = False
            self._tell()

    @staticmethod
    def _tell() -> None:
        if multiprocessing.parent_process() is not None or sys.stderr is None:
            return
        # A stream that is closed must not end the call that compiles.
        with contextlib.suppress(OSError, ValueError):
            print(
                f"{_PACKAGE}: compiling kernels for this processor, which takes up to a minute and is done once: they "
                f"are kept in {root()}. Ahead of time: python -m {_PACKAGE} warmup. Without this line: {VARIABLE}=0, "
                f"or {_PACKAGE}.set_compile_notice(False).",
                file=sys.stderr,
                flush=True,
            )


def _is_own(happening: Any) -> bool:
    """Whether it is a function of this package that is compiled, or one that its users have registered with it."""
    function = getattr((happening.data or {}).get("dispatcher"), "py_func", None)
    return (getattr(function, "__module__", None) or "").partition(".")[0] == _PACKAGE


_notice = Notice()


def listen() -> None:
    """Be told by Numba whenever it compiles."""
    event.register("numba:compile", _notice)


def set_compile_notice(on: bool) -> None:
    """Choose whether to be told when kernels are compiled for over a second.

    The notice is written to stderr once in a process, by default; the environment variable
    ``NUMBA_HINV_COMPILE_NOTICE=0`` switches it off as well. There is none for kernels that come from the cache on disk,
    nor in the workers of `multiprocessing`. ``python -m numba_hinv warmup`` compiles everything ahead.

    Parameters
    ----------
    on : bool
        Whether to write the notice.

    Raises
    ------
    TypeError
        ``on`` is not True or False.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.set_compile_notice(False)
    """
    _notice.is_on = as_flag("on", on)
