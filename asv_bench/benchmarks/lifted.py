"""The lifted sparse system (docs/theory.md, section 1; A. Rahimi, arXiv:2601.06096), which a sparse direct solver can
take.

The unknowns are, per layer, the parameters x, the tangent z of the outputs and the adjoint mu of the outputs:

    (Dxx + damping I) x_l + Dzx z_{l-1} - Dx^T mu_l                      = b_l
    z_l - Dx x_l - Dz z_{l-1}                                            = 0
    mu_l + Dzz_{l+1} z_l + Dzx_{l+1}^T x_{l+1} - Dz_{l+1}^T mu_{l+1}     = 0    (the loss's curvature after the last)

It is symmetric, indefinite and sparse, and the x of its solution is that of ``(H + damping I) x = b``. A dense layer
enters as two: the affine map, with the tangent u and the adjoint nu of the pre-activations, whose Dxx and Dzz vanish,
and the activation, which has no parameters and diagonal blocks. That leaves far fewer nonzeros than one layer would,
whose Dxx is full per output.

The unknowns are numbered from the last layer to the first and x before the states, so that elimination in this order
fills in as little as this library's does: parameters never meet those of the same layer through the states.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp


class Lifted(NamedTuple):
    """The system ``matrix @ unknowns = right_hand_side(b)``; its solution's x is ``unknowns[parameters]``."""

    matrix: sp.csc_array
    parameters: np.ndarray  # where the parameters lie among the unknowns, in the order of the flat vector

    def right_hand_side(self, b):
        full = np.zeros(self.matrix.shape[0])
        full[self.parameters] = b
        return full


class _Assembly:
    """Numbers the unknowns in the order in which they are asked for, and collects symmetric blocks as triplets."""

    def __init__(self):
        self.size, self.rows, self.columns, self.values = 0, [], [], []

    def unknowns(self, *shape):
        first, self.size = self.size, self.size + int(np.prod(shape))
        return np.arange(first, self.size).reshape(shape)

    def add(self, rows, columns, values):
        """Entries off the diagonal blocks, broadcast against each other, and their mirror images."""
        rows, columns, values = (np.ravel(array) for array in np.broadcast_arrays(rows, columns, values))
        self.add_diagonal(rows, columns, values)
        self.add_diagonal(columns, rows, values)

    def add_diagonal(self, rows, columns, values):
        """Entries of a diagonal block, which holds its mirror images itself."""
        for collected, array in zip((self.rows, self.columns, self.values), np.broadcast_arrays(rows, columns, values)):
            collected.append(array.ravel())

    def matrix(self):
        values, rows, columns = (np.concatenate(each) for each in (self.values, self.rows, self.columns))
        kept = values != 0
        matrix = sp.coo_array((values[kept], (rows[kept], columns[kept])), shape=(self.size, self.size)).tocsc()
        matrix.sort_indices()
        return matrix


def lift_net(reference, damping):
    """The lifted system of a net that a `NumpyReference` has linearised."""
    B, assembly, parameters = reference.batch, _Assembly(), []
    numbers = []
    for layer in reversed(reference.layers):
        x = assembly.unknowns(layer.n_out * layer.d)
        z, mu, u, nu = (assembly.unknowns(B, layer.n_out) for _ in range(4))
        numbers.append((layer, x, z, mu, u, nu))
        parameters.append(x)
    z_out = numbers[0][1 + 1]
    assembly.add_diagonal(z_out[:, :, None], z_out[:, None, :], reference.loss_curvature)
    for position, (layer, x, z, mu, u, nu) in enumerate(numbers):
        n, weights = layer.n, layer.n * layer.n_out
        W = x[:weights].reshape(layer.n_out, n)
        assembly.add_diagonal(x, x, damping)
        assembly.add(nu, u, 1.0)
        assembly.add(nu[:, :, None], W, -layer.Z[:, None, :])
        if layer.bias:
            assembly.add(nu, x[weights:], -1.0)
        assembly.add_diagonal(u, u, layer.D)
        assembly.add(mu, z, 1.0)
        assembly.add(mu, u, -layer.S)
        if position + 1 < len(numbers):
            z_in = numbers[position + 1][2]
            assembly.add(nu[:, :, None], z_in[:, None, :], -layer.W)
            assembly.add(W, z_in[:, None, :], layer.lam[:, :, None])
            if layer.skip:
                assembly.add(mu, z_in, -1.0)
    return Lifted(assembly.matrix(), np.concatenate(parameters[::-1]))


def lift_blocks(blocks, terminal, damping):
    """The lifted system of a chain of generic layers with ``Dx, Dz, Dxx, Dzx, Dzz`` (docs/theory.md, section 7)."""
    assembly, parameters = _Assembly(), []
    numbers = []
    for layer in reversed(blocks):
        n_out, p = layer.Dx.shape
        x, z, mu = assembly.unknowns(p), assembly.unknowns(n_out), assembly.unknowns(n_out)
        numbers.append((layer, x, z, mu))
        parameters.append(x)
    z_out = numbers[0][2]
    if terminal is not None:
        assembly.add_diagonal(z_out[:, None], z_out, terminal)
    for position, (layer, x, z, mu) in enumerate(numbers):
        assembly.add_diagonal(x[:, None], x, layer.Dxx + damping * np.eye(len(x)))
        assembly.add(mu, z, 1.0)
        assembly.add(mu[:, None], x, -layer.Dx)
        if position + 1 < len(numbers):
            z_in = numbers[position + 1][2]
            assembly.add(mu[:, None], z_in, -layer.Dz)
            assembly.add(x[:, None], z_in, layer.Dzx)
            assembly.add_diagonal(z_in[:, None], z_in, layer.Dzz)
    return Lifted(assembly.matrix(), np.concatenate(parameters[::-1]))
