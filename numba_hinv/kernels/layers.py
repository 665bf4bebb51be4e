"""The layer table: sizes of every layer and where its blocks lie in the packed buffers.

One record a layer, read by all the sweeps. A new kind of block gets its offset here, in `layer_table`, and nowhere
else. Sizes use the letters of the design: B samples, n_in inputs, n_out outputs, d columns of ``Zt = [Z, 1]``,
r = min(B, d), m = n_out r (the pivot), N = B n_in (the front that the layer hands down).
"""

from typing import NamedTuple

import numpy as np

from .signed_cholesky import pack_size

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            "n_in",
            "n_out",
            "bias",
            "skip",
            "activation",  # address of the compiled function
            "d",
            "r",
            "m",
            "N",
            "parameters",  # of W, then c, in a flat parameter vector
            "z",  # of a B x n_in block among those of all layers
            "u",  # of a B x n_out block
            "Q",  # of the r x n_in block, then the r bias entries
            "R",  # of the r x B block
            "L",  # of the packed triangular factor of the pivot
            "pivots",  # of its 2 m integers
            "scales",  # of its m x 2 scales
            "Y",  # of the m x N coupling
        )
    ],
    align=True,
)


class Sizes(NamedTuple):
    """Lengths of the packed buffers, in scalars, and of the largest blocks of any layer."""

    parameters: int
    z: int
    u: int
    Q: int
    R: int
    L: int
    pivots: int
    scales: int
    Y: int
    width: int  # largest n_in or n_out
    r: int
    m: int
    front: int  # largest front
    mixed: int  # largest scratch of the elimination of a layer


def layer_table(n_in, n_out, bias, skip, activation, num_samples):
    """The table of a chain for a batch of ``num_samples``, and the `Sizes` of the buffers it points into.

    Parameters
    ----------
    n_in, n_out, bias, skip : (L,) int64 arrays
    activation : (L,) int64 array
        Addresses of the compiled activations.
    num_samples : int
        B.
    """
    B, L = num_samples, n_in.size
    table = np.zeros(L, LAYER)
    d = n_in + bias
    r = np.minimum(B, d)
    m = n_out * r
    # The first layer hands no front down: nothing comes before it.
    N = B * n_in
    N[0] = 0
    for name, value in (
        ("n_in", n_in),
        ("n_out", n_out),
        ("bias", bias),
        ("skip", skip),
        ("activation", activation),
        ("d", d),
        ("r", r),
        ("m", m),
        ("N", N),
    ):
        table[name] = value
    distinct, which = np.unique(m, return_inverse=True)
    packed = np.array([pack_size(int(size)) for size in distinct])[which]
    buffers = {
        "parameters": n_out * d,
        "z": B * n_in,
        "u": B * n_out,
        # With B >= d, Q is the identity and is not stored.
        "Q": np.where(r < d, r * d, 0),
        "R": r * B,
        "L": packed,
        "pivots": 2 * m,
        "scales": 2 * m,
        "Y": m * N,
    }
    totals = {}
    for name, sizes in buffers.items():
        ends = np.cumsum(sizes)
        table[name] = ends - sizes
        totals[name] = int(ends[-1])
    # The loss's own curvature is block diagonal over the samples and is kept so.
    P_columns, E_columns = B * n_out, N.copy()
    P_columns[-1], E_columns[-1] = n_out[-1], n_in[-1] if L > 1 else 0
    from_pivot = m * B * n_out
    from_pivot[-1] = r[-1] * (B + n_out[-1] ** 2)
    front = np.maximum(B * n_out * P_columns, N * N)
    mixed = np.maximum.reduce([m * N, B * n_out * E_columns, from_pivot, n_in**2])
    largest = {"width": np.maximum(n_in, n_out), "r": r, "m": m, "front": front, "mixed": mixed}
    return table, Sizes(**totals, **{name: int(values.max()) for name, values in largest.items()})
