"""Sweeps called from compiled code: the Python interface's bits, dense linear algebra, allocation, threads, cache."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numba import njit, prange
from numba.core.runtime import _nrt_python, rtsys
from problems import chain
from test_layer_blocks import backward_error, dense, random_chain

import numba_hinv as nh
from numba_hinv import embedded


def filled(blocks, terminal, num_vectors=1, dtype=np.float64):
    """A system made by `embedded.chain` and filled through its views."""
    system = embedded.chain(
        [block.Dx.shape[0] for block in blocks], [block.num_params for block in blocks], num_vectors, dtype
    )
    for l, given in enumerate(blocks):
        for view, name in zip(embedded.blocks(system, l), nh.LayerBlocks.__slots__):
            view[...] = getattr(given, name)
    embedded.terminal(system)[...] = terminal
    return system


def solution(system, b, refinements):
    x = np.full_like(b, np.nan)
    embedded.solve(system, b, x, refinements)
    return x


def test_chain_of_blocks():
    blocks, terminal = random_chain(0)
    A = dense(blocks, terminal)
    H = nh.Hessian.from_blocks(blocks, terminal)
    system = filled(blocks, terminal, 3)
    b = np.random.default_rng(0).standard_normal((3, A.shape[0]))
    product = np.empty_like(b)
    embedded.multiply(system, b, product)
    np.testing.assert_array_equal(product, (H @ b.T).T)
    for damping in (1.0, 0.03, -0.4):
        F = H.factorize(damping)
        shifted = A + damping * np.eye(A.shape[0])
        code, num_negative, num_perturbed = embedded.factorize(system, damping, H.norm())
        assert (code, num_perturbed) == (embedded.OK, 0)
        assert num_negative == F.inertia.negative == (np.linalg.eigvalsh(shifted) < 0).sum()
        for k in (1, 3):
            # The library's solve is of H scaled by a power of two, of whose odd powers square roots differ in rounding.
            for row, right in zip((*solution(system, b[:k], 0), *F.solve(b[:k].T, refine=False).T), (*b[:k], *b[:k])):
                assert backward_error(shifted, row, right) < 1e-14
            for row, right in zip(solution(system, b[:k], 1), b):
                assert backward_error(shifted, row, right) < 1e-14


@pytest.mark.parametrize("num_vectors", [1, 2])
@pytest.mark.parametrize("damping", [1.0, -0.4])
def test_factorize_and_solve(damping, num_vectors):
    """The same as one after the other, in definite chains and in indefinite ones, and it leaves the same factors."""
    blocks, terminal = random_chain(0)
    shifted = dense(blocks, terminal) + damping * np.eye(sum(block.num_params for block in blocks))
    system = filled(blocks, terminal, num_vectors)
    b = np.random.default_rng(0).standard_normal((num_vectors, shifted.shape[0]))
    x = np.full_like(b, np.nan)
    for refinements in (0, 1):
        found = embedded.factorize_and_solve(system, damping, 0.0, b, x, refinements)
        assert found == (embedded.OK, (np.linalg.eigvalsh(shifted) < 0).sum(), 0)
        for row, right in zip(x, b):
            assert backward_error(shifted, row, right) < 1e-14
    again = 2.0 * b[:, ::-1].copy()
    for row, right in zip(solution(system, again, 0), again):
        assert backward_error(shifted, row, right) < 1e-14


@pytest.mark.parametrize("batch", [2, 12])
def test_net(batch):
    """With fewer samples than weights per output, and with more; the damping of either sign."""
    H = chain(5, 6, batch=batch, gain=0.5).hessian
    system = embedded.from_hessian(H)
    b = np.random.default_rng(0).standard_normal((1, H.shape[0]))
    A = H.todense()
    for damping in (0.2, -0.05):
        F = H.factorize(damping)
        code, num_negative, num_perturbed = embedded.factorize(system, damping, H.norm())
        assert (code, num_negative, num_perturbed) == (embedded.OK, F.inertia.negative, 0)
        assert num_negative == (np.linalg.eigvalsh(A) < -damping).sum()
        np.testing.assert_array_equal(solution(system, b, 0)[0], F.solve(b[0], refine=False))
        assert backward_error(A + damping * np.eye(A.shape[0]), solution(system, b, 1)[0], b[0]) < 1e-14
    # Arrays that nobody may write to, as globals of compiled code are.
    product = np.empty_like(b)
    b.flags.writeable = False
    embedded.multiply(system, b, product)
    np.testing.assert_allclose(product[0], A @ b[0], rtol=0, atol=1e-13 * np.linalg.norm(A, 2) * np.linalg.norm(b))
    np.testing.assert_array_equal(solution(system, b, 1), solution(system, b.copy(), 1))
    before = H.blocks(0).Dxx
    system.params[:] = np.nan
    np.testing.assert_array_equal(H.blocks(0).Dxx, before)


def test_float32():
    blocks, terminal = random_chain(3)
    system = filled(blocks, terminal, dtype=np.float32)
    assert {array.dtype for array in embedded.blocks(system, 1)} == {np.dtype(np.float32)}
    A = dense(blocks, terminal) + 10.0 * np.eye(system.residual.shape[1])
    b = np.ones((1, A.shape[0]), np.float32)
    assert embedded.factorize(system, 10.0, 0.0)[0] == embedded.OK
    # The residual's rounding, in float32, bounds what refinement in float32 reaches.
    assert backward_error(A, solution(system, b, 1)[0], b[0]) < 1e-6


def test_status_codes():
    blocks, terminal = random_chain(1, sizes=(3, 1))
    A = dense(blocks, terminal)
    last = blocks[-1]
    system = filled(blocks, terminal)
    # The damping that makes the last layer's pivot, the first to be eliminated, zero or what rounding makes of that.
    damping = -float((last.Dxx + last.Dx.T @ terminal @ last.Dx)[0, 0])
    norm = np.linalg.norm(A, 2)
    code, _, num_perturbed = embedded.factorize(system, damping, norm)
    assert (code, num_perturbed) == (embedded.OK, 1)
    b = np.ones((1, A.shape[0]))
    assert backward_error(A + damping * np.eye(A.shape[0]), solution(system, b, 3)[0], b[0]) < 1e-14
    embedded.blocks(system, 11)[2][...] = 0.0
    embedded.blocks(system, 11)[0][...] = 0.0
    assert embedded.factorize(system, 0.0, 0.0)[0] == embedded.SINGULAR_PIVOT
    embedded.blocks(system, 4)[1][1, 1] = np.nan
    assert embedded.factorize(system, 1.0, norm)[0] == embedded.NOT_FINITE


@njit(nogil=True)
def repeat(system, count, b, x):
    """Solves with dampings 1, 2, ..., count, the sum of which is left in x."""
    part = system.correction
    x[:] = 0.0
    total = 0
    for step in range(count):
        code, num_negative, _ = embedded.factorize(system, 1.0 + step, 0.0)
        if code != embedded.OK:
            return -1
        total += num_negative
        embedded.solve(system, b, part, 0)
        for i in range(b.shape[1]):
            x[0, i] += part[0, i]
    return total


@njit(parallel=True)
def side_by_side(systems, count, b, x):
    for i in prange(len(systems)):
        # A signed index: Numba warns of prange's own.
        repeat(systems[np.int64(i)], count, b[i : i + 1], x[i : i + 1])


def test_neither_allocates_nor_interferes():
    blocks, terminal = random_chain(5)
    b = np.random.default_rng(0).standard_normal((4, sum(block.num_params for block in blocks)))
    systems = tuple(filled(blocks, terminal) for _ in b)
    expected = np.empty_like(b)
    negative = [repeat(system, 40, b[i : i + 1], expected[i : i + 1]) for i, system in enumerate(systems)]
    assert min(negative) > 0
    were_enabled = _nrt_python.memsys_stats_enabled()
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats()
        x = np.empty_like(b)
        repeat(systems[0], 2, b[:1], x[:1])
        few = rtsys.get_allocation_stats()
        repeat(systems[0], 200, b[:1], x[:1])
        many = rtsys.get_allocation_stats()
    finally:
        if not were_enabled:
            _nrt_python.memsys_disable_stats()
    # Taking the arguments over from Python allocates; the loop does not.
    assert many.alloc - few.alloc == few.alloc - before.alloc
    H = nh.Hessian.from_blocks(blocks, terminal)
    total = sum(H.factorize(1.0 + step).solve(b.T, refine=False) for step in range(40)).T
    assert np.abs(expected - total).max() < 1e-12 * np.abs(total).max()

    shared = embedded.typed_list(systems)
    for _ in range(3):
        x = np.zeros_like(b)
        side_by_side(shared, 40, b, x)
        np.testing.assert_array_equal(x, expected)
        x = np.zeros_like(b)
        with ThreadPoolExecutor(len(systems)) as pool:
            list(pool.map(lambda i: repeat(systems[i], 40, b[i : i + 1], x[i : i + 1]), range(len(systems))))
        np.testing.assert_array_equal(x, expected)


SCRIPT = """
import numpy as np
from numba import njit
from numba_hinv import embedded

