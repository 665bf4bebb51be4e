"""`minimize`: convergence, beside SciPy where the minimum is unique, stopping, interruption, hostile input."""

import numpy as np
import pytest
import scipy.optimize
from problems import chain, layer, make

import numba_hinv as nh
from numba_hinv.applications import geodesic, minimize, step_rules

METHODS = ("trust-region", "levenberg-marquardt", "saddle-free")
every_method = pytest.mark.parametrize("method", METHODS)


def linear(loss="softmax_cross_entropy"):
    """A convex problem, with an L2 term."""
    return make([layer(4, 3, "identity")], loss, batch=20)


def start_of(problem):
    return problem.net, problem.params, problem.X, problem.y


@every_method
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error"])
def test_the_minimum_of_a_convex_problem(method, loss):
    """That of SciPy's trust-exact, from the same start."""
    net, params, X, y = start_of(linear(loss))
    before = params.copy()
    result = nh.minimize(net, params, X, y, method, l2=0.1, gtol=1e-10)
    peer = scipy.optimize.minimize(
        lambda x: net.loss(x, X, y, 0.1), params, jac=lambda x: net.gradient(x, X, y, 0.1), method="trust-exact",
        hess=lambda x: net.hessian(x, X, y, l2=0.1).todense(), options={"gtol": 1e-10},
    )  # fmt: skip
    assert result.success and result.status == 0 and np.linalg.norm(result.jac) <= 1e-10
    # Both gradients are below 1e-10 and the curvature is at least 0.1.
    np.testing.assert_allclose(result.x, peer.x, rtol=0, atol=2e-9)
    assert result.fun == net.loss(result.x, X, y, 0.1)
    np.testing.assert_array_equal(result.jac, net.gradient(result.x, X, y, 0.1))
    np.testing.assert_array_equal(params, before)


@pytest.mark.parametrize("method", ["trust-region", "saddle-free"])
@pytest.mark.parametrize("seed", [0, 1])
def test_quadratic_convergence(method, seed):
    """To a strict minimum of a net, with a gradient that is squared in the last steps."""
    problem = chain(4, 4, batch=12, seed=seed)
    result = nh.minimize(*start_of(problem), method, l2=1e-2, gtol=1e-10, max_iterations=300)
    norms = np.append(result.history["gradient_norm"], np.linalg.norm(result.jac))
    assert result.success and norms[-1] <= 1e-10
    A = problem.net.hessian(result.x, problem.X, problem.y, l2=1e-2).todense()
    lowest = np.linalg.eigvalsh(A)[0]
    assert lowest > 0.0
    if method == "trust-region":
        # By half the third derivatives over the square of the lowest eigenvalue. The other method's damping spoils it.
        assert (norms[-2:] <= 10.0 / lowest**2 * norms[-3:-1] ** 2 + 1e-12).all() and norms[-3] > 1e-6
    assert (np.diff(result.history["loss"]) <= 1e-14).all()


def test_factorizations_of_training_steps(monkeypatch):
    """At most 4 in the median of a sequence of steps, the multiplier guessed from the last one."""
    monkeypatch.setattr(step_rules, "MOST_PARAMETERS", 0)
    for seed in range(3):
        problem = chain(4, 5, batch=12, seed=seed)
        history = nh.minimize(*start_of(problem), "trust-region", l2=1e-3, max_iterations=60).history
        counts = history["factorizations"]
        assert np.median(counts) <= 4 and counts[0] >= 1
        # Only where the last step was rejected are there factors from before.
        assert (counts[1:][history["taken"][:-1]] >= 1).all()


