"""Swinging up a pendulum by Newton's method
=========================================

Swing a pendulum up on a cart by Newton's method: the forces at thousands of time steps are a chain's parameters.

Run it with ``python examples/optimal_control.py``; it draws ``optimal_control.png`` and needs matplotlib (the extra
``examples``). Time step t is layer t: it takes the state z_t (position, angle, and their velocities) and the force u_t
to ``z_{t+1} = f(z_t, u_t)``, four numbers from four and one. The cost is the sum over all steps of l(z_t, u_t), and a
cost of the last state. Its Hessian in the forces is dense, but a Newton step costs one factorization of the chain,
linear in the number of steps; and the factorization's inertia says for certain whether the step is one of descent. The
dynamics and the costs may be replaced by any others made of ``+ - * /``, sin and cos: their derivatives follow.

The picture shows the swing-up, and the norm of the gradient in each iteration: damped steps until the Hessian is
positive definite, then quadratic convergence.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numba
import numpy as np
from numba.extending import register_jitable

import numba_hinv as nh

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - draws into a file, without a screen

STEPS = 3000
SECONDS = 1.8
CART, BOB, LENGTH, GRAVITY = 1.0, 0.3, 1.0, 9.81
START = np.array([0.0, np.pi, 0.0, 0.0])  # at rest and hanging; the angle is 0 where the pendulum is upright
TOLERANCE = 1e-11  # of the gradient's norm
MAX_ITERATIONS = 200
PICTURE = Path(__file__).with_suffix(".png")
RAISE, LOWER = 4.0, 0.2  # factors of the damping


# ---- the problem: dynamics and costs --------------------------------------------------------------------------------
#
# `register_jitable` leaves a function as it is for Python, which calls it with jets, and lets compiled code call it.


@register_jitable
def velocities(position, angle, speed, spin, force):
    """Time derivatives of the state."""
    sine, cosine = np.sin(angle), np.cos(angle)
    pull = force + BOB * sine * (LENGTH * spin * spin - GRAVITY * cosine)
    acceleration = pull / (BOB * sine * sine + CART)
    return speed, spin, acceleration, (GRAVITY * sine - acceleration * cosine) * (1.0 / LENGTH)


@register_jitable
def step(position, angle, speed, spin, force, h):
    """The state after ``h`` seconds, by the classical Runge-Kutta method."""
    a0, a1, a2, a3 = velocities(position, angle, speed, spin, force)
    k = 0.5 * h
    b0, b1, b2, b3 = velocities(position + k * a0, angle + k * a1, speed + k * a2, spin + k * a3, force)
    c0, c1, c2, c3 = velocities(position + k * b0, angle + k * b1, speed + k * b2, spin + k * b3, force)
    d0, d1, d2, d3 = velocities(position + h * c0, angle + h * c1, speed + h * c2, spin + h * c3, force)
    k = h / 6.0
    return (
        position + k * (a0 + 2.0 * (b0 + c0) + d0),
        angle + k * (a1 + 2.0 * (b1 + c1) + d1),
        speed + k * (a2 + 2.0 * (b2 + c2) + d2),
        spin + k * (a3 + 2.0 * (b3 + c3) + d3),
    )


@register_jitable
def stage_cost(position, angle, speed, spin, force, h):
    return h * (0.01 * force * force + 0.5 * position * position + 1.0 - np.cos(angle))


@register_jitable
def final_cost(position, angle, speed, spin):
    return 50.0 * (position * position + 0.1 * (speed * speed + spin * spin) + 2.0 - 2.0 * np.cos(angle))


@numba.njit
def roll_out(forces, h, states):
    """Fill the states, (steps + 1, 4), from the first; returns the cost."""
    cost = 0.0
    for t in range(forces.size):
        position, angle, speed, spin = states[t]
        cost += stage_cost(position, angle, speed, spin, forces[t], h)
        states[t + 1] = step(position, angle, speed, spin, forces[t], h)
    position, angle, speed, spin = states[forces.size]
    return cost + final_cost(position, angle, speed, spin)


# ---- derivatives, forward, for all time steps at once ---------------------------------------------------------------


class Jet:
    """A number at each of N time steps with its derivatives in n variables: (N,), (N, n) and (N, n, n) arrays.

    ``np.sin`` and ``np.cos`` of an object that they do not know call its methods of these names.
    """

    def __init__(self, value, first, second):
        self.value, self.first, self.second = value, first, second

    @classmethod
    def variables(cls, values):
        """The columns of an (N, n) array as the variables themselves."""
        N, n = values.shape
        eye, none = np.broadcast_to(np.eye(n), (N, n, n)), np.zeros((N, n, n))
        return [cls(values[:, i], eye[:, i], none) for i in range(n)]

    def compose(self, value, slope, curvature):
        """g(self), from g, g' and g'' at the values."""
        outer = self.first[:, :, None] * self.first[:, None, :]
        second = curvature[:, None, None] * outer + slope[:, None, None] * self.second
        return Jet(value, slope[:, None] * self.first, second)

    def sin(self):
        sine, cosine = np.sin(self.value), np.cos(self.value)
        return self.compose(sine, cosine, -sine)

    def cos(self):
        sine, cosine = np.sin(self.value), np.cos(self.value)
        return self.compose(cosine, -sine, -cosine)

    def __add__(self, other):
        if isinstance(other, Jet):
            return Jet(self.value + other.value, self.first + other.first, self.second + other.second)
        return Jet(self.value + other, self.first, self.second)

    def __mul__(self, other):
        if not isinstance(other, Jet):
            return Jet(self.value * other, self.first * other, self.second * other)
        x, y = self.value[:, None], other.value[:, None]
        cross = self.first[:, :, None] * other.first[:, None, :]
        second = x[:, None] * other.second + y[:, None] * self.second + cross + cross.transpose(0, 2, 1)
        return Jet(self.value * other.value, x * other.first + y * self.first, second)

    def __truediv__(self, other):
        inverse = 1.0 / other.value
        return self * other.compose(inverse, -(inverse**2), 2.0 * inverse**3)

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    __radd__, __rmul__ = __add__, __mul__


