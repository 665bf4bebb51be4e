"""Linearising the net (docs/theory.md, section 2): the forward and the backward sweep that leave the derivative blocks.

Per layer, with ``U = Z W^T + c`` and ``Z' = phi(U)`` (plus Z with a skip): Z, ``S = phi'(U)``,
``lam = dLoss/dU`` and ``D = dLoss/dZ' * phi''(U)``; after the last layer, the loss's curvature per sample. Custom
layers leave their derivative blocks, which their compiled functions compute sample by sample.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ..dense.microkernel import pointer, tile_rows
from ..dense.norm import total
from ..dense.product import gemm_tn, multiply, multiply_nt
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import add, fill, matrix, rows, together, units_at_once, vector
from ..steps.convolution import convolution_backward, convolution_pre_activation
from ..steps.layer_table import ACTIVATION, BLOCKS, CONVOLUTION, MAXIMUM, for_convolutions
from ..steps.local import columns_of, local_gradient, local_parameter_blocks, local_rows, local_value, pull


class Linearisation(NamedTuple):
    """The derivative blocks of all layers, packed; the table has their offsets, under these names or ``z`` and
    ``u``.
    """

    Z: np.ndarray  # B x n_in each, the layer's input
    S: np.ndarray  # B x n_out each, of structured layers
    D: np.ndarray  # B x n_out each, of structured layers
    lam: np.ndarray  # B x n_out each, of structured layers
    Dx: np.ndarray  # B n_out x p each, of layers given as blocks, as the four that follow
    Dz: np.ndarray  # B blocks n_out x n_in each
    Dxx: np.ndarray  # p x p each; second derivatives are contracted with dLoss/dZ' and summed over the samples
    Dzx: np.ndarray  # p x B n_in each
    Dzz: np.ndarray  # B blocks n_in x n_in each
    output: np.ndarray  # B x n_L
    curvature: np.ndarray  # B x n_L x n_L


# Blocks in which H is linear and the Gauss-Newton matrix has zeros: the layers' second derivatives.
BENDING = "D", "lam", "Dxx", "Dzx", "Dzz"


def allocate(sizes, num_samples, num_outputs, dtype, derivatives):
    """An uninitialised `Linearisation`.

    derivatives : 0 for `forward` alone, 1 for a gradient, 2 for the derivative blocks. Up to 1 the blocks of custom
    layers are not kept: Dx and Dz hold one sample at a time.
    """
    B = num_samples
    first = {0: 0, 1: 1, 2: B}[derivatives]
    second = derivatives == 2
    n = num_outputs
    *blocks, output, curvature = together(
        [
            sizes.z,
            sizes.u,
            sizes.u,
            sizes.u,
            sizes.Dx // B * first,
            sizes.Dz // B * first,
            sizes.Dxx * second,
            sizes.Dzx * second,
            sizes.Dzz * second,
            B * n,
            B * n * n,
        ],
        dtype,
    )
    return Linearisation(*blocks, output.reshape(B, n), curvature.reshape(B, n, n))


def _call(context, builder, signature, arguments):
    """Calls the C function whose address is the first argument with the others."""
    function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments[1:]])
    builder.call(builder.inttoptr(arguments[0], function_type.as_pointer()), arguments[1:])
    return context.get_dummy_value()


@intrinsic
def _call_activation(typingctx, address, u, phi, dphi, d2phi, n):
    return types.void(types.int64, u, phi, dphi, d2phi, types.int64), _call


@intrinsic
def _call_value(typingctx, address, z, x, out, n_in, n_out, p):
    return types.void(types.int64, z, x, out, *[types.int64] * 3), _call


@intrinsic
def _call_jacobian(typingctx, address, z, x, Dz, Dx, work, n_in, n_out, p):
    return types.void(types.int64, z, x, Dz, Dx, work, *[types.int64] * 3), _call


@intrinsic
def _call_curvature(typingctx, address, z, x, g, Dxx, Dzx, Dzz, work, n_in, n_out, p, stride):
    return types.void(types.int64, z, x, g, Dxx, Dzx, Dzz, work, *[types.int64] * 4), _call


@intrinsic
def _call_loss(typingctx, address, z, y, gradient, curvature, parameters, n, num_targets, num_parameters):
    signature = types.float64(types.int64, z, y, gradient, curvature, parameters, *[types.int64] * 3)

    def codegen(context, builder, signature, arguments):
        function_type = ir.FunctionType(ir.DoubleType(), [argument.type for argument in arguments[1:]])
        function = builder.inttoptr(arguments[0], function_type.as_pointer())
        return builder.call(function, arguments[1:])

    return signature, codegen


@inner
def _dense_pre_activation(layer, params, Z, U):
    """U = Z W^T + c."""
    B, n_in = Z.shape
    n = layer.n_out
    W = matrix(params, layer.weights, n, n_in)
    U_l = matrix(U, 0, B, n)
    if layer.bias:
        c = vector(params, layer.weights + n * n_in, n)
        for i in range(B):
            for a in range(n):
                U_l[i, a] = c[a]
        multiply_nt(1.0, Z, W, 1.0, U_l)
    else:
        multiply_nt(1.0, Z, W, 0.0, U_l)


@njit(inline="always")
def _custom_forward(layer, params, Z, Z_next):
    """Z' = f(Z; x), row by row."""
    B, n = Z_next.shape
    x = pointer(params, layer.weights)
    for i in range(B):
        _call_value(
            layer.function, pointer(Z, i * layer.n_in), x, pointer(Z_next, i * n), layer.n_in, n, layer.p + layer.held
        )


