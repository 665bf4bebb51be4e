"""Values and derivatives of a part of a JAX model, as `External` wants them."""

import jax
import jax.numpy as jnp
import numpy as np

from .jax_trace import in_float64

# Numbers of one kind that passes which are made together hold at most.
_TOGETHER = 1 << 22


class JaxFunction:
    """A function of one state and of parameters, of a batch of states; computed in float64 and compiled by JAX.

    Parameters
    ----------
    function : callable
        ``function(state, x)``, (n_in,) and (p,) to (n_out,), that JAX can trace.
    in_features, out_features, num_params : int
    name : str
    """

    def __init__(self, function, in_features, out_features, num_params, name):
        self.in_features, self.out_features, self.num_params = in_features, out_features, num_params
        self.__name__ = name
        self._batch = jax.vmap(function, (0, None))
        self._value = jax.jit(self._batch)
        self._slopes = jax.jit(jax.vmap(jax.jacrev(function, (0, 1)), (0, None)))
        self._bends = jax.jit(self._second)

    def check_derivatives(self):
        """Whatever JAX raises where it cannot differentiate twice; nothing is computed."""
        with in_float64():
            sizes = (1, self.in_features), (self.num_params,), (1, self.out_features)
            Z, x, G = (jax.ShapeDtypeStruct(size, np.float64) for size in sizes)
            jax.eval_shape(self._slopes, Z, x)
            jax.eval_shape(self._bends, Z, x, G)

    def __call__(self, Z, x):
        """The outputs of a batch, (B, out_features)."""
        return self._run(self._value, Z, x)

    def jacobian(self, Z, x):
        """Dz (B, out_features, in_features) and Dx (B, out_features, num_params)."""
        return self._run(self._slopes, Z, x)

    def curvature(self, Z, x, G):
        """Dxx (num_params, num_params), Dzx (B, num_params, in_features) and Dzz (B, in_features, in_features)."""
        Dxx, Dzx, Dzz = self._run(self._bends, Z, x, G)
        return Dxx, Dzx.transpose(1, 0, 2), Dzz.transpose(1, 0, 2)

    @staticmethod
    def _run(function, *arrays):
        with in_float64():
            return jax.tree.map(np.asarray, function(*(np.asarray(array, np.float64) for array in arrays)))

    def _second(self, Z, x, G):
        """Dxx, and Dzx and Dzz with the numbers that are differentiated in first, the samples second."""

        # Since no sample depends on another, slopes in Z of the sum over the samples still tell the samples apart.
        def slopes(Z, x):
            return jax.grad(lambda Z, x: jnp.vdot(self._batch(Z, x), G), (0, 1))(Z, x)

        def along_x(direction):
            return jax.jvp(lambda x: slopes(Z, x), (x,), (direction,))[1]

        def along_Z(direction):
            return jax.jvp(lambda Z: slopes(Z, x)[0], (Z,), (jnp.broadcast_to(direction, Z.shape),))[1]

        together = max(1, _TOGETHER // (G.size + Z.size + x.size))
        Dzz = jax.lax.map(along_Z, jnp.eye(self.in_features, dtype=Z.dtype), batch_size=min(together, self.in_features))
        if self.num_params == 0:
            return jnp.zeros((0, 0)), jnp.zeros((0, *Z.shape)), Dzz
        unit = jnp.eye(self.num_params, dtype=x.dtype)
        Dzx, Dxx = jax.lax.map(along_x, unit, batch_size=min(together, self.num_params))
        return Dxx, Dzx, Dzz
