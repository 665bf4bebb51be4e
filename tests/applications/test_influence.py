"""Influences: against dense algebra with gradients of single samples, and against training again without each
sample.
"""

import warnings

import dense_truth
import numpy as np
import pytest
import scipy.linalg
from problems import GOLDEN, chain, golden, layer, make, random_targets
from test_external import external

import numba_hinv as nh
from numba_hinv.runtime import memory_budget


def test_set_of(problem, size, seed=7):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((size, problem.X.shape[1]))
    return X, random_targets(problem.loss, size, problem.layers[-1]["out_features"], rng)


test_set_of.__test__ = False


def true_gradients(problem, X, y):
    return np.stack(
        [
            dense_truth.differentiate(problem.layers, problem.loss, problem.params, X[i : i + 1], y[i : i + 1]).gradient
            for i in range(len(X))
        ]
    ).astype(np.float64)


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("curvature, l2", [("hessian", 0.0), ("ggn", 0.0), ("hessian", 0.3)])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files(name, curvature, l2):
    """A damping of 1.5 ||H|| makes H + damping I positive definite, with a condition number of at most 5."""
    problem, _ = golden(name)
    X_test, y_test = test_set_of(problem, 3)
    truth = problem.truth.hessian if curvature == "hessian" else problem.truth.ggn
    damping = 1.5 * problem.norm
    A = dense_truth.shifted(truth, damping + l2).astype(np.float64)
    ours = true_gradients(problem, problem.X, problem.y)
    theirs = true_gradients(problem, X_test, y_test)
    found = nh.influence(problem.net, problem.params, problem.X, problem.y, X_test, y_test, damping, l2, curvature)
    B = len(problem.X)
    assert found.shape == (B, 3) and found.factorization.damping == damping
    assert relative(np.asarray(found), ours @ np.linalg.solve(A, theirs.T) / B) < 1e-12
    assert relative(found.self_influence, np.einsum("ip,pi->i", ours, np.linalg.solve(A, ours.T)) / B) < 1e-12
    assert found.self_influence is found.self_influence


def scale(z, x, out):
    for i in range(z.size):
        out[i] = z[i] * (1.0 + x[i])


