"""What the assembly of the dense matrix does at one layer and sample (docs/theory.md, section 13).

Going back, the curvature P in the layer's outputs, n x n, becomes that in its inputs while nothing is eliminated; V and
E are kept. Going forth, tangents T of some sources follow the states; they are kept transposed, one source a row.
A convolution is a dense layer here whose W acts on whole states (`unfold`).
"""

from ..dense.microkernel import pointer, shift
from ..dense.product import gemm_nn, gemm_nt, gemm_tn
from ..plumbing.compiled import inner
from ..plumbing.memory import add, fill, matrix, vector
from .layer_table import BLOCKS, CONVOLUTION, for_convolutions
from .local import pull_kept, push_kept
from .patches import channel_size, element, gather, kernel_size

# Rows of tangents that go through a layer in one product, so that small layers' products stay away from BLAS.
TANGENT_ROWS = 64


@for_convolutions
def unfold(layer, params, W, at):
    """``W[at:]`` <- A of one sample, n_out x n_in: the convolution's weights as they act on a state."""
    fill(layer.n_out * layer.n_in, 0.0, W, at)
    weights = matrix(params, layer.weights, layer.units, layer.fan_in)
    A = matrix(W, at, layer.n_out, layer.n_in)
    for j in range(layer.fan_in):
        channel, k = divmod(j, kernel_size(layer))
        for t in range(layer.positions):
            here = element(layer, k, t)
            if here < 0:
                continue
            column = channel * channel_size(layer) + here
            for a in range(layer.units):
                A[a * layer.positions + t, column] += weights[a, j]


@for_convolutions
def _gather_inputs(layer, place, lin, i, kept, at):
    """Patches of sample i, one a row, with ones for the bias."""
    gather(layer, lin.Z, layer.z + i * layer.n_in, kept, at, 1, place.stride)
    if layer.bias:
        for t in range(layer.positions):
            kept[at + t * place.stride + layer.fan_in] = 1.0


@inner
def inputs(layer, place, lin, i, j, kept):
    """The rows of ``Zt = [Z, 1]`` of sample i, which is the j-th of its chunk, with zeros behind them."""
    if layer.p == 0:
        return
    at = place.X + j * layer.positions * place.stride
    fill(layer.positions * place.stride, 0.0, kept, at)
    if layer.kind == CONVOLUTION:
        _gather_inputs(layer, place, lin, i, kept, at)
        return
    for k in range(layer.n_in):
        kept[at + k] = lin.Z[layer.z + i * layer.n_in + k]
    if layer.bias:
        kept[at + layer.n_in] = 1.0


@inner
def weights(layer, place, params, kept):
    """Pointer to A of one sample, n_out x n_in."""
    return pointer(kept, place.W) if layer.kind == CONVOLUTION else pointer(params, layer.weights)


@inner
def structured_curve(layer, place, params, lin, i, j, P, P_next, SP, Q, kept):
    """V = S P S + D; Q = J^T P; E^T = Q S + A^T D; P' = E^T A + delta Q, of sample i, the j-th of its chunk."""
    n, n_in = layer.n_out, layer.n_in
    S, D = vector(lin.S, layer.u + i * n, n), vector(lin.D, layer.u + i * n, n)
    V = matrix(kept, place.V + j * n * n, n, n)
    for a in range(n):
        for b in range(n):
            SP[a * n + b] = S[a] * P[a * n + b]
            V[a, b] = SP[a * n + b] * S[b]
        V[a, a] += D[a]
    inputs(layer, place, lin, i, j, kept)
    if layer.N == 0:
        return
    A, E = weights(layer, place, params, kept), matrix(kept, place.E + j * n_in * n, n_in, n)
    q, to = pointer(Q, 0), pointer(P_next, 0)
    gemm_tn(n_in, n, n, 1.0, A, n_in, pointer(SP, 0), n, 0.0, q, n)
    if layer.skip:
        add(n * n, P, 0, Q, 0)
    for k in range(n_in):
        for a in range(n):
            E[k, a] = Q[k * n + a] * S[a] + A[a * n_in + k] * D[a]
    gemm_nn(n_in, n_in, n, 1.0, pointer(E, 0), n, A, n_in, 0.0, to, n_in)
    if layer.skip:
        add(n * n, Q, 0, P_next, 0)


@for_convolutions
def _local_curve(layer, place, lin, i, j, P, P_next, Q, kept):
    """The same, E^T holding Dzx^T, with Q = Dz^T P."""
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    E = place.E + j * n_in * p
    for x in range(p):
        # A column of V, and one of E.
        for a in range(n):
            Q[a] = kept[place.V + (j * n + a) * p + x]
        fill(n_in, 0.0, P_next, 0)
        pull_kept(layer, lin, i, 1, Q, 0, n, P_next, 0, n_in)
        for k in range(n_in):
            kept[E + k * p + x] += P_next[k]
    # P is symmetric but for rounding: its rows times Dz, transposed, then the rows of that.
    fill(n * n_in, 0.0, P_next, 0)
    pull_kept(layer, lin, i, n, P, 0, n, P_next, 0, n_in)
    for a in range(n):
        for k in range(n_in):
            Q[k * n + a] = P_next[a * n_in + k]
    fill(n_in * n_in, 0.0, P_next, 0)
    for k in range(n_in):
        P_next[k * n_in + k] = lin.Dzz[layer.Dzz + i * n_in + k]
    pull_kept(layer, lin, i, n_in, Q, 0, n, P_next, 0, n_in)


