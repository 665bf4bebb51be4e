"""Covariances of a net's outputs under the inverse of H + damping I: ``J_i A^-1 J_i^T`` of samples, or groups of them.

J_i is the Jacobian of the outputs of sample i in the parameters; for a group of k samples it has the rows of all of
them, so that the covariance has k n_L rows. There are three ways: those of all training samples are blocks of the last
Sigma of the recursion over the layers (docs/theory.md, section 6.1); where one dense matrix was factored, sums over the
tangents along the columns of a square root of the inverse, which no Jacobian is needed for; else refined solves with
the rows of the Jacobians, of a few samples at a time.
"""

import numpy as np

from ..certainty import covariance
from ..factors.elimination import no_tick
from ..layers import per_sample
from ..runtime import columns, memory_budget, threads
from ..system.system import System

# Entries of the Jacobians that are solved with at a time.
_BLOCK = 1 << 22
# Relative error of covariances by solves without refinement, which cost a third, below which they are good enough.
ACCURATE = 1e-10
# Numbers of the tangents of a chunk of samples.
_TANGENTS = 1 << 22
# Samples of a chunk, at most, so that threads have something to do.
_CHUNK = 256
# What a row of a Jacobian costs, in tangents of one sample: P = 100 to 1,500.
_ROW = 4.0


def of_training(F, data, members, num_threads=None):
    """The covariances of groups of the training samples, (g, k n_L, k n_L).

    Parameters
    ----------
    F : Factorization
        Of the Hessian of ``data``.
    data : TrainingSet
    members : (g, k) integers
        The samples of each group, ascending.
    """
    n = data.model.layers[-1].out_features
    memory_budget.require(
        8 * members.size * members.shape[1] * n * n,
        f"the covariances of {len(members)} groups of {members.shape[1]} samples with {n} outputs",
        "make smaller groups",
    )
    whole = covariance.outputs(F.solver) if data.hessian.system.has_layers else None
    if whole is None:
        return of_samples(F, data.model, data.params, data.inputs, members, num_threads)
    at = (members[:, :, None] * n + np.arange(n)).reshape(len(members), -1)
    return whole[at[:, :, None], at[:, None, :]]


def of_samples(F, model, params, read, members, num_threads=None, tick=no_tick):
    """The same of any samples; ``read(indices)`` gives the inputs of some, (k, in_features).

    ``tick(g)`` is called after every g groups.
    """
    P, n = params.size, model.layers[-1].out_features
    # Of one sample and one direction: tangents along all of the root's columns, which cost P^3, or solves.
    if F.method == "dense" and P + 4.0 * members.size < _ROW * n * members.size:
        purpose = f"a square root of the inverse, of P = {P} parameters"
        memory_budget.require(16 * P * P, purpose, "take method='layers'")
        root = covariance.root(F.solver, 0, P)
        if root is not None:
            return _by_tangents(F, model, params, read, members, root, num_threads, tick)
    return _by_solves(F, model, params, read, members, num_threads, tick)


def chain_of(model, params, X):
    """The chain of a few samples, of which the tangents of the outputs are wanted."""
    lin = model.linearise_outputs(params, X)
    head = model.head
    return System(head.chain, head.all_params(params), lin, layout=head.layout(len(X), params.dtype))


def _by_tangents(F, model, params, read, members, root, num_threads, tick):
    P, n, (count, k) = params.size, model.layers[-1].out_features, members.shape
    block = columns.largest_block(P)
    widths = int(model.chain.n_in.sum() + model.chain.n_out.sum())
    size = max(1, min(_CHUNK, _TANGENTS // (block * widths)) // k)
    found = np.zeros((count, k * n, k * n))

    def job(start, check):
        part = members[start : start + size]
        system = chain_of(model, params, read(part.ravel()))
        for first in range(0, P, block):
            check()
            tangents = system.output_tangents(root[first : first + block], check).reshape(-1, len(part), k * n)
            found[start : start + size] += tangents.transpose(1, 2, 0) @ tangents.transpose(1, 0, 2)
        tick(len(part))

    starts = range(0, count, size)
    workers = threads.num_workers(num_threads, len(starts), F.hessian.system.solves_reach_blas())
    _run([lambda check, start=start: job(start, check) for start in starts], workers)
    return _symmetric(found)


def _by_solves(F, model, params, read, members, num_threads, tick):
    P, n, (count, k) = params.size, model.layers[-1].out_features, members.shape
    size = max(1, min(count, _BLOCK // (P * k * n)))
    memory_budget.require(
        32 * size * k * n * P,
        f"the Jacobians of {size * k} samples with {n} outputs",
        "free memory: it is for one group at least",
    )
    refine = not F.solver.contraction() <= ACCURATE
    found = np.empty((count, k * n, k * n))
    for start in range(0, count, size):
        part = members[start : start + size]
        X = read(part.ravel())
        jacobians = per_sample.jacobians(model, params, X)[1].reshape(-1, P)
        solved = F.solve(jacobians.T, refine, num_threads=num_threads, progress=False).T.reshape(len(part), k * n, P)
        found[start : start + size] = jacobians.reshape(solved.shape) @ solved.transpose(0, 2, 1)
        tick(len(part))
    return _symmetric(found)


def _run(jobs, workers):
    try:
        threads.run(jobs, workers)
    except threads.JobFailed as failure:
        raise failure.__cause__ from None


def _symmetric(blocks):
    return 0.5 * (blocks + blocks.transpose(0, 2, 1))
