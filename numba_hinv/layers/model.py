"""A chain of layers with a loss at its end, on NumPy arrays: checked input, values, gradients and derivative blocks.

`numba_hinv.Network` is its public face. Compiled layers run in `numba_hinv.kernels.sweeps.linearise`, external ones in
Python between them.
"""

import math

import numpy as np

from ..kernels.dense import norm
from ..kernels.plumbing import binding
from ..kernels.steps.layer_table import BLOCKS, CONVOLUTION, DENSE, NO_OPERATION, ONE_POSITION, Chain
from ..kernels.sweeps import linearise
from ..runtime.chunks import chunks
from ..runtime.validation import as_array, as_copy, check_finite
from . import external, overflow
from .activations import activation_address
from .batch_norm import BatchNorm
from .convolution import Conv1d, Conv2d
from .custom import Custom
from .dense import Dense
from .elementwise import Activation
from .external import External
from .frozen import as_held, num_leading
from .layout import Layout
from .local import Local
from .loss import as_loss
from .losses import loss_address
from .pooling import AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d
from .targets import Targets, with_labels

# Samples per compiled call of passes that keep nothing of a sample: their memory does not grow with the batch, and lies
# in a cache for narrow nets.
SAMPLES_AT_ONCE = 1024
_PARAMS = " (the parameters of all layers)"
# Layers of a weight, an activation and perhaps a bias.
STRUCTURED = (Dense, Conv1d, Conv2d)
# Layers that are plain data, which files hold. Others are code.
PLAIN = (*STRUCTURED, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d, BatchNorm, Activation)


