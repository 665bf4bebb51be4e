"""The elimination (design, section 3), a thread block a damping: twin of `kernels.eliminate`.

The block holds the layer's front: M and K, the matrices that every pivot runs through, and all the rest as well where
the shared memory of the device is large enough (`Places`). What does not fit lies in global memory.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numba import from_dtype

from ..kernels.status import NOT_FINITE, OK
from .front import form_front
from .rank_update import signed_rank_update
from .signed_cholesky import pack, signed_cholesky
from .target import LANES, cuda, device, kernel, start_team, total
from .triangular import forward_rows


class Places(NamedTuple):
    """Where the parts of a front start, in scalars; those of the first ``level`` kinds in shared memory."""

    M: int
    K: int
    norms: int  # of the rows of Y
    front: int  # two of them
    mixed: int
    front_size: int


class Workspace(NamedTuple):
    """Scratch of `eliminate`, a row a damping."""

    front: np.ndarray  # (k, 2 front): layer l reads its P in half (l + 1) % 2 and leaves the next in half l % 2
    scratch: np.ndarray  # what is not in shared memory
    level: int
    places: Places
    shared: int  # bytes
    wide: tuple  # `wide.Places`, or None where no layer is wide


# What is in shared memory at each level: nothing; M, and K with its norms; everything.
LEVELS = 3


def places(sizes, coupling, level):
    """``(Places, scalars of shared memory, scalars of global memory)`` of one block."""
    parts = {"M": sizes.m**2, "K": coupling, "norms": sizes.m, "front": 2 * sizes.front, "mixed": sizes.mixed}
    kinds = {"M": 1, "K": 1, "norms": 1, "front": 2, "mixed": 2}
    ends, found = {True: 0, False: 0}, {}
    for name, size in parts.items():
        shared = kinds[name] <= level
        # Fronts in global memory outlive a call and have an array of their own.
        found[name] = 0 if name == "front" and not shared else ends[shared]
        if name != "front" or shared:
            ends[shared] += size
    return Places(front_size=sizes.front, **found), ends[True], ends[False]


@device
def _square_rows(team, m, n, Y, at, norms, norms_at):
    """norms <- squared norms of the rows of Y."""
    for k in range(team.rank, m, team.size):
        size = 0.0
        # Every thread starts at another column, so that they do not all ask one bank of memory.
        j = k % n
        for _ in range(n):
            size += float(Y[at + k * n + j]) * float(Y[at + k * n + j])
            j = j + 1 if j + 1 < n else 0
        norms[norms_at + k] = size
    cuda.syncthreads()


@device
def limit_growth(team, m, n, Y, at, norms, norms_at, scales, scales_at, pivoting):
    """Enlarge small pivots whose row of Y has a squared norm above the limit, as on the CPU.

    Returns (largest squared norm before, number of pivots enlarged that were not perturbed already, what that adds to
    log|det M|) in all threads.
    """
    limit, largest, perturbation = pivoting[2], pivoting[3], pivoting[1]
    any_large = 0
    for k in range(team.rank, m, team.size):
        if not float(norms[norms_at + k]) <= limit:
            any_large = 1
    any_large = cuda.syncthreads_or(any_large)
    growth, num_enlarged, added = 0.0, 0.0, 0.0
    for k in range(m):
        size = float(norms[norms_at + k])
        if not size <= growth:
            growth = size
    if any_large:
        for k in range(team.rank, m, team.size):
            size = float(norms[norms_at + k])
            row = scales_at + 2 * k
            pivot = 1.0 / (float(scales[row]) ** 2 + float(scales[row + 1]) ** 2)
            if size > limit and pivot < largest:
                shrink = math.sqrt(max(limit / size, pivot / largest))
                for j in range(n):
                    Y[at + k * n + j] *= shrink
                scales[row] *= shrink
                scales[row + 1] *= shrink
                if abs(pivot - perturbation) > 1e-5 * pivot:
                    num_enlarged += 1.0
                added -= 2.0 * math.log(shrink)
        num_enlarged = total(team, num_enlarged)
        added = total(team, added)
    cuda.syncthreads()
    return growth, int(num_enlarged), added


@device
def keep_rows(team, m, n, Y, at, pivots, order, kept, kept_at):
    """kept <- the rows of Y, in the order that ``pivots[order:]`` says. No barrier at the end."""
    for k in range(team.group, m, team.groups):
        to = kept_at + pivots[order + k] * n
        for j in range(team.lane, n, LANES):
            kept[to + j] = Y[at + k * n + j]


@functools.lru_cache(maxsize=None)
def eliminate_kernel(dtype, level):
    """`eliminate` for a dtype and with the parts of a front in shared memory that belong to the level."""
    scalar = from_dtype(dtype)
    is_shared, all_shared = level >= 1, level >= 2

    @kernel
    def eliminate(table, start, stop, params, lin, space, dampings, pivotings, factors, places, front, work, results):
        """Eliminate layers stop-1, ..., start for damping ``blockIdx.x``; factors have a row a damping.

        front : (k, 2 x largest front): between two calls the P of the next layer lies here. work : (k, scratch).
        results : (k, 2): the status and the layer at which the sweep ended.
        """
        team = start_team()
        shared = cuda.shared.array(0, scalar)
        t = cuda.blockIdx.x
        own, damping, pivoting = work[t], dampings[t], pivotings[t]
        M = Y = shared if is_shared else own
        fronts, mixed = (shared, shared) if all_shared else (front[t], own)
        L, pivots, scales, Y_kept = factors.L[t], factors.pivots[t], factors.scales[t], factors.Y[t]
        B = lin.output.shape[0]
        if all_shared and stop < table.size:
            half, size = (stop % 2) * places.front_size, (B * table[stop].n_in) ** 2
            given = (stop % 2) * (front.shape[1] // 2)
            for j in range(team.rank, size, team.size):
                fronts[places.front + half + j] = front[t, given + j]
            cuda.syncthreads()
        for l in range(stop - 1, start - 1, -1):
            layer = table[l]
            m, N = layer.m, layer.N
            P_at = places.front + ((l + 1) % 2) * places.front_size
            X_at = places.front + (l % 2) * places.front_size
            form_front(
                team, layer, l == table.size - 1, B, params, lin, space, damping, fronts, P_at, fronts, X_at,
                M, places.M, Y, places.K, mixed, places.mixed,
            )
            status, num_negative, num_perturbed, logabsdet = signed_cholesky(
                team, m, M, places.M, pivoting[0], pivoting[1], Y, places.K, N, pivots, layer.pivots,
                scales, layer.scales,
            )
            if status != OK:
                if team.rank == 0:
                    results[t, 0], results[t, 1] = status, l
                return
            pack(team, m, M, places.M, L, layer.L)
            growth = 0.0
            if N > 0:
                forward_rows(team, m, N, M, places.M, pivots, layer.pivots, scales, layer.scales, Y, places.K)
                _square_rows(team, m, N, Y, places.K, Y, places.norms)
                growth, num_enlarged, added = limit_growth(
                    team, m, N, Y, places.K, Y, places.norms, scales, layer.scales, pivoting
                )
                if not growth < math.inf:
                    if team.rank == 0:
                        results[t, 0], results[t, 1] = NOT_FINITE, l
                    return
                num_perturbed += num_enlarged
                logabsdet += added
                order = layer.pivots + m
                keep_rows(team, m, N, Y, places.K, pivots, order, Y_kept, layer.Y)
                signed_rank_update(team, m, N, Y, places.K, pivots, order, m - num_negative, fronts, X_at)
            if team.rank == 0:
                factors.num_positive[t, l] = m - num_negative
                factors.num_perturbed[t, l] = num_perturbed
                factors.logabsdet[t, l] = logabsdet
                factors.growth[t, l] = growth
            cuda.syncthreads()
        if all_shared:
            half, size = (start % 2) * places.front_size, table[start].N ** 2
            left = (start % 2) * (front.shape[1] // 2)
            for j in range(team.rank, size, team.size):
                front[t, left + j] = fronts[places.front + half + j]
        if team.rank == 0:
            results[t, 0], results[t, 1] = OK, start

    return eliminate
