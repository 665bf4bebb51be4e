"""1-d convolutions against golden files of another autograd, against loops, dense layers and dense linear algebra."""

import json
import pickle

import numpy as np
import pytest
from problems import DATA
from test_storage import forge, in_chain, refused

import numba_hinv as nh

GOLDEN = sorted((DATA / "conv1d").glob("*.npz"))
every_file = pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)

# Chains in which a convolution is first, inner, last and alone, with more and with fewer rows of patches than columns.
NETS = {
    "first": ([nh.Conv1d(2, 3, 3, 7), nh.Dense(15, 2, "identity")], 2),
    "strides": (
        [
            nh.Conv1d(2, 3, 3, 9, stride=2, padding=1),
            nh.Conv1d(3, 2, 2, 5, "sin", dilation=2, padding=1, bias=False),
            nh.Dense(10, 2, "identity"),
        ],
        3,
    ),
    "few rows": (
        [
            nh.Conv1d(2, 3, 2, 4),
            nh.Conv1d(3, 3, 3, 3, padding=1, skip=True),
            nh.Conv1d(3, 2, 3, 3, "gelu", padding=3, stride=3),
            nh.Dense(6, 2, "identity", bias=False),
        ],
        1,
    ),
    "few rows, more samples": (
        [nh.Conv1d(4, 4, 3, 4, padding=2, dilation=2), nh.Conv1d(4, 4, 3, 4, padding=1, skip=True, bias=False)],
        2,
    ),
    "between dense layers": (
        [
            nh.Dense(3, 12),
            nh.Conv1d(3, 3, 3, 4, padding=1, skip=True),
            nh.Dense(12, 12, skip=True),
            nh.Conv1d(3, 2, 2, 4, "softplus", stride=2),
        ],
        3,
    ),
    "alone": ([nh.Conv1d(3, 2, 2, 4, "softplus", stride=2)], 2),
    "stride beyond the kernel": ([nh.Dense(3, 12), nh.Conv1d(3, 2, 1, 4, stride=3), nh.Dense(4, 1)], 2),
    "padding beyond the kernel": ([nh.Conv1d(2, 2, 2, 3, padding=4), nh.Conv1d(2, 2, 3, 10, padding=3, stride=4)], 2),
    "one position": ([nh.Conv1d(3, 4, 1, 1), nh.Conv1d(4, 4, 1, 1, skip=True), nh.Conv1d(4, 2, 1, 1)], 3),
    "with a norm": ([nh.Conv1d(1, 3, 3, 6), nh.LayerNorm(12), nh.Conv1d(3, 2, 3, 4), nh.Dense(4, 2, "identity")], 2),
}
every_net = pytest.mark.parametrize("name", NETS)


def problem(name, dtype=np.float64):
    """(net, params, X, y)."""
    layers, batch = NETS[name]
    net = nh.Network(layers, "mean_squared_error")
    rng = np.random.default_rng(0)
    params = net.init(rng=1, gain=1.5) + 0.2 * rng.standard_normal(net.num_params)
    X = rng.standard_normal((batch, layers[0].in_features))
    return net, params.astype(dtype), X, rng.standard_normal((batch, layers[-1].out_features))


def relative(a, b):
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


def check_factorization(H, A, damping):
    """Solution, inertia and log-determinant of ``A + damping I`` against dense linear algebra."""
    P = A.shape[0]
    shifted = A + damping * np.eye(P)
    eigenvalues = np.linalg.eigvalsh(shifted)
    F = H.factorize(damping)
    assert F.inertia == ((eigenvalues < 0).sum(), 0, (eigenvalues > 0).sum(), True)
    sign, logabsdet = F.slogdet()
    expected = np.linalg.slogdet(shifted)
    assert sign == expected[0] and abs(logabsdet - expected[1]) < 1e-10 * np.abs(np.log(np.abs(eigenvalues))).sum()
    b = np.random.default_rng(0).standard_normal((P, 3))
    condition = np.abs(eigenvalues).max() / np.abs(eigenvalues).min()
    exact = np.linalg.solve(shifted, b)
    # The elimination by itself: the sweeps are right, not only repaired.
    assert np.linalg.norm(F.solve(b, refine=False) - exact) < 1e-13 * condition * np.linalg.norm(exact)
    for x in (F.solve(b), np.column_stack([F.solve(column) for column in b.T])):
        residual = np.linalg.norm(shifted @ x - b, axis=0)
        size = np.abs(eigenvalues).max() * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
        assert (residual < 1e-14 * size).all()


