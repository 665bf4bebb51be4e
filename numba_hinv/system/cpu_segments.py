"""Segments of one chain on the threads of a CPU: each is eliminated, and substituted in, by the sweeps for whole
chains.

Twin of the launches of a GPU (`numba_hinv.cuda`): a job stands where a thread block does there. `factors.segmentation`
has the mathematics of the cut.
"""

import threading
from typing import NamedTuple

import numpy as np

from ..kernels.plumbing.status import OK
from ..kernels.steps.segment_table import whole
from ..kernels.sweeps import eliminate, multipliers, substitute
from ..runtime import threads


class Workspace(NamedTuple):
    """Scratch of one segment's elimination."""

    layers: eliminate.Workspace
    carried: multipliers.Carried  # None where nothing is carried


class CpuSegments:
    """When a cut pays, where segments start, and the seams that they leave."""

    # Fewer segments, or shorter ones, do not pay, nor do chains of fewer flops: threads start in tenths of
    # milliseconds.
    fewest, shortest, least = 2, 64, 2e7
    # What the multipliers of a dense layer, and of one given as blocks, cost beside the flops of `segmentation`. The
    # elimination took 1 for widths from 4 to 40 and B from 1 to 4 where they took 0.8 to 1.1, blocks of 4 to 64 rows
    # 0.4 to 0.6.
    carrying = 1.0, 0.55

    @staticmethod
    def num_blocks():
        """Segments of a chain that nobody asks to cut: one, so that answers do not depend on the number of cores."""
        return 1

    @staticmethod
    def start(records, count, alpha, guess, work):
        """Let all segments, for so many dampings, start from the guess of the curvature at their ends."""
        for row, own in enumerate(work):
            segment, scale = records[row % records.size], alpha[row % records.size]
            c, half = int(segment["c"]), int(segment["end"]) % 2
            if c:
                eye = scale * np.eye(c, dtype=alpha.dtype)
                own.layers.front[half, : c * c] = (guess * eye).ravel()
                own.carried.phi[half, : c * c] = eye.ravel()
                own.carried.psi.fill(0.0)

    @staticmethod
    def form_seams(table, records, count, seams, alpha, guess, work, lin, seam_work):
        """The blocks of the seams, and the front that their chain starts with, of so many dampings."""
        last = records.size - 1
        for t in range(count):
            for s in range(records.size):
                own, segment = work[t * records.size + s], records[s]
                c, N, half = int(segment["c"]), int(table["N"][segment["first"]]), int(segment["first"]) % 2
                P = own.layers.front[half, : N * N]
                if s == last:
                    seam_work[t].layers.front[(t + 1) * last % 2, : N * N] = P
                    continue
                seam, eye, none = seams[t * last + s], alpha[s] * np.eye(c), np.zeros((c, N))
                Phi = own.carried.phi[half, : c * N].reshape(c, N)
                parts = {
                    "Dxx": np.block([[-guess * eye, -eye], [-eye, -own.carried.psi]]),
                    "Dzx": np.vstack([none, Phi]),
                    "Dzz": P,
                    "Dx": np.eye(c, 2 * c),
                    "Dz": none,
                }
                for name, block in parts.items():
                    at = int(seam[name])
                    getattr(lin, name)[at : at + block.size] = block.ravel()


def workspaces(table, sizes, dtype, num_rows, plan):
    """A `Workspace` for each of so many rows, a damping and segment of a chain that may be cut."""
    num_samples = sizes.z // max(int(table["n_in"].sum()), 1)
    return [
        Workspace(
            eliminate.workspace(sizes, dtype),
            None
            if plan is None
            else multipliers.carried(sizes, plan.phi, int(plan.records["c"][row % plan.count]), num_samples, dtype),
        )
        for row in range(num_rows)
    ]


def work_bytes(table, sizes, dtype, plan):
    """Bytes of `workspaces` of one damping."""
    num_samples = sizes.z // max(int(table["n_in"].sum()), 1)
    carried = [multipliers.carried_bytes(sizes, plan.phi, int(c), num_samples, dtype) for c in plan.records["c"]]
    return plan.count * eliminate.work_bytes(sizes, dtype) + sum(carried)


def eliminate_layers(table, start, stop, params, lin, space, dampings, pivotings, factors, work):
    """``(status, layer)`` of every damping, of a chain that is one segment."""
    steps = [(whole(table, start, stop), pivotings)]
    return eliminate_runs(table, steps, params, lin, space, dampings, factors, None, work)


