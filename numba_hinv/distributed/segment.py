"""What a worker has of a chain: a run of its layers, with the states that come in and go out.

The sweeps read a layer table in which the first layer takes no states, and in which the last one meets the loss. So the
layers of a segment stand between two others without unknowns: an *entry*, which leaves the states that come in, and an
*exit*, which takes those that go out. The first segment has no entry, and the last one no exit.

Between its ends the tangents and adjoints of a segment are linear: with the states z that come in, and the adjoints q
of those that go out, a product with H gives

    z_out = J z + e,    q_in = J^T q + C z + f,

e and f being what its own parameters do. `Links` are J and C, `Ends` e and f, of which all segments together make the z
and q of every seam (`seams`), so that all products run at the same time. Where J and C, which take as many sweeps as
there are states, would take longer than they gain, products run through the segments one after the other.
"""

from typing import NamedTuple

import numpy as np

from ..kernels.dense.lanes import num_lanes
from ..kernels.steps.layer_table import BLOCKS, CONVOLUTION, DENSE, ONE_POSITION, PLAIN_LAYER, Chain
from ..kernels.sweeps.linearise import Linearisation
from ..layers import blocks as layer_blocks
from ..layers.layout import Layout
from ..system.scaling import lengths
from ..system.system import System

_DOUBLE = np.dtype(np.float64)
_TINY = float(np.finfo(np.float64).tiny)
# States whose tangents are taken through a segment at the same time, for J and C.
_TOGETHER = 64


class Links(NamedTuple):
    """How the ends of a segment hang together where its parameters stand still."""

    J: np.ndarray  # (c, N)
    C: np.ndarray  # (N, N)


class Ends(NamedTuple):
    """What the parameters of a segment do at its ends, for k vectors."""

    states: np.ndarray  # (k, c): e
    adjoints: np.ndarray  # (k, N): f


class Product(NamedTuple):
    """A segment's part of a product with H, or of a residual."""

    rows: np.ndarray  # (k, P)
    squares: np.ndarray  # (k, 2): squared norms of these and of the given rows


class Facts(NamedTuple):
    """What the rest must know of a segment."""

    num_layers: int
    num_params: int
    num_in: int  # states that come in, 0 for the first segment
    num_out: int  # that go out, 0 for the last one
    num_bytes: int
    dtype: np.dtype
    num_samples: int


