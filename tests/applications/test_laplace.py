"""`nh.Laplace` against Bayesian linear regression in closed form, SciPy's densities, and dense linear algebra."""

import re
import warnings

import numpy as np
import pytest
import scipy.linalg
from problems import chain, golden
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import multivariate_normal, norm

import numba_hinv as nh
from numba_hinv.applications import output_covariance

RNG = np.random.default_rng(11)
X = RNG.standard_normal((12, 3))
# With the bias, as the net sees it.
DESIGN = np.hstack([X, np.ones((12, 1))])


def linear(outputs, precision, noise_variance):
    """(Laplace of a linear net at its mode, the closed-form mean and covariance by output, the targets)."""
    y = X @ RNG.standard_normal((3, outputs)) + 0.3 * RNG.standard_normal((12, outputs))
    cov = np.linalg.inv(DESIGN.T @ DESIGN / noise_variance + precision * np.eye(4))
    mode = cov @ DESIGN.T @ y / noise_variance
    params = np.concatenate([mode[:3].T.ravel(), mode[3]])
    net = nh.Network([nh.Dense(3, outputs, "identity")], "mean_squared_error")
    return nh.Laplace(net, params, X, y, precision, noise_variance=noise_variance), cov, mode, y


def evidence_of(y, precision, noise_variance):
    """The log of p(y | X), which is normal: independent of every formula of the Laplace approximation."""
    cov = DESIGN @ DESIGN.T / precision + noise_variance * np.eye(12)
    return sum(multivariate_normal(np.zeros(12), cov).logpdf(column) for column in y.T)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("precision, noise_variance", [(1.0, 1.0), (0.3, 0.05), (40.0, 3.0)])
def test_linear_regression(outputs, precision, noise_variance):
    laplace, cov, mode, y = linear(outputs, precision, noise_variance)
    assert laplace.log_evidence() == pytest.approx(evidence_of(y, precision, noise_variance), rel=1e-12)
    assert abs(laplace.decrement()) < 1e-20
    variances = laplace.variances()
    np.testing.assert_allclose(
        variances[: 3 * outputs].reshape(outputs, 3), np.tile(np.diag(cov)[:3], (outputs, 1)), rtol=1e-12
    )
    np.testing.assert_allclose(variances[3 * outputs :], cov[3, 3], rtol=1e-12)
    X_new = RNG.standard_normal((5, 3))
    new = np.hstack([X_new, np.ones((5, 1))])
    mean, found = laplace.predict(X_new)
    np.testing.assert_allclose(mean, new @ mode, rtol=1e-12, atol=1e-12)
    expected = np.einsum("ij,jk,ik->i", new, cov, new)[:, None, None] * np.eye(outputs)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_decrement_of_a_quadratic():
    """Away from the mode: what the log posterior gains on the way there."""
    laplace, _, mode, y = linear(1, 0.7, 0.2)
    params = laplace.hessian.system.params + 0.1
    away = nh.Laplace(laplace.network, params, X, y, 0.7, noise_variance=0.2)

    def log_joint(theta):
        weights = np.append(theta[:3], theta[3])
        return norm(DESIGN @ weights, 0.2**0.5).logpdf(y[:, 0]).sum() + norm(0, 0.7**-0.5).logpdf(theta).sum()

    gain = log_joint(laplace.hessian.system.params) - log_joint(params)
    assert away.decrement() == pytest.approx(gain, rel=1e-9)