@for_convolutions
def _local_forward(layer, params, Z, Z_next, work):
    """Z' = f(Z) of a local layer, row by row. work : its scratch, at the end of that."""
    n, taps = layer.n_out, layer.taps
    at = work.size - 2 * n * (taps + 1)
    for i in range(Z.shape[0]):
        z, out = vector(Z, i * layer.n_in, layer.n_in), vector(Z_next, i * n, n)
        if layer.operation == ACTIVATION:
            slope, bend = pointer(work, at), pointer(work, at + n)
            _call_activation(layer.function, pointer(z, 0), pointer(out, 0), slope, bend, n)
            continue
        if i == 0 or layer.operation == MAXIMUM:
            local_rows(layer, params, z, work, at, at + n * taps)
        local_value(layer, params, z, work, at, at + n * taps, out)


@kernel
def forward(table, start, stop, params, lin, U):
    """Fill Z, S and phi'' (left in D) of layers start..stop-1 and the output; Z of layer ``start`` is given.

    U : scratch, B times the largest width, and behind that `Sizes.patches` numbers.
    """
    B = lin.output.shape[0]
    for l in range(start, stop):
        layer = table[l]
        Z = matrix(lin.Z, layer.z, B, layer.n_in)
        if l + 1 < table.size:
            Z_next = matrix(lin.Z, table[l + 1].z, B, layer.n_out)
        else:
            Z_next = matrix(lin.output, 0, B, layer.n_out)
        if layer.taps > 0:
            _local_forward(layer, params, Z, Z_next, U)
            continue
        if layer.kind == BLOCKS:
            _custom_forward(layer, params, Z, Z_next)
            continue
        if layer.kind == CONVOLUTION:
            size = layer.fan_in * layer.positions
            convolution_pre_activation(layer, params, lin, vector(U, U.size - size, size), U)
        else:
            _dense_pre_activation(layer, params, Z, U)
        _call_activation(
            layer.function,
            pointer(U, 0),
            pointer(Z_next, 0),
            pointer(lin.S, layer.u),
            pointer(lin.D, layer.u),
            Z_next.size,
        )
        if layer.skip:
            add(Z.size, Z, 0, Z_next, 0)


@kernel
def terminal(loss, parameters, scale, weights, targets, output, gradient, curvature):
    """Value of the loss; fills its gradient (B x n) and curvature (B x n x n) in the output (B x n).

    ``scale`` is one over what the mean is over. A sample whose weight is 0 has no part in it, whatever its loss is.
    """
    B, n = output.shape
    value = 0.0
    for i in range(B):
        if weights[i] == 0.0:
            fill(n, 0.0, gradient, i * n)
            fill(n * n, 0.0, curvature, i * n * n)
            continue
        value += weights[i] * _call_loss(
            loss,
            pointer(output, i * n),
            pointer(targets, i * targets.shape[1]),
            pointer(gradient, i * n),
            pointer(curvature, i * n * n),
            pointer(parameters, 0),
            n,
            targets.shape[1],
            parameters.shape[0],
        )
        factor = scale * weights[i]
        for a in range(n):
            gradient[i, a] *= factor
            for b in range(n):
                curvature[i, a, b] *= factor
    return value * scale


