"""Models as equations, written down by hand with NumPy in the place of a framework: layers, and where parameters go."""

import numpy as np
import pytest

import numba_hinv as nh
from numba_hinv.frameworks.flat_order import FlatOrder
from numba_hinv.frameworks.graph import Equation, Graph, Reading, Variable
from numba_hinv.frameworks.graph_chain import Function, pieces


class Model:
    """Equations as they come; ``arrays`` are the parameters, in the order in which the model keeps them."""

    def __init__(self, shape, **arrays):
        self.arrays = arrays
        self.leaves = {name: Variable(array.shape) for name, array in arrays.items()}
        self.source, self.equations = Variable(shape), []

    def __getitem__(self, name):
        return self.leaves[name]

    def append(self, name, evaluate, *inputs, options=None, elementwise=False):
        shapes = [np.ones(np.shape(each)) for each in inputs]
        output = Variable(evaluate(*shapes)[0].shape)
        self.equations.append(Equation(name, inputs, (output,), options or {}, evaluate, elementwise))
        return output

    def dot(self, left, right, axes):
        options = {"dimension_numbers": (axes, ((), ()))}
        return self.append("dot_general", lambda a, b: (np.tensordot(a, b, axes),), left, right, options=options)

    def add(self, left, right):
        return self.append("add", lambda a, b: (a + b,), left, right, elementwise=True)

    def mul(self, left, right):
        return self.append("mul", lambda a, b: (a * b,), left, right, elementwise=True)

    def map(self, name, function, state):
        return self.append(name, lambda a: (function(a),), state, elementwise=True)

    def reduce(self, state):
        return self.append("reduce_mean", lambda a: (a.mean(axis=-1, keepdims=True),), state)

    def reshape(self, array, *shape):
        return self.append("reshape", lambda a: (a.reshape(shape),), array)

    def transpose(self, array, *axes):
        return self.append("transpose", lambda a: (a.transpose(axes),), array)

    def read(self, target):
        """The reading, the pieces, the order and a function of a sample: the model itself."""
        reading = Reading(Graph(tuple(self.leaves.values()), self.source, target, tuple(self.equations)))
        found = pieces(reading)
        shapes = [array.shape for array in self.arrays.values()]
        order = FlatOrder(self.arrays, shapes, np.concatenate([piece.positions for piece in found]))
        return reading, found, order

    def __call__(self, target, sample):
        known = {self.source: sample, **{self.leaves[name]: array for name, array in self.arrays.items()}}
        for equation in self.equations:
            inputs = (known[each] if isinstance(each, Variable) else each for each in equation.inputs)
            known.update(zip(equation.outputs, equation.evaluate(*inputs)))
        return known[target].reshape(-1)


def same_outputs(model, target, found, order):
    """Whether a network of the pieces has the model's outputs, and the vector goes back to its arrays."""
    net = nh.Network([piece.layer for piece in found], "mean_squared_error")
    params = order.join(list(model.arrays.values()))
    X = np.random.default_rng(1).standard_normal((4, model.source.size))
    expected = [model(target, sample.reshape(model.source.shape)) for sample in X]
    np.testing.assert_allclose(net.forward(params, X), expected, rtol=1e-13, atol=1e-14)
    for array, back in zip(model.arrays.values(), order.split(params)):
        assert np.array_equal(array, back)
    assert np.array_equal(order.positions, np.concatenate([piece.positions for piece in found]))