class Segment:
    """Layers of a chain, with their derivative blocks.

    Parameters
    ----------
    system : System
        Of the layers with entry and exit.
    has_entry, has_exit : bool
    dtype : numpy.dtype
        That of the blocks, as they were given.
    """

    def __init__(self, system, has_entry, has_exit, dtype):
        self.system, self.dtype = system, np.dtype(dtype)
        self.start, self.stop = int(has_entry), system.table.size - int(has_exit)
        table, B = system.table, system.num_samples
        self.num_in = int(table["N"][self.start]) if has_entry else 0
        self.num_out = B * int(table["n_out"][self.stop - 1]) if has_exit else 0
        # Where the states after the last layer lie among all.
        self.end = int(table["z"][self.stop - 1]) + B * int(table["n_in"][self.stop - 1])
        # Made now, so that no task after this one has to: tasks change nothing that they are given.
        system.row_space(_DOUBLE)

    @classmethod
    def of_blocks(cls, given, terminal, has_entry, has_exit):
        """That of `LayerBlocks`, or of arrays in a dictionary, as `Hessian.from_blocks` takes them."""
        if isinstance(given, dict):
            names = set(layer_blocks.LayerBlocks.__slots__)
            if set(given) != names:
                raise ValueError(f"pieces: expected the arrays {', '.join(sorted(names))}; got {', '.join(given)}")
            layout, lin, dtype = layer_blocks.pack(None, terminal, given)
        else:
            layout, lin, dtype = layer_blocks.pack(given, terminal)
        chain, weights = layout.chain, np.zeros(layout.sizes.parameters)
        # Layers are counted from the first one of the piece.
        return cls.of_chain(chain, weights, lin, dtype, has_entry, has_exit, first=-int(has_entry))

    @classmethod
    def of_chain(cls, chain, weights, lin, dtype, has_entry, has_exit, l2=0.0, ridge=None, first=0):
        """That of a chain without entry and exit."""
        B = lin.output.shape[0]
        if has_entry:
            chain = _with_layer(chain, 0, kind=BLOCKS, n_out=int(chain.n_in[0]))
        if has_exit:
            # A frozen dense layer of one unit, without second derivatives that would take room.
            width = int(chain.n_out[-1])
            chain = _with_layer(chain, chain.n_in.size, kind=DENSE, n_in=width, n_out=1, held=width)
            weights = np.append(weights, np.zeros(width))
            lin = lin._replace(
                Z=np.append(lin.Z, np.zeros(B * width)),
                **{name: np.append(getattr(lin, name), np.zeros(B)) for name in ("S", "D", "lam")},
                output=np.zeros((B, 1)),
                curvature=np.zeros((B, 1, 1)),
            )
        # A norm that nobody asks for: that of all segments is given to those who need it.
        system = System(chain, weights, lin, l2, layout=_layout(chain, B), norm=1.0, first=first, ridge=ridge)
        return cls(system, has_entry, has_exit, dtype)

    def __sizeof__(self):
        return self.num_bytes

    @property
    def num_bytes(self):
        """Bytes of blocks, row spaces and the layer table."""
        system = self.system
        space = system.row_space(_DOUBLE)
        arrays = (system.weights, *system.lin, *space, system.table, *system.chain)
        return sum(array.nbytes for array in arrays)

    def facts(self):
        system = self.system
        return Facts(
            self.stop - self.start,
            system.num_params,
            self.num_in,
            self.num_out,
            self.num_bytes,
            self.dtype,
            system.num_samples,
        )

    # ---- products ---------------------------------------------------------------------------------------------------

    def _forth(self, rows, states, table=None):
        """Scratch with the tangents of all states, ``states`` (k, N) being those that come in."""
        system = self.system
        scratch = system.on.products.workspace(system.sizes, rows.shape[0], system.num_samples, _DOUBLE)
        if self.num_in:
            scratch[0][: states.size] = states.ravel()
        table = system.table if table is None else table
        system.on.products.tangents(table, self.start, self.stop, system.weights, system.lin, rows, scratch)
        return scratch

    def _back(self, rows, adjoints, product, scratch, shift=0.0, b=None, squares=None, table=None):
        """Adjoints (k, N) of the states that come in, ``adjoints`` (k, c) being those of the states that go out."""
        system, k = self.system, rows.shape[0]
        q = scratch[2]
        if self.num_out:
            q[self.stop % 2, : adjoints.size] = adjoints.ravel()
        table = system.table if table is None else table
        system.on.products.adjoints(
            table, self.start, self.stop, system.weights, system.lin, rows, product, scratch, shift, b, squares
        )
        return q[self.start % 2, : k * self.num_in].reshape(k, self.num_in).copy()

    def _out(self, scratch, k):
        """Tangents (k, c) of the states that go out."""
        at = num_lanes(k, scratch[0].dtype) * self.end
        return scratch[0][at : at + k * self.num_out].reshape(k, self.num_out).copy()

    def links(self):
        """`Links`: the sweeps of a product, over layers whose parameters are none."""
        table = self.system.table.copy()
        table["p"] = table["parameters"] = 0
        J, C = np.empty((self.num_in, self.num_out)), np.empty((self.num_in, self.num_in))
        for first in range(0, self.num_in, _TOGETHER):
            states = np.eye(self.num_in)[first : first + _TOGETHER]
            here, rows = slice(first, first + states.shape[0]), np.empty((states.shape[0], 0))
            scratch = self._forth(rows, states, table)
            J[here] = self._out(scratch, states.shape[0])
            none = np.zeros((states.shape[0], self.num_out))
            C[here] = self._back(rows, none, np.empty_like(rows), scratch, table=table)
        return Links(np.ascontiguousarray(J.T), 0.5 * (C + C.T))

    def ends(self, rows):
        """`Ends` of k vectors, rows (k, P)."""
        k = rows.shape[0]
        scratch = self._forth(rows, np.zeros((k, self.num_in)))
        out = self._out(scratch, k)
        return Ends(out, self._back(rows, np.zeros((k, self.num_out)), np.empty_like(rows), scratch))

    def states_out(self, rows, states):
        """Tangents (k, c) of the states that go out, ``states`` (k, N) being those that come in."""
        return self._out(self._forth(rows, states), rows.shape[0])

    def adjoints_in(self, rows, states, adjoints):
        """Adjoints (k, N) of the states that come in, ``adjoints`` (k, c) being those of the states that go out."""
        return self._back(rows, adjoints, np.empty_like(rows), self._forth(rows, states))

    def multiply(self, rows, seams, shift=0.0, b=None):
        """`Product` of rows with ``H + shift I`` at this segment's parameters; of b minus that, where b is given.

        seams : (states that come in (k, N), adjoints of those that go out (k, c))
        """
        states, adjoints = seams
        system, product, squares = self.system, np.empty_like(rows), np.zeros((rows.shape[0], 2))
        scratch = self._forth(rows, states)
        self._back(rows, adjoints, product, scratch, shift + system.l2, b)
        if system.ridge is not None:
            product += (-1.0 if b is not None else 1.0) * rows * system.ridge
        with np.errstate(over="ignore"):
            squares[:, 0], squares[:, 1] = lengths(product) ** 2, lengths(rows) ** 2
        return Product(product, squares)

    def logarithms(self, rows, seams):
        """Logarithms to base 2 of how far one vector moves each state, from those that come in to those that go out."""
        scratch, (table, B) = self._forth(rows, seams[0]), (self.system.table, self.system.num_samples)
        starts = table["z"][self.start : self.stop]
        last = self.end + B * int(table["n_out"][self.stop - 1])
        if not self.num_in:
            # Nothing moves what comes into the net: it goes with the next states.
            starts = starts[1:]
        starts = np.append(starts, self.end)
        sizes = np.maximum.reduceat(np.abs(scratch[0][starts[0] : last]), starts - starts[0])
        logs = np.log2(np.maximum(sizes, _TINY))
        return logs if self.num_in else np.append(logs[0], logs)


