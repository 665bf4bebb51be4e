"""Products with H on a GPU: scratch, and launches of the two sweeps; twin of `system.cpu.CpuProducts`."""

import numpy as np

from ..kernels.steps.layer_table import BLOCKS
from .plumbing.launch import Launcher, spread
from .plumbing.target import LANES
from .sweeps import multiply, wide


class DeviceProducts:
    """What a `System` calls to multiply."""

    def __init__(self, memory):
        self.memory = memory
        self._launch = Launcher(memory.stream)

    def workspace(self, sizes, num_vectors, num_samples, dtype):
        """Arrays (dZ, dU, q) for the two sweeps of a product; a row a vector."""
        return (
            self.memory.empty((num_vectors, sizes.z + num_samples * sizes.outputs), dtype),
            self.memory.empty((num_vectors, sizes.u), dtype),
            self.memory.empty((num_vectors, 2, num_samples * sizes.width), dtype),
        )

    def tangents(self, table, start, stop, params, lin, V, scratch):
        (dZ, dU, _), k, records, B = scratch, V.shape[0], self.memory.table(table), lin.output.shape[0]
        for l, last, alone in reversed(list(wide.runs(wide.wide_products(table, B), start, stop))):
            n = int(table["n_out"][l])
            if not alone:
                self._launch(multiply.tangents, k, records, l, last, params, lin, V, dZ, dU)
            elif table["kind"][l] == BLOCKS:
                self._launch(multiply.wide_blocks_tangents, (spread(B * n), k), records, l, lin, V, dZ)
            else:
                self._launch(multiply.wide_tangents, (n, k), records, l, params, lin, V, dZ, dU)

    def output_tangents(self, scratch, shape):
        """Those of the outputs, (k, B, n_L), as `tangents` has left them; a NumPy array."""
        dZ = self.memory.take(scratch[0])
        return dZ[:, dZ.shape[1] - shape[1] * shape[2] :].reshape(shape)

    def adjoints(self, table, start, stop, params, lin, V, HV, scratch, shift=0.0, b=None, squares=None):
        self._adjoints(table, start, stop, params, lin, V, HV, scratch)
        if start == 0:
            if shift:
                HV.add_multiple(shift, V)
            if b is not None:
                np.subtract(b, HV, out=HV)

    def _adjoints(self, table, start, stop, params, lin, V, HV, scratch):
        (dZ, dU, q), k, records, B = scratch, V.shape[0], self.memory.table(table), lin.output.shape[0]
        for l, last, alone in wide.runs(wide.wide_products(table, B), start, stop):
            if not alone:
                self._launch(multiply.adjoints, k, records, l, last, params, lin, V, HV, dZ, dU, q)
                continue
            n_in, n, p = (int(table[name][l]) for name in ("n_in", "n_out", "p"))
            if last == table.size:
                self._launch(multiply.wide_start, (1, k), records, lin, dZ, q)
            if table["kind"][l] == BLOCKS:
                rows = max(p, B * n_in)
                self._launch(multiply.wide_blocks_adjoints, (spread(rows), k), records, l, lin, V, HV, dZ, q)
                continue
            self._launch(multiply.wide_nu, (spread(B * n), k), records, l, lin, dU, q)
            self._launch(multiply.wide_product, (spread(p), k), records, l, lin, HV, dZ, dU)
            if l > 0:
                self._launch(multiply.wide_adjoints, (-(-n_in // LANES), k), records, l, params, lin, V, dU, q)
