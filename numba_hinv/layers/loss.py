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

    `numba_hinv.losses` has a function for each that ships, which says what its parameters are.

    Parameters
    ----------
    name : str or callable
        A registered name, an alias that other libraries use ("mse", "cross_entropy", "HuberLoss"), or a function or
        class of PyTorch or scikit-learn of that name, whose options then are the defaults.
    reduction : "mean" or "sum"
        Over the samples or all targets, as the loss was registered. Samples count in a mean with their weights.
    ignore_index : int, optional
        Of losses of labels: samples with this label count as if their weights were 0.
    parameters : numbers or arrays (n,)
        By the names that the loss was registered with; arrays have a number for each output.

    Attributes
    ----------
    name, reduction, ignore_index
    parameters : dict
        All of them, floats, tuples of floats or bools.

    Raises
    ------
    TypeError, ValueError
        There is no such loss, or an option is none of its, or out of range.

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
        """Name and options as plain data for a file."""
        return {
            "name": self.name, "reduction": self.reduction, "ignore_index": self.ignore_index,
            "parameters": {name: list(v) if isinstance(v, tuple) else v for name, v in self.parameters.items()},
        }  # fmt: skip

    @classmethod
    def from_description(cls, found: dict[str, Any]) -> "Loss":
        """The inverse of `describe`."""
        return cls(found["name"], found["reduction"], found["ignore_index"], **found["parameters"])

    def check_registered(self) -> None:
        """``ValueError`` where the name has been registered again since, with other parameters."""
        if list(get_loss(self.name)["parameters"]) != list(self.parameters):
            raise ValueError(
                f"loss: expected {self.name!r} with the parameters that it had when the network was made, got it "
                "registered again with others; make the network again"
            )

    @property
    def has_labels(self) -> bool:
        """Whether y is (B,) labels."""
        return get_loss(self.name)["targets"] == "labels"

    @property
    def is_mean_over_samples(self) -> bool:
        """Whether the values are divided by the samples' weights alone, and not by the targets of each as well."""
        return get_loss(self.name)["mean_over"] == "samples"

    @property
    def counts_differ(self) -> bool:
        """Whether samples without weights may count differently in the mean: by their classes, or as ignored ones."""
        is_weighed = self.has_labels and self.parameters.get("class_weights") not in (None, 1.0)
        return self.reduction == "mean" and (is_weighed or self.ignore_index is not None)

    def num_targets(self, num_outputs: int) -> int:
        """Numbers of y for each sample, where it has no labels."""
        return num_outputs // get_loss(self.name)["outputs_per_target"]

    def packed(self, num_outputs: int) -> Array:
        """The parameters as compiled losses read them, (number of parameters, num_outputs); checks both."""
        found = pack(self.parameters, num_outputs)
        check_loss(self.name, num_outputs, found)
        return found

    def class_weights(self, num_outputs: int) -> Array | None:
        """(n,) weights of the classes where a mean is over their sum, else None."""
        given = self.parameters.get("class_weights")
        return np.full(num_outputs, given, np.float64) if self.has_labels and given not in (None, 1.0) else None


def as_loss(given):
    """A `Loss`: itself, or one with the default options."""
    return given if isinstance(given, Loss) else Loss(given)
