"""Values and derivatives of a PyTorch module, as `External` wants them, by torch.func."""

import copy
import os
import threading

import numpy as np
import torch
from torch.func import functional_call, grad, jacrev

# Outputs that do not depend on the other samples may still be rounded otherwise for another batch.
_SAMPLES, _ROUNDING = 3, 1e-10

# functional_call puts other parameters into the module for as long as it runs.
_lock = threading.RLock()


def _renew_lock():
    """A forked process has none of the threads that may have held the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class TorchFunction:
    """A copy of a module on the CPU, as a function of a batch and of the module's parameters, flat.

    Parameters
    ----------
    module : torch.nn.Module
    shape : tuple of int
        Of one sample.
    """

    def __init__(self, module, shape):
        self.shape = shape
        self._module = copy.deepcopy(module).to("cpu", torch.float64)
        for part in self._module.modules():
            if getattr(part, "inplace", False):
                part.inplace = False
        self._modules = {torch.float64: self._module}
        self._parameters = [(name, p.shape, p.numel()) for name, p in self._module.named_parameters()]
        self.__name__ = type(module).__name__
        self.output_shape = self._probe()
        self._try()

    def _probe(self):
        """Shape of a sample's output; ``ValueError`` says why there is none that depends on that sample alone."""
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.random.manual_seed(0)
            Z = torch.randn(_SAMPLES, *self.shape, dtype=torch.float64)
            buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
            output, again = self._attempt(Z), self._attempt(Z)
            if not isinstance(output, torch.Tensor) or output.dtype != torch.float64:
                raise ValueError(f"expected a float64 tensor for a float64 input, got {_describe(output)}")
            if output.ndim == 0 or output.shape[0] != _SAMPLES or output.numel() == 0:
                raise ValueError(f"expected outputs of {_SAMPLES} samples for as many, got shape {tuple(output.shape)}")
            if not _same(output, again):
                raise ValueError("it is random: two calls with the same input differ; call eval() first")
            try:
                alone = torch.cat([self._attempt(Z[i : i + 1]) for i in range(_SAMPLES)])
                scale = output.abs().max().nan_to_num()
                is_alone = alone.shape == output.shape and (alone - output).abs().max() <= _ROUNDING * scale
            except ValueError as error:
                raise ValueError(f"it mixes the samples of a batch: for one sample alone, {error}") from error
            if not is_alone:
                raise ValueError("it mixes the samples of a batch: one sample alone has another output")
            changed = [name for name, b in self._module.named_buffers() if not _same(b, buffers.get(name))]
            if changed:
                raise ValueError(f"it changes its buffer {changed[0]!r} in a call; call eval() first")
        return tuple(output.shape[1:])

    def _attempt(self, Z):
        try:
            return self._module(Z.clone())
        except Exception as error:
            raise ValueError(f"it cannot be called with an input of shape {tuple(Z.shape)}: {_gist(error)}") from error

    def _try(self):
        """Differentiate once; ``ValueError`` where torch.func cannot."""
        Z, x, G = np.ones((1, self.in_features)), self.params(), np.ones((1, self.out_features))
        try:
            self.jacobian(Z, x)
            self.curvature(Z, x, G)
        except Exception as error:
            raise ValueError(f"torch.func cannot differentiate it twice: {_gist(error)}") from error

    @property
    def in_features(self):
        return int(np.prod(self.shape))

    @property
    def out_features(self):
        return int(np.prod(self.output_shape))

    @property
    def num_params(self):
        return sum(count for _, _, count in self._parameters)

    def params(self):
        """The module's own parameters, (num_params,), in float64."""
        parts = [p.detach().reshape(-1) for p in self._module.parameters()]
        return torch.cat(parts).numpy().copy() if parts else np.empty(0)

    def __call__(self, Z, x):
        """The outputs of a batch, (B, out_features)."""
        with _lock, torch.no_grad():
            return self._apply(*_tensors(Z, x)).numpy()

    def jacobian(self, Z, x):
        """Dz (B, out_features, in_features) and Dx (B, out_features, num_params)."""
        tensors = _tensors(Z, x, np.zeros((len(Z), self.out_features), Z.dtype))
        with _lock:
            (Dz,) = self._derivatives(self._slope_in_Z, (2,), self.in_features, *tensors)
            (Dx,) = self._derivatives(self._slope_in_x, (2,), self.num_params, *tensors)
        return Dz.transpose(1, 2, 0), Dx.transpose(1, 2, 0)

    def curvature(self, Z, x, G):
        """Dxx (num_params, num_params), Dzx (B, num_params, in_features) and Dzz (B, in_features, in_features)."""
        tensors = _tensors(Z, x, G)
        with _lock:
            (Dzz,) = self._derivatives(self._slope_in_Z, (0,), self.in_features, *tensors)
            Dxx, Dzx = self._derivatives(self._slope_in_x, (1, 0), self.num_params, *tensors)
        return Dxx, Dzx.transpose(1, 0, 2), Dzz.transpose(1, 0, 2)

    # Of c = sum_i G[i] . output[i]: since no sample depends on another, the slopes in Z summed over the samples still
    # tell the samples apart once they are differentiated, and since c is linear in G, its second derivatives in G and
    # Z or x are the Jacobians. All derivatives are those of in_features + num_params numbers, by passes of the batch.

    def _slope_in_Z(self, Z, x, G):
        """dc/dZ, summed over the samples, (in_features,)."""
        return grad(self._contracted, argnums=0)(Z, x, G).sum(dim=0)

    def _slope_in_x(self, Z, x, G):
        """dc/dx, (num_params,)."""
        return grad(self._contracted, argnums=1)(Z, x, G)

    def _contracted(self, Z, x, G):
        return (self._apply(Z, x) * G).sum()

    @staticmethod
    def _derivatives(slope, places, length, *tensors):
        """Derivatives of the ``length`` numbers ``slope(*tensors)`` in the tensors at ``places``, as arrays."""
        if length == 0:
            return [np.empty((0, *tensors[place].shape)) for place in places]
        # All passes at once, by batching rules that have been wrong (layer normalisation's: pytorch/functorch issue
        # 534). One pass without them, in a random direction, finds such a rule out.
        direction = torch.randn(length, generator=torch.Generator().manual_seed(0), dtype=tensors[0].dtype)
        expected = grad(lambda *tensors: slope(*tensors) @ direction, argnums=places)(*tensors)
        try:
            blocks = jacrev(slope, argnums=places)(*tensors)
            is_right = all(_is_near(torch.tensordot(direction, b, 1), e) for b, e in zip(blocks, expected))
        except RuntimeError:
            is_right = False
        if not is_right:
            blocks = jacrev(slope, argnums=places, chunk_size=1)(*tensors)
        return [block.numpy() for block in blocks]

    def _apply(self, Z, x):
        start, parameters = 0, {}
        for name, shape, count in self._parameters:
            parameters[name] = x[start : start + count].reshape(shape)
            start += count
        if x.dtype not in self._modules:
            self._modules[x.dtype] = copy.deepcopy(self._module).to(x.dtype)
        output = functional_call(self._modules[x.dtype], parameters, (Z.reshape(-1, *self.shape),))
        return output.reshape(output.shape[0], -1)


def _tensors(*arrays):
    """Copies, since PyTorch has no read-only tensors."""
    return [torch.from_numpy(np.array(array)) for array in arrays]


def _is_near(one, two):
    return bool((one - two).abs().max() <= torch.finfo(two.dtype).eps ** 0.6 * two.abs().max())


def _same(one, two):
    return two is not None and torch.equal(one.nan_to_num(), two.nan_to_num())


def _describe(value):
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def _gist(error):
    """The first line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
