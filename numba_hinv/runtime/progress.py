"""Progress bars, for those who ask: tqdm, imported only then.

Every job asks for its bar with its own argument ``progress``: True or False, or None for what `set_progress` has said.
A job that another one starts has no bar of its own unless it is told to: what matters is how far the whole is.
"""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .validation import as_flag

# Seconds before a bar that only the session has asked for is drawn: most jobs are over by then.
_DELAY = 1.0


class Shown(Protocol):
    """What a job tells how far it is."""

    def update(self, amount: int) -> object: ...


class _Silent:
    def update(self, amount: int) -> None:
        pass


class _Session:
    def __init__(self) -> None:
        self.is_on = False
        # Jobs that are at work and have asked for a bar, or for none. Threads have jobs done for the one that waits.
        self.num_open = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def holding(self, shown: AbstractContextManager[Shown]) -> Iterator[Shown]:
        """The context manager, with no bars by the session's setting as long as it is open."""
        with self._lock:
            self.num_open += 1
        try:
            with shown as one:
                yield one
        finally:
            with self._lock:
                self.num_open -= 1


_SILENT = contextlib.nullcontext(_Silent())
_session = _Session()


def is_wanted(progress: bool | None) -> bool:
    """Whether there will be a bar."""
    if progress is None:
        return _session.is_on and not _session.num_open
    return as_flag("progress", progress)


def bar(progress: bool | None, total: int | None, label: str, unit: str) -> AbstractContextManager[Any]:
    """Context manager of a `Shown`: a tqdm bar, or nothing where ``progress`` is False.

    ``total`` is None where nobody knows how much there is to do.

    Raises
    ------
    ImportError
        tqdm is not installed.
    """
    shown: AbstractContextManager[Any] = _SILENT
    if is_wanted(progress):
        options = {"delay": _DELAY} if progress is None else {}
        shown = _tqdm("progress")(total=total, desc=label, unit=unit, **options)
    return _session.holding(shown) if _session.is_on else shown


def set_progress(on: bool) -> None:
    """Choose whether calls show progress bars in this session if they are not given ``progress``.

    By default they do not. A bar appears after a second, so that short jobs show none. A job that is part of another,
    or that is started while another is at work, shows none either. ``progress=True`` and ``progress=False`` in a single
    call override this setting.

    Parameters
    ----------
    on : bool
        Whether to show progress bars.

    Raises
    ------
    TypeError
        ``on`` is not True or False.
    ImportError
        ``on`` is True and tqdm is not installed (extra `progress`).

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.set_progress(False)
    """
    on = as_flag("on", on)
    if on:
        _tqdm("on")
    _session.is_on = on


def _tqdm(name: str) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            f"{name}: expected tqdm to be installed (pip install 'numba_hinv[progress]'), got {name}=True without it"
        ) from None
    return tqdm
