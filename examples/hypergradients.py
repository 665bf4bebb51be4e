"""Weight decay and sample weights tuned by hypergradients
=======================================================

Weight decay and the weights of the samples, chosen by gradient steps on a validation loss; the decay beside a grid.

Run it with ``python examples/hypergradients.py`` (extra: examples); it takes a minute or two and draws
hypergradients.png beside itself. A net is trained to its minimum on a few handwritten digits, a quarter of which have a
wrong label. `nh.hypergradient` says how the loss on other images depends on the decay, and on the weight of every
training image, by one solve with the exact Hessian each time; steps along it start training where the last one ended. A
third set of images is for judging. May be changed freely: the constants are the whole setting.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from digits import load

import numba_hinv as nh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the backend has to be chosen first

WIDTH = 6
TRAIN, VALIDATION, TEST = 120, 300, 1000  # images
WRONG = 0.25  # share of the training images with a wrong label
START = 1e-3  # the first decay of the gradient steps
GRID = -3.5, -0.5, 10  # logarithms of the least and the largest decay of the grid, and their number
STEPS = 12, 25  # for the decay alone, and for decay and weights
RATE = 0.5  # of Adam, in the logarithms
PICTURE = Path(__file__).with_suffix(".png")


class Problem:
    """A net, images to train it on, to choose by and to judge by."""

    def __init__(self):
        X, y = load(TRAIN + VALIDATION + TEST)
        rng = np.random.default_rng(0)
        self.net = nh.Network([nh.Dense(64, WIDTH), nh.Dense(WIDTH, 10, "identity")], "softmax_cross_entropy")
        self.X, self.y = X[:TRAIN], y[:TRAIN].copy()
        self.is_wrong = rng.permutation(TRAIN) < WRONG * TRAIN
        self.y[self.is_wrong] = (self.y[self.is_wrong] + rng.integers(1, 10, self.is_wrong.sum())) % 10
        self.validation = X[TRAIN:][:VALIDATION], y[TRAIN:][:VALIDATION]
        self.test = X[-TEST:], y[-TEST:]

    def train(self, start, l2, weights):
        """The minimum that a start leads to."""
        options = {"l2": l2, "sample_weight": weights, "gtol": 1e-9, "max_iterations": 1000}
        return nh.minimize(self.net, start, self.X, self.y, **options).x

    def losses(self, params):
        """On the validation and the test images."""
        return [self.net.loss(params, *which) for which in (self.validation, self.test)]


def on_grid(problem, num_decays):
    """[decay, losses] of every decay of the grid, from the largest down."""
    params, ones, rows = problem.net.init(rng=0), np.ones(TRAIN), []
    for l2 in np.logspace(*GRID[:2], num_decays)[::-1]:
        params = problem.train(params, l2, ones)
        rows.append([l2, *problem.losses(params)])
    return np.array(rows)


def by_gradient(problem, num_steps, with_weights):
    """([decay, losses] of every step, the last weights): Adam in the logarithms of the decay and perhaps of the
    weights.
    """
    # From a strong decay on, as the grid, whose minimum is simple.
    params = problem.train(problem.net.init(rng=0), 10.0 ** GRID[1], np.ones(TRAIN))
    phi = np.append(np.log(START), np.zeros(TRAIN if with_weights else 0))
    mean, square, rows = np.zeros_like(phi), np.zeros_like(phi), []
    for step in range(1, num_steps + 1):
        l2, weights = np.exp(phi[0]), np.exp(phi[1:]) if with_weights else np.ones(TRAIN)
        params = problem.train(params, l2, weights)
        found = nh.hypergradient(
            problem.net,
            params,
            (problem.X, problem.y),
            problem.validation,
            ("l2", "sample_weight"),
            l2=l2,
            sample_weight=weights,
        )
        rows.append([l2, *problem.losses(params)])
        slope = np.append(found.gradient[0] * l2, found.gradient[1] * weights if with_weights else [])
        mean, square = 0.8 * mean + 0.2 * slope, 0.9 * square + 0.1 * slope**2
        phi = phi - RATE * (mean / (1 - 0.8**step)) / (np.sqrt(square / (1 - 0.9**step)) + 1e-12)
    return np.array(rows), weights


def draw(problem, grid, decay, both, weights, picture):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    left.semilogx(grid[:, 0], grid[:, 1], "o-", color="gray", label=f"grid of {len(grid)}")
    left.semilogx(decay[:, 0], decay[:, 1], ".-", color="tab:blue", label=f"{len(decay)} gradient steps")
    left.semilogx(decay[-1, 0], decay[-1, 1], "*", color="tab:blue", markersize=14, label="the last of these")
    left.set(xlabel="weight decay", ylabel="validation loss", title="The decay alone")
    for rows, name, colour in ((decay, "decay", "tab:blue"), (both, "decay and weights", "tab:orange")):
        steps = np.arange(1, len(rows) + 1)
        middle.plot(steps, rows[:, 1], "--", color=colour, label=f"{name}, validation")
        middle.plot(steps, rows[:, 2], "-", color=colour, label=f"{name}, test")
    middle.axhline(grid[grid[:, 1].argmin(), 2], color="gray", linewidth=1, label="best of the grid, test")
    middle.set(xlabel="gradient step", ylabel="loss", title="Loss on images that were not trained on")
    edges = np.linspace(np.log10(weights).min(), np.log10(weights).max(), 25)
    for chosen, name, colour in (
        (~problem.is_wrong, "right label", "tab:green"),
        (problem.is_wrong, "wrong label", "tab:red"),
    ):
        right.hist(np.log10(weights[chosen]), edges, color=colour, alpha=0.6, label=name)
    right.set(xlabel="log10 of the weight", ylabel="training images", title="Weights after the last step")
    for axes in (left, middle, right):
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs=2, default=STEPS, help="for the decay, and for decay and weights")
    parser.add_argument("--decays", type=int, default=GRID[2], help="of the grid")
    parser.add_argument("--picture", default=PICTURE, help=f"file to draw into ({PICTURE})")
    arguments = parser.parse_args()
    problem = Problem()
    grid = on_grid(problem, arguments.decays)
    decay, _ = by_gradient(problem, arguments.steps[0], False)
    both, weights = by_gradient(problem, arguments.steps[1], True)
    print(
        f"{TRAIN} images to train on, {problem.is_wrong.sum()} with a wrong label; {problem.net.num_params} "
        f"parameters\n"
    )
    print(f"{'':<30}{'trainings':>10}{'decay':>10}{'validation loss':>17}{'test loss':>11}")
    best = grid[grid[:, 1].argmin()]
    for name, count, row in (
        ("grid, the best", len(grid), best),
        ("gradient, first step", 1, decay[0]),
        ("gradient, decay", len(decay), decay[-1]),
        ("gradient, decay and weights", len(both), both[-1]),
    ):
        print(f"{name:<30}{count:>10}{row[0]:>10.3g}{row[1]:>17.4f}{row[2]:>11.4f}")
    medians = [np.median(weights[chosen]) for chosen in (~problem.is_wrong, problem.is_wrong)]
    print(f"\nmedian weight of images with a right label {medians[0]:.3g}, with a wrong one {medians[1]:.3g}")
    draw(problem, grid, decay, both, weights, arguments.picture)
    print("wrote", arguments.picture)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "../examples/hypergradients.png"
