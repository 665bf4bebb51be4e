"""Hyper-dual numbers: every function and operator, what the language allows, and the chunks of directions.

Compared with contour integrals of the same functions, run on complex numbers; each entry to a hundred roundings of
values of size 1 to 10, magnified by 2 / radius^2.
"""

import math

import numba
import numpy as np
import pytest
import scipy.special
from custom_layers import assert_close, contour, evaluate

import numba_hinv as nh

TOLERANCE = 2e-14 * 2 / 0.1**2

# Functions, their analytic continuation, and a point that is further than 0.1 from all singularities.
UNARY = [
    ((math.exp, np.exp), np.exp, 0.7),
    ((math.log, np.log), np.log, 1.3),
    ((math.log2, np.log2), np.log2, 2.3),
    ((math.log10, np.log10), np.log10, 0.6),
    ((math.expm1, np.expm1), np.expm1, -0.4),
    ((math.log1p, np.log1p), np.log1p, 0.4),
    ((math.sqrt, np.sqrt), np.sqrt, 1.7),
    ((np.square,), np.square, -1.2),
    ((math.sin, np.sin), np.sin, 2.2),
    ((math.cos, np.cos), np.cos, -0.9),
    ((math.tan, np.tan), np.tan, 0.8),
    ((math.asin, np.arcsin), np.arcsin, -0.6),
    ((math.acos, np.arccos), np.arccos, 0.4),
    ((math.atan, np.arctan), np.arctan, 1.6),
    ((math.sinh, np.sinh), np.sinh, -1.1),
    ((math.cosh, np.cosh), np.cosh, 0.5),
    ((math.tanh, np.tanh), np.tanh, -0.3),
    ((math.asinh, np.arcsinh), np.arcsinh, 0.9),
    ((math.acosh, np.arccosh), np.arccosh, 2.1),
    ((math.atanh, np.arctanh), np.arctanh, -0.35),
    ((math.erf,), scipy.special.erf, 0.45),
    ((math.erfc,), lambda u: 1 - scipy.special.erf(u), -0.45),
]
POINTS = np.array([point for _, _, point in UNARY])


def of_math(z, x, out):
    out[0], out[1], out[2], out[3] = math.exp(z[0]), math.log(z[1]), math.log2(z[2]), math.log10(z[3])
    out[4], out[5], out[6], out[7] = math.expm1(z[4]), math.log1p(z[5]), math.sqrt(z[6]), z[7] * z[7]
    out[8], out[9], out[10], out[11] = math.sin(z[8]), math.cos(z[9]), math.tan(z[10]), math.asin(z[11])
    out[12], out[13], out[14], out[15] = math.acos(z[12]), math.atan(z[13]), math.sinh(z[14]), math.cosh(z[15])
    out[16], out[17], out[18], out[19] = math.tanh(z[16]), math.asinh(z[17]), math.acosh(z[18]), math.atanh(z[19])
    out[20], out[21] = math.erf(z[20]), math.erfc(z[21])


def of_numpy(z, x, out):
    out[0], out[1], out[2], out[3] = np.exp(z[0]), np.log(z[1]), np.log2(z[2]), np.log10(z[3])
    out[4], out[5], out[6], out[7] = np.expm1(z[4]), np.log1p(z[5]), np.sqrt(z[6]), np.square(z[7])
    out[8], out[9], out[10], out[11] = np.sin(z[8]), np.cos(z[9]), np.tan(z[10]), np.arcsin(z[11])
    out[12], out[13], out[14], out[15] = np.arccos(z[12]), np.arctan(z[13]), np.sinh(z[14]), np.cosh(z[15])
    out[16], out[17], out[18], out[19] = np.tanh(z[16]), np.arcsinh(z[17]), np.arccosh(z[18]), np.arctanh(z[19])
    out[20], out[21] = math.erf(z[20]), math.erfc(z[21])


@pytest.mark.parametrize("function", [of_math, of_numpy])
def test_functions_of_one_argument(function):
    n = len(UNARY)
    ours = evaluate(nh.Custom(function, n, n), POINTS, np.zeros(0), np.ones(n))
    for k, (functions, continued, point) in enumerate(UNARY):
        truth = contour(lambda z, x, out, f=continued: out.__setitem__(0, f(z[0])), [point], [], [1.0], radius=0.1)
        name = functions[0].__name__
        assert ours.out[k] == pytest.approx(truth.out[0], rel=1e-14), name
        assert ours.Dz[k, k] == pytest.approx(truth.Dz[0, 0], rel=1e-11), name
        assert ours.Dzz[k, k] == pytest.approx(truth.Dzz[0, 0], rel=1e-9, abs=1e-11), name
    for block in (ours.Dz, ours.Dzz):
        assert not (block - np.diag(np.diag(block))).any()


