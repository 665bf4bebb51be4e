"""Hessians of samples in batches: the same as of all samples in one array, whatever gives the batches."""

import pickle
import tracemalloc

import dense_truth
import numpy as np
import pytest
from problems import GOLDEN, golden

import numba_hinv as nh
from numba_hinv.layers.samples import Samples, fingerprint

EPS = np.finfo(float).eps


def mixed(samples=50):
    """Every kind of compiled layer, and samples."""
    layers = [
        nh.Conv1d(1, 3, 3, 8, "tanh"), nh.Dense(18, 5), nh.LayerNorm(5), nh.Dense(5, 5, skip=True),
        nh.Dense(5, 3, "identity", bias=False),
    ]  # fmt: skip
    net, rng = nh.Network(layers, "softmax_cross_entropy"), np.random.default_rng(3)
    return net, net.init(1), rng.standard_normal((samples, 8)), rng.integers(0, 3, samples)


def pieces(X, y, size=7):
    return [(X[at : at + size], y[at : at + size]) for at in range(0, len(X), size)]


def close(found, expected, factor=200):
    """Sums of the same terms in another order: rounding grows with the number of terms at most."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=factor * EPS * np.abs(expected).max())


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_in_batches_of_one(name):
    problem, arrays = golden(name)
    H = problem.net.hessian(problem.params, problem.X, problem.y, batch_size=1)
    close(H.todense(), arrays["hessian"])
    assert abs(H.loss - arrays["value"]) <= 1e-14 * max(1.0, abs(arrays["value"]))
    close(H.gradient, arrays["gradient"])
    damping, b = 0.3 * problem.norm, arrays["v"]
    x = H.factorize(damping).solve(b)
    assert dense_truth.backward_error(arrays["hessian"], damping, x, b) <= 1e-14


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("batch_size", [1, 13, 50, 1000])
def test_any_size_of_batches(batch_size, curvature):
    net, params, X, y = mixed()
    whole = net.hessian(params, X, y, curvature, 0.03)
    parts = net.hessian(params, X, y, curvature, 0.03, batch_size=batch_size)
    assert parts.num_samples == 50 and parts.l2 == 0.03
    close(parts.todense(), whole.todense())
    close(parts.gradient, whole.gradient)
    assert abs(parts.loss - whole.loss) <= 50 * EPS * abs(whole.loss)
    V = np.random.default_rng(0).standard_normal((net.num_params, 3))
    unkept = net.hessian(params, X, y, curvature, 0.03, batch_size=batch_size, keep_bytes=0)
    close(unkept @ V, whole @ V)
    F, G = parts.factorize(0.1), whole.factorize(0.1, method="layers")
    assert F.method == "dense" and F.inertia == G.inertia
    close(F.solve(V), G.solve(V), 1e3 * np.linalg.cond(whole.todense() + 0.1 * np.eye(net.num_params)))
    assert abs(F.slogdet()[1] - G.slogdet()[1]) <= 1e-10 * abs(G.slogdet()[1])


def test_external_layers():
    # z' = sin(x z), with one parameter.
    def value(Z, x):
        return np.sin(x[0] * Z)

    def jacobian(Z, x):
        slope = np.cos(x[0] * Z)
        return (x[0] * slope)[:, :, None] * np.eye(Z.shape[1]), (Z * slope)[:, :, None]

    def curvature(Z, x, G):
        bent, slope = -G * np.sin(x[0] * Z), G * np.cos(x[0] * Z)
        Dzx = (bent * Z * x[0] + slope)[:, None, :]
        return np.array([[(bent * Z * Z).sum()]]), Dzx, (bent * x[0] ** 2)[:, :, None] * np.eye(Z.shape[1])

    sine = nh.External(value, jacobian, curvature, in_features=2, out_features=2, num_params=1, init=(1.0,))
    net = nh.Network([nh.Dense(3, 2), sine], "mean_squared_error")
    rng = np.random.default_rng(0)
    params, X, y = net.init(0), rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    close(net.hessian(params, X, y, batch_size=4).todense(), net.hessian(params, X, y).todense())


class Loader:
    """Batches of samples in another order each time, as a DataLoader with ``shuffle=True`` gives them."""

    def __init__(self, X, y, size, dropped=0):
        self.X, self.y, self.size, self.dropped, self.rng = X, y, size, dropped, np.random.default_rng(0)

    def __iter__(self):
        order = self.rng.permutation(len(self.X))[: len(self.X) - self.dropped]
        return iter(pieces(self.X[order], self.y[order], self.size))


class Stored:
    """An array on a disk, as h5py gives it: parts of it are read when it is indexed."""

    chunks = None

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __array__(self, dtype=None, copy=None):
        return np.array(self[:], dtype)

    def __getitem__(self, key):
        part = self.array[key]
        self.largest = max(self.largest, len(part))
        return part


@pytest.mark.parametrize("keep_bytes", [0, 30_000, None])
def test_whatever_gives_the_samples_gives_the_same_bits(tmp_path, keep_bytes):
    net, params, X, y = mixed()
    expected = net.hessian(params, X, y, batch_size=16)
    v = np.random.default_rng(1).standard_normal(net.num_params)
    np.save(tmp_path / "X.npy", X)
    sources = {
        "memmap": (np.load(tmp_path / "X.npy", mmap_mode="r"), y),
        "stored": (Stored(X), Stored(y)),
        "list": (pieces(X, y), None),
        "uneven": ([(X[:1], y[:1]), (X[1:40], y[1:40]), (X[40:], y[40:])], None),
        "generator": (lambda: (batch for batch in pieces(X, y, 50)), None),
    }
    for name, (inputs, targets) in sources.items():
        H = net.hessian(params, inputs, targets, batch_size=16, keep_bytes=keep_bytes)
        assert np.array_equal(H @ v, expected @ v), name
        assert np.array_equal(H.todense(), expected.todense()), name
        assert H.loss == expected.loss and np.array_equal(H.gradient, expected.gradient), name


def test_arrays_on_a_disk_are_read_in_parts():
    net, params, X, y = mixed()
    stored = Stored(X)
    net.hessian(params, stored, y, keep_bytes=0, batch_size=16).factorize(1.0)
    assert stored.largest == 16
    # What fits is read at once, and is a chain of layers.
    assert net.hessian(params, stored, y).factorize(1.0, method="layers").method == "layers"


def test_losses_and_gradients_of_batches():
    net, params, X, y = mixed()
    loss, gradient = net.loss(params, X, y, 0.1), net.gradient(params, X, y, 0.1)
    for source in (pieces(X, y), Loader(X, y, 9)):
        assert abs(net.loss(params, source, l2=0.1) - loss) <= 50 * EPS * loss
        close(net.gradient(params, source, l2=0.1), gradient)
    narrow = net.gradient(params.astype(np.float32), pieces(X, y))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, net.gradient(params, X, y), rtol=0, atol=1e-5)


@pytest.mark.parametrize("keep_bytes", [0, 30_000, None])
def test_a_loader_may_shuffle(keep_bytes):
    net, params, X, y = mixed()
    H = net.hessian(params, Loader(X, y, 8), keep_bytes=keep_bytes, batch_size=8)
    expected = net.hessian(params, X, y)
    v = np.ones(net.num_params)
    for _ in range(2):
        close(H @ v, expected @ v)
    close(H.todense(), expected.todense())


def test_samples_that_change_are_refused():
    net, params, X, y = mixed()
    dropping = net.hessian(params, Loader(X, y, 8, dropped=2), keep_bytes=0)
    with pytest.raises(ValueError, match="X: expected the same samples each time.*drops no samples"):
        dropping @ np.ones(net.num_params)
    given = [X, X + 1e-12]
    noisy = net.hessian(params, lambda: iter(pieces(given.pop(0), y)), keep_bytes=0)
    with pytest.raises(ValueError, match="the same samples"):
        noisy.todense()


def test_fingerprints():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((6, 3)), np.arange(6.0)[:, None]
    order = rng.permutation(6)
    assert fingerprint(X, y) == fingerprint(X[order], y[order])
    assert fingerprint(X, y) != fingerprint(X[order], y)
    assert fingerprint(X, y) != fingerprint(X[:, ::-1], y)
    assert fingerprint(X, y) != fingerprint(X, 1 - y)


def test_bad_samples_are_named():
    net, params, X, y = mixed()
    bad = X.copy()
    bad[20, 3] = np.nan
    with pytest.raises(ValueError, match=r"X\[16:32\]: expected finite numbers, got nan at index \(4, 3\)"):
        net.hessian(params, bad, y, batch_size=16)
    with pytest.raises(ValueError, match=r"X of batch 2: expected finite numbers, got nan at index \(6, 3\)"):
        net.hessian(params, pieces(bad, y))
    with pytest.raises(ValueError, match="y of batch 1: expected labels from 0 to 2, got 9 at index 0"):
        net.hessian(params, [(X[:2], y[:2]), (X[2:4], np.array([9, 0]))])
    with pytest.raises(ValueError, match=r"X of batch 0: expected shape \(any, 8\)"):
        net.hessian(params, [(X[:, :5], y)])
    with pytest.raises(ValueError, match="y: expected targets of 50 samples, as X has, got 49"):
        net.hessian(params, X, y[1:], batch_size=5)
    with pytest.raises(ValueError, match="at least one batch of samples, got none"):
        net.hessian(params, [])
    with pytest.raises(TypeError, match=r"pairs \(X, y\), or triples with weights, got ndarray as batch 0"):
        net.hessian(params, [X, y])
    with pytest.raises(TypeError, match="used up after the first time"):
        net.hessian(params, iter(pieces(X, y)))
    with pytest.raises(TypeError, match=r"y: expected targets, or X to give pairs"):
        net.hessian(params, X)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        net.hessian(params, X, y, batch_size=0)
    with pytest.raises(ValueError, match="keep_bytes: expected at least 0, got -1"):
        net.hessian(params, X, y, keep_bytes=-1)


def test_overflow_names_the_samples():
    net = nh.Network([nh.Dense(1, 1, "identity")], "mean_squared_error")
    X, y = np.ones((6, 1)), np.zeros(6)
    y[4] = 1e200
    with pytest.raises(ValueError, match=r"finite loss, got inf \(samples 4 to 5\)"):
        net.hessian(np.ones(2), X, y, batch_size=2)


def test_what_only_layers_have():
    net, params, X, y = mixed()
    H = net.hessian(params, X, y, batch_size=16)
    with pytest.raises(ValueError, match="method: expected 'dense' or 'auto' for a Hessian of samples in batches"):
        H.factorize(0.1, method="layers")
    with pytest.raises(ValueError, match="checkpoint: expected False"):
        H.factorize(0.1, checkpoint=True)
    for ask in (lambda: H.blocks(0), lambda: H.terminal):
        with pytest.raises(ValueError, match="samples in one batch"):
            ask()


def test_many_dampings_counts_and_eigenvalues():
    net, params, X, y = mixed()
    H = net.hessian(params, X, y, batch_size=16)
    values = np.linalg.eigvalsh(net.hessian(params, X, y).todense())
    t = 0.5 * (values[40] + values[41])
    assert H.count_below(t) == 41
    for F, damping in zip(H.factorize_many([0.1, 1.0]), (0.1, 1.0)):
        assert F.inertia.negative == (values < -damping).sum()
    np.testing.assert_allclose(nh.eigenvalues(H, 2, near=values[-1]), values[-2:], rtol=1e-10)


def test_files_and_pickles(tmp_path):
    net, params, X, y = mixed()
    F = net.hessian(params, lambda: iter(pieces(X, y)), l2=0.1).factorize(0.2)
    b = np.random.default_rng(0).standard_normal(net.num_params)
    x = F.solve(b)
    F.save(tmp_path / "F.npz")
    for other in (nh.load(tmp_path / "F.npz"), pickle.loads(pickle.dumps(F))):
        assert np.array_equal(other.solve(b), x)
        assert np.array_equal(other.hessian @ b, F.hessian @ b)
        assert np.array_equal(other.hessian.gradient, F.hessian.gradient) and other.hessian.num_samples == 50
        assert np.array_equal(other.hessian.factorize(0.5).solve(b), F.hessian.factorize(0.5).solve(b))


def test_sums_of_hessians():
    net, params, X, y = mixed()
    whole = net.hessian(params, X, y, l2=0.2)
    one, two = net.hessian(params, X[:20], y[:20], l2=0.2), net.hessian(params, X[20:], y[20:], l2=0.2, batch_size=9)
    mean = nh.Hessian.combine([one, two])
    close(mean.todense(), whole.todense())
    close(mean.gradient, whole.gradient)
    assert abs(mean.loss - whole.loss) <= 50 * EPS and mean.num_samples == 50 and mean.l2 == pytest.approx(0.2)
    total, v = one + two, np.ones(net.num_params)
    close(total @ v, one @ v + two @ v)
    F = total.factorize(0.3)
    close(F.solve(v), np.linalg.solve(one.todense() + two.todense() + 0.3 * np.eye(net.num_params), v), 1e4)
    close(nh.Hessian.combine([one, total], [2.0, -1.0]).todense(), one.todense() - two.todense())
    # Blocks have no net, and add as well.
    chain = nh.Hessian.from_blocks([one.blocks(l) for l in range(one.num_layers)], one.terminal)
    close((chain + chain).todense(), 2 * one.todense())
    assert (one + one.factorize(1.0)) @ v == pytest.approx(one @ v + one.factorize(1.0) @ v)


def test_sums_of_different_hessians_are_refused():
    net, params, X, y = mixed()
    H = net.hessian(params, X, y)
    for other, what in (
        (net.hessian(params + 1e-9, X, y), "parameters"),
        (net.hessian(params, X, y, "ggn"), "curvature"),
        (net.hessian(params.astype(np.float32).astype(float), X, y), "parameters"),
    ):
        with pytest.raises(ValueError, match=f"hessians: expected the same {what} in all, got others at index 1"):
            H + other
    with pytest.raises(ValueError, match="at least one Hessian"):
        nh.Hessian.combine([])
    with pytest.raises(TypeError, match="expected Hessians, got ndarray at index 1"):
        nh.Hessian.combine([H, H.todense()])
    with pytest.raises(ValueError, match="weights: expected finite"):
        nh.Hessian.combine([H, H], [1.0, np.inf])


def test_memory_is_that_of_a_batch():
    layers = [nh.Dense(8, 32), nh.Dense(32, 32), nh.Dense(32, 1, "identity")]
    net, rng = nh.Network(layers, "mean_squared_error"), np.random.default_rng(0)
    params, X, y = net.init(0), rng.standard_normal((20_000, 8)), rng.standard_normal(20_000)
    kept = net.model.block_bytes(20_000)
    net.hessian(params, X[:512], y[:512], batch_size=512).factorize(1e-3)
    tracemalloc.start()
    H = net.hessian(params, X, y, batch_size=512, keep_bytes=0)
    H @ params
    H.factorize(1e-3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # H, its factors and a copy; the blocks of two batches; what assembling takes.
    assert peak < 4 * 8 * net.num_params**2 + 2 * net.model.block_bytes(512) + 3 * (1 << 25) + 8 * 20_000 < 5 * kept


def test_an_interruption_leaves_nothing_behind():
    net, params, X, y = mixed()
    interrupted = []

    def batches():
        for index, batch in enumerate(pieces(X, y)):
            if index == 3 and interrupted:
                interrupted.pop()
                raise KeyboardInterrupt
            yield batch

    H = net.hessian(params, batches, keep_bytes=0, batch_size=7)
    interrupted.append(True)
    with pytest.raises(KeyboardInterrupt):
        H.factorize(0.1)
    close(H.factorize(0.1).hessian.todense(), net.hessian(params, X, y).todense())


def test_samples_are_cut_anew():
    net, _, X, y = mixed()
    cut = list(Samples(net.model, pieces(X, y, 11), None, 16))
    assert [len(X) for X, _ in cut] == [16, 16, 16, 2]
    assert np.array_equal(np.concatenate([X for X, _ in cut]), X)
