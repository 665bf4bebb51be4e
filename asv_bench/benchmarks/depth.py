"""Time and memory per layer over depth: both should be constant."""

import time
import tracemalloc

from .problem import DAMPING, Problem, Row


class Depth:
    param_names = ["layers"]
    params = [[100, 300, 1000, 3000, 10000]]
    repeats = 5

    def setup(self, layers):
        self.problem = Problem(Row(width=8, batch=4, depth=layers, skip=True))
        self.problem.solve()

    def time_solve(self, layers):
        self.problem.solve()

    def track_factorize_per_layer(self, layers):
        H, best = self.problem.hessian(), float("inf")
        for _ in range(self.repeats):
            start = time.perf_counter()
            H.factorize(DAMPING)
            best = min(best, time.perf_counter() - start)
        return best / layers * 1e6

    track_factorize_per_layer.unit = "us"

    def track_memory_per_layer(self, layers):
        tracemalloc.start()
        try:
            self.problem.solve()
            return tracemalloc.get_traced_memory()[1] / layers
        finally:
            tracemalloc.stop()

    track_memory_per_layer.unit = "bytes"
