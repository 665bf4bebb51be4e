"""The dense matrix: against golden files, against products with H, and the same bits whatever the threads.

`assembled` goes past the choice between assembling and products, and starts from NaN, so that no number is left out.
"""

import json
import threading
import time

import numpy as np
import pytest
from custom_layers import golden as custom_golden
from external_layers import twist
from hypothesis import given
from hypothesis import strategies as st
from problems import DATA, GOLDEN, STRUCTURED, Problem, chain, golden, layer, make, problems

import numba_hinv as nh
from numba_hinv.kernels.steps import assembly_table
from numba_hinv.runtime import memory_budget
from numba_hinv.system import dense


def assembled(hessian, num_threads=1):
    system = hessian.system
    H = np.full((system.num_params, system.num_params), np.nan)
    made = dense.Assembler(system.table, *system.on_host(), num_threads)
    made.add(H, True)
    dense.finish(made.table, made.plan.places, H, system.l2, made.workers)
    return H


def products(hessian):
    """H by columns; products are exact to a few roundings of the sums in them."""
    return hessian.system.apply(np.eye(hessian.shape[0]))


def agree(H, expected, tolerance=1e-13):
    assert np.array_equal(H, H.T)
    scale = np.abs(expected).max()
    assert np.abs(H - expected).max() <= tolerance * scale if scale else not H.any()


def close(hessian, tolerance=1e-13):
    H = assembled(hessian)
    agree(H, products(hessian), tolerance)
    return H


# ---- every kind of layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_dense_layers(name):
    problem, g = golden(name)
    agree(close(problem.hessian), g["hessian"])


@pytest.mark.parametrize("path", sorted((DATA / "conv1d").glob("*.npz")), ids=lambda path: path.stem)
def test_golden_convolutions(path):
    with np.load(path) as g:
        layers = [getattr(nh, d.pop("type"))(**d) for d in json.loads(str(g["layers"]))]
        H = nh.Network(layers, str(g["loss"])).hessian(g["params"], g["X"], g["y"])
        agree(close(H), g["hessian"])


@pytest.mark.parametrize("name", ["bilinear", "glu", "layer_norm", "own_functions", "rms_norm"])
def test_golden_custom_layers(name):
    net, g = custom_golden(name)
    agree(close(net.hessian(g.params, g.X, g.y)), g.hessian)


