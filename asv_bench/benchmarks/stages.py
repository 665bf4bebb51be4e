"""Time and peak memory of each stage over width, batch and depth."""

import tracemalloc

from .problem import Problem, Row

# Flops of one factorization, so that no point of the grid takes more than a few seconds.
MOST_FLOPS = 2e11


class Stages:
    param_names = ["width", "batch", "layers"]
    params = [[8, 32, 128, 512], [1, 4, 16], [10, 100]]

    def setup(self, width, batch, layers):
        if 7 / 3 * (width * batch) ** 3 * layers > MOST_FLOPS:
            raise NotImplementedError("too large for the grid")  # asv skips it
        self.problem = Problem(Row(width, batch, layers, skip=True))
        self.H = self.problem.hessian()
        self.F = self.H.factorize(self.problem.damping)
        self.F.solve(self.problem.b)  # compiles, and makes whatever is made once per factorization


class Time(Stages):
    def time_linearise(self, *row):
        self.problem.hessian()

    def time_multiply(self, *row):
        self.H @ self.problem.b

    def time_factorize(self, *row):
        self.H.factorize(self.problem.damping)

    def time_solve(self, *row):
        self.F.solve(self.problem.b)

    def time_solve_unrefined(self, *row):
        self.F.solve(self.problem.b, refine=False)


class Memory(Stages):
    """Peak of the arrays that a stage allocates, its result included."""

    unit = "bytes"

    def track_linearise(self, *row):
        return peak_bytes(self.problem.hessian)

    def track_multiply(self, *row):
        return peak_bytes(lambda: self.H @ self.problem.b)

    def track_factorize(self, *row):
        return peak_bytes(lambda: self.H.factorize(self.problem.damping))

    def track_solve(self, *row):
        return peak_bytes(lambda: self.F.solve(self.problem.b))

    def peakmem_net_to_solution(self, *row):
        """Peak of the process: about 200 MB of it are Python, Numba and SciPy themselves."""
        self.problem.solve()


def peak_bytes(function):
    tracemalloc.start()
    try:
        result = function()  # held until the peak is read
        return tracemalloc.get_traced_memory()[1]
    finally:
        del result
        tracemalloc.stop()