def test_fitted_prior_and_noise():
    """The maximum of the evidence, where a general optimiser finds it from values alone."""
    y = X @ RNG.standard_normal((3, 2)) + 0.3 * RNG.standard_normal((12, 2))
    net = nh.Network([nh.Dense(3, 2, "identity")], "mean_squared_error")
    params = np.linalg.lstsq(DESIGN, y, rcond=None)[0]
    params = np.concatenate([params[:3].T.ravel(), params[3]])
    laplace = nh.Laplace(net, params, X, y, 50.0, noise_variance=0.1)

    def evidence(log_precision, log_noise=np.log(0.1)):
        return nh.Laplace(net, params, X, y, np.exp(log_precision), noise_variance=np.exp(log_noise)).log_evidence()

    best = minimize_scalar(lambda at: -evidence(at), bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    assert laplace.fit_prior() is laplace
    assert np.log(laplace.prior_precision) == pytest.approx(best.x, abs=1e-6)
    assert laplace.log_evidence() == pytest.approx(-best.fun, rel=1e-10)
    laplace.fit_prior(noise=True)
    options = {"xatol": 1e-7, "fatol": 1e-11}
    both = minimize(lambda at: -evidence(*at), [0.0, -2.0], method="Nelder-Mead", options=options)
    assert np.log([laplace.prior_precision, laplace.noise_variance]) == pytest.approx(both.x, abs=1e-5)


@pytest.mark.parametrize("name", ["mixed_bias_skip", "nobias_bce", "one_layer", "relu_b4", "skip_mse_b6"])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_golden_files(name, curvature):
    problem, g = golden(name)
    y = problem.y if problem.loss != "binary_cross_entropy" else (problem.y > 0.5).astype(float)
    count = len(problem.X) * (1 if problem.loss == "softmax_cross_entropy" else problem.layers[-1]["out_features"])
    noise = 0.4 if problem.loss == "mean_squared_error" else None
    scale = count if noise is None else count / (2 * noise)
    dense = problem.net.hessian(problem.params, problem.X, y, curvature).todense()
    precision = float(scale * (0.2 - min(0.0, np.linalg.eigvalsh(dense)[0])))
    laplace = nh.Laplace(problem.net, problem.params, problem.X, y, precision, curvature, noise)
    posterior = scale * dense + precision * np.eye(problem.size)
    # The log-likelihood from SciPy's densities and the net's outputs.
    output = problem.net.forward(problem.params, problem.X)
    if problem.loss == "softmax_cross_entropy":
        log_likelihood = (output - scipy.special.logsumexp(output, axis=1, keepdims=True))[range(len(y)), y].sum()
    elif problem.loss == "binary_cross_entropy":
        log_likelihood = scipy.stats.bernoulli(scipy.special.expit(output)).logpmf(y).sum()
    else:
        log_likelihood = norm(output, noise**0.5).logpdf(y).sum()
    log_prior = norm(0.0, precision**-0.5).logpdf(problem.params).sum()
    logabsdet = np.linalg.slogdet(posterior / (2 * np.pi))[1]
    expected = log_likelihood + log_prior - 0.5 * logabsdet
    assert laplace.log_evidence() == pytest.approx(expected, rel=1e-10)
    inverse = np.linalg.inv(posterior)
    np.testing.assert_allclose(laplace.variances(), np.diag(inverse), rtol=1e-9)
    # Jacobians by differences of a gradient that the outputs' curvature does not enter: that of the outputs themselves.
    step = 1e-6
    X_new = problem.X[:2] + 0.1
    jacobian = np.array(
        [
            (
                problem.net.forward(problem.params + step * e, X_new)
                - problem.net.forward(problem.params - step * e, X_new)
            )
            / (2 * step)
            for e in np.eye(problem.size)
        ]
    )
    mean, cov = laplace.predict(X_new)
    np.testing.assert_array_equal(mean, problem.net.forward(problem.params, X_new))
    expected = np.einsum("pic,pq,qid->icd", jacobian, inverse, jacobian)
    np.testing.assert_allclose(cov, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(cov, cov.transpose(0, 2, 1))


def test_predictions_of_many_samples(monkeypatch):
    """By tangents along the square root of the inverse, as by solves, through chunks of samples."""
    problem = chain(3, 3, batch=40)
    laplace = nh.Laplace(problem.net, problem.params, problem.X, problem.y, 30.0, "ggn")
    laplace.factorization = laplace.hessian.factorize(30.0 / laplace.scale, method="dense")
    X = np.random.default_rng(0).standard_normal((70, 3))
    monkeypatch.setattr(output_covariance, "_CHUNK", 32)
    found = []
    for row in (0.0, np.inf):
        monkeypatch.setattr(output_covariance, "_ROW", row)
        found.append(laplace.predict(X)[1])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-13 * np.abs(found[0]).max())


def test_samples_have_the_posterior_law():
    problem = chain(3, 3, batch=5)
    laplace = nh.Laplace(problem.net, problem.params, problem.X, problem.y, 30.0, "ggn")
    samples = laplace.sample(40, rng=3)
    standard = laplace.factorization.sample(40, rng=3)
    np.testing.assert_allclose(samples - problem.params, standard / laplace.scale**0.5, rtol=0, atol=1e-14)
    assert laplace.sample().shape == (problem.size,) and not np.array_equal(laplace.sample(), laplace.sample())


def test_custom_layers_and_losses():
    """A registered loss is minus the log-likelihood of a sample; predictions go through custom layers."""
    if "half_squares" not in nh.loss_names():

        @nh.register_loss("half_squares")
        def half_squares(z, y, gradient, curvature):
            value = 0.0
            curvature[:] = 0.0
            for a in range(z.size):
                gradient[a] = z[a] - y[a]
                curvature[a, a] = 1.0
                value += 0.5 * gradient[a] ** 2
            return value

    layers = [nh.Dense(3, 4), nh.LayerNorm(4), nh.Dense(4, 2, "identity")]
    y = RNG.standard_normal((12, 2))
    found = []
    for loss in ("half_squares", "mean_squared_error"):
        net = nh.Network(layers, loss)
        laplace = nh.Laplace(net, net.init(rng=1), X, y, 2.0, "ggn")
        found.append((laplace.log_evidence(), *laplace.predict(X)))
    # Normalised by nobody in the first case: 24 factors of the normal density.
    assert found[0][0] == pytest.approx(found[1][0] + 12 * np.log(2 * np.pi), rel=1e-12)
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-9)


