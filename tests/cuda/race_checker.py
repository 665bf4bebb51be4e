"""A race checker for CUDA kernels on Numba's simulator.

It runs the threads of a block one after the other from barrier to barrier, in the place of the simulator, and notes
every access to an element of shared and of global memory by block, thread and barrier epoch. It finds, whichever thread
happened to come first:

- two threads of a block that touch one element between the same two barriers, one of them writing;
- two blocks of a launch that touch one element, one of them writing, unless both do so by atomics;
- threads of a block that are at different barriers, or some at a barrier while others have ended;
- an element of shared memory that is read before anything was written there, and indices out of range;
- grids, blocks and shared memory that a GPU refuses.

Shared, local and fresh global memory holds NaN and a large integer before it is written, so that what a kernel takes
from there shows in its results.

Kernels of the library have neither warp-level functions nor fences; one that calls any is refused until the checker
knows what they order.
"""

import contextlib
import functools
import itertools
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numba.cuda
import numpy as np
from numba.cuda.simulator.kernelapi import Dim3
from numba.np.numpy_support import as_dtype
from tracked_memory import Accesses, Atomic, Local, Tracked, poisoned

from numba_hinv.cuda.plumbing import simulator

# CUDA C programming guide, "Technical specifications"; the shared memory is that of compute capability 9.0. Then names
# of `cuda` that the checker does not know.
MOST_BLOCKS, MOST_THREADS, MOST_SHARED = (2**31 - 1, 2**16 - 1, 2**16 - 1), 1024, 227 * 1024
UNKNOWN = (
    "activemask",
    "all_sync",
    "any_sync",
    "ballot_sync",
    "cg",
    "eq_sync",
    "match_all_sync",
    "match_any_sync",
    "nanosleep",
    "shfl_down_sync",
    "shfl_sync",
    "shfl_up_sync",
    "shfl_xor_sync",
    "syncwarp",
    "threadfence",
    "threadfence_block",
    "threadfence_system",
)


class Finding(NamedTuple):
    kind: str  # "race", "blocks", "barrier", "uninitialised", "index" or "launch"
    kernel: str
    first: str  # source line of the earlier access
    second: str  # of the later one, and of its callers

    def __str__(self):
        return f"{self.kind} in {self.kernel}: {self.first} and {self.second}"


class Found(Exception):
    """What ends a launch: threads cannot go on, or the caller wants nothing but the first finding."""


class _Ended(Exception):
    """Raised in threads that wait at a barrier once their launch has failed."""


def line_of(place):
    """file:line of the place of an instruction, (code object, offset)."""
    code, instruction = place
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= instruction < end and number is not None:
            line = number
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{line}"


class _Worker(threading.Thread):
    """A thread of Python that runs one thread of a block after the other, when it is its turn."""

    def __init__(self):
        super().__init__(daemon=True)
        self.turn, self.job = threading.Lock(), None
        self.turn.acquire()
        self.start()

    def run(self):
        while True:
            self.turn.acquire()
            if self.job is None:
                return
            self.job()

    def end(self):
        self.job = None
        self.turn.release()
        self.join()


