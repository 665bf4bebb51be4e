"""Progress bars, for those who ask: tqdm, imported only then."""

import contextlib

from .validation import as_flag


class _Silent:
    def update(self, amount):
        pass


_SILENT = contextlib.nullcontext(_Silent())


def bar(progress, total, label, unit):
    """Context manager of something with ``update(amount)``: a tqdm bar, or nothing where ``progress`` is False.

    Raises
    ------
    ImportError
        tqdm is not installed.
    """
    if not as_flag("progress", progress):
        return _SILENT
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            "progress: expected tqdm to be installed (pip install 'numba_hinv[progress]'), got progress=True without it"
        ) from None
    return tqdm(total=total, desc=label, unit=unit)
