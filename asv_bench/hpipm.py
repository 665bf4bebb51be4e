"""`numba_hinv.embedded` beside HPIPM, as a table in Markdown: microseconds per stage of a factorization and a solve.

    LD_LIBRARY_PATH=<folder of libblasfeo.so> python asv_bench/hpipm.py --hpipm <folder>/libhpipm.so [--stages 40]

BLASFEO and HPIPM are in C and assembly, of https://github.com/giaf; the reader builds them (``make shared_library``,
with the TARGET of the processor). Random stages, as many controls as states; the same problem for both, whose solutions
are compared. Contenders take turns in one process; times are medians, and ratios medians of the ratios of one round.
HPIPM's square-root Riccati recursion takes positive definite problems alone: beside indefinite ones (``--indefinite``)
it is timed on a definite problem of the same size.
"""

import argparse
import ctypes
import statistics
import time

import numpy as np
from numba import njit

from numba_hinv import embedded

DAMPING = 0.1
SECONDS = 0.02  # of one turn, about


class Riccati:
    """HPIPM's square-root Riccati recursion on the stages of a system."""

    def __init__(self, path, system, b):
        self.library = ctypes.CDLL(path)
        self.kept = []
        depth = len(system.table)
        self.states, self.controls = system.table["n_out"].tolist(), system.table["p"].tolist()
        dim = self._structure("dim", depth)
        for k in range(depth + 1):
            self._set("dim_set_nx", k, 0 if k == 0 else self.states[k - 1], dim)
            self._set("dim_set_nu", k, self.controls[k] if k < depth else 0, dim)
        problem = self._structure("", dim)
        at = 0
        for k in range(depth):
            Dx, Dz, Dxx, Dzx, Dzz = embedded.blocks(system, k)
            p, n = self.controls[k], self.states[k]
            numbers = {"B": Dx, "b": np.zeros(n), "R": Dxx + DAMPING * np.eye(p), "r": -b[at : at + p]}
            if k > 0:
                numbers |= {"A": Dz, "Q": Dzz, "S": Dzx, "q": np.zeros(Dz.shape[1])}
            for name, value in numbers.items():
                self._put(name, k, value, problem)
            at += p
        self._put("Q", depth, embedded.terminal(system), problem)
        self._put("q", depth, np.zeros(self.states[-1]), problem)
        self.solution = self._structure("sol", dim)
        argument = self._structure("ipm_arg", dim)
        self.library.d_ocp_qp_ipm_arg_set_default(1, ctypes.c_void_p(argument))
        for name, value in (("reg_prim", ctypes.c_double(0.0)), ("comp_dual_sol_eq", ctypes.c_int(0))):
            getattr(self.library, f"d_ocp_qp_ipm_arg_set_{name}")(ctypes.byref(value), ctypes.c_void_p(argument))
        work = self._structure("ipm_ws", dim, argument)
        step = self.library.d_ocp_qp_fact_solve_kkt_unconstr
        step.argtypes, step.restype = [ctypes.c_void_p] * 4, None
        addresses = problem, self.solution, argument, work

        @njit
        def repeat(count):
            for _ in range(count):
                step(*addresses)

        self.repeat = repeat

    def _memory(self, size):
        room = np.zeros(size + 4096, np.uint8)
        self.kept.append(room)
        return room.ctypes.data + -room.ctypes.data % 64

    def _structure(self, name, *made_from):
        """The address of a structure of HPIPM's, created in memory of this object's."""
        prefix = "d_ocp_qp_" + (name + "_" if name else "")
        arguments = [ctypes.c_int(value) if name == "dim" else ctypes.c_void_p(value) for value in made_from]
        sizes = []
        for what, given in (("strsize", ()), ("memsize", arguments)):
            function = getattr(self.library, prefix + what)
            function.restype = ctypes.c_size_t
            sizes.append(function(*given))
        structure, memory = (self._memory(size) for size in sizes)
        getattr(self.library, prefix + "create")(*arguments, ctypes.c_void_p(structure), ctypes.c_void_p(memory))
        return structure

    def _set(self, name, *arguments):
        *numbers, structure = arguments
        getattr(self.library, "d_ocp_qp_" + name)(*numbers, ctypes.c_void_p(structure))

    def _put(self, name, k, value, problem):
        """Its matrices are column-major, and S is controls x states."""
        value = np.asfortranarray(value)
        self._set("set_" + name, k, ctypes.c_void_p(value.ctypes.data), problem)

    def controls_found(self):
        found = [np.empty(count) for count in self.controls]
        for k, u in enumerate(found):
            place = ctypes.c_void_p(u.ctypes.data)
            self.library.d_ocp_qp_sol_get_u(k, ctypes.c_void_p(self.solution), place)
        return np.concatenate(found)


