"""Custom layers: those that ship, those of a user, and nets that mix them with dense ones."""

import copy
import math
import pickle
import subprocess
import sys

import dense_truth
import numba
import numpy as np
import pytest
from custom_layers import DATA, assert_close, contour, evaluate, golden, pendulum, swish

import numba_hinv as nh

GOLDEN = sorted(path.stem for path in DATA.glob("*.npz"))
every_file = pytest.mark.parametrize("name", GOLDEN)


def relative(a, b):
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


# The golden files.


def test_all_files_are_here():
    assert GOLDEN == ["bilinear", "glu", "layer_norm", "own_functions", "rms_norm"]


@every_file
def test_values_and_derivatives(name):
    net, g = golden(name)
    assert net.num_params == g.params.size
    assert relative(net.forward(g.params, g.X), g.output) < 1e-13
    assert relative(net.loss(g.params, g.X, g.y), g.value) < 1e-13
    assert relative(net.gradient(g.params, g.X, g.y), g.gradient) < 1e-12
    H = net.hessian(g.params, g.X, g.y)
    assert relative(H.gradient, g.gradient) < 1e-12
    assert relative(H.todense(), g.hessian) < 1e-12
    assert relative(H @ g.b, g.hessian @ g.b) < 1e-12


@every_file
def test_factorization(name):
    net, g = golden(name)
    H = net.hessian(g.params, g.X, g.y)
    for k, damping in enumerate(g.dampings):
        F = H.factorize(damping)
        x = F.solve(g.b)
        assert dense_truth.backward_error(g.hessian, damping, x, g.b) <= 1e-14
        shifted = np.abs(g.eigenvalues + damping)
        condition = shifted.max() / shifted.min()
        assert np.linalg.norm(x - g.solutions[k]) <= 4e-14 * condition * np.linalg.norm(g.solutions[k])
        negative, positive = g.inertia[k]
        assert (F.inertia.negative, F.inertia.zero, F.inertia.positive) == (negative, 0, positive)
        assert F.inertia.exact
        sign, logabsdet = F.slogdet()
        assert sign == (-1) ** int(negative)
        assert abs(logabsdet - g.logabsdet[k]) <= 1e-8 * abs(g.logabsdet[k])


@every_file
def test_float32(name):
    net, g = golden(name)
    params = g.params.astype(np.float32)
    assert net.gradient(params, g.X, g.y).dtype == np.float32
    assert relative(net.gradient(params, g.X, g.y), g.gradient) < 1e-4
    H = net.hessian(params, g.X, g.y)
    F = H.factorize(0.3)
    assert F.factor_dtype == np.float32
    b = g.b.astype(np.float32)
    x = F.solve(b)
    assert x.dtype == np.float32
    A = np.asarray(net.hessian(params.astype(np.float64), g.X, g.y).todense())
    assert dense_truth.backward_error(A, 0.3, x, b) <= 1e-7


# The layers that ship, one sample at a time.


def norm(z, x, out, eps, centred):
    n = len(z)
    d = z - z.sum() / n if centred else z
    h = d / np.sqrt((d * d).sum() / n + eps)
    out[:] = x[:n] * h + (x[n:] if len(x) > n else 0)


GATES = {"identity": lambda u: u, "sigmoid": lambda u: 1 / (1 + np.exp(-u)), "silu": lambda u: u / (1 + np.exp(-u))}


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_norms_against_contour_integrals(n, eps):
    rng = np.random.default_rng(n)
    z, g = 2.0 * rng.standard_normal((2, n))
    centring, scaling = [nh.LayerNorm(n, eps), nh.LayerNorm(n, eps, bias=False)], [nh.RMSNorm(n, eps)]
    for layer, centred in [(layer, True) for layer in centring] + [(layer, False) for layer in scaling]:
        x = 1.0 + rng.standard_normal(layer.num_params)
        ours = evaluate(layer, z, x, g, columns=n + 3)
        truth = contour(lambda z, x, out, c=centred: norm(z, x, out, eps, c), z, x, g, radius=0.02, points=16)
        # A few roundings of values of size 10, magnified by 2 / radius^2.
        assert_close(ours, truth, 1e-10)


