"""`nh.NetRegressor` and `nh.NetClassifier`: scikit-learn's own checks, closed forms, and what they promise beyond."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import numba_hinv as nh

pytest.importorskip("sklearn")
from sklearn import base, exceptions, linear_model, neural_network, pipeline, preprocessing  # noqa: E402
from sklearn.utils import estimator_checks  # noqa: E402

RNG = np.random.default_rng(4)
X = RNG.standard_normal((40, 3)) * [1.0, 20.0, 0.1] + [0.0, 5.0, -3.0]
Y = np.sin(X[:, 0]) + 0.05 * X[:, 1] + 0.2 * RNG.standard_normal(40)
LABELS = np.array(["fig", "apple", "pear"])[(X[:, 0] > -0.5).astype(int) + (X[:, 0] > 0.6)]
SMALL = {"hidden_layer_sizes": (3,), "random_state": 0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make, sizes",
    [(nh.NetRegressor, 3), (nh.NetClassifier, ()), pytest.param(nh.NetClassifier, 3, marks=pytest.mark.slow)],
)
def test_checks_of_scikit_learn(make, sizes):
    """With a given alpha, which is what takes little time; tests below are of the evidence."""
    estimator_checks.check_estimator(make(sizes, alpha=0.1, random_state=0))


def test_they_are_estimators():
    model = nh.NetRegressor((3,), alpha=0.5)
    assert isinstance(model, base.BaseEstimator) and base.is_regressor(model)
    assert base.is_classifier(nh.NetClassifier()) and "NetRegressor" in dir(nh)
    assert base.clone(model).get_params() == model.get_params() and model.get_params()["alpha"] == 0.5
    fitted = nh.NetClassifier(**SMALL, alpha=0.3).fit(X, LABELS)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(X), fitted.predict_proba(X))


@pytest.mark.parametrize("alpha", [0.2, "evidence"])
def test_a_linear_net_is_bayesian_ridge_regression(alpha):
    """Mode, variances and the evidence's maximum, against closed forms in the scaled data, intercept penalised too."""
    model = nh.NetRegressor((), alpha=alpha, random_state=0).fit(X, Y)
    design = np.hstack([(X - X.mean(0)) / X.std(0), np.ones((40, 1))])
    target = (Y - Y.mean()) / Y.std()
    noise = model.laplace_.noise_variance
    precision = design.T @ design + model.alpha_ * np.eye(4)
    mode = np.linalg.solve(precision, design.T @ target)
    np.testing.assert_allclose(model.predict(X), design @ mode * Y.std() + Y.mean(), rtol=1e-6, atol=1e-7)
    variance = noise * np.einsum("ij,jk,ik->i", design, np.linalg.inv(precision), design)
    np.testing.assert_allclose(model.predict_std(X, include_noise=False), np.sqrt(variance) * Y.std(), rtol=1e-6)
    np.testing.assert_allclose(model.predict_std(X), np.sqrt(variance + noise) * Y.std(), rtol=1e-6)
    gamma = 4 - model.alpha_ * np.trace(np.linalg.inv(precision))
    residual = target - design @ mode
    # MacKay's conditions; those of a weight that is settled to 1e-4.
    assert noise == pytest.approx(residual @ residual / (40 - gamma), rel=1e-3)
    if alpha == "evidence":
        assert gamma == pytest.approx(model.alpha_ / noise * (mode @ mode), rel=1e-3)
        ridge = linear_model.BayesianRidge(fit_intercept=False, lambda_1=0, lambda_2=0, alpha_1=0, alpha_2=0, tol=1e-10)
        ridge.fit(design, target)
        assert model.alpha_ == pytest.approx(ridge.lambda_ / ridge.alpha_, rel=1e-3)
        np.testing.assert_allclose(model.predict_std(X), ridge.predict(design, return_std=True)[1] * Y.std(), rtol=1e-3)