def arrays(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def test_kernels_in_by_out_and_biases_first():
    """As Flax keeps them; the batch of one that it wants is no part of the layers."""
    model = Model((4,), **arrays(bias0=5, kernel0=(4, 5), bias1=3, kernel1=(5, 3)))
    x = model.reshape(model.source, 1, 4)
    for l in "01":
        x = model.add(model.dot(x, model["kernel" + l], ((1,), (0,))), model.reshape(model["bias" + l], 1, -1))
        x = model.map("tanh", np.tanh, x) if l == "0" else x
    target = model.reshape(x, 3)
    _, found, order = model.read(target)
    assert [piece.layer for piece in found] == [nh.Dense(4, 5), nh.Dense(5, 3, "identity")]
    # W[0, :] is the first column of the kernel, which lies behind the bias.
    assert order.positions[:4].tolist() == [5, 10, 15, 20] and order.positions[20:25].tolist() == [0, 1, 2, 3, 4]
    same_outputs(model, target, found, order)


def test_weights_out_by_in_and_layers_out_of_order():
    model = Model((4,), **arrays(last=(2, 5), first=(5, 4), bias=5))
    x = model.map("tanh", np.tanh, model.add(model["bias"], model.dot(model["first"], model.source, ((1,), (0,)))))
    target = model.dot(model["last"], x, ((1,), (0,)))
    _, found, order = model.read(target)
    assert [piece.layer for piece in found] == [nh.Dense(4, 5), nh.Dense(5, 2, "identity", bias=False)]
    same_outputs(model, target, found, order)


def test_contraction_over_two_axes_in_any_order():
    model = Model((2, 3), **arrays(kernel=(3, 4, 2)))
    target = model.dot(model["kernel"], model.source, ((2, 0), (0, 1)))
    _, found, order = model.read(target)
    assert [piece.layer for piece in found] == [nh.Dense(6, 4, "identity", bias=False)]
    same_outputs(model, target, found, order)


def test_transposed_and_reshaped_parameters():
    model = Model((4,), **arrays(kernel=(2, 2, 3)))
    weight = model.transpose(model.reshape(model["kernel"], 4, 3), 1, 0)
    target = model.dot(weight, model.source, ((1,), (0,)))
    _, found, order = model.read(target)
    assert [piece.layer for piece in found] == [nh.Dense(4, 3, "identity", bias=False)]
    same_outputs(model, target, found, order)


@pytest.mark.parametrize("is_first", [True, False])
def test_skip(is_first):
    model = Model((3,), **arrays(kernel=(3, 3), bias=3))
    u = model.map("tanh", np.tanh, model.add(model.dot(model.source, model["kernel"], ((0,), (0,))), model["bias"]))
    target = model.add(model.source, u) if is_first else model.add(u, model.source)
    _, found, order = model.read(target)
    assert [piece.layer for piece in found] == [nh.Dense(3, 3, skip=True)]
    same_outputs(model, target, found, order)


def test_a_skip_that_broadcasts_is_none():
    model = Model((3, 1), **arrays(kernel=(3, 3)))
    u = model.dot(model["kernel"], model.reshape(model.source, 3), ((1,), (0,)))
    _, found, _ = model.read(model.add(model.source, u))
    assert [(piece.layer, piece.target.size) for piece in found] == [(None, 9)]


def test_activations_by_their_values():
    def logistic(u):
        return 1.0 / (1.0 + np.exp(-u))

    for is_silu in (True, False):
        model = Model((3,), **arrays(kernel=(3, 2)))
        u = model.dot(model.source, model["kernel"], ((0,), (0,)))
        target = model.mul(u, model.map("logistic", logistic if is_silu else lambda u: logistic(1.01 * u), u))
        reading, found, order = model.read(target)
        if is_silu:
            assert [piece.layer for piece in found] == [nh.Dense(3, 2, "silu", bias=False)]
            same_outputs(model, target, found, order)
        else:
            assert [piece.layer for piece in found] == [nh.Dense(3, 2, "identity", bias=False), None]
            z = np.array([0.3, -2.0])
            np.testing.assert_allclose(Function(reading, found[1])(z, np.empty(0)), z * logistic(1.01 * z), rtol=1e-14)


@pytest.mark.parametrize("names", [("gain", "offset"), ("offset", "gain")])
def test_norms_by_their_values(names):
    model = Model((4,), **arrays(**dict.fromkeys(names, 4)))
    centred = model.append("sub", lambda a, b: (a - b,), model.source, model.reduce(model.source))
    variance = model.reduce(model.map("square", np.square, centred))
    added = model.append("add", lambda a, b: (a + b,), variance, np.array(1e-3), elementwise=True)
    scaled = model.mul(centred, model.map("rsqrt", lambda v: 1.0 / np.sqrt(v), added))
    target = model.add(model.mul(scaled, model["gain"]), model["offset"])
    _, found, order = model.read(target)
    assert [repr(piece.layer) for piece in found] == ["LayerNorm(4, eps=0.001, bias=True)"]
    same_outputs(model, target, found, order)


def test_parameters_in_two_places_stay_together():
    model = Model((3,), **arrays(kernel=(3, 3), head=(3, 2)))
    x = model.map("tanh", np.tanh, model.dot(model.source, model["kernel"], ((0,), (0,))))
    x = model.dot(x, model["kernel"], ((0,), (1,)))
    target = model.dot(x, model["head"], ((0,), (0,)))
    reading, found, order = model.read(target)
    assert [piece.layer for piece in found] == [None, nh.Dense(3, 2, "identity", bias=False)]
    z, W = np.array([0.3, -1.0, 2.0]), model.arrays["kernel"]
    np.testing.assert_allclose(Function(reading, found[0])(z, W.ravel()), W @ np.tanh(z @ W), rtol=1e-14)


def test_parameters_that_are_computed():
    """Weights that are no entries of the model's arrays are an external layer's business."""
    model = Model((3,), **arrays(kernel=(3, 3)))
    doubled = model.mul(model["kernel"], model["kernel"])
    target = model.dot(model.source, doubled, ((0,), (0,)))
    reading, found, _ = model.read(target)
    assert [piece.layer for piece in found] == [None]
    z, W = np.array([0.3, -1.0, 2.0]), model.arrays["kernel"]
    np.testing.assert_allclose(Function(reading, found[0])(z, W.ravel()), z @ (W * W), rtol=1e-14)


def test_parameters_that_do_nothing():
    model = Model((3,), **arrays(first=(3, 2), other=(2, 2)))
    target = model.dot(model.source, model["first"], ((0,), (0,)))
    with pytest.raises(ValueError, match="its parameter other does nothing to the outputs"):
        model.read(target)


def test_flat_order():
    order = FlatOrder(["a", "b"], [(2,), (1, 2)], [3, 2, 1, 0])
    assert order.join([np.array([0.0, 1.0]), np.array([[2.0, 3.0]])]).tolist() == [3.0, 2.0, 1.0, 0.0]
    assert order.split(np.array([3.0, 2.0, 1.0, 0.0]))[1].tolist() == [[2.0, 3.0]]
    assert [order.path_of(position) for position in range(4)] == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match="its parameter b is used more than once"):
        FlatOrder(["a", "b"], [(2,), (1, 2)], [0, 1, 2, 3, 3])
