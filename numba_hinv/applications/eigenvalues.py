"""Eigenvalues of H: outermost ones, those nearest to a shift, and all in an interval.

That none is missed, inertia proves.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning

from ..hessian import Hessian
from ..runtime import threads
from ..runtime.annotations import Array, BoolArray, Check
from ..runtime.progress import bar
from ..runtime.validation import as_flag, as_real, as_size
from .shift_invert import Pairs, basis_size, densely, nearest, nearest_first, rayleigh_ritz

# In units of ||H||: residuals above this are worth a warning; so are wider clusters, where counts tell no eigenvalues
# apart; no narrower slice is cut.
_RESIDUAL = 1e-12
_CLUSTER = 1e-8
_WIDTH = 1e-12
# In units of ||H||: how far from the outermost eigenvalue found the count is taken that shows whether any is missing.
_INSIDE = (1e-12, 1e-10, 1e-8, 1e-6)
# Beyond k, the rounds of Lanczos for missing eigenvalues, and the eigenvalues looked for in one.
_ROUNDS = 8
# With at most so many parameters, what Lanczos misses is found in a dense H.
_DENSE = 2000
# An interval with more eigenvalues is cut before any is looked for.
_SLICE = 24
# Where an interval is cut, in units of its width, until one place is far enough from any eigenvalue.
_CUTS = (0.5, 0.4, 0.65, 0.3, 0.8, 0.15)


@overload
def eigenvalues(
    H: Hessian,
    k: int,
    near: float | None = None,
    return_eigenvectors: Literal[False] = False,
    which: Literal["nearest", "lowest", "highest"] = "nearest",
    progress: bool | None = None,
) -> NDArray[np.float64]: ...


@overload
def eigenvalues(
    H: Hessian,
    k: int,
    near: float | None = None,
    *,
    return_eigenvectors: Literal[True],
    which: Literal["nearest", "lowest", "highest"] = "nearest",
    progress: bool | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...


def eigenvalues(
    H: Hessian,
    k: int,
    near: float | None = None,
    return_eigenvectors: bool = False,
    which: Literal["nearest", "lowest", "highest"] = "nearest",
    progress: bool | None = None,
) -> Any:
    """Compute the k eigenvalues of H nearest to ``near``, or the k lowest or highest.

    They are found by SciPy's eigsh (implicitly restarted Lanczos) on the inverse of ``H - near I``, from a fixed start.
    For a multiple eigenvalue Lanczos may find one vector only. The inertia of H on both sides of what has been found
    then says how many are missing, and the search goes on for these. For the lowest or highest eigenvalues, counts of
    the eigenvalues below a number bracket them first, and the shift is put beside them.

    Parameters
    ----------
    H : Hessian
        The Hessian.
    k : int
        How many eigenvalues to compute, from 1 to P.
    near : float, optional
        The shift, by default 0. It may itself be an eigenvalue, in which case it is moved by 1e-8 ||H||.
    return_eigenvectors : bool
        Whether to return the eigenvectors as well.
    which : "nearest", "lowest" or "highest"
        Which eigenvalues to compute: those nearest to ``near``, or those at one end of the spectrum, for which ``near``
        must not be given.
    progress : bool, optional
        Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

    Returns
    -------
    values : (k,) array
        The eigenvalues, ascending and in float64. A multiple eigenvalue is repeated as often as it occurs.
    vectors : (P, k) array
        The eigenvectors, as orthonormal columns. Returned only with ``return_eigenvectors``.

    Raises
    ------
    TypeError, ValueError
        H is not a `Hessian`, it does not have k eigenvalues, ``near`` is not a finite real number, or ``which`` is not
        one of the three.
    numpy.linalg.LinAlgError
        H is too ill-conditioned around ``near``, or Lanczos does not find k eigenvalues there.
    MemoryError
        The basis of 2 k + 20 vectors would not fit.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        A residual ``||H v - value v||`` is above 1e-12 ||H||, or the inertia does not confirm that these are the
        eigenvalues asked for; the message says which, and by how much.

    See Also
    --------
    eigenvalues_in : All eigenvalues in an interval.
    Hessian.count_below : How many there are below a number.

    Notes
    -----
    Costs three factorizations, one at the shift and two for the counts, and up to thirty more to bracket the lowest or
    highest eigenvalues. In a net of 1,906 parameters it took 27 to 167 solves for k from 1 to 30; more are needed if
    eigenvalues are missing. The result is the nearest eigenvalues up to 1e-12 ||H|| as a rule, and up to 1e-6 ||H|| if
    eigenvalues cannot be counted closer to one of them. If 2 k + 20 is P or more, or if Lanczos misses some and P is at
    most 2,000, H is formed as a dense matrix by P products.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> H = nh.Hessian.from_blocks([nh.LayerBlocks(np.ones((1, 3)), np.ones((1, 0)), np.diag([-1.0, 2.0, 3.0]),
    ...                                            np.ones((3, 0)), np.eye(0))])
    >>> nh.eigenvalues(H, 1, which="lowest").round(12)
    array([-1.])
    >>> nh.eigenvalues(H, 2, near=2.4).round(12)
    array([2., 3.])
    """
    H = as_hessian(H)
    size = H.shape[0]
    k = as_size("k", k)
    if which not in ("nearest", "lowest", "highest"):
        raise ValueError(f"which: expected 'nearest', 'lowest' or 'highest', got {which!r}")
    if which != "nearest" and near is not None:
        raise ValueError(f"near: expected None with which={which!r}, got {near!r}")
    if isinstance(near, (float, np.floating)) and np.isinf(near):
        end = "lowest" if near < 0.0 else "highest"
        raise ValueError(f"near: expected a finite number, got {near}; which={end!r} is for the {end} eigenvalues")
    near = 0.0 if near is None else as_real("near", near)
    if k > size:
        raise ValueError(f"k: expected at most the {size} parameters of H, got {k}")
    with_vectors = as_flag("return_eigenvectors", return_eigenvectors)
    with bar(progress, None, "eigenvalues", "solve") as shown:

        def check() -> None:
            shown.update(1)

        if which != "nearest" and basis_size(k, size) < size:
            near = _beyond(H, k, which == "lowest", check)
        elif which != "nearest":
            # H will be made dense.
            near = 2.0 * _norm(H) * (-1.0 if which == "lowest" else 1.0)
        pairs, missing = _search(H, near, k, lambda values: _num_missing(H, values, near, k), check)
        if missing > 0 and size <= _DENSE:
            pairs, missing = densely(H, near, k), 0
    if pairs.values.size < k:
        raise np.linalg.LinAlgError(
            f"near: expected a shift where Lanczos finds k={k} eigenvalues, got {near:g}, with {pairs.values.size}"
        )
    chosen = np.sort(nearest_first(pairs.values, near)[:k])
    values, vectors, residuals = (np.ascontiguousarray(found[..., chosen]) for found in pairs)
    _warn(H, residuals, missing, f"nearest to near={near:g}" if which == "nearest" else which)
    return (values, vectors) if with_vectors else values


def _beyond(H: Hessian, k: int, is_lowest: bool, check: Check) -> float:
    """A number below all eigenvalues, or above all, and close to the k outermost ones, by bisection of counts."""
    outer, _ = _counted(H, "which", -np.inf if is_lowest else np.inf)
    edge = -outer
    # The outermost eigenvalue is between `outer` and `edge`, which so many are beyond; k or more are beyond `inner`.
    beyond, inner = H.shape[0], edge
    while abs(edge - outer) > _CLUSTER * _norm(H):
        if beyond <= k + _SLICE if beyond >= k else abs(edge - outer) <= 0.5 * abs(inner - edge):
            # Lanczos does the rest.
            break
        # Not in the middle, which may be at 0, where many nets have eigenvalues.
        for at in _CUTS[1:]:
            cut = outer + at * (edge - outer)
            check()
            try:
                below = H.count_below(cut)
                break
            except np.linalg.LinAlgError:
                continue
        else:
            break
        count = below if is_lowest else H.shape[0] - below
        if count == 0:
            outer = cut
            continue
        edge, beyond = cut, count
        if count >= k:
            inner = cut
    return outer


def as_hessian(H: Any) -> Hessian:
    """H, if it is a `Hessian`."""
    if not isinstance(H, Hessian):
        raise TypeError(f"H: expected a Hessian, got {type(H).__name__}")
    return H


def _search(
    H: Hessian, near: float, k: int, num_missing: Callable[[Array], int], check: Check = threads.no_check
) -> tuple[Pairs, int]:
    """(`Pairs` of at least the k nearest, as far as they are found; how many are missing).

    Each round finds at least one more vector of every eigenvalue of which vectors are missing.
    """
    pairs = nearest(H, near, k, check=check)
    missing = num_missing(pairs.values)
    for _ in range(k + _ROUNDS):
        at_once = min(missing, k + _ROUNDS, H.shape[0] - pairs.values.size - 1)
        if at_once <= 0:
            break
        try:
            more = nearest(H, near, at_once, pairs.vectors, check)
        except np.linalg.LinAlgError:
            break
        if not more.values.size:
            break
        pairs = rayleigh_ritz(H, np.hstack([pairs.vectors, more.vectors]))
        missing = num_missing(pairs.values)
    return pairs, missing


def _num_missing(H: Hessian, values: Array, near: float, k: int) -> int:
    """How many eigenvalues nearer to ``near`` than the k-th found are not among those found; -1 if unknown."""
    if values.size < k:
        return k - values.size
    distances = np.sort(np.abs(values - near))
    for inside in _INSIDE:
        radius = distances[k - 1] - inside * (H.norm() + abs(near))
        if radius <= 0.0:
            return 0
        try:
            count = H.count_below(near + radius) - H.count_below(near - radius)
        except np.linalg.LinAlgError:
            continue
        return max(0, count - int(np.sum(distances < radius)))
    return -1


def eigenvalues_in(
    H: Hessian, low: float, high: float, num_threads: int | None = None, progress: bool | None = None
) -> NDArray[np.float64]:
    """Compute all eigenvalues of H in the half-open interval [low, high), by spectrum slicing.

    The inertia of ``H - t I`` says how many eigenvalues are below t (`Hessian.count_below`). The interval is cut into
    slices until Lanczos finds as many eigenvalues in each slice as that count says, or until the slice is as narrow as
    rounding errors. In the latter case its eigenvalues are taken as one multiple eigenvalue, such as the zeros of
    parameters that do not affect the loss.

    Parameters
    ----------
    H : Hessian
        The Hessian.
    low, high : float
        The ends of the interval, which may be infinite. Neither may be an eigenvalue, as 0 often is.
    num_threads : int, optional
        How many slices to work on at the same time at most; by default one for each core, as for
        `Hessian.factorize_many`. The answer does not depend on it.
    progress : bool, optional
        Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

    Returns
    -------
    values : (k,) array
        The eigenvalues, ascending and in float64, each as often as it occurs. Their number k is
        ``H.count_below(high) - H.count_below(low)``.

    Raises
    ------
    numpy.linalg.LinAlgError
        An eigenvalue is too close to ``low`` or ``high`` to say on which side it lies.
    TypeError, ValueError
        H is not a `Hessian`, or the bounds are not real numbers with low <= high.
    ImportError
        A progress bar is asked for and tqdm is not installed.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        More than 24 eigenvalues lie in an interval that is wider than 1e-8 ||H|| and inside of which eigenvalues cannot
        be counted; the message gives their number and the width.

    See Also
    --------
    eigenvalues : The eigenvalues nearest to a shift, with eigenvectors.
    spectral_density : Only the counts, which are far cheaper.

    Notes
    -----
    In a net of 1,906 parameters, 124 positive eigenvalues cost 21 factorizations and 735 solves, and 882 zeros 24
    factorizations and 78 solves. Eigenvalues are right to a few 1e-12 ||H||, as their residuals prove. If more than 24
    cannot be told apart by counting, one of them is computed and stands for all.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> one = nh.LayerBlocks(np.ones((1, 3)), np.ones((1, 0)), np.diag([-1.0, 2.0, 3.0]), np.ones((3, 0)), np.eye(0))
    >>> H = nh.Hessian.from_blocks([one])
    >>> nh.eigenvalues_in(H, 0.0, np.inf).round(12)
    array([2., 3.])
    """
    H = as_hessian(H)
    low, high = _as_bound("low", low), _as_bound("high", high)
    if low > high:
        raise ValueError(f"high: expected at least low={low:g}, got {high:g}")
    slices = [_Slice(*_counted(H, "low", low), *_counted(H, "high", high))]
    total, found, widths, norm = slices[0].num, [], [], _norm(H)
    workers = threads.num_workers(num_threads, max(total, 1), H.system.reaches_blas())
    with bar(progress, total, "eigenvalues_in", "eigenvalue") as shown:

        def job_of(part: _Slice) -> Callable[[Check], Any]:
            def job(check: Check) -> Any:
                result = _look_into(H, part, check)
                shown.update(result[0].size)
                return result

            return job

        while slices:
            try:
                results = threads.run([job_of(part) for part in slices if part.num], workers)
            except threads.JobFailed as failure:
                raise failure.__cause__ from None
            found += [values for values, *_ in results]
            widths += [(width, values.size) for values, width, _ in results if width > _CLUSTER * norm]
            slices = [part for *_, parts in results for part in parts]
    if widths:
        warnings.warn(
            f"{sum(count for _, count in widths)} of {total} eigenvalues are known to {max(widths)[0] / norm:.1e} "
            f"||H|| only; expected {_CLUSTER:.0e} ||H||: none can be counted closer to them",
            LinAlgWarning,
            stacklevel=2,
        )
    return np.sort(np.concatenate([np.empty(0), *found]))


class _Slice(NamedTuple):
    low: float
    below_low: int
    high: float
    below_high: int

    @property
    def num(self) -> int:
        return self.below_high - self.below_low


def _look_into(H: Hessian, part: _Slice, check: Check) -> tuple[Array, float, list[_Slice]]:
    """(eigenvalues, the width that they are known to if they are a cluster, slices that are left)."""
    low, high, width = part.low, part.high, part.high - part.low
    if part.num <= _SLICE:
        found = _found(H, part, part.num, check)
        if found.size == part.num:
            return found, 0.0, []
    if width > _WIDTH * _norm(H):
        for at in _CUTS:
            cut = low + at * width
            check()
            try:
                below = H.count_below(cut)
            except np.linalg.LinAlgError:
                continue
            halves = [_Slice(low, part.below_low, cut, below), _Slice(cut, below, high, part.below_high)]
            return np.empty(0), 0.0, halves
    # One eigenvalue of that multiplicity, or so close together that counts do not tell.
    centre = [*_found(H, part, 1, check), 0.5 * (low + high)][0]
    return np.full(part.num, centre), width, []


def _found(H: Hessian, part: _Slice, k: int, check: Check) -> Array:
    """At most k eigenvalues in a slice, each certain: there are as many, as close as the residuals say."""
    try:
        pairs, _ = _search(H, 0.5 * (part.low + part.high), k, lambda values: k - _inside(part, values).sum(), check)
    except np.linalg.LinAlgError:
        return np.empty(0)
    certain = _inside(part, pairs.values) & (pairs.residuals < _RESIDUAL * _norm(H))
    return pairs.values[certain]


def _inside(part: _Slice, values: Array) -> BoolArray:
    return (values >= part.low) & (values < part.high)


def _counted(H: Hessian, name: str, bound: float) -> tuple[float, int]:
    """(a finite bound, how many eigenvalues are below it)."""
    if np.isinf(bound):
        # The norm is an estimate from below.
        none, bound = (0 if bound < 0 else H.shape[0]), np.copysign(_norm(H), bound)
        while True:
            bound *= 2.0
            if np.isinf(bound):
                raise np.linalg.LinAlgError(
                    f"{name}: expected a finite number, since none can be found beyond H's eigenvalues: ||H|| is "
                    f"{H.norm():.1e}"
                )
            if H.count_below(bound) == none:
                return float(bound), none
    try:
        return bound, H.count_below(bound)
    except np.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(f"{name}: {str(error).removeprefix('t: ')}") from None


def _norm(H: Hessian) -> float:
    """||H||, or 1 where it is zero: the unit of widths."""
    return H.norm() or 1.0


def _as_bound(name: str, value: Any) -> float:
    if isinstance(value, (float, np.floating)) and np.isinf(value):
        return float(value)
    return as_real(name, value)


def _warn(H: Hessian, residuals: Array, missing: int, which: str) -> None:
    norm = _norm(H)
    worst = float(residuals.max())
    if worst > _RESIDUAL * norm:
        warnings.warn(
            f"an eigenpair has a residual of {worst / norm:.1e} ||H||; expected at most {_RESIDUAL:.0e} ||H||",
            LinAlgWarning,
            stacklevel=3,
        )
    if missing:
        what = f"{missing} nearer ones are missing" if missing > 0 else "nearer ones cannot be counted"
        way_out = "another near" if which.startswith("nearest") else "another k"
        warnings.warn(
            f"the eigenvalues may not be those {which}: {what}; expected {way_out}", LinAlgWarning, stacklevel=3
        )
