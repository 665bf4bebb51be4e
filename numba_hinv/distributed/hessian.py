"""The Hessian of a chain whose segments live on the workers of a cluster."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..factors import segmentation
from ..hessian import Hessian
from ..runtime.annotations import FloatType
from ..runtime.validation import as_float_dtype, as_numbers, as_real, as_size
from ..system import scaling
from ..system.lanczos import norm_from_below
from . import elimination, seams, segment
from .cluster import Cluster
from .factorization import DistributedFactorization
from .parts import as_vectors
from .segment import Segment
from .vectors import Vectors, random

# So many products a factorization and its solves are taken to need, when it is asked whether they run at the same time.
_PRODUCTS = 10
_LESS = "take more workers, workers with more memory, or factor_dtype='float32'"


class DistributedHessian:
    """The Hessian H of a chain of layers, in segments on the workers of a cluster.

    `distributed.hessian` makes it. ``H @ v`` multiplies it with an array, or with parts by segment (a list of futures
    or arrays, or a dask array).

    Attributes
    ----------
    shape : (int, int)
        (P, P), where P is the number of parameters.
    dtype : numpy.dtype
        The dtype of the blocks. Products are computed in float64 in any case.
    num_layers : int
        The number of layers.
    sizes : tuple of int
        The number of parameters of each segment. Vectors are split into chunks of these sizes.
    workers : tuple of str
        The addresses of the workers where the segments were made.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_hinv as nh
    >>> one, zero = np.ones((1000, 1, 1)), np.zeros((1000, 1, 1))
    >>> chain = nh.Hessian.from_blocks(Dx=one, Dz=0.5 * one, Dxx=one, Dzx=zero, Dzz=one)
    >>> from distributed import Client  # doctest: +SKIP
    >>> with Client(n_workers=2) as client:  # doctest: +SKIP
    ...     H = nh.distributed.hessian(chain, client)
    ...     print(H.count_below(0.0))
    0
    """

    cluster: Any
    segments: Any
    facts: Any
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    num_layers: int
    workers: tuple[str, ...]

    def __init__(self, cluster: Any, segments: Any, what: str) -> None:
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
        self._links: Any = None
        self._norm: Any = None
        self._logarithms: Any = None

    def __repr__(self) -> str:
        return (
            f"<Hessian of a chain of {self.num_layers} layers, {self.shape[0]} parameters, {self.dtype}, in "
            f"{len(self.sizes)} segments on {len(set(self.workers))} workers>"
        )

    # ---- products ---------------------------------------------------------------------------------------------------

    def _seams(self, vectors):
        """Futures of what every segment has to know of its seams, for a product with `Vectors`."""
        cluster, segments = self.cluster, self.segments
        if max(fact.num_in for fact in self.facts) > _PRODUCTS * len(segments):
            return self._seams_in_turn(vectors)
        if self._links is None:
            self._links = cluster.submit(-1, _together, cluster.map(Segment.links, segments))
        ends = cluster.map(Segment.ends, segments, vectors.parts)
        found = cluster.submit(-1, seams.connect, self._links, ends)
        return [cluster.submit(-1, _item, found, s) for s in range(len(segments))]

    def _seams_in_turn(self, vectors):
        """The same, one segment after the other: forth for the states, back for the adjoints."""
        cluster, last, none = self.cluster, len(self.segments) - 1, np.zeros((vectors.shape[0], 0))
        pairs = list(zip(self.segments, vectors.parts))
        states, adjoints = [none], [none]
        for s, (segment_s, rows) in enumerate(pairs[:-1]):
            states.append(cluster.submit(s, Segment.states_out, segment_s, rows, states[-1]))
        for s in range(last, 0, -1):
            adjoints.append(cluster.submit(s, Segment.adjoints_in, *pairs[s], states[s], adjoints[-1]))
        return list(zip(states, adjoints[::-1]))

    def multiply(self, vectors: Any, shift: float = 0.0, b: Any = None, squares: Any = None) -> Any:
        """Multiply vectors that are on the workers already with ``H + shift I``, for use inside the library.

        Parameters
        ----------
        vectors : Vectors
            The vectors.
        shift : float
            The number added to the diagonal.
        b : Vectors, optional
            If given, the product is subtracted from these.
        squares : array, optional
            An array to which the squared norms of the results and of ``b`` are added.

        Returns
        -------
        products : Vectors
            The products, or ``b`` minus these.
        """
        cluster, count = self.cluster, len(self.sizes)
        given = [None] * count if b is None else b.parts
        arguments = self.segments, vectors.parts, self._seams(vectors), [shift] * count, given
        products = cluster.map(Segment.multiply, *arguments)
        if squares is not None:
            squares += sum(cluster.gather(cluster.map(_squares, products), "a segment"))
        return Vectors(cluster, cluster.map(_rows, products), vectors.shape)

    def __matmul__(self, v: Any) -> Any:
        """H v: (P,) or (P, k), an array here, or parts by segment (a list of futures or arrays, or a dask array)."""
        vectors, form = as_vectors("v", v, self.cluster, self.sizes)
        return form.give(self.multiply(vectors))

    def norm(self) -> float:
        """Estimate the 2-norm of H from below by at most four products, which are done once.

        Returns
        -------
        norm : float
            The estimate.
        """
        if self._norm is None:

            def multiply(v, out):
                out.parts = self.multiply(v).parts

            self._norm = float(norm_from_below(multiply, random(self.cluster, "random_signs", 0, self.sizes)))
            if not np.isfinite(self._norm):
                raise np.linalg.LinAlgError("pieces: the Hessian overflows")
        return self._norm

    def logarithms(self) -> Any:
        """Measure how far random parameters move the states of every segment, once, for use inside the library.

        Returns
        -------
        logarithms : list of futures
            The logarithms to base 2 for each segment.
        """
        if self._logarithms is None:
            v = random(self.cluster, "random_entries", 3, self.sizes)
            self._logarithms = self.cluster.map(Segment.logarithms, self.segments, v.parts, self._seams(v))
        return self._logarithms

    # ---- factorizations ---------------------------------------------------------------------------------------------

    def memory(self, factor_dtype: FloatType | None = None) -> tuple[dict[str, int], dict[str, int]]:
        """Compute how many bytes a factorization keeps, and needs at its peak, on every worker.

        Parameters
        ----------
        factor_dtype : float64 or float32, optional
            The precision of the factors, by default that of the Hessian.

        Returns
        -------
        kept, peak : dict of str to int
            The numbers of bytes, by the address of the worker.
        """
        kept, needed = self._num_bytes(as_float_dtype("factor_dtype", factor_dtype or self.dtype))
        found: tuple[dict[str, int], dict[str, int]] = {}, {}
        for place, one, other in zip(self.workers, kept, needed):
            for total, value in zip(found, (one, other)):
                total[place] = total.get(place, 0) + value
        return found

    def _num_bytes(self, dtype):
        """(bytes that each segment keeps, bytes that it needs at its peak)."""
        asked = self.cluster.map(elimination.num_bytes, self.segments, [dtype] * len(self.sizes))
        kept, work = zip(*self.cluster.gather(asked, "a segment"))
        return kept, self.cluster.at_peak(kept, work)

    def factorize(self, damping: float, factor_dtype: FloatType | None = None) -> DistributedFactorization:
        """Factorize ``H + damping I``: all segments at the same time, then the chain of their seams.

        Parameters
        ----------
        damping : float
            Any real number; a negative one is a shift.
        factor_dtype : float64 or float32, optional
            Precision of the factors, by default that of the Hessian. Solves are refined in float64 all the same.

        Returns
        -------
        DistributedFactorization
            The inverse of ``H + damping I``.

        Raises
        ------
        MemoryError
            The factors would not fit on a worker, which the message names; nothing has been allocated.
        numpy.linalg.LinAlgError
            The matrix is singular, some numbers are not finite, or the scales of the states are too different.
        RuntimeError
            Something was lost with a worker and cannot be made again.
        """
        return self.factorize_many([damping], factor_dtype)[0]

    def factorize_many(
        self, dampings: Iterable[float], factor_dtype: FloatType | None = None
    ) -> list[DistributedFactorization]:
        """Factorize ``H + damping I`` for several dampings, all at the same time.

        Parameters
        ----------
        dampings : sequence of float
            The dampings.
        factor_dtype : float64 or float32, optional
            As for `factorize`, whose errors it raises as well.

        Returns
        -------
        list of DistributedFactorization
            One for each damping, in their order.
        """
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

    def count_below(self, t: float) -> int:
        """Count exactly how many eigenvalues of H are below ``t``.

        Parameters
        ----------
        t : float
            The number below which eigenvalues are counted.

        Returns
        -------
        count : int
            The number of eigenvalues below ``t``.

        Raises
        ------
        numpy.linalg.LinAlgError
            An eigenvalue is too close to ``t`` to say on which side it lies.
        """
        inertia = self.factorize(-as_real("t", t)).inertia
        if not inertia.exact:
            raise np.linalg.LinAlgError(
                f"t: the eigenvalues below t={t:g} cannot be counted for certain; expected a t further from an "
                "eigenvalue of H"
            )
        return inertia.negative


def hessian(
    pieces: Any, client: Any, terminal: ArrayLike | None = None, num_segments: int | None = None, shapes: Any = None
) -> DistributedHessian:
    """Make the Hessian of a chain in segments on the workers of a cluster.

    Parameters
    ----------
    pieces : Hessian, or sequence
        Either a Hessian, which is cut into segments, or one piece for each segment, first layers first. A piece is a
        function without arguments, a tuple of a function and its arguments, a future or a dask Delayed. Its result is
        what `Hessian.from_blocks` takes: a sequence of `LayerBlocks`, or a dictionary of the arrays Dx, Dz, Dxx, Dzx
        and Dzz. Functions run on the workers, and run again if a worker is lost, so that they must return the same
        every time.
    client : distributed.Client
        The client of the cluster.
    terminal : (a_L, a_L) symmetric array, optional
        If pieces are given, the curvature of the loss with respect to the last state; 0 by default.
    num_segments : int, optional
        Into how many segments to cut a Hessian, by default as many as all workers together have threads.
    shapes : sequence of (layers, states, parameters), optional
        For each piece, its number of layers and how many states and parameters each of these has. With it, the memory
        for the blocks, as they are made and as they are kept, is checked before anything is made.

    Returns
    -------
    DistributedHessian
        The Hessian.

    Raises
    ------
    TypeError, ValueError
        As for `Hessian.from_blocks`, where the message gives the number of the piece; or the Hessian has no chain that
        can be cut.
    MemoryError
        The blocks of a Hessian, or of pieces with ``shapes``, would not fit on a worker, which the message names.
        Nothing has been allocated.
    RuntimeError
        A piece was lost with its worker and cannot be made again.

    Notes
    -----
    The mathematics is in docs/theory.md, section 10. Only what belongs to the ends of segments is sent between workers,
    whatever the widths inside. For a segment with N incoming and c outgoing states, that is 8 (N^2 + c N + c^2) bytes
    for its curvatures, 8 (N^2 + c N) bytes once for products with H, and 16 (N + c) bytes for each vector of a solve or
    product.

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


