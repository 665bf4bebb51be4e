"""Where the dense matrix is assembled (docs/theory.md, section 13): sizes, offsets, and in which pieces it is done.

A layer's rows of H fall into *groups* with the same inputs: the rows of one unit of a structured layer, or all those of
a layer given as blocks. A group has ``height`` rows and as many *sources* a sample as the layer has positions (of a
layer given as blocks: as its outputs), which are the numbers through which its parameters act. The columns of a layer
fall into *cuts*.
"""

from typing import NamedTuple

import numpy as np

from .layer_table import BLOCKS, CONVOLUTION, DENSE

# Numbers of a vector, at most, by which rows of inputs are longer than they need be: whole vectors are read.
PAD = 16
# Columns of H that are formed together. Microseconds of one core a sample, 64-16x20-10 with 64 / 96 / 192 / 288: 1240,
# 1260, 1190, 1180.
CUT = 192
# Inputs from which a layer's blocks with itself are computed in cuts of TRIANGLE_CUT inputs, without what is below the
# diagonal. The same of 784-10-10 with cuts of 48 / 72 / 96 / 192 / whole: 674, 655, 645, 725, 730; with 64 inputs, no
# difference.
TRIANGLE, TRIANGLE_CUT = 96, 96
# Sources that are taken through the layers together, if their groups have one each, and flops a sample that are enough.
# With 4 / 8 / 16 sources, 64-16x20-10: within 5 percent.
SOURCES, ENOUGH = 8, 4e6

PLACE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "sources",  # of a group and sample
            "groups",
            "height",  # rows of a group
            "width",  # numbers a source that the layer's columns are formed from
            "stride",  # of the rows of the inputs
            "first_cut",
            "last_cut",
            "first_own_cut",  # of the layer's block with itself
            "last_own_cut",
            "wide",  # whether the latter is computed in parts, without what is below its diagonal
            "curved",  # whether lam is not all zero
            "W",  # offsets in the buffer: of W, of a convolution as a matrix on whole states,
            "X",  # of the inputs, the rows of Zt,
            "V",  # of V, or of P Dx,
            "E",  # and of the transpose of E, or of Dzx + Dx^T P Dz
        )
    ],
    align=True,
)
# Units first..last-1, inputs begin..end-1 of each, and biases bias..bias_end-1: consecutive columns.
CUT_FIELDS = "first", "last", "begin", "end", "bias", "bias_end"
PIECE = np.dtype([(name, np.int64) for name in ("layer", "first", "last")], align=True)
CUTS = np.dtype([(name, np.int64) for name in CUT_FIELDS], align=True)


class Assembly(NamedTuple):
    """How the dense matrix of a chain is put together."""

    places: np.ndarray  # (L,) of PLACE
    cuts: np.ndarray  # of CUTS
    pieces: np.ndarray  # of PIECE: groups first..last-1 of a layer
    flops: np.ndarray  # of each piece, a sample
    chunk: int  # samples that are taken together
    kept: int  # numbers of the buffer that all threads read
    curve: int  # numbers of scratch of `assemble.curve`
    tangents: int  # of `assemble.assemble`: one of two blocks of tangents,
    mixed: int  # what columns are formed from,
    rows: int  # the columns,
    sums: int  # their products,
    patches: int  # and patches of a convolution's tangent

    @property
    def scratch(self):
        """Numbers of scratch of a thread."""
        return max(self.curve, 2 * self.tangents + self.mixed + self.rows + self.sums + self.patches)