def test_float32():
    problem = chain(3, 3, batch=5)
    wide = nh.Laplace(problem.net, problem.params, problem.X, problem.y, 30.0, "ggn")
    laplace = nh.Laplace(problem.net, problem.params.astype(np.float32), problem.X, problem.y, 30.0, "ggn")
    assert {array.dtype for array in (laplace.variances(), laplace.sample(2), *laplace.predict(problem.X))} == {
        np.dtype(np.float32)
    }
    np.testing.assert_allclose(laplace.variances(), wide.variances(), rtol=1e-3)
    assert laplace.log_evidence() == pytest.approx(wide.log_evidence(), rel=1e-4)


def test_not_at_a_mode():
    problem, g = golden("tanh_deep_b3")
    count = len(problem.X)
    negative = int((problem.eigenvalues + 0.1 / count < 0).sum())
    with pytest.raises(np.linalg.LinAlgError, match=rf"{negative} negative and .*prior_precision=0.1.*Train further"):
        nh.Laplace(problem.net, problem.params, problem.X, problem.y, 0.1)
    # The evidence rises towards the singular matrix; that is no maximum.
    start = 1.0001 * count * -float(problem.eigenvalues[0])
    laplace = nh.Laplace(problem.net, problem.params, problem.X, problem.y, start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            laplace.fit_prior()
        except np.linalg.LinAlgError as error:
            assert "no maximum" in str(error) and laplace.prior_precision == start
        else:
            data = problem.net, problem.params, problem.X, problem.y
            around = [nh.Laplace(*data, laplace.prior_precision * by).log_evidence() for by in (0.99, 1.0, 1.01)]
            assert max(around) == around[1]
    flat = nh.Laplace(problem.net, np.zeros(problem.size), problem.X, problem.y, 1.0, "ggn")
    with pytest.raises(np.linalg.LinAlgError, match="no maximum"):
        flat.fit_prior()


def test_bad_input():
    problem = chain(3, 3, batch=5)
    good = problem.net, problem.params, problem.X, problem.y
    wrong = (0.0, ValueError), (-1.0, ValueError), (np.nan, ValueError), ("1", TypeError), (None, TypeError)
    for value, error in wrong:
        with pytest.raises(error, match="^prior_precision: expected"):
            nh.Laplace(*good, value)
    with pytest.raises(TypeError, match="^net: expected a Network"):
        nh.Laplace(None, *good[1:])
    with pytest.raises(ValueError, match="^params: expected shape"):
        nh.Laplace(problem.net, problem.params[1:], problem.X, problem.y)
    with pytest.raises(ValueError, match="^curvature: expected"):
        nh.Laplace(*good, 1.0, "fisher")
    with pytest.raises(ValueError, match="^noise_variance: expected None"):
        nh.Laplace(*good, 30.0, noise_variance=1.0)
    laplace = nh.Laplace(*good, 30.0, "ggn")
    with pytest.raises(ValueError, match="^noise: expected False"):
        laplace.fit_prior(noise=True)
    with pytest.raises(TypeError, match="^noise: expected"):
        laplace.fit_prior(noise=1)
    with pytest.raises(ValueError, match="^X: expected"):
        laplace.predict(problem.X[:, 1:])
    with pytest.raises(ValueError, match="^n: expected"):
        laplace.sample(-1)
    values = chain(3, 3, batch=5, loss="mean_squared_error")
    for value in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match="^noise_variance: expected"):
            nh.Laplace(values.net, values.params, values.X, values.y, noise_variance=value)
    binary = chain(3, 3, batch=5, loss="binary_cross_entropy")
    with pytest.raises(ValueError, match="^y: expected 0 and 1"):
        nh.Laplace(binary.net, binary.params, binary.X, binary.y, 30.0)
    assert re.match("Laplace", repr(laplace))


