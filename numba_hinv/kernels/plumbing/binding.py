"""Kernels that are compiled once and called through a pointer, instead of being copied into all of their callers.

Numba links every callee into every caller and optimises it there again, which for vector kernels would take minutes
in all. ``compiled_once(name, arguments)`` makes of a plain Python function an intrinsic with the same arguments that
loads a function pointer from a named slot and calls it; the name is all that cached code knows. The slot first holds
a resolver, which compiles the function (or loads it from Numba's disk cache), fills the slot and completes the call.
``load(dtype)`` fills all slots of a dtype ahead: call it before entering compiled code, above all before parallel
code, since the resolver needs the GIL, cannot raise, and therefore ends the process where compilation fails. It first
makes sure that Numba calls compiled functions as this file does (`check_convention`).
"""

import _thread
import ctypes
import functools
import os
import traceback

import llvmlite.binding
import numba
from llvmlite import ir
from numba import from_dtype, types
from numba.extending import intrinsic

from .compiled import compiled

SIZE, SCALAR, POINTER = "size", "scalar", "pointer"

_entries = {types.float64: [], types.float32: []}
# Dtypes, with a family or None, of which all entries are compiled.
_loaded = set()


class _Entry:
    """The slot of one kernel for one dtype."""

    def __init__(self, function, symbol, arguments, dtype, family=None):
        self.function, self.symbol, self.family, self.is_compiled = function, symbol, family, False
        kinds = {SIZE: types.int64, SCALAR: dtype, POINTER: types.CPointer(dtype)}
        self.argument_types = [kinds[kind] for kind in arguments]
        scalar = ctypes.c_double if dtype == types.float64 else ctypes.c_float
        kinds = {SIZE: ctypes.c_int64, SCALAR: scalar, POINTER: ctypes.c_void_p}
        # Numba's own calling convention, (result, exception, arguments) -> status: a C wrapper around each call would
        # cost as much as an 8 x 8 product.
        self.prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p,
                                          *[kinds[kind] for kind in arguments])
        self.resolver = self.prototype(self._resolve)
        self.slot = ctypes.c_void_p(ctypes.cast(self.resolver, ctypes.c_void_p).value)
        llvmlite.binding.add_symbol(symbol, ctypes.addressof(self.slot))

    def compile(self):
        if not self.is_compiled:
            self.dispatcher = dispatcher = compiled(no_cfunc_wrapper=True)(self.function)
            dispatcher.compile(types.void(*self.argument_types))
            (result,) = dispatcher.overloads.values()
            self.compiled = result
            self.slot.value = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
            self.is_compiled = True

    def _resolve(self, *arguments):
        interrupted = False
        while not self.is_compiled:
            try:
                self.compile()
            except KeyboardInterrupt:
                interrupted = True
            except BaseException:
                # An exception cannot leave a C callback, and going on would return a wrong result without a word.
                traceback.print_exc()
                os.abort()
        status = self.prototype(self.slot.value)(*arguments)
        if interrupted:
            _thread.interrupt_main()
        return status


def compiled_once(name, *arguments, family=None):
    """Decorator: a kernel without return value, compiled separately for float64 and float32.

    Parameters
    ----------
    name : str
        Unique name of the kernel.
    arguments : SIZE, SCALAR or POINTER, one per argument
        A 64-bit integer, a scalar of the kernel's dtype, a pointer to such scalars. At least one is a pointer: its
        dtype, at the call, selects the compiled function.
    family : str, optional
        Of kernels that only some chains need: `load` compiles them where it is asked for this family.
    """

    def decorate(function):
        symbols = {}
        for dtype, entries in _entries.items():
            _loaded.clear()
            entries.append(_Entry(function, f"numba_hinv_slot_{name}_{dtype.name}", arguments, dtype, family))
            symbols[dtype] = entries[-1].symbol, entries[-1].argument_types
        first_pointer = arguments.index(POINTER)

        def resolve(given):
            symbol, expected = symbols[given[first_pointer].dtype]

            def codegen(context, builder, sig, args):
                function_type = context.call_conv.get_function_type(types.none, expected)
                module = builder.module
                slot = module.globals.get(symbol) or ir.GlobalVariable(module, function_type.as_pointer(), symbol)
                context.call_conv.call_function(builder, builder.load(slot), types.none, expected, args)
                return context.get_dummy_value()

            return types.void(*expected), codegen

        return _intrinsic_of(len(arguments), resolve, name, function.__doc__)

    return decorate


def _intrinsic_of(count, resolve, name, doc):
    """Numba reads the number of an intrinsic's arguments from its signature, so one is written out."""
    names = ", ".join(f"a{i}" for i in range(count))
    namespace = {"resolve": resolve}
    exec(f"def {name}(typingctx, {names}):\n    return resolve(({names},))\n", namespace)
    definition = namespace[name]
    definition.__doc__ = doc
    definition.__module__ = __name__
    return intrinsic(definition)


def _probe(count, factor, out):
    for i in range(count):
        out[i] = factor * i


@functools.cache
def check_convention():
    """``RuntimeError`` where compiled functions are not called as `_Entry` calls them, which would end the process.

    First the types of Numba's own description of such a function, then one call with a known result.
    """
    entry = _Entry(_probe, "numba_hinv_slot_probe", (SIZE, SCALAR, POINTER), types.float64)
    entry.compile()
    convention = entry.dispatcher.targetctx.call_conv
    given = convention.get_function_type(types.none, entry.argument_types)
    expected = [ir.IntType(64), ir.DoubleType(), ir.DoubleType().as_pointer()]
    is_known = given.return_type == ir.IntType(32) and list(given.args)[2:] == expected
    is_known = is_known and all(isinstance(kind, ir.PointerType) for kind in given.args[:2])
    if is_known:
        result, exception, out = ctypes.c_void_p(), ctypes.c_void_p(), (ctypes.c_double * 4)(-1.0, -1.0, -1.0, -1.0)
        addresses = [ctypes.addressof(place) for place in (result, exception, out)]
        status = entry.prototype(entry.slot.value)(*addresses[:2], 3, 2.5, addresses[2])
        is_known = status == 0 and list(out) == [0.0, 2.5, 5.0, -1.0]
    if not is_known:
        raise RuntimeError(
            f"numba_hinv calls compiled functions in a way that Numba {numba.__version__} does not: {given}; expected "
            "Numba 0.62 or another version that numba_hinv is tested with"
        )


def load(dtype, family=None):
    """Compile every kernel for a dtype, or load it from the disk cache; immediate once done.

    Kernels of a family only if it is that one.
    """
    if (dtype, family) in _loaded:
        return
    check_convention()
    for entry in _entries[from_dtype(dtype)]:
        if entry.family in (None, family):
            entry.compile()
    # Only now: another thread that asks meanwhile is not to go on before they are there.
    _loaded.add((dtype, family))