class Model:
    """A chain of layers with a loss. Immutable.

    Parameters
    ----------
    layers : sequence of layers
    loss : Loss, or what names one with its default options, or None
        None of layers that end in the input of others.
    frozen_params : (F,) array, optional
        The parameters of the frozen layers.
    first : int
        The first layer's number in the net.

    Attributes
    ----------
    layers : tuple
    loss : Loss
    num_targets : int
        Numbers of y for each sample.
    num_terms : int
        What a sample counts for in the mean, with a weight of 1: as many as targets, or 1.
    chain : Chain
    num_params : int
        P, of layers that are not frozen.
    held : (F,) array
        Those of frozen layers, in float64.
    head : Model
        The layers from the first one on that has parameters which are not frozen: what is differentiated. This model
        itself, where no frozen layer comes before it.

    Raises
    ------
    TypeError, ValueError
        The layers do not meet, or the loss is unknown or not for so many outputs.
    """

    def __init__(self, layers, loss, frozen_params=None, first=0):
        self.layers, self.first = check_layers(layers), first
        if loss is not None:
            self._set_loss(as_loss(loss))
        self.held = as_held(frozen_params, self.layers)
        self.chain = Chain(*np.array([_fields(layer) for layer in self.layers], np.int64).T.copy())
        self.num_params = int(self.chain.p.sum())
        if self.num_params == 0 and loss is not None:
            why = "in layers that are not frozen, got none" if self.held.size else "got none in all layers"
            raise ValueError(f"layers: expected at least one parameter, {why}")
        self._work_size = max([layer.work_size for layer in self.layers if isinstance(layer, Custom)], default=0)
        self._external = {l for l, layer in enumerate(self.layers) if isinstance(layer, External)}
        # External layers are no compiled calls.
        self._cuts = tuple(cut for l in sorted(self._external) for cut in (l, l + 1))
        self._layouts = {}
        kind, n_in, n_out, p, *_ = self.chain
        dense = n_in.sum() + 3 * n_out.sum() + n_out[-1] ** 2
        self._fixed_bytes = 8 * int((p * p)[kind == BLOCKS].sum())
        taps = self.chain.taps
        states = np.where(taps > 0, n_in + 2 * n_out * taps, (n_in + n_out) * n_in)
        self._sample_bytes = 8 * int(dense + (states + (n_in + n_out) * p)[kind == BLOCKS].sum())
        self._body, self.head = None, self
        leading = 0 if loss is None else num_leading(self.layers)
        if leading:
            before, after = self.layers[:leading], self.layers[leading:]
            count = sum(layer.num_params for layer in before)
            self._body = Model(before, None, self.held[:count])
            self.head = Model(after, self.loss, self.held[count:], leading)

    def _set_loss(self, loss):
        self.loss, outputs = loss, self.layers[-1].out_features
        self.loss_parameters = self.loss.packed(outputs)
        self.num_targets = 1 if self.loss.has_labels else self.loss.num_targets(outputs)
        self.num_terms = 1 if self.loss.is_mean_over_samples else self.num_targets
        self._class_weights = self.loss.class_weights(outputs)

    def __getstate__(self):
        # Layer tables hold addresses of compiled functions, which are others in another process.
        return {**self.__dict__, "_layouts": {}}

    def table(self, num_samples, dtype):
        """Layer table and buffer sizes of the `layout`."""
        layout = self.layout(num_samples, dtype)
        return layout.table, layout.sizes

    def layout(self, num_samples, dtype):
        """`Layout` for a batch of ``num_samples`` and sweeps in ``dtype``, whose kernels it loads."""
        key = num_samples, np.dtype(dtype)
        found = self._layouts.get(key)
        if found is None:
            binding.load(key[1])
            names = {layer.activation for layer in self.layers if isinstance(layer, STRUCTURED)}
            activations = {name: (activation_address(name, dtype), 0, 0) for name in names}
            addresses = [
                activations[layer.activation]
                if isinstance(layer, STRUCTURED)
                else layer.addresses(key[1])
                if isinstance(layer, (Custom, Local))
                else (0, 0, 0)
                for layer in self.layers
            ]
            found = Layout(self.chain, num_samples, np.array(addresses, np.int64).T)
            # Two: training asks for the same batch again and again, a forward pass in chunks for two sizes.
            self._layouts = dict([*self._layouts.items(), (key, found)][-2:])
        return found

    def features(self, X):
        """The inputs of `head`: X, behind the frozen layers that come before it."""
        return X if self._body is None else self._body.forward(np.empty(0, X.dtype), X)

    def all_params(self, params):
        """The vector that the sweeps read: these parameters, then those of frozen layers."""
        return np.concatenate([params, self.held.astype(params.dtype)]) if self.held.size else params

    def block_bytes(self, num_samples):
        """Bytes of a `Linearisation` of so many samples."""
        if self.head is not self:
            return self.head.block_bytes(num_samples)
        return self._fixed_bytes + num_samples * self._sample_bytes

    def check_params(self, params):
        return as_array("params", params, (self.num_params,), meaning=_PARAMS)

    def copy_params(self, params):
        """(a copy of the parameters in float64, the dtype that `check_params` gives them)."""
        return as_copy("params", params, (self.num_params,), np.float64, _PARAMS)

    def check_X(self, X, dtype, name="X"):
        X = as_array(name, X, (None, int(self.chain.n_in[0])), dtype, " (samples x inputs of the first layer)")
        if X.shape[0] == 0:
            raise ValueError(f"{name}: expected at least one sample, got an empty batch")
        return X

    def check_y(self, y, num_samples, dtype, name="y", weights=None):
        """`Targets`: (B, 1) labels or (B, t) values in ``dtype``, and weights that `as_weights` has checked."""
        weights, count = np.ones(num_samples) if weights is None else weights, self.num_targets
        if self.loss.has_labels:
            outputs = int(self.chain.n_out[-1])
            return with_labels(name, y, weights, outputs, self.loss.ignore_index, dtype)
        if count == 1 and np.ndim(y) == 1:
            return Targets(as_array(name, y, (num_samples,), dtype).reshape(-1, 1), weights)
        meaning = " (samples x outputs of the last layer)"
        if count != self.chain.n_out[-1]:
            meaning = f" (samples x targets, for the {self.chain.n_out[-1]} outputs of the last layer)"
        return Targets(as_array(name, y, (num_samples, count), dtype, meaning), weights)

    def counts(self, targets):
        """What each sample counts for in a mean over samples: its weight, times that of its class, (B,)."""
        if self._class_weights is None:
            return targets.weights
        return targets.weights * self._class_weights[targets.values[:, 0].astype(np.int64)]

    def total_weight(self, targets):
        """The sum of `counts`; computed once."""
        if targets.total is None:
            with np.errstate(over="ignore"):
                targets.total = float(self.counts(targets).sum())
        return targets.total

    def normaliser(self, total_weight):
        """What the sum of the samples' losses is divided by; ``ValueError`` where a mean has nothing to be over."""
        if self.loss.reduction == "sum":
            return 1.0
        if not 0.0 < total_weight < np.inf:
            of = "" if self.loss.ignore_index is None else " of labels that are not ignored"
            raise ValueError(
                f"sample_weight: expected weights{of} with a positive, finite sum, for the loss to be a mean over it, "
                f"got {total_weight:g}; a loss with reduction='sum' needs none"
            )
        return total_weight * self.num_terms

    def forward(self, params, X):
        if self.head is not self:
            return self.head.forward(params, self.features(X))
        params, B = self.all_params(params), X.shape[0]
        output = np.empty((B, int(self.chain.n_out[-1])), params.dtype)
        for start in range(0, B, SAMPLES_AT_ONCE):
            X_chunk = X[start : start + SAMPLES_AT_ONCE]
            lin = self._propagate(params, X_chunk, 0)
            self.check_output(lin, params[: self.num_params], X_chunk)
            output[start : start + SAMPLES_AT_ONCE] = lin.output
        return output

    def _propagate(self, params, X, derivatives):
        """A `Linearisation` for as many ``derivatives`` whose forward part is filled, with whatever numbers."""
        layout = self.layout(X.shape[0], params.dtype)
        table, sizes = layout.table, layout.sizes
        lin = linearise.allocate(sizes, X.shape[0], int(self.chain.n_out[-1]), params.dtype, derivatives)
        lin.Z[: X.size] = X.ravel()
        U = np.empty(X.shape[0] * sizes.width + sizes.patches, params.dtype)
        for start, stop in layout.kept(_runs, derivatives, self._cuts):
            if start in self._external:
                external.forward(self.layers[start], table, start, params, lin, self.first)
            else:
                linearise.forward(table, start, stop, params, lin, U)
        return lin

    def propagate(self, params, X, derivatives):
        """A `Linearisation` of `head` for as many ``derivatives``, its forward part filled, with whatever numbers."""
        return self.head.propagate_whole(params, self.features(X), derivatives)

    def propagate_whole(self, params, X, derivatives):
        """The same of all layers."""
        return self._propagate(self.all_params(params), X, derivatives)

    def check_output(self, lin, params, X):
        """``ValueError`` that says which layer is to blame where an output is not finite."""
        self._check("params, X: the net's output", lin.output, params, X)

    def _check(self, what, array, params, X, targets=None):
        """`check_finite`, with the layer that is to blame in the message."""
        if math.isfinite(norm.total(array.ravel())):
            return
        try:
            check_finite(what, array)
        except ValueError as error:
            raise ValueError(f"{error}{overflow.blame(self, params, X, targets)}") from None

    def terminal(self, output, targets, curvature=None, normaliser=None):
        """Value, gradient and curvature of the loss in the output; ``ValueError`` where the value is not finite.

        normaliser : what the sum over the samples is divided by, by default that of these samples.
        """
        value, gradient, curvature = self.loss_at(output, targets, curvature, normaliser)
        if not math.isfinite(value):
            raise ValueError(f"params, X, y: expected a finite loss, got {value}")
        return value, gradient, curvature

    def loss_at(self, output, targets, curvature=None, normaliser=None):
        """The same, with whatever numbers."""
        B, n = output.shape
        if curvature is None:
            curvature = np.empty((B, n, n), output.dtype)
        gradient = np.empty_like(output)
        if normaliser is None:
            normaliser = self.normaliser(self.total_weight(targets))
        self.loss.check_registered()
        address, weights = loss_address(self.loss.name, output.dtype), targets.weights
        value = linearise.terminal(
            address, self.loss_parameters, 1.0 / normaliser, weights, targets.values, output, gradient, curvature
        )
        return float(value), gradient, curvature

    def linearise(self, params, X, targets, derivatives, normaliser=None):
        """`Linearisation` of `head` (complete with 2 ``derivatives``), loss, gradient; normaliser as for `terminal`."""
        return self.head.linearise_whole(params, self.features(X), targets, derivatives, normaliser)

    def linearise_whole(self, params, X, targets, derivatives, normaliser=None):
        """The same of all layers."""
        given, params = params, self.all_params(params)
        lin = self._propagate(params, X, derivatives)
        self.check_output(lin, given, X)
        value, output_gradient, _ = self.terminal(lin.output, targets, lin.curvature, normaliser)
        gradient, total = self._backpropagate(params, lin, output_gradient, derivatives)
        if not math.isfinite(total):
            self._check("params, X, y: the gradient", gradient, given, X, targets)
        for block in (lin.Dx, lin.Dz, lin.Dxx, lin.Dzx, lin.Dzz) if derivatives == 2 else ():
            if block.size:
                self._check("params, X, y: the derivatives of a layer", block, given, X, targets)
        return lin, value, gradient

    def linearise_outputs(self, params, X):
        """A `Linearisation` of the outputs alone, for tangents: as of a loss whose gradient is 0."""
        if self.head is not self:
            return self.head.linearise_outputs(params, self.features(X))
        lin = self.propagate(params, X, 2)
        self.check_output(lin, params, X)
        self.backpropagate(params, lin, np.zeros_like(lin.output), 2)
        return lin

    def backpropagate(self, params, lin, output_gradient, derivatives):
        """The gradient in the parameters that a gradient in the output leads to; completes ``lin`` on the way."""
        return self._backpropagate(self.all_params(params), lin, output_gradient, derivatives)[0]

    def _backpropagate(self, params, lin, output_gradient, derivatives):
        """That, and the sum of its entries."""
        B, total = output_gradient.shape[0], 0.0
        layout = self.layout(B, params.dtype)
        table, sizes = layout.table, layout.sizes
        G = np.empty((2, B * sizes.width), params.dtype)
        G[table.size % 2, : output_gradient.size] = output_gradient.ravel()
        gradient = np.empty(self.num_params, params.dtype)
        work = np.empty(max(self._work_size, sizes.patches), params.dtype)
        for start, stop in reversed(layout.kept(_runs, derivatives, self._cuts)):
            if start in self._external:
                keep = derivatives == 2
                external.backward(self.layers[start], table, start, params, lin, gradient, G, keep, self.first)
                first, p = table["parameters"][start], table["p"][start]
                with np.errstate(over="ignore", invalid="ignore"):
                    total += gradient[first : first + p].sum()
            else:
                total += linearise.backward(table, start, stop, params, lin, gradient, G, derivatives == 2, work)
        return gradient, total

    def pull(self, params, lin, output_gradient):
        """What `backpropagate` gives, where `propagate` with one derivative has made ``lin``."""
        return self.head.backpropagate(params, lin, output_gradient, 1)


