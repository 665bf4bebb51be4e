"""Weights of samples: one of weight k is k samples, one of weight 0 is none, and one of weight -1 takes one away."""

import functools

import dense_truth
import numpy as np
import pytest
from loss_cases import CASES, N

import numba_hinv as nh

COUNTS = np.array([2, 0, 1, 3, 0, 1, 2, 1, 4, 0, 1, 2])
B = COUNTS.size
REPEATED = np.repeat(np.arange(B), COUNTS)
SOME = "cross_entropy", "cross_entropy_all", "squares", "binary_pos_weight", "gaussian", "poisson_full", "squares_sum"


@functools.cache
def problem(name):
    """Net, parameters, inputs and targets."""
    case = CASES[name]
    net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 4, skip=True), nh.Dense(4, N, "identity")], case.make())
    return net, net.init(3), np.random.default_rng(5).standard_normal((B, 3)), case.data(B)[1]


def in_parts(X, y, weights, size=5):
    """Triples, of which some hold samples of weight 0 alone."""
    order = np.argsort(weights, kind="stable")
    return [tuple(array[order[at : at + size]] for array in (X, y, weights)) for at in range(0, len(X), size)]


def near(found, expected, factor=1.0):
    expected = np.asarray(expected)
    return np.abs(found - expected).max() <= factor * 1e-14 * max(np.abs(expected).max(), 1e-3)


@pytest.mark.parametrize("name", SOME)
def test_losses_and_gradients(name):
    net, params, X, y = problem(name)
    loss, gradient = net.loss_and_gradient(params, X[REPEATED], y[REPEATED], l2=0.1)
    weights = COUNTS.astype(float)
    for data in ((X, y), (in_parts(X, y, weights), None)):
        given = {"l2": 0.1, "sample_weight": None if data[1] is None else COUNTS}
        assert near(net.loss(params, *data, **given), loss)
        found = net.loss_and_gradient(params, *data, **given)
        assert near(found[0], loss) and near(found[1], gradient)
        assert np.array_equal(net.gradient(params, *data, **given), found[1])
    narrow = net.gradient(params.astype(np.float32), X, y, 0.1, COUNTS)
    assert narrow.dtype == np.float32 and near(narrow, gradient, 1e8)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("name", SOME)
def test_hessians(name, curvature):
    """Products, the dense matrix and solves by both routes; arrays at once, in batches kept or not, and triples."""
    net, params, X, y = problem(name)
    expected = net.hessian(params, X[REPEATED], y[REPEATED], curvature, l2=0.05)
    A, b = expected.todense(), np.random.default_rng(0).standard_normal(params.size)
    weights = COUNTS.astype(float)
    ways = [
        net.hessian(params, X, y, curvature, 0.05, sample_weight=COUNTS),
        net.hessian(params, X, y, curvature, 0.05, sample_weight=weights, batch_size=5),
        net.hessian(params, X, y, curvature, 0.05, sample_weight=weights, batch_size=1, keep_bytes=0),
        net.hessian(params, in_parts(X, y, weights), None, curvature, 0.05, batch_size=4),
    ]
    for H in ways:
        assert near(H.loss, expected.loss) and near(H.gradient, expected.gradient)
        assert near(H.todense(), A, 4.0) and near(H @ b, A @ b, 10.0)
        assert H.total_weight == pytest.approx(expected.total_weight, rel=1e-15)
    for method in ("layers", "dense"):
        x = ways[0].factorize(0.3, method=method).solve(b)
        assert dense_truth.backward_error(A, 0.3, x, b) <= 1e-14
    assert ways[0].factorize(0.3).inertia == expected.factorize(0.3).inertia


def test_removing_samples():
    """Of a sum, by weights of -1; of a mean too, once they are added to all of them."""
    removed = np.array([1, 4, 6])
    rest = np.setdiff1d(np.arange(B), removed)
    for name in ("squares", "squares_sum", "cross_entropy_classes"):
        net, params, X, y = problem(name)
        expected = net.hessian(params, X[rest], y[rest])
        weights = np.ones(B)
        weights[removed] = 0.0
        twice = np.concatenate([np.arange(B), removed])
        for picked, given in ((np.arange(B), weights), (twice, np.repeat([1.0, -1.0], [B, removed.size]))):
            for batch_size in (None, 4):
                H = net.hessian(params, X[picked], y[picked], sample_weight=given, batch_size=batch_size)
                assert near(H.todense(), expected.todense(), 10.0) and near(H.gradient, expected.gradient, 10.0)
    net, params, X, y = problem("squares_sum")
    minus = net.hessian(params, X[removed], y[removed], sample_weight=-np.ones(3))
    expected = net.hessian(params, X[rest], y[rest])
    assert near((net.hessian(params, X, y) + minus).todense(), expected.todense(), 10.0)


