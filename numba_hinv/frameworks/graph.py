"""A model as equations between arrays, and what each array is: a constant, parameters, or a state that samples reach.

Whoever traces a framework writes the equations down; nothing here knows which one it was. Where parameters go that are
moved about is found by moving their indices about.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Operations that move entries of their arrays, and change none.
_MOVES = {
    "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "copy_p", "slice", "rev",
    "concatenate",
}  # fmt: skip
# Those whose further arguments say where to.
_INDEXED_MOVES = {"dynamic_slice"}


class Variable:
    """What an equation reads or writes: a name without a value.

    is_real : whether its numbers are float64, so that derivatives pass through it.
    """

    def __init__(self, shape, is_real=True):
        self.shape, self.is_real = tuple(shape), is_real

    @property
    def size(self):
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Equation:
    """``outputs = evaluate(*inputs)``.

    inputs : of variables, and of arrays where they are constants.
    evaluate : function of as many arrays that returns a tuple.
    elementwise : whether each entry of the outputs depends on that entry of the inputs alone.
    """

    name: str
    inputs: tuple
    outputs: tuple
    options: dict
    evaluate: Callable
    elementwise: bool = False


class Graph(NamedTuple):
    """parameters : variables; source, target : those of a sample and of its output; equations : in order."""

    parameters: tuple
    source: Variable
    target: Variable
    equations: tuple


class View(NamedTuple):
    """Parameters, moved about. positions : of each entry its place among the numbers of all parameters."""

    positions: np.ndarray


class Computed(NamedTuple):
    """An array computed from parameters. equations : that compute it; positions : of the parameters in it, sorted."""

    equations: tuple
    positions: np.ndarray


class Reading:
    """What each variable of a graph is, and the equations that states go through.

    Parameters
    ----------
    graph : Graph

    Attributes
    ----------
    equations : list of Equation
        Those that read a state, without those that give it another shape alone.
    """

    def __init__(self, graph):
        self._values, self._aliases, start = {}, {}, 0
        for parameter in graph.parameters:
            positions = np.arange(start, start + parameter.size).reshape(parameter.shape)
            self._values[parameter] = View(positions)
            start += parameter.size
        self.num_params = start
        self.source, self._states = graph.source, {graph.source}
        self.equations = []
        for equation in needed(graph):
            self._read(equation)
        self.target = self.root(graph.target)

    def is_state(self, given):
        """Whether an input of an equation is one that samples reach."""
        return isinstance(given, Variable) and given in self._states

    def root(self, variable):
        """The state that this one is, but for its shape."""
        return self._aliases.get(variable, variable)

    def value(self, given):
        """What an input that is no state is: a View, a Computed, or else a constant array."""
        return self._values[given] if isinstance(given, Variable) else given

    def positions(self, equation):
        """Places of the parameters that an equation reads, one array per input that has any."""
        values = (self.value(given) for given in equation.inputs if not self.is_state(given))
        return [value.positions.reshape(-1) for value in values if isinstance(value, (View, Computed))]

    def _read(self, equation):
        if any(map(self.is_state, equation.inputs)):
            self._states.update(equation.outputs)
            if self._keeps_numbers(equation):
                (state,) = equation.inputs
                self._aliases[equation.outputs[0]] = self.root(state)
            else:
                self.equations.append(equation)
            return
        values = [self.value(given) for given in equation.inputs]
        parameters = [value for value in values if isinstance(value, (View, Computed))]
        if not parameters:
            self._values.update(zip(equation.outputs, map(np.asarray, equation.evaluate(*values))))
        elif self._is_move(equation.name, values):
            arguments = [value.positions if isinstance(value, View) else value for value in values]
            self._values[equation.outputs[0]] = View(np.asarray(equation.evaluate(*arguments)[0]))
        else:
            positions = np.unique(np.concatenate([value.positions.reshape(-1) for value in parameters]))
            before = [each for value in parameters if isinstance(value, Computed) for each in value.equations]
            computed = Computed((*dict.fromkeys(before), equation), positions)
            self._values.update(dict.fromkeys(equation.outputs, computed))

    @staticmethod
    def _is_move(name, values):
        if name in _MOVES:
            return all(isinstance(value, View) for value in values)
        is_known = [not isinstance(value, (View, Computed)) for value in values[1:]]
        return name in _INDEXED_MOVES and isinstance(values[0], View) and all(is_known)

    def _keeps_numbers(self, equation):
        """Whether a state comes out as it was, row by row, if in another shape."""
        if len(equation.inputs) != 1 or not equation.outputs[0].is_real:
            return False
        state, (output,) = equation.inputs[0], equation.outputs
        if equation.name == "convert_element_type":
            return state.is_real
        if equation.name not in _MOVES or output.size != state.size:
            return False
        places = np.arange(state.size)
        moved = np.asarray(equation.evaluate(places.reshape(state.shape))[0])
        return np.array_equal(moved.reshape(-1), places)


def needed(graph):
    """The equations that the target depends on, in order."""
    wanted, needed = {graph.target}, []
    for equation in reversed(graph.equations):
        if not wanted.isdisjoint(equation.outputs):
            needed.append(equation)
            wanted.update(given for given in equation.inputs if isinstance(given, Variable))
    return needed[::-1]
