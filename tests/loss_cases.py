"""Losses with options, data for them, and what PyTorch makes of these: value, gradient and Hessian in the outputs."""

from dataclasses import dataclass, field

import numpy as np

import numba_hinv as nh

B, N = 7, 4


@dataclass(frozen=True)
class Case:
    loss: str
    options: dict = field(default_factory=dict)
    kind: str = "normal"

    def make(self, **more):
        """The loss."""
        return getattr(nh.losses, self.loss)(**self.options, **more)

    @property
    def num_targets(self):
        return N // 2 if self.loss == "gaussian_nll" else N

    def data(self, num_samples=B):
        """Outputs and targets."""
        rng = np.random.default_rng(11)
        z, shape = rng.standard_normal((num_samples, N)), (num_samples, self.num_targets)
        if self.kind == "rates":
            z = np.abs(z) + 0.2
        if self.kind in ("labels", "some ignored"):
            y = rng.integers(0, N, num_samples)
            y[[1, 4]] = -7 if self.kind == "some ignored" else y[[1, 4]]
        elif self.kind in ("counts", "rates"):
            y = rng.integers(0, 6, shape).astype(float)
        elif self.kind == "fractions":
            y = np.where(rng.integers(0, 2, shape), rng.random(shape), rng.integers(0, 2, shape))
        else:
            y = 1.5 * rng.standard_normal(shape)
        return z, y


WEIGHTS = (0.5, 2.0, 0.0, 1.25)
CASES = {
    "cross_entropy": Case("softmax_cross_entropy", {}, "labels"),
    "cross_entropy_sum": Case("softmax_cross_entropy", {"reduction": "sum"}, "labels"),
    "cross_entropy_smooth": Case("softmax_cross_entropy", {"label_smoothing": 0.2}, "labels"),
    "cross_entropy_classes": Case("softmax_cross_entropy", {"class_weights": WEIGHTS}, "labels"),
    "cross_entropy_ignore": Case("softmax_cross_entropy", {"ignore_index": -7}, "some ignored"),
    "cross_entropy_all": Case(
        "softmax_cross_entropy", {"label_smoothing": 0.3, "class_weights": WEIGHTS, "ignore_index": -7}, "some ignored"
    ),
    "cross_entropy_all_sum": Case(
        "softmax_cross_entropy",
        {"label_smoothing": 0.3, "class_weights": WEIGHTS, "ignore_index": -7, "reduction": "sum"},
        "some ignored",
    ),
    "squares": Case("mean_squared_error"),
    "squares_sum": Case("mean_squared_error", {"reduction": "sum"}),
    "binary": Case("binary_cross_entropy", {}, "fractions"),
    "binary_pos_weight": Case("binary_cross_entropy", {"pos_weight": WEIGHTS}, "fractions"),
    "huber": Case("huber", {"delta": 0.7}),
    "smooth_l1": Case("smooth_l1", {"beta": 0.4, "reduction": "sum"}),
    "l1": Case("smooth_l1", {"beta": 0.0}),
    "poisson": Case("poisson", {}, "counts"),
    "poisson_full": Case("poisson", {"full": True}, "counts"),
    "poisson_rates": Case("poisson", {"log_input": False, "full": True, "eps": 0.01}, "rates"),
    "gaussian": Case("gaussian_nll"),
    "gaussian_full": Case("gaussian_nll", {"full": True, "reduction": "sum"}),
    "quantile": Case("quantile", {"quantile": 0.3}),
}


def torch_function(case):
    """The loss of outputs and targets, both tensors, with PyTorch's own functions."""
    import torch
    from torch.nn import functional

    options = dict(case.options)
    reduction = options.pop("reduction", "mean")
    if case.loss == "softmax_cross_entropy":
        if "class_weights" in options:
            options["weight"] = torch.tensor(options.pop("class_weights"), dtype=torch.float64)
        return lambda z, y: functional.cross_entropy(z, y, reduction=reduction, **options)
    if case.loss == "binary_cross_entropy":
        given = {name: torch.tensor(value, dtype=torch.float64) for name, value in options.items()}
        return lambda z, y: functional.binary_cross_entropy_with_logits(z, y, reduction=reduction, **given)
    if case.loss == "gaussian_nll":
        # The least variance is below all of them.
        given = {"reduction": reduction, "eps": 1e-12, **options}
        return lambda z, y: functional.gaussian_nll_loss(z[:, : N // 2], y, z[:, N // 2 :].exp(), **given)
    if case.loss == "quantile":
        q = options["quantile"]
        return lambda z, y: torch.maximum(q * (y - z), (q - 1.0) * (y - z)).mean()
    names = {"mean_squared_error": "mse_loss", "poisson": "poisson_nll_loss"}
    function = getattr(functional, names.get(case.loss, f"{case.loss}_loss"))
    return lambda z, y: function(z, y, reduction=reduction, **options)


def torch_answer(case):
    """Value, gradient (B, N) and curvature of each sample (B, N, N)."""
    import torch

    z, y = map(torch.from_numpy, case.data())
    function = torch_function(case)
    z.requires_grad_(True)
    value = function(z, y)
    (gradient,) = torch.autograd.grad(value, z, create_graph=True)
    # A loss that is linear in pieces has no second derivative for PyTorch at all.
    hessian = torch.zeros(B, N, B, N, dtype=torch.float64)
    if gradient.requires_grad:
        for i in range(B):
            for a in range(N):
                (hessian[i, a],) = torch.autograd.grad(gradient[i, a], z, retain_graph=True, materialize_grads=True)
    own = torch.stack([hessian[i, :, i] for i in range(B)])
    assert torch.count_nonzero(hessian) == torch.count_nonzero(own)
    return value.item(), gradient.detach().numpy(), own.numpy()
