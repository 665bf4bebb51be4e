"""From a model of JAX to a `Network`: traced, cut into layers, and compared with the model on random samples."""

import math
import os
from collections import Counter

import jax
import numpy as np

from ..layers.external import External, require_memory
from ..layers.loss import Loss, as_loss
from ..network import Network
from .flat_order import FlatOrder
from .graph import Reading
from .graph_chain import Function, pieces
from .jax_function import JaxFunction
from .jax_trace import check_output, in_float64, trace
from .jax_tree import Unflatten

# The losses of optax, by name: functions of one sample, or of one number, of which a network takes the mean.
_LOSSES = {
    "softmax_cross_entropy_with_integer_labels": "softmax_cross_entropy",
    "squared_error": "mean_squared_error",
    "sigmoid_binary_cross_entropy": "binary_cross_entropy",
}
_NEAR_LOSSES = {
    "softmax_cross_entropy": "; softmax_cross_entropy_with_integer_labels is the one for labels",
    "l2_loss": "; squared_error is twice l2_loss",
}
_SAMPLES, _ROUNDING = 3, 1e-9


def convert(source, loss, input_shape, bar_of):
    """What `from_equinox` and `from_flax` return, for a `jax_models.Source`; ``input_shape`` is a tuple or None.

    ``bar_of(n)`` is the progress bar of so many layers.
    """
    loss = _as_loss(loss)
    for path, leaf in zip(source.paths, source.leaves):
        if leaf.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"module: cannot convert it: its parameter {path} has dtype {leaf.dtype}; expected float32 or float64"
            )
    with in_float64():
        wide = [leaf.astype(np.float64) for leaf in source.leaves]
        shape = _input_shape(source, wide) if input_shape is None else input_shape
        outputs = _called(source, wide, shape)
        if loss.has_labels and len(outputs) != 1:
            raise ValueError(
                f"module: expected one output per class for {loss.name}, got outputs of shape {outputs} per sample"
            )
        try:
            reading = Reading(trace(source.one, wide, shape))
            if not reading.is_state(reading.target):
                raise ValueError("its outputs do not depend on the samples")
            chain = pieces(reading)
            positions = [piece.positions for piece in chain]
            order = FlatOrder(source.paths, [leaf.shape for leaf in wide], np.concatenate(positions or [[]]))
        except ValueError as error:
            raise ValueError(f"module: cannot convert it: {error}") from error
        if not chain:
            raise ValueError("module: expected at least one layer, got a module that does nothing")
        layers = []
        with bar_of(len(chain)) as shown:
            for l, piece in enumerate(chain):
                layers.append(piece.layer or _external(reading, piece, l, order, wide))
                shown.update(1)
        network = Network(layers, loss)
        _compare(network, source, wide, order, shape)
    is_narrow = all(leaf.dtype == np.float32 for leaf in source.leaves)
    params = order.join(source.leaves).astype(np.float32 if is_narrow else np.float64)
    return network, params, Unflatten(order, source)


def _as_loss(loss):
    if isinstance(loss, (Loss, str)):
        return as_loss(loss)
    name = getattr(loss, "__name__", type(loss).__name__)
    is_optax = str(getattr(loss, "__module__", "")).split(".")[0] == "optax"
    if is_optax and name in _LOSSES:
        return Loss(_LOSSES[name])
    known = ", ".join(f"optax.{each}" for each in _LOSSES)
    hint = _NEAR_LOSSES.get(name, "") if is_optax else ""
    raise (ValueError if is_optax else TypeError)(
        f"loss: expected one of {known}, or the name of a loss; got {name}{hint}"
    )


def _called(source, leaves, shape):
    """Shape of the output for a sample of this shape."""
    try:
        return check_output(source.one, leaves, shape)
    except Exception as error:
        # Tracing runs the user's Python, which can fail in any way.
        raise ValueError(
            f"module: cannot convert it: it cannot be called with samples of shape {shape}: {_gist(error)}"
        ) from error


def _input_shape(source, leaves):
    """Shape of a sample: the one size, of those that the arrays have, with which the model can be called."""
    fitting, errors = [], {}
    for size in sorted({size for leaf in leaves for size in leaf.shape}):
        try:
            check_output(source.one, leaves, (size,))
        except Exception as error:
            errors[size] = error
            continue
        fitting.append(size)
    if len(fitting) != 1:
        found = f"; samples of {' and of '.join(map(str, fitting))} features would do" if fitting else ""
        if errors and not fitting:
            # Most sizes fail for being the wrong ones.
            kinds = Counter(map(type, errors.values()))
            size = min(errors, key=lambda size: kinds[type(errors[size])])
            found = f"; with {size} features it fails: {_gist(errors[size])}"
        raise ValueError(
            "input_shape: expected the shape of one sample, such as (3, 32), since the shapes of the parameters do not "
            f"tell it{found}; got None"
        )
    return (fitting[0],)


def _external(reading, piece, l, order, leaves):
    """The external layer of a piece that is none of ours."""
    name = _name(piece, order)
    sizes = piece.source.size, piece.target.size, piece.positions.size
    try:
        require_memory(*sizes, 1)
        function = JaxFunction(Function(reading, piece), *sizes, name)
        function.check_derivatives()
    except MemoryError as error:
        raise MemoryError(f"module: cannot convert layer {l} ({name}): {error}") from error
    except Exception as error:
        raise ValueError(
            f"module: cannot convert layer {l} ({name}): JAX cannot differentiate it twice: {_gist(error)}"
        ) from error
    init = np.concatenate([leaf.reshape(-1) for leaf in leaves] or [np.empty(0)])[piece.positions]
    return External(function, function.jacobian, function.curvature, *sizes, init)


def _name(piece, order):
    """What a piece is called: the keys that its parameters have in common or, without any, its operations."""
    paths = [path.split(".")[:-1] for path in dict.fromkeys(map(order.path_of, piece.positions.tolist()))]
    common = os.path.commonprefix(paths) if paths else []
    if common or not paths:
        operations = dict.fromkeys(equation.name for equation in piece.equations)
        return ".".join(common) or ", ".join(list(operations)[:4])
    return ", ".join(dict.fromkeys(".".join(path) for path in paths if path)) or "function"


def _compare(network, source, leaves, order, shape):
    """``ValueError`` where a batch has other outputs in the model than in the network, which takes samples alone."""
    X = np.random.default_rng(0).standard_normal((_SAMPLES, math.prod(shape)))
    ours = network.forward(order.join(leaves), X)
    try:
        theirs = jax.device_get(source.apply(source.rebuild(leaves, wide=True), X.reshape(_SAMPLES, *shape)))
    except Exception as error:
        raise ValueError(
            f"module: cannot convert it: it cannot be called with {_SAMPLES} samples of shape {shape}: {_gist(error)}"
        ) from error
    if theirs.size != ours.size or not (
        np.abs(theirs.reshape(ours.shape) - ours).max() <= _ROUNDING * np.abs(theirs).max()
    ):
        raise ValueError(
            "module: cannot convert it: samples of a batch have other outputs than each alone; expected a function of "
            "each sample: call eval() (nnx) or say use_running_average=True (linen) for batch normalisation"
        )


def _gist(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
