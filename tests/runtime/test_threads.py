"""Several Python threads at once get right answers: the kernels release the interpreter lock and share no workspace."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from problems import chain, norm_estimate

import numba_hinv as nh
from numba_hinv.runtime import threads

WORKERS = 6


def together(functions):
    """Run all of them at once, started by a barrier, and return their results in order."""
    barrier = threading.Barrier(len(functions))

    def run(function):
        barrier.wait(timeout=60)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [f.result(timeout=300) for f in [pool.submit(run, function) for function in functions]]


def test_one_factorization_many_threads():
    problem = chain(6, 40, batch=3, gain=0.3)
    F = problem.hessian.factorize(damping=0.1)
    sides = [problem.right_hand_side(*([] if k % 2 else [k + 1]), seed=k) for k in range(WORKERS)]
    expected = [F.solve(b) for b in sides]
    for _ in range(5):
        results = together([lambda b=b: [F.solve(b) for _ in range(10)] for b in sides])
        for answers, x in zip(results, expected):
            for answer in answers:
                np.testing.assert_array_equal(answer, x)


def test_one_operator_many_threads():
    problem = chain(6, 40, batch=3, gain=0.3)
    H = problem.hessian
    sides = [problem.right_hand_side(2, seed=k) for k in range(WORKERS)]
    expected = [H @ b for b in sides]
    dampings = [0.1, 0.2, -0.05, 0.5, 1.0, 0.05]
    solutions = [H.factorize(damping=d).solve(b) for d, b in zip(dampings, sides)]

    def work(k):
        return [(H @ sides[k], H.factorize(damping=dampings[k]).solve(sides[k])) for _ in range(10)]

    for k, answers in enumerate(together([lambda k=k: work(k) for k in range(WORKERS)])):
        for product, x in answers:
            np.testing.assert_array_equal(product, expected[k])
            np.testing.assert_array_equal(x, solutions[k])


def test_many_nets_many_threads():
    cases = [
        chain(3 + k % 3, 4 + 5 * k, batch=1 + 2 * k, seed=k, gain=0.5, activation=a, loss=loss)
        for k, (a, loss) in enumerate(
            [
                ("tanh", "softmax_cross_entropy"),
                ("gelu", "mean_squared_error"),
                ("silu", "binary_cross_entropy"),
                ("sin", "softmax_cross_entropy"),
                ("softplus", "mean_squared_error"),
                ("relu", "softmax_cross_entropy"),
            ]
        )
    ]

    dampings = {p: 0.3 * norm_estimate(p.hessian) for p in cases}

    def work(p, dtype):
        params, b = p.params.astype(dtype), p.right_hand_side().astype(dtype)
        return p.net.loss(params, p.X, p.y), nh.solve(p.net, params, p.X, p.y, b, damping=dampings[p])

    jobs = [(p, dtype) for p in cases for dtype in (np.float64, np.float32)]
    expected = [work(*job) for job in jobs]
    for _ in range(3):
        for (loss, x), (expected_loss, expected_x) in zip(together([lambda j=j: work(*j) for j in jobs]), expected):
            assert loss == expected_loss
            np.testing.assert_array_equal(x, expected_x)


def test_first_use_in_many_threads_at_once():
    """Registered functions are compiled at their first use, which may happen in several threads together."""

    @nh.register_activation("test_threads_square")
    def square(u):
        return u * u, 2 * u, 2.0

    X, y = np.ones((2, 2)), np.zeros((2, 2))

    def work():
        net = nh.Network([nh.Dense(2, 2, "test_threads_square")], "mean_squared_error")
        return nh.solve(net, np.arange(6.0), X, y, np.ones(6), damping=1.0)

    results = together([work] * WORKERS)
    for x in results:
        np.testing.assert_array_equal(x, results[0])


def test_many_right_hand_sides_on_any_number_of_threads():
    """Blocks of columns are the same whatever the threads, so that the bits are; each is right by its residual."""
    for width, depth in ((6, 20), (60, 12)):
        problem = chain(width, depth, batch=2, gain=0.3)
        H = problem.hessian
        damping = 0.3 * norm_estimate(H)
        F = H.factorize(damping)
        b = problem.right_hand_side(70)
        expected = F.solve(b, num_threads=1)
        assert np.linalg.norm(b - H @ expected - damping * expected) <= 1e-11 * np.linalg.norm(b)
        for count in (None, 2, 3, 8):
            x, info = F.solve(b, full_output=True, num_threads=count)
            np.testing.assert_array_equal(x, expected)
            assert info.backward_error.shape == (70,) and info.backward_error.max() <= 1e-14
        for dtype in (np.float32, np.float64):
            x = F.solve(np.asfortranarray(b.astype(dtype)), num_threads=3)
            np.testing.assert_array_equal(x, F.solve(b.astype(dtype)))
        read_only = b.copy()
        read_only.setflags(write=False)
        np.testing.assert_array_equal(F.solve(read_only), expected)


def test_a_solution_that_overflows_in_one_of_many_blocks():
    problem = chain(60, 12, batch=2, gain=0.3)
    F = problem.hessian.factorize(1e-3 * norm_estimate(problem.hessian))
    b = problem.right_hand_side(70)
    b[:, 41] *= 1e307
    with pytest.raises(np.linalg.LinAlgError, match="overflows"):
        F.solve(b, num_threads=3)
    assert threading.active_count() < 5


def test_right_hand_sides_in_any_order_of_memory():
    """Columns that lie in rows, in columns or apart are the same right-hand sides, to the bit, and stay as they are."""
    problem = chain(60, 12, batch=2, gain=0.3)
    H = problem.hessian
    assert H.shape[0] > 1 << 15 and H.shape[0] % 8
    damping = 0.3 * norm_estimate(H)
    F = H.factorize(damping)
    for count in (1, 3, 8, 21):
        b = np.ascontiguousarray(problem.right_hand_side(count).reshape(H.shape[0], count))
        apart = np.zeros((2 * H.shape[0], count + 3))[::2, 1 : count + 1]
        apart[...] = b
        x, product = F.solve(b), H @ b
        assert x.flags.f_contiguous
        residual = np.linalg.norm(b - H @ x - damping * x, axis=0)
        assert (residual <= 1e-11 * np.linalg.norm(b, axis=0)).all()
        for other in (np.asfortranarray(b), apart):
            np.testing.assert_array_equal(F.solve(other), x)
            np.testing.assert_array_equal(H @ other, product)
            np.testing.assert_array_equal(other, b)
        np.testing.assert_array_equal(F.solve(b.astype(np.float32).astype(float)), F.solve(b.astype(np.float32)))
        bad = np.asfortranarray(b)
        bad[H.shape[0] - 2, count - 1] = np.nan
        for use in (F.solve, H.__matmul__):
            with pytest.raises(ValueError, match=rf"finite.*\({H.shape[0] - 2}, {count - 1}\)"):
                use(bad)


def test_a_thread_with_a_small_stack():
    """128 kB, where scratch of large products would not fit. What is compiled first is compiled with more."""
    code = """
