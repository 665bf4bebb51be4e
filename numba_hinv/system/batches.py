"""The chains of a data set's batches, each a `System`: kept in memory where they fit, and made again otherwise."""

import functools

import numpy as np

from ..kernels.dense import product
from ..kernels.steps.layer_table import BLOCKS
from ..layers.model import only_curvature_of_loss
from ..runtime import memory_budget, threads
from .system import System

# Batches that are not kept take so many bytes, and this many samples at least, with which assembling H is efficient.
_BATCH_BYTES, _BATCH = 1 << 26, 512


def bytes_of_sample(model):
    """Bytes of the derivative blocks of one sample, beside what they take for any number."""
    return model.block_bytes(2) - model.block_bytes(1)


def batch_size_for(model):
    """Samples of a batch, where the caller does not say."""
    affordable = _BATCH_BYTES // bytes_of_sample(model)
    return max(_BATCH, affordable // _BATCH * _BATCH)


def workers(table, num_samples, num_vectors=1):
    """Threads for sweeps that each go through the samples of a batch, with so many vectors.

    One where the derivatives of a layer come from outside, since that code may not be fit for threads.
    """
    if ((table["kind"] == BLOCKS) & (table["taps"] == 0)).any():
        return 1
    flops = num_samples * num_vectors * int((table["rows"] * table["p"]).max())
    return threads.num_workers(None, threads.available_cores(), flops >= product.BLAS_WORK)


class Batches:
    """Pairs ``(weight, System)`` of all batches of samples, by `jobs` that can be asked for again.

    The loss of a batch is the sum of those of its samples, with their weights, over their number; the weight of a batch
    makes the loss of all samples of these, be it a mean or a sum.

    Parameters
    ----------
    model : Model
    params : (P,) array of float64
    samples : Samples
    curvature : "hessian" or "ggn"
    keep_bytes : int
        Derivative blocks of so many bytes are kept: those of the first batches, where these come in an order, else
        those of all or of none.

    Attributes
    ----------
    loss, gradient
        Of all samples.
    num_samples : int
    total_weight : float
        As `Model.total_weight` has it.
    """

    def __init__(self, model, params, samples, curvature, keep_bytes, tick=lambda num_samples: None):
        self.model, self.params, self.samples, self.curvature = model, params, samples, curvature
        self.kept, room, is_room = [], keep_bytes, True
        loss, gradient, self.total_weight = 0.0, np.zeros_like(params), 0.0
        for system, value, slope, weight in threads.in_order(self._jobs(), self._workers()):
            self.total_weight += weight
            count = system.num_samples
            loss += count * value
            gradient += count * slope
            nbytes = sum(block.nbytes for block in system.lin)
            is_room = is_room and nbytes <= room
            if is_room:
                self.kept.append(system)
                room -= nbytes
            elif not samples.come_in_order:
                self.kept.clear()
            tick(count)
        self.num_samples = samples.num_samples
        self._divisor = model.normaliser(self.total_weight) / model.num_terms
        self.loss, self.gradient = loss / self._divisor, gradient / self._divisor
        self.are_kept = is_room

    @property
    def largest_batch(self):
        """Samples of the largest batch."""
        return min(self.samples.batch_size, self.num_samples)

    def _workers(self):
        if (self.model.chain.kind == BLOCKS).any():
            return 1
        table, _ = self.model.head.table(self.samples.batch_size, np.float64)
        return workers(table, self.samples.batch_size)

    def _jobs(self, num_kept=0):
        """Functions that give `System`, loss, gradient and total weight of all batches but the first ones."""
        for index, (X, targets) in enumerate(self.samples):
            if index >= num_kept:
                yield functools.partial(self._linearised, index, X, targets)

    def _linearised(self, index, X, targets):
        try:
            count = len(targets) * self.model.num_terms
            lin, loss, gradient = self.model.linearise(self.params, X, targets, 2, count)
        except ValueError as error:
            first = index * self.samples.batch_size
            raise ValueError(f"{error} (samples {first} to {first + X.shape[0] - 1})") from None
        if self.curvature == "ggn":
            only_curvature_of_loss(lin)
        head = self.model.head
        layout = head.layout(X.shape[0], np.float64)
        system = System(head.chain, head.all_params(self.params), lin, layout=layout)
        return system, loss, gradient, self.model.total_weight(targets)

    def jobs(self):
        """Functions that each give a pair ``(weight, System)``, for threads."""
        share = 1.0 / self._divisor
        for system in self.kept:
            yield functools.partial(tuple, (share * system.num_samples, system))
        if not self.are_kept:
            for make in self._jobs(len(self.kept)):
                yield functools.partial(_weighted, share, make)


def _weighted(share, make):
    system, *_ = make()
    return share * system.num_samples, system


def default_keep_bytes():
    """Half of the memory that is available."""
    available = memory_budget.available_bytes()
    return 1 << 30 if available is None else available // 2
