"""Vectors side by side against NumPy, inside guarded buffers."""

import numpy as np
import pytest
from numba import njit
from test_signed_cholesky import guarded, intact

from numba_hinv.kernels.dense import lanes
from numba_hinv.kernels.dense.microkernel import pointer


@njit
def _to_lanes(rows, block):
    size, width = block.shape
    lanes.to_lanes(rows.shape[0], size, pointer(rows, 0), rows.shape[1], pointer(block, 0), width)


@njit
def _to_rows(block, rows, size):
    lanes.to_rows(rows.shape[0], size, pointer(block, 0), block.shape[1], pointer(rows, 0), rows.shape[1])


@njit
def _entries(s, x, d, y, scaled):
    count, width = x.shape
    lanes.scale_entries(count, width, pointer(s, 0), pointer(x, 0), pointer(scaled, 0))
    lanes.combine_entries(count, width, pointer(s, 0), pointer(x, 0), pointer(d, 0), pointer(y, 0))


@njit
def _residual(factor, v, b, r, squares):
    count, width = v.shape
    lanes.residual_entries(count, width, factor, pointer(v, 0), pointer(b, 0), pointer(r, 0), pointer(squares, 0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("k", [4, 5, 8, 15, 16, 33])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 24, 37])
def test_there_and_back(size, k, dtype):
    rng, width = np.random.default_rng(size), lanes.num_lanes(k, np.dtype(dtype))
    assert width >= k and width % (lanes.VECTOR_BYTES // np.dtype(dtype).itemsize) == 0
    # Columns that belong to other layers, on the right.
    rows = rng.standard_normal((k, size + 3)).astype(dtype)
    room = np.full((size + 17, width), np.nan, dtype)
    block = room[:size]
    _to_lanes(rows, block)
    np.testing.assert_array_equal(block[:, :k], rows[:, :size].T)
    np.testing.assert_array_equal(block[:, k:], np.repeat(rows[-1:, :size].T, width - k, axis=1))
    found = guarded((k, size + 3), dtype)
    _to_rows(block, found, size)
    assert intact(found) and np.isnan(found[:, size:]).all()
    np.testing.assert_array_equal(found[:, :size], rows[:, :size])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_entries(count, dtype):
    rng, width, eps = np.random.default_rng(count), 2 * lanes.num_lanes(4, np.dtype(dtype)), np.finfo(dtype).eps
    x, y, b, r = (rng.standard_normal((count, width)).astype(dtype) for _ in range(4))
    s, d = (rng.standard_normal(count).astype(dtype) for _ in range(2))
    scaled, old_y, old_r, squares = guarded(x.shape, dtype), y.copy(), r.copy(), np.ones((2, width), dtype)
    _entries(s, x, d, y, scaled)
    assert intact(scaled)
    np.testing.assert_array_equal(scaled, s[:, None] * x)
    np.testing.assert_allclose(y, s[:, None] * x + d[:, None] * old_y, rtol=0, atol=64 * eps)
    _residual(dtype(0.5), x, b, r, squares)
    np.testing.assert_allclose(r, b - old_r - 0.5 * x, rtol=0, atol=64 * eps)
    np.testing.assert_allclose(squares, 1 + np.stack([(r**2).sum(axis=0), (x**2).sum(axis=0)]), rtol=64 * eps)
