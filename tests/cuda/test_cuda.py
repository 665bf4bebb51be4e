"""The sweeps on a GPU, against the same truth and with the same bars as those of the CPU.

Where there is no GPU they run in Numba's simulator, in a pytest run of their own:
``NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda/test_cuda.py``. Without that variable one test here starts that
run, and those of the other files of this folder that need the simulator.
"""

import contextlib
import copy
import ctypes
import dataclasses
import functools
import importlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import dense_truth
import numpy as np
import pytest
from loss_cases import CASES
from problems import CUT, GOLDEN, RAGGED, Problem, chain, golden, layer, make
from test_dense_truth import SHAPES, check_everything

import numba_hinv as nh
from numba_hinv.factors import segmentation
from numba_hinv.kernels.dense import signed_cholesky as cpu_cholesky
from numba_hinv.kernels.sweeps.eliminate import Factors

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
INSTALLED = importlib.util.find_spec("numba_cuda") is not None


def device_available():
    if not INSTALLED:
        return False
    import numba.cuda

    return numba.cuda.is_available()


on_device = pytest.mark.skipif(not device_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM is not 1")
without_gpu = pytest.mark.skipif(SIMULATED or not device_available(), reason="no GPU")


class OnDevice(Problem):
    """A problem whose Hessian is on the device."""

    @functools.cached_property
    def hessian(self):
        return self.net.hessian(self.params, self.X, self.y, device="cuda")


def moved(problem):
    return OnDevice(**{field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)})


@pytest.mark.skipif(not INSTALLED, reason="numba-cuda is not installed")
@pytest.mark.skipif(SIMULATED, reason="this is that run")
@pytest.mark.parametrize("files", [["test_cuda.py", "test_hardware.py"], ["test_races.py", "test_race_checker.py"]])
def test_in_the_simulator(files):
    """The tests of this folder that need a device, in Numba's simulator of one, and there under the race checker."""
    directory = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=directory,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@on_device
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    problem, g = golden(name)
    H = moved(problem).hessian
    assert H.device == "cuda"

    def relative(a, b):
        return np.abs(np.asarray(a) - b).max() / np.abs(b).max()

    assert relative(H.loss, g["value"]) < 1e-12
    assert relative(H.gradient, g["gradient"]) < 1e-12
    assert relative(H @ g["v"], g["hv"]) < 1e-12
    assert relative(H.todense(), g["hessian"]) < 1e-12
    for index in (2, 4):
        damping = g["dampings"][index]
        F = H.factorize(damping)
        x = F.solve(g["b"])
        assert dense_truth.backward_error(g["hessian"], damping, x, g["b"]) <= 1e-14
        assert (F.inertia.negative, F.inertia.positive) == tuple(g["inertia"][index])
        assert F.inertia.exact
        sign, logabsdet = F.slogdet()
        assert sign == (-1) ** int(g["inertia"][index][0])
        assert abs(logabsdet - g["logabsdet"][index]) <= 1e-8 * abs(g["logabsdet"][index])


@on_device
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    problem = moved(SHAPES[name])
    damping = (1e-3 if len(name) % 2 else -1e-2) * problem.norm
    F = check_everything(problem, damping, columns=2)
    assert F.inertia.exact
    # Refinement could hide a fault of the elimination or of the substitution.
    b = problem.right_hand_side(2)
    assert problem.backward_error(damping, F.solve(b, refine=False), b) <= 1e-10


@on_device
def test_losses_and_activations():
    """Every activation and every loss, compiled into the kernels."""
    names = sorted(dense_truth.ACTIVATIONS)
    for number, loss in enumerate(sorted(dense_truth.LOSSES)):
        some = names[number::3]
        layers = [layer(3, 3, some[0]), *[layer(3, 3, name, skip=True) for name in some[1:]]]
        problem = make(layers, loss, batch=2)
        there = moved(problem).hessian
        np.testing.assert_allclose(there.gradient, problem.hessian.gradient, rtol=1e-12, atol=1e-14)
        check_everything(moved(problem), 1e-2 * problem.norm)


@on_device
@pytest.mark.parametrize("name", ["cross_entropy_all", "binary_pos_weight", "smooth_l1", "gaussian", "poisson_rates"])
def test_losses_with_options_and_weights(name):
    case = CASES[name]
    z, y = case.data()
    net = nh.Network([nh.Dense(4, 4, "identity"), nh.Dense(4, 4, "softplus", skip=True)], case.make())
    params = np.concatenate([np.eye(4).ravel(), np.zeros(4), 0.1 * net.init(0)[20:]])
    weights = np.linspace(-0.5, 2.0, len(z)).round(1)
    weights[3] = 0.0
    here, there = (net.hessian(params, z, y, sample_weight=weights, device=where) for where in ("cpu", "cuda"))
    assert there.loss == pytest.approx(here.loss, rel=1e-13) and there.total_weight == here.total_weight
    np.testing.assert_allclose(there.gradient, here.gradient, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(there.todense(), here.todense(), rtol=1e-12, atol=1e-13)


@on_device
def test_registered_functions():
    @nh.register_activation("cubic of test_cuda")
    def cubic(u):
        return u + u * u * u / 3, 1 + u * u, 2 * u

    @nh.register_loss("quartic of test_cuda")
    def quartic(z, y, gradient, curvature):
        value = 0.0
        curvature[:] = 0.0
        for a in range(z.size):
            d = z[a] - y[a]
            value += d**4
            gradient[a] = 4 * d**3
            curvature[a, a] = 12 * d**2
        return value

    net = nh.Network([nh.Dense(3, 3, "cubic of test_cuda"), nh.Dense(3, 2, "identity")], "quartic of test_cuda")
    params, X, y = net.init(0), np.random.default_rng(0).standard_normal((3, 3)), np.ones((3, 2))
    here, there = net.hessian(params, X, y), net.hessian(params, X, y, device="cuda")
    np.testing.assert_allclose(there.todense(), here.todense(), rtol=1e-12, atol=1e-13)


@on_device
def test_factors_are_those_of_the_cpu(tmp_path):
    """Same layout and same pivots: a factorization that was saved or pickled on one side works on the other."""
    problem = chain(4, 5, batch=3)
    damping = -0.02 * problem.norm
    here, there = problem.hessian.factorize(damping), moved(problem).hessian.factorize(damping)
    assert there.inertia == here.inertia and here.inertia.negative > 0
    b = problem.right_hand_side()
    ours_all, theirs_all = (F.solver.factors.arrays for F in (there, here))
    for name, ours, theirs in zip(theirs_all._fields, ours_all, theirs_all):
        ours = np.array(there.hessian.system.on.memory.take(ours))[: theirs.size]
        if name in ("pivots", "num_positive", "num_perturbed"):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        elif name in ("scales", "Y", "logabsdet", "growth"):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8 * np.abs(theirs).max(), err_msg=name)
    there.save(tmp_path / "factors.npz")
    loaded = nh.load(tmp_path / "factors.npz")
    assert loaded.hessian.device == "cpu"
    for F in (loaded, pickle.loads(pickle.dumps(there)), copy.deepcopy(there)):
        assert problem.backward_error(damping, F.solve(b), b) <= 1e-14
        assert F.inertia == here.inertia