def derivatives(forces, h, states):
    """Gradient of the cost in the forces, (N,), and its Hessian: (blocks of the N steps, curvature at the end)."""
    N = forces.size
    variables = Jet.variables(np.column_stack([states[:-1], forces]))
    end = Jet.variables(states[-1:])
    after, stage, final = step(*variables, h), stage_cost(*variables, h), final_cost(*end)
    Dz = np.stack([state.first[:, :4] for state in after], axis=1)
    Dx = np.stack([state.first[:, 4:] for state in after], axis=1)
    # lam[t] is the derivative of the cost in z_t, all later steps included: adjoints, from the last state to the first.
    lam = np.empty((N + 1, 4))
    lam[N] = final.first[0]
    for t in range(N - 1, 0, -1):
        lam[t] = stage.first[t, :4] + lam[t + 1] @ Dz[t]
    gradient = stage.first[:, 4] + np.einsum("ti,ti->t", lam[1:], Dx[:, :, 0])
    # Second derivatives of the Hamiltonian l(z, u) + lam_{t+1}^T f(z, u). Its second term is what `LayerBlocks` means:
    # the step's second derivatives contracted with those of the cost in the next state. A stage cost acts without going
    # through the next state: its own second derivatives are added to Dxx, Dzx and Dzz. (Its first derivatives are in
    # lam and in the gradient already.)
    second = stage.second + sum(weight[:, None, None] * state.second for weight, state in zip(lam[1:].T, after))
    Dzz, Dzx, Dxx = second[:, :4, :4], second[:, 4:, :4], second[:, 4:, 4:]
    return gradient, [nh.LayerBlocks(*step) for step in zip(Dx, Dz, Dxx, Dzx, Dzz)], final.second[0]


# ---- Newton's method ------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One iteration."""

    cost: float
    gradient: float  # norm
    damping: float
    negative: int  # eigenvalues of the undamped Hessian
    decrement: float  # root of step^T (H + damping I) step, Newton's own measure of distance
    share: float  # of the step that was taken
    seconds: float


def minimise(forces, h):
    """Newton's method with a line search: the forces, the states, and a `Row` for every iteration.

    The step solves ``(H + damping I) step = -gradient``. It goes downhill for certain where the matrix has no negative
    eigenvalue; so the damping is 0 where H has none, and else as large as that takes.
    """
    states = np.empty((forces.size + 1, 4))
    states[0] = START
    states_there = states.copy()
    cost = roll_out(forces, h, states)
    damping, rows = 0.0, []
    print(f"{'':>9}{'cost':>15}{'|gradient|':>12}{'damping':>10}{'negative':>10}{'decrement':>11}{'step':>10}{'ms':>7}")
    while len(rows) < MAX_ITERATIONS:
        began = time.perf_counter()
        gradient, blocks, terminal = derivatives(forces, h, states)
        norm = np.linalg.norm(gradient)
        H = nh.Hessian.from_blocks(blocks, terminal)
        F = H.factorize(0.0)
        negative = F.inertia.negative
        if negative:
            damping = max(LOWER * damping, 1e-6 * H.norm())
            while (F := H.factorize(damping)).inertia.negative:
                damping *= RAISE
        step = F.solve(-gradient)
        slope, share = gradient @ step, 1.0
        while norm > TOLERANCE:
            cost_there = roll_out(forces + share * step, h, states_there)
            # Rounding of the cost is allowed for: near the solution it hides the decrease.
            if cost_there <= cost + 1e-4 * share * slope + 1e-13 * abs(cost):
                break
            share *= 0.5
        rows.append(Row(cost, norm, F.damping, negative, (-slope) ** 0.5, share, time.perf_counter() - began))
        print(
            f"{len(rows) - 1:>9}{cost:15.9f}{norm:12.1e}{F.damping:10.1e}{negative:10}{rows[-1].decrement:11.1e}"
            f"{share:10.2g}{1e3 * rows[-1].seconds:7.0f}"
        )
        if norm <= TOLERANCE:
            return forces, states, rows
        forces, cost = forces + share * step, cost_there
        states, states_there = states_there, states
    raise RuntimeError(f"no convergence in {MAX_ITERATIONS} iterations: the gradient's norm is {norm:.1e}")


