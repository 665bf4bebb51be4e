"""Hypergradients: against training again with slightly changed L2 terms, weights and data, and against closed forms."""

import warnings

import numpy as np
import pytest
import scipy.linalg
from external_layers import twist

import numba_hinv as nh

L2 = 0.05


def scale(z, x, out):
    for i in range(z.size):
        out[i] = np.tanh(z[i] * (1.0 + x[i]))


def dense(outputs, loss):
    return nh.Network([nh.Dense(3, 4), nh.Dense(4, 4, "sigmoid", skip=True), nh.Dense(4, outputs, "identity")], loss)


NETS = {
    "mean_squared_error": dense(2, "mean_squared_error"),
    "one output": dense(1, "mean_squared_error"),
    "binary_cross_entropy": dense(2, nh.losses.binary_cross_entropy(pos_weight=[1.5, 0.7])),
    "gaussian_nll": dense(4, "gaussian_nll"),
    "poisson": dense(2, nh.losses.poisson(log_input=True)),
    "softmax": dense(3, "softmax_cross_entropy"),
    "softmax, weights of classes": dense(
        3, nh.losses.softmax_cross_entropy(class_weights=[1.0, 2.0, 0.5], ignore_index=7)
    ),
    "a sum": dense(2, nh.Loss("mean_squared_error", reduction="sum")),
    "custom": nh.Network(
        [nh.Custom(scale, 3, 3, 3), nh.LayerNorm(3), nh.Dense(3, 2, "identity")], "mean_squared_error"
    ),
    "external": nh.Network([twist(3), nh.Dense(3, 2, "identity")], "mean_squared_error"),
    "convolution": nh.Network([nh.Conv1d(1, 2, 2, 3, "tanh"), nh.Dense(4, 2, "identity")], "mean_squared_error"),
}


def samples(net, size, seed):
    rng = np.random.default_rng(seed)
    X, outputs = rng.standard_normal((size, 3)), net.model.num_targets
    if net.loss_definition.has_labels:
        return X, rng.integers(net.layers[-1].out_features, size=size)
    y = rng.uniform(0.1, 0.9, (size, outputs))
    return X, y[:, 0] if outputs == 1 else y


def trained(net, params, X, y, l2, weights):
    """The minimum that a start leads to: to a gradient of 1e-12, by Newton's method in the end."""
    params = nh.minimize(net, params, X, y, l2=l2, sample_weight=weights, gtol=1e-9, max_iterations=500).x
    for _ in range(5):
        H = net.hessian(params, X, y, l2=l2, sample_weight=weights)
        if np.linalg.norm(H.gradient) < 1e-12:
            break
        params = params - H.factorize(0.0).solve(H.gradient)
    assert np.linalg.norm(H.gradient) < 1e-12 and H.factorize(0.0).inertia.negative == 0
    return params


class Problem:
    """A trained net, and its validation loss as a function of what it was trained with."""

    def __init__(self, name, size=12):
        self.net = NETS[name]
        self.X, self.y = samples(self.net, size, 0)
        if self.net.loss_definition.ignore_index is not None:
            self.y[3] = self.net.loss_definition.ignore_index
        # A net that gives variances is easily too sure of itself.
        self.l2 = {"a sum": size * L2, "gaussian_nll": 10 * L2}.get(name, L2)
        self.weights = np.random.default_rng(1).uniform(0.5, 2.0, size)
        self.validation = samples(self.net, 9, 5)
        self.params = trained(self.net, self.net.init(0), self.X, self.y, self.l2, self.weights)

    def found(self, what, **changes):
        options = {"l2": self.l2, "sample_weight": self.weights, **changes}
        return nh.hypergradient(self.net, self.params, (self.X, self.y), self.validation, what, **options)

    def loss(self, **changes):
        """V, after training again with some of X, y, l2 and weights changed."""
        given = {"X": self.X, "y": self.y, "l2": self.l2, "weights": self.weights, **changes}
        return self.net.loss(trained(self.net, self.params, **given), *self.validation)

    def check(self, what, gradient, argument=None, seed=3):
        """Central differences along a random direction, of two steps, whose difference says how exact they are."""
        argument = argument or what
        start = np.asarray(getattr(self, argument))
        direction = np.random.default_rng(seed).standard_normal(start.shape)
        if argument == "weights":
            # One that does not count alike.
            direction += 1.0
        slopes = []
        for h in (2e-3 * L2, 4e-3 * L2) if argument == "l2" else (1e-3, 2e-3):
            ahead, behind = (self.loss(**{argument: start + t * direction}) for t in (h, -h))
            slopes.append((ahead - behind) / (2 * h))
        slope = slopes[0] + (slopes[0] - slopes[1]) / 3
        expected = np.sum(gradient * direction)
        assert abs(slope - expected) < 1e-5 * abs(slope) + 1e-9, (what, slope, expected)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", scipy.linalg.LinAlgWarning)
        yield