def random_system(n, stages, indefinite):
    rng = np.random.default_rng(n)
    system = embedded.chain([n] * stages, [n] * stages)
    for k in range(stages):
        Dx, Dz, Dxx, Dzx, Dzz = embedded.blocks(system, k)
        cost = rng.standard_normal((2 * n, 2 * n)) / np.sqrt(2 * n)
        cost = cost @ cost.T + (0.1 - 1.0 * indefinite) * np.eye(2 * n)
        Dx[...], Dxx[...] = rng.standard_normal((n, n)) / np.sqrt(n), cost[:n, :n]
        if k > 0:
            Dz[...] = 0.9 * rng.standard_normal((n, n)) / np.sqrt(n)
            Dzx[...], Dzz[...] = cost[:n, n:], cost[n:, n:]
    last = rng.standard_normal((n, n)) / np.sqrt(n)
    embedded.terminal(system)[...] = last @ last.T
    return system


@njit
def one_after_the_other(system, b, x, count):
    for _ in range(count):
        embedded.factorize(system, DAMPING, 0.0)
        embedded.solve(system, b, x, 0)


@njit
def together(system, b, x, count):
    for _ in range(count):
        embedded.factorize_and_solve(system, DAMPING, 0.0, b, x, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hpipm", required=True)
    parser.add_argument("--sizes", default="4,8,16,20,32,64,128")
    parser.add_argument("--stages", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--indefinite", action="store_true")
    options = parser.parse_args()
    print(
        "| states = controls | HPIPM | `factorize`, `solve` | `factorize_and_solve` | ratios to HPIPM | difference |\n"
        "|---|---|---|---|---|---|"
    )
    for n in map(int, options.sizes.split(",")):
        definite = random_system(n, options.stages, False)
        system = random_system(n, options.stages, True) if options.indefinite else definite
        b = np.random.default_rng(0).standard_normal((1, n * options.stages))
        x = np.empty_like(b)
        peer = Riccati(options.hpipm, definite, b[0])
        # At 50 GF/s, and some time for what does not depend on the size.
        count = max(1, int(SECONDS / (options.stages * (2e-10 * n**3 + 5e-7))))
        contenders = {
            "peer": lambda count=count, peer=peer: peer.repeat(count),
            "apart": lambda count=count, given=(system, b, x): one_after_the_other(*given, count),
            "together": lambda count=count, given=(system, b, x): together(*given, count),
        }
        times = {name: [] for name in contenders}
        peer.repeat(1)
        one_after_the_other(system, b, x, 1)
        together(system, b, x, 1)
        found = peer.controls_found()
        difference = "" if options.indefinite else f"{np.abs(found - x[0]).max() / np.abs(found).max():.0e}"
        for _ in range(options.rounds):
            for name, call in contenders.items():
                begin = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - begin) / count / options.stages * 1e6)
        medians = [f"{statistics.median(values):.3g}" for values in times.values()]
        ratios = [
            f"{statistics.median([ours / theirs for ours, theirs in zip(times[name], times['peer'])]):.2f}"
            for name in ("apart", "together")
        ]
        print(f"| {n} | {' | '.join(medians)} | {', '.join(ratios)} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
