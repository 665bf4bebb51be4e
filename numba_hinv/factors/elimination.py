"""One elimination: what is eliminated, with which damping and pivoting, and the runs of layers of a compiled call."""

from typing import NamedTuple

import numpy as np

from ..kernels.plumbing import status
from ..kernels.steps.layer_table import BLOCKS
from ..kernels.sweeps.eliminate import Pivoting, scale_pivoting
from ..runtime.chunks import chunks
from ..system.shifted import Shifted
from .pivots import PERTURBATION, relative_pivoting

_DOUBLE = np.dtype(np.float64)
_AS_THEY_ARE = Pivoting(0.0, 0.0, np.inf, 0.0)


def no_tick(num_layers):
    """Nobody waits for progress."""


class Elimination(NamedTuple):
    """What there is to do for one matrix."""

    matrix: Shifted
    shift: float  # the damping that is eliminated with: that of the matrix, but for 0 and for rescues
    pivoting: Pivoting

    @classmethod
    def of(cls, matrix, shift=None, growth=None, is_static=True):
        """That of a matrix, by default as `choose_shift` and `relative_pivoting` say.

        ``growth`` is another limit on what a pivot may take from the next front, in units of ||H||. If not
        ``is_static``, all pivots are taken as they are, but for 0, which is an error.
        """
        shift = choose_shift(matrix) if shift is None else shift
        relative = relative_pivoting(matrix.dtype) if is_static else _AS_THEY_ARE
        if growth is not None:
            relative = relative._replace(limit=growth)
        # Of the dampings that pivots may be as small as, the smallest.
        smallest = matrix.smallest_damping(shift)
        smallest = smallest if smallest < np.inf else shift
        return cls(matrix, shift, scale_pivoting(relative, matrix.hessian_norm, smallest))

    @property
    def is_static(self):
        return self.pivoting.perturbation > 0.0

    def pivoting_at(self, level):
        """The `Pivoting` of layers of this level (`Scaling`)."""
        if level == 0:
            return self.pivoting
        with np.errstate(over="ignore"):
            return self.pivoting._replace(limit=float(np.ldexp(self.pivoting.limit, -2 * level)))

    def runs(self, start, stop, load=1.0):
        """``(first, last, level)`` of runs of layers start..stop-1 for one compiled call, last ones first.

        load : what the layers cost, in terms of what they would cost by themselves.
        """
        levels = dict(self.matrix.scale.levels)
        starts = [first - start for first in levels if start < first < stop]
        layout = self.matrix.system.layout
        if starts or load != 1.0:
            found = chunks(load * layout.kept(_flops)[start:stop], starts)
        else:
            found = layout.kept(_chunks, start, stop)
        for first, last in reversed(found):
            yield start + first, start + last, levels[max(at for at in levels if at <= start + first)]

    def not_finite(self, layer):
        """The ``LinAlgError`` for numbers that are not finite at a layer."""
        layer += self.matrix.system.first
        return np.linalg.LinAlgError(
            f"damping: the elimination of layer {layer} met numbers that are not finite with damping="
            f"{self.matrix.damping:g} in {self.matrix.dtype}; expected a damping of larger magnitude"
        )

    def eliminate(self, stretch, factors, work, tick=no_tick):
        """Eliminate a stretch's layers, the front that comes into it being in ``work``; may raise ``LinAlgError``."""
        system = self.matrix.system
        params, lin, space = self.matrix.blocks()
        start, table = stretch.start, stretch.table(self.matrix.table)
        for first, last, level in self.runs(start, stretch.stop):
            code, layer = system.on.elimination.eliminate(
                table,
                first - start,
                last - start,
                params,
                lin,
                space,
                self.shift,
                self.pivoting_at(level),
                factors,
                work,
            )
            if code != status.OK:
                raise self.not_finite(start + layer)
            tick(last - first)


def _flops(layout):
    """Of the elimination of every layer, (L,)."""
    table = layout.table
    m, N, n_out = (table[name].astype(float) for name in ("m", "N", "n_out"))
    a, taps = np.where(table["kind"] == BLOCKS, layout.num_samples * n_out, 0.0), table["taps"]
    front = np.where(taps > 0, a * m * (2 * a + m + N) + 2 * taps * a * (a + N), a * (m + N) * (2 * a + m + N))
    return m**3 / 3 + m * m * N + m * N * N + front


def _chunks(layout, start, stop):
    """Runs of layers start..stop-1 for one compiled call, counted from ``start``."""
    return chunks(layout.kept(_flops)[start:stop])


def choose_shift(matrix):
    """The damping that a matrix is eliminated with: a tiny one for 0 where the elimination divides by it."""
    table = matrix.system.table
    if matrix.eps != 0.0 and matrix.system.ridge is None:
        return matrix.eps
    outside = (table["r"] < table["d"]) & (matrix.dampings(matrix.eps) == 0.0)
    if not outside.any():
        return matrix.eps
    # Parameters that no sample sees meet the rest only through lam and the states that come in.
    alone = outside & (table["units"] > table["rows"])
    alone[0] = outside[0]
    if alone.any():
        index = np.flatnonzero(alone)[0]
        layer = table[index]
        raise np.linalg.LinAlgError(
            f"damping: H is singular, and damping is 0: layer {index + matrix.system.first} has {layer['d']} "
            f"weights per output and {layer['rows']} samples of its input, so that part of its parameters does not act "
            "on the loss; expected a nonzero damping"
        )
    return PERTURBATION[_DOUBLE] * matrix.hessian_norm


def pieces(system, stretch, num_vectors, back):
    """Runs of a stretch's layers for one compiled call of a solve, in the order of the sweep."""
    found = system.layout.kept(_pieces, stretch.start, stretch.stop, num_vectors)
    return found[::-1] if back else found


def _pieces(layout, start, stop, num_vectors):
    layers, B = layout.table[start:stop], layout.num_samples
    m, N, n_in, n_out, fan_in, p = (layers[name].astype(float) for name in ("m", "N", "n_in", "n_out", "fan_in", "p"))
    through = np.where(layers["kind"] == BLOCKS, 2 * n_out * (n_in + p), 2 * n_out * fan_in)
    flops = num_vectors * (m * m + 2 * m * N + B * through + 16 * p) + m * m + 2 * m * N
    return chunks(flops)
