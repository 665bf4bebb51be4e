"""Chains of generic layers with small blocks, the Newton step of optimal control: time per stage.

A stage has a states and p = a parameters (controls). The chains are random, stable and positive definite, as a Riccati
recursion needs them.
"""

import time

import numpy as np
from numba import njit

import numba_hinv as nh
from numba_hinv import embedded

from .lifted import lift_blocks
from .peers import Pardiso
from .sparse_direct import banded, banded_solve, pardiso_solve, superlu_solve

DAMPING = 1e-2
SIZES = (8, 16, 20, 32, 64, 128)
# Microseconds per stage of one Riccati factorization and solve by HPIPM on BLASFEO, with as many states as controls
# (docs/benchmarks.md): the length of the chains is chosen by them.
HPIPM = {8: 0.34, 16: 1.04, 20: 1.62, 32: 4.3, 64: 26.2, 128: 204.0}
# A chain of the library's takes about SECONDS at HPIPM's speed, and its blocks BYTES at most; the sparse and banded
# solvers get the first unknowns of it, since their time is linear in the stages.
SECONDS, BYTES, UNKNOWNS = 0.1, 1e8, 20_000
# Stages of a controller's chain.
HORIZON = 40


class Chain:
    """``stages`` random stages of a states and a parameters, the Hessian they make and a right-hand side."""

    def __init__(self, a, stages):
        rng = np.random.default_rng(0)

        def normal(scale):
            return rng.standard_normal((stages, a, a)) * (scale / np.sqrt(a))

        # The spectral norm of a normal matrix is about 2 sqrt(a): 0.9 for Dz.
        Dx, Dz, Dzx = normal(0.5), normal(0.45), normal(0.1)
        G, E = normal(0.5), normal(0.5)
        Dxx = np.eye(a) + G @ G.transpose(0, 2, 1)
        Dzz = 0.5 * np.eye(a) + E @ E.transpose(0, 2, 1)
        self.a = a
        self.arrays = {"Dx": Dx, "Dz": Dz, "Dxx": Dxx, "Dzx": Dzx, "Dzz": Dzz}
        self.blocks = [nh.LayerBlocks(*stage) for stage in zip(Dx, Dz, Dxx, Dzx, Dzz)]
        self.terminal = np.eye(a)
        self.b = rng.standard_normal(stages * a)

    def hessian(self):
        return nh.Hessian.from_blocks(self.blocks, self.terminal)

    def first(self, stages):
        """The chain of the first ``stages`` alone."""
        chain = object.__new__(Chain)
        chain.a, chain.blocks, chain.terminal = self.a, self.blocks[:stages], self.terminal
        chain.b = self.b[: stages * self.a]
        return chain

    def multiply(self, v):
        """(H + damping I) v in NumPy, layer by layer."""
        v, z, states = v.reshape(len(self.blocks), self.a), np.zeros(self.a), []
        for block, x in zip(self.blocks, v):
            states.append(z)
            z = block.Dx @ x + block.Dz @ z
        product, q = np.empty_like(v), self.terminal @ z
        for index in reversed(range(len(v))):
            block, x, z = self.blocks[index], v[index], states[index]
            product[index] = block.Dxx @ x + block.Dzx @ z + block.Dx.T @ q + DAMPING * x
            q = block.Dzz @ z + block.Dzx.T @ x + block.Dz.T @ q
        return product.ravel()

    def residual(self, x):
        """||b - (H + damping I) x|| / ||b||"""
        return np.linalg.norm(self.b - self.multiply(x)) / np.linalg.norm(self.b)


def stages_of(a):
    """(stages for the library, stages for the sparse and banded solvers)."""
    stages = int(min(SECONDS / (HPIPM[a] * 1e-6), BYTES / (40 * a * a)))
    return stages, min(stages, UNKNOWNS // (3 * a))


def library_solve(H, b, refine=True):
    return H.factorize(DAMPING).solve(b, refine=refine)


@njit
def _repeat(system, b, x, repeats):
    for _ in range(repeats):
        embedded.factorize(system, DAMPING, 0.0)
        embedded.solve(system, b, x, 0)


def embedded_solver(chain, stages):
    """(function, its chain, stages that it goes through): the chain's first stages, time and again in compiled code.

    In memory that is made once, as in a controller, and without refinement: what HPIPM was timed doing.
    """
    short = chain.first(stages)
    system = embedded.from_hessian(short.hessian())
    b, x = short.b[None].copy(), np.empty((1, short.b.size))
    # At 50 GF/s, and a microsecond for what does not depend on the size.
    repeats = max(1, int(SECONDS / (stages * (2e-10 * chain.a**3 + 1e-6))))

    def solve():
        _repeat(system, b, x, repeats)
        return x[0].copy()

    return solve, short, stages * repeats


def peer_solvers(chain):
    """{title: function that solves the chain, or None where it is not installed}. Assembled here, and not timed."""
    lifted = lift_blocks(chain.blocks, chain.terminal, DAMPING)
    rhs, bands = lifted.right_hand_side(chain.b), banded(lifted.matrix)
    pardiso = (lambda: pardiso_solve(lifted, rhs)[lifted.parameters]) if Pardiso.installed() else None
    return {
        "PARDISO, lifted sparse system": pardiso,
        "SuperLU, lifted sparse system": lambda: superlu_solve(lifted, rhs)[lifted.parameters],
        "scipy.linalg.solve_banded": lambda: banded_solve(bands, rhs)[lifted.parameters],
    }


class Blocks:
    """The library's time per stage."""

    param_names = ["states"]
    params = [list(SIZES)]

    def setup(self, a):
        self.chain = Chain(a, stages_of(a)[0])
        self.H = self.chain.hessian()
        library_solve(self.H, self.chain.b)

        self.embedded_solve, _, self.embedded_stages = embedded_solver(self.chain, HORIZON)

    def track_embedded(self, a):
        start = time.perf_counter()
        self.embedded_solve()
        return (time.perf_counter() - start) / self.embedded_stages * 1e6

    track_embedded.unit = "us per stage"

    def time_from_blocks(self, a):
        self.chain.hessian()

    def track_from_arrays(self, a):
        """The time over that of a copy of the arrays: the least of either, taken in turn."""
        arrays, times = self.chain.arrays, [[], []]
        for _ in range(9):
            for k, job in enumerate(
                (
                    lambda: nh.Hessian.from_blocks(terminal=self.chain.terminal, **arrays),
                    lambda: [array.copy() for array in arrays.values()],
                )
            ):
                start = time.perf_counter()
                job()
                times[k].append(time.perf_counter() - start)
        return min(times[0]) / min(times[1])

    track_from_arrays.unit = "times a copy"

    def time_factorize_and_solve(self, a):
        library_solve(self.H, self.chain.b)

    def time_factorize_and_solve_unrefined(self, a):
        library_solve(self.H, self.chain.b, refine=False)
