"""What a reader would use instead of this library, each as a class that is made for a problem and solves it.

`PEERS` lists them in the order of the report. A new one is a class of the same shape there: `title`; `needs`, the
module that it imports beyond NumPy and SciPy, if any; `estimate(problem)`, its seconds on one core of the machine the
figures were taken on, roughly, for those that cannot be stopped; `solve()`, from what `__init__` has prepared. What
only translates the problem (assembling sparse matrices, making the net in another library) belongs into `__init__`,
in the peer's favour. Iterative ones stop at a relative residual of RTOL, or when their `seconds` are over.
"""

import importlib.util
import time
import warnings
from functools import lru_cache

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import LinearOperator, cg, minres

from .lifted import lift_net
from .numpy_reference import NumpyReference
from .problem import LOSS, Problem, Row
from .sparse_direct import pardiso_solve, superlu_solve
from .torch_net import TorchNet

RTOL = 1e-10
SECONDS = 2.0
POWER_STEPS = 10
# Floats that torch's batched forward-over-reverse holds per parameter and state, measured at 24, 16, 9.
TORCH_STATES = 12
LARGEST_BYTES = 6e9


def linearise(problem):
    return NumpyReference(problem.layers, LOSS, problem.params, problem.X, problem.y)


@lru_cache(maxsize=1)
def lift(problem):
    """The lifted system of the last problem, which the sparse solvers share."""
    return lift_net(linearise(problem), problem.damping)


class Judge:
    """Backward errors of answers to one problem, by products that share no code with the library."""

    def __init__(self, problem):
        self.reference, self.damping, self.b = linearise(problem), problem.damping, problem.b
        v = self.b
        for _ in range(POWER_STEPS):
            v = v / np.linalg.norm(v)
            v = self.multiply(v)
        self.norm = np.linalg.norm(v)

    def multiply(self, v):
        return self.reference.matvec(v) + self.damping * v

    def backward_error(self, x):
        """||b - A x|| / (||A|| ||x|| + ||b||), A = H + damping I; its norm is that of POWER_STEPS power steps."""
        residual = np.linalg.norm(self.b - self.multiply(x))
        return residual / (self.norm * np.linalg.norm(x) + np.linalg.norm(self.b))


def state_sizes(problem):
    """B n of every layer's output."""
    return np.array([problem.X.shape[0] * layer.out_features for layer in problem.layers], dtype=float)


def unknowns(problem):
    return problem.net.num_params + 4 * state_sizes(problem).sum()


class OutOfTime(Exception):
    pass


class Peer:
    needs = None
    estimated = ""  # what the estimate is of, if not of the solution

    def __init__(self, problem, seconds=SECONDS):
        self.problem, self.seconds = problem, seconds

    @staticmethod
    def estimate(problem):
        return 0.0

    @staticmethod
    def estimate_bytes(problem):
        return 0.0

    @classmethod
    def installed(cls):
        return cls.needs is None or importlib.util.find_spec(cls.needs) is not None


class Elimination(Peer):
    """The same elimination in plain NumPy, with one step of refinement."""

    title = "the same elimination in NumPy"

    def solve(self):
        reference = linearise(self.problem)
        reference.factorize(self.problem.damping)
        return reference.solve(self.problem.b)


class Dense(Peer):
    """Form H + damping I by this library's products; LAPACK's LU, which is faster here than its symmetric solver."""

    title = "dense H, LAPACK"

    @staticmethod
    def estimate(problem):
        P = problem.net.num_params
        return 2 / 3 * P**3 / 25e9 + 12 * P**2 * problem.X.shape[0] / 5e9

    @staticmethod
    def estimate_bytes(problem):
        return 24.0 * problem.net.num_params**2

    def solve(self):
        matrix = self.problem.hessian().todense()
        matrix[np.diag_indices_from(matrix)] += self.problem.damping
        return scipy.linalg.solve(matrix, self.problem.b, overwrite_a=True, check_finite=False)


class TorchHessian(Peer):
    title, needs = "torch.func.hessian, torch.linalg.solve", "torch"
    estimate = Dense.estimate

    @staticmethod
    def estimate_bytes(problem):
        P = problem.net.num_params
        return 8.0 * P * (3 * P + TORCH_STATES * state_sizes(problem).sum())

    def __init__(self, problem, seconds=SECONDS):
        super().__init__(problem, seconds)
        self.net = TorchNet(problem)

    def solve(self):
        matrix = self.net.hessian()
        matrix.diagonal().add_(self.problem.damping)
        return self.net.torch.linalg.solve(matrix, self.net.b).numpy()


