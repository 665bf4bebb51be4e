"""Chains that are cut in segments, on threads of the CPU: against dense truths, and against the chain as one."""

import copy
import pickle
import threading

import dense_truth
import numpy as np
import pytest
from problems import CUT, chain, golden
from test_layer_blocks import random_chain

import numba_hinv as nh
from numba_hinv.certainty import inertia
from numba_hinv.factors import choice, segmentation
from numba_hinv.kernels.steps.layer_table import layer_table
from numba_hinv.runtime import threads
from numba_hinv.system.cpu_segments import CpuSegments

PROBLEMS = CUT | {"states that vanish": (chain(3, 9, batch=2, skip=False, gain=0.05), (0, 3, 6, 9), 1e-2)}


@pytest.fixture
def any_chain(monkeypatch):
    """Let the shortest chains be cut."""
    monkeypatch.setattr(CpuSegments, "shortest", 2)
    monkeypatch.setattr(CpuSegments, "least", 0.0)


def cut_at(monkeypatch, *bounds):
    """Let chains be cut there, whatever their length."""
    monkeypatch.setattr(segmentation, "cut", lambda table, num_samples, segments, count: count and bounds)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_against_dense_truth(name, dtype, monkeypatch):
    problem, bounds, damping = PROBLEMS[name]
    damping *= problem.norm
    cut_at(monkeypatch, *bounds)
    F = problem.hessian.factorize(damping, factor_dtype=dtype, num_segments=len(bounds) - 1)
    assert F.solver.factors.has_fallback and F.method == "layers"
    b = problem.right_hand_side(3)
    assert problem.backward_error(damping, F.solve(b), b) <= 1e-14
    assert problem.backward_error(damping, F.solve(b, refine=False), b) <= (1e-12 if dtype == "float64" else 1e-4)
    shifted = problem.eigenvalues + damping
    assert F.inertia == ((shifted < 0).sum(), 0, (shifted > 0).sum(), True)
    sign, logabsdet = F.slogdet()
    assert sign == np.prod(np.sign(shifted))
    assert logabsdet == pytest.approx(np.log(np.abs(shifted)).sum(), rel=1e-9 if dtype == "float64" else 1e-4)


