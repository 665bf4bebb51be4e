"""Many right-hand sides at once beside one: narrow nets, chains of small blocks; refined solves, and the sweeps alone.

Every figure is the least time of many over the least time of one, the two taken in turn in one process.
"""

import time

import numpy as np

from .blocks import DAMPING, Chain
from .problem import Problem, Row

ROUNDS = 9
CASES = {
    "width 8, B 1, 3,000 layers": lambda: Problem(Row(8, 1, 3000, True)),
    "width 8, B 4, 1,000 layers": lambda: Problem(Row(8, 4, 1000, True)),
    "blocks of 8, 3,000 stages": lambda: Chain(8, 3000),
}


def ratio(one, many):
    """Least time of ``many`` over that of ``one``."""
    times = [[], []]
    for _ in range(ROUNDS):
        for kept, job in zip(times, (one, many)):
            start = time.perf_counter()
            job()
            kept.append(time.perf_counter() - start)
    return min(times[1]) / min(times[0])


class RightHandSides:
    param_names = ["problem", "columns", "threads"]
    params = [list(CASES), [16, 64], [1, 2]]

    def setup(self, problem, columns, threads):
        self.H = CASES[problem]().hessian()
        self.F = self.H.factorize(DAMPING)
        self.many = np.random.default_rng(0).standard_normal((self.H.shape[0], columns))
        self.one = self.many[:, 0].copy()
        for b in (self.one, self.many):
            self.solve(b, threads, True)

    def solve(self, b, threads, refine):
        return self.F.solve(b, num_threads=threads, refine=refine)

    def track_solve(self, problem, columns, threads):
        return ratio(lambda: self.solve(self.one, 1, True), lambda: self.solve(self.many, threads, True))

    def track_sweep(self, problem, columns, threads):
        return ratio(lambda: self.solve(self.one, 1, False), lambda: self.solve(self.many, threads, False))

    def track_multiply(self, problem, columns, threads):
        return ratio(lambda: self.H @ self.one, lambda: self.H @ self.many)

    for _track in (track_solve, track_sweep, track_multiply):
        _track.unit = "times one"
    del _track
