"""scikit-learn's perceptrons: losses, gradients and curvature against its own code and finite differences."""

import inspect
import subprocess
import sys
import warnings

import numpy as np
import pytest

import numba_hinv as nh

neural_network = pytest.importorskip("sklearn.neural_network")
exceptions = pytest.importorskip("sklearn.exceptions")

B = 12


def fitted(kind, activation="tanh", outputs=3, hidden=(5, 4), alpha=0.3, solver="lbfgs", dtype=np.float64, seed=0):
    """A model after a few steps of training, and the data it was trained on."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((B, 4)).astype(dtype)
    if kind == "multiclass":
        y = np.array(["pear", "apple", "fig", "quince"])[np.arange(B) % 4]
    elif kind == "binary":
        y = np.array([7, -2])[np.arange(B) % 2]
    elif kind == "multilabel":
        y = rng.integers(0, 2, (B, outputs))
    else:
        y = rng.standard_normal((B, outputs) if outputs > 1 else B).astype(dtype)
    make = neural_network.MLPRegressor if kind == "regression" else neural_network.MLPClassifier
    settings = {"solver": solver, "max_iter": 4, "random_state": seed}
    model = make(hidden_layer_sizes=hidden, activation=activation, alpha=alpha, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        return model.fit(X, y), X, y


def sklearn_objective(model, X, y, *weights):
    """Loss and gradient (coefs, then intercepts) of scikit-learn's own backpropagation."""
    if hasattr(model, "_label_binarizer"):
        y = model._label_binarizer.transform(y).astype(bool)
    y = y.reshape(len(X), -1)
    units = [X.shape[1], *(weight.shape[1] for weight in model.coefs_)]
    activations = [X, *(np.empty((len(X), n), X.dtype) for n in units[1:])]
    deltas = [np.empty_like(a) for a in activations[1:]]
    gradients = [np.empty_like(c) for c in model.coefs_], [np.empty_like(c) for c in model.intercepts_]
    if "sample_weight" in inspect.signature(model._backprop).parameters:
        weights = weights or (None,)
    loss, dW, dc = model._backprop(X, y, *weights, activations, deltas, *gradients)
    return loss, np.concatenate([part.ravel() for w, c in zip(dW, dc) for part in (w.T, c)])


def on_weights(net, params):
    """The parameters with zeros for the intercepts."""
    only = params.copy()
    for _, bias in net.unpack(only):
        bias[:] = 0.0
    return only


CASES = [
    *(("regression", activation, 1) for activation in ("identity", "logistic", "tanh", "relu")),
    ("regression", "tanh", 3),
    ("binary", "tanh", 1),
    ("multiclass", "logistic", 4),
    ("multilabel", "tanh", 3),
    ("multilabel", "relu", 2),
]


@pytest.mark.parametrize("kind, activation, outputs", CASES)
def test_loss_and_gradient_are_scikit_learns(kind, activation, outputs):
    model, X_given, y_given = fitted(kind, activation, outputs)
    net, params, X, y, damping = nh.from_sklearn(model, X_given, y_given)
    scale = {"regression": outputs / 2, "multilabel": outputs}.get(kind, 1)
    assert damping == model.alpha / (B * scale)
    loss, gradient = sklearn_objective(model, X_given, y_given)
    penalty = 0.5 * damping * on_weights(net, params) @ params
    # scikit-learn's value for several outputs of a regressor is not that of which it follows the gradient.
    reported = scale / outputs if kind == "regression" else scale
    assert reported * net.loss(params, X, y) + scale * penalty == pytest.approx(loss, rel=1e-12)
    ours = scale * (net.gradient(params, X, y) + damping * on_weights(net, params))
    assert np.abs(ours - gradient).max() <= 1e-12 * np.abs(gradient).max()


