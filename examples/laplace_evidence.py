"""Choosing a depth by the evidence
================================

Choose a net's depth by its evidence, with the exact Hessian and with the Gauss-Newton matrix beside it.

Run it with ``python examples/laplace_evidence.py``; it draws ``laplace_evidence.png`` and needs matplotlib (the extra
``examples``). Nets of 4 neurons a layer learn 100 handwritten digits from 6 principal components. Every net is trained
to a mode of the posterior, with a prior precision that maximises the evidence there, if one does; then the
log-determinant of the posterior's precision, by either matrix, gives the evidence of the net: how probable it makes the
training labels before it has seen any of them. No image is held back for the choice; the others only show its worth.

In the picture, the exact Hessian chooses one hidden layer, and so do the images that were not used; the Gauss-Newton
matrix, whose evidence is 6 to 35 nats higher at the same modes, chooses two.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
from digits import load

import numba_hinv as nh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - draws into a file, without a screen

DEPTHS = 1, 2, 3, 4, 6  # hidden layers
STARTS = 3
ROUNDS = 3  # of training and of fitting the prior
IMAGES, FEATURES, WIDTH = 100, 6, 4
PRECISION = 0.5  # of the prior, at first
MAX_ITERATIONS = 500
PICTURE = Path(__file__).with_suffix(".png")


def features():
    """(training images, training labels, others, their labels): principal components, of unit variance."""
    images, labels = load()
    images -= images[:IMAGES].mean(axis=0)
    axes = np.linalg.svd(images[:IMAGES], full_matrices=False)[2][:FEATURES]
    X = images @ axes.T
    X /= X[:IMAGES].std(axis=0)
    return X[:IMAGES], labels[:IMAGES], X[IMAGES:], labels[IMAGES:]


def network(depth):
    hidden = [nh.Dense(WIDTH, WIDTH, "tanh", skip=True) for _ in range(depth - 1)]
    return nh.Network(
        [nh.Dense(FEATURES, WIDTH, "tanh"), *hidden, nh.Dense(WIDTH, 10, "identity")], loss="softmax_cross_entropy"
    )


def train(net, params, X, y, precision):
    """The mode of the posterior that training from ``params`` ends in."""
    return nh.minimize(net, params, X, y, l2=precision / len(y), max_iterations=MAX_ITERATIONS).x


def fit(net, seed, X, y):
    """(params, prior precision): a mode, and the prior that is most probable there."""
    params, precision = train(net, net.init(seed), X, y, PRECISION), PRECISION
    for _ in range(ROUNDS):
        try:
            precision = nh.Laplace(net, params, X, y, precision).fit_prior().prior_precision
        except np.linalg.LinAlgError:
            # No maximum, or no mode yet: the precision stays.
            break
        params = train(net, params, X, y, precision)
    return params, precision


def run(depths, starts):
    """Rows (depth, exact log evidence, that of the Gauss-Newton matrix, log-likelihood of the other images, each)."""
    X, y, X_other, y_other = features()
    print(" depth  start  parameters  precision   exact evidence    Gauss-Newton   log-likelihood of other images")
    rows = []
    for depth in depths:
        net = network(depth)
        for seed in range(starts):
            params, precision = fit(net, seed, X, y)
            try:
                exact = nh.Laplace(net, params, X, y, precision).log_evidence()
            except np.linalg.LinAlgError as error:
                print(f"{depth:6} {seed:6}  {error}")
                continue
            ggn = nh.Laplace(net, params, X, y, precision, curvature="ggn").log_evidence()
            other = -net.loss(params, X_other, y_other)
            rows.append((depth, exact, ggn, other))
            print(f"{depth:6} {seed:6} {net.num_params:11} {precision:10.3f} {exact:16.2f} {ggn:15.2f} {other:15.3f}")
    return np.array(rows)


def best_of(rows, column):
    """(depths, the largest value of a column at each)."""
    depths = np.unique(rows[:, 0])
    return depths, np.array([rows[rows[:, 0] == depth, column].max() for depth in depths])


def draw(rows, picture):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for column, name, colour in ((2, "Gauss-Newton matrix", "tab:orange"), (1, "exact Hessian", "tab:blue")):
        depths, best = best_of(rows, column)
        left.plot(rows[:, 0], rows[:, column], "o", color=colour, markersize=4, alpha=0.5)
        left.plot(depths, best, color=colour, linewidth=2, label=name)
        top = int(np.argmax(best))
        left.plot(depths[top], best[top], "*", color=colour, markersize=16, markeredgecolor="black")
    left.set(xlabel="hidden layers", ylabel="log evidence, nats", title="Log evidence of 100 training labels")
    left.legend(loc="lower left", title="best of the starts; star: the choice")
    right.plot(rows[:, 0], rows[:, 3], "o", color="tab:green", markersize=4, alpha=0.5, label="every start")
    depths = np.unique(rows[:, 0])
    means = [rows[rows[:, 0] == depth, 3].mean() for depth in depths]
    right.plot(depths, means, color="tab:green", linewidth=2, label="their mean")
    right.set(
        xlabel="hidden layers", ylabel="log-likelihood per image, nats", title="The 1,697 images that were not used"
    )
    right.legend(loc="lower left")
    for axis in (left, right):
        axis.set_xticks(depths)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Choose a net's depth by its evidence.")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help=f"hidden layers ({DEPTHS})")
    parser.add_argument("--starts", type=int, default=STARTS, help=f"trainings of every net ({STARTS})")
    parser.add_argument("--picture", default=PICTURE, help=f"file to draw into ({PICTURE})")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows = run(arguments.depths, arguments.starts)
    for column, name in ((1, "exact Hessian"), (2, "Gauss-Newton matrix")):
        depths, best = best_of(rows, column)
        print(f"{name}: depth {depths[np.argmax(best)]:.0f}")
    print(f"{time.perf_counter() - began:.1f} s with compilation")
    draw(rows, arguments.picture)
    print("wrote", arguments.picture)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "../examples/laplace_evidence.png"
