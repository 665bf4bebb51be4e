"""The Hessian of a chain whose segments live on the workers of a cluster."""

import numpy as np

from ..factors import segmentation
from ..hessian import Hessian
from ..runtime.validation import as_float_dtype, as_numbers, as_real, as_size
from ..system import scaling
from ..system.lanczos import norm_from_below
from . import elimination, seams, segment
from .cluster import Cluster
from .factorization import DistributedFactorization
from .parts import as_vectors
from .segment import Segment
from .vectors import Vectors, random

_LESS = "take more workers, workers with more memory, or factor_dtype='float32'"


class DistributedHessian:
    """Hessian H of a chain of layers, in segments on the workers of a cluster. Made by `distributed.hessian`.

    Attributes
    ----------
    shape : (int, int)
    dtype : numpy.dtype
        That of the blocks. Products are computed in float64 in any case.
    num_layers : int
    sizes : tuple of int
        Parameters of every segment: the chunks in which vectors are.
    workers : tuple of str
        Where the segments were made.
    """

    def __init__(self, cluster, segments, what):
        """Private: `distributed.hessian`."""
        self.cluster, self.segments = cluster, segments
        self.facts = cluster.gather(cluster.map(Segment.facts, segments), what)
        for s, (one, next_one) in enumerate(zip(self.facts[:-1], self.facts[1:])):
            if one.num_out != next_one.num_in:
                raise ValueError(
                    f"pieces: expected the first layer of piece {s + 1} to take the {one.num_out} states that piece "
                    f"{s} leaves, got a Dz for {next_one.num_in}"
                )
        self.sizes = tuple(fact.num_params for fact in self.facts)
        self.shape = 2 * (sum(self.sizes),)
        self.dtype = np.result_type(*(fact.dtype for fact in self.facts))
        self.num_layers = sum(fact.num_layers for fact in self.facts)
        self.workers = tuple(cluster.places[:-1])
        self._links = self._norm = self._logarithms = None

    def __repr__(self):
        return (
            f"<Hessian of a chain of {self.num_layers} layers, {self.shape[0]} parameters, {self.dtype}, in "
            f"{len(self.sizes)} segments on {len(set(self.workers))} workers>"
        )

    # ---- products ---------------------------------------------------------------------------------------------------

    def _seams(self, vectors):
        """Futures of what every segment has to know of its seams, for a product with `Vectors`."""
        cluster = self.cluster
        if self._links is None:
            self._links = cluster.submit(-1, _together, cluster.map(Segment.links, self.segments))
        ends = cluster.map(Segment.ends, self.segments, vectors.parts)
        found = cluster.submit(-1, seams.connect, self._links, ends)
        return [cluster.submit(-1, _item, found, s) for s in range(len(self.sizes))]

    def multiply(self, vectors, shift=0.0, b=None, squares=None):
        """`Vectors` times ``H + shift I``, or b minus that; adds squared norms of these and of those to ``squares``."""
        cluster, count = self.cluster, len(self.sizes)
        given = [None] * count if b is None else b.parts
        arguments = self.segments, vectors.parts, self._seams(vectors), [shift] * count, given
        products = cluster.map(Segment.multiply, *arguments)
        if squares is not None:
            squares += sum(cluster.gather(cluster.map(_squares, products), "a segment"))
        return Vectors(cluster, cluster.map(_rows, products), vectors.shape)

    def __matmul__(self, v):
        """H v: (P,) or (P, k), an array here, or parts by segment (a list of futures or arrays, or a dask array)."""
        vectors, form = as_vectors("v", v, self.cluster, self.sizes)
        return form.give(self.multiply(vectors))

    def norm(self):
        """Estimate of the 2-norm of H from below, by at most four products; computed once."""
        if self._norm is None:

            def multiply(v, out):
                out.parts = self.multiply(v).parts

            self._norm = float(norm_from_below(multiply, random(self.cluster, "random_signs", 0, self.sizes)))
            if not np.isfinite(self._norm):
                raise np.linalg.LinAlgError("pieces: the Hessian overflows")
        return self._norm

    def logarithms(self):
        """Futures of how far random parameters move the states of every segment; made once."""
        if self._logarithms is None:
            v = random(self.cluster, "random_entries", 3, self.sizes)
            self._logarithms = self.cluster.map(Segment.logarithms, self.segments, v.parts, self._seams(v))
        return self._logarithms

    # ---- factorizations ---------------------------------------------------------------------------------------------

    def memory(self, factor_dtype=None):
        """Bytes that a factorization keeps, and needs at its peak, on every worker; asked of the segments.

        Parameters
        ----------
        factor_dtype : float64 or float32, optional
            By default that of the Hessian.

        Returns
        -------
        kept, peak : dict of str to int
            By the address of the worker.
        """
        kept, needed = self._num_bytes(as_float_dtype("factor_dtype", factor_dtype or self.dtype))
        found = {}, {}
        for place, one, other in zip(self.workers, kept, needed):
            for total, value in zip(found, (one, other)):
                total[place] = total.get(place, 0) + value
        return found

    def _num_bytes(self, dtype):
        """(bytes that each segment keeps, bytes that it needs at its peak)."""
        asked = self.cluster.map(elimination.num_bytes, self.segments, [dtype] * len(self.sizes))
        kept, work = zip(*self.cluster.gather(asked, "a segment"))
        return kept, self.cluster.at_peak(kept, work)

    def factorize(self, damping, factor_dtype=None):
        """Factorize ``H + damping I``: all segments at the same time, then the chain of their seams.

        Parameters
        ----------
        damping : float
            Any real; negative is a shift.
        factor_dtype : float64 or float32, optional
            Precision of the factors, by default that of the Hessian. Solves are refined in float64 all the same.

        Returns
        -------
        DistributedFactorization

        Raises
        ------
        MemoryError
            The factors would not fit on a worker, which is named; nothing has been allocated.
        numpy.linalg.LinAlgError
            The matrix is singular, or numbers are not finite; or the states are of scales that are too different.
        RuntimeError
            Something was lost with a worker and cannot be made again.
        """
        return self.factorize_many([damping], factor_dtype)[0]

    def factorize_many(self, dampings, factor_dtype=None):
        """A `DistributedFactorization` for each of several dampings: all at work at the same time; as `factorize`."""
        dampings = [as_real("damping", damping) for damping in dampings]
        dtype = as_float_dtype("factor_dtype", self.dtype if factor_dtype is None else factor_dtype)
        kept, needed = self._num_bytes(dtype)
        count = len(dampings)
        needed = [need + (count - 1) * keep for need, keep in zip(needed, kept)]
        what = "a factorization" if count == 1 else f"{count} factorizations"
        self.cluster.require(needed, f"{what} of {self.num_layers} layers", _LESS)
        tasks = []
        for damping in dampings:
            exponent = scaling.matrix_exponent(self.norm() + abs(damping), dtype)
            tasks.append(elimination.Task(damping, dtype, self.norm(), exponent))
        return [DistributedFactorization(self, task) for task in tasks]

    def count_below(self, t):
        """How many eigenvalues of H are below t, for certain; ``LinAlgError`` where one is too close to say."""
        inertia = self.factorize(-as_real("t", t)).inertia
        if not inertia.exact:
            raise np.linalg.LinAlgError(
                f"t: the eigenvalues below t={t:g} cannot be counted for certain; expected a t further from an "
                "eigenvalue of H"
            )
        return inertia.negative


