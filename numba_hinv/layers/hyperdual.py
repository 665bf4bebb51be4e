"""Hyper-dual numbers: a type of Numba's, with which compiled arithmetic carries its first and second derivatives along.

A number is ``a + b e1 + sum_w c_w e2_w + sum_w d_w e1 e2_w`` with e1^2 = e2_v e2_w = 0 and w = 1..`LANES`: one
evaluation gives the derivatives b along one direction, c along `LANES` others, and the mixed second derivatives d, to
rounding (J. A. Fike and J. J. Alonso, AIAA 2011-886, with several second directions at once: c and d are vector
registers). Numbers lie in memory as `STRIDE` scalars a, b, c, d, so that compiled code seeds and reads them as rows of
a matrix, while a function sees the same memory as a one-dimensional array of numbers.

Operators and comparisons are here, functions of a number in `elementary`.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model, type_callable
from numba.np.arrayobj import populate_array

# Second directions per evaluation. More waste lanes on small layers.
LANES = 4
STRIDE = 2 + 2 * LANES


class HyperDual(types.Type):
    """Numba type of the numbers; ``scalar`` is float64 or float32."""

    def __init__(self, scalar):
        self.scalar = scalar
        super().__init__(f"HyperDual({scalar})")

    def unify(self, typingctx, other):
        return self if isinstance(other, (types.Integer, types.Float)) else None

    def can_convert_from(self, typingctx, other):
        # An accumulator that starts at 0.0 becomes a number.
        return self.unify(typingctx, other) and typingctx.can_convert(other, self.scalar)


@register_model(HyperDual)
class _Model(models.DataModel):
    """The struct {a, b, <c>, <d>} in registers, `STRIDE` scalars without further alignment in memory."""

    def __init__(self, manager, number):
        super().__init__(manager, number)
        self.scalar = manager.lookup(number.scalar).get_value_type()
        self.vector = ir.VectorType(self.scalar, LANES)

    def get_value_type(self):
        return ir.LiteralStructType([self.scalar, self.scalar, self.vector, self.vector])

    def get_data_type(self):
        return ir.ArrayType(self.scalar, STRIDE)

    get_return_type = get_data_type

    def as_data(self, builder, value):
        data = ir.Constant(self.get_data_type(), ir.Undefined)
        parts = [builder.extract_value(value, k) for k in range(4)]
        scalars = parts[:2]
        for vector in parts[2:]:
            scalars += [builder.extract_element(vector, _lane(w)) for w in range(LANES)]
        for k, scalar in enumerate(scalars):
            data = builder.insert_value(data, scalar, k)
        return data

    def from_data(self, builder, data):
        scalars = [builder.extract_value(data, k) for k in range(STRIDE)]
        vectors = []
        for first in (2, 2 + LANES):
            vector = ir.Constant(self.vector, ir.Undefined)
            for w in range(LANES):
                vector = builder.insert_element(vector, scalars[first + w], _lane(w))
            vectors.append(vector)
        return _pack(builder, [*scalars[:2], *vectors])

    as_return, from_return = as_data, from_data

    def as_argument(self, builder, value):
        return tuple(builder.extract_value(value, k) for k in range(4))

    def get_argument_type(self):
        return self.scalar, self.scalar, self.vector, self.vector

    def from_argument(self, builder, parts):
        return _pack(builder, parts)


def _lane(w):
    return ir.Constant(ir.IntType(32), w)


def _pack(builder, parts):
    value = ir.Constant(ir.LiteralStructType([part.type for part in parts]), ir.Undefined)
    for k, part in enumerate(parts):
        value = builder.insert_value(value, part, k)
    return value


class _Arithmetic:
    """The operations on the four parts as LLVM instructions; a part of None is a zero that is known at compile time."""

    def __init__(self, context, builder, number):
        self.context, self.builder, self.number = context, builder, number
        self.model = context.data_model_manager[number]

    def load(self, value, kind):
        """The parts [a, b, c, d] of a number, or of a plain one, whose derivatives are zero."""
        if isinstance(kind, HyperDual):
            return [self.builder.extract_value(value, k) for k in range(4)]
        return [self.context.cast(self.builder, value, kind, self.number.scalar), None, None, None]

    def pack(self, parts):
        zero = [ir.Constant(self.model.scalar, 0.0)] * 2 + [ir.Constant(self.model.vector, [0.0] * LANES)] * 2
        return _pack(self.builder, [zero[k] if part is None else part for k, part in enumerate(parts)])

    def negate(self, x):
        return None if x is None else self.builder.fneg(x)

    def add(self, x, y):
        return y if x is None else x if y is None else self.builder.fadd(*self._alike(x, y), flags=("contract",))

    def subtract(self, x, y):
        if x is None or y is None:
            return self.negate(y) if x is None else x
        return self.builder.fsub(*self._alike(x, y), flags=("contract",))

    def multiply(self, x, y):
        return None if x is None or y is None else self.builder.fmul(*self._alike(x, y), flags=("contract",))

    def _alike(self, x, y):
        """Two scalars, or two vectors where one of the two is one."""
        if x.type == y.type:
            return x, y
        return self._spread(x), self._spread(y)

    def _spread(self, x):
        if x.type == self.model.vector:
            return x
        first = self.builder.insert_element(ir.Constant(self.model.vector, ir.Undefined), x, _lane(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(first, first, mask)


def _operation(name):
    """Decorator: ``rule(at, x, y) -> parts`` becomes the operator of that name, also of a number and a plain one."""

    def decorate(rule):
        def lower(context, builder, signature, arguments):
            at = _Arithmetic(context, builder, signature.return_type)
            return at.pack(rule(at, *(at.load(value, kind) for value, kind in zip(arguments, signature.args))))

        for function in (getattr(operator, name), getattr(operator, f"i{name}")):
            type_callable(function)(lambda context: lambda x, y: joint(x, y))
            for kinds in _PAIRS:
                lower_builtin(function, *kinds)(lower)
        return rule

    return decorate


_PAIRS = [(HyperDual, HyperDual)]
for _plain in (types.Float, types.Integer):
    _PAIRS += [(HyperDual, _plain), (_plain, HyperDual)]


def joint(x, y):
    """The type of the number in a pair of one and another or a plain number; None for any other pair."""
    numbers = [kind for kind in (x, y) if isinstance(kind, HyperDual)]
    if not numbers or not all(isinstance(kind, (HyperDual, types.Integer, types.Float)) for kind in (x, y)):
        return None
    return numbers[0] if numbers[0] == numbers[-1] else None


@_operation("add")
def _add(at, x, y):
    return [at.add(u, v) for u, v in zip(x, y)]


@_operation("sub")
def _subtract(at, x, y):
    return [at.subtract(u, v) for u, v in zip(x, y)]


@_operation("mul")
def _multiply(at, x, y):
    mixed = at.add(at.multiply(x[1], y[2]), at.multiply(y[1], x[2]))
    straight = at.add(at.multiply(x[0], y[3]), at.multiply(y[0], x[3]))
    first = [at.add(at.multiply(x[0], y[k]), at.multiply(y[0], x[k])) for k in (1, 2)]
    return [at.multiply(x[0], y[0]), *first, at.add(straight, mixed)]


@_operation("truediv")
def _divide(at, x, y):
    one = ir.Constant(at.model.scalar, 1.0)
    value, reciprocal = at.builder.fdiv(x[0], y[0]), at.builder.fdiv(one, y[0])
    first = [at.multiply(at.subtract(x[k], at.multiply(value, y[k])), reciprocal) for k in (1, 2)]
    mixed = at.add(at.multiply(first[0], y[2]), at.multiply(y[1], first[1]))
    second = at.subtract(at.subtract(x[3], at.multiply(value, y[3])), mixed)
    return [value, *first, at.multiply(second, reciprocal)]


for _function in (operator.neg, operator.pos):
    type_callable(_function)(lambda context: lambda x: x if isinstance(x, HyperDual) else None)


@lower_builtin(operator.neg, HyperDual)
def _negate(context, builder, signature, arguments):
    at = _Arithmetic(context, builder, signature.return_type)
    return at.pack([at.negate(x) for x in at.load(arguments[0], signature.args[0])])


@lower_builtin(operator.pos, HyperDual)
def _keep(context, builder, signature, arguments):
    return arguments[0]


def _comparison(name, symbol):
    function = getattr(operator, name)
    type_callable(function)(lambda context: lambda x, y: types.boolean if joint(x, y) else None)

    def lower(context, builder, signature, arguments):
        at = _Arithmetic(context, builder, joint(*signature.args))
        (x, *_), (y, *_) = (at.load(value, kind) for value, kind in zip(arguments, signature.args))
        compare = builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered
        return compare(symbol, x, y)

    for kinds in _PAIRS:
        lower_builtin(function, *kinds)(lower)


for _name, _symbol in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
    _comparison(_name, _symbol)


@lower_cast(types.Integer, HyperDual)
@lower_cast(types.Float, HyperDual)
def _promote(context, builder, from_type, to_type, value):
    at = _Arithmetic(context, builder, to_type)
    return at.pack(at.load(value, from_type))


@intrinsic
def value_of(typingctx, number):
    """a."""

    def codegen(context, builder, signature, arguments):
        return builder.extract_value(arguments[0], 0)

    return number.scalar(number), codegen


@intrinsic
def compose(typingctx, x, f, slope, bend):
    """f(x), given f and its first and second derivative at the value of x."""
    scalar = x.scalar

    def codegen(context, builder, signature, arguments):
        at = _Arithmetic(context, builder, x)
        (_, b, c, d), (f, slope, bend) = at.load(arguments[0], x), arguments[1:]
        mixed = at.multiply(at.multiply(bend, b), c)
        return at.pack([f, at.multiply(slope, b), at.multiply(slope, c), at.add(at.multiply(slope, d), mixed)])

    return x(x, scalar, scalar, scalar), codegen


@intrinsic
def compose_two(typingctx, x, y, f, fx, fy, fxx, fxy, fyy):
    """f(x, y), given f and its first and second derivatives at the values of x and y."""
    scalar = x.scalar

    def codegen(context, builder, signature, arguments):
        at = _Arithmetic(context, builder, x)
        (_, bx, cx, dx), (_, by, cy, dy) = (at.load(number, x) for number in arguments[:2])
        f, fx, fy, fxx, fxy, fyy = arguments[2:]
        b, c, straight = (at.add(at.multiply(fx, u), at.multiply(fy, v)) for u, v in ((bx, by), (cx, cy), (dx, dy)))
        # The gradient's own derivative along e1, times the derivative along e2.
        along_x = at.add(at.multiply(fxx, bx), at.multiply(fxy, by))
        along_y = at.add(at.multiply(fxy, bx), at.multiply(fyy, by))
        mixed = at.add(at.multiply(along_x, cx), at.multiply(along_y, cy))
        return at.pack([f, b, c, at.add(straight, mixed)])

    return x(x, x, *[scalar] * 6), codegen


@intrinsic
def as_number(typingctx, x, like):
    """A plain number as one of the type of ``like``."""

    def codegen(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], x, like)

    return like(x, like), codegen


@intrinsic
def choose(typingctx, condition, x, y):
    """x where the condition is true, else y; one of them may be a plain number."""

    def codegen(context, builder, signature, arguments):
        at = _Arithmetic(context, builder, signature.return_type)
        pairs = (at.load(value, kind) for value, kind in zip(arguments[1:], signature.args[1:]))
        x, y = (at.pack(parts) for parts in pairs)
        return builder.select(arguments[0], x, y)

    return joint(x, y)(types.boolean, x, y), codegen


@intrinsic
def numbers(typingctx, block):
    """The rows of a contiguous matrix of `STRIDE` columns as an array of numbers, in the same memory."""
    number = HyperDual(block.dtype)
    view_type = types.Array(number, 1, "C")

    def codegen(context, builder, signature, arguments):
        given = context.make_array(block)(context, builder, arguments[0])
        view = context.make_array(view_type)(context, builder)
        start = builder.bitcast(given.data, view.data.type)
        stride = context.get_constant(types.intp, STRIDE * block.dtype.bitwidth // 8)
        count = cgutils.unpack_tuple(builder, given.shape)[0]
        populate_array(view, start, [count], [stride], stride, None)
        return view._getvalue()

    return view_type(block), codegen
