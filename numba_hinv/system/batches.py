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
    if (table["kind"] == BLOCKS).any():
        return 1
    flops = num_samples * num_vectors * int((table["rows"] * table["p"]).max())
    return threads.num_workers(None, threads.available_cores(), flops >= product.BLAS_WORK)


class Batches:
    """Pairs ``(weight, System)`` of all batches of samples, by `jobs` that can be asked for again.

    The weight of a batch is its share of the samples, so that losses and gradients that are means over a batch add up to
    the mean over all.

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
    """

    def __init__(self, model, params, samples, curvature, keep_bytes, tick=lambda num_samples: None):
        self.model, self.params, self.samples, self.curvature = model, params, samples, curvature
        self.kept, room, is_room = [], keep_bytes, True
        loss, gradient = 0.0, np.zeros_like(params)
        for system, value, slope in threads.in_order(self._jobs(), self._workers()):
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
        self.loss, self.gradient = loss / self.num_samples, gradient / self.num_samples
        self.are_kept = is_room

    @property
    def largest_batch(self):
        """Samples of the largest batch."""
        return min(self.samples.batch_size, self.num_samples)

    def _workers(self):
        table, _ = self.model.table(self.samples.batch_size, np.float64)
        return workers(table, self.samples.batch_size)

    def _jobs(self, num_kept=0):
        """Functions that give `System`, loss and gradient of all batches but the first ones, which are read in turn."""
        for index, (X, y) in enumerate(self.samples):
            if index >= num_kept:
                yield functools.partial(self._linearised, index, X, y)

    def _linearised(self, index, X, y):
        try:
            lin, loss, gradient = self.model.linearise(self.params, X, y, 2)
        except ValueError as error:
            first = index * self.samples.batch_size
            raise ValueError(f"{error} (samples {first} to {first + X.shape[0] - 1})") from None
        if self.curvature == "ggn":
            only_curvature_of_loss(lin)
        layers = self.model.table(X.shape[0], np.float64)
        return System(self.model.chain, self.params, lin, layers=layers), loss, gradient

    def jobs(self):
        """Functions that each give a pair ``(weight, System)``, for threads."""
        share = 1.0 / self.num_samples
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
