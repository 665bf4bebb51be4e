"""The same elimination in plain NumPy and SciPy: the yardstick of the report.

A class with a Python loop over the layers and vectorised NumPy inside; dense matrices go straight to LAPACK and BLAS.
It shares no code with numba_hinv and takes the net as plain attributes, so it is an independent check as well.
May be changed: anything that makes it faster without leaving NumPy and SciPy (a yardstick has to be fair), and new
rows of ACTIVATIONS and LOSSES. Must stay: no numba, no import from the package. float64 only.
Index conventions: states are sample-major, (i, a) -> i*n + a; reduced parameters are (k, a) -> k*n_out + a.
"""

from types import SimpleNamespace

import numpy as np
from scipy.linalg import blas, lapack, ldl
from scipy.special import erf, expit, log_softmax


def _tanh(u):
    t = np.tanh(u)
    return t, 1 - t * t, -2 * t * (1 - t * t)


def _sigmoid(u):
    s = expit(u)
    return s, s * (1 - s), s * (1 - s) * (1 - 2 * s)


def _softplus(u):
    s = expit(u)
    return np.logaddexp(0, u), s, s * (1 - s)


def _silu(u):
    s = expit(u)
    ds = s * (1 - s)
    return u * s, s + u * ds, 2 * ds + u * ds * (1 - 2 * s)


def _gelu(u):
    cdf, pdf = 0.5 * (1 + erf(u / np.sqrt(2))), np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi)
    return u * cdf, cdf + u * pdf, pdf * (2 - u * u)


# name -> function of U that returns phi, phi', phi''
ACTIVATIONS = {
    "identity": lambda u: (u, np.ones_like(u), np.zeros_like(u)),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "silu": _silu,
    "gelu": _gelu,
    "sin": lambda u: (np.sin(u), np.cos(u), -np.sin(u)),
    "relu": lambda u: (np.maximum(u, 0), (u > 0).astype(u.dtype), np.zeros_like(u)),
}


def _softmax_cross_entropy(Z, y):
    B, rows = len(Z), np.arange(len(Z))
    logp = log_softmax(Z, axis=1)
    p = np.exp(logp)
    dZ = p.copy()
    dZ[rows, y] -= 1
    curvature = -p[:, :, None] * p[:, None, :]
    curvature[:, np.arange(Z.shape[1]), np.arange(Z.shape[1])] += p
    return -logp[rows, y].mean(), dZ / B, curvature / B


def _mean_squared_error(Z, y):
    E = Z - y
    return (E * E).mean(), 2 * E / Z.size, np.broadcast_to(2 / Z.size * np.eye(Z.shape[1]), (*Z.shape, Z.shape[1]))


def _binary_cross_entropy(Z, y):
    p = expit(Z)
    curvature = np.zeros((*Z.shape, Z.shape[1]))
    curvature[:, np.arange(Z.shape[1]), np.arange(Z.shape[1])] = p * (1 - p) / Z.size
    return (np.logaddexp(0, Z) - y * Z).mean(), (p - y) / Z.size, curvature


# name -> function of the net's output and y that returns the value, its gradient and its curvature per sample
LOSSES = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "mean_squared_error": _mean_squared_error,
    "binary_cross_entropy": _binary_cross_entropy,
}


