"""A net and its batch on a GPU, and their derivative blocks: twin of `system.cpu.CpuModels`."""

import numpy as np

from ..kernels.sweeps.linearise import Linearisation
from ..layers.layout import Layout
from ..layers.targets import Targets
from ..runtime.validation import check_finite
from ..system.cpu import CPU
from ..system.processor import is_on_device
from .plumbing import arrays
from .plumbing.launch import Launcher, spread
from .plumbing.target import BLOCK, LANES
from .sweeps import linearise, wide


class DeviceModels:
    """What makes a `System` of a net."""

    def __init__(self, memory):
        self.memory = memory
        self._launch = Launcher(memory.stream)

    def as_params(self, model, params):
        """A copy of the parameters on the device, in float64, and the dtype that they were given in."""
        if not is_on_device(params):
            work, dtype = CPU.models.as_params(model, params)
            return self.memory.put(work), dtype
        meaning = " (the parameters of all layers)"
        given = arrays.as_array("params", params, (model.num_params,), None, self.memory.stream, meaning)
        return self.memory.astype(given, np.float64), np.dtype(given.dtype)

    def as_samples(self, model, X):
        if not is_on_device(X):
            return CPU.models.as_samples(model, X)
        meaning, shape = " (samples x inputs of the first layer)", (None, int(model.chain.n_in[0]))
        X = arrays.as_array("X", X, shape, np.dtype(np.float64), self.memory.stream, meaning)
        if X.shape[0] == 0:
            raise ValueError("X: expected at least one sample, got an empty batch")
        return X

    def as_targets(self, model, y, weights):
        if not is_on_device(y):
            return CPU.models.as_targets(model, y, weights)
        if model.loss.has_labels:
            # One number a sample, and all of them have to be looked at.
            return CPU.models.as_targets(model, arrays.take_row("y", y, self.memory.stream), weights)
        count, given, num_samples = model.num_targets, np.dtype(np.float64), weights.size
        shape = (num_samples,) if count == 1 and len(y.shape) == 1 else (num_samples, count)
        y = arrays.as_array("y", y, shape, given, self.memory.stream, " (samples x outputs of the last layer)")
        return Targets(y.reshape(num_samples, count), weights)

    def as_weights(self, name, weights, num_samples):
        if is_on_device(weights):
            weights = arrays.take_row(name, weights, self.memory.stream)
        return CPU.models.as_weights(name, weights, num_samples)

    def linearise(self, model, params, X, targets):
        """(`Linearisation`, loss, gradient, `Layout`) of a net.

        ``params`` is on the device, X and the values of the targets are here or there.
        """
        memory, names = self.memory, [layer.activation for layer in model.layers]
        distinct = sorted(set(names))
        indices = np.array([distinct.index(name) for name in names])
        layout = Layout(model.chain, X.shape[0], (indices, 0, 0))
        table, sizes = layout.table, layout.sizes
        B, n = X.shape[0], int(table["n_out"][-1])
        shapes = dict.fromkeys(("S", "D", "lam"), sizes.u) | dict.fromkeys(("Dx", "Dz", "Dxx", "Dzx", "Dzz"), 0)
        shapes |= {"Z": sizes.z, "output": (B, n), "curvature": (B, n, n)}
        lin = Linearisation(**{name: memory.empty(shape, np.float64) for name, shape in shapes.items()})
        lin.Z[: X.size].copy_to_device(memory.put(X).reshape(X.size), stream=memory.stream)
        records = memory.table(table)
        runs = list(wide.runs(wide.wide_products(table, B), 0, table.size))
        for first, last, alone in reversed(runs):
            if alone:
                outputs = int(table["n_out"][first])
                self._launch(linearise.wide_forward_kernel(distinct), outputs, records, first, params, lin)
            else:
                self._launch(linearise.forward_kernel(distinct), 1, records, first, last, params, lin)
        check_finite("params, X: the net's output", memory.take(lin.output))
        model.loss.check_registered()
        scale, weights = 1.0 / model.normaliser(model.total_weight(targets)), memory.put(targets.weights)
        values, slope = memory.empty(B, np.float64), memory.empty((B, n), np.float64)
        self._launch(
            linearise.terminal_kernel(model.loss.name), -(-B // BLOCK), memory.put(model.loss_parameters), scale,
            weights, memory.put(targets.values), lin.output, slope, lin.curvature, values,
        )
        value = float(memory.take(values).sum())
        if not np.isfinite(value):
            raise ValueError(f"params, X, y: expected a finite loss, got {value}")
        G, gradient = memory.empty((2, B * sizes.width), np.float64), memory.empty(params.size, np.float64)
        G[table.size % 2, : B * n].copy_to_device(slope.reshape(B * n), stream=memory.stream)
        for first, last, alone in runs:
            if not alone:
                self._launch(linearise.backward, 1, records, first, last, params, lin, gradient, G)
                continue
            inputs, outputs = (int(table[name][first]) for name in ("n_in", "n_out"))
            self._launch(linearise.wide_slopes, spread(B * outputs), records, first, lin, G)
            self._launch(linearise.wide_gradient, spread(inputs * outputs), records, first, lin, gradient)
            if first > 0:
                self._launch(linearise.wide_inputs, -(-inputs // LANES), records, first, params, lin, G)
        gradient = memory.take(gradient)
        check_finite("params, X, y: the gradient", gradient)
        return lin, value, gradient, layout
