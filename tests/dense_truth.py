"""The independent truth: plain NumPy in extended precision, by a route the library does not take.

The Hessian comes from second-order *forward* differentiation: every activation carries its first and second
directional derivatives, `d(phi(u)) = phi' du`, `dd(phi(u)) = phi' ddu + phi'' du du`. There is no backward pass, no
adjoint and no elimination, so an error in one of those cannot be repeated here. Dense systems are factored in
extended precision by textbook Gaussian elimination with partial pivoting.

Everything is written for clarity; nothing may be imported from the library. Where `np.longdouble` is no wider than
float64 the same code runs in float64.
"""

from types import SimpleNamespace

import numpy as np

real = np.longdouble
PI = 4 * np.arctan(real(1))


# ---- activations: u -> (value, first derivative, second derivative) -------------------------------------------------


def _logistic(u):
    e = np.exp(-np.abs(u))
    return np.where(u >= 0, 1 / (1 + e), e / (1 + e))


def _erfc_tail(x):
    """erfc(x) for x >= 2 by its continued fraction, evaluated from the far end."""
    t = np.zeros_like(x)
    for k in range(160, 0, -1):
        t = k / real(2) / (x + t)
    return np.exp(-x * x) / np.sqrt(PI) / (x + t)


def _erf_series(x):
    """erf(x) for |x| < 2: exp(-x^2) times a series of positive terms, so nothing cancels."""
    term = x.copy()
    total = x.copy()
    for k in range(1, 90):
        term = term * 2 * x * x / (2 * k + 1)
        total = total + term
    return 2 / np.sqrt(PI) * np.exp(-x * x) * total


def normal_cdf(u):
    """Gaussian distribution function with full relative accuracy in both tails."""
    u = np.asarray(u, dtype=real)
    x = np.abs(u) / np.sqrt(real(2))
    near = np.minimum(x, real(2))
    far = np.maximum(x, real(2))
    half_tail = np.where(x < 2, (1 - _erf_series(near)) / 2, _erfc_tail(far) / 2)
    return np.where(u < 0, half_tail, 1 - half_tail)


def identity(u):
    return u, np.ones_like(u), np.zeros_like(u)


def tanh(u):
    e = np.exp(-2 * np.abs(u))
    slope = 4 * e / (1 + e) ** 2
    t = np.sign(u) * -np.expm1(-2 * np.abs(u)) / (1 + e)
    return t, slope, -2 * t * slope


def sigmoid(u):
    s, c = _logistic(u), _logistic(-u)
    return s, s * c, s * c * (c - s)


def softplus(u):
    s, c = _logistic(u), _logistic(-u)
    return np.maximum(u, 0) + np.log1p(np.exp(-np.abs(u))), s, s * c


def silu(u):
    s, c = _logistic(u), _logistic(-u)
    return u * s, s + u * s * c, s * c * (2 + u * (c - s))


def gelu(u):
    cdf = normal_cdf(u)
    density = np.exp(-u * u / 2) / np.sqrt(2 * PI)
    return u * cdf, cdf + u * density, (2 - u * u) * density


def sin(u):
    return np.sin(u), np.cos(u), -np.sin(u)


def relu(u):
    return np.maximum(u, 0), (u > 0).astype(u.dtype), np.zeros_like(u)


ACTIVATIONS = {f.__name__: f for f in (identity, tanh, sigmoid, softplus, silu, gelu, sin, relu)}


# ---- losses: (z, y) -> (value, gradient (B, n), curvature (B, n, n)), mean included ---------------------------------


def softmax_cross_entropy(z, y):
    batch, width = z.shape
    shifted = z - z.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    p = weights / weights.sum(axis=1, keepdims=True)
    rows = np.arange(batch)
    value = (np.log(weights.sum(axis=1)) - shifted[rows, y]).sum() / batch
    # 1 - p as the sum of the other probabilities: both may be far below the roundoff of 1.
    eye = np.eye(width, dtype=z.dtype)
    others = p @ (1 - eye)
    gradient = p.copy()
    gradient[rows, y] = -others[rows, y]
    curvature = (p * others)[:, :, None] * eye - (p[:, :, None] * p[:, None, :]) * (1 - eye)
    return value, gradient / batch, curvature / batch


def mean_squared_error(z, y):
    count = z.size
    curvature = np.broadcast_to(2 * np.eye(z.shape[1], dtype=z.dtype) / count, (z.shape[0],) + (z.shape[1],) * 2)
    return ((z - y) ** 2).sum() / count, 2 * (z - y) / count, curvature


def binary_cross_entropy(z, y):
    count = z.size
    s, c = _logistic(z), _logistic(-z)
    value = (np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))).sum() / count
    curvature = (s * c)[:, :, None] * np.eye(z.shape[1], dtype=z.dtype)
    # s - y, with y s subtracted from both, so that nothing cancels at the labels 0 and 1.
    return value, (s * (1 - y) - c * y) / count, curvature / count


LOSSES = {f.__name__: f for f in (softmax_cross_entropy, mean_squared_error, binary_cross_entropy)}


# ---- differentiation ------------------------------------------------------------------------------------------------


def count_params(layers):
    return sum(d["out_features"] * (d["in_features"] + bool(d["bias"])) for d in layers)


