"""Nothing overflows or vanishes inside however the data are scaled, as long as the answer can be written down.

With y and the last layer's parameters multiplied by 2^s, or the loss's scale changed otherwise, H is known from the
unscaled net: then answers must agree to the last bit or to rounding. Elsewhere the truth is extended precision, whose
exponents reach 1e4932.
"""

import dense_truth
import numpy as np
import pytest
from problems import Problem, chain, layer, make

import numba_hinv as nh
from numba_hinv.system import scaling


@pytest.mark.parametrize("power", [-900, -500, -300, 300, 500, 990])
def test_right_hand_sides(power):
    """F is linear: b times a power of two gives x times it, bit for bit."""
    p = chain(4, 5, batch=3)
    b = p.right_hand_side(3)
    b[:, 1] = np.ldexp(b[:, 1], -40)
    for factor_dtype in ("float64", "float32"):
        F = p.hessian.factorize(0.1, factor_dtype)
        expected = F.solve(b)
        x, info = F.solve(np.ldexp(b, power), full_output=True)
        np.testing.assert_array_equal(x, np.ldexp(expected, power))
        assert (info.backward_error <= 1e-14).all() and (info.error_bound < 1).all()
        np.testing.assert_array_equal(
            F.solve(np.ldexp(b, power), refine=False), np.ldexp(F.solve(b, refine=False), power)
        )


def test_columns_of_all_sizes_at_once():
    p = chain(4, 5, batch=3)
    F = p.hessian.factorize(0.1)
    b = np.outer(p.right_hand_side(), 2.0 ** np.array([-1000.0, -1, 0, 7, 1000]))
    x = F.solve(b)
    for k in range(5):
        alone = F.solve(b[:, k])
        assert np.abs(x[:, k] - alone).max() <= 1e-12 * np.abs(alone).max()


def test_a_solution_that_overflows_is_an_error():
    p = chain(4, 5, batch=3)
    with pytest.raises(np.linalg.LinAlgError, match="b: the solution overflows"):
        p.hessian.factorize(1e-3 * p.norm).solve(np.full(p.size, 1e308))


def check(p, dampings, tolerance=1e-14):
    H = p.net.hessian(p.params, p.X, p.y)
    # Extended precision, scaled down before NumPy's float64 eigenvalues.
    exact = p.truth.hessian
    unit = np.abs(exact).max()
    eigenvalues = np.linalg.eigvalsh((exact / unit).astype(float))
    top = np.abs(eigenvalues).max()
    assert 0.5 * top * unit <= H.norm() <= (1 + 1e-10) * top * unit
    b = p.right_hand_side(2)
    for relative_damping in dampings:
        damping = float(relative_damping * top * unit)
        F = H.factorize(damping)
        with np.errstate(all="raise", under="ignore"):
            x, info = F.solve(b, full_output=True)
        assert np.isfinite(x).all()
        x = x.astype(np.longdouble)
        residual = b - exact @ x - np.longdouble(damping) * x
        size = np.sqrt((x * x).sum(axis=0))
        scale = top * unit * size + np.linalg.norm(b, axis=0)
        assert (np.sqrt((residual * residual).sum(axis=0)) <= tolerance * scale).all(), relative_damping
        shifted = eigenvalues + relative_damping * top
        if F.inertia.exact and np.abs(shifted).min() > 1e-14 * top:
            assert F.inertia.negative == (shifted < 0).sum()
            logabsdet = np.log(np.abs(shifted)).sum() + p.size * float(np.log(unit))
            sensitivity = 1e-13 * top * np.abs(1 / shifted).sum()
            assert abs(F.slogdet()[1] - logabsdet) <= 1e-10 * abs(logabsdet) + sensitivity
        assert 1 <= F.condition() < 1e16


LAYERS = [layer(3, 3, "tanh"), layer(3, 3, "gelu", skip=True), layer(3, 2, "identity")]


@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1e-30, 1e30, 1e100, 1e140])
def test_targets(scale):
    """y beyond everything: the curvature stays, the gradient of the loss and with it most of H becomes huge."""
    p = make(LAYERS, "mean_squared_error", batch=4)
    check(Problem(p.layers, p.loss, p.params, p.X, p.y * scale), [1.3, 1e-3, -0.05])


@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1e-30, 1e-8, 1e8, 1e30, 1e100, 1e150])
@pytest.mark.parametrize("activation", ["tanh", "softplus", "identity", "relu"])
def test_inputs(scale, activation):
    """Saturated or linear units, or none that see anything; an identity's Hessian is about the square of the input."""
    p = make([layer(3, 3, activation), layer(3, 2, "identity")], "mean_squared_error", batch=4)
    check(Problem(p.layers, p.loss, p.params, p.X * scale, p.y), [1.0, 1e-3, -0.05])


@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1e-30, 1e-8, 1e8, 1e30, 1e100, 1e150])
@pytest.mark.parametrize("which", ["first", "last", "all"])
def test_parameters(scale, which):
    p = make([layer(3, 3, "tanh"), layer(3, 3, "sigmoid"), layer(3, 2, "identity")], "mean_squared_error", batch=4)
    first, last = {"first": (0, 12), "last": (24, 32), "all": (0, 32)}[which]
    params = p.params.copy()
    params[first:last] *= scale
    check(Problem(p.layers, p.loss, params, p.X, p.y), [1.0, 1e-3, -0.05])


@pytest.mark.parametrize("damping", [1e-300, 1e-200, 1e200, 1e300, -1e300])
def test_dampings_of_all_sizes(damping):
    p = chain(4, 4, batch=3, loss="mean_squared_error")
    b = p.right_hand_side()
    try:
        F = p.hessian.factorize(damping)
    except np.linalg.LinAlgError as error:
        assert abs(damping) < 1 and "damping" in str(error) and p.gap(0.0) < 1e-12
        return
    if abs(damping) > 1:
        np.testing.assert_allclose(F.solve(b), b / damping, rtol=0, atol=1e-14 * np.abs(b / damping).max())
        assert F.slogdet()[1] == pytest.approx(p.size * np.log(abs(damping)), rel=1e-14)


