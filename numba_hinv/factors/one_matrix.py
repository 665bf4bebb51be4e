"""What all ways have in common that factor H as one dense matrix; its ``eigenvalues``, or its pivots', say the rest."""

import numpy as np

from .interface import Factors


class OneMatrix(Factors):
    """Factors of ``2^-k (H + shift I)`` as one matrix.

    A way sets ``matrix``, ``shift`` and ``eigenvalues``, (P,), of the matrix or of its pivots.
    """

    method = "dense"

    @property
    def is_altered(self):
        return self.shift != self.matrix.eps

    @property
    def num_negative(self):
        return int((self.eigenvalues < 0).sum())

    def log_pivots(self):
        k = self.matrix.scale.matrix
        return float(np.log(np.abs(self.eigenvalues)).sum()) + self.matrix.size * (k * float(np.log(2.0)))

    def rounding_of_pivots(self):
        """Unknown: an eigenvalue can be far below the smallest pivot, so that the contraction of refinement decides."""
        return np.inf

    def has_tiny_pivots(self, threshold):
        sizes = np.abs(self.eigenvalues)
        return bool(sizes.min() < threshold**2 * sizes.max())

    def layer_of_smallest_pivot(self):
        return self.layer_of(int(np.argmin(np.abs(self.eigenvalues))))

    def layer_of(self, parameter):
        """The layer that a parameter belongs to."""
        return int(np.searchsorted(self.matrix.system.table["parameters"], parameter, side="right")) - 1
