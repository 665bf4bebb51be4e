"""Modules of PyTorch as networks of this library. Needs the extra `torch`."""

from typing import Any

from ..network import Network
from ..runtime.annotations import FloatArray
from ..runtime.progress import bar
from ..runtime.validation import as_size


def from_torch(
    module: Any, loss: Any, input_shape: int | tuple[int, ...] | None = None, progress: bool | None = None
) -> tuple[Network, FloatArray]:
    """The network that a ``torch.nn.Module`` and a loss are, and its parameters.

    Parameters
    ----------
    module : torch.nn.Module
        As a rule an ``nn.Sequential``, nested or not. It is neither changed nor kept: modules are copied, to the CPU.
        Wrappers of ``torch.compile`` around it or its parts are taken off.
    loss : torch.nn.Module, or what `Network` takes
        An ``nn.CrossEntropyLoss`` (class weights, label smoothing and ignore_index are kept, the last with PyTorch's
        default of -100), ``nn.BCEWithLogitsLoss`` (pos_weight is kept), ``nn.MSELoss``, ``nn.HuberLoss``,
        ``nn.SmoothL1Loss``, ``nn.L1Loss`` or ``nn.PoissonNLLLoss``, with a reduction of "mean" or "sum".
        Functions of these in ``torch.nn.functional`` are taken, too, as they are or in a `functools.partial` with
        options.
    input_shape : int or tuple of int, optional
        Of one sample, without the batch. Needed unless a Linear or a norm comes first, which tells it.
    progress : bool, optional
        Show a progress bar of the layers, for which tqdm must be installed; by default what
        `set_progress` says.

    Returns
    -------
    network : Network
        Its inputs, states and outputs are the module's, each sample's flattened row by row; but states behind a Linear
        over positions lie feature by feature.
    params : (P,) array
        As ``torch.nn.utils.parameters_to_vector(module.parameters())``: float32 where all parameters are, else float64.
        Without those of frozen layers, with requires_grad=False, which the network holds (docs/frozen_layers.md).

    Raises
    ------
    ImportError
        PyTorch is not installed.
    TypeError, ValueError
        A module cannot be converted: which one and why. Among the reasons: it mixes the samples of a batch (batch
        normalisation while training), is random (dropout while training), has hooks, parameters of which some are
        frozen and some are not, that another layer has too, or of a dtype other than float32 and float64, or cannot be
        differentiated twice.
    MemoryError
        A module has to be an external layer of more parameters than a Hessian of one sample has memory for: which one.
        Nothing as large as that has been allocated.

    Notes
    -----
    Recognised, with the fast elimination or compiled derivatives of this library's own layers: Linear, and Conv1d and
    Conv2d with groups=1 that pad with zeros, equally many on both sides, each with a Tanh, Sigmoid, Softplus, SiLU,
    GELU or ReLU after it; Linear applied to each position of a sequence, as a convolution; average and maximum pooling
    in 1 and 2 dimensions; BatchNorm1d and BatchNorm2d in eval mode; these activations after anything else; LayerNorm,
    RMSNorm and GLU over all features of a sample; Sequential; Identity, Flatten, Unflatten and Dropout that do nothing
    to the numbers; modules of one's own whose ``forward`` is such a chain (functions like ``torch.tanh`` and
    ``max_pool2d`` included, and views that keep the samples), and blocks ``x + activation(linear(x))``, or with a
    convolution in Linear's place. What a forward does is seen by ``torch.fx``. Softplus is taken without torch's
    threshold, where it is off by 2e-9.

    Every other module becomes one `External` layer, differentiated by ``torch.func`` in a copy of the module. With n_in
    inputs and p parameters that costs 2 (n_in + p) passes of the batch, 16 p^2 bytes, and a pivot of all p rows, so put
    what is unknown into modules of its own, beside Linear and convolutions rather than around them: ``network.layers``
    shows what became of everything. Buffers are constants. Converting takes a few passes alone.

    The fused kernels of attention have no second derivative. While the module is called or differentiated, attention is
    computed by its formula (``sdpa_kernel(SDPBackend.MATH)``, and no fast path of nn.MultiheadAttention); these
    settings are those of the whole process, and are put back. docs/pytorch.md has more, tensors and autograd included.

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
