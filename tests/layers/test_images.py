"""2-d convolutions and local layers (pooling, batch norms, activations) against loops, differences, dense algebra."""

import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from test_conv1d import check_factorization, relative
from test_storage import forge, in_chain, refused

import numba_hinv as nh
from numba_hinv.system import dense

NORM = dict(mean=[0.1, -0.3, 0.2], variance=[1.0, 0.3, 2.0])
# Chains in which each kind is first, inner, last and alone, with more and with fewer rows of patches than columns.
NETS = {
    "first": ([nh.Conv2d(2, 3, (3, 2), (5, 4)), nh.Dense(27, 2, "identity")], 2),
    "strides": (
        [
            nh.Conv2d(2, 3, (3, 2), (6, 5), stride=(2, 1), padding=(1, 2)),
            nh.Conv2d(3, 2, 2, (3, 8), "sin", dilation=(1, 3), padding=(0, 1), bias=False),
            nh.Dense(28, 2, "identity"),
        ],
        2,
    ),
    "few rows": (
        [
            nh.Conv2d(2, 3, 3, (4, 3)),
            nh.Conv2d(3, 3, (3, 1), (2, 1), padding=(1, 0), skip=True),
            nh.Conv2d(3, 2, 3, (2, 1), "gelu", padding=2, stride=3),
            nh.Dense(4, 2, "identity", bias=False),
        ],
        1,
    ),
    "stride beyond the kernel": ([nh.Dense(3, 24), nh.Conv2d(2, 2, 1, (4, 3), stride=(3, 2)), nh.Dense(8, 1)], 2),
    "one axis": ([nh.Conv2d(2, 3, (1, 3), (1, 7)), nh.Conv2d(3, 2, (1, 2), (1, 5)), nh.Dense(8, 1, "identity")], 2),
    "means": (
        [
            nh.Conv2d(1, 3, 2, (5, 6)),
            nh.AvgPool2d(3, (2, 3), (4, 5), stride=(2, 1), padding=(1, 1)),
            nh.Dense(45, 2, "identity"),
        ],
        2,
    ),
    "means inside": (
        [nh.Conv2d(1, 3, 2, 4), nh.AvgPool2d(3, 2, 3, padding=1, count_include_pad=False), nh.Conv2d(3, 2, 2, 2)],
        2,
    ),
    "maxima": (
        [
            nh.Conv2d(1, 3, 3, 6),
            nh.MaxPool2d(3, (2, 2), 4, dilation=(2, 1), stride=1, padding=(1, 0)),
            nh.Conv2d(3, 2, (2, 3), (4, 3), "softplus"),
        ],
        2,
    ),
    "pooled sequences": (
        [
            nh.Conv1d(2, 3, 3, 9),
            nh.MaxPool1d(3, 3, 7, stride=2, padding=1),
            nh.Conv1d(3, 2, 2, 4, "identity"),
            nh.AvgPool1d(2, 2, 3, stride=1),
            nh.Activation(4, "sigmoid"),
            nh.Dense(4, 2, "identity"),
        ],
        3,
    ),
    "norms": (
        [
            nh.Conv2d(1, 3, 2, 3, "identity"),
            nh.BatchNorm(**NORM, positions=4),
            nh.Activation(12, "tanh"),
            nh.BatchNorm(**NORM, positions=4, affine=False),
            nh.Dense(12, 3),
            nh.BatchNorm(**NORM),
        ],
        3,
    ),
    "local layers first": (
        [nh.BatchNorm(**NORM, positions=4), nh.MaxPool2d(3, 2, 2, stride=1), nh.Activation(3), nh.Dense(3, 2)],
        2,
    ),
    "pooled first": ([nh.AvgPool2d(2, 2, 4), nh.Conv2d(2, 2, 1, 2), nh.LayerNorm(8), nh.Dense(8, 8, skip=True)], 3),
    "pooled last": ([nh.Conv2d(1, 2, 2, 5, "identity"), nh.MaxPool2d(2, 2, 4)], 2),
}
every_net = pytest.mark.parametrize("name", NETS)


