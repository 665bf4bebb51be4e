"""Depth and small damping: the answer is right, or a warning gives its true backward error; never silently wrong.

Nets whose Jacobians vanish or explode, saturated units, zero weights, zero and repeated samples, constant features, one
to four times as many samples as units; dampings from 1e-1 to 1e-12 of ||H||, of both signs. Small nets are judged with
the dense Hessian, deep ones with products (whose truth test_derivatives and test_depth establish).
"""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
from problems import random_targets

import numba_hinv as nh

KINDS = ["plain", "repeated samples", "zero inputs", "constant feature", "zero weights", "saturated"]
ACTIVATIONS = ["tanh", "sigmoid", "silu", "gelu", "sin", "softplus", "relu", "identity"]
LOSSES = ["softmax_cross_entropy", "mean_squared_error", "binary_cross_entropy"]
GAINS = [0.1, 0.5, 1.0, 1.5, 2.0]


def hostile(seed, depth):
    rng = np.random.default_rng([seed, depth])
    width = int(rng.integers(1, 5))
    batch = int(rng.integers(1, 4 * width + 1))
    skip, bias = bool(rng.random() < 0.5), bool(rng.random() < 0.8)
    loss, activation, kind = str(rng.choice(LOSSES)), str(rng.choice(ACTIVATIONS)), KINDS[seed % len(KINDS)]
    out, gain = int(rng.integers(2, 5)), float(rng.choice(GAINS))
    hidden = [nh.Dense(width, width, activation, bias, skip) for _ in range(depth - 1)]
    net = nh.Network([*hidden, nh.Dense(width, out, "identity", bias)], loss)
    params = net.init(rng, gain=gain)
    X = rng.standard_normal((batch, width))
    for weight, constants in net.unpack(params):
        if constants is not None:
            constants[:] = 0.2 * gain * rng.standard_normal(constants.shape)
        if kind == "zero weights" and rng.random() < 0.5:
            weight[:] = 0
        if kind == "saturated":
            weight *= 10
    if kind == "repeated samples":
        X[:] = X[rng.integers(0, max(1, batch // 2), batch)]
    if kind == "zero inputs":
        X[:] = 0
    if kind == "constant feature":
        X[:, 0] = 1
    y = random_targets(loss, batch, out, rng)
    name = f"{seed}: {width=} {batch=} {depth=} {activation} {skip=} {bias=} {loss} {gain=} {kind}"
    return SimpleNamespace(net=net, params=params, X=X, y=y, b=rng.standard_normal(net.num_params), name=name)


def attempt(H, damping, b, full_output=True):
    """(F, x, info or None, the figure of the warning or None); None for all if it was refused as singular."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            F = H.factorize(damping)
            x, info = F.solve(b, full_output=True) if full_output else (F.solve(b), None)
        except np.linalg.LinAlgError as error:
            assert "damping" in str(error) and "layer" in str(error)
            return None, None, None, None
    assert np.isfinite(x).all()
    figures = [str(w.message) for w in caught if issubclass(w.category, scipy.linalg.LinAlgWarning)]
    assert not [w for w in caught if not issubclass(w.category, scipy.linalg.LinAlgWarning)]
    assert len(figures) <= 1
    return F, x, info, float(figures[0].split("backward error of ")[1].split()[0]) if figures else None


def length(v):
    """2-norm, also where the squares leave the range of numbers: Hessians reach 1e177 here, and solutions 1e-177."""
    top = np.abs(v).max()
    return top * np.linalg.norm(v / top) if 0 < top < np.inf else top


def backward_error(product, damping, norm, x, b):
    return length(b - product - damping * x) / (norm * length(x) + length(b))


POWERS = [-1, -3, -5, -7, -8, -9, -10, -11, -12]


@pytest.mark.parametrize("first", range(0, 120, 12))
def test_against_the_dense_hessian(first):
    """The truth has rounding errors, too: 1e-15 of ||H|| allows for those of the dense Hessian and of its product."""
    silent_flags = solved = warned_early = flagged = 0
    for seed in range(first, first + 12):
        problem = hostile(seed, depth=(2, 5, 12, 30)[seed // 12 % 4])
        H = problem.net.hessian(problem.params, problem.X, problem.y)
        dense = H.todense()
        eigenvalues = np.linalg.eigvalsh(dense)
        norm = np.abs(eigenvalues).max()
        if norm == 0:
            continue
        for power in POWERS:
            for sign in (1, -1):
                damping = sign * 10.0**power * norm
                gap = np.abs(eigenvalues + damping).min() / norm
                F, x, info, figure = attempt(H, damping, problem.b)
                if F is None:
                    assert gap <= 1e-14, problem.name
                    continue
                true = backward_error(dense @ x, damping, norm, x, problem.b)
                if figure is None:
                    assert true <= 1e-14 + 1e-15, (problem.name, damping)
                    solved += 1
                else:
                    # The library's ||H|| is an estimate from below, by a factor of 2 at most.
                    assert 0.4 * figure - 1e-15 <= true <= 1.1 * figure + 1e-15, (problem.name, damping)
                    assert power <= -9, (problem.name, damping)
                    warned_early += power > -10
                assert info.krylov_steps <= 80
                count = int((eigenvalues + damping < 0).sum())
                # Beyond rounding of the dense eigenvalues, right or flagged; with more damping than rounding, right.
                if gap > 1e-14:
                    assert not F.inertia.exact or F.inertia.negative == count, (problem.name, damping)
                flagged += power >= -7 and not F.inertia.exact
                silent_flags += 1
    assert solved >= 0.9 * silent_flags and warned_early <= 2 and flagged <= 0.1 * silent_flags


def deep_case(seed, depth):
    problem = hostile(seed, depth)
    try:
        H = problem.net.hessian(problem.params, problem.X, problem.y)
    except ValueError as error:
        # Outputs that overflow are an error that says so.
        assert "expected finite" in str(error) or "expected a finite loss" in str(error), error
        return
    norm = H.norm()
    if norm == 0:
        return
    for power in (-1, -5, -8, -10, -12):
        for sign in (1, -1):
            damping = sign * 10.0**power * norm
            # The error bound takes several solves, which is long where each takes Krylov steps.
            F, x, info, figure = attempt(H, damping, problem.b, full_output=depth < 1000)
            if F is None:
                assert power < -8, problem.name
                continue
            true = backward_error(H @ x, damping, norm, x, problem.b)
            assert true <= (1e-14 if figure is None else 1.1 * figure) + 1e-15, (problem.name, damping)
            assert figure is None or power < -8, (problem.name, damping)
            if info is not None:
                np.testing.assert_allclose(info.backward_error, true, rtol=1e-6, atol=1e-15)
            assert np.isfinite(F.slogdet()[1])


@pytest.mark.parametrize("seed", range(24))
def test_100_layers(seed):
    deep_case(seed, 100)


@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_1000_layers(seed):
    deep_case(seed, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 5, *range(100, 160)])
def test_1000_layers_more(seed):
    deep_case(seed, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_10000_layers(seed):
    deep_case(seed, 10_000)


def test_trained_weights():
    """A net that has been trained: the gradient nearly vanishes, and most eigenvalues are close to zero."""
    rng = np.random.default_rng(0)
    layers = [nh.Dense(4, 4, skip=True) for _ in range(12)] + [nh.Dense(4, 3, "identity")]
    net = nh.Network(layers, "softmax_cross_entropy")
    X = rng.standard_normal((12, 4))
    y = np.argmax(X[:, :3], axis=1)
    params = net.init(0)
    for _ in range(40):
        H = net.hessian(params, X, y)
        # Levenberg-Marquardt steps: shifted beyond the most negative eigenvalue, so that each descends.
        shift = 1e-3 * H.norm() + max(0.0, -1.1 * np.linalg.eigvalsh(H.todense())[0])
        step = H.factorize(shift).solve(H.gradient)
        scale = 1.0
        while net.loss(params - scale * step, X, y) > H.loss and scale > 1e-6:
            scale /= 2
        params = params - scale * step
    assert net.loss(params, X, y) < 0.05 * net.loss(net.init(0), X, y)
    H = net.hessian(params, X, y)
    dense = H.todense()
    eigenvalues = np.linalg.eigvalsh(dense)
    norm = np.abs(eigenvalues).max()
    b = rng.standard_normal(net.num_params)
    for power in POWERS:
        for sign in (1, -1):
            damping = sign * 10.0**power * norm
            F, x, info, figure = attempt(H, damping, b)
            if F is not None:
                true = backward_error(dense @ x, damping, norm, x, b)
                assert true <= (1e-14 if figure is None else 1.1 * figure) + 1e-15
                assert figure is None or power < -8
                if np.abs(eigenvalues + damping).min() > 1e-14 * norm and F.inertia.exact:
                    assert F.inertia.negative == (eigenvalues + damping < 0).sum()
