"""What micro-kernels are written with: `Emitter`, and the vectors and tiles that fit the CPU that Numba compiles for.

The table of CPUs may be changed after a measurement.
"""

import platform

from llvmlite import ir
from numba.core import config
from numba.core.codegen import get_host_cpu_features

# Reassociation and contraction to FMA, but not "no NaNs" or "no infinities": those must reach the status codes.
FLAGS = ("nsz", "contract", "reassoc")
I32, I64 = ir.IntType(32), ir.IntType(64)
_IS_ARM = platform.machine().lower() in ("aarch64", "arm64")


def _enabled():
    """Names of the instruction sets that Numba compiles for."""
    features = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    return {name[1:] for name in features.split(",") if name.startswith("+")}


def _target():
    """Bytes per vector, rows and vectors per tile, and whether masked loads are single instructions."""
    enabled = _enabled()
    if {"avx512f", "avx512vl", "avx512dq"} <= enabled:
        return 64, 8, 3, True
    if "avx2" in enabled and "fma" in enabled:
        return 32, 4, 3, True
    if _IS_ARM:
        return 16, 8, 2, False
    return 16, 4, 2, False


VECTOR_BYTES, TILE_ROWS, TILE_VECTORS, MASKS_ARE_CHEAP = _target()
# Whether a b + c is one instruction.
HAS_FMA = _IS_ARM or "fma" in _enabled()


def vector_width(dtype):
    """Lanes of a vector."""
    return VECTOR_BYTES // (dtype.bitwidth // 8)


def scalar_type(dtype):
    """LLVM's type of a number."""
    return ir.DoubleType() if dtype.bitwidth == 64 else ir.FloatType()


class Emitter:
    """An IRBuilder for one function, with the few vector idioms that the micro-kernels are made of."""

    def __init__(self, builder, dtype, width):
        self.builder = builder
        self.scalar = scalar_type(dtype)
        self.letter = "f" + str(dtype.bitwidth)
        self.align = dtype.bitwidth // 8
        self.width = width
        self.lane = ir.IntType(dtype.bitwidth)

    def vector(self, width=None):
        return ir.VectorType(self.scalar, width or self.width)

    def zero(self, width=None):
        return ir.Constant(self.vector(width), None)

    def splat(self, value, width=None):
        width = width or self.width
        one = self.builder.insert_element(ir.Constant(ir.VectorType(value.type, width), ir.Undefined), value,
                                          ir.Constant(I32, 0))
        return self.shuffle(one, one, [0] * width)

    def shuffle(self, x, y, lanes):
        return self.builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def at(self, base, *offsets):
        for offset in offsets:
            offset = ir.Constant(I64, offset) if isinstance(offset, int) else offset
            base = self.builder.gep(base, [offset], inbounds=True)
        return base

    def mask(self, count, width=None):
        """Lanes below count."""
        width = width or self.width
        iota = ir.Constant(ir.VectorType(self.lane, width), list(range(width)))
        count = self.builder.trunc(count, self.lane) if self.lane.width < 64 else count
        return self.builder.icmp_unsigned("<", iota, self.splat(count, width))

    def load_scalar(self, address):
        value = self.builder.load(address)
        value.align = self.align
        return value

    def load(self, address, mask=None, width=None):
        vector = self.vector(width)
        if mask is None:
            value = self.builder.load(self.builder.bitcast(address, vector.as_pointer()))
            value.align = self.align
            return value
        name = f"llvm.masked.load.v{vector.count}{self.letter}.p0"
        kind = ir.FunctionType(vector, [self.scalar.as_pointer(), I32, mask.type, vector])
        function = self.declare(name, kind)
        return self.builder.call(function, [address, ir.Constant(I32, self.align), mask, ir.Constant(vector, None)])

    def store(self, value, address, mask=None):
        if mask is None:
            self.builder.store(value, self.builder.bitcast(address, value.type.as_pointer())).align = self.align
            return
        name = f"llvm.masked.store.v{value.type.count}{self.letter}.p0"
        kind = ir.FunctionType(ir.VoidType(), [value.type, self.scalar.as_pointer(), I32, mask.type])
        function = self.declare(name, kind)
        self.builder.call(function, [value, address, ir.Constant(I32, self.align), mask])

    def declare(self, name, kind):
        """The function of this name and type in the module, such as one of LLVM's own."""
        module = self.builder.module
        return module.globals[name] if name in module.globals else ir.Function(module, kind, name)

    def multiply_add(self, x, y, z):
        return self.builder.fadd(self.builder.fmul(x, y, flags=FLAGS), z, flags=FLAGS)

    def add(self, x, y):
        return self.builder.fadd(x, y, flags=FLAGS)

    def times(self, x, y):
        return self.builder.fmul(x, y, flags=FLAGS)

    def block(self, name):
        return self.builder.function.append_basic_block(name)

    def loop(self, start, step, bound, sums, body):
        """do-while over k = start, start + step, ... < bound, sums being its vector phis; returns the final ones."""
        builder, entry = self.builder, self.builder.block
        top, after = self.block("k"), self.block("k.after")
        builder.branch(top)
        builder.position_at_end(top)
        k = builder.phi(I64)
        k.add_incoming(start, entry)
        phis = []
        for value in sums:
            phi = builder.phi(value.type)
            phi.add_incoming(value, entry)
            phis.append(phi)
        new = body(k, phis)
        k_next = builder.add(k, ir.Constant(I64, step))
        k.add_incoming(k_next, builder.block)
        for phi, value in zip(phis, new):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", k_next, bound), top, after)
        builder.position_at_end(after)
        return new

    def write(self, alpha, beta, outputs):
        """C <- alpha sum + beta C for outputs (sum, address, mask); C is not read where beta is zero. Returns."""
        builder = self.builder
        set_, update = self.block("set"), self.block("update")
        builder.cbranch(builder.fcmp_ordered("==", beta, ir.Constant(self.scalar, 0.0)), set_, update)
        width = outputs[0][0].type.count
        for block in (set_, update):
            builder.position_at_end(block)
            factor = self.splat(alpha, width)
            kept = self.splat(beta, width)
            old = [self.load(address, mask, width) if block is update else None for _, address, mask in outputs]
            for (total, address, mask), before in zip(outputs, old):
                value = self.times(total, factor)
                self.store(value if before is None else self.multiply_add(before, kept, value), address, mask)
            builder.ret_void()
