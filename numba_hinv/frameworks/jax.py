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
    """The network that an ``equinox.Module`` and a loss are, its parameters, and the way back.

    Parameters
    ----------
    module : equinox.Module
        Called with one sample: ``equinox.nn.MLP``, ``equinox.nn.Sequential``, or one of your own.
    loss : function, Loss or str
        ``optax.softmax_cross_entropy_with_integer_labels``, ``optax.squared_error`` or
        ``optax.sigmoid_binary_cross_entropy``, of which the network takes the mean; or a loss of this
        library.
    input_shape : int or tuple of int, optional
        Of one sample. Needed where the shapes of the parameters do not tell it.
    progress : bool, optional
        Show a progress bar of the layers, for which tqdm must be installed; by default what
        `set_progress` says.

    Returns
    -------
    network : Network
        Its inputs, states and outputs are the module's, each sample's flattened row by row.
    params : (P,) array
        Layer by layer as in `Network`, whatever order the module has: float32 where all parameters are, else float64.
    unflatten : callable
        ``unflatten(vector)`` is the module with other parameters, and ``unflatten.flatten(tree)`` the vector of such a
        module or of a gradient in its form. Both may be used in ``jax.jit`` and be differentiated.

    Raises
    ------
    ImportError
        JAX or Equinox is not installed.
    TypeError, ValueError
        The module cannot be converted: why. Among the reasons: it is random (dropout), computes in a precision of its
        own, has parameters that do nothing or of a dtype other than float32 and float64, or cannot be differentiated
        twice.
    MemoryError
        A part has to be an external layer of more parameters than a Hessian of one sample has memory for: which one.

    Notes
    -----
    What the module does is seen by tracing it in float64, so that it may be written in any way. It is cut wherever one
    array alone goes on. Products with a weight become `Dense`, with a bias, an activation and a skip around them;
    convolutions in one dimension, channels first, `Conv1d`; norms over all features `LayerNorm` and `RMSNorm`. An
    activation is told by its values: any registered one, so that ``register_activation`` has others recognised, too.
    ``jax.nn.gelu`` is not ours, unless ``approximate=False``. Loops over layers (``jax.lax.scan``) are unrolled.

    Every other part becomes one `External` layer, differentiated by JAX in float64 on the CPU: 16 p^2 bytes for p
    parameters, and a pivot of all p rows. ``network.layers`` shows what became of everything. Such a network cannot be
    pickled. Parameters that are used in two places have all between them in one such layer.

    At the end the outputs of the network are compared with the module's, on random samples.

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
    """The network that a module of Flax, linen or nnx, and a loss are, its parameters, and the way back.

    Parameters
    ----------
    module : flax.linen.Module or flax.nnx.Module
        Called with a batch. It is not changed.
    loss, input_shape
        As in `from_equinox`.
    variables : dict
        Of a linen module, as its ``init`` returns it: ``{"params": ..., ...}``. Other collections are constants. None
        for a module of nnx, which has its variables; those that are no ``nnx.Param`` are constants.
    progress : bool, optional
        As in `from_equinox`.

    Returns
    -------
    network : Network
    params : (P,) array
        Layer by layer as in `Network`: weights out x in, then the bias. That is another order than that of
        ``jax.flatten_util.ravel_pytree``, which has biases first and kernels in x out, and which no check can tell
        apart: use ``unflatten.flatten``.
    unflatten : callable
        As in `from_equinox`: ``unflatten(vector)`` gives variables for ``module.apply``, or a module of nnx.

    Raises
    ------
    ImportError, TypeError, ValueError, MemoryError
        As `from_equinox`; also where a batch has other outputs than its samples alone (batch normalisation while
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