# ---- the picture ----------------------------------------------------------------------------------------------------


def draw(forces, states, rows, picture):
    h = SECONDS / forces.size
    times = np.arange(forces.size + 1) * h
    figure, axes = plt.subplot_mosaic([["motion", "newton"], ["time", "newton"]], figsize=(11, 6), layout="constrained")

    motion = axes["motion"]
    for t in np.linspace(0, forces.size, 25).astype(int):
        position, angle = states[t, :2]
        shade = plt.cm.viridis(t / forces.size)
        bob = position + LENGTH * np.sin(angle), LENGTH * np.cos(angle)
        motion.plot([position, bob[0]], [0, bob[1]], color=shade, linewidth=1, zorder=2)
        motion.plot(*bob, "o", color=shade, markersize=6, zorder=3)
        motion.plot(position, 0, "s", color=shade, markersize=8, markeredgecolor="black", markeredgewidth=0.4, zorder=4)
    motion.axhline(0, color="gray", linewidth=0.6, zorder=1)
    motion.set(aspect="equal", xlabel="m", ylabel="m", title="Swing-up: dark is the start, yellow the end")

    course = axes["time"]
    upright = 2 * np.pi * np.round(states[-1, 1] / (2 * np.pi))
    course.plot(times, states[:, 0], label="position, m")
    course.plot(times, states[:, 1] - upright, label="angle from upright, rad")
    course.plot(times[:-1], forces / 10, label="force, 10 N")
    course.set(xlabel="seconds")
    course.legend()

    newton = axes["newton"]
    lengths = np.array([row.gradient for row in rows])
    damped = np.array([row.damping > 0 for row in rows])
    iterations = np.arange(len(rows))
    newton.semilogy(iterations, lengths, color="gray", linewidth=0.8, zorder=1)
    newton.semilogy(iterations, [row.decrement for row in rows], "k-", linewidth=1.2, label="decrement", zorder=1)
    newton.semilogy(
        iterations[damped],
        lengths[damped],
        "o",
        color="tab:red",
        markersize=4,
        label="gradient, H indefinite: damped step",
    )
    newton.semilogy(
        iterations[~damped],
        lengths[~damped],
        "o",
        color="tab:blue",
        markersize=4,
        label="gradient, H positive definite: undamped",
    )
    newton.set(xlabel="iteration", ylabel="norm", title=f"Newton's method in {forces.size:,} forces")
    counts = newton.twinx()
    counts.bar(iterations, [row.negative for row in rows], color="tab:red", alpha=0.2, width=0.8)
    counts.set(ylabel="negative eigenvalues of H", ylim=(0, 4 * max(1, *(row.negative for row in rows))))
    counts.yaxis.get_major_locator().set_params(integer=True)
    newton.legend(loc="center left")
    for one in (course, newton):
        one.grid(True, which="major", alpha=0.3)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Swing a pendulum up on a cart by Newton's method.")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"time steps, the layers of the chain ({STEPS})")
    parser.add_argument("--picture", default=PICTURE, help=f"file to draw into ({PICTURE})")
    arguments = parser.parse_args()
    began = time.perf_counter()
    h = SECONDS / arguments.steps
    forces, states, rows = minimise(3.0 * np.sin(5.0 * h * np.arange(arguments.steps)), h)
    print(
        f"\n{len(rows)} iterations, {time.perf_counter() - began:.1f} s with compilation; at the end the pendulum is "
        f"{np.degrees(np.arccos(np.cos(states[-1, 1]))):.2f} degrees from upright"
    )
    draw(forces, states, rows, arguments.picture)
    print("wrote", arguments.picture)


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "../examples/optimal_control.png"
