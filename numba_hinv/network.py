"""The network: a chain of layers that ends in a loss. Values and gradients; `Network.hessian` opens the rest."""

import math

import numpy as np

from . import external, processor
from .activations import activation_address
from .chunks import chunks
from .conv1d import Conv1d
from .custom import Custom
from .dense import Dense
from .external import External
from .hessian import Hessian
from .kernels import binding, linearise
from .kernels.layers import BLOCKS, CONVOLUTION, DENSE, ONE_POSITION, Chain, layer_table
from .losses import check_loss, get_loss, loss_address
from .validation import as_array, as_float_dtype, as_labels, as_real, check_finite

# Samples per compiled call of a plain forward pass, which keeps its memory independent of the batch.
_FORWARD_CHUNK = 1024
# Layers of a weight, an activation and perhaps a bias.
_STRUCTURED = (Dense, Conv1d)


class Network:
    """Chain of layers with a loss at its end. Immutable; parameters are kept by the caller, as a flat vector.

    Parameters
    ----------
    layers : sequence of Dense, Conv1d, Custom (LayerNorm, RMSNorm, Gated) and External
        At least one; the outputs of each are the inputs of the next.
    loss : str
        softmax_cross_entropy (integer labels (B,)), mean_squared_error (mean over all elements, no factor 1/2),
        binary_cross_entropy (of logits), or one of `register_loss`.

    Attributes
    ----------
    layers : tuple
    loss_name : str
    num_params : int
        P, the length of the flat vector: per dense layer the weight (out x in, row-major), then the bias; of a
        convolution the same, with a weight out x in x kernel; of the other layers their own parameters.

    Raises
    ------
    TypeError, ValueError
        The layers do not meet, or the loss is unknown or not for so many outputs.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], loss="mean_squared_error")
    >>> net.forward(net.init(seed=0), np.ones((5, 3))).shape
    (5, 2)
    """

    def __init__(self, layers, loss):
        try:
            layers = tuple(layers)
        except TypeError:
            raise TypeError(f"layers: expected a sequence of layers, got {type(layers).__name__}") from None
        if not layers:
            raise ValueError("layers: expected at least one layer, got none")
        for index, layer in enumerate(layers):
            if not isinstance(layer, (*_STRUCTURED, Custom, External)):
                raise TypeError(
                    "layers: expected Dense, Conv1d, Custom or External layers, "
                    f"got {type(layer).__name__} at index {index}"
                )
            if index and layer.in_features != layers[index - 1].out_features:
                raise ValueError(
                    f"layers: expected layer {index} to take the {layers[index - 1].out_features} outputs of layer "
                    f"{index - 1}, got in_features={layer.in_features}"
                )
        check_loss(loss, layers[-1].out_features)
        self.layers = layers
        self.loss_name = loss
        self._chain = Chain(*np.array([_fields(layer) for layer in layers], np.int64).T.copy())
        self.num_params = int(self._chain.p.sum())
        if self.num_params == 0:
            raise ValueError("layers: expected at least one parameter, got none in all layers")
        self._work_size = max([layer.work_size for layer in layers if isinstance(layer, Custom)], default=0)
        self._external = {l for l, layer in enumerate(layers) if isinstance(layer, External)}
        self._tables = {}

    def __getstate__(self):
        # The tables hold addresses of compiled functions, which are others in another process.
        return {**self.__dict__, "_tables": {}}

    def __repr__(self):
        return f"Network({len(self.layers)} layers, {self.num_params} parameters, loss={self.loss_name!r})"

    def init(self, seed=0, gain=1.0, dtype=np.float64):
        """Random parameters.

        Weights are normal with standard deviation ``gain / sqrt(in_features)`` (in_channels kernel_size, of
        convolutions), those of layers with a skip divided by the square root of the number of such layers, so that
        depth does not blow the activations up; biases are 0. Other layers start as they say, whatever ``gain`` is.

        Parameters
        ----------
        seed : int or numpy.random.Generator
        gain : float
        dtype : float64 or float32

        Returns
        -------
        params : (P,) array
        """
        dtype = as_float_dtype("dtype", dtype)
        gain = as_real("gain", gain)
        rng = np.random.default_rng(seed)
        skip = self._chain.skip
        fan_in = self._chain.n_in // self._chain.length * self._chain.kernel
        deviation = gain / np.sqrt(fan_in * np.where(skip, max(1, skip.sum()), 1))
        params = np.zeros(self.num_params, dtype)
        with np.errstate(over="ignore"):
            for layer, block, scale in zip(self.layers, self.unpack(params), deviation):
                if isinstance(layer, _STRUCTURED):
                    block[0][:] = rng.standard_normal(block[0].shape) * scale
                else:
                    block[:] = layer.initial_params(rng)
        if not np.isfinite(params).all():
            raise ValueError(f"gain: expected weights that {dtype} can hold, got gain={gain:g}")
        return params

    def unpack(self, params):
        """Views of ``params``, one entry per layer.

        Per dense layer ``(weight, bias)`` of shape (out, in) and (out,), bias being None without one; of convolutions
        the same, with a weight of shape (out, in, kernel); of the other layers their parameters, (num_params,).

        Parameters
        ----------
        params : (P,) contiguous array

        Raises
        ------
        TypeError, ValueError
            Not an array of that shape, or not contiguous, so that views would be copies.
        """
        if not isinstance(params, np.ndarray):
            raise TypeError(f"params: expected a NumPy array to take views of, got {type(params).__name__}")
        if params.shape != (self.num_params,):
            raise ValueError(f"params: expected shape ({self.num_params},), got {params.shape}")
        blocks = []
        start = 0
        for layer in self.layers:
            end = start + layer.num_params
            if isinstance(layer, _STRUCTURED):
                middle = start + math.prod(layer.weight_shape)
                weight = params[start:middle].reshape(layer.weight_shape)
                blocks.append((weight, params[middle:end] if layer.bias else None))
            else:
                blocks.append(params[start:end])
            start = end
        return blocks

    def forward(self, params, X):
        """The net's output.

        Parameters
        ----------
        params : (P,) array
            float32 is kept and decides the precision; everything else becomes float64.
        X : (B, in_features of the first layer) array

        Returns
        -------
        output : (B, out_features of the last layer) array
        """
        params = self._check_params(params)
        return self._forward(params, self._check_X(X, params.dtype))

    def loss(self, params, X, y, l2=0.0):
        """The loss, averaged as `Network` says, as a float. Arguments as for `gradient`."""
        l2 = self._check_l2(l2)
        params = self._check_params(params)
        X = self._check_X(X, params.dtype)
        targets = self._check_y(y, X.shape[0], params.dtype)
        output = self._forward(params, X)
        value, _, _ = self._terminal(output, targets)
        return _add_l2(l2, params, value, None)[0]

    def gradient(self, params, X, y, l2=0.0):
        """Gradient of the loss in the parameters.

        Parameters
        ----------
        params : (P,) array
        X : (B, in_features of the first layer) array
        y : (B,) integer labels or (B, out_features of the last layer) array
            As the loss asks for; (B,) numbers are taken where there is one output.
        l2 : float
            Weight of the term ``l2/2 ||params||^2`` in the loss; at least 0.

        Returns
        -------
        gradient : (P,) array
            In the dtype of ``params``.
        """
        l2 = self._check_l2(l2)
        params = self._check_params(params)
        X = self._check_X(X, params.dtype)
        targets = self._check_y(y, X.shape[0], params.dtype)
        _, value, gradient = self._linearise(params, X, targets, 1)
        return _add_l2(l2, params, value, gradient)[1]

    def hessian(self, params, X, y, curvature="hessian", l2=0.0, device="cpu"):
        """Hessian of the loss in the parameters, or its Gauss-Newton matrix, as a `Hessian` operator.

        Linearised in float64 whatever the dtype of ``params``, which decides the dtype of the answers.

        Parameters
        ----------
        params, X, y
            As for `gradient`.
        curvature : "hessian" or "ggn"
            With "ggn" the generalized Gauss-Newton matrix ``J^T C J`` (N. Schraudolph, Neural Computation 14, 2002)
            takes the place of H: J is the Jacobian of the net's outputs, and C the loss's curvature in them. It is positive
            semidefinite where the loss is convex in the outputs, as all that come with the library are.
        l2 : float
            Weight of the term ``l2/2 ||params||^2`` in the loss, its gradient and H; at least 0.
        device : "cpu" or "cuda"
            Where the derivative blocks lie, and products, factorizations and solves are computed: "cuda" is an NVIDIA
            GPU, for nets of dense layers (extra `cuda`). Then params, X, y, right-hand sides and vectors may be arrays
            there (anything with ``__cuda_array_interface__``), which are not copied to the host; solutions and products
            are where b and v are. All work goes to the stream that the interface of ``params`` names, if it does.

        Raises
        ------
        ImportError, RuntimeError
            ``device`` is "cuda" and numba-cuda is not installed, or finds no GPU.
        """
        on = processor.get(device, params)
        if not isinstance(curvature, str) or curvature not in ("hessian", "ggn"):
            raise ValueError(f"curvature: expected 'hessian' or 'ggn', got {curvature!r}")
        l2 = self._check_l2(l2)
        work, dtype = on.as_params(self, params)
        X = on.as_samples(self, X)
        targets = on.as_targets(self, y, X.shape[0])
        B, (kind, n_in, n_out, p, *_) = X.shape[0], self._chain
        blocks = (p * p + B * ((n_in + n_out) * (n_in + p)))[kind == BLOCKS].sum()
        if on is not processor.CPU:
            for l, layer in enumerate(self.layers):
                if not isinstance(layer, Dense):
                    raise ValueError(f"device: expected Dense layers alone with 'cuda', got layer {l}, {layer!r}")
        on.require(
            8 * (int(blocks) + B * int(n_in.sum() + 3 * n_out.sum() + n_out[-1] ** 2)),
            f"the derivative blocks of {len(self.layers)} layers for B = {B} samples",
        )
        lin, loss, gradient, layers = on.linearise(self, work, X, targets)
        if curvature == "ggn":
            # Without second derivatives of the layers, only the loss bends.
            for block in (lin.D, lin.lam, lin.Dxx, lin.Dzx, lin.Dzz):
                on.zero(block)
        if l2:
            loss, gradient = _add_l2(l2, on.take(work), loss, gradient)
        gradient = gradient.astype(dtype, copy=False)
        return Hessian(self._chain, work, lin, dtype, loss, gradient, self, layers, curvature, l2, on)

    def _table(self, num_samples, dtype):
        """Layer table and buffer sizes for a batch of ``num_samples`` and sweeps in ``dtype``; loads their kernels."""
        key = num_samples, np.dtype(dtype)
        found = self._tables.get(key)
        if found is None:
            binding.load(key[1])
            names = {layer.activation for layer in self.layers if isinstance(layer, _STRUCTURED)}
            activations = {name: (activation_address(name, dtype), 0, 0) for name in names}
            addresses = [
                activations[layer.activation] if isinstance(layer, _STRUCTURED)
                else layer.addresses(key[1]) if isinstance(layer, Custom)
                else (0, 0, 0)
                for layer in self.layers
            ]
            found = layer_table(self._chain, num_samples, np.array(addresses, np.int64).T)
            # Two: training asks for the same batch again and again, a forward pass in chunks for two sizes.
            self._tables = dict([*self._tables.items(), (key, found)][-2:])
        return found

    def _check_l2(self, l2):
        l2 = as_real("l2", l2)
        if l2 < 0.0:
            raise ValueError(f"l2: expected at least 0, got {l2}")
        return l2

    def _check_params(self, params):
        return as_array("params", params, (self.num_params,), meaning=" (the parameters of all layers)")

    def _check_X(self, X, dtype, name="X"):
        X = as_array(name, X, (None, int(self._chain.n_in[0])), dtype, " (samples x inputs of the first layer)")
        if X.shape[0] == 0:
            raise ValueError(f"{name}: expected at least one sample, got an empty batch")
        return X

    def _check_y(self, y, num_samples, dtype, name="y"):
        """Targets as (B, 1) labels or (B, n_L) values, in ``dtype``."""
        outputs = int(self._chain.n_out[-1])
        if get_loss(self.loss_name)["targets"] == "labels":
            return as_labels(name, y, num_samples, outputs).astype(dtype).reshape(-1, 1)
        if outputs == 1 and np.ndim(y) == 1:
            return as_array(name, y, (num_samples,), dtype).reshape(-1, 1)
        return as_array(name, y, (num_samples, outputs), dtype, " (samples x outputs of the last layer)")

    def _forward(self, params, X):
        B = X.shape[0]
        output = np.empty((B, int(self._chain.n_out[-1])), params.dtype)
        for start in range(0, B, _FORWARD_CHUNK):
            X_chunk = X[start : start + _FORWARD_CHUNK]
            table, sizes = self._table(X_chunk.shape[0], params.dtype)
            output[start : start + _FORWARD_CHUNK] = self._propagate(table, sizes, params, X_chunk, 0).output
        return output

    def _propagate(self, table, sizes, params, X, derivatives):
        """A `Linearisation` for as many ``derivatives`` whose forward part is filled."""
        lin = linearise.allocate(sizes, X.shape[0], int(self._chain.n_out[-1]), params.dtype, derivatives)
        lin.Z[: X.size] = X.ravel()
        U = np.empty(X.shape[0] * sizes.width + sizes.patches, params.dtype)
        for start, stop in self._runs(X.shape[0], derivatives):
            if start in self._external:
                external.forward(self.layers[start], table, start, params, lin)
            else:
                linearise.forward(table, start, stop, params, lin, U)
        check_finite("params, X: the net's output", lin.output)
        return lin

    def _runs(self, num_samples, derivatives):
        """Layers for one compiled call of linearising."""
        kind, n_in, n_out, p, *_ = self._chain
        flops = 4.0 * p * self._chain.positions() + 40.0 * n_out + 64.0 * p / num_samples
        if derivatives == 2:
            flops += np.where(kind == BLOCKS, 4.0 * (p + n_in) * (p + n_in + n_out), 0.0)
        # External layers are no compiled calls.
        return chunks(num_samples * flops, [cut for l in self._external for cut in (l, l + 1)])

    def _terminal(self, output, targets, curvature=None):
        """Value, gradient and curvature of the loss in the output."""
        B, n = output.shape
        if curvature is None:
            curvature = np.empty((B, n, n), output.dtype)
        gradient = np.empty_like(output)
        count = B if get_loss(self.loss_name)["mean_over"] == "samples" else B * n
        address = loss_address(self.loss_name, output.dtype)
        value = linearise.terminal(address, 1.0 / count, targets, output, gradient, curvature)
        if not np.isfinite(value):
            raise ValueError(f"params, X, y: expected a finite loss, got {value}")
        return float(value), gradient, curvature

    def _linearise(self, params, X, targets, derivatives):
        """`Linearisation` (complete with 2 ``derivatives``), loss and gradient."""
        B = X.shape[0]
        table, sizes = self._table(B, params.dtype)
        lin = self._propagate(table, sizes, params, X, derivatives)
        value, output_gradient, _ = self._terminal(lin.output, targets, lin.curvature)
        gradient = self._backpropagate(table, sizes, params, lin, output_gradient, derivatives)
        check_finite("params, X, y: the gradient", gradient)
        return lin, value, gradient

    def _backpropagate(self, table, sizes, params, lin, output_gradient, derivatives):
        """The gradient in the parameters that a gradient in the output leads to; completes ``lin`` on the way."""
        B = output_gradient.shape[0]
        G = np.empty((2, B * sizes.width), params.dtype)
        G[table.size % 2, : output_gradient.size] = output_gradient.ravel()
        gradient = np.empty_like(params)
        work = np.empty(max(self._work_size, sizes.patches), params.dtype)
        for start, stop in reversed(self._runs(B, derivatives)):
            if start in self._external:
                external.backward(self.layers[start], table, start, params, lin, gradient, G, keep=derivatives == 2)
            else:
                linearise.backward(table, start, stop, params, lin, gradient, G, work)
        return gradient

    def _jacobian(self, params, x):
        """(outputs (n_L,), their Jacobian (n_L, P)) of one sample x (1, n_in), in the dtype of both."""
        table, sizes = self._table(1, params.dtype)
        lin = self._propagate(table, sizes, params, x, 1)
        unit = np.eye(sizes.outputs, dtype=params.dtype)
        rows = [self._backpropagate(table, sizes, params, lin, one[None], 1) for one in unit]
        return lin.output[0], np.array(rows)


def _add_l2(l2, params, value, gradient):
    """Loss and gradient (or None) with the term ``l2/2 ||params||^2``; ``ValueError`` where that overflows."""
    if l2 == 0.0:
        return value, gradient
    wide = params.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        value = value + 0.5 * l2 * float(wide @ wide)
        if gradient is not None:
            gradient = (gradient + l2 * wide).astype(gradient.dtype, copy=False)
    if not np.isfinite(value):
        raise ValueError(f"l2: expected a finite loss, got {value} with l2={l2:g}")
    return value, gradient


def _fields(layer):
    """A layer's entries in the `Chain`."""
    sizes = layer.in_features, layer.out_features, layer.num_params
    if isinstance(layer, Dense):
        return DENSE, *sizes, layer.bias, layer.skip, *ONE_POSITION
    if isinstance(layer, Conv1d):
        geometry = layer.length, layer.kernel_size, layer.stride, layer.padding, layer.dilation
        return CONVOLUTION, *sizes, layer.bias, layer.skip, *geometry
    return BLOCKS, *sizes, False, False, *ONE_POSITION
