"""Leave-one-out: against the hat matrix, dense algebra with the formula, and training again without each sample."""

import warnings

import numpy as np
import pytest
from problems import GOLDEN, chain, golden, layer, make
from scipy.linalg import LinAlgWarning
from test_external import external
from test_influence import train

import numba_hinv as nh
from numba_hinv.applications import output_covariance, training_set
from numba_hinv.applications.groups import as_groups
from numba_hinv.certainty import covariance
from numba_hinv.runtime import memory_budget

FAMILIES = np.array([4, 4, 0, 1, 1, 1, 0, 2, 9, 9, 9, 9, 4, 2, 7])


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)
        return nh.leave_one_out(*arguments, **options)


def jacobian(net, params, X):
    """(B, n_L, P): one output's slope at a time, from gradients of squared errors."""
    n, rows = net.layers[-1].out_features, []
    linear = nh.Network(net.layers, "mean_squared_error")
    for x in X:
        z = net.forward(params, x[None])
        # The slope of |z - y|^2 / n at z - y = e / 2 is J^T e / n.
        rows.append([n * linear.gradient(params, x[None], z - 0.5 * e) for e in np.eye(n)])
    return np.array(rows)


def blocks(inverse, J, members):
    """J A^-1 J^T of each group."""
    rows = J[members].reshape(*members.shape[:1], -1, J.shape[-1])
    return rows @ inverse @ rows.transpose(0, 2, 1)


# ---- a linear net and squared errors: exact --------------------------------------------------------------------------


def ridge(X, y, l2):
    """The weights and the bias, (n, d), of a linear net trained on the mean of squares, by normal equations."""
    Z = np.column_stack([X, np.ones(len(X))])
    scale = 2.0 / y.size
    return np.linalg.solve(scale * Z.T @ Z + l2 * np.eye(Z.shape[1]), scale * Z.T @ y).T


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("method", ["layers", "dense"])
@pytest.mark.parametrize("groups", [None, 4, 2, FAMILIES], ids=["single", "folds", "halves", "families"])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_linear_least_squares_are_exact(l2, groups, method, curvature):
    """To rounding, for groups of all sizes, wherever the step starts."""
    rng = np.random.default_rng(0)
    net = nh.Network([nh.Dense(4, 2, "identity")], "mean_squared_error")
    X, y = rng.standard_normal((15, 4)), rng.standard_normal((15, 2))
    best = ridge(X, y, l2)
    params = np.append(best[:, :4].ravel(), best[:, 4])
    for start in (params, params + 0.1 * rng.standard_normal(10)):
        found = nh.leave_one_out(net, start, X, y, l2, curvature, groups, method=method)
        for label in np.unique(found.groups):
            own = found.groups == label
            weights = ridge(X[~own], y[~own], l2)
            truth = X[own] @ weights[:, :4].T + weights[:, 4]
            np.testing.assert_allclose(found.predictions[own], truth, rtol=0, atol=1e-11)
            np.testing.assert_allclose(found.losses[own], ((truth - y[own]) ** 2).mean(axis=1), atol=1e-11)
        assert found.reliable.all() and not found.refitted.any() and found.errors.max() < 1e-12
    np.testing.assert_allclose(found.fitted_losses, ((net.forward(start, X) - y) ** 2).mean(axis=1), rtol=1e-12)
    assert found.score == found.losses.mean()


def test_leverages_are_the_hat_matrix():
    rng = np.random.default_rng(1)
    net = nh.Network([nh.Dense(3, 1, "identity")], "mean_squared_error")
    X, y = rng.standard_normal((20, 3)), rng.standard_normal(20)
    weights = ridge(X, y[:, None], 0.0)
    found = nh.leave_one_out(net, weights.ravel(), X, y)
    Z = np.column_stack([X, np.ones(20)])
    hat = Z @ np.linalg.solve(Z.T @ Z, Z.T)
    np.testing.assert_allclose(found.leverage, hat.diagonal(), atol=1e-13)
    residuals = (y - hat @ y) / (1.0 - hat.diagonal())
    np.testing.assert_allclose(found.losses, residuals**2, rtol=1e-10)


# ---- covariances of outputs ------------------------------------------------------------------------------------------


