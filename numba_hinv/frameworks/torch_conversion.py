"""From a PyTorch module to a `Network`: one pass over the modules in the order in which they are applied."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..layers.convolution import Conv1d
from ..layers.dense import Dense
from ..layers.external import External
from ..layers.gated import Gated
from ..layers.norms import LayerNorm, RMSNorm
from ..network import Network
from .torch_chain import Residual, Sin, chain
from .torch_function import TorchFunction
from .torch_losses import from_torch_loss

_ACTIVATIONS = {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.ReLU: "relu", Sin: "sin"}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def convert(module, loss, input_shape):
    """What `from_torch` returns; ``input_shape`` is a tuple or None."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    loss = from_torch_loss(loss)
    conversion = Conversion(input_shape or _input_shape(module))
    conversion.add("", module)
    if not conversion.layers:
        raise ValueError("module: expected at least one layer, got a module that does nothing")
    if loss.has_labels and len(conversion.shape) != 1:
        raise ValueError(
            f"module: expected one output per class for {loss.name}, got outputs of shape {conversion.shape} per sample"
        )
    network = Network(conversion.layers, loss)
    is_narrow = all(parameter.dtype == torch.float32 for parameter in conversion.parameters)
    dtype = torch.float32 if is_narrow else torch.float64
    parts = [parameter.detach().to("cpu", dtype).reshape(-1) for parameter in conversion.parameters]
    return network, torch.cat(parts).numpy().copy()


def _input_shape(module):
    """Shape of a sample, from the first module that does something."""
    first = next((part for part in module.modules() if not any(True for _ in part.children())), module)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if isinstance(first, (nn.LayerNorm, nn.RMSNorm)):
        return tuple(first.normalized_shape)
    raise ValueError(
        f"input_shape: expected the shape of one sample, such as (3, 32), since a {type(first).__name__} comes first, "
        "which does not tell it; got None"
    )


