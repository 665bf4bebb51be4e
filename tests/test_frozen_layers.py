"""Frozen layers: all must be that of the full net's Hessian without the rows and columns of frozen parameters."""

import pickle

import numpy as np
import pytest
from external_layers import twist

import numba_hinv as nh

CHAINS = {
    "dense": [
        nh.Dense(3, 5), nh.Dense(5, 5, skip=True), nh.Dense(5, 5), nh.Dense(5, 4, "sin", bias=False), nh.Dense(4, 4),
        nh.Dense(4, 2, "identity"),
    ],
    "mixed": [
        nh.Conv1d(1, 2, 3, 8), nh.LayerNorm(12), nh.Conv1d(2, 2, 3, 6, padding=1, skip=True), nh.Dense(12, 6),
        nh.RMSNorm(6), nh.Gated(3), nh.Conv1d(1, 3, 2, 3), nh.Dense(6, 4), nh.Dense(4, 2, "identity"),
    ],
    "external": [nh.Dense(3, 4), twist(4), nh.Dense(4, 3), twist(3), nh.Dense(3, 2)],
}  # fmt: skip
# The frozen layers: the first ones, single ones in between, all but the first and the last, the last, all but the last.
CHOICES = {
    "dense": [[0], [1], [2, 3], [0, 2, 4], [1, 2, 3, 4], [5], slice(-1)],
    "mixed": [[0], [1], [2], [4], [0, 2, 4, 6], list(range(1, 8)), [8], slice(-1)],
    "external": [[0], [1], [3], [0, 1, 3], [4], slice(-1)],
}
CASES = [(name, index, batch) for name in CHOICES for index in range(len(CHOICES[name])) for batch in (1, 3, 12)]


class Case:
    """A net with frozen layers, the one without, and what the rows and columns of trainable parameters leave."""

    def __init__(self, name, index, batch, curvature="hessian", loss="mean_squared_error"):
        rng = np.random.default_rng(batch)
        self.full = nh.Network(CHAINS[name], loss)
        self.all_params = self.full.init(rng=1) + 0.1 * rng.standard_normal(self.full.num_params)
        self.net, self.params = self.full.freeze(self.all_params, CHOICES[name][index])
        self.keep = self.net.trainable
        self.X = rng.standard_normal((batch, self.full.layers[0].in_features))
        self.y = rng.standard_normal((batch, 2))
        self.data = self.X, self.y
        of_all = self.full.hessian(self.all_params, *self.data, curvature=curvature)
        self.gradient = of_all.gradient[self.keep]
        self.A = of_all.todense()[np.ix_(self.keep, self.keep)]
        self.H = self.net.hessian(self.params, *self.data, curvature=curvature)