@pytest.mark.parametrize("name", ["mixed_bias_skip", "tanh_deep_b3", "skip_mse_b6", "relu_b4"])
def test_golden_files(name, any_chain):
    problem, _ = golden(name)
    b = problem.right_hand_side(2)
    for damping in (0.03 * problem.norm, -0.02 * problem.norm):
        for count in range(2, len(problem.layers) // 2 + 1):
            F = problem.hessian.factorize(damping, method="layers", num_segments=count)
            assert problem.backward_error(damping, F.solve(b), b) <= 1e-14
            assert F.inertia.negative == (problem.eigenvalues + damping < 0).sum()


def test_blocks_as_layers(any_chain):
    for seed in range(8):
        blocks, terminal = random_chain(seed, 12)
        H = nh.Hessian.from_blocks(blocks, terminal)
        dense, b = H.todense(), np.random.default_rng(seed).standard_normal((H.shape[0], 2))
        for damping in (1.3 * H.norm(), 0.1 * H.norm()):
            F = H.factorize(damping, method="layers", num_segments=2)
            assert F.solver.factors.has_fallback
            residual = b - dense @ F.solve(b) - damping * F.solve(b)
            assert np.abs(residual).max() <= 1e-13 * np.abs(b).max()
            assert F.inertia.negative == (np.linalg.eigvalsh(dense) + damping < 0).sum()
            expected = np.linalg.slogdet(dense + damping * np.eye(len(dense)))[1]
            assert F.slogdet()[1] == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("bounds", [(0, 2, 5, 14), (0, 3, 4, 9, 14), (0, 5, 6, 7, 14)])
def test_local_and_frozen_layers(bounds, monkeypatch):
    """Pooling and batch norms, whose derivatives have few entries a row, and layers without unknowns."""
    rng, layers = np.random.default_rng(0), [nh.Dense(3, 4)]
    for k in range(6):
        norm = nh.BatchNorm(rng.standard_normal(4), rng.uniform(0.5, 2.0, 4))
        pool = nh.AvgPool1d if k % 2 else nh.MaxPool1d
        layers += [nh.Dense(4, 4, skip=k % 2 == 1), pool(1, 3, 4, stride=1, padding=1) if k % 3 else norm]
    layers.append(nh.Dense(4, 2, "identity"))
    net = nh.Network(layers, "softmax_cross_entropy")
    net, params = net.freeze(net.init(0), [5, 7])
    H = net.hessian(params, rng.standard_normal((3, 3)), np.array([0, 1, 1]))
    dense, b = H.todense(), rng.standard_normal((H.shape[0], 2))
    cut_at(monkeypatch, *bounds)
    for damping in (0.1, -0.013):
        F = H.factorize(damping, method="layers", num_segments=len(bounds) - 1)
        assert F.solver.factors.has_fallback
        shifted = dense + damping * np.eye(len(dense))
        assert dense_truth.backward_error(dense, damping, F.solve(b), b) <= 1e-14
        assert F.inertia.negative == (np.linalg.eigvalsh(shifted) < 0).sum()
        assert F.slogdet() == pytest.approx(np.linalg.slogdet(shifted), rel=1e-10)


@pytest.mark.parametrize("power", [0, 400])
def test_dampings_by_layer(power, any_chain):
    """Also of matrices that are scaled inside, where a damping in other units would be another damping."""
    problem, rng = chain(3, 12, batch=2), np.random.default_rng(0)
    dampings = problem.norm * rng.uniform(0.05, 0.5, 12)
    loss = nh.Loss(problem.loss, reduction="sum")
    net = nh.Network([nh.Dense(**d) for d in problem.layers], loss)
    weights = np.full(2, 2.0**power)
    H = net.hessian(problem.params, problem.X, problem.y, sample_weight=weights)
    expected = net.hessian(problem.params, problem.X, problem.y).todense()
    expected[np.diag_indices(len(expected))] += np.repeat(dampings, np.diff(problem.offsets()))
    b = problem.right_hand_side(2)
    F = H.factorize((np.ldexp(dampings, power)).tolist(), method="layers", num_segments=3)
    assert F.solver.factors.has_fallback
    x = np.ldexp(F.solve(b, refine=False), power)
    assert dense_truth.backward_error(expected, 0.0, x, b) <= 1e-13
    assert F.inertia.negative == (np.linalg.eigvalsh(expected) < 0).sum()
    logabsdet = np.linalg.slogdet(expected)[1] + power * np.log(2.0) * len(expected)
    assert F.slogdet()[1] == pytest.approx(logabsdet, rel=1e-12)


def test_other_uses(tmp_path, any_chain):
    """Copies and pickles solve in segments, with the same bits; what asks for the chain as one gets it."""
    problem = chain(2, 18, batch=1, out=2)
    H, damping, b = problem.hessian, 0.2 * problem.norm, problem.right_hand_side()
    F, whole = H.factorize(damping, num_segments=3), H.factorize(damping)
    assert F.solver.factors.has_fallback and not whole.solver.factors.has_fallback and whole.nbytes < F.nbytes
    x = F.solve(b)
    for again in (pickle.loads(pickle.dumps(F)), copy.deepcopy(F)):
        assert again.solver.factors.has_fallback and again.nbytes == F.nbytes
        np.testing.assert_array_equal(again.solve(b), x)
        assert again.inertia == F.inertia and again.slogdet() == F.slogdet()
    F.save(tmp_path / "factors.npz")
    np.testing.assert_array_equal(nh.load(tmp_path / "factors.npz").solve(b), whole.solve(b))
    np.testing.assert_array_equal(F.diagonal(), whole.diagonal())
    np.testing.assert_array_equal(F.blocks(3), whole.blocks(3))
    assert F.condition() == pytest.approx(whole.condition(), rel=1e-6)
    np.testing.assert_allclose(F.sample(rng=0), whole.sample(rng=0), rtol=1e-12)


def test_threads_change_no_bit(any_chain, monkeypatch):
    """The number of segments is what counts, whoever calls; without it a chain is never cut."""
    problem = chain(3, 24, batch=2)
    H, damping, b = problem.hessian, 0.1 * problem.norm, problem.right_hand_side(40)
    F = H.factorize(damping, num_segments=4, num_threads=1)
    x = F.solve(b, num_threads=1)
    names = []
    monkeypatch.setattr(threads, "available_cores", lambda: 3)
    run = threads.run
    monkeypatch.setattr(threads, "run", lambda jobs, workers: names.append(workers) or run(jobs, workers))
    for again in (H.factorize(damping, num_segments=4), H.factorize(damping, num_threads=2, num_segments=4)):
        np.testing.assert_array_equal(again.solve(b), x)
        np.testing.assert_array_equal(again.solve(b[:, :1]), F.solve(b[:, :1]))
        np.testing.assert_array_equal(again.solve(b, num_threads=2), x)
    assert {1, 2, 3} <= set(names)
    assert H.factorize(damping, num_threads=4).solver.factors.bounds == F.solver.factors.bounds
    for given in ({}, {"num_segments": 1}, {"num_threads": 1}):
        assert not H.factorize(damping, **given).solver.factors.has_fallback
    found = []
    thread = threading.Thread(target=lambda: found.append(H.factorize(damping, num_segments=4).solve(b)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], x)


def test_where_a_chain_is_cut():
    """The last segment carries nothing and is the longest; short chains and large fronts are not cut."""

    def bounds(width, depth, count, batch=1):
        net = nh.Network([nh.Dense(width, width, skip=True) for _ in range(depth)], "mean_squared_error")
        return segmentation.cut(layer_table(net.model.chain, batch)[0], batch, CpuSegments(), count)

    for count in (2, 3, 8):
        found = bounds(8, 20_000, count)
        lengths = np.diff(found)
        assert found[0] == 0 and found[-1] == 20_000 and lengths.size == count
        assert np.ptp(lengths[:-1]) <= 1 and 1.5 < lengths[-1] / lengths[0] < 2.5
    assert bounds(8, 20_000, None) is bounds(8, 20_000, 1) is bounds(8, 127, 2) is bounds(3, 1000, 2) is None
    assert bounds(8, 4096, 2, batch=12) is not None and bounds(8, 4096, 2, batch=13) is None
    assert bounds(8, 4096, 4096) is not None
    convolutions = nh.Network([nh.Conv1d(2, 2, 3, 8, padding=1)] * 2000, "mean_squared_error")
    assert segmentation.cut(layer_table(convolutions.model.chain, 1)[0], 1, CpuSegments(), 2) is None


def test_segments_that_do_not_do(monkeypatch):
    """Singular pivots of a segment, and factors that solve nothing: the chain is then eliminated as one."""
    problem = chain(3, 4, batch=2, out=2, gain=0.7)
    H, b = problem.hessian, problem.right_hand_side()
    cut_at(monkeypatch, 0, 2, 4)
    plan, levels = segmentation.plan(H.system, 2), H.system.scaling(0.0, np.dtype(float)).levels_by_layer(4)
    last = H.blocks(1)
    guess = np.ldexp(segmentation.scales(plan, H.norm(), levels)[0], segmentation.GUESS)
    pivot = np.linalg.eigvalsh(last.Dxx + guess * last.Dx.T @ last.Dx)
    damping = -pivot[np.argmax([problem.gap(-value) for value in pivot])]
    F = H.factorize(damping, num_segments=2)
    assert not F.solver.factors.has_fallback and F.num_perturbed == 0
    assert H.factorize(1.1 * damping, num_segments=2).solver.factors.has_fallback
    assert F.inertia.negative == (problem.eigenvalues + damping < 0).sum()
    assert problem.backward_error(damping, F.solve(b), b) <= 1e-14
    F = H.factorize(0.1, num_segments=2)
    x, arrays = F.solve(b), F.solver.factors.arrays
    wrong = np.random.default_rng(0).standard_normal(arrays.layers.scales.size)
    F.solver.factors.arrays = arrays._replace(layers=arrays.layers._replace(scales=wrong))
    np.testing.assert_allclose(F.solve(b), x, rtol=1e-8, atol=1e-10)
    with monkeypatch.context() as patch:
        patch.setattr(inertia, "CONTRACTION", 0.0)
        F = H.factorize(1e-6, num_segments=2)
        assert F.solver.factors.has_fallback and not F.solver.decided().factors.has_fallback
        assert F.solver.num_negative_pivots() == (problem.eigenvalues < -1e-6).sum()
    # A guess so large that nothing is left of the fronts beside it.
    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "GUESS", 52)
        F = H.factorize(0.1, num_segments=2)
        assert not F.solver.decided().factors.has_fallback and F.inertia.exact
        assert problem.backward_error(0.1, F.solve(b), b) <= 1e-14
    with pytest.raises(np.linalg.LinAlgError, match="layer 0.*further from minus an eigenvalue"):
        H.factorize(-problem.eigenvalues[-1], num_segments=2)