def hessian(pieces, client, terminal=None, num_segments=None, shapes=None):
    """The Hessian of a chain in segments on the workers of a cluster.

    Parameters
    ----------
    pieces : Hessian, or sequence
        A Hessian that is at hand, which is cut; or a piece for every segment, first layers first: a function without
        arguments, a tuple of a function and its arguments, a future or a dask Delayed. It gives what
        `Hessian.from_blocks` takes, a sequence of `LayerBlocks` or a dictionary of the arrays Dx, Dz, Dxx, Dzx and Dzz.
        Functions run on the workers, and again where a worker is lost, so that they must give the same every time.
    client : distributed.Client
    terminal : (a_L, a_L) symmetric array, optional
        Curvature of the loss in the last state, where there are pieces; 0 by default.
    num_segments : int, optional
        Into how many segments a Hessian is cut, by default as many as all workers have threads.
    shapes : sequence of (layers, states, parameters), optional
        Of each piece, of which every layer has so many states and parameters. Then the memory for its blocks, as they
        are given and as they are kept, is asked for before anything is made.

    Returns
    -------
    DistributedHessian

    Raises
    ------
    TypeError, ValueError
        As for `Hessian.from_blocks`, with the number of the piece; or the Hessian has no chain that can be cut.
    MemoryError
        The blocks of a Hessian, or of pieces with ``shapes``, would not fit on a worker, which is named. Nothing has
        been allocated.
    RuntimeError
        A piece was lost with its worker and cannot be made again.

    Notes
    -----
    The mathematics is in docs/theory.md, section 10. Between workers move the ends of segments alone, whatever the
    widths inside: with N states that come in and c that go out, 8 (N^2 + c N + c^2) bytes for the curvatures of a
    segment, 8 (N^2 + c N) once for products with H, and 16 (N + c) bytes for each vector of a solve or product.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_hinv as nh
    >>> def piece(num_layers):
    ...     one, zero = np.ones((num_layers, 1, 1)), np.zeros((num_layers, 1, 1))
    ...     return {"Dx": one, "Dz": 0.5 * one, "Dxx": one, "Dzx": zero, "Dzz": one}
    >>> from distributed import Client  # doctest: +SKIP
    >>> with Client(n_workers=2) as client:  # doctest: +SKIP
    ...     H = nh.distributed.hessian([(piece, 500), (piece, 500)], client)
    ...     print(H.factorize(0.1).inertia.positive)
    1000
    """
    if isinstance(pieces, Hessian):
        if terminal is not None:
            raise ValueError("terminal: expected None beside a Hessian, which has its own, got an array")
        return _of_hessian(pieces, client, num_segments)
    pieces = _as_pieces(pieces)
    if num_segments is not None and as_size("num_segments", num_segments) != len(pieces):
        raise ValueError(f"num_segments: expected {len(pieces)}, a segment for every piece, got {num_segments}")
    if terminal is not None:
        terminal = as_numbers("terminal", terminal)
    cluster, last = Cluster(client, len(pieces)), len(pieces) - 1
    if shapes is not None:
        kept, given = zip(*(segment.bytes_of_blocks(*shape) for shape in _as_shapes(shapes, len(pieces))))
        num_layers = sum(int(shape[0]) for shape in shapes)
        needed = cluster.at_peak(kept, given)
        cluster.require(needed, f"the derivative blocks of {num_layers} layers", "take more workers, or smaller pieces")
    segments = [
        cluster.submit(s, _build, s, piece, arguments, terminal if s == last else None, s > 0, s < last)
        for s, (piece, arguments) in enumerate(pieces)
    ]
    return DistributedHessian(cluster, segments, "a piece")