@pytest.mark.parametrize("radius", [100.0, 30.0])
def test_what_is_known_serves_after_a_rejected_step(monkeypatch, radius):
    """Fewer factorizations than of the same steps that begin anew; by eigenvalues, one for a Hessian."""
    problem = chain(4, 5, batch=12, seed=1)
    args = dict(method="trust-region", radius=radius, l2=1e-3, max_iterations=25)

    def rejected():
        result = nh.minimize(*start_of(problem), **args)
        after = np.append(False, ~result.history["taken"][:-1])
        return result, result.history["factorizations"][after]

    by_eigenvalues, counts = rejected()
    assert counts.size >= 3 and (counts == 0).all()
    assert (by_eigenvalues.history["factorizations"] <= 1).all()
    monkeypatch.setattr(step_rules, "MOST_PARAMETERS", 0)
    kept, counts = rejected()
    step = step_rules.QuadraticModel.step
    monkeypatch.setattr(
        step_rules.QuadraticModel, "step",
        lambda model, *args: step(step_rules.QuadraticModel(model.H, model.gradient), *args),
    )  # fmt: skip
    anew, more = rejected()
    for other in (by_eigenvalues, kept):
        # A step meets its radius to 5 per cent.
        np.testing.assert_array_equal(other.history["taken"][:4], anew.history["taken"][:4])
        np.testing.assert_allclose(other.history["loss"][:4], anew.history["loss"][:4], rtol=5e-2)
    assert counts.mean() <= 1.5 and counts.sum() < more.sum()


@every_method
def test_zero_loss(method):
    """A net with more parameters than data."""
    problem = chain(5, 4, batch=4, loss="mean_squared_error")
    result = nh.minimize(*start_of(problem), method, gtol=0.0, loss_target=1e-20, max_iterations=300)
    assert result.status == 3 and result.fun <= 1e-20


def test_saddle_free_turns_negative_directions_round():
    """One step beside dense eigenvalues."""
    problem = chain(4, 4, batch=12)
    net, params, X, y = start_of(problem)
    values, vectors = np.linalg.eigh(problem.truth.hessian.astype(float))
    g, counts = problem.truth.gradient.astype(float), []
    for damping in (1e-2, 0.1, 1.0):
        result = nh.minimize(net, params, X, y, "saddle-free", damping=damping, max_iterations=1)
        turned = np.where(values < -damping, -values, values)
        step = -vectors @ ((vectors.T @ g) / (turned + damping))
        assert result.history["damping"][0] == damping
        assert result.history["negative"][0] == (values < -damping).sum()
        counts.append((values < -damping).sum() if result.history["taken"][0] else 0)
        if result.history["taken"][0]:
            np.testing.assert_allclose(result.x - params, step, rtol=0, atol=1e-6 * np.linalg.norm(step))
    assert max(counts) > 0


def test_minibatches():
    """As many samples at a time, the same again from the same seed, and on the way a lower loss of all samples.

    Where it ends is a matter of rounding, since steps that ten samples ask for go up and down for all thirty.
    """
    problem = chain(4, 3, batch=30)
    options = dict(l2=1e-2, batch_size=10, max_iterations=30)
    for method in METHODS:
        losses = []

        def note(state, losses=losses):
            losses.append(problem.net.loss(state.x, problem.X, problem.y, 1e-2))

        result = nh.minimize(*start_of(problem), method, rng=1, callback=note, **options)
        again = nh.minimize(*start_of(problem), method, rng=1, **options)
        other = nh.minimize(*start_of(problem), method, rng=2, **options)
        np.testing.assert_array_equal(result.x, again.x)
        assert (result.x != other.x).any()
        assert result.fun == problem.net.loss(result.x, problem.X, problem.y, 1e-2)
        assert min(losses) < 0.7 * problem.net.loss(problem.params, problem.X, problem.y, 1e-2)
    assert nh.minimize(*start_of(problem), batch_size=10, loss_target=10.0).status == 3


def test_other_layers_and_float32():
    net = nh.Network(
        [nh.Conv1d(1, 2, 3, 8, "tanh"), nh.Dense(12, 4, "tanh"), nh.LayerNorm(4), nh.Dense(4, 1, "identity")],
        "mean_squared_error",
    )
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 8)), rng.standard_normal((20, 1))
    for method in METHODS:
        result = nh.minimize(net, net.init(0), X, y, method, l2=1e-3, max_iterations=25)
        assert result.fun < 0.5 * net.loss(net.init(0), X, y, 1e-3)
    single = nh.minimize(net, net.init(0, dtype=np.float32), X, y, l2=1e-3, max_iterations=25)
    assert single.x.dtype == np.float32 and single.fun < 0.5 * net.loss(net.init(0), X, y, 1e-3)


