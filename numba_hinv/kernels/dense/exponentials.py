"""Exponentials and what is made of them, of scalars, without branches, calls or tables.

So that LLVM makes vector instructions of a loop over them: a scalar ``math.tanh`` costs 12 ns, a lane of these one. The
GPU compiles the same source. All are evaluated in float64, whatever the dtype of their arguments, and pass NaN on.

References
----------
W. Cody and W. Waite, Software Manual for the Elementary Functions, 1980: the reduction of the argument by multiples of
log 2. The polynomials interpolate at Chebyshev nodes, which is within a digit of the best ones; they were made from 60
digits, and their errors are those of the approximation alone, relative.
"""

import math

from llvmlite import ir
from numba import types
from numba.core.cpu import CPUContext
from numba.extending import intrinsic, overload

from ..plumbing.compiled import shared
from .emitter import HAS_FMA, I64

_PER_OCTAVE = 1.4426950408889634
# log 2 in two parts, of which the first has 21 bits at the end that are zero: multiples up to 2^21 are exact.
_OCTAVE, _OCTAVE_REST = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# What is added to a number of less than 2^51 to round it to an integer, which then are the last bits of the sum.
_ROUNDING = 6755399441055744.0
# Below the first exp vanishes; below the second its exponent is out of range for `power_of_two`.
_VANISHING, _SUBNORMAL, _SHIFT = -746.0, -700.0, 64.0
# (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2, to 3e-18.
_EXP = (
    0.5, 0.1666666666666667, 0.04166666666666667, 0.008333333333326084, 0.0013888888888883711, 0.0001984126987500228,
    2.480158732567746e-05, 2.755725517000089e-06, 2.755727347871858e-07, 2.5105312729622103e-08, 2.09147553258932e-09,
)  # fmt: skip
# (artanh(s) / s - 1) / s^2 in s^2 for 0 <= s <= 1/3, to 4e-18.
_ARTANH = (
    0.3333333333333333, 0.19999999999999762, 0.1428571428580005, 0.11111111099118386, 0.09090909948981357,
    0.07692271982430275, 0.06667589315724629, 0.05867139530651599, 0.05422589197440007, 0.03746071897775383,
    0.07815288900461426,
)  # fmt: skip
# (a + 4) Q(a) / q(a) in t = (a - 4) / (a + 4) for 0 <= a <= 40, to 4e-17; q and Q are the standard normal density and
# the integral of it from a on. The map is that of M. Shepherd and J. Laframboise, Math. Comp. 36, 1981.
_MILLS = (
    1.8932190633084853, -1.5237709108199822, 0.9704095548675995, -0.4675409629984748, 0.15139176231183882,
    -0.018900450857296344, -0.00872229526111558, 0.004087855618711533, 0.00033424446676699103, -0.0005792688203351963,
    -4.78225422485959e-06, 8.809348292914504e-05, 1.7920658392698971e-06, -1.4836765810327453e-05,
    -1.5666193588407984e-06, 2.556939661121923e-06, 6.606046000981803e-07, -3.875740664956201e-07,
    -1.913738708205787e-07, 3.720435461946099e-08, 3.503396065688261e-08, -2.5449689529723054e-11,
    -2.504278100072593e-09,
)  # fmt: skip


@intrinsic
def _fma(typingctx, a, b, c):
    def codegen(context, builder, signature, arguments):
        a, b, c = arguments
        # In software it would be a call.
        if isinstance(context, CPUContext) and not HAS_FMA:
            return builder.fadd(builder.fmul(a, b), c)
        kind = ir.FunctionType(c.type, [c.type] * 3)
        known = builder.module.globals
        name = "llvm.fma.f64"
        return builder.call(known[name] if name in known else ir.Function(builder.module, kind, name), arguments)

    return types.float64(types.float64, types.float64, types.float64), codegen


@intrinsic
def _power_of_two(typingctx, rounded):
    def codegen(context, builder, signature, arguments):
        # The exponent's bits begin at 52; those of `_ROUNDING` are shifted out.
        bits = builder.add(builder.bitcast(arguments[0], I64), ir.Constant(I64, 1023))
        return builder.bitcast(builder.shl(bits, ir.Constant(I64, 52)), ir.DoubleType())

    return types.float64(types.float64), codegen


def fma(a, b, c):
    """``a b + c``, rounded once where the processor can."""
    return a * b + c


def power_of_two(rounded):
    """``2^k`` of ``rounded = k + 1.5 * 2^52``, -1022 <= k <= 1023; any number where that is NaN."""
    return math.ldexp(1.0, int(rounded - _ROUNDING)) if rounded == rounded else 1.0


@overload(fma)
def _(a, b, c):
    return lambda a, b, c: _fma(a, b, c)


@overload(power_of_two)
def _(rounded):
    return lambda rounded: _power_of_two(rounded)


def _horner(name, coefficients):
    """The polynomial with these coefficients, lowest first, of one argument."""
    code = f"{coefficients[-1]!r}"
    for coefficient in reversed(coefficients[:-1]):
        code = f"fma({code}, x, {coefficient!r})"
    namespace = {"fma": fma, "__name__": __name__}
    exec(f"def {name}(x):\n    return {code}\n", namespace)
    return shared(namespace[name])


_exp_polynomial = _horner("_exp_polynomial", _EXP)
_artanh_polynomial = _horner("_artanh_polynomial", _ARTANH)
_mills_polynomial = _horner("_mills_polynomial", _MILLS)


@shared
def exponential(x, low):
    """(e, m, m'): ``e = exp(x + low)`` and ``m + m' = e - 1`` for ``x <= 0``, ``low`` being a rounding error of x.

    e and m have errors below one unit in the last place, m + m' one below a half; m' is less than half a unit of m.
    """
    x = _VANISHING if x < _VANISHING else x
    is_small = x < _SUBNORMAL
    rounded = fma(x, _PER_OCTAVE, _ROUNDING)
    k = rounded - _ROUNDING
    r = fma(-k, _OCTAVE_REST, fma(-k, _OCTAVE, x)) + low
    p = fma(r * r, _exp_polynomial(r), r)
    first = power_of_two(rounded + (_SHIFT if is_small else 0.0))
    second = 5.421010862427522e-20 if is_small else 1.0
    power = first * second
    # The larger summand first, so that the rounding error of the sum can be had from it.
    whole, part = power - 1.0, power * p
    m = whole + part
    return fma(first, p, first) * second, m, part - (m - whole)


@shared
def log_one_plus(e):
    """``log(1 + e)`` for ``0 <= e <= 1``."""
    q = e / (1.0 + 0.5 * e)
    z = 0.25 * q * q
    return fma(q * z, _artanh_polynomial(z), q)


@shared
def normal_tail(a):
    """(density of the standard normal distribution at ``a >= 0``, its integral from a on)."""
    # Beyond, both vanish.
    a = 40.0 if a > 40.0 else a
    square = a * a
    e, _, _ = exponential(-0.5 * square, -0.5 * fma(a, a, -square))
    density = 0.3989422804014327 * e
    scale = 1.0 / (a + 4.0)
    return density, density * (scale * _mills_polynomial((a - 4.0) * scale))