class NumpyReference:
    """Linearise, multiply, factorize and solve for one net, one batch and one parameter vector.

    Parameters
    ----------
    layers : sequence of objects with in_features, out_features, activation, bias, skip
    loss : str, a key of LOSSES
    params : (P,) float64, per layer the weight (out x in, row-major) and then the bias
    X : (B, in_features) float64
    y : labels (B,) or targets (B, out_features)
    """

    def __init__(self, layers, loss, params, X, y):
        self.layers = []
        Z, start = np.asarray(X, float), 0
        for spec in layers:
            n, n_out = spec.in_features, spec.out_features
            d, stop = n + spec.bias, start + n_out * (n + spec.bias)
            W = params[start : start + n * n_out].reshape(n_out, n)
            c = params[start + n * n_out : stop] if spec.bias else 0.0
            Zt = np.hstack([Z, np.ones((len(Z), 1))]) if spec.bias else Z
            phi, S, second = ACTIVATIONS[spec.activation](Z @ W.T + c)
            self.layers.append(
                SimpleNamespace(
                    n=n,
                    n_out=n_out,
                    d=d,
                    skip=spec.skip,
                    bias=spec.bias,
                    W=W,
                    Z=Z,
                    Zt=Zt,
                    S=S,
                    D=second,
                    where=slice(start, stop),
                )
            )
            Z, start = (phi + Z if spec.skip else phi), stop
        self.num_params, self.batch, self.output = start, len(Z), Z
        self.value, dZ, self.loss_curvature = LOSSES[loss](Z, y)
        self.gradient = np.empty(start)
        for layer in reversed(self.layers):
            layer.lam = layer.S * dZ
            layer.D = layer.D * dZ
            dZ = layer.lam @ layer.W + (dZ if layer.skip else 0)
            self._write(self.gradient, layer, layer.lam.T @ layer.Zt)

    @staticmethod
    def _read(vector, layer):
        """The layer's slice of a flat vector as the matrix [dW, dc], n_out x d."""
        flat, nw = vector[layer.where], layer.n * layer.n_out
        W = flat[:nw].reshape(layer.n_out, layer.n)
        return np.hstack([W, flat[nw:, None]]) if layer.bias else W

    @staticmethod
    def _write(vector, layer, matrix):
        flat, nw = vector[layer.where], layer.n * layer.n_out
        flat[:nw] = matrix[:, : layer.n].ravel()
        if layer.bias:
            flat[nw:] = matrix[:, layer.n]

    def matvec(self, v):
        """H v, by a tangent pass and an adjoint pass (Pearlmutter)."""
        dZ, tangents = np.zeros_like(self.layers[0].Z), []
        for layer in self.layers:
            V = self._read(v, layer)
            dU = dZ @ layer.W.T + layer.Zt @ V.T
            tangents.append((V, dZ, dU))
            dZ = layer.S * dU + (dZ if layer.skip else 0)
        q, out = np.einsum("iab,ib->ia", self.loss_curvature, dZ), np.empty_like(v)
        for layer, (V, dZ, dU) in zip(reversed(self.layers), reversed(tangents)):
            nu = layer.S * q + layer.D * dU
            product = nu.T @ layer.Zt
            product[:, : layer.n] += layer.lam.T @ dZ
            self._write(out, layer, product)
            q = nu @ layer.W + layer.lam @ V[:, : layer.n] + (q if layer.skip else 0)
        return out

    def factorize(self, damping):
        """Eliminate the layers from last to first; keeps F, sigma, Y, Q, R per layer."""
        B, self.damping = self.batch, damping
        self.num_negative, self.logabsdet = 0, 0.0
        P = np.zeros((B, self.layers[-1].n_out, B, self.layers[-1].n_out))
        P[np.arange(B), :, np.arange(B), :] = self.loss_curvature
        for layer in reversed(self.layers):
            P = self._eliminate(layer, P, last=layer is self.layers[0])

    def _eliminate(self, layer, P, last):
        B, n, n_out, d, eps = self.batch, layer.n, layer.n_out, layer.d, self.damping
        samples = np.arange(B)
        r = min(B, d)
        Q, R = np.linalg.qr(layer.Zt.T) if B < d else (np.eye(d), np.ascontiguousarray(layer.Zt.T))
        layer.Q, layer.R, layer.reduced = Q, R, B < d
        m, N, N_out = r * n_out, B * n, B * n_out

        s = layer.S.ravel()
        P = P.reshape(N_out, N_out)
        V = s[:, None] * P * s
        V.flat[:: N_out + 1] += layer.D.ravel()
        RV = (R @ V.reshape(B, n_out * N_out)).reshape(m, B, n_out)
        M = (R @ RV).reshape(m, m)
        M.flat[:: m + 1] += eps
        self._signed_cholesky(layer, M)
        if layer.reduced:
            self.num_negative += n_out * (d - r) * (eps < 0)
            self.logabsdet += n_out * (d - r) * np.log(abs(eps))
        if last:
            return None

        W, lam = layer.W, layer.lam
        J = layer.S[:, :, None] * W
        if layer.skip:
            J[:, np.arange(n), np.arange(n)] += 1
        PJ = np.matmul(P.reshape(N_out, B, n_out).transpose(1, 0, 2), J)
        PJ = np.ascontiguousarray(PJ.transpose(1, 0, 2)).reshape(B, n_out, N)
        P_next = np.matmul(J.transpose(0, 2, 1), PJ).reshape(B, n, B, n)
        DW = layer.D[:, :, None] * W
        P_next[samples, :, samples, :] += W.T @ DW

        T = (layer.S[:, :, None] * PJ).reshape(B, n_out, B, n)
        T[samples, :, samples, :] += DW
        K = (R @ T.reshape(B, n_out * N)).reshape(r, n_out, B, n)
        K += lam.T[None, :, :, None] * Q[:n].T[:, None, None, :]
        if layer.reduced:
            P_next -= (lam @ lam.T / eps)[:, None, :, None] * (np.eye(n) - Q[:n] @ Q[:n].T)[None, :, None, :]
        layer.Y = Y = self._forward(layer, K.reshape(m, N))
        P_next = P_next.reshape(N, N)
        P_next -= Y.T @ Y if layer.sigma is None else Y.T @ (layer.sigma[:, None] * Y)
        return 0.5 * (P_next + P_next.T)

    def _signed_cholesky(self, layer, M):
        """M = F diag(sigma) F^T: Cholesky (sigma None, all +1), else Bunch-Kaufman with its blocks diagonalised."""
        U, info = lapack.dpotrf(M.T, lower=0, clean=0)
        if info == 0:
            layer.U, layer.perm, layer.G, layer.sigma = U, None, None, None
            self.logabsdet += 2 * np.log(U.diagonal()).sum()
            return
        lower, D, perm = ldl(M, lower=True, check_finite=False)
        blocks = np.flatnonzero(D.diagonal(-1))
        eigenvalues, G = D.diagonal().copy(), np.eye(len(D))
        if len(blocks):
            pairs = np.stack([blocks, blocks + 1], axis=1)
            values, vectors = np.linalg.eigh(D[pairs[:, :, None], pairs[:, None, :]])
            eigenvalues[pairs], G[pairs[:, :, None], pairs[:, None, :]] = values, vectors
        layer.U = np.asfortranarray(lower[perm].T)
        layer.perm, layer.sigma = perm, np.sign(eigenvalues)
        # G has at most two entries a row, so applying G^{-1} takes the diagonal and one partner row
        partner = np.arange(len(D))
        partner[blocks], partner[blocks + 1] = blocks + 1, blocks
        scale = 1 / np.sqrt(np.abs(eigenvalues))
        index = np.arange(len(D))
        off = np.where(partner == index, 0.0, G[partner, index])
        layer.G = (G.diagonal() * scale, off * scale, partner)
        self.num_negative += int((eigenvalues < 0).sum())
        self.logabsdet += np.log(np.abs(eigenvalues)).sum()

    @staticmethod
    def _forward_vector(layer, y):
        """F^{-1} y for a vector y (m,)."""
        if layer.sigma is None:
            return blas.dtrsv(layer.U, y, lower=0, trans=1)
        t = blas.dtrsv(layer.U, y[layer.perm], lower=0, trans=1, diag=1)
        on, off, partner = layer.G
        return on * t + off * t[partner]

    @staticmethod
    def _forward(layer, K):
        """F^{-1} K for a C-contiguous K (m x N); may overwrite it."""
        if layer.sigma is None:
            return blas.dtrsm(1.0, layer.U, K.T, side=1, lower=0, overwrite_b=1).T
        T = blas.dtrsm(1.0, layer.U, K[layer.perm].T, side=1, lower=0, diag=1, overwrite_b=1).T
        on, off, partner = layer.G
        return on[:, None] * T + off[:, None] * T[partner]

    @staticmethod
    def _backward(layer, y):
        """F^{-T} y for a vector y (m,)."""
        if layer.sigma is None:
            return blas.dtrsv(layer.U, y, lower=0)
        on, off, partner = layer.G
        x = np.empty_like(y)
        x[layer.perm] = blas.dtrsv(layer.U, on * y + (off * y)[partner], lower=0, diag=1)
        return x

    def sweep(self, b):
        """(H + damping I)^{-1} b by one pass backward and one forward, not refined."""
        eps, first, x = self.damping, self.layers[0], np.empty_like(b)
        v, kept = np.zeros((self.batch, self.layers[-1].n_out)), []
        for layer in reversed(self.layers):
            g, vu = self._read(b, layer), layer.S * v
            y = self._forward_vector(layer, ((g @ layer.Q).T + layer.R @ vu).ravel())
            g2 = g - (g @ layer.Q) @ layer.Q.T if layer.reduced else None
            kept.append((y, g2))
            if layer is first:
                break
            v = vu @ layer.W + (v if layer.skip else 0)
            v -= (layer.Y.T @ (y if layer.sigma is None else layer.sigma * y)).reshape(v.shape)
            if layer.reduced:
                v -= layer.lam @ g2[:, : layer.n] / eps
        dZ = np.zeros_like(first.Z)
        for layer in self.layers:
            y, g2 = kept.pop()
            if layer is not first:
                y = y - layer.Y @ dZ.ravel()
            w = self._backward(layer, y if layer.sigma is None else layer.sigma * y)
            dW = w.reshape(-1, layer.n_out).T @ layer.Q.T
            if layer.reduced:
                C = np.zeros_like(g2)
                C[:, : layer.n] = layer.lam.T @ dZ
                dW += (g2 - C + (C @ layer.Q) @ layer.Q.T) / eps
            self._write(x, layer, dW)
            dU = dZ @ layer.W.T + layer.Zt @ dW.T
            dZ = layer.S * dU + (dZ if layer.skip else 0)
        return x

    def solve(self, b):
        """The sweep and one step of iterative refinement."""
        x = self.sweep(b)
        return x + self.sweep(b - self.matvec(x) - self.damping * x)
