"""Tuning an L2 term through training, with PyTorch
================================================

Choose the strength of an L2 term by its derivative, through training: a solve with the exact Hessian in autograd.

Run it with ``python examples/tune_l2.py`` (extra: torch); it takes under a minute. A net of PyTorch is trained to its
minimum on a few handwritten digits. How that minimum moves with the strength follows from one solve (docs/pytorch.md,
"Solves in autograd"), so that the loss on other images has a derivative in the strength, and SciPy finds where that is
zero. Each training starts where the one before ended. May be changed freely: the constants are the whole setting.
"""

import argparse
import math

import torch
from digits import load
from scipy.optimize import root_scalar
from torch import nn
from torch.nn import functional

import numba_hinv as nh

WIDTH = 8
TRAIN = 100  # images to train on; the rest are for the choice
RANGE = 1e-4, 1e-1  # strengths to look between


class Solve(torch.autograd.Function):
    """(H + damping I)^-1 b, for factors that are constant."""

    @staticmethod
    def forward(b, factors):
        return factors.solve(b)

    @staticmethod
    def setup_context(context, inputs, output):
        _, context.factors = inputs

    @staticmethod
    def backward(context, slope):
        return Solve.apply(slope, context.factors), None


class Problem:
    """A net, images to train it on, and others to judge it by."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10)).double()
        self.net, self.params = nh.from_torch(self.module, functional.cross_entropy)
        images, labels = load()
        self.X, self.y = images[:TRAIN], labels[:TRAIN]
        self.X_new, self.y_new = torch.from_numpy(images[TRAIN:]), torch.from_numpy(labels[TRAIN:])

    def trained(self, strength):
        """The minimum, as a function of the strength that autograd can go through."""
        number = strength.item()
        self.params = nh.minimize(self.net, self.params, self.X, self.y, l2=number, gtol=1e-10, max_iterations=1000).x
        x = torch.from_numpy(self.params)
        factors = self.net.hessian(x, self.X, self.y).factorize(number)
        # Zero, but it moves with the strength: a step of Newton's method from the minimum is none, with a derivative.
        slope = self.net.gradient(x, self.X, self.y) + strength * x
        return x - Solve.apply(slope, factors)

    def judge(self, x):
        """Loss on the other images, and the share of them that is recognised."""
        weights, start = {}, 0
        for name, p in self.module.named_parameters():
            weights[name] = x[start : start + p.numel()].reshape(p.shape)
            start += p.numel()
        outputs = torch.func.functional_call(self.module, weights, (self.X_new,))
        right = (outputs.argmax(dim=1) == self.y_new).double().mean()
        return functional.cross_entropy(outputs, self.y_new), right.item()


def slope(logarithm, problem):
    """Derivative of the loss on other images in the logarithm of the strength."""
    logarithm = torch.tensor(logarithm, dtype=torch.float64, requires_grad=True)
    loss, right = problem.judge(problem.trained(logarithm.exp()))
    loss.backward()
    number = logarithm.grad.item()
    print(f"{logarithm.exp().item():9.2e}   {loss.item():14.4f}   {right:10.1%}   {number:+.6f}")
    return number


def main(tolerance):
    problem = Problem()
    print(f"{TRAIN} images to train on, {len(problem.y_new):,} others, {problem.net.num_params} parameters\n")
    print(" strength   loss on others   recognised   derivative in log strength")
    found = root_scalar(slope, (problem,), "brentq", [math.log(strength) for strength in RANGE], xtol=tolerance)
    print(f"\nleast loss on others at a strength of {math.exp(found.root):.3g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of the strength, relative")
    main(parser.parse_args().tolerance)
