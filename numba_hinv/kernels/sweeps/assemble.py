"""The dense matrix, chunk of samples by chunk (docs/theory.md, section 13): `curve` back, then `assemble`; `complete`.

`curve` leaves V and E of a chunk, `assemble` adds the chunk's part of H in the rows of some groups of a layer, right of
the diagonal, and `complete` writes what is below it. `assembly_table` says where everything lies.
"""

from ..dense.microkernel import pointer, shift
from ..dense.product import gemm_nn, gemm_tn
from ..dense.rank_update import reflect
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import vector
from ..steps.curvature import blocks_tangents, sample_curve, start_tangents, structured_tangents, unfold
from ..steps.khatri_rao import convolution_row, dense_row
from ..steps.layer_table import BLOCKS, CONVOLUTION

# Rows that columns are formed for at a time. Those of a cut then stay in the second-level cache.
SLICE_ROWS = 64
# Rows of their product with the inputs that are computed together: such products stay away from BLAS.
PRODUCT_ROWS = 192


@kernel
def prepare(table, places, params, lin, kept):
    """Unfold convolutions, and see where lam is all zero, as of a Gauss-Newton matrix: once for all chunks."""
    B = lin.output.shape[0]
    for l in range(table.size):
        layer, place = table[l], places[l]
        if layer.kind == BLOCKS:
            continue
        if layer.kind == CONVOLUTION:
            unfold(layer, params, kept, place.W)
        lam = vector(lin.lam, layer.u, B * layer.n_out)
        for i in range(lam.size):
            if lam[i] != 0.0:
                place.curved = 1
                break


@kernel
def curve(table, places, params, lin, kept, begin, first, last, work):
    """V, E and the inputs of all layers, for samples first..last-1 of the chunk that starts with sample ``begin``."""
    for j in range(first, last):
        sample_curve(table, places, params, lin, begin + j, j, kept, work)


@inner
def _form(layer, place, cut, start, curved, group_sources, first, rows, at, lin, begin, kept, g, g_sample, T, sources,
          patches, M, stride):
    """Rows first..first+rows-1 of a structured layer's columns in the sources of a group: ``at`` and after."""
    for r in range(rows):
        j, t = divmod(first + r, group_sources)
        row, out = shift(g, j * g_sample + (at + t) * place.width), pointer(M, r * stride)
        z = pointer(kept, place.X + j * layer.positions * place.stride)
        lam, tangent = pointer(lin.lam, layer.u + (begin + j) * layer.n_out), (j * sources + at + t) * layer.n_in
        if layer.kind == CONVOLUTION:
            convolution_row(layer, cut, start, curved, row, z, place.stride, lam, T, tangent, patches, out)
        else:
            dense_row(cut, start, curved, row, z, lam, pointer(T, tangent), out)


@inner
def _add(C, height, width, source, place, group, column, H, fresh):
    """The rows of a group, in columns from ``column`` on: H += C; H = C where nothing was there before."""
    for x in range(height):
        if source.kind == BLOCKS:
            row = x
        else:
            row = group * source.fan_in + x if x < source.fan_in else source.units * source.fan_in + group
        to = vector(H, (source.parameters + row) * H.shape[1] + column, width)
        if fresh:
            for k in range(width):
                to[k] = C[x * width + k]
        else:
            for k in range(width):
                to[k] += C[x * width + k]


@inner
def _block(source, source_place, layer, place, cut, own, group, at, sources, lin, begin, count, kept, g, g_sample, T,
           patches, M, C, H, fresh):
    """H in the rows of one group and the columns of one cut: the sum over samples and sources of inputs times columns.

    g : pointer to the numbers that the columns are formed from, those of two samples ``g_sample`` apart.
    at, sources : the group's first source, and the number of them, among those in T and g.
    """
    is_structured, columns = layer.kind != BLOCKS, cut.end - cut.begin
    biases = cut.bias_end - cut.bias
    start = max(cut.first, group) if own and is_structured else cut.first
    units = max(cut.last - start, 0)
    width = units * columns + biases
    if width == 0:
        return
    column = layer.parameters + cut.begin
    if is_structured:
        column += start * layer.fan_in if units > 0 else layer.units * layer.fan_in + cut.bias - cut.begin
    # The rest is below the diagonal.
    height = cut.end if own and is_structured and biases == 0 else source_place.height
    group_sources, stride = source_place.sources, width + (8 if width % 64 == 0 else 0)
    curved = not own and place.curved != 0
    for first in range(0, count * group_sources, SLICE_ROWS):
        rows = min(SLICE_ROWS, count * group_sources - first)
        if is_structured:
            _form(layer, place, cut, start, curved, group_sources, first, rows, at, lin, begin, kept, g, g_sample, T,
                  sources, patches, M, stride)
            right, right_stride = pointer(M, 0), stride
        else:
            # What lies there are the columns themselves. Sources of one sample follow one another.
            right_stride = g_sample if group_sources == 1 else place.width
            right = shift(g, first * right_stride + at * place.width + cut.begin)
        if source.kind == BLOCKS:
            left_stride = source.p
            left = pointer(lin.Dx, source.Dx + (begin * source.n_out + first) * source.p)
        else:
            left_stride = source_place.stride
            left = pointer(kept, source_place.X + first * left_stride)
        for top in range(0, height, PRODUCT_ROWS):
            gemm_tn(
                min(PRODUCT_ROWS, height - top), width, rows, 1.0, shift(left, top), left_stride, right, right_stride,
                0.0 if first == 0 else 1.0, pointer(C, top * width), width,
            )
    _add(C, height, width, source, source_place, group, column, H, fresh)


