"""Make the golden files of nets with custom layers: ``python make_golden.py`` in this folder; needs torch and mpmath.

Derivatives are torch's, in float64, reverse over forward. The norms and the gate are spelt out in elementary
operations: of torch 2.13's own layer_norm, reverse over forward gives a Hessian that is not symmetric. Value and
gradient are compared with those of torch's modules, the Hessian with reverse over reverse of the modules and of the
operations. The solutions and determinants are mpmath's, with 40 digits, of that Hessian. Nothing comes from the
library.
"""

import json
from pathlib import Path

import mpmath
import numpy as np
import torch

torch.set_default_dtype(torch.float64)

ACTIVATIONS = {
    "identity": lambda u: u,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}


class Dense(torch.nn.Module):
    def __init__(self, in_features, out_features, activation, bias=True, skip=False):
        super().__init__()
        self.linear = torch.nn.Linear(in_features, out_features, bias)
        self.activation, self.skip = ACTIVATIONS[activation], skip

    def forward(self, z):
        return self.activation(self.linear(z)) + (z if self.skip else 0.0)


class Gated(torch.nn.Module):
    def __init__(self, features, activation):
        super().__init__()
        self.activation = activation

    def forward(self, z):
        half = z.shape[-1] // 2
        return z[..., :half] * ACTIVATIONS[self.activation](z[..., half:])


class LayerNorm(torch.nn.LayerNorm):
    def forward(self, z):
        centred = z - z.mean(-1, keepdim=True)
        h = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + self.eps)
        return self.weight * h + (0.0 if self.bias is None else self.bias)


class RMSNorm(torch.nn.RMSNorm):
    def forward(self, z):
        eps = torch.finfo(z.dtype).eps if self.eps is None else self.eps
        return self.weight * z / torch.sqrt((z * z).mean(-1, keepdim=True) + eps)


class Swish(torch.nn.Module):
    """`custom_layers.swish`."""

    def __init__(self, features):
        super().__init__()
        self.x = torch.nn.Parameter(torch.randn(2))

    def forward(self, z):
        return z * torch.sigmoid(self.x[0] * z) + self.x[1] * z[..., :1]


class Pendulum(torch.nn.Module):
    """`custom_layers.pendulum`, which ignores its third input."""

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(1.0 + 0.3 * torch.randn(3))

    def forward(self, z):
        angle, speed = z[..., 0], z[..., 1]
        length, friction, torque = self.x
        force = torque * torch.tanh(speed) - torch.sin(angle) / length - friction * speed * torch.abs(speed)
        return torch.stack([angle + 0.1 * speed, speed + 0.1 * force], -1)


ELEMENTARY = dict(
    Dense=Dense,
    Gated=Gated,
    LayerNorm=lambda features, eps=1e-5, bias=True: LayerNorm(features, eps, bias=bias),
    RMSNorm=lambda features, eps=None: RMSNorm(features, eps),
    swish=Swish,
    pendulum=Pendulum,
)
MODULES = ELEMENTARY | dict(
    Gated=lambda features, activation: torch.nn.GLU() if activation == "sigmoid" else Gated(features, activation),
    LayerNorm=lambda features, eps=1e-5, bias=True: torch.nn.LayerNorm(features, eps, bias=bias),
    RMSNorm=lambda features, eps=None: torch.nn.RMSNorm(features, eps),
)
LOSSES = {
    "softmax_cross_entropy": torch.nn.functional.cross_entropy,
    "mean_squared_error": torch.nn.functional.mse_loss,
    "binary_cross_entropy": torch.nn.functional.binary_cross_entropy_with_logits,
}
NETS = {
    "layer_norm": (
        [
            ("Dense", 5, 6, "tanh"),
            ("LayerNorm", 6),
            ("Dense", 6, 6, "tanh", True, True),
            ("LayerNorm", 6, 1e-2, False),
            ("Dense", 6, 3, "identity"),
        ],
        "softmax_cross_entropy",
        3,
    ),
    "rms_norm": (
        [
            ("RMSNorm", 4),
            ("Dense", 4, 5, "silu"),
            ("RMSNorm", 5, 1e-1),
            ("Dense", 5, 2, "identity"),
            ("LayerNorm", 2, 0.5),
        ],
        "mean_squared_error",
        1,
    ),
    "bilinear": (
        [
            ("Dense", 3, 8, "identity"),
            ("Gated", 4, "silu"),
            ("Dense", 4, 4, "tanh", True, True),
            ("Dense", 4, 6, "identity", False),
            ("Gated", 3, "identity"),
        ],
        "mean_squared_error",
        4,
    ),
    "glu": ([("Dense", 2, 6, "tanh"), ("Gated", 3, "sigmoid"), ("Dense", 3, 1, "identity")], "binary_cross_entropy", 9),
    "own_functions": (
        [
            ("swish", 3),
            ("Dense", 3, 3, "gelu", True, True),
            ("pendulum",),
            ("Gated", 1, "gelu"),
            ("Dense", 1, 3, "tanh"),
            ("swish", 3),
        ],
        "softmax_cross_entropy",
        3,
    ),
}
DAMPINGS = (1.0, 1e-1, 1e-2, 1e-4, -3e-2)