def near(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    return np.abs(found - expected).max(initial=0.0) <= tolerance * np.abs(expected).max(initial=0.0)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("name, index, batch", CASES)
def test_submatrix(name, index, batch, curvature):
    case = Case(name, index, batch, curvature)
    H, A, P = case.H, case.A, case.keep.sum()
    assert case.net.num_params == case.params.size == P < case.all_params.size
    assert near(H.gradient, case.gradient)
    assert near(H.todense(), A)
    V = np.random.default_rng(0).standard_normal((P, 3))
    assert near(H @ V, A @ V)
    assert near(H.diagonal(), np.diag(A))
    damped = A + 0.3 * np.eye(P)
    inverse, values = np.linalg.inv(damped), np.linalg.eigvalsh(damped)
    condition = np.abs(values).max() / np.abs(values).min()
    for method in ("layers", "dense"):
        F = H.factorize(0.3, method=method)
        assert F.method == method
        assert near(F.solve(V), inverse @ V, 1e-14 * condition + 1e-12)
        assert F.inertia.negative == (values < 0).sum() and F.inertia.exact
        assert abs(F.slogdet()[1] - np.log(np.abs(values)).sum()) <= 1e-10 * condition
        # Not refined: what the library promises without a warning.
        assert near(F.diagonal(), np.diag(inverse), 1e-8)


@pytest.mark.parametrize("name, index", [("dense", 3), ("dense", 4), ("mixed", 4), ("mixed", 5), ("external", 3)])
def test_parts_by_layer(name, index):
    """Layers keep their numbers in the net; parts of frozen ones are empty, or not there before all others."""
    case = Case(name, index, 3)
    H, A, F = case.H, case.A, case.H.factorize(0.5)
    inverse = np.linalg.inv(A + 0.5 * np.eye(len(A)))
    sizes = [0 if layer.frozen else layer.num_params for layer in case.net.layers]
    ends = np.cumsum([0, *sizes])
    of = [slice(start, stop) for start, stop in zip(ends[:-1], ends[1:])]
    assert H.num_layers == len(sizes)
    first = next(l for l, size in enumerate(sizes) if size)
    first = first if any(layer.frozen for layer in case.net.layers[:first]) else 0
    for l in range(len(sizes)):
        assert H.block(l).shape == (sizes[l], sizes[l])
        assert np.allclose(H.block(l, first), A[of[l], of[first]], atol=1e-12 * np.abs(A).max())
        assert np.allclose(F.blocks(l), inverse[of[l], of[l]], atol=1e-10 * np.abs(inverse).max())
        if l < first:
            with pytest.raises(ValueError, match=f"from {first} to"):
                H.blocks(l)
    blocks = [H.blocks(l) for l in range(first, len(sizes))]
    assert near(nh.Hessian.from_blocks(blocks, H.terminal).todense(), A)


@pytest.mark.parametrize("name, index", [("dense", 3), ("dense", 6), ("mixed", 4), ("external", 2)])
def test_of_samples(name, index):
    case = Case(name, index, 5)
    net, params, full, X, y = case.net, case.params, case.full, case.X, case.y
    assert near(net.forward(params, X), full.forward(case.all_params, X))
    assert near(net.jacobian(params, X), full.jacobian(case.all_params, X)[:, :, case.keep])
    assert near(net.input_hessian(params, X, y), full.input_hessian(case.all_params, X, y))
    assert abs(net.loss(params, X, y) - full.loss(case.all_params, X, y)) < 1e-14
    weights = np.arange(5.0)
    expected = full.gradient(case.all_params, X, y, sample_weight=weights)[case.keep]
    assert near(net.gradient(params, X, y, sample_weight=weights), expected)
    narrow = net.gradient(params.astype(np.float32), X, y)
    assert narrow.dtype == np.float32 and near(narrow, case.gradient, 1e-5)


@pytest.mark.parametrize("name, index", [("dense", 3), ("dense", 6), ("mixed", 4)])
def test_batches(name, index):
    case = Case(name, index, 12)
    for keep_bytes in (None, 0):
        H = case.net.hessian(case.params, *case.data, batch_size=5, keep_bytes=keep_bytes)
        assert near(H.todense(), case.A) and near(H.gradient, case.gradient)
        b = case.gradient
        assert near(H.factorize(2.0).solve(b), np.linalg.solve(case.A + 2.0 * np.eye(b.size), b), 1e-10)
    parts = [case.net.hessian(case.params, case.X[part], case.y[part]) for part in (slice(0, 5), slice(5, 12))]
    assert near(nh.Hessian.combine(parts).todense(), case.A)
    other = case.full.freeze(case.all_params + 1e-3, CHOICES[name][index])[0]
    with pytest.raises(ValueError, match="same frozen parameters"):
        nh.Hessian.combine([parts[0], other.hessian(case.params, *case.data)])


@pytest.mark.parametrize("name, index", [("dense", 3), ("dense", 6), ("mixed", 5)])
def test_square_root_and_checkpoints(name, index):
    case = Case(name, index, 2, "ggn")
    A = case.A + 0.2 * np.eye(len(case.A))
    F = case.H.factorize(0.2, method="layers")
    root = F.sample(20000, rng=0)
    # 20,000 samples know a covariance to 1 percent of its scale; 5 of their standard deviations are allowed.
    inverse = np.linalg.inv(A)
    scale = np.sqrt(np.diag(inverse))
    assert (np.abs(root.T @ root / 20000 - inverse) < 5 * np.sqrt(2 / 20000) * np.outer(scale, scale)).all()
    kept = case.H.factorize(0.2, checkpoint=True)
    assert np.array_equal(kept.solve(case.gradient), F.solve(case.gradient))
    narrow = case.H.factorize(0.2, np.float32, method="layers").solve(case.gradient)
    assert near(narrow, np.linalg.solve(A, case.gradient), 1e-9)


@pytest.mark.parametrize("method", ["layers", "dense"])
@pytest.mark.parametrize("name, index", [("dense", 3), ("dense", 6), ("mixed", 4)])
def test_pickles_and_files(name, index, method, tmp_path):
    case = Case(name, index, 3)
    F = case.H.factorize(0.4, method=method)
    x = F.solve(case.gradient)
    again = pickle.loads(pickle.dumps(F))
    assert np.array_equal(again.solve(case.gradient), x) and again.hessian.network.num_params == x.size
    F.save(tmp_path / "file")
    loaded = nh.load(tmp_path / "file")
    assert np.array_equal(loaded.solve(case.gradient), x) and loaded.hessian.num_layers == len(case.net.layers)
    if name == "dense":
        net = loaded.hessian.network
        assert net.layers == case.net.layers and np.array_equal(net.frozen_params, case.net.frozen_params)
        assert near(net.forward(case.params, case.X), case.full.forward(case.all_params, case.X))


def test_scaled_states():
    """Jacobians that explode: powers of two must scale frozen weights, too."""
    layers = [nh.Dense(3, 3, "identity", bias=False) for _ in range(12)]
    full = nh.Network(layers, "mean_squared_error")
    rng = np.random.default_rng(0)
    all_params = 30.0 * rng.standard_normal(full.num_params)
    net, params = full.freeze(all_params, [0, 3, 4, 7, 11])
    data = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    A = full.hessian(all_params, *data).todense()[np.ix_(net.trainable, net.trainable)]
    H = net.hessian(params, *data)
    damping = 1e-3 * np.linalg.norm(A, 2)
    F = H.factorize(damping, method="layers")
    assert len(F.solver.matrix.scale.states)
    damped = A + damping * np.eye(len(A))
    assert near(F.solve(H.gradient), np.linalg.solve(damped, H.gradient), 1e-9)
    assert F.inertia.negative == (np.linalg.eigvalsh(damped) < 0).sum()


def test_last_layer_laplace():
    """In one line; of a net that is linear in its last layer it is Bayesian linear regression on the features."""
    rng = np.random.default_rng(0)
    net = nh.Network([nh.Dense(3, 8), nh.Dense(8, 8, skip=True), nh.Dense(8, 1, "identity")], "mean_squared_error")
    params, X, y = net.init(rng=0), rng.standard_normal((30, 3)), rng.standard_normal(30)
    laplace = nh.Laplace(*net.freeze(params, slice(-1)), X, y, prior_precision=0.7, noise_variance=0.3)
    W1, c1 = net.unpack(params)[0]
    W2, c2 = net.unpack(params)[1]
    Z = np.tanh(X @ W1.T + c1)
    Z = Z + np.tanh(Z @ W2.T + c2)
    features = np.hstack([Z, np.ones((30, 1))])
    cov = np.linalg.inv(features.T @ features / 0.3 + 0.7 * np.eye(9))
    assert near(laplace.variances(), np.diag(cov), 1e-10)
    found = laplace.predict(X[:4])[1]
    assert near(found.reshape(4), np.einsum("ij,jk,ik->i", features[:4], cov, features[:4]), 1e-10)


def test_layers_before_the_first_trainable_one_take_no_memory():
    sizes = []
    for depth in (3, 100):
        net = nh.Network([nh.Dense(4, 4) for _ in range(depth)], "mean_squared_error")
        head, params = net.freeze(net.init(rng=0), slice(-1))
        H = head.hessian(params, np.ones((5, 4)), np.ones((5, 4)))
        blocks = sum(block.nbytes for block in H.system.lin) + H.system.weights.nbytes
        sizes.append((blocks, H.factorize(0.1, method="layers").nbytes, H.nbytes_to_factorize(method="layers")))
    assert sizes[0] == sizes[1]


def test_influence_and_leave_one_out_of_the_last_layer():
    """Ridge regression on the features, with the formula of its hat matrix, and trained again without each sample."""
    rng = np.random.default_rng(1)
    net = nh.Network([nh.Dense(2, 5), nh.Dense(5, 1, "identity")], "mean_squared_error")
    X, y, l2 = rng.standard_normal((20, 2)), rng.standard_normal(20), 0.05
    head, params = net.freeze(net.init(rng=0), 0)
    W, c = head.unpack(params)[0]
    Z = np.hstack([np.tanh(X @ W.T + c), np.ones((20, 1))])
    # Mean of squares plus l2/2 |x|^2.
    A = 2.0 * Z.T @ Z / 20 + l2 * np.eye(6)
    best = np.linalg.solve(A, 2.0 * Z.T @ y / 20)
    found = nh.leave_one_out(head, best, X, y, l2=l2)
    for i in range(20):
        rest = np.arange(20) != i
        A_i = 2.0 * Z[rest].T @ Z[rest] / 19 + l2 * np.eye(6)
        again = np.linalg.solve(A_i, 2.0 * Z[rest].T @ y[rest] / 19)
        assert abs(found.predictions[i, 0] - Z[i] @ again) < 1e-9
    values = nh.influence(head, best, X, y, X[:3], y[:3], damping=0.0, l2=l2).values
    gradients = 2.0 * (Z @ best - y)[:, None] * Z
    assert near(values, gradients @ np.linalg.solve(A, gradients[:3].T) / 20, 1e-9)


def test_training_moves_what_is_trainable():
    rng = np.random.default_rng(2)
    net = nh.Network([nh.Dense(2, 6), nh.Dense(6, 6), nh.Dense(6, 1, "identity")], "mean_squared_error")
    X = rng.standard_normal((40, 2))
    head, start = net.freeze(net.init(rng=0), [1])
    result = nh.minimize(head, start, X, np.sin(X[:, 0]), l2=1e-3)
    assert result.success and result.x.shape == start.shape
    whole, params = head.unfreeze(result.x)
    assert whole.num_params == net.num_params and not any(layer.frozen for layer in whole.layers)
    assert np.array_equal(net.unpack(params)[1][0], net.unpack(net.init(rng=0))[1][0])
    assert np.linalg.norm(whole.gradient(params, X, np.sin(X[:, 0]), l2=1e-3)[head.trainable]) < 1e-7


def test_net():
    first, norm, last = nh.Dense(2, 3, frozen=True), nh.LayerNorm(3, frozen=True), nh.Conv1d(1, 1, 2, 2, frozen=True)
    layers = [first, norm, nh.Dense(3, 2), last]
    values = np.arange(9.0 + 6.0 + 3.0)
    net = nh.Network(layers, "mean_squared_error", frozen_params=values)
    assert net.num_params == 8 and "18 frozen" in repr(net)
    assert net.trainable.tolist() == [False] * 15 + [True] * 8 + [False] * 3
    params = net.init(rng=0)
    (W, c), norm, (W2, c2), (kernel, _) = net.unpack(params)
    assert np.array_equal(W, values[:6].reshape(3, 2)) and np.array_equal(norm, values[9:15])
    assert np.array_equal(kernel.ravel(), values[15:17]) and np.array_equal(W2.ravel(), params[:6])
    with pytest.raises(ValueError, match="read-only"):
        W[0, 0] = 1.0
    values[:] = 0.0
    assert net.frozen_params[1] == 1.0
    again, everything = net.unfreeze(params)
    assert np.array_equal(everything[net.trainable], params) and again.num_params == 26
    back, rest = again.freeze(everything, [True, True, False, True])
    assert back.layers == net.layers and np.array_equal(rest, params)
    assert pickle.loads(pickle.dumps(nh.RMSNorm(3, frozen=True))).frozen
    part, some = net.unfreeze(params, 1)
    assert np.array_equal(some, np.concatenate([norm, params])) and part.frozen_params.size == 12


def test_refused():
    layers = [nh.Dense(2, 3, frozen=True), nh.Dense(3, 2)]
    with pytest.raises(ValueError, match="frozen_params: expected the 9 parameters"):
        nh.Network(layers, "mean_squared_error")
    with pytest.raises(ValueError, match=r"frozen_params: expected shape \(9,\)"):
        nh.Network(layers, "mean_squared_error", np.zeros(8))
    net = nh.Network(layers, "mean_squared_error", np.zeros(9))
    with pytest.raises(ValueError, match="in layers that are not frozen, got none"):
        net.freeze(np.zeros(8), 1)
    with pytest.raises(IndexError, match="layers: expected a layer from 0 to 1"):
        net.freeze(np.zeros(8), 2)
    with pytest.raises(TypeError, match="frozen: expected True or False"):
        nh.Dense(2, 3, frozen=1)


def test_an_error_names_the_layer_in_the_net():
    net = nh.Network([nh.Dense(2, 3), nh.Dense(3, 3), nh.Dense(3, 2, "identity")], "mean_squared_error")
    head, params = net.freeze(net.init(rng=0), [0])
    with pytest.raises(np.linalg.LinAlgError, match="layer 1 has"):
        head.hessian(params, np.ones((1, 2)), np.ones((1, 2))).factorize(0.0, method="layers")


def test_from_torch():
    """requires_grad=False, against second derivatives by torch in the parameters that are left."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.LayerNorm(4), nn.Linear(4, 4), nn.ELU(),
        nn.Linear(4, 2),
    ).double()  # fmt: skip
    X, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    for frozen in ([0], [2, 5], [0, 2, 4], [7]):
        for index, part in enumerate(module):
            part.requires_grad_(index not in frozen)
        trained = [p for p in module.parameters() if p.requires_grad]
        net, params = nh.from_torch(module, nn.MSELoss())
        assert np.array_equal(params, torch.cat([p.detach().reshape(-1) for p in trained]).numpy())
        slopes = torch.autograd.grad(nn.functional.mse_loss(module(X), y), trained, create_graph=True)
        slopes = torch.cat([slope.reshape(-1) for slope in slopes])
        rows = [torch.cat([r.reshape(-1) for r in torch.autograd.grad(s, trained, retain_graph=True)]) for s in slopes]
        H = net.hessian(params, X.numpy(), y.numpy())
        assert near(H.todense(), torch.stack(rows).numpy(), 1e-11)
        assert near(
            H.factorize(0.1).solve(H.gradient),
            np.linalg.solve(torch.stack(rows).numpy() + 0.1 * np.eye(params.size), H.gradient),
            1e-9,
        )
    module[7].bias.requires_grad_(True)
    with pytest.raises(ValueError, match="'7'.*weight.*frozen as a whole or not at all"):
        nh.from_torch(module, nn.MSELoss())