def bytes_of_blocks(num_layers, states, params):
    """(bytes of a segment of so many equal layers given as blocks, bytes of the arrays that it is made of)."""
    a, p = states, params
    given = 8 * num_layers * (2 * a * p + 2 * a * a + p * p)
    by_layer = PLAIN_LAYER.itemsize + 8 * (len(Chain._fields) + a + p)
    return given + by_layer * num_layers, given


def _layout(chain, num_samples):
    return Layout(chain, num_samples)


def _with_layer(chain, at, **given):
    """A chain with one layer more, without parameters; ``given`` are those of its fields that are not 0."""
    fields = dict.fromkeys(Chain._fields, 0)
    fields.update(zip(Chain._fields[-len(ONE_POSITION) :], ONE_POSITION), **given)
    return Chain(*(np.insert(getattr(chain, name), at, value) for name, value in fields.items()))


def of_system(system, dtype, bounds):
    """Arguments of `Segment.of_chain` for every segment of a whole chain, between the given bounds."""
    if (system.table["kind"] == CONVOLUTION).any():
        raise ValueError("H: expected a chain without convolutions, which are not cut, got one with some")
    weights, lin = system.on_host()
    table, sizes, last = system.table, system.sizes, len(bounds) - 2
    held = np.append(0, np.cumsum(system.chain.held))
    P = system.num_params
    where = dict(Z="z", S="u", D="u", lam="u", **{name: name for name in ("Dx", "Dz", "Dxx", "Dzx", "Dzz")})
    ends = {name: np.append(table[of], getattr(sizes, of)) for name, of in where.items()}
    parameters = np.append(table["parameters"], P)
    for s, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:])):
        own = slice(int(parameters[start]), int(parameters[stop]))
        parts = {name: getattr(lin, name)[int(end[start]) : int(end[stop])] for name, end in ends.items()}
        part = lin._replace(**parts) if s == last else Linearisation(**{**lin._asdict(), **parts, **_nothing(lin)})
        yield (
            Chain(*(field[start:stop].copy() for field in system.chain)),
            np.concatenate([weights[own], weights[P + held[start] : P + held[stop]]]),
            part,
            dtype,
            s > 0,
            s < last,
            system.l2,
            None if system.ridge is None else system.ridge[own],
            system.first + start - (s > 0),
        )


def _nothing(lin):
    """Output and curvature of a segment that does not meet the loss."""
    B = lin.output.shape[0]
    return {"output": np.zeros((B, 1)), "curvature": np.zeros((B, 1, 1))}
