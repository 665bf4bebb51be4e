"""Derivative blocks and products with H on a GPU: launches of the sweeps that linearise and multiply."""

import numpy as np

from ..kernels.steps.layer_table import BLOCKS, layer_table
from ..kernels.steps.row_space import RowSpace
from ..kernels.sweeps.linearise import Linearisation
from ..layers.losses import get_loss
from ..runtime.validation import check_finite
from ..system.processor import CPU, is_on_device
from .memory import DeviceMemory
from .plumbing import arrays
from .plumbing.launch import spread
from .plumbing.target import BLOCK, LANES
from .steps import row_space
from .sweeps import linearise, multiply, wide


class DeviceProducts(DeviceMemory):
    """What a `System` calls to be made and to multiply."""

    def as_params(self, model, params):
        """A copy of the parameters on the device, in float64, and the dtype that they were given in."""
        if not is_on_device(params):
            work, dtype = CPU.as_params(model, params)
            return self.put(work), dtype
        meaning = " (the parameters of all layers)"
        given = arrays.as_array("params", params, (model.num_params,), None, self.stream, meaning)
        return self.astype(given, np.float64), np.dtype(given.dtype)

    def as_samples(self, model, X):
        if not is_on_device(X):
            return CPU.as_samples(model, X)
        meaning, shape = " (samples x inputs of the first layer)", (None, int(model.chain.n_in[0]))
        X = arrays.as_array("X", X, shape, np.dtype(np.float64), self.stream, meaning)
        if X.shape[0] == 0:
            raise ValueError("X: expected at least one sample, got an empty batch")
        return X

    def as_targets(self, model, y, num_samples):
        if not is_on_device(y):
            return CPU.as_targets(model, y, num_samples)
        if get_loss(model.loss_name)["targets"] == "labels":
            # One number a sample, and all of them have to be looked at.
            return CPU.as_targets(model, arrays.take_labels(y, self.stream), num_samples)
        outputs, given = int(model.chain.n_out[-1]), np.dtype(np.float64)
        shape = (num_samples,) if outputs == 1 and len(y.shape) == 1 else (num_samples, outputs)
        y = arrays.as_array("y", y, shape, given, self.stream, " (samples x outputs of the last layer)")
        return y.reshape(num_samples, outputs)

    def linearise(self, model, params, X, targets):
        """(`Linearisation`, loss, gradient, layer table and sizes) of a net.

        ``params`` is on the device, X and targets are here or there.
        """
        names = [layer.activation for layer in model.layers]
        distinct = sorted(set(names))
        indices = np.array([distinct.index(name) for name in names])
        table, sizes = layers = layer_table(model.chain, X.shape[0], (indices, 0, 0))
        B, n = X.shape[0], int(table["n_out"][-1])
        shapes = dict.fromkeys(("S", "D", "lam"), sizes.u) | dict.fromkeys(("Dx", "Dz", "Dxx", "Dzx", "Dzz"), 0)
        shapes |= {"Z": sizes.z, "output": (B, n), "curvature": (B, n, n)}
        lin = Linearisation(**{name: self.empty(shape, np.float64) for name, shape in shapes.items()})
        lin.Z[: X.size].copy_to_device(self.put(X).reshape(X.size), stream=self.stream)
        records = self._table(table)
        runs = list(wide.runs(wide.wide_products(table, B), 0, table.size))
        for first, last, alone in reversed(runs):
            if alone:
                outputs = int(table["n_out"][first])
                self._launch(linearise.wide_forward_kernel(distinct), outputs, records, first, params, lin)
            else:
                self._launch(linearise.forward_kernel(distinct), 1, records, first, last, params, lin)
        check_finite("params, X: the net's output", self.take(lin.output))
        count = B if get_loss(model.loss_name)["mean_over"] == "samples" else B * n
        values, slope = self.empty(B, np.float64), self.empty((B, n), np.float64)
        self._launch(
            linearise.terminal_kernel(model.loss_name), -(-B // BLOCK), 1.0 / count, self.put(targets), lin.output,
            slope, lin.curvature, values,
        )
        value = float(self.take(values).sum())
        if not np.isfinite(value):
            raise ValueError(f"params, X, y: expected a finite loss, got {value}")
        G, gradient = self.empty((2, B * sizes.width), np.float64), self.empty(params.size, np.float64)
        G[table.size % 2, : B * n].copy_to_device(slope.reshape(B * n), stream=self.stream)
        for first, last, alone in runs:
            if not alone:
                self._launch(linearise.backward, 1, records, first, last, params, lin, gradient, G)
                continue
            inputs, outputs = (int(table[name][first]) for name in ("n_in", "n_out"))
            self._launch(linearise.wide_slopes, spread(B * outputs), records, first, lin, G)
            self._launch(linearise.wide_gradient, spread(inputs * outputs), records, first, lin, gradient)
            if first > 0:
                self._launch(linearise.wide_inputs, -(-inputs // LANES), records, first, params, lin, G)
        gradient = self.take(gradient)
        check_finite("params, X, y: the gradient", gradient)
        return lin, value, gradient, layers

    def span(self, table, sizes, lin):
        """`RowSpace` of the inputs of all layers, in float64."""
        space = RowSpace(self.empty(sizes.Q, np.float64), self.empty(sizes.R, np.float64))
        work = self.empty((table.size, 2 * sizes.reflectors + 1), np.float64)
        self._launch(row_space.span, table.size, self._table(table), lin, space, work)
        return space

    def span_bytes(self, table, sizes):
        """Bytes of scratch that `span` takes."""
        return 8 * table.size * (2 * sizes.reflectors + 1)

    def multiply_workspace(self, sizes, num_vectors, num_samples, dtype):
        """Arrays (dZ, dU, q) for the two sweeps of a product; a row a vector."""
        return (
            self.empty((num_vectors, sizes.z + num_samples * sizes.outputs), dtype),
            self.empty((num_vectors, sizes.u), dtype),
            self.empty((num_vectors, 2, num_samples * sizes.width), dtype),
        )

    def tangents(self, table, start, stop, params, lin, V, scratch):
        (dZ, dU, _), k, records, B = scratch, V.shape[0], self._table(table), lin.output.shape[0]
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
        dZ = self.take(scratch[0])
        return dZ[:, dZ.shape[1] - shape[1] * shape[2] :].reshape(shape)

    def adjoints(self, table, start, stop, params, lin, V, HV, scratch, shift=0.0, b=None, squares=None):
        self._adjoints(table, start, stop, params, lin, V, HV, scratch)
        if start == 0:
            if shift:
                HV.add_multiple(shift, V)
            if b is not None:
                np.subtract(b, HV, out=HV)

    def _adjoints(self, table, start, stop, params, lin, V, HV, scratch):
        (dZ, dU, q), k, records, B = scratch, V.shape[0], self._table(table), lin.output.shape[0]
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