def problem(name, dtype=np.float64, batch=None):
    """(net, params, X, y)."""
    layers, usual = NETS[name]
    batch = batch or usual
    net = nh.Network(layers, "mean_squared_error")
    rng = np.random.default_rng(0)
    params = net.init(rng=1, gain=1.5) + 0.2 * rng.standard_normal(net.num_params)
    X = rng.standard_normal((batch, layers[0].in_features))
    return net, params.astype(dtype), X, rng.standard_normal((batch, layers[-1].out_features))


def assembled(hessian):
    """H as it is put together for the dense route, from NaN, past the choice between that and products."""
    system = hessian.system
    H = np.full((system.num_params, system.num_params), np.nan)
    made = dense.Assembler(system.table, *system.on_host(), 1)
    made.add(H, True)
    dense.finish(made.table, made.plan.places, H, system.l2, made.workers)
    return H


# ---- values ---------------------------------------------------------------------------------------------------------


def windows(z, kernel, stride, padding, dilation, fill):
    """(position, what the kernel reads there, 2-d) of one channel."""
    padded = np.pad(z, [(p, p) for p in padding], constant_values=fill)
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(padded.shape, kernel, stride, dilation)]
    for y, x in itertools.product(*map(range, counts)):
        top, left = y * stride[0], x * stride[1]
        yield (
            (y, x),
            padded[
                top : top + dilation[0] * (kernel[0] - 1) + 1 : dilation[0],
                left : left + dilation[1] * (kernel[1] - 1) + 1 : dilation[1],
            ],
        )


def by_loops(layer, block, z):
    """A layer's output for one sample, window by window."""
    if isinstance(layer, nh.BatchNorm):
        h = (z.reshape(len(layer.mean), -1).T - layer.mean) / np.sqrt(np.array(layer.variance) + layer.eps)
        weight, bias = block.reshape(2, -1) if layer.affine else (1.0, 0.0)
        return (weight * h + bias).T.ravel()
    if isinstance(layer, nh.Activation):
        return ACTIVATIONS[layer.activation](z)
    if isinstance(layer, nh.Dense):
        return ACTIVATIONS[layer.activation](block[0] @ z + (0.0 if block[1] is None else block[1]))
    image = z.reshape(-1, *layer.size)
    at = layer.kernel_size, layer.stride, layer.padding
    if isinstance(layer, nh.Conv2d):
        W, c = block
        u = np.zeros((layer.out_channels, *layer.out_size)) + (0.0 if c is None else c[:, None, None])
        for a, channel in itertools.product(range(layer.out_channels), range(layer.in_channels)):
            for place, read in windows(image[channel], *at, layer.dilation, 0.0):
                u[(a, *place)] += (W[a, channel] * read).sum()
        return ACTIVATIONS[layer.activation](u.ravel()) + (z if layer.skip else 0.0)
    out = np.zeros((layer.channels, *layer.out_size))
    for channel in range(layer.channels):
        if isinstance(layer, nh.MaxPool2d):
            for place, read in windows(image[channel], *at, layer.dilation, -np.inf):
                out[(channel, *place)] = read.max()
            continue
        for place, read in windows(image[channel], *at, (1, 1), 0.0 if layer.count_include_pad else np.nan):
            out[(channel, *place)] = np.nanmean(read)
    return out.ravel()


ACTIVATIONS = {
    "tanh": np.tanh, "sin": np.sin, "identity": lambda u: u, "softplus": lambda u: np.logaddexp(0.0, u),
    "sigmoid": lambda u: 1.0 / (1.0 + np.exp(-u)),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "first",
        "strides",
        "stride beyond the kernel",
        "means",
        "means inside",
        "maxima",
        "norms",
        "local layers first",
        "pooled last",
    ],
)
def test_output_by_loops(name):
    net, params, X, _ = problem(name)
    Z = X
    for layer, block in zip(net.layers, net.unpack(params)):
        Z = np.array([by_loops(layer, block, z) for z in Z])
    assert relative(net.forward(params, X), Z) < 1e-14


