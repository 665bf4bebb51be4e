"""Columns of H before the sum over the samples (docs/theory.md, section 13): rows of Khatri-Rao products.

A row belongs to one source of one sample. Of a unit a and an input k of a structured layer it has
``G[a] Zt[k] + lam[a] dZ[k]``, G being what the source's change of the layer's pre-activations does to the gradient in
them, and dZ the change of the inputs; of a bias, G[a]. A convolution sums that over its positions.
"""

from ..dense.microkernel import pointer, shift, vector_columns
from ..dense.outer import outer, outer_pair
from ..dense.product import gemm_nn
from ..plumbing.compiled import inner
from .layer_table import for_convolutions
from .patches import gather


@inner
def dense_row(cut, start, curved, g, z, lam, dz, out):
    """The numbers of a cut, units ``start`` to ``cut.last``. Whole vectors are written: up to one beyond the cut."""
    units, columns, unit = cut.last - start, cut.end - cut.begin, vector_columns(out)
    if units > 0:
        # What is written beyond a unit's inputs is overwritten by the next unit's, or by the vectors before.
        k = (columns - 1) // unit * unit
        while k >= 0:
            here, at, to = shift(g, start), cut.begin + k, shift(out, k)
            if curved:
                outer_pair(units, here, shift(z, at), shift(lam, start), shift(dz, at), to, columns)
            else:
                outer(units, here, shift(z, at), to, columns)
            k -= unit
    biases = shift(out, max(units, 0) * columns)
    for b in range(cut.bias_end - cut.bias):
        biases[b] = g[cut.bias + b]


@for_convolutions
def convolution_row(layer, cut, start, curved, g, z, stride, lam, T, tangent, patches, out):
    """The same of a convolution: z are its patches, ``T[tangent:]`` the tangent of its input."""
    units, columns, positions = max(cut.last - start, 0), layer.fan_in, layer.positions
    at = start * positions
    gemm_nn(units, columns, positions, 1.0, shift(g, at), positions, z, stride, 0.0, out, columns)
    if curved:
        gather(layer, T, tangent, patches, 0, 1, columns)
        moved = pointer(patches, 0)
        gemm_nn(units, columns, positions, 1.0, shift(lam, at), positions, moved, columns, 1.0, out, columns)
    to = shift(out, units * columns)
    for b in range(cut.bias_end - cut.bias):
        total = 0.0
        for t in range(positions):
            total += g[(cut.bias + b) * positions + t]
        to[b] = total
