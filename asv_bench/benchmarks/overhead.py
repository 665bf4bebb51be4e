"""What Python takes around the kernels: small nets and short chains, whose sweeps take a few microseconds each."""

import numpy as np

from numba_hinv import embedded

from .blocks import DAMPING, HORIZON, Chain
from .depth import seconds
from .problem import Problem, Row

REPEATS = 200
STATES = 8


class Net:
    """Width 10, 2 samples, 30 layers, from the net to the solution."""

    def setup(self):
        self.problem = Problem(Row(width=10, batch=2, depth=30, skip=True))
        self.problem.solve()
        self.H = self.problem.hessian()
        self.F = self.H.factorize(self.problem.damping)

    def time_hessian(self):
        self.problem.hessian()

    def time_hessian_and_factorize(self):
        self.problem.hessian().factorize(self.problem.damping)

    def time_net_to_solution(self):
        self.problem.solve()

    def time_multiply(self):
        self.H @ self.problem.b

    def time_solve(self):
        self.F.solve(self.problem.b)


class ShortChain:
    """HORIZON stages of STATES states: the public calls, less the same sweeps in compiled code."""

    unit = "us around the kernels"

    def setup(self):
        self.chain = Chain(STATES, HORIZON)
        self.H = self.chain.hessian()
        self.F = self.H.factorize(DAMPING)
        self.system = embedded.from_hessian(self.H)
        self.b, self.x = self.chain.b[None].copy(), np.empty((1, self.chain.b.size))
        embedded.factorize(self.system, DAMPING, self.H.system.norm())

    def track_factorize(self):
        kernels = seconds(lambda: embedded.factorize(self.system, DAMPING, self.H.system.norm()), REPEATS)
        return 1e6 * (seconds(lambda: self.H.factorize(DAMPING), REPEATS) - kernels)

    def track_solve_unrefined(self):
        kernels = seconds(lambda: embedded.solve(self.system, self.b, self.x, 0), REPEATS)
        return 1e6 * (seconds(lambda: self.F.solve(self.chain.b, refine=False), REPEATS) - kernels)

    track_factorize.unit = track_solve_unrefined.unit = unit

    def time_from_blocks(self):
        self.chain.hessian()
