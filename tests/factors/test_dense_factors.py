"""Dense factors against the layers' and against dense linear algebra: the same answers by the same promises."""

import pickle

import dense_truth
import numpy as np
import pytest
from problems import GOLDEN, chain, golden

import numba_hinv as nh
from numba_hinv.certainty.solver import Solver
from numba_hinv.factors.lapack import Lapack
from numba_hinv.runtime import archive, memory_budget


def both(H, damping, **options):
    """(dense factorization, layers' one)."""
    found = [H.factorize(damping, method=method, **options) for method in ("dense", "layers")]
    assert [F.method for F in found] == ["dense", "layers"]
    return found


def agree(H, damping, dense):
    """Solutions, inertia, determinants and covariances of the dense way, against the truth and the layers' way."""
    F, G = both(H, damping)
    b = np.random.default_rng(0).standard_normal((len(dense), 3))
    x, info = F.solve(b, full_output=True)
    assert dense_truth.backward_error(dense, damping, x, b) <= 1e-14
    assert F.inertia == G.inertia
    truth = np.linalg.slogdet(dense + damping * np.eye(len(dense)))
    size = max(1.0, abs(truth[1]))
    inverse = np.linalg.inv(dense + damping * np.eye(len(dense)))
    condition = np.linalg.cond(dense + damping * np.eye(len(dense)))
    assert F.slogdet()[0] == truth[0] and abs(F.slogdet()[1] - truth[1]) <= 1e-14 * size * condition
    allowed = 1e-13 * condition * np.abs(inverse).max()
    np.testing.assert_allclose(F.diagonal(), inverse.diagonal(), rtol=0, atol=allowed)
    at = 0
    for l in range(H.num_layers):
        block = F.blocks(l)
        np.testing.assert_allclose(block, inverse[at : at + len(block), at : at + len(block)], rtol=0, atol=allowed)
        at += len(block)
    condition = np.linalg.cond(dense + damping * np.eye(len(dense)), 1)
    assert 0.25 * condition <= F.condition() <= condition * (1 + 1e-6)
    return F


@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    problem, arrays = golden(name)
    for damping in (0.3, -0.01, 1e-4):
        agree(problem.hessian, damping * problem.norm, arrays["hessian"])


def mixed(batch=40):
    """Every kind of layer, with more samples than the structure of the chain gains from."""
    layers = [
        nh.Conv1d(1, 3, 3, 8, "tanh"),
        nh.Dense(18, 5),
        nh.LayerNorm(5),
        nh.Dense(5, 5, skip=True),
        nh.Dense(5, 3, "identity", bias=False),
    ]
    net, rng = nh.Network(layers, "softmax_cross_entropy"), np.random.default_rng(3)
    return net, net.init(1), rng.standard_normal((batch, 8)), rng.integers(0, 3, batch)


@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("curvature, l2", [("hessian", 0.0), ("ggn", 0.02)])
def test_every_kind_of_layer(curvature, l2):
    H = mixed_hessian(curvature, l2)
    dense = H @ np.eye(H.shape[0])
    for damping in (0.2, -0.03):
        agree(H, damping * H.norm(), 0.5 * (dense + dense.T))


def mixed_hessian(curvature="hessian", l2=0.0):
    net, params, X, y = mixed()
    return net.hessian(params, X, y, curvature=curvature, l2=l2)


def test_blocks():
    """Chains of derivative blocks, layers without parameters among them."""
    H = chain(3, 5, batch=4).hessian
    H = nh.Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)
    agree(H, 0.1 * H.norm(), H @ np.eye(H.shape[0]))


def test_auto_takes_the_way_with_less_work():
    """Samples beyond the parameters make the dense way cheaper; depth, with few samples, the layers' way."""
    assert chain(3, 4, batch=200).hessian.factorize(0.1).method == "dense"
    assert chain(3, 60, batch=1).hessian.factorize(0.1).method == "layers"
    H = chain(3, 4, batch=200).hessian
    assert H.nbytes_to_factorize() == H.nbytes_to_factorize(method="dense") < H.nbytes_to_factorize(method="layers")
    assert H.factorize(0.1, checkpoint=True).method == "layers"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files_and_pickles(tmp_path, dtype):
    """Positive definite and indefinite: the same bits again."""
    H = mixed_hessian()
    b = np.random.default_rng(1).standard_normal((H.shape[0], 2))
    for damping in (2.0 * H.norm(), -0.05 * H.norm()):
        F = H.factorize(damping, factor_dtype=dtype, method="dense")
        F.save(tmp_path / "file.npz")
        for again in (nh.load(tmp_path / "file.npz"), pickle.loads(pickle.dumps(F))):
            assert again.method == "dense" and again.inertia == F.inertia and again.nbytes == F.nbytes
            np.testing.assert_array_equal(again.solve(b), F.solve(b))


