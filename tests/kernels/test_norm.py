"""Row norms over the whole range of float64, against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest

from numba_hinv.kernels.dense.norm import extremes
from numba_hinv.kernels.sweeps.eliminate import scale_bounds
from numba_hinv.system.scaling import lengths


@pytest.mark.parametrize("exponent", [-1074, -1040, -600, -466, -465, 0, 498, 499, 700, 1020])
def test_row_norms(exponent):
    rng = np.random.default_rng(0)
    rows = np.ldexp(rng.uniform(-1, 1, (4, 7)), exponent)
    rows[3, 1:] = np.ldexp(rows[3, 1:], -60)
    for row, found in zip(rows, lengths(rows)):
        square = sum(Fraction(float(x)) ** 2 for x in row)
        scale = Fraction(2) ** (2 * exponent)
        expected = math.ldexp(math.sqrt(square / scale), exponent)
        # Subnormal results are rounded to multiples of 2^-1074.
        assert abs(found - expected) <= max(1e-15 * expected, 2.0**-1074)


def test_rows_that_are_not_numbers_or_empty():
    rows = np.array([[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [-np.inf, np.inf], [1e308, 1e308]])
    with np.errstate(all="raise"):
        found = lengths(rows)
    assert found[0] == 0.0 and not np.isfinite(found[1:4]).any() and found[4] == pytest.approx(math.sqrt(2) * 1e308)
    assert lengths(np.empty((2, 0))).tolist() == [0.0, 0.0] and lengths(np.empty((0, 3))).shape == (0,)


def test_extremes():
    x = np.random.default_rng(0).standard_normal(101)
    assert extremes(x) == (x.min(), x.max()) and extremes(x[:1]) == (x[0], x[0])
    assert extremes(np.array([1.0, np.inf])) == (1.0, np.inf) and extremes(np.empty(0)) == (np.inf, -np.inf)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scale_bounds(dtype):
    """Of layers with no, one and more rows; the second column counts for the largest alone, zeros for nothing."""
    m = np.array([3, 0, 1, 2])
    scales = np.array([[2.0, 0.0], [-0.5, 8.0], [0.0, 0.25], [-3.0, 0.0], [1.0, 0.0], [-4.0, -5.0]], dtype)
    smallest, largest = np.empty((2, 4))
    scale_bounds(m, scales.ravel(), smallest, largest)
    assert smallest.tolist() == [0.5, np.inf, 3.0, 1.0] and largest.tolist() == [8.0, 0.0, 3.0, 5.0]
