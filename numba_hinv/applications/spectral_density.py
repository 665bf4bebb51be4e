"""The spectrum's density: how many eigenvalues lie in each bin, exactly, from the inertia at the edges."""

from typing import NamedTuple

import numpy as np

from ..factors import choice
from ..runtime import threads
from ..runtime.progress import bar
from ..runtime.validation import as_array
from .eigenvalues import as_hessian


class SpectralDensity(NamedTuple):
    """Exact histogram of the eigenvalues of a Hessian. Made by `spectral_density`."""

    edges: np.ndarray  # (n + 1,), ascending
    counts: np.ndarray  # (n,) integers: the eigenvalues in [edges[i], edges[i + 1])
    below: int  # eigenvalues below edges[0]
    above: int  # from edges[n] on

    @property
    def density(self):
        """(n,) array: counts over widths and number of eigenvalues; the integral is the share in the bins."""
        return self.counts / (np.diff(self.edges) * (self.below + self.counts.sum() + self.above))

    def plot(self, ax=None, **kwargs):
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
        if ax is None:
            try:
                import matplotlib.pyplot as plt
            except ImportError:
                raise ImportError(
                    "ax: expected matplotlib to be installed (pip install 'numba_hinv[examples]'), or axes to draw on"
                ) from None
            _, ax = plt.subplots()
        ax.stairs(self.counts, self.edges, **{"fill": True, **kwargs})
        # Zero counts have no logarithm, and one is to be seen.
        ax.set_yscale("symlog", linthresh=1.0)
        ax.set(xlabel="eigenvalue", ylabel="eigenvalues per bin")
        return ax


def spectral_density(H, grid, num_threads=None, progress=False):
    """Exact histogram of the eigenvalues of H.

    Parameters
    ----------
    H : Hessian
    grid : (n + 1,) array
        Edges of the bins, strictly ascending. None may be an eigenvalue, for which 0 is a candidate.
    num_threads : int, optional
        At most so many edges at the same time; by default one a core, as for `Hessian.factorize_many`.
    progress : bool
        Show a progress bar, for which tqdm must be installed.

    Returns
    -------
    SpectralDensity

    Raises
    ------
    TypeError, ValueError
        H is not a `Hessian`, or the grid not an ascending array of finite real numbers.
    numpy.linalg.LinAlgError
        An eigenvalue is too close to an edge, whose index is given, to say in which bin it lies.
    MemoryError
        The factorizations at work would not fit; nothing has been allocated.
    ImportError
        A progress bar is asked for and tqdm is not there.

    Notes
    -----
    One `Hessian.count_below` an edge; their differences are the counts, with multiplicities, whatever the number of
    parameters.
    """
    H = as_hessian(H)
    edges = as_array("grid", grid, (None,), np.float64).copy()
    if edges.size < 2:
        raise ValueError(f"grid: expected at least two edges, got {edges.size}")
    if not (np.diff(edges) > 0.0).all():
        at = int(np.argmin(np.diff(edges) > 0.0))
        raise ValueError(f"grid: expected ascending edges, got {edges[at]:g} and {edges[at + 1]:g} at index {at}")
    counts = _counts_below(H, edges, num_threads, progress)
    return SpectralDensity(edges, np.diff(counts), counts[0], H.shape[0] - counts[-1])


def _counts_below(H, edges, num_threads, progress):
    """`Hessian.count_below` of every edge, in order."""
    workers = threads.num_workers(num_threads, edges.size, H.system.reaches_blas())
    dtype = np.dtype(np.float64)
    scales = dict.fromkeys(H.system.scaling(-edge, dtype) for edge in edges.tolist())
    method = choice.for_counts(H.system, edges.size)
    choice.require(H.system, dtype, method, False, scales, workers, workers)
    if method == "spectrum":
        # Shared by all, so made before there are threads.
        choice.shared_blocks(H.system, dtype, method, scales)
    with bar(progress, edges.size, "spectral_density", "edge") as shown:

        def job_of(edge):
            def job(check):
                check()
                count = H.count_below(edge)
                shown.update(1)
                return count

            return job

        return threads.run_each([job_of(edge) for edge in edges.tolist()], workers, "grid", "t")