NETS = {
    "custom": nh.Network(
        [nh.Dense(4, 4), nh.Custom(scale, 4, 4, 4), nh.LayerNorm(4), nh.Dense(4, 2, "identity")], "mean_squared_error"
    ),
    "external": nh.Network([nh.Dense(4, 4), external(), nh.Dense(4, 2, "identity")], "mean_squared_error"),
    "convolution": nh.Network([nh.Conv1d(2, 3, 3, 2, padding=1), nh.Dense(6, 2, "identity")], "mean_squared_error"),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_layer(name, dtype):
    """More test samples than a block, on any number of threads; gradients of single samples by `Network.gradient`."""
    net, rng = NETS[name], np.random.default_rng(0)
    params = net.init(rng=0, dtype=dtype)
    X, y, X_test, y_test = (rng.standard_normal(shape) for shape in ((5, 4), (5, 2), (70, 4), (70, 2)))
    wide = params.astype(np.float64)
    A = net.hessian(wide, X, y).todense()
    damping = 2 * np.linalg.norm(A, 2)
    A[np.diag_indices_from(A)] += damping
    ours, theirs = (
        np.stack([net.gradient(wide, inputs[i : i + 1], targets[i : i + 1]) for i in range(len(inputs))])
        for inputs, targets in ((X, y), (X_test, y_test))
    )
    found = nh.influence(net, params, X, y, X_test, y_test, damping)
    assert relative(found.values, ours @ np.linalg.solve(A, theirs.T) / 5) < 1e-12
    assert relative(found.self_influence, np.diag(ours @ np.linalg.solve(A, ours.T)) / 5) < 1e-12
    again = nh.influence(net, params, X, y, X_test, y_test, damping, num_threads=1)
    np.testing.assert_array_equal(again.values, found.values)
    some = nh.influence(net, params, X, y, X_test[64:], y_test[64:], damping)
    assert relative(some.values, found.values[:, 64:]) < 1e-12


def train(net, params, X, y, l2):
    """Newton's method to a gradient of 1e-11, damped until H is positive definite and the loss falls."""
    damping = 0.0
    for _ in range(300):
        H = net.hessian(params, X, y, l2=l2)
        if np.linalg.norm(H.gradient) < 1e-11:
            assert H.factorize(0.0).inertia == (0, 0, params.size, True)
            return params
        while True:
            F = H.factorize(damping)
            if F.inertia.negative == 0:
                step = F.solve(H.gradient)
                if net.loss(params - step, X, y, l2) <= H.loss + 1e-14:
                    break
            damping = max(4.0 * damping, 1e-4)
        params, damping = params - step, damping / 8.0 if damping > 1e-6 else 0.0
    raise AssertionError("not converged")


def test_training_again_without_each_sample():
    """Eight layers; the changes of every test sample's loss, and of each training sample's own, are as predicted."""
    rng = np.random.default_rng(1)
    net = nh.Network(
        [nh.Dense(3, 3), *[nh.Dense(3, 3, skip=True) for _ in range(6)], nh.Dense(3, 1, "identity")],
        "mean_squared_error",
    )
    X, X_test = rng.uniform(-1.5, 1.5, (120, 3)), rng.uniform(-1.5, 1.5, (12, 3))
    y, y_test = (np.sin(Z @ [1.0, -0.5, 0.3]) + 0.2 * rng.standard_normal(len(Z)) for Z in (X, X_test))
    B, l2 = len(X), 0.03
    params = train(net, net.init(rng=0), X, y, l2)
    found = nh.influence(net, params, X, y, X_test, y_test, 0.0, l2)

    def losses(params, X, y):
        return (net.forward(params, X)[:, 0] - y) ** 2

    left_out = np.arange(0, B, 4)
    changes, own = np.empty((left_out.size, len(X_test))), np.empty(left_out.size)
    for k, i in enumerate(left_out):
        rest = np.arange(B) != i
        # Divided by (B - 1) / B, so that the other samples keep their weight of 1 / B.
        without = train(net, params, X[rest], y[rest], l2 * B / (B - 1))
        changes[k] = losses(without, X_test, y_test) - losses(params, X_test, y_test)
        own[k] = (losses(without, X, y) - losses(params, X, y))[i]
    for predicted, true in ((found.values[left_out], changes), (found.self_influence[left_out], own)):
        assert np.corrcoef(predicted.ravel(), true.ravel())[0, 1] >= 0.99
        # What is left is of second order: a sample weighs more in the curvature than 1/B, by its leverage.
        assert 0.8 < (predicted * true).sum() / (true * true).sum() < 1.2
    with_leverage = nh.influence(net, params, X, y, X_test, y_test, 0.0, l2, leverage=True)
    for plain, better, true in (
        (found.values[left_out], with_leverage.values[left_out], changes),
        (found.self_influence[left_out], with_leverage.self_influence[left_out], own),
    ):
        assert np.linalg.norm(better - true) < 0.7 * np.linalg.norm(plain - true)


@pytest.mark.parametrize("leverage", [False, True])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("groups", [None, 2, np.array(list("abacba"))], ids=["single", "folds", "labels"])
def test_groups_and_leverage(groups, curvature, leverage):
    """Against steps with dense matrices, from which the group's own Gauss-Newton matrix is subtracted, or not."""
    problem, l2 = chain(3, 3, batch=6, seed=2), 0.1
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    X_test, y_test = test_set_of(problem, 40)
    damping = 1.5 * problem.norm
    H = problem.truth.hessian if curvature == "hessian" else problem.truth.ggn
    A = dense_truth.shifted(H, damping + l2).astype(np.float64)
    theirs = true_gradients(problem, X_test, y_test)
    found = nh.influence(net, params, X, y, X_test, y_test, damping, l2, curvature, groups=groups, leverage=leverage)
    labels = np.arange(6) if groups is None else np.repeat([0, 1], 3) if np.ndim(groups) == 0 else groups
    assert found.shape == (np.unique(labels).size, 40)
    for row, own_change, label in zip(found.values, found.self_influence, np.unique(labels)):
        own = labels == label
        share = own.mean()
        part = share * net.hessian(params, X[own], y[own], "ggn").todense()
        step = np.linalg.solve(A - part if leverage else A, share * net.gradient(params, X[own], y[own]))
        np.testing.assert_allclose(row, theirs @ step, rtol=0, atol=1e-12 * np.abs(found.values).max())
        ours = true_gradients(problem, X[own], y[own]).sum(axis=0)
        np.testing.assert_allclose(own_change, ours @ step, rtol=1e-11)
    assert ("groups of" in repr(found)) == (groups is not None)


def test_parameters_that_are_no_minimum():
    problem = chain(3, 3, batch=4)
    X_test, y_test = test_set_of(problem, 2)
    arguments = problem.net, problem.params, problem.X, problem.y, X_test, y_test
    assert problem.eigenvalues[0] < -0.01
    with pytest.warns(
        scipy.linalg.LinAlgWarning, match="negative eigenvalues with damping=0.001: params are no minimum"
    ):
        nh.influence(*arguments, 0.001)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nh.influence(*arguments, 0.001, curvature="ggn")


def test_memory_does_not_grow_with_the_test_set(monkeypatch):
    """Beyond the matrix itself."""
    problem = make([layer(3, 3), layer(3, 2, "identity")], batch=2)
    asked = []
    monkeypatch.setattr(
        memory_budget, "require", lambda num_bytes, purpose, way_out: asked.append((purpose, num_bytes))
    )
    for size in (300, 3000):
        nh.influence(problem.net, problem.params, problem.X, problem.y, *test_set_of(problem, size), 10.0)
    blocks = [num_bytes for purpose, num_bytes in asked if "solves" in purpose]
    matrices = [num_bytes for purpose, num_bytes in asked if "influences" in purpose]
    assert len(blocks) == 2 and blocks[0] == blocks[1] and matrices == [8 * 2 * 300, 8 * 2 * 3000]


def test_a_matrix_that_would_not_fit(monkeypatch):
    problem = make([layer(3, 3), layer(3, 2, "identity")], batch=2)
    monkeypatch.setattr(memory_budget, "_NEGLIGIBLE", 0)
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 1 << 20)
    X_test, y_test = test_set_of(problem, 100_000)
    with pytest.raises(MemoryError, match="the influences of B = 2 training samples on 100000 test samples"):
        nh.influence(problem.net, problem.params, problem.X, problem.y, X_test, y_test, 10.0)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"net": None}, TypeError),
        ({"params": np.ones(3)}, ValueError),
        ({"X": np.ones((2, 9))}, ValueError),
        ({"y": np.array([0, 3, 1])}, ValueError),
        ({"X_test": np.ones((2, 9))}, ValueError),
        ({"X_test": np.ones((0, 4))}, ValueError),
        ({"X_test": np.full((2, 4), np.nan)}, ValueError),
        ({"X_test": "two"}, TypeError),
        ({"y_test": np.array([0, 3])}, ValueError),
        ({"y_test": np.array([0, 1, 2])}, ValueError),
        ({"y_test": np.array([0.5, 1.0])}, TypeError),
        ({"damping": np.nan}, ValueError),
        ({"damping": None}, TypeError),
        ({"l2": -1.0}, ValueError),
        ({"curvature": "fisher"}, ValueError),
        ({"num_threads": 0}, ValueError),
        ({"progress": "yes"}, TypeError),
        ({"groups": 9}, ValueError),
        ({"leverage": 1}, TypeError),
    ],
)
def test_bad_arguments(changes, error):
    problem = chain(4, 3, batch=3)
    arguments = {
        "net": problem.net,
        "params": problem.params,
        "X": problem.X,
        "y": problem.y,
        "X_test": np.ones((2, 4)),
        "y_test": np.array([0, 1]),
        "damping": 100.0,
        **changes,
    }
    with pytest.raises(error, match=f"^{list(changes)[0]}: expected"):
        nh.influence(**arguments)


