"""Memory: `factor_nbytes` states the peak of a factorization before it starts; with checkpoints it grows as sqrt(L)."""

import contextlib
import gc
import pickle
import tracemalloc
import weakref

import numpy as np
import pytest
from problems import chain, layer, make

import numba_hinv as nh
from numba_hinv.factorization import Factorization
from numba_hinv.kernels.dense.microkernel import BLOCK_STRIDE, PANEL_ROWS
from numba_hinv.runtime import memory_budget


def peak_of(job):
    """(bytes at the peak of the job beyond those before it, its result), as NumPy reports them."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = job()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def without_collector():
    """What is freed here is freed by reference counts alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def deep(depth, width=12, batch=1, skip=True, gain=0.3, seed=0):
    layers = [layer(width, width, "tanh", skip=skip)] * (depth - 1) + [layer(width, 3, "identity")]
    return make(layers, "mean_squared_error", batch, seed, gain / np.sqrt(depth) if skip else gain)


SHAPES = [
    (deep(2000), None),
    (deep(300, width=8, batch=5), None),
    (deep(60, width=16, batch=16), None),
    (deep(6, width=20, batch=40), None),
    (deep(2, width=64, batch=4), None),
    (deep(300, width=8, batch=5), np.float32),
    # Vanishing states, which are scaled: copies of the blocks.
    (deep(60, width=16, batch=4, skip=False, gain=0.2), None),
    (make([layer(4, 30, "tanh"), layer(30, 3, "sin"), layer(3, 25, "tanh"), layer(25, 2, "identity")], batch=9), None),
]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("problem, dtype", SHAPES)
def test_the_stated_bytes(problem, dtype, checkpoint):
    problem.net.hessian(problem.params, problem.X, problem.y).factorize(1.0, dtype)  # compiled and warm
    H = problem.net.hessian(problem.params, problem.X, problem.y)
    stated = H.nbytes_to_factorize(dtype, checkpoint)
    # Far from singular, so that no solve looks whether it is.
    peak, F = peak_of(lambda: H.factorize(100.0, dtype, checkpoint))
    # Beside the numbers: headers of arrays, indices into the layer table, and Python's own objects; the block that a
    # product packs.
    packed = 8 * PANEL_ROWS * BLOCK_STRIDE
    assert -0.1 * stated - 20_000 <= peak - stated <= 0.1 * stated + 20_000 + 64 * len(problem.layers) + packed
    assert F.nbytes <= stated
    # Row spaces and copies of the blocks are there now.
    assert H.nbytes_to_factorize(dtype, checkpoint) <= stated


def test_the_property():
    H = deep(50, batch=3).hessian
    assert isinstance(H.factor_nbytes, int)
    assert H.factor_nbytes == H.nbytes_to_factorize() == H.nbytes_to_factorize(np.float64, checkpoint=False)


def test_it_is_what_the_check_of_memory_asks_for(monkeypatch):
    problem = deep(200, width=16, batch=16)
    for checkpoint in (False, True):
        H = problem.net.hessian(problem.params, problem.X, problem.y)
        stated = H.nbytes_to_factorize(checkpoint=checkpoint)
        monkeypatch.setattr(memory_budget, "available_bytes", lambda: stated - 1)
        with pytest.raises(MemoryError, match=f"{stated:,} bytes"):
            H.factorize(0.1, checkpoint=checkpoint)
        monkeypatch.setattr(memory_budget, "available_bytes", lambda: stated)
        H.factorize(0.1, checkpoint=checkpoint)


def test_memory_for_many_is_checked_ahead(monkeypatch):
    H = deep(100, batch=6).hessian
    F = H.factorize(0.1)
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 9 * F.nbytes)
    with pytest.raises(MemoryError, match="10 factorizations"):
        H.factorize_many(np.linspace(0.1, 1.0, 10))
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 11 * F.nbytes)
    assert len(H.factorize_many(np.linspace(0.1, 1.0, 10), num_threads=1)) == 10


