"""Activations and their exponentials over all numbers, by their errors against extended precision.

The compiled array form is what the sweeps call; the functions as Python runs them are what the GPU's simulator runs.
"""

import ctypes
import math
import re

import dense_truth
import numba
import numpy as np
import pytest

from numba_hinv.kernels.dense.exponentials import exponential, log_one_plus
from numba_hinv.layers import activations
from numba_hinv.layers.activations import activation_address, activation_function

eps, subnormal = np.finfo(np.float64).eps, 5e-324
C = {np.float64: ctypes.c_double, np.float32: ctypes.c_float}


def positive_numbers():
    """Of all sizes, dense where activations bend, and beside the ends of the reduced range of exponentials."""
    rng = np.random.default_rng(0)
    dense = rng.uniform(0, 45, 40_000), rng.uniform(0, 1, 20_000), rng.uniform(0, 800, 20_000)
    all_sizes = 10.0 ** rng.uniform(-323, 308, 20_000)
    ends = np.arange(1, 4400) * (0.25 * math.log(2.0))
    ends = np.concatenate([ends, np.nextafter(ends, 0), np.nextafter(ends, np.inf)])
    special = 0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 700.0, 745.13, 745.14, 746.0, 38.5, 40.0
    return np.concatenate([*dense, all_sizes, ends, special])


POSITIVE = positive_numbers()
BOTH = np.concatenate([POSITIVE, -POSITIVE])


def evaluate(name, u):
    """Value, slope and bend by the compiled array form."""
    found = np.empty((3, u.size), u.dtype)
    pointer = ctypes.POINTER(C[u.dtype.type])
    prototype = ctypes.CFUNCTYPE(None, *[pointer] * 4, ctypes.c_int64)
    prototype(activation_address(name, u.dtype))(*[row.ctypes.data_as(pointer) for row in (u, *found)], u.size)
    return found


def ulps(found, truth):
    """Errors in units in the last place of the truth."""
    return np.abs(found - truth) / np.spacing(np.abs(truth).astype(found.dtype)).astype(truth.dtype)


def truth_of(name, u):
    """(value, slope, bend) in extended precision, and for each what its error may be relative to."""
    wide = u.astype(np.longdouble)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        truth = [np.nan_to_num(part, nan=0.0) for part in dense_truth.ACTIVATIONS[name](wide)]
        if name == "sigmoid":
            truth[2] = -truth[1] * np.tanh(wide / 2)
        sizes, size = [np.abs(part) for part in truth], np.abs(wide)
        # Where terms cancel, relative to the terms.
        if name == "silu":
            value, slope, bend = dense_truth.sigmoid(wide)
            sizes[1:] = value + size * slope, 2 * slope + size * np.abs(bend)
        if name == "gelu":
            density = np.exp(-wide * wide / 2) / np.sqrt(2 * dense_truth.PI)
            sizes[1:] = dense_truth.normal_cdf(wide) + size * density, np.nan_to_num((2 + wide * wide) * density)
    return truth, sizes


@numba.njit
def _exponential(x, low, out):
    for i in range(x.size):
        out[0, i], out[1, i], out[2, i] = exponential(x[i], low[i])


@numba.njit
def _log_one_plus(e, out):
    for i in range(e.size):
        out[i] = log_one_plus(e[i])


def test_exponential():
    found, none = np.empty((3, POSITIVE.size)), np.zeros(POSITIVE.size)
    _exponential(-POSITIVE, none, found)
    x = -POSITIVE.astype(np.longdouble)
    truth, less_one = np.exp(x), np.expm1(x)
    assert ulps(found[0], truth).max() <= 1.0
    # Half a unit for the sum of its two parts, as much for the reduction and the polynomial, and what they drop.
    assert ulps(found[1], less_one).max() <= 1.2
    unit = np.spacing(np.abs(found[1]))
    assert (np.abs(found[1] - (less_one - found[2])) <= 0.7 * unit).all()
    assert (np.abs(found[2]) <= 0.5 * unit).all()


def test_exponential_of_two_parts():
    x = -POSITIVE[(POSITIVE > 1.0) & (POSITIVE < 700.0)]
    low = np.random.default_rng(1).uniform(-0.5, 0.5, x.size) * np.spacing(np.abs(x))
    found = np.empty((3, x.size))
    _exponential(x, low, found)
    assert ulps(found[0], np.exp(x.astype(np.longdouble) + low)).max() <= 1.2


