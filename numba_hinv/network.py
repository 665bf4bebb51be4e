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

    Parameters
    ----------
    layers : sequence of layers
        At least one of Dense, Conv1d, Conv2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d, BatchNorm, Activation, Custom
        (LayerNorm, RMSNorm, Gated) and External. The outputs of each are the inputs of the next.
    loss : str, Loss or callable
        softmax_cross_entropy (integer labels (B,)), mean_squared_error (mean over all elements, no factor 1/2),
        binary_cross_entropy (of logits), huber, smooth_l1, poisson, gaussian_nll, quantile, or one of `register_loss`;
        with options, as in ``nh.losses.huber(delta=2.0)``. Other libraries' names and functions ("mse",
        ``torch.nn.functional.cross_entropy``) stand for these.
    frozen_params : (F,) array, optional
        The parameters of layers with ``frozen=True``, first layer first. The net holds them; `freeze` is the short way
        to such a net from one that is trained already.

    Attributes
    ----------
    layers : tuple
    loss_name : str
    loss_definition : Loss
        The loss with its options.
    num_params : int
        P, the length of the flat vector, in which frozen layers have no part. A dense layer has its weight (out x in,
        row-major) there, and then its bias; a convolution likewise, with a weight out x in x kernel; the other layers
        have their own parameters.
    frozen_params : (F,) array
        Read-only; empty where no layer is frozen.
    trainable : (P + F,) array of bool
        Which of the parameters of all layers are those of the flat vector.

    Raises
    ------
    TypeError, ValueError
        The layers do not meet, or the loss is unknown or not for so many outputs; or all layers are frozen, or
        ``frozen_params`` are not as many as their parameters.

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
        """The same net with some more of its layers frozen, as they are now.

        Parameters
        ----------
        params : (P,) array
        layers : int, slice, sequence of int, or (L,) sequence of bool
            Which ones, from 0; negative from the end. ``slice(-1)``, or ``range(L - 1)``, are all but the last.

        Returns
        -------
        net : Network
        params : array
            Those of ``params`` that it still has; a tensor where params are one.

        Raises
        ------
        TypeError, ValueError, IndexError
            There is no such layer, or no parameter would be left.

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
        """The same net with none of these layers frozen, by default none at all: the inverse of `freeze`.

        Parameters
        ----------
        params : (P,) array
        layers : as for `freeze`

        Returns
        -------
        net : Network
        params : array
            ``params`` with those that the net has held, each in its layer's place.

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
        """The net as plain data for a file; None where its layers are more than that."""
        if not all(type(layer) in PLAIN for layer in self.layers):
            return None
        layers: Any = self.layers
        layers = [[type(layer).__name__, *dataclasses.astuple(layer)] for layer in layers]
        return {"layers": layers, "loss": self.model.loss.describe()}

    @formerly_seed
    def init(self, rng: Rng = 0, gain: float = 1.0, dtype: FloatType = np.float64) -> FloatArray:
        """Random parameters.

        Of layers that are not frozen. Weights are normal with standard deviation ``gain / sqrt(in_features)`` (of
        convolutions, in_channels times the kernel's elements), those of layers with a skip divided by the square root
        of the number of such layers, so that
        depth does not blow the activations up; biases are 0. Other layers start as they say, whatever ``gain`` is.

        Parameters
        ----------
        rng : int, numpy.random.Generator or None
            A seed, by default always the same one, or the generator to draw from; None for other parameters each time.
        gain : float
        dtype : float64 or float32

        Returns
        -------
        params : (P,) array
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
        """Views of ``params``, one entry per layer; of frozen layers, read-only ones of what the net holds.

        Per dense layer ``(weight, bias)`` of shape (out, in) and (out,), bias being None without one; of convolutions
        the same, with a weight of shape (out, in, kernel), or (out, in, kernel height, kernel width); of the other
        layers their parameters, (num_params,).

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
        """The net's output.

        Parameters
        ----------
        params : (P,) array
            float32 is kept and decides the precision; everything else becomes float64. Or a tensor of PyTorch.
        X : (B, in_features of the first layer) array

        Returns
        -------
        output : (B, out_features of the last layer) array
            For params in a tensor, a tensor in its dtype and on its device.
        """
        given, params = params, self.model.check_params(params)
        return tensors.like(self.model.forward(params, self.model.check_X(X, params.dtype)), given)

    @overload
    def jacobian(self, params: AnyTensor, X: ArrayLike) -> AnyTensor: ...

    @overload
    def jacobian(self, params: ArrayLike, X: ArrayLike) -> FloatArray: ...

    def jacobian(self, params: Any, X: ArrayLike) -> Any:
        """Derivatives of the outputs of each sample in the parameters.

        Parameters
        ----------
        params : (P,) array
        X : (B, in_features of the first layer) array

        Returns
        -------
        jacobian : (B, n_L, P) array
            Computed in float64; in the dtype of ``params``, as a tensor where that is one.

        Raises
        ------
        MemoryError
            8 B n_L P bytes would not fit; nothing has been allocated.

        Notes
        -----
        Costs about 4 n_L P flops a sample, or those of one Jacobian of the states for convolutions and other layers.

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
        """Hessian of the loss of each sample, taken alone, in its inputs.

        Parameters
        ----------
        params : (P,) array
        X, y
            As for `gradient`, in memory.

        Returns
        -------
        hessian : (B, n, n) array
            n being the inputs of the first layer. Computed in float64; in the dtype of ``params``, as a tensor where
            that is one. Of the mean loss over the batch, it is these over B.

        Raises
        ------
        MemoryError
            8 B n^2 bytes would not fit, or the derivative blocks of 256 samples; nothing has been allocated.

        Notes
        -----
        The recursion ``P <- J^T P J + A^T diag(D) A`` of docs/theory.md, section 13, down to the inputs: about 6 n^3
        flops a layer of width n, and sample.

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
        """The loss, averaged as `Network` says, as a float. Arguments as for `gradient`."""
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
        """Gradient of the loss in the parameters.

        Parameters
        ----------
        params : (P,) array
            As X and y, it may be a tensor of PyTorch on any device.
        X : (B, in_features of the first layer) array, or batches
            Anything that slices like an array and is not in memory (`numpy.memmap`, data sets of h5py and zarr) is read
            a batch at a time. So are batches, where y is None: pairs ``(X, y)`` from a list, a DataLoader of PyTorch,
            or a function that returns a generator, of any sizes; or triples, of which the third has their weights.
        y : (B,) integer labels or (B, out_features of the last layer) array
            As the loss asks for; (B,) numbers are taken where there is one output.
        l2 : float, or sequence
            Weight of the term ``l2/2 ||params||^2`` in the loss; at least 0. Or one number a layer, or pair (weights,
            biases), or a (P,) array (docs/priors.md).
        sample_weight : (B,) array, optional
            How often each sample counts: at least 0, and 1 by default. The loss is then the weighted mean, the sum of
            the weighted losses over that of the weights, or their sum where that is the loss's reduction.
        progress : bool, optional
            Show a progress bar of the samples, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        gradient : (P,) array
            In the dtype of ``params``; where that is a tensor, a tensor on its device.
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
        """The loss and its gradient, in one pass over the samples; arguments as for `gradient`.

        What optimisers of SciPy take with ``jac=True``.

        Returns
        -------
        loss : float
        gradient : (P,) array
            In the dtype of ``params``; where that is a tensor, a tensor on its device.
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
        """Hessian of the loss in the parameters, or its Gauss-Newton matrix, as a `Hessian` operator.

        Linearised in float64 whatever the dtype of ``params``, which decides the dtype of the answers.

        Parameters
        ----------
        params, X, y
            As for `gradient`.
        curvature : "hessian" or "ggn"
            With "ggn" the generalized Gauss-Newton matrix ``J^T C J`` (N. Schraudolph, Neural Computation 14, 2002)
            takes the place of H: J is the Jacobian of the net's outputs, and C the loss's curvature in them. It is
            positive semidefinite where the loss is convex in the outputs, as all that come with the library are but
            gaussian_nll, and weights are not negative.
        l2 : float, or sequence
            Weight of the term ``l2/2 ||params||^2`` in the loss, its gradient and H, as for `gradient`.
        device : "cpu" or "cuda"
            Where the derivative blocks lie, and products, factorizations and solves are computed: "cuda" is an NVIDIA
            GPU, for nets of dense layers (extra `cuda`). Then params, X, y, right-hand sides and vectors may be arrays
            there (anything with ``__cuda_array_interface__``), which are not copied to the host; solutions and products
            are where b and v are. All work goes to the stream that the interface of ``params`` names, if it does.
        batch_size : int, optional
            Read so many samples at a time. By default, all samples of arrays are one batch if their derivative blocks
            fit in ``keep_bytes``; where they do not, and for samples that come in batches already, it follows from the
            net, and is at least 512. Sums depend on it in rounding; and H of several batches is factored by
            ``method="dense"`` alone.
        keep_bytes : int, optional
            Keep so many bytes of derivative blocks, and make those of further batches again whenever H is multiplied
            with or assembled. By default what memory allows, or half of that for samples in batches.
        progress : bool, optional
            Show a progress bar of the batches, for which tqdm must be installed; by default what `set_progress` says.
        sample_weight : (B,) array, optional
            As for `gradient`, but weights may be negative as well, to remove samples; of a mean, the sum must be
            positive.

        Raises
        ------
        ImportError, RuntimeError
            ``device`` is "cuda" and numba-cuda is not installed, or finds no GPU.
        TypeError, ValueError
            An argument is not what is expected; of samples in batches, the message says which batch. Or the batches are
            not the same samples in a later pass, in whatever order.
        MemoryError
            On a GPU: the derivative blocks would not fit.

        Notes
        -----
        Costs about three times the flops of the loss. Beside the blocks that are kept, samples in batches take memory
        for one batch at a time.
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