def altered(path, **changes):
    """The file again with other entries in some arrays."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {f"factors_{name}": change(arrays[f"factors_{name}"].copy()) for name, change in changes.items()}
    arrays["digest"] = archive.digest(arrays)
    np.savez(path, **arrays)
    return path


def put(*places):
    """A change of an array: (at, value) of each place."""

    def change(array):
        for at, value in places:
            array[at] = value
        return array

    return change


def test_files_that_were_altered(tmp_path):
    """The sweeps index with pivots and counts: none is let through that is out of range, or half a pair."""
    F = chain(3, 4, batch=9).hessian.factorize(-0.02, method="dense")
    for change, reason in (
        ({"pivots": put((0, 10**6))}, "permutation"),
        ({"pivots": put((-1, -1))}, "permutation"),
        ({"pivots": put((0, ~F.solver.factors.blocks.arrays["pivots"][0]))}, "half a 2 x 2|permutation"),
        ({"num_negative": put((0, F.hessian.shape[0] + 1))}, "num_negative out of range"),
        ({"rows": put((-1, np.nan))}, "not finite"),
    ):
        F.save(tmp_path / "file.npz")
        with pytest.raises(ValueError, match=reason):
            nh.load(altered(tmp_path / "file.npz", **change))


def by_lapack(H, damping):
    """The factorization by the fallback of dense factors."""
    solver = H.factorize(damping, method="dense").solver
    return nh.Factorization(H, Solver(solver.matrix, Lapack.factorize(solver.matrix)).settled())


def test_files_of_lapack(tmp_path):
    """The fallback's factors make files, too; LAPACK indexes with its interchanges, which are looked through."""
    H = chain(3, 4, batch=9).hessian
    F, b = by_lapack(H, -0.02), np.random.default_rng(1).standard_normal(H.shape[0])
    F.save(tmp_path / "file.npz")
    np.testing.assert_array_equal(nh.load(tmp_path / "file.npz").solve(b), F.solve(b))
    size = H.shape[0]
    for places, reason in (
        ([(0, size + 1)], "out of range"),
        ([(0, 0)], "out of range"),
        ([(0, -1), (1, 2)], "half a 2 x 2"),
    ):
        F.save(tmp_path / "file.npz")
        with pytest.raises(ValueError, match=reason):
            nh.load(altered(tmp_path / "file.npz", pivots=put(*places)))


def test_many_dampings_share_one_matrix(monkeypatch):
    """H is formed once; each factorization has the bits of its own."""
    H, formed = mixed_hessian(), []
    dense = type(H.system).dense
    monkeypatch.setattr(type(H.system), "dense", lambda *args, **kw: formed.append(1) or dense(*args, **kw))
    dampings = np.array([0.5, -0.1, 0.02]) * H.norm()
    b = np.random.default_rng(2).standard_normal(H.shape[0])
    for F, damping in zip(H.factorize_many(dampings, method="dense"), dampings):
        np.testing.assert_array_equal(F.solve(b), H.factorize(damping, method="dense").solve(b))
    assert formed == [1]


def test_samples_have_the_inverse_for_their_covariance():
    H = mixed_hessian("ggn", 0.1)
    F = H.factorize(0.1 * H.norm(), method="dense")
    root = F.solver.factors.square_root(np.eye(H.shape[0]))
    inverse = F.solve(np.eye(H.shape[0]))
    np.testing.assert_allclose(root.T @ root, inverse, rtol=0, atol=1e-13 * np.abs(inverse).max() * F.condition())
    assert F.sample(5, rng=0).shape == (5, H.shape[0])
    with pytest.raises(np.linalg.LinAlgError, match="negative eigenvalues"):
        mixed_hessian().factorize(-0.1, method="dense").sample(rng=0)


def test_singular_matrices_are_named():
    H = mixed_hessian()
    values = np.linalg.eigvalsh(H.todense())
    for damping in (0.0, -values[-1]):
        with pytest.raises(np.linalg.LinAlgError, match="singular to working precision"):
            H.factorize(damping, method="dense")


def test_counts_near_eigenvalues():
    """`count_below` by dense factors, down to 1e-10 of the norm from an eigenvalue."""
    H = mixed_hessian()
    values = np.linalg.eigvalsh(H.todense())
    for at in np.random.default_rng(5).integers(0, len(values), 12):
        for distance in (1e-4, 1e-7, 1e-10):
            t = values[at] + distance * H.norm()
            try:
                count = H.count_below(t)
            except np.linalg.LinAlgError:
                continue
            assert count == (values < t).sum()


def test_memory_is_asked_for_first(monkeypatch):
    """The message names the way that would take less."""
    H = chain(4, 6, batch=300).hessian
    H.norm()
    monkeypatch.setattr(memory_budget, "_NEGLIGIBLE", 0)
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryError, match="dense matrix of P = "):
        H.factorize(0.1, method="dense")
    with pytest.raises(MemoryError, match="method='dense' would need"):
        H.factorize(0.1, method="layers")


@pytest.mark.parametrize("method", ["cholesky", None, 3])
def test_unknown_methods(method):
    with pytest.raises(ValueError, match="method: expected one of 'auto', 'layers', 'dense'; got"):
        chain(3, 3).hessian.factorize(0.1, method=method)


def test_checkpoints_are_of_layers():
    with pytest.raises(ValueError, match="method: expected 'layers' or 'auto' with checkpoint=True"):
        chain(3, 3).hessian.factorize(0.1, checkpoint=True, method="dense")