def test_a_height_of_one_is_a_sequence():
    net, params, X, y = problem("one axis")
    layers = [nh.Conv1d(2, 3, 3, 7), nh.Conv1d(3, 2, 2, 5), nh.Dense(8, 1, "identity")]
    sequence = nh.Network(layers, "mean_squared_error")
    assert [block[0].shape for block in net.unpack(params)] == [(3, 2, 1, 3), (2, 3, 1, 2), (1, 8)]
    H, expected = net.hessian(params, X, y), sequence.hessian(params, X, y)
    np.testing.assert_array_equal(H.todense(), expected.todense())
    np.testing.assert_array_equal(H.factorize(0.1).solve(params), expected.factorize(0.1).solve(params))


# ---- derivatives ----------------------------------------------------------------------------------------------------


@every_net
def test_derivatives_by_differences(name):
    net, params, X, y = problem(name)
    P, h = params.size, 1e-5
    H = net.hessian(params, X, y)
    steps = h * np.eye(P)
    slopes = [(net.loss(params + step, X, y) - net.loss(params - step, X, y)) / (2 * h) for step in steps]
    assert relative(slopes, net.gradient(params, X, y)) < 1e-8
    curvatures = [(net.gradient(params + step, X, y) - net.gradient(params - step, X, y)) / (2 * h) for step in steps]
    products = H @ np.eye(P)
    assert relative(curvatures, products) < 1e-8
    assert relative(assembled(H), products) < 1e-13
    assert relative(H.diagonal(), np.diag(products)) < 1e-13


@every_net
def test_parts(name):
    """Jacobians and Hessians in the inputs by differences; the blocks as a chain of their own."""
    net, params, X, y = problem(name)
    h = 1e-5
    for found, at, steps, of in (
        (net.jacobian(params, X), params, h * np.eye(params.size), lambda p: net.forward(p, X)),
    ):
        differences = [(of(at + step) - of(at - step)) / (2 * h) for step in steps]
        assert relative(np.moveaxis(differences, 0, -1), found) < 1e-8
    H = net.hessian(params, X, y)
    chain = nh.Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)
    assert relative(chain.todense(), H.todense()) < 1e-13
    found = net.input_hessian(params, X, y)[0]

    def slope(x):
        steps = h * np.eye(x.size)
        return [(net.loss(params, [x + s], y[:1]) - net.loss(params, [x - s], y[:1])) / (2 * h) for s in steps]

    column = (np.array(slope(X[0] + 1e-4 * np.eye(X.shape[1])[0])) - slope(X[0] - 1e-4 * np.eye(X.shape[1])[0])) / 2e-4
    assert np.abs(column - found[0]).max() < 1e-5 * max(1.0, np.abs(found).max())


@every_net
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_factorization(name, curvature):
    net, params, X, y = problem(name)
    H = net.hessian(params, X, y, curvature=curvature)
    A = H.todense()
    if curvature == "ggn":
        J = net.jacobian(params, X).reshape(-1, params.size)
        assert relative(J.T @ J * 2 / y.size, A) < 1e-13
    norm = np.linalg.norm(A, 2)
    for damping in (0.05 * norm, 1e-3 * norm, -0.1 * norm):
        check_factorization(H, A, damping)
    b = np.random.default_rng(3).standard_normal(params.size)
    both = [H.factorize(0.01 * norm, method=method).solve(b) for method in ("layers", "dense")]
    assert relative(both[0], both[1]) < 1e-11


@every_net
def test_inverse(name):
    """Variances by the recursion over the layers, and those of one layer's parameters together."""
    net, params, X, y = problem(name)
    H = net.hessian(params, X, y, curvature="ggn")
    A = H.todense()
    damping = 0.05 * np.linalg.norm(A, 2)
    F, inverse = H.factorize(damping, method="layers"), np.linalg.inv(A + damping * np.eye(params.size))
    assert relative(F.diagonal(), np.diag(inverse)) < 1e-10
    start = 0
    for l, layer in enumerate(net.layers):
        end = start + layer.num_params
        if end > start:
            assert np.abs(F.blocks(l) - inverse[start:end, start:end]).max() < 1e-10 * np.abs(inverse).max()
        start = end


