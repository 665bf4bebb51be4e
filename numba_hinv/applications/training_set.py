"""A net's training samples with its Hessian, as what leaves samples out needs them: some of them, or all but some."""

import warnings

import numpy as np
from scipy.linalg import LinAlgWarning

from ..certainty.inertia import best_count
from ..factorization import Factorization
from ..factors import choice
from ..hessian import Hessian
from ..layers.samples import Samples
from ..network import Network
from ..runtime import threads
from ..system.batches import batch_size_for


class TrainingSet:
    """Samples that a net was trained on, and the Hessian of their mean loss with its L2 term.

    Parameters
    ----------
    net : Network
    params, X, y, curvature, l2, batch_size, keep_bytes
        As for `Network.hessian`, but y is needed.
    method : str
        By which the Hessian will be factorized.
    sample_weight : (B,) array, optional
        As for `Network.hessian`.
    progress : bool, optional
        Likewise.

    Attributes
    ----------
    hessian : Hessian
    samples : Samples
    params : (P,) array of float64
    num_samples : int
        B.
    normaliser : float
        What the sum of the samples' losses, with their weights, is divided by.
    """

    def __init__(
        self,
        net,
        params,
        X,
        y,
        curvature,
        l2,
        batch_size=None,
        keep_bytes=None,
        method="auto",
        sample_weight=None,
        progress=None,
    ):
        if not isinstance(net, Network):
            raise TypeError(f"net: expected a Network, got {type(net).__name__}")
        if y is None:
            raise TypeError(
                "y: expected targets of the samples of an array X, got None; batches from a loader have no order that "
                "says which sample is which"
            )
        self.net, self.model = net, net.model
        options = {
            "curvature": curvature,
            "l2": l2,
            "keep_bytes": keep_bytes,
            "sample_weight": sample_weight,
            "progress": progress,
        }
        H = net.hessian(params, X, y, batch_size=batch_size, **options)
        size = batch_size_for(self.model)
        if H.system.has_layers and H.num_samples > size and self._is_dense(H, method):
            # Then nothing needs the blocks of all samples at the same time, and their tangents would take much memory.
            H = net.hessian(params, X, y, batch_size=size, **options)
        self.hessian, self.params, self.num_samples = H, H.system.params, H.num_samples
        self.samples = Samples(self.model, X, y, size if batch_size is None else batch_size, sample_weight)
        self.normaliser = self.model.normaliser(H.total_weight)

    @staticmethod
    def _is_dense(H, method):
        return choice.chosen(H.system, H.system.params.dtype, method) == "dense"

    @property
    def gradient(self):
        """Of the loss at params, (P,), L2 term included."""
        return self.hessian.gradient.astype(np.float64, copy=False)

    def terminals(self):
        """(outputs (B, n), gradient (B, n) and curvature (B, n, n) of the loss in them), as parts of the whole loss."""
        found = []
        for X, targets in self.samples:
            output = self.model.forward(self.params, X)
            found.append((output, *self.model.terminal(output, targets, None, self.normaliser)[1:]))
        return tuple(map(np.concatenate, zip(*found)))

    def own_slopes(self, outputs):
        """The gradient of each sample's own loss in its outputs, (B, n), at these."""
        found, start = np.empty_like(outputs), 0
        for _, targets in self.samples:
            part = slice(start, start + len(targets))
            found[part] = self.model.terminal(outputs[part], targets.each_once(), None, self.model.num_terms)[1]
            start = part.stop
        return found

    def own_losses(self, outputs):
        """The loss of each sample at these outputs (B, n), (B,), with whatever numbers."""
        found, first = np.empty(len(outputs)), 0
        for _, targets in self.samples:
            for i in range(len(targets)):
                one = targets[i : i + 1].each_once()
                found[first + i] = self.model.loss_at(
                    outputs[first + i : first + i + 1], one, None, self.model.num_terms
                )[0]
            first += len(targets)
        return found

    def inputs(self, indices):
        """The inputs of some samples, (k, in_features)."""
        return self.samples.some(indices)[0]

    def tangents(self, rows, check=threads.no_check):
        """How the outputs of all samples move with the parameters, (k, B, n), along rows (k, P)."""
        return np.concatenate([part.output_tangents(rows, check) for _, part in self.hessian.system.parts()], axis=1)

    def pull(self, indices, slopes):
        """The Jacobian's transpose of the outputs of some samples, times slopes (k, n) in these."""
        lin = self.model.propagate(self.params, self.inputs(indices), 1)
        return self.model.pull(self.params, lin, slopes)

    def gradient_without(self, params, indices):
        """The part that all other samples have in the gradient of the loss, (P,), with whatever numbers."""
        is_left_out, start, total = np.zeros(self.num_samples, bool), 0, np.zeros(params.size)
        is_left_out[indices] = True
        # Of every thread its own.
        with np.errstate(over="ignore", invalid="ignore"):
            for X, y in self.samples:
                stop = start + len(X)
                lin = self.model.propagate(params, X, 1)
                slopes = self.model.loss_at(lin.output, y, None, self.normaliser)[1]
                slopes[is_left_out[start:stop]] = 0.0
                total += self.model.pull(params, lin, slopes)
                start = stop
        return total

    def without(self, indices):
        """All other samples, as `Network.gradient` takes them: (X, y), or a function that gives batches and None."""
        is_kept = np.ones(self.num_samples, bool)
        is_kept[indices] = False
        if self.samples.are_in_memory:
            X, y = self.samples.some(np.flatnonzero(is_kept))
            return X, self._as_given(y)

        def batches():
            start = 0
            for X, y in self.samples:
                kept = is_kept[start : start + len(X)]
                start += len(X)
                if kept.any():
                    yield X[kept], self._as_given(y[kept])

        return batches, None

    def _as_given(self, targets):
        """Checked targets, fit to be checked again: labels as integers."""
        return targets.values[:, 0].astype(np.int64) if self.model.loss.has_labels else targets.values

    def factorize(self, damping, method, consequence, stacklevel, share=1.0, progress=None):
        """(`Hessian.factorize` in float64, whether it is positive definite); warns of the ``consequence`` if not.

        damping : float or (P,) array
        ``share`` is that of the layers' second derivatives in H.
        """
        H = self.hessian
        if share != 1.0 and H.curvature == "hessian":
            H = Hessian(H.system.with_bending(share), H.dtype, H.loss, H.network)
        number, vector = (damping, None) if np.ndim(damping) == 0 else (0.0, damping)
        F = Factorization.compute(H, number, np.float64, progress=progress, method=method, dampings=vector)
        negative, is_certain = best_count(F.solver)
        if negative or not is_certain:
            doubt = "eigenvalues too close to 0 to know their signs"
            found = f"{negative} negative eigenvalues" if is_certain else doubt
            cause = "params are no minimum of the loss" if is_certain else "params may be no minimum of the loss"
            warnings.warn(
                f"H + damping I has {found} with damping={np.max(damping):g}: {cause}, where {consequence}; "
                "expected a trained net, or a larger damping",
                LinAlgWarning,
                stacklevel=stacklevel + 1,
            )
        return F, not negative and is_certain
