"""Linearising the net (design, section 2) by one thread block: twin of `kernels.linearise`.

Activations are compiled into the kernel, one kernel for each set of them; ``layer.function`` is the index in that set.
"""

import functools

from ..activations import activation_function
from ..losses import get_loss
from .target import LANES, cuda, device, kernel, start_team


@functools.lru_cache(maxsize=None)
def _choice(functions):
    """One function (which, u) -> (phi, phi', phi'') of several ``u -> (phi, phi', phi'')``."""
    namespace = {f"f{index}": device(function) for index, function in enumerate(functions)}
    lines = [f"    if which == {index}:\n        return f{index}(u)\n" for index in range(1, len(functions))]
    exec("def activate(which, u):\n" + "".join(lines) + "    return f0(u)\n", namespace)
    return device(namespace["activate"])


def forward_kernel(names):
    """`forward` for the activations of these names."""
    return _forward_kernel(tuple(activation_function(name) for name in names))


@functools.lru_cache(maxsize=None)
def _forward_kernel(functions):
    activate = _choice(functions)

    @kernel
    def forward(table, start, stop, params, lin):
        """Fill Z, S and phi'' (left in D) of layers start..stop-1 and the output; Z of layer ``start`` is given."""
        team = start_team()
        B = lin.output.shape[0]
        for l in range(start, stop):
            layer = table[l]
            n, n_in, w, z, u = layer.n_out, layer.n_in, layer.parameters, layer.z, layer.u
            is_last = l + 1 == table.size
            for i in range(team.group, B, team.groups):
                for a in range(team.lane, n, LANES):
                    value = params[w + n * n_in + a] if layer.bias else 0.0
                    for j in range(n_in):
                        value += lin.Z[z + i * n_in + j] * params[w + a * n_in + j]
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
            cuda.syncthreads()

    return forward


def terminal_kernel(name):
    """`terminal` for the loss of this name."""
    return _terminal_kernel(get_loss(name)["function"])


@functools.lru_cache(maxsize=None)
def _terminal_kernel(function):
    loss = device(function)

    @kernel
    def terminal(scale, targets, output, gradient, curvature, values):
        """Value of the loss of every sample, its gradient and curvature in the output; a thread a sample."""
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        B, n = output.shape
        if i < B:
            values[i] = scale * loss(output[i], targets[i], gradient[i], curvature[i])
            for a in range(n):
                gradient[i, a] *= scale
                for b in range(n):
                    curvature[i, a, b] *= scale

    return terminal


@kernel
def backward(table, start, stop, params, lin, gradient, G):
    """Fill lam and D of layers stop-1..start and the flat gradient; G as on the CPU."""
    team = start_team()
    B = lin.output.shape[0]
    S, D, lam, Z = lin.S, lin.D, lin.lam, lin.Z
    for l in range(stop - 1, start - 1, -1):
        layer = table[l]
        n, n_in, w, z, u = layer.n_out, layer.n_in, layer.parameters, layer.z, layer.u
        G_out, G_in = G[(l + 1) % 2], G[l % 2]
        for x in range(team.rank, B * n, team.size):
            lam[u + x] = S[u + x] * G_out[x]
            D[u + x] *= G_out[x]
        cuda.syncthreads()
        for a in range(team.group, n, team.groups):
            for j in range(team.lane, layer.d, LANES):
                value = 0.0
                for i in range(B):
                    value += lam[u + i * n + a] * Z[z + i * n_in + j] if j < n_in else lam[u + i * n + a]
                gradient[w + (a * n_in + j if j < n_in else n * n_in + a)] = value
        if l > 0:
            for i in range(team.group, B, team.groups):
                for j in range(team.lane, n_in, LANES):
                    value = G_out[i * n_in + j] if layer.skip else 0.0
                    for a in range(n):
                        value += lam[u + i * n + a] * params[w + a * n_in + j]
                    G_in[i * n_in + j] = value
        cuda.syncthreads()
