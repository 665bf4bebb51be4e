"""Nets with weights and data for the tests: builders, a hypothesis strategy, and the golden files.

A `Problem` holds plain data (the layers as dictionaries) so that the library and `dense_truth` are both built from the
same description. Add builders freely; the golden files are read only.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import dense_truth
import numpy as np
from hypothesis import strategies as st

import numba_hinv as nh

DATA = Path(__file__).parent / "data"
GOLDEN = sorted(path.stem for path in DATA.glob("*.npz"))


@dataclass(frozen=True, eq=False)
class Problem:
    layers: tuple
    loss: str
    params: np.ndarray
    X: np.ndarray
    y: np.ndarray

    @functools.cached_property
    def net(self):
        return nh.Network([nh.Dense(**d) for d in self.layers], loss=self.loss)

    @functools.cached_property
    def truth(self):
        return dense_truth.differentiate(self.layers, self.loss, self.params, self.X, self.y)

    @functools.cached_property
    def eigenvalues(self):
        return np.linalg.eigvalsh(self.truth.hessian.astype(np.float64))

    @functools.cached_property
    def norm(self):
        return float(np.abs(self.eigenvalues).max())

    @functools.cached_property
    def hessian(self):
        """The library's operator."""
        return self.net.hessian(self.params, self.X, self.y)

    @property
    def size(self):
        return len(self.params)

    def offsets(self):
        """First parameter of each layer, and the end."""
        sizes = [dense_truth.count_params([d]) for d in self.layers]
        return np.concatenate([[0], np.cumsum(sizes)])

    def gap(self, damping):
        """Distance from -damping to the nearest eigenvalue, relative to the norm."""
        return float(np.abs(self.eigenvalues + damping).min()) / self.norm

    def backward_error(self, damping, x, b):
        return dense_truth.backward_error(self.truth.hessian, damping, x, b)

    def right_hand_side(self, *columns, seed=1):
        return np.random.default_rng(seed).standard_normal((self.size, *columns))


def layer(n_in, n_out, activation="tanh", bias=True, skip=False):
    return dict(in_features=n_in, out_features=n_out, activation=activation, bias=bias, skip=skip)


def random_params(layers, rng, gain=1.0):
    """Gaussian weights of variance gain^2 / fan-in, small biases."""
    parts = []
    for d in layers:
        n_in, n_out = d["in_features"], d["out_features"]
        parts.append(gain * rng.standard_normal(n_in * n_out) / np.sqrt(n_in))
        if d["bias"]:
            parts.append(0.2 * gain * rng.standard_normal(n_out))
    return np.concatenate(parts)


def random_targets(loss, batch, width, rng):
    if loss == "softmax_cross_entropy":
        return rng.integers(0, width, batch)
    if loss == "binary_cross_entropy":
        return rng.random((batch, width))
    return rng.standard_normal((batch, width))


def make(layers, loss="softmax_cross_entropy", batch=3, seed=0, gain=1.0):
    rng = np.random.default_rng(seed)
    layers = tuple(layers)
    return Problem(
        layers,
        loss,
        random_params(layers, rng, gain),
        rng.standard_normal((batch, layers[0]["in_features"])),
        random_targets(loss, batch, layers[-1]["out_features"], rng),
    )


def chain(width, depth, out=3, activation="tanh", skip=True, bias=True, **kwargs):
    """`depth` layers in all: depth - 1 of one width, then a linear one."""
    hidden = [layer(width, width, activation, bias, skip) for _ in range(depth - 1)]
    return make([*hidden, layer(width, out, "identity", bias)], **kwargs)


def norm_estimate(H, steps=12):
    """2-norm of a symmetric operator, from below, by power steps."""
    v = np.random.default_rng(5).standard_normal(H.shape[0])
    for _ in range(steps):
        v /= np.linalg.norm(v)
        v = H @ v
    return np.linalg.norm(v)


@functools.cache
def golden(name):
    """(Problem, arrays) of a golden file."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    layers = tuple(json.loads(str(arrays["layers"])))
    return Problem(layers, str(arrays["loss"]), arrays["params"], arrays["X"], arrays["y"]), arrays


@st.composite
def problems(draw, max_layers=5, max_width=5, max_batch=7, smooth=False):
    """Ragged nets of every shape the library accepts, at most about 150 parameters."""
    names = sorted(set(dense_truth.ACTIVATIONS) - ({"relu"} if smooth else set()))
    depth = draw(st.integers(1, max_layers), label="depth")
    uniform = draw(st.booleans(), label="uniform")
    width = st.integers(1, max_width)
    widths = [draw(width)] * (depth + 1) if uniform else [draw(width) for _ in range(depth + 1)]
    loss = draw(st.sampled_from(sorted(dense_truth.LOSSES)), label="loss")
    layers = [
        layer(
            widths[k],
            widths[k + 1],
            draw(st.sampled_from(names)),
            draw(st.booleans()),
            widths[k] == widths[k + 1] and draw(st.booleans()),
        )
        for k in range(depth)
    ]
    batch = draw(st.integers(1, max_batch), label="batch")
    seed = draw(st.integers(0, 2**20), label="seed")
    gain = draw(st.sampled_from([0.3, 1.0, 1.0, 1.0, 2.0]), label="gain")
    return make(layers, loss, batch, seed, gain)


# Nets with convolutions, norms and gates, for what is done to all kinds of layers.
STRUCTURED = {
    "convolutions": [
        nh.Conv1d(2, 3, 3, 9, stride=2, padding=1),
        nh.Conv1d(3, 3, 3, 5, padding=1, skip=True),
        nh.Conv1d(3, 2, 2, 5, "sin", dilation=2, padding=1, bias=False),
        nh.Dense(10, 2, "identity"),
    ],
    "mixed": [
        nh.Dense(6, 12),
        nh.Conv1d(3, 3, 3, 4, padding=1, skip=True),
        nh.LayerNorm(12),
        nh.Dense(12, 12, skip=True),
        nh.Gated(6),
        nh.Dense(6, 8),
        nh.RMSNorm(8),
        nh.Conv1d(2, 2, 2, 4, "softplus", stride=2),
        nh.Dense(4, 2, bias=False),
    ],
    "norm first": [nh.LayerNorm(5), nh.Dense(5, 3), nh.RMSNorm(3)],
}

# Widths and activations that all differ.
RAGGED = [
    layer(3, 2),
    layer(2, 4, "softplus"),
    layer(4, 3, "sin", bias=False),
    layer(3, 3, skip=True),
    layer(3, 1),
    layer(1, 3, "sigmoid"),
    layer(3, 2, "identity"),
]
# Chains, bounds of segments to cut them into, and dampings in units of ||H||.
CUT = {
    "two layers": (chain(3, 2, batch=2), (0, 1, 2), 1e-2),
    "a layer a segment, one sample": (chain(3, 3, batch=1), (0, 1, 2, 3), -1e-2),
    "no skip": (chain(2, 5, batch=2, skip=False, out=2), (0, 2, 5), -1e-2),
    "ragged": (make(RAGGED, "binary_cross_entropy", batch=3), (0, 2, 4, 7), 1e-3),
    "more samples than weights": (chain(2, 5, batch=4, out=1, loss="mean_squared_error"), (0, 3, 4, 5), -1e-3),
    "eleven layers": (chain(2, 11, batch=1, out=2, gain=0.7), (0, 4, 7, 11), 1e-4),
}