def scale(z, x, out):
    for i in range(z.size):
        out[i] = z[i] * (1.0 + x[i])


NETS = {
    "dense": nh.Network([nh.Dense(4, 3), nh.Dense(3, 3, skip=True), nh.Dense(3, 2, "identity")], "mean_squared_error"),
    "custom": nh.Network(
        [nh.Dense(4, 4), nh.Custom(scale, 4, 4, 4), nh.LayerNorm(4), nh.Dense(4, 2, "identity")], "mean_squared_error"
    ),
    "external": nh.Network([nh.Dense(4, 4), external(), nh.Dense(4, 2, "identity")], "mean_squared_error"),
    "convolution": nh.Network([nh.Conv1d(2, 3, 3, 2, padding=1), nh.Dense(6, 2, "identity")], "mean_squared_error"),
    "last": nh.Network([nh.Dense(4, 2, "tanh")], "mean_squared_error"),
}


@pytest.mark.parametrize("name", NETS)
def test_all_ways_give_the_same_covariances(name, monkeypatch):
    """The recursion, with checkpoints or without, tangents along the square root, and solves."""
    net, rng = NETS[name], np.random.default_rng(0)
    params, X, y = net.init(rng=0), rng.standard_normal((6, 4)), rng.standard_normal((6, 2))
    data = training_set.TrainingSet(net, params, X, y, "hessian", 0.1)
    A = data.hessian.todense()
    damping = 1.5 * np.linalg.norm(A, 2)
    A[np.diag_indices_from(A)] += damping
    J, inverse = jacobian(net, params, X), np.linalg.inv(A)
    whole = J.reshape(12, -1) @ inverse @ J.reshape(12, -1).T
    for checkpoint in (False, True):
        F = data.hessian.factorize(damping, method="layers", checkpoint=checkpoint)
        np.testing.assert_allclose(covariance.outputs(F.solver), whole, rtol=0, atol=1e-13 * np.abs(whole).max())
    for groups in (None, 3):
        ((_, members),) = as_groups(groups, 6).by_size
        truth = blocks(inverse, J, members)
        for method, row in (("layers", 4.0), ("dense", np.inf), ("dense", 0.0)):
            monkeypatch.setattr(output_covariance, "_ROW", row)
            found = output_covariance.of_training(data.hessian.factorize(damping, method=method), data, members)
            np.testing.assert_allclose(found, truth, rtol=0, atol=1e-13 * np.abs(truth).max())


@pytest.mark.parametrize("gain, bias", [(0.1, False), (3.0, True)])
def test_covariances_of_states_in_other_units(gain, bias):
    """Jacobians that vanish or explode with depth: states are scaled layer by layer."""
    options = {"activation": "identity", "skip": False, "loss": "mean_squared_error", "gain": gain, "bias": bias}
    problem = chain(3, 12, batch=3, **options)
    data = training_set.TrainingSet(problem.net, problem.params, problem.X, problem.y, "ggn", 0.0)
    damping = 0.1 * data.hessian.norm()
    F = data.hessian.factorize(damping, method="layers")
    assert any(F.solver.matrix.scale.states)
    A = data.hessian.todense() + damping * np.eye(problem.size)
    J = jacobian(problem.net, problem.params, problem.X).reshape(9, -1)
    truth = J @ np.linalg.solve(A, J.T)
    np.testing.assert_allclose(covariance.outputs(F.solver), truth, rtol=0, atol=1e-11 * np.abs(truth).max())


def test_covariances_of_an_indefinite_matrix_are_refined():
    problem = chain(3, 4, batch=5)
    data = training_set.TrainingSet(problem.net, problem.params, problem.X, problem.y, "hessian", 0.0)
    damping = -0.5 * float(problem.eigenvalues[-1])
    A = problem.truth.hessian.astype(float) + damping * np.eye(problem.size)
    J = jacobian(problem.net, problem.params, problem.X)
    ((_, members),) = as_groups(None, 5).by_size
    truth = blocks(np.linalg.inv(A), J, members)
    for method in ("layers", "dense"):
        F = data.hessian.factorize(damping, method=method)
        assert covariance.outputs(F.solver) is None and covariance.root(F.solver, 0, 1) is None
        found = output_covariance.of_training(F, data, members)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-10 * np.abs(truth).max())


