"""External layers: values and derivatives of a batch from Python functions, between the compiled sweeps.

`forward` and `backward` are for one such layer what those of `kernels.linearise` are for runs of compiled ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runtime import memory_budget
from ..runtime.annotations import Array
from ..runtime.validation import as_flag, as_numbers, as_size
from .blocks import ASYMMETRY, symmetrise
from .custom import as_init, initial_params

# What may be done where one layer of blocks is too large.
_WAY_OUT = "take fewer samples, or split the layer: parameters of Dense and Conv1d layers beside it need no such block"


@dataclass(frozen=True, repr=False)
class External:
    """A layer whose values and derivatives come from Python functions of a whole batch. Immutable.

    It is for what Numba cannot compile: a module of another framework, a simulator or a table. What Numba can compile
    is faster as a `Custom` layer. Each sample is mapped on its own: row i of every result belongs to row i of Z.

    Parameters
    ----------
    function : callable
        ``function(Z, x)`` returns the outputs (B, out_features), where Z (B, in_features) are the inputs of the layer
        and x (num_params,) are its parameters. Both are read-only arrays, in float64 for Hessians and otherwise in the
        dtype of the parameters.
    jacobian : callable
        ``jacobian(Z, x)`` returns Dz (B, out_features, in_features) and Dx (B, out_features, num_params), the
        derivatives of each sample's outputs with respect to its inputs and to x.
    curvature : callable
        ``curvature(Z, x, G)`` returns the second derivatives of ``sum_i G[i] . output[i]``, where G is
        (B, out_features): Dxx (num_params, num_params), summed over the samples, and for each sample Dzx
        (B, num_params, in_features) and Dzz (B, in_features, in_features).
    in_features, out_features : int
        The numbers of inputs and outputs, at least 1.
    num_params : int
        The number of parameters, which may be 0.
    init : float, array of shape (num_params,), or callable
        The parameters that `Network.init` starts from. A callable is given a ``numpy.random.Generator`` and returns
        such an array.
    frozen : bool
        Whether the net keeps the parameters as constants instead of training them (docs/frozen_layers.md).

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it. If a function returns results that have a wrong
        shape, are not finite, or are not symmetric where they should be, `Network.forward`, `Network.gradient` or
        `Network.hessian` raise a ``ValueError``.

    Notes
    -----
    The layer is treated as one given by its derivative blocks (docs/theory.md, section 7): its pivot has all num_params
    rows, whatever B is. Pickling stores the functions as pickle does, which is by name for plain functions.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> def scale(Z, x):
    ...     return x * Z
    >>> def jacobian(Z, x):
    ...     return np.broadcast_to(np.diag(x), (len(Z), 3, 3)), Z[:, :, None] * np.eye(3)
    >>> def curvature(Z, x, G):
    ...     return np.zeros((3, 3)), G[:, :, None] * np.eye(3), np.zeros((len(Z), 3, 3))
    >>> nh.External(scale, jacobian, curvature, in_features=3, out_features=3, num_params=3, init=1.0)
    External(scale, in_features=3, out_features=3, num_params=3)
    """

    function: Callable[..., Any]
    jacobian: Callable[..., Any]
    curvature: Callable[..., Any]
    in_features: int
    out_features: int
    num_params: int = 0
    init: float | Sequence[float] | Array | Callable[[np.random.Generator], Any] = 0.0
    frozen: bool = False

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        for name, arguments in (("function", "Z, x"), ("jacobian", "Z, x"), ("curvature", "Z, x, G")):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name}: expected a function {name}({arguments}), got {getattr(self, name)!r}")
        for name, least in (("in_features", 1), ("out_features", 1), ("num_params", 0)):
            set_field(self, name, as_size(name, getattr(self, name), least))
        set_field(self, "init", as_init(self.init, self.num_params))
        set_field(self, "frozen", as_flag("frozen", self.frozen))

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, num_params={self.num_params}"
        return f"External({name}, {sizes}{', frozen=True' if self.frozen else ''})"

    def initial_params(self, rng: np.random.Generator) -> Array:
        """Give the parameters that `Network.init` starts from.

        Parameters
        ----------
        rng : numpy.random.Generator
            The generator that ``init`` is called with, if it is a callable.

        Returns
        -------
        params : (num_params,) array
            The parameters.
        """
        return initial_params(self.init, self.num_params, rng)


def forward(layer, table, l, params, lin, first=0):
    """Fill the input of layer ``l + 1``, or the output, from that of layer ``l``, which is ``layer``.

    first : the number of the table's first layer in the net, for messages.
    """
    Z, x = _arguments(layer, table[l], params, lin)
    (value,) = _call(layer, first + l, "function", (Z, x), {"its value": (len(Z), layer.out_features)})
    place = lin.output.reshape(-1) if l + 1 == table.size else lin.Z[table[l + 1]["z"] :]
    place[: value.size] = value.reshape(-1)


def backward(layer, table, l, params, lin, gradient, G, keep, first=0):
    """Fill the layer's part of the flat gradient, the row ``l % 2`` of G and, to ``keep``, the derivative blocks.

    G : as for `kernels.linearise.backward`.
    """
    Z, x = _arguments(layer, table[l], params, lin)
    B, n_in, n, p = len(Z), layer.in_features, layer.out_features, layer.num_params
    G_out = G[(l + 1) % 2, : B * n].reshape(B, n)
    G_out.flags.writeable = False
    purpose = f"layers: derivatives of layer {first + l}, {layer!r}, of B = {B} samples"
    memory_budget.require(_result_bytes(n_in, n, p, B, keep), purpose, _WAY_OUT)
    Dz, Dx = _call(layer, first + l, "jacobian", (Z, x), {"Dz": (B, n, n_in), "Dx": (B, n, p)})
    start, count = table[l]["parameters"], table[l]["p"]
    gradient[start : start + count] = np.einsum("ia,iap->p", G_out, Dx)[:count]
    G[l % 2, : B * n_in] = np.einsum("ia,iaj->ij", G_out, Dz).reshape(-1)
    if keep:
        shapes = {"Dxx": (p, p), "Dzx": (B, p, n_in), "Dzz": (B, n_in, n_in)}
        Dxx, Dzx, Dzz = _call(layer, first + l, "curvature", (Z, x, G_out), shapes)
        blocks = {"Dx": Dx, "Dz": Dz, "Dxx": Dxx[None], "Dzx": Dzx.transpose(1, 0, 2), "Dzz": Dzz}
        if layer.frozen:
            blocks = {"Dz": Dz, "Dzz": Dzz}
        for name, block in blocks.items():
            start = table[l][name]
            place = getattr(lin, name)[start : start + block.size].reshape(block.shape)
            place[...] = block
            if name in ("Dxx", "Dzz"):
                _symmetrise(first + l, name, place)


def _result_bytes(in_features, out_features, num_params, num_samples, keep):
    """Bytes of what ``jacobian`` and, where ``keep``, ``curvature`` return."""
    first = num_samples * out_features * (in_features + num_params)
    second = num_params**2 + num_samples * in_features * (num_params + in_features)
    return 8 * (first + second if keep else first)


def require_memory(in_features, out_features, num_params, num_samples):
    """``MemoryError`` where a Hessian with a layer of these sizes is out of reach: for its derivatives and their
    copy.
    """
    memory_budget.require(
        2 * _result_bytes(in_features, out_features, num_params, num_samples, True),
        f"derivatives of {num_params:,} parameters and {in_features:,} inputs, of B = {num_samples}, as one block",
        _WAY_OUT,
    )


def _arguments(layer, record, params, lin):
    """Z and x, read-only."""
    B = lin.output.shape[0]
    Z = lin.Z[record["z"] : record["z"] + B * layer.in_features].reshape(B, layer.in_features)
    x = params[record["weights"] : record["weights"] + layer.num_params]
    Z.flags.writeable = x.flags.writeable = False
    return Z, x


def _call(layer, l, name, arguments, shapes):
    """What one of the layer's functions returns, as a tuple of arrays of these shapes."""
    results = getattr(layer, name)(*arguments)
    if len(shapes) == 1:
        results = (results,)
    elif not isinstance(results, (tuple, list)) or len(results) != len(shapes):
        raise ValueError(
            f"layers: expected {name} of layer {l} to return {', '.join(shapes)}, got {type(results).__name__}"
        )
    arrays = []
    for (noun, shape), result in zip(shapes.items(), results):
        array = as_numbers(f"layers: {name} of layer {l}", result)
        if array.shape != shape:
            raise ValueError(
                f"layers: expected {name} of layer {l} to return {noun} of shape {shape}, got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"layers: expected {name} of layer {l} to return finite numbers, got others in {noun}")
        arrays.append(array)
    return tuple(arrays)


def _symmetrise(l, name, square):
    wrong, difference = symmetrise(square, ASYMMETRY[np.dtype(np.float64)])
    if wrong.size:
        raise ValueError(
            f"layers: expected curvature of layer {l} to return a symmetric {name}, got entries that differ by "
            f"{difference[wrong[0]]:.1e} from those across the diagonal"
        )
