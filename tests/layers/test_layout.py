"""What follows from sizes alone is made once for a shape, never mistaken for that of another, and shared by threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import numba_hinv as nh
from numba_hinv.kernels.steps.layer_table import layer_table
from numba_hinv.layers import layout

NET = nh.Network([nh.Dense(3, 4), nh.Dense(4, 4, skip=True), nh.Dense(4, 2, "identity")], "mean_squared_error")


def arrays(L, a, p, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"Dx": (a, p), "Dz": (a, a), "Dzx": (p, a)}
    found = {name: rng.standard_normal((L, *shape)) for name, shape in shapes.items()}
    return found | {name: np.tile(np.eye(n) * (2.0 + seed), (L, 1, 1)) for name, n in (("Dxx", p), ("Dzz", a))}


@pytest.fixture
def made(monkeypatch):
    """How many tables are made."""
    calls = []

    def count(chain, num_samples, *options):
        calls.append(num_samples)
        return layer_table(chain, num_samples, *options)

    monkeypatch.setattr(layout, "layer_table", count)
    return calls


def solve(net, B):
    rng = np.random.default_rng(B)
    params = net.init(rng=B)
    return net.hessian(params, rng.standard_normal((B, 3)), rng.standard_normal((B, 2))).factorize(0.5).solve(params)


def test_a_net_makes_one_table_for_a_batch_size(made):
    net = nh.Network(NET.layers, "mean_squared_error")
    for _ in range(3):
        solve(net, 2), solve(net, 3)
    assert made == [2, 3]


def test_chains_of_blocks_make_one_table_for_a_shape(made):
    shape = (7, 3, 2)
    systems = [nh.Hessian.from_blocks(**arrays(*shape, seed)).system for seed in range(3)]
    # The same chain, layer by layer.
    stacks = arrays(*shape)
    layers = [nh.LayerBlocks(*(stacks[name][l] for name in nh.LayerBlocks.__slots__)) for l in range(shape[0])]
    systems.append(nh.Hessian.from_blocks(layers).system)
    assert made in ([], [1]) and all(system.layout is systems[0].layout for system in systems)


def test_other_shapes_have_others():
    """Solutions of chains and batches of many shapes, in turns, are those of dense linear algebra."""
    for shape in ((5, 2, 1), (5, 1, 2), (2, 5, 1), (5, 2, 1), (6, 2, 1), (5, 2, 2)):
        H = nh.Hessian.from_blocks(**arrays(*shape))
        b = np.arange(1.0, H.shape[0] + 1.0)
        x = H.factorize(0.1).solve(b)
        np.testing.assert_allclose((H.todense() + 0.1 * np.eye(b.size)) @ x, b, rtol=0, atol=1e-9 * np.linalg.norm(b))
    for B in (1, 2, 3, 2, 1):
        rng = np.random.default_rng(B)
        params, X, y = NET.init(rng=1), rng.standard_normal((B, 3)), rng.standard_normal((B, 2))
        H = NET.hessian(params, X, y)
        assert H.system.layout.num_samples == B
        x = H.factorize(0.3).solve(params)
        np.testing.assert_allclose((H.todense() + 0.3 * np.eye(params.size)) @ x, params, rtol=0, atol=1e-9)


def test_a_layout_keeps_what_it_has_computed():
    kept, asked = nh.Hessian.from_blocks(**arrays(3, 2, 2)).system.layout, []

    def total(layout, factor):
        asked.append(factor)
        return factor * layout.sizes.parameters

    assert [kept.kept(total, factor) for factor in (2, 3, 2, 3)] == [12, 18, 12, 18] and asked == [2, 3]


def test_threads_share_a_net_and_a_shape():
    """As many solves at the same time, from the first one on, give the bits of one after the other."""
    net = nh.Network(NET.layers, "mean_squared_error")
    sizes = [1, 2, 3, 4] * 8

    def chain(seed):
        H = nh.Hessian.from_blocks(**arrays(9, 2, 2, seed % 3))
        return H.factorize(0.5).solve(np.ones(H.shape[0]))

    with ThreadPoolExecutor(8) as pool:
        of_nets, of_chains = list(pool.map(lambda B: solve(net, B), sizes)), list(pool.map(chain, range(32)))
    for B, x in zip(sizes, of_nets):
        assert (x == solve(NET, B)).all()
    for seed, x in enumerate(of_chains):
        assert (x == chain(seed)).all()
