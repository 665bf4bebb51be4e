"""Which layers of this library modules of PyTorch are."""

import numpy as np
import torch
from torch import nn

from ..layers.convolution import Conv1d
from ..layers.dense import Dense
from ..layers.gated import Gated
from ..layers.norms import LayerNorm, RMSNorm
from .torch_chain import Sin

_ACTIVATIONS = {nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.ReLU: "relu", Sin: "sin"}


def activation_of(module):
    """The activation of this library that a module is, or None."""
    kind = type(module)
    if kind is nn.GELU:
        return "gelu" if module.approximate == "none" else None
    if kind is nn.Softplus:
        return "softplus" if (module.beta, module.threshold) == (1, 20) else None
    return _ACTIVATIONS.get(kind)


def layer_of(module, shape):
    """The layer that a module is for states of this shape, and their next shape; None where it is none of ours."""
    kind, features = type(module), int(np.prod(shape))
    if kind is nn.Linear and features == module.in_features and shape[-1:] == (features,):
        bias = module.bias is not None
        return Dense(module.in_features, module.out_features, "identity", bias), (*shape[:-1], module.out_features)
    if kind is nn.Conv1d and len(shape) == 2 and shape[0] == module.in_channels:
        layer = _convolution(module, shape[1])
        return (None, None) if layer is None else (layer, (layer.out_channels, layer.out_length))
    if kind is nn.GLU and len(shape) == 1 and module.dim in (-1, 1) and features % 2 == 0:
        return Gated(features // 2, "sigmoid"), (features // 2,)
    if kind in (nn.LayerNorm, nn.RMSNorm) and tuple(module.normalized_shape) == shape:
        if module.weight is not None and kind is nn.LayerNorm:
            return LayerNorm(features, module.eps, module.bias is not None), shape
        if module.weight is not None:
            eps = torch.finfo(module.weight.dtype).eps if module.eps is None else module.eps
            return RMSNorm(features, eps), shape
    return None, None


def linear_over_positions(module, positions, is_turned):
    """The convolution that an ``nn.Linear`` is which is applied to each of the ``positions`` of a sample.

    It leaves the state feature by feature. Where it finds it so (``is_turned``), its kernel covers one position, and
    otherwise the features of one, which lie side by side. Its parameters lie as the module's do.
    """
    n_in, n_out, bias = module.in_features, module.out_features, module.bias is not None
    if is_turned:
        return Conv1d(n_in, n_out, 1, positions, "identity", bias)
    return Conv1d(1, n_out, n_in, n_in * positions, "identity", bias, stride=n_in)


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
