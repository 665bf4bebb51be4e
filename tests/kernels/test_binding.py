"""The calling convention of compiled functions, written out by hand: a change of Numba's must not go unseen."""

import pytest
from llvmlite import ir
from numba.core.callconv import CPUCallConv

from numba_hinv.kernels.plumbing import binding


def test_numba_calls_functions_as_expected():
    binding.check_convention.__wrapped__()


@pytest.mark.parametrize("change", ["more arguments", "another status"])
def test_another_convention_is_refused_before_anything_is_called(monkeypatch, change):
    plain = CPUCallConv.get_function_type

    def changed(self, *given):
        found = plain(self, *given)
        if change == "another status":
            return ir.FunctionType(ir.IntType(64), found.args)
        return ir.FunctionType(found.return_type, [found.args[0], *found.args])

    class NotCalled(binding._Entry):
        def compile(self):
            # With the convention that there is; it is only described as another one.
            with monkeypatch.context() as patch:
                patch.setattr(CPUCallConv, "get_function_type", plain)
                super().compile()
            self.slot.value = None

    monkeypatch.setattr(binding, "_Entry", NotCalled)
    monkeypatch.setattr(CPUCallConv, "get_function_type", changed)
    with pytest.raises(RuntimeError, match="numba_hinv calls compiled functions in a way that Numba"):
        binding.check_convention.__wrapped__()
