"""The Gauss-Newton matrix and the L2 term, against the truth's Jacobian and against dense algebra."""

import pickle

import dense_truth
import numpy as np
import pytest
from problems import GOLDEN, chain, golden, layer, make

import numba_hinv as nh

every_file = pytest.mark.parametrize("name", GOLDEN)


def relative(a, b):
    return np.abs(np.asarray(a, np.longdouble) - b).max() / np.abs(b).max()


@every_file
def test_gauss_newton_matrix(name):
    problem, _ = golden(name)
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    G = net.hessian(params, X, y, curvature="ggn")
    truth = problem.truth.ggn
    assert relative(G.todense(), truth) < 1e-13
    v = problem.right_hand_side(2)
    assert relative(G @ v, truth @ v) < 1e-12
    np.testing.assert_array_equal(G.gradient, problem.hessian.gradient)
    assert G.loss == problem.hessian.loss and relative(problem.hessian.todense(), problem.truth.hessian) < 1e-13
    damping = 1e-3 * dense_truth.norm2(truth)
    F = G.factorize(damping)
    assert F.inertia == (0, 0, problem.size, True)
    assert dense_truth.backward_error(truth, damping, F.solve(v), v) < 1e-14
    logabsdet = dense_truth.DenseFactors(dense_truth.shifted(truth, damping)).slogdet()[1]
    assert F.slogdet()[0] == 1.0 and abs(F.slogdet()[1] - logabsdet) < 1e-10 * abs(logabsdet)


def test_gauss_newton_matrix_of_custom_layers():
    """Where layers are linear in their parameters and states, H and the Gauss-Newton matrix are one."""

    def shift(z, x, out):
        for i in range(z.size):
            out[i] = 2.0 * z[i] + x[i]

    net = nh.Network([nh.Custom(shift, 3, 3, 3), nh.Custom(shift, 3, 3, 3)], "softmax_cross_entropy")
    arguments = net.init(0) + 0.1, np.random.default_rng(0).random((4, 3)), [0, 1, 2, 0]
    H, G = (net.hessian(*arguments, curvature=name).todense() for name in ("hessian", "ggn"))
    np.testing.assert_array_equal(H, G)
    curved = nh.Network([nh.Dense(3, 4), nh.RMSNorm(4)], "mean_squared_error")
    params, X, y = curved.init(0), np.random.default_rng(1).random((2, 3)), np.zeros((2, 4))
    G = curved.hessian(params, X, y, curvature="ggn").todense()
    step = 1e-6
    J = np.stack(
        [
            (curved.forward(params + step * e, X) - curved.forward(params - step * e, X)).ravel() / (2 * step)
            for e in np.eye(params.size)
        ],
        axis=1,
    )
    # Central differences: rounding of 1e-16 / step, and step^2 times third derivatives.
    assert np.abs(G - J.T @ J * 2 / y.size).max() < 1e-8 * np.abs(G).max()


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("batch", [2, 9])
def test_l2(curvature, batch):
    problem, l2 = chain(4, 4, batch=batch), 0.37
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    H = net.hessian(params, X, y, curvature, l2)
    plain = problem.truth.hessian if curvature == "hessian" else problem.truth.ggn
    A = dense_truth.shifted(plain, l2).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(A)
    assert H.loss == net.loss(params, X, y, l2) == pytest.approx(float(problem.truth.value) + l2 / 2 * params @ params)
    np.testing.assert_array_equal(H.gradient, net.gradient(params, X, y, l2))
    assert relative(H.gradient, problem.truth.gradient + l2 * params) < 1e-13
    assert relative(H.todense(), A) < 1e-13 and relative(H @ np.eye(problem.size), A) < 1e-13
    assert 0.5 < H.norm() / np.abs(eigenvalues).max() < 1 + 1e-12
    again = nh.Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)
    assert relative(again.todense(), A) < 1e-13
    b = problem.right_hand_side(3)
    for damping in (0.0, 0.2, -0.1, -l2):
        shifted = eigenvalues + damping
        gap = np.abs(shifted).min() / np.abs(eigenvalues).max()
        if gap < 1e-14:
            with pytest.raises(np.linalg.LinAlgError):
                H.factorize(damping)
            continue
        F = H.factorize(damping)
        assert dense_truth.backward_error(A, damping, F.solve(b), b) < 1e-14
        assert F.inertia.negative == (shifted < 0).sum() or not F.inertia.exact
    for t in (0.0, l2, 0.5, np.median(eigenvalues)):
        if np.abs(eigenvalues - t).min() > 1e-9:
            assert H.count_below(t) == (eigenvalues < t).sum()


def test_saved_pickled_and_float32(tmp_path):
    problem = chain(4, 4, batch=3)
    params = problem.params.astype(np.float32)
    H = problem.net.hessian(params, problem.X, problem.y, curvature="ggn", l2=0.5)
    assert H.dtype == H.gradient.dtype == np.float32
    F = H.factorize(0.1)
    F.save(tmp_path / "f")
    b = problem.right_hand_side()
    for other in (nh.load(tmp_path / "f"), pickle.loads(pickle.dumps(F))):
        np.testing.assert_array_equal(other.solve(b), F.solve(b))
        assert (other.hessian.l2, other.hessian.curvature) == (0.5, "ggn") and other.hessian.loss == H.loss
        np.testing.assert_array_equal(other.hessian @ b, H @ b)
    assert "Gauss-Newton" in repr(H) and "l2 = 0.5" in repr(F)


def test_singular_only_for_a_damping_of_minus_l2():
    problem = make([layer(6, 2, "identity"), layer(2, 2, "identity")], batch=2)
    H = problem.net.hessian(problem.params, problem.X, problem.y, l2=0.5)
    assert H.factorize(0.0).inertia.exact
    with pytest.raises(np.linalg.LinAlgError):
        H.factorize(-0.5)


@pytest.mark.parametrize(
    "arguments, error, name",
    [
        (dict(curvature="fisher"), ValueError, "curvature"),
        (dict(curvature=None), ValueError, "curvature"),
        (dict(l2=-1.0), ValueError, "l2"),
        (dict(l2=np.nan), ValueError, "l2"),
        (dict(l2="1"), TypeError, "l2"),
        (dict(l2=1e308), ValueError, "l2"),
    ],
)
def test_bad_arguments(arguments, error, name):
    problem = chain(3, 2)
    with pytest.raises(error, match=f"^{name}: "):
        problem.net.hessian(100 * problem.params, problem.X, problem.y, **arguments)
