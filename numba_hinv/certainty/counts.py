"""How many eigenvalues of H lie below numbers, for certain: of one or of many at once, on all cores."""

import numpy as np

from ..factors import choice
from ..runtime import threads
from ..runtime.progress import bar
from ..system.shifted import Shifted
from .inertia import certified_count
from .solver import Solver

_DOUBLE = np.dtype(np.float64)
# Where a count is uncertain, the shifts around it that are tried, in units of ||H||.
_NEARBY = (1e-10, 1e-8, 1e-6)
# Where an eigenvalue is too close to a number to say on which side it lies, the distances at either side that are
# tried, in units of ||H|| and the number. The nearer ones are the likelier to tell it from its neighbours.
_DISTANCES = 10.0 ** np.arange(-12.0, -1.0)


def below(system, t, method=None, blocks=None, check=threads.no_check):
    """The eigenvalues below t; ``LinAlgError`` where an eigenvalue is too close to say on which side it lies.

    Parameters
    ----------
    system : Matrix
    t : float
    method : str, optional
        By default the one that `choice.for_counts` gives.
    blocks : dict, optional
        Those of `choice.shared_blocks`.
    check : callable
        Called before every factorization; may raise.
    """
    count, reason = _certified(system, t, method, blocks, check)
    if count is not None:
        return count
    norm = system.norm()
    for distance in _NEARBY:
        ends = (t + side * distance * (norm + abs(t)) for side in (-1, 1))
        found = {_certified(system, end, method, blocks, check)[0] for end in ends}
        if len(found) == 1 and None not in found:
            return found.pop()
    raise np.linalg.LinAlgError(
        f"t: the eigenvalues below t={t:g} cannot be counted for certain: {reason}; expected a t further from an "
        f"eigenvalue of H (||H|| is {norm:.1e})"
    )


def beside(system, t, method=None, blocks=None, check=threads.no_check):
    """(eigenvalues below t, eigenvalues up to it, how far from it the shifts that tell this are); as `below`."""
    count, _ = _certified(system, t, method, blocks, check)
    if count is not None:
        return count, count, 0.0
    found, width, norm = [], 0.0, system.norm()
    for side in (-1, 1):
        for distance in _DISTANCES * (norm + abs(t) or 1.0):
            count, _ = _certified(system, t + side * distance, method, blocks, check)
            if count is not None:
                break
        else:
            raise np.linalg.LinAlgError(
                f"t: the eigenvalues below t={t:g} cannot be counted for certain, nor those below numbers up to "
                f"{distance:.1e} beside it; expected a number further from eigenvalues of H (||H|| is {norm:.1e})"
            )
        found.append(count)
        width = max(width, distance)
    return *found, float(width)


def at_all(system, shifts, one, name, num_threads=None, progress=False, label="count_below", unit="number"):
    """``one(system, t, ...)``, `below` or `beside`, of a list of shifts, in their order.

    A ``LinAlgError`` gives the index of the first shift that fails, in an argument of that name; ``MemoryError`` where
    the factorizations at work would not fit.
    """
    workers = system.on.num_workers(num_threads, len(shifts), system.reaches_blas())
    scales = dict.fromkeys(system.scaling(-t, _DOUBLE) for t in shifts)
    method = choice.for_counts(system, len(shifts))
    choice.require(system, _DOUBLE, method, False, scales, workers, workers)
    # All that they share is made here, before there are threads.
    system.norm()
    blocks = choice.shared_blocks(system, _DOUBLE, method, scales)
    with bar(progress, len(shifts), label, unit) as shown:

        def job_of(t):
            def job(check):
                found = one(system, t, method, blocks, check)
                shown.update(1)
                return found

            return job

        return threads.run_each([job_of(t) for t in shifts], workers, name, "t")


def _certified(system, t, method, blocks, check):
    """(count, why not): the eigenvalues below t, or None and the reason."""
    check()
    scale = system.scaling(-t, _DOUBLE)
    matrix = Shifted(system, -t, _DOUBLE, scale, None if blocks is None else blocks.get(scale))
    try:
        return certified_count(Solver.factorize(matrix, method or choice.for_counts(system)))
    except np.linalg.LinAlgError as error:
        return None, str(error).removeprefix("damping: ")
