"""Every CUDA kernel compiled for sm_80 and sm_90, with no GPU present, and what it takes of registers and memory.

numba-cuda turns a kernel into PTX; nvJitLink, which it depends on, assembles the PTX and reports the resources.
"""

import importlib.util
import os
import re

import numpy as np
import pytest

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed", allow_module_level=True)
if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
    pytest.skip("the simulator compiles nothing", allow_module_level=True)

import numba.cuda
import numba.cuda.dispatcher
from cuda.core import Linker, LinkerOptions, ObjectCode
from numba import boolean, float32, float64, from_dtype, int32, int64, types

import numba_hinv as nh
from numba_hinv.cuda.dense import product, rank_update
from numba_hinv.cuda.elimination import RESERVED_SHARED
from numba_hinv.cuda.plumbing import arrays, vectors
from numba_hinv.cuda.plumbing.target import BLOCK, PLAIN_SHARED
from numba_hinv.cuda.steps import front, row_space
from numba_hinv.cuda.sweeps import eliminate, linearise, multiply, panels, segments, substitute, wide, wide_substitute
from numba_hinv.kernels.steps.layer_table import PLAIN_LAYER
from numba_hinv.kernels.steps.row_space import RowSpace
from numba_hinv.kernels.steps.segment_table import SEGMENT
from numba_hinv.kernels.sweeps.eliminate import Factors
from numba_hinv.kernels.sweeps.linearise import Linearisation
from numba_hinv.layers.activations import activation_function
from numba_hinv.layers.losses import get_loss
from numba_hinv.layers.registry import is_own

# Of a multiprocessor, with both compute capabilities (CUDA C programming guide, "Technical specifications").
REGISTERS, REGISTERS_PER_THREAD = 65536, 255
# What a block may ask for, in bytes.
SHARED = {(8, 0): 163 * 1024, (9, 0): 227 * 1024}


def array(scalar, ndim=1):
    return types.Array(scalar, ndim, "C")


def own(names, function_of):
    """Those that this package registers: other tests register functions that are for a CPU."""
    return [name for name in names if is_own(function_of(name))]


def named(cls, *fields):
    return types.NamedTuple(list(fields), cls)


def kernels():
    """(name, kernel, argument types) of every launch of `numba_hinv.cuda`."""
    vector, matrix = array(float64), array(float64, 2)
    sweep = array(from_dtype(PLAIN_LAYER)), int64, int64
    lin = {
        scalar: named(Linearisation, *[array(scalar)] * 9, array(scalar, 2), array(scalar, 3))
        for scalar in (float64, float32)
    }
    net = *sweep, vector, lin[float64]
    yield "forward", linearise.forward_kernel(own(nh.activation_names(), activation_function)), net
    for loss in own(nh.loss_names(), lambda name: get_loss(name)["function"]):
        arguments = matrix, float64, vector, matrix, matrix, matrix, array(float64, 3), vector
        yield loss, linearise.terminal_kernel(loss), arguments
    yield "backward", linearise.backward, (*net, vector, matrix)
    yield "span", row_space.span, (sweep[0], lin[float64], named(RowSpace, *[vector] * 3), matrix)
    yield "tangents", multiply.tangents, (*net, matrix, matrix, matrix)
    yield "adjoints", multiply.adjoints, (*net, matrix, matrix, matrix, matrix, array(float64, 3))
    yield from wide_sweeps(sweep[0], vector, lin[float64])
    for scalar in (float64, float32):
        runs = array(from_dtype(SEGMENT))
        blocks = sweep[0], runs, array(scalar), lin[scalar], named(RowSpace, *[array(scalar)] * 3)

        def factors(n, scalar=scalar):
            real, count, double = array(scalar, n), array(int64, n), array(float64, n)
            return named(Factors, real, array(int32, n), real, real, count, count, double, double)

        places = types.NamedUniTuple(int64, len(eliminate.Places._fields), eliminate.Places)
        work = array(scalar, 2)
        for level in range(eliminate.LEVELS):
            yield (
                f"eliminate, level {level}, {scalar}",
                eliminate.eliminate_kernel(np.dtype(scalar.name), level),
                (*blocks, array(scalar), matrix, factors(2), work, places, work, work, work, array(int64, 2)),
            )
        alpha = array(scalar), scalar
        yield f"start_segments, {scalar}", segments.start_segments, (runs, *alpha, places, work, work)
        yield (
            f"form_seams, {scalar}", segments.form_seams,
            (sweep[0], runs, sweep[0], *alpha, places, work, work, lin[scalar], work),
        )
        yield from wide_kernels(scalar, blocks, factors(1))
        scratch = named(substitute.Workspace, array(scalar, 3), work, array(scalar, 3), work)
        yield from wide_substitution(scalar, blocks, factors(1))
        for kernel in (substitute.substitute_back, substitute.substitute_forth):
            yield f"{kernel.__name__}, {scalar}", kernel, (
                *blocks, factors(1), array(scalar), array(scalar), work, work, work, scratch
            )
        yield f"gather, {scalar}", vectors._gather, (matrix, array(int64), work)
        yield f"ldexp, {scalar}", vectors._ldexp, (matrix, array(int32), work)
    for scalar in (float64, float32, int64):
        for layout in "CA":
            given = types.Array(scalar, 1, layout), types.Array(scalar, 2, layout)
            yield f"copy, {given[0]}", arrays._copy, (given[0], vector)
            yield f"copy_matrix, {given[1]}", arrays._copy_matrix, (given[1], int64, boolean, matrix)
    yield "write_columns", arrays._write_columns, (matrix, int64, array(float32, 2))
    yield "scatter", vectors._scatter, (matrix, array(int64), matrix)
    yield "fill", vectors._fill, (float64, matrix)
    yield "combine", vectors._combine, (float64, matrix, float64, matrix, matrix)
    yield "times", vectors._times, (matrix, matrix, matrix)
    yield "scale", vectors._scale, (matrix, vector, boolean, matrix)
    yield "combinations", vectors._combinations, (matrix, matrix, matrix)
    yield "partial_products", vectors._partial_products, (matrix, matrix, array(int32), matrix)
    yield "partial_largest", vectors._partial_largest, (float64, matrix, matrix)


