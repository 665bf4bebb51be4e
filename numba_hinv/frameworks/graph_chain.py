"""A model's equations as a chain: cut wherever one state alone goes on, and the layers that the pieces are."""

from dataclasses import dataclass, replace

import numpy as np

from ..layers.activations import activation_function, activation_names
from ..layers.convolution import Conv1d
from ..layers.dense import Dense
from .fusion import with_activation, with_skip
from .graph import Computed, Variable, View
from .graph_norms import norm_of

_ADDITIONS = {"add", "add_any"}
# Activations are told by their values at these, of either sign: dense where most of them bend, and far out.
_TRIED = np.concatenate([0.0137 + 0.1731 * np.arange(36), [9.31, 14.7, 21.9]])
_TRIED = np.concatenate([_TRIED, -_TRIED])
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Piece:
    """A layer of this library, or equations that are to become an external one.

    layer : Dense, Conv1d or None
    positions : places of its parameters among those of the model, in the order of the layer's own.
    equations, source, target : what the piece is from, and the states before and behind it.
    """

    layer: object
    positions: np.ndarray
    equations: tuple
    source: Variable
    target: Variable

    def joined(self, after):
        """This piece and the one after it as one that is external."""
        positions = np.union1d(self.positions, after.positions)
        return Piece(None, positions, self.equations + after.equations, self.source, after.target)


def pieces(reading):
    """The pieces of the chain that a `graph.Reading` is, in order."""
    found = _Chain(reading).pieces(tuple(reading.equations), reading.source)
    return [piece if piece.layer is not None else _as_norm(reading, piece) for piece in found]


