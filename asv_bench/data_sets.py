"""Whole data sets: this library beside what else solves the same jobs, as a table in Markdown.

    python asv_bench/data_sets.py [--rounds 3] [--rows digits-small,...] [--jobs solve,...]

Four jobs on nets with all samples of a data set: factorize H + damping I and solve; a Laplace posterior with its
evidence and the best prior; the influence of all samples on 300 test ones; training to a gradient of 1e-8. Peers:
PyTorch's hessian (forward over reverse, in chunks of columns), laplace-torch, SciPy's trust-exact with this library's
dense H, and that H with LAPACK. Contenders take turns, round by round, in one process; figures are medians of seconds.
A peer that would take longer than `--limit` seconds, by the time of a part of its columns, is given by that estimate;
others are stopped at that limit, or at `--times` times the time of this library where that is more.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.optimize

sys.path.insert(0, str(Path(__file__).parent))

import numba_hinv as nh

DAMPING, L2 = 1e-3, 1e-3
TEST = 300
COLUMNS = 32  # of H, that PyTorch makes at a time
COMPILING = 1_700  # samples of the call that compiles the kernels, before any is timed


class OutOfTime(Exception):
    """A peer was stopped after so many seconds."""


def digits():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return X / 16.0, y


def regression():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 8))
    return X, np.sin(X @ rng.standard_normal((8, 1))) + 0.1 * rng.standard_normal((20_000, 1))


def images():
    """Random images with labels of a random linear rule: the size of MNIST, which need not be fetched."""
    rng = np.random.default_rng(0)
    X = rng.random((60_000, 784))
    return X, (X @ rng.standard_normal((784, 10))).argmax(axis=1)


ROWS = {
    "64-16-16-10": ((64, 16, 16, 10), digits, "softmax_cross_entropy"),
    "64-8x10-10": ((64, *[8] * 10, 10), digits, "softmax_cross_entropy"),
    "64-16x20-10": ((64, *[16] * 20, 10), digits, "softmax_cross_entropy"),
    "8-32-32-1": ((8, 32, 32, 1), regression, "mean_squared_error"),
    "784-10-10": ((784, 10, 10), images, "softmax_cross_entropy"),
}


class Row:
    def __init__(self, name, num_samples=None):
        self.name = name
        self.widths, samples, loss = ROWS[name]
        self.X, self.y = (part[:num_samples] for part in samples())
        pairs = list(zip(self.widths[:-1], self.widths[1:]))
        layers = [nh.Dense(*pair, "tanh", skip=pair[0] == pair[1]) for pair in pairs[:-1]]
        self.net = nh.Network([*layers, nh.Dense(*pairs[-1], "identity")], loss)
        self.params = self.net.init(rng=0)
        self.b = np.random.default_rng(1).standard_normal(self.net.num_params)

    def train(self):
        """Some way towards a minimum, so that the Hessian is that of a trained net."""
        self.params = nh.minimize(self.net, self.params, self.X, self.y, l2=L2, max_iterations=5).x


class Torch:
    """The same net in PyTorch."""

    def __init__(self, row):
        import torch

        self.torch, self.row = torch, row
        self.X, self.params = torch.from_numpy(row.X), torch.from_numpy(row.params)
        self.y = torch.from_numpy(row.y)
        self.shapes = []
        for layer in row.net.layers:
            self.shapes += [(layer.out_features, layer.in_features), (layer.out_features,)]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]

    def outputs(self, flat, X):
        Z = X
        parts = [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes)]
        for layer, W, c in zip(self.row.net.layers, parts[::2], parts[1::2]):
            U = Z @ W.T + c
            U = U.tanh() if layer.activation == "tanh" else U
            Z = U + Z if layer.skip else U
        return Z

    def loss(self, flat, X, y):
        functional = self.torch.nn.functional
        if self.row.net.loss_name == "mean_squared_error":
            # The library function has a tangent that vmap does not take.
            return ((self.outputs(flat, X) - y) ** 2).mean()
        return functional.cross_entropy(self.outputs(flat, X), y)

    def hessian(self, share=1.0):
        """H, or the first columns of it."""
        func, size = self.torch.func, self.row.net.num_params
        gradient = func.grad(lambda flat: self.loss(flat, self.X, self.y) + 0.5 * L2 * flat @ flat)
        columns, unit = [], self.torch.eye(size, dtype=self.torch.float64)
        for at in range(0, max(COLUMNS, int(share * size)), COLUMNS):
            product = func.vmap(lambda v: func.jvp(gradient, (self.params,), (v,))[1])
            columns.append(product(unit[at : at + COLUMNS]))
        return self.torch.cat(columns)

    def module(self):
        """As an nn.Module of the same function."""
        torch, row = self.torch, self.row

        class Residual(torch.nn.Module):
            def __init__(self, linear, layer):
                super().__init__()
                self.linear, self.layer = linear, layer

            def forward(self, Z):
                U = self.linear(Z)
                U = U.tanh() if self.layer.activation == "tanh" else U
                return U + Z if self.layer.skip else U

        parts = []
        for layer, (weight, bias) in zip(row.net.layers, row.net.unpack(row.params)):
            linear = torch.nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
            linear.weight.data, linear.bias.data = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
            parts.append(Residual(linear, layer))
        return torch.nn.Sequential(*parts)


# ---- jobs: each gives the contenders, by name, as functions of (row, share of the work) -----------------------------


def solve(row):
    def ours():
        return row.net.hessian(row.params, row.X, row.y, l2=L2).factorize(DAMPING).solve(row.b)

    def lapack():
        H = row.net.hessian(row.params, row.X, row.y, l2=L2).todense()
        H[np.diag_indices(len(H))] += DAMPING
        return scipy.linalg.solve(H, row.b, assume_a="sym", overwrite_a=True, check_finite=False)

    def torch(share=1.0):
        peer = Torch(row)
        H = peer.hessian(share)
        if share == 1.0:
            H.diagonal().add_(DAMPING)
            return peer.torch.linalg.solve(H, peer.torch.from_numpy(row.b)).numpy()
        return None

    return {"numba_hinv": ours, "our todense, LAPACK": lapack, "torch.func.hessian": torch}


def laplace(row):
    precision = L2 * len(row.X)

    def ours():
        posterior = nh.Laplace(row.net, row.params, row.X, row.y, precision, "ggn")
        return posterior.log_evidence(), posterior.fit_prior().prior_precision

    import torch
    from laplace import Laplace

    def peer():
        peer = Torch(row)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(peer.X, peer.y), batch_size=512)
        likelihood = "regression" if row.net.loss_name == "mean_squared_error" else "classification"
        posterior = Laplace(peer.module(), likelihood, "all", "full", prior_precision=precision)
        posterior.fit(loader)
        found = posterior.log_marginal_likelihood()
        posterior.optimize_prior_precision(method="marglik", n_steps=100, lr=0.1)
        return float(found), float(posterior.prior_precision)

    return {"numba_hinv": ours, "laplace-torch": peer}


def influence(row):
    X_test, y_test = row.X[:TEST] + 0.01, row.y[:TEST]

    def ours():
        return nh.influence(row.net, row.params, row.X, row.y, X_test, y_test, DAMPING, l2=L2).values

    def torch(share=1.0):
        peer = Torch(row)
        H = peer.hessian(share)
        if share < 1.0:
            return None
        H.diagonal().add_(DAMPING)
        func = peer.torch.func
        gradients = func.vmap(func.grad(lambda flat, x, y: peer.loss(flat, x[None], y[None])), in_dims=(None, 0, 0))
        tests = gradients(peer.params, peer.torch.from_numpy(X_test), peer.torch.from_numpy(y_test))
        solved = peer.torch.linalg.solve(H, tests.T)
        parts = [gradients(peer.params, X, y) @ solved for X, y in zip(peer.X.split(1000), peer.y.split(1000))]
        return (peer.torch.cat(parts) / len(row.X)).numpy()

    return {"numba_hinv": ours, "torch.func.hessian": torch}


def training(row):
    start = row.net.init(rng=3)

    def ours():
        return nh.minimize(row.net, start, row.X, row.y, l2=L2, gtol=1e-8, max_iterations=500)

    def scipy_exact():
        data = row.X, row.y
        return scipy.optimize.minimize(
            lambda x: row.net.loss_and_gradient(x, *data, L2), start, jac=True, method="trust-exact",
            hess=lambda x: row.net.hessian(x, *data, l2=L2).todense(), options={"gtol": 1e-8, "maxiter": 500},
        )  # fmt: skip

    return {"numba_hinv": ours, "SciPy trust-exact": scipy_exact}


JOBS = {"solve": solve, "laplace": laplace, "influence": influence, "training": training}


def seconds_of(call):
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = call()
    return time.perf_counter() - start, found


def seconds_of_child(call, limit):
    """Seconds that a call takes in a copy of this process, which is ended after the limit: then `OutOfTime`.

    A signal would not do: compiled code of a peer may run for minutes before Python hears of it.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run():
        try:
            theirs.send(seconds_of(call)[0])
        except Exception as error:
            theirs.send(f"{type(error).__name__}: {str(error)[:200]}")

    child = context.Process(target=run)
    child.start()
    try:
        if not ours.poll(limit):
            raise OutOfTime
        found = ours.recv()
    finally:
        child.kill()
        child.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def measure(contenders, rounds, limit, ratio):
    """Pairs of a word and the median of seconds by name; the word says whether the latter is less than the whole
    truth.
    """
    times, estimates = {name: [] for name in contenders}, {}
    for turn in range(rounds):
        for name, call in contenders.items():
            if name in estimates:
                continue
            try:
                if turn == 0 and name == "torch.func.hessian":
                    # The first columns again, since the first call has to start PyTorch.
                    seconds_of(lambda: call(0.0))
                    taken, _ = seconds_of(lambda: call(0.0))
                    columns = contenders_size[0] / COLUMNS
                    if taken * columns > limit:
                        estimates[name] = "about", taken * columns
                        continue
                begin, stop = time.perf_counter(), max(limit, ratio * max(times["numba_hinv"], default=0.0))
                taken = seconds_of(call)[0] if name == "numba_hinv" else seconds_of_child(call, stop)
                times[name].append(taken)
                if taken > limit and turn == 0 and name != "numba_hinv":
                    estimates[name] = "", taken
            except OutOfTime:
                estimates[name] = "stopped after", time.perf_counter() - begin
            except Exception as error:
                print(f"  {name}: {error}", file=sys.stderr)
                estimates[name] = "failed", None
    return {name: estimates.get(name) or ("", statistics.median(times[name])) for name in contenders}


contenders_size = [0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--limit", type=float, default=100.0)
    parser.add_argument("--times", type=float, default=10.0)
    options = parser.parse_args()
    print("| net | P | samples | job | numba_hinv | peers |\n|---|---|---|---|---|---|")
    for name in options.rows.split(","):
        row, part = Row(name), Row(name, COMPILING)
        row.train()
        contenders_size[0] = row.net.num_params
        for job in options.jobs.split(","):
            contenders = JOBS[job](row)
            JOBS[job](part)["numba_hinv"]()
            found = measure(contenders, options.rounds, options.limit, options.times)
            _, own = found.pop("numba_hinv")
            peers = "; ".join(describe(peer, *seen, own) for peer, seen in found.items())
            print(f"| {name} | {row.net.num_params:,} | {len(row.X):,} | {job} | {own:.3f} s | {peers} |", flush=True)


def describe(peer, word, taken, own):
    if taken is None:
        return f"{peer}: failed"
    return f"{peer}{word and ' ' + word} {taken:.3g} s ({taken / own:.1f} times)"


if __name__ == "__main__":
    main()