def test_weights_of_classes_are_weights_of_samples():
    net, params, X, y = problem("cross_entropy_classes")
    plain = nh.Network(net.layers, "cross_entropy")
    weights = np.array(CASES["cross_entropy_classes"].options["class_weights"])[y]
    assert near(net.loss(params, X, y), plain.loss(params, X, y, sample_weight=weights))
    found, expected = net.hessian(params, X, y), plain.hessian(params, X, y, sample_weight=weights)
    assert near(found.todense(), expected.todense()) and found.total_weight == expected.total_weight


def test_ignored_samples_are_not_there():
    net, params, X, y = problem("cross_entropy_ignore")
    there = y >= 0
    plain = nh.Network(net.layers, "cross_entropy")
    expected = plain.hessian(params, X[there], y[there])
    for batch_size in (None, 2):
        H = net.hessian(params, X, y, batch_size=batch_size)
        assert near(H.todense(), expected.todense(), 4.0) and near(H.loss, expected.loss)
    assert near(net.loss(params, X, y), expected.loss)


def test_sums_are_means_times_what_they_are_over():
    for loss, count in (("squares", B * N), ("cross_entropy", B)):
        mean, params, X, y = problem(loss)
        total = problem(f"{loss}_sum")[0]
        assert near(total.loss(params, X, y), count * mean.loss(params, X, y))
        assert near(total.hessian(params, X, y).todense(), count * mean.hessian(params, X, y).todense())
        parts = [total.hessian(params, X[at], y[at]) for at in (slice(0, 5), slice(5, None))]
        assert near(nh.Hessian.combine(parts).todense(), total.hessian(params, X, y).todense())


def test_combining_hessians_of_weighted_samples():
    net, params, X, y = problem("squares")
    parts = [net.hessian(params, X[at], y[at], sample_weight=COUNTS[at]) for at in (slice(0, 5), slice(5, None))]
    whole, H = nh.Hessian.combine(parts), net.hessian(params, X, y, sample_weight=COUNTS)
    assert near(whole.todense(), H.todense()) and near(whole.loss, H.loss) and whole.total_weight == H.total_weight


def test_where_a_sample_of_weight_0_has_no_loss():
    """What it would have been does not matter."""
    net = nh.Network([nh.Dense(1, 1, "identity")], nh.losses.poisson(log_input=False))
    X, y = np.array([[1.0], [-1.0]]), np.ones(2)
    with pytest.raises(ValueError, match="finite loss"):
        net.loss([1.0, 0.0], X, y)
    expected = net.hessian([1.0, 0.0], X[:1], y[:1])
    found = net.hessian([1.0, 0.0], X, y, sample_weight=[1.0, 0.0])
    assert found.loss == expected.loss and np.array_equal(found.todense(), expected.todense())


def test_all_ones_change_no_bit():
    net, params, X, y = problem("cross_entropy")
    for batch_size in (None, 5):
        found = net.hessian(params, X, y, sample_weight=np.ones(B), batch_size=batch_size)
        assert np.array_equal(found.todense(), net.hessian(params, X, y, batch_size=batch_size).todense())


def test_training():
    net, params, X, y = problem("squares")
    options = {"l2": 0.01, "gtol": 1e-10}
    expected = nh.minimize(net, params, X[REPEATED], y[REPEATED], **options)
    for data in ((X, y), (in_parts(X, y, COUNTS.astype(float)), None)):
        found = nh.minimize(net, params, *data, sample_weight=None if data[1] is None else COUNTS, **options)
        assert found.success and found.fun == pytest.approx(expected.fun, rel=1e-12)
    # Minibatches of one sample, some of which would have no weight at all.
    ignoring, params, X, y = problem("cross_entropy_all")
    found = nh.minimize(ignoring, params, X, y, batch_size=1, sample_weight=COUNTS, max_iterations=2 * B, l2=0.01)
    assert found.fun < ignoring.loss(params, X, y, 0.01, COUNTS)


