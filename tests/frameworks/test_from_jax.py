"""Models of JAX as networks: losses, gradients and Hessians against JAX's own, trees, and what cannot be converted."""

import contextlib

import numpy as np
import pytest

import numba_hinv as nh
from numba_hinv.runtime import memory_budget

jax = pytest.importorskip("jax")
eqx = pytest.importorskip("equinox")
flax = pytest.importorskip("flax")
optax = pytest.importorskip("optax")
import jax.numpy as jnp  # noqa: E402 - after the skip
from flax import linen, nnx  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

from numba_hinv.frameworks.jax_trace import in_float64  # noqa: E402 - imports jax

B = 5
CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels
KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.fixture(autouse=True)
def precision(request):
    """Tests are in float64, but for the one that is about float32."""
    with contextlib.nullcontext() if request.node.name == "test_float32" else in_float64():
        yield


def widened(tree):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64) if eqx.is_inexact_array(leaf) else leaf, tree)


class Skips(eqx.Module):
    """Parameters in another order than they are used in, a norm, and layers that lie in one array."""

    last: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    stack: tuple
    first: eqx.nn.Linear

    def __init__(self):
        self.first = eqx.nn.Linear(4, 6, key=KEYS[0])
        self.norm = eqx.nn.LayerNorm(6)
        self.stack = 0.5 * jax.random.normal(KEYS[1], (2, 6, 6)), jax.random.normal(KEYS[2], (2, 6))
        self.last = eqx.nn.Linear(6, 3, use_bias=False, key=KEYS[3])

    def __call__(self, x):
        x = self.norm(jnp.tanh(self.first(x)))
        x, _ = jax.lax.scan(lambda x, layer: (x + jax.nn.silu(layer[0] @ x + layer[1]), None), x, self.stack)
        return self.last(x)


class Convolution(eqx.Module):
    convolution: eqx.nn.Conv1d
    linear: eqx.nn.Linear

    def __init__(self):
        self.convolution = eqx.nn.Conv1d(2, 3, 3, stride=2, padding=1, key=KEYS[0])
        self.linear = eqx.nn.Linear(9, 3, key=KEYS[1])

    def __call__(self, x):
        return self.linear(jnp.tanh(self.convolution(x.reshape(2, 6))).reshape(-1))


class Linen(linen.Module):
    """More than ten layers, whose names are not in the order of their numbers."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(8)(x))
        x = x + linen.tanh(linen.Dense(8)(x))
        for _ in range(9):
            x = linen.softplus(linen.Dense(4)(x))
        return linen.Dense(3, use_bias=False)(x)


class Normed(linen.Module):
    rate: float = 0.5
    is_training: bool = False

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=not self.is_training)(linen.Dense(5)(x))
        return linen.Dense(3)(linen.Dropout(self.rate, deterministic=not self.is_training)(linen.gelu(x)))


class Attention(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], 2, 4)
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))
        return linen.Dense(3)(linen.RMSNorm()(x.reshape(x.shape[0], -1)))


class Nnx(nnx.Module):
    """zeroth comes last by name, first in use."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.zeroth, self.first = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.dropout, self.batch = nnx.Dropout(0.1, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = jnp.sin(self.zeroth(x))
        return self.last(self.dropout(self.batch(x + jnp.tanh(self.first(x)))))


def nnx_model(is_training=False):
    model = Nnx()
    if not is_training:
        model.eval()
    definition, state = nnx.split(model)
    return nnx.merge(definition, widened(state))


def mlp(activation=jnp.tanh, **options):
    return widened(eqx.nn.MLP(4, 3, 6, 2, activation=activation, key=KEYS[0], **options))


def of_equinox(model):
    return lambda loss: nh.from_equinox(model, loss), lambda model, X: jax.vmap(model)(X)


def of_linen(model, in_features=4):
    variables = widened(model.init(KEYS[0], jnp.ones((1, in_features))))
    return lambda loss: nh.from_flax(model, loss, variables, in_features), model.apply


def of_nnx(model):
    return lambda loss: nh.from_flax(model, loss), lambda model, X: model(X)


MODELS = {
    "mlp": (lambda: of_equinox(mlp()), "Dense Dense Dense"),
    "exact gelu": (lambda: of_equinox(mlp(lambda u: jax.nn.gelu(u, approximate=False))), "Dense Dense Dense"),
    "skips": (lambda: of_equinox(widened(Skips())), "Dense LayerNorm Dense Dense Dense"),
    "linen": (lambda: of_linen(Linen()), " ".join(["Dense"] * 12)),
    "normed": (lambda: of_linen(Normed()), "Dense External Dense"),
    "nnx": (lambda: of_nnx(nnx_model()), "Dense Dense External Dense"),
    "attention": (lambda: of_linen(Attention(), 8), "External RMSNorm Dense"),
}


