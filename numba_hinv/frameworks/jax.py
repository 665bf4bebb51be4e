"""Models of Equinox and Flax as networks of this library. Needs the extra `jax`."""

from collections.abc import Callable
from typing import Any

from ..layers.loss import Loss
from ..network import Network
from ..runtime.annotations import FloatArray, Unflatten
from ..runtime.progress import bar
from ..runtime.validation import as_size


def from_equinox(
    module: Any,
    loss: str | Loss | Callable[..., Any],
    input_shape: int | tuple[int, ...] | None = None,
    progress: bool | None = None,
) -> tuple[Network, FloatArray, Unflatten]:
    """Convert an ``equinox.Module`` and a loss into a network, its parameters, and the way back.

    Parameters
    ----------
    module : equinox.Module
        The module, which is called with one sample: ``equinox.nn.MLP``, ``equinox.nn.Sequential``, or one of your own.
    loss : function, Loss or str
        ``optax.softmax_cross_entropy_with_integer_labels``, ``optax.squared_error`` or
        ``optax.sigmoid_binary_cross_entropy``, of which the network takes the mean; or a loss of this library.
    input_shape : int or tuple of int, optional
        The shape of one sample. It must be given if the shapes of the parameters do not determine it.
    progress : bool, optional
        Show a progress bar of the layers, for which tqdm must be installed; by default what `set_progress` says.

    Returns
    -------
    network : Network
        The network. Its inputs, states and outputs are those of the module, where each sample is flattened row by row.
    params : (P,) array
        The parameters layer by layer as in `Network`, whatever order the module has, in float32 if all of them are,
        otherwise in float64.
    unflatten : callable
        ``unflatten(vector)`` gives the module with other parameters, and ``unflatten.flatten(tree)`` the vector for
        such a module, or for a gradient of the same structure. Both can be used in ``jax.jit`` and differentiated.

    Raises
    ------
    ImportError
        JAX or Equinox is not installed.
    TypeError, ValueError
        The module cannot be converted; the message says why. Among the reasons: it is random (dropout), computes in a
        precision of its own, has parameters that do nothing or that are neither in float32 nor in float64, or cannot be
        differentiated twice.
    MemoryError
        A part, which the message names, would have to be an external layer of more parameters than there is memory for
        in a Hessian of one sample.

    Notes
    -----
    What the module does is found by tracing it in float64, so that it may be written in any way. The trace is cut
    wherever a single array carries all that follows. A product with a weight becomes a `Dense` layer, together with a
    bias, an activation and a skip around it; a convolution in one dimension with channels first becomes a `Conv1d`; a
    norm over all features becomes a `LayerNorm` or an `RMSNorm`. An activation is recognised by its values, among all
    registered ones, so that ``register_activation`` adds others. ``jax.nn.gelu`` is recognised with
    ``approximate=False`` only. Loops over layers (``jax.lax.scan``) are unrolled.

    Every other part becomes one `External` layer, which JAX differentiates in float64 on the CPU. It takes 16 p^2 bytes
    for p parameters, and a pivot of all p rows. ``network.layers`` shows what each part has become. A network with such
    a layer cannot be pickled. If parameters are used in two places, everything between these is in one such layer.

    At the end the outputs of the network are compared with those of the module, on random samples.

    Examples
    --------
    >>> import equinox as eqx, jax
    >>> import numba_hinv as nh, numpy as np
    >>> model = eqx.nn.MLP(4, 3, 16, 2, activation=jax.nn.tanh, key=jax.random.key(0))
    >>> network, params, unflatten = nh.from_equinox(model, "softmax_cross_entropy")
    >>> X, y = np.ones((2, 4)), np.array([0, 2])
    >>> step = nh.solve(network, params, X, y, network.gradient(params, X, y), damping=1e-2)
    >>> type(unflatten(params - step)).__name__
    'MLP'
    """
    models = _models("equinox", "Equinox")
    import equinox

    if not isinstance(module, equinox.Module):
        raise TypeError(f"module: expected an equinox.Module, got {type(module).__name__}")
    return _convert(models.of_equinox(module), loss, input_shape, "from_equinox", progress)


