"""Elementary functions of hyper-dual numbers: those of :mod:`math` and NumPy, with their first and second derivatives.

To add a function of one argument, write ``u -> (f(u), f'(u), f''(u))`` and give it to `define`.
"""

import math
import operator

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from . import activations
from .hyperdual import HyperDual, as_number, choose, compose, compose_two, joint, value_of


def define(functions, rule):
    """Make ``rule(u) -> (f(u), f'(u), f''(u))`` the meaning of ``functions`` on numbers."""
    rule = register_jitable(rule)

    def implement(x):
        if isinstance(x, HyperDual):
            return lambda x: compose(x, *rule(value_of(x)))

    for function in functions:
        overload(function)(implement)


def define_two(functions, rule):
    """As `define`, ``rule(u, v) -> (f, fx, fy, fxx, fxy, fyy)``."""
    rule = register_jitable(rule)

    def implement(x, y):
        if joint(x, y) is None:
            return None
        if not isinstance(x, HyperDual):
            return lambda x, y: _two(as_number(x, y), y)
        if not isinstance(y, HyperDual):
            return lambda x, y: _two(x, as_number(y, x))
        return lambda x, y: _two(x, y)

    @register_jitable
    def _two(x, y):
        return compose_two(x, y, *rule(value_of(x), value_of(y)))

    for function in functions:
        overload(function)(implement)


def _exp(u):
    f = math.exp(u)
    return f, f, f


def _log(u):
    return math.log(u), 1.0 / u, -1.0 / (u * u)


def _log2(u):
    scale = 1.0 / math.log(2.0)
    return math.log2(u), scale / u, -scale / (u * u)


def _log10(u):
    scale = 1.0 / math.log(10.0)
    return math.log10(u), scale / u, -scale / (u * u)


def _expm1(u):
    f = math.exp(u)
    return math.expm1(u), f, f


def _log1p(u):
    slope = 1.0 / (1.0 + u)
    return math.log1p(u), slope, -slope * slope


def _sqrt(u):
    f = math.sqrt(u)
    return f, 0.5 / f, -0.25 / (f * u)


def _square(u):
    return u * u, 2.0 * u, 2.0


def _sin(u):
    f = math.sin(u)
    return f, math.cos(u), -f


def _cos(u):
    f = math.cos(u)
    return f, -math.sin(u), -f


def _tan(u):
    f = math.tan(u)
    slope = 1.0 + f * f
    return f, slope, 2.0 * f * slope


def _asin(u):
    square = (1.0 - u) * (1.0 + u)
    slope = 1.0 / math.sqrt(square)
    return math.asin(u), slope, u * slope / square


def _acos(u):
    square = (1.0 - u) * (1.0 + u)
    slope = 1.0 / math.sqrt(square)
    return math.acos(u), -slope, -u * slope / square


def _atan(u):
    slope = 1.0 / (1.0 + u * u)
    return math.atan(u), slope, -2.0 * u * slope * slope


def _sinh(u):
    f = math.sinh(u)
    return f, math.cosh(u), f


def _cosh(u):
    f = math.cosh(u)
    return f, math.sinh(u), f


def _asinh(u):
    slope = 1.0 / math.hypot(1.0, u)
    return math.asinh(u), slope, -u * slope * slope * slope


def _acosh(u):
    slope = 1.0 / (math.sqrt(u - 1.0) * math.sqrt(u + 1.0))
    return math.acosh(u), slope, -u * slope * slope * slope


def _atanh(u):
    slope = 1.0 / ((1.0 - u) * (1.0 + u))
    return math.atanh(u), slope, 2.0 * u * slope * slope


def _erf(u):
    slope = 2.0 / math.sqrt(math.pi) * math.exp(-u * u)
    return math.erf(u), slope, (-2.0 * u * slope if slope > 0.0 else 0.0)


def _erfc(u):
    slope = -2.0 / math.sqrt(math.pi) * math.exp(-u * u)
    return math.erfc(u), slope, (-2.0 * u * slope if slope < 0.0 else 0.0)


def _abs(u):
    return abs(u), (1.0 if u > 0.0 else -1.0 if u < 0.0 else 0.0), 0.0


for _functions, _rule in (
    ((math.exp, np.exp), _exp),
    ((math.log, np.log), _log),
    ((math.log2, np.log2), _log2),
    ((math.log10, np.log10), _log10),
    ((math.expm1, np.expm1), _expm1),
    ((math.log1p, np.log1p), _log1p),
    ((math.sqrt, np.sqrt), _sqrt),
    ((np.square,), _square),
    ((math.sin, np.sin), _sin),
    ((math.cos, np.cos), _cos),
    ((math.tan, np.tan), _tan),
    ((math.asin, np.arcsin), _asin),
    ((math.acos, np.arccos), _acos),
    ((math.atan, np.arctan), _atan),
    ((math.sinh, np.sinh), _sinh),
    ((math.cosh, np.cosh), _cosh),
    ((math.tanh, np.tanh), activations.tanh),
    ((math.asinh, np.arcsinh), _asinh),
    ((math.acosh, np.arccosh), _acosh),
    ((math.atanh, np.arctanh), _atanh),
    ((math.erf,), _erf),
    ((math.erfc,), _erfc),
    ((abs, math.fabs, np.abs, np.fabs), _abs),
):
    define(_functions, _rule)


def _hypot(u, v):
    f = math.hypot(u, v)
    x, y = u / f, v / f
    return f, x, y, y * y / f, -x * y / f, x * x / f


def _atan2(u, v):
    f = math.hypot(u, v)
    x, y = v / f, u / f
    return math.atan2(u, v), x / f, -y / f, -2.0 * x * y / f / f, (y * y - x * x) / f / f, 2.0 * x * y / f / f


define_two((math.hypot, np.hypot), _hypot)
define_two((math.atan2, np.arctan2), _atan2)


@register_jitable
def _power_rule(u, n):
    """u**n and its derivatives in u. A factor that is 0 makes its term 0, also where the power of u is infinite."""
    slope = n * u ** (n - 1) if n != 0 else 0.0
    bend = n * (n - 1) * u ** (n - 2) if n != 0 and n != 1 else 0.0
    return u**n, slope, bend


@register_jitable
def _power_rule_two(u, v):
    f, fu, fuu = _power_rule(u, v)
    logarithm, below = math.log(u), u ** (v - 1)
    fv = f * logarithm if f != 0 else 0.0
    fuv = below + v * below * logarithm if below != 0 else 0.0
    return f, fu, fv, fuu, fuv, (fv * logarithm if f != 0 else 0.0)


def _power(x, y):
    if joint(x, y) is None:
        return None
    if isinstance(y, types.Integer):
        return lambda x, y: compose(x, *_power_rule(value_of(x), float(y)))
    if isinstance(y, types.Float):
        return lambda x, y: compose(x, *_power_rule(value_of(x), y))
    if isinstance(x, HyperDual):
        return lambda x, y: compose_two(x, y, *_power_rule_two(value_of(x), value_of(y)))

    def impl(x, y):
        base = as_number(x, y)
        return compose_two(base, y, *_power_rule_two(value_of(base), value_of(y)))

    return impl


for _function in (operator.pow, operator.ipow, pow, math.pow, np.power):
    overload(_function)(_power)


def _larger(x, y):
    return None if joint(x, y) is None else lambda x, y: choose(x > y, x, y)


def _smaller(x, y):
    return None if joint(x, y) is None else lambda x, y: choose(x < y, x, y)


for _function in (max, np.maximum, np.fmax):
    overload(_function)(_larger)
for _function in (min, np.minimum, np.fmin):
    overload(_function)(_smaller)