def arithmetic(z, x, out):
    out[0] = z[0] + z[1] * x[0] - x[1] / z[0]
    out[1] = -z[0] * 2 + 3.0 / z[1] - (1 - z[2]) * x[0] + (+z[1]) / 4
    out[1] += (z[0] * x[0] + 2) / (z[1] * z[1] * x[1] + z[2] * z[0] + 3) - 1 / (x[0] * x[1])
    out[2] = z[0] ** 3 + z[1] ** x[0] + 2.0 ** z[2] + x[1] ** -1.5 + x[1] ** z[0] + pow(z[2], 2)
    total = 0
    for value in z:
        total += value
        total *= x[1]
        total -= value / x[0]
        total /= 2
    out[3] = total


def test_arithmetic():
    z, x, g = [1.3, 0.8, -0.6], [1.1, 0.9], [0.3, -1.2, 0.7, 1.9]
    ours = evaluate(nh.Custom(arithmetic, 3, 4, 2, init=1.0), z, x, g, columns=7)
    assert_close(ours, contour(arithmetic, z, x, g), TOLERANCE)


def functions_of_two(z, x, out):
    out[0] = math.hypot(z[0], z[1]) + np.hypot(z[1], 2.0) + math.hypot(3, x[0])
    out[1] = math.atan2(z[0], x[0]) + np.arctan2(x[0], 2.0) + math.atan2(0.5, z[1])
    out[2] = np.power(z[0], x[0]) + math.pow(z[1], 2.5)


def continued(z, x, out):
    out[0] = np.sqrt(z[0] ** 2 + z[1] ** 2) + np.sqrt(z[1] ** 2 + 4) + np.sqrt(9 + x[0] ** 2)
    out[1] = np.arctan(z[0] / x[0]) + np.arctan(x[0] / 2) + np.arctan(0.5 / z[1])
    out[2] = z[0] ** x[0] + z[1] ** 2.5


def test_functions_of_two_arguments():
    z, x, g = [0.8, 1.4], [1.2], [0.4, -0.9, 1.3]
    ours = evaluate(nh.Custom(functions_of_two, 2, 3, 1, init=1.0), z, x, g)
    assert_close(ours, contour(continued, z, x, g), TOLERANCE)


@numba.njit
def weighted(weights, values):
    total = 0.0
    for w, v in zip(weights, values):
        total += w * v
    return total


def language(z, x, out):
    """Slices, reshapes, temporaries, calls, branches and loops that depend on values."""
    n = len(z)
    W = x[: n * n].reshape(n, n)
    hidden = np.empty_like(z)
    for a in range(W.shape[0]):
        hidden[a] = np.tanh(weighted(W[a], z))
    scaled = np.zeros(n, hidden.dtype)
    for a, value in enumerate(hidden):
        scaled[a] = value * x[-1]
    slope = x[-1] if z[0].real > 0.0 else 2.0
    out[:] = 0.0
    out[0] = slope * scaled[0]
    k = 0
    power = z[1]
    while k < 3 and not power.real > 40.0:
        power = power * z[1]
        k += 1
    out[1] = power + scaled[1]
    out[1:] = out[1:]


def language_of_numbers(z, x, out):
    n = len(z)
    W = x[: n * n].reshape(n, n)
    hidden = np.empty_like(z)
    for a in range(W.shape[0]):
        hidden[a] = np.tanh(weighted(W[a], z))
    scaled = np.zeros(n, hidden.dtype)
    for a, value in enumerate(hidden):
        scaled[a] = value * x[-1]
    slope = x[-1] if z[0] > 0.0 else 2.0
    out[:] = 0.0
    out[0] = slope * scaled[0]
    k = 0
    power = z[1]
    while k < 3 and not power > 40.0:
        power = power * z[1]
        k += 1
    out[1] = power + scaled[1]
    out[1:] = out[1:]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_language(sign):
    rng = np.random.default_rng(2)
    z, x, g = [0.4 * sign, 1.1], rng.standard_normal(5), [0.7, -0.2]
    ours = evaluate(nh.Custom(language_of_numbers, 2, 2, 5), z, x, g)
    assert_close(ours, contour(language, z, x, g), TOLERANCE)