class Sparse(Peer):
    def __init__(self, problem, seconds=SECONDS):
        super().__init__(problem, seconds)
        self.lifted = lift(problem)
        self.rhs = self.lifted.right_hand_side(problem.b)


class Pardiso(Sparse):
    title, needs = "PARDISO, lifted sparse system", "pypardiso"

    @staticmethod
    def estimate(problem):
        return 6e-6 * unknowns(problem) + 2.5e-9 * (state_sizes(problem) ** 3).sum()

    def solve(self):
        return pardiso_solve(self.lifted, self.rhs)[self.lifted.parameters]


class SuperLU(Sparse):
    title = "SuperLU, lifted sparse system"

    @staticmethod
    def estimate(problem):
        return 8e-6 * unknowns(problem) + 1.1e-8 * (state_sizes(problem) ** 3).sum()

    def solve(self):
        return superlu_solve(self.lifted, self.rhs)[self.lifted.parameters]


class Krylov(Peer):
    """One of SciPy's iterations on `operator`; the iterate that it has when its time is up."""

    def solve(self):
        b, started, last = self.problem.b, time.perf_counter(), np.zeros_like(self.problem.b)

        def stop_in_time(x):
            last[:] = x
            if time.perf_counter() - started > self.seconds:
                raise OutOfTime

        try:
            with np.errstate(all="ignore"):
                return self.iterate(self.operator(), b, rtol=RTOL, maxiter=10_000_000, callback=stop_in_time)[0]
        except OutOfTime:
            return last

    def operator(self):
        H, damping = self.problem.hessian(), self.problem.damping
        return LinearOperator(H.shape, matvec=lambda v: H @ v + damping * v, dtype=np.float64)


class Minres(Krylov):
    title = "MINRES on this library's products"
    iterate = staticmethod(minres)


class ConjugateGradients(Krylov):
    title = "CG on this library's products"
    iterate = staticmethod(cg)


class TorchConjugateGradients(Krylov):
    title, needs = "CG on torch's products", "torch"
    iterate = staticmethod(cg)

    def __init__(self, problem, seconds=SECONDS):
        super().__init__(problem, seconds)
        self.net = TorchNet(problem)

    def operator(self):
        size = self.problem.net.num_params
        return LinearOperator((size, size), matvec=self.net.multiply, dtype=np.float64)


class Curvlinops(Peer):
    """Its CG cannot be stopped from outside: the number of iterations is what one product leaves time for."""

    title, needs, estimated = "curvlinops' CG inverse", "curvlinops", "3 products, "

    @staticmethod
    def estimate(problem):
        return 3 * 3e-3 * len(problem.layers)

    def __init__(self, problem, seconds=SECONDS):
        super().__init__(problem, seconds)
        from curvlinops import HessianLinearOperator
        from curvlinops.examples import IdentityLinearOperator

        self.net = TorchNet(problem)
        module = self.net.module()
        parameters = list(module.parameters())
        hessian = HessianLinearOperator(
            module,
            self.net.torch.nn.CrossEntropyLoss(),
            parameters,
            [(self.net.X, self.net.y)],
            check_deterministic=False,
        )
        identity = IdentityLinearOperator([tuple(each.shape) for each in parameters], hessian.device, hessian.dtype)
        self.shifted = hessian + problem.damping * identity

    def solve(self):
        from curvlinops import CGInverseLinearOperator

        started = time.perf_counter()
        self.shifted @ self.net.b
        one = time.perf_counter() - started
        iterations = max(1, int(self.seconds / one) - 1)
        inverse = CGInverseLinearOperator(
            self.shifted, max_iter=iterations, max_tridiag_iter=1, tolerance=RTOL, stop_updating_after=RTOL, eps=0.0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (inverse @ self.net.b).detach().numpy()


PEERS = (
    Elimination,
    Pardiso,
    SuperLU,
    Dense,
    TorchHessian,
    Minres,
    ConjugateGradients,
    TorchConjugateGradients,
    Curvlinops,
)


class Peers:
    """The time of every peer, and the backward error of its answer, on nets small enough for all of them."""

    timeout = 600
    param_names = ["peer", "layers"]
    params = [["numba_hinv", *(peer.__name__ for peer in PEERS)], [10, 30]]

    def setup(self, name, layers):
        self.problem = Problem(Row(width=8, batch=4, depth=layers, skip=True))
        self.solve = self.problem.solve
        for peer in PEERS:
            if peer.__name__ == name:
                if not peer.installed():
                    raise NotImplementedError(f"{peer.needs} is not installed")  # asv skips it
                self.solve = peer(self.problem).solve
        self.solve()

    def time_solve(self, name, layers):
        self.solve()

    def track_backward_error(self, name, layers):
        return Judge(self.problem).backward_error(self.solve())