class RaceChecker:
    """Context manager: kernels that are launched in it are checked, and `findings` counts what is found.

    Parameters
    ----------
    without : (file name, line) of a barrier that kernels run without, or None
    first_only : whether the first finding ends the launch, by `Found`
    """

    def __init__(self, without=None, first_only=False):
        self.without, self.first_only = without, first_only
        self.findings = {}
        # (file name, line) of the barriers that were passed, and names of the kernels that were launched.
        self.barriers, self.kernels = set(), set()
        self._accesses, self._workers, self._done = Accesses(self), [], threading.Lock()
        self._done.acquire()
        self._launches = threading.Lock()

    def __enter__(self):
        names = {
            "grid": self._grid,
            "gridsize": self._gridsize,
            "syncthreads": self._syncthreads,
            "syncthreads_or": self._syncthreads_or,
            "syncthreads_and": self._syncthreads_and,
            "syncthreads_count": self._syncthreads_count,
            "atomic": Atomic(),
            "shared": self,
            "local": Local(),
            **{name: _Unknown(name) for name in UNKNOWN},
        }
        names |= dict.fromkeys(("threadIdx", "blockIdx", "blockDim", "gridDim"))
        self._left = contextlib.ExitStack()
        for name, value in names.items():
            self._set(simulator.cuda, name, value)
        self._set(simulator, "run", self.run)
        device_array = numba.cuda.device_array

        def fresh(*arguments, **options):
            array = device_array(*arguments, **options)
            poisoned(array._ary)
            return array

        self._set(numba.cuda, "device_array", fresh)
        return self

    def __exit__(self, *error):
        self._left.close()
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _set(self, owner, name, value):
        if name in vars(owner):
            self._left.callback(setattr, owner, name, getattr(owner, name))
        else:
            self._left.callback(delattr, owner, name)
        setattr(owner, name, value)

    def report(self, kind, first, frame, text=None):
        """Note a finding: the place of an earlier access, and the frame of this one."""
        second = []
        while frame is not None and frame.f_code is not RaceChecker._thread.__code__:
            second.append(line_of((frame.f_code, frame.f_lasti)))
            frame = frame.f_back
        finding = Finding(kind, self._kernel, text or (line_of(first) if first else ""), " < ".join(second))
        self.findings[finding] = self.findings.get(finding, 0) + 1
        if self.first_only:
            raise Found(str(finding))

    # Launches.

    def run(self, kernel, grid, block, shared, arguments):
        """`simulator.run`, one thread at a time."""
        with self._launches:
            self._run(kernel, (*np.atleast_1d(grid).tolist(), 1, 1)[:3], block, shared, arguments)

    def _run(self, kernel, grid, block, shared, arguments):
        cuda, accesses = simulator.cuda, self._accesses
        function = kernel[grid, block, 0, shared].py_func
        self._kernel = function.__name__
        self.kernels.add(f"{function.__module__.rpartition('.')[2]}.{function.__qualname__.rpartition('.')[2]}")
        if any(not 0 < count <= most for count, most in zip(grid, MOST_BLOCKS)):
            self.report("launch", None, None, f"a grid of {grid}")
        if block > MOST_THREADS:
            self.report("launch", None, None, f"{block} threads")
        accesses.everywhere.clear()

        def track(array):
            return Tracked(array, accesses, accesses.everywhere)

        self._arguments = [simulator.bare(argument, track, track) for argument in arguments]
        self._function, self._dynamic = function, shared
        while len(self._workers) < block:
            self._workers.append(_Worker())
        cuda.blockDim, cuda.gridDim = Dim3(block, 1, 1), Dim3(*grid)
        self._indices = [Dim3(rank, 0, 0) for rank in range(block)]
        for x, y, z in itertools.product(*map(range, grid)):
            cuda.blockIdx = Dim3(x, y, z)
            self._run_block(block)

    def _run_block(self, count):
        self._accesses.start_block()
        self._arrays, self._bytes = {}, self._dynamic
        self._error, self._stopped, self._live, self._at, self._waiting = None, False, list(range(count)), 0, {}
        for rank in range(count):
            self._workers[rank].job = functools.partial(self._thread, rank)
        self._wake(0)
        self._done.acquire()
        if self._bytes > MOST_SHARED:
            self.report("launch", None, None, f"{self._bytes} bytes of shared memory")
        if self._error is not None:
            raise self._error

    def _wake(self, rank):
        self._accesses.thread = rank
        simulator.cuda.threadIdx = self._indices[rank]
        self._workers[rank].turn.release()

    def _pass_on(self):
        """Hand the turn to the next thread that has not yet come to the barrier, or to the first once all have."""
        self._at += 1
        if self._at == len(self._live):
            self._meet()
        if self._live:
            self._wake(self._live[self._at])
        else:
            self._done.release()

    def _meet(self):
        """All threads of the block are at a barrier or at their end."""
        waiting, ended = self._waiting, len(self._live) - len(self._waiting)
        self._stopped = self._error is not None
        if waiting and not self._stopped:
            places = {place: None for place, _ in waiting.values()}
            if ended or len(places) > 1:
                lines = [" < ".join(map(line_of, place)) for place in places] + ["the end of the kernel"] * (ended > 0)
                try:
                    self.report("barrier", None, None, " or ".join(lines))
                    raise Found(f"threads of a block of {self._kernel} are at different barriers: {' or '.join(lines)}")
                except Found as error:
                    self._error, self._stopped = error, True
        self._values = [value for _, value in waiting.values()]
        self._live, self._at, self._waiting = list(waiting), 0, {}
        self._accesses.epoch += 1

    def _thread(self, rank):
        try:
            self._function(*self._arguments)
        except _Ended:
            pass
        except BaseException as error:
            # The others go on to their next barrier: a race may be why it was raised.
            if self._error is None or isinstance(error, Found):
                self._error = error
        self._pass_on()

    def _barrier(self, frame, value=None):
        here = frame.f_code.co_filename, frame.f_lineno
        if here == self.without:
            return []
        self.barriers.add(here)
        place = []
        while frame.f_code is not self._function.__code__:
            place.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        place.append((frame.f_code, frame.f_lasti))
        rank = self._accesses.thread
        self._waiting[rank] = tuple(place), value
        self._pass_on()
        self._workers[rank].turn.acquire()
        if self._stopped:
            raise _Ended
        return self._values

    # What kernels call.

    def _syncthreads(self):
        self._barrier(sys._getframe(1))

    def _syncthreads_or(self, value):
        return int(any(self._barrier(sys._getframe(1), value)))

    def _syncthreads_and(self, value):
        return int(all(self._barrier(sys._getframe(1), value)))

    def _syncthreads_count(self, value):
        return sum(map(bool, self._barrier(sys._getframe(1), value)))

    def _grid(self, ndim):
        assert ndim == 1
        cuda = simulator.cuda
        return cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x

    def _gridsize(self, ndim):
        assert ndim == 1
        return simulator.cuda.gridDim.x * simulator.cuda.blockDim.x

    def array(self, shape, dtype):
        """`cuda.shared.array`, one a line that asks for one."""
        frame, dtype = sys._getframe(1), np.dtype(as_dtype(dtype))
        place = None if shape == 0 else (frame.f_code, frame.f_lasti)
        if place not in self._arrays:
            if place is None:
                shape = self._dynamic // dtype.itemsize
            else:
                self._bytes += int(np.prod(shape)) * dtype.itemsize
            self._arrays[place] = poisoned(np.empty(shape, dtype))
        return Tracked(self._arrays[place], self._accesses, self._accesses.shared)


class _Unknown:
    """A name of `cuda` of which the checker does not know what it orders."""

    def __init__(self, name):
        self._name = name

    def __call__(self, *arguments):
        raise NotImplementedError(f"cuda.{self._name}: the race checker has to be taught what this orders")

    def __getattr__(self, attribute):
        self()