@pytest.mark.parametrize("kind, activation, outputs", [case for case in CASES if case[1] != "relu"])
def test_damped_hessian_is_scikit_learns(kind, activation, outputs):
    """Central differences of scikit-learn's gradient; the intercepts get the damping on top of it."""
    model, X_given, y_given = fitted(kind, activation, outputs)
    net, params, X, y, damping = nh.from_sklearn(model, X_given, y_given)
    scale = {"regression": outputs / 2, "multilabel": outputs}.get(kind, 1)
    H = net.hessian(params, X, y).todense() + damping * np.eye(params.size)
    step, numeric = 1e-5, np.empty_like(H)
    for column in range(params.size):
        sides = []
        for side in (-step, step):
            moved = params.copy()
            moved[column] += side
            for weight, bias, (new_weight, new_bias) in zip(model.coefs_, model.intercepts_, net.unpack(moved)):
                weight[:], bias[:] = new_weight.T, new_bias
            sides.append(sklearn_objective(model, X_given, y_given)[1])
        numeric[column] = (sides[1] - sides[0]) / (2 * step)
    numeric += scale * damping * (np.eye(params.size) - np.diag(on_weights(net, np.ones_like(params))))
    # Differences of step h err by h^2 times the fourth derivatives, and by rounding over h.
    assert np.abs(scale * H - numeric).max() <= 1e-7 * np.abs(numeric).max()


def test_solve_is_the_dense_one():
    model, *data = fitted("multiclass", "logistic")
    net, params, X, y, damping = nh.from_sklearn(model, *data)
    H = net.hessian(params, X, y)
    b = np.random.default_rng(1).standard_normal(params.size)
    dense = H.todense() + damping * np.eye(params.size)
    x = nh.solve(net, params, X, y, b, damping)
    assert np.linalg.norm(dense @ x - b) <= 1e-12 * (np.linalg.norm(dense, 2) * np.linalg.norm(x) + np.linalg.norm(b))
    assert H.factorize(damping).inertia.negative == (np.linalg.eigvalsh(dense) < 0).sum()


@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel", "regression"])
def test_forward_predicts_what_the_model_predicts(kind):
    model, X, y = fitted(kind, "tanh")
    net, params = nh.from_sklearn(model)
    output = net.forward(params, X)
    if kind == "regression":
        predicted = output
    elif kind == "multiclass":
        predicted = model.classes_[output.argmax(axis=1)]
    elif kind == "binary":
        predicted = model.classes_[(output[:, 0] > 0).astype(int)]
    else:
        predicted = (output > 0).astype(int)
    expected = model.predict(X)
    if kind == "regression":
        np.testing.assert_allclose(predicted, expected, rtol=1e-12, atol=1e-13)
    else:
        assert np.array_equal(predicted, expected)


def needs_weights():
    if "sample_weight" not in inspect.signature(neural_network.MLPRegressor.fit).parameters:
        pytest.skip("an older scikit-learn has neither Poisson losses nor weights")