@pytest.mark.parametrize("name", NETS)
def test_training_again(name):
    """All that there is to ask for, on every loss and kind of layer, with weights of samples."""
    problem = Problem(name)
    has_labels = problem.net.loss_definition.has_labels
    asked = ("l2", "sample_weight", "X") + (("y",) if not has_labels else ())
    found = problem.found(asked)
    assert isinstance(found.gradient, tuple) and isinstance(found.gradient[0], float)
    assert found.loss == pytest.approx(problem.net.loss(problem.params, *problem.validation), rel=1e-14)
    shapes = {"l2": (), "sample_weight": (12,), "X": (12, 3), "y": problem.y.shape}
    for what, gradient in zip(asked, found.gradient):
        assert np.shape(gradient) == shapes[what]
        problem.check(what, gradient, {"sample_weight": "weights"}.get(what))
    if problem.net.loss_definition.ignore_index is not None:
        assert found.gradient[1][3] == 0.0 and not found.gradient[2][3].any()


@pytest.mark.parametrize("l2", [[1.0, 0.5, 2.0], [[1.0, 0.5], [0.7, 0.7], [2.0, 1.0]], "each"])
def test_l2_by_layer(l2):
    """One number a layer, weights and biases apart, and one a parameter: the gradient has the form of l2."""
    problem = Problem("mean_squared_error")
    size = problem.net.num_params
    problem.l2 = L2 * (np.linspace(0.5, 2.0, size) if isinstance(l2, str) else np.array(l2))
    problem.params = trained(problem.net, problem.params, problem.X, problem.y, problem.l2, problem.weights)
    found = problem.found("l2").gradient
    assert found.shape == np.shape(problem.l2)
    problem.check("l2", found)


@pytest.mark.parametrize("frozen", [[0], [1], [0, 1]])
def test_frozen_layers(frozen):
    """What the net holds is no unknown, and inputs act through it."""
    problem = Problem("mean_squared_error")
    problem.net, start = problem.net.freeze(problem.params, frozen)
    problem.params = trained(problem.net, start, problem.X, problem.y, 3 * L2, problem.weights)
    problem.l2 = 3 * L2
    for what, gradient in zip(("l2", "X", "y"), problem.found(("l2", "X", "y")).gradient):
        problem.check(what, gradient)


def test_each_sample():
    """Not only along a direction: single weights, entries of X and y, one of them of a sample with a weight of 0."""
    problem = Problem("mean_squared_error")
    problem.weights[2] = 0.0
    problem.params = trained(problem.net, problem.params, problem.X, problem.y, problem.l2, problem.weights)
    weight, X, y = problem.found(("sample_weight", "X", "y")).gradient
    assert not X[2].any() and not y[2].any() and weight[2] != 0.0
    h = 1e-3
    for i in (2, 7):
        slopes = []
        for name, gradient in (("weights", weight), ("X", X), ("y", y)):
            step = np.zeros(gradient.shape)
            step[(i,) + (1,) * (gradient.ndim - 1)] = h
            start = getattr(problem, name)
            # Weights must not be negative: a difference to one side, of second order.
            if i == 2 and name == "weights":
                at = [problem.loss(weights=start + t * step) for t in (0.0, 1.0, 2.0)]
                slopes.append(((4 * at[1] - 3 * at[0] - at[2]) / (2 * h), gradient[i]))
            else:
                ahead, behind = (problem.loss(**{name: start + t * step}) for t in (1.0, -1.0))
                slopes.append(((ahead - behind) / (2 * h), gradient[(i,) + (1,) * (gradient.ndim - 1)]))
        for slope, expected in slopes:
            assert abs(slope - expected) < 1e-4 * abs(expected) + 1e-9


