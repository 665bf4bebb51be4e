"""L2 terms and dampings by layer, in pairs and by parameter: against dense matrices with that diagonal."""

import pickle

import numpy as np
import pytest
from external_layers import twist

import numba_hinv as nh

CHAINS = {
    "dense": [nh.Dense(6, 8), nh.Dense(8, 8, skip=True), nh.Dense(8, 5, "sin", bias=False), nh.Dense(5, 2, "identity")],
    "mixed": [
        nh.Conv1d(1, 2, 5, 9), nh.LayerNorm(10), nh.Conv1d(2, 2, 3, 5, padding=1, skip=True), nh.Dense(10, 6),
        nh.Gated(3), nh.Dense(3, 2, "identity"),
    ],
    "external": [nh.Dense(3, 4), twist(4), nh.Dense(4, 2)],
}  # fmt: skip


def forms(layers, rng):
    """{name: what a damping or an L2 term may be, for these layers}."""
    L = len(layers)
    is_structured = [isinstance(layer, (nh.Dense, nh.Conv1d)) for layer in layers]
    numbers = rng.uniform(0.1, 1.0, L)
    pairs = [(x, rng.uniform(0.1, 1.0)) if flag else x for x, flag in zip(numbers.tolist(), is_structured)]
    no_biases = [(x, 0.0) if flag else x for x, flag in zip(numbers.tolist(), is_structured)]
    return {"numbers": numbers, "pairs": pairs, "no biases": no_biases}


def expand(layers, form):
    """The diagonal that it stands for, by the order of the flat vector that the library documents."""
    parts = []
    for layer, entry in zip(layers, form):
        weight, bias = entry if np.ndim(entry) else (entry, entry)
        biases = 0
        if isinstance(layer, nh.Dense) and layer.bias:
            biases = layer.out_features
        if isinstance(layer, nh.Conv1d) and layer.bias:
            biases = layer.out_channels
        parts += [np.full(layer.num_params - biases, weight), np.full(biases, bias)]
    return np.concatenate(parts)


def near(found, expected, tolerance):
    return found.shape == expected.shape and np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def problem(name, batch):
    rng = np.random.default_rng(batch)
    net = nh.Network(CHAINS[name], "mean_squared_error")
    params = net.init(rng=1) + 0.1 * rng.standard_normal(net.num_params)
    return net, params, rng.standard_normal((batch, net.layers[0].in_features)), rng.standard_normal((batch, 2)), rng


def check(F, A, V):
    """A factorization against the dense matrix that it should be of."""
    values, inverse = np.linalg.eigvalsh(A), np.linalg.inv(A)
    condition = np.abs(values).max() / np.abs(values).min()
    assert near(F.solve(V), inverse @ V, 1e-14 * condition + 1e-12)
    assert F.inertia.negative == (values < 0).sum() and F.inertia.exact
    assert abs(F.slogdet()[1] - np.log(np.abs(values)).sum()) <= 1e-10 * condition
    # Not refined: what the library promises without a warning.
    assert near(F.diagonal(), np.diag(inverse), 1e-8)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("form", ["numbers", "pairs", "no biases"])
@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("name", CHAINS)
def test_damping(name, batch, form, curvature):
    net, params, X, y, rng = problem(name, batch)
    H = net.hessian(params, X, y, curvature=curvature)
    damping = forms(net.layers, rng)[form]
    if form == "no biases":
        # Biases that no damping holds make H singular where a unit saturates: a little for all by the L2 term.
        H = net.hessian(params, X, y, curvature=curvature, l2=0.05)
    A = H.todense() + np.diag(expand(net.layers, damping))
    V = rng.standard_normal((len(params), 2))
    for method in ("layers", "dense"):
        F = H.factorize(damping, method=method)
        assert F.method == method and F.damping.shape == params.shape
        check(F, A, V)
    l = len(net.layers) - 1
    size = net.layers[l].num_params
    inverse = np.linalg.inv(A)
    assert near(H.factorize(damping, method="layers").blocks(l), inverse[-size:, -size:], 1e-9)


