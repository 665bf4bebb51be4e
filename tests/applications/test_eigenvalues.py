"""Eigenvalues: complete, with multiplicities, and right, against dense ones and spectra built to be degenerate."""

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import GOLDEN, chain, golden, layer, make, problems

import numba_hinv as nh
from numba_hinv.applications import eigenvalues as module
from numba_hinv.applications import shift_invert
from numba_hinv.certainty.solver import Solver

# The width of a cluster, and rounding of a dense eigenvalue decomposition of at most a thousand rows, both of the norm.
WIDTH = 1e-12
ROUNDING = 1e-13


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", scipy.linalg.LinAlgWarning)
        yield


def check_interval(H, exact, low=-np.inf, high=np.inf):
    found = nh.eigenvalues_in(H, low, high)
    expected = exact[(exact >= low) & (exact < high)]
    assert found.dtype == np.float64 and found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0.0) <= (WIDTH + ROUNDING) * np.abs(exact).max()


def check_nearest(H, exact, k, near):
    """Distances to the shift, for which of two at one distance is taken is open; and eigenvectors."""
    norm = np.abs(exact).max()
    values, vectors = nh.eigenvalues(H, k, near, return_eigenvectors=True)
    np.testing.assert_array_equal(values, nh.eigenvalues(H, k, near))
    assert values.shape == (k,) and vectors.shape == (H.shape[0], k) and (np.diff(values) >= 0).all()
    distances, expected = (np.sort(np.abs(found - near))[:k] for found in (values, exact))
    assert np.abs(distances - expected).max() <= (WIDTH + ROUNDING) * norm
    assert np.abs(vectors.T @ vectors - np.eye(k)).max() < 1e-12
    assert np.linalg.norm(H @ vectors - vectors * values, axis=0).max() <= 1e-12 * norm


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files(name):
    problem, arrays = golden(name)
    exact, norm = arrays["eigenvalues"], problem.norm
    check_interval(problem.hessian, exact)
    middle = 0.5 * (exact[:-1] + exact[1:])[np.diff(exact) > 1e-6 * norm]
    check_interval(problem.hessian, exact, middle[0], middle[-1])
    check_interval(problem.hessian, exact, middle[-2], np.inf)
    for k, near in ((1, 0.0), (4, -norm), (7, exact[-2]), (problem.size, 0.3 * norm)):
        check_nearest(problem.hessian, exact, k, near)


@pytest.mark.parametrize("curvature, l2", [("hessian", 0.0), ("hessian", 0.2), ("ggn", 0.0), ("ggn", 0.2)])
def test_more_parameters_than_a_basis(curvature, l2):
    """Wide layers on two samples: most eigenvalues are l2, exactly."""
    problem = chain(11, 4, batch=2)
    H = problem.net.hessian(problem.params, problem.X, problem.y, curvature, l2)
    exact = np.linalg.eigvalsh(H.todense())
    norm = np.abs(exact).max()
    assert (np.abs(exact - l2) < 1e-13 * norm).sum() > H.shape[0] / 2
    check_interval(H, exact)
    check_interval(H, exact, l2 + 1e-3 * norm, np.inf)
    check_interval(H, exact, l2 - 1e-9 * norm, l2 + 1e-9 * norm)
    for k, near in ((1, 0.0), (3, l2), (40, l2), (5, 2 * norm), (6, exact[3])):
        check_nearest(H, exact, k, near)


def lone_layer(Dxx):
    p = len(Dxx)
    return nh.LayerBlocks(np.zeros((1, p)), [[0.0]], 0.5 * (Dxx + Dxx.T), np.zeros((p, 1)), [[0.0]])


def separate_layers(*spectra, seed=0):
    """A chain whose layers do not act on one another, with the given spectra."""
    rng = np.random.default_rng(seed)
    blocks = []
    for spectrum in spectra:
        p = len(spectrum)
        Q = np.linalg.qr(rng.standard_normal((p, p)))[0]
        blocks.append(lone_layer((Q * spectrum) @ Q.T))
    return nh.Hessian.from_blocks(blocks), np.sort(np.concatenate(spectra))


