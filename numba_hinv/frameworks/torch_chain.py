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
    # How many steps lead to a node, for those that a skip can start from.
    starts = {tip: 0}
    for node in nodes[1:-1]:
        source = _skip_source(node, tip, starts)
        if source is not None:
            start = starts[source]
            steps[start:] = [Residual(tuple(steps[start:]))]
            starts = {other: count for other, count in starts.items() if count <= start}
        else:
            step = _step(module, node, tip)
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


def _step(module, node, tip):
    if node.args != (tip,):
        return None
    options = {name: value for name, value in node.kwargs.items() if (name, value) != ("inplace", False)}
    if options:
        return None
    if node.op == "call_module":
        return Call(node.target, module.get_submodule(node.target))
    known = {"call_method": _METHODS, "call_function": _FUNCTIONS}.get(node.op, {})
    return Call(node.name, known[node.target]()) if node.target in known else None
