"""Geodesic acceleration of Gauss-Newton steps: how the outputs bend along a step, as a gradient.

M. Transtrum and J. Sethna, "Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares
minimization", arXiv:1201.5885, 2012.
"""

import numpy as np

from ..layers.samples import Samples
from ..system.batches import batch_size_for

# Length of the two steps of the difference, in steps of training. Of smooth layers the error is the square of this,
# relatively, and rounding divided by it.
_SHARE = 1e-2


def bending(net, params, step, X, y=None, sample_weight=None, total_weight=None):
    """``J^T S a``, (P,): J is the outputs' Jacobian, S the loss's curvature in them, ``a`` their second derivative.

    That is along ``step``, by one central difference of the outputs: two forward passes, beside a gradient. The
    derivative blocks have no such product: they hold the second derivatives summed over the outputs.

    Parameters
    ----------
    net : Network
    params, step : (P,) arrays of float64
    X, y, sample_weight
        As for `Network.gradient`.
    total_weight : float
        The sum of the samples' weights.

    Raises
    ------
    ValueError
        An output is not finite there.
    """
    model, total = net.model, np.zeros(params.size)
    normaliser = model.normaliser(total_weight)
    for X_part, targets in Samples(model, X, y, batch_size_for(model), sample_weight):
        lin = model.propagate(params, X_part, 1)
        ahead, behind = (model.forward(params + share * step, X_part) for share in (_SHARE, -_SHARE))
        second = ((ahead - lin.output) + (behind - lin.output)) / _SHARE**2
        curvature = model.terminal(lin.output, targets, None, normaliser)[2]
        total += model.pull(params, lin, np.einsum("bij,bj->bi", curvature, second))
    return total