def wide_kernels(scalar, blocks, factors):
    """Those of wide layers, for a dtype; those whose names begin with `tiled` multiply tiles in shared memory."""
    dtype, real, integers = np.dtype(scalar.name), array(scalar), array(int32)
    table, _, params, lin, space = blocks
    at, notes, count = (real, int64), array(float64), array(int64)
    for stage in STAGES:
        run = wide._stage_kernel(getattr(front, stage))
        yield f"{stage}, {scalar}", run, (table, int64, params, lin, space, scalar, *at, int64, *at, int64, int64)
    matrix = *at, int64, int64
    gemm = int64, int64, int64, scalar, *matrix, *matrix, scalar, *matrix
    for transposed in (False, True):
        yield f"tiled product, {transposed}, {scalar}", product.gemm_kernel(dtype, transposed), gemm
    pivots, scales = (integers, int64), at
    yield f"start_cholesky, {scalar}", panels.start_cholesky, (int64, *at, *pivots, notes)
    tried = int64, int64, notes, float64, *at, *at, int64, notes
    yield f"try_panel, {scalar}", panels.try_kernel(dtype), tried
    panel = int64, int64, notes, *at, *at, int64, int64, *at, int64, *pivots, *scales, notes
    yield f"factor_panel, {scalar}", panels.factor_panel, panel
    update = int64, scalar, scalar, *at, *at, notes
    yield f"tiled update_rest, {scalar}", panels.update_kernel(dtype), update
    yield f"solve_panel, {scalar}", panels.solve_panel, (*[int64] * 4, *at, *at)
    yield f"square_rows, {scalar}", panels.square_rows, (int64, *at, *at)
    finish = int64, int64, int64, notes, *at, int64, *pivots, *scales, factors, notes, array(int64, 2)
    yield f"finish_layer, {scalar}", panels.finish_layer, finish
    update = int64, int64, scalar, scalar, *at, count, int64, *at
    yield f"tiled rank update, {scalar}", rank_update.rank_update_kernel(dtype), update
    yield f"mirror, {scalar}", rank_update.mirror, (int64, *at)
    yield f"negate, {scalar}", wide._negate, (int64, *at, notes)
    yield f"pack, {scalar}", wide._pack, (int64, *at, *at)
    yield f"scale_rows, {scalar}", wide._scale_rows, (int64, int64, *pivots, *scales, *at)
    yield f"keep_rows, {scalar}", wide._keep_rows, (int64, int64, *at, *pivots, *at, notes)


def wide_sweeps(table, params, lin):
    """Those of linearising and of products."""
    matrix, cube, layer = array(float64, 2), array(float64, 3), (table, int64)
    activations = own(nh.activation_names(), activation_function)
    yield "wide_forward", linearise.wide_forward_kernel(activations), (*layer, params, lin)
    yield "wide_slopes", linearise.wide_slopes, (*layer, lin, matrix)
    yield "wide_gradient", linearise.wide_gradient, (*layer, lin, params)
    yield "wide_inputs", linearise.wide_inputs, (*layer, params, lin, matrix)
    yield "wide_tangents", multiply.wide_tangents, (*layer, params, lin, matrix, matrix, matrix)
    yield "wide_blocks_tangents", multiply.wide_blocks_tangents, (*layer, lin, matrix, matrix)
    yield "wide_start", multiply.wide_start, (table, lin, matrix, cube)
    yield "wide_nu", multiply.wide_nu, (*layer, lin, matrix, cube)
    yield "wide_product", multiply.wide_product, (*layer, lin, matrix, matrix, matrix)
    yield "wide_adjoints", multiply.wide_adjoints, (*layer, params, lin, matrix, matrix, cube)
    yield "wide_blocks_adjoints", multiply.wide_blocks_adjoints, (*layer, lin, matrix, matrix, matrix, cube)


