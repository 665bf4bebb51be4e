"""Nets of 10,000 layers: right answers at a depth that no dense method reaches. No time is asserted.

Products are checked with second-order forward differentiation along two directions (linear in depth, extended
precision, no backward pass); solutions by their residual in those products; inertia and determinant where they are
known without a dense matrix.
"""

import functools

import dense_truth
import numpy as np
import pytest
from problems import Problem, layer, make, norm_estimate, random_targets

import numba_hinv as nh

DEPTH = 10_000


@functools.cache
def deep(name, depth=DEPTH):
    rng = np.random.default_rng(0)
    if name == "skip, one sample":
        layers = [layer(3, 3, "tanh", skip=True)] * (depth - 1) + [layer(3, 4, "identity")]
        problem = make(layers, batch=1, gain=0.5 / np.sqrt(depth))
    elif name == "plain, three samples":
        # Orthogonal weights and a bounded slope: signals neither explode nor die out.
        layers = [layer(2, 2, "sin", bias=False)] * (depth - 1) + [layer(2, 3, "identity")]
        parts = []
        for d in layers[:-1]:
            q, _ = np.linalg.qr(rng.standard_normal((2, 2)))
            parts.append(q.ravel())
        parts.append(rng.standard_normal(9))
        problem = Problem(
            tuple(layers),
            "mean_squared_error",
            np.concatenate(parts),
            0.1 * rng.standard_normal((3, 2)) / depth**0.25,
            random_targets("mean_squared_error", 3, 3, rng),
        )
    else:
        assert name == "width 1"
        layers = [layer(1, 1, "softplus", skip=True)] * depth
        problem = make(layers, "binary_cross_entropy", batch=2, gain=0.1)
        problem.params[1::2] -= np.log(depth)
    return problem


NAMES = ["skip, one sample", "plain, three samples", "width 1"]


@pytest.mark.parametrize("name", NAMES)
def test_products(name):
    problem = deep(name)
    u, v = problem.right_hand_side(2).T
    t = dense_truth.differentiate(
        problem.layers, problem.loss, problem.params, problem.X, problem.y, np.column_stack([u, v])
    )
    H = problem.hessian
    assert H.shape == (problem.size, problem.size)
    Hu, Hv = H @ u, H @ v
    scale = np.linalg.norm(u) * np.linalg.norm(Hv)
    # 10,000 layers, each of which rounds a few times.
    tolerance = 1e-12
    assert abs(H.loss - t.value) <= tolerance * abs(t.value)
    gradient = problem.net.gradient(problem.params, problem.X, problem.y)
    assert abs(gradient @ u - t.gradient[0]) <= tolerance * np.linalg.norm(gradient) * np.linalg.norm(u)
    for ours, exact in [(u @ Hu, t.hessian[0, 0]), (u @ Hv, t.hessian[0, 1]), (v @ Hv, t.hessian[1, 1])]:
        assert abs(ours - exact) <= tolerance * scale


@pytest.mark.parametrize("relative_damping", [1e-1, 1e-4, -1e-3])
@pytest.mark.parametrize("name", NAMES)
def test_solutions(name, relative_damping):
    problem = deep(name)
    H = problem.hessian
    norm = norm_estimate(H)
    damping = relative_damping * norm
    F = H.factorize(damping=damping)
    b = problem.right_hand_side(2)
    x = F.solve(b)
    assert np.isfinite(x).all()
    residual = np.linalg.norm(b - H @ x - damping * x, axis=0)
    scale = norm * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
    assert (residual / scale).max() <= 1e-14
    assert F.inertia.negative + F.inertia.zero + F.inertia.positive == problem.size
    assert np.isfinite(F.slogdet()[1])


@pytest.mark.parametrize("name", NAMES)
def test_inertia_and_determinant(name):
    """Beyond the spectrum all signs agree and the determinant is that of damping I up to the norm of H."""
    problem = deep(name)
    norm = norm_estimate(problem.hessian)
    counts = []
    for relative_damping in (-100.0, -0.3, -0.01, 0.01, 0.3, 100.0):
        F = problem.hessian.factorize(damping=relative_damping * norm)
        counts.append(F.inertia.negative)
        sign, logabsdet = F.slogdet()
        assert sign == (-1) ** (F.inertia.negative % 2)
        if abs(relative_damping) == 100:
            # Each eigenvalue of H + damping I is damping (1 + e) with |e| <= 1/50.
            assert abs(logabsdet - problem.size * np.log(100 * norm)) <= problem.size / 50
    assert counts[0] == problem.size and counts[-1] == 0
    assert counts == sorted(counts, reverse=True)


def test_initial_parameters_of_a_deep_net():
    layers = [nh.Dense(4, 8), *[nh.Dense(8, 8, skip=True) for _ in range(DEPTH - 2)], nh.Dense(8, 3, "identity")]
    net = nh.Network(layers, "softmax_cross_entropy")
    params = net.init(rng=0)
    X = np.random.default_rng(0).standard_normal((1, 4))
    assert np.isfinite(net.forward(params, X)).all()
    H = net.hessian(params, X, np.array([1]))
    damping = 1e-2 * norm_estimate(H)
    b = np.random.default_rng(1).standard_normal(net.num_params)
    x = H.factorize(damping=damping).solve(b)
    residual = np.linalg.norm(b - H @ x - damping * x)
    assert residual <= 1e-14 * (norm_estimate(H) * np.linalg.norm(x) + np.linalg.norm(b))


def test_moderate_depth_against_the_truth():
    """The same families at a depth where the dense Hessian can be formed."""
    for name in NAMES:
        problem = deep(name, depth=16)
        for relative_damping in (0.1, 1e-4, -1e-3):
            damping = relative_damping * problem.norm
            F = problem.hessian.factorize(damping=damping)
            b = problem.right_hand_side()
            assert problem.backward_error(damping, F.solve(b), b) <= 1e-14
            if F.inertia.exact and problem.gap(damping) > 1e-8:
                assert F.inertia.negative == (problem.eigenvalues + damping < 0).sum()