def test_bad_input():
    H = chain(2, 6, batch=1).hessian
    for given in (0, -1, 2.5, "2", True):
        for name in ("num_segments", "num_threads"):
            with pytest.raises((ValueError, TypeError), match=f"{name}: expected"):
                H.factorize(0.1, **{name: given})
    for given in ({"checkpoint": True}, {"method": "dense"}):
        with pytest.raises(ValueError, match="num_segments: expected 1 with"):
            H.factorize(0.1, num_segments=2, **given)
        H.factorize(0.1, num_segments=1, **given)


def test_memory_is_asked_for_first(any_chain, monkeypatch):
    H = chain(3, 24, batch=2).hessian
    dtype = np.dtype(float)
    more = choice.num_bytes(H.system, dtype, num_segments=3)
    assert more > choice.num_bytes(H.system, dtype)
    F = H.factorize(0.1, method="layers", num_segments=3)
    assert F.nbytes <= more
    monkeypatch.setattr("numba_hinv.runtime.memory_budget._NEGLIGIBLE", 0)
    monkeypatch.setattr("numba_hinv.runtime.memory_budget.available_bytes", lambda: more - 1)
    H.factorize(0.1, method="layers")
    with pytest.raises(MemoryError, match="a factorization"):
        H.factorize(0.1, method="layers", num_segments=3)