def kinks(z, x, out):
    out[0] = max(z[0], 0.0) + min(z[1], x[0]) + abs(z[2])
    out[1] = np.maximum(z[0], z[1]) + np.minimum(0.0, z[2]) + np.abs(x[0]) + math.fabs(x[0])
    out[2] = 1.0 if z[0] != z[1] and not (z[0] == z[1]) and z[0] >= 1 and z[1] <= 2 and 1 < z[0] else z[2]


def test_kinks():
    layer = nh.Custom(kinks, 3, 3, 1)
    ours = evaluate(layer, [2.0, -1.0, -3.0], [0.5], [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(ours.out, [4.0, 0.0, 1.0])
    np.testing.assert_array_equal(ours.Dz, [[1, 1, -1], [1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(ours.Dx, [[0], [2], [0]])
    ours = evaluate(layer, [-2.0, 1.0, 0.0], [-0.5], [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(ours.Dz, [[0, 0, 0], [0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(ours.Dx, [[1], [-2], [0]])
    for block in (ours.Dxx, ours.Dzx, ours.Dzz):
        assert not block.any()


def edges(z, x, out):
    out[0] = z[0] ** 2 + 3 * z[0] ** 1 + z[0] ** 0 + z[0] ** 3.0 + z[0] ** x[0]
    out[1] = np.tanh(z[1]) + math.erf(z[1]) + math.erfc(z[1])


def test_edges():
    """Powers of 0, and saturation where squares overflow."""
    ours = evaluate(nh.Custom(edges, 2, 2, 1, init=3.0), [0.0, 1e200], [3.0], [1.0, 1.0])
    np.testing.assert_array_equal(ours.out, [1.0, 2.0])
    np.testing.assert_array_equal(ours.Dz, [[3.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(ours.Dzz, [[2.0, 0.0], [0.0, 0.0]])
    for block in (ours.Dx, ours.Dxx, ours.Dzx):
        assert not block.any()


def polynomial(z, x, out):
    """All variables with all others."""
    total = 0.3
    for i in range(len(z)):
        total += (i + 1) * z[i]
    for k in range(len(x)):
        total += (k + 0.5) * x[k]
    for a in range(len(out)):
        out[a] = total * total * total / (a + 1)


@pytest.mark.parametrize("n, p, m", [(1, 0, 1), (2, 1, 1), (3, 1, 2), (4, 0, 2), (1, 4, 3), (5, 3, 1), (9, 8, 2)])
def test_chunks_of_directions(n, p, m):
    rng = np.random.default_rng(n + 10 * p)
    z, x, g = (0.1 * rng.standard_normal(k) for k in (n, p, m))
    ours = evaluate(nh.Custom(polynomial, n, m, p), z, x, g, columns=n + 5)
    total = 0.3 + (np.arange(n) + 1) @ z + (np.arange(p) + 0.5) @ x
    slopes = np.concatenate([np.arange(n) + 1.0, np.arange(p) + 0.5])
    jacobian = 3 * total**2 * np.outer(1 / (np.arange(m) + 1), slopes)
    hessian = 6 * total * (g / (np.arange(m) + 1)).sum() * np.outer(slopes, slopes)
    scale = max(1.0, np.abs(hessian).max())
    assert np.abs(np.hstack([ours.Dz, ours.Dx]) - jacobian).max() <= 1e-14 * np.abs(jacobian).max()
    joined = np.block([[ours.Dzz, ours.Dzx.T], [ours.Dzx, ours.Dxx]])
    assert np.abs(joined - hessian).max() <= 1e-14 * scale
    np.testing.assert_array_equal(joined, joined.T)


def test_float32():
    z, x, g = [1.3, 0.8, -0.6], [1.1, 0.9], [0.3, -1.2, 0.7, 1.9]
    layer = nh.Custom(arithmetic, 3, 4, 2, init=1.0)
    single = evaluate(layer, z, x, g, np.float32)
    assert single.Dz.dtype == np.float32
    assert_close(single, evaluate(layer, z, x, g), 1e-6, ("out", "Dz", "Dx"))