@inner
def blocks_curve(layer, place, lin, i, j, P, P_next, Q, kept):
    """V = P Dx; E^T = Dz^T V + Dzx^T; P' = Dz^T P Dz + Dzz, likewise."""
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    V, q, front = pointer(kept, place.V + j * n * p), pointer(Q, 0), pointer(P, 0)
    gemm_nn(n, p, n, 1.0, front, n, pointer(lin.Dx, layer.Dx + i * n * p), p, 0.0, V, p)
    if layer.N == 0:
        return
    E = matrix(kept, place.E + j * n_in * p, n_in, p)
    Dzx = layer.Dzx + i * n_in
    for k in range(n_in):
        for x in range(p):
            E[k, x] = lin.Dzx[Dzx + x * layer.N + k]
    if layer.taps > 0:
        _local_curve(layer, place, lin, i, j, P, P_next, Q, kept)
        return
    Dz = pointer(lin.Dz, layer.Dz + i * n * n_in)
    gemm_tn(n_in, p, n, 1.0, Dz, n_in, V, p, 1.0, pointer(E, 0), p)
    gemm_nn(n, n_in, n, 1.0, front, n, Dz, n_in, 0.0, q, n_in)
    for k in range(n_in * n_in):
        P_next[k] = lin.Dzz[layer.Dzz + i * n_in * n_in + k]
    gemm_tn(n_in, n_in, n, 1.0, Dz, n_in, q, n_in, 1.0, pointer(P_next, 0), n_in)


@inner
def sample_curve(table, places, params, lin, i, j, kept, work):
    """V, E and the inputs of all layers for sample i, the j-th of its chunk.

    work : scratch. Where the first layer has states before it (N > 0), it ends with the curvature in these, n_in x
    n_in, in quarter ``table.size % 2``.
    """
    n_L, size = lin.output.shape[1], work.size // 4
    P, P_next = vector(work, 0, size), vector(work, size, size)
    SP, Q = vector(work, 2 * size, size), vector(work, 3 * size, size)
    for k in range(n_L * n_L):
        P[k] = lin.curvature[i, k // n_L, k % n_L]
    for l in range(table.size - 1, -1, -1):
        if table[l].kind == BLOCKS:
            blocks_curve(table[l], places[l], lin, i, j, P, P_next, Q, kept)
        else:
            structured_curve(table[l], places[l], params, lin, i, j, P, P_next, SP, Q, kept)
        P, P_next = P_next, P


@inner
def start_tangents(layer, is_structured, lin, begin, count, first, sources, T):
    """Tangents of the layer's outputs in its sources from ``first`` on, for samples begin..begin+count-1."""
    n = layer.n_out
    fill(count * sources * n, 0.0, T, 0)
    for j in range(count):
        for s in range(sources):
            slope = lin.S[layer.u + (begin + j) * n + first + s] if is_structured else 1.0
            T[(j * sources + s) * n + first + s] = slope


@inner
def structured_tangents(layer, place, params, lin, begin, count, sources, kept, T, T_next):
    """T_next = J T: (T^T A^T) S + delta T^T by rows."""
    n, n_in = layer.n_out, layer.n_in
    A, from_, to = weights(layer, place, params, kept), pointer(T, 0), pointer(T_next, 0)
    for first in range(0, count * sources, TANGENT_ROWS):
        rows = min(TANGENT_ROWS, count * sources - first)
        gemm_nt(rows, n, n_in, 1.0, shift(from_, first * n_in), n_in, A, n_in, 0.0, shift(to, first * n), n)
    for j in range(count):
        S = vector(lin.S, layer.u + (begin + j) * n, n)
        for s in range(sources):
            row = vector(T_next, (j * sources + s) * n, n)
            for a in range(n):
                row[a] *= S[a]
    if layer.skip:
        add(count * sources * n, T, 0, T_next, 0)


@inner
def blocks_tangents(layer, lin, begin, count, sources, T, T_next):
    """T_next = Dz T, likewise."""
    n, n_in = layer.n_out, layer.n_in
    for j in range(count):
        if layer.taps > 0:
            at = j * sources
            fill(sources * n, 0.0, T_next, at * n)
            push_kept(layer, lin, begin + j, sources, T, at * n_in, n_in, T_next, at * n, n)
            continue
        Dz, to = pointer(lin.Dz, layer.Dz + (begin + j) * n * n_in), pointer(T_next, j * sources * n)
        gemm_nt(sources, n, n_in, 1.0, pointer(T, j * sources * n_in), n_in, Dz, n_in, 0.0, to, n)
