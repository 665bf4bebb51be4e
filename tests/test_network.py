"""The net itself: parameters and their order, initial weights, the output, immutable descriptions."""

import dense_truth
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from problems import chain, layer, make, problems

import numba_hinv as nh


def test_layout_of_the_parameters():
    net = nh.Network(
        [nh.Dense(3, 2), nh.Dense(2, 2, "sin", bias=False, skip=True), nh.Dense(2, 4, "identity")], "mean_squared_error"
    )
    assert net.num_params == 8 + 4 + 12
    params = np.arange(24.0)
    (W0, c0), (W1, c1), (W2, c2) = net.unpack(params)
    np.testing.assert_array_equal(W0, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(c0, [6, 7])
    np.testing.assert_array_equal(W1, [[8, 9], [10, 11]])
    assert c1 is None
    np.testing.assert_array_equal(W2, np.arange(12, 20).reshape(4, 2))
    np.testing.assert_array_equal(c2, [20, 21, 22, 23])


def test_unpacked_arrays_are_views():
    net = nh.Network([nh.Dense(3, 2), nh.Dense(2, 2, bias=False)], "mean_squared_error")
    params = net.init(rng=0)
    (W0, c0), (W1, _) = net.unpack(params)
    for part in (W0, c0, W1):
        assert np.shares_memory(part, params)
    W1[1, 0] = 7.0
    assert params[10] == 7.0


def test_initial_parameters():
    layers = [nh.Dense(5, 4), *[nh.Dense(4, 4, skip=True) for _ in range(20)], nh.Dense(4, 3, "identity")]
    net = nh.Network(layers, "softmax_cross_entropy")
    params = net.init(rng=0)
    assert params.shape == (net.num_params,)
    assert params.dtype == np.float64
    assert np.isfinite(params).all()
    assert all(W.std() > 0 for W, _ in net.unpack(params))
    np.testing.assert_array_equal(params, net.init(rng=0))
    assert not np.array_equal(params, net.init(rng=1))


def test_defaults():
    d = nh.Dense(3, 2)
    assert (d.in_features, d.out_features, d.activation, d.bias, d.skip) == (3, 2, "tanh", True, False)


def test_dense_is_immutable():
    d = nh.Dense(3, 2)
    with pytest.raises(AttributeError):
        d.activation = "relu"
    assert d == nh.Dense(3, 2, "tanh")
    assert d != nh.Dense(3, 2, "sin")
    assert hash(d) == hash(nh.Dense(3, 2))


def test_changing_the_list_of_layers_afterwards_does_not_change_the_net():
    layers = [nh.Dense(3, 2), nh.Dense(2, 2)]
    net = nh.Network(layers, loss="mean_squared_error")
    layers.append(nh.Dense(2, 5))
    assert net.num_params == 14
    assert net.forward(np.zeros(14), np.ones((1, 3))).shape == (1, 2)


@given(problems())
def test_output_loss_and_gradient(problem):
    net, params, X, y, t = problem.net, problem.params, problem.X, problem.y, problem.truth
    output = net.forward(params, X)
    assert output.shape == t.output.shape and output.dtype == np.float64
    np.testing.assert_allclose(output, t.output.astype(float), rtol=1e-13, atol=1e-13 * np.abs(t.output).max())
    loss = net.loss(params, X, y)
    assert np.ndim(loss) == 0
    # The loss can be tiny beside the logits it is computed from; those set the absolute scale.
    assert abs(loss - t.value) <= 1e-13 * (abs(t.value) + 1e-2 * np.abs(t.output).max())
    gradient = net.gradient(params, X, y)
    assert gradient.shape == params.shape
    assert np.abs(gradient - t.gradient).max() <= 1e-12 * np.abs(t.gradient).max() + 1e-15


def test_losses_are_those_of_torch():
    """Written out once more from the definitions, with SciPy's special functions."""
    rng = np.random.default_rng(0)
    batch, n = 6, 4
    z = 3 * rng.standard_normal((batch, n))
    params = np.concatenate([np.eye(n).ravel(), np.zeros(n)])
    labels = rng.integers(0, n, batch)
    values = rng.random((batch, n))

    def loss(name, y):
        return nh.Network([nh.Dense(n, n, "identity")], loss=name).loss(params, z, y)

    cross_entropy = -scipy.special.log_softmax(z, axis=1)[np.arange(batch), labels].mean()
    binary = (-values * scipy.special.log_expit(z) - (1 - values) * scipy.special.log_expit(-z)).mean()
    assert loss("softmax_cross_entropy", labels) == pytest.approx(cross_entropy, rel=1e-14)
    assert loss("mean_squared_error", values) == pytest.approx(((z - values) ** 2).mean(), rel=1e-14)
    assert loss("binary_cross_entropy", values) == pytest.approx(binary, rel=1e-14)


@pytest.mark.parametrize("scale", [50.0, 1e3, 1e8])
@pytest.mark.parametrize("name", sorted(dense_truth.LOSSES))
def test_enormous_logits_do_not_overflow(name, scale):
    problem = make([layer(2, 3, "identity", bias=False)], name, batch=4)
    params = scale * problem.params
    t = dense_truth.differentiate(problem.layers, name, params, problem.X, problem.y)
    assert problem.net.loss(params, problem.X, problem.y) == pytest.approx(float(t.value), rel=1e-13)
    gradient = problem.net.gradient(params, problem.X, problem.y)
    assert np.abs(gradient - t.gradient).max() <= 1e-13 * max(np.abs(t.gradient).max(), 1.0)
    H = problem.net.hessian(params, problem.X, problem.y)
    assert np.abs(np.asarray(H.todense()) - t.hessian).max() <= 1e-13 * max(np.abs(t.hessian).max(), 1.0)


def test_a_net_of_one_class_has_no_loss():
    problem = make([layer(2, 1, "tanh")], "softmax_cross_entropy", batch=3)
    assert problem.net.loss(problem.params, problem.X, problem.y) == 0.0
    assert not problem.net.gradient(problem.params, problem.X, problem.y).any()


def test_gradient_and_loss_do_not_depend_on_the_order_of_the_samples():
    problem = chain(4, 5, batch=9)
    order = np.random.default_rng(3).permutation(9)
    a = problem.net.gradient(problem.params, problem.X, problem.y)
    b = problem.net.gradient(problem.params, problem.X[order], problem.y[order])
    assert np.abs(a - b).max() <= 1e-14 * np.abs(a).max()