@pytest.mark.parametrize("form", ["numbers", "pairs", "no biases"])
@pytest.mark.parametrize("name", ["dense", "mixed"])
def test_l2(name, form):
    net, params, X, y, rng = problem(name, 3)
    l2 = forms(net.layers, rng)[form]
    ridge = expand(net.layers, l2)
    bare = net.hessian(params, X, y)
    H = net.hessian(params, X, y, l2=l2)
    A = bare.todense() + np.diag(ridge)
    assert np.array_equal(H.l2, ridge)
    assert abs(H.loss - bare.loss - 0.5 * (ridge * params**2).sum()) < 1e-12
    assert near(H.gradient, bare.gradient + ridge * params, 1e-12)
    assert np.array_equal(net.gradient(params, X, y, l2=l2), H.gradient)
    assert abs(net.loss(params, X, y, l2=l2) - H.loss) < 1e-12
    assert near(H.todense(), A, 1e-13)
    V = rng.standard_normal((len(params), 3))
    assert near(H @ V, A @ V, 1e-12)
    assert near(H.diagonal(), np.diag(A), 1e-12)
    assert abs(H.norm() / np.linalg.norm(A, 2) - 1.0) < 0.2
    blocks = nh.Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)
    assert near(blocks.todense(), A, 1e-12)
    t = float(np.median(np.linalg.eigvalsh(A))) + 1e-4
    assert H.count_below(t) == (np.linalg.eigvalsh(A) < t).sum()
    for method in ("layers", "dense"):
        check(H.factorize(0.7, method=method), A + 0.7 * np.eye(len(A)), V)
    # With a damping by layer on top; and indefinite, with shifts of both signs.
    more = [0.5 * (-1) ** l for l in range(len(net.layers))]
    for method in ("layers", "dense"):
        check(H.factorize(more, method=method), A + np.diag(expand(net.layers, more)), V)
    batched = net.hessian(params, X, y, l2=l2, batch_size=2)
    assert near(batched.todense(), A, 1e-12) and near(batched @ V, A @ V, 1e-12)
    both = nh.Hessian.combine([H, net.hessian(params, 2.0 * X, y, l2=l2)], [0.25, 0.75])
    other = net.hessian(params, 2.0 * X, y).todense()
    assert near(both.todense(), 0.25 * bare.todense() + 0.75 * other + np.diag(ridge), 1e-12)
    assert near(both @ V, both.todense() @ V, 1e-12)


def by_parameter(net, rng, least=-0.5):
    """A number of its own for each parameter, some of them 0."""
    ridge = rng.uniform(least, 2.0, net.num_params)
    ridge[rng.integers(0, ridge.size, 3)] = 0.0
    return ridge


@pytest.mark.parametrize("where", ["damping", "l2"])
@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("name", CHAINS)
def test_by_parameter(name, batch, where):
    """By layers where there are as many samples, or places of a kernel, as inputs; by the dense matrix elsewhere."""
    net, params, X, y, rng = problem(name, batch)
    ridge = by_parameter(net, rng, -0.5 if where == "damping" else 0.0)
    H = net.hessian(params, X, y)
    A = H.todense() + np.diag(ridge) + 0.2 * np.eye(params.size)
    V = rng.standard_normal((len(params), 2))
    if where == "damping":
        H, damping = net.hessian(params, X, y, l2=0.2), ridge
    else:
        H, damping = net.hessian(params, X, y, l2=ridge), 0.2
    check(H.factorize(damping), A, V)
    if batch == 40:
        for checkpoint in (False, True):
            F = H.factorize(damping, method="layers", checkpoint=checkpoint)
            assert F.method == "layers"
            if checkpoint:
                assert near(F.solve(V), np.linalg.solve(A, V), 1e-12 * np.linalg.cond(A))
            else:
                check(F, A, V)
                assert near(F.blocks(0), np.linalg.inv(A)[: net.layers[0].num_params, : net.layers[0].num_params], 1e-8)
        return
    message = "method: expected 'dense' or 'auto' for an L2 term or damping by parameter of a layer with fewer samples"
    with pytest.raises(ValueError, match=message):
        H.factorize(damping, method="layers")