def test_degenerate_spectra():
    """Multiplicities far above what Lanczos finds, eigenvalues 1e-9 apart, and all of them in one slice."""
    H, exact = separate_layers([3.0] * 30 + [-1.0] * 9, [0.0] * 60, [3.0, 3.0 + 1e-9, 2.0, -1.0], [3.0, 2.5, 2.0] * 7)
    check_interval(H, exact)
    check_interval(H, exact, 1.9, 2.7)
    check_interval(H, exact, 3.0 + 5e-10, 4.0)
    check_interval(H, exact, 0.5, 0.6)
    for k, near in ((1, 3.0), (12, 3.0), (3, 3.1), (20, 2.4), (5, 1e-3)):
        check_nearest(H, exact, k, near)


def test_one_multiple_eigenvalue():
    H, exact = separate_layers([2.0] * 100)
    check_interval(H, exact)
    check_nearest(H, exact, 3, 0.0)
    zero = nh.Hessian.from_blocks([lone_layer(np.zeros((60, 60)))])
    found = nh.eigenvalues_in(zero, -1.0, 1.0)
    assert found.size == 60 and np.abs(found).max() < WIDTH
    assert np.abs(nh.eigenvalues(zero, 2)).max() < WIDTH


def test_dead_units_and_repeated_samples():
    problem = make([layer(6, 9, "relu"), layer(9, 9, "relu", skip=True), layer(9, 2, "identity")], batch=4, seed=3)
    params = problem.params.copy()
    params[:24] = -np.abs(params[:24])
    X = np.abs(problem.X[[0, 1, 0, 1]])
    H = problem.net.hessian(params, X, problem.y[[0, 1, 0, 1]])
    exact = np.linalg.eigvalsh(H.todense())
    check_interval(H, exact)
    check_nearest(H, exact, 5, 0.0)


@settings(max_examples=60)
@given(problems(), st.floats(-1.1, 1.1), st.floats(0.0, 1.5), st.integers(1, 12))
def test_random_nets(p, low, width, k):
    assume(p.norm > 1e-12)
    bounds = np.array([low, low + width]) * p.norm
    assume(np.abs(p.eigenvalues - bounds[:, None]).min() > 1e-9 * p.norm)
    check_interval(p.hessian, p.eigenvalues, *bounds)
    check_nearest(p.hessian, p.eigenvalues, min(k, p.size), float(bounds[0]))


def test_float32():
    problem = chain(11, 4, batch=2)
    params = problem.params.astype(np.float32)
    H = problem.net.hessian(params, problem.X, problem.y)
    exact = np.linalg.eigvalsh(problem.net.hessian(params.astype(float), problem.X, problem.y).todense())
    check_interval(H, exact)
    check_nearest(H, exact, 5, 0.1)


def test_sums_are_traces():
    """The sum of all eigenvalues, and of their squares, from products."""
    problem = chain(16, 8, batch=3, gain=0.5)
    H = problem.net.hessian(problem.params, problem.X, problem.y)
    trace = squares = 0.0
    for start in range(0, H.shape[0], 200):
        E = np.eye(H.shape[0], 200, -start)[:, : H.shape[0] - start]
        product = H @ E
        trace += np.sum(product * E)
        squares += np.sum(product**2)
    values = nh.eigenvalues_in(H, -np.inf, np.inf)
    assert values.size == H.shape[0] > 1500
    # Every eigenvalue may be wrong by the width.
    assert abs(values.sum() - trace) <= values.size * WIDTH * H.norm()
    assert abs(np.sum(values**2) - squares) <= 2 * np.abs(values).sum() * WIDTH * H.norm() + 1e-12 * squares


def test_200_000_parameters():
    problem = chain(8, 2800, batch=1, gain=0.02)
    H = problem.net.hessian(problem.params, problem.X, problem.y)
    assert H.shape[0] > 200_000
    norm = H.norm()
    for near in (0.1 * norm, -2 * norm):
        values, vectors = nh.eigenvalues(H, 4, near, return_eigenvectors=True)
        assert np.linalg.norm(H @ vectors - vectors * values, axis=0).max() <= 1e-12 * norm
        radius = np.abs(values - near).max() + 1e-9 * norm
        assert H.count_below(near + radius) - H.count_below(near - radius) == 4
    low, high = values[0] - 1e-6 * norm, values[-1] + 1e-6 * norm
    np.testing.assert_allclose(nh.eigenvalues_in(H, low, high), values, rtol=0, atol=WIDTH * norm)


