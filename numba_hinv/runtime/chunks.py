"""Runs of layers that are short enough for one compiled call: Ctrl-C is heard, and progress shown, between two."""

from typing import Any

import numpy as np

from .annotations import Array

# Flops per call: a tenth of a second or two, where products are so small that they run at 1 or 2 GF/s. A number that is
# read from memory and one that is written count as 16 flops together.
_CALL = 2e8
# A layer costs at least this: fixed costs of its small products.
_LAYER = 2e4


def chunks(costs: Array, starts: Any = ()) -> list[tuple[int, int]]:
    """Ends ``(start, stop)`` of runs of layers, from the first on.

    Parameters
    ----------
    costs : (L,) array
        Flops of each layer.
    starts : sequence of int
        Where a new run must start in any case.
    """
    num_layers = len(costs)
    if not len(starts) and np.sum(costs) + num_layers * _LAYER <= _CALL:
        return [(0, num_layers)]
    done = np.cumsum(np.asarray(costs, float) + _LAYER)
    firsts: Any = np.searchsorted(done, np.arange(_CALL, done[-1], _CALL)) + 1 if done[-1] > _CALL else []
    bounds = sorted({0, num_layers, *(int(s) for s in firsts if s < num_layers), *starts})
    return list(zip(bounds[:-1], bounds[1:]))