@njit(inline="always")
def _dense_backward(layer, params, lin, gradient, G_out, G_in):
    """lam = S G', D = phi'' G'; dW = lam^T Z, dc = sum_i lam_i; G = lam W (+ G'), unless nothing comes before.

    Returns the sum of dW and dc.
    """
    B, n = G_out.shape
    n_in = layer.n_in
    W = matrix(params, layer.weights, n, n_in)
    Z = matrix(lin.Z, layer.z, B, n_in)
    S = matrix(lin.S, layer.u, B, n)
    D = matrix(lin.D, layer.u, B, n)
    lam = matrix(lin.lam, layer.u, B, n)
    for i in range(B):
        for a in range(n):
            lam[i, a] = S[i, a] * G_out[i, a]
            D[i, a] = D[i, a] * G_out[i, a]
    found, one, zero = 0.0, G_in.dtype.type(1), G_in.dtype.type(0)
    taken = min(n, max(units_at_once(n, n_in, B), tile_rows(pointer(gradient, 0))))
    for first in range(0, n if layer.p > 0 else 0, taken):
        count, here = min(taken, n - first), layer.parameters + first * n_in
        to = pointer(gradient, here)
        gemm_tn(count, n_in, B, one, pointer(lam, first), n, pointer(Z, 0), n_in, zero, to, n_in)
        found += total(vector(gradient, here, count * n_in))
    if layer.bias and layer.p > 0:
        dc = vector(gradient, layer.parameters + n * n_in, n)
        fill(n, 0.0, dc, 0)
        for i in range(B):
            for a in range(n):
                dc[a] += lam[i, a]
        found += total(dc)
    if layer.N > 0:
        multiply(1.0, lam, W, 0.0, G_in)
        if layer.skip:
            add(G_in.size, G_out, 0, G_in, 0)
    return found


@njit(inline="always")
def _custom_backward(layer, params, lin, gradient, G_out, G_in, keep, work):
    """dx = sum_i Dx_i^T G'_i, G_i = Dz_i^T G'_i, and the blocks, where ``lin`` has room for those of all samples."""
    B, n = G_out.shape
    n_in, p = layer.n_in, layer.p
    x, scratch = pointer(params, layer.weights), pointer(work, 0)
    dx = matrix(gradient, layer.parameters, 1, p)
    fill(p, 0.0, dx, 0)
    if keep:
        fill(p * p, 0.0, lin.Dxx, layer.Dxx)
        fill(p * B * n_in, 0.0, lin.Dzx, layer.Dzx)
        fill(B * n_in * n_in, 0.0, lin.Dzz, layer.Dzz)
    for i in range(B):
        z = pointer(lin.Z, layer.z + i * n_in)
        Dx = matrix(lin.Dx, layer.Dx + i * n * p if keep else 0, n, p)
        Dz = matrix(lin.Dz, layer.Dz + i * n * n_in if keep else 0, n, n_in)
        fill(n * p, 0.0, Dx, 0)
        fill(n * n_in, 0.0, Dz, 0)
        _call_jacobian(layer.jacobian, z, x, pointer(Dz, 0), pointer(Dx, 0), scratch, n_in, n, p)
        g = rows(G_out, i, 1)
        multiply(1.0, g, Dx, 1.0, dx)
        if layer.N > 0:
            multiply(1.0, g, Dz, 0.0, rows(G_in, i, 1))
        if keep:
            Dxx = pointer(lin.Dxx, layer.Dxx)
            Dzx = pointer(lin.Dzx, layer.Dzx + i * n_in)
            Dzz = pointer(lin.Dzz, layer.Dzz + i * n_in * n_in)
            _call_curvature(layer.curvature, z, x, pointer(g, 0), Dxx, Dzx, Dzz, scratch, n_in, n, p, B * n_in)