@pytest.mark.parametrize("name", ["squares", "squares_sum", "cross_entropy"])
def test_laplace(name):
    """The evidence counts observations."""
    net, params, X, y = problem(name)
    options = {"prior_precision": 0.8, "curvature": "ggn"}
    expected = nh.Laplace(net, params, X[REPEATED], y[REPEATED], **options)
    for data in ({"X": X, "y": y, "sample_weight": COUNTS}, {"X": in_parts(X, y, COUNTS.astype(float))}):
        found = nh.Laplace(net, params, **data, **options)
        assert found.scale == pytest.approx(expected.scale, rel=1e-15)
        assert found.log_evidence() == pytest.approx(expected.log_evidence(), rel=1e-12)
        np.testing.assert_allclose(found.variances(), expected.variances(), rtol=1e-10)
    if name != "cross_entropy":
        pair = [laplace.fit_prior(noise=True) for laplace in (found, expected)]
        assert pair[0].noise_variance == pytest.approx(pair[1].noise_variance, rel=1e-7)


def test_the_evidence_of_a_sum_is_that_of_the_mean():
    mean, params, X, y = problem("squares")
    pair = [nh.Laplace(net, params, X, y, curvature="ggn") for net in (mean, problem("squares_sum")[0])]
    assert pair[0].log_evidence() == pytest.approx(pair[1].log_evidence(), rel=1e-13)
    assert pair[0].fit_prior(True).noise_variance == pytest.approx(pair[1].fit_prior(True).noise_variance, rel=1e-7)


@pytest.mark.parametrize("name", ["squares", "squares_sum", "cross_entropy_classes"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_influence(name, batch_size):
    """A sample of weight k has the influence of its k copies together."""
    net, params, X, y = problem(name)
    tests = X[:4] + 0.1, y[:4]
    expected = nh.influence(net, params, X[REPEATED], y[REPEATED], *tests, 0.5, curvature="ggn")
    options = {"curvature": "ggn", "sample_weight": COUNTS, "batch_size": batch_size}
    found = nh.influence(net, params, X, y, *tests, 0.5, **options)
    together, own = np.zeros((B, 4)), np.zeros(B)
    np.add.at(together, REPEATED, np.asarray(expected))
    np.add.at(own, REPEATED, expected.self_influence)
    np.testing.assert_allclose(found.values, together, rtol=1e-9, atol=1e-12 * np.abs(together).max())
    np.testing.assert_allclose(found.self_influence, own, rtol=1e-9, atol=1e-12 * np.abs(own).max())


def test_bad_weights_are_named():
    net, params, X, y = problem("squares")
    negative = np.where(np.arange(B) == 3, -1.0, 1.0)
    jobs = {
        "loss": lambda w: net.loss(params, X, y, sample_weight=w),
        "gradient": lambda w: net.gradient(params, X, y, sample_weight=w),
        "minimize": lambda w: nh.minimize(net, params, X, y, sample_weight=w),
        "Laplace": lambda w: nh.Laplace(net, params, X, y, sample_weight=w),
        "influence": lambda w: nh.influence(net, params, X, y, X, y, 1.0, sample_weight=w),
        "hessian": lambda w: net.hessian(params, X, y, sample_weight=w),
        "batches": lambda w: net.hessian(params, X, y, sample_weight=w, batch_size=5),
    }
    for name, job in jobs.items():
        with pytest.raises(ValueError, match=r"sample_weight: expected shape \(12,\)"):
            job(np.ones(B - 1))
        with pytest.raises((TypeError, ValueError), match="sample_weight: expected"):
            job("heavy")
        with pytest.raises(ValueError, match=r"sample_weight(\[5:10\])?: expected finite numbers, got nan"):
            job(np.where(np.arange(B) == 6, np.nan, 1.0))
        with pytest.raises(ValueError, match="sample_weight: expected weights with a positive, finite sum.* got 0"):
            job(np.zeros(B))
        if name in ("hessian", "batches"):
            job(negative)
            with pytest.raises(ValueError, match="positive, finite sum.* got -12; .*reduction='sum'"):
                job(-np.ones(B))
        else:
            with pytest.raises(ValueError, match="sample_weight: expected weights of at least 0, got -1 at index 3"):
                job(negative)
    with pytest.raises(TypeError, match=r"sample_weight: expected None for samples in batches.*\(X, y, weights\)"):
        net.loss(params, [(X, y)], sample_weight=np.ones(B))
    with pytest.raises(ValueError, match="sample_weight of batch 1: expected weights of at least 0"):
        net.loss(params, [(X, y), (X, y, negative)])
    with pytest.raises(ValueError, match=r"sample_weight of batch 0: expected shape \(12,\)"):
        net.loss(params, [(X, y, negative[:3])])


def test_weights_that_change_are_noticed():
    net, params, X, y = problem("squares")
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="same samples each time"):
        H = net.hessian(params, lambda: iter([(X, y, rng.random(B))]), keep_bytes=0)
        H @ params
