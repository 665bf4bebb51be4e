"""Activations: the registry, and the built-in ones.

To add one, write a scalar function ``u -> (phi(u), phi'(u), phi''(u))`` in Python that Numba can compile and decorate
it with :func:`register_activation`, which tries it out. Nothing else needs to know: the sweeps call it through a
pointer to a loop over it, which is one of vector instructions where the function has neither branches nor calls, as
those below. Derivatives are written so that they keep their relative accuracy where the activation saturates.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import types
from numba.extending import register_jitable

from ..kernels.dense.exponentials import exponential, fma, log_one_plus, normal_tail
from ..kernels.plumbing.disk_cache import callback
from . import aliases
from .registry import Registry
from .trial import Evidence, compare, compiled, is_real

_Function = TypeVar("_Function", bound=Callable[..., Any])
_registry = Registry("activation", aliases.ACTIVATIONS)
# Where a registered activation is tried, at either sign: dense where most of them bend, away from the round numbers at
# which they have kinks.
_TRIED = 0.003, *(0.117 + 0.236 * k for k in range(28)), 7.31, 9.43, 13.7, 29.3, 87.1


def register_activation(name: str) -> Callable[[_Function], _Function]:
    """Register an activation under ``name``, by a decorator.

    Parameters
    ----------
    name : str
        The name that ``Dense(..., activation=name)`` will refer to. A name can be registered again: networks made from
        then on use the new function. If the new function is refused, the old one stays.

    Returns
    -------
    decorator : callable
        It takes ``function(u)``, a scalar function that Numba can compile in nopython mode (plain or ``@njit``) and
        that returns ``(value, first derivative, second derivative)``, and returns it unchanged.

    Raises
    ------
    TypeError
        ``name`` is not a string; ``function`` is not a function of one argument, cannot be compiled, or does not
        return three real numbers.
    ValueError
        A trial shows that ``function`` raises, is finite nowhere, or returns derivatives that are not those of the
        value.

    Notes
    -----
    The trial compiles the function once, and compares derivatives with differences at arguments from -87 to 87,
    wherever they are finite, except close to kinks, where the slope is that of one side. Once it is in use, the
    function cannot raise an exception; it returns NaN where there is no value.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> @nh.register_activation("cube")
    ... def cube(u):
    ...     return u * u * u, 3 * u * u, 6 * u
    """
    return _registry.decorator(name, "u", try_activation)


def activation_names() -> list[str]:
    """List the names of the registered activations.

    Returns
    -------
    names : list of str
        The names, sorted.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> "tanh" in nh.activation_names()
    True
    """
    return _registry.names()


def check_activation(name):
    """The registered name that ``name``, perhaps an alias, stands for; ``ValueError`` that lists the known ones."""
    return _registry.resolve(name)


def activation_function(name):
    """The function ``u -> (phi(u), phi'(u), phi''(u))`` that is registered as ``name``, callable from compiled code."""
    return _registry.get(name)["function"]


def activation_address(name, dtype):
    """Address of the compiled array form of an activation, for ``dtype`` float64 or float32.

    It takes ``(u, phi, dphi, d2phi, n)``: pointers to n scalars each, and n.
    """
    return _registry.address(name, dtype, compile_array_form)


def try_activation(function):
    """Raise what is wrong with a function that is to be registered: see `register_activation`."""
    name = function.__name__
    evaluate, returned = compiled("function", function, 0.5)

    def at(u):
        try:
            return evaluate(u)
        except Exception as error:
            raise ValueError(
                f"function: expected {name}(u) to return a value for any u, or NaN; got {type(error).__name__} at "
                f"u = {u:.6g}: {error}"
            ) from error

    points = [(u, at(u)) for magnitude in _TRIED for u in (magnitude, -magnitude)]
    if not (isinstance(returned, types.BaseTuple) and len(returned) == 3 and all(map(is_real, returned))):
        raise TypeError(
            f"function: expected {name}(u) to return three real numbers, the value and its first and second "
            f"derivative; got {returned}"
        )
    if not any(np.isfinite(found).all() for _, found in points):
        raise ValueError(
            f"function: expected {name}(u) to be finite for some u from {-_TRIED[-1]} to {_TRIED[-1]}; got "
            f"{points[0][1]} at u = {points[0][0]:.6g}"
        )
    orders = "value", "first derivative", "second derivative"
    evidence = Evidence(), Evidence()
    for u, found in points:
        judged, wrong, slopes = compare(lambda t: np.array(at(u + t)[:2], np.float64), np.array(found[1:], np.float64))
        for k in range(2):
            evidence[k].add(
                judged[k],
                wrong[k],
                lambda: (
                    f"{found[k + 1]:.6g} for the {orders[k + 1]} at u = {u:.6g}, where differences of the "
                    f"{orders[k]} give {slopes[k]:.6g}"
                ),
            )
    for k in range(2):
        if evidence[k].refutes:
            raise ValueError(
                f"function: expected {name}(u) to return its value, first derivative and second derivative; got "
                f"{evidence[k].first}"
            )


def compile_array_form(function, scalar, cache):
    """The array form of an activation, see `activation_address`; of one without branches and calls, in vectors."""
    array = types.CPointer(scalar)

    @callback(types.void(array, array, array, array, types.int64), cache)
    def activate(u, phi, dphi, d2phi, n):
        for i in range(n):
            phi[i], dphi[i], d2phi[i] = function(u[i])

    return activate


@register_activation("identity")
def identity(u):
    return u, 1.0, 0.0


@register_activation("tanh")
def tanh(u):
    e, m, rest = exponential(-2.0 * abs(u), 0.0)
    below = 2.0 + m
    inverse = 1.0 / below
    t = -m * inverse
    # A Newton step with what -m and 2 + m have lost in rounding.
    lost = fma(-t, below, -m) - fma(t, (2.0 - below) + m + rest, rest)
    t = math.copysign(fma(lost, inverse, t), u)
    s = 4.0 * e * (inverse * inverse)
    return t, s, -2.0 * t * s


@register_jitable
def _logistic(u):
    """(sigma(u), sigma'(u), sigma''(u), exp(-abs(u)))."""
    e, m, _ = exponential(-abs(u), 0.0)
    inverse = 1.0 / (1.0 + e)
    s = e * (inverse * inverse)
    half_tanh = math.copysign(-m * inverse, u)
    return (1.0 if u >= 0.0 else e) * inverse, s, -s * half_tanh, e


@register_activation("sigmoid")
def sigmoid(u):
    value, slope, bend, _ = _logistic(u)
    return value, slope, bend


@register_activation("softplus")
def softplus(u):
    value, slope, _, e = _logistic(u)
    return max(u, 0.0) + log_one_plus(e), value, slope


@register_activation("silu")
def silu(u):
    value, slope, bend, _ = _logistic(u)
    return u * value, value + u * slope, 2.0 * slope + u * bend


@register_activation("gelu")
def gelu(u):
    density, tail = normal_tail(abs(u))
    below = tail if u < 0.0 else 1.0 - tail
    # Far out the density is 0 and u * u would be infinite.
    near = min(abs(u), 1e9)
    return u * below, fma(u, density, below), density * fma(-near, near, 2.0)


@register_activation("sin")
def sin(u):
    s = math.sin(u)
    return s, math.cos(u), -s


@register_activation("relu")
def relu(u):
    # The second derivative is zero almost everywhere and is taken as zero at the kink, as the first one is.
    return max(u, 0.0), 1.0 if u > 0.0 else 0.0, 0.0