CHAINS = {
    **STRUCTURED,
    "alone": [nh.Conv1d(3, 2, 2, 4, "softplus", stride=2)],
    "long": [nh.Conv1d(1, 2, 3, 30), nh.Conv1d(2, 1, 4, 28), nh.Dense(25, 2)],
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("batch", [1, 7, 70])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_chains_of_all_kinds(name, batch, curvature):
    net = nh.Network(CHAINS[name], "mean_squared_error")
    rng = np.random.default_rng(batch)
    params = net.init(rng=1, gain=1.5) + 0.2 * rng.standard_normal(net.num_params)
    X = rng.standard_normal((batch, net.layers[0].in_features))
    y = rng.standard_normal((batch, net.layers[-1].out_features))
    close(net.hessian(params, X, y, curvature=curvature, l2=0.3))


def test_external_layers():
    net = nh.Network([nh.Dense(3, 4), twist(4), nh.Dense(4, 4, skip=True), twist(4)], "mean_squared_error")
    rng = np.random.default_rng(0)
    close(net.hessian(net.init(0), rng.standard_normal((5, 3)), rng.standard_normal((5, 4))))


@pytest.mark.parametrize("seed", range(4))
def test_layers_given_as_blocks(seed):
    """Ragged, some of them without parameters."""
    rng = np.random.default_rng(seed)
    sizes, blocks = [int(rng.integers(0, 3)), *rng.integers(1, 5, 12)], []
    for a_in, a in zip(sizes, sizes[1:]):
        p = int(rng.integers(0, 4))
        Dx, Dz, Dzx = (0.6 * rng.standard_normal(shape) for shape in ((a, p), (a, a_in), (p, a_in)))
        Dxx, Dzz = (S + S.T for S in (rng.standard_normal((p, p)), rng.standard_normal((a_in, a_in))))
        blocks.append(nh.LayerBlocks(Dx, Dz, Dxx, Dzx, Dzz))
    close(nh.Hessian.from_blocks(blocks, np.eye(sizes[-1])))


def test_layers_of_a_net_given_as_blocks():
    H = chain(6, 4, batch=5).hessian
    again = nh.Hessian.from_blocks([H.blocks(l) for l in range(4)], H.terminal)
    agree(assembled(again), products(H))


@given(problems(max_batch=70), st.sampled_from(["hessian", "ggn"]), st.sampled_from([0.0, 0.25]), st.booleans())
def test_ragged_chains(problem, curvature, l2, narrow):
    params = problem.params.astype(np.float32) if narrow else problem.params
    H = problem.net.hessian(params, problem.X, problem.y, l2=l2, curvature=curvature)
    found = close(H)
    if curvature == "hessian" and not narrow:
        truth = problem.truth.hessian.astype(float)
        agree(found, truth + l2 * np.eye(problem.size), 1e-13 * max(1.0, 1.0 / (np.abs(truth).max() or 1.0)))


def test_float32_is_rounded_once():
    p = chain(16, 4, batch=40)
    params = p.params.astype(np.float32)
    H = p.net.hessian(params, p.X, p.y)
    wide = p.net.hessian(params.astype(float), p.X, p.y)
    assert H.todense().dtype == np.float32 and np.array_equal(H.todense(), wide.todense().astype(np.float32))


# ---- sizes at which the work is divided otherwise -------------------------------------------------------------------


WIDE = [layer(110, 3), layer(3, 100, bias=False), layer(100, 4, "softplus"), layer(4, 4, skip=True)]


@pytest.mark.parametrize("batch", [1, 3, 65])
def test_wide_layers(batch):
    """Half of their blocks is computed, and columns are cut within a unit."""
    close(make(WIDE, batch=batch).hessian)


@pytest.mark.parametrize("cut, triangle, triangle_cut", [(5, 100, 5), (5, 3, 2), (2, 1, 1), (40, 2, 3), (1, 100, 1)])
def test_cuts_of_any_size(cut, triangle, triangle_cut, monkeypatch):
    monkeypatch.setattr(assembly_table, "CUT", cut)
    monkeypatch.setattr(assembly_table, "TRIANGLE", triangle)
    monkeypatch.setattr(assembly_table, "TRIANGLE_CUT", triangle_cut)
    close(make([layer(7, 9), layer(9, 9, skip=True), layer(9, 4, bias=False)], batch=5).hessian)
    net = nh.Network(CHAINS["mixed"], "mean_squared_error")
    rng = np.random.default_rng(0)
    close(net.hessian(net.init(0), rng.standard_normal((3, 6)), rng.standard_normal((3, 2))))


@pytest.mark.parametrize("sources", [1, 3, 20])
def test_sources_at_a_time(sources, monkeypatch):
    monkeypatch.setattr(assembly_table, "SOURCES", sources)
    close(make([layer(7, 9), layer(9, 9, skip=True), layer(9, 4)], batch=5).hessian)


@pytest.mark.parametrize("samples", [1, 3, 70, 1000])
def test_chunks_of_any_size(samples, monkeypatch):
    monkeypatch.setattr(dense, "CHUNK", samples)
    net = nh.Network(CHAINS["mixed"], "mean_squared_error")
    rng = np.random.default_rng(0)
    for H in (
        make([layer(7, 9), layer(9, 9, skip=True), layer(9, 4)], batch=140).hessian,
        net.hessian(net.init(0), rng.standard_normal((7, 6)), rng.standard_normal((7, 2)), l2=0.1),
    ):
        made = dense.Assembler(H.system.table, *H.system.on_host())
        assert -(-H.num_samples // made.plan.chunk) == -(-H.num_samples // samples)
        close(H)


def test_a_budget_makes_chunks_small(monkeypatch):
    p = make([layer(7, 9), layer(9, 9, skip=True), layer(9, 4)], batch=50)
    system = p.hessian.system
    monkeypatch.setattr(dense, "BUDGET", 4000)
    plan = dense.Assembler(system.table, *system.on_host()).plan
    assert 1 < plan.chunk < 50 and plan.kept < 8000
    monkeypatch.setattr(dense, "BUDGET", 1)
    assert dense.Assembler(system.table, *system.on_host()).plan.chunk == 1
    close(p.hessian)


def test_batches_add_up():
    """H of a batch is the sum of those of its parts, which need not be in memory together."""
    p = make([layer(5, 6), layer(6, 6, skip=True), layer(6, 3)], "mean_squared_error", batch=30)
    H, whole = np.full((p.size, p.size), np.nan), assembled(p.hessian)
    for fresh, part in ((True, slice(0, 11)), (False, slice(11, 30))):
        system = p.net.hessian(p.params, p.X[part], p.y[part]).system
        weight = system.num_samples / 30
        weighted = {name: weight * getattr(system.lin, name) for name in ("lam", "D", "curvature")}
        made = dense.Assembler(system.table, system.params, system.lin._replace(**weighted))
        made.add(H, fresh)
    dense.finish(made.table, made.plan.places, H, 0.0, 1)
    agree(H, whole)


# ---- threads, memory, interruption ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "mixed"])
def test_the_same_bits_on_any_number_of_threads(kind, monkeypatch):
    monkeypatch.setattr(dense, "_CALL", 1e3)
    monkeypatch.setattr(dense, "_ROWS", 7)
    if kind == "dense":
        H = make([layer(9, 16), *[layer(16, 16, skip=True)] * 4, layer(16, 10)], batch=150).hessian
    else:
        net = nh.Network(CHAINS["mixed"], "mean_squared_error")
        rng = np.random.default_rng(0)
        H = net.hessian(net.init(0), rng.standard_normal((90, 6)), rng.standard_normal((90, 2)))
    one = assembled(H, 1)
    for num_threads in (2, 3):
        for _ in range(3):
            assert np.array_equal(assembled(H, num_threads), one)
    agree(one, products(H))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_interruption_is_heard(num_threads, monkeypatch):
    monkeypatch.setattr(dense, "_CALL", 1e5)
    system = make([layer(9, 16), *[layer(16, 16, skip=True)] * 4, layer(16, 10)], batch=150).hessian.system
    calls = []

    def check():
        calls.append(threading.get_ident())
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        system.dense(num_threads=num_threads, check=check)
    assert 5 <= len(calls) < 10
    before = len(calls)
    time.sleep(0.05)
    assert len(calls) == before
    agree(system.dense(), system.apply(np.eye(system.num_params)))


def test_memory_is_asked_for_first(monkeypatch):
    H = chain(40, 3, batch=3).hessian
    size = 8 * H.shape[0] ** 2
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: size)
    with pytest.raises(MemoryError, match=f"dense Hessian of P = {H.shape[0]} parameters"):
        H.todense()
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 2 * size)
    H.todense()
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: size - 1)
    H.system.dense(out=np.empty(H.shape))


