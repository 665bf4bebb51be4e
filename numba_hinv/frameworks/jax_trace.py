"""What a function of JAX does, as a `graph.Graph`: traced in float64, without running it on numbers."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from .graph import Equation, Graph, Variable, needed

# Calls of other functions, whose equations may as well stand in their place.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
# Longer loops stay one equation.
_MOST_STEPS = 4096
_ELEMENTWISE = set(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy copy_p cos "
    "cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min "
    "mul ne neg not or pow rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
_RANDOM = ("random_", "threefry", "rng_", "philox")


@contextlib.contextmanager
def in_float64():
    """JAX computes in float64, on the CPU, for as long as this lasts and in this thread alone."""
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def trace(function, leaves, shape):
    """The graph of ``function(leaves, sample)`` for parameters ``leaves`` and a sample of this ``shape``.

    Raises
    ------
    ValueError
        It returns no single array, is random, or computes in another precision than that of its parameters.
    """
    sample = jax.ShapeDtypeStruct(shape, np.float64)
    closed = jax.make_jaxpr(function)(leaves, sample)
    # A second time, with calls and loops opened.
    closed = jax.make_jaxpr(lambda *inputs: _opened(closed.jaxpr, closed.consts, inputs))(*leaves, sample)
    jaxpr = closed.jaxpr
    variables = {}

    constants = dict(zip(jaxpr.constvars, closed.consts))

    def read(atom):
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val, atom.aval.dtype)
        if atom in constants:
            return constants[atom]
        if atom not in variables:
            dtype = atom.aval.dtype
            variables[atom] = Variable(getattr(atom.aval, "shape", ()), dtype == np.float64)
        return variables[atom]

    equations, made = [], {}
    for eqn in jaxpr.eqns:
        inputs, outputs = tuple(map(read, eqn.invars)), tuple(map(read, eqn.outvars))
        evaluate = _evaluation(jaxpr, eqn)
        equations.append(Equation(eqn.primitive.name, inputs, outputs, eqn.params, evaluate, _is_elementwise(eqn)))
        made[equations[-1]] = eqn
    *parameters, source = map(read, jaxpr.invars)
    graph = Graph(tuple(parameters), source, read(jaxpr.outvars[0]), tuple(equations))
    traced = {*parameters, source}
    for equation in needed(graph):
        if not traced.isdisjoint(given for given in equation.inputs if isinstance(given, Variable)):
            traced.update(equation.outputs)
            _check_precision(made[equation])
        _check_steady(made[equation])
    return graph


def check_output(function, leaves, shape):
    """Shape of the output for a sample of this ``shape``; ``ValueError`` where that is no single array of numbers."""
    output = jax.eval_shape(function, leaves, jax.ShapeDtypeStruct(shape, np.float64))
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise ValueError(f"expected it to return one array, got {type(output).__name__}")
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"expected it to return real numbers, got {output.dtype}")
    return output.shape


def _opened(jaxpr, consts, inputs):
    """The outputs of a jaxpr, computed by its equations one by one, those of calls and of loops included."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs)))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        given = list(map(read, eqn.invars))
        name = eqn.primitive.name
        if name in _CALLS:
            inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
            is_closed = isinstance(inner, core.ClosedJaxpr)
            found = _opened(inner.jaxpr if is_closed else inner, inner.consts if is_closed else (), given)
        elif name == "scan" and eqn.params["length"] <= _MOST_STEPS:
            found = _unrolled(eqn.params, given)
        else:
            found = _evaluation(jaxpr, eqn)(*given)
        values.update(zip(eqn.outvars, found))
    return [read(atom) for atom in jaxpr.outvars]


def _unrolled(params, given):
    """The outputs of a loop, step by step."""
    num_consts, num_carry, length = params["num_consts"], params["num_carry"], params["length"]
    consts, carry = given[:num_consts], given[num_consts : num_consts + num_carry]
    stacked = given[num_consts + num_carry :]
    steps = range(length)[::-1] if params["reverse"] else range(length)
    body, rows = params["jaxpr"], {}
    for step in steps:
        slices = [jax.lax.index_in_dim(array, step, keepdims=False) for array in stacked]
        found = _opened(body.jaxpr, body.consts, [*consts, *carry, *slices])
        carry, rows[step] = found[:num_carry], found[num_carry:]
    return [*carry, *(jnp.stack(column) for column in zip(*(rows[step] for step in range(length))))]


def _evaluation(jaxpr, eqn):
    """The function that an equation of a jaxpr evaluates its inputs by; it returns a tuple."""
    names = tuple(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, core.Literal)))
    alone = jaxpr.replace(constvars=(), invars=names, outvars=eqn.outvars, eqns=(eqn,))
    function = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))

    def evaluate(*inputs):
        given = {atom: value for atom, value in zip(eqn.invars, inputs) if not isinstance(atom, core.Literal)}
        return tuple(function(*given.values()))

    return evaluate


def _inner(eqn):
    """The jaxprs that an equation calls."""
    for option in eqn.params.values():
        for each in option if isinstance(option, (tuple, list)) else (option,):
            if isinstance(each, (core.Jaxpr, core.ClosedJaxpr)):
                yield getattr(each, "jaxpr", each)


def _is_elementwise(eqn):
    inner = list(_inner(eqn))
    if eqn.primitive.name in _ELEMENTWISE:
        return True
    is_call = eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")) or eqn.primitive.name in _CALLS
    return is_call and bool(inner) and all(_is_elementwise(each) for jaxpr in inner for each in jaxpr.eqns)


def _check_steady(eqn):
    """``ValueError`` where an equation, or one that it calls, draws random numbers."""
    if eqn.primitive.name.startswith(_RANDOM):
        raise ValueError(
            "it draws random numbers; expected dropout to be off: call eval() (nnx), say deterministic=True (linen), "
            "or take equinox.nn.inference_mode of it first"
        )
    for jaxpr in _inner(eqn):
        for each in jaxpr.eqns:
            _check_steady(each)


def _check_precision(eqn):
    """``ValueError`` where parameters or samples in float64 are rounded to less."""
    for output in eqn.outvars:
        dtype = getattr(output.aval, "dtype", None)
        if jnp.issubdtype(dtype, jnp.floating) and dtype != np.float64:
            raise ValueError(
                f"it computes in {dtype}, whatever its parameters are; expected one without a dtype of its own "
                "(dtype=None)"
            )
