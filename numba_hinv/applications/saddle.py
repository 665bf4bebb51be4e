"""Saddle points: whether a point with a small gradient is one, by inertia, and the step that leads down from it."""

import numpy as np

from .trust_region import QuadraticModel

# Eigenvalues above minus this times ||H|| do not count: where H is singular, rounding puts eigenvalues of 0 on either
# side of 0. If some lie there, so that they cannot be counted, a bound so many times larger is tried.
_ZERO, _WIDER = 1e-8, 100.0
# A step is taken where the loss falls by at least this share of what the model promised.
_TAKEN = 1e-4
# Each trial is shorter than the last by this factor; the shortest is 1e-9 of the first.
_SHORTER, _TRIALS = 0.25, 16


def negative_eigenvalues(H, params, size):
    """How many eigenvalues of H are negative and matter beside a gradient of this size; None if that is uncertain.

    They matter where the slope that they make within a step of the parameters' length, or of 1, exceeds the gradient.
    Next to an infimum at infinity, gradient and Hessian vanish together, and curvatures below 0 lead nowhere.
    """
    bound = max(_ZERO * H.norm(), size / max(1.0, float(np.linalg.norm(params))))
    # The norm is an estimate from below.
    if bound >= 2.0 * H.norm():
        return 0
    for t in (-bound, -_WIDER * bound):
        try:
            return H.count_below(t)
        except np.linalg.LinAlgError:
            continue
    return None


def way_down(H, params, radius, loss_of, least):
    """(point or None, radius, factorizations): where the loss falls by more than ``least``, near ``params``.

    Global minimisers of the model in balls that shrink: without a gradient, steps along the lowest eigenvector.
    """
    count, model = 0, QuadraticModel(H)
    for _ in range(_TRIALS):
        try:
            answer = model.step(radius, rtol=0.05)
        except np.linalg.LinAlgError:
            break
        count += answer.num_factorizations
        if not answer.predicted_decrease > least:
            break
        trial = params + answer.step
        if H.loss - loss_of(trial) > max(least, _TAKEN * answer.predicted_decrease):
            return trial, radius, count
        radius *= _SHORTER
    return None, radius, count
