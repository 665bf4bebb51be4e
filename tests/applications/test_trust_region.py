"""`trust_region_step` against the conditions of optimality and the dense eigenvalue solution."""

import numpy as np
import pytest
from problems import GOLDEN, chain, golden

import numba_hinv as nh
from numba_hinv.applications.spectral_model import SpectralModel
from numba_hinv.applications.trust_region import QuadraticModel


def dense_minimum(A, g, radius):
    """(minimum of the model in the ball, eigenvalues), by eigenvalues and bisection on the distance from the pole."""
    values, vectors = np.linalg.eigh(A)
    weights, above = vectors.T @ g, values - values[0]
    bottom = above <= 1e-12 * np.abs(values).max()

    def step(distance, weights):
        return np.divide(-weights, above + distance, out=np.zeros_like(weights), where=weights != 0.0)

    across = np.where(bottom, 0.0, weights)
    if values[0] > 0.0 and np.linalg.norm(step(values[0], weights)) <= radius:
        p = step(values[0], weights)
    elif np.abs(weights[bottom]).max() <= 1e-14 * np.abs(weights).max() and np.linalg.norm(step(0.0, across)) <= radius:
        p = step(0.0, across)
        p[0] = np.sqrt(radius**2 - p @ p) * (values[0] < 0.0)
    else:
        low, high = max(values[0], 1e-40), max(values[0], 0.0) + np.linalg.norm(g) / radius
        for _ in range(400):
            middle = np.sqrt(low * high)
            low, high = (middle, high) if np.linalg.norm(step(middle, weights)) > radius else (low, middle)
        p = step(high, weights)
    return float(weights @ p + 0.5 * p @ (values * p)), values


def check(H, A, g, radius, slack=1e-13, **options):
    answer = nh.trust_region_step(H, radius, gradient=g, **options)
    p, mu = answer.step, answer.multiplier
    minimum, values = dense_minimum(A, g, radius)
    norm, length = np.abs(values).max(), np.linalg.norm(p)
    assert length <= radius * (1 + 1e-9) and mu >= 0.0
    assert values[0] + mu >= -1e-10 * norm
    assert answer.on_boundary == (length >= radius * (1 - 1e-9)) or length <= radius
    value = g @ p + 0.5 * p @ (A @ p)
    # What the docstring says of the hard case, and rounding of the dense eigenvalues.
    assert value <= minimum + 1e-8 * abs(minimum) + slack * norm * radius**2
    scale = norm * length**2 + np.linalg.norm(g) * length
    assert abs(value + answer.predicted_decrease) <= 1e-13 * scale
    residual = A @ p + mu * p + g
    assert np.linalg.norm(residual) <= (1e-3 if answer.hard_case else 1e-9) * ((norm + mu) * length + np.linalg.norm(g))
    return answer


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    """Random, hard and nearly hard cases, saddles, tiny and enormous radii."""
    problem, _ = golden(name)
    H, A = problem.hessian, problem.truth.hessian.astype(float)
    gradient = problem.truth.gradient.astype(float)
    size, (values, vectors) = np.linalg.norm(gradient), np.linalg.eigh(A)
    bottom = vectors[:, values <= values[0] + 1e-12 * problem.norm]
    across = gradient - bottom @ (bottom.T @ gradient)
    hard = []
    for radius in (1e-12, 1e-3, 1.0, 1e3, 1e12):
        check(H, A, gradient, radius)
        check(H, A, np.random.default_rng(1).standard_normal(A.shape[0]), radius)
        if values[0] < -1e-6 * problem.norm:
            for share in (0.0, 1e-13, 1e-8, 1e-4):
                answer = check(H, A, across + share * size * vectors[:, 0], radius)
                hard.append(answer.hard_case and share == 0.0)
            saddle = check(H, A, np.zeros_like(gradient), radius)
            assert saddle.hard_case and abs(np.linalg.norm(saddle.step) - radius) < 1e-12 * radius
            assert abs(saddle.multiplier + values[0]) < 1e-12 * problem.norm
    assert values[0] > -1e-6 * problem.norm or any(hard)


