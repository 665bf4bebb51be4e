"""Whether a module's outputs for a sample are a function of that sample alone: found by calling it, in float64."""

import torch
from torch import nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

# Outputs that do not depend on the other samples may still be rounded otherwise for another batch.
_SAMPLES, _ROUNDING = 3, 1e-10


def output_shape(module, shape):
    """Shape of a sample's output, for samples of this ``shape``.

    ``ValueError`` says why there is none that depends on that sample alone.
    """
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.random.manual_seed(0)
        Z = torch.randn(_SAMPLES, *shape, dtype=torch.float64)
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        state = torch.random.get_rng_state()
        output = _attempt(module, Z)
        _check_output(output)
        # Where dropping is rare, two outputs are as a rule the same.
        if not torch.equal(torch.random.get_rng_state(), state):
            raise ValueError(f"it is random: a call draws from PyTorch's generator{_way_out(module)}")
        if not _same(output, _attempt(module, Z)):
            raise ValueError(f"it is random: two calls with the same input differ{_way_out(module)}")
        _check_alone(module, Z, output)
        changed = [name for name, buffer in module.named_buffers() if not _same(buffer, buffers.get(name))]
        if changed:
            raise ValueError(f"it changes its buffer {changed[0]!r} in a call{_way_out(module)}")
    return tuple(output.shape[1:])


def _check_output(output):
    if not isinstance(output, torch.Tensor) or output.dtype != torch.float64:
        hint = "; expected its forward to return the outputs alone" if isinstance(output, (tuple, list, dict)) else ""
        raise ValueError(f"expected a float64 tensor for a float64 input, got {_describe(output)}{hint}")
    if output.ndim == 0 or output.shape[0] != _SAMPLES or output.numel() == 0:
        raise ValueError(f"expected outputs of {_SAMPLES} samples for as many, got shape {tuple(output.shape)}")


def _check_alone(module, Z, output):
    """``ValueError`` where the output of one sample is another if it comes alone."""
    try:
        alone = torch.cat([_attempt(module, Z[i : i + 1]) for i in range(_SAMPLES)])
    except ValueError as error:
        way_out = _way_out(module)
        raise ValueError(f"it mixes the samples of a batch: for one sample alone, {error}{way_out}") from error
    scale = output.abs().max().nan_to_num()
    if alone.shape != output.shape or not (alone - output).abs().max() <= _ROUNDING * scale:
        raise ValueError(f"it mixes the samples of a batch: one sample alone has another output{_way_out(module)}")


def _attempt(module, Z):
    try:
        return module(Z.clone())
    except Exception as error:
        way_out = ""
        if isinstance(module, nn.MultiheadAttention):
            way_out = "; expected a module of one input around it, whose forward returns self.attention(x, x, x)[0]"
        reason = f"it cannot be called with an input of shape {tuple(Z.shape)}: {gist(error)}{way_out}"
        raise ValueError(reason) from error


def _way_out(module):
    """What may be done about a module whose outputs are no function of one sample each, as the end of a message."""
    for name, part in module.named_modules():
        place = f"its part {name!r} ({type(part).__name__})" if name else f"this {type(part).__name__}"
        if getattr(part, "batch_first", True) is False:
            return f"; {place} has batch_first=False, and expects samples second: build it with batch_first=True"
        if isinstance(part, BATCH_NORMS) and part.running_mean is None:
            return f"; {place} has track_running_stats=False, and mixes them in eval mode, too"
    return "; call eval() first" if any(part.training for part in module.modules()) else ""


def unsteady(module):
    """Why a module is another function at each call or for other batches while it is in training, or None."""
    if not module.training:
        return None
    if isinstance(module, BATCH_NORMS):
        return "it mixes the samples of a batch while training; call eval() first"
    if isinstance(module, DROPOUTS) and module.p > 0.0:
        return f"it is random while training (p={module.p:g}); call eval() first"
    return None


def _same(one, two):
    return two is not None and torch.equal(one.nan_to_num(), two.nan_to_num())


def _describe(value):
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def gist(error):
    """The first line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
