"""Linearising the net (design, section 2): the forward and the backward sweep that leave the derivative blocks.

Per layer, with ``U = Z W^T + c`` and ``Z' = phi(U)`` (plus Z with a skip): Z, ``S = phi'(U)``,
``lam = dLoss/dU`` and ``D = dLoss/dZ' * phi''(U)``; after the last layer, the loss's curvature per sample.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .memory import add, fill, matrix, vector
from .microkernel import pointer
from .product import multiply, multiply_nt, multiply_tn


class Linearisation(NamedTuple):
    """The derivative blocks of all layers, packed; the table has their offsets, under these names or ``z`` and ``u``."""

    Z: np.ndarray  # B x n_in each, the layer's input
    S: np.ndarray  # B x n_out each, of dense layers
    D: np.ndarray  # B x n_out each, of dense layers
    lam: np.ndarray  # B x n_out each, of dense layers
    Dx: np.ndarray  # B n_out x p each, of layers given as blocks, as the four that follow
    Dz: np.ndarray  # B blocks n_out x n_in each
    Dxx: np.ndarray  # p x p each; second derivatives are contracted with dLoss/dZ' and summed over the samples
    Dzx: np.ndarray  # p x B n_in each
    Dzz: np.ndarray  # B blocks n_in x n_in each
    output: np.ndarray  # B x n_L
    curvature: np.ndarray  # B x n_L x n_L


def allocate(sizes, num_samples, num_outputs, dtype):
    """An uninitialised `Linearisation`."""
    return Linearisation(
        np.empty(sizes.z, dtype),
        np.empty(sizes.u, dtype),
        np.empty(sizes.u, dtype),
        np.empty(sizes.u, dtype),
        np.empty(sizes.Dx, dtype),
        np.empty(sizes.Dz, dtype),
        np.empty(sizes.Dxx, dtype),
        np.empty(sizes.Dzx, dtype),
        np.empty(sizes.Dzz, dtype),
        np.empty((num_samples, num_outputs), dtype),
        np.empty((num_samples, num_outputs, num_outputs), dtype),
    )


@intrinsic
def _call_activation(typingctx, address, u, phi, dphi, d2phi, n):
    signature = types.void(types.int64, u, phi, dphi, d2phi, types.int64)

    def codegen(context, builder, signature, arguments):
        function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments[1:]])
        function = builder.inttoptr(arguments[0], function_type.as_pointer())
        builder.call(function, arguments[1:])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _call_loss(typingctx, address, z, y, gradient, curvature, n, num_targets):
    signature = types.float64(types.int64, z, y, gradient, curvature, types.int64, types.int64)

    def codegen(context, builder, signature, arguments):
        function_type = ir.FunctionType(ir.DoubleType(), [argument.type for argument in arguments[1:]])
        function = builder.inttoptr(arguments[0], function_type.as_pointer())
        return builder.call(function, arguments[1:])

    return signature, codegen


@njit(cache=True, nogil=True, error_model="numpy")
def forward(table, start, stop, params, lin, U):
    """Fill Z, S and phi'' (left in D) of layers start..stop-1 and the output; Z of layer ``start`` is given.

    U : scratch, B times the largest width.
    """
    B = lin.output.shape[0]
    for l in range(start, stop):
        layer = table[l]
        n, n_in = layer.n_out, layer.n_in
        W = matrix(params, layer.parameters, n, n_in)
        Z = matrix(lin.Z, layer.z, B, n_in)
        if l + 1 < table.size:
            Z_next = matrix(lin.Z, table[l + 1].z, B, n)
        else:
            Z_next = matrix(lin.output, 0, B, n)
        U_l = matrix(U, 0, B, n)
        if layer.bias:
            c = vector(params, layer.parameters + n * n_in, n)
            for i in range(B):
                for a in range(n):
                    U_l[i, a] = c[a]
            multiply_nt(1.0, Z, W, 1.0, U_l)
        else:
            multiply_nt(1.0, Z, W, 0.0, U_l)
        _call_activation(
            layer.activation,
            pointer(U, 0),
            pointer(Z_next, 0),
            pointer(lin.S, layer.u),
            pointer(lin.D, layer.u),
            B * n,
        )
        if layer.skip:
            add(Z.size, Z, 0, Z_next, 0)


@njit(cache=True, nogil=True, error_model="numpy")
def terminal(loss, scale, targets, output, gradient, curvature):
    """Value of the loss; fills its gradient (B x n) and curvature (B x n x n) in the output (B x n).

    ``scale`` is one over what the mean is over.
    """
    B, n = output.shape
    value = 0.0
    for i in range(B):
        value += _call_loss(
            loss,
            pointer(output, i * n),
            pointer(targets, i * targets.shape[1]),
            pointer(gradient, i * n),
            pointer(curvature, i * n * n),
            n,
            targets.shape[1],
        )
    for i in range(B):
        for a in range(n):
            gradient[i, a] *= scale
            for b in range(n):
                curvature[i, a, b] *= scale
    return value * scale


@njit(cache=True, nogil=True, error_model="numpy")
def backward(table, start, stop, params, lin, gradient, G):
    """Fill lam and D of layers stop-1..start and the flat gradient.

    G, (2, B times the largest width), holds dLoss/dZ' of layer stop-1 in row ``stop % 2``, and that of layer start-1 in
    row ``start % 2`` at the end.
    """
    B = lin.output.shape[0]
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        n, n_in = layer.n_out, layer.n_in
        W = matrix(params, layer.parameters, n, n_in)
        Z = matrix(lin.Z, layer.z, B, n_in)
        S = matrix(lin.S, layer.u, B, n)
        D = matrix(lin.D, layer.u, B, n)
        lam = matrix(lin.lam, layer.u, B, n)
        G_out = matrix(G, G.shape[1] * ((l + 1) % 2), B, n)
        G_in = matrix(G, G.shape[1] * (l % 2), B, n_in)
        for i in range(B):
            for a in range(n):
                lam[i, a] = S[i, a] * G_out[i, a]
                D[i, a] = D[i, a] * G_out[i, a]
        multiply_tn(1.0, lam, Z, 0.0, matrix(gradient, layer.parameters, n, n_in))
        if layer.bias:
            dc = vector(gradient, layer.parameters + n * n_in, n)
            fill(n, 0.0, dc, 0)
            for i in range(B):
                for a in range(n):
                    dc[a] += lam[i, a]
        if l > 0:
            multiply(1.0, lam, W, 0.0, G_in)
            if layer.skip:
                add(G_in.size, G_out, 0, G_in, 0)
