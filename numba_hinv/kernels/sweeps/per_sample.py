"""What each sample has by itself: its Jacobian, its Hessian in the inputs, and its part of the diagonal of H.

Recursions of docs/theory.md, section 13, one sample at a time: ``places`` are of chunks of one, and `assemble.prepare`
has unfolded convolutions into ``kept``.
"""

from ..dense.microkernel import pointer
from ..dense.product import gemm_nn
from ..plumbing.compiled import inner, kernel
from ..plumbing.memory import add, fill, vector
from ..steps.curvature import inputs, sample_curve, weights
from ..steps.layer_table import BLOCKS
from ..steps.local import pull_kept


@kernel
def input_hessians(table, places, params, lin, kept, first, last, work, out):
    """``out`` (last - first, n, n) <- the second derivatives of the loss in the inputs of samples first..last-1.

    The first layer of ``table`` has N > 0, as others have.
    """
    n, size = table[0].n_in, work.size // 4
    found = vector(work, size * (table.size % 2), size)
    for i in range(first, last):
        sample_curve(table, places, params, lin, i, 0, kept, work)
        for j in range(n):
            for k in range(n):
                # The recursion leaves it symmetric but for rounding.
                out[i - first, j, k] = 0.5 * (found[j * n + k] + found[k * n + j])


@inner
def _structured_diagonal(layer, place, kept, out):
    """Of ``sum_st Zt_s Zt_t V_st`` of each unit, s and t being positions."""
    n, T, w = layer.n_out, layer.positions, layer.fan_in
    for a in range(layer.units):
        at, bias = layer.parameters + a * w, layer.parameters + layer.units * w + a
        for s in range(T):
            for t in range(T):
                v = kept[place.V + (a * T + s) * n + a * T + t]
                one, other = place.X + s * place.stride, place.X + t * place.stride
                for k in range(w):
                    out[at + k] += v * kept[one + k] * kept[other + k]
                if layer.bias:
                    out[bias] += v


@kernel
def diagonal(table, places, params, lin, kept, first, last, work, out):
    """Add to ``out`` (P,) what samples first..last-1 have on the diagonal of H, but for Dxx."""
    for i in range(first, last):
        sample_curve(table, places, params, lin, i, 0, kept, work)
        for l in range(table.size):
            layer, place = table[l], places[l]
            if layer.kind == BLOCKS:
                p, n = layer.p, layer.n_out
                for a in range(n):
                    for x in range(p):
                        out[layer.parameters + x] += lin.Dx[layer.Dx + (i * n + a) * p + x] * kept[place.V + a * p + x]
            elif layer.p > 0:
                _structured_diagonal(layer, place, kept, out)


@inner
def _structured_jacobian(layer, place, params, lin, i, kept, outputs, P, G, lam, G_in, out, at):
    """lam = G S; rows lam^T Zt of the Jacobian; G = lam A (+ G with a skip), for all outputs."""
    n, n_in, T, w = layer.n_out, layer.n_in, layer.positions, layer.fan_in
    inputs(layer, place, lin, i, 0, kept)
    for o in range(outputs):
        row = at + o * P + layer.parameters
        for u in range(n):
            lam[o * n + u] = G[o * n + u] * lin.S[layer.u + i * n + u]
            if layer.p == 0:
                continue
            a, t = divmod(u, T)
            x = place.X + t * place.stride
            for k in range(w):
                out[row + a * w + k] += lam[o * n + u] * kept[x + k]
            if layer.bias:
                out[row + layer.units * w + a] += lam[o * n + u]
    if layer.N > 0:
        A = weights(layer, place, params, kept)
        gemm_nn(outputs, n_in, n, 1.0, pointer(lam, 0), n, A, n_in, 0.0, pointer(G_in, 0), n_in)
        if layer.skip:
            add(outputs * n, G, 0, G_in, 0)


@kernel
def jacobians(table, places, params, lin, kept, first, last, work, out):
    """Add to ``out``, (last - first, n_L, P) as one vector, the outputs' derivatives in the parameters.

    Of ``lin``, Z and S are read, and Dx and Dz of layers given as blocks. work : scratch, 3 n_L times the largest
    width.
    """
    outputs, size = lin.output.shape[1], work.size // 3
    P = out.size // (outputs * (last - first))
    for i in range(first, last):
        at = (i - first) * outputs * P
        G, G_in, lam = vector(work, 0, size), vector(work, size, size), vector(work, 2 * size, size)
        fill(outputs * outputs, 0.0, G, 0)
        for o in range(outputs):
            G[o * outputs + o] = 1.0
        for l in range(table.size - 1, -1, -1):
            layer, place = table[l], places[l]
            if layer.kind == BLOCKS:
                n, n_in, p = layer.n_out, layer.n_in, layer.p
                Dx, to = pointer(lin.Dx, layer.Dx + i * n * p), pointer(out, at + layer.parameters)
                gemm_nn(outputs, p, n, 1.0, pointer(G, 0), n, Dx, p, 0.0, to, P)
                if layer.N > 0 and layer.taps > 0:
                    fill(outputs * n_in, 0.0, G_in, 0)
                    pull_kept(layer, lin, i, outputs, G, 0, n, G_in, 0, n_in)
                elif layer.N > 0:
                    Dz = pointer(lin.Dz, layer.Dz + i * n * n_in)
                    gemm_nn(outputs, n_in, n, 1.0, pointer(G, 0), n, Dz, n_in, 0.0, pointer(G_in, 0), n_in)
            else:
                _structured_jacobian(layer, place, params, lin, i, kept, outputs, P, G, lam, G_in, out, at)
            G, G_in = G_in, G
