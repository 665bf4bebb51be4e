"""Which layer it is whose numbers are not finite, for messages: looked for where something else is not."""

import numpy as np

from ..kernels.steps.layer_table import BLOCKS

# Samples that are gone through; those after them are likely to be of the same kind.
_SAMPLES = 1000


def blame(model, params, X, targets):
    """ "; layer l (...): its ... not finite for sample i" of a model's linearisation; "" where all of that is
    finite.
    """
    for i in range(min(X.shape[0], _SAMPLES)):
        found = _of_sample(model, params, X[i : i + 1], None if targets is None else targets[i : i + 1])
        if found is not None:
            l, what = found
            return f"; layer {model.first + l} ({model.layers[l]!r}): its {what} not finite for sample {i}"
    return ""


def _of_sample(model, params, x, target):
    """(layer, what of it is not finite) of one sample; None if all is."""
    table, _ = model.table(1, params.dtype)
    lin = model.propagate_whole(params, x, 2)
    for l in range(table.size):
        if not np.isfinite(_output(table, lin, l)).all():
            return l, "output is"
    if target is None:
        return None
    _, gradient, _ = model.loss_at(lin.output, target, lin.curvature, model.num_terms)
    model.backpropagate(params, lin, gradient, 2)
    # What is contracted with first derivatives that overflow, in layers after it, overflows as well.
    for order, names in ("first", ("Dx", "Dz")), ("second", ("Dxx", "Dzx", "Dzz")):
        for l in np.flatnonzero(table["kind"] == BLOCKS)[::-1].tolist():
            if not all(np.isfinite(_part(lin, name, table[l])).all() for name in names):
                return l, f"{order} derivatives are"
    return None


def _part(lin, name, layer):
    """A block of a layer for one sample."""
    n, n_in, p, taps = (int(layer[size]) for size in ("n_out", "n_in", "p", "taps"))
    sizes = {"Dx": n * p, "Dz": n * (2 * taps or n_in), "Dxx": p * p, "Dzx": p * n_in, "Dzz": n_in}
    sizes["Dzz"] *= 1 if taps else n_in
    start = int(layer[name])
    return getattr(lin, name)[start : start + sizes[name]]


def _output(table, lin, l):
    """What layer l leaves: the input of the next one."""
    if l + 1 == table.size:
        return lin.output
    start = int(table[l + 1]["z"])
    return lin.Z[start : start + int(table[l]["n_out"])]