@every_method
def test_callback_and_interruption(method):
    """Whenever it stops, x is the last point that was accepted, with its loss."""
    problem, seen = chain(4, 3, batch=10), []

    def stop(error, at):
        def callback(state):
            seen.append(state)
            if state.nit == at:
                raise error

        return callback

    for error, status, word in ((StopIteration, 6, "callback"), (KeyboardInterrupt, 7, "interrupted")):
        seen.clear()
        result = nh.minimize(*start_of(problem), method, callback=stop(error, 4), warmup=None)
        assert (result.status, result.success, result.nit, len(seen)) == (status, False, 4, 4)
        assert word in result.message
        np.testing.assert_array_equal(result.x, seen[-1].x)
        assert result.fun == problem.net.loss(result.x, problem.X, problem.y) < problem.net.loss(*start_of(problem)[1:])
        assert all(len(column) == 4 for column in result.history.values())
        assert (np.diff(result.history["seconds"]) >= 0).all()


def test_interrupted_in_a_factorization(monkeypatch):
    problem, calls = chain(4, 3, batch=10), []
    factorize = nh.Hessian.factorize

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return factorize(*args, **kwargs)

    monkeypatch.setattr(nh.Hessian, "factorize", interrupted)
    result = nh.minimize(*start_of(problem), "levenberg-marquardt", warmup=None)
    assert result.status == 7 and result.nit == 5
    assert result.fun == problem.net.loss(result.x, problem.X, problem.y)


def test_stopping_rules():
    problem = chain(4, 3, batch=10)
    assert nh.minimize(*start_of(problem), max_iterations=0).nit == 0
    assert nh.minimize(*start_of(problem), max_iterations=3).status == 4
    assert nh.minimize(*start_of(problem), time_limit=0.0).status == 5
    assert nh.minimize(*start_of(problem), ftol=0.5, l2=0.1).status == 1
    assert nh.minimize(*start_of(problem), gtol=1e9).nit == 0
    assert nh.minimize(*start_of(linear()), gtol=0.0, l2=0.1).status in (0, 2)


def test_steps_to_where_the_loss_is_not_finite_are_rejected():
    """A loss that overflows a little away from the start."""
    net = nh.Network([nh.Dense(1, 1, "identity", bias=False)] * 8, "mean_squared_error")
    params = np.full(8, 1e-3)
    result = nh.minimize(net, params, np.array([[1e100]]), np.array([[1e60]]), radius=1e30, max_iterations=60)
    assert not result.history["taken"][0] and np.isfinite(result.fun) and np.isfinite(result.x).all()


@pytest.mark.parametrize(
    "arguments, error, name",
    [
        (dict(net="net"), TypeError, "net"),
        (dict(method="newton"), ValueError, "method"),
        (dict(method=None), ValueError, "method"),
        (dict(params=np.ones(3)), ValueError, "params"),
        (dict(X=np.full((10, 4), np.nan)), ValueError, "X"),
        (dict(y=np.full(10, 7)), ValueError, "y"),
        (dict(l2=-1.0), ValueError, "l2"),
        (dict(batch_size=0), ValueError, "batch_size"),
        (dict(batch_size=2.5), TypeError, "batch_size"),
        (dict(gtol=-1.0), ValueError, "gtol"),
        (dict(ftol=np.nan), ValueError, "ftol"),
        (dict(loss_target="low"), TypeError, "loss_target"),
        (dict(max_iterations=-1), ValueError, "max_iterations"),
        (dict(time_limit=-1.0), ValueError, "time_limit"),
        (dict(radius=0.0), ValueError, "radius"),
        (dict(radius=-1.0), ValueError, "radius"),
        (dict(damping=0.0), ValueError, "damping"),
        (dict(method="saddle-free", damping=-1.0), ValueError, "damping"),
        (dict(method="saddle-free", radius=1.0), ValueError, "radius"),
        (dict(radius=1.0, damping=1.0), ValueError, "damping"),
        (dict(method="trust-region", damping=1.0), ValueError, "damping"),
        (dict(acceleration=1), TypeError, "acceleration"),
        (dict(callback=3), TypeError, "callback"),
        (dict(progress=1), TypeError, "progress"),
    ],
)
def test_bad_arguments(arguments, error, name):
    problem = chain(4, 3, batch=10)
    given = dict(net=problem.net, params=problem.params, X=problem.X, y=problem.y)
    with pytest.raises(error, match=f"^{name}: "):
        nh.minimize(**{**given, **arguments})


