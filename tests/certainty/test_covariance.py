"""`Factorization.diagonal`, `blocks` and `sample` against dense inverses in extended precision: right, or warned of.

Errors are relative to the entry where the matrix is positive definite, else to the norm of its column of the inverse;
rounding of H, u ||A|| times the columns' norms, is allowed for everywhere.
"""

import warnings

import custom_layers
import dense_truth
import numpy as np
import pytest
from problems import GOLDEN, Problem, chain, golden, layer, make
from scipy.linalg import LinAlgWarning

import numba_hinv as nh
from numba_hinv.runtime import memory_budget

EPS = np.finfo(float).eps
TOLERANCE = {"float64": 1e-8, "float32": 1e-3}


def exact_inverse(hessian, damping):
    A = dense_truth.shifted(hessian, damping)
    unit = np.abs(A).max()
    factors, eye = dense_truth.DenseFactors(A / unit), np.eye(len(A), dtype=np.longdouble)
    inverse = factors.solve(eye)
    return (inverse + factors.solve(eye - A / unit @ inverse)) / unit


class Truth:
    def __init__(self, hessian, damping):
        self.inverse = exact_inverse(hessian, damping)
        self.columns = np.sqrt((self.inverse**2).sum(axis=0))
        unit = np.abs(hessian).max()
        eigenvalues = np.linalg.eigvalsh((hessian / unit).astype(float)) + float(damping / unit)
        self.norm = np.abs(eigenvalues).max() * unit
        self.is_positive = eigenvalues[0] > 0

    def excess(self, found, where, dtype="float64"):
        """The largest error of a block beyond rounding of H, over the tolerance."""
        exact, columns = self.inverse[where, where], self.columns[where]
        scale = np.sqrt(np.abs(np.diag(exact)) if self.is_positive else columns)
        error = np.abs(found - exact) - 10 * EPS * self.norm * np.outer(columns, columns)
        if found.ndim == 1:
            error = np.abs(found - np.diag(exact)) - 10 * EPS * self.norm * columns**2
            return float((error / scale**2).max()) / TOLERANCE[dtype]
        return float((error / np.outer(scale, scale)).max()) / TOLERANCE[dtype]