@pytest.mark.parametrize("activation", sorted(GATES))
def test_gates_against_contour_integrals(activation):
    phi = GATES[activation]

    def gate(z, x, out):
        half = len(out)
        out[:] = z[:half] * phi(z[half:])

    rng = np.random.default_rng(4)
    z, g = rng.standard_normal(6), rng.standard_normal(3)
    ours = evaluate(nh.Gated(3, activation), z, np.zeros(0), g)
    assert_close(ours, contour(gate, z, [], g), 1e-11)


def plain_layer_norm(z, x, out):
    n = z.size
    mean, square = 0.0, 0.0
    for a in range(n):
        mean += z[a] / n
    for a in range(n):
        square += (z[a] - mean) ** 2 / n
    for a in range(n):
        out[a] = x[a] * (z[a] - mean) / math.sqrt(square + 1e-5) + x[n + a]


def test_closed_forms_and_automatic_differentiation_agree():
    n = 17
    rng = np.random.default_rng(0)
    z, g, x = rng.standard_normal(n), rng.standard_normal(n), rng.standard_normal(2 * n)
    automatic = nh.Custom(plain_layer_norm, n, n, 2 * n)
    assert_close(evaluate(nh.LayerNorm(n), z, x, g, columns=40), evaluate(automatic, z, x, g, columns=40), 1e-13)


def test_norms_of_one_feature():
    assert evaluate(nh.LayerNorm(1), [3.0], [2.0, 0.5], [1.0]).out == 0.5
    assert evaluate(nh.RMSNorm(1), [-3.0], [2.0], [1.0]).out == pytest.approx(-2.0)