@pytest.mark.parametrize("name", MODELS)
def test_derivatives(name):
    make, kinds = MODELS[name]
    convert, apply = make()
    net, params, unflatten = convert(CROSS_ENTROPY)
    assert " ".join(type(layer).__name__ for layer in net.layers) == kinds
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((B, net.layers[0].in_features)), rng.integers(3, size=B)

    def loss(vector):
        return CROSS_ENTROPY(apply(unflatten(vector), X), y).mean()

    H = net.hessian(params, X, y)
    value, gradient = jax.value_and_grad(loss)(params)
    hessian = np.asarray(jax.jit(jax.hessian(loss))(params))
    assert abs(value - H.loss) < 1e-14 * abs(value)
    assert np.abs(gradient - net.gradient(params, X, y)).max() < 1e-13 * np.abs(gradient).max()
    assert np.abs(hessian - H.todense()).max() < 1e-12 * np.abs(hessian).max()
    assert np.array_equal(unflatten.flatten(unflatten(params)), params)


def test_convolution():
    """Channels first are those of this library."""
    model = widened(Convolution())
    net, params, _ = nh.from_equinox(model, "mean_squared_error", 12)
    assert net.layers == (nh.Conv1d(2, 3, 3, 6, stride=2, padding=1), nh.Dense(9, 3, "identity"))
    X = np.random.default_rng(0).standard_normal((B, 12))
    np.testing.assert_allclose(net.forward(params, X), jax.vmap(model)(X), rtol=1e-12, atol=1e-14)


def test_other_losses():
    model, rng = mlp(), np.random.default_rng(0)
    X, y = rng.standard_normal((B, 4)), rng.integers(2, size=(B, 3)).astype(float)
    for loss in (optax.squared_error, optax.sigmoid_binary_cross_entropy):
        net, params, _ = nh.from_equinox(model, loss)
        np.testing.assert_allclose(net.loss(params, X, y), loss(jax.vmap(model)(X), y).mean(), rtol=1e-13)


def test_the_order_of_flax_is_another():
    model = Linen()
    variables = widened(model.init(KEYS[0], jnp.ones((1, 4))))
    net, params, unflatten = nh.from_flax(model, CROSS_ENTROPY, variables)
    X, y = np.ones((2, 4)), np.array([0, 2])
    loss = CROSS_ENTROPY(model.apply(variables, X), y).mean()
    theirs = np.asarray(ravel_pytree(variables)[0])
    assert theirs.shape == params.shape and abs(net.loss(theirs, X, y) - loss) > 1e-2
    assert abs(net.loss(params, X, y) - loss) < 1e-14
    assert np.array_equal(unflatten.flatten(variables), params)
    assert np.array_equal(unflatten.flatten(variables["params"]), params)


def test_pytrees():
    """Models and gradients to vectors and back, compiled and not; arrays of JAX in, NumPy's out."""
    model, X, y = nnx_model(), jnp.ones((B, 4)), jnp.arange(B) % 3
    net, params, unflatten = nh.from_flax(model, CROSS_ENTROPY)
    gradient = nnx.grad(lambda model: CROSS_ENTROPY(model(X), y).mean())(model)
    ours = net.gradient(jnp.asarray(params), X, y)
    assert isinstance(ours, np.ndarray)
    np.testing.assert_allclose(unflatten.flatten(gradient), ours, rtol=1e-12, atol=1e-15)
    F = net.hessian(jnp.asarray(params), X, y).factorize(0.1)
    step = F.solve(jnp.asarray(ours))
    assert isinstance(step, np.ndarray) and np.array_equal(step, F.solve(ours))
    assert isinstance(F @ jnp.asarray(ours), np.ndarray)
    moved = unflatten(params - step)
    assert isinstance(moved, Nnx) and np.array_equal(unflatten.flatten(moved), params - step)
    assert np.array_equal(unflatten.flatten(model), params)

    def twice(vector):
        return unflatten.flatten(jax.tree.map(lambda leaf: 2 * leaf, nnx.state(unflatten(vector), nnx.Param)))

    assert np.array_equal(jax.jit(twice)(params), 2 * params)


def test_float32():
    """Without jax_enable_x64: parameters in their dtype, Hessians in float64 of external layers, too."""
    model = Normed()
    variables = model.init(KEYS[0], jnp.ones((1, 4)))
    net, params, unflatten = nh.from_flax(model, CROSS_ENTROPY, variables)
    assert params.dtype == np.float32 and jnp.ones(1).dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(unflatten(params.astype(float))))
    X = np.random.default_rng(0).standard_normal((B, 4))
    exact = net.forward(params.astype(float), X)
    np.testing.assert_allclose(net.forward(params, X.astype(np.float32)), exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.apply(variables, X.astype(np.float32)), exact, rtol=1e-4, atol=1e-5)


class Function(eqx.Module):
    """Any function of a weight and a sample."""

    weight: jax.Array
    function: callable
    other: jax.Array | None = None

    def __call__(self, x):
        return self.function(self.weight, x)