@inner
def _all_blocks(table, places, cuts, piece, later, own, begin, count, lin, kept, g, g_sample, T, patches, M, C, H,
                fresh):
    """`_block` of all groups of a piece and all cuts of layer ``later``; ``own`` where that is the piece's layer."""
    source, source_place, layer, place = table[piece.layer], places[piece.layer], table[later], places[later]
    of_group = source_place.sources
    sources = (piece.last - piece.first) * of_group
    first, last = place.first_cut, place.last_cut
    if own:
        first, last = place.first_own_cut, place.last_own_cut
    for c in range(first, last):
        for group in range(piece.first, piece.last):
            at = (group - piece.first) * of_group
            _block(source, source_place, layer, place, cuts[c], own, group, at, sources, lin, begin, count, kept, g,
                   g_sample, T, patches, M, C, H, fresh)


@inner
def _couple(layer, place, count, sources, kept, T, G):
    """G = T^T E^T of all samples: what the sources change of the gradient in a later layer."""
    n_in, width = layer.n_in, place.width
    for j in range(count):
        E, from_, to = place.E + j * n_in * width, pointer(T, j * sources * n_in), pointer(G, j * sources * width)
        gemm_nn(sources, width, n_in, 1.0, from_, n_in, pointer(kept, E), width, 0.0, to, width)


@kernel
def assemble(table, places, cuts, pieces, begin, count, params, lin, kept, H, fresh, T, T_next, G, M, C, patches):
    """Add to H what the chunk has in the rows of the pieces, right of the diagonal; set H where it is ``fresh``.

    Samples begin..begin+count-1, for which `curve` has filled ``kept``. T and what follows is scratch.
    """
    for index in range(pieces.size):
        piece = pieces[index]
        l = piece.layer
        source, of_group, width = table[l], places[l].sources, places[l].width
        first, sources = piece.first * of_group, (piece.last - piece.first) * of_group
        V = pointer(kept, places[l].V + first * width)
        _all_blocks(table, places, cuts, piece, l, True, begin, count, lin, kept, V, source.n_out * width, T, patches,
                    M, C, H, fresh)
        if l + 1 < table.size:
            start_tangents(source, source.kind != BLOCKS, lin, begin, count, first, sources, T)
        for later in range(l + 1, table.size):
            layer, place = table[later], places[later]
            if layer.p > 0:
                _couple(layer, place, count, sources, kept, T, G)
                _all_blocks(table, places, cuts, piece, later, False, begin, count, lin, kept, pointer(G, 0),
                            sources * place.width, T, patches, M, C, H, fresh)
            if later + 1 < table.size:
                if layer.kind == BLOCKS:
                    blocks_tangents(layer, lin, begin, count, sources, T, T_next)
                else:
                    structured_tangents(layer, place, params, lin, begin, count, sources, kept, T, T_next)
                T, T_next = T_next, T


@kernel
def add_constant(table, lin, H):
    """Add Dxx of layers given as blocks, which is no sum over samples any more."""
    for l in range(table.size):
        layer = table[l]
        if layer.kind == BLOCKS:
            at = layer.parameters
            for x in range(layer.p):
                for y in range(layer.p):
                    H[at + x, at + y] += lin.Dxx[layer.Dxx + x * layer.p + y]


@kernel
def complete_diagonal(table, places, l2, H):
    """Add l2 to the diagonal, and complete the blocks right of it of which half was left out."""
    P = H.shape[1]
    for l in range(table.size):
        layer = table[l]
        at, n_in = layer.parameters, layer.n_in
        if places[l].wide and layer.p > 0:
            for a in range(layer.units):
                for b in range(a + 1, layer.units):
                    corner = pointer(H, (at + a * n_in) * P + at + b * n_in)
                    reflect(n_in, 0, n_in, corner, P, corner, P)
        for x in range(layer.p):
            H[at + x, at + x] += l2


@kernel
def complete(first, columns, H):
    """Copy what is right of the diagonal in rows first..first+columns-1 below it."""
    P = H.shape[0]
    reflect(P, first, columns, pointer(H, 0), P, pointer(H, first), P)
