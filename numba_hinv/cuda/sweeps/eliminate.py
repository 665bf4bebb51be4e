"""The elimination (docs/theory.md, section 3), a thread block a damping and a segment of layers: twin of
`kernels.eliminate`.

The block holds the layer's front: M and K, the matrices that every pivot runs through, and all the rest as well where
the shared memory of the device is large enough (`Places`). What does not fit lies in global memory. The chain is one
segment, or several (`segments`), of which all but the last carry the multipliers of the states that they end in.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numba import from_dtype

from ...kernels.plumbing.status import NOT_FINITE, OK
from ..dense.pivot_arithmetic import enlarge
from ..dense.rank_update import signed_rank_update
from ..dense.signed_cholesky import pack, signed_cholesky
from ..dense.triangular import forward_rows
from ..plumbing.target import LANES, cuda, device, kernel, start_team, total
from ..steps.front import form_front
from ..steps.multipliers import carry_multipliers


class Places(NamedTuple):
    """Where the parts of a front start, in scalars; those of the first ``level`` kinds in shared memory."""

    M: int
    K: int
    norms: int  # of the rows of Y
    front: int  # two of them
    mixed: int
    phi: int  # two of them
    psi: int
    front_size: int
    phi_size: int


class Workspace(NamedTuple):
    """Scratch of `eliminate`, a row a damping and segment: those of one damping follow one another."""

    front: np.ndarray  # (k, 2 front): layer l reads its P in half (l + 1) % 2 and leaves the next in half l % 2
    carried: np.ndarray  # (k, 2 phi + psi): Phi likewise, then Psi
    scratch: np.ndarray  # what is not in shared memory
    level: int
    places: Places
    shared: int  # bytes
    wide: tuple  # `wide.Places`, or None where no layer is wide


# What is in shared memory at each level: nothing; M, and K with its norms; everything.
LEVELS = 3


def places(sizes, coupling, level, phi=0, psi=0):
    """``(Places, scalars of shared memory, scalars of global memory)`` of one block.

    ``phi`` and ``psi`` are the sizes of the largest Phi and Psi, where multipliers are carried.
    """
    parts = {"M": sizes.m**2, "K": coupling, "norms": sizes.m, "front": 2 * sizes.front, "mixed": sizes.mixed_whole}
    parts |= {"phi": 2 * phi, "psi": psi}
    kinds = dict.fromkeys(("M", "K", "norms"), 1)
    # In global memory these outlive a call and have arrays of their own.
    apart = {"front": 0, "phi": 0, "psi": 2 * phi}
    ends, found = {True: 0, False: 0}, {}
    for name, size in parts.items():
        shared = kinds.get(name, 2) <= level
        found[name] = apart[name] if name in apart and not shared else ends[shared]
        if name not in apart or shared:
            ends[shared] += size
    return Places(front_size=sizes.front, phi_size=phi, **found), ends[True], ends[False]


@device
def _square_rows(team, m, n, Y, at, norms, norms_at):
    """norms <- squared norms of the rows of Y. No barrier at the end."""
    for k in range(team.rank, m, team.size):
        size = 0.0
        # Every thread starts at another column, so that they do not all ask one bank of memory.
        j = k % n
        for _ in range(n):
            size += float(Y[at + k * n + j]) * float(Y[at + k * n + j])
            j = j + 1 if j + 1 < n else 0
        norms[norms_at + k] = size


@device
def limit_growth(team, m, n, Y, at, norms, norms_at, scales, scales_at, pivoting):
    """Enlarge small pivots whose row of Y has a squared norm above the limit, as on the CPU.

    Returns (largest squared norm before, number of pivots enlarged that were not perturbed already, what that adds to
    log|det M|) in all threads.
    """
    limit, largest, perturbation = pivoting[2], pivoting[3], pivoting[1]
    any_large = 0
    # Every thread looks at norms that it wrote itself; the barrier behind lets all see all.
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
            row = scales_at + 2 * k
            shrink, counts, more = enlarge(
                float(norms[norms_at + k]), float(scales[row]), float(scales[row + 1]), perturbation, limit, largest
            )
            if shrink != 1.0:
                for j in range(n):
                    Y[at + k * n + j] *= shrink
                scales[row] *= shrink
                scales[row + 1] *= shrink
            num_enlarged += counts
            added += more
        num_enlarged = total(team, num_enlarged)
        added = total(team, added)
    return growth, int(num_enlarged), added


@device
def keep_rows(team, m, n, Y, at, pivots, order, kept, kept_at):
    """kept <- the rows of Y, in the order that ``pivots[order:]`` says. No barrier at the end."""
    for k in range(team.group, m, team.groups):
        to = kept_at + pivots[order + k] * n
        for j in range(team.lane, n, LANES):
            kept[to + j] = Y[at + k * n + j]


@functools.cache
def eliminate_kernel(dtype, level):
    """`eliminate` for a dtype and with the parts of a front in shared memory that belong to the level."""
    scalar = from_dtype(dtype)
    is_shared, all_shared = level >= 1, level >= 2

    @kernel
    def eliminate(
        table, segments, params, lin, space, dampings, pivotings, factors, Y_mu, places, front, carried, work, results
    ):
        """Eliminate the layers of run ``blockIdx.y``, last ones first, for damping ``blockIdx.x``.

        segments : the runs, one of each segment (`segment_table.SEGMENT`). factors, Y_mu : a row a damping; the rest,
        from ``pivotings`` on, a row a damping and segment. front, carried : between two calls the P, Phi and Psi of the
        next layer lie here. work : scratch. results : (rows, 2): the status and the layer at which the sweep ended.
        """
        team = start_team()
        shared = cuda.shared.array(0, scalar)
        t, row = cuda.blockIdx.x, cuda.blockIdx.x * cuda.gridDim.y + cuda.blockIdx.y
        segment = segments[cuda.blockIdx.y]
        start, stop, c = segment.start, segment.stop, segment.c
        if start == stop:
            if team.rank == 0:
                results[row, 0], results[row, 1] = OK, start
            return
        own, damping, pivoting = work[row], dampings[t], pivotings[row]
        M = Y = shared if is_shared else own
        fronts, mixed = (shared, shared) if all_shared else (front[row], own)
        multipliers = shared if all_shared else carried[row]
        L, pivots, scales, Y_kept = factors.L[t], factors.pivots[t], factors.scales[t], factors.Y[t]
        B = lin.output.shape[0]
        if all_shared and stop < table.size:
            half, states = (stop % 2) * places.front_size, B * table[stop - 1].n_out
            given = (stop % 2) * (front.shape[1] // 2)
            for j in range(team.rank, states * states, team.size):
                fronts[places.front + half + j] = front[row, given + j]
            half = (stop % 2) * places.phi_size
            for j in range(team.rank, c * states, team.size):
                multipliers[places.phi + half + j] = carried[row, half + j]
            for j in range(team.rank, c * c, team.size):
                multipliers[places.psi + j] = carried[row, 2 * places.phi_size + j]
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
                    results[row, 0], results[row, 1] = status, l
                return
            pack(team, m, M, places.M, L, layer.L)
            growth, order = 0.0, layer.pivots + m
            if N > 0:
                forward_rows(team, m, N, M, places.M, pivots, layer.pivots, scales, layer.scales, Y, places.K)
                _square_rows(team, m, N, Y, places.K, Y, places.norms)
                growth, num_enlarged, added = limit_growth(
                    team, m, N, Y, places.K, Y, places.norms, scales, layer.scales, pivoting
                )
                num_perturbed += num_enlarged
                logabsdet += added
            if c > 0:
                # Scratch of the front is free for K_mu.
                taken = carry_multipliers(
                    team, layer, B, c, params, lin, space, M, places.M, pivots, scales, m - num_negative, Y, places.K,
                    mixed, places.mixed, multipliers, places.phi + ((l + 1) % 2) * places.phi_size,
                    places.phi + (l % 2) * places.phi_size, places.psi, Y_mu[t], segment.Y + layer.scales // 2 * c,
                )
                growth = taken if not taken <= growth else growth
            if not growth < math.inf:
                if team.rank == 0:
                    results[row, 0], results[row, 1] = NOT_FINITE, l
                return
            if N > 0:
                keep_rows(team, m, N, Y, places.K, pivots, order, Y_kept, layer.Y)
                signed_rank_update(team, m, N, Y, places.K, pivots, order, m - num_negative, fronts, X_at)
            if team.rank == 0:
                factors.num_positive[t, l] = m - num_negative
                factors.num_perturbed[t, l] = num_perturbed
                factors.logabsdet[t, l] = logabsdet
                factors.growth[t, l] = growth
            cuda.syncthreads()
        if all_shared:
            half, N = (start % 2) * places.front_size, table[start].N
            left = (start % 2) * (front.shape[1] // 2)
            for j in range(team.rank, N * N, team.size):
                front[row, left + j] = fronts[places.front + half + j]
            half = (start % 2) * places.phi_size
            for j in range(team.rank, c * N, team.size):
                carried[row, half + j] = multipliers[places.phi + half + j]
            for j in range(team.rank, c * c, team.size):
                carried[row, 2 * places.phi_size + j] = multipliers[places.psi + j]
        if team.rank == 0:
            results[row, 0], results[row, 1] = OK, start

    return eliminate
