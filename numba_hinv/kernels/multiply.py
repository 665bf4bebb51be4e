"""The Hessian-vector product (design, section 2; Pearlmutter): tangents forward, adjoints backward.

Vectors are stored one a row: k of them at once are a (k, P) array, and the k batches of tangents of a layer are a
(k B) x n block.
"""

import numpy as np
from numba import njit

from .memory import add, copy, fill, matrix, rows, vector
from .product import multiply, multiply_nt, multiply_tn


def workspace(sizes, num_vectors, num_samples, dtype):
    """Arrays (dZ, dU, q) for `multiply_hessian`: tangents of all layers, and two adjoints of one."""
    return (
        np.empty(num_vectors * sizes.z, dtype),
        np.empty(num_vectors * sizes.u, dtype),
        np.empty((2, num_vectors * num_samples * sizes.width), dtype),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def multiply_hessian(table, params, lin, V, HV, dZ, dU, q):
    """HV (k, P) <- V H, H being the Hessian (symmetric). Cost: about 6 k B P multiply-adds."""
    k, P = V.shape
    B, n_L = lin.output.shape
    L = table.size
    for l in range(L):
        layer = table[l]
        n, n_in = layer.n_out, layer.n_in
        W = matrix(params, layer.parameters, n, n_in)
        Z = matrix(lin.Z, layer.z, B, n_in)
        S = matrix(lin.S, layer.u, B, n)
        dZ_l = matrix(dZ, k * layer.z, k * B, n_in)
        dU_l = matrix(dU, k * layer.u, k * B, n)
        # dU = dZ W^T + Zt dWt^T; nothing comes into the first layer.
        for t in range(k):
            dU_t = rows(dU_l, t * B, B)
            dW = matrix(V, t * P + layer.parameters, n, n_in)
            if layer.bias:
                dc = vector(V, t * P + layer.parameters + n * n_in, n)
                for i in range(B):
                    for a in range(n):
                        dU_t[i, a] = dc[a]
                multiply_nt(1.0, Z, dW, 1.0, dU_t)
            else:
                multiply_nt(1.0, Z, dW, 0.0, dU_t)
        if l > 0:
            multiply_nt(1.0, dZ_l, W, 1.0, dU_l)
        if l + 1 < L:
            dZ_next = matrix(dZ, k * table[l + 1].z, k * B, n)
        else:
            dZ_next = matrix(q, q.shape[1] * (L % 2), k * B, n)
        # dZ' = S dU (+ dZ)
        for t in range(k):
            for i in range(B):
                for a in range(n):
                    dZ_next[t * B + i, a] = S[i, a] * dU_l[t * B + i, a]
        if layer.skip and l > 0:
            add(dZ_l.size, dZ_l, 0, dZ_next, 0)

    # q = (loss curvature) dZ_L, through row (L + 1) % 2 as scratch.
    for t in range(k):
        for i in range(B):
            at = (t * B + i) * n_L
            curvature = matrix(lin.curvature, i * n_L * n_L, n_L, n_L)
            q_i = matrix(q, q.shape[1] * (L % 2) + at, 1, n_L)
            multiply(1.0, q_i, curvature, 0.0, matrix(q, q.shape[1] * ((L + 1) % 2) + at, 1, n_L))
    copy(k * B * n_L, q, q.shape[1] * ((L + 1) % 2), q, q.shape[1] * (L % 2))

    for l in range(L - 1, -1, -1):
        layer = table[l]
        n, n_in = layer.n_out, layer.n_in
        W = matrix(params, layer.parameters, n, n_in)
        Z = matrix(lin.Z, layer.z, B, n_in)
        S = matrix(lin.S, layer.u, B, n)
        D = matrix(lin.D, layer.u, B, n)
        lam = matrix(lin.lam, layer.u, B, n)
        nu = matrix(dU, k * layer.u, k * B, n)
        q_out = matrix(q, q.shape[1] * ((l + 1) % 2), k * B, n)
        q_in = matrix(q, q.shape[1] * (l % 2), k * B, n_in)
        dZ_l = matrix(dZ, k * layer.z, k * B, n_in)
        # nu = S q + D dU
        for t in range(k):
            for i in range(B):
                for a in range(n):
                    nu[t * B + i, a] = S[i, a] * q_out[t * B + i, a] + D[i, a] * nu[t * B + i, a]
        if l > 0:
            multiply(1.0, nu, W, 0.0, q_in)
            if layer.skip:
                add(q_in.size, q_out, 0, q_in, 0)
        for t in range(k):
            nu_t = rows(nu, t * B, B)
            Hv = matrix(HV, t * P + layer.parameters, n, n_in)
            # (Hv)_l = nu^T Zt + lam^T [dZ, 0];  q <- nu W + lam dW (+ q)
            multiply_tn(1.0, nu_t, Z, 0.0, Hv)
            if l > 0:
                multiply_tn(1.0, lam, rows(dZ_l, t * B, B), 1.0, Hv)
                dW = matrix(V, t * P + layer.parameters, n, n_in)
                multiply(1.0, lam, dW, 1.0, rows(q_in, t * B, B))
            if layer.bias:
                Hv_c = vector(HV, t * P + layer.parameters + n * n_in, n)
                fill(n, 0.0, Hv_c, 0)
                for i in range(B):
                    for a in range(n):
                        Hv_c[a] += nu_t[i, a]