# ---- golden files ---------------------------------------------------------------------------------------------------


def read(path):
    with np.load(path) as file:
        g = {key: file[key] for key in file.files}
    layers = [getattr(nh, d.pop("type"))(**d) for d in json.loads(str(g["layers"]))]
    return nh.Network(layers, str(g["loss"])), g


def test_all_files_are_here():
    assert len(GOLDEN) == 3


@every_file
def test_golden(path):
    net, g = read(path)
    params, X, y = g["params"], g["X"], g["y"]
    assert net.num_params == params.size
    assert relative(net.forward(params, X), g["output"]) < 1e-12
    assert relative(net.loss(params, X, y), g["value"]) < 1e-12
    assert relative(net.gradient(params, X, y), g["gradient"]) < 1e-12
    H = net.hessian(params, X, y)
    assert relative(H.gradient, g["gradient"]) < 1e-12
    assert relative(H.todense(), g["hessian"]) < 1e-12
    V = np.random.default_rng(0).standard_normal((params.size, 40))
    assert relative(H @ V, g["hessian"] @ V) < 1e-12
    norm = np.linalg.norm(g["hessian"], 2)
    for damping in (1.3 * norm, 0.05 * norm, 1e-3 * norm, -0.1 * norm):
        check_factorization(H, g["hessian"], damping)


# ---- by other routes ------------------------------------------------------------------------------------------------


def convolve(layer, W, c, z):
    """The layer's output for one sample, element by element."""
    x = np.zeros((layer.in_channels, layer.length + 2 * layer.padding))
    x[:, layer.padding : layer.padding + layer.length] = z.reshape(layer.in_channels, layer.length)
    u = np.zeros((layer.out_channels, layer.out_length))
    for a in range(layer.out_channels):
        for t in range(layer.out_length):
            for k in range(layer.kernel_size):
                u[a, t] += W[a, :, k] @ x[:, layer.stride * t + layer.dilation * k]
            u[a, t] += 0.0 if c is None else c[a]
    return u.ravel()


ACTIVATIONS = {"tanh": np.tanh, "sin": np.sin, "identity": lambda u: u, "softplus": lambda u: np.logaddexp(0.0, u)}


@pytest.mark.parametrize("name", ["first", "strides", "between dense layers", "padding beyond the kernel", "alone"])
def test_output_by_loops(name):
    net, params, X, _ = problem(name)
    Z = X
    for layer, (W, c) in zip(net.layers, net.unpack(params)):
        if isinstance(layer, nh.Conv1d):
            assert W.shape == (layer.out_channels, layer.in_channels, layer.kernel_size)
            U = np.array([convolve(layer, W, c, z) for z in Z])
        else:
            U = Z @ W.T + c
        Z = ACTIVATIONS[layer.activation](U) + (Z if layer.skip else 0.0)
    assert relative(net.forward(params, X), Z) < 1e-14


def test_output_by_numpy_convolve():
    layer = nh.Conv1d(1, 1, 4, 11, "identity", bias=False)
    net = nh.Network([layer], "mean_squared_error")
    W, x = np.array([1.0, -2.0, 0.5, 3.0]), np.random.default_rng(0).standard_normal((2, 11))
    expected = [np.convolve(row, W[::-1], "valid") for row in x]
    assert relative(net.forward(W, x), expected) < 1e-15


