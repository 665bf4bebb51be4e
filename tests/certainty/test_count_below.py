"""`Hessian.count_below`, inertia and log-determinant: right, or said not to be, wherever the shift lies."""

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import GOLDEN, chain, golden, layer, make, problems

import numba_hinv as nh
from numba_hinv.certainty.refinement import is_surely_below
from numba_hinv.factors import choice
from numba_hinv.factors.dense import Dense

# Dense eigenvalues of a matrix of a few hundred rows are right to this much of its norm.
ROUNDING = 1e-14
eps = np.finfo(float).eps


def check(p, t, must_answer):
    """Whether there was an answer; it is right unless t is within rounding of an eigenvalue."""
    gap = np.abs(p.eigenvalues - t).min() / p.norm
    try:
        count = p.hessian.count_below(t)
    except np.linalg.LinAlgError as error:
        assert str(error).startswith("t: ") and not must_answer(gap), (t, gap, error)
        return False
    assert type(count) is int
    if gap > ROUNDING:
        assert count == (p.eigenvalues < t).sum()
    return True


def shifts(p, rng):
    """(t, the gap beyond which t must get an answer), 17 a net: where counts are easy, and where they are not."""
    for t in rng.uniform(-1.2, 1.2, 5) * p.norm:
        yield float(t), 1e-7
    # Between the closest eigenvalues, but those that are one up to rounding.
    gaps = np.diff(p.eigenvalues)
    for k in np.argsort(np.where(gaps > 1e-10 * p.norm, gaps, np.inf))[:5]:
        yield float(p.eigenvalues[k] + 0.5 * gaps[k]), 1e-7
    for value, offset in zip(rng.choice(p.eigenvalues, 3), (1e-6, -1e-9, 1e-12)):
        yield float(value) + offset * p.norm, 1e-7
    starts = p.offsets()[1:-1]
    for offset in (0, 1e-12, -1e-9, 1e-4) if starts.size else ():
        start = rng.choice(starts)
        mu = np.linalg.eigvalsh(p.truth.hessian[start:, start:].astype(float))
        yield float(rng.choice(mu)) + offset * p.norm, 1e-6


def check_determinant(p, t):
    """Inertia of H - t I, where it is said to be exact, and log-determinant; whether there was no warning of its
    error.
    """
    shifted = p.eigenvalues - t
    gap = np.abs(shifted).min() / p.norm
    try:
        F = p.hessian.factorize(-t)
    except np.linalg.LinAlgError:
        assert gap <= ROUNDING, (t, gap)
        return False
    if gap <= 1e-10:
        return False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sign, logabsdet = F.slogdet()
    if F.inertia.exact:
        assert F.inertia.negative == (shifted < 0).sum() and sign == np.sign(shifted).prod(), (t, gap)
    logs = np.log(np.abs(shifted))
    error = abs(logabsdet - logs.sum())
    # As far as rounding moves it: of H and its eigenvalues, and of the sum of logarithms.
    rounding = 100 * eps * p.norm * np.abs(1 / shifted).sum() + p.size * eps * np.abs(logs).sum()
    if not caught:
        assert error <= 1e-10 * max(abs(logs.sum()), 1.0) + rounding, (t, gap)
        return True
    (warning,) = caught
    figure = float(str(warning.message).split("off by about ")[1].split(";")[0])
    # An estimate by three random vectors.
    assert issubclass(warning.category, scipy.linalg.LinAlgWarning) and error <= 30 * figure + rounding, (t, gap)
    return False


def check_everywhere(p, seed):
    assume(p.norm > 1e-12)
    for t, sure in shifts(p, np.random.default_rng(seed)):
        check(p, t, lambda gap, sure=sure: gap > sure)
        check_determinant(p, t)


@settings(max_examples=200)
@given(problems(), st.integers(0, 2**20))
def test_random_nets(p, seed):
    """About 3,400 shifts: `count_below`, the inertia and the log-determinant."""
    check_everywhere(p, seed)


@pytest.mark.slow
@settings(max_examples=5000, derandomize=False)
@given(problems(), st.integers(0, 2**20))
def test_many_random_nets(p, seed):
    check_everywhere(p, seed)