def make(name, layers, loss, batch, seed):
    torch.manual_seed(seed)
    net, modules = (
        torch.nn.Sequential(*[makers[kind](*arguments) for kind, *arguments in layers])
        for makers in (ELEMENTARY, MODULES)
    )
    flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    # Norms start at 1 and 0, where terms vanish.
    flat = flat + 0.3 * torch.randn(flat.shape)
    X = torch.randn(batch, layers[0][1])
    with torch.no_grad():
        outputs = net(X).shape[-1]
    if loss == "softmax_cross_entropy":
        y = torch.randint(outputs, (batch,))
    elif loss == "binary_cross_entropy":
        y = torch.rand(batch, outputs)
    else:
        y = torch.randn(batch, outputs)

    def run(net, params):
        parts, start = {}, 0
        for key, value in net.named_parameters():
            parts[key] = params[start : start + value.numel()].reshape(value.shape)
            start += value.numel()
        return torch.func.functional_call(net, parts, (X,))

    def value(params, net=net):
        return LOSSES[loss](run(net, params), y)

    gradient = torch.func.grad(value)(flat)
    hessian = torch.func.jacrev(torch.func.jacfwd(value))(flat)
    assert (hessian - hessian.T).abs().max() < 1e-15 * hessian.abs().max()
    for other in (net, modules):
        assert abs(value(flat, other) - value(flat)) < 1e-15 * value(flat)
        assert (torch.func.grad(value)(flat, other) - gradient).abs().max() < 1e-14 * gradient.abs().max()
        twice = torch.autograd.functional.hessian(lambda params: value(params, other), flat)
        assert (twice - hessian).abs().max() < 1e-14 * hessian.abs().max()
    hessian = (0.5 * (hessian + hessian.T)).numpy()
    b = torch.randn(flat.numel()).numpy()
    eigenvalues = np.linalg.eigvalsh(hessian)
    solutions, inertia, logabsdet = [], [], []
    mpmath.mp.dps = 40
    for damping in DAMPINGS:
        shifted = mpmath.matrix(hessian) + damping * mpmath.eye(b.size)
        solutions.append([float(entry) for entry in mpmath.lu_solve(shifted, mpmath.matrix(b))])
        logabsdet.append(float(mpmath.log(abs(mpmath.det(shifted)))))
        assert np.abs(eigenvalues + damping).min() > 1e-6 * np.abs(eigenvalues).max()
        inertia.append([(eigenvalues < -damping).sum(), (eigenvalues > -damping).sum()])
    np.savez_compressed(
        Path(__file__).parent / f"{name}.npz",
        layers=json.dumps(layers),
        loss=loss,
        params=flat.numpy(),
        X=X.numpy(),
        y=y.numpy(),
        output=run(net, flat).detach().numpy(),
        value=value(flat).item(),
        gradient=gradient.numpy(),
        hessian=hessian,
        dampings=np.array(DAMPINGS),
        b=b,
        solutions=np.array(solutions),
        inertia=np.array(inertia),
        logabsdet=np.array(logabsdet),
        eigenvalues=eigenvalues,
    )
    print(name, flat.numel(), "parameters, norm", np.abs(eigenvalues).max(), inertia)


if __name__ == "__main__":
    for seed, (name, net) in enumerate(NETS.items()):
        make(name, *net, seed)
