"""Finishing what L-BFGS cannot
============================

Finish what L-BFGS cannot: train deep, narrow nets by L-BFGS and then by exact second-order steps.

Run it with ``python examples/train_deep_skinny.py``. It trains two nets to a gradient of 1e-10, by `minimize`, and by
SciPy's L-BFGS-B alone, from the same start, which has three times as long or gives up before. Then comes a trial that
exact steps alone are no good for: 8 layers of width 24 and 64 digits, where damped Newton steps from the start stay at
a loss of 1.16 while SGD comes to 0.19; with L-BFGS first, which is the default, there is nothing left to do. What does
not pay: exact steps far from a minimum, and where any of many minima with a loss of 0 will do.

With ``--full`` it draws ``train_deep_skinny.png`` in place of that, exact steps alone beside PyTorch's and SciPy's
optimisers, for which it needs matplotlib (the extra ``examples``). PyTorch (the extra ``torch``) is left out where it
is not installed. All inputs are handwritten digits:

(a) 8 layers of width 24 fitted to one batch of 64 digits, down to a loss of 1e-8;
(b) 30 layers of width 6 on 6 principal components of 240 digits, more targets than parameters. A net of the same shape
    made the targets, so that a loss of 0 exists, and the start is near that net: how far down each method gets where
    the Hessian is nearly singular;
(c) a wide net with far more parameters than data, where cheap steps are all that it takes.

Every method has a budget of seconds, and stops at the target, the dotted line; in (a) this library's is the longest.
Learning rates are not tuned; SGD's is lower in (b), where 0.05 diverges. The first damping in (b) is smaller than the
default. SciPy's trust-krylov and trust-exact get this library's Hessian.

The picture was drawn before steps of Levenberg and Marquardt had geodesic acceleration.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.optimize
from digits import load, skinny_net

import numba_hinv as nh

try:
    import torch
except ImportError:
    torch = None

PICTURE = Path(__file__).with_suffix(".png")
ADAM, MOMENTUM = 2e-3, 0.9
DENSE = 1500  # parameters up to which SciPy's trust-exact gets the dense Hessian


class Problem(NamedTuple):
    title: str
    target: float  # loss where a method may stop
    seconds: float  # of every method but this library's
    our_seconds: float
    net: nh.Network
    params: np.ndarray
    X: np.ndarray
    y: np.ndarray
    damping: float | None  # the first, of levenberg-marquardt; None for its default
    sgd: float  # learning rate
    own: tuple  # methods of this library


class Done(Exception):
    """The budget is spent, or the target reached."""


class Clock:
    """Rows of (seconds, loss, gradient norm); raises `Done`."""

    def __init__(self, problem):
        self.problem, self.rows, self.began = problem, [], time.perf_counter()

    def note(self, loss, gradient):
        now, length = time.perf_counter() - self.began, float(np.linalg.norm(gradient))
        self.rows.append((now, float(loss), length))
        if loss <= self.problem.target or now > self.problem.seconds:
            raise Done


def ours(problem, method):
    p = problem
    damping = p.damping if method == "levenberg-marquardt" else None
    result = nh.minimize(
        p.net,
        p.params,
        p.X,
        p.y,
        method,
        damping=damping,
        max_iterations=10_000,
        warmup=None,
        time_limit=p.our_seconds,
        loss_target=p.target,
        gtol=0.0,
    )
    history = result.history
    start = np.append(0.0, history["seconds"])
    return list(
        zip(
            start,
            np.append(history["loss"], result.fun),
            np.append(history["gradient_norm"], np.linalg.norm(result.jac)),
        )
    )


def scipy_method(problem, method):
    p, clock, last = problem, Clock(problem), {}
    data = p.X, p.y

    def hessian(x):
        if last.get("x") is None or (last["x"] != x).any():
            last.update(x=x.copy(), H=p.net.hessian(x, *data))
        return last["H"]

    def value(x):
        # Where the trial is too long, the net may overflow.
        try:
            loss, gradient = p.net.loss(x, *data), p.net.gradient(x, *data)
        except ValueError:
            loss, gradient = np.inf, np.full_like(x, np.inf)
        clock.note(loss, gradient)
        return loss, gradient

    more = {
        "L-BFGS-B": {},
        "trust-krylov": {"hessp": lambda x, v: hessian(x) @ v},
        "trust-exact": {"hess": lambda x: hessian(x).todense()},
    }[method]
    options = {"L-BFGS-B": {"maxiter": 10**6, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0, "maxcor": 20}}
    with warnings.catch_warnings():
        # trust-krylov divides by zero where curvature vanishes.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            scipy.optimize.minimize(
                value,
                p.params,
                jac=True,
                method=method,
                options=options.get(method, {"maxiter": 10**6, "gtol": 1e-300}),
                **more,
            )
        except Done:
            pass
        except (ValueError, np.linalg.LinAlgError) as error:
            print(f"  SciPy, {method} ended with: {error}")
    return clock.rows


def torch_module(net, params):
    """The net as a module, with its parameters."""
    activations = {"tanh": torch.tanh, "identity": lambda u: u}
    layers = []
    for layer, (weight, bias) in zip(net.layers, net.unpack(params)):
        linear = torch.nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.copy()))
            linear.bias.copy_(torch.from_numpy(bias.copy()))
        layers.append((linear, activations[layer.activation], layer.skip))

    def forward(z):
        for linear, activation, skip in layers:
            out = activation(linear(z))
            z = out + z if skip else out
        return z

    return forward, [p for linear, *_ in layers for p in (linear.weight, linear.bias)]


def torch_method(problem, method):
    p = problem
    forward, parameters = torch_module(p.net, p.params)
    X, y = torch.from_numpy(p.X), torch.from_numpy(p.y)
    loss_of = torch.nn.functional.mse_loss if p.y.ndim == 2 else torch.nn.functional.cross_entropy
    if method == "Adam":
        optimiser = torch.optim.Adam(parameters, lr=ADAM)
    else:
        optimiser = torch.optim.SGD(parameters, lr=p.sgd, momentum=MOMENTUM)
    clock = Clock(p)
    try:
        while True:
            optimiser.zero_grad()
            loss = loss_of(forward(X), y)
            loss.backward()
            gradient = np.concatenate([q.grad.numpy().ravel() for q in parameters])
            clock.note(loss.item(), gradient)
            optimiser.step()
    except Done:
        return clock.rows


def principal_components(images, count):
    """The leading components of images as rows, each of variance 1."""
    centred = images - images.mean(axis=0)
    U, *_ = np.linalg.svd(centred, full_matrices=False)
    return U[:, :count] * np.sqrt(len(images))


def problems(share=1.0):
    """The three of them, with a share of the seconds."""
    images, labels = load(64)
    fit = nh.Network(
        [nh.Dense(64, 24, "tanh"), *[nh.Dense(24, 24, "tanh") for _ in range(6)], nh.Dense(24, 10, "identity")],
        loss="softmax_cross_entropy",
    )
    yield Problem(
        "(a) 64 digits, 8 layers of width 24",
        1e-8,
        1.5 * share,
        40.0 * share,
        fit,
        fit.init(rng=0),
        images,
        labels,
        None,
        0.05,
        ("levenberg-marquardt",),
    )
    inputs = principal_components(load(240)[0], 6)
    deep = nh.Network(
        [*[nh.Dense(6, 6, "tanh", skip=True) for _ in range(29)], nh.Dense(6, 6, "identity")], loss="mean_squared_error"
    )
    teacher = deep.init(rng=0)
    start = teacher + 0.02 * np.random.default_rng(1).standard_normal(teacher.size)
    yield Problem(
        "(b) regression, 30 layers of width 6",
        1e-8,
        4.0 * share,
        4.0 * share,
        deep,
        start,
        inputs,
        deep.forward(teacher, inputs),
        1e-4,
        0.005,
        ("levenberg-marquardt",),
    )
    images, labels = load(20)
    wide = nh.Network([nh.Dense(64, 64, "tanh"), nh.Dense(64, 10, "identity")], loss="softmax_cross_entropy")
    yield Problem(
        "(c) 20 digits, one hidden layer of 64",
        1e-8,
        1.0 * share,
        1.0 * share,
        wide,
        wide.init(rng=0),
        images,
        labels,
        None,
        0.05,
        ("trust-region", "levenberg-marquardt"),
    )


def run(problem):
    """{method: rows}"""
    results = {f"numba_hinv, {method}": ours(problem, method) for method in problem.own}
    for method in ("L-BFGS-B", "trust-krylov", "trust-exact"):
        if method != "trust-exact" or problem.net.num_params <= DENSE:
            results[f"SciPy, {method}"] = scipy_method(problem, method)
    for method in ("Adam", "SGD") if torch else ():
        results[f"PyTorch, {method}"] = torch_method(problem, method)
    return results


def warm_up(problem):
    """Compile, and start BLAS's and PyTorch's threads, before any clock runs."""
    for method in problem.own:
        nh.minimize(problem.net, problem.params, problem.X, problem.y, method, max_iterations=2, warmup=None)
    run(problem._replace(seconds=0.05, our_seconds=0.0))


def lowest_so_far(rows):
    return np.minimum.accumulate([row[1] for row in rows])


def report(problem, results):
    print(f"\n{problem.title}: {problem.net.num_params:,} parameters, lowest loss and seconds to reach it")
    for name, rows in results.items():
        best = lowest_so_far(rows)
        at = int(np.argmin(best))
        print(f"  {name:<34}{best[at]:>10.1e}{rows[at][0]:>9.2f} s{len(rows):>9,} evaluations")


def draw(found, picture):
    import matplotlib

    # Draws into a file, without a screen.
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(14, 4.6), layout="constrained")
    colours = dict(
        zip(
            (
                "numba_hinv, trust-region",
                "numba_hinv, levenberg-marquardt",
                "SciPy, L-BFGS-B",
                "SciPy, trust-krylov",
                "SciPy, trust-exact",
                "PyTorch, Adam",
                "PyTorch, SGD",
            ),
            ("tab:blue", "navy", "tab:orange", "tab:green", "tab:olive", "tab:red", "tab:purple"),
        )
    )
    shown = {}
    for panel, (problem, results) in zip(panels, found):
        for name, rows in results.items():
            seconds, best = [max(row[0], 1e-3) for row in rows], lowest_so_far(rows)
            own = name.startswith("numba_hinv")
            (shown[name],) = panel.loglog(
                seconds,
                np.maximum(best, 1e-16),
                color=colours[name],
                label=name,
                linewidth=2.2 if own else 1.2,
                zorder=3 if own else 2,
            )
            panel.plot(seconds[-1], max(best[-1], 1e-16), "o", color=colours[name], markersize=4, zorder=4)
        panel.axhline(problem.target, color="gray", linestyle=":", linewidth=1)
        panel.set(xlabel="seconds", ylabel="loss, lowest so far", title=problem.title)
        panel.grid(True, which="major", alpha=0.3)
    figure.legend(handles=[shown[name] for name in colours if name in shown], loc="outside lower center", ncols=4)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def to_finish():
    """(title, net, images, labels or targets, l2) of nets that are trained to the end."""
    images, labels = load(200)
    yield "12 layers of width 6, 200 digits", skinny_net(12, 6), images, labels, 1e-3
    inputs = principal_components(images, 3)
    net = nh.Network(
        [nh.Dense(3, 6, "tanh"), nh.Dense(6, 6, "tanh", skip=True), nh.Dense(6, 1, "identity")],
        loss="mean_squared_error",
    )
    yield "regression, 3-6-6-1, 200 digits", net, inputs, np.sin(inputs.sum(axis=1)), 1e-4


def finish(title, net, X, y, l2, gtol=1e-10):
    """Print how far `minimize` and L-BFGS-B come."""
    params = net.init(rng=0)
    nh.minimize(net, params, X, y, l2=l2, max_iterations=2)  # compiles
    began = time.perf_counter()
    result = nh.minimize(net, params, X, y, l2=l2, gtol=gtol, max_iterations=1000)
    seconds = time.perf_counter() - began
    rows = [
        (
            "L-BFGS, then " + result.method,
            seconds,
            result.fun,
            np.linalg.norm(result.jac),
            f"{result.warmup_iterations} + {result.nit}",
        )
    ]
    last = {}

    def stop(intermediate_result):
        last.update(x=intermediate_result.x.copy(), nit=last.get("nit", 0) + 1)
        if time.perf_counter() - began > 3.0 * seconds:
            raise StopIteration

    began = time.perf_counter()
    scipy.optimize.minimize(
        net.loss_and_gradient,
        params,
        (X, y, l2),
        "L-BFGS-B",
        jac=True,
        callback=stop,
        options={"maxiter": 10**6, "maxfun": 10**6, "ftol": 0.0, "gtol": gtol, "maxcor": 20},
    )
    loss, gradient = net.loss_and_gradient(last["x"], X, y, l2)
    rows.append(("SciPy, L-BFGS-B", time.perf_counter() - began, loss, np.linalg.norm(gradient), f"{last['nit']}"))
    print(f"\n{title}, l2 = {l2:g}: {net.num_params:,} parameters")
    for name, took, loss, size, iterations in rows:
        print(f"  {name:<36}{took:>8.2f} s   loss {loss:<20.15g} gradient {size:<9.1e} {iterations} iterations")
    print("  negative eigenvalues of H there:", result.negative, "-", result.message)


def trial():
    """8 layers of width 24 and 64 digits, to a loss of 1e-8."""
    problem = next(problems())
    began = time.perf_counter()
    result = nh.minimize(problem.net, problem.params, problem.X, problem.y, loss_target=problem.target)
    print(
        f"\n{problem.title}: {problem.net.num_params:,} parameters, a loss of {result.fun:.1e} in "
        f"{time.perf_counter() - began:.2f} s, {result.warmup_iterations} iterations of L-BFGS and {result.nit} exact "
        f"steps"
    )


def main():
    parser = argparse.ArgumentParser(description="Train deep, narrow nets by L-BFGS, and then by exact steps.")
    parser.add_argument("--full", action="store_true", help="draw loss against seconds of seven methods instead")
    parser.add_argument("--share", type=float, default=1.0, help="of the seconds that every method gets (1.0)")
    parser.add_argument("--picture", default=PICTURE, help=f"file to draw into ({PICTURE})")
    arguments = parser.parse_args()
    if not arguments.full:
        for case in to_finish():
            finish(*case)
        return trial()
    if torch is None:
        print("PyTorch is not installed: Adam and SGD are left out")
    found = []
    for problem in problems(arguments.share):
        warm_up(problem)
        found.append((problem, run(problem)))
        report(*found[-1])
    draw(found, arguments.picture)
    print("\nwrote", arguments.picture)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "../examples/train_deep_skinny.png"
