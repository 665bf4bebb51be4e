"""Which steps `minimize` takes where it is left to choose, and when those of Newton's method are the better ones."""

import numpy as np

from ..layers.samples import Samples
from ..system.batches import batch_size_for

# Least squares: steps of Levenberg and Marquardt where the loss is at most this share of the loss of a constant.
_EXPLAINED = 0.01
# Newton's method converges where a step gains this much of what it promises, and the gradient shrinks to this share.
_GAIN, _SHRINKS = (0.5, 2.0), 0.2
# Iterations from one trial to the next.
TRY_EVERY = 15


def method_for(net, batch, loss, radius=None, damping=None):
    """The method from here on: of a net whose loss, without an L2 term, has come down to ``loss``.

    A radius or a damping that is given says which family of steps is wanted.
    """
    if radius is not None:
        return "trust-region"
    is_least_squares = net.loss_name == "mean_squared_error"
    if damping is not None:
        return "levenberg-marquardt" if is_least_squares else "saddle-free"
    if is_least_squares and loss <= _EXPLAINED * _loss_of_constant(net.model, **batch):
        return "levenberg-marquardt"
    return "trust-region"


def _loss_of_constant(model, X, y, sample_weight):
    """The loss of the best outputs that do not depend on X."""
    weight, first, parts = 0.0, 0.0, Samples(model, X, y, batch_size_for(model), sample_weight)
    for _, targets in parts:
        weight, first = weight + targets.weights.sum(), first + targets.weights @ targets.values
    normaliser, total = model.normaliser(weight), 0.0
    for _, targets in parts:
        constant = np.tile(first / weight, (len(targets), 1))
        total += model.terminal(constant, targets, None, normaliser)[0]
    return total


def newton_converges(H, params, loss_and_gradient):
    """(whether, length of the step): H is positive definite, and a Newton step does what it promises.

    Where residuals or their curvatures are not small, steps of the Gauss-Newton matrix converge linearly, and slowly.
    """
    try:
        F = H.factorize(0.0, np.float64)
        if F.solver.num_negative_pivots() or F.num_perturbed:
            return False, 0.0
        step = -F.solve(H.gradient)
        loss, gradient = loss_and_gradient(params + step)
    except (np.linalg.LinAlgError, ValueError):
        return False, 0.0
    # Half of the slope along the step is what the model promises.
    promised, size = -0.5 * float(H.gradient @ step), np.linalg.norm(H.gradient)
    if not promised > 0.0 or not np.linalg.norm(gradient) <= _SHRINKS * size:
        return False, 0.0
    rounding = 16.0 * np.finfo(float).eps * abs(H.loss)
    return promised <= rounding or _GAIN[0] <= (H.loss - loss) / promised <= _GAIN[1], float(np.linalg.norm(step))
