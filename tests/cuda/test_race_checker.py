"""The race checker finds what it is for, in small kernels with known faults, and nothing in those without."""

import contextlib
import inspect
import textwrap
from pathlib import Path

import numpy as np
import pytest
import test_cuda

if not test_cuda.SIMULATED or not test_cuda.INSTALLED:
    pytest.skip("needs the simulator", allow_module_level=True)

import numba.cuda
from numba import types
from race_checker import Found, RaceChecker
from tracked_memory import POISON

from numba_hinv.cuda.plumbing import target
from numba_hinv.cuda.plumbing.launch import launch
from numba_hinv.cuda.plumbing.target import BLOCK, cuda, device, kernel, start_team


def findings(function, *arguments, grid=1, shared=0):
    """{(kind, source of the first line, of the second)} of a launch."""
    there = [numba.cuda.to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
    lines = Path(__file__).read_text().splitlines()

    def source(text):
        place = text.split(" < ")[0]
        return lines[int(place.split(":")[1]) - 1].strip() if "test_race_checker" in place else place

    with RaceChecker() as found:
        launch(function, grid, 0, *there, shared=shared)
    return {(one.kind, source(one.first), source(one.second)) for one in found.findings}


@kernel
def shift(x):
    i = cuda.threadIdx.x
    value = x[i + 1]
    x[i] = value


@kernel
def shift_with_barrier(x):
    i = cuda.threadIdx.x
    value = x[i + 1]
    cuda.syncthreads()
    x[i] = value


@kernel
def shift_shared(x):
    i = cuda.threadIdx.x
    a = cuda.shared.array(BLOCK, types.float64)
    a[i] = x[i]
    cuda.syncthreads()
    x[i] = a[BLOCK - 1 - i]
    a[i] = 0.0


@kernel
def same_value(x):
    x[0] = 1.0


@kernel
def rows_and_numbers(x, flat):
    row = x[1]
    if cuda.threadIdx.x == 0:
        row[0] = 1.0
    elif cuda.threadIdx.x == 1:
        flat[1] += flat[3]


@kernel
def one_reads_twice(x):
    """The first reader is the writer: the second one is the other side of the race."""
    value = x[0]
    if cuda.threadIdx.x == 0:
        value = x[0]
    if cuda.threadIdx.x == BLOCK - 1:
        x[0] = value


def test_races_within_a_block():
    x = np.arange(2.0 * BLOCK)
    assert findings(shift, x) == {("race", "value = x[i + 1]", "x[i] = value")}
    assert findings(shift_with_barrier, x) == set()
    both = ("x[i] = a[BLOCK - 1 - i]", "a[i] = 0.0")
    assert findings(shift_shared, x) == {("race", *both), ("race", *reversed(both))}
    assert findings(same_value, x) == {("race", "x[0] = 1.0", "x[0] = 1.0")}
    assert findings(one_reads_twice, x) == {("race", "value = x[0]", "x[0] = value")}


def test_elements_are_known_by_their_address():
    """A row of a matrix and a vector of all its numbers are the same memory."""
    x = numba.cuda.to_device(np.zeros((2, 3)))
    assert findings(rows_and_numbers, x, x.reshape(6)) == {("race", "row[0] = 1.0", "flat[1] += flat[3]")}


@kernel
def neighbours(x):
    x[cuda.grid(1)] = x[cuda.grid(1) + 1]


@kernel
def everybody(x):
    if cuda.threadIdx.x == 0:
        x[0] += 1.0


@kernel
def everybody_by_atomics(x):
    cuda.atomic.add(x, 0, 1.0)
    cuda.atomic.max(x, 1, float(cuda.grid(1)))


@kernel
def atomic_and_plain(x):
    cuda.atomic.add(x, 0, 1.0)
    if cuda.grid(1) == 0:
        x[1] = x[0]


@kernel
def read_by_all_then_written(x):
    value = x[0]
    cuda.syncthreads()
    if cuda.grid(1) == cuda.gridsize(1) - 1:
        x[0] = value


def test_races_between_blocks():
    x = np.zeros(4 * BLOCK)
    assert {kind for kind, *_ in findings(neighbours, x, grid=2)} == {"race", "blocks"}
    assert findings(everybody, x) == set()
    assert ("blocks", "x[0] += 1.0", "x[0] += 1.0") in findings(everybody, x, grid=(1, 3))
    assert findings(everybody_by_atomics, x, grid=2) == set()
    assert {kind for kind, *_ in findings(atomic_and_plain, x, grid=1)} == {"race"}
    assert {kind for kind, *_ in findings(atomic_and_plain, x, grid=2)} == {"race", "blocks"}
    assert findings(read_by_all_then_written, x) == set()
    assert findings(read_by_all_then_written, x, grid=3) == {("blocks", "value = x[0]", "x[0] = value")}


def test_launches_are_in_order():
    x = numba.cuda.to_device(np.zeros(1))
    with RaceChecker() as found:
        for _ in range(2):
            launch(everybody, 1, 0, x)
    assert not found.findings and x.copy_to_host() == [2.0]
    x = numba.cuda.to_device(np.zeros(2))
    with RaceChecker():
        launch(everybody_by_atomics, 2, 0, x)
    np.testing.assert_array_equal(x.copy_to_host(), [2 * BLOCK, 2 * BLOCK - 1])


@kernel
def one_waits(x):
    if cuda.threadIdx.x == 0:
        cuda.syncthreads()


@kernel
def two_places(x):
    if cuda.threadIdx.x == 0:
        cuda.syncthreads()
    else:
        cuda.syncthreads()


@device
def wait():
    cuda.syncthreads()


@kernel
def two_callers(x):
    if cuda.threadIdx.x == 0:
        wait()
    else:
        wait()


@kernel
def all_wait(x):
    for _ in range(3):
        wait()
    x[cuda.threadIdx.x] = cuda.syncthreads_or(cuda.threadIdx.x == 1) + 2 * cuda.syncthreads_and(cuda.threadIdx.x >= 1)


@pytest.mark.parametrize("function", [one_waits, two_places, two_callers])
def test_divergent_barriers(function):
    with RaceChecker() as found, pytest.raises(Found, match="different barriers"):
        launch(function, 1, 0, numba.cuda.to_device(np.zeros(BLOCK)))
    assert [finding.kind for finding in found.findings] == ["barrier"]


def test_barriers_that_all_reach():
    x = numba.cuda.to_device(np.zeros(BLOCK))
    with RaceChecker() as found:
        launch(all_wait, 1, 0, x)
    assert not found.findings
    np.testing.assert_array_equal(x.copy_to_host(), np.ones(BLOCK))


@kernel
def read_unwritten(x, counts):
    i = cuda.threadIdx.x
    a, b = cuda.shared.array(BLOCK, types.float64), cuda.local.array(2, types.int32)
    dynamic = cuda.shared.array(0, types.float32)
    x[i] = a[i] if i == 0 else dynamic[i]
    counts[i] = b[0]


def test_memory_starts_as_poison():
    with RaceChecker() as found:
        x, counts = numba.cuda.device_array(2 * BLOCK, np.float64), numba.cuda.device_array(BLOCK, np.int32)
        assert np.isnan(x.copy_to_host()).all() and (counts.copy_to_host() == POISON).all()
        x.copy_to_device(np.zeros(2 * BLOCK))
        counts.copy_to_device(np.zeros(BLOCK, np.int32))
        launch(read_unwritten, 1, 0, x, counts, shared=4 * BLOCK)
    assert {finding.kind for finding in found.findings} == {"uninitialised"}
    assert np.isnan(x.copy_to_host()[:BLOCK]).all() and (counts.copy_to_host() == POISON).all()


@kernel
def at(x, index):
    x[index] = 1.0


@kernel
def warp(x):
    cuda.syncwarp()


def test_what_a_gpu_would_not_do():
    x = np.zeros(3)
    for index in (-1, 3):
        with RaceChecker() as found, pytest.raises(IndexError):
            launch(at, 1, 0, numba.cuda.to_device(x), index)
        assert {finding.kind for finding in found.findings} == {"index"}
    with RaceChecker(), pytest.raises(NotImplementedError, match="cuda.syncwarp"):
        launch(warp, 1, 0, numba.cuda.to_device(x))
    for grid in ((1, 2**16), (1, 1, 2**16), 2**31):
        # `launch` refuses some of them itself.
        with RaceChecker(first_only=True) as found, pytest.raises(Found, match="grid"):
            found.run(all_wait, grid, BLOCK, 0, (numba.cuda.to_device(x),))
    assert {kind for kind, *_ in findings(shift_shared, np.zeros(BLOCK), shared=227 * 1024)} >= {"launch"}


def test_afterwards_all_is_as_before():
    before = numba.cuda.device_array
    with RaceChecker(), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    assert numba.cuda.device_array is before
    x = numba.cuda.to_device(np.arange(BLOCK + 1.0))
    launch(shift_with_barrier, 1, 0, x)
    np.testing.assert_array_equal(x.copy_to_host()[:BLOCK], np.arange(1.0, BLOCK + 1))


@kernel
def two_sums(x, out, function):
    """Two in a row, so that the second may not overtake the first."""
    team = start_team()
    out[team.rank, 0] = function(team, x[team.rank])
    out[team.rank, 1] = function(team, out[team.rank, 0])


def without_barrier(function, number):
    """A copy of a function without one of its barriers, counted from 0; None where there are not so many."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    places = [at for at, line in enumerate(lines) if line.strip() == "cuda.syncthreads()"]
    if number is not None and number >= len(places):
        return None
    if number is not None:
        lines[places[number]] = lines[places[number]].replace("cuda.syncthreads()", "pass")
    namespace = dict(vars(target))
    exec(compile("\n".join(lines), f"copy of {function.__name__}", "exec"), namespace)
    return namespace[function.__name__]


@pytest.mark.parametrize("name", ["total", "group_total", "lane_total", "largest"])
def test_barriers_that_are_taken_away_are_missed(name):
    """Of the sums over the threads of a block: each barrier in turn, in a copy."""

    def found(number):
        copy = without_barrier(getattr(target, name), number)
        function = (lambda team, value: copy(team, value, 0)[0]) if name == "largest" else copy
        out = numba.cuda.to_device(np.zeros((BLOCK, 2)))
        # What is no number is no place of the largest one.
        with RaceChecker() as checker, contextlib.suppress(ValueError):
            launch(two_sums, 1, 0, numba.cuda.to_device(np.arange(1.0, BLOCK + 1)), out, function)
        return checker.findings

    assert not found(None)
    for number in range(3):
        assert {finding.kind for finding in found(number)} & {"race", "uninitialised"}, number
    assert without_barrier(getattr(target, name), 3) is None
