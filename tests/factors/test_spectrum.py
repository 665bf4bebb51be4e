"""Many dampings of one dense matrix by its eigendecomposition, against dense linear algebra and the factors of each."""

import pickle

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh
from numba_hinv.factors import choice, spectrum
from numba_hinv.factors.dense import Dense
from numba_hinv.factors.spectrum import Spectrum


@pytest.fixture
def few_are_many(monkeypatch):
    """Two dampings are enough for an eigendecomposition."""
    monkeypatch.setattr(choice, "SPECTRUM", 2)


@pytest.fixture
def hessian():
    return chain(3, 5, batch=60, gain=0.5).hessian


def both(H, dampings, **options):
    return H.factorize_many(dampings, method="dense", **options), [
        H.factorize(damping, method="dense", **options) for damping in dampings
    ]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_as_those_of_each(few_are_many, hessian, dtype):
    """Solutions, inertia, determinants, conditions and variances, by the same promises."""
    H, exact = hessian, hessian.todense()
    many, single = both(H, np.array([2.0, 0.3, -0.01, -3.0]) * H.norm(), factor_dtype=dtype)
    b = np.random.default_rng(0).standard_normal((H.shape[0], 3))
    for F, G in zip(many, single):
        assert type(F.solver.factors) is Spectrum and type(G.solver.factors) is Dense and F.method == G.method
        A = exact + F.damping * np.eye(len(exact))
        inverse, condition, eps = np.linalg.inv(A), np.linalg.cond(A), np.finfo(dtype).eps
        x, info = F.solve(b, full_output=True)
        assert info.backward_error.max() <= 1e-14
        np.testing.assert_allclose(x, inverse @ b, rtol=0, atol=1e-13 * condition * np.abs(x).max())
        assert F.inertia == G.inertia and F.inertia.exact
        assert F.slogdet() == pytest.approx(np.linalg.slogdet(A), rel=1e-12 * condition)
        assert F.condition() == pytest.approx(G.condition(), rel=1e-6)
        allowed = 100 * eps * condition * np.abs(inverse).max()
        np.testing.assert_allclose(F.diagonal(), inverse.diagonal(), rtol=0, atol=allowed)
        at = int(H.system.table["p"][0])
        np.testing.assert_allclose(F.blocks(0), inverse[:at, :at], rtol=0, atol=allowed)
    root = many[0].solver.factors.square_root(np.eye(H.shape[0]))
    scale = 2.0 ** -many[0].solver.matrix.scale.matrix
    inverse = np.linalg.inv(exact + many[0].damping * np.eye(len(exact)))
    np.testing.assert_allclose(scale * root.T @ root, inverse, rtol=0, atol=1e-12 / H.norm())
    assert many[0].sample(3, rng=0).shape == (3, H.shape[0])


def test_an_l2_term_counts_once(few_are_many):
    net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], "softmax_cross_entropy")
    rng = np.random.default_rng(0)
    H = net.hessian(net.init(0), rng.standard_normal((30, 3)), rng.integers(0, 2, 30), l2=0.7)
    F = H.factorize_many([0.1, 0.2], method="dense")[1]
    b = rng.standard_normal(H.shape[0])
    np.testing.assert_allclose(F.solve(b), np.linalg.solve(H.todense() + 0.2 * np.eye(len(b)), b), rtol=1e-10)
    assert F.solve(b, full_output=True)[1].refinement_steps <= 1


def test_one_eigendecomposition_of_a_system(few_are_many, hessian, monkeypatch):
    made, eigh = [], spectrum.eigh
    monkeypatch.setattr(spectrum, "eigh", lambda *given, **options: made.append(1) or eigh(*given, **options))
    first = hessian.factorize_many([0.5, 0.6], method="dense")
    second = hessian.factorize_many([0.7, 0.8, 0.9], method="dense")
    assert made == [1] and first[0].solver.factors.shared is second[2].solver.factors.shared
    assert type(hessian.factorize(0.5, method="dense").solver.factors) is Dense


def test_counts(few_are_many, hessian, monkeypatch):
    """Counts between eigenvalues, and refused on one; a histogram with many edges makes the eigendecomposition."""
    values, norm = np.linalg.eigvalsh(hessian.todense()), hessian.norm()
    middle = 0.5 * (values[1:] + values[:-1])[np.diff(values) > 1e-6 * norm]
    monkeypatch.setattr(choice, "_FEW", 0.0)
    density = nh.spectral_density(hessian, middle)
    assert choice.for_counts(hessian.system) == "spectrum"
    assert (np.cumsum(density.counts) + density.below == [(values < edge).sum() for edge in middle[1:]]).all()
    for value in values[[0, 5, -1]]:
        for side in (-1, 1):
            t = value + side * 1e-9 * norm
            assert hessian.count_below(t) == (values < t).sum()
    with pytest.raises(np.linalg.LinAlgError, match="cannot be counted"):
        hessian.count_below(values[5])


def test_singular_matrices_are_named(few_are_many, hessian):
    values = np.linalg.eigvalsh(hessian.todense())
    with pytest.raises(np.linalg.LinAlgError, match="dampings: at index 1: .*singular to working precision"):
        hessian.factorize_many([1.0, -values[-1]], method="dense")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files_and_pickles(few_are_many, hessian, tmp_path, dtype):
    b = np.random.default_rng(1).standard_normal((hessian.shape[0], 2))
    F = hessian.factorize_many([0.1, -0.2], method="dense", factor_dtype=dtype)[1]
    F.save(tmp_path / "file.npz")
    for again in (nh.load(tmp_path / "file.npz"), pickle.loads(pickle.dumps(F))):
        assert type(again.solver.factors) is Spectrum and again.inertia == F.inertia and again.nbytes == F.nbytes
        np.testing.assert_array_equal(again.solve(b), F.solve(b))


def test_eigenvalues_are_those_of_the_decomposition_where_there_is_one(hessian, monkeypatch):
    """Computed once: by themselves, and by whoever has eigenvectors already."""
    exact = np.linalg.eigvalsh(hessian.todense())
    alone = spectrum.eigenvalues(hessian.system)
    np.testing.assert_allclose(alone, exact, rtol=0, atol=1e-13 * hessian.norm())
    assert spectrum.eigenvalues(hessian.system) is alone
    shared = spectrum.decomposition(hessian.system)
    monkeypatch.setattr(spectrum, "eigvalsh", None)
    assert spectrum.eigenvalues(hessian.system) is shared.values
