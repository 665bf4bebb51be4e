"""Scaling by powers of two, so that the sweeps meet numbers near one however the net, its data or b are scaled.

With ``z_l = 2^s_l z~_l`` for the states between the layers and ``H~ = 2^-k H``, the derivative blocks become

    W~ = 2^s_in W,   S~ = 2^-s_out S,   lam~ = 2^(s_in - k) lam,   D~ = 2^-k D,   curvature~ = 2^(2 s_L - k) curvature
    Dx~ = 2^-s_out Dx,   Dz~ = 2^(s_in - s_out) Dz
    Dxx~ = 2^-k Dxx,   Dzx~ = 2^(s_in - k) Dzx,   Dzz~ = 2^(2 s_in - k) Dzz

and every sweep works on them as it stands: the pivots stay those of ``2^-k (H + damping I)``, and the fronts become the
curvature in states that move by about one when the parameters do. Without it the fronts of a net whose Jacobians vanish
or explode would be judged, in `Pivoting`, on a scale that has nothing to do with the Hessian's. Exact: nothing rounds.
"""

import math
from typing import NamedTuple

import numpy as np

from ..kernels.dense.norm import LARGEST, LEAST, extremes, row_norms
from ..kernels.steps.layer_table import BLOCKS

# States are scaled one by one only where their exponents differ from the mean by more than this: it takes a copy.
_SPREAD = 4
# Exponents are cut off here: beyond, a state does not matter, and S~ would overflow.
_LARGEST = {np.dtype(np.float64): 400, np.dtype(np.float32): 40}
# Norms of H + damping I within 2^+- this are left alone.
_COMFORT = {np.dtype(np.float64): 100, np.dtype(np.float32): 16}
_TINY = float(np.finfo(np.float64).tiny)


class Scaling(NamedTuple):
    """Exponents of two."""

    matrix: int  # k
    states: tuple  # s_0, ..., s_L; empty for all 0
    levels: tuple  # (first layer, exponent) of runs of layers whose scaled inputs still move by 2^exponent

    def to_header(self):
        """As plain data for a file."""
        return {
            "matrix_exponent": self.matrix,
            "state_exponents": list(self.states),
            "levels": [list(level) for level in self.levels],
        }

    def levels_by_layer(self, num_layers):
        """The exponent of every layer's level, (L,)."""
        firsts, exponents = np.array(self.levels).T
        return np.repeat(exponents, np.diff(np.append(firsts, num_layers)))


def state_logarithms(starts, tangents):
    """Logarithms to base 2 of how far each state moves for random parameters of unit variance, (L + 1,).

    Parameters
    ----------
    starts : (L + 1,) array
        Where the tangents of each state start.
    tangents : array
        Of the inputs of all layers and of the output along one random direction, as `tangents` leaves them.
    """
    # The largest entry: a single one is smaller than a hundredth of what is usual in 1 case of 100, and does no harm.
    # Nothing moves the net's input, whose tangents nobody has written: it goes with the next state.
    sizes = np.maximum.reduceat(np.abs(tangents[starts[1] :]), starts[1:] - starts[1])
    logs = np.log2(np.maximum(sizes, _TINY))
    return np.append(logs[0], logs)


def matrix_exponent(size, dtype):
    """k such that ``2^-k`` brings a matrix of this norm near one: 0 where it is near enough for sweeps in ``dtype``."""
    exponent = math.frexp(size)[1] if size > 0 else 0
    return 0 if abs(exponent) <= _COMFORT[np.dtype(dtype)] else exponent


