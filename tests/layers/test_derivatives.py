"""First and second derivatives: activations against contour integrals, nets against differences and the truth.

A contour integral gives derivatives of an analytic function from its values alone, to nearly full precision:
f^(k)(u) = k! / (2 pi r^k) * integral of f(u + r e^{it}) e^{-ikt} dt, with the trapezoidal rule.
"""

import math

import dense_truth
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import chain, layer, make, problems

import numba_hinv as nh

eps = np.finfo(np.float64).eps

COMPLEX = {
    "identity": lambda u: u,
    "tanh": np.tanh,
    "sigmoid": lambda u: 1 / (1 + np.exp(-u)),
    "softplus": lambda u: np.log1p(np.exp(u)),
    "silu": lambda u: u / (1 + np.exp(-u)),
    "gelu": lambda u: u * (1 + scipy.special.erf(u / math.sqrt(2))) / 2,
    "sin": np.sin,
}


def contour_derivatives(f, u, points=64, radius=0.5):
    """f, f' and f'' at real u (n,), all poles being at least pi / 2 away."""
    turn = np.exp(2j * np.pi * np.arange(points) / points)
    values = f(u[:, None] + radius * turn)
    return tuple(math.factorial(k) * (values * turn**-k).mean(axis=1).real / radius**k for k in range(3))


def library_derivatives(name, u):
    """f, f' and f'' at u (n,) through the public interface.

    One layer with a single input of 1 has the pre-activations `u` as its parameters. With targets out - n/2 the squared
    error has the gradient f'(u) and the diagonal Hessian f''(u) + 2/n f'(u)^2.
    """
    n = len(u)
    net = nh.Network([nh.Dense(1, n, name, bias=False)], loss="mean_squared_error")
    X = np.ones((1, 1))
    value = net.forward(u, X)[0]
    y = (value - n / 2)[None]
    first = net.gradient(u, X, y)
    curvature = net.hessian(u, X, y) @ np.ones(n)
    return value, first, curvature - 2 / n * first**2


every_activation = pytest.mark.parametrize("name", sorted(COMPLEX))


@every_activation
def test_activations_of_the_truth(name):
    u = np.linspace(-12, 12, 97)
    ours = dense_truth.ACTIVATIONS[name](u.astype(np.longdouble))
    for k, (a, b) in enumerate(zip(ours, contour_derivatives(COMPLEX[name], u))):
        # Rounding of values of size |f| <= 1 + |u|, magnified by k! / r^k; SciPy's complex erf is good to 1e-13.
        assert np.abs(a - b).max() <= 2e-14 * 13 * math.factorial(k) * 2**k


@every_activation
def test_activations(name):
    u = np.concatenate([np.linspace(-12, 12, 97), [-1e-3, -1e-9, 0.0, 1e-9, 1e-3]])
    for k, (a, b) in enumerate(zip(library_derivatives(name, u), contour_derivatives(COMPLEX[name], u))):
        assert np.abs(a - b).max() <= 2e-14 * 13 * math.factorial(k) * 2**k


@pytest.mark.parametrize("name", sorted(dense_truth.ACTIVATIONS))
def test_activations_to_rounding_at_ordinary_and_extreme_arguments(name):
    """Against closed forms in extended precision (themselves checked above): a few ulps of the larger of 1 and |u|."""
    large = [15.0, 20, 36, 37, 38, 40, 88, 89, 104, 300, 700, 709, 710, 745, 746, 1e3, 1e4, 1e8]
    small = [1e-300, 1e-160, 1e-20, 1e-8, 1e-4]
    u = np.concatenate([np.linspace(-9, 9, 181) + 0.01, large, small])
    u = np.concatenate([u, -u])
    if name == "sin":
        u = u[np.abs(u) <= 1e4]
    expected = dense_truth.ACTIVATIONS[name](u.astype(np.longdouble))
    ours = library_derivatives(name, u)
    n = len(u)
    for k, (a, b) in enumerate(zip(ours, expected)):
        assert np.isfinite(a).all()
        # The way through the loss rounds out - y at n/2 + |u|, and the curvature at f'^2 / n.
        tolerance = 16 * eps * (1 + np.abs(u)) * (1 if k == 0 else 1 + 2 * np.abs(u) / n)
        assert (np.abs(a - b) <= tolerance).all(), u[np.abs(a - b) > tolerance]


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "silu", "gelu", "relu"])
def test_far_left_tails_are_flat(name):
    """Squares overflow and exponentials underflow there; the product of the two must not be NaN."""
    u = -np.array([1e20, 1e155, 1e200, 1e300])
    value, first, second = library_derivatives(name, u)
    np.testing.assert_array_equal(value, -1.0 if name == "tanh" else 0.0)
    np.testing.assert_array_equal(first, 0.0)
    np.testing.assert_array_equal(second, 0.0)


