"""Solves on a GPU: scratch, and launches of the sweeps that substitute."""

import numpy as np

from ..kernels.steps import segment_table
from .memory import DeviceMemory
from .sweeps import substitute, wide, wide_substitute


class DeviceSubstitution(DeviceMemory):
    """What `factors` calls to solve."""

    # Right-hand sides that are solved at the same time, a block each.
    column_block = 64

    def substitution_workspace(self, sizes, num_vectors, num_samples, dtype):
        """Scratch of the two sweeps of a solve."""
        k, width = num_vectors, num_samples * sizes.width
        return substitute.Workspace(
            self.empty((k, 2, width), dtype), self.empty((k, width), dtype), self.empty((k, 2, sizes.m), dtype),
            self.empty((k, num_samples * sizes.r + 1), dtype),
        )

    def substitute_back(self, table, start, stop, params, lin, space, factors, damping, b, x, work):
        for first, last, alone in wide.runs(wide.wide_solves(table), start, stop):
            if alone:
                if last == table.size:
                    self.zero(work.state)
                wide_substitute.substitute_back(
                    self.stream, table, self._table(table), first, params, lin, space, factors,
                    self.put(np.array([damping], b.dtype)), b, x, work,
                )
            else:
                self.substitute_runs(
                    True, table, segment_table.whole(table, first, last), params, lin, space, factors,
                    None, damping, b, x, None, work,
                )

    def substitute_forth(self, table, start, stop, params, lin, space, factors, damping, b, x, work):
        for first, last, alone in reversed(list(wide.runs(wide.wide_solves(table), start, stop))):
            if alone:
                wide_substitute.substitute_forth(
                    self.stream, table, self._table(table), first, params, lin, space, factors,
                    self.put(np.array([damping], b.dtype)), b, x, work,
                )
            else:
                self.substitute_runs(
                    False, table, segment_table.whole(table, first, last), params, lin, space, factors,
                    None, damping, b, x, None, work,
                )

    def substitute_runs(self, back, table, runs, params, lin, space, factors, Y_mu, damping, b, x, seams, work):
        """The sweep ``back`` or forth over the layers of all runs; ``seams`` as the kernel has it, where there are some."""
        Y_mu = self.empty(1, b.dtype) if Y_mu is None else Y_mu
        seams = self.empty((b.shape[0], 1), b.dtype) if seams is None else seams
        kernel = substitute.substitute_back if back else substitute.substitute_forth
        self._launch(
            kernel, (b.shape[0], runs.size), self._table(table), self.put(runs), params, lin, space, factors, Y_mu,
            self.put(np.array([damping], b.dtype)), b, x, seams, work,
        )