@every_net
def test_derivatives_by_differences(name):
    net, params, X, y = problem(name)
    P, h = params.size, 1e-5
    H = net.hessian(params, X, y)
    steps = h * np.eye(P)
    slopes = [(net.loss(params + step, X, y) - net.loss(params - step, X, y)) / (2 * h) for step in steps]
    assert relative(slopes, net.gradient(params, X, y)) < 1e-8
    curvatures = [(net.gradient(params + step, X, y) - net.gradient(params - step, X, y)) / (2 * h) for step in steps]
    A = H.todense()
    assert relative(curvatures, A) < 1e-8
    v = np.random.default_rng(1).standard_normal(P)
    assert relative(H @ v, A @ v) < 1e-13


@every_net
def test_factorization(name):
    net, params, X, y = problem(name)
    H = net.hessian(params, X, y)
    A = H.todense()
    norm = np.linalg.norm(A, 2)
    for damping in (1.3 * norm, 0.05 * norm, -0.1 * norm):
        check_factorization(H, A, damping)
    t = 0.01 * norm
    assert H.count_below(t) == (np.linalg.eigvalsh(A) < t).sum()


@every_net
def test_blocks_come_back(name):
    net, params, X, y = problem(name)
    H = net.hessian(params, X, y)
    again = nh.Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)
    assert relative(again.todense(), H.todense()) < 1e-14


def test_a_kernel_as_long_as_the_input_is_a_dense_layer():
    convolutions = [nh.Conv1d(2, 6, 4, 4), nh.Conv1d(3, 6, 2, 2, "gelu", skip=False), nh.Conv1d(6, 2, 1, 1, "identity")]
    dense = [nh.Dense(8, 6), nh.Dense(6, 6, "gelu"), nh.Dense(6, 2, "identity")]
    one, other = (nh.Network(layers, "mean_squared_error") for layers in (convolutions, dense))
    params = one.init(rng=3)
    np.testing.assert_array_equal(params, other.init(rng=3))
    rng = np.random.default_rng(0)
    for batch in (2, 20):
        X, y, b = rng.standard_normal((batch, 8)), rng.standard_normal((batch, 2)), rng.standard_normal(params.size)
        H, D = one.hessian(params, X, y), other.hessian(params, X, y)
        assert relative(H.gradient, D.gradient) < 1e-14 and relative(H @ b, D @ b) < 1e-14
        assert relative(H.factorize(0.1).solve(b), D.factorize(0.1).solve(b)) < 1e-12


def test_many_layers():
    """Time and memory are those of the structure: 40 layers, as dense ones of 65,000 parameters each."""
    layers = [nh.Conv1d(1, 4, 5, 64, padding=2)]
    layers += [nh.Conv1d(4, 4, 3, 64, padding=1, skip=True) for _ in range(38)] + [nh.Dense(256, 3, "identity")]
    net = nh.Network(layers, "softmax_cross_entropy")
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((1, 64)), np.array([2])
    H = net.hessian(net.init(), X, y)
    b = rng.standard_normal(net.num_params)
    x = H.factorize(0.01).solve(b)
    residual = np.linalg.norm(H @ x + 0.01 * x - b)
    assert residual < 1e-14 * (H.norm() * np.linalg.norm(x) + np.linalg.norm(b))


def test_no_damping():
    """More rows than columns in every layer: nothing is divided by the damping."""
    net, params, X, y = problem("one position")
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((9, X.shape[1])), rng.standard_normal((9, y.shape[1]))
    H = net.hessian(params, X, y)
    A, b = H.todense(), rng.standard_normal(params.size)
    x = H.factorize(0.0).solve(b)
    assert np.linalg.norm(A @ x - b) < 1e-14 * (np.linalg.norm(A, 2) * np.linalg.norm(x) + np.linalg.norm(b))


