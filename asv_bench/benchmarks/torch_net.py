"""The benchmarks' nets in PyTorch, which is imported where a net is made.

`TorchNet` is the net as a function of its flat parameters, for torch.func; `TorchNet.module` is the same as an
nn.Module, for libraries that want one.
"""

import numpy as np

from .problem import threads


class TorchNet:
    def __init__(self, problem):
        import torch

        torch.set_num_threads(threads())
        self.torch, self.layers, self.damping = torch, problem.layers, problem.damping
        self.X, self.y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)
        self.params, self.b = torch.from_numpy(problem.params), torch.from_numpy(problem.b)
        self.shapes = [
            shape for layer in self.layers for shape in ((layer.out_features, layer.in_features), (layer.out_features,))
        ]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]

    def split(self, flat):
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes)]

    def outputs(self, tensors, X):
        Z = X
        for layer, W, c in zip(self.layers, tensors[::2], tensors[1::2]):
            U = Z @ W.T + c
            phi = U.tanh() if layer.activation == "tanh" else U
            Z = phi + Z if layer.skip else phi
        return Z

    def loss(self, flat):
        return self.torch.nn.functional.cross_entropy(self.outputs(self.split(flat), self.X), self.y)

    def hessian(self):
        """H, by PyTorch's forward over reverse."""
        return self.torch.func.hessian(self.loss)(self.params)

    def multiply(self, v):
        """(H + damping I) v for a NumPy vector."""
        v = self.torch.from_numpy(np.ascontiguousarray(v))
        tangent = self.torch.func.jvp(self.torch.func.grad(self.loss), (self.params,), (v,))[1]
        return (tangent + self.damping * v).numpy()

    def module(self):
        """The net as an nn.Module; its parameters come in the order of the flat vector."""
        nn, outputs = self.torch.nn, self.outputs

        class Net(nn.Module):
            def __init__(self, tensors):
                super().__init__()
                self.tensors = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in tensors])

            def forward(self, X):
                return outputs(list(self.tensors), X)

        return Net(self.split(self.params))
