"""Time and memory against depth
=============================

Time and memory of one solve with H + damping I against depth: this library, a dense solve, MINRES.

Run it with ``python examples/depth_scaling.py`` (extra: examples); it takes a few minutes and writes depth_scaling.png
beside itself. Each method starts from the net, so linearising is in every figure. MINRES stops at RTOL or after
SECONDS and is drawn with the relative residual it had then. May be changed freely: the constants are the whole setting.
"""

import time
from pathlib import Path

import matplotlib
import numpy as np
import scipy.linalg
from digits import load, skinny_net
from measure import memory_text, peak_bytes, seconds, time_text
from scipy.sparse.linalg import LinearOperator, minres
from tqdm import tqdm

import numba_hinv as nh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the backend has to be chosen first

DEPTHS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
BATCH = 4
DAMPING = 1e-3
DENSE_BYTES = 2e9  # the dense solve is left out where H and its factors would need more
RTOL = 1e-10  # MINRES's own stopping test
SECONDS = 15  # the time it gets at each depth

PICTURE = Path(__file__).with_suffix(".png")


def structured(net, params, X, y, b):
    return nh.solve(net, params, X, y, b, damping=DAMPING)


def dense(net, params, X, y, b):
    matrix = net.hessian(params, X, y).todense()
    matrix[np.diag_indices_from(matrix)] += DAMPING
    return scipy.linalg.solve(matrix, b, overwrite_a=True)


class OutOfTime(Exception):
    pass


def krylov(net, params, X, y, b, allowed=SECONDS, maxiter=None):
    H = net.hessian(params, X, y)
    A = LinearOperator(H.shape, matvec=lambda v: H @ v + DAMPING * v, dtype=b.dtype)
    start, last = time.perf_counter(), np.zeros_like(b)

    def stop_in_time(x):
        last[:] = x
        if time.perf_counter() - start > allowed:
            raise OutOfTime

    try:
        return minres(A, b, rtol=RTOL, maxiter=maxiter or 1_000_000, callback=stop_in_time)[0]
    except OutOfTime:
        return last


def measure(method, net, params, X, y, b, repeats, **short):
    """Seconds, peak bytes and relative residual of a method; `short` are the arguments for the memory run."""
    taken, x = seconds(lambda: method(net, params, X, y, b), repeats)
    residual = np.linalg.norm(b - net.hessian(params, X, y) @ x - DAMPING * x) / np.linalg.norm(b)
    return taken, peak_bytes(lambda: method(net, params, X, y, b, **short)), residual


def warm_up(X, y):
    """Compile, and start BLAS's threads, before any clock runs."""
    net = skinny_net(depth=3)
    params = net.init(rng=0)
    b = net.gradient(params, X, y)
    structured(net, params, X, y, b)
    dense(net, params, X, y, b)


def run():
    """(depth, seconds, bytes, residual) of every method at every depth it is run at."""
    X, y = load(BATCH)
    warm_up(X, y)
    results = {"numba_hinv": [], "dense (LAPACK)": [], "MINRES": []}
    for depth in tqdm(DEPTHS, unit="depth"):
        net = skinny_net(depth)
        params = net.init(rng=0)
        b = net.gradient(params, X, y)
        results["numba_hinv"].append((depth, *measure(structured, net, params, X, y, b, repeats=5)))
        if 2 * 8 * net.num_params**2 <= DENSE_BYTES:
            results["dense (LAPACK)"].append((depth, *measure(dense, net, params, X, y, b, repeats=1)))
        results["MINRES"].append((depth, *measure(krylov, net, params, X, y, b, repeats=1, maxiter=3)))
    return results


def draw(results):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    styles = dict(zip(results, ("o-", "s--", "^:")))
    for name, rows in results.items():
        depth, taken, held, residual = np.array(rows).T
        left.loglog(depth, taken, styles[name], label=name)
        right.loglog(depth, held / 1e6, styles[name], label=name)
        if name == "MINRES":
            for at, height, reached in zip(depth, taken, residual):
                left.annotate(
                    f"{reached:.0e}",
                    (at, height),
                    (0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=left.lines[-1].get_color(),
                )
    depth, taken, held, _ = np.array(results["numba_hinv"][-1])
    ends = np.array([results["numba_hinv"][0][0], depth])
    for axes, value in ((left, taken), (right, held / 1e6)):
        axes.loglog(ends, value * ends / depth, color="0.6", linewidth=1, zorder=0, label="proportional to depth")
    left.set(xlabel="layers", ylabel="seconds", title=f"Time (MINRES: relative residual after {SECONDS:g} s)")
    right.set(xlabel="layers", ylabel="MB", title="Peak memory of arrays")
    left.margins(y=0.12)
    for axes in (left, right):
        axes.grid(True, which="major", alpha=0.3)
        axes.legend()
    figure.suptitle(f"(H + {DAMPING:g} I) x = gradient: width 8, {BATCH} handwritten digits, float64")
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    measured = run()
    for name, rows in measured.items():
        for depth, taken, held, residual in rows:
            print(
                f"{name:<16}{depth:>7,} layers{time_text(taken):>12}{memory_text(held):>12}   residual {residual:.0e}"
            )
    draw(measured)
    print("wrote", PICTURE)

# sphinx_gallery_thumbnail_path = "../examples/depth_scaling.png"