def test_the_number_of_threads_changes_nothing():
    H = chain(11, 4, batch=2).hessian
    expected = nh.eigenvalues_in(H, -1.0, 1.0 + 1e-4, num_threads=1)
    for num_threads in (2, 5, None):
        np.testing.assert_array_equal(nh.eigenvalues_in(H, -1.0, 1.0 + 1e-4, num_threads), expected)


def test_what_lanczos_misses_is_found_or_said(monkeypatch):
    """An eigenvalue that every run of Lanczos loses: the interval is complete all the same, the nearest warn."""
    H, exact = separate_layers(np.linspace(1.0, 2.0, 80))

    def forgetful(*arguments, **options):
        pairs = shift_invert.nearest(*arguments, **options)
        kept = np.abs(pairs.values - exact[40]) > 1e-6
        return shift_invert.Pairs(pairs.values[kept], pairs.vectors[:, kept], pairs.residuals[kept])

    monkeypatch.setattr(module, "nearest", forgetful)
    check_interval(H, exact)
    check_nearest(H, exact, 5, exact[40] + 1e-3)
    monkeypatch.setattr(module, "_DENSE", 0)
    with pytest.raises(np.linalg.LinAlgError, match="^near: expected .* k=5 eigenvalues, got 1.50733, with 4"):
        nh.eigenvalues(H, 5, exact[40] + 1e-3)
    monkeypatch.setattr(module, "nearest", lambda H, near, k, *others, **options: forgetful(H, near, k + 1, *others))
    with pytest.warns(scipy.linalg.LinAlgWarning, match="1 nearer ones are missing"):
        nh.eigenvalues(H, 5, exact[40] + 1e-3)


def test_where_lanczos_fails(monkeypatch):
    """ARPACK gives up on some spectra: counts are left."""

    def failing(*arguments, **options):
        raise shift_invert.ArpackError(3)

    H, exact = separate_layers([1.0] * 4, [2.0, 3.0] + [0.0] * 40)
    monkeypatch.setattr(shift_invert, "eigsh", failing)
    assert np.abs(nh.eigenvalues_in(H, -np.inf, np.inf) - exact).max() < 1e-9 * H.norm()
    with pytest.raises(np.linalg.LinAlgError, match="^near: expected .* Lanczos failed"):
        nh.eigenvalues(H, 2, 1.6)


def test_large_residuals_are_stated(monkeypatch):
    H, exact = separate_layers([1.0] * 4, [2.0, 3.0])

    def sloppy(*arguments, **options):
        pairs = shift_invert.nearest(*arguments, **options)
        return pairs._replace(residuals=pairs.residuals + 3e-10 * H.norm())

    monkeypatch.setattr(module, "nearest", sloppy)
    # Counts alone: pivots below 1e-10 ||H|| are perturbed.
    assert np.abs(nh.eigenvalues_in(H, -np.inf, np.inf) - exact).max() < 1e-9 * H.norm()
    with pytest.warns(scipy.linalg.LinAlgWarning, match=r"residual of 3\.0e-10 \|\|H\|\|"):
        nh.eigenvalues(H, 2, 1.6)


def test_eigenvalues_that_cannot_be_counted_closely_are_stated(monkeypatch):
    H, exact = separate_layers([0.0] * 40, np.linspace(1.0, 2.0, 40))
    count_below = nh.Hessian.count_below

    def shy(self, t):
        if abs(t) < 1e-6:
            raise np.linalg.LinAlgError("t: too close")
        return count_below(self, t)

    monkeypatch.setattr(nh.Hessian, "count_below", shy)
    with pytest.warns(scipy.linalg.LinAlgWarning, match=r"40 of 80 eigenvalues are known to [\d.]+e-0[67] "):
        found = nh.eigenvalues_in(H, -np.inf, np.inf)
    assert np.abs(found - exact).max() < 2e-6


def test_bounds_on_eigenvalues():
    H, _ = separate_layers([0.0] * 5, [1.0, 2.0])
    for name, bounds in (("low", (0.0, 3.0)), ("high", (-1.0, 0.0))):
        with pytest.raises(np.linalg.LinAlgError, match=f"^{name}: .* cannot be counted"):
            nh.eigenvalues_in(H, *bounds)
    assert nh.eigenvalues_in(H, 0.5, 0.5).shape == (0,)


