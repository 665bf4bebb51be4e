"""The sweeps of this library as array programs: what one writes with CuPy, JAX or PyTorch on a GPU.

The same elimination, a layer a step and all dampings at a time (a leading axis k), with LU of the pivots in the place
of a signed Cholesky: what these libraries have for matrices that are not definite. Steps are pure functions of arrays
and of `Arrays`, a library's few operations; `scan` runs them over the equal layers, in Python or by `jax.lax.scan`. For
nets like those of `problem`: tanh layers of one width, a linear one at the end, at most as many samples as inputs.
Index conventions are those of docs/theory.md, section 3: i, I samples; a, b outputs; j, J inputs; r, s rows of R.
"""

import importlib.util

import numpy as np
import scipy.linalg


class Arrays:
    """NumPy's operations, and what others do otherwise: here to test the mathematics where no peer is installed."""

    title, needs = "the same sweep, NumPy", None

    def __init__(self):
        self.xp = np

    @classmethod
    def installed(cls):
        return cls.needs is None or importlib.util.find_spec(cls.needs) is not None

    def where(self):
        """ "cuda", or another device that the arrays are on."""
        return "cpu"

    def array(self, array):
        return array

    def numpy(self, array):
        return np.asarray(array)

    def wait(self):
        """Until all that was asked for is done."""

    def scan(self, step, carry, *xs, reverse=False):
        """(last carry, lists of the outputs) of ``carry, outputs = step(carry, *(x[l] for x in xs))`` for every l."""
        kept = [None] * len(xs[0])
        for l in reversed(range(len(kept))) if reverse else range(len(kept)):
            carry, kept[l] = step(carry, *(x[l] for x in xs))
        return carry, tuple(map(list, zip(*kept)))

    def stack(self, list_of_arrays):
        return self.xp.stack(list_of_arrays)

    def compiled(self, function):
        return function

    def lu(self, M):
        return [scipy.linalg.lu_factor(each, check_finite=False) for each in M]

    def lu_solve(self, factors, K):
        return np.stack([scipy.linalg.lu_solve(*pair, check_finite=False) for pair in zip(factors, K)])


class CupyArrays(Arrays):
    """cuSOLVER's getrf and getrs, cuBLAS's products."""

    title, needs = "the same sweep, CuPy", "cupy"

    def __init__(self):
        import cupy
        import cupyx.scipy.linalg

        self.xp, self.linalg = cupy, cupyx.scipy.linalg

    def where(self):
        return "cuda"

    def array(self, array):
        return self.xp.asarray(array)

    def numpy(self, array):
        return self.xp.asnumpy(array)

    def wait(self):
        self.xp.cuda.get_current_stream().synchronize()

    def lu(self, M):
        return [self.linalg.lu_factor(each, check_finite=False) for each in M]

    def lu_solve(self, factors, K):
        return self.xp.stack([self.linalg.lu_solve(*pair, check_finite=False) for pair in zip(factors, K)])


class TorchArrays(Arrays):
    """Batched over the dampings, layer after layer."""

    title, needs = "batched torch", "torch"

    def __init__(self):
        import torch

        self.xp, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"

    def where(self):
        return self.device

    def array(self, array):
        return self.xp.as_tensor(array, device=self.device)

    def numpy(self, array):
        return array.cpu().numpy()

    def wait(self):
        if self.device == "cuda":
            self.xp.cuda.synchronize()

    def lu(self, M):
        return self.xp.linalg.lu_factor(M)

    def lu_solve(self, factors, K):
        return self.xp.linalg.lu_solve(*factors, K)