def test_some_layers_by_parameter_and_others_by_layer(tmp_path):
    """The first has more inputs than samples, and a pair; the factors also from a file, and in float32."""
    rng = np.random.default_rng(3)
    net = nh.Network([nh.Dense(9, 3), nh.Dense(3, 2), nh.Dense(2, 2, "identity")], "mean_squared_error")
    params, X, y = 0.5 * net.init(2), rng.standard_normal((5, 9)), rng.standard_normal((5, 2))
    ridge = by_parameter(net, rng, 0.0)
    ridge[:27], ridge[27:30] = 0.7, 0.3
    for scale in (1.0, 2.0**40):
        H = net.hessian(params, X, np.sqrt(scale) * y, l2=scale * ridge)
        A, b = H.todense(), rng.standard_normal(params.size)
        F = H.factorize(0.1 * scale, method="layers")
        check(F, A + 0.1 * scale * np.eye(len(A)), b[:, None])
        x = F.solve(b)
        F.save(tmp_path / "factors.npz")
        np.testing.assert_array_equal(nh.load(tmp_path / "factors.npz").solve(b), x)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(F)).solve(b), x)
        np.testing.assert_allclose(
            H.factorize(0.1 * scale, method="layers", factor_dtype="float32").solve(b), x, rtol=1e-9
        )


def test_a_constant_is_a_number():
    net, params, X, y, _ = problem("dense", 3)
    H = net.hessian(params, X, y, l2=[0.3] * len(net.layers))
    assert H.l2 == 0.3
    F = H.factorize([(0.1, 0.1)] * len(net.layers))
    assert F.damping == 0.1
    assert np.array_equal(F.solve(H.gradient), net.hessian(params, X, y, l2=0.3).factorize(0.1).solve(H.gradient))


@pytest.mark.parametrize("method", ["layers", "dense"])
def test_square_root_checkpoints_and_pickles(method):
    net, params, X, y, rng = problem("dense", 2)
    damping = forms(net.layers, rng)["pairs"]
    H = net.hessian(params, X, y, curvature="ggn", l2=[0.1, 0.2, 0.3, 0.4])
    F = H.factorize(damping, method=method)
    A = H.todense() + np.diag(expand(net.layers, damping))
    inverse = np.linalg.inv(A)
    scale = np.sqrt(np.diag(inverse))
    root = F.sample(20000, rng=0)
    # As tests/test_frozen_layers.py: five standard deviations of such an estimate.
    assert (np.abs(root.T @ root / 20000 - inverse) < 5 * np.sqrt(2 / 20000) * np.outer(scale, scale)).all()
    x = F.solve(H.gradient)
    again = pickle.loads(pickle.dumps(F))
    assert np.array_equal(again.solve(H.gradient), x) and np.array_equal(again.damping, F.damping)
    if method == "layers":
        assert np.array_equal(H.factorize(damping, checkpoint=True).solve(H.gradient), x)
    narrow = H.factorize(damping, np.float32, method=method).solve(H.gradient)
    assert near(narrow, inverse @ H.gradient, 1e-9)