def test_a_function_of_anything():
    """The pull-back of the gradient: of a shift of all inputs, of the targets, and of two L2 terms at once."""
    problem = Problem("one output")
    net, X, y, l2, weights = problem.net, problem.X, problem.y, problem.l2, problem.weights
    by_name = problem.found(("l2", "y"))

    def two_terms(params, u):
        """l2/2 of the first layer's parameters, and of the others'."""
        return params[:16] @ u[:16], params[16:] @ u[16:]

    def shift(params, u):
        """In phi, of y + phi: J (B, n, P) of the outputs, and the loss's mixed derivative of -2 w_i / sum(w)."""
        return -2.0 * (weights / weights.sum()) @ (net.jacobian(params, X)[:, 0] @ u)

    found = problem.found((two_terms, shift))
    assert found.gradient[0].shape == (2,) and found.gradient[0].sum() == pytest.approx(by_name.gradient[0], rel=1e-10)
    assert found.gradient[1].shape == () and found.gradient[1] == pytest.approx(by_name.gradient[1].sum(), rel=1e-10)
    assert problem.found(shift).gradient == found.gradient[1]
    H = net.hessian(problem.params, X, y, l2=l2, sample_weight=weights).todense()
    slope = net.gradient(problem.params, *problem.validation)
    np.testing.assert_allclose(found.adjoint, np.linalg.solve(H, slope), rtol=1e-8, atol=1e-10)


def test_a_validation_loss_of_ones_own():
    """The accuracy's stand-in may be anything with a gradient; here it is twice the loss."""
    problem = Problem("softmax")
    single, samples_of_it = problem.found("l2"), problem.validation

    def twice(params):
        loss, gradient = problem.net.loss_and_gradient(params, *samples_of_it)
        return 2.0 * loss, 2.0 * gradient

    problem.validation = twice
    double = problem.found("l2")
    assert double.loss == pytest.approx(2 * single.loss) and double.gradient == pytest.approx(2 * single.gradient)


def test_a_linear_net_in_closed_form():
    """Ridge regression: the solution is known, and so are its derivatives."""
    rng, net = np.random.default_rng(0), nh.Network([nh.Dense(3, 1, "identity", bias=False)], "mean_squared_error")
    X, y, X_new, y_new = (rng.standard_normal(shape) for shape in ((20, 3), 20, (9, 3), 9))
    A = 2 * X.T @ X / 20 + 0.3 * np.eye(3)
    w = np.linalg.solve(A, 2 * X.T @ y / 20)
    slope = 2 * X_new.T @ (X_new @ w - y_new) / 9
    u = np.linalg.solve(A, slope)
    found = nh.hypergradient(net, w, (X, y), (X_new, y_new), ("l2", "sample_weight", "X", "y"), l2=0.3)
    r = X @ w - y
    expected = [
        -w @ u,
        -(2 * r * (X @ u) - 2 * X.T @ r @ u / 20) / 20,
        -2 * (np.outer(r, u) + np.outer(X @ u, w)) / 20,
        2 * X @ u / 20,
    ]
    for ours, theirs in zip(found.gradient, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)
    assert np.linalg.norm(found.newton_step) < 1e-13


