"""The network: a chain of layers that ends in a loss. Values and gradients; `Network.hessian` opens the rest."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, cast, overload

import numpy as np
from numpy.typing import ArrayLike

from .hessian import Hessian
from .layers import frozen, per_sample
from .layers.dense import Dense
from .layers.loss import Loss, as_loss
from .layers.model import PLAIN, SAMPLES_AT_ONCE, STRUCTURED, Model, only_curvature_of_loss
from .layers.samples import Samples, is_in_memory
from .layers.targets import as_weights
from .runtime import memory_budget, tensors
from .runtime.annotations import (
    AnyTensor,
    Array,
    BoolArray,
    Curvature,
    Data,
    FloatArray,
    FloatType,
    IntArray,
    Layer,
    Ridge,
)
from .runtime.progress import bar
from .runtime.randomness import Rng, as_generator, formerly_seed
from .runtime.validation import as_float_dtype, as_real, as_size
from .system import processor
from .system.batches import Batches, batch_size_for, default_keep_bytes
from .system.cpu import CPU
from .system.ridge import as_ridge
from .system.system import System
from .system.total import Total

# Which layers.
Choice: TypeAlias = int | slice | Sequence[int] | Sequence[bool] | BoolArray | IntArray


class Network:
    """A chain of layers with a loss at its end. It is immutable; the caller keeps the parameters, as a flat vector.

    Three letters describe shapes everywhere: B is the number of samples, P that of parameters and L that of layers.

    Parameters
    ----------
    layers : sequence of layers
        At least one of Dense, Conv1d, Conv2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d, BatchNorm, Activation, Custom
        (LayerNorm, RMSNorm, Gated) and External. The outputs of each are the inputs of the next.
    loss : str, Loss or callable
        One of "softmax_cross_entropy" (of integer labels (B,)), "mean_squared_error" (the mean over all elements,
        without a factor 1/2), "binary_cross_entropy" (of logits), "huber", "smooth_l1", "poisson", "gaussian_nll",
        "quantile", or a name given to `register_loss`. Options are set as in ``nh.losses.huber(delta=2.0)``. Names and
        functions of other libraries ("mse", ``torch.nn.functional.cross_entropy``) are understood as well.
    frozen_params : (F,) array, optional
        The parameters of the layers with ``frozen=True``, first layer first, which the net keeps as constants. `freeze`
        makes such a net from one that is trained already.

    Attributes
    ----------
    layers : tuple
        The layers, first layer first.
    loss_name : str
        The name under which the loss is registered.
    loss_definition : Loss
        The loss with its options.
    num_params : int
        P, the length of the flat vector of parameters, which holds nothing of frozen layers. For a dense layer it holds
        the weight (out x in, row-major) and then the bias; for a convolution the same, with a weight of
        out x in x kernel; for any other layer what that layer describes.
    frozen_params : (F,) array
        The parameters of frozen layers; read-only, and empty where no layer is frozen.
    trainable : (P + F,) array of bool
        For the parameters of all layers in order, whether each belongs to the flat vector.

    Raises
    ------
    TypeError, ValueError
        A layer does not have as many inputs as the one before it has outputs; the loss is unknown or not defined for
        that number of outputs; all layers are frozen; or ``frozen_params`` has another length than frozen layers need.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], loss="mean_squared_error")
    >>> net.forward(net.init(rng=0), np.ones((5, 3))).shape
    (5, 2)
    """

    def __init__(
        self, layers: Iterable[Layer], loss: str | Loss | Callable[..., Any], frozen_params: ArrayLike | None = None
    ) -> None:
        self.model: Any = Model(layers, as_loss(loss), frozen_params)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.model.layers

    @property
    def loss_name(self) -> str:
        return self.model.loss.name

    @property
    def loss_definition(self) -> Loss:
        return self.model.loss

    @property
    def num_params(self) -> int:
        return self.model.num_params

    @property
    def frozen_params(self) -> FloatArray:
        return self.model.held

    @property
    def trainable(self) -> BoolArray:
        return frozen.trainable(self.layers)

    @overload
    def freeze(self, params: AnyTensor, layers: Choice) -> tuple["Network", AnyTensor]: ...

    @overload
    def freeze(self, params: ArrayLike, layers: Choice) -> tuple["Network", FloatArray]: ...

    def freeze(self, params: Any, layers: Choice) -> tuple["Network", Any]:
        """Return the same net with some more of its layers frozen at the parameters that they have now.

        Parameters
        ----------
        params : (P,) array
            The parameters of this net.
        layers : int, slice, sequence of int, or (L,) sequence of bool
            The layers to freeze, counted from 0, or from the end if negative. ``slice(-1)`` and ``range(L - 1)`` both
            mean all layers but the last.

        Returns
        -------
        net : Network
            The net with these layers frozen.
        params : array
            What remains of ``params`` for that net; a tensor if ``params`` is one.

        Raises
        ------
        TypeError, ValueError, IndexError
            There is no such layer, or no parameter would be left to train.

        Examples
        --------
        >>> import numba_hinv as nh, numpy as np
        >>> net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], "mean_squared_error")
        >>> head, params = net.freeze(net.init(rng=0), slice(-1))
        >>> head.num_params, params.size, head.frozen_params.size
        (10, 10, 16)
        """
        return self._with_frozen(params, frozen.as_choice(self.layers, layers), True)

    @overload
    def unfreeze(self, params: AnyTensor, layers: Choice = ...) -> tuple["Network", AnyTensor]: ...

    @overload
    def unfreeze(self, params: ArrayLike, layers: Choice = ...) -> tuple["Network", FloatArray]: ...

    def unfreeze(self, params: Any, layers: Choice = slice(None)) -> tuple["Network", Any]:
        """Return the same net with some layers no longer frozen, by default all of them: the inverse of `freeze`.

        Parameters
        ----------
        params : (P,) array
            The parameters of this net.
        layers : int, slice, sequence of int, or (L,) sequence of bool, optional
            The layers to unfreeze, as for `freeze`.

        Returns
        -------
        net : Network
            The net in which these layers are not frozen.
        params : array
            ``params`` together with those that the net has kept, each in the place of its layer.

        Examples
        --------
        >>> import numba_hinv as nh, numpy as np
        >>> net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], "mean_squared_error")
        >>> params = net.init(rng=0)
        >>> np.array_equal(net.freeze(params, 0)[0].unfreeze(params[16:])[1], params)
        True
        """
        return self._with_frozen(params, frozen.as_choice(self.layers, layers), False)

    def _with_frozen(self, params: Any, chosen: BoolArray, flag: bool) -> tuple["Network", Any]:
        given, params = params, self.model.check_params(params)
        everything = np.empty(self.trainable.size)
        everything[self.trainable], everything[~self.trainable] = params, self.frozen_params
        layers = [frozen.with_frozen(one, flag) if which else one for one, which in zip(self.layers, chosen)]
        is_left = frozen.trainable(layers)
        net = Network(layers, self.loss_definition, everything[~is_left])
        return net, tensors.like(everything[is_left].astype(params.dtype), given)

    def __repr__(self) -> str:
        held = f", {self.frozen_params.size} frozen" if self.frozen_params.size else ""
        return f"Network({len(self.layers)} layers, {self.num_params} parameters{held}, loss={self._loss_text()})"

    def _loss_text(self) -> str:
        """The name alone where all options are as usual."""
        text = repr(self.model.loss)
        return repr(self.loss_name) if text == f"Loss({self.loss_name!r})" else text

    def describe(self) -> dict[str, Any] | None:
        """Describe the net as plain data for a file.

        Returns
        -------
        description : dict or None
            The layers and the loss; None where some layer cannot be written as plain data.
        """
        if not all(type(layer) in PLAIN for layer in self.layers):
            return None
        layers: Any = self.layers
        layers = [[type(layer).__name__, *dataclasses.astuple(layer)] for layer in layers]
        return {"layers": layers, "loss": self.model.loss.describe()}

    @formerly_seed
    def init(self, rng: Rng = 0, gain: float = 1.0, dtype: FloatType = np.float64) -> FloatArray:
        """Draw random parameters for the layers that are not frozen.

        Weights are normal with standard deviation ``gain / sqrt(in_features)``, where a convolution counts in_channels
        times the elements of its kernel. In layers with a skip they are also divided by the square root of the number
        of such layers, so that activations do not grow with depth. Biases are 0. All other layers start as their own
        descriptions say, whatever ``gain`` is.

        Parameters
        ----------
        rng : int, numpy.random.Generator or None
            A seed, by default always the same one, or the generator to draw from. With None, parameters are different
            each time.
        gain : float
            The factor of the standard deviation of the weights.
        dtype : float64 or float32
            The dtype of the result.

        Returns
        -------
        params : (P,) array
            The parameters as one flat vector.

        Raises
        ------
        TypeError, ValueError
            An argument is not what is expected, or ``gain`` makes weights that ``dtype`` cannot hold.
        """
        dtype = as_float_dtype("dtype", dtype)
        gain = as_real("gain", gain)
        rng = as_generator("rng", rng)
        skip = self.model.chain.skip
        deviation = gain / np.sqrt(self.model.chain.fan_in() * np.where(skip, max(1, skip.sum()), 1))
        params = np.zeros(self.num_params, dtype)
        with np.errstate(over="ignore"):
            for layer, block, scale in zip(self.layers, self.unpack(params), deviation):
                if layer.frozen:
                    continue
                if isinstance(layer, STRUCTURED):
                    block[0][:] = rng.standard_normal(block[0].shape) * scale
                else:
                    block[:] = cast(Any, layer).initial_params(rng)
        if not np.isfinite(params).all():
            raise ValueError(f"gain: expected weights that {dtype} can hold, got gain={gain:g}")
        return params

    def unpack(self, params: Array) -> list[Any]:
        """Split ``params`` into views, one entry for each layer.

        Parameters
        ----------
        params : (P,) array
            It must be contiguous.

        Returns
        -------
        entries : list
            For a dense layer ``(weight, bias)`` of shapes (out, in) and (out,), where bias is None if the layer has
            none. For a convolution the same, with a weight of shape (out, in, kernel) or (out, in, kernel height,
            kernel width). For any other layer its parameters, (num_params,). Entries of frozen layers are read-only
            views of what the net keeps.

        Raises
        ------
        TypeError, ValueError
            ``params`` is not an array of that shape, or is not contiguous, so that views would be copies.
        """
        if not isinstance(params, np.ndarray):
            raise TypeError(f"params: expected a NumPy array to take views of, got {type(params).__name__}")
        if params.shape != (self.num_params,):
            raise ValueError(f"params: expected shape ({self.num_params},), got {params.shape}")
        blocks: list[Any] = []
        starts = {False: 0, True: 0}
        for layer in self.layers:
            all_of_kind = self.frozen_params if layer.frozen else params
            start = starts[layer.frozen]
            starts[layer.frozen] = end = start + layer.num_params
            if isinstance(layer, STRUCTURED):
                middle = start + math.prod(layer.weight_shape)
                weight = all_of_kind[start:middle].reshape(layer.weight_shape)
                blocks.append((weight, all_of_kind[middle:end] if layer.bias else None))
            else:
                blocks.append(all_of_kind[start:end])
        return blocks

    @overload
    def forward(self, params: AnyTensor, X: ArrayLike) -> AnyTensor: ...

    @overload
    def forward(self, params: ArrayLike, X: ArrayLike) -> FloatArray: ...

    def forward(self, params: Any, X: ArrayLike) -> Any:
        """Compute the outputs of the net.

        Parameters
        ----------
        params : (P,) array
            An array or a PyTorch tensor. Parameters in float32 make all work be done in float32; any other dtype is
            converted to float64.
        X : (B, in_features of the first layer) array
            The samples, one in each row.

        Returns
        -------
        output : (B, out_features of the last layer) array
            The outputs. If ``params`` is a tensor, a tensor with its dtype and on its device.
        """
        given, params = params, self.model.check_params(params)
        return tensors.like(self.model.forward(params, self.model.check_X(X, params.dtype)), given)

    @overload
    def jacobian(self, params: AnyTensor, X: ArrayLike) -> AnyTensor: ...

    @overload
    def jacobian(self, params: ArrayLike, X: ArrayLike) -> FloatArray: ...

    def jacobian(self, params: Any, X: ArrayLike) -> Any:
        """Compute the derivatives of the outputs of each sample with respect to the parameters.

        Parameters
        ----------
        params : (P,) array
            As for `forward`.
        X : (B, in_features of the first layer) array
            The samples, one in each row.

        Returns
        -------
        jacobian : (B, n_L, P) array
            The derivatives, where n_L is the number of outputs. They are computed in float64 and returned in the dtype
            of ``params``, as a tensor if that is one.

        Raises
        ------
        MemoryError
            8 B n_L P bytes would not fit; nothing has been allocated.

        Notes
        -----
        Costs about 4 n_L P flops a sample; convolutions and other layers cost one Jacobian of their states.

        Examples
        --------
        >>> import numba_hinv as nh, numpy as np
        >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
        >>> net.jacobian(np.zeros(3), [[5.0, 7.0]])
        array([[[5., 7., 1.]]])
        """
        given, params = params, self.model.check_params(params)
        wide = params.astype(np.float64)
        found = per_sample.jacobians(self.model, wide, self.model.check_X(X, np.float64))[1]
        return tensors.like(found.astype(params.dtype, copy=False), given)

    @overload
    def input_hessian(self, params: AnyTensor, X: ArrayLike, y: ArrayLike) -> AnyTensor: ...

    @overload
    def input_hessian(self, params: ArrayLike, X: ArrayLike, y: ArrayLike) -> FloatArray: ...

    def input_hessian(self, params: Any, X: ArrayLike, y: ArrayLike) -> Any:
        """Compute, for each sample alone, the Hessian of its loss with respect to its inputs.

        Parameters
        ----------
        params : (P,) array
            As for `gradient`.
        X, y : array
            The samples and their targets as for `gradient`, as arrays in memory.

        Returns
        -------
        hessian : (B, n, n) array
            The Hessians, where n is the number of inputs of the first layer. They are computed in float64 and returned
            in the dtype of ``params``, as a tensor if that is one. Those of the mean loss over the batch are these
            divided by B.

        Raises
        ------
        MemoryError
            There is no room for 8 B n^2 bytes, or for the derivative blocks of 256 samples; nothing has been allocated.

        Notes
        -----
        The recursion ``P <- J^T P J + A^T diag(D) A`` of docs/theory.md, section 13, is carried on down to the inputs,
        for about 6 n^3 flops in each layer of width n and each sample.

        Examples
        --------
        >>> import numba_hinv as nh, numpy as np
        >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
        >>> net.input_hessian(np.array([1.0, 2.0, 0.0]), [[5.0, 7.0]], [[0.0]])
        array([[[2., 4.],
                [4., 8.]]])
        """
        given, params = params, self.model.check_params(params)
        X = self.model.check_X(X, np.float64)
        targets = self.model.check_y(y, X.shape[0], np.float64)
        found = per_sample.input_hessians(self.model, params.astype(np.float64), X, targets)
        return tensors.like(found.astype(params.dtype, copy=False), given)

    def loss(
        self,
        params: ArrayLike,
        X: Data,
        y: ArrayLike | None = None,
        l2: Ridge = 0.0,
        sample_weight: ArrayLike | None = None,
        progress: bool | None = None,
    ) -> float:
        """Compute the loss, averaged as `Network` describes.

        Parameters
        ----------
        params, X, y, l2, sample_weight, progress : as for `gradient`
            All arguments are those of `gradient`.

        Returns
        -------
        loss : float
            The loss, with its L2 term.
        """
        l2, params = self._as_l2(l2), self.model.check_params(params)

        def evaluate(X: Array, targets: Any, normaliser: float) -> tuple[float, None]:
            return self.model.terminal(self.model.forward(params, X), targets, None, normaliser)[0], None

        value, _ = self._over_all(evaluate, X, y, sample_weight, params.dtype, progress, "loss")
        return _add_l2(l2, params, value, None)[0]

    @overload
    def gradient(
        self,
        params: AnyTensor,
        X: Data,
        y: ArrayLike | None = None,
        l2: Ridge = 0.0,
        sample_weight: ArrayLike | None = None,
        progress: bool | None = None,
    ) -> AnyTensor: ...

    @overload
    def gradient(
        self,
        params: ArrayLike,
        X: Data,
        y: ArrayLike | None = None,
        l2: Ridge = 0.0,
        sample_weight: ArrayLike | None = None,
        progress: bool | None = None,
    ) -> FloatArray: ...

    def gradient(
        self,
        params: Any,
        X: Data,
        y: ArrayLike | None = None,
        l2: Ridge = 0.0,
        sample_weight: ArrayLike | None = None,
        progress: bool | None = None,
    ) -> Any:
        """Compute the gradient of the loss with respect to the parameters.

        Parameters
        ----------
        params : (P,) array
            The parameters as one flat vector. This, X and y may also be PyTorch tensors on any device.
        X : (B, in_features of the first layer) array, or batches
            The samples, one in each row. What can be sliced like an array but is not in memory (`numpy.memmap`, data
            sets of h5py and zarr) is read one batch at a time. With ``y=None``, X may instead be batches of any sizes:
            pairs ``(X, y)`` from a list, from a DataLoader of PyTorch or from a function that returns a generator; or
            triples, in which the weights of the samples come third.
        y : (B,) array of int, or (B, out_features of the last layer) array
            Labels or numbers, as the loss asks for. Where there is one output, (B,) numbers are accepted.
        l2 : float, or sequence
            Weight of the term ``l2/2 ||params||^2`` in the loss; at least 0. It may also be one number for each layer,
            one pair (weights, biases) for each layer, or a (P,) array (docs/priors.md).
        sample_weight : (B,) array, optional
            How often each sample counts: at least 0, and 1 by default. The loss is then the weighted mean, which is the
            sum of the weighted losses over the sum of the weights; with ``reduction="sum"`` it is the former sum alone.
        progress : bool, optional
            Show a progress bar of the samples, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        gradient : (P,) array
            The gradient, in the dtype of ``params``. If that is a tensor, a tensor on its device.
        """
        return self.loss_and_gradient(params, X, y, l2, sample_weight, progress)[1]

    @overload
    def loss_and_gradient(
        self,
        params: AnyTensor,
        X: Data,
        y: ArrayLike | None = None,
        l2: Ridge = 0.0,
        sample_weight: ArrayLike | None = None,
        progress: bool | None = None,
    ) -> tuple[float, AnyTensor]: ...

    @overload
    def loss_and_gradient(
        self,
        params: ArrayLike,
        X: Data,
        y: ArrayLike | None = None,
        l2: Ridge = 0.0,
        sample_weight: ArrayLike | None = None,
        progress: bool | None = None,
    ) -> tuple[float, FloatArray]: ...

    def loss_and_gradient(
        self,
        params: Any,
        X: Data,
        y: ArrayLike | None = None,
        l2: Ridge = 0.0,
        sample_weight: ArrayLike | None = None,
        progress: bool | None = None,
    ) -> Any:
        """Compute the loss and its gradient in one pass over the samples.

        SciPy's optimisers take this function with ``jac=True``.

        Parameters
        ----------
        params, X, y, l2, sample_weight, progress : as for `gradient`
            All arguments are those of `gradient`.

        Returns
        -------
        loss : float
            The loss, with its L2 term.
        gradient : (P,) array
            The gradient, in the dtype of ``params``. If that is a tensor, a tensor on its device.
        """
        given, l2, params = params, self._as_l2(l2), self.model.check_params(params)

        def evaluate(X: Array, targets: Any, normaliser: float) -> tuple[float, Array]:
            return self.model.linearise(params, X, targets, 1, normaliser)[1:]

        value, gradient = self._over_all(evaluate, X, y, sample_weight, params.dtype, progress, "gradient")
        value, gradient = _add_l2(l2, params, value, gradient.astype(params.dtype, copy=False))
        return value, tensors.like(gradient, given)

    def _as_l2(self, l2: Ridge) -> float | Array:
        """A number, or a (P,) array where it is not the same for all parameters."""
        number, ridge = as_ridge("l2", l2, self.model.head.chain, self.model.head.first)
        found = number if ridge is None else ridge
        if np.any(found < 0.0):
            raise ValueError(f"l2: expected at least 0, got {np.min(found)}")
        return found

    def _over_all(
        self,
        evaluate: Callable[..., tuple[float, Array | None]],
        X: Data,
        y: ArrayLike | None,
        sample_weight: ArrayLike | None,
        dtype: np.dtype[Any],
        progress: bool | None,
        label: str,
    ) -> tuple[float, Any]:
        """Loss and gradient (or None) of all samples.

        ``evaluate(X, targets, normaliser)`` gives both for some of them, over the normaliser: for a part of arrays in
        memory, else for a batch at a time.
        """
        model = self.model
        if y is not None and is_in_memory(X):
            X = model.check_X(X, dtype)
            weights = as_weights("sample_weight", sample_weight, X.shape[0])
            targets = model.check_y(y, X.shape[0], dtype, weights=weights)
            normaliser, parts = model.normaliser(model.total_weight(targets)), []
            with bar(progress, X.shape[0], label, " samples") as shown:
                for start in range(0, X.shape[0], SAMPLES_AT_ONCE):
                    part = slice(start, start + SAMPLES_AT_ONCE)
                    parts.append(evaluate(X[part], targets[part], normaliser))
                    shown.update(len(X[part]))
            gradient: Any
            value, gradient = parts[0]
            for one, slope in parts[1:]:
                value, gradient = value + one, None if slope is None else np.add(gradient, slope, dtype=np.float64)
            return value, gradient
        value, total, weight = 0.0, None, 0.0
        samples = self._samples(X, y, sample_weight)
        with bar(progress, samples.num_samples, label, " samples") as shown:
            for X, targets in samples:
                count = len(targets) * model.num_terms
                one, gradient = evaluate(X.astype(dtype, copy=False), targets.astype(dtype), count)
                value, weight = value + count * one, weight + model.total_weight(targets)
                if gradient is not None:
                    gradient = count * gradient.astype(np.float64, copy=False)
                    total = gradient if total is None else total + gradient
                shown.update(len(X))
        normaliser = model.normaliser(weight)
        return value / normaliser, None if total is None else total / normaliser

    def _samples(
        self,
        X: Data,
        y: ArrayLike | None,
        sample_weight: ArrayLike | None,
        batch_size: int | None = None,
        may_be_negative: bool = False,
    ) -> Samples:
        size = batch_size_for(self.model) if batch_size is None else as_size("batch_size", batch_size)
        return Samples(self.model, X, y, size, sample_weight, may_be_negative)

    def hessian(
        self,
        params: ArrayLike,
        X: Data,
        y: ArrayLike | None = None,
        curvature: Curvature = "hessian",
        l2: Ridge = 0.0,
        device: str = "cpu",
        batch_size: int | None = None,
        keep_bytes: int | None = None,
        progress: bool | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Hessian:
        """Take the Hessian of the loss with respect to the parameters, or its Gauss-Newton matrix, as a `Hessian`.

        The net is linearised in float64 whatever the dtype of ``params``, which decides the dtype of the answers.

        Parameters
        ----------
        params, X, y : as for `gradient`
            The parameters, the samples and their targets.
        curvature : "hessian" or "ggn"
            With "ggn" the generalized Gauss-Newton matrix ``J^T C J`` (N. Schraudolph, Neural Computation 14, 2002)
            takes the place of H, where J is the Jacobian of the net's outputs and C the curvature of the loss in them.
            It is positive semidefinite if no weight is negative and the loss is convex in the outputs, as all losses
            of the library are except gaussian_nll.
        l2 : float, or sequence
            Weight of the term ``l2/2 ||params||^2`` in the loss, its gradient and H, as for `gradient`.
        device : "cpu" or "cuda"
            Where the derivative blocks are stored and where products, factorizations and solves are computed. "cuda" is
            an NVIDIA GPU, for nets of dense layers (extra `cuda`). Then params, X, y, right-hand sides and vectors may
            be arrays on the GPU (anything with ``__cuda_array_interface__``), which are not copied to the host, and
            solutions and products are returned where b and v are. All work is queued on the stream that the interface
            of ``params`` names, if it names one.
        batch_size : int, optional
            How many samples to read at a time. By default, samples in arrays are one batch if their derivative blocks
            fit in ``keep_bytes``. Where they do not fit, and for samples that come in batches already, the size is
            computed from the net and is at least 512. Sums differ with it in rounding only. An H of several batches can
            be factored by ``method="dense"`` alone.
        keep_bytes : int, optional
            How many bytes of derivative blocks to keep. The blocks of further batches are computed again whenever H is
            multiplied or assembled. By default what memory allows, or half of that for samples in batches.
        progress : bool, optional
            Show a progress bar of the batches, for which tqdm must be installed; by default what `set_progress` says.
        sample_weight : (B,) array, optional
            As for `gradient`, but weights may also be negative, to remove samples. For a mean, their sum must be
            positive.

        Returns
        -------
        H : Hessian
            The matrix as an operator, with the loss and the gradient at the same parameters.

        Raises
        ------
        ImportError, RuntimeError
            ``device`` is "cuda" and numba-cuda is not installed, or finds no GPU.
        TypeError, ValueError
            An argument is not what is expected; for samples in batches, the message says which batch. Or a later pass
            over the batches gives other samples than the first, in whatever order.
        MemoryError
            The derivative blocks would not fit on the GPU.

        Notes
        -----
        Costs about three times the flops of the loss. Samples in batches take memory for one batch at a time, beside
        the blocks that are kept.
        """
        params, X, y = (tensors.plain(given, device != "cpu") for given in (params, X, y))
        on = processor.get(device, params)
        if not isinstance(curvature, str) or curvature not in ("hessian", "ggn"):
            raise ValueError(f"curvature: expected 'hessian' or 'ggn', got {curvature!r}")
        l2 = self._as_l2(l2)
        keep_bytes = None if keep_bytes is None else as_size("keep_bytes", keep_bytes, 0)
        work, dtype = on.models.as_params(self.model, params)
        if on is not CPU:
            self._check_device(device, batch_size)
            if np.ndim(l2):
                raise ValueError(f"l2: expected one number with device={device!r}, got one a layer or parameter")
        elif batch_size is not None or not self._is_one_batch(X, y, keep_bytes):
            samples = self._samples(X, y, sample_weight, batch_size, True)
            return self._hessian_of_batches(work, dtype, samples, curvature, l2, keep_bytes, progress)
        X = on.models.as_samples(self.model, X)
        weights = on.models.as_weights("sample_weight", sample_weight, X.shape[0])
        targets = on.models.as_targets(self.model, y, weights)
        on.memory.require(
            self.model.block_bytes(X.shape[0]),
            f"the derivative blocks of {len(self.layers)} layers for B = {X.shape[0]} samples",
            "take fewer samples at a time",
        )
        head = self.model.head
        lin, loss, gradient, layout = on.models.linearise(head, work, self._features(on, X), targets)
        if curvature == "ggn":
            only_curvature_of_loss(lin, on.memory.zero)
        if np.any(l2):
            loss, gradient = _add_l2(l2, on.memory.take(work), loss, gradient)
        gradient = gradient.astype(dtype, copy=False)
        number, ridge = _split(l2)
        weights, options = head.all_params(work), {"first": head.first, "ridge": ridge}
        system = System(head.chain, weights, lin, number, gradient, layout, on, **options)
        return Hessian(system, dtype, loss, self, curvature, self.model.total_weight(targets))

    def _features(self, on: Any, X: Any) -> Any:
        """What comes into the first layer with unknowns. The frozen layers before it run on the CPU."""
        if self.model.head is self.model:
            return X
        return on.memory.put(self.model.features(X if isinstance(X, np.ndarray) else on.memory.take(X)))

    def _is_one_batch(self, X: Any, y: Any, keep_bytes: int | None) -> bool:
        """Whether samples are arrays whose derivative blocks are to be kept at the same time."""
        if y is None:
            return False
        shape: tuple[int, ...] = getattr(X, "shape", ())
        # What is no array of samples is refused by the checks of one batch.
        needed = self.model.block_bytes(int(shape[0])) if len(shape) == 2 else 0
        return memory_budget.fits(needed) if keep_bytes is None else needed <= keep_bytes

    def _check_device(self, device: str, batch_size: int | None) -> None:
        head = self.model.head
        for l, layer in enumerate(head.layers, head.first):
            if not isinstance(layer, Dense):
                raise ValueError(f"device: expected Dense layers alone with {device!r}, got layer {l}, {layer!r}")
            if layer.frozen:
                raise ValueError(
                    f"device: expected no frozen layer behind one that is not with {device!r}, got layer {l}, "
                    f"{layer!r}; take device='cpu', or freeze the first layers alone"
                )
        if batch_size is not None:
            raise ValueError(f"batch_size: expected None with device={device!r}, got {batch_size!r}")

    def _hessian_of_batches(
        self,
        params: Array,
        dtype: np.dtype[Any],
        samples: Samples,
        curvature: str,
        l2: float | Array,
        keep_bytes: int | None,
        progress: bool | None,
    ) -> Hessian:
        keep_bytes = default_keep_bytes() if keep_bytes is None else keep_bytes
        with bar(progress, samples.num_samples, "linearise", " samples") as shown:
            batches = Batches(self.model, params, samples, curvature, keep_bytes, shown.update)
        loss, gradient = _add_l2(l2, params, batches.loss, batches.gradient)
        gradient = gradient.astype(dtype, copy=False)
        head = self.model.head
        number, ridge = _split(l2)
        total = Total(head.chain, params, batches, batches.num_samples, number, gradient, first=head.first, ridge=ridge)
        return Hessian(total, dtype, loss, self, curvature, batches.total_weight)


def _split(l2: Any) -> tuple[float, Array | None]:
    """(multiple of the identity, ridge) that an L2 term adds to H."""
    return (l2, None) if np.ndim(l2) == 0 else (0.0, l2)


def _add_l2(l2: Any, params: Array, value: float, gradient: Any) -> tuple[float, Any]:
    """Loss and gradient (or None) with the L2 term, of a number or (P,) array; ``ValueError`` where that overflows."""
    if not np.any(l2):
        return value, gradient
    wide = params.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        value = value + (0.5 * l2 * float(wide @ wide) if np.ndim(l2) == 0 else 0.5 * float(l2 @ wide**2))
        if gradient is not None:
            gradient = (gradient + l2 * wide).astype(gradient.dtype, copy=False)
    if not np.isfinite(value):
        raise ValueError(f"l2: expected a finite loss, got {value} with l2={np.max(l2):g}")
    return value, gradient