# ---- the formula -----------------------------------------------------------------------------------------------------


def by_dense_algebra(problem, l2, damping, groups, curvature="hessian"):
    """(predictions, leverages) by the step in the parameters, with dense matrices."""
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    B, P = len(X), problem.size
    G, J, z = problem.truth.ggn.astype(float), jacobian(net, params, X), net.forward(params, X)
    H = problem.truth.hessian.astype(float) if curvature == "hessian" else G
    found, leverage = np.empty_like(z), np.empty(B)
    for label in np.unique(groups):
        own, share = groups == label, (groups == label).mean()
        part, rows = J[own].reshape(-1, P), G * 0.0
        gradient = net.gradient(params, X[own], y[own]) * share
        rows = net.hessian(params, X[own], y[own], "ggn").todense() * share
        A = G + (1.0 - share) * (H - G + l2 * np.eye(P)) + damping * np.eye(P)
        right = gradient + share * l2 * params - net.gradient(params, X, y, l2)
        found[own] = z[own] + (part @ np.linalg.solve(A - rows, right)).reshape(-1, z.shape[1])
        leverage[own] = np.linalg.eigvals(np.linalg.solve(A, rows)).real.max()
    return found, leverage


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files(name, curvature):
    """Anywhere, not at a minimum, with a damping that makes the matrix definite; with rounding of the solves."""
    problem, _ = golden(name)
    B, damping = len(problem.X), 1.5 * problem.norm
    if B == 1:
        pytest.skip("nothing is left")
    groups = np.arange(B) // 2
    for labels, given in ((np.arange(B), None), (groups, groups)):
        if labels.max() == 0:
            continue
        truth, leverage = by_dense_algebra(problem, 0.2, damping, labels, curvature)
        found = quietly(problem.net, problem.params, problem.X, problem.y, 0.2, curvature, given, damping, check=False)
        np.testing.assert_allclose(found.predictions, truth, rtol=0, atol=1e-10 * np.abs(truth).max())
        np.testing.assert_allclose(found.leverage, leverage, rtol=1e-8, atol=1e-12)


# ---- training again --------------------------------------------------------------------------------------------------


def trained(kind):
    """(net, params, X, y, l2): a minimum, to a gradient of 1e-11."""
    rng = np.random.default_rng(1)
    X = rng.uniform(-1.5, 1.5, (60, 3))
    values = np.sin(X @ [1.0, -0.5, 0.3]) + 0.2 * rng.standard_normal(60)
    deep = [nh.Dense(3, 3), *[nh.Dense(3, 3, skip=True) for _ in range(6)]]
    layers, loss, y, l2 = {
        "deep": ([*deep, nh.Dense(3, 1, "identity")], "mean_squared_error", values, 0.1),
        "two outputs": (
            [nh.Dense(3, 5), nh.Dense(5, 2, "identity")],
            "mean_squared_error",
            np.column_stack([values, X[:, 0] * X[:, 1]]),
            0.01,
        ),
        "labels": (
            [nh.Dense(3, 5), nh.Dense(5, 3, "identity")],
            "softmax_cross_entropy",
            np.digitize(values, [-0.4, 0.4]),
            0.03,
        ),
        "yes or no": (
            [nh.Dense(3, 4, "softplus"), nh.Dense(4, 2, "identity")],
            "binary_cross_entropy",
            np.column_stack([values > 0, X[:, 0] > X[:, 1]]).astype(float),
            0.03,
        ),
    }[kind]
    net = nh.Network(layers, loss)
    return net, train(net, net.init(rng=0), X, y, l2), X, y, l2


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("kind", ["deep", "two outputs", "labels", "yes or no"])
def test_training_again_without_each_sample(kind, curvature, seen={}):
    """Within 5 % of the change wherever it is said to be reliable; without proof, the same predictions."""
    if kind not in seen:
        net, params, X, y, l2 = problem = trained(kind)
        chosen = np.arange(0, len(X), 3)
        again = []
        for i in chosen:
            rest = np.arange(len(X)) != i
            again.append(net.forward(train(net, params, X[rest], y[rest], l2), X[i : i + 1])[0])
        seen[kind] = problem, chosen, np.array(again)
    (net, params, X, y, l2), chosen, again = seen[kind]
    found = quietly(net, params, X, y, l2, curvature)
    before = net.forward(params, X)
    change = again - before[chosen]
    error = np.linalg.norm(found.predictions[chosen] - again, axis=1) / np.linalg.norm(change, axis=1)
    good = found.reliable[chosen]
    if curvature == "hessian":
        assert good.mean() > 0.5 and np.median(error) < 0.02
    # A Gauss-Newton step is none of Newton's, which is found out.
    assert error[good].max(initial=0.0) < 0.05
    first = quietly(net, params, X, y, l2, curvature, check=False)
    np.testing.assert_array_equal(first.predictions, found.predictions)
    assert np.isnan(first.errors).all() and not first.reliable[first.leverage > 0.2].any()