def choose(logs, skip, size, dtype):
    """The `Scaling` for sweeps in ``dtype``.

    Parameters
    ----------
    logs : (L + 1,) array
        `state_logarithms`.
    skip : (L,) array
        Which layers have a skip: their input and output must be scaled alike.
    size : float
        Norm of ``H + damping I``.
    """
    dtype = np.dtype(dtype)
    matrix = matrix_exponent(size, dtype)
    states, (least, most) = (), extremes(logs)
    if most - least > 2 * _SPREAD or max(most, -least) > _COMFORT[dtype]:
        group = np.concatenate([[0], np.cumsum(skip == 0)])
        mean = np.bincount(group, logs) / np.bincount(group)
        exponents = np.rint(np.clip(mean[group], -_LARGEST[dtype], _LARGEST[dtype])).astype(np.int64)
        if exponents.max() > exponents.min() or abs(exponents[0]) > _COMFORT[dtype]:
            exponents[0] = exponents[0] if skip[0] else 0
            states = tuple(exponents.tolist())
            logs = logs - exponents
            logs[0] = logs[1]
    return Scaling(matrix, states, levels_of(logs))


def levels_of(logs):
    """`Scaling.levels` of layers by the logarithms of their inputs and of the output, (L + 1,)."""
    levels, (least, most) = [(0, round(float(logs[0])))], extremes(logs)
    if most - least > _SPREAD:
        for layer, log in enumerate(logs[:-1].tolist()):
            if abs(log - levels[-1][1]) > _SPREAD:
                levels.append((layer, round(log)))
    return tuple(levels)


def scale_blocks(scaling, table, num_samples, params, lin, ldexp=np.ldexp):
    """Params and `Linearisation` of the scaled problem: those given where there is nothing to scale, else copies.

    ``ldexp`` is that of NumPy, for the arrays at hand.
    """
    if scaling.matrix == 0 and not scaling.states:
        return params, lin
    states = np.array(scaling.states or np.zeros(table.size + 1, np.int64))
    before, after = states[:-1], states[1:]
    k, B, is_structured = scaling.matrix, num_samples, table["kind"] != BLOCKS
    units = np.where(is_structured, B * table["n_out"], 0)
    p, a, N = np.where(is_structured, 0, table["p"]), B * table["n_out"], B * table["n_in"]
    per_sample, taps = np.where(is_structured, 0, B), table["taps"]
    is_local = taps > 0
    # Entries of Dz, and behind those of a local layer their columns, which stay as they are.
    entries = np.stack([np.where(is_local, taps, table["n_in"]), taps], axis=1)
    Dz_sizes = (per_sample * table["n_out"])[:, None] * entries
    Dz_exponents = np.stack([before - after, np.zeros_like(before)], axis=1)
    if scaling.states:
        exponents = np.where(is_structured, before, 0)
        exponents = np.concatenate([np.repeat(exponents, table["p"]), np.repeat(exponents, table["held"])])
        params = ldexp(params, exponents)
    return params, lin._replace(
        S=ldexp(lin.S, np.repeat(-after, units)),
        D=ldexp(lin.D, -k),
        lam=ldexp(lin.lam, np.repeat(before, units) - k),
        Dx=ldexp(lin.Dx, np.repeat(-after, a * p)),
        Dz=ldexp(lin.Dz, np.repeat(Dz_exponents.ravel(), Dz_sizes.ravel())),
        Dxx=ldexp(lin.Dxx, -k),
        Dzx=ldexp(lin.Dzx, np.repeat(before, p * N) - k),
        Dzz=ldexp(lin.Dzz, np.repeat(2 * before, per_sample * table["n_in"] ** np.where(is_local, 1, 2)) - k),
        curvature=ldexp(lin.curvature, int(2 * states[-1]) - k),
    )


def by_power(number, exponent):
    """A float times this power of two."""
    return float(np.ldexp(number, exponent)) if exponent else float(number)


def lengths(rows):
    """2-norm of each row, (k,), without overflow or underflow inside."""
    if not isinstance(rows, np.ndarray):
        return rows.lengths()
    length = np.empty(rows.shape[0])
    row_norms(rows, length)
    return length


def lengths_of(rows, squares):
    """2-norm of each row, (k,), from their squares unless those may have overflowed or vanished on the way."""
    found = [math.sqrt(square) for square in squares.tolist()]
    return np.array(found) if all(LEAST < length < LARGEST for length in found) else lengths(rows)


def row_exponents(rows):
    """Exponent of the largest entry of each row, (k,)."""
    return np.frexp(np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0)))[1]