def from_flax(
    module: Any,
    loss: str | Loss | Callable[..., Any],
    variables: Any = None,
    input_shape: int | tuple[int, ...] | None = None,
    progress: bool | None = None,
) -> tuple[Network, FloatArray, Unflatten]:
    """Convert a Flax module, of linen or nnx, and a loss into a network, its parameters, and the way back.

    Parameters
    ----------
    module : flax.linen.Module or flax.nnx.Module
        The module, which is called with a batch. It is not changed.
    loss : function, Loss or str
        As for `from_equinox`.
    variables : dict, optional
        For a linen module, what its ``init`` returns: ``{"params": ..., ...}``. Collections other than "params" are
        constants. None for a module of nnx, which has its own variables; those that are no ``nnx.Param`` are constants.
    input_shape : int or tuple of int, optional
        As for `from_equinox`.
    progress : bool, optional
        As for `from_equinox`.

    Returns
    -------
    network : Network
        The network.
    params : (P,) array
        The parameters layer by layer as in `Network`: the weight as out x in, then the bias. This is not the order of
        ``jax.flatten_util.ravel_pytree``, which has biases first and kernels as in x out. No check can tell the two
        apart, so use ``unflatten.flatten``.
    unflatten : callable
        As for `from_equinox`, where ``unflatten(vector)`` gives variables for ``module.apply``, or a module of nnx.

    Raises
    ------
    ImportError, TypeError, ValueError, MemoryError
        As for `from_equinox`; also if a batch has other outputs than its samples have alone (batch normalisation while
        training).

    Examples
    --------
    >>> import jax, numpy as np
    >>> from flax import linen as nn
    >>> import numba_hinv as nh
    >>> module, X, y = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)]), np.ones((2, 4)), np.array([0, 2])
    >>> variables = module.init(jax.random.key(0), X)
    >>> network, params, unflatten = nh.from_flax(module, "softmax_cross_entropy", variables)
    >>> step = network.hessian(params, X, y).factorize(1e-2).solve(network.gradient(params, X, y))
    >>> sorted(unflatten(params - step)["params"])
    ['layers_0', 'layers_2']
    """
    models = _models("flax", "Flax")
    from flax import linen, nnx

    if isinstance(module, nnx.Module):
        if variables is not None:
            raise TypeError("variables: expected None for a module of nnx, which has its own, got some")
        return _convert(models.of_nnx(module), loss, input_shape, "from_flax", progress)
    if not isinstance(module, linen.Module):
        raise TypeError(f"module: expected a flax.linen.Module or a flax.nnx.Module, got {type(module).__name__}")
    if not hasattr(variables, "items") or "params" not in variables:
        got = f"one with {', '.join(map(str, variables)) or 'nothing'}" if hasattr(variables, "items") else variables
        raise ValueError(
            "variables: expected a dictionary with 'params', as module.init returns it, for a module of linen; "
            f"got {got}"
        )
    return _convert(models.of_linen(module, dict(variables)), loss, input_shape, "from_flax", progress)


def _models(library: str, name: str) -> Any:
    try:
        __import__("jax")
        __import__(library)
    except ImportError:
        raise ImportError(
            f"module: expected JAX and {name} to be installed (pip install 'numba_hinv[jax]'), got a module without "
            "them"
        ) from None
    from . import jax_models

    return jax_models


def _convert(
    source: Any, loss: Any, input_shape: Any, label: str, progress: bool | None
) -> tuple[Network, FloatArray, Unflatten]:
    from .jax_conversion import convert

    if input_shape is not None:
        sizes = input_shape if isinstance(input_shape, (tuple, list)) else (input_shape,)
        input_shape = tuple(as_size("input_shape", size) for size in sizes)
    return convert(source, loss, input_shape, lambda total: bar(progress, total, label, "layer"))