def test_what_is_not_reliable_is_named_and_trained_again():
    """A sample that nothing else explains, of a net that can fit it: leverages near 1."""
    net, params, X, y, _ = trained("labels")
    l2 = 1e-3
    params = train(net, params, X, y, l2)
    with pytest.warns(LinAlgWarning, match=r"of 60 samples are not reliable, with the leverages in brackets: \d+ \("):
        found = nh.leave_one_out(net, params, X, y, l2)
    bad = np.flatnonzero(~found.reliable)
    assert 0 < bad.size < 60 and found.leverage.argmax() in bad
    fitted = quietly(net, params, X, y, l2, refit=True)
    assert fitted.reliable[bad].mean() > 0.9
    np.testing.assert_array_equal(fitted.refitted, ~found.reliable)
    np.testing.assert_array_equal(fitted.predictions[found.reliable], found.predictions[found.reliable])
    for i in bad[fitted.reliable[bad]][:4]:
        rest = np.arange(60) != i
        again = nh.minimize(net, params, X[rest], y[rest], l2=l2, gtol=1e-10)
        truth = net.forward(again.x, X[i : i + 1])[0]
        np.testing.assert_allclose(fitted.predictions[i], truth, atol=1e-4)
    steps = quietly(net, params, X, y, l2, refit="trust-region")
    both = bad[fitted.reliable[bad] & steps.reliable[bad]]
    assert both.size and np.abs(steps.predictions - fitted.predictions)[both].max() < 1e-2


def test_folds():
    """Ten folds of a net with more than enough samples, against training again."""
    rng = np.random.default_rng(3)
    net = nh.Network([nh.Dense(2, 3), nh.Dense(3, 1, "identity")], "mean_squared_error")
    X = rng.uniform(-1.5, 1.5, (120, 2))
    y = np.tanh(X[:, 0]) + 0.1 * rng.standard_normal(120)
    params, l2 = train(net, net.init(rng=0), X, y, 0.1), 0.1
    found = quietly(net, params, X, y, l2, groups=10)
    assert repr(found).startswith("<Leave-one-out of 120 samples in 10 groups: score 0.")
    assert np.bincount(found.groups).tolist() == [12] * 10 and (np.diff(found.groups) >= 0).all()
    assert found.reliable.mean() > 0.8
    before = net.forward(params, X)
    for fold in range(10):
        own = found.groups == fold
        again = net.forward(train(net, params, X[~own], y[~own], l2), X[own])
        if found.reliable[own][0]:
            assert np.linalg.norm(found.predictions[own] - again) < 0.05 * np.linalg.norm(again - before[own])


# ---- samples and arguments -------------------------------------------------------------------------------------------


def test_samples_on_a_disk_in_batches(tmp_path):
    problem = chain(4, 3, batch=40, seed=5)
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    damping = 1.5 * problem.norm
    np.save(tmp_path / "X.npy", X)
    lying = np.load(tmp_path / "X.npy", mmap_mode="r")
    for groups in (None, np.arange(40) % 3):
        whole = quietly(net, params, X, y, 0.1, groups=groups, damping=damping)
        for options in ({"batch_size": 7, "keep_bytes": 0}, {"batch_size": 9}, {"num_threads": 1}):
            parts = quietly(net, params, lying, y, 0.1, groups=groups, damping=damping, check=True, **options)
            np.testing.assert_allclose(parts.predictions, whole.predictions, rtol=0, atol=1e-11)
            np.testing.assert_allclose(parts.leverage, whole.leverage, rtol=1e-10)
            np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-10)
            np.testing.assert_allclose(parts.errors, whole.errors, rtol=1e-6)
    assert np.isnan(quietly(net, params, lying, y, 0.1, damping=damping).errors).all()


