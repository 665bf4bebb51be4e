"""The registry of losses. Those that ship are in `loss_functions`; `loss.Loss` is one with its options.

To add one, write a function of one sample ``(z, y, gradient, curvature) -> value`` that Numba can compile and decorate
it with :func:`register_loss`, which tries it out (`loss_trial`). The mean over samples or elements is taken outside of
it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from numba import carray, types

from ..kernels.plumbing.disk_cache import callback
from ..runtime.validation import as_size
from . import aliases, loss_parameters, loss_trial
from .registry import Registry, is_own

_Function = TypeVar("_Function", bound=Callable[..., Any])
_registry = Registry("loss", aliases.LOSSES)


def register_loss(
    name: str,
    mean_over: Literal["samples", "elements"] = "samples",
    targets: Literal["values", "labels"] = "values",
    parameters: Mapping[str, Any] | None = None,
    outputs_per_target: int = 1,
) -> Callable[[_Function], _Function]:
    """Decorator that registers a loss under ``name``.

    Parameters
    ----------
    name : str
        What ``Network(..., loss=name)`` will refer to. A name can be registered again; where the new function is
        refused, the old one stays.
    mean_over : {"samples", "elements"}
        What the sum of the values of all samples is divided by: their number, or that of all targets. Samples count
        with their weights.
    targets : {"values", "labels"}
        Whether y is (B, n) numbers or (B,) integer labels in 0..n-1, n being the number of outputs.
    parameters : dict, optional
        Names and defaults of numbers that the loss depends on, which ``nh.Loss(name, ...)`` may set; instead of a
        default, `losses.Parameter` says more. The function then takes a fifth argument, an array (number of parameters,
        n) of float64: a row for each, in this order, with its value for each output. It is compiled once, whatever they
        are. One called class_weights, of a loss of labels, must be the weights of the classes, for the mean is over the
        sum of these, as in PyTorch.
    outputs_per_target : int
        Of the net, where y is numbers: with 2, say, y is (B, n/2).

    Returns
    -------
    decorator : callable
        Takes ``function(z, y, gradient, curvature)``, plain or ``@njit``, which for one sample reads z (n,), the
        network's output, and y (n,), the target (or (1,), holding the label), fills gradient (n,) and the symmetric
        curvature (n, n), both first and second derivatives in z, and returns the value. All entries are to be written:
        they hold anything before. Returns it unchanged.

    Raises
    ------
    TypeError
        ``name`` is not a string; ``function`` is not a function of four arguments (five with ``parameters``), cannot be
        compiled by Numba in nopython mode, or does not return a real number.
    ValueError
        ``mean_over`` or ``targets`` is not one of those listed, or a trial with random z and y shows that ``function``
        raises, reads or writes out of bounds, changes its inputs, leaves entries of gradient or curvature unwritten,
        returns an asymmetric curvature, or a gradient or curvature that are not the derivatives.

    Notes
    -----
    The trial compiles the function once, with bounds checks, which takes about a second; of compiled functions that it
    calls, it finds those that write out of bounds, but not those that read there. It calls it with 1, 2, 3 and 5
    targets (labels: 2, 3 and 5) or, where it raises for all of these, with the least number up to 256 for which it
    does not; parameters have their defaults. A loss that is made for certain numbers of outputs should raise
    for others; networks with these are refused. Derivatives are compared with differences wherever they are finite, z
    being of either sign, but not beside kinks, where a slope is that of one side. They must be right for one kind of y
    at least: any numbers, 0 and 1, -1 and 1, what sums to 1, or one 1 among zeros; labels are all tried.

    An exception cannot leave the function once it is in use: a value of NaN says that there is none, and becomes an
    error.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> @nh.register_loss("half_squares", parameters={"offset": 0.0})
    ... def half_squares(z, y, gradient, curvature, parameters):
    ...     value = 0.0
    ...     curvature[:] = 0.0
    ...     for a in range(z.size):
    ...         gradient[a] = z[a] - y[a] - parameters[0, a]
    ...         curvature[a, a] = 1.0
    ...         value += 0.5 * gradient[a] ** 2
    ...     return value
    >>> net = nh.Network([nh.Dense(1, 1, "identity")], nh.Loss("half_squares", offset=2.0))
    >>> net.loss([0.0, 0.0], [[1.0]], [[0.0]])
    2.0
    """
    for argument, given, known in (
        ("mean_over", mean_over, ("samples", "elements")),
        ("targets", targets, ("values", "labels")),
    ):
        if given not in known:
            raise ValueError(f"{argument}: expected one of {', '.join(known)}; got {given!r}")
    outputs_per_target = as_size("outputs_per_target", outputs_per_target)
    if outputs_per_target > 1 and targets == "labels":
        raise ValueError(f"outputs_per_target: expected 1 with targets='labels', got {outputs_per_target}")
    parameters = loss_parameters.declared(parameters or {})
    attributes = {
        "mean_over": mean_over,
        "targets": targets,
        "parameters": parameters,
        "outputs_per_target": outputs_per_target,
    }
    arguments = loss_trial.ARGUMENTS + ", parameters" * bool(parameters)
    return _registry.decorator(
        name, arguments, lambda function: loss_trial.try_loss({"function": function, **attributes}), **attributes
    )


def loss_names() -> list[str]:
    """Sorted names of the registered losses.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> "mean_squared_error" in nh.loss_names()
    True
    """
    return _registry.names()


def resolve_loss(given):
    """The registered name that a name, an alias or a function stands for; ``ValueError`` lists the known ones."""
    return _registry.resolve(given)


def get_loss(name):
    """What ``name`` was registered with: a dictionary; ``ValueError`` that lists the known names if it was not."""
    return _registry.get(name)


def check_loss(name, num_outputs, packed):
    """``ValueError`` unless ``name`` is registered, and as a loss of so many outputs.

    Losses were tried with a few numbers of outputs only, and compiled sweeps check no bounds. ``packed`` are its
    parameters.
    """
    entry = get_loss(name)
    if num_outputs % entry["outputs_per_target"]:
        raise ValueError(
            f"loss: expected {entry['outputs_per_target']} outputs for each target with {name!r}, got {num_outputs} "
            "outputs of the last layer"
        )
    if not is_own(entry["function"]):
        loss_trial.try_outputs("loss", entry, num_outputs, packed)


def loss_address(name, dtype):
    """Address of the compiled form of a loss, for ``dtype`` float64 or float32.

    It takes ``(z, y, gradient, curvature, parameters, n, number of targets, number of parameters)``, pointers to arrays
    of one sample and to parameters in float64, and returns the value as a float64.
    """
    build = _compile_with_parameters if get_loss(name)["parameters"] else _compile
    return _registry.address(name, dtype, build)


def _signature(scalar):
    array = types.CPointer(scalar)
    return types.float64(*[array] * 4, types.CPointer(types.float64), *[types.int64] * 3)


def _compile(function, scalar, cache):
    @callback(_signature(scalar), cache)
    def evaluate(z, y, gradient, curvature, parameters, n, num_targets, num_parameters):
        return function(carray(z, (n,)), carray(y, (num_targets,)), carray(gradient, (n,)), carray(curvature, (n, n)))

    return evaluate


def _compile_with_parameters(function, scalar, cache):
    @callback(_signature(scalar), cache)
    def evaluate(z, y, gradient, curvature, parameters, n, num_targets, num_parameters):
        return function(
            carray(z, (n,)),
            carray(y, (num_targets,)),
            carray(gradient, (n,)),
            carray(curvature, (n, n)),
            carray(parameters, (num_parameters, n)),
        )

    return evaluate
