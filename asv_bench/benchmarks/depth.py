"""Time and memory over depth: per layer both should be constant, and the slope on log axes 1."""

import time

import numpy as np

from .problem import Problem, Row
from .stages import peak_bytes


def seconds(function, repeats=5):
    """The least of several times."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def problem_of_depth(layers):
    problem = Problem(Row(width=8, batch=4, depth=layers, skip=True))
    problem.solve()
    return problem


class Depth:
    param_names = ["layers"]
    params = [[100, 300, 1000, 3000, 10000]]

    def setup(self, layers):
        self.problem = problem_of_depth(layers)

    def time_solve(self, layers):
        self.problem.solve()

    def track_factorize_per_layer(self, layers):
        H = self.problem.hessian()
        return seconds(lambda: H.factorize(self.problem.damping)) / layers * 1e6

    track_factorize_per_layer.unit = "us"

    def track_memory_per_layer(self, layers):
        return peak_bytes(self.problem.solve) / layers

    track_memory_per_layer.unit = "bytes"


class Slope:
    """Of the logarithm of time or memory in that of depth, by least squares."""

    layers = (300, 1000, 3000, 10000)

    def track_time(self):
        return self.slope(lambda problem: seconds(problem.solve))

    def track_memory(self):
        return self.slope(lambda problem: peak_bytes(problem.solve))

    def slope(self, measure):
        figures = [measure(problem_of_depth(layers)) for layers in self.layers]
        return np.polyfit(np.log(self.layers), np.log(figures), 1)[0]
