"""Parts of H and its inverse, Jacobians and Hessians in inputs: against dense algebra, golden files and differences."""

import json

import dense_truth
import numpy as np
import pytest
from custom_layers import golden as custom_golden
from external_layers import twist
from problems import DATA, GOLDEN, STRUCTURED, golden

import numba_hinv as nh
from numba_hinv.runtime import memory_budget

NETS = {
    **STRUCTURED,
    "external": [twist(3), nh.Dense(3, 4), twist(4), nh.Dense(4, 2, skip=False)],
    "skip first": [nh.Dense(4, 4, "softplus", skip=True), nh.Dense(4, 2, "identity")],
}


def problem(name, batch=7):
    net = nh.Network(NETS[name], "mean_squared_error")
    rng = np.random.default_rng(batch)
    params = net.init(rng=1, gain=1.5) + 0.2 * rng.standard_normal(net.num_params)
    X = rng.standard_normal((batch, net.layers[0].in_features))
    return net, params, X, rng.standard_normal((batch, net.layers[-1].out_features))


def near(found, expected, tolerance=1e-13):
    return found.shape == expected.shape and np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def check_parts(H, A, layers):
    assert near(H.diagonal(), np.diag(A))
    assert abs(H.trace() - np.trace(A)) <= 1e-13 * np.abs(np.diag(A)).sum()
    ends = np.cumsum([0, *(layer.num_params for layer in layers)])
    for l, k in {(0, 0), (0, len(layers) - 1), (len(layers) - 1, 0), (len(layers) // 2, len(layers) // 2)}:
        found = H.block(l, k)
        expected = A[ends[l] : ends[l + 1], ends[k] : ends[k + 1]]
        assert found.shape == expected.shape and np.abs(found - expected).max(initial=0.0) <= 1e-13 * np.abs(A).max()
        assert l != k or (np.array_equal(found, found.T) and np.array_equal(found, H.block(l)))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    given, g = golden(name)
    check_parts(given.hessian, g["hessian"], given.net.layers)


@pytest.mark.parametrize("path", sorted((DATA / "conv1d").glob("*.npz")), ids=lambda path: path.stem)
def test_golden_convolutions(path):
    with np.load(path) as g:
        layers = [getattr(nh, d.pop("type"))(**d) for d in json.loads(str(g["layers"]))]
        check_parts(nh.Network(layers, str(g["loss"])).hessian(g["params"], g["X"], g["y"]), g["hessian"], layers)


@pytest.mark.parametrize("name", ["bilinear", "glu", "layer_norm", "own_functions", "rms_norm"])
def test_golden_custom_layers(name):
    net, g = custom_golden(name)
    check_parts(net.hessian(g.params, g.X, g.y), g.hessian, net.layers)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_all_kinds(name, curvature):
    net, params, X, y = problem(name)
    weights = np.arange(7.0)
    for parts in ({}, {"batch_size": 3}):
        H = net.hessian(params, X, y, curvature=curvature, l2=0.3, sample_weight=weights, **parts)
        A = H.system.apply(np.eye(net.num_params))
        check_parts(H, A, net.layers)
    assert near((H + H).diagonal(), 2 * np.diag(A))


@pytest.mark.parametrize("name", NETS)
def test_jacobian(name):
    """J^T C J is the Gauss-Newton matrix; the outputs' differences, too."""
    net, params, X, y = problem(name, batch=5)
    J = net.jacobian(params, X)
    assert J.shape == (5, net.layers[-1].out_features, net.num_params)
    ggn = np.einsum("iop,ioq->pq", J, J) * 2 / y.size
    assert near(net.hessian(params, X, y, curvature="ggn").todense(), ggn)
    step = 1e-6 * np.random.default_rng(0).standard_normal(net.num_params)
    slope = 0.5 * (net.forward(params + step, X) - net.forward(params - step, X))
    # Central differences err by the square of the step, relative, and by rounding of the outputs over the step.
    assert np.abs(J @ step - slope).max() <= 1e-8 * np.abs(slope).max()


@pytest.mark.parametrize("name", NETS)
def test_input_hessian(name):
    """Differences of gradients in the inputs, which are those of a net with the inputs as biases of a layer before."""
    net, params, X, y = problem(name, batch=3)
    n = X.shape[1]
    found = net.input_hessian(params, X, y)
    before = nh.Network([nh.Dense(1, n, "identity", bias=False), *net.layers], "mean_squared_error")
    for i in range(3):
        # A net of one sample whose weights are its inputs: their block of H is the Hessian in the inputs.
        H = before.hessian(np.concatenate([X[i], params]), np.ones((1, 1)), y[i : i + 1])
        assert near(found[i], H.block(0), 1e-12) and np.array_equal(found[i], found[i].T)


def test_input_hessian_of_labels_and_sums():
    given, _ = golden("tanh_wide_batch")
    net, params, X, y = given.net, given.params, given.X, given.y
    found = net.input_hessian(params, X, y)
    # dense_truth has the Hessian of a net whose first weights are the inputs.
    layers = (
        {"in_features": 1, "out_features": X.shape[1], "activation": "identity", "bias": False, "skip": False},
        *given.layers,
    )
    n = X.shape[1]
    for i in (0, len(X) - 1):
        start = np.concatenate([X[i], params])
        truth = dense_truth.differentiate(layers, given.loss, start, np.ones((1, 1)), y[i : i + 1])
        assert near(found[i], truth.hessian[:n, :n].astype(float), 1e-12)
    total = nh.Network(net.layers, nh.Loss(net.loss_name, "sum"))
    factor = net.model.num_terms
    assert near(total.input_hessian(params, X, y), factor * found, 1e-12)


def test_many_samples_and_float32():
    net, params, X, y = problem("skip first", batch=600)
    J, K = net.jacobian(params, X), net.input_hessian(params, X, y)
    assert near(J[590], net.jacobian(params, X[590:591])[0], 1e-14)
    assert near(K[590], net.input_hessian(params, X[590:591], y[590:591])[0], 1e-14)
    narrow = params.astype(np.float32)
    assert net.jacobian(narrow, X[:2]).dtype == net.input_hessian(narrow, X[:2], y[:2]).dtype == np.float32
    H = net.hessian(narrow, X[:9], y[:9])
    assert H.diagonal().dtype == H.block(0, 1).dtype == np.float32


@pytest.mark.parametrize("method", ["layers", "dense"])
def test_dense_inverse(method):
    net, params, X, y = problem("mixed")
    H = net.hessian(params, X, y)
    F = H.factorize(0.5, method=method)
    found, A = F.todense(), H.todense() + 0.5 * np.eye(net.num_params)
    assert np.array_equal(found, found.T)
    inverse = np.linalg.inv(A)
    # Each column has a backward error of at most 1e-14, and so a relative error of that times the condition number.
    assert np.linalg.norm(found - inverse, 2) <= 2e-14 * np.linalg.cond(A) * np.linalg.norm(inverse)
    np.testing.assert_allclose(np.diag(found), F.diagonal(), rtol=1e-8)


def test_what_does_not_fit_is_refused(monkeypatch):
    net, params, X, y = problem("mixed", batch=300)
    H = net.hessian(params, X, y)
    F = H.factorize(1.0, method="dense")
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 1 << 10)
    monkeypatch.setattr(memory_budget, "_NEGLIGIBLE", 1)
    for call, what in (
        (lambda: net.jacobian(params, X), "Jacobians of B = 300 samples, 2 outputs"),
        (lambda: net.input_hessian(params, X, y), "Hessians of B = 300 samples in 6 inputs"),
        (F.todense, "the dense inverse of P ="),
        (lambda: H.block(0), "the block of"),
    ):
        with pytest.raises(MemoryError, match=what):
            call()


def test_layers_that_are_not_there():
    net, params, X, y = problem("skip first")
    H = net.hessian(params, X, y)
    assert np.array_equal(H.block(-1, 0), H.block(0, 1).T)
    with pytest.raises(IndexError, match="k: expected a layer from 0 to 1, got 2"):
        H.block(0, 2)
    with pytest.raises(TypeError, match="l: expected an integer, got 'first'"):
        H.block("first")