def test_log_determinants_where_pivots_nearly_vanish():
    """Shifts on and beside eigenvalues of trailing blocks, with H - t I well conditioned: hardly ever a warning."""
    answers = []
    for seed in range(12):
        p = chain(3, 4, batch=1 + seed % 6, seed=seed, activation=("tanh", "gelu", "sin")[seed % 3])
        for start in p.offsets()[1:-1]:
            mu = np.linalg.eigvalsh(p.truth.hessian[start:, start:].astype(float))
            for t, offset in zip(mu[:: len(mu) // 4], (0, 1e-12, -1e-9, 1e-6)):
                if abs(t) > 1e-3 * p.norm and p.gap(-t) > 1e-3:
                    answers.append(check_determinant(p, t + offset * p.norm))
    assert len(answers) > 50 and np.mean(answers) >= 0.9


def test_most_shifts_get_an_answer():
    answers = []
    for seed in range(12):
        p = chain(3, 4, batch=1 + seed % 6, seed=seed, activation=("tanh", "gelu", "sin")[seed % 3])
        rng = np.random.default_rng(seed)
        for t in rng.uniform(-1, 1, 12) * p.norm:
            answers.append(check(p, float(t), lambda gap: gap > 1e-9))
    assert np.mean(answers) >= 0.99


def test_on_an_eigenvalue():
    """Refused, or an answer that counts it on one side; zero, a multiple one, included."""
    p = chain(3, 3, batch=2)
    for value in [*p.eigenvalues[[0, 1, -2, -1]], 0.0]:
        below = (p.eigenvalues < value - ROUNDING * p.norm).sum()
        above = (p.eigenvalues <= value + ROUNDING * p.norm).sum()
        try:
            assert below <= p.hessian.count_below(float(value)) <= above
        except np.linalg.LinAlgError as error:
            assert "t=" in str(error) and "expected" in str(error)


def test_beyond_the_spectrum():
    p = make([layer(3, 3), layer(3, 2, "identity")], batch=4)
    assert p.hessian.count_below(2 * p.norm) == p.size and p.hessian.count_below(-2 * p.norm) == 0
    assert p.hessian.count_below(1e300) == p.size and p.hessian.count_below(-1e300) == 0
    # float32 parameters: counted in float64 all the same.
    single = p.net.hessian(p.params.astype(np.float32), p.X, p.y)
    assert single.count_below(1e-3 * p.norm) == p.hessian.count_below(1e-3 * p.norm)


def test_what_random_vectors_say_of_a_norm():
    """A solve that misses by a matrix of norm 1 and rank 1, of whatever direction, is never taken for a good one."""
    rng, n = np.random.default_rng(0), 400
    directions = [np.eye(n)[k] for k in range(n)]
    directions += [np.eye(n)[j] + sign * np.eye(n)[k] for j, k in rng.integers(0, n, (400, 2)) for sign in (-1, 1)]
    directions += [*rng.standard_normal((400, n)), *rng.choice([-1.0, 1.0], (400, n)), np.ones(n)]

    def is_below(v, size):
        miss = size / max(np.linalg.norm(v), 1e-300) ** 2
        return is_surely_below(0.5, lambda x, b: b - x, lambda x: x - miss * (x @ v)[:, None] * v, n)

    directions = [v for v in directions if v.any()]
    assert not any(is_below(v, 1.0) for v in directions)
    assert all(is_below(v, 1e-8) for v in directions)
    # Three vectors together may show a norm that one alone does not.
    assert np.mean([is_below(v, 1e-4) for v in directions]) > 0.9
    assert not is_below(np.full(n, np.nan), 1.0)


@pytest.mark.parametrize("t", [np.nan, np.inf, None, "1", [1.0, "2"], [[1.0], [1.0, 2.0]], 1j])
def test_bad_shifts(t):
    with pytest.raises((ValueError, TypeError), match="^t:"):
        chain(3, 3).hessian.count_below(t)


@pytest.mark.parametrize("name", GOLDEN)
def test_many_shifts_at_once(name):
    """Those of dense eigenvalues, whatever the number of threads; enough shifts for any way of factoring."""
    problem, arrays = golden(name)
    exact = arrays["eigenvalues"]
    shifts = np.linspace(1.07, -1.1, 30) * problem.norm
    found = problem.hessian.count_below(shifts)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, [(exact < t).sum() for t in shifts])
    np.testing.assert_array_equal(problem.hessian.count_below(list(shifts[:3]), num_threads=1), found[:3])
    assert problem.hessian.count_below(np.array([])).shape == (0,)


def test_many_shifts_of_a_dense_matrix_share_one_decomposition(monkeypatch):
    """Neither counts nor edges of a histogram factor it 30 times, once the eigenvalues are there."""
    problem = chain(3, 3, batch=200)
    exact = np.linalg.eigvalsh(problem.hessian.todense())
    shifts = np.linspace(-1.1, 1.07, 30) * problem.norm
    monkeypatch.setattr(Dense, "factorize", None)
    first, second = (problem.net.hessian(problem.params, problem.X, problem.y) for _ in range(2))
    assert choice.chosen(first.system, np.dtype(float)) == "dense"
    np.testing.assert_array_equal(first.count_below(shifts), [(exact < t).sum() for t in shifts])
    np.testing.assert_array_equal(nh.spectral_density(second, shifts).counts, np.histogram(exact, shifts)[0])


def test_a_shift_on_an_eigenvalue_among_many():
    H = nh.Hessian.from_blocks(
        [nh.LayerBlocks(np.ones((1, 3)), np.ones((1, 0)), np.diag([1.0, 2.0, 2.0]), np.ones((3, 0)), np.eye(0))]
    )
    with pytest.raises(np.linalg.LinAlgError, match="^t: at index 1: the eigenvalues below t=2 cannot be counted"):
        H.count_below([0.5, 2.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="^t: expected finite numbers, got nan at index 1"):
        H.count_below([0.5, np.nan])
    with pytest.raises(ValueError, match=r"^t: expected shape \(any,\)"):
        H.count_below([[0.5]])
    with pytest.raises(ValueError, match="^num_threads: "):
        H.count_below([0.5], num_threads=0)
