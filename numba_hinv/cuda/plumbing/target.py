"""What the kernels are compiled for: a GPU, or Numba's simulator of one (``NUMBA_ENABLE_CUDASIM=1``).

``device`` marks functions that kernels call, ``kernel`` the kernels; both are plain Python in the simulator. `Team` is
a thread block at work on one problem: functions that take one are called by all of its threads, and what they have
written is visible to all when they return.
"""

import importlib.util
from typing import NamedTuple

import numpy as np
from numba import types

if importlib.util.find_spec("numba_cuda") is None:
    raise ImportError("device: 'cuda' needs numba-cuda, which is not installed: pip install 'numba_hinv[cuda]'")

import numba.cuda
from numba.cuda.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
# Threads of a block that work on one row of a matrix: short rows are the rule, and 8 doubles are two sectors of memory.
LANES = 2 if SIMULATED else 8
# Threads of a block. Four are enough to see in the simulator, where each is a thread of Python, that barriers stand
# where they must.
BLOCK = 4 if SIMULATED else 128
# Numbers of `Team.pad`.
PAD = 2 * BLOCK
# Bytes of shared memory that any kernel may have, and those that kernels which ask for more have of their own:
# `Team.pad`, and what the driver keeps for itself.
PLAIN_SHARED, RESERVED_SHARED = 48 * 1024, 16 * BLOCK + 1024

if SIMULATED:
    from .simulator import cuda

    def device(function):
        return getattr(function, "py_func", function)

else:
    from numba import cuda
    from numba.cuda.extending import register_jitable

    def device(function):
        return register_jitable(getattr(function, "py_func", function))


def kernel(function):
    return numba.cuda.jit(function)


class Team(NamedTuple):
    """The threads of a block."""

    rank: int
    size: int
    lane: int  # rank % LANES
    group: int  # rank // LANES
    groups: int
    pad: np.ndarray  # 2 BLOCK numbers of shared memory, for `total` and `largest`


@device
def start_team():
    """The `Team` of a kernel's block: its first line."""
    rank, size = cuda.threadIdx.x, cuda.blockDim.x
    pad = cuda.shared.array(PAD, types.float64)
    return Team(rank, size, rank % LANES, rank // LANES, size // LANES, pad)


@device
def start_grid_team():
    """All threads of a grid, along its x, as one `Team` without barriers and sums: for what is done entry by entry."""
    rank, size = cuda.grid(1), cuda.gridsize(1)
    return Team(rank, size, rank % LANES, rank // LANES, size // LANES, cuda.shared.array(1, types.float64))


@device
def total(team, value):
    """Sum of the values of all threads, in float64, always in the same order."""
    pad, rank, count = team.pad, team.rank, team.size
    cuda.syncthreads()
    pad[rank] = value
    cuda.syncthreads()
    while count > 1:
        half = (count + 1) // 2
        if rank < count - half:
            pad[rank] += pad[rank + half]
        cuda.syncthreads()
        count = half
    return pad[0]


@device
def group_total(team, value):
    """Sum of the values of the threads of a group, in float64, always in the same order."""
    pad, rank, count = team.pad, team.rank, LANES
    cuda.syncthreads()
    pad[rank] = value
    cuda.syncthreads()
    while count > 1:
        half = (count + 1) // 2
        if team.lane < count - half:
            pad[rank] += pad[rank + half]
        cuda.syncthreads()
        count = half
    return pad[team.group * LANES]


@device
def lane_total(team, value):
    """Sum of the values of all threads of the same lane, in float64, always in the same order."""
    pad, rank, count = team.pad, team.rank, team.groups
    cuda.syncthreads()
    pad[rank] = value
    cuda.syncthreads()
    while count > 1:
        half = (count + 1) // 2
        if team.group < count - half:
            pad[rank] += pad[rank + half * LANES]
        cuda.syncthreads()
        count = half
    return pad[team.lane]


@device
def largest(team, value, place):
    """(largest of the values of all threads, its place): the first of equal ones, and NaN where any is."""
    pad, rank, size, count = team.pad, team.rank, team.size, team.size
    cuda.syncthreads()
    pad[rank] = value
    pad[size + rank] = place
    cuda.syncthreads()
    while count > 1:
        half = (count + 1) // 2
        if rank < count - half:
            mine, other = pad[rank], pad[rank + half]
            if other > mine or other != other or (other == mine and pad[size + rank + half] < pad[size + rank]):
                pad[rank] = other
                pad[size + rank] = pad[size + rank + half]
        cuda.syncthreads()
        count = half
    return pad[0], int(pad[size])
