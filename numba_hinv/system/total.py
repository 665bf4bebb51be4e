"""A weighted sum of systems of one chain: H of a data set in batches, or of several Hessians.

It has products, a norm and a dense form. The sum of chains is no chain, so that it is factored as one dense matrix.
"""

import functools

import numpy as np

from ..kernels.plumbing import binding
from ..kernels.steps.layer_table import layer_table
from ..runtime import memory_budget, threads
from . import dense, scaling
from .batches import workers
from .cpu import CPU
from .matrix import Matrix
from .processor import require_cpu


class Terms:
    """Pairs ``(weight, System)`` of a weighted sum of matrices, by `jobs` that can be asked for again.

    Parameters
    ----------
    matrices : list of (float, Matrix)
    """

    def __init__(self, matrices):
        self.matrices = matrices

    @property
    def are_kept(self):
        """Whether all are in memory."""
        return all(matrix.has_layers or matrix.terms.are_kept for _, matrix in self.matrices)

    @property
    def largest_batch(self):
        """Samples of the largest term."""
        return max(matrix.largest_batch for _, matrix in self.matrices)

    def jobs(self):
        """Functions that each give such a pair, for threads."""
        for weight, matrix in self.matrices:
            for job in matrix.jobs():
                yield functools.partial(_weighted, weight, job)


def _weighted(weight, job):
    share, system = job()
    return weight * share, system


class Bent:
    """The same pairs, of systems with a share of the layers' second derivatives."""

    def __init__(self, terms, share):
        self.terms, self.share = terms, share

    @property
    def are_kept(self):
        """Whether all are in memory."""
        return self.terms.are_kept

    @property
    def largest_batch(self):
        """Samples of the largest term."""
        return self.terms.largest_batch

    def jobs(self):
        """Functions that each give such a pair, for threads."""
        for job in self.terms.jobs():
            yield functools.partial(_bent, self.share, job)


def _bent(share, job):
    weight, system = job()
    return weight, system.with_bending(share)


