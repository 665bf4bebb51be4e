"""Users register their own compiled activations and losses; every sweep then uses them."""

import math
from types import SimpleNamespace

import dense_truth
import numba
import numpy as np
import pytest

import numba_hinv as nh


@pytest.fixture
def cube():
    @nh.register_activation("test_cube")
    @numba.njit
    def function(u):
        return u * u * u / 3, u * u, 2 * u

    return function


@pytest.fixture
def arctan():
    """A plain Python function: the library compiles it."""

    @nh.register_activation("test_arctan")
    def function(u):
        slope = 1 / (1 + u * u)
        return math.atan(u), slope, -2 * u * slope * slope

    return function


@pytest.fixture
def log_cosh():
    @nh.register_loss("test_log_cosh", mean_over="elements", targets="values")
    @numba.njit
    def function(z, y, gradient, curvature):
        total = 0.0
        for i in range(len(z)):
            t = math.tanh(z[i] - y[i])
            total += math.log(math.cosh(z[i] - y[i]))
            gradient[i] = t
            for j in range(len(z)):
                curvature[i, j] = 0.0
            curvature[i, i] = 1 - t * t
        return total

    return function


@pytest.fixture
def margin():
    """With labels, mean over samples, and a curvature that couples the outputs: log sum exp(z - z_label)."""

    @nh.register_loss("test_margin", mean_over="samples", targets="labels")
    @numba.njit
    def function(z, y, gradient, curvature):
        label = int(y[0])
        total = 0.0
        for i in range(len(z)):
            total += math.exp(z[i] - z[label])
        for i in range(len(z)):
            gradient[i] = math.exp(z[i] - z[label]) / total - (1.0 if i == label else 0.0)
        for i in range(len(z)):
            for j in range(len(z)):
                p = math.exp(z[i] - z[label]) / total
                q = math.exp(z[j] - z[label]) / total
                curvature[i, j] = (p if i == j else 0.0) - p * q
        return math.log(total)

    return function


def check(net, X, y, seed=0):
    """Gradient and products against differences, solutions by their residual in the dense form."""
    rng = np.random.default_rng(seed)
    params = 0.5 * rng.standard_normal(net.num_params)
    d = rng.standard_normal(net.num_params)
    d /= np.linalg.norm(d)
    step = 1e-3

    def central(f):
        return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)

    slope = central(lambda t: net.loss(params + t * d, X, y))
    gradient = net.gradient(params, X, y)
    assert abs(gradient @ d - slope) <= 1e-9 * (1 + abs(slope))
    H = net.hessian(params, X, y)
    product = central(lambda t: net.gradient(params + t * d, X, y))
    assert np.abs(H @ d - product).max() <= 1e-9 * (1 + np.abs(product).max())
    A = np.asarray(H.todense())
    b = rng.standard_normal(net.num_params)
    for damping in (0.1, -0.07):
        F = H.factorize(damping=damping)
        assert dense_truth.backward_error(A, damping, F.solve(b), b) <= 1e-14
        if F.inertia.exact:
            assert F.inertia.negative == (np.linalg.eigvalsh(A) + damping < 0).sum()
    return SimpleNamespace(loss=net.loss(params, X, y), output=net.forward(params, X), params=params)


def data(batch=4, n_in=3, n_out=2):
    rng = np.random.default_rng(7)
    return rng.standard_normal((batch, n_in)), rng.standard_normal((batch, n_out))


def test_own_activation(cube):
    X, y = data()
    layers = [nh.Dense(3, 3, "test_cube", skip=True), nh.Dense(3, 4, "tanh"), nh.Dense(4, 2, "test_cube")]
    net = nh.Network(layers, "mean_squared_error")
    check(net, X, y)
    single = nh.Network([nh.Dense(3, 3, "test_cube", bias=False)], "mean_squared_error")
    np.testing.assert_allclose(single.forward(np.eye(3).ravel(), X), X**3 / 3, rtol=1e-15)


def test_own_activation_in_plain_python(arctan):
    X, y = data(batch=2)
    net = nh.Network([nh.Dense(3, 3, "test_arctan"), nh.Dense(3, 2, "identity")], "mean_squared_error")
    check(net, X, y)


def test_own_loss(log_cosh):
    X, y = data()
    net = nh.Network([nh.Dense(3, 3), nh.Dense(3, 2, "identity")], loss="test_log_cosh")
    result = check(net, X, y)
    assert result.loss == pytest.approx(np.log(np.cosh(result.output - y)).mean(), rel=1e-13)


def test_own_loss_with_labels(margin):
    X, _ = data()
    y = np.array([0, 2, 1, 1])
    net = nh.Network([nh.Dense(3, 3), nh.Dense(3, 3, "identity")], loss="test_margin")
    result = check(net, X, y)
    expected = nh.Network([nh.Dense(3, 3), nh.Dense(3, 3, "identity")], loss="softmax_cross_entropy")
    assert result.loss == pytest.approx(expected.loss(result.params, X, y), rel=1e-13)
    with pytest.raises((ValueError, TypeError), match=r"\by\b"):
        net.loss(result.params, X, np.array([0, 3, 1, 1]))


def test_everything_of_ones_own(cube, log_cosh):
    X, y = data(batch=1)
    check(nh.Network([nh.Dense(3, 2, "test_cube"), nh.Dense(2, 2, "test_cube", skip=True)], loss="test_log_cosh"), X, y)


def test_float32(cube, log_cosh):
    X, y = data()
    net = nh.Network([nh.Dense(3, 3, "test_cube"), nh.Dense(3, 2, "identity")], loss="test_log_cosh")
    params = (0.5 * np.random.default_rng(0).standard_normal(net.num_params)).astype(np.float32)
    single, double = net.gradient(params, X, y), net.gradient(params.astype(float), X, y)
    assert single.dtype == np.float32
    assert np.abs(single - double).max() <= 1e-5 * np.abs(double).max()
    x = net.hessian(params, X, y).factorize(damping=0.5).solve(np.ones(net.num_params, np.float32))
    assert x.dtype == np.float32 and np.isfinite(x).all()


def test_registered_names_are_listed(cube, log_cosh):
    with pytest.raises(ValueError, match="test_cube"):
        nh.Network([nh.Dense(2, 2, "no_such_activation")], "mean_squared_error")
    with pytest.raises(ValueError, match="test_log_cosh"):
        nh.Network([nh.Dense(2, 2)], loss="no_such_loss")


@pytest.mark.parametrize("name", [None, 3, ["a"]])
def test_names_are_strings(name):
    with pytest.raises((TypeError, ValueError), match="name"):
        nh.register_activation(name)(lambda u: (u, 1.0, 0.0))
    with pytest.raises((TypeError, ValueError), match="name"):
        nh.register_loss(name)(lambda z, y, gradient, curvature: 0.0)


def test_options_of_a_loss():
    with pytest.raises(ValueError, match="mean_over"):
        nh.register_loss("test_bad", mean_over="batches")
    with pytest.raises(ValueError, match="targets"):
        nh.register_loss("test_bad", targets="classes")


def test_only_functions_can_be_registered():
    with pytest.raises(TypeError, match="function"):
        nh.register_activation("test_bad")(3)
    with pytest.raises(TypeError, match="function"):
        nh.register_loss("test_bad")("log")
