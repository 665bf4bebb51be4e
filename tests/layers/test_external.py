"""External layers, whose derivatives come from Python: against the same layers compiled, and what goes wrong."""

import pickle

import numpy as np
import pytest

import numba_hinv as nh
from numba_hinv.layers.blocks import symmetrise
from numba_hinv.runtime import memory_budget


def value(Z, x):
    """Of `twist`, for a batch."""
    return np.sin(x[0] * Z) * x[1] + np.roll(Z, 1, axis=1) ** 2 * x[2]


def twist(z, x, out):
    for a in range(z.size):
        before = z[a - 1] if a > 0 else z[z.size - 1]
        out[a] = np.sin(x[0] * z[a]) * x[1] + before * before * x[2]


def jacobian(Z, x):
    eye = np.eye(Z.shape[1])
    before = np.roll(Z, 1, axis=1)
    Dz = (x[0] * x[1] * np.cos(x[0] * Z))[:, :, None] * eye + (2 * before * x[2])[:, :, None] * np.roll(eye, -1, axis=1)
    Dx = np.stack([Z * np.cos(x[0] * Z) * x[1], np.sin(x[0] * Z), before**2], axis=2)
    return Dz, Dx


def curvature(Z, x, G):
    eye = np.eye(Z.shape[1])
    G_after = np.roll(G, -1, axis=1)
    s, c = np.sin(x[0] * Z), np.cos(x[0] * Z)
    Dxx = np.zeros((3, 3))
    Dxx[0, 0] = -(G * Z**2 * s * x[1]).sum()
    Dxx[0, 1] = Dxx[1, 0] = (G * Z * c).sum()
    Dzx = np.stack([G * (c - x[0] * Z * s) * x[1], G * x[0] * c, 2 * G_after * Z], axis=1)
    Dzz = (-G * x[0] ** 2 * x[1] * s + 2 * G_after * x[2])[:, :, None] * eye
    return Dxx, Dzx, Dzz


def external(features=4, **changes):
    functions = {"function": value, "jacobian": jacobian, "curvature": curvature} | changes
    return nh.External(**functions, in_features=features, out_features=features, num_params=3, init=(1.0, 0.5, 0.2))


COMPILED = nh.Custom(twist, 4, 4, 3, (1.0, 0.5, 0.2))