class Conversion:
    """The layers so far, the parameters in them, and the shape of a sample's state behind them."""

    def __init__(self, shape):
        self.shape = shape
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
        if kind in _DROPOUTS and module.training and module.p > 0.0:
            self._refuse(name, module, f"it is random while training (p={module.p:g}); call eval() first")
        if kind is nn.Identity or kind in _DROPOUTS:
            return
        if kind in (nn.Flatten, nn.Unflatten):
            self._reshape(name, module)
            return
        activation = _activation(module)
        if activation is not None and self._activate(activation):
            return
        layer, shape = self._layer(module)
        if layer is not None:
            self._append(name, module, layer, shape)
            return
        steps = None if kind.__module__.startswith("torch.nn.") and kind is not nn.Sequential else chain(module)
        if steps is None or not self._add_chain(name, module, steps):
            self._add_external(name, module)

    def _layer(self, module):
        """The layer that a module is for states of this shape, and their next shape; None where it is none of ours."""
        kind, features = type(module), int(np.prod(self.shape))
        if kind is nn.Linear and self.shape == (module.in_features,):
            bias = module.bias is not None
            return Dense(module.in_features, module.out_features, "identity", bias), (module.out_features,)
        if kind is nn.Conv1d and len(self.shape) == 2 and self.shape[0] == module.in_channels:
            layer = _convolution(module, self.shape[1])
            return (None, None) if layer is None else (layer, (layer.out_channels, layer.out_length))
        if kind is nn.GLU and len(self.shape) == 1 and module.dim in (-1, 1) and features % 2 == 0:
            return Gated(features // 2, "sigmoid"), (features // 2,)
        if kind in (nn.LayerNorm, nn.RMSNorm) and tuple(module.normalized_shape) == self.shape:
            if module.weight is not None and kind is nn.LayerNorm:
                return LayerNorm(features, module.eps, module.bias is not None), self.shape
            if module.weight is not None:
                eps = torch.finfo(module.weight.dtype).eps if module.eps is None else module.eps
                return RMSNorm(features, eps), self.shape
        return None, None

    def _activate(self, activation):
        """Give the last layer an activation; False if it takes none or has one."""
        last = self.layers[-1] if self.layers else None
        if not isinstance(last, (Dense, Conv1d)) or last.activation != "identity" or last.skip:
            return False
        self.layers[-1] = replace(last, activation=activation)
        return True

    def _add_chain(self, name, module, steps):
        """Add the steps of a module's forward; False, and nothing is added, where our layers cannot say them."""
        if not isinstance(module, nn.Sequential):
            # A module of one's own may have its children in another order than it calls them, or use one twice.
            called = [id(parameter) for call in _calls(steps) for parameter in call.module.parameters()]
            if called != [id(parameter) for parameter in module.parameters()]:
                return False
        layers, parameters, shape, present = list(self.layers), list(self.parameters), self.shape, set(self._present)
        if self._add_steps(name, steps):
            return True
        self.layers, self.parameters, self.shape, self._present = layers, parameters, shape, present
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
        branch = Conversion(self.shape)
        # Errors count the layers before it, too; an activation must not become theirs.
        before = len(self.layers)
        branch.layers, branch._present = [None] * before, self._present
        if not branch._add_steps(name, step.steps) or len(branch.layers) != before + 1:
            return False
        layer = branch.layers[-1]
        if not isinstance(layer, (Dense, Conv1d)) or layer.skip or branch.shape != self.shape:
            return False
        try:
            layer = replace(layer, skip=True)
        except ValueError:
            # A convolution's output may have been given the input's shape afterwards, by an Unflatten.
            return False
        self.layers.append(layer)
        self.parameters += branch.parameters
        return True

    def _append(self, name, module, layer, shape):
        self._refuse_parameters(name, module)
        self.layers.append(layer)
        self.parameters += module.parameters()
        self._present |= {id(parameter) for parameter in module.parameters()}
        self.shape = shape

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
            if isinstance(part, _BATCH_NORMS) and part.training:
                self._refuse(whole_name, part, "it mixes the samples of a batch while training; call eval() first")
        self._refuse_parameters(name, module)
        try:
            function = TorchFunction(module, self.shape)
        except Exception as error:
            self._refuse(name, module, error, error)
        functions = function, function.jacobian, function.curvature
        sizes = function.in_features, function.out_features, function.num_params
        self._append(name, module, External(*functions, *sizes, function.params()), function.output_shape)

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
            if not parameter.requires_grad:
                self._refuse(name, module, f"{place} is frozen (requires_grad=False); the Hessian is in all parameters")
            if id(parameter) in self._present:
                self._refuse(name, module, f"{place} belongs to a layer before it as well")

    def _refuse(self, name, module, reason, cause=None):
        place = f"layer {len(self.layers)} ({name!r}, {type(module).__name__})"
        raise ValueError(f"module: cannot convert {place}: {reason}") from cause


def _activation(module):
    """The activation of this library that a module is, or None."""
    kind = type(module)
    if kind is nn.GELU:
        return "gelu" if module.approximate == "none" else None
    if kind is nn.Softplus:
        return "softplus" if (module.beta, module.threshold) == (1, 20) else None
    return _ACTIVATIONS.get(kind)


def _convolution(module, length):
    """The convolution of this library that an ``nn.Conv1d`` is for inputs of this length, or None."""
    if module.groups != 1 or module.padding_mode != "zeros":
        return None
    (kernel_size,), (stride,), (dilation,) = module.kernel_size, module.stride, module.dilation
    if module.padding == "same":
        padding, is_uneven = divmod(dilation * (kernel_size - 1), 2)
        if is_uneven:
            return None
    else:
        padding = 0 if module.padding == "valid" else module.padding[0]
    sizes = module.in_channels, module.out_channels, kernel_size, length
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    try:
        return Conv1d(*sizes, "identity", module.bias is not None, **options)
    except ValueError:
        # PyTorch refuses such sizes too, and its message is then given with the module's name.
        return None


def _calls(steps):
    """All calls among the steps, in order."""
    for step in steps:
        if isinstance(step, Residual):
            yield from _calls(step.steps)
        else:
            yield step
