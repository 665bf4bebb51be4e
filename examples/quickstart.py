"""Quick start: solve with the Hessian of a 100-layer net
======================================================

Solve with the Hessian of a 100-layer net on handwritten digits, and check a shallower one against a dense solve.

Run it with ``python examples/quickstart.py``; it needs nothing beyond the library itself. May be changed freely: the
constants below are the whole setting. The cost of a factorization grows with BATCH (docs/cost.md).
"""

import time

import numpy as np
import scipy.linalg
from digits import load, skinny_net
from measure import memory_text, peak_bytes, seconds, time_text

import numba_hinv as nh

DEPTH = 100  # layers
DENSE_DEPTH = 25  # layers of the net whose Hessian is also formed as a matrix
BATCH = 4  # images
DAMPING = 1e-3


def line(name, *columns):
    print(f"  {name:<38}" + "".join(f"{column:>17}" for column in columns))


def deep(X, y):
    net = skinny_net(DEPTH)
    params = net.init(rng=0)
    start = time.perf_counter()
    H = net.hessian(params, X, y)
    x = H.factorize(DAMPING).solve(H.gradient)
    first_call = time.perf_counter() - start

    time_hessian, H = seconds(lambda: net.hessian(params, X, y))
    time_factorize, F = seconds(lambda: H.factorize(DAMPING))
    time_solve, x = seconds(lambda: F.solve(H.gradient))
    time_product, Hx = seconds(lambda: H @ x)
    residual = np.linalg.norm(H.gradient - Hx - DAMPING * x) / np.linalg.norm(H.gradient)
    sign, logabsdet = F.slogdet()

    print(f"\n(H + {DAMPING:g} I) x = gradient, for a net of {DEPTH} layers and {BATCH} handwritten digits\n")
    line("parameters P", f"{net.num_params:,}")
    line("first call, compilation included", time_text(first_call))
    line("linearise (forward, backward)", time_text(time_hessian))
    line("factorize", time_text(time_factorize))
    line("solve, refined", time_text(time_solve))
    line("one Hessian-vector product", time_text(time_product))
    line("relative residual", f"{residual:.1e}")
    line("inertia: negative, zero, positive", f"{F.inertia.negative:,}, {F.inertia.zero:,}, {F.inertia.positive:,}")
    line("determinant: sign, log of its size", f"{sign:+.0f}, {logabsdet:,.3f}")


def beside_dense(X, y):
    net = skinny_net(DENSE_DEPTH)
    params = net.init(rng=0)
    b = net.gradient(params, X, y)

    def structured():
        return nh.solve(net, params, X, y, b, damping=DAMPING)

    def dense():
        matrix = net.hessian(params, X, y).todense()
        matrix[np.diag_indices_from(matrix)] += DAMPING
        return scipy.linalg.solve(matrix, b, assume_a="sym", overwrite_a=True)

    time_structured, x = seconds(structured)
    time_dense, x_dense = seconds(dense, repeats=1)
    H = net.hessian(params, X, y)
    F = H.factorize(DAMPING)
    eigenvalues = np.linalg.eigvalsh(H.todense()) + DAMPING

    print(f"\nThe same with {DENSE_DEPTH} layers, P = {net.num_params:,}, beside a dense solve\n")
    line("", "numba_hinv", "dense")
    line("linearise, factorize and solve", time_text(time_structured), time_text(time_dense))
    line("peak memory of arrays", memory_text(peak_bytes(structured)), memory_text(peak_bytes(dense)))
    line("negative eigenvalues of H + damping I", f"{F.inertia.negative:,}", f"{np.sum(eigenvalues < 0):,}")
    line("log of the determinant's size", f"{F.slogdet()[1]:,.6f}", f"{np.sum(np.log(np.abs(eigenvalues))):,.6f}")
    line("difference of the two solutions", f"{np.linalg.norm(x - x_dense) / np.linalg.norm(x_dense):.1e}")


if __name__ == "__main__":
    images, labels = load(BATCH)
    deep(images, labels)
    beside_dense(images, labels)