import threading, sys
import numpy as np, numba_hinv as nh
net = nh.Network([nh.Dense(300, 300, "tanh"), nh.Dense(300, 3, "identity")], "mean_squared_error")
rng = np.random.default_rng(0)
H = net.hessian(net.init(0), rng.standard_normal((2, 300)), np.zeros((2, 3)))
work = lambda: found.append(H.factorize(1.0).solve(H.gradient))
found = []
work()
threading.stack_size(128 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert (found[0] == found[1]).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_results_in_order_and_no_job_asked_for_before_its_turn():
    asked, done = [], []

    def jobs():
        for k in range(9):
            asked.append(k)
            yield lambda k=k: done.append(k) or k

    results = threads.in_order(jobs(), 3)
    assert next(results) == 0
    assert len(asked) == 3
    assert [*results] == list(range(1, 9))
    assert sorted(done) == list(range(9))


def test_the_first_failure_of_jobs_in_order_ends_them():
    def job(k):
        if k == 4:
            raise KeyError(k)
        return k

    for workers in (1, 3):
        results = threads.in_order((lambda k=k: job(k) for k in range(9)), workers)
        assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(KeyError, match="4"):
            next(results)


@pytest.mark.parametrize("possible", [0, 2])
def test_threads_that_cannot_be_started(monkeypatch, possible):
    """As under a limit on memory or tasks: the jobs run where they were asked for, and none runs twice or waits."""
    start, started = threading.Thread.start, []

    def refusing(thread):
        if len(started) == possible:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    for use in (
        lambda jobs: threads.run([lambda check, job=job: job() for job in jobs], 3),
        lambda jobs: [*threads.in_order(jobs, 3)],
        lambda jobs: threads.run_stages(iter([jobs[:4], jobs[4:]]), 3),
    ):
        started.clear()
        done = []
        use([lambda k=k: done.append((k, threading.current_thread())) for k in range(9)])
        assert done == [(k, threading.current_thread()) for k in range(9)]
        assert len(started) == possible and not any(thread.is_alive() for thread in started)


def test_products_of_batches_do_not_depend_on_threads(monkeypatch):
    rng = np.random.default_rng(0)
    net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], "mean_squared_error")
    params, X, y = net.init(rng=0), rng.standard_normal((50, 3)), rng.standard_normal((50, 2))
    v = rng.standard_normal(net.num_params)
    found = []
    for cores in (1, 4):
        monkeypatch.setattr(threads, "available_cores", lambda cores=cores: cores)
        for keep_bytes in (0, None):
            H = net.hessian(params, [(X, y)], keep_bytes=keep_bytes, batch_size=8)
            found.append([*(H @ v), *H.gradient])
    np.testing.assert_array_equal(found, found[:1] * 4)
    np.testing.assert_allclose(found[0][: v.size], net.hessian(params, X, y) @ v, rtol=0, atol=1e-14)