def test_relu_has_no_second_derivative():
    value, first, second = library_derivatives("relu", np.array([-3.0, -1e-300, 0.0, 1e-300, 2.0, 1e300]))
    np.testing.assert_array_equal(value, [0, 0, 0, 1e-300, 2, 1e300])
    np.testing.assert_allclose(first[:5], [0, 0, 0, 1, 1], rtol=1e-15)
    np.testing.assert_allclose(second[:5], 0, atol=1e-15)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "silu", "gelu"])
def test_small_values_keep_their_relative_accuracy(name):
    """Left tails decay like e^u (or faster): the value itself, not only its absolute error, has to be right."""
    u = -np.array([0.5, 2.0, 5.0, 9.0, 12.0, 20.0, 30.0])
    if name == "tanh":
        u = -np.array([1e-3, 1e-6, 1e-9, 1e-150])
    value = library_derivatives(name, u)[0]
    expected = dense_truth.ACTIVATIONS[name](u.astype(np.longdouble))[0]
    # exp(u) and exp(-u^2/2) have the relative condition number |u| and u^2.
    assert (np.abs(value - expected) <= 4 * eps * (1 + u**2) * np.abs(expected)).all()


@given(problems(smooth=True))
def test_gradient_against_differences_of_the_loss(problem):
    rng = np.random.default_rng(0)
    d = rng.standard_normal(problem.size)
    d /= np.linalg.norm(d)

    def loss(t):
        return problem.net.loss(problem.params + t * d, problem.X, problem.y)

    step = 2e-3
    values = {k: loss(k * step) for k in (-3, -2, -1, 1, 2, 3)}
    slope = (45 * (values[1] - values[-1]) - 9 * (values[2] - values[-2]) + values[3] - values[-3]) / (60 * step)
    gradient = problem.net.gradient(problem.params, problem.X, problem.y)
    scale = max(1.0, loss(0.0), np.linalg.norm(gradient), problem.norm) * (1 + np.abs(problem.params).max()) ** 3
    # Sixth order: step^6 times a seventh derivative, plus rounding / step.
    assert abs(gradient @ d - slope) <= 1e-10 * scale


@given(problems(smooth=True))
def test_products_against_differences_of_the_gradient(problem):
    d = problem.right_hand_side()
    d /= np.linalg.norm(d)

    def gradient(t):
        return problem.net.gradient(problem.params + t * d, problem.X, problem.y)

    step = 2e-3
    g = {k: gradient(k * step) for k in (-3, -2, -1, 1, 2, 3)}
    slope = (45 * (g[1] - g[-1]) - 9 * (g[2] - g[-2]) + g[3] - g[-3]) / (60 * step)
    scale = max(1.0, problem.norm, np.abs(g[1]).max()) * (1 + np.abs(problem.params).max()) ** 4
    assert np.abs(problem.hessian @ d - slope).max() <= 1e-9 * scale