def only_curvature_of_loss(lin, zero=lambda block: block.fill(0.0)):
    """Make the derivative blocks of H those of the Gauss-Newton matrix, in which no layer bends but the loss alone."""
    for name in linearise.BENDING:
        zero(getattr(lin, name))


def _runs(layout, derivatives, cuts):
    """Layers for one compiled call of linearising, which starts anew at the ``cuts``."""
    kind, n_in, n_out, p, *_ = layout.chain
    flops = 4.0 * (p + layout.chain.held) * layout.chain.positions() + 40.0 * n_out + 64.0 * p / layout.num_samples
    if derivatives == 2:
        taps = layout.chain.taps
        blocks = np.where(kind == BLOCKS, 4.0 * (p + n_in) * (p + n_in + n_out), 0.0)
        flops += np.where(taps > 0, 8.0 * n_out * (taps + p), blocks)
    return chunks(layout.num_samples * flops, cuts)


def check_layers(layers):
    """The layers as a tuple, once it is sure that they are some and that each takes what the one before it gives."""
    try:
        layers = tuple(layers)
    except TypeError:
        raise TypeError(f"layers: expected a sequence of layers, got {type(layers).__name__}") from None
    if not layers:
        raise ValueError("layers: expected at least one layer, got none")
    for index, layer in enumerate(layers):
        if not isinstance(layer, (*PLAIN, Custom, External)):
            raise TypeError(
                f"layers: expected {', '.join(kind.__name__ for kind in PLAIN)}, Custom or External layers, "
                f"got {type(layer).__name__} at index {index}"
            )
        if index and layer.in_features != layers[index - 1].out_features:
            raise ValueError(
                f"layers: expected layer {index} to take the {layers[index - 1].out_features} outputs of layer "
                f"{index - 1}, got in_features={layer.in_features}"
            )
    return layers


def _fields(layer):
    """A layer's entries in the `Chain`."""
    held = layer.num_params if layer.frozen else 0
    sizes = layer.in_features, layer.out_features, layer.num_params - held
    if isinstance(layer, Dense):
        return DENSE, *sizes, layer.bias, layer.skip, held, *ONE_POSITION
    if isinstance(layer, STRUCTURED):
        return CONVOLUTION, *sizes, layer.bias, layer.skip, held, *layer.window, NO_OPERATION, 0
    if isinstance(layer, Local):
        return BLOCKS, *sizes, False, False, held, *layer.window, layer.operation, layer.taps
    return BLOCKS, *sizes, False, False, held, *ONE_POSITION
