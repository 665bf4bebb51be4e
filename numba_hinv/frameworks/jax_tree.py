"""Between the flat vector of a network and the pytree of a JAX model that it comes from."""

import jax
import jax.numpy as jnp
import numpy as np


class Unflatten:
    """Function that puts a flat vector of parameters into the model; `flatten` is its inverse.

    Both may be called in ``jax.jit``, and be differentiated.
    """

    def __init__(self, order, source):
        self._order, self._source = order, source

    def __repr__(self):
        return f"<Unflatten: {self._order.size} parameters in {len(self._order.paths)} arrays>"

    def __call__(self, vector):
        """The model, or the variables, that were converted, with these parameters in the dtypes of theirs.

        Parameters
        ----------
        vector : (P,) array
            Of NumPy or JAX, in the order of the network: parameters, a step, a gradient.
        """
        vector = _as_array(vector)
        if vector.shape != (self._order.size,):
            raise ValueError(f"vector: expected shape ({self._order.size},), got {vector.shape}")
        parts = zip(self._order.split(vector), self._source.leaves)
        return self._source.rebuild([jnp.asarray(part, leaf.dtype) for part, leaf in parts])

    def flatten(self, tree):
        """The (P,) vector, in the order of the network, of a model or of a pytree of its parameters.

        Parameters
        ----------
        tree : pytree
            Such a model; or as ``jax.grad`` gives it, with an array for each parameter.

        Returns
        -------
        vector : (P,) array
            Of NumPy, but for one of JAX while that traces.

        Raises
        ------
        ValueError
            It has other arrays, or of other shapes: the first one is named.
        """
        found = {path: _as_array(leaf) for path, leaf in paths_and_leaves(self._source.select(tree))}
        for path, shape in zip(self._order.paths, self._order.shapes):
            if path not in found:
                raise ValueError(f"tree: expected an array {path} of shape {shape}, got a pytree without it")
            if found[path].shape != shape:
                raise ValueError(f"tree: expected an array {path} of shape {shape}, got shape {found[path].shape}")
        unknown = sorted(found.keys() - set(self._order.paths))
        if unknown:
            raise ValueError(f"tree: expected the arrays {', '.join(self._order.paths)}, got {unknown[0]} as well")
        leaves = [found[path] for path in self._order.paths]
        is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return self._order.join(leaves, jnp.concatenate if is_traced else np.concatenate)


def paths_and_leaves(tree):
    """(name, array) of each array in a pytree; its name has the keys that lead there, with dots between."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # Flax keeps each array in a variable, as whose only attribute JAX sees it.
        yield jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"), leaf


def _as_array(value):
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value)
