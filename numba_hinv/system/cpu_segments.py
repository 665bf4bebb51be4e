"""Segments of one chain on the threads of a CPU: each is eliminated, and substituted in, by the sweeps for whole
chains.

Twin of the launches of a GPU (`numba_hinv.cuda`): a job stands where a thread block does there. `factors.segmentation`
has the mathematics of the cut.
"""

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
    runs = whole(table, start, stop)
    return eliminate_runs(table, runs, params, lin, space, dampings, pivotings, factors, None, work)


def eliminate_runs(table, runs, params, lin, space, dampings, pivotings, factors, Y_mu, work):
    """``(status, layer)`` of every damping and run, each a job: those of one damping follow one another."""

    def job(row):
        t, segment, own = row // runs.size, runs[row % runs.size], work[row]
        start, stop = int(segment["start"]), int(segment["stop"])
        if start == stop:
            return OK, start
        kept = eliminate.Factors(*[array[t] for array in factors])
        found = eliminate.eliminate(
            table, start, stop, params, lin, space, dampings[t], pivotings[row], kept, own.layers
        )
        if found[0] == OK and segment["c"]:
            found = multipliers.carry(
                table, start, stop, params, lin, space, kept, Y_mu[t], int(segment["Y"]), own.carried
            )
        return found

    return _together(job, len(dampings) * runs.size)


def substitute_runs(back, table, runs, params, lin, space, factors, Y_mu, damping, b, x, seams, work):
    """The sweep ``back`` or forth over the layers of all runs, each a job; ``seams`` (k, size) are its unknowns.

    On the way back they are right-hand sides of the seams' chain, on the way forth its solutions.
    """

    def job(row):
        segment, own = runs[row], work[row]
        start, stop, c, at = (int(segment[name]) for name in ("start", "stop", "c", "Y"))
        is_first, N = start == segment["first"] and segment["before"] >= 0, int(table["N"][int(segment["first"])])
        before, after = (slice(int(segment[name]), int(segment[name]) + n) for name, n in (("before", N), ("after", c)))
        state = own.state[start % 2, : b.shape[0] * N].reshape(b.shape[0], N)
        mu = np.zeros((b.shape[0], c), b.dtype)
        if back:
            if stop == segment["end"]:
                own.state.fill(0.0)
            elif c:
                mu[:] = seams[:, after]
            substitute.substitute_back(table, start, stop, params, lin, space, factors, damping, b, x, own)
            if c:
                multipliers.gather(table, start, stop, factors, Y_mu, at, x, mu, own)
                seams[:, after] = mu
            if is_first:
                seams[:, before] = state
        else:
            if is_first:
                state[:] = seams[:, before]
            if c:
                mu[:] = seams[:, after]
                multipliers.release(table, start, stop, Y_mu, at, mu, x, own)
            substitute.substitute_forth(table, start, stop, params, lin, space, factors, damping, b, x, own)

    _together(job, runs.size)


def _together(job, count):
    """What ``job(row)`` returns for every row, on as many threads as there are cores to be had."""
    jobs = [lambda check, row=row: job(row) for row in range(count)]
    try:
        return threads.run(jobs, threads.num_workers(None, count, False))
    except threads.JobFailed as failure:
        raise failure.__cause__ from None