def test_parameters_that_no_patch_sees():
    net, params, X, y = problem("few rows")
    with pytest.raises(np.linalg.LinAlgError, match="^damping: .*layer 0 has 5 weights per output and 3 "):
        net.hessian(params, X, y).factorize(0.0)


@pytest.mark.parametrize("name", ["strides", "few rows"])
def test_scaled_states(name):
    """Inputs and outputs in other units: the states are scaled inside, by powers of two."""
    layers, batch = NETS[name]
    linear = [
        nh.Conv1d(
            *(getattr(layers[0], f) for f in ("in_channels", "out_channels", "kernel_size", "length")),
            "identity",
            stride=layers[0].stride,
            padding=layers[0].padding,
        ),
        *layers[1:],
    ]
    net = nh.Network(linear, "mean_squared_error")
    rng = np.random.default_rng(0)
    params = net.init(rng=1)
    net.unpack(params)[0][0][:] *= 2.0**-60
    X = 2.0**60 * rng.standard_normal((batch, layers[0].in_features))
    H = net.hessian(params, X, rng.standard_normal((batch, layers[-1].out_features)))
    A, b = H.todense(), rng.standard_normal(params.size)
    damping = 1e-3 * np.linalg.norm(A, 2)
    F = H.factorize(damping)
    assert F.solver.matrix.scale.matrix or F.solver.matrix.scale.states
    x = F.solve(b)
    residual = np.linalg.norm(A @ x + damping * x - b)
    assert residual < 1e-14 * (np.linalg.norm(A, 2) * np.linalg.norm(x) + np.linalg.norm(b))
    assert F.inertia.negative == (np.linalg.eigvalsh(A + damping * np.eye(params.size)) < 0).sum()


@pytest.mark.parametrize("name", ["strides", "few rows"])
def test_precisions(name):
    net, params, X, y = problem(name, np.float32)
    assert net.forward(params, X.astype(np.float32)).dtype == net.gradient(params, X, y).dtype == np.float32
    assert relative(net.gradient(params, X, y), net.gradient(params.astype(np.float64), X, y)) < 1e-5
    A = net.hessian(params.astype(np.float64), X, y).todense()
    damping = 0.1 * np.linalg.norm(A, 2)
    b = np.random.default_rng(0).standard_normal(params.size)
    for H, limit in ((net.hessian(params, X, y), 1e-7), (net.hessian(params.astype(np.float64), X, y), 1e-14)):
        F = H.factorize(damping, factor_dtype="float32")
        x = F.solve(b.astype(H.dtype))
        assert x.dtype == H.dtype
        residual = np.linalg.norm(A @ x + damping * x - b.astype(H.dtype))
        assert residual < limit * (np.linalg.norm(A, 2) * np.linalg.norm(x) + np.linalg.norm(b))
        assert F.inertia.negative == (np.linalg.eigvalsh(A) < -damping).sum()


def test_checkpoints():
    net, params, X, y = problem("few rows")
    H = net.hessian(params, X, y)
    b = np.ones(params.size)
    np.testing.assert_array_equal(H.factorize(0.3, checkpoint=True).solve(b), H.factorize(0.3).solve(b))


@pytest.mark.parametrize("name", ["few rows", "between dense layers"])
def test_saved_and_pickled(name, tmp_path):
    net, params, X, y = problem(name)
    F = net.hessian(params, X, y).factorize(0.2)
    b = np.ones(params.size)
    F.save(tmp_path / "f")
    for again in (nh.load(tmp_path / "f"), pickle.loads(pickle.dumps(F))):
        np.testing.assert_array_equal(again.solve(b), F.solve(b))
        assert again.inertia == F.inertia and again.hessian.network.layers == net.layers
        np.testing.assert_array_equal(again.hessian.network.gradient(params, X, y), F.hessian.gradient)


# ---- the description, and what is refused ----------------------------------------------------------------------------