@pytest.mark.parametrize("kind", ["regression", "several", "classes"])
def test_alpha_is_that_of_scikit_learn(kind):
    """The objective's value at the parameters found is at most that which scikit-learn reaches, biases left out."""
    make = neural_network.MLPClassifier if kind == "classes" else neural_network.MLPRegressor
    scaled = preprocessing.StandardScaler().fit_transform(X)
    y = {"regression": Y, "several": np.stack([Y, X[:, 0]], 1), "classes": LABELS}[kind]
    y = y if kind == "classes" else (y - y.mean(0)) / y.std(0)
    alpha = 0.7
    ours = (nh.NetClassifier if kind == "classes" else nh.NetRegressor)(**SMALL, alpha=alpha).fit(X, y)
    settings = {"activation": "tanh", "alpha": alpha, "solver": "lbfgs", "max_iter": 2000, "tol": 1e-9}
    theirs = make(hidden_layer_sizes=(3,), random_state=0, **settings).fit(scaled, y)
    net, start, X_net, y_net, damping = nh.from_sklearn(theirs, scaled, y)
    objective = [net.loss(params, X_net, y_net, l2=damping) for params in (ours.params_, start)]
    # Theirs leaves the biases out, so that it is no minimum of ours, and ours is one.
    assert objective[0] <= objective[1] * (1 + 1e-3)
    assert np.linalg.norm(net.gradient(ours.params_, X_net, y_net, l2=damping)) <= 1e-6
    assert ours.alpha_ == pytest.approx(alpha, rel=1e-12)


def test_uncertainty():
    x = np.linspace(-2, 2, 60).reshape(-1, 1)
    y = np.sin(2 * x[:, 0]) + 0.1 * np.random.default_rng(0).standard_normal(60)
    model = nh.NetRegressor((6,), random_state=0).fit(x, y)
    assert np.sqrt(model.noise_variance_) == pytest.approx(0.1, rel=0.3)
    lower, upper = model.predict_interval(x, 0.9)
    mean, std = model.predict(x, return_std=True)
    np.testing.assert_allclose(upper - lower, 2 * 1.6448536 * std, rtol=1e-6)
    np.testing.assert_allclose(upper + lower, 2 * mean, rtol=1e-12, atol=1e-12)
    assert 0.8 <= np.mean((y > lower) & (y < upper)) <= 1.0
    far = model.predict_std([[8.0]], include_noise=False)
    assert far > 3 * model.predict_std(x, include_noise=False).max()


@pytest.mark.parametrize("labels", [LABELS, LABELS == "fig"])
def test_probabilities(labels):
    """Averages over the posterior of the outputs, against samples of it; nearer to each other than those of one net."""
    model = nh.NetClassifier(**SMALL, alpha=0.3).fit(X, labels)
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    assert np.array_equal(model.predict(X), model.classes_[probabilities.argmax(axis=1)])
    mean, covariance = model.laplace_.predict(model._checked(X))
    draws = np.random.default_rng(0).standard_normal((20000, mean.shape[1]))
    averages = []
    for center, spread in zip(mean, covariance):
        values, vectors = np.linalg.eigh(spread)
        logits = center + draws @ (vectors * np.sqrt(np.maximum(values, 0))).T
        logits = np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        averages.append((weights / weights.sum(axis=1, keepdims=True)).mean(axis=0))
    # MacKay's approximation is good to a tenth with variances like these; what one net says is further away.
    alone = np.exp(mean - mean.max(axis=1, keepdims=True)) if mean.shape[1] > 1 else 1 / (1 + np.exp(-mean))
    alone = alone / alone.sum(axis=1, keepdims=True) if mean.shape[1] > 1 else np.hstack([1 - alone, alone])
    assert np.abs(probabilities - averages).max() < 0.12
    assert np.linalg.norm(probabilities - averages) < 0.8 * np.linalg.norm(alone - averages)
    far = np.full((1, 3), 1e3)
    assert model.predict_proba(far).max() < 0.999