def test_batches_float32_and_ways_of_factoring():
    problem = Problem("mean_squared_error", 300)
    asked = "l2", "sample_weight", "X", "y"
    expected = problem.found(asked)
    for options in (
        {"batch_size": 100},
        {"method": "layers"},
        {"method": "dense"},
        {"batch_size": 128, "keep_bytes": 0},
    ):
        for ours, theirs in zip(problem.found(asked, **options).gradient, expected.gradient):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)
    wide = problem.params
    problem.params = wide.astype(np.float32)
    with warnings.catch_warnings():
        # Parameters in single precision are that far from the minimum.
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)
        found = problem.found(asked)
    for ours, theirs in zip(found.gradient, expected.gradient):
        assert np.asarray(ours).dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_params_that_are_no_minimum():
    """Said, with how far away the minimum is; a saddle as well."""
    problem = Problem("mean_squared_error")
    near = problem.params + 1e-4 * np.random.default_rng(0).standard_normal(problem.params.size)
    at_minimum, problem.params = problem.params, near
    with pytest.warns(
        scipy.linalg.LinAlgWarning, match="^params: expected a minimum of the training loss, got a gradient"
    ):
        found = problem.found("l2")
    assert np.linalg.norm(near + found.newton_step - at_minimum) < 0.05 * np.linalg.norm(near - at_minimum)
    problem.params, problem.l2 = problem.net.init(1), 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problem.found("l2", damping=1e-3)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and all(warning.filename == __file__ for warning in caught)
    assert "negative eigenvalues with damping=0.001" in said[0] and "does not move with the minimum" in said[0]
    assert said[1].startswith("params: expected a minimum")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            {"with_respect_to": "weights"},
            ValueError,
            "^with_respect_to: expected 'l2', 'sample_weight', 'X', 'y', a fun",
        ),
        ({"with_respect_to": ("l2", 3)}, ValueError, "^with_respect_to: .* got 3"),
        (
            {"with_respect_to": "y", "net": "softmax"},
            ValueError,
            "^with_respect_to: expected no 'y' where y has labels",
        ),
        ({"with_respect_to": lambda params, u: [np.nan]}, ValueError, "^with_respect_to: what the function returns"),
        ({"train": np.ones((12, 3))}, TypeError, r"^train: expected a pair \(X, y\), got ndarray"),
        ({"validation": (np.ones((2, 3)),)}, TypeError, r"^validation: expected a pair \(X, y\), got 1 things"),
        ({"validation": lambda params: 1.0}, TypeError, "^validation: expected a function that returns a loss and its"),
        ({"validation": lambda params: (1.0, [2.0])}, ValueError, r"^validation: its gradient: expected shape \(46,\)"),
        ({"net": None}, TypeError, "^net: expected a Network, got NoneType"),
        ({"params": np.ones(3)}, ValueError, "^params: expected shape"),
        ({"damping": np.nan}, ValueError, "^damping: "),
        ({"l2": -1.0}, ValueError, "^l2: "),
    ],
)
def test_bad_arguments(changes, error, message):
    net = NETS[changes.get("net") or "mean_squared_error"]
    X, y = samples(net, 12, 0)
    arguments = {"net": net, "params": net.init(0), "train": (X, y), "validation": (X, y), "l2": 0.1, **changes}
    if isinstance(arguments["net"], str):
        arguments["net"] = net
    with pytest.raises(error, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)
        nh.hypergradient(**arguments)


@nh.register_loss("log_cosh_of_residuals")
def log_cosh(z, y, gradient, curvature):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        t = np.tanh(z[a] - y[a])
        gradient[a] = t
        curvature[a, a] = 1.0 - t * t
        value += abs(z[a] - y[a]) + np.log1p(np.exp(-2.0 * abs(z[a] - y[a]))) - np.log(2.0)
    return value


@nh.register_loss("squares_by_arrays")
def by_arrays(z, y, gradient, curvature):
    gradient[:] = np.dot(np.eye(z.size), z - y)
    curvature[:] = np.eye(z.size)
    return 0.5 * np.sum((z - y) ** 2)


def test_targets_of_registered_losses(monkeypatch):
    """Their derivatives follow from the code where that is arithmetic on numbers; else the message says so."""
    monkeypatch.setitem(NETS, "log_cosh", dense(2, "log_cosh_of_residuals"))
    problem = Problem("log_cosh")
    problem.check("y", problem.found("y").gradient)
    monkeypatch.setitem(NETS, "arrays", dense(2, "squares_by_arrays"))
    with pytest.raises(
        TypeError, match="^loss: expected one whose derivatives in y follow from its code, got 'squares_by"
    ):
        Problem("arrays").found("y")