def test_overflow_is_named():
    p = make([layer(2, 2, "identity"), layer(2, 2, "identity")], "mean_squared_error", batch=2)
    with pytest.raises(ValueError, match="params, X"):
        p.net.hessian(1e200 * np.ones(p.size), np.ones((2, 2)), p.y)


def test_products_that_overflow_only_on_the_way():
    """Adjoints come to the first layer at 1e340, which does not feel them: its tanh is saturated."""
    p = make([layer(2, 2), layer(2, 2, "identity"), layer(2, 1, "identity")], "binary_cross_entropy", batch=2)
    p = Problem(p.layers, p.loss, np.ldexp(p.params, 480), p.X, p.y)
    v, exact = 1e200 * p.right_hand_side(2), p.truth.hessian
    assert not np.isfinite(p.hessian.system.multiply(v.T.copy())).all()
    assert (
        np.abs(p.hessian @ v - exact @ v.astype(np.longdouble)).max() <= 1e-14 * np.abs(exact).max() * np.abs(v).max()
    )
    p = make([layer(2, 2, "identity")], "mean_squared_error", batch=2)
    H = p.net.hessian(p.params, np.ldexp(p.X, 500), p.y)
    with pytest.raises(np.linalg.LinAlgError, match="v: the product with the Hessian overflows float64"):
        H @ np.full(p.size, 1e30)


def test_lengths():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 50)) * 10.0 ** np.array([[-300], [-200], [-100], [0], [200], [300]])
    exact = np.sqrt((rows.astype(np.longdouble) ** 2).sum(axis=1))
    np.testing.assert_allclose(scaling.lengths(rows).astype(np.longdouble), exact, rtol=1e-13)
    assert scaling.lengths(np.zeros((2, 3))).tolist() == [0, 0] and scaling.lengths(np.zeros((2, 0))).tolist() == [0, 0]
    assert not np.isfinite(scaling.lengths(np.array([[1.0, np.nan], [np.inf, 1.0]]))).any()


@pytest.mark.parametrize("gain", [0.02, 0.1, 3.0])
@pytest.mark.parametrize("skip", [False, True])
def test_scaled_states_change_nothing_but_the_scale(gain, skip):
    """Vanishing and exploding Jacobians: the same pivots, whatever the states are measured in."""
    p = chain(3, 20, batch=2, skip=skip, bias=False, gain=gain, activation="identity", loss="mean_squared_error")
    H = p.net.hessian(p.params, p.X, p.y)
    scale = H.system.scaling(0.0, np.float64)
    assert skip or scale.states
    rows = p.right_hand_side(2).T.copy()
    np.testing.assert_array_equal(np.ldexp(H.system.multiply(rows, scale), scale.matrix), H.system.multiply(rows))
    for relative_damping in (1e-2, -1e-5, 1e-8):
        damping = relative_damping * H.norm()
        F = H.factorize(damping)
        b = p.right_hand_side()
        x, info = F.solve(b, full_output=True)
        assert F.num_perturbed == 0 and info.krylov_steps == 0
        A = dense_truth.shifted(p.truth.hessian, damping)
        x = x.astype(np.longdouble)
        residual = float(np.linalg.norm((b - A @ x).astype(float)))
        assert residual <= 1e-14 * (H.norm() * float(np.linalg.norm(x.astype(float))) + np.linalg.norm(b))


def test_float32_factors_of_a_net_whose_signals_vanish():
    """Unscaled, the fronts of this net would leave float32's range."""
    net = nh.Network([nh.Dense(3, 3, "identity", bias=False) for _ in range(18)], "mean_squared_error")
    rng = np.random.default_rng(0)
    params, X, y = net.init(0, gain=0.1), rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    H = net.hessian(params, X, y)
    assert H.norm() < 1e-15
    dense = H.todense()
    for relative_damping in (0.1, -0.02):
        damping = relative_damping * H.norm()
        x, info = H.factorize(damping, "float32").solve(b := rng.standard_normal(net.num_params), full_output=True)
        assert info.backward_error <= 1e-14
        # Divided by the norm, so that this check does not underflow.
        residual = b - dense @ x - damping * x
        assert np.linalg.norm(residual) <= 1e-14 * (H.norm() * scaling.lengths(x[None])[0] + np.linalg.norm(b))


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "identity", "sin"])
def test_inputs_next_to_the_largest_number(activation):
    """Right or an error that names what overflows; never one from within."""
    net = nh.Network([nh.Dense(2, 2, activation), nh.Dense(2, 1, "identity")], "mean_squared_error")
    for size in (1e300, 1e307, 1.7e308):
        X, y = size * np.array([[1.0, 1.0], [-1.0, 0.5]]), np.ones((2, 1))
        try:
            H = net.hessian(net.init(0), X, y)
            b = np.ones(H.shape[0])
            x = H.factorize(1.0).solve(b)
        except (ValueError, np.linalg.LinAlgError) as error:
            assert any(words in str(error) for words in ("overflow", "expected a finite loss", "not finite")), error
            continue
        assert np.abs(H @ x + x - b).max() < 1e-12


def test_what_lies_at_the_net_s_input_does_not_count():
    """Nobody writes tangents there: they may hold numbers that are none, which must not be warned of."""
    tangents = np.full(18, 4.0)
    tangents[:6] = np.nan
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(scaling.state_logarithms(np.array([0, 6, 12]), tangents), [2.0, 2.0, 2.0])