def eliminate_runs(table, steps, params, lin, space, dampings, factors, Y_mu, work, tick=None):
    """``(status, layer)`` of every damping and segment, each a job: those of one damping follow one another.

    ``steps`` are ``(runs, pivotings)``, a run a segment and a `Pivoting` a job. No job waits for others after a step:
    theirs are not as long. ``tick(num_layers)`` is told what is done.
    """
    count, lock = steps[0][0].size, threading.Lock()

    def job(row, check):
        t, s, own = row // count, row % count, work[row]
        kept = eliminate.Factors(*[array[t] for array in factors])
        for runs, pivotings in steps:
            segment = runs[s]
            start, stop = int(segment["start"]), int(segment["stop"])
            if start == stop:
                continue
            check()
            code, layer = eliminate.eliminate(
                table, start, stop, params, lin, space, dampings[t], pivotings[row], kept, own.layers
            )
            if code == OK and segment["c"]:
                code, layer = multipliers.carry(
                    table, start, stop, params, lin, space, kept, Y_mu[t], int(segment["Y"]), own.carried
                )
            if code != OK:
                return code, layer
            if tick is not None:
                with lock:
                    tick(stop - start)
        return OK, 0

    return _together(job, len(dampings) * count)


def substitute_runs(back, table, steps, params, lin, space, factors, Y_mu, damping, b, x, seams, work, check):
    """The sweep ``back`` or forth over the layers of all segments, each a job; ``seams`` (k, size) are its unknowns.

    ``steps`` are runs, one a segment. On the way back the seams are right-hand sides of their chain, on the way forth
    its solutions.
    """
    sweep = _substitute_back if back else _substitute_forth

    def job(row, is_wanted):
        for runs in steps:
            segment, own = runs[row], work[row]
            if segment["start"] < segment["stop"]:
                is_wanted()
                check()
                sweep(segment, table, params, lin, space, factors, Y_mu, damping, b, x, seams, own)

    _together(job, steps[0].size)


def _substitute_back(segment, table, params, lin, space, factors, Y_mu, damping, b, x, seams, work):
    start, stop, c, at, after = (int(segment[name]) for name in ("start", "stop", "c", "Y", "after"))
    mu = np.zeros((b.shape[0], c), b.dtype)
    if stop == segment["end"]:
        work.state.fill(0.0)
    elif c:
        mu[:] = seams[:, after : after + c]
    substitute.substitute_back(table, start, stop, params, lin, space, factors, damping, b, x, work)
    if c:
        multipliers.gather(table, start, stop, factors, Y_mu, at, x, mu, work)
        seams[:, after : after + c] = mu
    if _is_behind_a_seam(segment):
        seams[:, _before(segment, table)] = _first_state(segment, table, b, work)


def _substitute_forth(segment, table, params, lin, space, factors, Y_mu, damping, b, x, seams, work):
    start, stop, c, at, after = (int(segment[name]) for name in ("start", "stop", "c", "Y", "after"))
    if _is_behind_a_seam(segment):
        _first_state(segment, table, b, work)[:] = seams[:, _before(segment, table)]
    if c:
        mu = np.ascontiguousarray(seams[:, after : after + c])
        multipliers.release(table, start, stop, Y_mu, at, mu, x, work)
    substitute.substitute_forth(table, start, stop, params, lin, space, factors, damping, b, x, work)


def _is_behind_a_seam(segment):
    return segment["start"] == segment["first"] and segment["before"] >= 0


def _before(segment, table):
    """The y of the seam before the segment, among the unknowns of the seams."""
    before = int(segment["before"])
    return slice(before, before + int(table["N"][segment["first"]]))


def _first_state(segment, table, b, work):
    """The state that comes into the segment, (k, N)."""
    first = int(segment["first"])
    N = int(table["N"][first])
    return work.state[first % 2, : b.shape[0] * N].reshape(b.shape[0], N)


def _together(job, count):
    """What ``job(row, check)`` returns for every row, on as many threads as there are cores to be had."""
    jobs = [lambda check, row=row: job(row, check) for row in range(count)]
    try:
        return threads.run(jobs, threads.num_workers(None, count, False))
    except threads.JobFailed as failure:
        raise failure.__cause__ from None
