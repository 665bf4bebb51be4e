"""From a PyTorch module to a `Network`: one pass over the modules in the order in which they are applied."""

import numpy as np
import torch
from torch import nn

from ..layers.elementwise import Activation
from ..layers.external import External, require_memory
from ..layers.frozen import with_frozen
from ..network import Network
from .fusion import with_activation, with_skip
from .torch_chain import Reshape, Residual, chain
from .torch_compiled import uncompiled
from .torch_function import TorchFunction
from .torch_layers import activation_of, layer_of, linear_over_positions
from .torch_losses import from_torch_loss
from .torch_probe import DROPOUTS, unsteady

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def convert(module, loss, input_shape, tick):
    """What `from_torch` returns; ``input_shape`` is a tuple or None, and ``tick(1)`` is called after every layer."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    module, loss = uncompiled(module), from_torch_loss(loss)
    conversion = Conversion(input_shape or _input_shape(module), None, tick)
    conversion.add("", module)
    conversion.turn_back()
    if not conversion.layers:
        raise ValueError("module: expected at least one layer, got a module that does nothing")
    if loss.has_labels and len(conversion.shape) != 1:
        raise ValueError(
            f"module: expected one output per class for {loss.name}, got outputs of shape {conversion.shape} per sample"
        )
    frozen = [parameter for parameter in conversion.parameters if not parameter.requires_grad]
    held = [parameter.detach().to("cpu", torch.float64).numpy().reshape(-1) for parameter in frozen]
    network = Network(conversion.layers, loss, np.concatenate(held) if held else None)
    is_narrow = all(parameter.dtype == torch.float32 for parameter in conversion.parameters if parameter.requires_grad)
    dtype = torch.float32 if is_narrow else torch.float64
    trained = [parameter for parameter in conversion.parameters if parameter.requires_grad]
    parts = [parameter.detach().to("cpu", dtype).reshape(-1) for parameter in trained]
    return network, torch.cat(parts).numpy().copy()


def _input_shape(module):
    """Shape of a sample, from the first module that does something."""
    first = next((part for part in module.modules() if not any(True for _ in part.children())), module)
    if unsteady(first):
        raise ValueError(f"module: cannot convert the {type(first).__name__} that comes first: {unsteady(first)}")
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if isinstance(first, (nn.LayerNorm, nn.RMSNorm)):
        return tuple(first.normalized_shape)
    raise ValueError(
        f"input_shape: expected the shape of one sample, such as (3, 32), since a {type(first).__name__} comes first, "
        "which does not tell it; got None"
    )


class Conversion:
    """The layers so far, the parameters in them, and the shape of a sample's state behind them.

    turned : (positions, features) where the state lies in memory feature by feature, as convolutions leave it, while
    the
        module has the features of a position side by side; otherwise None.
    """

    def __init__(self, shape, turned, tick):
        self.shape, self.turned, self.tick = shape, turned, tick
        self.layers = []
        self.parameters = []
        self._present = set()

    def add(self, name, module):
        """Add what ``module``, called ``name``, does to the state."""
        kind = type(module)
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            self._refuse(name, module, "its parameters have no values yet; call it on data first")
        self._refuse_hooks(name, module)
        if "forward" in vars(module):
            self._refuse(name, module, "its forward was replaced, which a copy of it would not notice")
        if unsteady(module):
            self._refuse(name, module, unsteady(module))
        if kind is nn.Identity or kind in DROPOUTS:
            return
        if kind in (nn.Flatten, nn.Unflatten, Reshape):
            self._reshape(name, module)
            return
        activation = activation_of(module)
        if activation is not None:
            self._activate(activation)
            return
        layer, shape = layer_of(module, self.shape)
        if layer is not None:
            self.turn_back()
            self._append(name, module, layer, shape)
            return
        if kind is nn.Linear and len(self.shape) > 1 and self.shape[-1] == module.in_features:
            self._add_over_positions(name, module)
            return
        steps = None if kind.__module__.startswith("torch.nn.") and kind is not nn.Sequential else chain(module)
        if steps is None or not self._add_chain(name, module, steps):
            self._add_external(name, module)

    def _add_over_positions(self, name, module):
        *positions, features = self.shape
        count = int(np.prod(positions))
        if self.turned != (count, features):
            self.turn_back()
        layer = linear_over_positions(module, count, self.turned is not None)
        self._append(name, module, layer, (*positions, module.out_features))
        # One feature a position lies the same either way.
        self.turned = (count, module.out_features) if module.out_features > 1 else None

    def turn_back(self):
        """Have the state lie as the module has it."""
        if self.turned is not None:
            self._append_external(
                "", nn.Identity(), TorchFunction(nn.Identity(), self.shape, self.turned, "Transposition")
            )

    def _activate(self, activation):
        """Give the last layer an activation, or add a layer that is one where that takes none or has one."""
        layer = with_activation(self.layers[-1], activation) if self.layers else None
        if layer is None:
            self.layers.append(Activation(int(np.prod(self.shape)), activation))
        else:
            self.layers[-1] = layer

    def _add_chain(self, name, module, steps):
        """Add the steps of a module's forward; False, and nothing is added, where our layers cannot say them."""
        if not isinstance(module, nn.Sequential):
            # A module of one's own may have its children in another order than it calls them, or use one twice.
            called = [id(parameter) for call in _calls(steps) for parameter in call.module.parameters()]
            if called != [id(parameter) for parameter in module.parameters()]:
                return False
        before = list(self.layers), list(self.parameters), self.shape, self.turned, set(self._present)
        if self._add_steps(name, steps):
            return True
        self.layers, self.parameters, self.shape, self.turned, self._present = before
        return False

    def _add_steps(self, name, steps):
        for step in steps:
            if isinstance(step, Residual):
                if not self._add_residual(name, step):
                    return False
            else:
                self.add(f"{name}.{step.name}".strip("."), step.module)
        return True

    def _add_residual(self, name, step):
        """Add one layer with a skip; False if the steps are more than that."""
        branch = Conversion(self.shape, self.turned, self.tick)
        # Errors count the layers before it, too; an activation must not become theirs.
        before = len(self.layers)
        branch.layers, branch._present = [None] * before, self._present
        if not branch._add_steps(name, step.steps) or len(branch.layers) != before + 1:
            return False
        layer = with_skip(branch.layers[-1])
        if layer is None or (branch.shape, branch.turned) != (self.shape, self.turned):
            return False
        self.layers.append(layer)
        self.parameters += branch.parameters
        return True

    def _append(self, name, module, layer, shape):
        self._refuse_parameters(name, module)
        flags = {parameter.requires_grad for parameter in module.parameters()}
        self.layers.append(with_frozen(layer, flags == {False}))
        self.parameters += module.parameters()
        self._present |= {id(parameter) for parameter in module.parameters()}
        self.shape = shape
        self.tick(1)

    def _reshape(self, name, module):
        try:
            shape = tuple(module(torch.zeros(2, *self.shape)).shape)
        except Exception as error:
            self._refuse(name, module, f"it cannot be called with samples of shape {self.shape}: {error}", error)
        if shape[0] != 2:
            self._refuse(name, module, f"it mixes the samples: two of shape {self.shape} become {shape}")
        self.shape = shape[1:]

    def _add_external(self, name, module):
        for part_name, part in module.named_modules():
            whole_name = f"{name}.{part_name}".strip(".")
            self._refuse_hooks(whole_name, part)
            if unsteady(part):
                self._refuse(whole_name, part, unsteady(part))
        self._refuse_parameters(name, module)
        sizes = int(np.prod(self.shape)), 1, sum(parameter.numel() for parameter in module.parameters())
        try:
            # Before anything as large as the module is made; its outputs are known after the first call alone.
            require_memory(*sizes, 1)
            function = TorchFunction(module, self.shape, self.turned)
            sizes = function.in_features, function.out_features, function.num_params
            require_memory(*sizes, 1)
            function.check_derivatives()
        except Exception as error:
            self._refuse(name, module, error, error)
        self._append_external(name, module, function)

    def _append_external(self, name, module, function):
        functions = function, function.jacobian, function.curvature
        sizes = function.in_features, function.out_features, function.num_params
        self._append(name, module, External(*functions, *sizes, function.params()), function.output_shape)
        self.turned = None

    def _refuse_hooks(self, name, module):
        if any(getattr(module, hooks) for hooks in _HOOKS):
            self._refuse(name, module, "it has hooks, which would not be called")

    def _refuse_parameters(self, name, module):
        for parameter_name, parameter in module.named_parameters():
            place = f"its parameter {parameter_name!r}"
            if parameter.is_meta:
                self._refuse(name, module, f"{place} is on the meta device and has no values")
            if parameter.dtype not in (torch.float32, torch.float64):
                self._refuse(name, module, f"{place} has dtype {parameter.dtype}; expected float32 or float64")
            if not parameter.requires_grad and any(other.requires_grad for other in module.parameters()):
                self._refuse(
                    name,
                    module,
                    f"{place} is frozen (requires_grad=False) and others of the layer are not; a layer "
                    "is frozen as a whole or not at all",
                )
            if id(parameter) in self._present:
                self._refuse(name, module, f"{place} belongs to a layer before it as well")

    def _refuse(self, name, module, reason, cause=None):
        place = f"layer {len(self.layers)} ({name!r}, {type(module).__name__})"
        kind = MemoryError if isinstance(cause, MemoryError) else ValueError
        raise kind(f"module: cannot convert {place}: {reason}") from cause


def _calls(steps):
    """All calls among the steps, in order."""
    for step in steps:
        if isinstance(step, Residual):
            yield from _calls(step.steps)
        else:
            yield step