def test_ties():
    """The first of several largest numbers is taken for the only one, and NaN is larger than any."""
    net = nh.Network([nh.Dense(1, 4, "identity"), nh.MaxPool2d(1, 2, 2)], "mean_squared_error")
    slope = net.gradient(np.zeros(8), [[1.0]], [[1.0]])
    np.testing.assert_array_equal(slope, [-2.0, 0, 0, 0, -2.0, 0, 0, 0])
    assert not net.hessian(np.zeros(8), [[1.0]], [[1.0]]).todense()[1:4].any()
    # The numbers after an infinite one, and zeros of the padding beside it, do not make it NaN.
    mean = nh.Network([nh.AvgPool1d(1, 2, 2, padding=1), nh.Dense(2, 1)], "mean_squared_error")
    assert np.isfinite(mean.forward(np.ones(3), [[1e308, 1e308]])).all()


def test_scaled_states():
    """Inputs and outputs in other units: states are scaled inside, by powers of two, and columns of Dz are not."""
    layers = [nh.Conv2d(1, 2, 2, 5, "identity"), nh.MaxPool2d(2, 2, 4), nh.BatchNorm([0.0, 0.0], [1.0, 4.0], 4),
              nh.Activation(8, "identity"), nh.Dense(8, 2)]  # fmt: skip
    net = nh.Network(layers, "mean_squared_error")
    rng = np.random.default_rng(0)
    params, X = net.init(rng=1), 2.0**60 * rng.standard_normal((2, 25))
    net.unpack(params)[0][0][:] *= 2.0**-60
    H = net.hessian(params, X, rng.standard_normal((2, 2)))
    A, b = H.todense(), rng.standard_normal(params.size)
    damping = 1e-3 * np.linalg.norm(A, 2)
    F = H.factorize(damping, method="layers")
    assert F.solver.matrix.scale.matrix or F.solver.matrix.scale.states
    x = F.solve(b)
    residual = np.linalg.norm(A @ x + damping * x - b)
    assert residual < 1e-14 * (np.linalg.norm(A, 2) * np.linalg.norm(x) + np.linalg.norm(b))
    assert F.inertia.negative == (np.linalg.eigvalsh(A + damping * np.eye(params.size)) < 0).sum()


@pytest.mark.parametrize("name", ["strides", "maxima", "norms"])
def test_precisions(name):
    net, params, X, y = problem(name, np.float32)
    assert net.forward(params, X.astype(np.float32)).dtype == net.gradient(params, X, y).dtype == np.float32
    assert relative(net.gradient(params, X, y), net.gradient(params.astype(np.float64), X, y)) < 1e-5
    A = net.hessian(params.astype(np.float64), X, y).todense()
    damping = 0.1 * np.linalg.norm(A, 2)
    b = np.random.default_rng(0).standard_normal(params.size)
    for H, limit in ((net.hessian(params, X, y), 1e-7), (net.hessian(params.astype(np.float64), X, y), 1e-14)):
        F = H.factorize(damping, factor_dtype="float32", method="layers")
        x = F.solve(b.astype(H.dtype))
        assert x.dtype == H.dtype
        residual = np.linalg.norm(A @ x + damping * x - b.astype(H.dtype))
        assert residual < limit * (np.linalg.norm(A, 2) * np.linalg.norm(x) + np.linalg.norm(b))


def test_batches_and_checkpoints():
    net, params, X, y = problem("maxima", batch=40)
    whole = net.hessian(params, X, y)
    assert relative(net.hessian(params, X, y, batch_size=7).todense(), whole.todense()) < 1e-13
    net, params, X, y = problem("norms")
    H = net.hessian(params, X, y)
    b = np.ones(params.size)
    F = H.factorize(0.3, checkpoint=True)
    np.testing.assert_array_equal(F.solve(b), H.factorize(0.3, method="layers").solve(b))


# ---- files and pickles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["few rows", "means inside", "maxima", "norms", "pooled sequences"])
def test_saved_and_pickled(name, tmp_path):
    net, params, X, y = problem(name)
    F = net.hessian(params, X, y).factorize(0.2, method="layers")
    b = np.ones(params.size)
    F.save(tmp_path / "f")
    for again in (nh.load(tmp_path / "f"), pickle.loads(pickle.dumps(F))):
        np.testing.assert_array_equal(again.solve(b), F.solve(b))
        assert again.inertia == F.inertia and again.hessian.network.layers == net.layers
        np.testing.assert_array_equal(again.hessian.network.gradient(params, X, y), F.hessian.gradient)


