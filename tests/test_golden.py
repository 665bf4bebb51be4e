"""Every golden file: values, derivatives, solutions, inertia and log-determinants.

The tolerances are those the library promises; they are not to be loosened.
"""

import dense_truth
import numpy as np
import pytest
from problems import GOLDEN, golden

import numba_hinv as nh

every_file = pytest.mark.parametrize("name", GOLDEN)


def relative(a, b):
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


def test_all_files_are_here():
    assert len(GOLDEN) == 10


@every_file
def test_the_truth_of_this_suite_agrees(name):
    """`dense_truth` shares nothing with the makers of the files; both must be right."""
    problem, g = golden(name)
    t = problem.truth
    for ours, theirs in [(t.value, "value"), (t.output, "output"), (t.gradient, "gradient"), (t.hessian, "hessian")]:
        assert relative(ours, g[theirs]) < 1e-14
    for damping, x, logabsdet in zip(g["dampings"], g["solutions"], g["logabsdet"]):
        factors = dense_truth.DenseFactors(dense_truth.shifted(t.hessian, damping))
        assert factors.slogdet()[1] == pytest.approx(logabsdet, rel=1e-11)
        assert relative(factors.solve(g["b"]), x) < 1e-11


@every_file
def test_values_and_derivatives(name):
    problem, g = golden(name)
    net, params, X, y = problem.net, problem.params, problem.X, problem.y
    assert net.num_params == len(params)
    assert relative(net.forward(params, X), g["output"]) < 1e-12
    assert relative(net.loss(params, X, y), g["value"]) < 1e-12
    assert relative(net.gradient(params, X, y), g["gradient"]) < 1e-12
    H = net.hessian(params, X, y)
    assert relative(H.loss, g["value"]) < 1e-12
    assert relative(H.gradient, g["gradient"]) < 1e-12
    assert relative(H @ g["v"], g["hv"]) < 1e-12
    assert relative(H.todense(), g["hessian"]) < 1e-12


@every_file
def test_solutions(name):
    problem, g = golden(name)
    for damping, exact in zip(g["dampings"], g["solutions"]):
        x = problem.hessian.factorize(damping=damping).solve(g["b"])
        assert dense_truth.backward_error(g["hessian"], damping, x, g["b"]) <= 1e-14
        # A backward error of 1e-14 moves the solution by at most this much.
        shifted = np.abs(g["eigenvalues"] + damping)
        condition = shifted.max() / shifted.min()
        assert np.linalg.norm(x - exact) <= 4e-14 * condition * np.linalg.norm(exact)


@every_file
def test_solutions_in_one_call(name):
    problem, g = golden(name)
    damping = g["dampings"][2]
    x = nh.solve(problem.net, problem.params, problem.X, problem.y, g["b"], damping=damping)
    assert dense_truth.backward_error(g["hessian"], damping, x, g["b"]) <= 1e-14


@every_file
def test_inertia_and_determinant(name):
    problem, g = golden(name)
    for damping, (negative, positive), logabsdet in zip(g["dampings"], g["inertia"], g["logabsdet"]):
        F = problem.hessian.factorize(damping=damping)
        assert (F.inertia.negative, F.inertia.zero, F.inertia.positive) == (negative, 0, positive)
        assert F.inertia.exact
        assert F.num_perturbed == 0
        sign, ours = F.slogdet()
        assert sign == (-1) ** int(negative)
        assert abs(ours - logabsdet) <= 1e-8 * abs(logabsdet)
