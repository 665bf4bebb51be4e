"""Patches: what a convolution reads at each of its positions, gathered from a sample's state, and folded back onto it.

A sample's state is channels x height x length, row-major; a 1-d convolution's has a height of 1. Its patches are the
columns of a (channels kernel_height kernel) x positions block, of which row j = (channel, h, k) holds, at position
t = (row, place),

    state[channel, vertical_stride row + vertical_dilation h - vertical_padding, stride place + dilation k - padding]

or 0 in the padding. Gathering is linear; folding is its transpose.
"""


from ..plumbing.compiled import kernel
from ..plumbing.memory import vector
from .layer_table import for_convolutions


@kernel
def _reach(start, stride, places, length):
    """(first, last): of so many places, those where element ``start + stride place`` of an axis is no padding."""
    if stride == 1:
        return max(0, -start), min(places, length - start)
    return max(0, -(start // stride)), min(places, (length - 1 - start) // stride + 1)


@kernel
def tap(layer, k):
    """(first, last, start): places first..last-1 of a row read element ``start + stride place``, others the padding."""
    start = k * layer.dilation - layer.padding
    first, last = _reach(start, layer.stride, layer.out_length, layer.length)
    return first, last, start


@kernel
def vertical_tap(layer, h):
    """The same of the rows of positions and of a channel."""
    start = h * layer.vertical_dilation - layer.vertical_padding
    first, last = _reach(start, layer.vertical_stride, layer.out_height, layer.height)
    return first, last, start


@kernel
def element(layer, k, t):
    """Which number of a channel position t reads with number k of the kernel; -1 where that is the padding."""
    h, k = divmod(k, layer.kernel)
    row, place = divmod(t, layer.out_length)
    y = layer.vertical_stride * row + layer.vertical_dilation * h - layer.vertical_padding
    x = layer.stride * place + layer.dilation * k - layer.padding
    if y < 0 or y >= layer.height or x < 0 or x >= layer.length:
        return -1
    return y * layer.length + x


@kernel
def channel_size(layer):
    """Numbers of a channel of the input."""
    return layer.height * layer.length


@kernel
def kernel_size(layer):
    """Weights that a unit has for a channel."""
    return layer.kernel_height * layer.kernel


@for_convolutions
def gather(layer, state, at, patches, to, row_stride, column_stride):
    """``patches[to + j row_stride + t column_stride]`` <- row j, position t of the patches of ``state[at:]``."""
    length, places, stride, row = layer.length, layer.out_length, layer.stride, to
    for channel in range(layer.n_in // channel_size(layer)):
        for h in range(layer.kernel_height):
            first_row, last_row, top = vertical_tap(layer, h)
            for k in range(layer.kernel):
                first, last, start = tap(layer, k)
                for y in range(layer.out_height):
                    here = row + y * places * column_stride
                    if y < first_row or y >= last_row:
                        for t in range(places):
                            patches[here + t * column_stride] = 0.0
                        continue
                    from_row = channel * layer.height + top + layer.vertical_stride * y
                    z = vector(state, at + from_row * length, length)
                    for t in range(min(first, places)):
                        patches[here + t * column_stride] = 0.0
                    if stride == 1 and column_stride == 1:
                        for t in range(first, last):
                            patches[here + t] = z[start + t]
                    else:
                        for t in range(first, last):
                            patches[here + t * column_stride] = z[start + stride * t]
                    for t in range(max(first, last), places):
                        patches[here + t * column_stride] = 0.0
                row += row_stride


@kernel
def _fold_tap(layer, channel, h, k, q, u, z):
    """z += q times the patches of which the row of a channel and of element (h, k) of the kernel is u, all others 0."""
    first, last, start = tap(layer, k)
    first_row, last_row, top = vertical_tap(layer, h)
    for y in range(first_row, last_row):
        row = channel * layer.height + top + layer.vertical_stride * y
        to, from_ = vector(z, row * layer.length, layer.length), vector(u, y * layer.out_length, layer.out_length)
        if layer.stride == 1:
            for t in range(first, last):
                to[start + t] += q * from_[t]
        else:
            for t in range(first, last):
                to[start + layer.stride * t] += q * from_[t]


@kernel
def fold_row(layer, j, q, u, z):
    """z += q times the patches of which row j is u and all others are 0."""
    channel, k = divmod(j, kernel_size(layer))
    h, k = divmod(k, layer.kernel)
    _fold_tap(layer, channel, h, k, q, u, z)


@kernel
def fold(layer, patches, state, at):
    """``state[at:]`` += the patches, each element where it was gathered."""
    z, j = vector(state, at, layer.n_in), 0
    one = z.dtype.type(1)
    for channel in range(layer.n_in // channel_size(layer)):
        for h in range(layer.kernel_height):
            for k in range(layer.kernel):
                _fold_tap(layer, channel, h, k, one, vector(patches, j, layer.positions), z)
                j += layer.positions


@kernel
def fold_product(layer, q, u, state, at):
    """``state[at:]`` += the patches q u^T."""
    z, j = vector(state, at, layer.n_in), 0
    for channel in range(layer.n_in // channel_size(layer)):
        for h in range(layer.kernel_height):
            for k in range(layer.kernel):
                _fold_tap(layer, channel, h, k, q[j], u, z)
                j += 1