def test_pickled_for_another_process(tmp_path):
    """The numbers of a batch norm lie elsewhere there."""
    net, params, X, y = problem("norms")
    net.gradient(params, X, y)
    (tmp_path / "net").write_bytes(pickle.dumps((net, params, X)))
    code = "import pickle, sys; net, p, X = pickle.load(open(sys.argv[1], 'rb')); print(net.forward(p, X).tolist())"
    found = subprocess.run([sys.executable, "-c", code, tmp_path / "net"], capture_output=True, text=True, check=True)
    np.testing.assert_array_equal(json.loads(found.stdout), net.forward(params, X))


def in_blocks(name, index, value):
    def change(header, arrays):
        arrays[f"blocks_{name}"][index] = value

    return change


@pytest.mark.parametrize(
    "change, word",
    [
        (in_chain("height", 0, 5, network=None), "impossible"),
        (in_chain("kernel_height", 0, 0, network=None), "impossible"),
        (in_chain("vertical_stride", 0, 0, network=None), "impossible"),
        (in_chain("vertical_padding", 0, 9, network=None), "impossible"),
        (in_chain("taps", 1, 0, network=None), "impossible"),
        (in_chain("taps", 0, 1, network=None), "unknown kind"),
        (in_chain("operation", 1, 9, network=None), "unknown kind"),
        (in_chain("operation", 1, 1), "different"),
        (lambda h, a: h["network"]["layers"][1].__setitem__(2, [3, 1]), "cannot be used"),
        # 2 samples of 36 outputs: their entries, then their columns.
        (in_blocks("Dz", 72, -1.0), "columns"),
        (in_blocks("Dz", 80, 48.0), "columns"),
        (in_blocks("Dz", 143, 0.5), "columns"),
    ],
)
def test_forged_files(change, word, tmp_path):
    net, params, X, y = problem("maxima")
    net.hessian(params, X, y).factorize(0.2, method="layers").save(tmp_path / "f")
    forge(tmp_path / "f", change)
    refused(tmp_path / "f", word)


# ---- the descriptions, and what is refused ---------------------------------------------------------------------------


def test_descriptions():
    layer = nh.Conv2d(2, 3, (4, 3), (10, 7), stride=(2, 1), padding=1, dilation=(2, 1))
    assert (layer.activation, layer.bias, layer.skip) == ("tanh", True, False)
    assert (layer.out_size, layer.in_features, layer.out_features, layer.num_params) == ((3, 7), 140, 63, 75)
    assert layer.weight_shape == (3, 2, 4, 3)
    assert layer == nh.Conv2d(2, 3, [4, 3], (10, 7), "tanh", True, False, (2, 1), (1, 1), (2, 1))
    assert hash(layer) == hash(nh.Conv2d(**vars(layer))) and eval(repr(layer), vars(nh)) == layer
    pools = (nh.AvgPool2d(2, (2, 3), 6), nh.MaxPool2d(2, (2, 3), 6), nh.MaxPool1d(2, 3, 6), nh.AvgPool1d(2, 3, 6))
    assert [pool.stride for pool in pools] == [(2, 3), (2, 3), 3, 3]
    assert [pool.out_features for pool in pools] == [12, 12, 4, 4]
    for layer in (*pools, nh.Activation(3, "sin")):
        assert eval(repr(layer), vars(nh)) == layer and hash(layer) == hash(type(layer)(**vars(layer)))
        with pytest.raises(AttributeError):
            layer.stride = 1
    norm = nh.BatchNorm(np.float32([1, 2]), np.float32([3, 4]), 5)
    assert norm == pickle.loads(pickle.dumps(norm)) and hash(norm) and norm.num_params == 4 and norm.out_features == 10
    assert repr(norm) == "BatchNorm(channels=2, positions=5, eps=1e-05, affine=True)"
    net = nh.Network([norm, nh.Activation(10)], "mean_squared_error")
    np.testing.assert_array_equal(net.init(0), [1, 1, 0, 0])
    np.testing.assert_array_equal(net.unpack(net.init(0))[0], [1, 1, 0, 0])
    assert net.unpack(net.init(0))[1].size == 0


