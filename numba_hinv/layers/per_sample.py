"""What each sample of a batch has by itself: the Jacobian of its outputs, and second derivatives in its inputs."""

import numpy as np

from ..kernels.steps.assembly_table import assembly
from ..kernels.steps.layer_table import BLOCKS
from ..kernels.sweeps import assemble, multiply, per_sample
from ..runtime import memory_budget

# Samples that are linearised at a time.
_CHUNK = 256


def jacobians(model, params, X):
    """(outputs (B, n_L), their derivatives in the parameters (B, n_L, P)), in float64 from such params and X."""
    model, X = model.head, model.features(X)
    B, outputs, P = X.shape[0], model.layers[-1].out_features, params.size
    way_out = "take fewer samples at a time, or products: net.hessian(..., curvature='ggn') never forms them"
    memory_budget.require(8 * B * outputs * P, f"Jacobians of B = {B} samples, {outputs} outputs, P = {P}", way_out)
    values, found = np.empty((B, outputs)), np.zeros((B, outputs, P))
    has_blocks = (model.chain.kind == BLOCKS).any()
    for start in range(0, B, _CHUNK):
        part = X[start : start + _CHUNK]
        table, _ = model.table(part.shape[0], np.float64)
        lin = model.propagate(params, part, 2 if has_blocks else 0)
        model.check_output(lin, params, part)
        if has_blocks:
            # Leaves Dx and Dz, which no gradient of the loss has a part in.
            model.backpropagate(params, lin, np.zeros_like(lin.output), 2)
        all_params = model.all_params(params)
        places, kept = _prepared(table, all_params, lin)[:2]
        work = np.empty(3 * outputs * max(int(table["n_in"].max()), int(table["n_out"].max())))
        of_part = found[start : start + _CHUNK].reshape(-1)
        per_sample.jacobians(table, places, all_params, lin, kept, 0, part.shape[0], work, of_part)
        values[start : start + _CHUNK] = lin.output
    return values, found


def input_hessians(model, params, X, targets):
    """(B, n, n) Hessians of each sample's own loss in its inputs, likewise; weights of samples count for nothing."""
    B, n = X.shape
    memory_budget.require(8 * B * n * n, f"Hessians of B = {B} samples in {n} inputs", "take fewer samples at a time")
    found, targets, all_params = np.empty((B, n, n)), targets.each_once(), model.all_params(params)
    terms = 1.0 if model.loss.reduction == "sum" else float(model.num_terms)
    for start in range(0, B, _CHUNK):
        part = X[start : start + _CHUNK]
        memory_budget.require(model.block_bytes(part.shape[0]), f"derivative blocks of {part.shape[0]} samples")
        lin = model.linearise_whole(params, part, targets[start : start + _CHUNK], 2, terms)[0]
        table = model.table(part.shape[0], np.float64)[0].copy()
        # There is something before the first layer, too: the inputs.
        table["N"][0] = part.shape[0] * n
        places, kept, size = _prepared(table, all_params, lin)
        of_part, work = found[start : start + _CHUNK], np.empty(size)
        per_sample.input_hessians(table, places, all_params, lin, kept, 0, part.shape[0], work, of_part)
    return found


def input_slopes_along(model, params, X, targets, direction, normaliser):
    """How the gradient of the loss in the inputs moves with the parameters along a direction (P,): (B, n).

    That is the gradient in the inputs of the loss's derivative along the direction. The two sweeps of a product with
    the Hessian have it where the inputs are states as well, which do not move themselves; normaliser as for
    `Model.terminal`.
    """
    found, V, all_params = np.empty(X.shape), direction.reshape(1, -1), model.all_params(params)
    for start in range(0, X.shape[0], _CHUNK):
        part = X[start : start + _CHUNK]
        memory_budget.require(model.block_bytes(part.shape[0]), f"derivative blocks of {part.shape[0]} samples")
        lin = model.linearise_whole(params, part, targets[start : start + _CHUNK], 2, normaliser)[0]
        table, sizes = model.table(part.shape[0], np.float64)
        table = table.copy()
        table["N"][0] = part.size
        dZ, dU, q, patches = multiply.workspace(sizes, 1, part.shape[0], np.float64)
        dZ[: part.size] = 0.0
        multiply.tangents(table, 0, table.size, all_params, lin, V, dZ, dU, patches)
        HV, none = np.empty_like(V), np.empty((0, 2))
        multiply.adjoints(table, 0, table.size, all_params, lin, V, HV, dZ, dU, q, patches, 0.0, V[:0], none)
        found[start : start + _CHUNK] = q[0, : part.size].reshape(part.shape)
    return found


def diagonal(table, params, lin):
    """(P,) diagonal of the H that derivative blocks are of; ``params`` as the sweeps read them."""
    places, kept, size = _prepared(table, params, lin)
    found = np.zeros(int(table["p"].sum()))
    per_sample.diagonal(table, places, params, lin, kept, 0, lin.output.shape[0], np.empty(size), found)
    for layer in table[table["kind"] == BLOCKS]:
        p, at, block = (int(layer[name]) for name in ("p", "parameters", "Dxx"))
        found[at : at + p] += lin.Dxx[block : block + p * p : p + 1][:p]
    return found


def _prepared(table, params, lin):
    """(places, kept numbers, size of the scratch) of chunks of one sample."""
    plan = assembly(table, 1, 1, 1, assemble.SLICE_ROWS)
    kept = np.empty(plan.kept)
    memory_budget.require(8 * plan.curve, "what one sample's curvature takes")
    assemble.prepare(table, plan.places, params, lin, kept)
    return plan.places, kept, plan.curve