def test_a_loss_that_is_not_finite_at_the_start():
    net = nh.Network([nh.Dense(1, 1, "identity", bias=False)] * 4, "mean_squared_error")
    with pytest.raises(ValueError, match="params, X"):
        nh.minimize(net, np.full(4, 1e100), np.ones((2, 1)), np.ones((2, 1)))


def saddle():
    """A net without weights, whose gradient is 0 up to rounding while three eigenvalues of H are negative."""
    net = nh.Network([nh.Dense(2, 3, "tanh"), nh.Dense(3, 1, "identity")], "mean_squared_error")
    X = np.random.default_rng(0).standard_normal((20, 2))
    y = X.sum(axis=1, keepdims=True)
    return net, np.zeros(net.num_params), X, y - y.mean()


@every_method
@pytest.mark.parametrize("batch_size", [None, 10])
def test_it_goes_down_from_a_strict_saddle(method, batch_size):
    """It ends with success at minima alone: by dense eigenvalues."""
    net, params, X, y = saddle()
    at_start = np.linalg.eigvalsh(net.hessian(params, X, y, l2=0.01).todense())
    assert (at_start < -1.0).sum() == 3 and np.linalg.norm(net.gradient(params, X, y, 0.01)) < 1e-15
    result = nh.minimize(net, params, X, y, method, l2=0.01, batch_size=batch_size, gtol=1e-5)
    # Steps for batches do not converge to a minimum for all samples.
    assert result.success == (batch_size is None), result.message
    assert result.fun < 0.5 * net.loss(params, X, y) and result.history["negative"][0] == 3
    if batch_size is None:
        values = np.linalg.eigvalsh(net.hessian(result.x, X, y, l2=0.01).todense())
        assert values[0] > -1e-8 * values[-1]
        assert result.nit == result.history["loss"].size and (np.diff(result.history["loss"]) < 1e-14).all()


def test_a_saddle_is_no_success(monkeypatch):
    """Where nothing leads down from it, where the iterations are used up, and where it cannot be told from a
    minimum.
    """
    data = saddle()
    assert nh.minimize(*data, max_iterations=0).status == 4
    with monkeypatch.context() as patch:
        patch.setattr(minimize.saddle, "way_down", lambda *args: (None, 1.0, 1))
        result = nh.minimize(*data)
        assert not result.success and result.status == 9 and "H has 3 negative eigenvalues" in result.message
        np.testing.assert_array_equal(result.x, data[1])
    with monkeypatch.context() as patch:
        patch.setattr(minimize.saddle, "negative_eigenvalues", lambda *args: None)
        result = nh.minimize(*data)
        assert not result.success and result.status == 10 and result.nit == 0
    # A loss that falls slowly because the Gauss-Newton matrix knows of no way down is no reason to end.
    near = 1e-6 * np.random.default_rng(0).standard_normal(data[1].size)
    result = nh.minimize(data[0], near, *data[2:], "levenberg-marquardt", ftol=1e-3, max_iterations=60)
    assert result.fun < 0.1


def test_a_warm_start_leaves_exact_steps_less_to_do():
    problem = chain(4, 3, batch=40)
    args, options = start_of(problem), {"l2": 1e-3, "gtol": 1e-10}
    cold = nh.minimize(*args, warmup=None, **options)
    warm = nh.minimize(*args, **options)
    assert cold.warmup_iterations == 0 < warm.warmup_iterations
    assert warm.success and np.linalg.norm(warm.jac) <= 1e-10
    assert warm.num_factorizations < cold.num_factorizations and warm.nfev > warm.warmup_iterations
    # What L-BFGS alone would have needed.
    net, params, X, y = args
    alone = scipy.optimize.minimize(
        net.loss_and_gradient, params, (X, y, 1e-3), "L-BFGS-B", jac=True, options={"gtol": 0.0, "ftol": 0.0}
    )
    assert warm.warmup_iterations < alone.nit / 2
    for given in ({"radius": 1.0}, {"batch_size": 10, "max_iterations": 2}):
        assert nh.minimize(*args, **given).warmup_iterations == 0


@pytest.mark.parametrize(("error", "status"), [(StopIteration, 6), (KeyboardInterrupt, 7)])
def test_a_warm_start_is_stopped(error, status):
    problem, seen = chain(4, 3, batch=40), []

    def callback(state):
        seen.append(state)
        if len(seen) == 3:
            raise error

    result = nh.minimize(*start_of(problem), callback=callback)
    assert (result.status, result.nit, result.warmup_iterations) == (status, 0, 3)
    np.testing.assert_array_equal(result.x, seen[-1].x)
    assert result.fun == problem.net.loss(result.x, problem.X, problem.y) < seen[0].fun


