"""A model-predictive controller in one compiled function
======================================================

Solves inside your own compiled code: a model-predictive controller that is one ``@njit`` function.

Run it with ``python examples/embed_in_njit.py``; it needs nothing beyond the library itself. A vehicle (position x and
y, heading, speed) is steered along a figure of eight by acceleration and turn rate. At every tick the controller looks
STAGES time steps ahead and improves the controls of that horizon by one Newton step: a chain of derivative blocks with
4 states and 2 parameters a layer, factorized and solved by `numba_hinv.embedded` without allocating anything and
without the interpreter. Then the first controls are applied and the horizon moves on.
"""

import argparse
import time

import numba
import numpy as np

import numba_hinv as nh
from numba_hinv import embedded

TICKS = 2000
STAGES = 30
H = 0.05  # seconds per tick
EFFORT = 1e-3  # cost of controls
STATES, CONTROLS = 4, 2


@numba.njit(error_model="numpy")
def reference(t):
    """Where the vehicle should be, in metres."""
    return 4.0 * np.sin(0.5 * t), 2.0 * np.sin(1.0 * t)


@numba.njit(error_model="numpy")
def advance(z, u, z_next):
    """One time step: heading and speed follow the controls, the position follows them."""
    z_next[0] = z[0] + H * z[3] * np.cos(z[2])
    z_next[1] = z[1] + H * z[3] * np.sin(z[2])
    z_next[2] = z[2] + H * u[1]
    z_next[3] = z[3] + H * u[0]


@numba.njit(error_model="numpy")
def linearise(system, now, z, u, lam, gradient):
    """Roll the controls u out to the states z[1:]; fill the blocks, and the gradient of the cost in the controls.

    The cost is sum_t |position - reference|^2 / 2 + EFFORT |u|^2 / 2.
    """
    for t in range(STAGES):
        advance(z[t], u[t], z[t + 1])
    lam[:] = 0.0
    for t in range(STAGES - 1, -1, -1):
        # The adjoint of the state that stage t leaves: its own cost, and what later stages have left in lam.
        x, y = reference(now + H * (t + 1))
        lam[0] += z[t + 1, 0] - x
        lam[1] += z[t + 1, 1] - y
        sine, cosine, speed = np.sin(z[t, 2]), np.cos(z[t, 2]), z[t, 3]
        Dx, Dz, Dxx, Dzx, Dzz = embedded.blocks(system, t)
        # Entries that are not written here stay 0, as `embedded.chain` has left them.
        Dx[2, 1] = Dx[3, 0] = H
        Dxx[0, 0] = Dxx[1, 1] = EFFORT
        if t > 0:
            Dz[0, 0] = Dz[1, 1] = Dz[2, 2] = Dz[3, 3] = 1.0
            Dz[0, 2], Dz[0, 3] = -H * speed * sine, H * cosine
            Dz[1, 2], Dz[1, 3] = H * speed * cosine, H * sine
            # Second derivatives of lam^T f, and of the cost of the state that comes in.
            Dzz[0, 0] = Dzz[1, 1] = 1.0
            Dzz[2, 2] = -H * speed * (lam[0] * cosine + lam[1] * sine)
            Dzz[2, 3] = Dzz[3, 2] = H * (lam[1] * cosine - lam[0] * sine)
        gradient[0, 2 * t] = EFFORT * u[t, 0] + H * lam[3]
        gradient[0, 2 * t + 1] = EFFORT * u[t, 1] + H * lam[2]
        lam[2] += H * speed * (lam[1] * cosine - lam[0] * sine)
        lam[3] += H * (lam[0] * cosine + lam[1] * sine)


@numba.njit(nogil=True, error_model="numpy")
def drive(system, first_tick, num_ticks, z, u, lam, gradient, step):
    """Ticks first_tick ... of the controller, from the state z[0] and the horizon's controls u.

    Returns (status, factorizations, mean square of the distance to the reference).
    """
    curvature = embedded.terminal(system)
    curvature[0, 0] = curvature[1, 1] = 1.0
    count, square = 0, 0.0
    for tick in range(first_tick, first_tick + num_ticks):
        linearise(system, H * tick, z, u, lam, gradient)
        # The matrix is positive definite near the best controls. Elsewhere damping makes it so, as much as that takes.
        damping = 0.0
        while True:
            code, num_negative, _ = embedded.factorize(system, damping, 0.0)
            count += 1
            if code != embedded.OK:
                return code, count, square / num_ticks
            if num_negative == 0:
                break
            damping = max(EFFORT, 4.0 * damping)
        embedded.solve(system, gradient, step, 0)
        for t in range(STAGES):
            for i in range(CONTROLS):
                u[t, i] -= step[0, CONTROLS * t + i]
        if tick == first_tick + num_ticks - 1:
            break
        advance(z[0], u[0], z[1])
        for i in range(STATES):
            z[0, i] = z[1, i]
        x, y = reference(H * (tick + 1))
        square += (z[0, 0] - x) ** 2 + (z[0, 1] - y) ** 2
        for t in range(STAGES - 1):
            u[t] = u[t + 1]
    return embedded.OK, count, square / num_ticks


def main():
    parser = argparse.ArgumentParser(description="A model-predictive controller in one compiled function.")
    parser.add_argument("--ticks", type=int, default=TICKS, help=f"how long to drive, in ticks ({TICKS})")
    ticks = parser.parse_args().ticks
    # Making the system loads the kernels: it comes before any compiled code that uses them, in every process.
    system = embedded.chain([STATES] * STAGES, [CONTROLS] * STAGES)
    z, u, lam = np.zeros((STAGES + 1, STATES)), np.zeros((STAGES, CONTROLS)), np.empty(STATES)
    gradient, step = np.empty((1, STAGES * CONTROLS)), np.empty((1, STAGES * CONTROLS))
    arrays = z, u, lam, gradient, step

    began = time.perf_counter()
    drive(system, 0, 200, *arrays)
    compiled = time.perf_counter()
    code, count, square = drive(system, 200, ticks, *arrays)
    taken = time.perf_counter() - compiled

    print(f"first 200 ticks, compilation included      {compiled - began:.1f} s")
    print(f"{ticks:,} ticks, {count:,} factorizations     {1e6 * taken / ticks:.1f} us a tick, status {code}")
    print(f"memory of the system                       {embedded.nbytes(system) / 1e3:.0f} kB")
    print(f"root mean square distance to the path      {square**0.5:.3f} m")

    # What it has solved last, from Python: the same chain, and its Hessian as a matrix.
    blocks = [nh.LayerBlocks(*(block.copy() for block in embedded.blocks(system, l))) for l in range(STAGES)]
    hessian, damping = nh.Hessian.from_blocks(blocks, embedded.terminal(system).copy()), float(system.damping[0])
    matrix = hessian.todense() + damping * np.eye(hessian.shape[0])
    for name, x in (
        ("Hessian.from_blocks(...).factorize(...).solve", hessian.factorize(damping).solve(gradient[0])),
        ("a dense solve", np.linalg.solve(matrix, gradient[0])),
    ):
        print(f"difference to {name}: {np.linalg.norm(step[0] - x) / np.linalg.norm(x):.1e}")


if __name__ == "__main__":
    main()