class JaxArrays(Arrays):
    """A scan over the layers, compiled whole."""

    title, needs = "jax.lax.scan", "jax"

    def __init__(self):
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax, self.xp = jax, jax.numpy

    def where(self):
        return "cuda" if self.jax.default_backend() == "gpu" else "cpu"

    def array(self, array):
        return self.xp.asarray(array)

    def wait(self):
        self.jax.effects_barrier()

    def scan(self, step, carry, *xs, reverse=False):
        return self.jax.lax.scan(lambda carry, x: step(carry, *x), carry, xs, reverse=reverse)

    def stack(self, stacked):
        return stacked

    def compiled(self, function):
        jitted = self.jax.jit(function)
        return lambda *arguments: self.jax.block_until_ready(jitted(*arguments))

    def lu(self, M):
        return self.jax.vmap(self.jax.scipy.linalg.lu_factor)(M)

    def lu_solve(self, factors, K):
        return self.jax.vmap(self.jax.scipy.linalg.lu_solve)(factors, K)


LIBRARIES = (CupyArrays, JaxArrays, TorchArrays)


class ArraySweep:
    """A problem in the arrays of a library: `linearise`, `multiply`, `factorize` and `solve`, each a stage."""

    def __init__(self, problem, arrays):
        self.arrays, self.xp = arrays, arrays.xp
        self.width, self.skip = problem.layers[0].in_features, problem.layers[0].skip
        self.depth, self.classes = len(problem.layers) - 1, problem.layers[-1].out_features
        if len(problem.X) > self.width:
            raise ValueError(f"problem: expected at most {self.width} samples, got {len(problem.X)}")
        self.params, self.X = arrays.array(problem.params[None]), arrays.array(problem.X)
        self.Y = arrays.array(np.eye(self.classes)[problem.y])
        self._stages = {
            name: arrays.compiled(getattr(self, "_" + name)) for name in ("linearise", "multiply", "factorize", "sweep")
        }

    def split(self, flat):
        """[W, c] of the equal layers, (depth, k, n, n + 1), and of the last one, of rows (k, P)."""
        n, k, size = self.width, flat.shape[0], self.depth * self.width * (self.width + 1)
        equal = flat[:, :size].reshape(k, self.depth, n * n + n)
        weights = equal[:, :, : n * n].reshape(k, self.depth, n, n)
        equal = self.xp.concatenate([weights, equal[:, :, n * n :, None]], -1)
        last = flat[:, size:]
        weights = last[:, : n * self.classes].reshape(k, self.classes, n)
        return self.xp.moveaxis(equal, 0, 1), self.xp.concatenate([weights, last[:, n * self.classes :, None]], -1)

    def join(self, equal, last):
        """The inverse of `split`."""
        k, n = last.shape[0], self.width
        equal = self.xp.moveaxis(self.arrays.stack(equal), 0, 1)
        parts = [equal[..., :n].reshape(k, self.depth, n * n), equal[..., n]]
        equal = self.xp.concatenate(parts, -1).reshape(k, -1)
        return self.xp.concatenate([equal, last[..., :n].reshape(k, -1), last[..., n]], -1)

    def _linearise(self, params):
        einsum, stack = self.xp.einsum, self.arrays.stack
        equal, last = self.split(params)
        W, c, W_last, c_last = equal[:, 0, :, :-1], equal[:, 0, :, -1], last[0, :, :-1], last[0, :, -1]

        def forward(Z, W, c):
            phi = self.xp.tanh(einsum("ij,aj->ia", Z, W) + c)
            return (phi + Z if self.skip else phi), (Z, 1 - phi * phi, -2 * phi * (1 - phi * phi))

        Z, (inputs, slopes, bends) = self.arrays.scan(forward, self.X, W, c)
        scores = self.xp.exp(einsum("ij,aj->ia", Z, W_last) + c_last)
        p, B = scores / scores.sum(-1)[:, None], self.X.shape[0]
        lam_last = (p - self.Y) / B
        curvature = (einsum("ia,ab->iab", p, self._eye(p, self.classes)) - einsum("ia,ib->iab", p, p)) / B
        ones = self.xp.ones_like(p)

        def backward(dZ, W, S, bend):
            lam = S * dZ
            return einsum("ia,aj->ij", lam, W) + (dZ if self.skip else 0), (lam, bend * dZ)

        _, (lam, D) = self.arrays.scan(backward, einsum("ia,aj->ij", lam_last, W_last), W, slopes, bends, reverse=True)
        layers = W, stack(inputs), stack(slopes), stack(D), stack(lam)
        return layers, (W_last, Z, ones, 0 * ones, lam_last), curvature

    def _eye(self, like, size):
        # Made of an array that is there, so that it lies where that does.
        return self.arrays.array(np.eye(size, dtype=np.float64))

    def _multiply(self, layers, last, curvature, v):
        """v H for rows v (k, P)."""
        einsum = self.xp.einsum

        def tangent(dZ, V, W, Z, S, D, lam, skip=self.skip):
            dU = einsum("kij,aj->kia", dZ, W) + einsum("ij,kaj->kia", Z, V[..., :-1]) + V[:, None, :, -1]
            return S * dU + (dZ if skip else 0), (dZ, dU)

        def adjoint(q, dZ, dU, V, W, Z, S, D, lam, skip=self.skip):
            nu = S * q + D * dU
            weights = einsum("kia,ij->kaj", nu, Z) + einsum("ia,kij->kaj", lam, dZ)
            product = self.xp.concatenate([weights, nu.sum(1)[..., None]], -1)
            back = einsum("kia,aj->kij", nu, W) + einsum("ia,kaj->kij", lam, V[..., :-1])
            return back + (q if skip else 0), (product,)

        V, V_last = self.split(v)
        start = einsum("k,ij->kij", 0 * v[:, 0], self.X)
        dZ, (inputs, pre) = self.arrays.scan(tangent, start, V, *layers)
        out, (dZ, dU) = tangent(dZ, V_last, *last, skip=False)
        q, (product_last,) = adjoint(einsum("iab,kib->kia", curvature, out), dZ, dU, V_last, *last, skip=False)
        _, (product,) = self.arrays.scan(adjoint, q, inputs, pre, V, *layers, reverse=True)
        return self.join(product, product_last)

    def _eliminate(self, P, dampings, W, Z, S, D, lam, Q, R, skip):
        """(P', (LU of M, M^-1 K)); P is (k, B, n_out, B, n_out), M^-1 K (k, r n_out, B n_in)."""
        einsum, (B, n), n_in = self.xp.einsum, S.shape, W.shape[1]
        k, eye, outside = P.shape[0], self._eye(W, n_in), self._eye(W, n_in) - einsum("jr,Jr->jJ", Q[:-1], Q[:-1])
        samples, m = self._eye(W, B), R.shape[0] * n
        J = einsum("ia,aj->iaj", S, W) + (eye if skip else 0)
        PJ = einsum("kiaIb,IbJ->kiaIJ", P, J)
        E = einsum("ia,kiaIJ->kiaIJ", S, PJ) + einsum("ia,aJ,iI->iaIJ", D, W, samples)
        K = einsum("ri,kiaIJ->kraIJ", R, E) + einsum("Ia,Jr->raIJ", lam, Q[:-1])
        V = einsum("ia,kiaIb,Ib->kiaIb", S, P, S) + einsum("ia,ab,iI->iaIb", D, self._eye(W, n), samples)
        M = einsum("ri,kiaIb,sI->krasb", R, V, R).reshape(k, m, m)
        M = M + einsum("k,xy->kxy", dampings, self._eye(W, m))
        K = K.reshape(k, m, B * n_in)
        factors = self.arrays.lu(M)
        MK = self.arrays.lu_solve(factors, K)
        P = einsum("iaj,kiaIJ->kijIJ", J, PJ) + einsum("aj,ia,aJ,iI->ijIJ", W, D, W, samples)
        P = P - einsum("kxy,kxz->kyz", K, MK).reshape(k, B, n_in, B, n_in)
        return P - einsum("k,ia,Ia,jJ->kijIJ", 1 / dampings, lam, lam, outside), (factors, MK)

    def _row_spaces(self, Z):
        """Q and R of the transposes of [Z, 1], for any leading axes."""
        Zt = self.xp.concatenate([Z, self.xp.ones_like(Z[..., :1])], -1)
        return self.xp.linalg.qr(self.xp.moveaxis(Zt, -1, -2))

    def _factorize(self, layers, last, curvature, dampings):
        B = self.X.shape[0]
        spaces, space_last = self._row_spaces(layers[1]), self._row_spaces(last[1])
        P = self.xp.einsum("k,iab,iI->kiaIb", 0 * dampings + 1, curvature, self._eye(curvature, B))
        P, (factors, MK) = self._eliminate(P, dampings, *last, *space_last, skip=False)

        def eliminate(P, *layer):
            return self._eliminate(P, dampings, *layer, skip=self.skip)

        _, kept = self.arrays.scan(eliminate, P, *layers, *spaces, reverse=True)
        return (*spaces, *kept), (*space_last, factors, MK)

    def _sweep(self, layers, last, equal, end, dampings, b):
        """Rows b (H + damping I)^-1, b (k, P), by one pass back and one forth."""
        einsum, k, B = self.xp.einsum, b.shape[0], self.X.shape[0]
        g, g_last = self.split(b)

        def back(v, g, W, Z, S, D, lam, Q, R, factors, MK, skip=self.skip):
            n_in, vu = W.shape[1], S * v
            gQ = einsum("kaj,jr->kra", g, Q)
            right = gQ + einsum("ri,kia->kra", R, vu)
            t = self.arrays.lu_solve(factors, right.reshape(k, -1, 1))[..., 0]
            g2 = (g - einsum("kra,jr->kaj", gQ, Q)) / dampings[:, None, None]
            v_next = einsum("kia,aj->kij", vu, W) + (v if skip else 0)
            v_next = v_next - einsum("kxy,kx->ky", MK, right.reshape(k, -1)).reshape(k, B, n_in)
            return v_next - einsum("ia,kaj->kij", lam, g2[..., :-1]), (t, g2)

        def forth(dZ, t, g2, W, Z, S, D, lam, Q, R, factors, MK, skip=self.skip):
            w = (t - einsum("kxy,ky->kx", MK, dZ.reshape(k, -1))).reshape(k, R.shape[0], -1)
            C = einsum("ia,kij->kaj", lam, dZ)
            C = self.xp.concatenate([C, 0 * C[..., :1]], -1)
            C = (C - einsum("kaj,jr,Jr->kaJ", C, Q, Q)) / dampings[:, None, None]
            dW = einsum("kra,jr->kaj", w, Q) + g2 - C
            dU = einsum("kij,aj->kia", dZ, W) + einsum("kaj,ij->kia", dW[..., :-1], Z) + dW[:, None, :, -1]
            return S * dU + (dZ if skip else 0), (dW,)

        start = einsum("k,ia->kia", 0 * b[:, 0], last[2])
        v, (t_last, g2_last) = back(start, g_last, *last, *end, skip=False)
        _, (t, g2) = self.arrays.scan(back, v, g, *layers, *equal, reverse=True)
        dZ, (dW,) = self.arrays.scan(forth, 0 * v, t, g2, *layers, *equal)
        return self.join(dW, forth(dZ, t_last, g2_last, *last, *end, skip=False)[1][0])

    # The stages.

    def linearise(self):
        self.linear = self._stages["linearise"](self.params)

    def multiply(self, v):
        return self._stages["multiply"](*self.linear, v)

    def factorize(self, dampings):
        self.dampings = dampings
        self.factors = self._stages["factorize"](*self.linear, dampings)

    def solve(self, b):
        """The sweep and one step of refinement; b and the solutions are rows, one a damping."""
        layers, last, _ = self.linear
        x = self._stages["sweep"](layers, last, *self.factors, self.dampings, b)
        residual = b - self.multiply(x) - self.dampings[:, None] * x
        return x + self._stages["sweep"](layers, last, *self.factors, self.dampings, residual)