def differentiate(layers, loss, params, X, y, directions=None):
    """Loss with its first and second derivatives along `directions` (P x k; the unit vectors by default).

    Returns a namespace with `value`, `output`, `gradient` (k,) = D^T grad, `hessian` (k, k) = D^T H D, and `ggn`, the
    same of the Gauss-Newton matrix.
    """
    params = np.asarray(params, dtype=real)
    P = len(params)
    assert P == count_params(layers)
    all_params = directions is None
    D = np.eye(P, dtype=real) if all_params else np.asarray(directions, dtype=real)
    Z = np.asarray(X, dtype=real)
    batch = Z.shape[0]
    # Along unit vectors the derivatives with respect to later parameters are zero: carry only the first `seen`.
    seen = 0 if all_params else D.shape[1]
    dZ = np.zeros(Z.shape + (seen,), dtype=real)
    ddZ = np.zeros(Z.shape + (seen, seen), dtype=real)
    start = 0
    for d in layers:
        n_in, n_out = d["in_features"], d["out_features"]
        split = start + n_out * n_in
        stop = split + n_out * bool(d["bias"])
        now = stop if all_params else seen
        W = params[start:split].reshape(n_out, n_in)
        dW = D[start:split, :now].reshape(n_out, n_in, now)
        c = params[split:stop] if d["bias"] else np.zeros(n_out, dtype=real)
        dc = D[split:stop, :now] if d["bias"] else np.zeros((n_out, now), dtype=real)
        dZ = np.concatenate([dZ, np.zeros((batch, n_in, now - seen), dtype=real)], axis=2)
        grown = np.zeros((batch, n_in, now, now), dtype=real)
        grown[:, :, :seen, :seen] = ddZ
        ddZ, seen, start = grown, now, stop

        U = Z @ W.T + c
        dU = np.einsum("oi,bik->bok", W, dZ) + np.einsum("bi,oik->bok", Z, dW) + dc
        cross = np.einsum("bik,oil->bokl", dZ, dW)
        ddU = np.einsum("oi,bikl->bokl", W, ddZ) + cross + cross.transpose(0, 1, 3, 2)
        value, first, second = ACTIVATIONS[d["activation"]](U)
        curved = second[:, :, None, None] * dU[:, :, :, None] * dU[:, :, None, :]
        straight = first[:, :, None, None] * ddU
        if d["skip"]:
            Z, dZ, ddZ = Z + value, dZ + first[:, :, None] * dU, ddZ + straight + curved
        else:
            Z, dZ, ddZ = value, first[:, :, None] * dU, straight + curved
    target = np.asarray(y)
    value, gradient, curvature = LOSSES[loss](Z, target if loss == "softmax_cross_entropy" else target.astype(real))
    bent = np.einsum("bok,bop->bpk", dZ, curvature)
    ggn = np.einsum("bok,bol->kl", bent, dZ)
    hessian = np.einsum("bo,bokl->kl", gradient, ddZ) + ggn
    return SimpleNamespace(
        value=value,
        output=Z,
        gradient=np.einsum("bo,bok->k", gradient, dZ),
        hessian=(hessian + hessian.T) / 2,
        ggn=(ggn + ggn.T) / 2,
    )


# ---- dense linear algebra in extended precision ---------------------------------------------------------------------


class DenseFactors:
    """Gaussian elimination with partial pivoting of `A` (n x n) in extended precision."""

    def __init__(self, A):
        LU = np.array(A, dtype=real)
        n = len(LU)
        self.order = np.arange(n)
        self.sign = 1
        for k in range(n):
            p = k + int(np.argmax(np.abs(LU[k:, k])))
            if p != k:
                LU[[k, p]] = LU[[p, k]]
                self.order[[k, p]] = self.order[[p, k]]
                self.sign = -self.sign
            LU[k + 1 :, k] /= LU[k, k]
            LU[k + 1 :, k + 1 :] -= LU[k + 1 :, k, None] * LU[k, k + 1 :]
        self.LU = LU

    def solve(self, b):
        x = np.asarray(b, dtype=real)[self.order].copy()
        for k in range(len(x)):
            x[k] -= self.LU[k, :k] @ x[:k]
        for k in reversed(range(len(x))):
            x[k] = (x[k] - self.LU[k, k + 1 :] @ x[k + 1 :]) / self.LU[k, k]
        return x

    def slogdet(self):
        diagonal = np.diag(self.LU)
        return self.sign * float(np.prod(np.sign(diagonal))), float(np.log(np.abs(diagonal)).sum())


def shifted(hessian, damping):
    return np.asarray(hessian, dtype=real) + real(damping) * np.eye(len(hessian), dtype=real)


def norm2(hessian):
    """Spectral norm of a symmetric matrix."""
    return float(np.abs(np.linalg.eigvalsh(np.asarray(hessian, dtype=np.float64))).max())


def backward_error(hessian, damping, x, b):
    """Largest normwise backward error over the columns: |b - (H + damping) x| / (|H| |x| + |b|)."""
    A = np.asarray(hessian, dtype=real)
    x = np.asarray(x, dtype=real).reshape(len(A), -1)
    b = np.asarray(b, dtype=real).reshape(len(A), -1)
    residual = b - A @ x - real(damping) * x
    scale = norm2(hessian) * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
    size = np.linalg.norm(residual, axis=0)
    # A zero column has the solution zero, exactly.
    size[scale == 0] = np.where(size[scale == 0] == 0, 0, np.inf)
    scale[scale == 0] = 1
    return float((size / scale).max(initial=0.0))