@on_device
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_where_a_front_lies_changes_nothing(dtype, monkeypatch):
    """From all of a front in shared memory to none of it: the same bits, also in more than one launch."""
    from numba_hinv.cuda.elimination import RESERVED_SHARED, DeviceElimination
    from numba_hinv.cuda.sweeps import eliminate
    from numba_hinv.factors import elimination

    problem = chain(3, 4, batch=2)
    H = moved(problem).hessian
    sizes, found = H.system.sizes, []
    coupling = int((H.system.table["m"] * H.system.table["N"]).max())
    for level in range(eliminate.LEVELS):
        scalars = eliminate.places(sizes, coupling, level)[1]
        limit = scalars * np.dtype(dtype).itemsize + RESERVED_SHARED
        monkeypatch.setattr(DeviceElimination, "shared_limit", lambda self, limit=limit: limit)
        assert H.system.on.elimination._parts(H.system.table, sizes, np.dtype(dtype))[0] == level
        F = H.factorize(-0.3, factor_dtype=dtype)
        found.append((*F.solver.factors.pivots.logabsdet, *F.solve(H.gradient, refine=False)))
        monkeypatch.setattr(elimination, "chunks", lambda costs, starts=(): [(l, l + 1) for l in range(len(costs))])
        F = H.factorize(-0.3, factor_dtype=dtype)
        found.append((*F.solver.factors.pivots.logabsdet, *F.solve(H.gradient, refine=False)))
        monkeypatch.undo()
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def symmetric(rng, m, kind):
    M = rng.standard_normal((m, m))
    M = M + M.T
    if kind == "definite":
        M = M @ M + np.eye(m)
    elif kind == "negative":
        M = -M @ M - np.eye(m)
    elif kind == "saddle":
        M[np.diag_indices(m)] = 0.0
    elif kind == "singular":
        M[m // 2] = M[:, m // 2] = 0.0
    return M


def factor_by_block(M, K, tiny, perturbation, pivots, scales, L, results):
    """`signed_cholesky`, `pack` and `forward_rows` by one block."""
    from numba_hinv.cuda.dense import signed_cholesky as twin
    from numba_hinv.cuda.dense import triangular
    from numba_hinv.cuda.plumbing.launch import launch
    from numba_hinv.cuda.plumbing.target import kernel, start_team

    @kernel
    def factor(M, K, tiny, perturbation, pivots, scales, L, results):
        team = start_team()
        m, n = M.shape[0] // results.shape[1], K.shape[0] // results.shape[1]
        status, negative, perturbed, logabsdet = twin.signed_cholesky(
            team, m, M, 0, tiny, perturbation, K, 0, n, pivots, 0, scales, 0
        )
        twin.pack(team, m, M, 0, L, 0)
        triangular.forward_rows(team, m, n, M, 0, pivots, 0, scales, 0, K, 0)
        if team.rank == 0:
            results[0, 0], results[1, 0], results[2, 0], results[3, 0] = status, negative, perturbed, logabsdet

    launch(factor, 1, 0, M, K, tiny, perturbation, pivots, scales, L, results)


def factor_by_device(M, K, tiny, perturbation, pivots, scales, L, results):
    """The same panel by panel, as the fronts of wide layers."""
    import numba.cuda

    from numba_hinv.cuda.plumbing.launch import launch, spread
    from numba_hinv.cuda.sweeps import panels, wide

    m = results.shape[1]
    n = K.size // m
    at, size = wide.places(m, m * n, m * n)
    work, notes = np.zeros(size), numba.cuda.to_device(np.zeros(panels.NOTES))
    work[at.M : at.M + m * m], work[at.K : at.K + m * n] = M.copy_to_host(), K.copy_to_host()
    work = numba.cuda.to_device(work)
    counts = [numba.cuda.to_device(np.zeros(1, kind)) for kind in (int, int, float, float)]
    factors = Factors(L, pivots, scales, K, *counts)
    pivoting = numba.cuda.to_device(np.array([tiny, perturbation, np.inf, np.inf]))
    wide._signed_cholesky(0, m, n, pivoting, factors, 0, 0, work, at, notes)
    launch(wide._pack, spread(m * m), 0, m, work, at.M, L, 0)
    wide._forward_rows(0, m, n, factors, 0, 0, work, at)
    launch(panels.square_rows, m, 0, n, work, at.K, work, at.norms)
    status = numba.cuda.to_device(np.zeros((1, 2), int))
    launch(
        panels.finish_layer, 1, 0, 0, m, n, pivoting, work, at.K, at.norms, pivots, 0, scales, 0, factors, notes, status
    )
    K.copy_to_device(work.copy_to_host()[at.K : at.K + m * n])
    found = np.zeros((4, m))
    positive, perturbed, logabsdet, _ = (count.copy_to_host()[0] for count in counts)
    found[:, 0] = status.copy_to_host()[0, 0], m - positive, perturbed, logabsdet
    results.copy_to_device(found)


@on_device
@pytest.mark.parametrize("factor", [factor_by_block, factor_by_device])
@pytest.mark.parametrize("kind", ["indefinite", "definite", "negative", "saddle", "singular", "not finite"])
def test_signed_cholesky(kind, factor):
    """The pivots of the CPU, and its factor, for every kind of matrix."""
    import numba.cuda

    rng = np.random.default_rng(0)
    for m in (1, 2, 5, 18):
        M, K = symmetric(rng, m, kind), rng.standard_normal((m, 3))
        if kind == "not finite":
            M[0, m - 1] = M[m - 1, 0] = np.nan
        tiny, perturbation = 1e-8, 1e-3
        L, pivots, scales = np.zeros(cpu_cholesky.pack_size(m)), np.zeros(2 * m, np.int32), np.zeros((m, 2))
        expected = cpu_cholesky.signed_cholesky(
            M.copy(), tiny, perturbation, L, pivots, scales, np.empty(cpu_cholesky.work_size(m))
        )
        arrays = [M.ravel(), K.ravel(), np.zeros(2 * m, np.int32), np.zeros(2 * m), np.zeros(L.size), np.zeros((4, m))]
        M_d, K_d, pivots_d, scales_d, L_d, results = map(numba.cuda.to_device, arrays)
        factor(M_d, K_d, tiny, perturbation, pivots_d, scales_d, L_d, results)
        found = results.copy_to_host()[:, 0]
        assert found[0] == expected[0]
        if found[0]:
            assert kind == "not finite"
            continue
        assert tuple(found[1:3]) == expected[1:3]
        assert found[3] == pytest.approx(expected[3], rel=1e-10, abs=1e-10)
        np.testing.assert_array_equal(pivots_d.copy_to_host(), pivots)
        np.testing.assert_allclose(scales_d.copy_to_host().reshape(m, 2), scales, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(L_d.copy_to_host(), L, rtol=1e-8, atol=1e-10)
        if found[2] == 0:
            # K^T M^-1 K = Y^T sigma Y, from the rows in the order of elimination.
            Y = K_d.copy_to_host().reshape(m, 3)
            signs = np.where(pivots[m:] < m - found[1], 1.0, -1.0)
            np.testing.assert_allclose((Y.T * signs) @ Y, K.T @ np.linalg.solve(M, K), rtol=1e-7, atol=1e-9)


class Noted:
    """A kernel that tells when it is launched."""

    def __init__(self, kernel, name, launched):
        self.kernel, self.name, self.launched = kernel, name, launched

    def __getitem__(self, configuration):
        self.launched.add(self.name)
        return self.kernel[configuration]


# One of the kernels that each sweep over wide layers launches.
WIDE_KERNELS = {"linearise": "wide_slopes", "multiply": "wide_nu", "wide_substitute": "_start_w"}


def wide_above(monkeypatch, rows):
    """Layers with fronts of more rows are wide; returns the list of those that will have been eliminated so."""
    from numba_hinv.cuda.sweeps import wide

    eliminated, eliminate = [], wide.eliminate

    def noted(stream, table, records, l, *rest):
        eliminated.append(l)
        eliminate(stream, table, records, l, *rest)

    monkeypatch.setattr(wide, "FRONT", rows)
    monkeypatch.setattr(wide, "eliminate", noted)
    return eliminated


@on_device
def test_wide_golden(monkeypatch):
    eliminated = wide_above(monkeypatch, 0)
    test_golden("nobias_bce")
    assert set(eliminated) == set(range(len(golden("nobias_bce")[0].layers)))


WIDE = {  # shape, rows above which layers are wide: all of them, or those of one end or of the middle
    "fewer samples than columns": 0,
    "no bias, as many samples as columns": 0,
    "nonlinear end": 0,
    "mixed skips and biases": 0,
    "single layer, with skip": 0,
    "bottleneck": 8,
    "wide then narrow": 30,
    "narrow then wide": 6,
}


@on_device
@pytest.mark.parametrize("name", WIDE)
def test_wide_shapes(name, monkeypatch):
    """Wide layers, and wide beside narrow ones, against dense algebra and the CPU."""
    eliminated, problem = wide_above(monkeypatch, WIDE[name]), SHAPES[name]
    damping = (1e-3 if len(name) % 2 else -1e-2) * problem.norm
    F = check_everything(moved(problem), damping, columns=1)
    assert F.inertia.exact and F.inertia == problem.hessian.factorize(damping).inertia
    assert 0 < len(eliminated) and (len(eliminated) < len(problem.layers)) == (WIDE[name] > 0)
    b = problem.right_hand_side()
    assert problem.backward_error(damping, F.solve(b, refine=False), b) <= 1e-10


@on_device
@pytest.mark.parametrize("numbers", [0, 20])
def test_wide_solves_and_products(numbers, monkeypatch):
    """Sweeps of the whole device, also beside those of a block, give what a block alone does."""
    from numba_hinv.cuda.sweeps import wide

    sizes = [layer(3, 5), layer(5, 5, skip=True), layer(5, 2), layer(2, 6), layer(6, 3, "identity", bias=False)]
    blocks, terminal = random_blocks(np.random.default_rng(3), [2, 3, 4, 2], [2, 0, 3]), np.diag([1.0, -2.0])
    problem, found, launched = make(sizes, batch=2), [], set()
    for module, name in WIDE_KERNELS.items():
        module = importlib.import_module(f"numba_hinv.cuda.sweeps.{module}")
        monkeypatch.setattr(module, name, Noted(getattr(module, name), name, launched))
    for limit in (10**6, numbers):
        monkeypatch.setattr(wide, "PRODUCT", limit)
        monkeypatch.setattr(wide, "SOLVE", limit)
        net, chain = moved(problem).hessian, nh.Hessian.from_blocks(blocks, terminal, device="cuda")
        for H in (net, chain):
            F, b = H.factorize(0.02), np.random.default_rng(1).standard_normal((H.shape[0], 2))
            found.append((H @ b, F.solve(b, refine=False)))
        found[-2] += (net.gradient,)
        assert launched == (set() if limit > numbers else set(WIDE_KERNELS.values()))
    for alone, wide_ones in zip(found[:2], found[2:]):
        for one, other in zip(alone, wide_ones):
            assert np.abs(one - other).max() <= 1e-10 * np.abs(other).max()


@on_device
def test_wide_chain_of_blocks(monkeypatch):
    wide_above(monkeypatch, 0)
    test_any_chain()


@on_device
def test_wide_stage_singular_shifts(monkeypatch):
    wide_above(monkeypatch, 3)
    test_stage_singular_shifts(seeds=2)


@on_device
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_wide_and_narrow_agree(dtype, monkeypatch, tmp_path):
    """The factors of one are those of the other, so that they are saved, pickled and checkpointed alike."""
    problem = chain(4, 5, batch=3)
    narrow = moved(problem).hessian.factorize(-0.02 * problem.norm, factor_dtype=dtype)
    eliminated = wide_above(monkeypatch, 0)
    H, b = moved(problem).hessian, problem.right_hand_side()
    F = H.factorize(-0.02 * problem.norm, factor_dtype=dtype)
    assert eliminated == [4, 3, 2, 1, 0] and F.inertia == narrow.inertia and F.inertia.negative > 0
    take, roundoff = H.system.on.memory.take, 1e3 * np.finfo(dtype).eps
    for name, ours, theirs in zip(
        F.solver.factors.arrays._fields, F.solver.factors.arrays, narrow.solver.factors.arrays
    ):
        ours, theirs = np.array(take(ours)), np.array(take(theirs))
        if name in ("pivots", "num_positive", "num_perturbed"):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        elif name in ("scales", "Y", "logabsdet", "growth"):
            np.testing.assert_allclose(ours, theirs, rtol=roundoff, atol=roundoff * np.abs(theirs).max(), err_msg=name)
    solvers = [H.factorize(F.damping, dtype, checkpoint=True)]
    if dtype == np.float64:
        F.save(tmp_path / "factors.npz")
        solvers.append(nh.load(tmp_path / "factors.npz"))
    for again in solvers:
        assert problem.backward_error(F.damping, again.solve(b), b) <= 1e-14
    for one, other in zip(H.factorize_many([F.damping, 1.0], factor_dtype=dtype), (F, H.factorize(1.0, dtype))):
        np.testing.assert_array_equal(one.solver.factors.pivots.logabsdet, other.solver.factors.pivots.logabsdet)


class ColumnMajor:
    """cuBLAS's routines as CuPy calls them, on addresses of the host: `cublas_v2.h`, by NumPy."""

    def __init__(self, dtype):
        self.dtype, self.calls = np.dtype(dtype), set()
        for name in ("gemm", "trsm", "syrk"):
            setattr(self, {"d": "d", "f": "s"}[self.dtype.char] + name, getattr(self, "_" + name))

    def _matrix(self, address, rows, columns, stride):
        size = stride * (columns - 1) + rows
        numbers = (ctypes.c_char * (size * self.dtype.itemsize)).from_address(address)
        flat = np.frombuffer(numbers, self.dtype)
        return np.lib.stride_tricks.as_strided(
            flat, (rows, columns), (self.dtype.itemsize, stride * self.dtype.itemsize)
        )

    def _scalar(self, address):
        return self._matrix(address, 1, 1, 1)[0, 0]

    def _gemm(self, handle, transa, transb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc):
        self.calls.add("gemm")
        assert lda >= max(1, k if transa else m) and ldb >= max(1, n if transb else k) and ldc >= max(1, m)
        A = self._matrix(A, k, m, lda).T if transa else self._matrix(A, m, k, lda)
        B = self._matrix(B, n, k, ldb).T if transb else self._matrix(B, k, n, ldb)
        C, beta = self._matrix(C, m, n, ldc), self._scalar(beta)
        C[:] = self._scalar(alpha) * (A @ B) + (beta * C if beta else 0)

    def _trsm(self, handle, side, uplo, trans, unit, m, n, alpha, A, lda, B, ldb):
        self.calls.add("trsm")
        size = n if side else m
        assert lda >= max(1, size) and ldb >= max(1, m)
        A = self._matrix(A, size, size, lda)
        A = np.triu(A) if uplo else np.tril(A)
        if unit:
            A = A - np.diag(A.diagonal()) + np.eye(size)
        A, B = A.T if trans else A, self._matrix(B, m, n, ldb)
        B[:] = self._scalar(alpha) * (np.linalg.solve(A.T, B.T).T if side else np.linalg.solve(A, B))

    def _syrk(self, handle, uplo, trans, n, k, alpha, A, lda, beta, C, ldc):
        self.calls.add("syrk")
        assert lda >= max(1, k if trans else n) and ldc >= max(1, n)
        A = self._matrix(A, k, n, lda).T if trans else self._matrix(A, n, k, lda)
        C = self._matrix(C, n, n, ldc)
        found = self._scalar(alpha) * (A @ A.T) + self._scalar(beta) * C
        those = np.triu_indices(n) if uplo else np.tril_indices(n)
        C[those] = found[those]


@on_device
@pytest.mark.skipif(not SIMULATED, reason="on a GPU it is cuBLAS itself")
def test_products_of_cublas(monkeypatch):
    """What is asked of cuBLAS, of rows where it reads columns, gives the same factors as the tiles."""
    from numba_hinv.cuda.dense import library

    wide_above(monkeypatch, 0)
    rng = np.random.default_rng(3)
    blocks, terminal = random_blocks(rng, [2, 3, 4, 4], [2, 3, 0]), np.diag([1.0, -2.0, 3.0, 1.0])
    nets = [moved(chain(4, 3, batch=2)).hessian, nh.Hessian.from_blocks(blocks, terminal, device="cuda")]
    for dtype in (np.float64, np.float32):
        functions = ColumnMajor(dtype)
        ours = library.Cublas(functions, lambda: 0, lambda stream: contextlib.nullcontext(), np.dtype(dtype).char)
        for H in nets:
            expected = H.factorize(-0.3, factor_dtype=dtype)
            with monkeypatch.context() as patch:
                patch.setattr(library, "_cublas", lambda letter: ours)
                patch.setattr(library, "_address", lambda a, at: a._ary.ctypes.data + at * a.dtype.itemsize)
                found = H.factorize(-0.3, factor_dtype=dtype)
            take = H.system.on.memory.take
            for name in ("Y", "scales", "logabsdet"):
                one, other = (np.array(take(getattr(F.solver.factors.arrays, name))) for F in (found, expected))
                roundoff = 1e3 * np.finfo(dtype).eps * np.abs(other).max()
                np.testing.assert_allclose(one, other, rtol=0, atol=roundoff, err_msg=name)
            assert found.inertia == expected.inertia and found.inertia.negative > 0
        assert functions.calls == {"gemm", "trsm", "syrk"}


@on_device
@pytest.mark.parametrize("with_cublas", [False, True])
def test_wide_not_finite(with_cublas, monkeypatch):
    """A layer with numbers that are not finite is named, and nothing after it is touched."""
    from numba_hinv.cuda.dense import library

    if with_cublas and not SIMULATED:
        pytest.skip("on a GPU it is cuBLAS itself")
    eliminated, H = wide_above(monkeypatch, 0), moved(chain(3, 4, batch=2)).hessian
    H.norm()
    D = H.system.on.memory.take(H.system.lin.D)
    D[int(H.system.table["u"][1])] = np.nan
    H.system.lin.D.copy_to_device(D)
    if with_cublas:
        ours = library.Cublas(ColumnMajor(np.float64), lambda: 0, lambda stream: contextlib.nullcontext(), "d")
        monkeypatch.setattr(library, "_cublas", lambda letter: ours)
        monkeypatch.setattr(library, "_address", lambda a, at: a._ary.ctypes.data + at * a.dtype.itemsize)
    with pytest.raises(np.linalg.LinAlgError, match="the elimination of layer 1 met numbers that are not finite"):
        H.factorize(0.1)
    assert eliminated == [3, 2, 1]


@on_device
def test_stage_singular_shifts(seeds=3):
    """Shifts on eigenvalues of trailing blocks: pivots are perturbed as on the CPU, and the answers are as good."""
    perturbed = 0
    for seed in range(seeds):
        problem = moved(chain(2, 4, batch=1 + seed, out=2, seed=seed))
        H = problem.truth.hessian.astype(np.float64)
        for start in problem.offsets()[1:-1]:
            trailing = np.linalg.eigvalsh(H[start:, start:])
            damping = -trailing[np.argmax(np.abs(trailing))]
            if problem.gap(damping) < 1e-6:
                continue
            F, here = problem.hessian.factorize(damping), problem.net.hessian(problem.params, problem.X, problem.y)
            b = problem.right_hand_side()
            assert problem.backward_error(damping, F.solve(b), b) <= 1e-14
            assert F.num_perturbed == here.factorize(damping).num_perturbed
            perturbed += F.num_perturbed
            if F.inertia.exact:
                assert F.inertia.negative == (problem.eigenvalues + damping < 0).sum()
    assert perturbed > 0


@on_device
def test_singular_systems():
    problem = moved(chain(3, 3, batch=2))
    with pytest.raises(np.linalg.LinAlgError, match="damping"):
        problem.hessian.factorize(-problem.eigenvalues[-1])
    with pytest.raises(np.linalg.LinAlgError, match="layer 0"):
        problem.hessian.factorize(0.0)


@on_device
def test_tiny_dampings():
    """Krylov steps and the rescue run on the device as well."""
    problem = moved(chain(3, 4, batch=1))
    for damping in (1e-7, -1e-9):
        damping *= problem.norm
        b = problem.right_hand_side()
        x, info = problem.hessian.factorize(damping).solve(b, full_output=True)
        assert problem.backward_error(damping, x, b) <= 1e-14
        assert info.backward_error <= 1e-14


def random_blocks(rng, sizes, params):
    def draw(*shape):
        return rng.standard_normal(shape)

    blocks = []
    for a_in, a, p in zip(sizes[:-1], sizes[1:], params):
        square, state = draw(p, p), draw(a_in, a_in)
        blocks.append(
            nh.LayerBlocks(draw(a, p), 0.5 * draw(a, a_in), square + square.T, draw(p, a_in), state + state.T)
        )
    return blocks


@on_device
def test_any_chain():
    rng = np.random.default_rng(3)
    blocks = random_blocks(rng, [2, 3, 4, 2, 3], [2, 0, 3, 1])
    terminal = np.diag([1.0, -2.0, 3.0])
    here = nh.Hessian.from_blocks(blocks, terminal)
    there = nh.Hessian.from_blocks(blocks, terminal, device="cuda")
    dense = here.todense()
    np.testing.assert_allclose(there.todense(), dense, rtol=1e-12, atol=1e-12)
    b = rng.standard_normal((here.shape[0], 2))
    for damping in (0.0, 0.7, -1.3):
        F = there.factorize(damping)
        assert dense_truth.backward_error(dense, damping, F.solve(b), b) <= 1e-14
        assert F.inertia.negative == (np.linalg.eigvalsh(dense) + damping < 0).sum()
        assert F.slogdet()[1] == pytest.approx(here.factorize(damping).slogdet()[1], rel=1e-10, abs=1e-10)
    again = nh.Hessian.from_blocks([there.blocks(l) for l in range(4)], there.terminal)
    np.testing.assert_array_equal(again.todense(), dense)


def cut_at(monkeypatch, *bounds):
    """Let chains be cut there, whatever their length and the device."""
    monkeypatch.setattr(segmentation, "cut", lambda table, num_samples, segments, count: bounds)


@on_device
@pytest.mark.parametrize("name", CUT)
def test_segments(name, monkeypatch):
    """Solutions, inertia and log-determinants of chains in segments, against the truth and with the same bars."""
    problem, bounds, damping = CUT[name]
    problem, damping = moved(problem), damping * problem.norm
    cut_at(monkeypatch, *bounds)
    F = check_everything(problem, damping, columns=2)
    assert F.solver.factors.has_fallback and F.inertia.exact
    b = problem.right_hand_side(2)
    assert problem.backward_error(damping, F.solve(b, refine=False), b) <= 1e-12
    monkeypatch.undo()
    monkeypatch.setattr(segmentation, "plan", lambda system, count=None: None)
    whole = problem.hessian.factorize(damping)
    assert not whole.solver.factors.has_fallback and whole.inertia == F.inertia and whole.nbytes < F.nbytes
    assert whole.solver.factors.log_pivots() == pytest.approx(F.solver.factors.log_pivots(), rel=1e-9, abs=1e-9)


@on_device
def test_when_a_chain_is_cut(monkeypatch):
    from numba_hinv.kernels.steps.layer_table import layer_table

    def bounds(width, depth, batch=1, blocks=132):
        net = nh.Network([nh.Dense(width, width, skip=True) for _ in range(depth)], "mean_squared_error")
        device = types.SimpleNamespace(num_blocks=lambda: blocks, fewest=4, shortest=16, least=0.0, carrying=(0.0, 0.0))
        return segmentation.cut(layer_table(net.model.chain, batch)[0], batch, device)

    assert bounds(8, 63) is None
    assert len(bounds(8, 64)) == 5
    found = bounds(16, 4096, batch=2)
    assert len(found) == 46 and found[0] == 0 and found[-1] == 4096
    assert max(np.diff(found)) - min(np.diff(found)) <= 2
    assert len(bounds(8, 4096, blocks=20)) == 21
    # Fronts of more than 96 rows.
    assert bounds(8, 4096, batch=12) is not None and bounds(8, 4096, batch=13) is None


@on_device
def test_long_chains_are_cut_by_default(tmp_path):
    """The cut that the device makes; pickled and copied in segments, bit for bit, and saved as one."""
    problem = chain(2, 18, batch=1, out=2)
    there, damping = moved(problem).hessian, -0.01 * problem.norm
    F, here = there.factorize(damping), problem.hessian.factorize(damping)
    assert F.solver.factors.has_fallback and F.inertia == here.inertia and here.inertia.negative > 0
    assert F.slogdet() == pytest.approx(here.slogdet(), rel=1e-10)
    b = problem.right_hand_side()
    x = F.solve(b)
    for again in (pickle.loads(pickle.dumps(F)), copy.deepcopy(F)):
        assert again.solver.factors.has_fallback and again.nbytes == F.nbytes <= there.factor_nbytes
        np.testing.assert_array_equal(again.solve(b), x)
        assert again.inertia == F.inertia and again.slogdet() == F.slogdet()
    F.save(tmp_path / "factors.npz")
    loaded = nh.load(tmp_path / "factors.npz")
    assert problem.backward_error(damping, loaded.solve(b), b) <= 1e-14 and loaded.inertia == F.inertia
    np.testing.assert_array_equal(F.solve(b), x)
    kept = there.factorize(damping, checkpoint=True)
    assert not kept.solver.factors.has_fallback and problem.backward_error(damping, kept.solve(b), b) <= 1e-14


@on_device
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_where_segments_lie_changes_nothing(dtype, monkeypatch):
    """From all of a front in shared memory to none of it, in one launch or one a layer: the same bits."""
    from numba_hinv.cuda.elimination import RESERVED_SHARED, DeviceElimination
    from numba_hinv.cuda.sweeps import eliminate
    from numba_hinv.factors import elimination

    problem = make(RAGGED, batch=2)
    H, damping, found = moved(problem).hessian, 0.3 * problem.norm, []
    cut_at(monkeypatch, 0, 1, 5, 7)
    plan = segmentation.plan(H.system)
    for level in range(eliminate.LEVELS):
        limit = next(
            limit
            for limit in range(RESERVED_SHARED, 1 << 20, 64)
            if level == 0 or limit_level(H, plan, dtype, limit, monkeypatch) == level
        )
        monkeypatch.setattr(DeviceElimination, "shared_limit", lambda self, limit=limit: limit)
        F = H.factorize(damping, factor_dtype=dtype)
        found.append((*F.solver.factors.pivots.logabsdet, *F.solve(H.gradient, refine=False)))
        with monkeypatch.context() as patch:
            patch.setattr(elimination, "chunks", lambda costs, starts=(): [(l, l + 1) for l in range(len(costs))])
            F = H.factorize(damping, factor_dtype=dtype)
            found.append((*F.solver.factors.pivots.logabsdet, *F.solve(H.gradient, refine=False)))
    assert F.solver.factors.has_fallback
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    b = problem.right_hand_side()
    assert problem.backward_error(damping, F.solve(b), b) <= 1e-14


def limit_level(H, plan, dtype, limit, monkeypatch):
    from numba_hinv.cuda.elimination import DeviceElimination

    with monkeypatch.context() as patch:
        patch.setattr(DeviceElimination, "shared_limit", lambda self: limit)
        return H.system.on.elimination.workspace(H.system.table, H.system.sizes, np.dtype(dtype), 1, plan).level


@on_device
def test_segments_of_any_chain(monkeypatch):
    rng = np.random.default_rng(3)
    blocks = random_blocks(rng, [2, 3, 4, 2, 3, 2], [2, 0, 3, 1, 2])
    there = nh.Hessian.from_blocks(blocks, np.diag([1.0, -2.0]), device="cuda")
    dense = nh.Hessian.from_blocks(blocks, np.diag([1.0, -2.0])).todense()
    b = rng.standard_normal((there.shape[0], 2))
    cut_at(monkeypatch, 0, 2, 3, 5)
    for damping in (0.0, 0.7, -1.3):
        F = there.factorize(damping)
        assert F.solver.factors.has_fallback
        assert dense_truth.backward_error(dense, damping, F.solve(b), b) <= 1e-14
        eigenvalues = np.linalg.eigvalsh(dense) + damping
        assert F.inertia == (np.sum(eigenvalues < 0), 0, np.sum(eigenvalues > 0), True)
        assert F.slogdet()[1] == pytest.approx(np.log(np.abs(eigenvalues)).sum(), rel=1e-9)


@on_device
def test_states_of_many_sizes_in_segments(monkeypatch):
    """States that grow by powers of two, so that layers have several levels and seams are on several scales."""
    problem = moved(chain(2, 12, batch=1, out=2, activation="identity", gain=1.6))
    damping = 0.01 * problem.norm
    cut_at(monkeypatch, 0, 4, 8, 12)
    F = check_everything(problem, damping)
    assert F.solver.factors.has_fallback and len(F.solver.matrix.scale.levels) > 1


@on_device
def test_segments_that_do_not_do(monkeypatch):
    """Singular pivots of a segment, and factors that solve nothing: the chain is then eliminated as one."""
    from numba_hinv.certainty import inertia

    problem = moved(chain(3, 4, batch=2, out=2, gain=0.7))
    H = problem.hessian
    cut_at(monkeypatch, 0, 2, 4)
    plan, levels, last = segmentation.plan(H.system), H.system.scaling(0.0, np.float64).levels_by_layer(4), H.blocks(1)
    guess = np.ldexp(segmentation.scales(plan, H.norm(), levels)[0], segmentation.GUESS)
    pivot = np.linalg.eigvalsh(last.Dxx + guess * last.Dx.T @ last.Dx)
    damping = -pivot[np.argmax([problem.gap(-value) for value in pivot])]
    F, b = H.factorize(damping), problem.right_hand_side()
    assert (
        not F.solver.factors.has_fallback
        and F.num_perturbed == 0
        and H.factorize(1.1 * damping).solver.factors.has_fallback
    )
    assert F.inertia.negative == (problem.eigenvalues + damping < 0).sum()
    assert problem.backward_error(damping, F.solve(b), b) <= 1e-14
    F = H.factorize(0.1)
    x = F.solve(b)
    assert F.solver.factors.has_fallback
    wrong = H.system.on.memory.put(np.random.default_rng(0).standard_normal(F.solver.factors.arrays.layers.scales.size))
    arrays = F.solver.factors.arrays
    F.solver.factors.arrays = arrays._replace(layers=arrays.layers._replace(scales=wrong))
    np.testing.assert_allclose(F.solve(b), x, rtol=1e-8, atol=1e-10)
    # Pivots that may have the wrong sign.
    assert H.factorize(1e-6).solver.factors.has_fallback
    with monkeypatch.context() as patch:
        patch.setattr(inertia, "CONTRACTION", 0.0)
        F = H.factorize(1e-6)
        assert F.solver.factors.has_fallback and not F.solver.decided().factors.has_fallback
        assert F.solver.num_negative_pivots() == (problem.eigenvalues < -1e-6).sum()
    # A guess so large that nothing is left of the fronts beside it.
    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "GUESS", 52)
        F = H.factorize(0.1)
        assert (
            not F.solver.decided().factors.has_fallback
            and F.inertia.exact
            and problem.backward_error(0.1, F.solve(b), b) <= 1e-14
        )
    # Singular matrices are named as they are without segments.
    with pytest.raises(np.linalg.LinAlgError, match="layer 0.*further from minus an eigenvalue"):
        H.factorize(-problem.eigenvalues[-1])


@on_device
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("depth", [3, 8])
def test_many_dampings_at_once(depth, monkeypatch):
    """All in one launch a run, also in segments, with the bits of each alone; the first that fails is named."""
    from numba_hinv.cuda.elimination import DeviceElimination

    problem = moved(chain(2, depth, batch=2, out=2, gain=0.7))
    H, b, launches = problem.hessian, problem.right_hand_side(2), []
    dampings = [0.5, -0.1, 1e-2, 0.5, -0.02]
    expected = [H.factorize(damping) for damping in dampings]
    eliminate_runs = DeviceElimination._run

    def counted(self, table, runs, params, lin, space, dampings, *rest):
        launches.append((len(dampings), runs.size))
        return eliminate_runs(self, table, runs, params, lin, space, dampings, *rest)

    monkeypatch.setattr(DeviceElimination, "_run", counted)
    found = H.factorize_many(dampings)
    assert launches == ([(5, 1)] if depth == 3 else [(5, 2), (1, 5)])
    for F, alone in zip(found, expected):
        assert F.solver.factors.has_fallback == (depth == 8) and F.damping == alone.damping
        np.testing.assert_array_equal(F.solve(b, refine=False), alone.solve(b, refine=False))
        assert (
            F.inertia == alone.inertia
            and F.solver.factors.log_pivots() == alone.solver.factors.log_pivots()
            and F.nbytes == alone.nbytes
        )
    singular = -problem.eigenvalues[-1]
    with pytest.raises(np.linalg.LinAlgError, match=r"dampings: at index 1: .*singular to working precision.*layer 0"):
        H.factorize_many([0.5, singular, 0.0, -problem.eigenvalues[0]])
    with pytest.raises(np.linalg.LinAlgError, match=r"dampings: at index 2: H is singular, and damping is 0: layer 0"):
        H.factorize_many([0.5, 0.3, 0.0, singular])
    with pytest.raises(
        np.linalg.LinAlgError, match=r"dampings: at index 1: the elimination of layer . met numbers that"
    ):
        H.factorize_many([0.5, 1e-320, 0.3])
    assert H.factorize_many([]) == []
    # Of other scales.
    huge = 2.0**200 * problem.norm
    for F, damping in zip(H.factorize_many([0.5, huge, -0.1]), (0.5, huge, -0.1)):
        assert F.inertia == H.factorize(damping).inertia


@on_device
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")
def test_many_dampings_of_wide_layers(monkeypatch):
    """One after the other in wide layers, between narrow ones; one that fails there leaves the rest alone."""
    from numba_hinv.factors import choice
    from numba_hinv.system.shifted import Shifted

    problem = moved(make([layer(2, 2), layer(2, 4), layer(4, 2), layer(2, 2)], batch=2))
    eliminated = wide_above(monkeypatch, 7)
    H, b, dampings = problem.hessian, problem.right_hand_side(), [0.5, -0.1]
    for F, damping in zip(H.factorize_many(dampings), dampings):
        np.testing.assert_array_equal(F.solve(b, refine=False), H.factorize(damping).solve(b, refine=False))
        assert problem.backward_error(damping, F.solve(b), b) <= 1e-14
    blocks = H.system.blocks(np.dtype(np.float64), H.system.scaling(0.5, np.float64))
    scale = H.system.scaling(0.5, np.float64)
    some = [Shifted(H.system, damping, np.dtype(np.float64), scale, blocks) for damping in (0.5, 1e-320, -0.1)]
    found = choice.factorize_batch(some)
    assert isinstance(found[1], np.linalg.LinAlgError) and "not finite" in str(found[1])
    assert set(eliminated) == {1, 2}
    for factors in (found[0], found[2]):
        alone = H.factorize(factors.matrix.damping).solver.factors
        np.testing.assert_array_equal(*(np.asarray(one.substitute(b[None])) for one in (factors, alone)))


@on_device
def test_memory_of_many_dampings_is_asked_for_first(monkeypatch):
    from numba_hinv.cuda import device

    H = moved(chain(2, 8, batch=1, out=2)).hessian
    H.factorize(0.1)
    needed = H.factor_nbytes
    context = type("Context", (), {"get_memory_info": lambda self: type("Memory", (), {"free": 3 * needed - 1})})
    monkeypatch.setattr(device.numba.cuda, "current_context", context)
    with pytest.raises(MemoryError, match="3 factorizations .*on the GPU"):
        H.factorize_many([0.1, 0.2, 0.3])
    assert len(H.factorize_many([0.1, 0.2])) == 2


@on_device
def test_float32():
    problem = chain(3, 4, batch=2)
    narrow = problem.params.astype(np.float32)
    H = problem.net.hessian(narrow, problem.X, problem.y, device="cuda")
    b = problem.right_hand_side().astype(np.float32)
    x = H.factorize(0.1).solve(b)
    assert x.dtype == np.float32
    truth = dense_truth.differentiate(problem.layers, problem.loss, narrow.astype(float), problem.X, problem.y)
    assert dense_truth.backward_error(truth.hessian, 0.1, x, b) <= 1e-7
    F = moved(problem).hessian.factorize(0.1, factor_dtype=np.float32)
    b = problem.right_hand_side()
    assert problem.backward_error(0.1, F.solve(b), b) <= 1e-14


@on_device
def test_the_rest_of_the_interface():
    problem = chain(3, 4, batch=3)
    here, there = problem.hessian, moved(problem).hessian
    assert there.norm() == pytest.approx(here.norm(), rel=1e-10)
    t = float(np.mean(problem.eigenvalues[3:5]))
    assert there.count_below(t) == (problem.eigenvalues < t).sum()
    dampings = np.array([0.5, -0.1, 1e-3])
    many = there.factorize_many(dampings)
    b = problem.right_hand_side(3)
    for damping, F in zip(dampings, many):
        np.testing.assert_array_equal(F.solve(b), there.factorize(damping).solve(b))
    kept, again = there.factorize(0.1), there.factorize(0.1, checkpoint=True)
    np.testing.assert_array_equal(again.solve(b), kept.solve(b))
    assert kept.condition() == pytest.approx(here.factorize(0.1).condition(), rel=1e-6)
    for scale in (2.0**-500, 2.0**500):
        assert np.abs(kept.solve(scale * b) / scale - kept.solve(b)).max() <= 1e-12 * np.abs(kept.solve(b)).max()
    np.testing.assert_allclose(
        there.system.output_tangents(b.T.copy()), here.system.output_tangents(b.T.copy()), rtol=1e-12
    )
    assert "on cuda" in repr(there)
    assert kept.nbytes == here.factorize(0.1).nbytes
    options = dict(curvature="ggn", l2=0.01)
    there = problem.net.hessian(problem.params, problem.X, problem.y, device="cuda", **options)
    here = problem.net.hessian(problem.params, problem.X, problem.y, **options)
    np.testing.assert_allclose(there.todense(), here.todense(), rtol=1e-12, atol=1e-13)
    x = there.factorize(0.1).solve(b)
    assert dense_truth.backward_error(here.todense(), 0.1, x, b) <= 1e-14


@on_device
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error"])
def test_arrays_on_the_device(loss):
    """Arrays of the device go in, and come out where b is one; nothing of the caller's is changed."""
    import numba.cuda

    problem = chain(3, 3, batch=2, loss=loss)
    given = [problem.params, problem.X, problem.y]
    there = [numba.cuda.to_device(array) for array in given]
    ones = numba.cuda.to_device(np.ones(2))
    H = problem.net.hessian(*there, device="cuda", sample_weight=ones)
    expected = moved(problem).hessian
    np.testing.assert_array_equal(H.gradient, expected.gradient)
    F, F_expected = H.factorize(0.1), expected.factorize(0.1)
    b = problem.right_hand_side(3)
    whole = np.arange(len(b))
    for columns in (b, b[:, 0].copy(), b.astype(np.float32), b[:, :1].copy(), np.asfortranarray(b), whole):
        b_there = numba.cuda.to_device(columns)
        for found, wanted in ((F.solve(b_there), F_expected.solve(columns)), (H @ b_there, expected @ columns)):
            assert not isinstance(found, np.ndarray) and found.dtype == wanted.dtype
            np.testing.assert_array_equal(found.copy_to_host(), wanted)
        np.testing.assert_array_equal((F @ b_there).copy_to_host(), F_expected.solve(columns))
        np.testing.assert_array_equal(b_there.copy_to_host(), columns)
    x, info = F.solve(numba.cuda.to_device(b), full_output=True)
    assert info.backward_error.shape == (3,) and info.backward_error.max() <= 1e-14
    for array, kept in zip(there, given):
        np.testing.assert_array_equal(array.copy_to_host(), kept)
    F_narrow = problem.net.hessian(numba.cuda.to_device(problem.params.astype(np.float32)), *there[1:], device="cuda")
    assert F_narrow.dtype == np.float32


@on_device
def test_wrong_arrays_on_the_device():
    import numba.cuda

    problem = chain(3, 3, batch=2)
    put, F = numba.cuda.to_device, moved(problem).hessian.factorize(0.1)
    bad = problem.right_hand_side()
    bad[3] = np.nan
    for b, message in (
        (bad, "b: expected finite numbers"),
        (bad[:-1], "b: expected shape"),
        (np.zeros((2, 2, 2)), "b: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            F.solve(put(b))
    with pytest.raises(TypeError, match="b: expected an array of real numbers"):
        F.solve(put(np.zeros(problem.size, complex)))
    for index, wrong, message in (
        (0, problem.params[1:], "params: expected shape"),
        (0, np.full(problem.size, np.inf), "params: expected finite"),
        (1, problem.X[:, 1:], "X: expected shape"),
        (1, problem.X[:0], "X: expected at least one sample"),
        (2, problem.y + 100, "y: expected labels"),
        (2, problem.y[1:], "y: expected shape"),
    ):
        arguments = [problem.params, problem.X, problem.y]
        arguments[index] = put(np.ascontiguousarray(wrong))
        with pytest.raises(ValueError, match=message):
            problem.net.hessian(*arguments, device="cuda")


@pytest.mark.gpu
@without_gpu
def test_agreement_on_a_gpu():
    """Nets larger than the simulator's, fronts that do and do not fit into shared memory, against the CPU."""
    for problem in (
        chain(16, 40, batch=2),
        chain(24, 6, batch=4),
        chain(64, 4, batch=3),
        chain(8, 30, batch=12),
        chain(300, 4, batch=1),
        chain(130, 3, batch=3),
        chain(8, 4, batch=40),
        make([layer(8, 200), layer(200, 8)]),
    ):
        damping = 0.01
        here, F = problem.hessian.factorize(damping), moved(problem).hessian.factorize(damping)
        b = problem.right_hand_side(3)
        x, expected = F.solve(b), here.solve(b)
        assert np.linalg.norm(x - expected) <= 1e-8 * np.linalg.norm(expected)
        assert F.inertia == here.inertia
        assert F.slogdet()[1] == pytest.approx(here.slogdet()[1], rel=1e-9)


@pytest.mark.gpu
@without_gpu
def test_segments_on_a_gpu():
    """Chains that are long enough for many segments, alone and for many dampings at once, against the CPU."""
    for problem in (chain(8, 2000, batch=1, gain=0.1), chain(16, 300, batch=2, gain=0.1)):
        H, b = moved(problem).hessian, problem.right_hand_side(3)
        dampings = H.norm() * np.array([0.1, 0.01, -0.05])
        for damping, F in zip(dampings, H.factorize_many(dampings)):
            here, alone = problem.hessian.factorize(damping), H.factorize(damping)
            x, expected = F.solve(b), here.solve(b)
            assert F.solver.factors.has_fallback and alone.solver.factors.has_fallback
            residual = problem.hessian @ x + damping * x - b
            scale = problem.hessian.norm() * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
            assert (np.linalg.norm(residual, axis=0) <= 1e-14 * scale).all()
            assert np.linalg.norm(x - expected) <= 1e-8 * np.linalg.norm(expected)
            np.testing.assert_array_equal(alone.solve(b), x)
            assert F.inertia == here.inertia
            assert F.slogdet()[1] == pytest.approx(here.slogdet()[1], rel=1e-9)


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("depth", [20, 200])
def test_no_leak_on_a_gpu(depth):
    import numba.cuda

    H = moved(chain(8, depth, batch=2, gain=0.3)).hessian

    def free():
        numba.cuda.synchronize()
        return numba.cuda.current_context().get_memory_info().free

    for _ in range(10):
        H.factorize(0.1)
    before = free()
    for _ in range(1000):
        H.factorize(0.1)
    assert free() >= before - (1 << 24)


@pytest.mark.gpu
@without_gpu
def test_two_streams_on_a_gpu():
    """Two Hessians, each on its own stream, at once from two threads."""
    import threading

    import numba.cuda

    from numba_hinv.cuda.device import Device

    problems, found = [chain(4, 80, batch=2, seed=seed, gain=0.3) for seed in (0, 1)], [None, None]

    def work(index):
        problem = problems[index]
        H = moved(problem).hessian
        H.system.on = Device(numba.cuda.stream())
        for _ in range(20):
            found[index] = H.factorize(0.1).solve(problem.right_hand_side())

    workers = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for problem, x in zip(problems, found):
        assert problem.backward_error(0.1, x, problem.right_hand_side()) <= 1e-14


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("limit", [2**18, 3])
def test_memory_checker_on_a_gpu(limit):
    """compute-sanitizer finds nothing in a factorization and a solve, of narrow layers and of wide ones."""
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("compute-sanitizer is not installed")
    code = (
        "import numba_hinv as nh, numpy as np\n"
        "from numba_hinv.cuda.sweeps import wide\n"
        f"wide.FRONT = wide.PRODUCT = wide.SOLVE = {limit}\n"
        "net = nh.Network([nh.Dense(5, 5, skip=True) for _ in range(4)], 'mean_squared_error')\n"
        "H = net.hessian(net.init(), np.ones((2, 5)), np.zeros((2, 5)), device='cuda')\n"
        "H.factorize(-0.1).solve(H.gradient)\n"
    )
    run = subprocess.run([checker, "--error-exitcode", "9", sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


@on_device
def test_what_the_device_does_not_do_is_said():
    convolution = nh.Network([nh.Dense(4, 4), nh.Conv1d(2, 2, 1, 2)], "mean_squared_error")
    with pytest.raises(ValueError, match="device: expected Dense layers alone with 'cuda', got layer 1"):
        convolution.hessian(convolution.init(), np.ones((1, 4)), np.ones((1, 4)), device="cuda")
    H = moved(chain(2, 2, batch=1)).hessian
    for ask in (
        lambda: H.factorize(5.0).diagonal(),
        lambda: H.factorize(5.0).sample(rng=0),
        lambda: nh.trust_region_step(H, 1.0),
    ):
        with pytest.raises(ValueError, match="device: expected 'cpu' for"):
            ask()


@on_device
def test_memory_is_asked_for_first(monkeypatch):
    from numba_hinv.cuda import device

    problem = chain(4, 4, batch=2)
    H = moved(problem).hessian
    needed = H.factor_nbytes
    context = type("Context", (), {"get_memory_info": lambda self: type("Memory", (), {"free": needed - 1})})
    monkeypatch.setattr(device.numba.cuda, "current_context", context)
    with pytest.raises(MemoryError, match="on the GPU"):
        H.factorize(0.1)
    monkeypatch.undo()
    H.factorize(0.1)


def test_devices_are_named():
    net = nh.Network([nh.Dense(2, 1)], "mean_squared_error")
    for wrong in ("gpu", "CUDA", None, 0):
        with pytest.raises(ValueError, match="device: expected 'cpu' or 'cuda'"):
            net.hessian(net.init(), np.ones((1, 2)), np.ones((1, 1)), device=wrong)
        with pytest.raises(ValueError, match="device: expected 'cpu' or 'cuda'"):
            nh.Hessian.from_blocks([], device=wrong)


@pytest.mark.skipif(device_available(), reason="there is a device")
def test_without_a_gpu():
    net = nh.Network([nh.Dense(2, 1)], "mean_squared_error")
    expected = RuntimeError if INSTALLED else ImportError
    with pytest.raises(expected, match="device: 'cuda' needs"):
        net.hessian(net.init(), np.ones((1, 2)), np.ones((1, 1)), device="cuda")


def test_without_numba_cuda():
    """The library imports without a trace of numba-cuda, and asking for it where it is missing says what to install."""
    code = """
import importlib.util, sys
import numba_hinv as nh
assert not [name for name in sys.modules if name.startswith(("numba.cuda", "numba_cuda", "numba_hinv.cuda."))]
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba_cuda" else find(name, *rest)
net = nh.Network([nh.Dense(2, 1)], "mean_squared_error")
try:
    net.hessian(net.init(), [[1.0, 2.0]], [[1.0]], device="cuda")
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "device: 'cuda' needs numba-cuda" in run.stdout and "numba_hinv[cuda]" in run.stdout
