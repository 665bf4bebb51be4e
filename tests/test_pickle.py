"""Pickling and copying of nets, operators and factorizations, also into another process."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh

PROGRAM = """
import pickle, sys
import numpy as np
net, H, F, b = pickle.load(sys.stdin.buffer)
pickle.dump((H @ b, F.solve(b), tuple(F.slogdet()), H.gradient, net.num_params), sys.stdout.buffer)
"""

protocols = pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])


def problem(batch=3, **kwargs):
    return chain(4, 6, batch=batch, **kwargs)


@protocols
def test_dense(protocol):
    d = nh.Dense(3, 3, "gelu", bias=False, skip=True)
    assert pickle.loads(pickle.dumps(d, protocol)) == d


@protocols
def test_net(protocol):
    p = problem()
    net = pickle.loads(pickle.dumps(p.net, protocol))
    assert net.num_params == p.net.num_params
    np.testing.assert_array_equal(net.init(rng=3), p.net.init(rng=3))
    np.testing.assert_array_equal(net.gradient(p.params, p.X, p.y), p.net.gradient(p.params, p.X, p.y))


@protocols
@pytest.mark.parametrize("batch", [2, 9])
def test_operators(protocol, batch):
    p = problem(batch)
    H = p.hessian
    b = p.right_hand_side(2)
    H2 = pickle.loads(pickle.dumps(H, protocol))
    assert H2.shape == H.shape and H2.dtype == H.dtype and H2.loss == H.loss
    np.testing.assert_array_equal(H2 @ b, H @ b)
    np.testing.assert_array_equal(H2.gradient, H.gradient)
    for damping in (0.1, -0.05):
        F = H.factorize(damping=damping)
        F2 = pickle.loads(pickle.dumps(F, protocol))
        np.testing.assert_array_equal(F2.solve(b), F.solve(b))
        np.testing.assert_array_equal(F2 @ b, F @ b)
        assert F2.slogdet() == F.slogdet()
        assert F2.num_perturbed == F.num_perturbed
        for field in ("negative", "zero", "positive", "exact"):
            assert getattr(F2.inertia, field) == getattr(F.inertia, field)
        np.testing.assert_array_equal(H2.factorize(damping=damping).solve(b), F.solve(b))


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_copies(copier):
    p = problem()
    b = p.right_hand_side()
    F = p.hessian.factorize(damping=0.1)
    np.testing.assert_array_equal(copier(p.net).init(rng=0), p.net.init(rng=0))
    np.testing.assert_array_equal(copier(p.hessian) @ b, p.hessian @ b)
    np.testing.assert_array_equal(copier(F).solve(b), F.solve(b))


def test_a_copy_outlives_its_original():
    p = problem()
    b = p.right_hand_side()
    H = p.net.hessian(p.params, p.X, p.y)
    F = H.factorize(damping=0.1)
    expected = F.solve(b)
    data = pickle.dumps(F)
    del F, H
    np.testing.assert_array_equal(pickle.loads(data).solve(b), expected)


def test_into_a_fresh_process():
    """Compiled functions are addressed by pointers in this process; none may travel."""
    p = problem()
    b = p.right_hand_side()
    F = p.hessian.factorize(damping=0.1)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=pickle.dumps((p.net, p.hessian, F, b)), capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    product, x, slogdet, gradient, num_params = pickle.loads(done.stdout)
    np.testing.assert_array_equal(product, p.hessian @ b)
    np.testing.assert_array_equal(x, F.solve(b))
    assert slogdet == tuple(F.slogdet())
    np.testing.assert_array_equal(gradient, p.hessian.gradient)
    assert num_params == p.size


def test_float32():
    p = problem()
    b = p.right_hand_side().astype(np.float32)
    F = p.net.hessian(p.params.astype(np.float32), p.X, p.y).factorize(damping=0.1)
    x = pickle.loads(pickle.dumps(F)).solve(b)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, F.solve(b))