class _Chain:
    def __init__(self, reading):
        self.reading = reading

    def pieces(self, equations, source):
        """The pieces that equations are which lead from a state to the outputs of the last one."""
        found = []
        for block in self._blocks(equations):
            target = block[-1].outputs[0] if len(block[-1].outputs) == 1 else self._leaving(block, equations)
            self._append(found, block, source, target)
            source = target
        return found

    def _blocks(self, equations):
        """Runs of equations between which one state alone goes on, and no parameter is on both sides."""
        count = len(equations)
        last_use, is_shared = {}, np.zeros(count + 1, np.int64)
        first, last = np.full(self.reading.num_params, -1), np.full(self.reading.num_params, -1)
        for i, equation in enumerate(equations):
            for state in self._states(equation):
                last_use[state] = i
            for positions in self.reading.positions(equation):
                first[positions[first[positions] < 0]] = i
                last[positions] = i
        crossing = first < last
        np.add.at(is_shared, first[crossing], 1)
        np.add.at(is_shared, last[crossing], -1)
        is_shared = np.cumsum(is_shared)
        blocks, block, alive = [], [], set(self._states(equations[0])) if equations else set()
        for i, equation in enumerate(equations):
            block.append(equation)
            alive.update(output for output in equation.outputs if output in last_use or i == count - 1)
            alive = {state for state in alive if last_use.get(state, count) > i}
            is_cut = len(alive) == 1 and all(state.is_real for state in alive) and not is_shared[i]
            if is_cut or i == count - 1:
                blocks.append(tuple(block))
                block = []
        return blocks

    def _states(self, equation):
        return [self.reading.root(given) for given in equation.inputs if self.reading.is_state(given)]

    def _leaving(self, block, equations):
        """The output of a block's last equation, which has several, that later ones read."""
        later = {state for equation in equations for state in self._states(equation)} | {self.reading.target}
        return next(output for output in block[-1].outputs if output in later)

    def _append(self, found, block, source, target):
        """Append what a block is to the pieces found, or make it a part of the last one."""
        last = found[-1] if found else None
        if len(block) == 1:
            layer, positions = self._linear(block[0], source)
            if layer is not None:
                found.append(Piece(layer, positions, block, source, target))
                return
            grown = self._with_bias(last, block[0], target)
            if grown is not None:
                found[-1] = grown
                return
        activation = self._activation(block, source, target)
        layer = with_activation(last.layer, activation) if last and activation else None
        if layer is not None:
            found[-1] = replace(last, layer=layer, equations=last.equations + block, target=target)
            return
        skipped = self._skipped(block, source, target)
        if skipped is not None:
            found.append(skipped)
            return
        numbers = [positions for equation in block for positions in self.reading.positions(equation)]
        positions = np.unique(np.concatenate(numbers)) if numbers else np.empty(0, np.int64)
        piece = Piece(None, positions, block, source, target)
        # What has few parameters, as a norm's gain, costs more as a layer of its own.
        is_function = positions.size == 0 and all(equation.elementwise for equation in block)
        is_small = is_function or (last and max(positions.size, last.positions.size) <= source.size)
        if last and last.layer is None and is_small:
            found[-1] = last.joined(piece)
        else:
            found.append(piece)

    def _linear(self, equation, source):
        """The layer without a bias that one equation is, and the places of its weights; None, None for another."""
        if len(equation.inputs) != 2:
            return None, None
        is_state = [self.reading.is_state(given) for given in equation.inputs]
        if is_state not in ([True, False], [False, True]):
            return None, None
        state, given = equation.inputs if is_state[0] else equation.inputs[::-1]
        weight = self.reading.value(given)
        if not isinstance(weight, View) or np.unique(weight.positions).size != weight.positions.size:
            return None, None
        if equation.name == "dot_general":
            return _dense(state, weight.positions, equation.options["dimension_numbers"], is_state[0])
        if equation.name == "conv_general_dilated" and is_state[0]:
            return _convolution(state, weight.positions, equation.options)
        return None, None

    def _with_bias(self, last, equation, target):
        """The last piece with the bias that an equation adds to it; None where it does not."""
        if last is None or last.layer is None or equation.name not in _ADDITIONS:
            return None
        layer, values = last.layer, [self.reading.value(g) for g in equation.inputs if not self.reading.is_state(g)]
        if layer.bias or layer.skip or layer.activation != "identity":
            return None
        if len(values) != 1 or not isinstance(values[0], View) or target.size != layer.out_features:
            return None
        # Each channel of a convolution has one number, which comes once for each position of its output.
        rows = np.broadcast_to(values[0].positions, target.shape).reshape(layer.weight_shape[0], -1)
        if (rows != rows[:, :1]).any() or np.unique(rows[:, 0]).size != len(rows):
            return None
        return Piece(
            replace(layer, bias=True), np.concatenate([last.positions, rows[:, 0]]), (*last.equations, equation),
            last.source, target,
        )  # fmt: skip

    def _activation(self, block, source, target):
        """The name of the registered activation that a block computes, entry by entry, or None."""
        if source.size != target.size or not all(equation.elementwise for equation in block):
            return None
        for equation in block:
            for given in equation.inputs:
                value = None if self.reading.is_state(given) else self.reading.value(given)
                if isinstance(value, (View, Computed)) or (value is not None and np.unique(value).size != 1):
                    return None
        points = np.resize(_TRIED, (-(-_TRIED.size // source.size), source.size))
        values = np.array([evaluate(self.reading, block, source, target, row) for row in points])
        return next((name for name in activation_names() if _has_values(name, points, values)), None)

    def _skipped(self, block, source, target):
        """The layer with a skip that a block is, or None."""
        *branch, last = block
        if last.name not in _ADDITIONS or len(self._states(last)) != 2 or source.size != target.size:
            return None
        ends = [state for state in self._states(last) if state is not source]
        if len(ends) != 1 or not branch or ends[0] not in branch[-1].outputs:
            return None
        found = self.pieces(tuple(branch), source)
        layer = with_skip(found[0].layer) if len(found) == 1 else None
        return None if layer is None else Piece(layer, found[0].positions, block, source, target)


def _as_norm(reading, piece):
    """A piece that is external, or as the norm that it is."""
    found = norm_of(Function(reading, piece), piece)
    return piece if found is None else replace(piece, layer=found[0], positions=found[1])


class Function:
    """What a piece does to one state, as a function of that and of its own parameters, flat, in any array library."""

    def __init__(self, reading, piece):
        self._reading, self._piece = reading, piece
        computed, self._views = {}, {}
        for equation in piece.equations:
            for given in equation.inputs:
                value = None if reading.is_state(given) else reading.value(given)
                computed.update(dict.fromkeys(value.equations if isinstance(value, Computed) else ()))
        self._equations = (*computed, *piece.equations)
        for equation in self._equations:
            for given in equation.inputs:
                value = None if reading.is_state(given) else reading.value(given)
                if isinstance(value, View):
                    self._views[given] = np.searchsorted(piece.positions, value.positions)

    def __call__(self, state, x):
        """The outputs (n_out,) for a state (n_in,) and parameters (p,)."""
        given = {variable: x[places] for variable, places in self._views.items()}
        return evaluate(self._reading, self._equations, self._piece.source, self._piece.target, state, given)


def evaluate(reading, equations, source, target, state, given=()):
    """The numbers of a state, flat, that equations lead to from those of another.

    given : values of the parameters that they read, by their variables.
    """
    known = {source: state, **dict(given)}

    def value(variable):
        if not isinstance(variable, Variable):
            return variable
        if variable in known:
            found = known[variable]
        elif reading.is_state(variable):
            found = known[reading.root(variable)]
        else:
            found = reading.value(variable)
        return found.reshape(variable.shape)

    for equation in equations:
        known.update(zip(equation.outputs, equation.evaluate(*map(value, equation.inputs))))
    return value(target).reshape(-1)


def _has_values(name, points, values):
    """Whether a registered activation has these values at these points."""
    function = activation_function(name)
    try:
        expected = np.array([function(float(u))[0] for u in points.ravel()]).reshape(points.shape)
    except (ArithmeticError, ValueError):
        # Python raises where compiled code gives NaN or infinity.
        return False
    return bool(np.all(np.abs(values - expected) <= _ROUNDING * (1.0 + np.abs(expected))))


def _dense(state, positions, dimension_numbers, is_state_first):
    """The dense layer that a contraction of a state and a weight is, and the places of its weights."""
    (left, right), batches = dimension_numbers
    if any(map(len, batches)):
        return None, None
    ours, theirs = (left, right) if is_state_first else (right, left)
    free = [n for axis, n in enumerate(state.shape) if axis not in ours]
    if any(n != 1 for n in free):
        return None, None
    # Inputs count in the order in which the state's numbers lie.
    columns = [their for _, their in sorted(zip(ours, theirs))]
    rows = [axis for axis in range(positions.ndim) if axis not in columns]
    weights = positions.transpose(rows + columns).reshape(-1, state.size)
    return Dense(state.size, len(weights), "identity", False), weights.reshape(-1)


def _convolution(state, positions, options):
    """The 1-d convolution that one of channels first is, and the places of its weights."""
    layout = options["dimension_numbers"]
    if len(state.shape) != 3 or state.shape[0] != 1 or any(tuple(spec) != (0, 1, 2) for spec in layout):
        return None, None
    if options["feature_group_count"] != 1 or options["batch_group_count"] != 1:
        return None, None
    if tuple(options["lhs_dilation"]) != (1,):
        return None, None
    ((before, after),) = options["padding"]
    if before != after or before < 0:
        return None, None
    (stride,), (dilation,) = options["window_strides"], options["rhs_dilation"]
    out_channels, in_channels, kernel_size = positions.shape
    layer = Conv1d(
        in_channels, out_channels, kernel_size, state.shape[2], "identity", False,
        stride=stride, padding=before, dilation=dilation,
    )  # fmt: skip
    return layer, positions.reshape(-1)
