"""`Hessian.count_below` and inertia: equal to the dense count, or refused, wherever the shift lies."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import chain, layer, make, problems

# Dense eigenvalues of a matrix of a few hundred rows are right to this much of its norm.
ROUNDING = 1e-14


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


@settings(max_examples=300)
@given(problems(), st.floats(-1.2, 1.2))
def test_anywhere(p, relative):
    assume(p.norm > 0)
    check(p, relative * p.norm, lambda gap: gap > 1e-7)


@settings(max_examples=200)
@given(problems(), st.randoms(use_true_random=False))
def test_between_close_eigenvalues(p, random):
    gaps = np.diff(p.eigenvalues)
    k = random.choice([k for k in range(len(gaps))] or [None])
    assume(k is not None and gaps[k] > 1e-10 * p.norm)
    check(p, float(p.eigenvalues[k] + 0.5 * gaps[k]), lambda gap: gap > 1e-7)


@settings(max_examples=200)
@given(problems(max_layers=4), st.randoms(use_true_random=False), st.sampled_from([0, 1e-12, -1e-9, 1e-6, -1e-4]))
def test_at_and_near_eigenvalues_of_trailing_blocks(p, random, offset):
    starts = [int(s) for s in p.offsets()[1:-1]]
    assume(starts and p.norm > 0)
    start = random.choice(starts)
    mu = np.linalg.eigvalsh(p.truth.hessian[start:, start:].astype(float))
    t = float(random.choice(list(mu))) + offset * p.norm
    check(p, t, lambda gap: gap > 1e-6)


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


@pytest.mark.parametrize("t", [np.nan, np.inf, None, "1", [1.0, 2.0], 1j])
def test_bad_shifts(t):
    with pytest.raises((ValueError, TypeError), match="^t:"):
        chain(3, 3).hessian.count_below(t)


@settings(max_examples=200)
@given(problems(), st.floats(-4, 0.3), st.sampled_from([1, -1]))
def test_log_determinant(p, power, sign):
    """To 1e-10 relative, or as far as rounding of H itself moves it: the sum of 1 / |eigenvalue| units of roundoff."""
    assume(p.norm > 1e-6)
    damping = sign * 10.0**power * p.norm
    assume(p.gap(damping) > 1e-5)
    F = p.hessian.factorize(damping)
    shifted = p.eigenvalues + damping
    exact = np.log(np.abs(shifted)).sum()
    sensitivity = 100 * np.finfo(float).eps * p.norm * np.abs(1 / shifted).sum()
    sign, logabsdet = F.slogdet()
    if F.inertia.exact:
        assert F.inertia.negative == (shifted < 0).sum() and sign == np.sign(shifted).prod()
        assert abs(logabsdet - exact) <= 1e-10 * max(abs(exact), 1.0) + sensitivity
