"""Patches: what a convolution reads at each of its positions, gathered from a sample's state, and folded back onto it.

A sample's state is channels x length, row-major. Its patches are the columns of a (channels kernel) x positions block,
of which row j = (channel, k) holds ``state[channel, stride t + dilation k - padding]`` at position t, or 0 in the
padding. Gathering is linear; folding is its transpose.
"""


from ..plumbing.compiled import kernel
from ..plumbing.memory import vector
from .layer_table import for_convolutions


@kernel
def tap(layer, k):
    """(first, last, start): positions first..last-1 read element ``start + stride t`` of a channel, others the padding."""
    start = k * layer.dilation - layer.padding
    if layer.stride == 1:
        return max(0, -start), min(layer.positions, layer.length - start), start
    last = (layer.length - 1 - start) // layer.stride + 1
    return max(0, -(start // layer.stride)), min(layer.positions, last), start


@for_convolutions
def gather(layer, state, at, patches, to, row_stride, column_stride):
    """``patches[to + j row_stride + t column_stride]`` <- row j, position t of the patches of ``state[at:]``."""
    for j in range(layer.fan_in):
        channel, k = divmod(j, layer.kernel)
        first, last, start = tap(layer, k)
        z = vector(state, at + channel * layer.length, layer.length)
        row = to + j * row_stride
        for t in range(min(first, layer.positions)):
            patches[row + t * column_stride] = 0.0
        if layer.stride == 1 and column_stride == 1:
            for t in range(first, last):
                patches[row + t] = z[start + t]
        else:
            for t in range(first, last):
                patches[row + t * column_stride] = z[start + layer.stride * t]
        for t in range(max(first, last), layer.positions):
            patches[row + t * column_stride] = 0.0


@kernel
def fold_row(layer, j, q, u, z):
    """z += q times the patches of which row j is u and all others are 0."""
    channel, k = divmod(j, layer.kernel)
    first, last, start = tap(layer, k)
    start += channel * layer.length
    if layer.stride == 1:
        for t in range(first, last):
            z[start + t] += q * u[t]
    else:
        for t in range(first, last):
            z[start + layer.stride * t] += q * u[t]


@kernel
def fold(layer, patches, state, at):
    """``state[at:]`` += the patches, each element where it was gathered."""
    z = vector(state, at, layer.n_in)
    one = z.dtype.type(1)
    for j in range(layer.fan_in):
        fold_row(layer, j, one, vector(patches, j * layer.positions, layer.positions), z)


@kernel
def fold_product(layer, q, u, state, at):
    """``state[at:]`` += the patches q u^T."""
    z = vector(state, at, layer.n_in)
    for j in range(layer.fan_in):
        fold_row(layer, j, q[j], u, z)
