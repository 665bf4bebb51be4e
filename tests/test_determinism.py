"""Same inputs, same machine, same number of threads: bitwise the same answers, in this process and in another one."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh

CASES = {
    "few samples": dict(width=5, depth=8, batch=2),
    "many samples": dict(width=4, depth=5, batch=9),
    "no skip": dict(width=6, depth=5, batch=6, skip=False, activation="gelu"),
}
PROGRAM = """
import sys
sys.path[:0] = {path!r}
import test_determinism
print(test_determinism.digest({name!r}))
"""


def answers(name, dtype=np.float64):
    p = chain(**CASES[name])
    params = p.params.astype(dtype)
    H = p.net.hessian(params, p.X, p.y)
    b = p.right_hand_side(3).astype(dtype)
    yield p.net.forward(params, p.X)
    yield p.net.gradient(params, p.X, p.y)
    yield np.asarray(p.net.loss(params, p.X, p.y))
    yield H @ b
    yield H.gradient
    for damping in (0.1, -0.05):
        F = H.factorize(damping=damping)
        yield F.solve(b)
        yield F.solve(b[:, 0])
        yield F.solve(b, refine=False)
        yield np.asarray(F.slogdet())
        yield np.asarray([F.inertia.negative, F.inertia.zero, F.inertia.positive])


def digest(name):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in answers(name))).hexdigest()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_in_one_process(name, dtype):
    first = list(answers(name, dtype))
    for _ in range(3):
        for a, b in zip(first, answers(name, dtype)):
            np.testing.assert_array_equal(a, b)


def test_in_another_process():
    name = "few samples"
    program = PROGRAM.format(path=[p for p in sys.path if p], name=name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == digest(name)


def test_a_factorization_is_not_changed_by_solving():
    p = chain(width=5, depth=6, batch=3)
    F = p.hessian.factorize(damping=0.1)
    b = p.right_hand_side()
    first = F.solve(b)
    for seed in range(5):
        F.solve(p.right_hand_side(seed, seed=seed) if seed else np.zeros(p.size))
        F.solve(1e30 * b, refine=False)
        p.hessian.factorize(damping=-0.3).solve(b)
    np.testing.assert_array_equal(F.solve(b), first)


def test_columns_are_solved_independently_up_to_rounding():
    p = chain(width=5, depth=6, batch=3)
    F = p.hessian.factorize(damping=0.1)
    B = p.right_hand_side(7)
    together = F.solve(B)
    for k in range(7):
        x = F.solve(B[:, k])
        assert np.linalg.norm(x - together[:, k]) <= 1e-11 * np.linalg.norm(x)


def test_factorizing_twice_gives_equal_but_separate_factorizations():
    p = chain(width=5, depth=6, batch=3)
    F, G = p.hessian.factorize(damping=0.1), p.hessian.factorize(damping=0.1)
    b = p.right_hand_side()
    x = F.solve(b)
    del F
    np.testing.assert_array_equal(G.solve(b), x)


def test_random_generators_are_left_alone():
    p = chain(width=5, depth=6, batch=3)
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    p.net.init(rng=1)
    p.net.hessian(p.params, p.X, p.y).factorize(damping=0.1).solve(p.right_hand_side())
    nh.solve(p.net, p.params, p.X, p.y, p.right_hand_side(), damping=-0.05)
    assert np.random.random() == expected