def nets(make, loss="mean_squared_error"):
    """External layers first, in the middle, twice in a row and last."""
    return [
        nh.Network(layers, loss)
        for layers in (
            [make, nh.Dense(4, 2)],
            [nh.Dense(3, 4), make, nh.Dense(4, 2, "identity")],
            [nh.Dense(3, 4), nh.Dense(4, 4, skip=True), make, make, nh.Dense(4, 4), make],
        )
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_like_the_compiled_layer(number, dtype):
    ours, other = nets(external())[number], nets(COMPILED)[number]
    rng = np.random.default_rng(number)
    params = ours.init(rng=1, dtype=dtype)
    assert np.array_equal(params, other.init(rng=1, dtype=dtype))
    X = rng.standard_normal((5, ours.layers[0].in_features)).astype(dtype)
    y = rng.standard_normal((5, ours.layers[-1].out_features)).astype(dtype)
    tolerance = 20 * np.finfo(dtype).eps

    def close(one, two):
        return np.abs(one - two).max() <= tolerance * np.abs(two).max()

    assert close(ours.forward(params, X), other.forward(params, X))
    assert close(ours.gradient(params, X, y), other.gradient(params, X, y))
    assert ours.gradient(params, X, y).dtype == dtype
    H, K = ours.hessian(params, X, y), other.hessian(params, X, y)
    assert close(H.todense(), K.todense())
    F, b = H.factorize(0.1), rng.standard_normal(params.size)
    dense = K.todense().astype(float) + 0.1 * np.eye(params.size)
    assert np.abs(F.solve(b) - np.linalg.solve(dense, b)).max() <= 1e-5 * np.abs(np.linalg.solve(dense, b)).max()
    assert F.inertia.negative == (np.linalg.eigvalsh(dense) < 0).sum()


def test_pickled_and_saved(tmp_path):
    net = nets(external())[1]
    X, y = np.random.default_rng(0).standard_normal((2, 5, 3))
    y, params = y[:, :2], net.init(rng=0)
    F = pickle.loads(pickle.dumps(net)).hessian(params, X, y).factorize(0.1)
    x = F.solve(params)
    assert np.array_equal(x, net.hessian(params, X, y).factorize(0.1).solve(params))
    F.save(tmp_path / "factors.npz")
    assert np.array_equal(x, nh.load(tmp_path / "factors.npz").solve(params))


def wrong(function, change):
    """``function`` with its first result changed."""

    def changed(*arguments):
        results = function(*arguments)
        return change(results) if function is value else (change(results[0]), *results[1:])

    return changed


def asymmetric(Dxx):
    return Dxx + np.triu(np.ones_like(Dxx), 1)


@pytest.mark.parametrize(
    "name, function, change, message",
    [
        (
            "function",
            value,
            lambda out: out[:, :3],
            r"expected function of layer 1 to return its value of shape \(5, 4\)",
        ),
        ("function", value, lambda out: out * np.nan, "function of layer 1 to return finite numbers"),
        ("function", value, lambda out: "text", "layers: function of layer 1"),
        ("jacobian", jacobian, lambda Dz: Dz[0], r"jacobian of layer 1 to return Dz of shape \(5, 4, 4\)"),
        ("jacobian", jacobian, lambda Dz: Dz / 0, "jacobian of layer 1 to return finite numbers, got others in Dz"),
        ("curvature", curvature, lambda Dxx: Dxx[:2], r"curvature of layer 1 to return Dxx of shape \(3, 3\)"),
        ("curvature", curvature, asymmetric, "curvature of layer 1 to return a symmetric Dxx"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide|invalid)")
def test_wrong_results_name_the_layer(name, function, change, message):
    net = nets(external(**{name: wrong(function, change)}))[1]
    with pytest.raises((ValueError, TypeError), match=message):
        net.hessian(net.init(), np.ones((5, 3)), np.ones((5, 2)))


def test_one_result_where_two_belong():
    net = nets(external(jacobian=value))[1]
    with pytest.raises(ValueError, match="expected jacobian of layer 1 to return Dz, Dx, got ndarray"):
        net.gradient(net.init(), np.ones((5, 3)), np.ones((5, 2)))


def test_functions_cannot_change_what_they_are_given():
    def careless(Z, x):
        Z *= 2.0
        return Z

    net = nets(external(function=careless))[1]
    with pytest.raises(ValueError, match="read-only"):
        net.forward(net.init(), np.ones((5, 3)))


def test_arguments():
    with pytest.raises(TypeError, match=r"curvature: expected a function curvature\(Z, x, G\), got None"):
        external(curvature=None)
    with pytest.raises(ValueError, match="in_features: expected at least 1, got 0"):
        external(0)
    assert repr(external()) == "External(value, in_features=4, out_features=4, num_params=3)"


@pytest.mark.parametrize("k, n", [(1, 1), (3, 7), (1, 700), (2, 513), (300, 40)])
def test_symmetrise(k, n):
    """Some rows at a time, as at once."""
    square = np.random.default_rng(n).standard_normal((k, n, n))
    square[1:] += square[1:].transpose(0, 2, 1).copy()
    mean, difference = 0.5 * (square + square.transpose(0, 2, 1)), np.abs(square - square.transpose(0, 2, 1))
    expected = np.flatnonzero(difference.max(axis=(1, 2)) > 1e-10)
    wrong, found = symmetrise(square, 1e-10)
    assert np.array_equal(square, square.transpose(0, 2, 1))
    np.testing.assert_allclose(square, mean, rtol=1e-15, atol=1e-15)
    assert np.array_equal(found, difference.max(axis=(1, 2))) and np.array_equal(wrong, expected)


def test_results_that_would_not_fit_are_refused_before_they_are_made(monkeypatch):
    p = 600
    asked = []

    def of_parameters(shape):
        def derivatives(Z, x, *G):
            asked.append(len(G))
            return [np.zeros((*sizes,)) for sizes in shape(len(Z))]

        return derivatives

    layer = nh.External(
        lambda Z, x: Z,
        of_parameters(lambda B: [(B, 2, 2), (B, 2, p)]),
        of_parameters(lambda B: [(p, p), (B, p, 2), (B, 2, 2)]),
        2, 2, p,
    )  # fmt: skip
    net = nh.Network([nh.Dense(3, 2), layer], "mean_squared_error")
    params, X, y = net.init(), np.ones((5, 3)), np.ones((5, 2))
    net.hessian(params, X, y)
    assert asked == [0, 1]
    results = 8 * (p * p + 5 * 2 * (p + 2) + 5 * 2 * (p + 2))
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: net.model.block_bytes(5))
    net.gradient(params, X, y)
    monkeypatch.setattr(memory_budget, "available_bytes", iter([net.model.block_bytes(5)] * 2 + [results - 1]).__next__)
    with pytest.raises(
        MemoryError, match=rf"layers: derivatives of layer 1, External\(.*of B = 5 .*need {results:,} bytes"
    ):
        net.hessian(params, X, y)
    assert asked == [0, 1, 0]