def _even(size, most):
    """Ends of as few equal parts as there are of at most ``most``."""
    count = max(1, -(-size // most))
    bounds = [size * part // count for part in range(count + 1)]
    return list(zip(bounds[:-1], bounds[1:]))


def _cuts(layer, wide, most):
    """Cuts of a layer's columns, of each unit by itself where ``wide``, and at most about ``most`` columns each."""
    if layer["kind"] == BLOCKS:
        return [(0, 1, begin, end, 0, 0) for begin, end in _even(int(layer["p"]), most)]
    units, fan_in, bias = int(layer["units"]), int(layer["fan_in"]), int(layer["bias"])
    if wide or (fan_in > most and layer["kind"] == DENSE):
        found = [(a, a + 1, *inputs) for a in range(units) for inputs in _even(fan_in, most)]
    else:
        found = [(*few, 0, fan_in) for few in _even(units, max(1, most // fan_in))]
    found = [(*cut, 0, 0) for cut in found]
    if bias and units <= most // 4:
        found[-1] = (*found[-1][:4], 0, units)
    elif bias:
        found += [(units, units, 0, fan_in, *few) for few in _even(units, most)]
    return found


def _places(table):
    places = np.zeros(table.size, PLACE)
    is_structured = table["kind"] != BLOCKS
    places["sources"] = np.where(is_structured, table["positions"], table["n_out"])
    places["groups"] = np.where(table["p"] == 0, 0, np.where(is_structured, table["units"], 1))
    places["height"] = np.where(is_structured, table["d"], table["p"])
    places["width"] = np.where(is_structured, table["n_out"], table["p"])
    stride = -(-table["d"] // PAD) * PAD
    # Rows a multiple of 512 bytes apart would share a few sets of the first-level cache.
    places["stride"] = np.where(is_structured, stride + np.where(stride % 64 == 0, PAD, 0), 0)
    return places


def _offsets(table, places, chunk):
    """Fill the offsets for chunks of so many samples; numbers in all."""
    is_structured = table["kind"] != BLOCKS
    n_in = np.where(table["N"] > 0, table["n_in"], 0)
    sizes = {
        "W": np.where(table["kind"] == CONVOLUTION, table["n_out"] * table["n_in"], 0),
        "X": np.where(is_structured, chunk * table["positions"] * places["stride"], 0),
        "V": chunk * table["n_out"] * places["width"],
        "E": chunk * n_in * places["width"],
    }
    at = 0
    for name, size in sizes.items():
        ends = at + np.cumsum(size)
        places[name] = ends - size
        at = int(ends[-1])
    return at + PAD


def _pieces(table, places):
    """(pieces, flops of each a sample): later layers go with all that come before them."""
    n_in, width = np.where(table["N"] > 0, table["n_in"], 0).astype(float), places["width"]
    form = np.where(table["kind"] == CONVOLUTION, 4.0 * table["positions"], 4.0) * (table["kind"] != BLOCKS)
    state = np.where(table["taps"] > 0, table["taps"] * table["n_out"], n_in * table["n_out"])
    through = 2.0 * (n_in * width + state)
    pieces, flops = [], []
    for l in range(table.size):
        place = places[l]
        sources, groups = int(place["sources"]), int(place["groups"])
        height, later = 2.0 * place["height"], slice(l + 1, None)
        of_source = (through[later] + (form[later] + height) * table["p"][later]).sum()
        own = (form[l] + height) * table["p"][l]
        at_once = max(1, min(SOURCES, int(ENOUGH / (of_source + own + 1.0)))) if sources == 1 else 1
        for first, last in _even(groups, at_once) if groups else ():
            pieces.append((l, first, last))
            share = 1.0 - (first + last) / (2.0 * groups) if table["kind"][l] != BLOCKS else 1.0
            flops.append((last - first) * sources * (of_source + own * share))
    return np.array(pieces, PIECE), np.array(flops)


def curve_flops(table):
    """Flops a sample of going back through the layers without eliminating anything."""
    n, n_in, p = (table[name].astype(float) for name in ("n_out", "n_in", "p"))
    n_in = np.where(table["N"] > 0, n_in, 0)
    blocks = np.where(table["kind"] == BLOCKS, 2.0 * n * p * (n + n_in), 0)
    inputs = np.where(table["taps"] > 0, table["taps"] * (n_in > 0), n_in)
    return float((2.0 * n * inputs * (n + n_in) + 4.0 * n * n + blocks).sum())


def assembly(table, num_samples, budget, largest_chunk, slice_rows):
    """The `Assembly` of a chain's table.

    Parameters
    ----------
    num_samples : int
        B.
    budget : int
        Numbers of the buffer, and of a thread's scratch, from which chunks are smaller than B or ``largest_chunk``.
    slice_rows : int
        Rows, samples times sources, that columns are formed for at a time.
    """
    places = _places(table)
    pieces, flops = _pieces(table, places)
    cuts = []
    for layer, place in zip(table, places):
        place["wide"] = wide = layer["kind"] == DENSE and layer["n_in"] >= min(TRIANGLE, CUT + 1)
        for name, own in (("cut", False), ("own_cut", wide)):
            place[f"first_{name}"] = len(cuts)
            cuts += _cuts(layer, own, TRIANGLE_CUT if own else CUT) if layer["p"] else []
            place[f"last_{name}"] = len(cuts)
    cuts = np.array(cuts, CUTS)
    sources = int(((pieces["last"] - pieces["first"]) * places["sources"][pieces["layer"]]).max())
    width = int(np.maximum(table["n_in"], table["n_out"]).max())
    mixed = int(places["width"].max())
    a_sample = _offsets(table, places, 2) - _offsets(table, places, 1)
    largest = min(budget // max(1, a_sample), budget // (sources * (2 * width + mixed)), largest_chunk, num_samples)
    parts = -(-num_samples // max(1, largest))
    chunk = -(-num_samples // parts)
    columns = (cuts["last"] - cuts["first"]) * (cuts["end"] - cuts["begin"]) + cuts["bias_end"] - cuts["bias"]
    columns = int(columns.max()) + PAD
    is_convolution = table["kind"] == CONVOLUTION
    return Assembly(
        places, cuts, pieces, flops, chunk,
        kept=_offsets(table, places, chunk),
        curve=4 * width * width,
        tangents=chunk * sources * width + PAD,
        mixed=chunk * sources * mixed,
        rows=slice_rows * columns + PAD,
        sums=int(places["height"].max()) * columns,
        patches=int((is_convolution * table["fan_in"] * table["positions"]).max()),
    )
