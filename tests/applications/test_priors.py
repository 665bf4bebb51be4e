"""Priors by layer: the evidence against dense algebra, its slopes against differences, its maximum against SciPy's."""

import numpy as np
import pytest
from scipy.optimize import minimize

import numba_hinv as nh
from numba_hinv.applications.priors import groups_of

LAYERS = [nh.Dense(3, 6), nh.Dense(6, 6, skip=True), nh.Dense(6, 2, "identity")]


@pytest.fixture(scope="module", params=["layers", "dense"])
def problem(request):
    """A trained net and a batch whose matrix is factored in the way that is asked for."""
    rng = np.random.default_rng(0)
    batch = 4 if request.param == "layers" else 60
    X = rng.standard_normal((batch, 3))
    y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], axis=1) + 0.1 * rng.standard_normal((batch, 2))
    net = nh.Network(LAYERS, "mean_squared_error")
    params = nh.minimize(net, net.init(rng=0), X, y, l2=0.02).x
    return net, params, X, y


def dense_evidence(net, params, X, y, precisions, noise, mean=0.0):
    """The log evidence by the formula, from H as a matrix."""
    H = net.hessian(params, X, y, curvature="ggn")
    scale = y.size / (2.0 * noise)
    A = scale * H.todense() + np.diag(precisions)
    distance = params - mean
    return (
        -scale * H.loss
        - 0.5 * y.size * np.log(2 * np.pi * noise)
        + 0.5 * np.log(precisions).sum()
        - 0.5 * (precisions * distance**2).sum()
        - 0.5 * np.linalg.slogdet(A)[1]
    )


def expanded(entries):
    """A precision for every parameter, from (weights, biases) of every layer."""
    counts = [(layer.in_features * layer.out_features, layer.out_features) for layer in LAYERS]
    return np.repeat(np.ravel(entries), np.ravel(counts))


def test_evidence_variances_and_decrement(problem):
    net, params, X, y = problem
    pairs, mean = [(0.5, 2.0), (1.0, 0.3), (4.0, 1.0)], np.linspace(-0.1, 0.2, params.size)
    precisions = expanded(pairs)
    options = {"curvature": "ggn", "noise_variance": 0.05}
    laplace = nh.Laplace(net, params, X, y, prior_precision=pairs, prior_mean=mean, **options)
    assert abs(laplace.log_evidence() - dense_evidence(net, params, X, y, precisions, 0.05, mean)) < 1e-8
    A = laplace.scale * laplace.hessian.todense() + np.diag(precisions)
    assert np.allclose(laplace.variances(), np.diag(np.linalg.inv(A)), rtol=1e-8)
    slope = laplace.scale * laplace.hessian.gradient + precisions * (params - mean)
    assert abs(laplace.decrement() - 0.5 * slope @ np.linalg.solve(A, slope)) < 1e-7
    samples = laplace.sample(4000, rng=0)
    cov = np.linalg.inv(A)
    scale = np.sqrt(np.diag(cov))
    found = (samples - params).T @ (samples - params) / 4000
    # Six standard deviations of such an estimate.
    assert (np.abs(found - cov) < 6 * np.sqrt(2 / 4000) * np.outer(scale, scale)).all()
    whole = nh.Laplace(net, params, X, y, prior_precision=0.7, prior_mean=0.1, **options)
    assert abs(whole.log_evidence() - dense_evidence(net, params, X, y, np.full(params.size, 0.7), 0.05, 0.1)) < 1e-8