def caught(job):
    """(what a call returns, whether it warned)."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = job()
    return result, any(issubclass(warning.category, LinAlgWarning) for warning in found)


def check(H, hessian, damping, dtype="float64", checkpoint=False):
    """Everything about one factorization; how many of the calls warned."""
    F = H.factorize(damping, dtype, checkpoint)
    truth, start, num_warned = Truth(hessian, damping), 0, 0
    diagonal, warned = caught(F.diagonal)
    assert diagonal.shape == (H.shape[0],) and diagonal.dtype == H.dtype
    assert warned or truth.excess(diagonal, slice(None), dtype) <= 1
    num_warned += warned
    for l in range(H.num_layers):
        block, warned = caught(lambda: F.blocks(l))
        where = slice(start, start + len(block))
        start += len(block)
        if not len(block):
            continue
        np.testing.assert_array_equal(block, block.T)
        assert warned or truth.excess(block, where, dtype) <= 1
        num_warned += warned
    assert start == H.shape[0]
    if truth.is_positive:
        root = F.solver.factors.square_root(np.eye(len(hessian)))
        whole = np.ldexp(root.T @ root, -F.solver.matrix.scale.matrix)
        _, warned = caught(lambda: F.sample(rng=0))
        assert warned or truth.excess(whole, slice(None), dtype) <= 1
        num_warned += warned
    else:
        with pytest.raises(np.linalg.LinAlgError, match=f"{F.inertia.negative} negative"):
            F.sample(rng=0)
    return num_warned


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files(name):
    problem, g = golden(name)
    for damping in g["dampings"]:
        num_warned = check(problem.hessian, problem.truth.hessian, damping)
        assert num_warned == 0 or damping < 0.05
    # Positive definite: no digit is lost that rounding of H does not cost.
    least = float(problem.eigenvalues[0])
    assert check(problem.hessian, problem.truth.hessian, 0.1 - least) == 0
    ggn = problem.net.hessian(problem.params, problem.X, problem.y, curvature="ggn", l2=1e-3)
    assert check(ggn, problem.truth.ggn + 1e-3 * np.eye(problem.size), 1e-4) == 0


@pytest.mark.parametrize("name", ["mixed_bias_skip", "tanh_deep_b3", "tanh_wide_batch"])
def test_factors_in_float32(name):
    problem, g = golden(name)
    for damping in (1.0, 0.1, 1.0 - float(problem.eigenvalues[0])):
        num_warned = check(problem.hessian, problem.truth.hessian, damping, "float32")
        assert num_warned == 0 or damping == 0.1
    params = problem.params.astype(np.float32)
    F = problem.net.hessian(params, problem.X, problem.y).factorize(1.0)
    assert F.diagonal().dtype == F.blocks(0).dtype == np.float32


@pytest.mark.parametrize("name", ["mixed_bias_skip", "tanh_deep_b3", "relu_b4"])
def test_checkpoints_change_no_bit(name):
    problem, _ = golden(name)
    damping = 0.1 - float(problem.eigenvalues[0])
    plain, checkpointed = (problem.hessian.factorize(damping, checkpoint=kept) for kept in (False, True))
    assert len(checkpointed.solver.factors.stretches) > 1
    for _ in range(2):
        np.testing.assert_array_equal(plain.diagonal(), checkpointed.diagonal())
        for l in range(-1, len(problem.layers)):
            np.testing.assert_array_equal(plain.blocks(l), checkpointed.blocks(l))
        np.testing.assert_array_equal(plain.sample(5, rng=3), checkpointed.sample(5, rng=3))


@pytest.mark.parametrize("path", sorted(custom_layers.DATA.glob("*.npz")), ids=lambda path: path.stem)
def test_custom_layers(path):
    net, a = custom_layers.golden(path.stem)
    H = net.hessian(a.params, a.X, a.y)
    dense = H.todense()
    assert check(H, dense, 0.2) == 0
    assert check(H, dense, 0.1 - float(np.linalg.eigvalsh(dense)[0])) == 0


def test_blocks_as_layers():
    """A chain given as blocks, a layer without parameters in it."""
    rng = np.random.default_rng(4)
    steps = [
        nh.LayerBlocks(
            rng.standard_normal((3, p)), 0.5 * rng.standard_normal((3, 3)), np.eye(p), np.zeros((p, 3)), np.eye(3)
        )
        for p in (2, 4, 0, 1, 2)
    ]
    H = nh.Hessian.from_blocks(steps, np.eye(3))
    assert check(H, H.todense(), 0.0) == 0
    assert check(H, H.todense(), -1.5) == 0
    assert H.factorize(0.0).blocks(2).shape == (0, 0)


@pytest.mark.parametrize("batch, last", [(1, {"padding": 1, "skip": True}), (3, {"stride": 2, "padding": 2}), (12, {})])
def test_convolutions(batch, last):
    rng = np.random.default_rng(5)
    layers = [nh.Conv1d(2, 3, 3, 6, padding=1), nh.Conv1d(3, 3, 3, 6, **last)]
    net = nh.Network([*layers, nh.Dense(layers[-1].out_features, 2, "identity")], "softmax_cross_entropy")
    H = net.hessian(net.init(rng=0), rng.standard_normal((batch, 12)), rng.integers(0, 2, batch))
    dense = H.todense()
    assert check(H, dense, 0.2) == 0
    assert check(H, dense, 0.1 - float(np.linalg.eigvalsh(dense)[0])) == 0


@pytest.mark.parametrize("scale", [1e-100, 1e-30, 1e30, 1e100])
def test_scaled_problems(scale):
    """Targets so large or small that matrix, states or both are scaled."""
    layers = [layer(3, 3, "tanh"), layer(3, 3, "gelu", skip=True), layer(3, 2, "identity")]
    p = make(layers, "mean_squared_error", batch=4)
    p = Problem(p.layers, p.loss, p.params, p.X, p.y * scale)
    unit = float(np.abs(p.truth.hessian).max())
    H = p.net.hessian(p.params, p.X, p.y)
    for damping in (0.3 * unit, 5 * unit):
        assert check(H, p.truth.hessian, damping) == 0


@pytest.mark.parametrize("gain", [0.05, 20.0])
def test_scaled_states(gain):
    """States that vanish or explode over the layers."""
    p = chain(4, 8, activation="identity", skip=False, bias=False, gain=gain, loss="mean_squared_error", batch=3)
    for damping in (0.3 * p.norm, 2 * p.norm):
        assert p.hessian.factorize(damping).solver.matrix.scale.states
        assert check(p.hessian, p.truth.hessian, damping) == 0


def random_case(rng):
    width, depth, batch = int(rng.integers(2, 6)), int(rng.integers(2, 9)), int(rng.integers(1, 9))
    problem = chain(
        width,
        depth,
        int(rng.integers(1, 4)),
        str(rng.choice(["tanh", "gelu", "silu", "sin"])),
        bool(rng.integers(2)),
        bool(rng.integers(2)),
        loss=str(rng.choice(sorted(dense_truth.LOSSES))),
        batch=batch,
        seed=int(rng.integers(10**6)),
        gain=float(rng.choice([0.3, 1.0, 2.0])),
    )
    # Some nets are flat: H is 0.
    return (problem, float(problem.norm * 10 ** rng.uniform(-8, 0))) if problem.norm else random_case(rng)


def right_or_warned(num_cases, seed):
    """Shares of cases that warned: of all, and of positive definite ones."""
    rng, warnings_of, positive = np.random.default_rng(seed), [], []
    for _ in range(num_cases):
        problem, damping = random_case(rng)
        F = problem.hessian.factorize(damping)
        truth = Truth(problem.truth.hessian, damping)
        diagonal, warned = caught(F.diagonal)
        l = int(rng.integers(len(problem.layers)))
        block, block_warned = caught(lambda: F.blocks(l))
        offsets = problem.offsets()
        assert warned or truth.excess(diagonal, slice(None)) <= 1
        assert block_warned or truth.excess(block, slice(offsets[l], offsets[l + 1])) <= 1
        (positive if truth.is_positive else warnings_of).append(warned)
    return np.mean(warnings_of), np.mean(positive)


def test_random_matrices():
    """Conditions up to 1e9: about a third of the indefinite ones lose digits, and all of them say so."""
    indefinite, positive = right_or_warned(60, 0)
    assert indefinite < 0.5 and positive < 0.2


@pytest.mark.slow
def test_many_random_matrices():
    indefinite, _ = right_or_warned(1500, 1)
    assert indefinite < 0.5


def test_missing_digits_are_warned_of():
    """At a shift beside an eigenvalue of a trailing block; the estimate in the message has the right size."""
    problem, _ = golden("mixed_bias_skip")
    start = problem.offsets()[2]
    trailing = np.linalg.eigvalsh(problem.truth.hessian[start:, start:].astype(float))
    # The one that is furthest from the eigenvalues of the whole matrix.
    gaps = np.abs(trailing[:, None] - problem.eigenvalues).min(axis=1)
    damping = -float(trailing[np.argmax(gaps)]) * (1 + 1e-7)
    F = problem.hessian.factorize(damping)
    truth = Truth(problem.truth.hessian, damping)
    with pytest.warns(LinAlgWarning, match="diagonal of the inverse may be off") as found:
        diagonal = F.diagonal()
    error = truth.excess(diagonal, slice(None)) * 1e-8
    stated = float(str(found[0].message).split("about ")[1].split(",")[0])
    assert 1e-9 < error < 10 * stated
    last = len(problem.layers) - 1
    block, warned = caught(lambda: F.blocks(last))
    assert warned or truth.excess(block, slice(problem.offsets()[last], None)) <= 1


def test_samples():
    """The stated map of standard normal numbers, whose covariance `check` has looked at."""
    problem = chain(4, 6, batch=3)
    F = problem.hessian.factorize(0.1 - float(problem.eigenvalues[0]))
    normal = np.random.default_rng(7).standard_normal((500, problem.size))
    samples = F.sample(500, rng=7)
    np.testing.assert_allclose(
        samples, F.solver.factors.square_root(normal), rtol=0, atol=1e-12 * np.abs(samples).max()
    )
    np.testing.assert_array_equal(samples, F.sample(500, rng=np.random.default_rng(7), num_threads=2))
    np.testing.assert_array_equal(samples, F.sample(500, rng=7, num_threads=1))
    rng = np.random.default_rng(7)
    assert F.sample(rng=rng).shape == (problem.size,) and not np.array_equal(F.sample(rng=rng), F.sample(rng=rng))
    assert F.sample(0, rng=7).shape == (0, problem.size) and F.sample(1, rng=7).shape == (1, problem.size)
    # The squared length in the matrix's own norm is chi-squared, P degrees each: the mean is within 5 deviations.
    dense = problem.truth.hessian.astype(float) + F.damping * np.eye(problem.size)
    mean = np.einsum("ij,jk,ik->", samples, dense, samples) / 500
    assert abs(mean - problem.size) < 5 * np.sqrt(2 * problem.size / 500)


def test_bad_input():
    problem = chain(4, 4, batch=3)
    F = problem.hessian.factorize(0.1 - float(problem.eigenvalues[0]))
    for l, error in ((4, IndexError), (-5, IndexError), (1.0, TypeError), (None, TypeError), ("0", TypeError)):
        with pytest.raises(error, match="^l: expected"):
            F.blocks(l)
    for rng in ("seed", -1, 0.5, object()):
        with pytest.raises((TypeError, ValueError), match="^rng: expected None, a seed"):
            F.sample(2, rng=rng)
    for n, error in ((-1, ValueError), (1.5, TypeError), ("3", TypeError), (True, TypeError)):
        with pytest.raises(error, match="^n: expected"):
            F.sample(n, rng=0)
    with pytest.raises(TypeError, match="^progress: expected"):
        F.diagonal(progress=1)


def test_memory_is_asked_for_first(monkeypatch):
    problem = chain(24, 4, batch=24)
    F = problem.hessian.factorize(100.0)
    F.sample(rng=0)
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 1 << 20)
    for job in (F.diagonal, lambda: F.blocks(1), lambda: F.sample(100, rng=0)):
        with pytest.raises(MemoryError, match="would need"):
            job()
