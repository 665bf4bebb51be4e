"""The digits and the net that the examples share.

`load` gives a batch of the UCI handwritten digits in data/digits.npz (source and licence: data/SOURCE.md), `skinny_net`
the residual net, 64 inputs, `width` neurons a layer and 10 classes, that the examples put it through.
"""

from pathlib import Path

import numpy as np

import numba_hinv as nh


def load(batch=None):
    """The first `batch` images as rows (batch, 64) of float64 in [0, 1], and their labels (batch,); all by default."""
    with np.load(Path(__file__).parent / "data" / "digits.npz") as data:
        images, labels = data["images"][:batch], data["labels"][:batch]
    return images.reshape(-1, 64) / 16.0, labels.astype(np.int64)


def skinny_net(depth, width=8):
    """`depth` >= 2 layers: one into `width` neurons, `depth` - 2 with skip connections, one into 10 classes."""
    return nh.Network(
        [
            nh.Dense(64, width, "tanh"),
            *[nh.Dense(width, width, "tanh", skip=True) for _ in range(depth - 2)],
            nh.Dense(width, 10, "identity"),
        ],
        loss="softmax_cross_entropy",
    )