@njit(cache=True, nogil=True)
def mine(system, b, x):
    for l in range(system.table.size):
        Dx, Dz, Dxx, Dzx, Dzz = embedded.blocks(system, l)
        for i in range(Dx.shape[0]):
            Dx[i, i] = 1.0
            Dxx[i, i] = 2.0
        if l > 0:
            for i in range(Dz.shape[0]):
                Dz[i, i] = 0.5
    embedded.terminal(system)[0, 0] = 3.0
    code = embedded.factorize(system, 0.25, 0.0)[0]
    embedded.solve(system, b, x, 1)
    return code

system = embedded.chain([2] * 7, [2] * 7)
b, x = np.ones((1, 14)), np.empty((1, 14))
print(mine(system, b, x), x.tobytes().hex(), sum(mine.stats.cache_hits.values()))
"""


def test_cached_in_another_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = [str(Path(nh.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.split())
    (code, x, _), (code_again, x_again, hits) = outputs
    assert (code, code_again, hits) == ("0", "0", "1")
    assert x == x_again
    # H = 2 I + 3 w w^T, w being the derivative of the last first state in the parameters.
    weights = np.zeros(14)
    weights[0::2] = 0.5 ** np.arange(6, -1, -1)
    A = 2.25 * np.eye(14) + 3.0 * np.outer(weights, weights)
    np.testing.assert_allclose(np.frombuffer(bytes.fromhex(x)), np.linalg.solve(A, np.ones(14)), rtol=1e-14)


@pytest.mark.parametrize(
    "arguments, error, name",
    [
        (([], []), ValueError, "states"),
        ((3, [1]), TypeError, "states"),
        (([2, 0], [1, 1]), ValueError, r"states\[1\]"),
        (([2, 2.5], [1, 1]), TypeError, r"states\[1\]"),
        (([2, 2], [1]), ValueError, "parameters"),
        (([2, 2], [1, -1]), ValueError, r"parameters\[1\]"),
        (([2, 2], [0, 0]), ValueError, "parameters"),
        (([2, 2], [1, 1], 0), ValueError, "num_vectors"),
        (([2, 2], [1, 1], 1, "int64"), TypeError, "dtype"),
    ],
)
def test_wrong_arguments(arguments, error, name):
    with pytest.raises((error, ValueError) if name == "dtype" else error, match=f"^{name}: "):
        embedded.chain(*arguments)


def test_wrong_hessian():
    with pytest.raises(TypeError, match="^H: "):
        embedded.from_hessian(np.eye(3))


def test_too_large():
    with pytest.raises(MemoryError):
        embedded.chain([2_000_000] * 3, [2_000_000] * 3)
    small = embedded.chain([2] * 7, [2] * 7)
    assert embedded.nbytes(small) > 8 * 7 * 5 * 4


def test_what_goes_into_a_list():
    blocks, terminal = random_chain(2)
    system = filled(blocks, terminal)
    single = embedded.chain([1, 1], [1, 1], dtype=np.float32)
    assert (
        len(embedded.typed_list((system, system))) == len(embedded.typed_list(embedded.typed_list([system] * 2))) == 2
    )
    for given, error, reason in (
        ([], ValueError, "at least one"),
        ([system, single], ValueError, "one dtype"),
        ([system, None], TypeError, "NoneType at index 1"),
        (system, TypeError, "a sequence of System"),
    ):
        with pytest.raises(error, match=f"^systems: expected .*{reason}"):
            embedded.typed_list(given)
