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
    """Register a loss under ``name``, by a decorator.

    Parameters
    ----------
    name : str
        The name that ``Network(..., loss=name)`` will refer to. A name can be registered again. If the new function is
        refused, the old one stays.
    mean_over : {"samples", "elements"}
        What the sum of the values of all samples is divided by: the number of samples, or that of all targets. Samples
        count with their weights.
    targets : {"values", "labels"}
        Whether y is (B, n) numbers or (B,) integer labels in 0..n-1, n being the number of outputs.
    parameters : dict, optional
        Names and defaults of numbers that the loss depends on, which ``nh.Loss(name, ...)`` may set. In place of a
        default, a `losses.Parameter` says which values are allowed. The function then takes a fifth argument, an array
        (number of parameters, n) of float64, with a row for each parameter in this order that holds its value for each
        output. The function is compiled once, whatever the values are. For a loss of labels, a parameter called
        class_weights must be the weights of the classes, since the mean is divided by their sum, as in PyTorch.
    outputs_per_target : int
        If targets are numbers, how many outputs of the net belong to each: with 2, for example, y is (B, n/2).

    Returns
    -------
    decorator : callable
        It takes ``function(z, y, gradient, curvature)``, plain or ``@njit``, and returns it unchanged. For one sample,
        the function reads z (n,), the output of the net, and y, the target (n,) or the label (1,). It fills gradient
        (n,) and the symmetric curvature (n, n) with the first and second derivatives with respect to z, and returns the
        value. It must write all entries, since these hold anything before.

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
    The trial compiles the function once, with bounds checks, which takes about a second. If the function calls other
    compiled functions, the trial finds those that write out of bounds, but not those that read there. It is called with
    1, 2, 3 and 5 targets (2, 3 and 5 classes for labels) or, if it raises for all of these, with the least number up to
    256 for which it does not; parameters have their defaults. A loss that is made for certain numbers of outputs should
    raise for others, and networks with those are refused. Derivatives are compared with differences at z of either sign
    wherever they are finite, except close to kinks, where the slope is that of one side. They must be right for at
    least one kind of y: any numbers, 0 and 1, -1 and 1, numbers that sum to 1, or one 1 among zeros. Of labels, all are
    tried.

    Once it is in use, the function cannot raise an exception. It returns NaN where there is no value, and that becomes
    an error.

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
    """List the names of the registered losses.

    Returns
    -------
    names : list of str
        The names, sorted.

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