@pytest.mark.parametrize("outputs", [1, 2])
def test_counts(outputs):
    """Losses of Poisson's law: scikit-learn's has a constant more."""
    needs_weights()
    rng = np.random.default_rng(0)
    X_given = rng.standard_normal((B, 4))
    y_given = rng.integers(1, 6, (B, outputs) if outputs > 1 else B).astype(float)
    settings = {"loss": "poisson", "activation": "tanh", "alpha": 0.2, "max_iter": 3, "random_state": 0}
    model = neural_network.MLPRegressor(hidden_layer_sizes=(3,), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        model.fit(X_given, y_given)
    net, params, X, y, damping = nh.from_sklearn(model, X_given, y_given)
    loss, gradient = sklearn_objective(model, X_given, y_given)
    constant = (y * np.log(y) - y).sum() / B
    penalty = 0.5 * damping * on_weights(net, params) @ params
    assert outputs * (net.loss(params, X, y) + penalty) + constant == pytest.approx(loss, rel=1e-12)
    ours = outputs * (net.gradient(params, X, y) + damping * on_weights(net, params))
    assert np.abs(ours - gradient).max() <= 1e-12 * np.abs(gradient).max()
    np.testing.assert_allclose(np.exp(net.forward(params, X)).squeeze(), model.predict(X_given), rtol=1e-12)


@pytest.mark.parametrize("kind", ["regression", "multiclass", "multilabel"])
def test_weights_of_samples(kind):
    needs_weights()
    model, X_given, y_given = fitted(kind)
    weights = np.random.default_rng(2).integers(0, 4, B).astype(float)
    net, params, X, y, damping = nh.from_sklearn(model, X_given, y_given, weights)
    loss, gradient = sklearn_objective(model, X_given, y_given, weights)
    scale = {"regression": 1.5, "multilabel": 3.0}.get(kind, 1.0)
    ours = scale * (net.gradient(params, X, y, sample_weight=weights) + damping * on_weights(net, params))
    assert np.abs(ours - gradient).max() <= 1e-12 * np.abs(gradient).max()
    with pytest.raises(ValueError, match="sample_weight: expected weights with a positive sum, got 0"):
        nh.from_sklearn(model, X_given, y_given, np.zeros(B))


def test_narrow_models_stay_narrow():
    model, X, y = fitted("regression", solver="adam", dtype=np.float32)
    net, params, X, y, damping = nh.from_sklearn(model, X, y)
    assert params.dtype == X.dtype == y.dtype == np.float32
    _, gradient = sklearn_objective(model, X, y)
    ours = 1.5 * (net.gradient(params, X, y) + damping * on_weights(net, params))
    assert np.abs(ours - gradient).max() <= 1e-5 * np.abs(gradient).max()


def test_a_trained_model_is_a_zero_of_the_damped_gradient():
    """Where lbfgs stops, gradient + damping * weights vanishes, although neither does."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 3)), rng.integers(0, 3, 40)
    settings = {"solver": "lbfgs", "alpha": 0.2, "max_iter": 5000, "tol": 1e-10, "random_state": 1}
    model = neural_network.MLPClassifier((6,), "tanh", **settings)
    net, params, X, y, damping = nh.from_sklearn(model.fit(X, y), X, y)
    rest = net.gradient(params, X, y) + damping * on_weights(net, params)
    assert np.abs(rest).max() < 1e-3 * np.abs(damping * params).max()


def test_nothing_is_shared_with_the_model():
    model, X, y = fitted("regression", hidden=(4,))
    before = [weight.copy() for weight in model.coefs_]
    _, params = nh.from_sklearn(model)
    params[:] = 0.0
    assert all(np.array_equal(one, other) for one, other in zip(before, model.coefs_))


def test_what_cannot_be_converted_says_why():
    model, X, y = fitted("multiclass")
    with pytest.raises(TypeError, match="model: expected an MLPClassifier or an MLPRegressor, got int"):
        nh.from_sklearn(3)
    with pytest.raises(ValueError, match="model: expected a fitted MLPRegressor"):
        nh.from_sklearn(neural_network.MLPRegressor())
    with pytest.raises(ValueError, match="y: expected both X and y or neither"):
        nh.from_sklearn(model, X)
    with pytest.raises(ValueError, match=r"X: expected shape \(any, 4\)"):
        nh.from_sklearn(model, X[:, :3], y)
    with pytest.raises(ValueError, match="X: expected at least one sample"):
        nh.from_sklearn(model, X[:0], y[:0])
    with pytest.raises(ValueError, match=r"y: expected shape \(12,\), one class a sample"):
        nh.from_sklearn(model, X, y[1:])
    with pytest.raises(ValueError, match="y: expected classes that the model was fitted to, got .*plum.* at index 0"):
        nh.from_sklearn(model, X, np.array(["plum", *y[1:]]))
    several, X, y = fitted("multilabel")
    with pytest.raises(ValueError, match=r"y: expected \(12, 3\) zeros and ones"):
        nh.from_sklearn(several, X, 2 * y)
    regressor, X, y = fitted("regression", outputs=2)
    with pytest.raises(ValueError, match=r"y: expected shape \(12, 2\)"):
        nh.from_sklearn(regressor, X, y[:, 0])
    regressor.loss, regressor.out_activation_ = "gamma", "exp"
    with pytest.raises(ValueError, match="model: expected loss and output activation to be one of .* got .*gamma"):
        nh.from_sklearn(regressor)


def test_scikit_learn_is_imported_by_those_who_ask():
    script = """
import sys
import numba_hinv as nh
assert "sklearn" not in sys.modules
sys.modules["sklearn"] = None
try:
    nh.from_sklearn(None)
except ImportError as error:
    assert "numba_hinv[sklearn]" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
