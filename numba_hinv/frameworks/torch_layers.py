"""Which layers of this library modules of PyTorch are."""

import numpy as np
import torch
from torch import nn

from ..layers.batch_norm import BatchNorm
from ..layers.convolution import Conv1d, Conv2d
from ..layers.dense import Dense
from ..layers.gated import Gated
from ..layers.norms import LayerNorm, RMSNorm
from ..layers.pooling import AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d
from .torch_chain import Sin

# Modules, with the number of axes of a sample that they take: channels and positions.
_CONVOLUTIONS = {nn.Conv1d: 2, nn.Conv2d: 3}
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
_POOLINGS = {
    nn.AvgPool1d: 2, nn.MaxPool1d: 2, nn.AdaptiveAvgPool1d: 2, nn.AdaptiveMaxPool1d: 2,
    nn.AvgPool2d: 3, nn.MaxPool2d: 3, nn.AdaptiveAvgPool2d: 3, nn.AdaptiveMaxPool2d: 3,
}  # fmt: skip
_BATCH_NORMS = {nn.BatchNorm1d: (1, 2), nn.BatchNorm2d: (3,)}
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
    if kind in _CONVOLUTIONS and len(shape) == _CONVOLUTIONS[kind] and shape[0] == module.in_channels:
        layer = _convolution(module, shape[1:])
        return (None, None) if layer is None else (layer, (layer.out_channels, *_places(layer)))
    if kind in _POOLINGS and len(shape) == _POOLINGS[kind]:
        layer = _pooling(module, shape)
        return (None, None) if layer is None else (layer, (shape[0], *_places(layer)))
    if kind in _BATCH_NORMS and len(shape) in _BATCH_NORMS[kind] and shape[0] == module.num_features:
        layer = _batch_norm(module, features // shape[0])
        return (None, None) if layer is None else (layer, shape)
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


def _places(layer):
    """Positions of a layer's output along each axis."""
    return tuple(axis.places for axis in layer.axes)


def _convolution(module, size):
    """The convolution of this library that a module is for inputs of this size, or None."""
    if module.groups != 1 or module.padding_mode != "zeros":
        return None
    if module.padding == "same":
        around = [dilation * (kernel - 1) for kernel, dilation in zip(module.kernel_size, module.dilation)]
        if any(total % 2 for total in around):
            return None
        padding = tuple(total // 2 for total in around)
    else:
        padding = (0,) * len(size) if module.padding == "valid" else module.padding
    options = {"stride": module.stride, "padding": padding, "dilation": module.dilation}
    sizes = module.kernel_size, size
    if len(size) == 1:
        options, sizes = {name: value[0] for name, value in options.items()}, (module.kernel_size[0], size[0])
    build = Conv1d if len(size) == 1 else Conv2d
    channels = module.in_channels, module.out_channels
    return _built(build, *channels, *sizes, "identity", module.bias is not None, **options)


def _pooling(module, shape):
    """The pooling of this library that a module is for states of this shape, or None."""
    kind, (channels, *size) = type(module), shape
    if getattr(module, "return_indices", False) or getattr(module, "divisor_override", None) is not None:
        return None
    is_average = kind in (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
    if kind in _ADAPTIVE:
        out_size = _each(module.output_size, len(size))
        out_size = [length if out is None else out for out, length in zip(out_size, size)]
        if any(length % out for length, out in zip(size, out_size)):
            # Its kernels are not all of one size.
            return None
        options = {"kernel_size": [length // out for length, out in zip(size, out_size)]}
    else:
        names = ("kernel_size", "stride", "padding") if is_average else ("kernel_size", "stride", "padding", "dilation")
        options = {name: _each(getattr(module, name), len(size)) for name in names}
    if len(size) == 1:
        options = {name: value[0] for name, value in options.items()}
    if is_average:
        options["count_include_pad"] = getattr(module, "count_include_pad", True)
    build = {(1, True): AvgPool1d, (2, True): AvgPool2d, (1, False): MaxPool1d, (2, False): MaxPool2d}
    sizes = {"length": size[0]} if len(size) == 1 else {"size": tuple(size)}
    layer = _built(build[len(size), is_average], channels, **sizes, **options)
    if layer is None or not getattr(module, "ceil_mode", False):
        return layer
    # The last kernel may stick out, by less than a stride; it is left out where it would start behind the input.
    for axis in layer.axes:
        rest = (axis.length + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1) % axis.stride
        if rest and axis.places * axis.stride < axis.length + axis.padding:
            return None
    return layer


def _batch_norm(module, positions):
    """The normalisation by running means and variances that a module in eval mode is, or None."""
    if module.running_mean is None or module.training:
        return None
    if module.affine and (module.weight is None or module.bias is None):
        return None
    buffers = module.running_mean, module.running_var
    mean, variance = (buffer.detach().to("cpu", torch.float64).numpy() for buffer in buffers)
    return _built(BatchNorm, mean, variance, positions, module.eps, module.affine)


def _each(value, count):
    """An option that may be one number for all axes, as one for each."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * count


def _built(build, *arguments, **options):
    try:
        return build(*arguments, **options)
    except (TypeError, ValueError):
        # PyTorch refuses such sizes too, and its message is then given with the module's name.
        return None