def test_batches_are_the_same_training_data():
    problem = chain(4, 3, batch=60, seed=5)
    X, y, options = problem.X, problem.y, {"prior_precision": 20.0, "curvature": "ggn"}
    whole = nh.Laplace(problem.net, problem.params, X, y, **options)
    pairs = [(X[:7], y[:7]), (X[7:], y[7:])]
    parts = nh.Laplace(problem.net, problem.params, pairs, keep_bytes=0, **options)
    assert parts.log_evidence() == pytest.approx(whole.log_evidence(), rel=1e-12)
    assert parts.fit_prior().prior_precision == pytest.approx(whole.fit_prior().prior_precision, rel=1e-9)
    np.testing.assert_allclose(parts.variances(), whole.variances(), rtol=1e-8)
    for one, other in zip(parts.predict(X[:3]), whole.predict(X[:3])):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("noise", [False, True])
def test_one_spectrum_finds_the_prior_that_factorizations_find(noise, monkeypatch):
    problem = chain(4, 3, batch=60, seed=5, loss="mean_squared_error")
    found = []
    for method in ("layers", "dense"):
        factorize = nh.Hessian.factorize
        with monkeypatch.context() as patch:
            patch.setattr(nh.Hessian, "factorize", lambda *args, **kw: factorize(*args, **{**kw, "method": method}))
            laplace = nh.Laplace(problem.net, problem.params, problem.X, problem.y, 20.0, "ggn").fit_prior(noise)
        assert laplace.factorization.method == method and (laplace._eigenvalues is None) == (method == "layers")
        found.append((laplace.prior_precision, laplace.noise_variance))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_targets_of_batches_are_0_and_1():
    net = nh.Network([nh.Dense(1, 1, "identity")], "binary_cross_entropy")
    with pytest.raises(ValueError, match="y: expected 0 and 1"):
        nh.Laplace(net, np.zeros(2), [(np.ones((2, 1)), np.array([0.0, 0.5]))])


def test_what_a_message_says_of_the_gauss_newton_matrix():
    """It is indefinite where the loss is not convex in the outputs; then it is no way out."""

    @nh.register_loss("concave_half_squares")
    def concave(z, y, gradient, curvature):
        value = 0.0
        curvature[:] = 0.0
        for a in range(z.size):
            gradient[a] = y[a] - z[a]
            curvature[a, a] = -1.0
            value -= 0.5 * (z[a] - y[a]) ** 2
        return value

    net = nh.Network([nh.Dense(3, 1, "identity")], "concave_half_squares")
    data = net, np.ones(4), X, X[:, :1]
    with pytest.raises(np.linalg.LinAlgError, match="concave_half_squares is not convex .* larger prior") as caught:
        nh.Laplace(*data, 1e-3, "ggn")
    assert "ggn" not in str(caught.value)
    with pytest.raises(np.linalg.LinAlgError, match="Train further, take curvature='ggn' if the loss is convex"):
        nh.Laplace(*data, 1e-3)


def test_a_precision_that_may_be_indefinite(monkeypatch):
    net = nh.Network([nh.Dense(3, 1, "identity")], "mean_squared_error")
    data = net, np.ones(4), X, X[:, :1]
    monkeypatch.setattr("numba_hinv.certainty.inertia.certified_count", lambda solver: (None, "rounding"))
    with pytest.warns(scipy.linalg.LinAlgWarning, match="too close to 0 to count the negative ones"):
        nh.Laplace(*data, 1.0)
