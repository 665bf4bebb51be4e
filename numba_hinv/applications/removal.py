"""What the removal of samples does to a net's outputs, by one Newton step (docs/theory.md, section 14).

For the samples of a group S, with the covariance ``A = J (H + c I)^-1 J^T`` of their outputs, and r and C the gradient
and the curvature of their losses in these, a step on the loss of all other samples, whose Hessian is
``H + c I - J^T C J`` where the group's own curvature is taken as Gauss-Newton, moves the group's outputs by

    u = (I - A C)^-1 (A r + q),    q = J (H + c I)^-1 t,

t being what else the gradient of the others' loss has in it. The step itself is ``(H + c I)^-1 (J^T (r + C u) + t)``.
"""

import numpy as np
from scipy.linalg import eigh

from ..runtime import columns, memory_budget, threads
from ..runtime.progress import bar
from ..system.scaling import lengths
from .output_covariance import ACCURATE, chain_of

# Matrices with more rows than this are looked through for their largest eigenvalue alone.
_FEW = 64
# Curvatures above this share of the largest one, negative, are rounding.
_ROUNDING = 1e-12


class Removal:
    """Groups of one size, k samples each, that are left out one after the other.

    Parameters
    ----------
    A : (g, k n, k n) array
        The covariances of their outputs.
    r : (g, k, n) array
    C : (g, k, n, n) array
        Gradient and curvature of the loss in the outputs, with the mean's 1/B inside.
    """

    def __init__(self, A, r, C):
        self.A, self.r, self.C = A, r, C
        self.shape = r.shape
        AC = self._times_C(A)
        self._matrix = np.eye(A.shape[1]) - AC

    def _times_C(self, A):
        g, k, n = self.shape
        return np.einsum("gxkn,gknm->gxkm", A.reshape(g, k * n, k, n), self.C).reshape(A.shape)

    def times_C(self, u):
        """C u, both (g, k, n)."""
        return np.einsum("gknm,gkm->gkn", self.C, u)

    def amplify(self, v):
        """(I - A C)^-1 v, both (g, k, n); NaN where that is singular."""
        flat, found = v.reshape(len(v), -1, 1), np.full((len(v), v[0].size, 1), np.nan)
        try:
            found[:] = np.linalg.solve(self._matrix, flat)
        except np.linalg.LinAlgError:
            for one, matrix, right in zip(found, self._matrix, flat):
                try:
                    one[:] = np.linalg.solve(matrix, right)
                except np.linalg.LinAlgError:
                    continue
        return found.reshape(v.shape)

    def change(self, q=0.0):
        """u, (g, k, n)."""
        return self.amplify((self.A @ self.r.reshape(len(self.r), -1, 1)).reshape(self.shape) + q)

    def slopes(self, u):
        """r + C u, (g, k, n): what the group's Jacobian's transpose makes the step of."""
        return self.r + self.times_C(u)

    def leverage(self):
        """(g,): the largest eigenvalue of A C. At 1 the others' loss has no minimum by the model."""
        g, k, n = self.shape
        values, vectors = np.linalg.eigh(self.C)
        if values.min(initial=0.0) < -_ROUNDING * np.abs(values).max(initial=0.0):
            return np.linalg.eigvals(np.eye(k * n) - self._matrix).real.max(axis=1)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ vectors.swapaxes(-1, -2)
        half = np.einsum("gxkn,gknm->gxkm", self.A.reshape(g, k * n, k, n), root).reshape(self.A.shape)
        whole = np.einsum("gknm,gkmx->gknx", root, half.reshape(g, k, n, k * n)).reshape(self.A.shape)
        if k * n <= _FEW:
            return np.linalg.eigvalsh(whole)[:, -1]
        last = [k * n - 1] * 2
        return np.array([eigh(one, eigvals_only=True, subset_by_index=last)[0] for one in whole])


def verify(F, data, members, removal, u, t, l2, num_threads=None, progress=False):
    """How wrong the steps are, by the gradient of the others' loss where they end.

    Parameters
    ----------
    F, data, members
        As for `output_covariance.of_training`.
    removal : Removal
        Of these groups.
    u : (g, k, n) array
        `Removal.change`.
    t : (P,) array
    l2 : float
        The weight of the L2 term in the others' loss.

    Returns
    -------
    error : (g, k, n) array
        What another step, with the same matrix, would add to u; NaN where the loss overflows.
    contraction : (g,) array
        The length of that step over the length of the first one, in the norm of the matrix: 0 of a quadratic loss.
    """
    params, model = data.params, data.model
    (count, k, n), P = removal.shape, params.size
    block = min(count, columns.block_of(P, count))
    moved, dots, sizes = np.empty((count, k, n)), np.empty(count), np.empty(count)
    slopes, refine = removal.slopes(u), not F.solver.contraction() <= ACCURATE
    workers = threads.num_workers(num_threads, -(-count // block), F.hessian.system.solves_reach_blas())
    memory_budget.require(
        8 * workers * block * 6 * P,
        f"the steps of {workers} blocks of {block} groups",
        "take num_threads=1, or check=False",
    )

    def solve(rows):
        return F.solve(rows.T, refine, num_threads=1).T

    with bar(progress, count, "leave_one_out", "group") as shown:

        def job(start, stop, check):
            some = slice(start, stop)
            rows = np.stack([data.pull(members[i], slopes[i]) for i in range(start, stop)]) + t
            steps = solve(rows)
            gradients = np.empty_like(steps)
            for i, step in zip(range(start, stop), steps):
                check()
                gradients[i - start] = data.gradient_without(params + step, members[i]) + l2 * (params + step)
                shown.update(1)
            with np.errstate(over="ignore", invalid="ignore"):
                is_finite = np.isfinite(lengths(gradients))
            gradients[~is_finite] = 0.0
            again = solve(gradients)
            at = np.arange(stop - start)
            chain = chain_of(model, params, data.inputs(members[some].ravel()))
            tangents = chain.output_tangents(again, check).reshape(stop - start, stop - start, k, n)[at, at]
            moved[some] = tangents
            dots[some] = np.where(is_finite, np.einsum("ip,ip->i", gradients, again), np.nan)
            sizes[some] = steps @ t

        columns.run(job, (P, count), workers, block)
    error = -removal.amplify(moved)
    with np.errstate(all="ignore"):
        again = dots - np.einsum("gkn,gkn->g", moved, removal.times_C(error))
        first = np.einsum("gkn,gkn->g", u, removal.r) + sizes
        contraction = np.sqrt(np.abs(again)) / np.sqrt(np.abs(first))
    error[np.isnan(dots)] = np.nan
    return error, np.where(again == 0.0, 0.0, contraction)
