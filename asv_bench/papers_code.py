"""This library beside the code of the paper whose problem it solves, and beside what else one would write.

    git clone https://github.com/a-rahimi/hessian
    OPENBLAS_NUM_THREADS=1 python asv_bench/papers_code.py hessian/src

The paper's code needs Python 3.12 or later: some of its annotations do not parse before that. They can be stripped from
a copy for an older Python, since nothing is computed from them.

The nets are those that the paper's code builds: dense layers without biases, tanh, softmax cross-entropy with 10
classes. Every contender starts from the parameters and ends with the solution of (H + damping I) x = b in float64,
contenders take turns, and figures are medians over the rounds. CG runs on this library's products until its own test
is passed or its time is over. The backward error is taken with this library's product. Needs PyTorch (extra: peers).
Dense matrices are left out where they would not fit into a few gigabytes, or take minutes.
"""

import argparse
import importlib
import os
import sys
import time
from statistics import median

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402 - the environment has to be set first
import scipy.linalg  # noqa: E402
import torch  # noqa: E402
from scipy.sparse.linalg import LinearOperator, cg  # noqa: E402

import numba_hinv as nh  # noqa: E402

NETS = (10, 2, 30), (10, 2, 120), (32, 1, 16), (16, 16, 16), (24, 16, 8)  # width, samples, layers
CLASSES, DAMPING, ROUNDS = 10, 1e-3, 3
GAIN = 2.0  # of PyTorch's initial weights, with which signals would vanish after a few layers
KRYLOV_SECONDS, RTOL = 5.0, 1e-10
TORCH_PARAMETERS, DENSE_PARAMETERS = 5000, 13000


class Case:
    """One net, as this library and as the paper's code have it, with samples and a right-hand side."""

    def __init__(self, paper, width, batch, depth):
        self.paper = paper
        torch.manual_seed(0)
        self.module = paper.SequenceOfDenseBlocks(width, width, CLASSES, depth).double()
        with torch.no_grad():
            for weights in self.module.parameters():
                weights *= GAIN
        layers = [nh.Dense(width, width, "tanh", bias=False) for _ in range(depth - 1)]
        self.net = nh.Network([*layers, nh.Dense(width, CLASSES, "identity", bias=False)], "softmax_cross_entropy")
        self.params = torch.nn.utils.parameters_to_vector(self.module.parameters()).detach().numpy().copy()
        rng = np.random.default_rng(0)
        self.X, self.y = rng.standard_normal((batch, width)), rng.integers(0, CLASSES, batch)
        self.b = rng.standard_normal(self.net.num_params)
        self.as_torch = torch.from_numpy(self.X), torch.from_numpy(self.y)

    def numba_hinv(self):
        return self.net.hessian(self.params, self.X, self.y).factorize(DAMPING).solve(self.b)

    def papers_code(self):
        bpm = importlib.import_module("block_partitioned_matrices")
        sizes = np.cumsum([p.numel() for p in self.module.parameters()])[:-1]
        b = bpm.Vertical([torch.from_numpy(part).reshape(-1, 1) for part in np.split(self.b, sizes)])
        self.module.zero_grad()
        x = self.module.hessian_inverse_product(*self.as_torch, b, DAMPING)
        return np.concatenate([part.detach().numpy().ravel() for part in x.flat])

    def dense(self):
        if self.net.num_params > DENSE_PARAMETERS:
            return None
        A = self.net.hessian(self.params, self.X, self.y).todense()
        A[np.diag_indices_from(A)] += DAMPING
        return scipy.linalg.solve(A, self.b, assume_a="sym", overwrite_a=True, check_finite=False)

    def torch_hessian(self):
        if self.net.num_params > TORCH_PARAMETERS:
            return None
        names, shapes = zip(*((name, p.shape) for name, p in self.module.named_parameters()))
        sizes = [shape.numel() for shape in shapes]

        def loss(flat):
            parts = {n: part.reshape(s) for n, part, s in zip(names, flat.split(sizes), shapes)}
            return torch.func.functional_call(self.module, parts, self.as_torch)

        A = torch.func.hessian(loss)(torch.from_numpy(self.params))
        return torch.linalg.solve(A + DAMPING * torch.eye(len(A), dtype=A.dtype), torch.from_numpy(self.b)).numpy()

    def conjugate_gradients(self):
        H, end = self.net.hessian(self.params, self.X, self.y), time.perf_counter() + KRYLOV_SECONDS
        latest = np.zeros_like(self.b)

        def stop(x):
            latest[:] = x
            if time.perf_counter() > end:
                raise TimeoutError

        A = LinearOperator(H.shape, lambda v: H @ v + DAMPING * v, dtype=np.float64)
        try:
            return cg(A, self.b, rtol=RTOL, maxiter=10**7, callback=stop)[0]
        except TimeoutError:
            return latest

    def backward_error(self, x):
        H = self.net.hessian(self.params, self.X, self.y)
        residual = np.linalg.norm(self.b - (H @ x + DAMPING * x))
        return residual / (H.norm() * np.linalg.norm(x) + np.linalg.norm(self.b))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="the folder src of the paper's code")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    sys.path.insert(0, options.source)
    paper = importlib.import_module("hessian")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # which the paper's code relies on
    contenders = "numba_hinv", "papers_code", "dense", "torch_hessian", "conjugate_gradients"
    for shape in NETS:
        case = Case(paper, *shape)
        case.numba_hinv()  # compiles
        negative = case.net.hessian(case.params, case.X, case.y).factorize(DAMPING).inertia.negative
        print(f"width {shape[0]}, B = {shape[1]}, L = {shape[2]}: {case.params.size:,} parameters, {negative} negative")
        seconds, errors = {name: [] for name in contenders}, {}
        for _ in range(options.rounds):
            for name in contenders:
                start = time.perf_counter()
                x = getattr(case, name)()
                seconds[name].append(time.perf_counter() - start)
                errors[name] = None if x is None else case.backward_error(x)
        ours = median(seconds["numba_hinv"])
        for name in contenders:
            if errors[name] is None:
                print(f"  {name:20} left out")
                continue
            print(
                f"  {name:20} {median(seconds[name]):9.4f} s {median(seconds[name]) / ours:8.0f} x  {errors[name]:.0e}"
            )


if __name__ == "__main__":
    main()
