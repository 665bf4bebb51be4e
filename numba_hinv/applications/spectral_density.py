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
    """Exact histogram of the eigenvalues of a Hessian. Made by `spectral_density`.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> one = nh.LayerBlocks(np.ones((1, 3)), np.ones((1, 0)), np.diag([-1.0, 2.0, 3.0]), np.ones((3, 0)), np.eye(0))
    >>> H = nh.Hessian.from_blocks([one])
    >>> spectrum = nh.spectral_density(H, [-2.0, 0.0, 2.5, 4.0])
    >>> spectrum.density.round(3)
    array([0.167, 0.133, 0.222])
    """

    edges: np.ndarray  # (n + 1,), ascending
    counts: np.ndarray  # (n,) integers: the eigenvalues in [edges[i], edges[i + 1]); the last bin is closed
    below: int  # eigenvalues below edges[0]
    above: int  # above edges[n]
    on_edges: np.ndarray  # (n + 1,) integers: eigenvalues that cannot be told from the edge, and count as on it
    widths: np.ndarray  # (n + 1,): how far from the edge those may lie; 0 where there are none

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
        """(n,) array: counts over widths and number of eigenvalues; the integral is the share in the bins."""
        return self.counts / (np.diff(self.edges) * (self.below + self.counts.sum() + self.above))

    def plot(self, ax: Any = None, **kwargs: Any) -> Any:
        """Draw the counts as steps, with a logarithmic axis, for which matplotlib must be installed.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            By default that of a new figure.
        **kwargs
            For `matplotlib.axes.Axes.stairs`.

        Returns
        -------
        ax : matplotlib.axes.Axes
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
    """Exact histogram of the eigenvalues of H.

    Parameters
    ----------
    H : Hessian
    grid : (n + 1,) array
        Edges of the bins, strictly ascending. They may meet eigenvalues, as 0 does for most nets: bins are half-open,
        but for the last, as those of `numpy.histogram`.
    num_threads : int, optional
        At most so many edges at the same time; by default one a core, as for `Hessian.factorize_many`.
    progress : bool, optional
        Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

    Returns
    -------
    SpectralDensity

    Raises
    ------
    TypeError, ValueError
        H is not a `Hessian`, or the grid not an ascending array of finite real numbers.
    numpy.linalg.LinAlgError
        Counts are uncertain at all distances from an edge, up to a hundredth of ||H||: its index is given.
    MemoryError
        The factorizations at work would not fit; nothing has been allocated.
    ImportError
        A progress bar is asked for and tqdm is not there.

    Notes
    -----
    The counts are differences of inertias, of one factorization an edge, with multiplicities and whatever the number of
    parameters. Where that is not certain, because an eigenvalue is as close to the edge as rounding, up to twenty-two
    more find the closest shifts at both sides that are. What lies between them is in ``on_edges``, and in the bin that
    the edge belongs to; ``widths`` says how close that is, as a rule 1e-12 to 1e-10 ||H||.

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
