"""The axes that a result draws on: those that the caller gives, or those of a new figure."""

from typing import Any


def given_or_new(ax: Any) -> Any:
    """``ax``, or the axes of a new figure for None, for which matplotlib must be installed."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            "ax: expected matplotlib to be installed (pip install 'numba_hinv[examples]'), or axes to draw on"
        ) from None
    return plt.subplots()[1]