def test_scratch_does_not_grow_with_the_batch():
    sizes = []
    for batch in (600, 6000):
        system = make([layer(9, 16), *[layer(16, 16, skip=True)] * 4, layer(16, 10)], batch=batch).hessian.system
        sizes.append(dense.Assembler(system.table, system.params, system.lin, 1).num_bytes)
    assert sizes[1] <= 2 * sizes[0] <= 4 * 8 * dense.BUDGET


def test_into_a_given_array():
    H = chain(16, 4, batch=20).hessian
    out = np.full(H.shape, np.nan)
    assert H.system.dense(out=out) is out and np.array_equal(out, H.todense())


# ---- where products are taken ---------------------------------------------------------------------------------------


def count_products(monkeypatch):
    calls, by_products = [], dense.by_products
    monkeypatch.setattr(dense, "by_products", lambda *arguments: calls.append(1) or by_products(*arguments))
    return calls


def test_products_where_they_cost_less(monkeypatch):
    calls = count_products(monkeypatch)
    large = chain(16, 5, batch=100).hessian
    agree(large.todense(), products(large))
    assert not calls
    tiny = chain(4, 3, batch=2).hessian
    agree(tiny.todense(), products(tiny))
    assert len(calls) == 1
    rng = np.random.default_rng(0)
    # Few parameters that act through many states.
    blocks = [
        nh.LayerBlocks(
            *(rng.standard_normal(s) for s in ((90, 12), (90, 90))), np.eye(12), np.zeros((12, 90)), np.eye(90)
        )
        for _ in range(20)
    ]
    many_states = nh.Hessian.from_blocks(blocks)
    agree(many_states.todense(), products(many_states))
    assert len(calls) == 2


def test_numbers_that_overflow_on_the_way(monkeypatch):
    """The curvature that comes to the first layer is 1e580, where its tanh is saturated: 0 times infinity."""
    calls = count_products(monkeypatch)
    layers = layer(8, 8, bias=False), layer(8, 8, "identity", bias=False), layer(8, 1, "identity", bias=False)
    signs = np.resize([1.0, -1.0], 8)
    # Outputs cancel, so that the loss is small.
    params = np.ldexp(np.concatenate([np.outer(signs, np.ones(8)).ravel(), np.ones(64), np.ones(8)]), 480)
    p = Problem(layers, "mean_squared_error", params, np.ones((40, 8)), np.ones((40, 1)))
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(assembled(p.hessian)).all()
    agree(p.hessian.todense(), p.hessian.system.apply_smaller(np.eye(p.size)))
    assert len(calls) == 1


@pytest.mark.parametrize("batch", [2, 400])
def test_overflow_is_an_error(batch):
    p = make([layer(12, 12, "identity")], "mean_squared_error", batch=batch)
    H = p.net.hessian(0 * p.params, np.ldexp(p.X, 515), p.y)
    with pytest.raises(np.linalg.LinAlgError, match="v: the product with the Hessian overflows float64"):
        H.todense()
    narrow = p.net.hessian(np.zeros(p.size, np.float32), np.ldexp(p.X, 120).astype(np.float32), p.y.astype(np.float32))
    with pytest.raises(np.linalg.LinAlgError, match="v: the product with the Hessian overflows float32"):
        narrow.todense()


def test_progress(monkeypatch):
    auto = pytest.importorskip("tqdm.auto")
    done = []

    class Bar:
        def __init__(self, total, desc, unit):
            self.total = total
            done.append([total, 0])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, amount):
            done[-1][1] += amount

    monkeypatch.setattr(auto, "tqdm", Bar)
    monkeypatch.setattr(dense, "CHUNK", 30)
    for p in (chain(16, 4, batch=100), chain(4, 3, batch=2)):
        p.hessian.todense(progress=True)
    assert [total for total, _ in done] == [100, chain(4, 3).size] and all(total == count for total, count in done)