@pytest.mark.parametrize("scale", [2.0**-500, 2.0**-60, 2.0**60, 2.0**500])
def test_norms_of_extreme_inputs(scale):
    """Nothing overflows: large inputs are normalised as ordinary ones, and small ones, against eps, are linear."""
    z, g = np.array([1.0, -2.0, 0.5, 3.0]), np.array([1.0, 2.0, -1.0, 0.5])
    for layer in (nh.LayerNorm(4, 0.0), nh.RMSNorm(4, 0.0)):
        x = np.arange(1.0, 1.0 + layer.num_params)
        ordinary, scaled = evaluate(layer, z, x, g), evaluate(layer, scale * z, x, g)
        np.testing.assert_allclose(scaled.out, ordinary.out, rtol=1e-14)
        np.testing.assert_allclose(scaled.Dz * scale, ordinary.Dz, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(scaled.Dx, ordinary.Dx, rtol=1e-14, atol=1e-15)
    if scale < 1.0:
        tiny = evaluate(nh.LayerNorm(4, 1e-4, bias=False), scale * z, np.ones(4), g)
        np.testing.assert_allclose(tiny.out, 100.0 * scale * (z - z.mean()), rtol=1e-14)


def test_starting_values():
    layers = [nh.LayerNorm(2), nh.Dense(2, 4), nh.RMSNorm(4), nh.Gated(2), nh.Dense(2, 1)]
    net = nh.Network(layers, "mean_squared_error")
    blocks = net.unpack(net.init(rng=3, gain=0.0, dtype=np.float32))
    np.testing.assert_array_equal(blocks[0], [1, 1, 0, 0])
    np.testing.assert_array_equal(blocks[2], 1)
    assert blocks[3].size == 0 and blocks[1][0].shape == (4, 2) and blocks[1][0].dtype == np.float32
    blocks[2][:] = 7.0
    drawn = nh.Custom(swish, 2, 2, 2, init=lambda rng: rng.standard_normal(2))
    net = nh.Network([drawn, nh.Dense(2, 1)], net.loss_name)
    x = net.unpack(net.init(rng=5))[0]
    np.testing.assert_array_equal(x, np.random.default_rng(5).standard_normal(2))
    net = nh.Network([nh.Custom(swish, 2, 2, 2, init=[1, 2])], net.loss_name)
    np.testing.assert_array_equal(net.init(), [1, 2])


# Nets of a user's own layers.


def mix(z, x, out):
    """Without parameters, and with fewer outputs than inputs."""
    for a in range(len(out)):
        out[a] = z[a] * math.cos(z[a + 1])


def own(function=swish, features=3, **options):
    return nh.Custom(function, features, features, 2, init=[1.0, 0.2], **options)


NETS = {
    "first": [own(), nh.Dense(3, 3, "tanh", skip=True), nh.Dense(3, 2, "identity")],
    "last": [nh.Dense(4, 3, "tanh"), nh.Dense(3, 3, "silu", skip=True), own()],
    "between skips": [nh.Dense(3, 3, skip=True), own(), nh.Dense(3, 3, skip=True), nh.Dense(3, 2, "softplus")],
    "alone": [own()],
    "several": [own(), own(), nh.LayerNorm(3), own()],
    "without parameters": [nh.Dense(2, 4), nh.Custom(mix, 4, 3), nh.Dense(3, 3, bias=False), nh.Custom(mix, 3, 1)],
    "first without parameters": [nh.Custom(mix, 4, 3), nh.Dense(3, 2, "tanh")],
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_nets_against_differences_and_dense_algebra(name, batch):
    net = nh.Network(NETS[name], "mean_squared_error")
    rng = np.random.default_rng(batch)
    X = rng.standard_normal((batch, net.layers[0].in_features))
    y = rng.standard_normal((batch, net.layers[-1].out_features))
    params = net.init(1) + 0.2 * rng.standard_normal(net.num_params)
    P, step = net.num_params, 2e-3
    weights = {1: 45, 2: -9, 3: 1}

    def slopes(f):
        """Sixth order, one row a parameter."""
        moves = step * np.eye(P)
        return np.array(
            [sum(w * (f(params + k * e) - f(params - k * e)) for k, w in weights.items()) for e in moves]
        ) / (60 * step)

    gradient = net.gradient(params, X, y)
    scale = 1.0 + np.abs(gradient).max()
    assert np.abs(gradient - slopes(lambda t: net.loss(t, X, y))).max() <= 1e-10 * scale
    H = net.hessian(params, X, y)
    np.testing.assert_array_equal(H.gradient, gradient)
    A = np.asarray(H.todense())
    differences = slopes(lambda t: net.gradient(t, X, y))
    assert np.abs(A - differences).max() <= 1e-9 * (1.0 + np.abs(A).max())
    eigenvalues = np.linalg.eigvalsh(A)
    norm, b = np.abs(eigenvalues).max(), rng.standard_normal((P, 2))
    for damping in (0.3 * norm, 1e-3 * norm, -0.05 * norm):
        F = H.factorize(damping)
        x = F.solve(b)
        for column in range(2):
            assert dense_truth.backward_error(A, damping, x[:, column], b[:, column]) <= 1e-14
        if np.abs(eigenvalues + damping).min() > 1e-12 * norm:
            assert F.inertia.negative == (eigenvalues < -damping).sum()


def test_blocks_of_a_custom_layer():
    net = nh.Network([nh.Dense(2, 3), own(), nh.Dense(3, 3)], "mean_squared_error")
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((2, 2)), rng.standard_normal((2, 3))
    params = net.init(1) + 0.2 * rng.standard_normal(net.num_params)
    H = net.hessian(params, X, y)
    rebuilt = nh.Hessian.from_blocks([H.blocks(l) for l in range(3)], H.terminal)
    assert relative(rebuilt.todense(), np.asarray(H.todense())) < 1e-14
    # Samples in turn: each with its own input and gradient, the same parameters.
    inputs = nh.Network([net.layers[0]], "mean_squared_error").forward(params[:9], X)
    block = H.blocks(1)
    for i in range(2):
        alone = evaluate(net.layers[1], inputs[i], params[9:11], np.zeros(3))
        np.testing.assert_allclose(block.Dx[3 * i : 3 * i + 3], alone.Dx, rtol=1e-14)
        np.testing.assert_allclose(block.Dz[3 * i : 3 * i + 3, 3 * i : 3 * i + 3], alone.Dz, rtol=1e-14)


def test_large_batches_in_chunks():
    net = nh.Network([own(), nh.LayerNorm(3), nh.Dense(3, 2)], "mean_squared_error")
    X = np.random.default_rng(0).standard_normal((2500, 3))
    together = net.forward(net.init(), X)
    apart = np.vstack([net.forward(net.init(), X[i : i + 1]) for i in range(0, 2500, 100)])
    np.testing.assert_allclose(together[::100], apart, rtol=1e-14)
    y = np.zeros((2500, 2))
    parts = [net.gradient(net.init(), X[k : k + 500], y[:500]) for k in range(0, 2500, 500)]
    np.testing.assert_allclose(net.gradient(net.init(), X, y), np.mean(parts, axis=0), rtol=1e-12, atol=1e-15)


# Derivatives that the user gives.


def swish_jacobian(z, x, Dz, Dx):
    for a in range(z.size):
        s = 1.0 / (1.0 + math.exp(-x[0] * z[a]))
        Dz[a, a] = s + z[a] * x[0] * s * (1.0 - s)
        Dz[a, 0] += x[1]
        Dx[a, 0] = z[a] * z[a] * s * (1.0 - s)
        Dx[a, 1] = z[0]


@numba.njit
def swish_curvature(z, x, g, Dxx, Dzx, Dzz):
    for a in range(z.size):
        s = 1.0 / (1.0 + math.exp(-x[0] * z[a]))
        slope = s * (1.0 - s)
        bend = slope * (1.0 - 2.0 * s)
        Dxx[0, 0] += g[a] * z[a] ** 3 * bend
        Dzx[0, a] += g[a] * (2.0 * z[a] * slope + z[a] * z[a] * x[0] * bend)
        Dzx[1, 0] += g[a]
        Dzz[a, a] += g[a] * (2.0 * x[0] * slope + z[a] * x[0] * x[0] * bend)


def opaque(z, x, out):
    """Not for numbers: a vector function."""
    out[:] = z / (1.0 + np.exp(-x[0] * z)) + x[1] * z[0]


def test_given_derivatives():
    rng = np.random.default_rng(3)
    z, x, g = rng.standard_normal(3), rng.standard_normal(2), rng.standard_normal(3)
    automatic = evaluate(own(), z, x, g, columns=5)
    given = own(opaque, jacobian=swish_jacobian, curvature=swish_curvature)
    for layer in (given, own(jacobian=swish_jacobian)):
        assert_close(evaluate(layer, z, x, g, columns=5), automatic, 1e-14)
    assert_close(evaluate(given, z, x, g, np.float32), automatic, 1e-6, ("out", "Dz", "Dx"))


# One compilation for many, pickles, caches.


def test_layers_share_compiled_code():
    layers = [own(features=n) for n in (2, 3, 3, 7)] + [nh.Custom(swish, 5, 5, 2)]
    assert len({layer.addresses(np.dtype(np.float64)) for layer in layers}) == 1
    norms = [nh.LayerNorm(3), nh.LayerNorm(9, bias=False), nh.LayerNorm(3, 1e-3), nh.RMSNorm(3, 1e-5)]
    assert len({layer.addresses(np.dtype(np.float64)) for layer in norms}) == 3


LAYERS = [
    own(),
    nh.Custom(pendulum, 3, 2, 3, init=(1, 2, 3)),
    nh.LayerNorm(3, 1e-3, False),
    nh.LayerNorm(3),
    nh.RMSNorm(4),
    nh.Gated(2, "gelu"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_layers_are_values(layer):
    for same in (pickle.loads(pickle.dumps(layer)), copy.copy(layer), copy.deepcopy(layer)):
        assert same == layer and hash(same) == hash(layer) and repr(same) == repr(layer)
        assert same.addresses(np.dtype(np.float64)) == layer.addresses(np.dtype(np.float64))
    assert sum(other == layer for other in LAYERS) == 1
    with pytest.raises(AttributeError):
        layer.in_features = 5


def test_representations():
    assert repr(own()) == "Custom(swish, in_features=3, out_features=3, num_params=2)"
    assert repr(nh.LayerNorm(3, bias=False)) == "LayerNorm(3, eps=1e-05, bias=False)"
    assert repr(nh.RMSNorm(3, 0.5)) == "RMSNorm(3, eps=0.5)"
    assert repr(nh.Gated(3, "silu")) == "Gated(3, 'silu')"


PROGRAM = """
import pickle, sys
F, b = pickle.load(sys.stdin.buffer)
net = F.hessian.network
pickle.dump((F.solve(b), net.gradient(b, [[0.1, 0.2]], [[1.0, 0.0]])), sys.stdout.buffer)
"""


def test_into_a_fresh_process(tmp_path):
    net = nh.Network([nh.Dense(2, 4), nh.Gated(2, "silu"), own(features=2), nh.LayerNorm(2)], "mean_squared_error")
    b = np.random.default_rng(0).standard_normal(net.num_params)
    F = net.hessian(b, [[0.3, 0.4]], [[0.1, 0.2]]).factorize(0.5)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=pickle.dumps((F, b)),
        cwd=DATA.parent.parent,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    x, gradient = pickle.loads(done.stdout)
    np.testing.assert_array_equal(x, F.solve(b))
    np.testing.assert_array_equal(gradient, net.gradient(b, [[0.1, 0.2]], [[1.0, 0.0]]))
    F.save(tmp_path / "factors.npz")
    loaded = nh.load(tmp_path / "factors.npz")
    np.testing.assert_array_equal(loaded.solve(b), F.solve(b))
    assert loaded.hessian.network is None


# What is refused.


def out_of_bounds(z, x, out):
    out[:] = z[z.size]


def outside_of_out(z, x, out):
    for a in range(z.size + 1):
        out[a] = z[0]


def half(z, x, out):
    out[0] = z[0]


def accumulates(z, x, out):
    for a in range(z.size):
        out[a] += z[a]


def changes_input(z, x, out):
    z[0] = x[0]
    out[:] = z


def raises(z, x, out):
    raise RuntimeError("no such thing")


def undefined(z, x, out):
    out[:] = nothing(z)  # noqa: F821


def vectorised(z, x, out):
    out[:] = np.tanh(z)


def rounded(z, x, out):
    for a in range(z.size):
        out[a] = math.floor(z[a])


def plain_temporary(z, x, out):
    hidden = np.zeros(z.size)
    for a in range(z.size):
        hidden[a] = z[a]
    out[:] = hidden


def two_arguments(z, out):
    out[:] = z


@pytest.mark.parametrize(
    "function, error, words",
    [
        (out_of_bounds, ValueError, "IndexError"),
        (outside_of_out, ValueError, "IndexError"),
        (half, ValueError, "entry 1 of 3"),
        (accumulates, ValueError, "entry 0 of 3"),
        (changes_input, ValueError, "leave z"),
        (raises, ValueError, "no such thing"),
        (undefined, TypeError, "nothing"),
        (vectorised, TypeError, "tanh"),
        (rounded, TypeError, "floor"),
        (plain_temporary, TypeError, "setitem"),
        (two_arguments, TypeError, "two_arguments"),
        (math.sin, TypeError, "sin"),
        (None, TypeError, "None"),
        ("swish", TypeError, "swish"),
    ],
)
def test_functions_that_are_refused(function, error, words):
    with pytest.raises(error, match="^function: .*" + words):
        nh.Custom(function, 3, 3, 2)


def asymmetric(z, x, g, Dxx, Dzx, Dzz):
    Dzz[0, 1] += g[0]


def out_of_shape(z, x, Dz, Dx):
    Dx[0, 2] = 1.0


@pytest.mark.parametrize(
    "options, error, name",
    [
        (dict(in_features=0), ValueError, "in_features"),
        (dict(out_features=2.0), TypeError, "out_features"),
        (dict(num_params=-1), ValueError, "num_params"),
        (dict(num_params=True), TypeError, "num_params"),
        (dict(init=[1.0]), ValueError, "init"),
        (dict(init=np.nan), ValueError, "init"),
        (dict(init="ones"), TypeError, "init"),
        (dict(init=lambda rng: np.ones(3)), ValueError, "init"),
        (dict(jacobian=swish), TypeError, "jacobian"),
        (dict(jacobian=out_of_shape), ValueError, "jacobian"),
        (dict(curvature=asymmetric), ValueError, "curvature"),
        (dict(curvature=3), TypeError, "curvature"),
    ],
)
def test_options_that_are_refused(options, error, name):
    given = dict(in_features=3, out_features=3, num_params=2, init=0.5) | options
    with pytest.raises(error, match=f"^{name}: "):
        nh.Custom(swish, **given)


@pytest.mark.parametrize(
    "make, error, name",
    [
        (lambda: nh.LayerNorm(0), ValueError, "features"),
        (lambda: nh.LayerNorm(3, eps=-1e-5), ValueError, "eps"),
        (lambda: nh.LayerNorm(3, bias=1), TypeError, "bias"),
        (lambda: nh.RMSNorm(2.0), TypeError, "features"),
        (lambda: nh.RMSNorm(2, eps=None), TypeError, "eps"),
        (lambda: nh.Gated(2, "no such"), ValueError, "activation"),
        (lambda: nh.Gated(0), ValueError, "features"),
        (lambda: nh.Network([nh.Gated(2)], "mean_squared_error"), ValueError, "layers"),
        (lambda: nh.Network([nh.Dense(2, 3), nh.LayerNorm(2)], "mean_squared_error"), ValueError, "layers"),
        (lambda: nh.Network([nh.LayerNorm], "mean_squared_error"), TypeError, "layers"),
    ],
)
def test_layers_that_are_refused(make, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        make()


def test_values_that_are_not_finite():
    """A function says with NaN that it has no value."""
    net = nh.Network([nh.Custom(logarithm, 1, 1, 1, init=1.0)], "mean_squared_error")
    assert net.loss([1.0], [[1.0]], [[0.0]]) == 0.0
    with pytest.raises(ValueError, match="^params, X: the net's output: .*nan"):
        net.loss([1.0], [[-1.0]], [[0.0]])
    with pytest.raises((ValueError, np.linalg.LinAlgError), match="^params, X"):
        net.hessian([1.0], [[0.0]], [[0.0]]).factorize(1.0)


def logarithm(z, x, out):
    out[0] = x[0] * math.log(z[0])


def test_the_layer_that_overflows_is_named():
    """A swish at -710, whose exponential overflows in its derivatives alone, beside layers that do not."""
    layers = [
        nh.Dense(1, 1, "identity", bias=False),
        nh.Custom(readme_swish, 1, 1, 1, init=1.0),
        nh.LayerNorm(1),
        nh.Dense(1, 1, "identity", bias=False),
    ]
    net = nh.Network(layers, "mean_squared_error")
    params, y = np.ones(net.num_params), np.zeros((3, 1))
    X = np.array([[1.0], [2.0], [-710.0]])
    assert np.isfinite(net.loss(params, X, y))
    for function in (net.gradient, net.hessian):
        with pytest.raises(
            ValueError, match=r"; layer 1 \(Custom\(readme_swish, .*first derivatives are not .* sample 2"
        ):
            function(params, X, y)
    logarithmic = nh.Network([layers[0], nh.Custom(logarithm, 1, 1, 1, init=1.0), layers[3]], "mean_squared_error")
    with pytest.raises(ValueError, match=r"output: .*; layer 1 \(Custom\(logarithm, .* output is not .* sample 2"):
        logarithmic.forward(np.ones(3), X)
    steep = nh.Network([nh.Custom(root, 1, 1, 1, init=1.0), layers[3]], "mean_squared_error")
    for x, kind in ((0.0, "second"), (-1.0, "first")):
        data = np.ones(2), np.array([[1.0], [x]]), np.zeros((2, 1))
        with pytest.raises(ValueError, match=rf"; layer 0 \(Custom\(root, .*{kind} derivatives are .* sample 1"):
            steep.hessian(*data)


def root(z, x, out):
    """Without a second derivative at 0, and without a first one below."""
    out[0] = x[0] * abs(z[0]) ** 1.5 if z[0] >= 0.0 else x[0] * math.sqrt(-1.0 - z[0])


def readme_swish(z, x, out):
    for i in range(z.size):
        out[i] = z[i] / (1.0 + math.exp(-x[i] * z[i]))
