"""The spectrum's density: how many eigenvalues lie in each bin, exactly, from the inertia at the edges."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..certainty import counts
from ..hessian import Hessian
from ..runtime import axes, representation
from ..runtime.validation import as_array
from .eigenvalues import as_hessian


class SpectralDensity(NamedTuple):
    """Exact histogram of the eigenvalues of a Hessian, which `spectral_density` makes.

    Attributes
    ----------
    edges : (n + 1,) array
        The edges of the bins, ascending.
    counts : (n,) array of int
        The number of eigenvalues in each bin ``[edges[i], edges[i + 1])``; the last bin includes its right edge.
    below : int
        The number of eigenvalues below ``edges[0]``.
    above : int
        The number of eigenvalues above ``edges[n]``.
    on_edges : (n + 1,) array of int
        How many eigenvalues cannot be told from each edge, and are counted as lying on it.
    widths : (n + 1,) array
        How far from the edge these may lie; 0 where there are none.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> one = nh.LayerBlocks(np.ones((1, 3)), np.ones((1, 0)), np.diag([-1.0, 2.0, 3.0]), np.ones((3, 0)), np.eye(0))
    >>> H = nh.Hessian.from_blocks([one])
    >>> spectrum = nh.spectral_density(H, [-2.0, 0.0, 2.5, 4.0])
    >>> spectrum.density.round(3)
    array([0.167, 0.133, 0.222])
    """

    edges: np.ndarray
    counts: np.ndarray
    below: int
    above: int
    on_edges: np.ndarray
    widths: np.ndarray

    def __repr__(self) -> str:
        return representation.line("SpectralDensity", self._facts())

    def _repr_html_(self) -> str:
        return representation.table("SpectralDensity", self._facts())

    def _facts(self) -> dict[str, object]:
        edges = self.edges
        return {
            "bins": self.counts.size, "from": edges[0], "to": edges[-1], "inside": int(self.counts.sum()),
            "below": self.below, "above": self.above, "on_edges": int(self.on_edges.sum()),
        }  # fmt: skip

    @property
    def density(self) -> NDArray[np.float64]:
        """The density (n,): counts over the widths of the bins and the number of all eigenvalues.

        Its integral is the share of the eigenvalues that lie in the bins.
        """
        return self.counts / (np.diff(self.edges) * (self.below + self.counts.sum() + self.above))

    def plot(self, ax: Any = None, **kwargs: Any) -> Any:
        """Draw the counts as steps with a logarithmic axis, for which matplotlib must be installed.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default the axes of a new figure.
        **kwargs
            Further arguments of `matplotlib.axes.Axes.stairs`.

        Returns
        -------
        ax : matplotlib.axes.Axes
            The axes drawn in.
        """
        ax = axes.given_or_new(ax)
        ax.stairs(self.counts, self.edges, **{"fill": True, **kwargs})
        # Zero counts have no logarithm, and one is to be seen.
        ax.set_yscale("symlog", linthresh=1.0)
        ax.set(xlabel="eigenvalue", ylabel="eigenvalues per bin")
        return ax


def spectral_density(
    H: Hessian, grid: ArrayLike, num_threads: int | None = None, progress: bool | None = None
) -> SpectralDensity:
    """Compute an exact histogram of the eigenvalues of H.

    Parameters
    ----------
    H : Hessian
        The Hessian.
    grid : (n + 1,) array
        The edges of the bins, strictly ascending. They may be eigenvalues, as 0 is for most nets: all bins but the last
        exclude their right edge, as those of `numpy.histogram` do.
    num_threads : int, optional
        How many edges to work on at the same time at most; by default one for each core, as for
        `Hessian.factorize_many`.
    progress : bool, optional
        Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

    Returns
    -------
    SpectralDensity
        The histogram.

    Raises
    ------
    TypeError, ValueError
        H is not a `Hessian`, or the grid is not an ascending array of finite real numbers.
    numpy.linalg.LinAlgError
        Counts are uncertain at all distances up to a hundredth of ||H|| from an edge, whose index the message gives.
    MemoryError
        The factorizations at work would not fit; nothing has been allocated.
    ImportError
        A progress bar is asked for and tqdm is not installed.

    Notes
    -----
    The counts are differences of inertias, from one factorization for each edge, whatever the number of parameters;
    multiple eigenvalues count as often as they occur. Where an inertia is not certain, because an eigenvalue lies as
    close to the edge as rounding, up to twenty-two more factorizations find the closest shifts on both sides whose
    inertias are certain. The eigenvalues between these shifts are counted in ``on_edges``, and in the bin that the edge
    belongs to; ``widths`` says how far apart they are, as a rule 1e-12 to 1e-10 ||H||.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> one = nh.LayerBlocks(np.ones((1, 3)), np.ones((1, 0)), np.diag([-1.0, 2.0, 3.0]), np.ones((3, 0)), np.eye(0))
    >>> H = nh.Hessian.from_blocks([one])
    >>> nh.spectral_density(H, [-2.0, 0.0, 2.5, 4.0]).counts
    array([1, 1, 1])
    """
    H = as_hessian(H)
    edges = as_array("grid", grid, (None,), np.float64).copy()
    if edges.size < 2:
        raise ValueError(f"grid: expected at least two edges, got {edges.size}")
    if not (np.diff(edges) > 0.0).all():
        at = int(np.argmin(np.diff(edges) > 0.0))
        raise ValueError(f"grid: expected ascending edges, got {edges[at]:g} and {edges[at + 1]:g} at index {at}")
    shifts = edges.tolist()
    found = counts.at_all(H.system, shifts, counts.beside, "grid", num_threads, progress, "spectral_density", "edge")
    lower, upper, widths = (np.array(column) for column in zip(*found))
    # Edges may lie within each other's widths. The last edge belongs to the bin before it.
    below = np.maximum.accumulate(np.append(lower[:-1], upper[-1]))
    on_edges = upper - lower
    widths[on_edges == 0] = 0.0
    return SpectralDensity(edges, np.diff(below), int(below[0]), int(H.shape[0] - below[-1]), on_edges, widths)
