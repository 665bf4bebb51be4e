"""The trial of a loss when it is registered, and when a network ends in it: what `losses.register_loss` promises."""

import numpy as np

from .loss_parameters import pack
from .trial import Evidence, Fenced, check_symmetric, check_unchanged, compare, compiled, is_real, unwritten

ARGUMENTS = "z, y, gradient, curvature"

# Numbers of outputs with which every loss is tried; with one output there is no choice of labels.
_SIZES = {"values": (1, 2, 3, 5), "labels": (2, 3, 5)}
# If it raises for all of them, the least number of outputs is sought for which it does not.
_MOST_OUTPUTS = 256
# A loss that was made for up to so many outputs may be called with fewer, and stays within the fences.
_FENCED_OUTPUTS = 1024
# Labels and derivatives, in number, that are tried of a loss with many outputs.
_MOST_TRIED = 8


def _strictly_or_not(rng, numbers):
    """``numbers``, or the same with zeros among them: a loss may branch on them, or have no value at 0."""
    return numbers * (rng.integers(2) or rng.integers(2, size=numbers.size))


def _normal(rng, n):
    return rng.standard_normal(n)


def _positive(rng, n):
    return rng.uniform(0.1, 3.0, n)


def _fractions(rng, n):
    return rng.uniform(0.05, 0.95, n)


# The outputs: a loss may take them for logits, rates or probabilities.
_OUTPUTS = 3 * (_normal,) + 2 * (lambda rng, n: 3 * rng.standard_normal(n), _fractions, _positive)
# The targets, by kind. A loss is right if it is for one kind: its derivatives may rest on y being 0 or 1, say, and it
# need not notice where y is neither. Numbers of any kind where it has a value come first.
_TARGETS = {
    "any numbers": (
        _normal,
        lambda rng, n: _strictly_or_not(rng, _positive(rng, n)),
        lambda rng, n: _strictly_or_not(rng, _fractions(rng, n)),
        lambda rng, n: rng.integers(5, size=n).astype(np.float64),
    ),
    "0 and 1": (lambda rng, n: rng.integers(2, size=n).astype(np.float64),),
    "-1 and 1": (lambda rng, n: 2.0 * rng.integers(2, size=n) - 1.0,),
    "sums of 1": (lambda rng, n: rng.dirichlet(np.ones(n)),),
    "one 1": (lambda rng, n: np.eye(n)[rng.integers(n)],),
}


def try_loss(entry):
    """Raise what is wrong with a plain function that is to be registered as a loss, with this `losses.get_loss`."""
    loss, targets = _Loss("function", entry), entry["targets"]
    sizes = _working_sizes(loss)
    if not is_real(loss.returned):
        raise TypeError(
            f"function: expected {loss.name}({ARGUMENTS}) to return the loss of a sample, a real number; got "
            f"{loss.returned}"
        )
    complaint = None
    for kind in _kinds(targets):
        verdict = _Verdict(loss)
        for n in sizes:
            for z, ys in _points(kind, n, loss.num_targets(n)):
                loss.try_targets(z, ys, verdict)
        if verdict.right:
            return
        complaint = complaint or verdict.complaint
    raise complaint or ValueError(
        f"function: expected {loss.name}({ARGUMENTS}) to return a finite value with finite derivatives for some z of "
        f"{' or '.join(map(str, sizes))} outputs and some y; got none at any that were tried"
    )


def try_outputs(name, entry, num_outputs, packed):
    """``ValueError`` about the argument ``name`` unless a registered loss works for so many outputs and parameters."""
    loss, targets = _Loss(name, entry, packed), entry["targets"]
    first = None
    for z, y in _probes(targets, num_outputs, loss.num_targets(num_outputs)):
        error = loss.failure(num_outputs, [(z, y)])
        if error is None:
            # Of labels, the largest one finds tables that are too short.
            loss.try_targets(z, [y, np.array([num_outputs - 1.0])] if targets == "labels" else [y])
            return
        first = first or error
    raise ValueError(
        f"{name}: expected a loss of {num_outputs} outputs, those of the last layer; got {type(first).__name__} "
        f"from {loss.name}: {first}"
    ) from first


def _kinds(targets):
    return ("labels",) if targets == "labels" else tuple(_TARGETS)


