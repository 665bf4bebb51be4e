"""The dense Hessian of many samples, `Hessian.todense`: time, and flops counted as 2 B P^2 a second."""

import time

import numpy as np

import numba_hinv as nh

from .problem import LOSS

# Widths, and samples; the first ones are quick.
NETS = {
    "64-16-10": ((64, 16, 10), 200),
    "64-16-16-10": ((64, 16, 16, 10), 1797),
    "64-8x10-10": ((64, *[8] * 10, 10), 1797),
    "64-16x20-10": ((64, *[16] * 20, 10), 1797),
    "784-10-10": ((784, 10, 10), 10_000),
}


class Dense:
    param_names = ["net"]
    params = [list(NETS)]

    def setup(self, name):
        widths, batch = NETS[name]
        layers = [nh.Dense(*pair, "tanh") for pair in zip(widths[:-2], widths[1:-1])]
        net = nh.Network([*layers, nh.Dense(*widths[-2:], "identity")], LOSS)
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((batch, widths[0])), rng.integers(0, widths[-1], batch)
        self.H = net.hessian(net.init(rng=0), X, y)
        self.flops = 2.0 * batch * self.H.shape[0] ** 2
        self.H.todense()

    def time_todense(self, name):
        self.H.todense()

    def track_todense(self, name):
        start = time.perf_counter()
        self.H.todense()
        return self.flops / (time.perf_counter() - start) / 1e9

    track_todense.unit = "GF/s"
