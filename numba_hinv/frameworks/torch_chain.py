"""What a module's ``forward`` does, where that is a chain: traced by torch.fx, without running it on numbers."""

import operator
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional


class Sin(nn.Module):
    """The sine, for which PyTorch has a function and no module."""

    def forward(self, input):
        return torch.sin(input)


class Reshape(nn.Module):
    """``input.reshape(samples, *sizes)``, for which PyTorch has no module.

    samples : -1, or None for as many as there are.
    """

    def __init__(self, samples, sizes):
        super().__init__()
        self.samples, self.sizes = samples, sizes

    def forward(self, input):
        return input.reshape(len(input) if self.samples is None else self.samples, *self.sizes)


# Functions and methods of one tensor, as modules.
_FUNCTIONS = {
    torch.tanh: nn.Tanh,
    functional.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    functional.sigmoid: nn.Sigmoid,
    torch.relu: nn.ReLU,
    functional.relu: nn.ReLU,
    functional.silu: nn.SiLU,
    functional.gelu: nn.GELU,
    functional.softplus: nn.Softplus,
    torch.sin: Sin,
}
_METHODS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU, "sin": Sin}
# Functions of a tensor and options, as modules with the same ones, and the names of those that come without.
_WITH_OPTIONS = {
    functional.avg_pool1d: (nn.AvgPool1d, ("kernel_size", "stride", "padding")),
    functional.avg_pool2d: (nn.AvgPool2d, ("kernel_size", "stride", "padding")),
    functional.max_pool1d: (nn.MaxPool1d, ("kernel_size", "stride", "padding")),
    functional.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding")),
    functional.adaptive_avg_pool1d: (nn.AdaptiveAvgPool1d, ("output_size",)),
    functional.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    functional.dropout: (nn.Dropout, ("p",)),
    torch.flatten: (nn.Flatten, ("start_dim", "end_dim")),
    "flatten": (nn.Flatten, ("start_dim", "end_dim")),
}
_RESHAPES = ("view", "reshape")
_ADDITIONS = (operator.add, operator.iadd, torch.add)


class Call(NamedTuple):
    """A module is applied to the state."""

    name: str
    module: nn.Module


class Residual(NamedTuple):
    """The state gets the result of these steps added."""

    steps: tuple


class _Tracer(fx.Tracer):
    """Does not look into children."""

    def is_leaf_module(self, module, name):
        return True


def chain(module):
    """The steps that the ``forward`` of a module consists of, or None where it is no chain of such steps."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        steps = [Call(name, child) for name, child in _children(module)]
        # A child that is None is left out there, and cannot be called.
        return steps if len(steps) == len(module) else None
    try:
        nodes = list(_Tracer().trace(module).nodes)
    except Exception:
        # Tracing runs the user's Python on stand-ins for tensors, which can fail in any way.
        return None
    if nodes[0].op != "placeholder":
        return None
    steps, tip = [], nodes[0]
    # Nodes that are the number of samples, which no step changes.
    counts = set()
    # How many steps lead to a node, for those that a skip can start from.
    starts = {tip: 0}
    for node in nodes[1:-1]:
        if _is_count(node):
            counts.add(node)
            continue
        if _is_shape(node):
            continue
        source = _skip_source(node, tip, starts)
        if source is not None:
            start = starts[source]
            steps[start:] = [Residual(tuple(steps[start:]))]
            starts = {other: count for other, count in starts.items() if count <= start}
        else:
            step = _reshape(node, tip, counts) or _step(module, node, tip)
            if step is None:
                return None
            steps.append(step)
        tip = node
        starts[tip] = len(steps)
    return steps if nodes[-1].op == "output" and nodes[-1].args == (tip,) else None


def _children(module):
    """(name, child) of each child, in order: one that is there twice comes twice, unlike in ``named_children``."""
    return [(name, part) for name, part in module.named_modules(remove_duplicate=False) if name and "." not in name]


def _skip_source(node, tip, starts):
    """The node that ``node`` adds to ``tip``, if that is what it does."""
    if node.op != "call_function" or node.target not in _ADDITIONS or len(node.args) != 2 or node.kwargs:
        return None
    if tip not in node.args:
        return None
    other = node.args[1] if node.args[0] is tip else node.args[0]
    return other if isinstance(other, fx.Node) and other is not tip and other in starts else None


def _is_shape(node):
    """Whether a node is ``x.shape``."""
    return node.op == "call_function" and node.target is getattr and node.args[1:] == ("shape",)


def _is_count(node):
    """Whether a node is the number of samples: ``x.size(0)`` or ``x.shape[0]``."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,) and not node.kwargs
    return (
        node.op == "call_function"
        and node.target is operator.getitem
        and node.args[1:] == (0,)
        and (isinstance(node.args[0], fx.Node) and _is_shape(node.args[0]))
    )


def _reshape(node, tip, counts):
    """The step that ``tip.view(...)`` is, or None."""
    if node.op != "call_method" or node.target not in _RESHAPES or node.args[:1] != (tip,) or node.kwargs:
        return None
    samples, *sizes = node.args[1:] or (None,)
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return None
    if samples != -1 and samples not in counts:
        return None
    return Call(node.name, Reshape(-1 if samples == -1 else None, tuple(sizes)))


def _with_options(node, tip):
    """The step that a function of ``tip`` and options is, or None."""
    if node.op not in ("call_function", "call_method") or node.args[:1] != (tip,):
        return None
    build, names = _WITH_OPTIONS.get(node.target, (None, ()))
    if build is None or len(node.args) > len(names) + 1:
        return None
    options = {**dict(zip(names, node.args[1:])), **node.kwargs}
    if build is nn.Flatten and options.get("start_dim", 0) == 0:
        # The samples, too.
        return None
    training = options.pop("training", False)
    if any(isinstance(value, fx.Node) for value in options.values()) or not isinstance(training, bool):
        return None
    try:
        return Call(node.name, build(**options).train(training))
    except TypeError:
        # An option that the module does not have.
        return None


def _step(module, node, tip):
    step = _with_options(node, tip)
    if step is not None:
        return step
    if node.args != (tip,):
        return None
    options = {name: value for name, value in node.kwargs.items() if (name, value) != ("inplace", False)}
    if options:
        return None
    if node.op == "call_module":
        return Call(node.target, module.get_submodule(node.target))
    known = {"call_method": _METHODS, "call_function": _FUNCTIONS}.get(node.op, {})
    return Call(node.name, known[node.target]()) if node.target in known else None
