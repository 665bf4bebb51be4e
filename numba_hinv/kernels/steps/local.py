"""Local layers: pooling, normalisation by constants, activations by themselves. Each output reads a few of the inputs.

To the sweeps they are layers given as blocks, but that a row of their Dz has ``taps`` entries, which are kept with
their columns in its place, and that their Dzz is a diagonal. Of one sample, with z for the state, f for an output:

    AVERAGE           f = mean of the numbers that a kernel reads, zeros of the padding among them
    AVERAGE_INSIDE    the same, without the padding
    MAXIMUM           f = the largest of them, the first one of several; its derivative is that of this one
    NORMALISATION     f = gain[channel] (z - mean[channel]) rate[channel] (+ shift[channel])
    ACTIVATION        f = phi(z)

All but the last are linear in the state, and Dzz is 0. Kernels are moved over the channels of the input one by one, as
`patches` says. The parameters of a normalisation are the gains, then the shifts of the channels, if it has any;
``function`` points to its means, then to the rates, 1 over standard deviations, in float64.
"""

from numba import types
from numba.extending import intrinsic

from ..plumbing.compiled import kernel
from ..plumbing.memory import fill, vector
from .layer_table import AVERAGE, MAXIMUM, NORMALISATION, for_convolutions
from .patches import channel_size, kernel_size, tap, vertical_tap


@intrinsic
def _numbers(typingctx, address):
    """The float64 numbers at an address, as a pointer."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), codegen


@kernel
def _average(layer, values, columns):
    """Entries of the mean of what a kernel reads."""
    taps, plane = layer.taps, layer.out_length * layer.out_height
    fill(values.size, 0.0, values, 0)
    fill(columns.size, 0.0, columns, 0)
    for tap_index in range(taps):
        h, k = divmod(tap_index, layer.kernel)
        first, last, start = tap(layer, k)
        first_row, last_row, top = vertical_tap(layer, h)
        for channel in range(layer.n_in // channel_size(layer)):
            for row in range(first_row, last_row):
                here = channel * channel_size(layer) + (top + layer.vertical_stride * row) * layer.length + start
                a = channel * plane + row * layer.out_length
                for t in range(first, last):
                    values[(a + t) * taps + tap_index] = 1.0
                    columns[(a + t) * taps + tap_index] = here + layer.stride * t
    for a in range(layer.n_out):
        count = 0.0
        for k in range(taps):
            count += values[a * taps + k]
        share = 1.0 / (taps if layer.operation == AVERAGE else count)
        for k in range(taps):
            values[a * taps + k] *= share


@kernel
def _maximum(layer, z, values, columns):
    """The entry of the largest number that a kernel reads; NaN is larger than any."""
    plane = layer.out_length * layer.out_height
    fill(values.size, 1.0, values, 0)
    fill(columns.size, -1.0, columns, 0)
    for index in range(kernel_size(layer)):
        h, k = divmod(index, layer.kernel)
        first, last, start = tap(layer, k)
        first_row, last_row, top = vertical_tap(layer, h)
        for channel in range(layer.n_in // channel_size(layer)):
            for row in range(first_row, last_row):
                here = channel * channel_size(layer) + (top + layer.vertical_stride * row) * layer.length + start
                a = channel * plane + row * layer.out_length
                for t in range(first, last):
                    column, best = here + layer.stride * t, int(columns[a + t])
                    if best < 0 or z[column] > z[best] or z[column] != z[column]:
                        columns[a + t] = column


@for_convolutions
def local_rows(layer, params, z, Dz, values_at, columns_at):
    """The entries of Dz at the state z of a sample, n_out x taps, and their columns; of activations the columns alone.

    They depend on z in a MAXIMUM and in an ACTIVATION.
    """
    count = layer.n_out * layer.taps
    values, columns = vector(Dz, values_at, count), vector(Dz, columns_at, count)
    if layer.operation < MAXIMUM:
        _average(layer, values, columns)
    elif layer.operation == MAXIMUM:
        _maximum(layer, z, values, columns)
    else:
        for a in range(count):
            columns[a] = a
        if layer.operation == NORMALISATION:
            size, constants = channel_size(layer), _numbers(layer.function)
            channels = layer.n_in // size
            for channel in range(channels):
                gain = constants[channels + channel]
                if layer.p + layer.held > 0:
                    gain = gain * params[layer.weights + channel]
                for a in range(channel * size, (channel + 1) * size):
                    values[a] = gain


@for_convolutions
def local_value(layer, params, z, Dz, values_at, columns_at, out):
    """out <- the outputs at the state z of a sample, whose `local_rows` these are; not of activations."""
    if layer.operation == NORMALISATION:
        size, constants = channel_size(layer), _numbers(layer.function)
        channels = layer.n_in // size
        for channel in range(channels):
            shift = 0.0
            if layer.p + layer.held > 0:
                shift = float(params[layer.weights + channels + channel])
            for a in range(channel * size, (channel + 1) * size):
                out[a] = (z[a] - constants[channel]) * Dz[values_at + a] + shift
        return
    taps = layer.taps
    for a in range(layer.n_out):
        total = 0.0
        for k in range(a * taps, (a + 1) * taps):
            # The padding has entries of 0, which must not meet infinite numbers.
            if Dz[values_at + k] != 0.0:
                total += Dz[values_at + k] * z[int(Dz[columns_at + k])]
        out[a] = total


@for_convolutions
def local_gradient(layer, z, g, gradient):
    """``gradient`` += the derivatives of g . f in the layer's parameters, at the state z of one sample."""
    if layer.p == 0:
        return
    size, constants = channel_size(layer), _numbers(layer.function)
    channels = layer.n_in // size
    for channel in range(channels):
        along, total = 0.0, 0.0
        for a in range(channel * size, (channel + 1) * size):
            along += g[a] * (z[a] - constants[channel])
            total += g[a]
        gradient[layer.parameters + channel] += along * constants[channels + channel]
        gradient[layer.parameters + channels + channel] += total


