"""What a sample is made of: standard normal numbers as the solve's sweep forth takes them.

With Xi standard normal, a layer's slice of a flat vector as a matrix (n_out x d), ``Xi Q`` and ``Xi - Xi Q Q^T`` are
independent: the first moves W1 (docs/theory.md, section 6), the second moves the parameters that no sample sees. So
`substitute_forth` with ``y = Xi Q`` and ``b = sqrt(eps) Xi`` is a square root of (H + eps I)^-1 where all pivots are
positive: one vector of P numbers makes one sample.
"""


from ..plumbing.compiled import kernel
from ..plumbing.memory import copy, matrix
from ..steps.layer_table import BLOCKS
from ..steps.row_space import project


@kernel
def project_all(table, start, stop, row_space, b, x):
    """The slices of x <- those of b (k, P), projected: what `substitute_forth` expects in layers start..stop-1."""
    k, P = b.shape
    for l in range(start, stop):
        layer = table[l]
        for t in range(k):
            at = t * P + layer.parameters
            if layer.kind == BLOCKS:
                copy(layer.p, b, at, x, at)
            else:
                project(layer, row_space, b, at, matrix(x, at, layer.r, layer.units))
