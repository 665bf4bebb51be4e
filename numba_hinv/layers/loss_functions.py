"""The losses that ship, each a function of one sample that `losses.register_loss` describes.

Derivatives are written so that they keep their relative accuracy where probabilities are close to 0 or 1. At kinks they
are those of one side. What the parameters mean is said in `numba_hinv.losses`.
"""

import math

from .loss_parameters import Parameter
from .losses import register_loss

_CLASSES = {
    "label_smoothing": Parameter(0.0, low=0.0, high=1.0, per_output=False),
    "class_weights": Parameter(1.0, low=0.0),
}
_LOG_TWO_PI = math.log(2.0 * math.pi)


@register_loss("softmax_cross_entropy", mean_over="samples", targets="labels", parameters=_CLASSES)
def softmax_cross_entropy(z, y, gradient, curvature, parameters):
    n = z.size
    label = int(y[0])
    # The target has t_a = w_a smoothing / n of class a, and w_a (1 - smoothing) more of the label; T is the sum.
    smooth, sharp = parameters[0, 0] / n, (1.0 - parameters[0, 0]) * parameters[1, label]
    top = z[0]
    for a in range(n):
        top = max(top, z[a])
    total = 0.0
    for a in range(n):
        gradient[a] = math.exp(z[a] - top)
        total += gradient[a]
    for a in range(n):
        gradient[a] /= total
    T, value = 0.0, 0.0
    for a in range(n):
        t = smooth * parameters[1, a] + (sharp if a == label else 0.0)
        T += t
        if t != 0.0:
            value += t * (math.log(total) - (z[a] - top))
    # T p_a - t_a keeps its digits as p_a (sum of the other t) - t_a (sum of the other p). On the diagonal for now.
    for a in range(n):
        others, rest = 0.0, 0.0
        for b in range(n):
            if b != a:
                others += gradient[b]
                rest += smooth * parameters[1, b] + (sharp if b == label else 0.0)
                curvature[a, b] = -T * gradient[a] * gradient[b]
        t = smooth * parameters[1, a] + (sharp if a == label else 0.0)
        curvature[a, a] = gradient[a] * rest - t * others
    # T p_a (1 - p_a) likewise, from the other entries of its row.
    for a in range(n):
        gradient[a] = curvature[a, a]
        curvature[a, a] = 0.0
        for b in range(n):
            if b != a:
                curvature[a, a] -= curvature[a, b]
    return value


@register_loss("mean_squared_error", mean_over="elements", targets="values")
def mean_squared_error(z, y, gradient, curvature):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        residual = z[a] - y[a]
        value += residual * residual
        gradient[a] = 2.0 * residual
        curvature[a, a] = 2.0
    return value


@register_loss("binary_cross_entropy", mean_over="elements", parameters={"pos_weight": Parameter(1.0, low=0.0)})
def binary_cross_entropy(z, y, gradient, curvature, parameters):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        e = math.exp(-abs(z[a]))
        # Of the two outcomes, with their weights; p is the probability of the first.
        yes, no = parameters[0, a] * y[a], 1.0 - y[a]
        less, more = e / (1.0 + e), 1.0 / (1.0 + e)
        value += (yes + no) * math.log1p(e) + no * max(z[a], 0.0) + yes * max(-z[a], 0.0)
        gradient[a] = no * more - yes * less if z[a] >= 0.0 else no * less - yes * more
        curvature[a, a] = (yes + no) * less * more
    return value


@register_loss("huber", mean_over="elements", parameters={"delta": Parameter(1.0, low=0.0, is_open=True)})
def huber(z, y, gradient, curvature, parameters):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        delta, residual = parameters[0, a], z[a] - y[a]
        if abs(residual) <= delta:
            value += 0.5 * residual * residual
            gradient[a] = residual
            curvature[a, a] = 1.0
        else:
            value += delta * (abs(residual) - 0.5 * delta)
            gradient[a] = delta if residual > 0.0 else -delta
    return value


@register_loss("smooth_l1", mean_over="elements", parameters={"beta": Parameter(1.0, low=0.0)})
def smooth_l1(z, y, gradient, curvature, parameters):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        beta, residual = parameters[0, a], z[a] - y[a]
        if abs(residual) < beta:
            value += 0.5 * residual * residual / beta
            gradient[a] = residual / beta
            curvature[a, a] = 1.0 / beta
        else:
            value += abs(residual) - 0.5 * beta
            # Where it is 0, beta is 0 too.
            gradient[a] = 1.0 if residual > 0.0 else -1.0 if residual < 0.0 else 0.0
    return value


@register_loss(
    "poisson",
    mean_over="elements",
    parameters={
        "log_input": Parameter(True),
        "full": Parameter(False),
        "eps": Parameter(1e-8, low=0.0, per_output=False),
    },
)
def poisson(z, y, gradient, curvature, parameters):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        if parameters[0, a] != 0.0:
            rate = math.exp(z[a])
            value += rate - y[a] * z[a]
            gradient[a] = rate - y[a]
            curvature[a, a] = rate
        else:
            rate = z[a] + parameters[2, a]
            value += z[a]
            gradient[a] = 1.0
            if y[a] != 0.0 or rate < 0.0:
                # A rate of 0 has a value only where there are no counts.
                if not rate > 0.0:
                    return math.nan
                value -= y[a] * math.log(rate)
                gradient[a] -= y[a] / rate
                curvature[a, a] = y[a] / (rate * rate)
        if parameters[1, a] != 0.0 and y[a] > 1.0:
            value += y[a] * math.log(y[a]) - y[a] + 0.5 * (_LOG_TWO_PI + math.log(y[a]))
    return value


@register_loss("gaussian_nll", mean_over="elements", parameters={"full": Parameter(False)}, outputs_per_target=2)
def gaussian_nll(z, y, gradient, curvature, parameters):
    m = y.size
    value = 0.0
    curvature[:] = 0.0
    for a in range(m):
        residual, precision = z[a] - y[a], math.exp(-z[m + a])
        square = residual * residual * precision
        value += 0.5 * (z[m + a] + square)
        if parameters[0, a] != 0.0:
            value += 0.5 * _LOG_TWO_PI
        gradient[a] = residual * precision
        gradient[m + a] = 0.5 * (1.0 - square)
        curvature[a, a] = precision
        curvature[a, m + a] = curvature[m + a, a] = -residual * precision
        curvature[m + a, m + a] = 0.5 * square
    return value


@register_loss(
    "quantile", mean_over="elements", parameters={"quantile": Parameter(0.5, low=0.0, high=1.0, is_open=True)}
)
def quantile(z, y, gradient, curvature, parameters):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        q = parameters[0, a]
        gradient[a] = 1.0 - q if z[a] > y[a] else -q
        value += gradient[a] * (z[a] - y[a])
    return value
