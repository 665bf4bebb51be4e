"""Linearising the net (docs/theory.md, section 2): twin of `kernels.linearise`.

``forward`` and ``backward`` are one thread block's work over several layers. Those named ``wide_`` do one wide layer by
the whole device. Activations are compiled into the kernels, for each set of them; ``layer.function`` is the index in
that set.
"""

import functools

from ...layers.activations import activation_function
from ...layers.losses import get_loss
from ..plumbing.target import LANES, cuda, device, kernel, lane_total, start_grid_team, start_team, total


@functools.cache
def _choice(functions):
    """One function (which, u) -> (phi, phi', phi'') of several ``u -> (phi, phi', phi'')``."""
    namespace = {f"f{index}": device(function) for index, function in enumerate(functions)}
    lines = [f"    if which == {index}:\n        return f{index}(u)\n" for index in range(1, len(functions))]
    exec("def activate(which, u):\n" + "".join(lines) + "    return f0(u)\n", namespace)
    return device(namespace["activate"])


def forward_kernel(names):
    """`forward` for the activations of these names."""
    return _forward_kernels(tuple(activation_function(name) for name in names))[0]


def wide_forward_kernel(names):
    """`wide_forward` for the activations of these names."""
    return _forward_kernels(tuple(activation_function(name) for name in names))[1]


@functools.cache
def _forward_kernels(functions):
    activate = _choice(functions)

    @device
    def settle(layer, is_last, B, lin, i, a, value):
        """Z', S and phi'' of output a of sample i, whose entry of U is the value."""
        n, n_in, z, u = layer.n_out, layer.n_in, layer.z, layer.u
        phi, slope, bend = activate(layer.function, value)
        here = i * n + a
        lin.S[u + here] = slope
        lin.D[u + here] = bend
        if layer.skip:
            phi += lin.Z[z + here]
        if is_last:
            lin.output[i, a] = phi
        else:
            lin.Z[z + B * n_in + here] = phi

    @kernel
    def forward(table, start, stop, params, lin):
        """Fill Z, S and phi'' (left in D) of layers start..stop-1 and the output; Z of layer ``start`` is given."""
        team = start_team()
        B = lin.output.shape[0]
        for l in range(start, stop):
            layer = table[l]
            n, n_in, w, z = layer.n_out, layer.n_in, layer.parameters, layer.z
            for i in range(team.group, B, team.groups):
                for a in range(team.lane, n, LANES):
                    value = params[w + n * n_in + a] if layer.bias else 0.0
                    for j in range(n_in):
                        value += lin.Z[z + i * n_in + j] * params[w + a * n_in + j]
                    settle(layer, l + 1 == table.size, B, lin, i, a, value)
            cuda.syncthreads()

    @kernel
    def wide_forward(table, l, params, lin):
        """The same of layer l; a block an output."""
        team, layer, a = start_team(), table[l], cuda.blockIdx.x
        n, n_in, w, z, B = layer.n_out, layer.n_in, layer.parameters, layer.z, lin.output.shape[0]
        for i in range(B):
            value = 0.0
            for j in range(team.rank, n_in, team.size):
                value += lin.Z[z + i * n_in + j] * params[w + a * n_in + j]
            value = total(team, value)
            if team.rank == 0:
                if layer.bias:
                    value += params[w + n * n_in + a]
                settle(layer, l + 1 == table.size, B, lin, i, a, value)

    return forward, wide_forward


def terminal_kernel(name):
    """`terminal` for the loss of this name."""
    loss = get_loss(name)
    return _terminal_kernel(loss["function"], bool(loss["parameters"]))


@functools.cache
def _terminal_kernel(function, has_parameters):
    loss = device(function)

    @device
    def with_parameters(z, y, gradient, curvature, parameters):
        return loss(z, y, gradient, curvature, parameters)

    @device
    def without_parameters(z, y, gradient, curvature, parameters):
        return loss(z, y, gradient, curvature)

    evaluate = with_parameters if has_parameters else without_parameters

    @kernel
    def terminal(parameters, scale, weights, targets, output, gradient, curvature, values):
        """Value of the loss of every sample, its gradient and curvature in the output; a thread a sample."""
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        B, n = output.shape
        if i < B:
            factor, is_there = scale * weights[i], weights[i] != 0.0
            value = evaluate(output[i], targets[i], gradient[i], curvature[i], parameters) if is_there else 0.0
            values[i] = factor * value
            for a in range(n):
                gradient[i, a] = factor * gradient[i, a] if is_there else 0.0
                for b in range(n):
                    curvature[i, a, b] = factor * curvature[i, a, b] if is_there else 0.0

    return terminal


@device
def _scale_slopes(team, layer, B, lin, G_out):
    """lam and D from the gradient in the layer's outputs."""
    u = layer.u
    for x in range(team.rank, B * layer.n_out, team.size):
        lin.lam[u + x] = lin.S[u + x] * G_out[x]
        lin.D[u + x] *= G_out[x]


@device
def _write_gradient(team, layer, B, lin, gradient):
    """lam^T [Z, 1]"""
    n, n_in, w, z, u = layer.n_out, layer.n_in, layer.parameters, layer.z, layer.u
    for a in range(team.group, n, team.groups):
        for j in range(team.lane, layer.d, LANES):
            value = 0.0
            for i in range(B):
                factor = lin.lam[u + i * n + a]
                value += factor * lin.Z[z + i * n_in + j] if j < n_in else factor
            gradient[w + (a * n_in + j if j < n_in else n * n_in + a)] = value


@kernel
def backward(table, start, stop, params, lin, gradient, G):
    """Fill lam and D of layers stop-1..start and the flat gradient; G as on the CPU."""
    team = start_team()
    B, lam = lin.output.shape[0], lin.lam
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        n, n_in, w, u = layer.n_out, layer.n_in, layer.parameters, layer.u
        G_out, G_in = G[(l + 1) % 2], G[l % 2]
        _scale_slopes(team, layer, B, lin, G_out)
        cuda.syncthreads()
        _write_gradient(team, layer, B, lin, gradient)
        if l > 0:
            for i in range(team.group, B, team.groups):
                for j in range(team.lane, n_in, LANES):
                    value = G_out[i * n_in + j] if layer.skip else 0.0
                    for a in range(n):
                        value += lam[u + i * n + a] * params[w + a * n_in + j]
                    G_in[i * n_in + j] = value
        cuda.syncthreads()


@kernel
def wide_slopes(table, l, lin, G):
    """lam and D of layer l."""
    _scale_slopes(start_grid_team(), table[l], lin.output.shape[0], lin, G[(l + 1) % 2])


@kernel
def wide_gradient(table, l, lin, gradient):
    """The gradient in the parameters of layer l."""
    _write_gradient(start_grid_team(), table[l], lin.output.shape[0], lin, gradient)


@kernel
def wide_inputs(table, l, params, lin, G):
    """The gradient in the inputs of layer l; a block some of them, `LANES`."""
    team, layer = start_team(), table[l]
    n, n_in, w, u = layer.n_out, layer.n_in, layer.parameters, layer.u
    j = cuda.blockIdx.x * LANES + team.lane
    for i in range(lin.output.shape[0]):
        value = 0.0
        if j < n_in:
            for a in range(team.group, n, team.groups):
                value += lin.lam[u + i * n + a] * params[w + a * n_in + j]
        value = lane_total(team, value)
        if j < n_in and team.group == 0:
            G[l % 2, i * n_in + j] = value + G[(l + 1) % 2, i * n_in + j] if layer.skip else value
