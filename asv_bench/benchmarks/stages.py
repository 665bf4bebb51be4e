"""Time of each stage and peak memory of the whole, over the rows of the README's table."""

from .problem import DAMPING, ROWS, Problem


class Stages:
    param_names = ["row"]
    params = [list(ROWS)]

    def setup(self, row):
        self.problem = Problem(ROWS[row])
        self.H = self.problem.hessian()
        self.F = self.H.factorize(DAMPING)
        self.F.solve(self.problem.b)    # compiles, and makes whatever is made once per factorization

    def time_linearise(self, row):
        self.problem.hessian()

    def time_multiply(self, row):
        self.H @ self.problem.b

    def time_factorize(self, row):
        self.H.factorize(DAMPING)

    def time_solve(self, row):
        self.F.solve(self.problem.b)

    def time_solve_unrefined(self, row):
        self.F.solve(self.problem.b, refine=False)


class Memory:
    param_names = ["row"]
    params = [list(ROWS)]

    def setup(self, row):
        self.problem = Problem(ROWS[row])

    def peakmem_solve(self, row):
        """Peak of the process: about 200 MB of it are Python, Numba and SciPy themselves."""
        self.problem.solve()