def _points(kind, n, num_targets):
    """Outputs z (n,) and, for each, a list of so many targets of this kind."""
    rng = np.random.default_rng(n)
    if kind == "labels":
        return [(draw(rng, n), [np.array([float(label)]) for label in _spread(n)]) for draw in _OUTPUTS]
    if num_targets == 1 and kind in ("sums of 1", "one 1"):
        # Always 1, for which a loss may be right that is wrong elsewhere.
        return []
    return [(draw(rng, n), [target(rng, num_targets)]) for target in _TARGETS[kind] for draw in _OUTPUTS]


def _spread(n):
    """All of 0..n-1, or `_MOST_TRIED` of them."""
    return np.unique(np.linspace(0, n - 1, min(n, _MOST_TRIED)).astype(int)).tolist()


def _probes(targets, n, num_targets):
    """A few z and y for n outputs and so many targets, those first that most losses take for what they expect."""
    rng = np.random.default_rng(n)
    labels = [np.zeros(1)]
    ys = labels if targets == "labels" else [draws[0](rng, num_targets) for draws in reversed(_TARGETS.values())]
    return [(draw(rng, n), y) for y in ys for draw in (_fractions, _normal)]


def _working_sizes(loss):
    """Numbers of outputs to try the loss with; ``ValueError`` where it raises for all."""
    targets, ratio = loss.targets, loss.outputs_per_target

    def probes(n):
        return _probes(targets, n, loss.num_targets(n))

    failures = {n: loss.failure(n, probes(n)) for n in (ratio * size for size in _SIZES[targets])}
    sizes = [n for n, error in failures.items() if error is None]
    if sizes:
        return sizes
    for n in range(ratio * _SIZES[targets][0], _MOST_OUTPUTS + 1, ratio):
        if n not in failures and loss.failure(n, probes(n)[:1]) is None:
            return [n]
    n, error = next(iter(failures.items()))
    raise ValueError(
        f"function: expected {loss.name}({ARGUMENTS}) to work for some number of outputs from {n} to {_MOST_OUTPUTS}; "
        f"got {type(error).__name__} for {n}: {error}"
    ) from error


class _Loss:
    """A loss that is being tried; ``argument`` is what errors say is wrong, ``packed`` parameters other than
    defaults.
    """

    def __init__(self, argument, entry, packed=None):
        function = entry["function"]
        self.argument, self.name, self.targets = argument, function.__name__, entry["targets"]
        self.outputs_per_target = entry["outputs_per_target"]
        self._defaults, self._packed = {name: p.default for name, p in entry["parameters"].items()}, packed
        self._fenced = ()
        n = self.outputs_per_target * _SIZES[self.targets][0] if packed is None else packed.shape[1]
        examples = self._arguments(*_probes(self.targets, n, self.num_targets(n))[0])
        self.call, self.returned = compiled(argument, function, *examples)

    def num_targets(self, n):
        """Numbers of y for n outputs; the labels of one sample are another matter."""
        return n // self.outputs_per_target

    def _arguments(self, z, y, held=0.0):
        """Fenced arrays to call it with: copies of z and y, and a gradient and curvature that hold this number."""
        n = z.size
        count = len(self._defaults)
        if not self._fenced or self._fenced[0].array.size != n:
            self._fenced = [Fenced(shape, _FENCED_OUTPUTS) for shape in (n, y.size, n)]
            self._fenced.append(Fenced((n, n), _FENCED_OUTPUTS * (n + 1)))
            self._fenced += [Fenced((count, n), _FENCED_OUTPUTS)] * (count > 0)
        arrays = [fenced.array for fenced in self._fenced]
        packed = pack(self._defaults, n) if self._packed is None else self._packed
        for array, content in zip(arrays, (z, y, held, held, packed)):
            array[...] = content
        return arrays

    def evaluate(self, z, y, held=0.0):
        """Value, gradient and curvature, of which the latter two held this number before."""
        arrays = self._arguments(z, y, held)
        value = self.call(*arrays)
        return value, arrays[2].copy(), arrays[3].copy()

    def evaluate_in_bounds(self, z, y, held=0.0):
        """The same; an IndexError also where a compiled function that it calls writes out of bounds."""
        found = self.evaluate(z, y, held)
        if not all(fenced.intact() for fenced in self._fenced):
            self._fenced = ()
            raise IndexError("a compiled function that it calls writes out of bounds")
        return found

    def failure(self, n, probes):
        """An error that it raises for n outputs, or None if it raises none for one of these z and y."""
        first = None
        for z, y in probes:
            try:
                self.evaluate_in_bounds(z, y)
                return None
            except Exception as error:
                first = first or error
        return first

    def try_targets(self, z, ys, verdict=None):
        """Call it with the same outputs for each of the targets; raise what is wrong beside derivatives."""
        failures = {}
        for y in ys:
            try:
                # Entries that are written are the same whatever they held before.
                first, second = (self.evaluate_in_bounds(z, y, held) for held in (0.75, -0.5))
            except Exception as error:
                failures[int(y[0])] = error
                continue
            inputs = {name: fenced.array for name, fenced in zip("zy", self._fenced)}
            before = {"z": z, "y": y}
            if self._defaults:
                inputs["parameters"] = self._fenced[4].array
                before["parameters"] = pack(self._defaults, z.size) if self._packed is None else self._packed
            check_unchanged(self.argument, self.name, inputs, before)
            # Where there is no value, nothing needs to be written.
            if np.isfinite([first[0], second[0]]).any():
                self._check_written(first, second)
                check_symmetric(self.argument, "curvature", first[2])
                if verdict is not None:
                    verdict.add(z, y, first)
        if self.targets == "labels" and 0 < len(failures) < len(ys):
            label, error = next(iter(failures.items()))
            raise ValueError(
                f"{self.argument}: expected {self.name}({ARGUMENTS}) to work for every label from 0 to {z.size - 1}; "
                f"got {type(error).__name__} for {label}: {error}"
            ) from error

    def _check_written(self, first, second):
        n = first[1].size
        if first[0] != second[0]:
            raise ValueError(
                f"{self.argument}: expected {self.name}({ARGUMENTS}) to return the same value whatever gradient and "
                f"curvature held before; got {first[0]:.6g} and {second[0]:.6g} in two calls"
            )
        for name, one, other in zip(("gradient", "curvature"), first[1:], second[1:]):
            left = unwritten(one, other)
            if left.size:
                entry = ", ".join(map(str, left[0]))
                raise ValueError(
                    f"{self.argument}: expected {self.name}({ARGUMENTS}) to write all of {name}, whatever it held "
                    f"before; got {name}[{entry}] unwritten or different in a second call, for {n} outputs. A loss "
                    "that is not made for so many should raise"
                )


