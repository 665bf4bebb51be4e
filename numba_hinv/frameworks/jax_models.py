"""What the libraries of models for JAX have in common: arrays, and a function of them and of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .jax_tree import paths_and_leaves


class Source(NamedTuple):
    """Where the parameters of a network come from.

    paths, leaves : names and arrays of the parameters.
    rebuild : function of a list of such arrays that gives the model; ``wide=True`` has constants in float64.
    select : function that gives the pytree of the parameters in a model, or in a gradient of one.
    call : ``call(model, sample)``, the output for one sample.
    apply : ``apply(model, X)``, the outputs of a batch.
    """

    paths: tuple
    leaves: tuple
    rebuild: Callable
    select: Callable
    call: Callable
    apply: Callable

    def one(self, leaves, sample):
        """The output for one sample, constants in float64."""
        return self.call(self.rebuild(leaves, wide=True), sample)


def of_equinox(module):
    import equinox as eqx

    def select(tree):
        return eqx.filter(tree, eqx.is_inexact_array)

    constants = eqx.filter(module, eqx.is_inexact_array, inverse=True)

    def combine(parameters, wide):
        return eqx.combine(parameters, constants)

    return _source(select(module), combine, select, lambda model, X: jax.vmap(model)(X), lambda model, x: model(x))


def of_linen(module, variables):
    others = {name: collection for name, collection in variables.items() if name != "params"}

    def combine(parameters, wide):
        return {**(_wide(others) if wide else others), "params": parameters}

    def select(tree):
        return tree["params"] if isinstance(tree, dict) and "params" in tree else tree

    return _source(variables["params"], combine, select, module.apply)


def of_nnx(module):
    from flax import nnx

    definition, parameters, others = nnx.split(module, nnx.Param, ...)

    def combine(parameters, wide):
        return nnx.merge(definition, parameters, _wide(others) if wide else others)

    def select(tree):
        return nnx.state(tree, nnx.Param) if isinstance(tree, nnx.Module) else tree

    return _source(parameters, combine, select, lambda model, X: model(X))


def _source(parameters, combine, select, apply, call=None):
    """call : by default a batch of one."""
    named = list(paths_and_leaves(parameters))
    structure = jax.tree.structure(parameters)

    def rebuild(leaves, wide=False):
        return combine(jax.tree.unflatten(structure, leaves), wide)

    leaves = tuple(np.asarray(leaf) for _, leaf in named)
    call = call or (lambda model, sample: apply(model, sample[None])[0])
    return Source(tuple(path for path, _ in named), leaves, rebuild, select, call, apply)


def _wide(tree):
    """A pytree with its real numbers in float64."""

    def widened(leaf):
        dtype = getattr(leaf, "dtype", None)
        is_narrow = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        return jnp.asarray(leaf, np.float64) if is_narrow else leaf

    return jax.tree.map(widened, tree)
