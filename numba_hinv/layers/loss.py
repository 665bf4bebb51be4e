"""`Loss`: a registered loss with its options, as a network keeps it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..runtime.annotations import Array
from ..runtime.validation import as_size
from . import loss_functions  # noqa: F401 - registers the losses that ship
from .loss_parameters import pack
from .losses import check_loss, get_loss, resolve_loss

_REDUCTIONS = "mean", "sum"


class Loss:
    """A registered loss with its options. Immutable.

    For each loss of the library, a function in `numba_hinv.losses` describes its parameters.

    Parameters
    ----------
    name : str or callable
        A registered name, an alias from another library ("mse", "cross_entropy", "HuberLoss"), or the function or class
        of PyTorch or scikit-learn with that name, which stands for the loss with default options.
    reduction : "mean" or "sum"
        Whether the loss is the mean or the sum over the samples or over all targets, as it was registered. Samples
        count with their weights.
    ignore_index : int, optional
        For losses of labels: samples with this label count as if their weights were 0.
    **parameters : float, bool or (n,) array
        The parameters of the loss, by the names that it was registered with. An array has one number for each output.

    Attributes
    ----------
    name : str
        The registered name.
    reduction : "mean" or "sum"
        The reduction that was given.
    ignore_index : int or None
        The label that is ignored.
    parameters : dict
        The values of all parameters: floats, tuples of floats or bools.

    Raises
    ------
    TypeError, ValueError
        There is no such loss, or it does not have such an option, or the value of an option is out of range.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.Network([nh.Dense(3, 1, "identity")], nh.Loss("huber", delta=2.0)).loss_definition
    Loss('huber', delta=2.0)
    """

    def __init__(
        self,
        name: str | Callable[..., Any],
        reduction: str = "mean",
        ignore_index: int | None = None,
        **parameters: ArrayLike,
    ) -> None:
        self.name: str = resolve_loss(name)
        entry = get_loss(self.name)
        if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
        self.reduction: str = reduction
        if ignore_index is not None:
            if entry["targets"] != "labels":
                raise ValueError(
                    f"ignore_index: expected None with {self.name!r}, which has no labels, got {ignore_index!r}"
                )
            ignore_index = as_size("ignore_index", ignore_index, -(1 << 62))
        self.ignore_index: int | None = ignore_index
        known = entry["parameters"]
        for given in parameters:
            if given not in known:
                names = ", ".join(known) or "no parameters"
                raise TypeError(f"{given}: expected a parameter of {self.name!r}, which has {names}")
        self.parameters: dict[str, Any] = {
            name: known[name].check(name, parameters.get(name, known[name].default)) for name in known
        }

    def __repr__(self) -> str:
        declared = get_loss(self.name)["parameters"]
        options = {"reduction": (self.reduction, "mean"), "ignore_index": (self.ignore_index, None)}
        known = {name: value for name, value in self.parameters.items() if name in declared}
        options |= {name: (value, declared[name].default) for name, value in known.items()}
        changed = [f"{name}={value!r}" for name, (value, default) in options.items() if value != default]
        return f"Loss({', '.join([repr(self.name), *changed])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loss) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash((self.name, self.reduction, self.ignore_index, *self.parameters.items()))

    def describe(self) -> dict[str, Any]:
        """Describe name and options as plain data for a file.

        Returns
        -------
        description : dict
            What `from_description` takes.
        """
        return {
            "name": self.name, "reduction": self.reduction, "ignore_index": self.ignore_index,
            "parameters": {name: list(v) if isinstance(v, tuple) else v for name, v in self.parameters.items()},
        }  # fmt: skip

    @classmethod
    def from_description(cls, found: dict[str, Any]) -> "Loss":
        """Make the loss that `describe` has described.

        Parameters
        ----------
        found : dict
            What `describe` returned.

        Returns
        -------
        Loss
            An equal loss.
        """
        return cls(found["name"], found["reduction"], found["ignore_index"], **found["parameters"])

    def check_registered(self) -> None:
        """Raise a ``ValueError`` if the name has been registered again since then, with other parameters."""
        if list(get_loss(self.name)["parameters"]) != list(self.parameters):
            raise ValueError(
                f"loss: expected {self.name!r} with the parameters that it had when the network was made, got it "
                "registered again with others; make the network again"
            )

    @property
    def has_labels(self) -> bool:
        """Whether targets are labels, (B,)."""
        return get_loss(self.name)["targets"] == "labels"

    @property
    def is_mean_over_samples(self) -> bool:
        """Whether the mean is over samples, and not over all targets of all samples."""
        return get_loss(self.name)["mean_over"] == "samples"

    @property
    def counts_differ(self) -> bool:
        """Whether samples may count differently in the mean without weights of their own: by class, or if ignored."""
        is_weighed = self.has_labels and self.parameters.get("class_weights") not in (None, 1.0)
        return self.reduction == "mean" and (is_weighed or self.ignore_index is not None)

    def num_targets(self, num_outputs: int) -> int:
        """Compute how many numbers the targets of a sample have, for losses that have no labels.

        Parameters
        ----------
        num_outputs : int
            The number of outputs of the net.

        Returns
        -------
        num_targets : int
            The number of targets.
        """
        return num_outputs // get_loss(self.name)["outputs_per_target"]

    def packed(self, num_outputs: int) -> Array:
        """Check the parameters and give them as compiled losses read them.

        Parameters
        ----------
        num_outputs : int
            The number of outputs of the net.

        Returns
        -------
        packed : (number of parameters, num_outputs) array
            The value of each parameter for each output.
        """
        found = pack(self.parameters, num_outputs)
        check_loss(self.name, num_outputs, found)
        return found

    def class_weights(self, num_outputs: int) -> Array | None:
        """Give the weights of the classes, if the mean is divided by their sum.

        Parameters
        ----------
        num_outputs : int
            The number n of outputs of the net.

        Returns
        -------
        weights : (n,) array or None
            The weights; None if classes have no weights.
        """
        given = self.parameters.get("class_weights")
        return np.full(num_outputs, given, np.float64) if self.has_labels and given not in (None, 1.0) else None


def as_loss(given):
    """A `Loss`: itself, or one with the default options."""
    return given if isinstance(given, Loss) else Loss(given)