def factorize(pieces, damping, client, terminal=None, num_segments=None, shapes=None, factor_dtype=None):
    """`hessian` and `DistributedHessian.factorize` in one call.

    Parameters
    ----------
    pieces, client, terminal, num_segments, shapes
        As for `hessian`.
    damping : float, or sequence of float
        A sequence gives a list of factorizations, which share the segments.
    factor_dtype : float64 or float32, optional

    Returns
    -------
    DistributedFactorization, or list of them
    """
    H = hessian(pieces, client, terminal, num_segments, shapes)
    if isinstance(damping, (list, tuple, np.ndarray)):
        return H.factorize_many(damping, factor_dtype)
    return H.factorize(damping, factor_dtype)


def _of_hessian(given, client, num_segments):
    system = given.system
    if not system.has_layers or given.device != "cpu":
        raise ValueError(
            "pieces: expected a Hessian of samples in one batch, on the CPU, whose layers can be eliminated, got "
            f"{given!r}"
        )
    cluster = Cluster(client)
    count = cluster.count if num_segments is None else as_size("num_segments", num_segments)
    bounds = segmentation.balanced(system.table, system.num_samples, system.on.segments, min(count, system.num_layers))
    cluster = Cluster(client, len(bounds) - 1)
    parts = list(segment.of_system(system, given.dtype, bounds))
    needed = [sum(array.nbytes for array in (part[1], *part[2])) for part in parts]
    cluster.require(needed, f"the derivative blocks of {given.num_layers} layers", "take more workers")
    segments = [cluster.submit(s, Segment.of_chain, *part) for s, part in enumerate(parts)]
    return DistributedHessian(cluster, segments, "a segment")


def _as_pieces(pieces):
    if callable(pieces) or not hasattr(pieces, "__iter__"):
        raise TypeError(f"pieces: expected a Hessian or a sequence of pieces, got {type(pieces).__name__}")
    found = []
    for s, piece in enumerate(pieces):
        function, *arguments = piece if isinstance(piece, tuple) else (piece,)
        is_task = hasattr(function, "key") or hasattr(function, "dask")
        if not (callable(function) or is_task) or (is_task and arguments):
            raise TypeError(
                f"pieces: expected a function, a tuple of a function and its arguments, a future or a Delayed for "
                f"piece {s}, got {type(function).__name__}"
            )
        found.append((function, arguments))
    if not found:
        raise ValueError("pieces: expected at least one, got none")
    return found


def _as_shapes(shapes, count):
    shapes = [tuple(as_size("shapes", size) for size in shape) for shape in shapes]
    if len(shapes) != count or any(len(shape) != 3 for shape in shapes):
        raise ValueError(f"shapes: expected (layers, states, parameters) of each of {count} pieces, got {shapes}")
    return shapes


def _build(s, piece, arguments, terminal, has_entry, has_exit):
    """The `Segment` of piece s."""
    given = piece(*arguments) if callable(piece) else piece
    try:
        return Segment.of_blocks(given, terminal, has_entry, has_exit)
    except (TypeError, ValueError) as error:
        raise type(error)(f"pieces: piece {s}: {error}") from None


def _together(links):
    return links


def _item(found, s):
    return found[s]


def _squares(product):
    return product.squares


def _rows(product):
    return product.rows