def test_training_again_with_samples_on_a_disk(tmp_path):
    net, params, X, y, l2 = trained("labels")
    np.save(tmp_path / "X.npy", X)
    lying = np.load(tmp_path / "X.npy", mmap_mode="r")
    labels = np.where(np.arange(60) < 3, "a", "b")
    found = quietly(net, params, lying, y, l2, groups=labels, refit=True)
    memory = quietly(net, params, X, y, l2, groups=labels, refit=True)
    assert found.refitted.all() == memory.refitted.all()
    np.testing.assert_allclose(found.predictions[:3], memory.predictions[:3], atol=1e-4)


def test_float32():
    problem = chain(3, 2, batch=8, loss="mean_squared_error")
    arguments = problem.X, problem.y, 0.1
    wide = quietly(problem.net, problem.params, *arguments, damping=20.0)
    narrow = quietly(problem.net, problem.params.astype(np.float32), *arguments, damping=20.0)
    assert narrow.predictions.dtype == np.float32 and narrow.losses.dtype == np.float64
    np.testing.assert_allclose(narrow.predictions, wide.predictions, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the predictions")
def test_params_that_are_no_minimum():
    problem = chain(3, 3, batch=6)
    with pytest.warns(LinAlgWarning, match="negative eigenvalues with damping=.*: params are no minimum"):
        found = nh.leave_one_out(problem.net, problem.params, problem.X, problem.y, damping=1e-3, check=False)
    assert not found.reliable.any()


def test_plot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    problem = chain(3, 2, batch=8, loss="mean_squared_error")
    found = quietly(problem.net, problem.params, problem.X, problem.y, damping=20.0)
    _, ax = pyplot.subplots()
    assert found.plot(ax, marker="s") is ax and len(ax.collections) == 2
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.column_stack([found.fitted_losses, found.losses]))
    pyplot.close("all")


def test_memory_is_asked_for(monkeypatch):
    problem = make([layer(3, 3), layer(3, 2, "identity")], batch=40)
    monkeypatch.setattr(memory_budget, "_NEGLIGIBLE", 0)
    real = memory_budget.require

    def require(num_bytes, purpose, *way_out):
        if "covariances of 2 groups of 20 samples" in purpose:
            assert num_bytes == 8 * 40 * 20 * 4
            raise MemoryError(purpose)
        real(num_bytes, purpose, *way_out)

    monkeypatch.setattr(memory_budget, "require", require)
    with pytest.raises(MemoryError, match="the covariances of 2 groups"):
        quietly(problem.net, problem.params, problem.X, problem.y, groups=2, damping=10.0)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"net": None}, TypeError),
        ({"params": np.ones(3)}, ValueError),
        ({"X": np.ones((2, 9))}, ValueError),
        ({"y": np.array([0, 3, 1])}, ValueError),
        ({"y": None}, TypeError),
        ({"damping": np.nan}, ValueError),
        ({"l2": -1.0}, ValueError),
        ({"curvature": "fisher"}, ValueError),
        ({"groups": 0}, ValueError),
        ({"groups": 1}, ValueError),
        ({"groups": 4}, ValueError),
        ({"groups": 1.5}, TypeError),
        ({"groups": [0, 1]}, ValueError),
        ({"groups": [0.5, 1.0, 2.0]}, TypeError),
        ({"groups": ["a", "a", "a"]}, ValueError),
        ({"refit": "yes"}, ValueError),
        ({"refit": 2}, ValueError),
        ({"check": 1}, TypeError),
        ({"method": "cluster"}, ValueError),
        ({"num_threads": 0}, ValueError),
        ({"progress": 7}, TypeError),
    ],
)
def test_bad_arguments(changes, error):
    problem = chain(4, 3, batch=3)
    arguments = {"net": problem.net, "params": problem.params, "X": problem.X, "y": problem.y, "damping": 100.0}
    with pytest.raises(error, match=f"^{list(changes)[0]}: expected"):
        quietly(**{**arguments, **changes})