class Total(Matrix):
    """``sum of weight H`` over pairs ``(weight, System)``, plus ``l2 I``.

    Parameters
    ----------
    chain : Chain
    params : (P,) array of float64
    terms : `batches.Batches` or Terms, or None
        Of which L2 terms are no part. None where only the dense form is at hand.
    num_samples : int
        Of all terms.
    l2 : float
    gradient : (P,) array, optional
    norm : float, optional
    dense : (P, P) array, optional
        H, where it is known.
    first, ridge
        As `Matrix` has them. Of ridges of terms, nothing is part of it.
    """

    def __init__(
        self, chain, params, terms, num_samples, l2=0.0, gradient=None, norm=None, dense=None, first=0, ridge=None
    ):  # fmt: skip
        super().__init__(params, l2, gradient, CPU, norm, first, ridge)
        self.chain, self.terms, self.num_samples = chain, terms, num_samples
        self._dense = dense
        # Where the parameters of each layer are does not depend on the samples.
        self.table, self.sizes = layer_table(chain, 1)

    def __getstate__(self):
        state = self.__dict__.copy()
        del state["_making"], state["table"], state["sizes"]
        if self.has_dense:
            # Whatever gives the samples may not be fit for another process.
            state["terms"] = None
        return state

    def __setstate__(self, state):
        found = state["_dense"]
        self._begin()
        self.__dict__.update(state, _dense=found)
        self.table, self.sizes = layer_table(self.chain, 1)

    def to_arrays(self):
        """(plain data, named NumPy arrays) of which a file is made: H itself stands for its terms."""
        header = {
            "chain": {name: values.tolist() for name, values in self.chain._asdict().items()},
            "num_samples": self.num_samples,
            "l2": self.l2,
            "first": self.first,
            "norm": self.norm(),
            "is_total": True,
        }
        arrays = {"params": self.params, "dense": self.kept_dense()}
        if self.ridge is not None:
            arrays["ridge"] = self.ridge
        return header, arrays if self.gradient is None else {**arrays, "gradient": self.gradient}

    @property
    def num_layers(self):
        """L."""
        return self.table.size

    @property
    def largest_batch(self):
        """Samples of the largest of `parts`."""
        return self.terms.largest_batch

    def jobs(self):
        """Functions that each give a pair (weight, `System`) of a batch; ``ValueError`` where only H is left."""
        if self.terms is None:
            raise ValueError("H: expected a Hessian with its samples, got one from a file or another process")
        return self.terms.jobs()

    def with_bending(self, share):
        """The same with this share of the layers' second derivatives: with 0, the Gauss-Newton matrix."""
        bent = Bent(self.terms, share)
        options = {"first": self.first, "ridge": self.ridge}
        return Total(self.chain, self.params, bent, self.num_samples, self.l2, self.gradient, **options)

    def reaches_blas(self):
        """Whether factorizing has products that are large enough for BLAS."""
        return True

    solves_reach_blas = reaches_blas

    def num_free(self):
        """Parameters that no sample sees, as far as is known."""
        return 0

    def scaling(self, damping, dtype):
        """The `Scaling` of ``H + damping I`` for factors in ``dtype``: of the matrix alone, there being no states."""
        return scaling.choose(np.zeros(self.num_layers + 1), self.table["skip"], self.norm() + abs(damping), dtype)

    def dense(self, out=None, num_threads=None, check=threads.no_check, progress=False):
        return dense.total(self, out, num_threads, check, progress)

    def multiply(self, rows, scale=None, shift=0.0, b=None, check=threads.no_check, out=None, squares=None):
        k = 0 if scale is None else scale.matrix
        if self.has_dense:
            return self.multiply_dense(rows, k, shift, check, b, out)
        found = np.empty_like(rows) if out is None else out
        found.fill(0.0)
        binding.load(np.dtype(np.float64))

        def product(job):
            weight, system = job()
            product = system.multiply(rows, check=check)
            product *= weight
            return product

        jobs = (functools.partial(product, job) for job in self.jobs())
        for one in threads.in_order(jobs, workers(self.table, self.largest_batch, rows.shape[0])):
            found += one
        if k:
            np.ldexp(found, -k, out=found)
        if shift:
            found += shift * rows
        self._add_ridge(k, rows, False, found)
        return found if b is None else np.subtract(b, found, out=found)

    def with_ridge(self, ridge):
        found = self.moved_dense(ridge) if self.has_dense else None
        options = {"dense": found, "first": self.first, "ridge": ridge}
        return Total(self.chain, self.params, self.terms, self.num_samples, self.l2, self.gradient, **options)

    def norm(self):
        if self._norm is None and not self.has_dense and self.terms is not None and not self.terms.are_kept:
            # Each product would go through all samples; and what asks for the norm needs the matrix next.
            if memory_budget.fits(16 * self.num_params**2):
                self.kept_dense()
        return super().norm()


def weighted_sum(weights, systems, dtype):
    """`Total` of systems of one chain at the same parameters, with L2 terms and gradients; the latter in ``dtype``."""
    first = systems[0]
    for index, system in enumerate(systems):
        require_cpu(system.on, "a sum of Hessians")
        sizes = [matrix.chain.p.size for matrix in (first, system)]
        same_layers = sizes[0] == sizes[1] and all(map(np.array_equal, first.chain, system.chain))
        if not same_layers or not np.array_equal(first.params, system.params):
            what = "parameters" if same_layers else "layers"
            raise ValueError(f"hessians: expected the same {what} in all, got others at index {index}")
    pairs, gradient = list(zip(weights, systems)), None
    if all(system.gradient is not None for system in systems):
        gradient = sum(weight * system.gradient.astype(np.float64) for weight, system in pairs).astype(dtype)
    l2, num_samples = sum(weight * system.l2 for weight, system in pairs), sum(system.num_samples for system in systems)
    ridge = None
    if any(system.ridge is not None for system in systems):
        ridge = sum(weight * (0.0 if system.ridge is None else system.ridge) for weight, system in pairs)
    terms = Terms([(weight, system.bare()) for weight, system in pairs])
    return Total(first.chain, first.params, terms, num_samples, l2, gradient, first=first.first, ridge=ridge)
