"""`nh.trust_region` as a method of `scipy.optimize.minimize`: minima beside SciPy's, saddles, bad arguments."""

import numpy as np
import pytest
import scipy.optimize

import numba_hinv as nh

NET = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], "softmax_cross_entropy")
RNG = np.random.default_rng(0)
DATA = RNG.standard_normal((20, 3)), RNG.integers(0, 2, 20), 0.1


def hess(params, X, y, l2):
    return NET.hessian(params, X, y, l2=l2)


def solve(start=None, **options):
    given = {"jac": True, "hess": hess, "method": nh.trust_region} | options
    return scipy.optimize.minimize(NET.loss_and_gradient, NET.init(0) if start is None else start, DATA, **given)


def test_minimum_is_that_of_scipy():
    found = solve()
    assert found.success and found.negative == 0 and np.linalg.norm(found.jac) <= 1e-8
    exact = solve(found.x + 1e-3, hess=lambda *a: hess(*a).todense(), method="trust-exact", options={"gtol": 1e-9})
    np.testing.assert_allclose(found.x, exact.x, atol=1e-6)
    assert found.fun <= exact.fun + 1e-14 and found.nfev > found.nit and found.nhev >= 2
    apart = scipy.optimize.minimize(
        NET.loss, NET.init(0), DATA, jac=NET.gradient, hess=hess, method=nh.trust_region, tol=1e-4
    )
    assert apart.success and 1e-8 < np.linalg.norm(apart.jac) <= 1e-4


def test_objective_that_is_more_than_the_loss():
    """A linear term is in the gradient alone."""
    slope = 0.05 * RNG.standard_normal(NET.num_params)
    found = scipy.optimize.minimize(
        lambda x: NET.loss(x, *DATA) + slope @ x,
        NET.init(0),
        jac=lambda x: NET.gradient(x, *DATA) + slope,
        hess=lambda x: hess(x, *DATA),
        method=nh.trust_region,
    )
    assert found.success and np.linalg.norm(NET.gradient(found.x, *DATA) + slope) <= 1e-8


def test_saddles_are_left():
    """Without weights, the gradient of a net without biases of XOR is zero, at a saddle."""
    net = nh.Network([nh.Dense(2, 4, bias=False), nh.Dense(4, 1, "identity", bias=False)], "mean_squared_error")
    X, y = np.array([[1.0, 0.2], [0.3, 1.0], [1.0, 1.0]]), np.array([1.0, -1.0, 0.5])
    found = scipy.optimize.minimize(
        net.loss_and_gradient,
        np.zeros(net.num_params),
        (X, y, 1e-3),
        jac=True,
        hess=lambda x, X, y, l2: net.hessian(x, X, y, l2=l2),
        method=nh.trust_region,
    )
    assert found.success and found.fun < 0.5 * net.loss(np.zeros(net.num_params), X, y) and found.negative == 0


def test_options_and_callbacks():
    assert solve(options={"maxiter": 1}).status == 1 and not solve(options={"maxiter": 1}).success
    seen = []
    solve(callback=seen.append, options={"maxiter": 3, "initial_trust_radius": 0.1})
    assert len(seen) == 3 and seen[0].shape == (NET.num_params,) and np.linalg.norm(seen[0] - NET.init(0)) <= 0.1001

    def stop(intermediate_result):
        raise StopIteration

    assert solve(callback=stop).status == 3 and solve(callback=stop).nit == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hess": None}, "hess: expected a function of x"),
        ({"jac": None}, "jac: expected a function of x .* or jac=True"),
        ({"bounds": [(0, 1)] * 26}, "bounds: expected none"),
        ({"options": {"radius": 2}}, "radius: expected none"),
        ({"options": {"initial_trust_radius": 0}}, "initial_trust_radius: expected a positive number, got 0"),
        ({"tol": -1.0}, "gtol: expected a number of at least 0"),
        ({"jac": NET.gradient, "both": True}, "fun: expected a number, got 2 things"),
        ({"hess": lambda *a: np.eye(26)}, "expected a Hessian"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        given = dict(options)
        jac = given.pop("jac", True)
        fun = NET.loss_and_gradient if jac is True or given.pop("both", False) else NET.loss
        scipy.optimize.minimize(fun, NET.init(0), DATA, jac=jac, method=nh.trust_region, **{"hess": hess} | given)


def test_rest_beside_a_saddle_is_no_success():
    """Steps so short that the objective does not see them, from a point beside it along the lowest eigenvector."""
    net = nh.Network([nh.Dense(2, 4, bias=False), nh.Dense(4, 1, "identity", bias=False)], "mean_squared_error")
    data = np.array([[1.0, 0.2], [0.3, 1.0], [1.0, 1.0]]), np.array([1.0, -1.0, 0.5]), 1e-3
    values, vectors = np.linalg.eigh(net.hessian(np.zeros(net.num_params), *data[:2], l2=1e-3).todense())
    found = scipy.optimize.minimize(
        net.loss_and_gradient,
        1e-9 * vectors[:, 0],
        data,
        jac=True,
        method=nh.trust_region,
        hess=lambda x, X, y, l2: net.hessian(x, X, y, l2=l2),
        options={"gtol": 0.0, "initial_trust_radius": 1e-12},
    )
    assert not found.success and found.negative == (values < -1e-6).sum() > 0
    assert f"H has {found.negative} negative eigenvalues" in found.message