def test_description():
    layer = nh.Conv1d(2, 3, 4, 10, stride=2, padding=1, dilation=2)
    assert (layer.activation, layer.bias, layer.skip) == ("tanh", True, False)
    assert (layer.out_length, layer.in_features, layer.out_features, layer.num_params) == (3, 20, 9, 27)
    assert layer == nh.Conv1d(2, 3, 4, 10, "tanh", True, False, 2, 1, 2)
    assert hash(layer) == hash(nh.Conv1d(**vars(layer)))
    with pytest.raises(AttributeError):
        layer.stride = 1


def test_initial_parameters():
    net = nh.Network([nh.Conv1d(8, 50, 16, 20), nh.Dense(250, 1)], "mean_squared_error")
    W, c = net.unpack(net.init(rng=0, gain=2.0))[0]
    assert abs(W.std() * np.sqrt(8 * 16) - 2.0) < 0.1 and not c.any()


@pytest.mark.parametrize(
    "fields, name, error",
    [
        (dict(in_channels=0), "in_channels", ValueError),
        (dict(out_channels=-1), "out_channels", ValueError),
        (dict(kernel_size=2.5), "kernel_size", TypeError),
        (dict(kernel_size=(3,)), "kernel_size", TypeError),
        (dict(kernel_size=8), "kernel_size", ValueError),
        (dict(dilation=4), "kernel_size", ValueError),
        (dict(length=0), "length", ValueError),
        (dict(length=True), "length", TypeError),
        (dict(activation="cake"), "activation", ValueError),
        (dict(bias=1), "bias", TypeError),
        (dict(skip=True), "skip", ValueError),
        (dict(skip=True, out_channels=2), "skip", ValueError),
        (dict(stride=0), "stride", ValueError),
        (dict(padding=-1), "padding", ValueError),
        (dict(padding="same"), "padding", TypeError),
        (dict(dilation=0), "dilation", ValueError),
    ],
)
def test_malformed_layers(fields, name, error):
    with pytest.raises(error, match=f"^{name}: "):
        nh.Conv1d(**{**dict(in_channels=2, out_channels=3, kernel_size=3, length=7), **fields})


def test_layers_that_do_not_meet():
    with pytest.raises(ValueError, match="^layers: .*15 outputs"):
        nh.Network([nh.Conv1d(2, 3, 3, 7), nh.Dense(14, 2)], "mean_squared_error")
    net, params, X, y = problem("first")
    with pytest.raises(ValueError, match="^X: "):
        net.forward(params, X[:, :-1])


@pytest.mark.parametrize(
    "change, word",
    [
        (in_chain("stride", 0, 0, network=None), "impossible"),
        (in_chain("kernel", 0, 0, network=None), "impossible"),
        (in_chain("dilation", 0, 0, network=None), "impossible"),
        (in_chain("length", 0, 0, network=None), "impossible"),
        (in_chain("length", 0, 5, network=None), "impossible"),
        (in_chain("padding", 0, 7, network=None), "impossible"),
        (in_chain("dilation", 0, 2**30, network=None), "impossible"),
        (in_chain("kernel", 3, 2, network=None), "impossible"),
        (in_chain("kind", 0, 0, network=None), "impossible"),
        (in_chain("kernel", 1, 1, network=None), "impossible"),
        # As many positions, but other weights; and as many weights and positions, but at other places.
        (in_chain("kernel", 2, 2, network=None), "meet"),
        (in_chain("padding", 2, 4), "different"),
        (lambda h, a: h["network"]["layers"][2].__setitem__(9, 4), "different"),
        (lambda h, a: h["network"]["layers"][0].__setitem__(0, "Conv3d"), "header"),
    ],
)
def test_forged_files(change, word, tmp_path):
    net, params, X, y = problem("few rows")
    net.hessian(params, X, y).factorize(0.2).save(tmp_path / "f")
    forge(tmp_path / "f", change)
    refused(tmp_path / "f", word)
