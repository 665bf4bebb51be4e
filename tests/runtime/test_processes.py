"""The system around the library: processes, signals, limits on memory. Nothing is lost, nothing is half done.

Each test runs programs of its own, so that what they suffer does not hurt the test run.
"""

import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from problems import chain

import numba_hinv as nh

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


def program(text, *arguments, timeout=300, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def answer(damping):
    p = chain(4, 10, batch=2)
    return digest(p.hessian.factorize(damping).solve(p.right_hand_side()))


def answer_of(F, b):
    return digest(F.solve(b), np.array(F.slogdet()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes(method):
    """Made in the parent, used in children: by inheritance (fork) and by pickle."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    p = chain(4, 10, batch=2)
    F = p.hessian.factorize(0.1)
    b = p.right_hand_side()
    expected = answer_of(F, b)
    dampings = [0.1, 0.2, -0.05, 1.0]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        shipped = [pool.submit(answer_of, F, b) for _ in range(4)]
        own = [pool.submit(answer, d) for d in dampings]
        assert [f.result(timeout=300) for f in shipped] == [expected] * 4
        assert [f.result(timeout=300) for f in own] == [answer(d) for d in dampings]
    assert answer_of(F, b) == expected


@LINUX
def test_fork_while_threads_are_solving():
    code, out, err = program(
        """
        import os, threading, numpy as np, numba_hinv as nh
        layers = [nh.Dense(6, 6, skip=True) for _ in range(300)] + [nh.Dense(6, 2, "identity")]
        net = nh.Network(layers, "mean_squared_error")
        H = net.hessian(net.init(0), np.ones((2, 6)), np.zeros((2, 2)))
        F = H.factorize(0.1)
        b = np.arange(net.num_params) / net.num_params
        x = F.solve(b)
        stop = threading.Event()
        def work():
            while not stop.is_set():
                assert (F.solve(b) == x).all()
        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads: t.start()
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if (F.solve(b) == x).all() and (H.factorize(0.1).solve(b) == x).all() else 1)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        for t in threads: t.join()
        print("done")
        """
    )
    assert code == 0 and "done" in out, err


SOLVE = """
    import sys, hashlib, numpy as np, numba_hinv as nh
    net = nh.Network([nh.Dense(4, 4, skip=True) for _ in range(9)] + [nh.Dense(4, 3, "identity")], "mean_squared_error")
    H = net.hessian(net.init(0), np.ones((2, 4)), np.zeros((2, 3)))
    x = H.factorize(0.1).solve(np.arange(float(net.num_params)))
    print(hashlib.sha256(x.tobytes()).hexdigest())
"""


def test_without_blas_threads():
    """The number of BLAS threads may change bits of large products only; never whether the answer is right."""
    variables = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    code, out, err = program(SOLVE, **dict.fromkeys(variables, "1"))
    assert code == 0, err
    assert out.split()[-1] == program(SOLVE)[1].split()[-1]


@LINUX
def test_interrupted_in_the_middle():
    """Ctrl-C at many moments of many calls: KeyboardInterrupt, and every object gives the answer it gave before."""
    code, out, err = program(
        """
        import signal, time, numpy as np, numba_hinv as nh
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        layers = [nh.Dense(16, 16, skip=True) for _ in range(60)] + [nh.Dense(16, 2, "identity")]
        net = nh.Network(layers, "mean_squared_error")
        X, y = np.random.default_rng(0).standard_normal((8, 16)), np.zeros((8, 2))
        params = net.init(0)
        H = net.hessian(params, X, y)
        F = H.factorize(0.1)
        b = np.arange(net.num_params) / net.num_params
        B = np.outer(b, np.ones(8))
        expected = F.solve(b), H @ b, net.gradient(params, X, y), F.slogdet()
        jobs = [lambda: H.factorize(0.1).solve(b), lambda: F.solve(B), lambda: net.hessian(params, X, y).norm(),
                lambda: F.condition(), lambda: H.count_below(0.01), lambda: nh.solve(net, params, X, y, b, 0.2)]
        # Numba is left in disorder by a compilation that is interrupted: all of it comes first.
        for job in jobs: job()
        def seconds(job):
            start = time.perf_counter()
            job()
            return time.perf_counter() - start
        usual = [seconds(job) for job in jobs]
        interrupted = 0
        rng = np.random.default_rng(0)
        for trial in range(60):
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.01, 0.9) * usual[trial % len(jobs)])
            try:
                jobs[trial % len(jobs)]()
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
            if trial % 6 == 5:
                again = F.solve(b), H @ b, net.gradient(params, X, y), F.slogdet()
                for one, other in zip(expected, again):
                    np.testing.assert_array_equal(one, other)
        assert interrupted >= 5, interrupted
        print("done", interrupted)
        """
    )
    assert code == 0 and "done" in out, (out, err[-2000:])


@LINUX
def test_ctrl_c_is_heard_during_a_long_factorization():
    """Ten seconds of elimination end well before that; the process goes on."""
    text = """
        import signal, sys, time, numpy as np, numba_hinv as nh
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may start without
        n, B = 48, 40
        layers = [nh.Dense(n, n, skip=True) for _ in range(10)] + [nh.Dense(n, 2, "identity")]
        net = nh.Network(layers, "mean_squared_error")
        H = net.hessian(net.init(0), np.random.default_rng(0).standard_normal((B, n)), np.zeros((B, 2)))
        small = nh.Network([nh.Dense(2, 2)] * 3, "mean_squared_error")
        small.hessian(np.ones(18), np.ones((1, 2)), np.ones((1, 2))).factorize(1.0)
        print("ready", flush=True)
        try:
            while True:
                H.factorize(0.1)
        except KeyboardInterrupt:
            print("heard", (H @ np.ones(net.num_params)).sum() != 0, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline().strip() == "ready"
            time.sleep(2.0)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline().strip() == "heard True"
            assert time.monotonic() - start < 60
        finally:
            process.kill()


LONG = """
    import signal, sys, time, threading, numpy as np, numba_hinv as nh
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may start without
    def problem(n, B, L, out=2):
        layers = [nh.Dense(n, n, skip=True) for _ in range(L)] + [nh.Dense(n, out, "identity")]
        net = nh.Network(layers, "mean_squared_error")
        params = net.init(0)
        X = np.random.default_rng(0).standard_normal((B, n))
        return net, params, X, np.zeros((B, out))
    net, params, X, y = problem(3, 2, 4)
    F = net.hessian(params, X, y).factorize(1.0)
    F.solve(np.ones((net.num_params, 20))), net.hessian(params, X, y) @ np.ones((net.num_params, 20))
    {setup}
    print("ready", flush=True)
    try:
        while True:
            {job}
    except KeyboardInterrupt:
        print("heard", time.monotonic(), threading.active_count(), flush=True)
        {after}
        print("still right", flush=True)
"""
DEEP = (
    "net, params, X, y = problem(2, 1, 60_000); H = net.hessian(params, X, y); F = H.factorize(1.0)"
    "; B = np.ones((H.shape[0], 64)); x = F.solve(B[:, 0])"
)
JOBS = {
    "solve": (DEEP, "F.solve(B)", "assert (F.solve(B[:, 0]) == x).all()"),
    "products": (DEEP, "H @ B", "assert (F.solve(B[:, 0]) == x).all()"),
    "linearise": ("net, params, X, y = problem(300, 64, 120)", "net.hessian(params, X, y)", "net.loss(params, X, y)"),
    "many": (
        "net, params, X, y = problem(40, 24, 12); H = net.hessian(params, X, y)",
        "H.factorize_many(np.linspace(0.1, 1.0, 50))",
        "assert len(H.factorize_many([10.0])) == 1",
    ),
    "checkpoints": (
        DEEP + "; C = H.factorize(1.0, checkpoint=True)",
        "C.solve(B)",
        "assert (C.solve(B[:, 0]) == x).all()",
    ),
}


@LINUX
@pytest.mark.parametrize("name", JOBS)
def test_ctrl_c_is_heard_in(name):
    """Jobs of many seconds end soon after the signal, their threads with them, and leave everything as it was."""
    setup, job, after = JOBS[name]
    text = textwrap.dedent(LONG).format(setup=setup, job=job, after=after)
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline().strip() == "ready", process.stderr.read()
            time.sleep(1.0)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            heard = process.stdout.readline().split()
            assert heard[:1] == ["heard"], process.stderr.read()
            # Far from the second that it takes on a free machine, and from the whole job.
            assert float(heard[1]) - start < 30 and heard[2] == "1"
            assert process.stdout.readline().strip() == "still right", process.stderr.read()
        finally:
            process.kill()


@LINUX
def test_a_limit_on_memory():
    """RLIMIT_AS: MemoryError that names the arguments, or NumPy's own; afterwards smaller work goes on as before."""
    code, out, err = program(
        """
        import resource, numpy as np, numba_hinv as nh
        def net_of(width, depth):
            layers = [nh.Dense(width, width, skip=True) for _ in range(depth)] + [nh.Dense(width, 2, "identity")]
            return nh.Network(layers, "mean_squared_error")
        def hessian(net, B):
            X = np.random.default_rng(0).standard_normal((B, net.layers[0].in_features))
            return net.hessian(net.init(0), X, np.zeros((B, 2)))
        small = hessian(net_of(4, 5), 3)
        F = small.factorize(0.1)
        b = np.arange(float(small.shape[0]))
        x = F.solve(b)
        big = hessian(net_of(32, 40), 60)
        with open("/proc/self/statm") as f:
            used = int(f.read().split()[0]) * resource.getpagesize()
        failures = 0
        for spare in (1 << 20, 1 << 22, 1 << 24, 1 << 26):
            resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
            for job in (lambda: big.factorize(0.1), lambda: big.todense(), lambda: F.solve(np.ones((b.size, 10**6))),
                        lambda: hessian(net_of(64, 100), 3000)):
                try:
                    job()
                except MemoryError as error:
                    failures += 1
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert (F.solve(b) == x).all() and (small.factorize(0.1).solve(b) == x).all()
        try:
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 26), resource.RLIM_INFINITY))
            big.factorize(0.1)
        except MemoryError as error:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print(error)
        assert failures >= 12, failures
        print("done", failures)
        """
    )
    assert code == 0 and "done" in out, (out, err[-3000:])
    assert "bytes" in out and "B = 60 samples" in out and "41 layers" in out


SMALL = """
    import numpy as np, numba_hinv as nh
    net = nh.Network([nh.Dense(1, 1)], "mean_squared_error")
    print(net.loss(np.ones(2), np.ones((1, 1)), np.zeros((1, 1))).hex())
"""


def test_a_cache_directory_that_cannot_be_written(tmp_path):
    """A file stands where the cache should be: compiled code is kept elsewhere or nowhere, answers are the same."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, out, err = program(SMALL, NUMBA_CACHE_DIR=str(blocked / "cache"))
    assert code == 0, err
    assert out.split()[-1] == program(SMALL)[1].split()[-1]


def run_with_cache(directory, first="", **environment):
    """(loss, standard error) of `SMALL` in a fresh process with this cache directory, after the statement ``first``."""
    text = first + "\n" + textwrap.dedent(SMALL)
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NUMBA_CACHE_DIR": str(directory), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1], done.stderr


def files_of(directory):
    return {path: path.read_bytes() for suffix in ("*.nbi", "*.nbc") for path in directory.rglob(suffix)}


def test_a_damaged_cache_and_one_of_another_version_are_not_believed(tmp_path):
    expected, err = run_with_cache(tmp_path)
    assert "Warning" not in err
    good = files_of(tmp_path)
    assert good
    # As Numba would find it after an upgrade: its version, then what only that version can read.
    for path in good:
        path.write_bytes(pickle.dumps("0.1.0") + b"unknown" if path.suffix == ".nbi" else b"unknown")
    assert run_with_cache(tmp_path) == (expected, "")
    assert {pickle.loads(path.read_bytes()) for path in good if path.suffix == ".nbi"} == {numba.__version__}
    # As a crash or a full disk may leave it.
    for damaged in (".nbi", ".nbc"):
        for path, content in files_of(tmp_path).items():
            if path.suffix == damaged:
                path.write_bytes(content[: len(content) // 2])
        found, err = run_with_cache(tmp_path)
        assert found == expected and ("cache cannot be used" in err or damaged == ".nbc")
        for path, content in good.items():
            path.write_bytes(content)


@LINUX
def test_a_cache_that_cannot_grow(tmp_path):
    """No file may be larger than 1,000 bytes: writes fail as on a full disk, and code is used unsaved."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))"
    found, err = run_with_cache(tmp_path, limit)
    assert "cache cannot be used" in err and str(tmp_path) in err and not files_of(tmp_path)
    # Nothing half written is in the way later.
    assert run_with_cache(tmp_path) == (found, "") and files_of(tmp_path)


@LINUX
def test_a_full_disk(tmp_path):
    """A file system of 64 kB, where this process may mount one in a namespace of its own."""
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no right to mount file systems")
    done = subprocess.run(
        [*mount, sys.executable, "-c", textwrap.dedent(SMALL)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == program(SMALL)[1].split()[-1] and "No space left" in done.stderr


@LINUX
def test_a_read_only_cache(tmp_path):
    """All that could hold a cache is read-only, also for root, who gives up the right to pass over permissions."""
    package = tmp_path / "numba_hinv"
    shutil.copytree(Path(nh.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path / "home"
    home.mkdir()
    directories = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for path in directories:
        path.chmod(0o555)
    try:
        drop = "import ctypes; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)"  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
        done = subprocess.run(
            [sys.executable, "-c", f"{drop}; import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]
            + ["-c", "import os; assert not os.access('.', os.W_OK)\n" + textwrap.dedent(SMALL)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env={
                **os.environ,
                **dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), str(home)),
                "PYTHONPATH": str(tmp_path),
            },
        )
    finally:
        for path in directories:
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == program(SMALL)[1].split()[-1]
    assert not files_of(tmp_path)


@pytest.mark.slow
def test_several_processes_fill_one_cache(tmp_path):
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SMALL)],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    answers = set()
    for command in commands:
        out, err = command.communicate(timeout=300)
        assert command.returncode == 0, err
        answers.add(out)
    assert len(answers) == 1


def test_objects_of_many_sizes_come_and_go():
    """No buffer of one solve is read by another: interleaved, the answers are those of each alone."""
    cases = [chain(3 + k % 4, 3 + k, batch=1 + 3 * k, seed=k) for k in range(5)]
    made = [(p.hessian.factorize(0.3 * p.norm), p.right_hand_side(1 + k)) for k, p in enumerate(cases)]
    expected = [digest(F.solve(b)) for F, b in made]
    for k in np.random.default_rng(0).integers(0, 5, 60):
        F, b = made[k]
        assert digest(F.solve(b)) == expected[k]
    assert all(isinstance(F, nh.Factorization) for F, _ in made)