def factorize(
    pieces: Any,
    damping: Any,
    client: Any,
    terminal: ArrayLike | None = None,
    num_segments: int | None = None,
    shapes: Any = None,
    factor_dtype: FloatType | None = None,
) -> Any:
    """Make a Hessian and factorize it in one call: `hessian`, then `DistributedHessian.factorize`.

    Parameters
    ----------
    pieces : Hessian, or sequence
        As for `hessian`.
    damping : float, or sequence of float
        The damping. With a sequence, the result is a list of factorizations, which share the segments.
    client, terminal, num_segments, shapes : as for `hessian`
        The cluster, and further descriptions of the chain.
    factor_dtype : float64 or float32, optional
        The precision of the factors, by default that of the Hessian.

    Returns
    -------
    DistributedFactorization, or list of DistributedFactorization
        The inverse of ``H + damping I``, or one for each damping.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_hinv as nh
    >>> one, zero = np.ones((1000, 1, 1)), np.zeros((1000, 1, 1))
    >>> chain = nh.Hessian.from_blocks(Dx=one, Dz=0.5 * one, Dxx=one, Dzx=zero, Dzz=one)
    >>> from distributed import Client  # doctest: +SKIP
    >>> with Client(n_workers=2) as client:  # doctest: +SKIP
    ...     F = nh.distributed.factorize(chain, 0.1, client)
    ...     print(F.solve(np.ones(1000)).shape)
    (1000,)
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
