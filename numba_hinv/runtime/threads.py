"""Threads: how many, and running independent jobs on them.

Jobs release the interpreter lock in compiled code, so Python threads suffice. BLAS has threads of its own, whose
number OPENBLAS_NUM_THREADS sets before the process starts: jobs that reach BLAS run on as many threads as leave each
BLAS its own, and never need more than there are cores. The number of these threads never changes a result.
"""

import collections
import contextlib
import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy.linalg import cython_blas

from .annotations import Check
from .validation import as_size

# How many cores the jobs that a thread starts may have: those of a job that `run` has started are its share.
_granted = threading.local()
_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def available_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


@functools.cache
def _openblas(name: str) -> Any:
    """A function of SciPy's OpenBLAS by its name there, or None."""
    # Loaded already: by these names nothing else is. Where the system looks for a symbol in what a library is linked
    # to, SciPy's own one will do.
    bundled = Path(scipy.__file__).parent.with_name("scipy.libs").glob("libscipy_openblas*")
    for path, prefix in itertools.product((cython_blas.__file__, *bundled), ("scipy_openblas", "openblas")):
        try:
            return getattr(ctypes.CDLL(str(path)), f"{prefix}_{name}")
        except (OSError, AttributeError):
            continue
    return None


def blas_threads() -> int:
    """Threads of SciPy's BLAS: asked of OpenBLAS, else by the environment, else one a core."""
    count = _openblas("get_num_threads")
    if count is not None:
        return int(count())
    for name in _VARIABLES:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value):
            return int(value)
    return available_cores()


def blas_core() -> str:
    """The processor that SciPy's BLAS has kernels for and has chosen: asked of OpenBLAS; "unknown" of others."""
    name = _openblas("get_corename")
    if name is None:
        return "unknown"
    name.restype = ctypes.c_char_p
    return name().decode()


