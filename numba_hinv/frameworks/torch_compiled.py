"""Modules as they were before ``torch.compile`` wrapped them: its own cannot be traced, nor differentiated twice."""

import copy


def uncompiled(module):
    """The module without the wrappers of ``torch.compile`` around it or its parts, with the same parameters.

    The module that is given stays as it is: what holds a wrapped part is replaced by a shallow copy.
    """
    return _uncompiled(module, {}) if any(_is_compiled(part) for part in module.modules()) else module


def _uncompiled(module, made):
    """The same, for any part. made : what has become of a part so far, by its id: one that is used twice stays one."""
    if id(module) not in made:
        if _is_compiled(module):
            made[id(module)] = _uncompiled(module._orig_mod, made)
        else:
            made[id(module)] = plain = copy.copy(module)
            plain._modules = {
                name: None if part is None else _uncompiled(part, made) for name, part in module._modules.items()
            }
    return made[id(module)]


def _is_compiled(module):
    # Its class is in a part of PyTorch that takes seconds to import, and that whoever has such a module has imported.
    return type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod")
