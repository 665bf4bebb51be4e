"""Products and solves of many vectors, which narrow layers take side by side, against H as a dense matrix.

Chains where runs of narrow layers meet layers that take their vectors one after the other, and numbers of vectors that
fill no whole vector register.
"""

import numpy as np
import pytest

import numba_hinv as nh

EPS = np.finfo(float).eps


def _dense(sizes, batch, bias=True):
    return [nh.Dense(a, b, "tanh", skip=a == b, bias=bias) for a, b in zip(sizes, sizes[1:])], batch


NETS = {
    "one sample": _dense([5, 8, 8, 8, 3], 1),
    "fewer samples than inputs": _dense([5, 8, 8, 8, 3], 4),
    "more samples than inputs": _dense([5, 8, 8, 8, 3], 11),
    "without biases": _dense([5, 8, 8, 3], 3, bias=False),
    "a wide layer between": _dense([4, 4, 90, 4, 4, 2], 2),
    "wide ends": _dense([90, 4, 4, 90], 2),
    "a convolution between": (
        [
            nh.Dense(4, 12, "tanh"),
            nh.Conv1d(2, 3, 3, 6, "tanh", padding=1),
            nh.Dense(18, 4, "tanh"),
            nh.Dense(4, 4, "tanh", skip=True),
        ],
        2,
    ),
    "a norm between": ([nh.Dense(4, 6, "tanh"), nh.LayerNorm(6), nh.Dense(6, 6, "tanh", skip=True)], 3),
}


@pytest.mark.parametrize("name", list(NETS))
@pytest.mark.parametrize("k", [3, 4, 9, 16])
def test_products_and_solves(name, k):
    layers, batch = NETS[name]
    rng, net = np.random.default_rng(k), nh.Network(layers, "mean_squared_error")
    X, y = rng.standard_normal((batch, layers[0].in_features)), rng.standard_normal((batch, layers[-1].out_features))
    H = net.hessian(net.init(rng=0), X, y)
    dense, V = H.todense(), rng.standard_normal((H.shape[0], k))
    norm, sizes = np.linalg.norm(dense, 2), np.linalg.norm(V, axis=0)
    # Sums of at most P terms of size ||H|| ||v||, whose rounding adds up like a random walk.
    bound = 8 * EPS * H.shape[0] ** 0.5
    assert (np.linalg.norm(H @ V - dense @ V, axis=0) <= bound * norm * sizes).all()
    damping = 0.3 * norm
    F = H.factorize(damping, method="layers")
    for refine in (True, False):
        x = F.solve(V, refine=refine)
        residual = np.linalg.norm(V - dense @ x - damping * x, axis=0)
        # Without refinement rounding is that of the pivots, which may be some times as large as the matrix.
        scale = 1 if refine else 1000
        assert (residual <= scale * bound * ((norm + damping) * np.linalg.norm(x, axis=0) + sizes)).all()
        order = F.solve(np.asfortranarray(V), refine=refine, num_threads=1)
        np.testing.assert_array_equal(order, x)


@pytest.mark.parametrize("factor_dtype", ["float64", "float32"])
def test_blocks(factor_dtype):
    rng = np.random.default_rng(0)
    stages, a, p, k = 9, 5, 3, 13
    blocks = []
    for _ in range(stages):
        G, E = rng.standard_normal((p, p)), rng.standard_normal((a, a))
        Dx, Dz, Dzx = (rng.standard_normal(shape) / 3 for shape in ((a, p), (a, a), (p, a)))
        blocks.append(nh.LayerBlocks(Dx, Dz, np.eye(p) + G @ G.T, 0.1 * Dzx, np.eye(a) + E @ E.T))
    H = nh.Hessian.from_blocks(blocks, np.eye(a))
    dense, V = H.todense(), rng.standard_normal((stages * p, k))
    assert np.linalg.norm(H @ V - dense @ V) <= 100 * EPS * np.linalg.norm(dense) * np.linalg.norm(V)
    F = H.factorize(0.1, factor_dtype, method="layers")
    x, info = F.solve(V, full_output=True)
    assert info.backward_error.max() <= 1e-14
    exact = np.linalg.solve(dense + 0.1 * np.eye(stages * p), V)
    bound = 100 * EPS * np.linalg.cond(dense + 0.1 * np.eye(stages * p))
    assert np.linalg.norm(x - exact) <= bound * np.linalg.norm(exact)