def test_test_samples_that_overflow():
    problem = chain(4, 3, batch=3, activation="identity", loss="mean_squared_error")
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="finite"):
        nh.influence(problem.net, problem.params, problem.X, problem.y, np.full((2, 4), 1e200), np.ones((2, 3)), 100.0)


def test_samples_in_batches_have_the_same_influence():
    problem = chain(4, 3, batch=60, seed=5)
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    test = X[:5] + 0.1, y[:5]
    whole = nh.influence(net, params, X, y, *test, 1.0, l2=0.1)
    for keep_bytes in (0, None):
        parts = nh.influence(net, params, X, y, *test, 1.0, l2=0.1, batch_size=7, keep_bytes=keep_bytes)
        np.testing.assert_allclose(parts.values, whole.values, rtol=0, atol=1e-12 * np.abs(whole.values).max())
        np.testing.assert_allclose(parts.self_influence, whole.self_influence, rtol=1e-10)


def test_many_samples_are_read_in_batches(monkeypatch):
    from numba_hinv.applications import training_set as module

    problem = chain(4, 3, batch=60, seed=5)
    args = problem.net, problem.params, problem.X, problem.y, problem.X[:2], problem.y[:2], 1.0
    expected = nh.influence(*args)
    monkeypatch.setattr(module, "batch_size_for", lambda model: 16)
    found = nh.influence(*args)
    assert not found.factorization.hessian.system.has_layers and expected.factorization.hessian.system.has_layers
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-12 * np.abs(expected.values).max())


def test_batches_of_a_loader_have_no_order():
    problem = chain(4, 3, batch=6)
    with pytest.raises(TypeError, match="no order that says which sample is which"):
        nh.influence(problem.net, problem.params, [(problem.X, problem.y)], None, problem.X, problem.y, 1.0)


def test_an_inertia_that_is_not_certain_is_told(monkeypatch):
    """Of zero negative pivots nothing follows where they are not those of H + damping I for certain."""
    problem = chain(3, 2, batch=6, loss="mean_squared_error")
    data = problem.net, problem.params, problem.X, problem.y, problem.X[:1], problem.y[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nh.influence(*data, 100.0)
        monkeypatch.setattr("numba_hinv.certainty.inertia.certified_count", lambda solver: (None, "rounding"))
        with pytest.raises(scipy.linalg.LinAlgWarning, match="eigenvalues too close to 0 to know their signs"):
            nh.influence(*data, 100.0)