def test_exponential_at_the_ends():
    found = np.empty((3, 3))
    _exponential(np.array([-np.inf, -0.0, np.nan]), np.zeros(3), found)
    np.testing.assert_array_equal(found, [[0, 1, np.nan], [-1, 0, np.nan], [0, 0, np.nan]])


def test_log_one_plus():
    e = np.exp(-POSITIVE)
    found = np.empty_like(e)
    _log_one_plus(e, found)
    assert ulps(found, np.log1p(e.astype(np.longdouble))).max() <= 2.0


def test_tanh_to_two_units():
    assert ulps(evaluate("tanh", BOTH)[0], np.tanh(BOTH.astype(np.longdouble))).max() <= 2.0


# In multiples of eps: of value, slope and bend. Each is a product of a few factors, each within an ulp or two.
BOUNDS = {"tanh": (2, 6, 8), "sigmoid": (3, 5, 8), "softplus": (3, 3, 5), "silu": (4, 6, 9), "gelu": (6, 8, 4)}


@pytest.mark.parametrize("name", BOUNDS)
def test_relative_errors(name):
    truth, sizes = truth_of(name, BOTH)
    for found, exact, size, bound in zip(evaluate(name, BOTH), truth, sizes, BOUNDS[name]):
        # What is subnormal has an error of a unit there, which a product with u magnifies.
        floor = 8 * subnormal * (1 + np.minimum(np.abs(BOTH), 1e3) ** 2)
        assert np.isfinite(found).all()
        wrong = np.abs(found - exact) > bound * eps * size + floor
        assert not wrong.any(), BOTH[wrong][:5]


@pytest.mark.parametrize("name", BOUNDS)
def test_float32(name):
    u = BOTH[np.abs(BOTH) < 3e38].astype(np.float32)
    truth, sizes = truth_of(name, u)
    for found, exact, size in zip(evaluate(name, u), truth, sizes):
        # Computed in float64 and rounded once.
        error = np.abs(found - exact)
        assert (error <= 0.5001 * np.spacing(np.abs(exact).astype(np.float32)) + 8 * eps * size).all()


@pytest.mark.parametrize("name", BOUNDS)
def test_not_a_number_and_infinities(name):
    for dtype in (np.float64, np.float32):
        found = evaluate(name, np.array([np.nan, np.inf, -np.inf], dtype))
        assert np.isnan(found[:, 0]).all()
        expected = {"tanh": (1, -1), "sigmoid": (1, 0)}.get(name, (np.inf, 0))
        # The products u sigma(u) of an infinite u have no value, and say so.
        assert found[0, 1] == expected[0] and (found[0, 2] == expected[1] or np.isnan(found[0, 2]))


def test_signs_of_zero():
    found = evaluate("tanh", np.array([0.0, -0.0]))[0]
    assert not np.signbit(found[0]) and np.signbit(found[1])


@pytest.mark.parametrize("name", BOUNDS)
def test_python_runs_the_same_arithmetic(name):
    u = np.concatenate([np.linspace(-12, 12, 97), [1e-300, -740.0, 740.0, 1e300, -1e300]])
    python = np.array([activation_function(name)(float(one)) for one in u]).T
    # Without fused operations; relative to 1 and |u|, of which the terms are products.
    assert (np.abs(python - evaluate(name, u)) <= 8 * eps * (1 + np.minimum(np.abs(u), 40) ** 2)).all()
    assert np.isnan(activation_function(name)(math.nan)).all()


@pytest.mark.parametrize("name", ["identity", "relu", *BOUNDS])
@pytest.mark.parametrize("scalar", [numba.float64, numba.float32], ids=str)
def test_they_become_vector_instructions(name, scalar):
    compiled = activations.compile_array_form(activation_function(name), scalar, False)
    assembly = compiled.inspect_llvm()
    loops = re.findall(r"store <\d+ x (?:double|float)>", assembly)
    assert len(loops) >= 3
    if name in BOUNDS:
        assert re.search(r"fdiv <\d+ x double>", assembly)
    assert not re.search(r"@(tanh|exp|expm1|log1p|erfc|llvm\.exp)\b", assembly)
