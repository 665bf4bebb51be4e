"""`factorize_many`: on any number of threads, the bits of `factorize`; the first damping that fails is named."""

import threading
import time

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh
from numba_hinv.runtime import threads

DAMPINGS = [0.1, 1.0, -0.05, 0.3, -2.0, 0.1, 30.0]


@pytest.mark.parametrize("dtype", [None, np.float32])
@pytest.mark.parametrize("num_threads", [None, 1, 2, 5])
def test_the_bits_of_factorize(num_threads, dtype):
    problem = chain(5, 20, batch=3, gain=0.4)
    b = problem.right_hand_side(2)
    H = problem.net.hessian(problem.params, problem.X, problem.y)
    found = H.factorize_many(DAMPINGS, dtype, num_threads=num_threads)
    assert [F.damping for F in found] == DAMPINGS
    for F, damping in zip(found, DAMPINGS):
        alone = problem.hessian.factorize(damping, dtype)
        np.testing.assert_array_equal(F.solve(b), alone.solve(b))
        assert F.inertia == alone.inertia and F.slogdet() == alone.slogdet()


def test_large_pivots_and_checkpoints():
    """Products that go to BLAS; and factors that are made again."""
    problem = chain(14, 4, batch=14, gain=0.4)
    assert problem.hessian.system.reaches_blas() and not chain(5, 20, batch=3).hessian.system.reaches_blas()
    b = problem.right_hand_side()
    for checkpoint in (False, True):
        for F, damping in zip(problem.hessian.factorize_many(DAMPINGS[:3], None, checkpoint), DAMPINGS):
            assert F.checkpoint == checkpoint
            np.testing.assert_array_equal(F.solve(b), problem.hessian.factorize(damping).solve(b))


def test_none_at_all():
    assert chain(3, 3).hessian.factorize_many([]) == []


@pytest.mark.parametrize("num_threads", [1, 4])
def test_the_first_singular_one_is_named(num_threads):
    problem = chain(3, 4, batch=2, gain=0.7)
    eigenvalues = np.linalg.eigvalsh(problem.hessian.todense())
    far = 0.5 * (eigenvalues[0] + eigenvalues[-1]) + 10.0
    for _ in range(5):
        with pytest.raises(np.linalg.LinAlgError, match=r"dampings: at index 2: .*singular"):
            problem.hessian.factorize_many(
                [far, 2 * far, -eigenvalues[-1], far, -eigenvalues[0], far], num_threads=num_threads
            )
    assert threading.active_count() < 4


@pytest.mark.parametrize(
    "dampings, error", [([0.1, np.nan], ValueError), (0.1, ValueError), ("much", TypeError), ([[0.1]], ValueError)]
)
def test_bad_dampings(dampings, error):
    with pytest.raises(error, match="dampings"):
        chain(3, 3).hessian.factorize_many(dampings)


@pytest.mark.parametrize("count, error", [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_num_threads(count, error):
    with pytest.raises(error, match="num_threads"):
        chain(3, 3).hessian.factorize_many([0.1], num_threads=count)


def test_never_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    for blas, expected in ((1, 8), (2, 4), (3, 2), (8, 1), (16, 1)):
        monkeypatch.setattr(threads, "blas_threads", lambda: blas)
        assert threads.num_workers(None, 100, True) == expected
        assert threads.num_workers(None, 100, False) == 8
        assert threads.num_workers(3, 100, False) == 3
        assert threads.num_workers(None, 2, False) == 2


def test_the_number_of_blas_threads_is_that_of_the_process():
    count = threads.blas_threads()
    assert 1 <= count <= 1024
    assert 1 <= threads.available_cores() <= 4096


def test_run_keeps_order_and_stops_what_comes_after_a_failure():
    assert threads.run([lambda check, k=k: k * k for k in range(20)], 4) == [k * k for k in range(20)]
    finished, failing = [], threading.Event()

    def job_of(index):
        def job(check):
            if index == 1:
                failing.set()
                raise ValueError("one")
            if index == 3:
                raise ValueError("three")
            failing.wait()
            # A minute in which to be stopped, for all but the job that comes before the failure.
            for _ in range(60_000 if index > 1 else 50):
                check()
                time.sleep(0.001)
            finished.append(index)

        return job

    with pytest.raises(threads.JobFailed) as caught:
        threads.run([job_of(index) for index in range(12)], 3)
    assert caught.value.index == 1 and str(caught.value.__cause__) == "one"
    assert finished == [0]


def test_the_hessian_serves_many_threads_first_of_all():
    """Everything that factorizations share is made in one place, before there are threads."""
    problem = chain(4, 12, batch=2, gain=0.3)
    expected = [problem.hessian.factorize(d).slogdet() for d in DAMPINGS]
    for _ in range(5):
        H = problem.net.hessian(problem.params, problem.X, problem.y)
        assert [F.slogdet() for F in H.factorize_many(DAMPINGS, num_threads=7)] == expected
    assert isinstance(nh.Hessian.factorize_many.__doc__, str)