class _Verdict:
    """Whether the derivatives of a loss are right, by all the points at which it was compared with differences."""

    def __init__(self, loss):
        self.loss = loss
        self.finite = False
        self.gradient, self.curvature = Evidence(), Evidence()

    def add(self, z, y, found):
        """Compare at one point with what was found there."""
        value, gradient, curvature = found
        if not all(np.isfinite(part).all() for part in found):
            return
        self.finite = True
        judged = np.zeros(2, bool)
        texts = [None, None]
        for j in _spread(z.size):
            claimed = np.array([gradient[j], *curvature[:, j]])
            clear, wrong, slopes = compare(lambda t: self._along(z, y, j, t), claimed)
            judged |= clear[0], clear[1:].any()
            if wrong[0] and texts[0] is None:
                texts[0] = f"gradient[{j}] = {claimed[0]:.6g} where differences of the value give {slopes[0]:.6g}"
            if wrong[1:].any() and texts[1] is None:
                a = int(wrong[1:].argmax())
                texts[1] = (
                    f"curvature[{a}, {j}] = {claimed[1 + a]:.6g} where differences of gradient[{a}] give "
                    f"{slopes[1 + a]:.6g}"
                )
        for evidence, known, text in zip((self.gradient, self.curvature), judged, texts):
            evidence.add(known, text is not None, lambda: f"{text}, at z = {_shown(z)}, y = {_shown(y)}")

    def _along(self, z, y, j, t):
        """Value and gradient with output j moved by t."""
        moved = z.copy()
        moved[j] += t
        try:
            value, gradient, _ = self.loss.evaluate(moved, y)
        except Exception:
            return np.full(1 + z.size, np.nan)
        return np.array([value, *gradient], np.float64)

    @property
    def right(self):
        return self.finite and self.complaint is None

    @property
    def complaint(self):
        """The error that says which derivative is wrong, if one is."""
        for name, order, evidence in (("gradient", "first", self.gradient), ("curvature", "second", self.curvature)):
            if evidence.refutes:
                return ValueError(
                    f"function: expected {self.loss.name}({ARGUMENTS}) to fill {name} with the {order} derivatives in "
                    f"z of the value that it returns; got {evidence.first}. Where there is no value, return NaN"
                )
        return None


def _shown(vector):
    return np.array2string(vector, precision=6, separator=", ", threshold=8)