def test_initial_parameters():
    net = nh.Network([nh.Conv2d(8, 50, 4, 5), nh.Dense(200, 1)], "mean_squared_error")
    W, c = net.unpack(net.init(rng=0, gain=2.0))[0]
    assert abs(W.std() * np.sqrt(8 * 16) - 2.0) < 0.1 and not c.any()


@pytest.mark.parametrize(
    "build, fields, name, error",
    [
        (nh.Conv2d, dict(in_channels=0), "in_channels", ValueError),
        (nh.Conv2d, dict(kernel_size=2.5), "kernel_size", TypeError),
        (nh.Conv2d, dict(kernel_size=(3,)), "kernel_size", ValueError),
        (nh.Conv2d, dict(kernel_size=(3, 3, 3)), "kernel_size", ValueError),
        (nh.Conv2d, dict(kernel_size=(2, 7)), "kernel_size", ValueError),
        (nh.Conv2d, dict(dilation=(4, 1)), "kernel_size", ValueError),
        (nh.Conv2d, dict(size=(6, 0)), "size", ValueError),
        (nh.Conv2d, dict(size=True), "size", TypeError),
        (nh.Conv2d, dict(activation="cake"), "activation", ValueError),
        (nh.Conv2d, dict(skip=True), "skip", ValueError),
        (nh.Conv2d, dict(skip=True, padding=1), "skip", ValueError),
        (nh.Conv2d, dict(stride=(1, 0)), "stride", ValueError),
        (nh.Conv2d, dict(padding=(-1, 0)), "padding", ValueError),
        (nh.Conv2d, dict(padding="same"), "padding", TypeError),
        (nh.MaxPool2d, dict(channels=0), "channels", ValueError),
        (nh.MaxPool2d, dict(padding=2), "padding", ValueError),
        (nh.MaxPool2d, dict(kernel_size=7), "kernel_size", ValueError),
        (nh.MaxPool2d, dict(size=(1, 6), kernel_size=2, dilation=3, padding=1), "kernel_size", ValueError),
        (nh.MaxPool2d, dict(size=(2, 6), kernel_size=2, dilation=3, padding=1), "dilation", ValueError),
        (nh.AvgPool2d, dict(count_include_pad=1), "count_include_pad", TypeError),
        (nh.AvgPool2d, dict(stride=0), "stride", ValueError),
    ],
)
def test_malformed_layers(build, fields, name, error):
    channels = dict(in_channels=2, out_channels=3) if build is nh.Conv2d else dict(channels=2)
    with pytest.raises(error, match=f"^{name}: "):
        build(**{**channels, "kernel_size": 3, "size": (6, 5), **fields})


@pytest.mark.parametrize(
    "arguments, name, error",
    [
        (dict(mean=[]), "mean", ValueError),
        (dict(mean=[[0.0]]), "mean", ValueError),
        (dict(mean=[np.nan, 0.0]), "mean", ValueError),
        (dict(variance=[1.0]), "variance", ValueError),
        (dict(variance=[1.0, -1e-9]), "variance", ValueError),
        (dict(variance=[1.0, 0.0], eps=0.0), "variance", ValueError),
        (dict(positions=0), "positions", ValueError),
        (dict(eps=-1.0), "eps", ValueError),
        (dict(affine=None), "affine", TypeError),
    ],
)
def test_malformed_norms(arguments, name, error):
    with pytest.raises(error, match=f"^{name}: "):
        nh.BatchNorm(**{"mean": [0.0, 1.0], "variance": [1.0, 2.0], **arguments})


def test_layers_that_do_not_meet():
    with pytest.raises(ValueError, match="^layers: .*27 outputs"):
        nh.Network([nh.Conv2d(2, 3, 3, 5), nh.MaxPool2d(3, 2, 2)], "mean_squared_error")
    with pytest.raises(ValueError, match="^device: expected Dense layers alone|^device: |numba-cuda"):
        nh.Network([nh.Conv2d(2, 3, 3, 5)], "mean_squared_error")._check_device("cuda", None)