def test_a_warm_start_minds_limits():
    problem = chain(4, 3, batch=40)
    assert nh.minimize(*start_of(problem), time_limit=0.0).warmup_iterations <= 1
    loss = problem.net.loss(*start_of(problem)[1:])
    stopped = nh.minimize(*start_of(problem), loss_target=0.8 * loss)
    assert (stopped.status, stopped.nit) == (3, 0) and stopped.fun <= 0.8 * loss
    for warmup in ("bfgs", 3, True):
        with pytest.raises(ValueError, match="warmup: expected 'auto', 'l-bfgs' or None"):
            nh.minimize(*start_of(problem), warmup=warmup)
    with pytest.raises(ValueError, match="warmup: expected None or 'auto' with batch_size"):
        nh.minimize(*start_of(problem), warmup="l-bfgs", batch_size=5)


def test_samples_in_batches():
    problem = chain(4, 3, batch=40)
    net, params, X, y = start_of(problem)
    pairs = [(X[:15], y[:15]), (X[15:], y[15:])]
    result = nh.minimize(net, params, pairs, None, l2=1e-2, gtol=1e-9)
    assert result.success and np.linalg.norm(net.gradient(result.x, X, y, 1e-2)) <= 2e-9
    with pytest.raises(ValueError, match="batch_size: expected None for samples that are read in batches"):
        nh.minimize(net, params, pairs, None, batch_size=5)


def curve(seed, l2=1e-6):
    """8 tanh units for a curve of two waves that dies off: the minima lie in long, curved valleys."""
    net = nh.Network([nh.Dense(1, 8, "tanh"), nh.Dense(8, 1, "identity")], "mean_squared_error")
    X = np.linspace(-3.0, 3.0, 60)[:, None]
    return (net, net.init(rng=seed), X, np.sin(2.0 * X) * np.exp(-(X**2) / 4)), l2


@pytest.mark.parametrize("batches", [False, True])
def test_how_outputs_bend_along_a_step(batches, monkeypatch):
    """A product of weights, whose derivatives are products; the scale of S is that of the Gauss-Newton matrix."""
    net = nh.Network([nh.Dense(1, 1, "identity", bias=False)] * 4, "mean_squared_error")
    w, v, x = np.array([1.5, -0.7, 0.9, 2.0]), np.array([0.3, 0.5, -0.2, 0.4]), np.array([1.0, 2.0, -0.5])
    weights = np.array([1.0, 0.5, 2.0])
    slopes = np.array([np.prod(np.delete(w, i)) for i in range(4)])
    second = sum(v[i] * v[j] * np.prod(np.delete(w, [i, j])) for i in range(4) for j in range(4) if i != j)
    data = ([(x[:2, None], x[:2], weights[:2]), (x[2:, None], x[2:], weights[2:])], None, None)
    data = data if batches else (x[:, None], x, weights)
    H = net.hessian(w, data[0], data[1], "ggn", sample_weight=data[2])
    scale = H.todense()[0, 0] / slopes[0] ** 2
    monkeypatch.setattr(geodesic, "batch_size_for", lambda model: 2 if batches else 3)
    found = geodesic.bending(net, w, v, data[0], data[1], data[2], H.total_weight)
    # The outputs are polynomials of degree 4: (1e-2)^2 / 12 of the fourth derivative, 24 v_1 v_2 v_3 v_4.
    np.testing.assert_allclose(found, scale * slopes * second, rtol=1e-4)


def test_geodesic_acceleration_only_where_the_outputs_bend_little():
    """Up to 0.75 of the step, that is 0.375 for its half; a bend that cannot be found is none."""
    problem = chain(4, 3, batch=10)
    H = problem.net.hessian(*start_of(problem)[1:], "ggn")
    F = H.factorize(0.5)
    p, direction = -F.solve(H.gradient), np.random.default_rng(0).standard_normal(H.shape[0])
    direction *= np.linalg.norm(p) / np.linalg.norm(direction)
    for ratio, share in ((0.74, 0.37), (0.76, 0.0)):
        rule = step_rules.LevenbergMarquardt(0.5)
        rule.bend = lambda H, step, ratio=ratio: ratio * (H @ direction + 0.5 * direction)
        np.testing.assert_allclose(rule.accelerate(H, F, p), p - share * direction, rtol=1e-12, atol=1e-14)

    def nowhere(H, step):
        raise ValueError("not finite")

    rule.bend = nowhere
    assert rule.accelerate(H, F, p) is p