@for_convolutions
def _local_backward(layer, params, lin, gradient, G_out, G_in, keep, work):
    """The same of a local layer; the blocks where ``keep``."""
    B, n = G_out.shape
    n_in, p, each = layer.n_in, layer.p, layer.n_out * layer.taps
    fill(p, 0.0, gradient, layer.parameters)
    if layer.N > 0:
        fill(B * n_in, 0.0, G_in, 0)
    if keep:
        fill(B * n * p, 0.0, lin.Dx, layer.Dx)
        fill(p * p, 0.0, lin.Dxx, layer.Dxx)
        fill(p * B * n_in, 0.0, lin.Dzx, layer.Dzx)
        fill(B * n_in, 0.0, lin.Dzz, layer.Dzz)
    Dz = lin.Dz if keep else work
    values, columns = (layer.Dz, columns_of(layer, B)) if keep else (0, each)
    phi, bend = pointer(work, 2 * each), pointer(work, 2 * each + n)
    for i in range(B):
        z, g = vector(lin.Z, layer.z + i * n_in, n_in), vector(G_out, i * n, n)
        at, columns_at = (values + i * each, columns + i * each) if keep else (values, columns)
        if keep or i == 0 or layer.operation == MAXIMUM:
            local_rows(layer, params, z, Dz, at, columns_at)
        if layer.operation == ACTIVATION:
            _call_activation(layer.function, pointer(z, 0), phi, pointer(Dz, at), bend, n)
            for a in range(n if keep else 0):
                lin.Dzz[layer.Dzz + i * n_in + a] = bend[a] * g[a]
        local_gradient(layer, z, g, gradient)
        if keep:
            local_parameter_blocks(layer, lin, i, z, g)
        if layer.N > 0:
            pull(layer, Dz, at, columns_at, 1, G_out, i * n, n, G_in, i * n_in, n_in)


@njit(inline="always")
def _frozen_custom_backward(layer, params, lin, G_out, G_in, keep, work):
    """The same of a custom layer that is frozen: G, Dz and Dzz alone. What its parameters do ends in ``work``."""
    B, n = G_out.shape
    n_in, held = layer.n_in, layer.held
    x = pointer(params, layer.weights)
    size = work.size - held * (n + held + n_in)
    Dx, Dxx, Dzx = pointer(work, size), pointer(work, size + n * held), pointer(work, size + (n + held) * held)
    if keep:
        fill(B * n_in * n_in, 0.0, lin.Dzz, layer.Dzz)
    for i in range(B):
        z = pointer(lin.Z, layer.z + i * n_in)
        Dz = matrix(lin.Dz, layer.Dz + i * n * n_in if keep else 0, n, n_in)
        fill(n * n_in, 0.0, Dz, 0)
        fill(work.size - size, 0.0, work, size)
        _call_jacobian(layer.jacobian, z, x, pointer(Dz, 0), Dx, pointer(work, 0), n_in, n, held)
        g = rows(G_out, i, 1)
        multiply(1.0, g, Dz, 0.0, rows(G_in, i, 1))
        if keep:
            Dzz = pointer(lin.Dzz, layer.Dzz + i * n_in * n_in)
            _call_curvature(
                layer.curvature, z, x, pointer(g, 0), Dxx, Dzx, Dzz, pointer(work, 0), n_in, n, held, n_in
            )


@kernel
def backward(table, start, stop, params, lin, gradient, G, keep, work):
    """Fill lam, D and the blocks of layers stop-1..start and the flat gradient.

    G, (2, B times the largest width), holds dLoss/dZ' of layer stop-1 in row ``stop % 2``, and that of layer start-1 in
    row ``start % 2`` at the end. keep : whether ``lin`` has room for the blocks of all samples. work : scratch of
    custom layers, of convolutions and of local layers.

    Returns the sum of these layers' gradient, which is finite if the gradient is and nothing overflows.
    """
    B, found = lin.output.shape[0], 0.0
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        G_out = matrix(G, G.shape[1] * ((l + 1) % 2), B, layer.n_out)
        G_in = matrix(G, G.shape[1] * (l % 2), B, layer.n_in)
        if layer.taps > 0:
            _local_backward(layer, params, lin, gradient, G_out, G_in, keep, work)
            found += total(vector(gradient, layer.parameters, layer.p))
        elif layer.kind == BLOCKS and layer.held > 0:
            _frozen_custom_backward(layer, params, lin, G_out, G_in, keep, work)
        elif layer.kind == BLOCKS:
            _custom_backward(layer, params, lin, gradient, G_out, G_in, keep, work)
            found += total(vector(gradient, layer.parameters, layer.p))
        elif layer.kind == CONVOLUTION:
            convolution_backward(layer, params, lin, gradient, G_out, G_in, work)
            found += total(vector(gradient, layer.parameters, layer.p))
        else:
            found += _dense_backward(layer, params, lin, gradient, G_out, G_in)
    return found
