"""Wide layers, whose work is spread over the whole device: which are, and the elimination of such a layer.

One block eliminates a narrow layer (`eliminate`). A wide one is driven from the host, formula by formula: the stages of
`front` over a grid, its large products and the factorization in tiles (`product`, `panels`), or by cuBLAS. Its front
lies in global memory, where neighbours of either kind find it.
"""

import functools
from typing import NamedTuple

import numpy as np

from ...kernels.plumbing.status import OK
from ...kernels.steps.layer_table import BLOCKS
from ..dense import library
from ..dense.product import gemm_nn, gemm_tn, tiles
from ..dense.rank_update import mirror, rank_update_kernel
from ..dense.signed_cholesky import negate, pack
from ..dense.triangular import scale_rows
from ..plumbing.launch import launch, spread
from ..plumbing.target import BLOCK, kernel, start_grid_team
from ..plumbing.vectors import to_host
from ..steps import front
from . import panels
from .eliminate import keep_rows

# Layers are wide to the elimination where a front has more rows than this: M and K of a square one no longer fit into
# shared memory.
FRONT = 96
# To linearising and products, where a vector meets more numbers than this in a layer; to solves, where it meets more
# than so many. What one block would do then is more than launching several kernels.
PRODUCT, SOLVE = 2**16, 2**18


def wide_fronts(table, num_samples):
    """Which layers are wide to the elimination, (L,) bool: by pivot, front that comes in, or front that goes out."""
    return np.maximum.reduce([table["m"], table["N"], num_samples * table["n_out"]]) > FRONT


def wide_products(table, num_samples):
    """Which layers are wide to linearising and products, (L,) bool."""
    n_in, n_out, p = (table[name] for name in ("n_in", "n_out", "p"))
    dense, blocks = n_in * n_out, n_out * (p + n_in) + p * n_in
    return num_samples * np.where(table["kind"] == BLOCKS, blocks, dense) > PRODUCT


