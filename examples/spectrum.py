"""Exact spectra against depth
===========================

The spectrum of a Hessian against depth, counted exactly: nets of up to 216,466 parameters on handwritten digits.

Run it with ``python examples/spectrum.py`` (extra: examples); it takes under a minute and draws spectrum.png beside
itself. Every bin's count is the difference of two inertias, so that no eigenvalue is missed and none is estimated. May
be changed freely: the constants are the whole setting.

In the picture, every eigenvalue of Hessians of up to 216,466 parameters is in its bin, by the inertia at the edges.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
from digits import load, skinny_net

import numba_hinv as nh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the backend has to be chosen first

DEPTHS = (10, 30, 100, 300, 1000, 3000)
BATCH = 4
DECADES = (-7, 2)  # of the eigenvalues' magnitudes; what is below the first is counted as zero
BINS_PER_DECADE = 3
DENSE_PARAMETERS = 2000  # up to so many, dense eigenvalues are compared with
PICTURE = Path(__file__).with_suffix(".png")


def edges():
    """Of the bins: logarithmic on both sides of zero, with one bin around zero."""
    low, high = DECADES
    magnitudes = np.logspace(low, high, (high - low) * BINS_PER_DECADE + 1)
    return np.concatenate([-magnitudes[::-1], magnitudes])


def run(depths):
    """(depth, number of parameters, spectral density, seconds) of every net."""
    X, y = load(BATCH)
    rows = []
    for depth in depths:
        net = skinny_net(depth)
        H = net.hessian(net.init(rng=0), X, y)
        start = time.perf_counter()
        spectrum = nh.spectral_density(H, edges())
        rows.append((depth, net.num_params, spectrum, time.perf_counter() - start))
        if net.num_params <= DENSE_PARAMETERS:
            dense, _ = np.histogram(np.linalg.eigvalsh(H.todense()), spectrum.edges)
            print(
                f"{depth} layers: {np.abs(dense - spectrum.counts).sum()} of {net.num_params:,} eigenvalues are in "
                "other bins than the dense ones"
            )
    return rows


def signs(spectrum):
    """How many eigenvalues are negative, as good as zero, and positive."""
    middle = spectrum.counts.size // 2
    return (
        int(spectrum.below + spectrum.counts[:middle].sum()),
        int(spectrum.counts[middle]),
        int(spectrum.counts[middle + 1 :].sum() + spectrum.above),
    )


def draw(rows, picture):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained", width_ratios=(1.6, 1))
    shades = plt.cm.viridis(np.linspace(0.9, 0.0, len(rows)))
    for (depth, _, spectrum, _), shade in zip(rows, shades):
        spectrum.plot(left, fill=False, color=shade, linewidth=1.4, label=f"{depth:,}", baseline=None)
    linear = 10.0 ** DECADES[0]
    left.set_xscale("symlog", linthresh=linear)
    ticks = [10.0**k for k in range(DECADES[0] + 2, DECADES[1], 2)]
    left.set_xticks([*(-t for t in reversed(ticks)), 0, *ticks])
    left.set_yscale("log")
    left.set(ylim=(0.7, 10 * max(spectrum.counts.max() for _, _, spectrum, _ in rows)), title="Exact histograms")
    left.axvline(0, color="gray", linewidth=0.6)
    left.legend(title="layers", loc="upper center", ncols=len(rows), fontsize=8, title_fontsize=8)

    depth, size = (np.array([row[k] for row in rows]) for k in (0, 1))
    counted = np.array([signs(row[2]) for row in rows])
    for number, name, style in zip(counted.T, ("negative", f"within {linear:g} of 0", "positive"), ("v-", "o-", "^-")):
        right.semilogx(depth, 100 * number / size, style, label=name)
    right.set(xlabel="layers", ylabel="% of all eigenvalues", ylim=(0, None), title="Their signs")
    right.legend()
    for axes in (left, right):
        axes.grid(True, which="major", alpha=0.3)
    figure.suptitle(f"Hessians at initialisation: width 8, {BATCH} handwritten digits")
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="The spectrum of a Hessian against depth.")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="numbers of layers, at least 2")
    parser.add_argument("--picture", default=PICTURE, help=f"file to draw into ({PICTURE})")
    arguments = parser.parse_args()
    rows = run(arguments.depths)
    print(f"{'layers':>8}{'parameters':>12}{'negative':>10}{'zero':>10}{'positive':>10}{'seconds':>9}")
    for depth, size, spectrum, taken in rows:
        print(f"{depth:>8,}{size:>12,}" + "".join(f"{number:>10,}" for number in signs(spectrum)) + f"{taken:>9.2f}")
    draw(rows, arguments.picture)
    print("wrote", arguments.picture)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "../examples/spectrum.png"