@pytest.mark.parametrize(
    "arguments, error, name",
    [
        ((np.eye(3), 1), TypeError, "H"),
        ((None, 1), TypeError, "H"),
        ((..., 0), ValueError, "k"),
        ((..., 10**6), ValueError, "k"),
        ((..., 1.5), TypeError, "k"),
        ((..., 1, np.nan), ValueError, "near"),
        ((..., 1, np.inf), ValueError, "near"),
        ((..., 1, "0"), TypeError, "near"),
        ((..., 1, 0.0, 1), TypeError, "return_eigenvectors"),
    ],
)
def test_bad_arguments_of_eigenvalues(arguments, error, name):
    H, *others = arguments
    with pytest.raises(error, match=f"^{name}: expected"):
        nh.eigenvalues(chain(3, 2).hessian if H is ... else H, *others)


@pytest.mark.parametrize(
    "arguments, error, name",
    [
        ((np.eye(3), 0, 1), TypeError, "H"),
        ((..., np.nan, 1.0), ValueError, "low"),
        ((..., 0.0, None), TypeError, "high"),
        ((..., 1.0, 0.5), ValueError, "high"),
        ((..., np.inf, -np.inf), ValueError, "high"),
        ((..., 0.3, 1.0, 0), ValueError, "num_threads"),
        ((..., 0.3, 1.0, None, "yes"), TypeError, "progress"),
    ],
)
def test_bad_arguments_of_eigenvalues_in(arguments, error, name):
    H, *others = arguments
    with pytest.raises(error, match=f"^{name}: expected"):
        nh.eigenvalues_in(chain(3, 2).hessian if H is ... else H, *others)


def check_outermost(H, exact, k):
    for which, expected in (("lowest", exact[:k]), ("highest", exact[-k:])):
        values, vectors = nh.eigenvalues(H, k, which=which, return_eigenvectors=True)
        assert np.abs(values - expected).max() <= (WIDTH + ROUNDING) * np.abs(exact).max()
        assert np.linalg.norm(H @ vectors - vectors * values, axis=0).max() <= 1e-12 * np.abs(exact).max()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_outermost_ones(name):
    problem, arrays = golden(name)
    for k in (1, 4, problem.size):
        check_outermost(problem.hessian, arrays["eigenvalues"], k)


def test_outermost_ones_close_together_and_multiple_ones():
    """At a minimum the lowest are tiny beside the norm; of a Gauss-Newton matrix they are a multiple 0."""
    H, exact = separate_layers(np.logspace(-9, 0, 70), 1e-9 * np.arange(2, 30), [1.0] * 12)
    for k in (1, 3, 20):
        check_outermost(H, exact, k)
    problem = chain(11, 4, batch=2)
    H = problem.net.hessian(problem.params, problem.X, problem.y, "ggn")
    check_outermost(H, np.linalg.eigvalsh(H.todense()), 3)


def test_lowest_eigenvalues_of_a_minimum_take_few_solves(monkeypatch):
    """Tiny ones beside the norm: from a shift beside them, not at twice the norm, where ten times the solves are
    needed.
    """
    H, _ = separate_layers(np.logspace(-9, 0, 300), 1e-9 * np.arange(2, 30))
    count, inverse = [0], Solver.inverse

    def counting(self, rows):
        count[0] += len(rows)
        return inverse(self, rows)

    monkeypatch.setattr(Solver, "inverse", counting)
    nh.eigenvalues(H, 3, which="lowest")
    lowest, count[0] = count[0], 0
    nh.eigenvalues(H, 3, near=-2 * H.norm())
    assert 0 < lowest < count[0] / 4


def test_how_to_ask_for_the_outermost_ones():
    H = chain(4, 3, batch=5).hessian
    with pytest.raises(ValueError, match="^near: .* got -inf; which='lowest' is for the low"):
        nh.eigenvalues(H, 3, near=-np.inf)
    with pytest.raises(ValueError, match="^near: .* which='highest' is for the highest"):
        nh.eigenvalues(H, 3, near=np.inf)
    with pytest.raises(ValueError, match="^near: expected None with which='lowest', got 0.0"):
        nh.eigenvalues(H, 3, near=0.0, which="lowest")
    with pytest.raises(ValueError, match="^which: expected 'nearest', 'lowest' or 'highest', got 'SA'"):
        nh.eigenvalues(H, 3, which="SA")