def wide_solves(table):
    """Which layers are wide to solves, (L,) bool."""
    return table["m"] * (table["m"] // 2 + table["N"]) > SOLVE


def runs(is_wide, start, stop):
    """``(first, last, whether they are wide)`` of the layers start..stop-1, from the last ones to the first.

    A wide layer is a run of its own.
    """
    last = stop
    for l in reversed((start + np.flatnonzero(is_wide[start:stop])).tolist()):
        if l + 1 < last:
            yield l + 1, last, False
        yield l, l + 1, True
        last = l
    if start < last:
        yield start, last, False


class Places(NamedTuple):
    """Where the parts of a wide front start in its scratch, in scalars."""

    M: int
    K: int
    T: int  # what `front` calls so
    W: int  # rows of D U of a panel
    s: int  # the diagonal of the rest
    saved: int  # rows of M of a panel
    norms: int  # of the rows of Y


def places(m, coupling, mixed):
    """``(Places, scalars in all)`` for pivots of up to m rows."""
    sizes = Places(m * m, coupling, mixed, (panels.PANEL + 1) * m, m, panels.PANEL * m, m)
    ends = np.cumsum(sizes)
    return Places(*(int(end - size) for end, size in zip(ends, sizes))), int(ends[-1])


@functools.cache
def _stage_kernel(stage):
    """A stage of `front` over a grid."""

    @kernel
    def run(table, l, params, lin, space, damping, fronts, P_at, X_at, work, M_at, K_at, T_at):
        layer = table[l]
        stage(
            start_grid_team(), layer, l == table.size - 1, lin.output.shape[0], params, lin, space, damping,
            fronts, P_at, fronts, X_at, work, M_at, work, K_at, work, T_at,
        )

    return run


@kernel
def _negate(m, M, M_at, notes):
    if notes[panels.FLIP] != 0:
        negate(start_grid_team(), m, M, M_at)


@kernel
def _pack(m, U, at, L, L_at):
    pack(start_grid_team(), m, U, at, L, L_at)


@kernel
def _scale_rows(m, n, pivots, pivots_at, scales, scales_at, K, K_at):
    scale_rows(start_grid_team(), m, n, pivots, pivots_at, scales, scales_at, K, K_at)


@kernel
def _keep_rows(m, n, Y, at, pivots, order, kept, kept_at, notes):
    if notes[panels.STATUS] == OK:
        keep_rows(start_grid_team(), m, n, Y, at, pivots, order, kept, kept_at)


def _form_front(table, l, layer, B, stream, stage, params, lin, fronts, P_at, X_at, work, at):
    """M, K and P' of a layer. ``stage(function, size)`` runs a stage of `front` over ``size`` numbers."""
    is_last = l == table.size - 1
    n, n_in, p, m, N, w = (int(layer[name]) for name in ("n_out", "n_in", "p", "m", "N", "parameters"))
    a_all = B * n
    if layer["kind"] == BLOCKS:
        Dx, Dz, G_at = int(layer["Dx"]), int(layer["Dz"]), at.T + a_all * p
        if is_last:
            stage(front.write_curvature, a_all**2)
        gemm_nn(stream, 1, a_all, p, a_all, 1, fronts, P_at, 0, a_all, lin.Dx, Dx, 0, p, 0, work, at.T, 0, p)
        stage(front.write_second, max(p * p, p * N, N * N))
        gemm_tn(stream, 1, p, p, a_all, 1, lin.Dx, Dx, 0, p, work, at.T, 0, p, 1, work, at.M, 0, p)
        if N > 0:
            each = n * n_in
            gemm_nn(
                stream, B, a_all, n_in, n, 1, fronts, P_at, n, a_all, lin.Dz, Dz, each, n_in, 0, work, G_at, n_in, N
            )
            gemm_tn(stream, 1, p, N, a_all, 1, lin.Dx, Dx, 0, p, work, G_at, 0, N, 1, work, at.K, 0, N)
            gemm_tn(
                stream, B, n_in, N, n, 1, lin.Dz, Dz, each, n_in, work, G_at, n * N, N, 1, fronts, X_at, n_in * N, N
            )
        return
    if N > 0 and is_last:
        stage(front.write_E, a_all * n_in)
        stage(front.write_K, m * N)
        stage(front.write_next, N * N)
    elif N > 0:
        stage(front.write_J, a_all * n_in)
        gemm_nn(
            stream, B, a_all, n_in, n, 1, fronts, P_at, n, a_all, work, at.K, n * n_in, n_in, 0, work, at.T, n_in, N
        )
        stage(front.turn_to_E, a_all * N)
        stage(front.write_K, m * N)
        # P' <- A^T E (+ P J)
        gemm_tn(
            stream, B, n_in, N, n, 1, params, w, 0, n_in, work, at.T, n * N, N, int(layer["skip"]),
            fronts, X_at, n_in * N, N,
        )
    if N > 0 and layer["r"] < layer["d"]:
        stage(front.subtract_outside, N * N)
    if is_last:
        stage(front.write_last_M, m * m)
    else:
        stage(front.write_RV, m * a_all)
        stage(front.write_M, m * m)


def _signed_cholesky(stream, m, n, pivoting, factors, pivots_at, scales_at, work, at, notes):
    """M <- U; interchanges are made in K as well."""
    dtype, pivots = work.dtype, factors.pivots
    scalar, least = dtype.type, 4.0 * float(np.finfo(dtype).tiny)
    launch(panels.start_cholesky, 1, stream, m, work, at.M, pivots, pivots_at, notes)
    launch(_negate, spread(m * m), stream, m, work, at.M, notes)
    for first in range(0, m, panels.PANEL):
        stop = min(first + panels.PANEL, m)
        launch(
            panels.try_kernel(dtype), max(1, -(-(m - stop) // BLOCK)), stream, m, stop, pivoting, least,
            work, at.M, work, at.W, at.saved, notes,
        )
        launch(
            panels.factor_panel, 1, stream, m, stop, pivoting, work, at.M, work, at.W, at.s, at.saved, work, at.K, n,
            pivots, pivots_at, factors.scales, scales_at, notes,
        )
        launch(
            panels.update_kernel(dtype), tiles(m - stop, m - stop), stream, m, scalar(-1), scalar(1),
            work, at.M, work, at.W, notes,
        )


def _forward_rows(stream, m, n, factors, pivots_at, scales_at, work, at):
    """K <- F^{-1} K, its rows in the order of elimination."""
    cublas = library.cublas(work.dtype)
    if cublas is not None:
        cublas.solve_upper_transposed(stream, m, n, work, at.M, work, at.K)
    else:
        for first in range(0, m, panels.PANEL):
            stop = min(first + panels.PANEL, m)
            launch(panels.solve_panel, spread(n), stream, n, first, stop, m, work, at.M, work, at.K)
            gemm_tn(
                stream, 1, m - stop, n, stop - first, -1, work, at.M + first * m + stop, 0, m,
                work, at.K + first * n, 0, n, 1, work, at.K + stop * n, 0, n,
            )
    launch(
        _scale_rows, spread(m * n), stream, m, n, factors.pivots, pivots_at, factors.scales, scales_at, work, at.K
    )


def _rank_update(stream, l, m, N, factors, Y_at, fronts, X_at, notes):
    """P' <- P' - Y^T diag(sigma) Y."""
    cublas = library.cublas(fronts.dtype)
    if cublas is not None:
        if to_host(notes, stream)[panels.STATUS] != OK:
            # There is no number of positive pivots.
            return
        positive = int(to_host(factors.num_positive[l : l + 1], stream)[0])
        cublas.rank_update(stream, positive, N, -1, factors.Y, Y_at, fronts, X_at)
        cublas.rank_update(stream, m - positive, N, 1, factors.Y, Y_at + positive * N, fronts, X_at)
    else:
        scalar = fronts.dtype.type
        launch(
            rank_update_kernel(fronts.dtype), tiles(N, N), stream, m, N, scalar(-1), scalar(1), factors.Y, Y_at,
            factors.num_positive, l, fronts, X_at,
        )
    launch(mirror, spread(N * N), stream, N, fronts, X_at)


def eliminate(stream, table, records, l, params, lin, space, damping, pivoting, factors, fronts, work, at, notes,
              results):
    """Eliminate layer l. ``table`` is on the host, ``records`` the same on the device.

    fronts : P comes in its half (l + 1) % 2 and P' goes to half l % 2. work : scratch, with parts ``at``.
    notes : `panels.NOTES` numbers of float64. results (1, 2) <- the status and l.
    """
    layer, B, size = table[l], lin.output.shape[0], fronts.size // 2
    m, N = int(layer["m"]), int(layer["N"])
    pivots_at, scales_at, Y_at = int(layer["pivots"]), int(layer["scales"]), int(layer["Y"])
    P_at, X_at = (l + 1) % 2 * size, l % 2 * size

    def stage(function, numbers):
        launch(
            _stage_kernel(function), spread(numbers), stream, records, l, params, lin, space, damping,
            fronts, P_at, X_at, work, at.M, at.K, at.T,
        )

    _form_front(table, l, layer, B, stream, stage, params, lin, fronts, P_at, X_at, work, at)
    _signed_cholesky(stream, m, N, pivoting, factors, pivots_at, scales_at, work, at, notes)
    launch(_pack, spread(m * m), stream, m, work, at.M, factors.L, int(layer["L"]))
    if N > 0:
        _forward_rows(stream, m, N, factors, pivots_at, scales_at, work, at)
        launch(panels.square_rows, m, stream, N, work, at.K, work, at.norms)
    launch(
        panels.finish_layer, 1, stream, l, m, N, pivoting, work, at.K, at.norms, factors.pivots, pivots_at,
        factors.scales, scales_at, factors, notes, results,
    )
    if N > 0:
        launch(
            _keep_rows, spread(m * N), stream, m, N, work, at.K, factors.pivots, pivots_at + m, factors.Y, Y_at, notes
        )
        _rank_update(stream, l, m, N, factors, Y_at, fronts, X_at, notes)