def refused(function, shape=(3, 4), **options):
    return lambda: nh.from_equinox(Function(jnp.ones(shape), function, **options), "mean_squared_error", 4)


REFUSALS = {
    "random": (refused(lambda W, x: W @ x * jax.random.normal(KEYS[0], (3,))), ValueError, "it draws random numbers"),
    "narrow": (refused(lambda W, x: (W @ x).astype(np.float32)), ValueError, "it computes in float32"),
    "constant": (refused(lambda W, x: W[:, 0]), ValueError, "its outputs do not depend on the samples"),
    "unused": (
        refused(lambda W, x: W @ x, other=jnp.ones(2)), ValueError, "its parameter other does nothing to the outputs",
    ),
    "two outputs": (refused(lambda W, x: (W @ x, x)), ValueError, "expected it to return one array, got tuple"),
    "fails": (refused(lambda W, x: W @ x[:2]), ValueError, r"it cannot be called with samples of shape \(4,\)"),
    "once": (
        refused(lambda W, x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), np.float64), W @ x)),
        ValueError, "cannot convert layer 1 .*: JAX cannot differentiate it twice",
    ),
    "classes": (
        lambda: nh.from_equinox(Function(jnp.ones((2, 3, 4)), lambda W, x: W @ x), CROSS_ENTROPY, 4),
        ValueError, r"expected one output per class for softmax_cross_entropy, got outputs of shape \(2, 3\)",
    ),
    "dtype": (
        lambda: nh.from_equinox(Function(jnp.ones((3, 4), np.float16), lambda W, x: W @ x), CROSS_ENTROPY),
        ValueError, "its parameter weight has dtype float16; expected float32 or float64",
    ),
    "no model": (lambda: nh.from_equinox(jnp.tanh, CROSS_ENTROPY), TypeError, "module: expected an equinox.Module"),
    "no module": (lambda: nh.from_flax(mlp(), CROSS_ENTROPY), TypeError, "expected a flax.linen.Module or a"),
    "no variables": (lambda: nh.from_flax(Linen(), CROSS_ENTROPY), ValueError, "variables: expected a dictionary"),
    "nnx variables": (lambda: nh.from_flax(nnx_model(), CROSS_ENTROPY, {}), TypeError, "variables: expected None"),
    "near loss": (lambda: nh.from_equinox(mlp(), optax.l2_loss), ValueError, "got l2_loss; squared_error is twice l2_"),
    "own loss": (lambda: nh.from_equinox(mlp(), lambda z, y: 0.0), TypeError, "loss: expected one of optax.softmax"),
    "name": (lambda: nh.from_equinox(mlp(), "hinge"), ValueError, "loss: expected one of"),
    "shape": (
        lambda: nh.from_equinox(Function(jnp.ones((3, 4)), lambda W, x: x @ x * W.sum()), "mean_squared_error"),
        ValueError, "input_shape: .*samples of 3 and of 4 features would do; got None",
    ),
    "in training": (lambda: nh.from_flax(nnx_model(True), CROSS_ENTROPY), ValueError, r"call eval\(\) \(nnx\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    convert, kind, message = REFUSALS[name]
    with pytest.raises(kind, match=message):
        convert()


def test_samples_that_are_mixed():
    class Mixed(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.linear(x + x.mean(axis=0))

    with pytest.raises(ValueError, match="samples of a batch have other outputs than each alone"):
        nh.from_flax(Mixed(), CROSS_ENTROPY)


def test_memory(monkeypatch):
    """A part that is too large is named before anything as large is allocated."""
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: 1 << 20)
    with pytest.raises(MemoryError, match=r"module: cannot convert layer 0 \(.*\): "):
        refused(lambda W, x: jnp.tanh(W * W) @ x, (100, 4))()


def test_vectors_and_trees_that_do_not_fit():
    model = mlp()
    net, params, unflatten = nh.from_equinox(model, CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"vector: expected shape \(93,\), got \(92,\)"):
        unflatten(params[:-1])
    with pytest.raises(ValueError, match=r"tree: expected an array layers.0.weight of shape \(6, 4\), got shape"):
        unflatten.flatten(widened(eqx.nn.MLP(5, 3, 6, 2, key=KEYS[0])))
    with pytest.raises(ValueError, match="tree: expected an array layers.0.weight .* got a pytree without it"):
        unflatten.flatten({"kernel": np.ones(3)})
    with pytest.raises(ValueError, match="got layers.3.bias as well|got layers.3.weight as well"):
        layers = [{"weight": layer.weight, "bias": layer.bias} for layer in model.layers]
        unflatten.flatten({"layers": [*layers, {"weight": np.ones(1)}]})
    for tree in (model, {"params": 1.0}):
        with pytest.raises(TypeError, match="params: expected"):
            net.loss(tree, np.ones((2, 4)), np.array([0, 1]))