def test_weights_are_repetitions_and_evidence_too():
    weights = np.random.default_rng(1).integers(0, 3, 40).astype(float)
    repeated = np.repeat(np.arange(40), weights.astype(int))
    once = nh.NetRegressor((), random_state=0).fit(X, Y, sample_weight=weights)
    again = nh.NetRegressor((), random_state=0).fit(X[repeated], Y[repeated])
    np.testing.assert_allclose(once.predict_std(X), again.predict_std(X), rtol=1e-6)
    assert once.log_evidence_ == pytest.approx(again.log_evidence_, rel=1e-8)


def test_without_a_prior_there_is_no_uncertainty():
    model = nh.NetRegressor((), alpha=0).fit(X, Y)
    ols = linear_model.LinearRegression().fit(X, Y)
    np.testing.assert_allclose(model.predict(X), ols.predict(X), rtol=1e-6)
    with pytest.raises(ValueError, match="alpha: expected a positive number or 'evidence' for an uncertainty, got 0"):
        model.predict_std(X)
    assert np.isfinite(nh.NetClassifier((), alpha=0, max_iter=5, tol=1e-1).fit(X, LABELS).predict_proba(X)).all()


def test_what_is_wrong_is_named():
    for options, message in [
        ({"alpha": "best"}, "alpha: expected 'evidence' or a number of at least 0, got 'best'"),
        ({"alpha": -1}, "alpha: expected 'evidence' or a number of at least 0, got -1"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes: expected at least 1, got 0"),
        ({"activation": "tahn"}, "did you mean 'tanh'"),
    ]:
        with pytest.raises(ValueError, match=message):
            nh.NetRegressor(**options).fit(X, Y)
    with pytest.raises(ValueError, match="coverage: expected a number between 0 and 1, got 95"):
        nh.NetRegressor((), alpha=1.0).fit(X, Y).predict_interval(X, 95)
    with pytest.raises(ValueError, match="max_iter: expected at least 1, got 0"):
        nh.NetRegressor(max_iter=0).fit(X, Y)
    with pytest.warns(exceptions.ConvergenceWarning, match="max_iter: expected enough steps .* got 1"):
        nh.NetRegressor((3,), alpha=0.1, max_iter=1, tol=1e-14, random_state=0).fit(X, Y)


def test_pipelines():
    """Data go through the steps; the net, its objective and the damping are those of the last."""
    steps = (
        preprocessing.StandardScaler(),
        neural_network.MLPClassifier(
            hidden_layer_sizes=(4,), activation="tanh", solver="lbfgs", max_iter=5, random_state=0
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        model = pipeline.make_pipeline(*steps).fit(X, LABELS)
    net, params, X_net, y_net, damping = nh.from_sklearn(model, X, LABELS)
    expected = nh.from_sklearn(model[-1], model[0].transform(X), LABELS)
    assert np.array_equal(params, expected[1]) and np.array_equal(X_net, expected[2]) and damping == expected[4]
    assert np.array_equal(model.classes_[net.forward(params, X_net).argmax(axis=1)], model.predict(X))
    with pytest.raises(ValueError, match=r"X: expected data with a Pipeline, .*model\[-1\]"):
        nh.from_sklearn(model)
    alone = pipeline.Pipeline([("nothing", "passthrough"), ("net", model[-1])])
    assert np.array_equal(nh.from_sklearn(alone)[1], params)
    with pytest.raises(TypeError, match="model: expected an MLPClassifier or an MLPRegressor, got StandardScaler"):
        nh.from_sklearn(pipeline.make_pipeline(model[0]), X, LABELS)


def test_nothing_is_imported_before_it_is_asked_for():
    script = """
import sys
import numba_hinv as nh
assert "sklearn" not in sys.modules
from numba_hinv import *
assert "sklearn" not in sys.modules
sys.modules["sklearn"] = None
try:
    nh.NetRegressor
except ImportError as error:
    assert "numba_hinv[sklearn]" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
