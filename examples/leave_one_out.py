"""Choosing a weight decay by leave-one-out
========================================

Choose the weight decay of a deep net by leave-one-out, in about a second and without training anything again.

Run it with ``python examples/leave_one_out.py`` (extra: examples); it takes some three minutes, nearly all of them for
training again, and draws leave_one_out.png beside itself. A net of ten layers learns a noisy function of three
variables from 80 samples, with one weight decay after the other. For each, `nh.leave_one_out` says what the net would
predict for every sample without that sample, and so how large its loss on new samples is; beside it are the truth (80
trainings for each weight decay), the usual way out (10 trainings without a tenth of the samples), and the loss on 4,000
other samples. At a decay of 0.03 the lowest eigenvalue of H is nearly 0: the minimum is about to vanish, and without
one of many samples training ends in another one, far away, which no step can see. May be changed freely: the constants
are the whole setting.
"""

import argparse
import time
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from scipy.linalg import LinAlgWarning

import numba_hinv as nh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - draws into a file, without a screen

DEPTH, WIDTH = 10, 4
SAMPLES, TEST, NOISE = 80, 4000, 0.3
DECAYS = 0.3, 0.16, 0.08, 0.05, 0.03, 0.02, 0.01
FOLDS = 10
PICTURE = Path(__file__).with_suffix(".png")
NAMES = "leave-one-out, one step each", "leave-one-out, trained again", f"{FOLDS}-fold, trained again"


def draw_samples(count, rng):
    X = rng.uniform(-1.5, 1.5, (count, 3))
    return X, np.sin(X @ (1.0, -0.5, 0.3)) + NOISE * rng.standard_normal(count)


def network():
    hidden = [nh.Dense(WIDTH, WIDTH, "tanh", skip=True) for _ in range(DEPTH - 2)]
    return nh.Network([nh.Dense(3, WIDTH, "tanh"), *hidden, nh.Dense(WIDTH, 1, "identity")], loss="mean_squared_error")


def train(net, params, X, y, l2):
    return nh.minimize(net, params, X, y, l2=l2, max_iterations=300).x


def by_training(net, params, X, y, l2, groups):
    """Predictions for each sample by a net that was trained again, from where it is, without the sample's group."""
    found = np.empty(len(y))
    for group in np.unique(groups):
        own = groups == group
        found[own] = net.forward(train(net, params, X[~own], y[~own], l2), X[own])[:, 0]
    return found


def by_step(net, params, X, y, l2):
    with warnings.catch_warnings():
        # Which samples are not reliable is printed and drawn.
        warnings.simplefilter("ignore", LinAlgWarning)
        return nh.leave_one_out(net, params, X, y, l2=l2)


def run(samples, decays):
    """(scores (decays, 4), seconds of the three ways, (change by one step, by training again, reliable) at the
    best).
    """
    rng = np.random.default_rng(0)
    (X, y), (X_test, y_test) = draw_samples(samples, rng), draw_samples(TEST, rng)
    net, seconds, scores, seen = network(), np.zeros(3), [], []
    params = net.init(rng=0)
    folds = rng.permutation(samples) % FOLDS
    # Compiled before the clock starts.
    by_step(net, train(net, params, X, y, decays[0]), X, y, decays[0])
    print(f"{net}, {samples} samples\n")
    print(
        " weight  loss with    leave-one-out,  leave-one-out,        10-fold,   loss of  within 5 %    and "
        "of those that"
    )
    print(
        "  decay        all     one step each   trained again   trained again    others     of truth    are said to be"
    )
    for l2 in decays:
        params = train(net, params, X, y, l2)
        before = net.forward(params, X)[:, 0]
        began = time.perf_counter()
        found = by_step(net, params, X, y, l2)
        times = [time.perf_counter()]
        again = by_training(net, params, X, y, l2, np.arange(samples))
        times.append(time.perf_counter())
        folded = by_training(net, params, X, y, l2, folds)
        times.append(time.perf_counter())
        seconds += np.diff([began, *times])
        scores.append(
            (found.score, ((again - y) ** 2).mean(), ((folded - y) ** 2).mean(), net.loss(params, X_test, y_test))
        )
        changes = found.predictions[:, 0] - before, again - before
        is_good = np.abs(changes[0] - changes[1]) <= 0.05 * np.abs(changes[1])
        seen.append((*changes, found.reliable))
        good = f"{is_good[found.reliable].sum():3} of {found.reliable.sum():3}"
        print(
            f"{l2:7.3f} {((before - y) ** 2).mean():10.4f} {scores[-1][0]:17.4f} {scores[-1][1]:15.4f} "
            f"{scores[-1][2]:15.4f} "
            f"{scores[-1][3]:9.4f} {is_good.sum():6} of {samples:3} {good:>16}",
            flush=True,
        )
    scores = np.array(scores)
    return scores, seconds, seen[int(scores[:, 0].argmin())]


def draw(decays, scores, seconds, changes, picture):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=(4, 4, 3))
    styles = ("o-", "tab:blue"), ("s--", "black"), ("^--", "tab:orange"), (":", "tab:green")
    for column, name, (style, colour) in zip(scores.T, (*NAMES, f"loss of {TEST:,} others"), styles):
        left.plot(decays, column, style, color=colour, label=name, markersize=5)
    left.set(xscale="log", xlabel="weight decay", ylabel="mean squared error", title="Which weight decay?")
    left.legend(fontsize=8)
    predicted, true, reliable = changes
    ends = [min(predicted.min(), true.min()), max(predicted.max(), true.max())]
    middle.plot(ends, ends, color="0.7", linewidth=1)
    middle.plot(true[reliable], predicted[reliable], "o", color="tab:blue", markersize=5, label="reliable")
    middle.plot(
        true[~reliable],
        predicted[~reliable],
        "o",
        color="tab:red",
        markersize=5,
        fillstyle="none",
        label="not said to be reliable",
    )
    middle.set(
        xlabel="trained again without the sample",
        ylabel="by one step",
        title=f"Change of each sample's prediction, decay {decays[int(scores[:, 0].argmin())]:g}",
    )
    middle.legend(fontsize=8)
    bars = right.barh(range(3), seconds, color=[colour for _, colour in styles[:3]])
    right.bar_label(bars, [f"{value:,.2g} s" if value < 10 else f"{value:,.0f} s" for value in seconds], padding=3)
    right.set(
        xscale="log", xlabel="seconds, all weight decays", title="Time", xlim=(seconds.min() / 3, 4 * seconds.max())
    )
    right.set_yticks(range(3), [name.replace(", ", ",\n") for name in NAMES])
    right.invert_yaxis()
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Choose a weight decay by leave-one-out.")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"to train on ({SAMPLES})")
    parser.add_argument("--decays", type=float, nargs="+", default=DECAYS, help=f"weight decays, falling ({DECAYS})")
    parser.add_argument("--picture", default=PICTURE, help=f"file to draw into ({PICTURE})")
    arguments = parser.parse_args()
    scores, seconds, changes = run(arguments.samples, arguments.decays)
    print()
    for name, column, took in zip(NAMES, scores.T, seconds):
        print(f"{name}: weight decay {arguments.decays[int(column.argmin())]:g}, {took:.2f} s")
    draw(arguments.decays, scores, seconds, changes, arguments.picture)
    print("wrote", arguments.picture)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "../examples/leave_one_out.png"