@for_convolutions
def local_parameter_blocks(layer, lin, i, z, g):
    """Add to Dx and Dzx, which hold zeros, those of sample i, the latter contracted with g; Dxx is 0."""
    if layer.p == 0:
        return
    size, constants, p = channel_size(layer), _numbers(layer.function), layer.p
    channels, num_samples = layer.n_in // size, lin.output.shape[0]
    for channel in range(channels):
        mean, rate = constants[channel], constants[channels + channel]
        for a in range(channel * size, (channel + 1) * size):
            at = layer.Dx + (i * layer.n_out + a) * p
            lin.Dx[at + channel] = (z[a] - mean) * rate
            lin.Dx[at + channels + channel] = 1.0
            lin.Dzx[layer.Dzx + (channel * num_samples + i) * layer.n_in + a] = g[a] * rate


@for_convolutions
def pull(layer, Dz, values_at, columns_at, count, q, q_at, q_stride, to, to_at, to_stride):
    """Rows of ``to``, of n_in numbers, += rows of q, of n_out numbers, times Dz of a sample."""
    taps = layer.taps
    values, columns = vector(Dz, values_at, layer.n_out * taps), vector(Dz, columns_at, layer.n_out * taps)
    for t in range(count):
        from_, out = vector(q, q_at + t * q_stride, layer.n_out), vector(to, to_at + t * to_stride, layer.n_in)
        for a in range(layer.n_out):
            for k in range(a * taps, (a + 1) * taps):
                out[int(columns[k])] += values[k] * from_[a]


@for_convolutions
def push(layer, Dz, values_at, columns_at, count, z, z_at, z_stride, to, to_at, to_stride):
    """Rows of ``to``, of n_out numbers, += rows of z, of n_in numbers, times the transpose of Dz of a sample."""
    taps = layer.taps
    values, columns = vector(Dz, values_at, layer.n_out * taps), vector(Dz, columns_at, layer.n_out * taps)
    for t in range(count):
        from_, out = vector(z, z_at + t * z_stride, layer.n_in), vector(to, to_at + t * to_stride, layer.n_out)
        for a in range(layer.n_out):
            total = out[a]
            for k in range(a * taps, (a + 1) * taps):
                total += values[k] * from_[int(columns[k])]
            out[a] = total


@kernel
def columns_of(layer, num_samples):
    """Where the columns of the first sample's entries of Dz start, behind the entries of all of them."""
    return layer.Dz + num_samples * layer.n_out * layer.taps


@for_convolutions
def pull_kept(layer, lin, i, count, q, q_at, q_stride, to, to_at, to_stride):
    """`pull` of sample i, with the Dz of a `Linearisation`."""
    each = layer.n_out * layer.taps
    at = columns_of(layer, lin.output.shape[0]) + i * each
    pull(layer, lin.Dz, layer.Dz + i * each, at, count, q, q_at, q_stride, to, to_at, to_stride)


@for_convolutions
def push_kept(layer, lin, i, count, z, z_at, z_stride, to, to_at, to_stride):
    """`push`, likewise."""
    each = layer.n_out * layer.taps
    at = columns_of(layer, lin.output.shape[0]) + i * each
    push(layer, lin.Dz, layer.Dz + i * each, at, count, z, z_at, z_stride, to, to_at, to_stride)


@for_convolutions
def local_front(layer, lin, P, P_Dz, at, P_next):
    """P_Dz (a x N, ``at`` and after) <- P Dz, and P_next <- Dzz + Dz^T P Dz, right of the diagonal."""
    a, N, n, n_in, taps = P.shape[0], layer.N, layer.n_out, layer.n_in, layer.taps
    num_samples = lin.output.shape[0]
    fill(a * N, 0.0, P_Dz, at)
    fill(N * N, 0.0, P_next, 0)
    for i in range(num_samples):
        pull_kept(layer, lin, i, a, P, i * n, a, P_Dz, at + i * n_in, N)
    for i in range(num_samples):
        here, values, columns = i * n_in, layer.Dz + i * n * taps, columns_of(layer, num_samples) + i * n * taps
        for j in range(n_in):
            P_next[here + j, here + j] = lin.Dzz[layer.Dzz + here + j]
        for b in range(n):
            row = vector(P_Dz, at + (i * n + b) * N + here, N - here)
            for k in range(b * taps, (b + 1) * taps):
                value = lin.Dz[values + k]
                to = vector(P_next, (here + int(lin.Dz[columns + k])) * N + here, N - here)
                for j in range(row.size):
                    to[j] += value * row[j]
