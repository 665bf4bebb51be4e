"""Activations: the registry, and the built-in ones.

To add one, write a scalar function ``u -> (phi(u), phi'(u), phi''(u))`` in Python that Numba can compile and decorate
it with :func:`register_activation`. Nothing else needs to know: the sweeps call it through a pointer.
Derivatives are written so that they keep their relative accuracy where the activation saturates.
"""

import math

from numba import cfunc, types
from numba.extending import register_jitable

from .registry import Registry

_registry = Registry("activation")


def register_activation(name):
    """Decorator that registers an activation under ``name``.

    Parameters
    ----------
    name : str
        What ``Dense(..., activation=name)`` will refer to. A name can be registered again: the new function is used
        by networks made from then on.

    Returns
    -------
    decorator : callable
        Takes ``function(u)``, a scalar function that Numba can compile in nopython mode (plain or ``@njit``) and that
        returns ``(value, first derivative, second derivative)``; returns it unchanged.

    Raises
    ------
    TypeError
        ``name`` is not a string, or ``function`` is not callable.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> @nh.register_activation("cube")
    ... def cube(u):
    ...     return u * u * u, 3 * u * u, 6 * u
    """
    return _registry.decorator(name)


def activation_names():
    """Sorted names of the registered activations."""
    return _registry.names()


def check_activation(name):
    """Return ``name``; ``ValueError`` that lists the known ones if it is not registered."""
    _registry.get(name)
    return name


def activation_function(name):
    """The function ``u -> (phi(u), phi'(u), phi''(u))`` that is registered as ``name``, callable from compiled code."""
    return _registry.get(name)["function"]


def activation_address(name, dtype):
    """Address of the compiled array form of an activation, for ``dtype`` float64 or float32.

    It takes ``(u, phi, dphi, d2phi, n)``: pointers to n scalars each, and n.
    """
    return _registry.address(name, dtype, _compile)


def _compile(function, scalar, cache):
    array = types.CPointer(scalar)

    @cfunc(types.void(array, array, array, array, types.int64), cache=cache, error_model="numpy")
    def activate(u, phi, dphi, d2phi, n):
        for i in range(n):
            phi[i], dphi[i], d2phi[i] = function(u[i])

    return activate


@register_activation("identity")
def identity(u):
    return u, 1.0, 0.0


@register_activation("tanh")
def tanh(u):
    t = math.tanh(u)
    e = math.exp(-2.0 * abs(u))
    s = 4.0 * e / ((1.0 + e) * (1.0 + e))
    return t, s, -2.0 * t * s


@register_jitable
def _logistic(u):
    """sigma(u), sigma'(u), sigma''(u)."""
    e = math.exp(-abs(u))
    s = e / ((1.0 + e) * (1.0 + e))
    half_tanh = math.copysign(-math.expm1(-abs(u)) / (1.0 + e), u)
    return (1.0 if u >= 0.0 else e) / (1.0 + e), s, -s * half_tanh


@register_activation("sigmoid")
def sigmoid(u):
    return _logistic(u)


@register_activation("softplus")
def softplus(u):
    value, slope, _ = _logistic(u)
    return max(u, 0.0) + math.log1p(math.exp(-abs(u))), value, slope


@register_activation("silu")
def silu(u):
    value, slope, bend = _logistic(u)
    return u * value, value + u * slope, 2.0 * slope + u * bend


@register_activation("gelu")
def gelu(u):
    below = 0.5 * math.erfc(-u * math.sqrt(0.5))
    density = math.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)
    # Far out the density is 0 and u * u may be infinite.
    bend = density * (2.0 - u * u) if density > 0.0 else 0.0
    return u * below, below + u * density, bend


@register_activation("sin")
def sin(u):
    s = math.sin(u)
    return s, math.cos(u), -s


@register_activation("relu")
def relu(u):
    # The second derivative is zero almost everywhere and is taken as zero at the kink, as the first one is.
    return max(u, 0.0), 1.0 if u > 0.0 else 0.0, 0.0