def num_workers(num_threads: int | None, num_jobs: int, reach_blas: bool) -> int:
    """Threads for independent jobs.

    Parameters
    ----------
    num_threads : int or None
        The caller's limit; None is one a core. In a job of `run`, no more than its share of the cores.
    num_jobs : int
    reach_blas : bool
        Whether the jobs call BLAS, which brings its own threads.
    """
    limit = None if num_threads is None else as_size("num_threads", num_threads)
    if num_jobs <= 1:
        return 1
    cores = available_cores() if limit is None else limit
    cores = min(cores, getattr(_granted, "cores", cores))
    return max(1, min(num_jobs, cores // blas_threads() if reach_blas else cores))


@contextlib.contextmanager
def limited(num_threads: int | None) -> Iterator[None]:
    """In this block and thread, jobs have at most so many cores; as many as before for None."""
    before = getattr(_granted, "cores", None)
    if num_threads is not None:
        limit = as_size("num_threads", num_threads)
        _granted.cores = limit if before is None else min(limit, before)
    try:
        yield
    finally:
        if before is None:
            _granted.__dict__.pop("cores", None)
        else:
            _granted.cores = before


def no_check() -> None:
    """Nobody cancels."""


class Cancelled(Exception):
    """Raised inside a job that is no longer wanted."""


class JobFailed(Exception):
    """The first job that failed, in their order; the reason is the ``__cause__``."""

    __cause__: BaseException

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def _pool(workers: int) -> ThreadPoolExecutor | None:
    """So many threads, all started; None for one, or where the system starts no more (limits of memory or tasks)."""
    if workers <= 1:
        return None
    pool, begin = ThreadPoolExecutor(workers, "numba_hinv"), threading.Event()
    try:
        # A thread that waits takes nothing else, so that each of these starts another.
        for _ in range(workers):
            pool.submit(begin.wait)
        return pool
    except BaseException as error:
        begin.set()
        pool.shutdown()
        if isinstance(error, RuntimeError):
            return None
        raise
    finally:
        begin.set()


def run(jobs: Sequence[Callable[[Check], Any]], workers: int) -> list[Any]:
    """Results of ``job(check)`` of every job, in their order.

    ``check()`` is for a job to call now and then; it raises `Cancelled` where the job is no longer wanted: after
    Ctrl-C, or after a job before it has failed. That job is the one which `JobFailed` names, however the threads ran.
    Where so many threads cannot be started, the jobs run in this one.
    """
    jobs = list(jobs)
    pool = _pool(min(workers, len(jobs)))
    if pool is None:
        results = []
        for index, job in enumerate(jobs):
            try:
                results.append(job(no_check))
            except Exception as error:
                raise JobFailed(index) from error
        return results
    return _run_in(pool, jobs, workers)


def _run_in(pool: ThreadPoolExecutor, jobs: Sequence[Callable[[Check], Any]], workers: int) -> list[Any]:
    # The index of the first failure: what comes after it is not wanted.
    failed = [len(jobs)]
    lock = threading.Lock()
    share = max(1, getattr(_granted, "cores", available_cores()) // workers)

    def guarded(index: int) -> Any:
        def check() -> None:
            if failed[0] < index:
                raise Cancelled

        check()
        _granted.cores = share
        try:
            return jobs[index](check)
        except Cancelled:
            raise
        except BaseException:
            with lock:
                failed[0] = min(failed[0], index)
            raise

    with pool:
        try:
            futures = [pool.submit(guarded, index) for index in range(len(jobs))]
            left = set(futures)
            while left:
                # With a limit, so that Ctrl-C is heard on every system.
                _, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
        except BaseException:
            failed[0] = -1
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failed[0] < len(jobs):
        raise JobFailed(failed[0]) from futures[failed[0]].exception()
    return [future.result() for future in futures]


def in_order(jobs: Iterable[Callable[[], Any]], workers: int) -> Iterator[Any]:
    """Results of jobs without arguments, in their order, the jobs being asked for as they are needed.

    At most ``workers`` of them are at work or waiting to be taken, so that memory is that of so many.

    Parameters
    ----------
    jobs : iterable of callables
        Gone through in the thread that asks for results.
    workers : int
    """
    pool = _pool(workers)
    if pool is None:
        for job in jobs:
            yield job()
        return
    share = max(1, getattr(_granted, "cores", available_cores()) // workers)

    def granted(job: Callable[[], Any]) -> Any:
        _granted.cores = share
        return job()

    with pool:
        ahead: collections.deque[Future[Any]] = collections.deque()
        try:
            for job in jobs:
                ahead.append(pool.submit(granted, job))
                if len(ahead) == workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def run_stages(stages: Any, workers: int, check: Check = no_check) -> None:
    """Run the jobs of one stage after the other, those of a stage in any order, on ``workers`` threads.

    Parameters
    ----------
    stages : iterator of lists of callables without arguments
        Asked for the next stage once all jobs of the one before are done.
    workers : int
    check : callable
        Called before every job; what it raises, as what a job or a stage raises, ends the work.
    """
    pool = _pool(workers)
    if pool is None:
        for stage in stages:
            for job in stage:
                check()
                job()
        return
    jobs: collections.deque[Callable[[], Any]] = collections.deque()
    is_done = [False]

    def advance() -> None:
        stage = next(stages, None)
        is_done[0] = stage is None
        jobs.extend(stage or ())

    barrier = threading.Barrier(workers, advance)

    def work(wanted: Any) -> None:
        try:
            while True:
                barrier.wait()
                if is_done[0]:
                    return
                while jobs:
                    try:
                        job = jobs.popleft()
                    except IndexError:
                        break
                    wanted()
                    check()
                    job()
        except threading.BrokenBarrierError:
            raise Cancelled from None
        except BaseException:
            barrier.abort()
            raise

    try:
        _run_in(pool, [work] * workers, workers)
    except JobFailed as failure:
        raise failure.__cause__ from None


def run_each(jobs: Sequence[Callable[[Check], Any]], workers: int, name: str, single: bool) -> list[Any]:
    """`run` of one job an entry of ``name``: a ``LinAlgError`` about a ``single`` one says which entry it was."""
    try:
        return run(jobs, workers)
    except JobFailed as failure:
        error = failure.__cause__
        if isinstance(error, np.linalg.LinAlgError):
            reason = str(error).removeprefix(f"{single}: ")
            raise np.linalg.LinAlgError(f"{name}: at index {failure.index}: {reason}") from None
        raise error from None
