"""The norm from below against dense eigenvalues: of matrices of any size of numbers, and of nets from their
gradients.
"""

import numpy as np
import pytest
from problems import chain, layer, make

from numba_hinv.system.lanczos import norm_from_below


def product(A):
    return lambda v, out: np.matmul(v, A, out=out)


def symmetric(seed, n, power=0):
    A = np.random.default_rng(seed).standard_normal((n, n))
    return np.ldexp(A + A.T, power)


@pytest.mark.parametrize("power", [-1000, -500, 0, 500, 1000])
@pytest.mark.parametrize("size", [2.0**-900, 2.0**-60, 1.0, 3.0, 2.0**60])
def test_numbers_of_any_size(power, size):
    """Exact scalings of the matrix and of the start change nothing but the scale."""
    if power == 1000 and size == 3.0:
        size = 1.0
    A, v = symmetric(0, 40, power), np.random.default_rng(1).standard_normal((1, 40))
    v *= size / np.linalg.norm(v)
    expected = norm_from_below(product(np.ldexp(A, -power)), v / size)
    top = np.abs(np.linalg.eigvalsh(np.ldexp(A, -power))).max()
    assert 0.5 * top <= expected <= (1 + 1e-13) * top
    before = v.copy()
    assert np.ldexp(norm_from_below(product(A), v), -power) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(v, before)


@pytest.mark.parametrize("seed", range(20))
def test_more_than_power_steps(seed):
    """The best vector of a Krylov space is at least as good as the last one of as many power steps."""
    n = 3 + 4 * seed
    A, v = symmetric(seed, n), np.random.default_rng(seed + 100).standard_normal((1, n))
    products = []

    def multiply(x, out):
        products.append(x.copy())
        np.matmul(x, A, out=out)

    found, x = norm_from_below(multiply, v), v.copy()
    assert 2 <= len(products) <= 4
    for _ in products:
        length = np.linalg.norm(x)
        x = x @ A / length
    assert (1 - 1e-12) * np.linalg.norm(x) <= found <= (1 + 1e-13) * np.abs(np.linalg.eigvalsh(A)).max()
    basis = np.array([product[0] / np.linalg.norm(product) for product in products])
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-12)
    assert found == pytest.approx(np.linalg.norm(basis @ A, 2), rel=1e-12)


def test_a_start_close_to_an_eigenvector():
    """What is left of a direction after cancellation is still orthogonal, and leads to the larger eigenvalue."""
    values = np.array([1.0, 50.0, *np.linspace(-0.5, 0.5, 20)])
    for distance in (1e-3, 1e-6, 1e-9):
        v = np.full((1, 22), 1e-3 * distance)
        v[0, :2] = 1.0, distance
        found = norm_from_below(product(np.diag(values)), v)
        assert 49.0 < found <= 50.0 * (1 + 1e-12)


def test_what_has_no_norm():
    v = np.ones((1, 5))
    assert norm_from_below(product(np.zeros((5, 5))), v) == 0.0
    assert norm_from_below(product(np.eye(5)), 0 * v) == 0.0
    assert norm_from_below(product(2.0 * np.eye(5)), v) == pytest.approx(2.0, rel=1e-15)
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(norm_from_below(product(np.full((5, 5), 1.7e308)), v))
        assert not np.isfinite(norm_from_below(product(np.full((5, 5), np.nan)), v))


def test_nets():
    problems = [chain(4, depth, batch=3, seed=depth) for depth in (1, 2, 5, 9)]
    problems += [
        make([layer(3, 3, name), layer(3, 2, "identity")], "mean_squared_error", batch=4)
        for name in ("relu", "gelu", "identity")
    ]
    for problem in problems:
        top = np.abs(np.linalg.eigvalsh(problem.truth.hessian.astype(float))).max()
        assert 0.5 * top <= problem.hessian.norm() <= (1 + 1e-12) * top


def test_a_gradient_that_is_no_start():
    """Targets that are met leave no gradient; and the L2 term's is rich in nothing."""
    p = make([layer(3, 3), layer(3, 2, "identity")], "mean_squared_error", batch=4)
    y = p.net.forward(p.params, p.X)
    for l2 in (0.0, 0.1):
        H = p.net.hessian(p.params, p.X, y, l2=l2)
        top = np.abs(np.linalg.eigvalsh(H.todense())).max()
        assert 0.5 * top <= H.norm() <= (1 + 1e-12) * top