@pytest.mark.parametrize("method", ["layers", "dense"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_files(method, batch_size, tmp_path):
    if method == "layers" and batch_size:
        pytest.skip("batches have no layers")
    net, params, X, y, rng = problem("dense", 4)
    H = net.hessian(params, X, y, l2=[0.1, (0.2, 0.0), 0.3, 0.4], batch_size=batch_size)
    for damping in (0.5, [1.0, 2.0, (3.0, 4.0), 5.0]):
        F = H.factorize(damping, method=method)
        F.save(tmp_path / "file")
        loaded = nh.load(tmp_path / "file")
        assert np.array_equal(loaded.solve(H.gradient), F.solve(H.gradient))
        assert np.array_equal(loaded.damping, F.damping) and np.array_equal(loaded.hessian.l2, H.l2)


def test_scaled_by_powers_of_two():
    """A tiny H, so that it is scaled and the ridge with it."""
    net, params, X, y, rng = problem("dense", 2)
    tiny = nh.Network(CHAINS["dense"], nh.losses.mean_squared_error(reduction="sum"))
    weights = np.full(2, 1e-45)
    H = tiny.hessian(params, X, y, sample_weight=weights)
    damping = [1e-45 * x if np.ndim(x) == 0 else (1e-45 * x[0], 1e-45 * x[1]) for x in forms(net.layers, rng)["pairs"]]
    F = H.factorize(damping, method="layers")
    assert F.solver.matrix.scale.matrix
    A = (H.todense() + np.diag(expand(net.layers, damping))) * 1e45
    assert near(F.solve(1e-45 * np.ones(len(params))), np.linalg.solve(A, np.ones(len(params))), 1e-9)


def test_frozen_layers_have_entries_that_do_not_matter():
    net, params, X, y, rng = problem("dense", 3)
    head, rest = net.freeze(params, [0, 2])
    l2 = [9.0, (0.2, 0.1), 7.0, 0.3]
    expected = expand(net.layers, l2)[head.trainable]
    assert np.array_equal(head.hessian(rest, X, y, l2=l2).l2, expected)
    H = head.hessian(rest, X, y)
    check(H.factorize(l2, method="layers"), H.todense() + np.diag(expected), rng.standard_normal((rest.size, 2)))


def test_training_leave_one_out_and_influence():
    """Ridge regression with a penalty for the weights alone, and trained again without each sample."""
    rng = np.random.default_rng(0)
    net = nh.Network([nh.Dense(3, 1, "identity")], "mean_squared_error")
    X, y, l2 = rng.standard_normal((15, 3)), rng.standard_normal(15), [(0.4, 0.0)]
    Z, D = np.hstack([X, np.ones((15, 1))]), np.diag([0.4, 0.4, 0.4, 0.0])

    def best(rows):
        return np.linalg.solve(2.0 * Z[rows].T @ Z[rows] / rows.sum() + D, 2.0 * Z[rows].T @ y[rows] / rows.sum())

    everything = np.ones(15, bool)
    result = nh.minimize(net, np.zeros(4), X, y, l2=l2)
    assert result.success and np.allclose(result.x, best(everything), atol=1e-8)
    found = nh.leave_one_out(net, best(everything), X, y, l2=l2)
    for i in range(15):
        assert abs(found.predictions[i, 0] - Z[i] @ best(np.arange(15) != i)) < 1e-9
    A, gradients = 2.0 * Z.T @ Z / 15 + D, 2.0 * (Z @ best(everything) - y)[:, None] * Z
    values = nh.influence(net, best(everything), X, y, X[:2], y[:2], damping=0.0, l2=l2).values
    assert near(values, gradients @ np.linalg.solve(A, gradients[:2].T) / 15, 1e-10)


@pytest.mark.parametrize(
    "l2, message",
    [
        ([0.1, 0.2], r"l2: expected a number, one number or pair .* that is 4 or \d+ of them, got 2"),
        ([0.1, 0.2, (0.1, 0.2, 0.3), 0.1], "l2: layer 2: expected a number or a pair"),
        ([0.1, 0.2, (0.1, -0.2), (0.1, -0.1)], "l2: expected at least 0, got -0.1"),
        ([0.1, np.nan, 0.1, 0.1], "l2: layer 1"),
    ],
)
def test_refused(l2, message):
    net, params, X, y, _ = problem("dense", 2)
    with pytest.raises(ValueError, match=message):
        net.hessian(params, X, y, l2=l2)


def test_no_biases_to_tell_apart():
    net, params, X, y, _ = problem("mixed", 2)
    with pytest.raises(ValueError, match="layer 1: expected one number, since this layer has no biases"):
        net.hessian(params, X, y, l2=[(0.1, 0.2)] * 6)
