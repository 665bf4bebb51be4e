"""H and F as SciPy linear operators, with right-hand sides of every shape and layout."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg as sla
from problems import chain

import numba_hinv as nh

DAMPING = 0.1


@pytest.fixture(scope="module", params=[2, 9], ids=["few samples", "many samples"])
def case(request):
    problem = chain(4, 5, batch=request.param)
    return problem, problem.hessian, problem.hessian.factorize(damping=DAMPING)


def dense(problem, inverse):
    H = problem.truth.hessian.astype(float)
    return np.linalg.inv(H + DAMPING * np.eye(problem.size)) if inverse else H


def test_they_are_linear_operators(case):
    problem, H, F = case
    for operator in (H, F):
        assert isinstance(operator, sla.LinearOperator)
        assert operator.shape == (problem.size, problem.size)
        assert operator.dtype == np.float64
        assert sla.aslinearoperator(operator) is operator


@pytest.mark.parametrize("inverse", [False, True], ids=["H", "F"])
def test_products(case, inverse):
    problem, H, F = case
    operator, A = (F if inverse else H), dense(problem, inverse)
    v, V = problem.right_hand_side(), problem.right_hand_side(3)
    tolerance = 1e-12 * np.linalg.norm(A, 2) * np.linalg.norm(V)
    for ours, expected in [
        (operator @ v, A @ v),
        (operator @ V, A @ V),
        (operator * v, A @ v),
        (operator(v), A @ v),
        (operator.dot(V), A @ V),
        (operator.matvec(v), A @ v),
        (operator.matvec(v[:, None]), (A @ v)[:, None]),
        (operator.matmat(V), A @ V),
        (operator.rmatvec(v), A @ v),
        (operator.rmatmat(V), A @ V),
        (operator.T @ v, A @ v),
        (operator.T @ V, A @ V),
        (operator.H @ V, A @ V),
        (operator.adjoint() @ v, A @ v),
        (v @ operator, A @ v),
        (V.T @ operator, V.T @ A),
        ((2 * operator + operator) @ v, 3 * (A @ v)),
        ((operator @ operator) @ v / np.linalg.norm(A, 2), A @ (A @ v) / np.linalg.norm(A, 2)),
        ((-operator) @ v, -(A @ v)),
    ]:
        assert ours.shape == expected.shape
        assert ours.dtype == np.float64
        assert np.abs(ours - expected).max() <= tolerance


def test_dense_form(case):
    problem, H, _ = case
    D = H.todense()
    assert D.shape == H.shape and D.dtype == np.float64
    D = np.asarray(D)
    assert np.abs(D - dense(problem, False)).max() <= 1e-12 * problem.norm
    assert np.abs(D - D.T).max() <= 1e-14 * problem.norm
    assert np.abs(D - H @ np.eye(problem.size)).max() <= 1e-13 * problem.norm


def test_the_inverse_is_the_inverse(case):
    problem, H, F = case
    b = problem.right_hand_side()
    x = F @ b
    np.testing.assert_array_equal(x, F.solve(b))
    assert np.linalg.norm(H @ x + DAMPING * x - b) <= 1e-13 * (problem.norm * np.linalg.norm(x) + np.linalg.norm(b))
    assert F.damping == DAMPING


def test_right_hand_sides_of_every_layout(case):
    problem, H, F = case
    B = problem.right_hand_side(4)
    expected_x, expected_h = F.solve(B), H @ B
    spread = np.zeros((2 * problem.size, 9))
    spread[::2, 1::2] = B
    locked = B.copy()
    locked.flags.writeable = False
    for b in [np.asfortranarray(B), spread[::2, 1::2], np.ascontiguousarray(B[::-1])[::-1], locked, B.astype(">f8")]:
        for ours, expected in [(F.solve(b), expected_x), (F @ b, expected_x), (H @ b, expected_h)]:
            assert ours.shape == B.shape and ours.dtype == np.float64
            np.testing.assert_array_equal(ours, expected)
    column = B[:, 1]
    assert not column.flags.c_contiguous
    np.testing.assert_array_equal(F.solve(column), F.solve(column.copy()))
    np.testing.assert_array_equal(H @ column, H @ column.copy())
    np.testing.assert_array_equal(H @ column[::-1], H @ column[::-1].copy())


def test_right_hand_sides_of_every_shape(case):
    problem, H, F = case
    P = problem.size
    b = problem.right_hand_side()
    assert F.solve(b).shape == (P,)
    assert F.solve(b[:, None]).shape == (P, 1)
    assert np.linalg.norm(F.solve(b[:, None])[:, 0] - F.solve(b)) <= 1e-12 * np.linalg.norm(F.solve(b))
    for k in (2, 3, 5, 8, 9, 17, 33, 64):
        B = problem.right_hand_side(k)
        x = F.solve(B)
        assert x.shape == (P, k)
        assert problem.backward_error(DAMPING, x, B) <= 1e-14
        assert (H @ B).shape == (P, k)
    identity = F.solve(np.eye(P))
    assert np.abs(identity - dense(problem, True)).max() <= 1e-11 * np.abs(identity).max()
    assert F.solve(np.zeros((P, 0))).shape == (P, 0)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint16, np.float32])
def test_right_hand_sides_of_other_types(case, dtype):
    problem, H, F = case
    b = (np.arange(problem.size) % 5).astype(dtype)
    x = F.solve(b)
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, F.solve(b.astype(float)))
    np.testing.assert_array_equal(H @ b, H @ b.astype(float))


def test_shift_invert_for_interior_eigenvalues(case):
    """eigsh takes F for the inverse of H - sigma I."""
    problem, H, _ = case
    eigenvalues = problem.eigenvalues
    sigma = 0.6 * eigenvalues[-1] + 0.4 * eigenvalues[-2]
    F = H.factorize(damping=-sigma)
    found = sla.eigsh(H, k=3, sigma=sigma, OPinv=F, return_eigenvectors=False, v0=problem.right_hand_side())
    nearest = eigenvalues[np.argsort(np.abs(eigenvalues - sigma))[:3]]
    np.testing.assert_allclose(np.sort(found), np.sort(nearest), rtol=1e-10)


def test_largest_eigenvalue(case):
    problem, H, _ = case
    found = sla.eigsh(H, k=1, which="LM", return_eigenvectors=False, v0=problem.right_hand_side())
    assert abs(found[0]) == pytest.approx(problem.norm, rel=1e-10)


def test_krylov_solvers(case):
    problem, H, F = case
    b = problem.right_hand_side()
    x = F.solve(b)
    shift = sla.LinearOperator(H.shape, matvec=lambda v: H @ v + DAMPING * v, dtype=H.dtype)
    found, info = sla.minres(H, b, shift=-DAMPING, rtol=1e-12, maxiter=2000)
    assert info == 0
    assert np.linalg.norm(shift @ found - b) <= 1e-8 * np.linalg.norm(b)
    # Preconditioned by its inverse, the system is the identity.
    found, info = sla.gmres(shift, b, M=F, rtol=1e-13, maxiter=3)
    assert info == 0
    assert np.linalg.norm(found - x) <= 1e-9 * np.linalg.norm(x)


def test_condition_estimates_with_scipy(case):
    problem, H, F = case
    expected = np.linalg.norm(dense(problem, True), 1)
    assert expected / 10 <= sla.onenormest(F) <= expected * (1 + 1e-10)


def test_wrong_sizes(case):
    problem, H, F = case
    for operator in (H, F):
        for shape in [(problem.size + 1,), (problem.size - 1, 2), (2, problem.size)]:
            with pytest.raises(ValueError):
                operator @ np.ones(shape)


def test_gradient_and_loss_of_the_operator(case):
    problem, H, _ = case
    net = problem.net
    assert H.loss == pytest.approx(net.loss(problem.params, problem.X, problem.y), rel=1e-14)
    gradient = net.gradient(problem.params, problem.X, problem.y)
    assert np.abs(H.gradient - gradient).max() <= 1e-14 * np.abs(gradient).max()
    assert H.gradient.shape == (problem.size,)


def test_many_factorizations_of_one_operator(case):
    problem, H, _ = case
    b = problem.right_hand_side()
    factors = {damping: H.factorize(damping=damping) for damping in (1.0, 0.1, 0.01, -0.05)}
    for damping, F in factors.items():
        assert problem.backward_error(damping, F.solve(b), b) <= 1e-14


def test_public_names():
    for name in ("Dense", "Network", "solve", "register_activation", "register_loss", "__version__"):
        assert hasattr(nh, name)


@pytest.mark.parametrize("inverse", [False, True], ids=["H", "F"])
def test_what_is_wrong_with_an_operand(case, inverse):
    """Through @ and all its other names as through `solve`: masked entries, wrong shapes, and that it is no array."""
    problem, H, F = case
    operator, name, P = (F, "b", problem.size) if inverse else (H, "v", problem.size)
    masked = np.ma.masked_array(np.ones(P), np.arange(P) == 2)
    for apply in (
        operator.dot,
        operator.matvec,
        operator.__matmul__,
        operator.__mul__,
        operator.rmatvec,
        operator.__rmatmul__,
        operator.__rmul__,
        operator,
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected an array of numbers, got one with masked entries"):
            apply(masked)
        with pytest.raises(ValueError, match=rf"^{name}: expected shape \({P},\) or \(.*\), got \({P + 1},\)"):
            apply(np.ones(P + 1))
    for apply in (operator.dot, operator.matmat, operator.__matmul__, operator.rmatmat):
        with pytest.raises(ValueError, match=rf"^{name}: expected shape \({P},\) or \({P}, k\), got \(2, {P}\)"):
            apply(np.ones((2, P)))
        with pytest.raises(ValueError, match=f"^{name}: expected an array of numbers, got one with masked entries"):
            apply(np.ma.stack([masked, masked], axis=1))
    with pytest.raises(ValueError, match=rf"^{name}: expected shape .* or \(k, {P}\), got"):
        np.ones((P, 2)) @ operator
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \({P},\) or \({P}, 1\), got"):
        operator.matvec(np.ones((P, 2)))
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \({P}, k\), got"):
        operator.matmat(np.ones(P))
    np.testing.assert_array_equal(operator @ np.ma.masked_array(np.ones(P), False), operator @ np.ones(P))
    way = "todense"
    for function in (np.asarray, np.linalg.eigvalsh):
        with pytest.raises(TypeError, match=f"^{type(operator).__name__}: .* {way}"):
            function(operator)
    assert not hasattr(operator, "flags")


@pytest.mark.parametrize("method", ["trust-exact", "dogleg"])
def test_scipy_methods_that_need_an_array_say_so(method):
    problem = chain(3, 2, batch=4)
    data = problem.X, problem.y
    with pytest.raises((TypeError, AttributeError), match=r"todense\(\).* trust-exact and dogleg: hess=lambda"):
        scipy.optimize.minimize(
            lambda x: problem.net.loss(x, *data), problem.params, jac=lambda x: problem.net.gradient(x, *data),
            hess=lambda x: problem.net.hessian(x, *data), method=method,
        )  # fmt: skip