@settings(max_examples=80)
@given(problems())
def test_hessian_against_the_truth(problem):
    H, t = problem.hessian, problem.truth
    assert abs(H.loss - t.value) <= 1e-13 * (abs(t.value) + 1e-2 * np.abs(t.output).max())
    assert np.abs(H.gradient - t.gradient).max() <= 1e-12 * np.abs(t.gradient).max() + 1e-15
    dense = np.asarray(H.todense())
    size = max(problem.norm, 1e-300)
    assert np.abs(dense - t.hessian).max() <= 1e-12 * size
    V = problem.right_hand_side(3)
    expected = t.hessian @ V
    assert np.abs(H @ V - expected).max() <= 1e-12 * size * np.linalg.norm(V, axis=0).max()
    assert np.abs(H @ V[:, 0] - expected[:, 0]).max() <= 1e-12 * size * np.linalg.norm(V[:, 0])


@pytest.mark.parametrize("margin", [10.0, 40.0, 150.0])
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "binary_cross_entropy"])
def test_confident_and_right_predictions_keep_their_relative_accuracy(loss, margin):
    """H is about exp(-margin), far below the roundoff of the probabilities, and must be right relative to itself."""
    p = make([layer(3, 4), layer(4, 4, skip=True), layer(4, 3, "identity")], loss, batch=4)
    y = np.ones(4, int) if loss == "softmax_cross_entropy" else np.array([[0.0, 1.0, 0.0]] * 4)
    params = p.params.copy()
    params[-3:] = margin * np.array([-1, 1, -1])
    H = p.net.hessian(params, p.X, y)
    t = dense_truth.differentiate(p.layers, loss, params, p.X, y)
    assert 0 < np.abs(t.hessian).max() < 1e3 * np.exp(-margin)
    # A rounded output, of condition |z| in exp(z), and the 1e-12 of `test_hessian_against_the_truth`.
    tolerance = 1e-12 + 2 * margin * 8 * eps
    assert np.abs(H.gradient - t.gradient).max() <= tolerance * np.abs(t.gradient).max()
    assert np.abs(H.todense() - t.hessian).max() <= tolerance * np.abs(t.hessian).max()


@given(problems(max_layers=7), st.integers(0, 2**20))
def test_hessian_is_symmetric(problem, seed):
    u, v = problem.right_hand_side(2, seed=seed).T
    H = problem.hessian
    Hu, Hv = H @ u, H @ v
    scale = np.linalg.norm(u) * np.linalg.norm(Hv) + np.linalg.norm(v) * np.linalg.norm(Hu)
    assert abs(u @ Hv - v @ Hu) <= 1e-13 * scale


def test_products_are_linear():
    problem = chain(4, 6, batch=5)
    H = problem.hessian
    u, v = problem.right_hand_side(2).T
    together = H @ (2 * u - 3 * v)
    apart = 2 * (H @ u) - 3 * (H @ v)
    assert np.abs(together - apart).max() <= 1e-13 * np.abs(apart).max()
    assert not (H @ np.zeros(problem.size)).any()


def test_special_data():
    """Dead units, duplicate samples, zero inputs, constant features, zero weights."""
    layers = [layer(3, 4, "relu"), layer(4, 4, "relu", skip=True), layer(4, 3, "identity")]
    base = make(layers, "mean_squared_error", batch=4)
    variants = {
        "duplicates": dict(X=np.repeat(base.X[:1], 4, axis=0)),
        "zero inputs": dict(X=np.zeros_like(base.X)),
        "constant features": dict(X=np.ones_like(base.X)),
        "zero weights": dict(params=np.zeros_like(base.params)),
        "dead units": dict(params=-np.abs(base.params), X=np.abs(base.X)),
    }
    for change in variants.values():
        data = {"params": base.params, "X": base.X, "y": base.y, **change}
        t = dense_truth.differentiate(layers, base.loss, **data)
        H = base.net.hessian(data["params"], data["X"], data["y"])
        assert np.abs(np.asarray(H.todense()) - t.hessian).max() <= 1e-13 * max(1.0, np.abs(t.hessian).max())
        assert np.abs(H.gradient - t.gradient).max() <= 1e-13 * max(1.0, np.abs(t.gradient).max())