@pytest.mark.parametrize("seed", [1, 2])
def test_geodesic_acceleration_saves_steps_in_a_curved_valley(seed):
    """At the minimum before as many steps without it are."""
    args, l2 = curve(seed)
    options = dict(method="levenberg-marquardt", l2=l2, max_iterations=200)
    fast, plain = nh.minimize(*args, **options), nh.minimize(*args, acceleration=False, **options)
    assert fast.success and fast.method == "levenberg-marquardt"
    assert not plain.success and plain.fun > fast.fun
    assert fast.num_factorizations < 0.85 * plain.num_factorizations


def test_steps_that_are_chosen():
    """By the loss, by what is left of it, and by a radius or damping that is given; the same as by their names."""
    few = {"max_iterations": 3}
    problem = chain(4, 3, batch=10)
    assert nh.minimize(*start_of(problem), **few).method == "trust-region"
    assert nh.minimize(*start_of(problem), damping=0.1, **few).method == "saddle-free"
    assert nh.minimize(*start_of(problem), radius=0.1, **few).method == "trust-region"
    (net, params, X, y), l2 = curve(1)
    found = nh.minimize(net, params, X, y, l2=l2, **few)
    named = nh.minimize(net, params, X, y, "levenberg-marquardt", l2=l2, **few)
    assert found.method == "levenberg-marquardt" and "radius" not in found.history
    np.testing.assert_array_equal(found.x, named.x)
    noise = np.random.default_rng(0).standard_normal(60)
    weights = np.where(X[:, 0] > 0.0, 1.0, 2.0)
    assert nh.minimize(net, params, X, y[:, 0] + noise, l2=l2, **few).method == "trust-region"
    # A constant is no good to X that says everything, whatever its size; nor to pairs of batches with weights.
    for shift in (0.0, 1e3):
        pairs = [(X[:20], y[:20] + shift, weights[:20]), (X[20:], y[20:] + shift, weights[20:])]
        (W, c), (V, b) = net.unpack(there := found.x.copy())
        b += shift
        assert nh.minimize(net, there, pairs, warmup=None, **few).method == "levenberg-marquardt"
    assert nh.minimize(net, params, X, y, damping=0.1, **few).method == "levenberg-marquardt"


def test_newton_takes_over_where_it_converges():
    """Residuals that stay make steps of the Gauss-Newton matrix converge linearly."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((80, 3))
    net = nh.Network([nh.Dense(3, 5, "tanh"), nh.Dense(5, 1, "identity")], "mean_squared_error")
    y, options = np.sin(X.sum(axis=1)) + 0.1 * rng.standard_normal(80), dict(l2=1e-3, gtol=1e-11, max_iterations=600)
    result = nh.minimize(net, net.init(rng=1), X, y, warmup=None, damping=1.0, **options)
    alone = nh.minimize(net, net.init(rng=1), X, y, "levenberg-marquardt", warmup=None, damping=1.0, **options)
    assert result.success and result.method == "trust-region" and result.nit < alone.nit
    is_last = np.isfinite(result.history["radius"])
    assert (is_last ^ np.isfinite(result.history["damping"])).all() and 1 <= is_last.sum() <= 8
    assert np.linalg.eigvalsh(net.hessian(result.x, X, y, l2=1e-3).todense())[0] > 0.0


@every_method
def test_a_slow_fall_beside_a_saddle_is_no_success(method):
    """Where ftol ends it, with three negative eigenvalues, and a step down that is not worth it by ftol."""
    net, params, X, y = saddle()
    near = 1e-7 * np.random.default_rng(0).standard_normal(params.size)
    scale = {"radius": 1e-6} if method == "trust-region" else {"damping": 1e3}
    result = nh.minimize(net, near, X, y, method, ftol=0.999, gtol=1e-14, **scale)
    assert not result.success and result.status == 9 and result.negative == 3
    assert "H has 3 negative eigenvalues" in result.message