def test_degenerate_lowest_eigenvalue():
    """Blocks without coupling: every eigenvalue three times."""
    D = np.diag([-2.0, 1.0, 3.0, 0.5])
    blocks = [nh.LayerBlocks(Dx=np.zeros((1, 4)), Dz=np.zeros((1, 1)), Dxx=D, Dzx=np.zeros((4, 1)),
                             Dzz=np.zeros((1, 1))) for _ in range(3)]  # fmt: skip
    H = nh.Hessian.from_blocks(blocks)
    A = H.todense()
    rng = np.random.default_rng(0)
    for radius in (1e-3, 1.0, 10.0):
        g = rng.standard_normal(12)
        check(H, A, g, radius)
        g[::4] = 0.0
        answer = check(H, A, g, radius)
        assert answer.hard_case or radius < 1.0
        assert check(H, A, np.zeros(12), radius).hard_case


@pytest.mark.parametrize("seed", [8, 9, 11])
def test_degenerate_lowest_eigenvalue_of_a_net(seed):
    """Units that a strong L2 term has made 0: each has the same lowest eigenvalue, across the gradient."""
    rng = np.random.default_rng(seed)
    hidden = [nh.Dense(4, 4, "tanh", skip=True) for _ in range(8)]
    net = nh.Network([nh.Dense(3, 4, "tanh"), *hidden, nh.Dense(4, 1, "identity")], "mean_squared_error")
    X = rng.uniform(-1.5, 1.5, (80, 3))
    y = np.sin(X @ (1.0, -0.5, 0.3)) + 0.3 * rng.standard_normal(80)
    params = nh.minimize(net, net.init(rng=seed), X, y, l2=0.05, max_iterations=300).x
    H = net.hessian(params, X, y, l2=0.01)
    values = np.linalg.eigvalsh(H.todense())
    assert values[0] < -0.01 and values[1] - values[0] < 1e-5
    for radius in (0.1, 1.0, 10.0):
        # What GUARANTEES says of nearly degenerate hard cases.
        check(H, H.todense(), H.gradient, radius, slack=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_lowest_eigenvalue_of_many_idle_units(seed):
    """15 units without weights, whose directions of negative curvature are all alike, and which no gradient moves."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((30, 3))
    net = nh.Network([nh.Dense(3, 16), nh.Dense(16, 1, "identity")], "mean_squared_error")
    params = net.init(seed)
    (W, c), (V, _) = net.unpack(params)
    W[1:], c[1:], V[:, 1:] = 0.0, 0.0, 0.0
    H = net.hessian(params, X, X @ [1.0, 2.0, 3.0] + 0.5, l2=1e-4)
    A = H.todense()
    values = np.linalg.eigvalsh(A)
    assert values[14] - values[0] <= 1e-12 * values[-1]
    for radius in (0.01, 1.0, 3.0, 10.0):
        check(H, A, H.gradient, radius)


def test_inside():
    """A positive definite Hessian: the Newton step, multiplier 0, one factorization."""
    problem = chain(3, 2, batch=12)
    H = problem.net.hessian(problem.params, problem.X, problem.y, "ggn", l2=0.1)
    newton = -H.factorize(0.0).solve(H.gradient)
    length = np.linalg.norm(newton)
    answer = nh.trust_region_step(H, 2.0 * length)
    np.testing.assert_allclose(answer.step, newton, rtol=0, atol=1e-12 * length)
    assert answer.multiplier == 0.0 and not answer.on_boundary and answer.num_factorizations == 1
    assert nh.trust_region_step(H, 0.5 * length).on_boundary


def test_singular_and_semidefinite():
    """Fewer samples than inputs: the step of least length is the limit of small multipliers."""
    problem = chain(5, 2, batch=2)
    H = problem.net.hessian(problem.params, problem.X, problem.y, "ggn")
    least = -np.linalg.pinv(H.todense(), rcond=1e-11, hermitian=True) @ H.gradient
    answer = nh.trust_region_step(H, 1e6)
    # Eliminated with 1e-10 ||H||: rounding leaves u / 1e-10 in the null space, and next to nothing in the range.
    assert answer.multiplier == 0.0 and not answer.on_boundary
    assert np.linalg.norm(answer.step - least) < 10 * np.finfo(float).eps / 1e-10 * np.linalg.norm(least)
    assert np.linalg.norm(H @ (answer.step - least)) < 1e-13 * np.linalg.norm(H.gradient)


def test_factorizations_and_scales():
    """At most 4 in the median; a good guess of the multiplier takes one; scaled problems have the same step."""
    problem = chain(4, 5, batch=6)
    H, rng, counts = problem.hessian, np.random.default_rng(3), []
    for radius in 10.0 ** rng.uniform(-3, 3, 30):
        answer = nh.trust_region_step(H, radius)
        counts.append(answer.num_factorizations)
        again = nh.trust_region_step(H, radius, multiplier=answer.multiplier * (1 + 1e-9) + 1e-9 * H.norm())
        assert again.num_factorizations <= 3
        for scale in (1e-100, 1e100):
            other = nh.trust_region_step(H, scale * radius, gradient=scale * H.gradient)
            np.testing.assert_allclose(other.step / scale, answer.step, rtol=0, atol=1e-6 * radius)
            assert abs(other.multiplier - answer.multiplier) <= 1e-9 * H.norm()
    assert np.median(counts) <= 4


def test_loose_tolerance_and_float32():
    problem = chain(4, 4, batch=3)
    loose = nh.trust_region_step(problem.hessian, 0.5, rtol=0.1)
    assert abs(np.linalg.norm(loose.step) - 0.5) <= 0.05 * (1 + 1e-12)
    single = problem.net.hessian(problem.params.astype(np.float32), problem.X, problem.y)
    step = nh.trust_region_step(single, 0.5).step
    assert step.dtype == np.float32
    exact = nh.trust_region_step(problem.hessian, 0.5).step
    # Parameters are rounded to 6e-8; the step is more sensitive the closer the lowest two eigenvalues are.
    assert np.linalg.norm(step - exact) < 1e-3


@pytest.mark.parametrize(
    "arguments, error, name",
    [
        (dict(radius=0.0), ValueError, "radius"),
        (dict(radius=-1.0), ValueError, "radius"),
        (dict(radius=np.nan), ValueError, "radius"),
        (dict(radius=np.inf), ValueError, "radius"),
        (dict(radius="1"), TypeError, "radius"),
        (dict(gradient=np.ones(3)), ValueError, "gradient"),
        (dict(gradient="up"), TypeError, "gradient"),
        (dict(multiplier=-1.0), ValueError, "multiplier"),
        (dict(multiplier=np.nan), ValueError, "multiplier"),
        (dict(rtol=0.7), ValueError, "rtol"),
        (dict(H=np.eye(3)), TypeError, "H"),
    ],
)
def test_bad_arguments(arguments, error, name):
    with pytest.raises(error, match=f"^{name}: "):
        nh.trust_region_step(**{"H": chain(3, 2).hessian, "radius": 1.0, **arguments})


def test_a_gradient_is_needed():
    H = chain(3, 2).hessian
    blocks = nh.Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)
    with pytest.raises(ValueError, match="^gradient: "):
        nh.trust_region_step(blocks, 1.0)
    step = nh.trust_region_step(blocks, 1.0, gradient=H.gradient).step
    np.testing.assert_allclose(step, nh.trust_region_step(H, 1.0).step, rtol=0, atol=1e-9)


def test_guesses_that_are_too_large():
    """Nearly 200 negative eigenvalues, close together: a guess above them all leads to the answer in few steps."""
    counts = []
    for seed in (0, 2):
        H = chain(8, 6, batch=6, seed=seed, activation="tanh", skip=False).hessian
        for radius in (1.0, 10.0):
            first = nh.trust_region_step(H, radius)
            for factor in (1.2, 4.0, 10.0):
                again = nh.trust_region_step(H, radius, multiplier=factor * first.multiplier)
                assert again.predicted_decrease == pytest.approx(first.predicted_decrease, rel=1e-8)
                counts.append(again.num_factorizations)
    assert max(counts) <= 4


@pytest.mark.parametrize("shift", [-2.0, 3.0])
@pytest.mark.parametrize("sizes", [(-160, -150), (-160, 0), (0, -150), (150, -140), (-150, 140), (150, 150)])
def test_gradients_and_radii_without_squares(sizes, shift):
    """Those of a diagonal matrix, by its secular equation, which only the ratio of gradient and radius matters to."""
    values = shift + np.array([0.0, 1.0, 2.0, 4.0])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    A = rotation * values @ rotation.T
    blocks = nh.LayerBlocks(np.zeros((1, 4)), np.zeros((1, 0)), 0.5 * (A + A.T), np.zeros((4, 0)), np.zeros((0, 0)))
    H = nh.Hessian.from_blocks([blocks])
    direction = np.array([0.3, -0.4, 0.5, 0.7])
    gradient, radius = rotation @ direction * 10.0 ** sizes[0], 10.0 ** sizes[1]
    with np.errstate(all="raise", under="ignore"):
        answer = nh.trust_region_step(H, radius, gradient)
    ratio = 10.0 ** (sizes[0] - sizes[1])
    least = max(0.0, -shift)
    if least == 0.0 and np.linalg.norm(ratio * direction / values) <= 1.0:
        mu = 0.0
    else:
        # In logarithms, the multiplier being between 1e-160 and 1e290 from the pole.
        low, high = -170.0, 300.0
        for _ in range(200):
            middle = 0.5 * (low + high)
            mu = 10.0**middle
            shifted = values - shift + mu if least else values + mu
            inside = np.linalg.norm(ratio * direction / shifted) <= 1.0
            low, high = (low, middle) if inside else (middle, high)
        mu += least
    assert answer.multiplier == pytest.approx(mu, rel=1e-8, abs=1e-8)
    length = np.linalg.norm(answer.step / radius)
    assert length <= 1.0 + 1e-9 and answer.on_boundary == (mu > 0.0)
    if mu > 0.0:
        assert length == pytest.approx(1.0, rel=1e-9)
    # In two factors, since the step may have no square where the answer has one.
    size = np.abs(answer.step).max()
    unit = answer.step / size
    expected = (-(gradient / size) @ unit - 0.5 * unit @ A @ unit) * size * size
    assert answer.predicted_decrease == pytest.approx(expected, rel=1e-8, abs=1e-320)


@pytest.mark.parametrize("way", [QuadraticModel, SpectralModel])
def test_one_model_for_many_radii(way):
    """Radii up and down, for every gradient: each step is what `trust_region_step` gives, for fewer factorizations.

    Radii that shrink never take more.
    """
    H, rng = chain(4, 5, batch=6).hessian, np.random.default_rng(3)
    lowest = np.linalg.eigh(H.todense())[1][:, 0]
    across = H.gradient - lowest * (lowest @ H.gradient)
    for gradient in (H.gradient, across, np.zeros(H.shape[0])):
        model, kept, anew = way(H, gradient), [], []
        for radius in (10.0, 7.0, 2.5, 0.6, 0.4, 0.15, 0.04, *10.0 ** rng.uniform(-3, 3, 8)):
            answer, alone = model.step(radius), nh.trust_region_step(H, radius, gradient)
            kept.append(answer.num_factorizations)
            anew.append(alone.num_factorizations)
            value = gradient @ answer.step + 0.5 * answer.step @ (H @ answer.step)
            assert -value == pytest.approx(answer.predicted_decrease, rel=1e-9)
            assert answer.predicted_decrease == pytest.approx(alone.predicted_decrease, rel=1e-7)
            assert np.linalg.norm(answer.step) <= radius * (1 + 1e-7) and answer.on_boundary == alone.on_boundary
            assert answer.multiplier == pytest.approx(alone.multiplier, rel=1e-5, abs=1e-7 * H.norm())
        if way is SpectralModel:
            assert sum(kept) == 1
        else:
            assert np.less_equal(kept, anew)[:7].all() and sum(kept[:7]) < sum(anew[:7])


@pytest.mark.parametrize("name", GOLDEN)
def test_steps_by_eigenvalues(name):
    """Beside those by factorizations, of random and of hard cases and of singular matrices."""
    problem, _ = golden(name)
    H, gradient = problem.hessian, problem.truth.gradient.astype(float)
    for g in (gradient, np.random.default_rng(1).standard_normal(gradient.size), np.zeros_like(gradient)):
        model = SpectralModel(H, g)
        for radius in (1e-3, 1.0, 1e3):
            answer, other = model.step(radius), nh.trust_region_step(H, radius, g)
            assert np.linalg.norm(answer.step) <= radius * (1 + 1e-7)
            value = g @ answer.step + 0.5 * answer.step @ (H @ answer.step)
            # Flat directions are not followed as far as to where they end.
            slack = 1e-9 * problem.norm * radius**2
            assert value <= -other.predicted_decrease * (1 - 1e-7) + slack
            scale = problem.norm * radius**2 + np.linalg.norm(g) * radius
            assert abs(value + answer.predicted_decrease) <= 1e-12 * scale
