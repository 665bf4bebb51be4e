"""Values and derivatives of a PyTorch module, as `External` wants them, by torch.func."""

import contextlib
import copy
import os
import threading

import numpy as np
import torch
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..layers.blocks import ASYMMETRY
from .torch_probe import gist, output_shape

# Numbers of one kind that passes which are made together hold at most; a small module's are all made together.
_TOGETHER = 1 << 22

# functional_call puts other parameters into the module for as long as it runs.
_lock = threading.RLock()


def _renew_lock():
    """A forked process has none of the threads that may have held the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextlib.contextmanager
def _alone():
    """One thread at a time, with attention computed by its formula.

    The fused kernels, which PyTorch takes by itself, have no second derivative. Which kernels it takes are settings of
    the process: they are put back, whatever happens.
    """
    with _lock:
        is_fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(is_fast)


class TorchFunction:
    """A copy of a module on the CPU, as a function of a batch and of the module's parameters, flat.

    Parameters
    ----------
    module : torch.nn.Module
    shape : tuple of int
        Of one sample.
    turned : (positions, features), optional
        The numbers of a sample lie feature by feature, while the module wants the features of a position side by side.
    name : str, optional
        By default that of the module's class.

    Raises
    ------
    ValueError
        The module's outputs for a sample are not a function of that sample alone, or why they cannot be found.
    """

    def __init__(self, module, shape, turned=None, name=None):
        self.shape, self.turned = shape, turned
        self._module = copy.deepcopy(module).to("cpu", torch.float64)
        for part in self._module.modules():
            if getattr(part, "inplace", False):
                part.inplace = False
        self._modules = {torch.float64: self._module}
        self._parameters = [(name, p.shape, p.numel()) for name, p in self._module.named_parameters()]
        self.__name__ = name or type(module).__name__
        with _alone():
            self.output_shape = output_shape(self._module, shape)

    def check_derivatives(self):
        """``ValueError`` where torch.func cannot differentiate twice, or second derivatives are not symmetric.

        Takes products of the second derivatives with two vectors, as much memory as a few copies of the module.
        """
        rng = np.random.default_rng(0)
        Z, G = rng.standard_normal((1, self.in_features)), rng.standard_normal((1, self.out_features))
        tensors = _tensors(Z, self.params(), G)
        one, two = (_tensors(rng.standard_normal(Z.shape), rng.standard_normal(self.num_params)) for _ in range(2))
        try:
            with _alone():
                products = [self._product(tensors, direction) for direction in (one, two)]
        except Exception as error:
            raise ValueError(f"torch.func cannot differentiate it twice: {gist(error)}") from error
        # One's product with the second derivatives times two, and the other way round; sizes bound their rounding.
        (across, size), (back, other) = (
            (sum(float((p * d).sum()) for p, d in zip(product, direction)),
             sum(float(p.norm() * d.norm()) for p, d in zip(product, direction)))
            for product, direction in zip(products, (two, one))
        )  # fmt: skip
        if abs(across - back) > ASYMMETRY[np.dtype(np.float64)] * max(size, other):
            raise ValueError(
                f"its second derivatives are not symmetric: {across:.6g} one way, {back:.6g} the other; expected a "
                "backward pass of its own, if it has one, to be differentiable and that of its values"
            )

    def _product(self, tensors, direction):
        """The product of the second derivatives in Z and x with a ``direction`` in both."""

        def slope(Z, x, G):
            in_Z, in_x = grad(self._contracted, argnums=(0, 1))(Z, x, G)
            return (in_Z * direction[0]).sum() + (in_x * direction[1]).sum()

        return grad(slope, argnums=(0, 1))(*tensors)

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
        with _alone(), torch.no_grad():
            return self._apply(*_tensors(Z, x)).numpy()

    def jacobian(self, Z, x):
        """Dz (B, out_features, in_features) and Dx (B, out_features, num_params)."""
        tensors = _tensors(Z, x, np.zeros((len(Z), self.out_features), Z.dtype))
        with _alone():
            (Dz,) = self._derivatives(self._slope_in_Z, (2,), self.in_features, *tensors)
            (Dx,) = self._derivatives(self._slope_in_x, (2,), self.num_params, *tensors)
        return Dz.transpose(1, 2, 0), Dx.transpose(1, 2, 0)

    def curvature(self, Z, x, G):
        """Dxx (num_params, num_params), Dzx (B, num_params, in_features) and Dzz (B, in_features, in_features)."""
        tensors = _tensors(Z, x, G)
        with _alone():
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
        blocks = [np.empty((length, *tensors[place].shape), tensors[place].numpy().dtype) for place in places]
        if length == 0:
            return blocks
        # Many passes at once, by batching rules that have been wrong (layer normalisation's: pytorch/functorch issue
        # 534). One pass without them, in a random direction, finds such a rule out.
        direction = torch.randn(length, generator=torch.Generator().manual_seed(0), dtype=tensors[0].dtype)
        expected = grad(lambda *tensors: slope(*tensors) @ direction, argnums=places)(*tensors)
        try:
            _fill(blocks, slope, places, tensors, _TOGETHER // sum(tensor.numel() for tensor in tensors))
            is_right = all(
                _is_near(torch.tensordot(direction, torch.from_numpy(block), 1), e)
                for block, e in zip(blocks, expected)
            )
        except RuntimeError:
            is_right = False
        if not is_right:
            _fill(blocks, slope, places, tensors, 1)
        return blocks

    def _apply(self, Z, x):
        start, parameters = 0, {}
        for name, shape, count in self._parameters:
            parameters[name] = x[start : start + count].reshape(shape)
            start += count
        if x.dtype not in self._modules:
            self._modules[x.dtype] = copy.deepcopy(self._module).to(x.dtype)
        if self.turned is not None:
            positions, features = self.turned
            Z = Z.reshape(-1, features, positions).transpose(1, 2)
        output = functional_call(self._modules[x.dtype], parameters, (Z.reshape(-1, *self.shape),))
        return output.reshape(output.shape[0], -1)


def _fill(blocks, slope, places, tensors, together):
    """Fill ``blocks``, row by row, with derivatives of the numbers ``slope(*tensors)`` in the tensors at ``places``.

    together : passes that are made at once.
    """

    def of_chosen(*chosen):
        arguments = list(tensors)
        for place, tensor in zip(places, chosen):
            arguments[place] = tensor
        return slope(*arguments)

    value, pull = vjp(of_chosen, *(tensors[place] for place in places))
    length = value.numel()
    together = min(max(together, 1), length)
    for start in range(0, length, together):
        stop = min(start + together, length)
        unit = torch.zeros(stop - start, length, dtype=value.dtype)
        unit.diagonal(start).fill_(1.0)
        rows = [row[None] for row in pull(unit[0])] if together == 1 else vmap(pull)(unit)
        for block, found in zip(blocks, rows):
            block[start:stop] = found.detach().numpy()


def _tensors(*arrays):
    """Copies, since PyTorch has no read-only tensors."""
    return [torch.from_numpy(np.array(array)) for array in arrays]


def _is_near(one, two):
    return bool((one - two).abs().max() <= torch.finfo(two.dtype).eps ** 0.6 * two.abs().max())