@pytest.mark.parametrize("per_layer", [True, "pairs"])
def test_slopes_by_differences(problem, per_layer):
    """What the maximum is found by, in every group and in the noise."""
    net, params, X, y = problem
    laplace = nh.Laplace(net, params, X, y, curvature="ggn", noise_variance=0.05)
    chain = laplace.hessian.system.chain
    group, counts, _ = groups_of(chain, 0, per_layer == "pairs")
    rng = np.random.default_rng(1)
    u = rng.normal(0.0, 0.5, counts.size)
    distances = np.bincount(group, params**2)

    def evidence(u, noise):
        return dense_evidence(net, params, X, y, np.exp(u)[group], noise)

    value, variances = laplace.evidence_at(np.exp(u)[group], 0.05)
    assert abs(value - evidence(u, 0.05)) < 1e-8
    traces = np.exp(u) * np.bincount(group, variances)
    slopes = 0.5 * (counts - np.exp(u) * distances - traces)
    h = 1e-4
    for g in range(counts.size):
        step = h * (np.arange(counts.size) == g)
        difference = (evidence(u + step, 0.05) - evidence(u - step, 0.05)) / (2 * h)
        # The error of central differences: h^2 / 6 times a third derivative of at most a few n_g.
        assert abs(slopes[g] - difference) < 1e-6 * max(counts)
    fit = laplace.scale_with(0.05) * laplace.hessian.loss - 0.5 * (y.size - (counts.sum() - traces.sum()))
    difference = (evidence(u, 0.05 * np.exp(h)) - evidence(u, 0.05 * np.exp(-h))) / (2 * h)
    assert abs(fit - difference) < 1e-6 * y.size


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("per_layer", [True, "pairs"])
def test_maximum(problem, per_layer, noise):
    net, params, X, y = problem
    are_pairs = per_layer == "pairs"
    laplace = nh.Laplace(net, params, X, y, curvature="ggn", noise_variance=0.05)
    assert laplace.fit_prior(noise=noise, per_layer=per_layer) is laplace
    assert laplace.prior_precision.shape == ((3, 2) if are_pairs else (3,))
    H, loss = net.hessian(params, X, y, curvature="ggn").todense(), net.loss(params, X, y)

    def minus_evidence(u):
        entries = np.exp(u[:6].reshape(3, 2)) if are_pairs else np.exp(np.repeat(u[:3], 2).reshape(3, 2))
        precisions, variance = expanded(entries), np.exp(u[-1]) if noise else 0.05
        scale = y.size / (2.0 * variance)
        return (
            scale * loss
            + 0.5 * y.size * np.log(2 * np.pi * variance)
            - 0.5 * np.log(precisions).sum()
            + 0.5 * (precisions * params**2).sum()
            + 0.5 * np.linalg.slogdet(scale * H + np.diag(precisions))[1]
        )

    start = np.zeros(6 if are_pairs else 3)
    start = np.append(start, np.log(0.05)) if noise else start
    found = minimize(minus_evidence, start, method="BFGS", options={"gtol": 1e-6})
    best = np.exp(found.x)
    precision = best[:6].reshape(3, 2) if are_pairs else best[:3]
    # Differences of the dense evidence know its maximum to about 1e-4.
    assert np.allclose(laplace.prior_precision, precision, rtol=1e-3)
    if noise:
        assert abs(laplace.noise_variance / best[-1] - 1.0) < 1e-3
    assert abs(laplace.log_evidence() + found.fun) < 1e-6
    assert (
        laplace.log_evidence()
        >= nh.Laplace(net, params, X, y, curvature="ggn", noise_variance=0.05).fit_prior(noise=noise).log_evidence()
        - 1e-8
    )


def test_no_maximum_names_the_layer(problem):
    net, params, X, y = problem
    params = params.copy()
    net.unpack(params)[1][1][:] = 0.0
    laplace = nh.Laplace(net, params, X, y, curvature="ggn", noise_variance=0.05)
    before = laplace.prior_precision
    with pytest.raises(np.linalg.LinAlgError, match="no maximum in that of layer 1, biases"):
        laplace.fit_prior(per_layer="pairs")
    assert laplace.prior_precision == before
    with pytest.raises(ValueError, match="per_layer: expected True, False or 'pairs'"):
        laplace.fit_prior(per_layer="layer")


def test_with_frozen_layers():
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((50, 3)), rng.integers(0, 3, 50)
    net = nh.Network([nh.Dense(3, 8), nh.Dense(8, 8), nh.Dense(8, 3, "identity")], "softmax_cross_entropy")
    params = nh.minimize(net, net.init(rng=0), X, y, l2=0.02).x
    head, rest = net.freeze(params, 0)
    laplace = nh.Laplace(head, rest, X, y, prior_precision=[9.0, 1.0, 2.0], curvature="ggn").fit_prior(per_layer=True)
    precisions = laplace.precisions
    assert laplace.prior_precision.shape == (3,) and laplace.prior_precision[0] == 1.0
    assert np.array_equal(np.unique(precisions), np.unique(laplace.prior_precision[1:]))
    # D. MacKay's condition in both groups.
    variances, sizes = laplace.variances(), (72, 27)
    for part, alpha in zip((slice(0, 72), slice(72, 99)), laplace.prior_precision[1:]):
        gamma = sizes[part.start > 0] - alpha * variances[part].sum()
        assert abs(alpha * (rest[part] ** 2).sum() - gamma) < 1e-3


@pytest.mark.parametrize("given", [0.0, [1.0, -1.0, 1.0], [1.0, (1.0, 0.0), 1.0]])
def test_precisions_are_positive(problem, given):
    with pytest.raises(ValueError, match="prior_precision: expected a positive number"):
        nh.Laplace(*problem, prior_precision=given)
