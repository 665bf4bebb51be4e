"""Losses of PyTorch, modules and functions with their options, as losses of this library."""

import functools
import inspect

from torch import nn
from torch.nn import functional

from ..layers.loss import Loss, as_loss

# Names of the library's losses, and of their parameters by those of the module's options.
_LOSSES = {
    nn.CrossEntropyLoss: (
        "softmax_cross_entropy",
        {"weight": "class_weights", "label_smoothing": "label_smoothing", "ignore_index": "ignore_index"},
    ),
    nn.MSELoss: ("mean_squared_error", {}),
    nn.BCEWithLogitsLoss: ("binary_cross_entropy", {"pos_weight": "pos_weight"}),
    nn.HuberLoss: ("huber", {"delta": "delta"}),
    nn.SmoothL1Loss: ("smooth_l1", {"beta": "beta"}),
    nn.L1Loss: ("smooth_l1", {}),
    nn.PoissonNLLLoss: ("poisson", {"log_input": "log_input", "full": "full", "eps": "eps"}),
}
# The same as functions, whose options have the names of the modules' own.
_FUNCTIONS = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.mse_loss: nn.MSELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.huber_loss: nn.HuberLoss,
    functional.smooth_l1_loss: nn.SmoothL1Loss,
    functional.l1_loss: nn.L1Loss,
    functional.poisson_nll_loss: nn.PoissonNLLLoss,
}
# Losses of something else than outputs and targets, and what to take instead.
_OTHERS = {
    nn.GaussianNLLLoss: (
        "takes a variance beside the mean; take nh.losses.gaussian_nll() for a net whose outputs are [means, "
        "log-variances]"
    ),
    nn.BCELoss: "takes probabilities; take nn.BCEWithLogitsLoss() for a net whose outputs are logits",
    nn.NLLLoss: "takes log-probabilities; take nn.CrossEntropyLoss() for a net whose outputs are logits",
}


def from_torch_loss(loss):
    """The `Loss` that a loss of PyTorch, module or function, or what `Network` takes as one, stands for."""
    loss = _as_module(loss)
    if isinstance(loss, type) and loss in _LOSSES:
        loss = loss()
    if isinstance(loss, (Loss, str)) or hasattr(loss, "__name__"):
        return as_loss(loss)
    if type(loss) not in _LOSSES:
        known = ", ".join(f"nn.{kind.__name__}()" for kind in _LOSSES)
        why = f", which {_OTHERS[type(loss)]}" if type(loss) in _OTHERS else ""
        raise (ValueError if isinstance(loss, nn.Module) else TypeError)(
            f"loss: expected one of {known}, or a loss of this library; got {type(loss).__name__}{why}"
        )
    name, options = _LOSSES[type(loss)]
    if loss.reduction not in ("mean", "sum"):
        raise ValueError(
            f"loss: expected {type(loss).__name__} with reduction='mean' or 'sum', got {loss.reduction!r}; "
            "Network.loss takes the weights of the samples as sample_weight"
        )
    given = {parameter: getattr(loss, option) for option, parameter in options.items()}
    if isinstance(loss, nn.BCEWithLogitsLoss) and loss.weight is not None:
        raise ValueError(
            "loss: expected BCEWithLogitsLoss with weight=None, got one with weights; Network.loss takes those of "
            "samples as sample_weight"
        )
    if isinstance(loss, nn.L1Loss):
        given["beta"] = 0.0
    return Loss(name, loss.reduction, **{parameter: value for parameter, value in given.items() if value is not None})


def _as_module(loss):
    """The module that a loss which is given as a function is, with the options of a `functools.partial` of one."""
    options = {}
    if isinstance(loss, functools.partial) and not loss.args:
        loss, options = loss.func, loss.keywords
    if not (inspect.isroutine(loss) and loss in _FUNCTIONS):
        return loss
    try:
        return _FUNCTIONS[loss](**options)
    except TypeError as error:
        raise TypeError(f"loss: expected options of {loss.__name__}, got {', '.join(options)} ({error})") from None
