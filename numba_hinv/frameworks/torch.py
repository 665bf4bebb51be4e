"""Modules of PyTorch as networks of this library. Needs the extra `torch`."""

from typing import Any

from ..network import Network
from ..runtime.annotations import FloatArray
from ..runtime.progress import bar
from ..runtime.validation import as_size


def from_torch(
    module: Any, loss: Any, input_shape: int | tuple[int, ...] | None = None, progress: bool | None = None
) -> tuple[Network, FloatArray]:
    """Convert a ``torch.nn.Module`` and a loss into a network and its parameters.

    Parameters
    ----------
    module : torch.nn.Module
        The module, as a rule an ``nn.Sequential``, nested or not. It is neither changed nor kept, but copied to the
        CPU. Wrappers of ``torch.compile`` around it or its parts are removed.
    loss : torch.nn.Module, or what `Network` takes
        An ``nn.CrossEntropyLoss`` (class weights, label smoothing and ignore_index are kept, the last with PyTorch's
        default of -100), ``nn.BCEWithLogitsLoss`` (pos_weight is kept), ``nn.MSELoss``, ``nn.HuberLoss``,
        ``nn.SmoothL1Loss``, ``nn.L1Loss`` or ``nn.PoissonNLLLoss``, with a reduction of "mean" or "sum".
        Functions of these in ``torch.nn.functional`` are taken, too, as they are or in a `functools.partial` with
        options.
    input_shape : int or tuple of int, optional
        The shape of one sample, without the axis of the batch. It must be given unless a Linear or a norm comes first,
        whose sizes determine it.
    progress : bool, optional
        Show a progress bar of the layers, for which tqdm must be installed; by default what `set_progress` says.

    Returns
    -------
    network : Network
        The network. Its inputs, states and outputs are those of the module, where each sample is flattened row by row;
        but states behind a Linear that acts on positions are ordered by features first.
    params : (P,) array
        The parameters in the order of ``torch.nn.utils.parameters_to_vector(module.parameters())``, in float32 if all
        of them are, otherwise in float64. Those of frozen layers, which have requires_grad=False, are not among them;
        the network keeps these (docs/frozen_layers.md).

    Raises
    ------
    ImportError
        PyTorch is not installed.
    TypeError, ValueError
        A module cannot be converted; the message says which one and why. Among the reasons: it mixes the samples of a
        batch (batch normalisation while training), it is random (dropout while training), it has hooks, only some of
        its parameters are frozen, it shares parameters with another layer, its parameters are neither in float32 nor in
        float64, or it cannot be differentiated twice.
    MemoryError
        A module, which the message names, would have to be an external layer of more parameters than there is memory
        for in a Hessian of one sample. Nothing as large as that has been allocated.

    Notes
    -----
    The following become layers of this library, with fast elimination or compiled derivatives: Linear, and Conv1d and
    Conv2d with groups=1 that pad with equally many zeros on both sides, each with a Tanh, Sigmoid, Softplus, SiLU, GELU
    or ReLU after it; Linear applied to each position of a sequence, as a convolution; average and maximum pooling in 1
    and 2 dimensions; BatchNorm1d and BatchNorm2d in eval mode; these activations after anything else; LayerNorm,
    RMSNorm and GLU over all features of a sample; Sequential; Identity, Flatten, Unflatten and Dropout that leave the
    numbers as they are; your own modules whose ``forward`` is such a chain, functions like ``torch.tanh`` and
    ``max_pool2d`` and views that keep the samples included; and blocks ``x + activation(linear(x))``, with Linear or a
    convolution. What a ``forward`` does is found by ``torch.fx``. Softplus is taken without torch's threshold, which
    changes it by 2e-9.

    Every other module becomes one `External` layer, which ``torch.func`` differentiates in a copy of the module. With
    n_in inputs and p parameters that costs 2 (n_in + p) passes of the batch, 16 p^2 bytes, and a pivot of all p rows.
    So put such parts into modules of their own, beside Linear and convolutions rather than around them.
    ``network.layers`` shows what each module has become. Buffers are constants. The conversion itself takes only a few
    passes.

    The fused kernels of attention have no second derivative. While the module is called or differentiated, attention is
    computed by its formula (``sdpa_kernel(SDPBackend.MATH)``, without the fast path of nn.MultiheadAttention). These
    settings apply to the whole process and are restored afterwards. docs/pytorch.md has more on conversion, and on
    tensors and autograd.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> from torch import nn
    >>> module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    >>> net, params = nh.from_torch(module, nn.CrossEntropyLoss())
    >>> net.num_params, params.dtype
    (67, dtype('float64'))
    """
    try:
        import torch  # noqa: F401 - what follows needs it
    except ImportError:
        raise ImportError(
            "module: expected PyTorch to be installed (pip install 'numba_hinv[torch]'), got a module without it"
        ) from None
    from .torch_conversion import convert

    if input_shape is not None:
        sizes = input_shape if isinstance(input_shape, (tuple, list)) else (input_shape,)
        input_shape = tuple(as_size("input_shape", size) for size in sizes)
    with bar(progress, None, "from_torch", "layer") as shown:
        return convert(module, loss, input_shape, shown.update)
