"""Solves on a GPU: scratch, and launches of the sweeps that substitute; twin of `system.cpu.CpuSubstitution`."""

import numpy as np

from ..kernels.steps import segment_table
from .plumbing.launch import Launcher
from .sweeps import substitute, wide, wide_substitute


class DeviceSubstitution:
    """What `factors` calls to solve."""

    def __init__(self, memory):
        self.memory = memory
        self._launch = Launcher(memory.stream)

    def workspace(self, sizes, num_vectors, num_samples, dtype):
        """Scratch of the two sweeps of a solve."""
        empty, k, width = self.memory.empty, num_vectors, num_samples * sizes.width
        return substitute.Workspace(
            empty((k, 2, width), dtype), empty((k, width), dtype), empty((k, 2, sizes.m), dtype),
            empty((k, num_samples * sizes.r + 1), dtype),
        )

    def workspaces(self, sizes, num_vectors, num_samples, dtype, num_segments):
        """Scratch of `runs` of so many segments."""
        return self.workspace(sizes, num_vectors * num_segments, num_samples, dtype)

    def back(self, table, start, stop, params, lin, space, factors, damping, b, x, work):
        for first, last, alone in wide.runs(wide.wide_solves(table), start, stop):
            if alone:
                if last == table.size:
                    self.memory.zero(work.state)
                wide_substitute.substitute_back(
                    self.memory.stream, table, self.memory.table(table), first, params, lin, space, factors,
                    self.memory.put(np.array([damping], b.dtype)), b, x, work,
                )
            else:
                self._run(
                    True, table, segment_table.whole(table, first, last), params, lin, space, factors,
                    None, damping, b, x, None, work,
                )

    def forth(self, table, start, stop, params, lin, space, factors, damping, b, x, work):
        for first, last, alone in reversed(list(wide.runs(wide.wide_solves(table), start, stop))):
            if alone:
                wide_substitute.substitute_forth(
                    self.memory.stream, table, self.memory.table(table), first, params, lin, space, factors,
                    self.memory.put(np.array([damping], b.dtype)), b, x, work,
                )
            else:
                self._run(
                    False, table, segment_table.whole(table, first, last), params, lin, space, factors,
                    None, damping, b, x, None, work,
                )

    def runs(self, back, table, steps, params, lin, space, factors, Y_mu, damping, b, x, seams, work, check):
        """The sweep ``back`` or forth over all segments: ``steps`` are runs, one a segment, each a launch.

        ``seams`` are as the kernel has them, where there are any.
        """
        for runs in steps:
            check()
            self._run(back, table, runs, params, lin, space, factors, Y_mu, damping, b, x, seams, work)

    def _run(self, back, table, runs, params, lin, space, factors, Y_mu, damping, b, x, seams, work):
        memory = self.memory
        Y_mu = memory.empty(1, b.dtype) if Y_mu is None else Y_mu
        seams = memory.empty((b.shape[0], 1), b.dtype) if seams is None else seams
        kernel = substitute.substitute_back if back else substitute.substitute_forth
        self._launch(
            kernel, (b.shape[0], runs.size), memory.table(table), memory.put(runs), params, lin, space, factors, Y_mu,
            memory.put(np.array([damping], b.dtype)), b, x, seams, work,
        )
