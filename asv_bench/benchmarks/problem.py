"""The nets, batches and right-hand sides of the benchmarks, built from a seed; ROWS are those of the README's table."""

import os
from typing import NamedTuple

import numpy as np

import numba_hinv as nh

DAMPING = 1e-2
CLASSES = 10
LOSS = "softmax_cross_entropy"


def threads():
    """Threads of BLAS, which every other library is given as well."""
    return int(os.environ.get("OPENBLAS_NUM_THREADS") or os.cpu_count())


class Row(NamedTuple):
    """A net of `depth` layers: all square of the given width but the last, which has CLASSES outputs."""

    width: int
    batch: int
    depth: int
    skip: bool
    damping: float = DAMPING

    def __str__(self):
        damping = f", damping {self.damping:g}" if self.damping != DAMPING else ""
        return f"{self.width}, {self.batch}, {self.depth:,}{', skip' * self.skip}{damping}"


ROWS = (
    Row(8, 1, 3000, True),
    Row(8, 4, 1000, True),
    Row(24, 16, 50, True),
    Row(24, 64, 9, False),
    Row(256, 1, 20, True),
    Row(1024, 1, 6, True),
)


class Problem:
    """A row made concrete: the net, its parameters, a batch of normal inputs with labels, a normal right-hand side."""

    def __init__(self, row):
        self.damping = row.damping
        rng = np.random.default_rng(0)
        self.layers = [
            *[nh.Dense(row.width, row.width, "tanh", skip=row.skip) for _ in range(row.depth - 1)],
            nh.Dense(row.width, CLASSES, "identity"),
        ]
        self.net = nh.Network(self.layers, loss=LOSS)
        self.params = self.net.init(rng=0)
        self.X = rng.standard_normal((row.batch, row.width))
        self.y = rng.integers(0, CLASSES, row.batch)
        self.b = rng.standard_normal(self.net.num_params)

    def hessian(self):
        return self.net.hessian(self.params, self.X, self.y)

    def solve(self):
        """The whole job, from the net to the solution."""
        return nh.solve(self.net, self.params, self.X, self.y, self.b, self.damping)
