"""Which training images are to blame for a mistake
================================================

Which training images are to blame for a mistake: influences of handwritten digits, with the exact inverse Hessian.

Run it with ``python examples/influence_digits.py`` (extra: examples); it takes under a minute and draws
influence_digits.png beside itself. A net of eight layers is trained to convergence by Newton's method in a trust
region; `nh.influence` then says how much the loss of each mistaken test image would rise if a training image were left
out. For the most harmful one of each, the net is trained again without it: these are the images with the strongest
effects, of which first order catches the sign and a part. May be changed freely: the constants are the whole setting.

In the picture, each mistaken digit stands beside the five most helpful and the five most harmful training images, with
their labels and the predicted change of the mistaken image's loss without them. Training again without the most harmful
one confirms the sign; it lowered the loss by 2.0 to 3.1 times as much as predicted.
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

DEPTH = 8
TRAIN = 100  # images to train on; the rest are for testing
L2 = 2e-2
MISTAKES = 4  # mistaken test images to draw, those with the largest loss
SHOWN = 5  # training images of each kind to draw beside one
PICTURE = Path(__file__).with_suffix(".png")


def train(net, params, X, y, l2=L2):
    return nh.minimize(net, params, X, y, l2=l2, max_iterations=1000)


def train_without(net, params, X, y, i):
    """Parameters of training again without image i; the others keep their weight of one over their number before."""
    rest = np.arange(y.size) != i
    return train(net, params, X[rest], y[rest], L2 * y.size / (y.size - 1)).x


def draw(images, labels, mistaken, predicted, values, picture):
    """A row for each mistaken image, and its most helpful and most harmful training images."""
    figure, axes = plt.subplots(
        len(mistaken), 2 * SHOWN + 1, figsize=(11.5, 1.35 * len(mistaken) + 0.6), layout="constrained", squeeze=False
    )
    helpful, harmful = plt.cm.tab10(0), plt.cm.tab10(3)
    for row, image, guess, influence in zip(axes, mistaken, predicted, values.T):
        order = np.argsort(influence)
        shown = [(image, f"{labels[image]}, taken for {guess}", "black")]
        shown += [(i, f"{labels[i]}:  {influence[i]:+.3f}", helpful) for i in order[: -SHOWN - 1 : -1]]
        shown += [(i, f"{labels[i]}:  {influence[i]:+.3f}", harmful) for i in order[:SHOWN]]
        for ax, (i, title, colour) in zip(row, shown):
            ax.imshow(images[i].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(title, fontsize=8, color=colour)
            ax.set(xticks=[], yticks=[])
            for side in ax.spines.values():
                side.set(color=colour, linewidth=1.5)
    figure.suptitle(
        "Mistaken test images, and the training images without which their loss would rise most (blue: "
        "helpful) and fall most (red: harmful)",
        fontsize=10,
    )
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Training images that explain mistakes.")
    parser.add_argument("--train", type=int, default=TRAIN, help=f"images to train on ({TRAIN})")
    parser.add_argument("--picture", default=PICTURE, help=f"file to draw into ({PICTURE})")
    arguments = parser.parse_args()
    images, labels = load()
    X, y = images[: arguments.train], labels[: arguments.train]
    start = time.perf_counter()
    net = skinny_net(DEPTH)
    trained = train(net, net.init(rng=0), X, y)
    params = trained.x
    print(
        f"{net}: {trained.nit} steps in {time.perf_counter() - start:.1f} s, loss {trained.fun:.4f}, norm of the "
        f"gradient {np.linalg.norm(trained.jac):.1e}"
    )

    outputs = net.forward(params, images)
    guesses = outputs.argmax(axis=1)
    is_wrong = guesses != labels
    is_wrong[: arguments.train] = False
    losses = np.array([net.loss(params, images[i : i + 1], labels[i : i + 1]) for i in np.flatnonzero(is_wrong)])
    mistaken = np.flatnonzero(is_wrong)[np.argsort(-losses)[:MISTAKES]]
    start = time.perf_counter()
    found = nh.influence(net, params, X, y, images[mistaken], labels[mistaken], damping=0.0, l2=L2)
    print(
        f"{is_wrong.sum()} of {labels.size - arguments.train:,} test images are mistaken; "
        f"negative eigenvalues of H: {found.factorization.inertia.negative}; "
        f"influences in {time.perf_counter() - start:.2f} s"
    )
    print("loss of a mistaken image, without its most harmful training image: predicted, and trained again")
    for image, influence in zip(mistaken, found.values.T):
        i, alone = int(influence.argmin()), (images[image : image + 1], labels[image : image + 1])
        change = net.loss(train_without(net, params, X, y, i), *alone) - net.loss(params, *alone)
        print(
            f"  test image {image:>4}, a {labels[image]} taken for a {guesses[image]}, without image {i:>3}, "
            f"a {labels[i]}: {influence[i]:+.3f} {change:+.3f}"
        )
    draw(images, labels, mistaken, guesses[mistaken], found.values, arguments.picture)
    print("wrote", arguments.picture)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "../examples/influence_digits.png"
