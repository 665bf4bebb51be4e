"""How the slopes of a loss in the outputs move with its targets: mixed second derivatives, by hyper-dual numbers.

A registered loss has derivatives in the outputs alone. Those of its gradient in the targets follow from an evaluation
with numbers for targets, as those of custom layers do (`autodiff`); they are exact to rounding.
"""

import functools

import numba
import numpy as np

from . import elementary  # noqa: F401 - lets functions of math and NumPy take numbers
from .hyperdual import LANES, STRIDE, numbers
from .losses import get_loss
from .trial import gist


def pulled(loss, packed, outputs, targets, tangents):
    """``sum_a tangents[i, a] d^2 loss_i / d outputs[i, a] d y[i, j]`` of each sample's own loss, (B, t).

    Parameters
    ----------
    loss : Loss
        Of targets that are numbers.
    packed : (number of parameters, n) array
        As `Loss.packed` gives them.
    outputs, tangents : (B, n) arrays of float64
    targets : Targets
        Samples with a weight of 0 have no part: their rows are 0.

    Raises
    ------
    TypeError
        The loss does something with its targets that numbers cannot take.
    """
    entry, values, n = get_loss(loss.name), targets.values, outputs.shape[1]
    fill = _compiled(entry["function"], bool(entry["parameters"]))
    found, rows = np.zeros(values.shape), np.zeros((values.shape[1] + n + n * n, STRIDE))
    some = np.flatnonzero(targets.weights)
    try:
        fill(outputs, values, tangents, packed, some, rows, found)
    except numba.core.errors.NumbaError as error:
        raise TypeError(
            f"loss: expected one whose derivatives in y follow from its code, got {loss.name!r}, of which Numba says: "
            f"{gist(error)}. Write it with arithmetic on single numbers and functions of math"
        ) from error
    return found


@functools.cache
def _compiled(function, has_parameters):
    if has_parameters:

        @numba.njit(error_model="numpy")
        def call(z, y, gradient, curvature, parameters):
            function(z, y, gradient, curvature, parameters)

    else:

        @numba.njit(error_model="numpy")
        def call(z, y, gradient, curvature, parameters):
            function(z, y, gradient, curvature)

    @numba.njit(error_model="numpy")
    def fill(outputs, values, tangents, parameters, some, rows, found):
        n, t = outputs.shape[1], values.shape[1]
        taken = numbers(rows)
        y, gradient, curvature = taken[:t], taken[t : t + n], taken[t + n :].reshape((n, n))
        for i in some:
            for start in range(0, t, LANES):
                stop = min(start + LANES, t)
                rows[:] = 0.0
                for j in range(t):
                    rows[j, 0] = values[i, j]
                for j in range(start, stop):
                    rows[j, 2 + j - start] = 1.0
                call(outputs[i], y, gradient, curvature, parameters)
                for j in range(start, stop):
                    for a in range(n):
                        found[i, j] += tangents[i, a] * rows[t + a, 2 + j - start]

    return fill
