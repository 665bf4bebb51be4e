"""What a layer becomes where an activation or a skip follows it, in whatever framework the two are said."""

from dataclasses import replace

from ..layers.model import STRUCTURED


def with_activation(layer, activation):
    """The layer with this activation after it; None where it takes none, or has something behind it already."""
    if not isinstance(layer, STRUCTURED) or layer.activation != "identity" or layer.skip:
        return None
    return replace(layer, activation=activation)


def with_skip(layer):
    """The layer with its input added to its output; None where it has no skip to give, or has one."""
    if not isinstance(layer, STRUCTURED) or layer.skip:
        return None
    try:
        return replace(layer, skip=True)
    except ValueError:
        # Its output has another shape than its input.
        return None