CHECKPOINTED = [
    deep(1), deep(2), deep(3), deep(7, width=3), deep(100, width=4, batch=2), deep(37, width=5, batch=7),
    deep(30, width=6, batch=3, skip=False, gain=0.1), deep(30, width=6, batch=3, skip=False, gain=2.5),
    make([layer(4, 30, "tanh"), layer(30, 3, "sin"), layer(3, 25, "tanh"), layer(25, 2, "identity")], batch=9),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("index", range(len(CHECKPOINTED)))
def test_checkpoints_change_no_bit(index, dtype):
    problem = CHECKPOINTED[index]
    H, b = problem.hessian, problem.right_hand_side(3)
    for damping in (0.3, -0.02):
        F, C = (H.factorize(damping, dtype, checkpoint=c) for c in (False, True))
        assert C.checkpoint and not F.checkpoint
        assert C.inertia == F.inertia and C.slogdet() == F.slogdet() and C.num_perturbed == F.num_perturbed
        for _ in range(2):
            np.testing.assert_array_equal(C.solve(b), F.solve(b))
        np.testing.assert_array_equal(C.solve(b, refine=False), F.solve(b, refine=False))
        for one, other in zip(C.solve(b, full_output=True)[1], F.solve(b, full_output=True)[1]):
            np.testing.assert_array_equal(one, other)
        assert C.condition() == F.condition()
        again = pickle.loads(pickle.dumps(C))
        np.testing.assert_array_equal(again.solve(b), F.solve(b))


def test_checkpoints_of_a_chain_of_blocks():
    """Layers given as blocks, of changing sizes, some of them without parameters."""
    rng = np.random.default_rng(0)
    sizes, blocks = [1, *rng.integers(1, 5, 60)], []
    for a_in, a in zip(sizes, sizes[1:]):
        p = int(rng.integers(0, 4))
        Dx, Dz, Dzx = (0.4 * rng.standard_normal(shape) for shape in ((a, p), (a, a_in), (p, a_in)))
        Dxx, Dzz = (S + S.T for S in (rng.standard_normal((p, p)), rng.standard_normal((a_in, a_in))))
        blocks.append(nh.LayerBlocks(Dx, Dz, Dxx, Dzx, Dzz))
    H = nh.Hessian.from_blocks(blocks, np.eye(sizes[-1]))
    dense = H.todense()
    b = rng.standard_normal((H.shape[0], 2))
    for damping in (5.0, -0.3):
        F, C = (H.factorize(damping, checkpoint=c) for c in (False, True))
        assert len(C.solver.factors.stretches) > 3
        # Not the same bits: where a stretch ends a front is a matrix, and not its Cholesky factor. Both have a backward
        # error of at most 1e-15.
        bound = 2e-15 * np.linalg.cond(dense + damping * np.eye(len(dense)))
        x = F.solve(b)
        assert np.linalg.norm(C.solve(b) - x) < bound * np.linalg.norm(x)
        assert np.linalg.norm(dense @ C.solve(b) + damping * C.solve(b) - b) <= 1e-12 * np.linalg.norm(b)
        assert C.inertia.negative == (np.linalg.eigvalsh(dense) < -damping).sum()
        (sign, found), (expected_sign, expected) = C.slogdet(), F.slogdet()
        # Each of the pivots is off by a few units in the last place, times the condition number.
        assert sign == expected_sign and abs(found - expected) < len(dense) * bound


def test_checkpoints_with_a_tiny_damping():
    """Krylov steps, and the factors of a larger damping that come to their help, have checkpoints as well."""
    problem = chain(4, 12, batch=2, gain=0.5)
    b = problem.right_hand_side()
    for relative_damping in (1e-10, -1e-11):
        damping = relative_damping * problem.norm
        F, C = (problem.hessian.factorize(damping, checkpoint=c) for c in (False, True))
        (x, info), (x_c, info_c) = F.solve(b, full_output=True), C.solve(b, full_output=True)
        np.testing.assert_array_equal(x, x_c)
        assert info == info_c


def test_checkpoints_with_perturbed_pivots():
    """A shift on an eigenvalue of a trailing block."""
    problem = chain(3, 8, batch=2, gain=0.7)
    H = problem.hessian.todense()
    tail = np.linalg.eigvalsh(H[-len(H) // 3 :, -len(H) // 3 :])
    b = problem.right_hand_side()
    for shift in tail[[0, -1]]:
        F, C = (problem.hessian.factorize(-shift, checkpoint=c) for c in (False, True))
        np.testing.assert_array_equal(F.solve(b), C.solve(b))
        assert F.inertia == C.inertia


def test_checkpoints_from_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    problem = deep(60, width=4, batch=2)
    C = problem.hessian.factorize(0.1, checkpoint=True)
    sides = [problem.right_hand_side(seed=k) for k in range(6)]
    expected = [C.solve(b) for b in sides]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for x, want in zip(pool.map(C.solve, sides), expected):
                np.testing.assert_array_equal(x, want)


def test_checkpoints_grow_as_the_root_of_the_depth():
    """What is kept, and what a solve takes beyond the vectors, over L = 100 to 10,000."""
    depths = (100, 1_000, 10_000)
    kept, stated = [], []
    for depth in depths:
        H = deep(depth, width=6).hessian
        C = H.factorize(0.1, checkpoint=True)
        kept.append(C.nbytes)
        stated.append(H.nbytes_to_factorize(checkpoint=True))
        whole = H.nbytes_to_factorize()
        assert whole - stated[-1] > 0.6 * whole
        fronts = sum(front.nbytes for front in C.solver.factors.fronts if front is not None)
        held = sum(array.nbytes for array in C.solver.factors.held[0][1])
        assert C.nbytes == fronts + held
    for less, more in zip(kept, kept[1:]):
        # sqrt(10) = 3.16; segments are of whole pairs of layers.
        assert more < 3.6 * less


def test_saving_is_refused(tmp_path):
    C = deep(20).hessian.factorize(0.1, checkpoint=True)
    with pytest.raises(ValueError, match="checkpoint"):
        C.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_bad_arguments():
    H = deep(3).hessian
    with pytest.raises(TypeError, match="checkpoint"):
        H.factorize(0.1, checkpoint=1)
    with pytest.raises(TypeError, match="checkpoint"):
        H.nbytes_to_factorize(checkpoint="yes")
    with pytest.raises(TypeError, match="factor_dtype"):
        H.nbytes_to_factorize(np.int64)
    assert isinstance(nh.Hessian.factor_nbytes, property)


def test_refused_memory_names_ways_out(monkeypatch):
    """What would need less, with how much, by `nbytes_to_factorize`."""
    H = deep(200, width=16, batch=16).hessian
    least = H.nbytes_to_factorize(checkpoint=True)
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 1 << 20)
    with pytest.raises(MemoryError, match="take fewer samples, or free memory; factor_dtype='float32' would") as caught:
        H.factorize(0.1)
    assert f"checkpoint=True would need {least:,} bytes" in str(caught.value)
    with pytest.raises(MemoryError, match="fewer dampings at a time need less"):
        H.factorize_many([0.1, 0.2])
    with pytest.raises(MemoryError, match="; take H @ v, which needs no more than vectors$"):
        H.todense()


@pytest.mark.parametrize("route", ["layers", "dense"])
def test_factors_are_freed_as_soon_as_nobody_holds_them(route):
    """Not when the garbage collector comes by, which counts objects and not bytes: a run of `minimize` would hold all
    factors that it has made until then.
    """
    problem = deep(4, width=6, batch=3)
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    with without_collector():
        H = net.hessian(params, X, y, l2=0.1)
        F = H.factorize(0.5, method=route)
        F.solve(np.ones(net.num_params))
        assert sum(F.inertia[:3]) == net.num_params and np.isfinite(F.slogdet()[1]) and F.condition() > 0
        held = [weakref.ref(thing) for thing in (H, F, F.solver, F.solver.factors)]
        del F, H
        assert [thing() for thing in held] == [None] * len(held)


def test_a_trust_region_frees_the_factors_that_it_has_made():
    problem = deep(4, width=6, batch=3)
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    made = []
    compute = Factorization.compute.__func__

    def counted(*args, **kwargs):
        F = compute(*args, **kwargs)
        made.append(weakref.ref(F))
        return F

    with without_collector(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Factorization, "compute", classmethod(counted))
        H = net.hessian(params, X, y)
        nh.trust_region_step(H, 0.1, np.ones(net.num_params))
        assert made and not any(F() for F in made)
