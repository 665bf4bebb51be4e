"""Losses: the registry, and the built-in ones.

To add one, write a function of one sample ``(z, y, gradient, curvature) -> value`` that Numba can compile and decorate
it with :func:`register_loss`, which tries it out (`loss_trial`). The mean over samples or elements is taken outside of
it.
"""

import math

from numba import carray, types

from ..kernels.plumbing.disk_cache import callback
from . import loss_trial
from .registry import Registry, is_own

_registry = Registry("loss", loss_trial.ARGUMENTS)


def register_loss(name, mean_over="samples", targets="values"):
    """Decorator that registers a loss under ``name``.

    Parameters
    ----------
    name : str
        What ``Network(..., loss=name)`` will refer to. A name can be registered again; where the new function is
        refused, the old one stays.
    mean_over : {"samples", "elements"}
        What the sum of the values of all samples is divided by: B, or B times the number of outputs.
    targets : {"values", "labels"}
        Whether y is (B, n) numbers or (B,) integer labels in 0..n-1, n being the number of outputs.

    Returns
    -------
    decorator : callable
        Takes ``function(z, y, gradient, curvature)``, plain or ``@njit``, which for one sample reads z (n,), the
        network's output, and y (n,), the target (or (1,), holding the label), fills gradient (n,) and the symmetric
        curvature (n, n), both first and second derivatives in z, and returns the value. All entries are to be written:
        they hold anything before. Returns it unchanged.

    Raises
    ------
    TypeError
        ``name`` is not a string; ``function`` is not a function of four arguments, cannot be compiled by Numba in
        nopython mode, or does not return a real number.
    ValueError
        ``mean_over`` or ``targets`` is not one of those listed, or a trial with random z and y shows that ``function``
        raises, reads or writes out of bounds, changes its inputs, leaves entries of gradient or curvature unwritten,
        returns an asymmetric curvature, or a gradient or curvature that are not the derivatives.

    Notes
    -----
    The trial compiles the function once, with bounds checks, which takes about a second; of compiled functions that it
    calls, it finds those that write out of bounds, but not those that read there. It calls it with 1, 2, 3 and 5
    outputs (labels: 2, 3 and 5) or, where it raises for all of these, with the least number up to 256 for which it does
    not. A loss that is made for certain numbers of outputs should raise for others; networks with these are refused.
    Derivatives are compared with differences wherever they are finite, z being of either sign, but not beside kinks,
    where a slope is that of one side. They must be right for one kind of y at least: any numbers, 0 and 1, -1 and 1,
    what sums to 1, or one 1 among zeros; labels are all tried.

    An exception cannot leave the function once it is in use: a value of NaN says that there is none, and becomes an
    error.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> @nh.register_loss("half_squares")
    ... def half_squares(z, y, gradient, curvature):
    ...     value = 0.0
    ...     curvature[:] = 0.0
    ...     for a in range(z.size):
    ...         gradient[a] = z[a] - y[a]
    ...         curvature[a, a] = 1.0
    ...         value += 0.5 * gradient[a] ** 2
    ...     return value
    """
    for argument, given, known in (
        ("mean_over", mean_over, ("samples", "elements")),
        ("targets", targets, ("values", "labels")),
    ):
        if given not in known:
            raise ValueError(f"{argument}: expected one of {', '.join(known)}; got {given!r}")

    def check(function):
        loss_trial.try_loss(function, targets)

    return _registry.decorator(name, check, mean_over=mean_over, targets=targets)


def loss_names():
    """Sorted names of the registered losses."""
    return _registry.names()


def get_loss(name):
    """What ``name`` was registered with: a dictionary; ``ValueError`` that lists the known names if it was not."""
    return _registry.get(name)


def check_loss(name, num_outputs):
    """``ValueError`` unless ``name`` is registered, and as a loss of so many outputs.

    Losses were tried with a few numbers of outputs only, and compiled sweeps check no bounds.
    """
    loss = get_loss(name)
    if not is_own(loss["function"]):
        loss_trial.try_outputs("loss", loss["function"], loss["targets"], num_outputs)


def loss_address(name, dtype):
    """Address of the compiled form of a loss, for ``dtype`` float64 or float32.

    It takes ``(z, y, gradient, curvature, n, number of targets)``, pointers to arrays of one sample, and returns the
    value as a float64.
    """
    return _registry.address(name, dtype, _compile)


def _compile(function, scalar, cache):
    array = types.CPointer(scalar)

    @callback(types.float64(array, array, array, array, types.int64, types.int64), cache)
    def evaluate(z, y, gradient, curvature, n, num_targets):
        return function(carray(z, (n,)), carray(y, (num_targets,)), carray(gradient, (n,)), carray(curvature, (n, n)))

    return evaluate


@register_loss("softmax_cross_entropy", mean_over="samples", targets="labels")
def softmax_cross_entropy(z, y, gradient, curvature):
    n = z.size
    label = int(y[0])
    top = z[0]
    for a in range(n):
        top = max(top, z[a])
    total = 0.0
    for a in range(n):
        gradient[a] = math.exp(z[a] - top)
        total += gradient[a]
    for a in range(n):
        gradient[a] /= total
    for a in range(n):
        # p (1 - p) with 1 - p summed from the other probabilities keeps its digits where p is close to 1.
        others = 0.0
        for b in range(n):
            curvature[a, b] = -gradient[a] * gradient[b]
            if b != a:
                others += gradient[b]
        curvature[a, a] = gradient[a] * others
    others = 0.0
    for a in range(n):
        if a != label:
            others += gradient[a]
    gradient[label] = -others
    return math.log(total) - (z[label] - top)


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


@register_loss("binary_cross_entropy", mean_over="elements", targets="values")
def binary_cross_entropy(z, y, gradient, curvature):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        e = math.exp(-abs(z[a]))
        value += max(z[a], 0.0) - z[a] * y[a] + math.log1p(e)
        # p - y without the cancellation where p is close to y = 1: p = 1 - e / (1 + e) there.
        gradient[a] = (1.0 - y[a]) - e / (1.0 + e) if z[a] >= 0.0 else e / (1.0 + e) - y[a]
        curvature[a, a] = e / ((1.0 + e) * (1.0 + e))
    return value