def wide_substitution(scalar, blocks, factors):
    """Those of solves."""
    table, _, params, lin, space = blocks
    vector, matrix, cube, layer = array(scalar), array(scalar, 2), array(scalar, 3), (table, int64)
    signatures = {
        "_project": (space, matrix, cube),
        "_start_y": (lin, space, cube, cube),
        "_lam_gQ": (lin, cube, matrix),
        "_start_v": (params, lin, space, vector, matrix, cube, matrix),
        "_start_blocks": (lin, matrix, cube, cube),
        "_forward_vector": (factors, cube, matrix),
        "_take_Y": (factors, cube, cube),
        "_start_w": (factors, matrix, cube, cube),
        "_backward_vector": (factors, cube),
        "_next_state": (params, lin, space, cube, cube),
        "_write_h": (lin, matrix, matrix, cube),
        "_mix": (vector, cube),
        "_place": (space, vector, cube, matrix),
        "_place_blocks": (cube, matrix),
        "_next_blocks": (lin, matrix, cube),
    }
    for name, signature in signatures.items():
        yield f"{name}, {scalar}", getattr(wide_substitute, name), (*layer, *signature)


# Of `front`, that are launched over a grid.
STAGES = (
    "write_E", "write_J", "turn_to_E", "write_K", "write_next", "subtract_outside", "write_last_M", "write_RV",
    "write_M", "write_curvature", "write_second",
)


# Minutes for each, in which the newer one shows whatever the older one does, but for its smaller shared memory.
@pytest.fixture(params=[pytest.param((8, 0), marks=pytest.mark.slow), (9, 0)], ids=["sm_80", "sm_90"])
def target(request, monkeypatch):
    """A compute capability that functions which kernels call are compiled for, where no device says one."""
    device = type("Device", (), {"compute_capability": request.param})
    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: device)
    return request.param


# Kernels in single precision that use double by design: sums over threads, decisions on pivots, copies.
DOUBLE = (
    "eliminate", "start_cholesky", "try_panel", "factor_panel", "square_rows", "finish_layer", "_project", "_lam_gQ",
    "_start_v", "_take_Y", "_start_w", "_backward_vector", "_next_state", "substitute_forth", "gather", "ldexp", "copy",
    "write_columns",
)


def assembler(kernel, arguments, target):
    return numba.cuda.compile_ptx(kernel.py_func, types.void(*arguments), cc=target)[0]


def resources(ptx, target):
    """(registers of a thread, bytes of its stack, of its spills, bytes of static shared memory) as assembled."""
    options = LinkerOptions(arch="sm_{}{}".format(*target), verbose=True, ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    linker.link("cubin")
    log = linker.get_info_log()
    registers, stack, shared = re.search(r"used (\d+) registers.* (\d+) stack, (\d+) bytes smem", log).groups()
    spills = re.search(r"(\d+) bytes spill stores", log).group(1)
    return int(registers), int(stack), int(spills), int(shared)


def test_every_kernel(target):
    """A block of every kernel fits on a multiprocessor, and none of its registers is spilt; indices do not overflow."""
    for name, kernel, arguments in kernels():
        ptx = assembler(kernel, arguments, target)
        if "float32" in name and not name.startswith(DOUBLE):
            # A constant of Python's is a float64, and what it meets becomes one.
            assert not re.search(r"cvt\S*\.f64\.f32|cvt\S*\.f32\.f64", ptx), f"{name}: double precision"
        # Places have 64 bits. What is multiplied in 32 is a quotient, for the rest of a division of small numbers.
        quotients = re.findall(r"div\.u32\s+(%r\d+)", ptx)
        assert set(re.findall(r"mul\.lo\.s32\s+%r\d+, (%r\d+)", ptx)) <= set(quotients), f"{name}: a product of 32 bits"
        assert not re.search(r"mad\.lo\.s32\s+%r\d+, %r\d+, %r", ptx), f"{name}: a product of 32 bits"
        registers, stack, spills, shared = resources(ptx, target)
        assert registers <= REGISTERS_PER_THREAD and registers * BLOCK <= REGISTERS, name
        assert spills == 0, name
        assert stack <= 1024, name
        assert shared <= (PLAIN_SHARED if name.startswith(("tiled", "try_panel")) else RESERVED_SHARED), name
        if name.startswith("tiled"):
            assert stack == 0, f"{name}: sums are not in registers"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("target", sorted(SHARED))
def test_fronts_in_shared_memory(target, dtype):
    """M and K of a front of 96 rows and columns fit, and all of a front of 32, with as many multipliers or none."""
    sizes = type("Sizes", (), {})
    room = SHARED[target] - RESERVED_SHARED
    for n, level in ((96, 1), (32, 2)):
        sizes.m, sizes.front, sizes.mixed_whole = n, n * n, n * n
        for carried in (0, n * n):
            scalars = eliminate.places(sizes, n * n, level, carried, carried)[1]
            assert scalars * np.dtype(dtype).itemsize <= room
    assert PLAIN_SHARED <= SHARED[target]
